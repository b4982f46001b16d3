"""What a running lab answers to each operation of its control socket; the table of them is at the end."""

import dataclasses
import time
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import shardnet
from shardnet import captures, clients, control, forwarding, kinds, lab, netdev, options, plugged, ports, pulse

if TYPE_CHECKING:
    from shardnet import supervisor

NOT_FOUND, EXISTS = 3, 4
QUESTION_MAX = 64 << 10


def answer(run: "supervisor.Supervisor", request: clients.Request) -> None:
    """Do what a request says, or say why not; a mistake of our own is told to the client and logged."""
    op = request.message.get("op")
    operation = OPERATIONS.get(op) if isinstance(op, str) else None
    try:
        if operation is None:
            raise control.Error(f"{options.shown(str(op))}: unknown operation{options.meant(str(op), OPERATIONS)}", 2)
        operation(run, request)
    except control.Error as error:
        request.refuse(str(error), error.code)
    except lab.Wrong as wrong:
        request.refuse(str(wrong), 1)
    except OSError as error:
        request.refuse(f"{op}: {error.strerror or error}", 1)
    except Exception as error:
        run.bug(f"control {op}")
        request.refuse(f"{op}: a mistake of the supervisor's, see its log: {error}", 1)


def status(run: "supervisor.Supervisor", request: clients.Request) -> None:
    workers = [
        {
            "worker": member.slot,
            "name": member.title,
            "pid": member.child.pid if member.child else None,
            "state": member.state,
            "restarts": member.restarts.count,
            "beat": run.arena.beat(member.slot),
            "rss_bytes": pulse.resident_bytes(member.child.pid) if member.child else 0,
            "ports": [port.name for port in member.ports.values()],
        }
        for member in run.crew.members.values()
    ]
    request.answer(
        lab=run.lab.name,
        file=str(run.lab.file) if run.lab.file else None,
        pid=run.pid,
        version=shardnet.__version__,
        run_dir=str(run.rundir.path),
        uptime_s=round(time.monotonic() - run.started, 3),
        workers=workers,
        ports=[_told(run, port) for port in run.ports],
    )


def list_ports(run: "supervisor.Supervisor", request: clients.Request) -> None:
    names = request.names("names", [])
    wanted = [_port(run, name) for name in names] if names else run.ports
    request.answer(ports=[_told(run, port) for port in wanted])


def port_add(run: "supervisor.Supervisor", request: clients.Request) -> None:
    spec = request.take("netdev", str, None)
    sections = [netdev.read(spec)] if spec is not None else lab.ports(request.take("text", str))
    _add(run, request, sections, lambda added: request.answer(ports=[port.name for port in added]))


def port_remove(run: "supervisor.Supervisor", request: clients.Request) -> None:
    port = _whole(run, request.take("name", str))
    if port.state == "removing":
        raise control.Error(f"{port.name}: is being removed already", 75)
    run.remove(port, request.answer)


def port_set(run: "supervisor.Supervisor", request: clients.Request) -> None:
    port = _whole(run, request.take("name", str))
    _set(run, request, port, request.texts("set"))


def port_up(run: "supervisor.Supervisor", request: clients.Request) -> None:
    _set(run, request, _whole(run, request.take("name", str)), {"up": "on"})


def port_down(run: "supervisor.Supervisor", request: clients.Request) -> None:
    _set(run, request, _whole(run, request.take("name", str)), {"up": "off"})


def port_reset(run: "supervisor.Supervisor", request: clients.Request) -> None:
    port = _port(run, request.take("name", str))
    if port.state != "failed":
        raise control.Error(f"{port.name}: {port.state}, only a failed port is reset", 1)
    _when_open(request, port)
    run.crew.reset(port)


def fdb(run: "supervisor.Supervisor", request: clients.Request) -> None:
    names = {port.id: port.name for port in run.ports}
    entries = [
        {"switch": switch, "mac": mac, "vlan": vlan, "port": names[port], "age_s": age}
        for switch, number in _switches(run, request).items()
        for mac, vlan, port, age in run.arena.fdb(number)
        if port in names
    ]
    request.answer(entries=entries)


def fdb_flush(run: "supervisor.Supervisor", request: clients.Request) -> None:
    name = request.take("port", str, None)
    port = _port(run, name).id if name is not None else 0
    request.answer(flushed=sum(run.arena.fdb_flush(number, port) for number in _switches(run, request).values()))


