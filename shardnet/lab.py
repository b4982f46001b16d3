"""[lab]: what holds for the whole lab. A lab file is read here, into checked sections.

    ; comments stand on lines of their own
    [lab]
    name = demo

    [stream vm1]
    server = on
    addr.type = unix
    addr.path = vm1.sock

A section `[KIND NAME]` is a port, and its keys are the options of that kind; `[switch NAME]` and `[lab]` are no ports.
A value goes on in lines that are further to the right than its key. Without `name` a lab is called as its file,
without the suffix.

A lab is right as a whole or not at all: every mistake of the file is reported, in the order of its lines.
"""

import dataclasses
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from shardnet import ini, kinds, options, switch

FILE_MAX = 1 << 20
PORTS_MAX = 1023  # ids 1 to 1023 of an arena
SWITCHES_MAX = 64
SHARDS_MAX = 60  # of the 64 workers of an arena; the others are left for captures
CAPTURES_MAX = 8  # that are written: each has a worker to itself
LANE_MIN, LANE_MAX = 256 << 10, 64 << 20


def lane_bytes(text: str) -> int:
    """a power of two from 256K to 64M"""
    found = re.fullmatch(r"([0-9]{1,9})([KM]?)", text, re.ASCII)
    size = int(found[1]) << {"": 0, "K": 10, "M": 20}[found[2]] if found else 0
    if not LANE_MIN <= size <= LANE_MAX or size & (size - 1):
        raise ValueError("no power of two from 256K to 64M")
    return size


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    # The lab's name, as `shardnet status --lab NAME` takes it.
    name: str | None = options.option(None, read=options.name)
    # Spread the ports over this many worker processes. Without it every port has one of its own while they are few.
    shards: int | None = options.option(None, read=options.between(1, SHARDS_MAX))
    # Room of a lane, the ring from one worker to another.
    lane_bytes: int = options.option(4 << 20, read=lane_bytes)


class Mistake(NamedTuple):
    """A mistake of a lab: its line (0: none in particular) and the whole message, `lab.ini:7: [tap up] …`."""

    line: int
    text: str


class Wrong(ValueError):
    """All the mistakes of a lab, in the order of its lines."""

    def __init__(self, mistakes: Iterable[Mistake]) -> None:
        self.mistakes = tuple(sorted(mistakes, key=lambda mistake: mistake.line))
        super().__init__("\n".join(mistake.text for mistake in self.mistakes))


@dataclasses.dataclass(frozen=True)
class Section:
    """One section, checked: `given` is its text by key, `options` what its kind made of it."""

    kind: str
    name: str
    given: Mapping[str, str]
    options: Any
    line: int = 0
    behind: str = ""  # the port whose companion this is
    share: int = 0  # which of its shards

    def __str__(self) -> str:
        return f"[{self.kind} {self.name}]" if self.name else f"[{self.kind}]"


@dataclasses.dataclass(frozen=True)
class Lab:
    """A lab as its file has it; `switches` holds those that have a section."""

    name: str
    file: Path | None
    section: Section
    switches: Mapping[str, Section]
    ports: tuple[Section, ...]

    @property
    def options(self) -> Options:
        found: Options = self.section.options
        return found

    @property
    def switch_names(self) -> tuple[str, ...]:
        """Every switch of the lab: those with a section, then those that only ports name."""
        return tuple(dict.fromkeys([*self.switches, *(port.options.switch for port in self.ports)]))


def read(source: str | Path, extra: Sequence[Section] = (), where: str | None = None) -> Lab:
    """Read a lab from a file (a Path) or from its text (a str), `extra` ports after its own; raises Wrong.

    `where` is what messages call the source.
    """
    if isinstance(source, Path):
        text, where, name = _text(source), where or options.shown(str(source)), source.stem
    else:
        text, where, name = source, where or "text", "lab"
    sections, mistakes = _sections(text, where)
    if not (sections or mistakes or extra):
        mistakes.append(_mistake(where, 0, "no section in it"))
    own = next((section for section in sections if section.kind == "lab"), Section("lab", "", {}, Options()))
    if own.options and own.options.name:
        name = own.options.name
    elif not options.NAME.fullmatch(name):
        mistakes.append(_mistake(where, 0, f"{options.shown(name)} cannot name a lab ([lab] name = NAME does)"))
    switches = {section.name: section for section in sections if section.kind == "switch"}
    ports = tuple(section for section in sections if section.kind not in kinds.OWN)
    mistakes += _together(switches, (*ports, *extra), where)
    if mistakes:
        raise Wrong(mistakes)
    return Lab(name, source if isinstance(source, Path) else None, own, switches, (*ports, *extra))


def ports(text: str, where: str = "text") -> tuple[Section, ...]:
    """Read ports alone, as they are added to a running lab; raises Wrong."""
    sections, mistakes = _sections(text, where)
    for section in sections:
        if section.kind in kinds.OWN:
            mistakes.append(_mistake(where, section.line, f"{section} is no port (reload takes it from the lab file)"))
    if not sections and not mistakes:
        mistakes.append(_mistake(where, 0, "no section in it"))
    if mistakes:
        raise Wrong(mistakes)
    return tuple(sections)


