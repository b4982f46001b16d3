"""QEMU's `-netdev` strings, read as sections of a lab.

    stream,id=vm1,server=on,addr.type=unix,addr.path=vm1.sock
    {"type": "stream", "id": "vm1", "server": true, "addr": {"type": "unix", "path": "vm1.sock"}}

The syntax is QEMU's: the first word is the type, with or without `type=`; two commas are one comma of a value; a key
alone means on, and with `no` before it off. Of a key given again, every value counts where the kind takes several
(hostfwd), the last one elsewhere. QEMU takes keys alone for its older types only; here they are right for all.
"""

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from shardnet import ini, kinds, lab, options

REFUSED = {
    "hubport": "a port of a hub is any port of a [switch NAME] with mode = hub (switch = NAME puts it there)",
    "nic": "a NIC is the guest's side, and it stays with QEMU",
    "none": "no port",
    "netmap": "it takes a kernel with netmap; [packet NAME] carries the interface without",
    "vmnet-host": "it is of macOS",
    "vmnet-shared": "it is of macOS",
    "vmnet-bridged": "it is of macOS",
    "vhost-vdpa": "the device is handed to the guest by QEMU itself, so no frame passes here",
}
OURS = {"af-xdp": "packet"}  # types that are called otherwise here


def read(spec: str) -> lab.Section:
    """Read one string into a section; raises lab.Wrong with every mistake in it."""
    where = f'--netdev "{options.shown(spec)}"'
    try:
        return _section(spec)
    except options.Wrong as wrong:
        raise lab.Wrong(lab.Mistake(0, f"{where}: {mistake}") for mistake in wrong.mistakes) from None


def assemble(file: Path | None, specs: Sequence[str]) -> lab.Lab:
    """Read a lab from its file, if it has one, then from QEMU's strings; raises lab.Wrong with the mistakes of both."""
    extra: list[lab.Section] = []
    mistakes: list[lab.Mistake] = []
    for spec in specs:
        try:
            extra.append(read(spec))
        except lab.Wrong as wrong:
            mistakes += wrong.mistakes
    try:
        found = lab.read(file or "", extra, where="--netdev" if file is None else None)
    except lab.Wrong as wrong:
        # Without a file and without a string that is right there is nothing to say about the lab as a whole.
        raise lab.Wrong([*(wrong.mistakes if file or extra or not specs else ()), *mistakes]) from None
    if mistakes:
        raise lab.Wrong(mistakes)
    return found


def to_ini(section: lab.Section) -> str:
    """Write a section as a lab file has it."""
    return ini.write(f"{section.kind} {section.name}".rstrip(), section.given)


def _section(spec: str) -> lab.Section:
    found: dict[str, list[str]] = {}
    for key, value in _json(spec) if spec.lstrip().startswith("{") else _pairs(spec):
        if ini.BINARY.search(value) or "\n" in value:
            raise options.Wrong([options.Mistake(key, "a control character", value)])
        found.setdefault(key, []).append(value.strip())
    kind, name = (found.pop(key, [""])[-1] for key in ("type", "id"))
    mistakes = []
    kind = OURS.get(kind, kind)
    if not kind:
        mistakes.append(options.Mistake("type", "missing"))
    elif kind in REFUSED or kind in kinds.OWN:
        mistakes.append(options.Mistake("type", REFUSED.get(kind, "no port"), kind))
    if not name:
        mistakes.append(options.Mistake("id", "missing"))
    elif why := lab.unnamed(name):
        mistakes.append(options.Mistake("id", why, name))
    if mistakes:
        raise options.Wrong(mistakes)
    try:
        several = options.several(kinds.module(kind))
    except LookupError:
        raise options.Wrong([options.Mistake("type", lab.unknown(kind), kind)]) from None
    given = {key: "\n".join(values) if key in several else values[-1] for key, values in found.items()}
    return lab.section(kind, name, given)


def _pairs(spec: str) -> Iterator[tuple[str, str]]:
    """Split a string as QEMU's opts_do_parse() does."""
    rest, implied = spec, "type"
    while rest:
        key = re.match(r"[^=,]*", rest)[0]  # type: ignore[index]  # it matches the empty string too
        if rest[len(key) :].startswith("="):
            value, rest = _value(rest[len(key) + 1 :])
        elif implied:
            key, (value, rest) = implied, _value(rest)
        else:
            rest = rest[len(key) + 1 :]
            key, value = (key[2:], "off") if key.startswith("no") else (key, "on")
        if not key:
            raise options.Wrong([options.Mistake("", "a value without a key (two commas are one comma of a value)")])
        implied = ""
        yield key, value


def _value(text: str) -> tuple[str, str]:
    value = re.match(r"(?:[^,]|,,)*", text)[0]  # type: ignore[index]
    return value.replace(",,", ","), text[len(value) + 1 :]


def _json(spec: str) -> Iterator[tuple[str, str]]:
    try:
        yield from _flat("", json.loads(spec))
    except json.JSONDecodeError as why:
        raise options.Wrong([options.Mistake("", f"no JSON: {why.msg} (character {why.pos + 1})")]) from None
    except RecursionError:
        raise options.Wrong([options.Mistake("", "no JSON of QEMU's: nested too deep")]) from None


def _flat(key: str, value: Any) -> Iterator[tuple[str, str]]:
    """Write {"addr": {"type": "unix"}} as addr.type=unix; a list (of words or {"str": word}) is a key given again."""
    if isinstance(value, dict):
        for inner, further in value.items():
            yield from _flat(f"{key}.{inner}" if key else inner, further)
    elif isinstance(value, list):
        for further in value:
            yield from _flat(key, further.get("str") if isinstance(further, dict) else further)
    elif value is None:
        raise options.Wrong([options.Mistake(key, "no value")])
    else:
        yield key, {True: "on", False: "off"}[value] if isinstance(value, bool) else str(value)
