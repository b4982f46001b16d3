"""Options of a section: a dataclass declares them, this module reads them from text.

A kind of section is a module with a frozen dataclass `Options`. The dataclass is the whole truth: a key that is no
field is a mistake, and so is a field without a default that no key sets. A field's type reads its text:

    bool                on or off, as QEMU writes them
    int, str, Path      as they stand
    Literal["a", "b"]   one of these words
    tuple[T, ...]       a key that may be repeated: one value a line
    T | None            as T; None is for the default only
    anything else       `option(read=...)`: a function from the whole text to the value, ValueError says why not

Beside `Options` a module may have `REFUSED`, keys of QEMU's that cannot work outside QEMU with the reason, and
`check(options)`, which yields (key, why) for mistakes that take several keys to see.
"""

import dataclasses
import difflib
import re
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

MISSING = dataclasses.MISSING
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,31}", re.ASCII)
VLAN_MAX = 4094  # IEEE 802.1Q-2018, table 9-2: 0 is priority only, 4095 reserved
BOOL = {"on": True, "yes": True, "true": True, "y": True, "off": False, "no": False, "false": False, "n": False}
WHOLE = re.compile(r"-?(0|[1-9][0-9]{0,18}|0[xX][0-9a-fA-F]{1,16})")


class Mistake(NamedTuple):
    """What is wrong with one key of a section; `value` is the text at fault, None where the text is not to blame."""

    key: str
    why: str
    value: str | None = None

    def __str__(self) -> str:
        where = self.key if self.value is None else f"{self.key} = {self.value}"
        return f"{shown(where)}: {self.why}"


class Wrong(ValueError):
    """All the mistakes of one section."""

    def __init__(self, mistakes: Iterable[Mistake]) -> None:
        self.mistakes = tuple(mistakes)
        super().__init__("\n".join(map(str, self.mistakes)))


def option(default: Any = MISSING, *, key: str | None = None, read: Callable[[str], Any] | None = None) -> Any:
    """Declare a field of `Options`: `key` is its name in the lab file where that is no Python name (`addr.type`).

    The first line of `read.__doc__` tells the manual how the value is written.
    """
    return dataclasses.field(default=default, metadata={"key": key, "read": read})


def between(low: int, high: int) -> Callable[[str], int]:
    """Make a reader for whole numbers from `low` to `high`."""

    def read(text: str) -> int:
        number = _whole(text)
        if not low <= number <= high:
            raise ValueError(f"not {low} to {high}")
        return number

    read.__doc__ = f"{low} to {high}"
    return read


def name(text: str) -> str:
    """NAME"""
    if not NAME.fullmatch(text):
        raise ValueError("no name (a letter or digit, then letters, digits, . _ -, at most 32 in all)")
    return text


def vlans(text: str) -> tuple[int, ...]:
    """all, or numbers with ranges such as 10,20-29"""
    if text == "all":
        return tuple(range(1, VLAN_MAX + 1))
    found: set[int] = set()
    for part in text.split(","):
        ends = [end.strip() for end in part.split("-")]
        if len(ends) > 2 or not all(re.fullmatch(r"[0-9]{1,4}", end, re.ASCII) for end in ends):
            raise ValueError("neither all nor a list such as 10,20-29")
        low, high = int(ends[0]), int(ends[-1])
        if not 1 <= low <= high <= VLAN_MAX:
            raise ValueError(f"a VLAN is 1 to {VLAN_MAX}, the lower one first")
        found.update(range(low, high + 1))
    return tuple(sorted(found))


def mtu(text: str) -> int:
    """68 to 65521, or 0 for no limit"""
    number = _whole(text)
    if number != 0 and not 68 <= number <= 65521:  # RFC 791's least; 65535 less an Ethernet header
        raise ValueError("neither 0 nor 68 to 65521")
    return number


@dataclasses.dataclass(frozen=True, kw_only=True)
class PortOptions:
    """Keys that every port has; a kind's `Options` inherits them."""

    # The switch that the port is on. It need not have a section of its own.
    switch: str = option("lan", read=name)
    # Makes an access port: untagged on the wire, in this VLAN on the switch.
    vlan: int | None = option(None, read=between(1, VLAN_MAX))
    # Makes a trunk port: carries these VLANs, tagged on the wire.
    trunk: tuple[int, ...] | None = option(None, read=vlans)
    # The VLAN of a trunk's untagged frames; without it they are dropped. Without trunk it means trunk = all.
    native: int | None = option(None, read=between(1, VLAN_MAX))
    # The largest packet (without Ethernet header and VLAN tag) that the port carries.
    mtu: int = option(0, read=mtu)
    # Off: the port drops what comes either way until it is switched on.
    up: bool = True
    # Ports with the same word here share a worker process.
    shard: str | None = option(None, read=name)
    # On: the port exchanges no frames with other isolated ports of its switch.
    isolated: bool = False
    # How many addresses the switch learns behind this port; frames from others are dropped. 0: no limit.
    max_macs: int = option(0, read=between(0, 1 << 18))

    @property
    def tagged(self) -> tuple[int, ...] | None:
        """The VLANs that pass with a tag; None where the port is no trunk."""
        if self.trunk is None and self.native is not None:
            return vlans("all")
        return self.trunk

    @property
    def mode(self) -> str:
        """What the port is to VLANs, in a word or two: plain, access 10, trunk 10,20-29 native 5."""
        if self.vlan is not None:
            return f"access {self.vlan}"
        if self.tagged is None:
            return "plain"
        return f"trunk {ranges(self.tagged)}" + (f" native {self.native}" if self.native is not None else "")