def extended(lab: Lab, more: Sequence[Section], where: str = "text") -> Lab:
    """The lab with more ports; raises Wrong where a name is taken or the lab is full."""
    present = [dataclasses.replace(port, line=0) for port in lab.ports]  # their lines are of another text
    if mistakes := list(_together(lab.switches, [*present, *more], where)):
        raise Wrong(mistakes)
    return dataclasses.replace(lab, ports=(*lab.ports, *more))


def section(kind: str, name: str, given: Mapping[str, str], line: int = 0) -> Section:
    """Check one section alone; raises options.Wrong, where a mistake of the title has no key."""
    try:
        module = kinds.module(kind)
    except LookupError:
        raise options.Wrong([options.Mistake("", unknown(kind))]) from None
    if why := _title(kind, name):
        raise options.Wrong([options.Mistake("", why)])
    return Section(kind, name, given, options.read(module, given), line)


def companions(of: Section) -> dict[str, Section]:
    """The sections of the services that stand behind a port, or of its other end, by suffix; raises options.Wrong as `section` does."""
    made = getattr(kinds.module(of.kind), "companions", None)
    if made is None or of.behind:
        return {}
    whole = {key: text for key, text in of.given.items() if key not in (*options.ARENA_KEYS, "shard")}
    found = {}
    for one in made(of.options):
        is_end = not one.share and not kinds.is_service(one.kind)
        keys = {"mtu", "up"} if is_end else options.ARENA_KEYS - {"max_macs"}
        shared = {key: text for key, text in of.given.items() if key in keys}
        name = f"{of.name}.{one.suffix}"
        if unnamed(name):
            most = options.NAME_MAX - len(one.suffix) - 1
            raise options.Wrong([options.Mistake("", f"a name too long for its services ({most} characters at most)")])
        given = {**shared, **(whole if one.given is None else one.given)}
        made_of = section(one.kind, name, given, of.line)
        found[one.suffix] = dataclasses.replace(made_of, behind=of.name, share=one.share)
    return found


def only_arena(before: Section, after: Section) -> bool:
    """True where two sections of a port differ only in what is changed in the arena while the port carries on."""
    return _of_the_arena(after).issuperset(changed(before, after))


def carries_on(before: Section, after: Section) -> bool:
    """As `only_arena`, but its companions may differ too, each by itself, and what its worker changes while it carries on."""
    passed_on: frozenset[str] = getattr(kinds.module(after.kind), "PASSED_ON", frozenset())
    same = companions(before).keys() == companions(after).keys()
    return same and (_of_the_arena(after) | passed_on | kinds.live(after.kind)).issuperset(changed(before, after))


def alters(before: Section, after: Section) -> bool:
    """Do they differ in what the port's worker changes while it carries on?"""
    return not kinds.live(after.kind).isdisjoint(changed(before, after))


def _of_the_arena(of: Section) -> frozenset[str]:
    """The keys of a port that only the switch reads."""
    usual = {"mtu"} if kinds.is_service(of.kind) else set()  # its network cuts what is longer
    return options.ARENA_KEYS - getattr(kinds.module(of.kind), "READS", usual)


def unknown(kind: str) -> str:
    """Say that there is no such kind, with the nearest there is."""
    return "unknown kind" + options.meant(kind, [*kinds.names(), *kinds.OWN])


def unnamed(name: str) -> str | None:
    """Say why a name is none, nothing where it is one."""
    try:
        options.name(name)
    except ValueError as why:
        return str(why)
    return None


Action = Literal["remove", "change", "restart", "add"]


class Step(NamedTuple):
    """What a reload does to one section; `why` says what is new in it."""

    action: Action
    section: Section
    why: str


def plan(old: Lab, new: Lab) -> list[Step]:
    """Say what turns the lab `old` into `new`, in the order in which to do it.

    A `change` is made while the port carries on, a `restart` makes the port anew. A `restart` of [lab] is
    one of the whole lab, which no reload can do.
    """
    before = {port.name: port for port in old.ports}
    after = {port.name: port for port in new.ports}
    steps = []
    if old.name != new.name:
        steps.append(Step("restart", new.section, f"name = {new.name} (was {old.name})"))
    elif keys := changed(old.section, new.section):
        steps.append(Step("restart", new.section, _news(old.section, new.section, keys)))
    for name, port in before.items():
        if name not in after:
            steps.append(Step("remove", port, "no longer in the lab"))
        elif after[name].kind != port.kind:
            steps.append(Step("remove", port, f"is {after[name]} now"))
    for name in dict.fromkeys([*old.switches, *new.switches]):
        usual = Section("switch", name, {}, switch.Options())
        was, now = old.switches.get(name, usual), new.switches.get(name, usual)
        if keys := changed(was, now):
            steps.append(Step("change", now, _news(was, now, keys)))
    for name, port in after.items():
        former = before.get(name)
        if former is None or former.kind != port.kind:
            steps.append(Step("add", port, f"was {former}" if former else "new in the lab"))
        elif keys := changed(former, port):
            action: Action = "change" if carries_on(former, port) else "restart"
            steps.append(Step(action, port, _news(former, port, keys)))
    return steps