def drops(run: "supervisor.Supervisor", request: clients.Request) -> None:
    found = [
        {"port": port.name, "cause": cause, "frames": frames}
        for port in run.ports
        for cause, frames in run.arena.drops(port.id).items()
    ]
    request.answer(drops=found)


def events(run: "supervisor.Supervisor", request: clients.Request) -> None:
    since = request.take("since", (int, float), None)
    client = request.client
    request.answer()
    if since is not None:
        for event in [event for event in run.journal.events if event["time"] >= since]:
            client.send({"event": event})

    def follow(event: dict[str, Any]) -> None:
        client.send({"event": event})

    run.journal.followers.append(follow)
    client.ties.append(lambda: run.journal.followers.remove(follow))


def capture(run: "supervisor.Supervisor", request: clients.Request) -> None:
    taken = [_port(run, name) for name in request.names("ports")]
    snaplen = request.take("snaplen", int, 0)
    if not taken or len(request.fds) != 1 or not 0 <= snaplen <= 1 << 18:
        raise control.Error("capture: one descriptor, one port or more, and a snaplen of 0 to 262144 are needed", 2)
    captures.Capture(run.crew, run.journal, request, taken, snaplen)


def plug(run: "supervisor.Supervisor", request: clients.Request) -> None:
    kind = request.take("kind", str)
    if kind not in plugged.KINDS:
        raise control.Error(f"plug: {kind}: cannot be plugged{options.meant(kind, plugged.KINDS)}", 2)
    if not 1 <= len(request.fds) <= plugged.KINDS[kind]:
        raise control.Error(f"plug: {len(request.fds)} descriptors, a {kind} has 1 to {plugged.KINDS[kind]}", 2)
    name = request.take("name", str, None) or _free_name(run)
    given = request.texts("options", {})
    try:
        options.name(name)
        section = lab.Section(kind, name, given, options.read(plugged, given))
    except ValueError as wrong:
        raise control.Error(f"plug: {name}: {wrong}", 2) from None
    client = request.client

    def added(new: Sequence[ports.Port]) -> None:
        port = new[0]
        if client.closed:
            run.crew.remove(port, lambda: None)
            return
        port.lost = client.close
        client.ties.append(lambda: run.crew.remove(port, lambda: None) if port.state != "removing" else None)
        request.answer(port=name)

    _add(run, request, [section], added, is_plugged=True)


def ask(run: "supervisor.Supervisor", request: clients.Request) -> None:
    port = _port(run, request.take("port", str))
    what, args = request.take("what", str), request.take("args", dict, {})
    if len(control.pack({"what": what, "args": args})) > QUESTION_MAX:
        raise control.Error(f"ask: a question of more than {QUESTION_MAX} bytes", 2)
    run.crew.ask(port, what, args, lambda data: request.answer(data=data), request.refuse, request.fds)


def reload(run: "supervisor.Supervisor", request: clients.Request) -> None:
    run.reload(request.answer, dry_run=request.take("dry_run", bool, False))


def stop(run: "supervisor.Supervisor", request: clients.Request) -> None:
    request.answer()
    run.stop("stopped by a client")


def restart(run: "supervisor.Supervisor", request: clients.Request) -> None:
    request.answer()
    run.stop("restarted by a client", again=True)


def _add(
    run: "supervisor.Supervisor",
    request: clients.Request,
    sections: Sequence[lab.Section],
    done: Callable[[list[ports.Port]], None],
    is_plugged: bool = False,
) -> None:
    """Add ports, all or none, and answer when they are open."""
    taken = [section.name for section in sections if run.ports.named(section.name)]
    if taken:
        raise control.Error(f"{taken[0]}: there is a port of this name already", EXISTS)
    lab.extended(run.now(), sections)
    if sum(not is_plugged and kinds.captures(section) is not None for section in sections) > run.crew.members.free():
        raise control.Error(f"{sections[0]}: every worker slot of the lab is in use", 75)
    new = []
    for section in sections:
        made = run.ports.make(section, is_plugged)
        new += made
        if is_plugged:
            for number, fd in enumerate(request.fds):
                run.crew.store.deposit(made[0].id, f"fd{number}", fd)
            request.fds = []

    def settled(errors: dict[ports.Port, str]) -> None:
        if not errors:
            done(new)
            return
        for port in new:
            if port.state != "removing" and port.id in run.ports.by_id:
                run.crew.remove(port, lambda: None)
        request.refuse("\n".join(f"{port.title}: {error}" for port, error in errors.items()))

    ports.together(new, settled)
    run.crew.add(new)
    for port in new:
        run.journal.note("added", "added", port=port.name, section=port.title)


