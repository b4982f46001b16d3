"""Options of a section: a dataclass declares them, this module reads them from text.

A kind of section is a module with a frozen dataclass `Options`. The dataclass is the whole truth: a key that is no
field is a mistake, and so is a field without a default that no key sets. A field's type reads its text:

    bool                on or off, as QEMU writes them
    int, str, Path      as they stand
    Literal["a", "b"]   one of these words
    T | None            as T; None is for the default only
    tuple[T, ...]       a key that may be repeated: one value a line

`option(read=...)` reads in the type's stead: a function from the text to the value; ValueError says why not, and the
first line of its docstring tells the manual how the value is written.

Beside `Options` a module may have `REFUSED`, keys of QEMU's that cannot work outside QEMU with the reason, and
`READS`, keys of every port that the kind reads itself, so that a change makes the port anew, and
`check(options)`, which yields (key, why) for mistakes that take several keys to see.
"""

import dataclasses
import difflib
import re
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from shardnet import impairments

MISSING = dataclasses.MISSING
NAME_MAX = 32
NAME = re.compile(rf"[A-Za-z0-9][A-Za-z0-9._-]{{0,{NAME_MAX - 1}}}", re.ASCII)
VLAN_MAX = 4094  # IEEE 802.1Q-2018, table 9-2: 0 is priority only, 4095 reserved
BOOL = {"on": True, "yes": True, "true": True, "y": True, "off": False, "no": False, "false": False, "n": False}
WHOLE = re.compile(r"-?(0|[1-9][0-9]{0,18}|0[xX][0-9a-fA-F]{1,16})")


class Mistake(NamedTuple):
    """What is wrong with one key of a section; `value` is the text at fault, None where no text is."""

    key: str
    why: str
    value: str | None = None

    def __str__(self) -> str:
        where = self.key if self.value is None else f"{self.key} = {self.value}"
        return f"{shown(where)}: {self.why}" if where else self.why


class Wrong(ValueError):
    """All the mistakes of one section."""

    def __init__(self, mistakes: Iterable[Mistake]) -> None:
        self.mistakes = tuple(mistakes)
        super().__init__("\n".join(map(str, self.mistakes)))


def option(default: Any = MISSING, *, key: str | None = None, read: Callable[[str], Any] | None = None) -> Any:
    """Declare a field of `Options`; `key` is its name in the lab file where that is no Python name (`addr.type`)."""
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
        raise ValueError("no name (letters, digits, . _ - after a letter or digit, at most 32)")
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
    trunk: Sequence[int] | None = option(None, read=vlans)
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
    # How long a frame is under way. This and the following keys hold for both directions, or, written OUT/IN, for what leaves by
    # the port and for what comes in by it. `shardnet port set` changes them while frames pass.
    delay: impairments.Each | None = option(None, read=impairments.duration)
    # By how much the delay varies: at most (uniform), or as a standard deviation. Frames stay in order.
    jitter: impairments.Each | None = option(None, read=impairments.duration)
    # How the delay varies; uniform unless given. pareto has a long tail.
    distribution: impairments.Each | None = option(None, read=impairments.distribution)
    # How many frames are lost.
    loss: impairments.Each | None = option(None, read=impairments.part)
    # How many frames are lost in a row, on average, at the same loss. 0: each is lost or not by itself.
    loss_burst: impairments.Each | None = option(None, read=impairments.burst)
    # How many frames come twice.
    duplicate: impairments.Each | None = option(None, read=impairments.part)
    # How many frames skip the delay, and so overtake others.
    reorder: impairments.Each | None = option(None, read=impairments.part)
    # How many frames have one bit turned, somewhere behind the addresses.
    corrupt: impairments.Each | None = option(None, read=impairments.part)
    # How fast frames pass, counted with their Ethernet headers. Super-frames are cut first, as for all of these but delay.
    bandwidth: impairments.Each | None = option(None, read=impairments.bandwidth)
    # How much may pass at once after a pause.
    bandwidth_burst: impairments.Each | None = option(None, read=impairments.size)
    # How much may wait for the bandwidth; what is more is dropped. Unless given, what it passes in 100 ms, 128K at least.
    bandwidth_queue: impairments.Each | None = option(None, read=impairments.queue)
    # Makes a run repeatable: with the same number the same frames are lost, doubled, delayed.
    seed: int | None = option(None, read=between(0, (1 << 63) - 1))

    @property
    def tagged(self) -> Sequence[int] | None:
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
ARENA_KEYS = frozenset(
    {"switch", "vlan", "trunk", "native", "mtu", "up", "isolated", "max_macs", "seed", *impairments.KEYS}
)


