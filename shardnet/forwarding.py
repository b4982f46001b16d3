"""hostfwd and guestfwd of a running lab: added and removed while the network carries on.

They are lines of the network's section, as the supervisor has it: so they hold for the successor of a dead worker, and end
with the lab. A reload takes from the file what has changed there, and leaves alone what was added since.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from shardnet import clients, control, forwards, kinds, lab, options, ports

if TYPE_CHECKING:
    from shardnet import supervisor

USAGE, NOT_FOUND, EXISTS, TRY_AGAIN = 2, 3, 4, 75
KEYS: Mapping[str, Callable[[str], Any]] = {"hostfwd": forwards.host, "guestfwd": forwards.guest}


def add(run: "supervisor.Supervisor", request: clients.Request) -> None:
    """Add rules, all or none; one that is there already is no mistake."""
    port, rules = _asked(run, request)
    given = dict(port.section.given)
    added, present = [], []
    for key, text in rules:
        rule, there = str(KEYS[key](text)), _lines(given, key)
        if rule in there:
            present.append(rule)
            continue
        _free(key, text, there)
        given[key] = "\n".join([*there.values(), text])
        added.append(rule)
    _change(run, request, port, given, {"added": added, "present": present})


def remove(run: "supervisor.Supervisor", request: clients.Request) -> None:
    """Remove rules, all or none; the host's side of a hostfwd names it."""
    port, rules = _asked(run, request, whole=False)
    given = dict(port.section.given)
    removed = []
    for key, text in rules:
        there = _lines(given, key)
        named = [rule for rule in there if text in (rule, _here(key, rule))]
        if not named:
            known = [name for rule in there for name in (rule, _here(key, rule))]
            raise control.Error(
                f"{options.shown(text)}: no such {key} of {port.name}{options.meant(text, known)}", NOT_FOUND
            )
        for rule in named:
            del there[rule]
            removed.append(rule)
        given[key] = "\n".join(there.values())
    _change(run, request, port, {key: text for key, text in given.items() if text}, {"removed": removed})


def merged(old: lab.Lab, running: lab.Section, new: lab.Section) -> lab.Section:
    """A section as the file has it now, with the rules that were added while it ran, and without those removed then.

    Where both do not go together it is as the file says.
    """
    before = next((port for port in old.ports if port.name == new.name and port.kind == new.kind), None)
    if before is None or not kinds.live(new.kind).issuperset(KEYS):
        return new
    given = dict(new.given)
    for key in KEYS:
        was, now, wanted = (_lines(section.given, key) for section in (before, running, new))
        rules = {rule: text for rule, text in wanted.items() if rule in now or rule not in was}
        rules |= {rule: text for rule, text in now.items() if rule not in was and rule not in rules}
        given[key] = "\n".join(rules.values())
    given = {key: text for key, text in given.items() if text}
    try:
        return lab.section(new.kind, new.name, given, new.line)
    except options.Wrong:
        return new


def _asked(
    run: "supervisor.Supervisor", request: clients.Request, whole: bool = True
) -> tuple[ports.Port, list[tuple[str, str]]]:
    """The network and the rules that a request is about, each with its key; `whole`: as they stand in a lab file."""
    port = _network(run, request.take("port", str, None))
    rules = []
    for given in request.names("rules"):
        key, equals, text = given.partition("=")
        if key not in KEYS or not equals:
            key, text = "hostfwd", given
        try:
            rule = str(KEYS[key](text))
        except ValueError as why:
            if whole:
                raise control.Error(f"{key}={options.shown(text)}: {why}", USAGE) from None
            rule = _side(key, text)
        rules.append((key, text if whole else rule))
    if not rules:
        raise control.Error("forward: a rule is missing", USAGE)
    return port, rules


def _network(run: "supervisor.Supervisor", name: str | None) -> ports.Port:
    able = [port for port in run.ports if not port.plugged and port.behind is None]
    found = [port for port in able if kinds.live(port.section.kind).issuperset(KEYS)]
    if name is not None:
        port = run.ports.named(name)
        if port is None:
            raise control.Error(
                f"{options.shown(name)}: no such port{options.meant(name, [p.name for p in found])}", NOT_FOUND
            )
        if port not in found:
            raise control.Error(f"{name}: a {port.section.kind} forwards nothing, a user-mode network does", USAGE)
        found = [port]
    if not found:
        raise control.Error("the lab has no user-mode network", NOT_FOUND)
    if len(found) > 1:
        raise control.Error(
            f"several networks: {', '.join(port.name for port in found)} (choose one with --port)", USAGE
        )
    if found[0].before is not None or found[0].state == "removing":
        raise control.Error(f"{found[0].name}: is being changed already", TRY_AGAIN)
    return found[0]


def _lines(given: Mapping[str, str], key: str) -> dict[str, str]:
    """The rules of a section under a key: as they are meant, and as they were written."""
    return {str(KEYS[key](line)): line for line in (line.strip() for line in given.get(key, "").split("\n")) if line}


def _here(key: str, rule: str) -> str:
    """The side of a rule that it is known by: where it listens."""
    return forwards.host(rule).here if key == "hostfwd" else rule.split("-", 1)[0]


def _side(key: str, text: str) -> str:
    """Where a rule listens, as the rules themselves write it; a text that says nothing of the kind as it stands."""
    rest = "-:1" if key == "hostfwd" else "-cmd:true"
    try:
        return _here(key, str(KEYS[key](text + rest)))
    except ValueError:
        return text


def _free(key: str, text: str, there: Mapping[str, str]) -> None:
    """Say so where another rule listens at the same place."""
    for other in there:
        if key == "hostfwd":
            taken = forwards.host(text).collides(forwards.host(other))
        else:
            taken = _here(key, other) == _here(key, str(forwards.guest(text)))
        if taken:
            raise control.Error(
                f"{key}={options.shown(text)}: {_here(key, other)} is forwarded already, by {other}", EXISTS
            )


def _change(
    run: "supervisor.Supervisor",
    request: clients.Request,
    port: ports.Port,
    given: Mapping[str, str],
    told: Mapping[str, Sequence[str]],
) -> None:
    """Have the network carry on as `given` says, and answer what was done."""
    before = port.section
    try:
        after = lab.section(before.kind, before.name, given, before.line)
    except options.Wrong as wrong:
        raise control.Error("\n".join(f"[{before.kind} {before.name}] {one}" for one in wrong.mistakes), 1) from None
    if after.options == before.options:
        request.answer(port=port.name, **told)
        return

    def settled(error: str | None) -> None:
        if error is None:
            request.answer(port=port.name, **told)
        else:
            request.refuse(f"{port.title}: {error}")

    port.waiters.append(settled)
    run.change(port, dataclasses.replace(after, line=before.line))