# Keys that the supervisor applies in the arena while the port goes on carrying.
ARENA_KEYS = frozenset({"switch", "vlan", "trunk", "native", "mtu", "up", "isolated", "max_macs"})


def ranges(numbers: tuple[int, ...]) -> str:
    """Write sorted VLANs as `vlans` reads them."""
    if len(numbers) == VLAN_MAX:
        return "all"
    runs: list[list[int]] = []
    for number in numbers:
        if runs and runs[-1][-1] == number - 1:
            runs[-1][1:] = [number]
        else:
            runs.append([number])
    return ",".join("-".join(map(str, run)) for run in runs)


def read(kind: Any, given: Mapping[str, str]) -> Any:
    """Build `kind.Options` from the texts of one section; raises Wrong with every mistake in it."""
    fields = {key_of(field): field for field in declared(kind.Options)}
    refused: Mapping[str, str] = getattr(kind, "REFUSED", {})
    hints = typing.get_type_hints(kind.Options)
    values: dict[str, Any] = {}
    mistakes: list[Mistake] = []
    for key, text in given.items():
        if key in refused:
            mistakes.append(Mistake(key, refused[key]))
        elif key not in fields:
            mistakes.append(Mistake(key, "unknown option" + meant(key, fields)))
        elif not text:
            mistakes.append(Mistake(key, "no value"))
        else:
            field = fields[key]
            try:
                values[field.name] = _value(field, hints[field.name], text)
            except Unread as unread:
                mistakes.append(Mistake(key, unread.why, unread.text))
    for key, field in fields.items():
        if required(field) and key not in given:
            mistakes.append(Mistake(key, "missing, and it has no default"))
    if mistakes:
        raise Wrong(mistakes)
    options = kind.Options(**values)
    for key, why in (*_common(options), *getattr(kind, "check", lambda _: ())(options)):
        mistakes.append(Mistake(key, why, given.get(key)))
    if mistakes:
        raise Wrong(mistakes)
    return options


def declared(options: type) -> tuple[dataclasses.Field[Any], ...]:
    """The fields of an `Options` that a lab file may set, its own ones first, then those it inherits."""
    inherited = {field.name for field in dataclasses.fields(PortOptions)} if options is not PortOptions else set()
    if not issubclass(options, PortOptions):
        inherited = set()
    return tuple(sorted((f for f in dataclasses.fields(options) if f.init), key=lambda f: f.name in inherited))


def key_of(field: dataclasses.Field[Any]) -> str:
    """The key of the lab file that sets this field."""
    return field.metadata.get("key") or field.name


def required(field: dataclasses.Field[Any]) -> bool:
    """True for a field that has no default."""
    return field.default is MISSING and field.default_factory is MISSING


def meant(word: str, known: Iterable[str]) -> str:
    """Write ` (did you mean "WORD"?)` for the known word nearest to this one, nothing where none is near."""
    near = difflib.get_close_matches(word[:64], list(known), 1)
    return f' (did you mean "{near[0]}"?)' if near else ""


def shown(text: str) -> str:
    """Write a text of the user's so that it fits a message: one line, printable, not endless."""
    text = text if len(text) <= 100 else text[:99] + "…"
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text)


class Unread(ValueError):
    """A text that is no value of its field."""

    def __init__(self, text: str, why: str) -> None:
        self.text, self.why = text, why
        super().__init__(f"{text}: {why}")


def _common(options: Any) -> Iterator[tuple[str, str]]:
    if not isinstance(options, PortOptions) or options.vlan is None:
        return
    for key in ("trunk", "native"):
        if getattr(options, key) is not None:
            yield key, f"a port with vlan = {options.vlan} is an access port, it cannot be a trunk too"


def _value(field: dataclasses.Field[Any], hint: Any, text: str) -> Any:
    """Read one key's text by its `read` function or else by its type."""
    hint = bare(hint)
    by_hand = field.metadata.get("read")
    if by_hand is None and typing.get_origin(hint) is tuple:
        element = bare(typing.get_args(hint)[0])
        lines = [line.strip() for line in text.splitlines()]
        return tuple(_one(lambda line: by_type(element, line), line) for line in lines if line)
    return _one(by_hand or (lambda whole: by_type(hint, whole)), text)


def _one(read_text: Callable[[str], Any], text: str) -> Any:
    if "\n" in text:
        first, second = text.split("\n")[:2]
        raise Unread(second.strip(), f"a second value, after {shown(first)}")
    try:
        return read_text(text)
    except ValueError as why:
        raise Unread(text, str(why)) from None


def bare(hint: Any) -> Any:
    """The type that reads the text of an option annotated `T | None`, or with a NewType of T: T."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        (hint,) = (arm for arm in typing.get_args(hint) if arm is not type(None))
    while isinstance(hint, typing.NewType):
        hint = hint.__supertype__
    return hint


def by_type(hint: Any, text: str) -> Any:
    """Read a text as its type says."""
    if hint is bool:
        if text not in BOOL:
            raise ValueError("neither on nor off")
        return BOOL[text]
    if hint is int:
        return _whole(text)
    if hint in (str, Path):
        return hint(text)
    if typing.get_origin(hint) is Literal:
        words = typing.get_args(hint)
        if text not in words:
            raise ValueError(f"not one of {', '.join(words)}" + meant(text, words))
        return text
    raise TypeError(f"no way to read a {hint} (give option() a read function)")


def _whole(text: str) -> int:
    if not WHOLE.fullmatch(text):
        raise ValueError("no whole number")
    return int(text, 0)