def changed(old: Section, new: Section) -> list[str]:
    """The keys that say something else in another section of the same kind."""
    fields = options.declared(type(new.options))
    return [
        options.key_of(field)
        for field in fields
        if getattr(old.options, field.name) != getattr(new.options, field.name)
    ]


def _news(old: Section, new: Section, keys: Iterable[str]) -> str:
    def text(section: Section, key: str) -> str:
        return ", ".join(section.given[key].split("\n")) if key in section.given else "not set"

    return "; ".join(f"{key} = {text(new, key)} (was {text(old, key)})" for key in keys)


def _text(file: Path) -> str:
    name = options.shown(str(file))
    try:
        with file.open("rb") as opened:
            raw = opened.read(FILE_MAX + 1)
    except OSError as why:
        raise Wrong([_mistake(name, 0, why.strerror or str(why))]) from None
    if len(raw) > FILE_MAX:
        raise Wrong([_mistake(name, 0, "larger than 1 MiB, which no lab file is")])
    try:
        return raw.decode()
    except UnicodeDecodeError as why:
        line = raw.count(b"\n", 0, why.start) + 1
        raise Wrong([_mistake(name, line, f"no UTF-8 text (byte 0x{raw[why.start]:02x})")]) from None


def _sections(text: str, where: str) -> tuple[list[Section], list[Mistake]]:
    """Read every section of a text; where one is wrong its options are None, and the lab is not used."""
    raws, found = ini.read(text)
    mistakes = [_mistake(where, line, what) for line, what in found]
    sections = []
    for raw in raws:
        kind, _, name = raw.title.partition(" ")
        try:
            sections.append(section(kind, name, raw.given, raw.line))
        except options.Wrong as wrong:
            sections.append(Section(kind, name, raw.given, None, raw.line))
            for mistake in wrong.mistakes:
                mistakes.append(_mistake(where, _line(raw, mistake), f"[{options.shown(raw.title)}] {_said(mistake)}"))
    return sections, mistakes


def _line(raw: ini.Raw, mistake: options.Mistake) -> int:
    lines = raw.lines.get(mistake.key, [(raw.line, "")])
    return next((number for number, text in lines if text == mistake.value), lines[0][0])


def _said(mistake: options.Mistake) -> str:
    comment = mistake.value and re.search(r"\s[;#]", mistake.value)
    return f"{mistake} (a comment stands on a line of its own)" if comment else str(mistake)


def _together(switches: Mapping[str, Section], ports: Sequence[Section], where: str) -> Iterator[Mistake]:
    """Find what is wrong with sections that are each right alone."""
    names: dict[str, Section] = {}
    every: list[Section] = []
    for port in ports:
        every.append(port)
        try:
            every += companions(port).values() if port.options else ()
        except options.Wrong as wrong:
            yield from (_mistake(where, port.line, f"{port} {mistake}") for mistake in wrong.mistakes)
    for port in every:
        first = names.setdefault(port.name, port)
        if first is not port and port.name:
            line = f" on line {first.line}" if first.line else ""
            yield _mistake(where, port.line, f"{port} has the name of {first}{line}")
    if len(every) > PORTS_MAX:
        port = every[PORTS_MAX]
        yield _mistake(where, port.line, f"{port} one port too many (a lab has at most {PORTS_MAX})")
    written = [port for port in ports if port.options and kinds.captures(port) is not None]
    if len(written) > CAPTURES_MAX:
        one = written[CAPTURES_MAX]
        yield _mistake(where, one.line, f"{one} one capture too many (a lab writes at most {CAPTURES_MAX})")
    if len(switches) > SWITCHES_MAX:
        one = list(switches.values())[SWITCHES_MAX]
        yield _mistake(where, one.line, f"{one} one switch too many (a lab has at most {SWITCHES_MAX})")
        return
    for key, used, most in (("switch", set(switches), SWITCHES_MAX), ("shard", set(), SHARDS_MAX)):
        for port in ports:
            word = getattr(port.options, key, None)
            if word and word not in used:
                used.add(word)
                if len(used) == most + 1:
                    yield _mistake(where, port.line, f"{port} {key} = {word}: one too many (a lab has at most {most})")


def _title(kind: str, name: str) -> str | None:
    if kind == "lab":
        return "no name in the title (the key name gives it one)" if name else None
    return unnamed(name) if name else f"no name ([{kind} NAME] is meant)"


def _mistake(where: str, line: int, what: str) -> Mistake:
    return Mistake(line, f"{where}:{line}: {what}" if line else f"{where}: {what}")