def _set(run: "supervisor.Supervisor", request: clients.Request, port: ports.Port, wanted: dict[str, str]) -> None:
    """Change keys of a port; an empty value takes a key away. Where the port does not open so, it is as it was."""
    if port.before is not None:
        raise control.Error(f"{port.name}: is being changed already", 75)
    before = port.section
    given = {key: text for key, text in {**before.given, **wanted}.items() if text}
    module = plugged if port.plugged else None
    try:
        if module is not None:
            after = dataclasses.replace(before, given=given, options=options.read(module, given))
        else:
            after = lab.section(before.kind, before.name, given, before.line)
    except options.Wrong as wrong:
        raise control.Error(
            "\n".join(f"[{before.kind} {before.name}] {mistake}" for mistake in wrong.mistakes), 1
        ) from None
    if after.options == before.options:
        request.answer()
        return
    others = [other.section for other in run.ports if other is not port and other.behind is None]
    lab.extended(dataclasses.replace(run.now(), ports=tuple(others)), [after])
    if port.plugged and not lab.only_arena(before, after):
        raise control.Error(
            f"{port.name}: it is made of a client's descriptors, only its switch rules can be changed", 1
        )

    def tried(error: str | None) -> None:
        if error is None:
            request.answer()
            return
        request.refuse(f"{port.title}: {error}")
        if port.state != "removing":
            run.change(port, before)

    port.waiters.append(tried)
    run.change(port, after)


def _when_open(request: clients.Request, port: ports.Port) -> None:
    def settled(error: str | None) -> None:
        if error is None:
            request.answer()
        else:
            request.refuse(f"{port.title}: {error}")

    port.waiters.append(settled)


def _port(run: "supervisor.Supervisor", name: str) -> ports.Port:
    port = run.ports.named(name)
    if port is None:
        known = [known.name for known in run.ports]
        raise control.Error(f"{options.shown(name)}: no such port{options.meant(name, known)}", NOT_FOUND)
    return port


def _whole(run: "supervisor.Supervisor", name: str) -> ports.Port:
    """A port that has a section of its own."""
    port = _port(run, name)
    if port.behind is not None:
        raise control.Error(f"{name}: a part of {port.behind.name}, whose section says how it is", 1)
    return port


def _switches(run: "supervisor.Supervisor", request: clients.Request) -> dict[str, int]:
    """The switch that a request names, or all."""
    name = request.take("switch", str, None)
    if name is None:
        return run.ports.switches
    if name not in run.ports.switches:
        raise control.Error(
            f"{options.shown(name)}: no such switch{options.meant(name, run.ports.switches)}", NOT_FOUND
        )
    return {name: run.ports.switches[name]}


def _told(run: "supervisor.Supervisor", port: ports.Port) -> dict[str, Any]:
    """A port as clients see it."""
    member = run.crew.members.get(port.slot)
    given = port.section.options
    return {
        "id": port.id,
        "name": port.name,
        "kind": port.section.kind,
        "switch": given.switch,
        "behind": port.behind.name if port.behind else "",
        "service": kinds.is_service(port.section.kind),
        "worker": port.slot,
        "pid": member.child.pid if member and member.child else None,
        "state": port.state,
        "detail": port.detail,
        "up": given.up,
        "mode": given.mode,
        "options": dict(port.section.given),
        "counters": run.arena.counters(port.id),
        "macs": run.arena.macs(port.id),
    }


def _free_name(run: "supervisor.Supervisor") -> str:
    taken: Iterable[str] = {port.name for port in run.ports}
    return next(name for name in (f"plug{number}" for number in range(1, 10000)) if name not in taken)


OPERATIONS: dict[str, Callable[["supervisor.Supervisor", clients.Request], None]] = {
    "status": status,
    "ports": list_ports,
    "port-add": port_add,
    "port-remove": port_remove,
    "port-set": port_set,
    "port-up": port_up,
    "port-down": port_down,
    "port-reset": port_reset,
    "fdb": fdb,
    "fdb-flush": fdb_flush,
    "drops": drops,
    "events": events,
    "capture": capture,
    "plug": plug,
    "ask": ask,
    "forward-add": forwarding.add,
    "forward-remove": forwarding.remove,
    "reload": reload,
    "stop": stop,
    "restart": restart,
}