def ranges(numbers: Sequence[int]) -> str:
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
    hints = typing.get_type_hints(kind.Options)
    refused: Mapping[str, str] = getattr(kind, "REFUSED", {})
    values: dict[str, Any] = {}
    mistakes: list[Mistake] = []
    for key, text in given.items():
        if key in refused:
            mistakes.append(Mistake(key, refused[key]))
        elif key not in fields:
            mistakes.append(Mistake(key, "unknown option" + meant(key, fields)))
        else:
            field = fields[key]
            try:
                values[field.name] = _value(field, hints[field.name], text)
            except _Unread as unread:
                mistakes.append(Mistake(key, unread.why, unread.text or None))
    mistakes += [Mistake(key, "missing") for key, field in fields.items() if required(field) and key not in given]
    if mistakes:
        raise Wrong(mistakes)
    options = kind.Options(**values)
    check = getattr(kind, "check", None)
    found = [*_at_odds(options), *(check(options) if check else ())]
    if found:
        raise Wrong(Mistake(key, why, given.get(key)) for key, why in found)
    return options


def declared(options: type) -> list[dataclasses.Field[Any]]:
    """The fields of an `Options` that a lab file may set: its own first, then those that every port has."""
    every = common(options)
    return sorted((field for field in dataclasses.fields(options) if field.init), key=lambda field: field.name in every)


def common(options: type) -> set[str]:
    """The names of the fields that an `Options` has from `PortOptions`."""
    return {field.name for field in dataclasses.fields(PortOptions)} if issubclass(options, PortOptions) else set()


def key_of(field: dataclasses.Field[Any]) -> str:
    """The key of the lab file that sets this field."""
    return field.metadata.get("key") or field.name


def required(field: dataclasses.Field[Any]) -> bool:
    """Whether a section must set this field."""
    return field.default is MISSING and field.default_factory is MISSING


def several(kind: Any) -> set[str]:
    """The keys of a kind that take one value a line."""
    hints = typing.get_type_hints(kind.Options)
    return {key_of(field) for field in declared(kind.Options) if repeated(field, hints[field.name])}


def repeated(field: dataclasses.Field[Any], hint: Any) -> bool:
    """Whether an option annotated so takes one value a line."""
    return typing.get_origin(bare(hint)) is tuple and not field.metadata.get("read")


def bare(hint: Any) -> Any:
    """What an option annotated `T | None` is read as: T."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        (hint,) = (arm for arm in typing.get_args(hint) if arm is not types.NoneType)
    return hint


def meant(word: str, known: Iterable[str]) -> str:
    """Write ` (did you mean "WORD"?)` for the known word nearest to this one, nothing where none is near."""
    near = difflib.get_close_matches(word[:64], known, 1)
    return f' (did you mean "{near[0]}"?)' if near else ""


def shown(text: str) -> str:
    """Write a text of the user's so that it fits a message: printable, in one line, not endless."""
    text = text if len(text) <= 100 else text[:99] + "…"
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


class _Unread(Exception):
    """A text that is no value of its option."""

    def __init__(self, text: str, why: str) -> None:
        super().__init__(text, why)
        self.text, self.why = text, why


def _at_odds(options: Any) -> Iterator[tuple[str, str]]:
    if not isinstance(options, PortOptions):
        return
    yield from impairments.at_odds(options)
    if options.vlan is None:
        return
    for key in ("trunk", "native"):
        if getattr(options, key) is not None:
            yield key, f"vlan = {options.vlan} makes an access port, which is no trunk"


def _value(field: dataclasses.Field[Any], hint: Any, text: str) -> Any:
    lines = [stripped for line in text.split("\n") if (stripped := line.strip())]
    if not lines:
        raise _Unread("", "no value")
    hint = bare(hint)
    if repeated(field, hint):
        element = typing.get_args(hint)[0]
        return tuple(_line(field, element, line) for line in lines)
    if len(lines) > 1:
        raise _Unread(lines[1], f"a second value, beside {shown(lines[0])}")
    return _line(field, hint, lines[0])


def _line(field: dataclasses.Field[Any], hint: Any, text: str) -> Any:
    by_hand = field.metadata.get("read")
    try:
        return by_hand(text) if by_hand else _by_type(hint, text)
    except ValueError as why:
        raise _Unread(text, str(why)) from None


def _by_type(hint: Any, text: str) -> Any:
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
    raise TypeError(f"an option of type {hint} needs a read function")


def _whole(text: str) -> int:
    if not WHOLE.fullmatch(text):
        raise ValueError("no whole number")
    return int(text, 0)
