"""The workers of a lab: who carries which port, who is alive, who starts again.

A port goes to the worker that its `shard` names, else to one of its own while there are few, else to the worker with
the fewest. What takes privileges later (a port added to a worker, a TAP that vanished) is prepared by a helper.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from shardnet import (
    _core,
    child,
    journal,
    kinds,
    lab,
    leases,
    loop,
    mirrors,
    ports,
    processes,
    pulse,
    questions,
    restarts,
    store,
)

LEASES_S = 2.0  # how long a port waits for a DHCP service that starts with it
AUTO_MAX = 56  # workers that `shards` did not ask for; the rest of the slots is for captures
DRAIN_S = 0.7
RETRY_S, RETRY_MAX_S = 0.2, 5.0
REMOVE_S = 5.0
TEXTS = ("op", "key", "error", "state", "detail", "text")  # of a worker's messages
STATES = ("up", "waiting", "down")


class Member:
    """One worker: a slot in the arena and whatever process holds it now."""

    def __init__(self, slot: int, shard: str | None, *, captures: bool = False) -> None:
        self.slot, self.shard = slot, shard
        self.captures = captures  # and carries nothing else: it may stand still in a write for as long as the disk does
        self.ports: dict[int, ports.Port] = {}
        self.child: Any = None  # a child.Child while there is one
        self.state = "starting"  # running, restarting, failed
        self.restarts = restarts.Restarts()
        self.pulse = pulse.Pulse()
        self.timer: int | None = None
        self.faults = 0  # of the slot, before this process and in its life

    @property
    def title(self) -> str:
        """How logs call it: as its port where that is the only one."""
        titles = [port.title for port in self.ports.values()]
        return titles[0] if len(titles) == 1 else f"worker {self.slot}"


class Crew:
    """All workers and helpers; `fork` starts a process, as `child.Forkserver.child` does."""

    def __init__(
        self,
        turns: loop.Loop,
        table: ports.Ports,
        notes: journal.Journal,
        fork: Callable[[loop.Loop, child.Heard, child.Ended], Any],
        *,
        name: str,
        run_dir: Path,
        arena_fd: int,
        doorbells: Sequence[int],
        shards: int | None,
    ) -> None:
        self.loop, self.ports, self.journal = turns, table, notes
        self.arena = table.arena
        self.doorbells = doorbells
        self.outlets: Callable[[ports.Port, dict[str, Any], list[int]], None] | None = None
        self.limit = shards or min(max(8, 4 * (os.cpu_count() or 1)), AUTO_MAX)
        self.store = store.Store()
        setup = {"lab": name, "run_dir": str(run_dir)}
        self.processes = processes.Processes(turns, fork, self.store, notes, setup, [arena_fd, *doorbells])
        self.questions = questions.Questions(turns)
        self.leases = leases.Leases()
        self.held: dict[int, child.Child] = {}  # who opens a port when it has been told the leases
        self.mirrors = mirrors.Mirrors(table, self.send)
        self.members: dict[int, Member] = {}
        self.lent: set[int] = set()  # slots of captures
        self._used: set[int] = set()  # slots that had a process once
        self._looking = False
        self._stopping: Callable[[], None] | None = None

    # Ports come, change and go.

    def add(self, new: Sequence[ports.Port]) -> None:
        """Have ports carried; each one settles when it is open, or has failed."""
        fresh, hot = [], []
        for port in new:
            if port.behind is not None and not port.section.share and not kinds.is_service(port.section.kind):
                member = self.members[port.behind.slot]  # the other end of a port that comes before it
            else:
                member = self._choose(port.section)
            port.slot = member.slot
            member.ports[port.id] = port
            self.ports.configure(port)
            if member.child is None and member.state == "starting":
                fresh.append(member)
            else:
                hot.append(port)
        for member in dict.fromkeys(fresh):
            self._start(member)
        self._prepare_and_open(hot)

    def remove(self, port: ports.Port, then: Callable[[], None]) -> None:
        """Take a port away for good, then call `then`."""

        def gone() -> None:
            member = self.members[port.slot]
            del member.ports[port.id]
            self.ports.forget(port)
            self.leases.forget(port)
            self.journal.note("removed", "removed", port=port.name, section=port.title)
            if not member.ports:
                self._dismiss(member)
            port.settle("removed")
            then()

        self._change(port, "removing")
        self.mirrors.closed(port)
        self._let_go(port, gone)

    def reopen(self, port: ports.Port, section: lab.Section) -> None:
        """Make a port anew, as another section of its kind says."""
        member = self.members[port.slot]
        port.before = None
        self._change(port, "starting")
        self.mirrors.closed(port)

        def again() -> None:
            port.section = section
            self.ports.configure(port)
            if member.child is None:
                self._revive(member)
            else:
                self._prepare_and_open([port])

        self._let_go(port, again)

    def alter(self, port: ports.Port, section: lab.Section) -> None:
        """Have a port carry on as another section of its kind, which differs in what its worker changes by itself.

        It settles when that is done, or could not be: then it carries on as before.
        """
        before, port.section = port.section, section
        self.ports.configure(port)
        carrier = self.members[port.slot].child
        if carrier is None or port.state in ("starting", "restarting"):
            return  # whoever opens it next does so as this section says, and then it settles

        def then(_port: ports.Port, error: str | None) -> None:
            if port.state in ("removing", "failed") or self.members[port.slot].child is not carrier:
                return  # who opens it next has its section
            self.processes.keep(carrier, port)
            if error is None:
                carrier.send({"op": "change", "port": port.id, "given": dict(section.given)})
            else:
                self._altered(port, error)

        port.before = before
        self.processes.prepare([port], self._about, then)

    def _altered(self, port: ports.Port, error: str) -> None:
        """A worker has changed a port, or (`error`) could not."""
        before, port.before = port.before, None
        if error and before is not None:
            port.section = before
            self.ports.configure(port)
            # What was prepared for nothing is closed by the worker that has it, by this.
            self.members[port.slot].child.send({"op": "change", "port": port.id, "given": dict(before.given)})
        port.settle(error or None)

    def reset(self, port: ports.Port) -> None:
        """Try a failed port again, with the descriptors it had."""
        member = self.members[port.slot]
        if member.state == "failed":
            for other in member.ports.values():
                self._change(other, "starting")
            self._revive(member)
        else:
            self._change(port, "starting")
            self._prepare_and_open([port])

    def stop(self, then: Callable[[], None]) -> None:
        """End every worker in order, whoever is late by force; then undo what ports did to the host."""
        self._stopping = then
        self.processes.kill_helpers()
        for member in self.members.values():
            if member.timer is not None:
                self.loop.cancel(member.timer)
            if member.child is not None:
                member.child.send({"op": "stop"})
        self.loop.later(DRAIN_S, self.kill_all)
        self._maybe_stopped()

    def ask(
        self,
        port: ports.Port,
        what: str,
        args: Mapping[str, Any],
        answered: questions.Answered,
        refused: questions.Refused,
        fds: Sequence[int] = (),
    ) -> None:
        """Ask a port's worker, with descriptors that stay the caller's; what it answers is the client's to unpack."""
        member = self.members.get(port.slot)
        self.questions.ask(port, member.child if member else None, what, args, answered, refused, fds)

    # Processes.

    def slot(self) -> int | None:
        """A free slot of the arena, made ready for a new process."""
        taken = self.members.keys() | self.lent
        number = next((number for number in range(_core.WORKERS) if number not in taken), None)
        if number is not None:
            if number in self._used:
                self.arena.repair(number)
            self._used.add(number)
        return number

    def free(self) -> int:
        """How many slots of the arena nobody has."""
        return _core.WORKERS - len(self.members.keys() | self.lent)

    def _choose(self, section: lab.Section) -> Member:
        shard = section.options.shard
        if kinds.captures(section) is not None:
            slot = self.slot()
            if slot is None:
                raise ValueError("no worker is free")
            member = self.members[slot] = Member(slot, None, captures=True)
            return member
        if shard is not None:
            found = next((member for member in self.members.values() if member.shard == shard), None)
            if found is not None:
                return found
        if shard is not None or len(self.members) < self.limit:
            slot = self.slot()
            if slot is not None:
                member = self.members[slot] = Member(slot, shard)
                return member
        others = [member for member in self.members.values() if not member.captures]
        if not others:
            raise ValueError("no worker is free")
        return min(others, key=lambda member: (member.shard is not None, len(member.ports)))

    def _start(self, member: Member) -> None:
        member.timer = None
        member.pulse = pulse.Pulse()
        member.faults = self.arena.faults(member.slot)
        member.state = "starting"
        try:
            member.child = self.processes.start(
                lambda message, fds: self._heard(member, message, fds), lambda how: self._died(member, how), member.slot
            )
        except OSError as error:
            self._died(member, error.strerror or str(error))
            return
        wanted = [port for port in member.ports.values() if port.state not in ("failed", "removing")]
        for port in wanted:
            self.processes.hand(member.child, port, prepare=True)
        for port in wanted:
            self._open(member.child, port)
        for port in self.ports:
            self._lend(member, port)
        if not self._looking:
            self._looking = True
            self.loop.later(pulse.LOOK_S, self._look)

    def _revive(self, member: Member) -> None:
        """Start a worker now that was given up, or that would start later."""
        if member.timer is not None:
            self.loop.cancel(member.timer)
        member.restarts.reset()
        self._start(member)

    def _dismiss(self, member: Member) -> None:
        """End a worker that has nothing to carry any more."""
        if member.timer is not None:
            self.loop.cancel(member.timer)
        if member.child is None:
            del self.members[member.slot]
        else:
            member.child.send({"op": "stop"})

    def _died(self, member: Member, how: str) -> None:
        dead, member.child = member.child, None
        self.questions.gone(dead)
        lost = self.arena.repair(member.slot)
        for port in list(member.ports.values()):
            if port.removed is not None:
                self._removed(port)
        for port in list(self.ports):
            self._returned(port, member.slot)
        if self._stopping is not None:
            self._maybe_stopped()
            return
        if member.child is not None:  # started again already, for a port that was to be made anew
            return
        if not member.ports:
            if self.members.get(member.slot) is member:
                del self.members[member.slot]
            return
        now = self.loop.clock()
        delay = member.restarts.died(now)
        what = f"{how}, {lost} frames lost" if lost else how
        if delay is None:
            times = f"{restarts.DEATHS_MAX} times in {restarts.WINDOW_S:g} s"
            self.journal.note(
                "failed", f"{what}, {times}: given up until it is reset", worker=member.title, level=journal.ERROR
            )
            member.state = "failed"
            for port in list(member.ports.values()):
                self._fail(port, f"its worker died {times}, the last time {how}")
            return
        when = f"in {delay * 1000:.0f} ms" if delay else "at once"
        times = f" ({_ordinal(member.restarts.recent(now))} time in {restarts.WINDOW_S:g} s)" if delay else ""
        self.journal.note("died", f"{what}, restarted {when}{times}", worker=member.title, level=journal.WARNING)
        member.state = "restarting"
        for port in member.ports.values():
            if port.state not in ("failed", "removing"):
                self._change(port, "restarting")
        if delay:
            member.timer = self.loop.later(delay, lambda: self._start(member))
        else:
            self._start(member)

    def kill_all(self) -> None:
        """End every worker by force."""
        for member in self.members.values():
            if member.child is not None:
                member.child.kill()

    def _maybe_stopped(self) -> None:
        if self._stopping is None or any(member.child is not None for member in self.members.values()):
            return
        then, self._stopping = self._stopping, lambda: None
        self.processes.withdraw(list(self.ports), then)

    # Liveness.

    def _look(self) -> None:
        for member in list(self.members.values()):
            self._look_at(member)
        self._looking = bool(self.members) and self._stopping is None
        if self._looking:
            self.loop.later(pulse.LOOK_S, self._look)

    def _look_at(self, member: Member) -> None:
        if member.child is None:
            return
        if self.arena.faults(member.slot) > member.faults:
            member.faults = self.arena.faults(member.slot)
            self.journal.note("fault", "broke the rules of a lane: killed", worker=member.title, level=journal.ERROR)
            member.child.kill()
            return
        beat = self.arena.beat(member.slot)
        verdict = member.pulse.look(self.loop.clock(), beat, pulse.process_state(member.child.pid))
        if verdict == "ring":
            os.eventfd_write(self.doorbells[member.slot], 1)
            if member.pulse.doubtful:
                self.loop.later(pulse.AGAIN_S, lambda: self._look_at(member))
        elif verdict == "stopped" or (
            verdict == "hung"
            and not member.captures
            and not any(port.state == "starting" for port in member.ports.values())
        ):
            what = "stopped by a signal" if verdict == "stopped" else "its loop does not turn"
            self.journal.note("hung", f"{what}: killed", worker=member.title, level=journal.ERROR)
            member.child.kill()

    def send(self, port: ports.Port, message: dict[str, Any]) -> None:
        """Say something to the worker of a port, if it has one now."""
        member = self.members.get(port.slot)
        if member is not None and member.child is not None:
            member.child.send(message)

    # What workers say.

    def _heard(self, member: Member, message: dict[str, Any], fds: list[int]) -> None:
        if message.get("op") == "answer" and not fds:
            self.questions.heard(member.child, message)
            return
        port = self.ports.by_id.get(message["port"]) if isinstance(message.get("port"), int) else None
        if port is not None and port.id in member.ports:
            self._about(port, message, fds)
            return
        for fd in fds:
            os.close(fd)
        match message.get("op"):
            case "ready":
                member.state = "running"
            case "unlent" if port is not None:
                self._returned(port, member.slot)
            case "crashed":
                self.journal.note("log", str(message.get("text")), worker=member.title, level=journal.ERROR)

    def _about(self, port: ports.Port, message: dict[str, Any], fds: list[int]) -> None:
        """Take a message about a port, from its worker or a helper; what is malformed or too late says nothing."""
        text = {key: str(message.get(key, "")) for key in TEXTS}
        match text["op"]:
            case "deposit" if fds and port.state != "failed":
                self.store.deposit(port.id, text["key"], fds.pop())
            case "forget":
                self._forget(port, text["key"])
            case "lend" if text["key"] in dict(self.store.of(port.id)):
                port.lent = text["key"]
                for member in self.members.values():
                    self._lend(member, port)
            case "lease" if (lease := leases.read(message)) is not None:
                self._leased(port, lease)
            case "told":
                self.leases.all_told(port)
                self._open_held()
            case "plug" | "unplug" if self.outlets is not None:
                self.outlets(port, message, fds)
            case "log":
                self.journal.note("log", text["text"], port=port.name, section=port.title)
            case "removed":
                self._removed(port)
            case "failed":
                if port.state != "removing":
                    self._fail(port, text["error"])
            case "changed" if port.before is not None:
                self._altered(port, text["error"])
            case "opened":
                port.before = None
                if port.state in ("starting", "restarting"):
                    self._change(port, "up")
                self.mirrors.opened(port)
                port.settle(None)
            case "state" if text["state"] in STATES and port.state not in ("removing", "failed"):
                self._change(port, text["state"], text["detail"])
            case "again" if port.state not in ("removing", "failed"):
                self._again(port, RETRY_S)
        for fd in fds:
            os.close(fd)

    def _leased(self, teller: ports.Port, lease: leases.Lease) -> None:
        """Note what a DHCP service tells, and tell it to the ports of its network."""
        if not self.leases.told(teller, lease):
            return
        if lease.what not in ("known", "renewed"):
            whose = f" {lease.mac}" + (f" ({lease.name})" if lease.name else "")
            text = f"{lease.what} {lease.address}{' to' if lease.what == 'given' else ' by'}{whose}"
            self.journal.note("lease", text, port=teller.name, section=teller.title)
        for port in self.ports:
            if leases.concerns(teller, port):
                self._tell_leases(port, [lease])

    def _tell_leases(self, port: ports.Port, found: Sequence[leases.Lease]) -> None:
        for first in range(0, len(found), leases.ATONCE_MAX):
            several = [lease.fields for lease in found[first : first + leases.ATONCE_MAX]]
            self.send(port, {"op": "leases", "port": port.id, "leases": several})

    def _change(self, port: ports.Port, state: str, detail: str = "") -> None:
        if (port.state, port.detail) == (state, detail):
            return
        port.state, port.detail = state, detail
        if state not in ("starting", "restarting", "removing"):  # those are told as events of their own
            level = journal.ERROR if state == "failed" else journal.NOTICE
            text = f"{state}: {detail}" if detail and state != "failed" else detail or state
            self.journal.note(state, text, port=port.name, section=port.title, level=level)

    def _fail(self, port: ports.Port, why: str) -> None:
        port.before = None
        self._change(port, "failed", why)
        self._open_held()
        self.mirrors.closed(port)
        port.settle(why)
        if port.lost is not None:
            port.lost()

    # Descriptors and helpers.

    def _lend(self, member: Member, port: ports.Port) -> None:
        """Let a worker write to the descriptor of another's port itself: one process fewer on the way of a frame."""
        if port.lent is not None and port.id not in member.ports and member.child is not None:
            member.child.send({"op": "lend", "port": port.id}, [dict(self.store.of(port.id))[port.lent]])

    def _forget(self, port: ports.Port, key: str) -> None:
        if key == port.lent:
            self._unlend(port)
        self.store.forget(port.id, key)

    def _unlend(self, port: ports.Port) -> None:
        """Ask for what was lent."""
        if port.lent is None:
            return
        port.lent = None
        for member in self.members.values():
            if member.child is not None and port.id not in member.ports:
                port.borrowers.add(member.slot)
                member.child.send({"op": "unlend", "port": port.id})

    def _returned(self, port: ports.Port, slot: int) -> None:
        port.borrowers.discard(slot)
        if not port.borrowers and port.returned is not None:
            then, port.returned = port.returned, None
            then()

    def _prepare_and_open(self, wanted: Sequence[ports.Port]) -> None:
        """Have a helper prepare ports, then their workers open them."""
        carriers = {port.id: self.members[port.slot].child for port in wanted}

        def then(port: ports.Port, error: str | None) -> None:
            carrier = carriers[port.id]
            if port.state != "starting" or self.members[port.slot].child is not carrier:
                return  # its worker died meanwhile, and the next one prepares it with the others
            if error is not None:
                self._fail(port, error)
                return
            self.processes.hand(carrier, port, prepare=False)
            self._open(carrier, port)

        self.processes.prepare([port for port in wanted if carriers[port.id] is not None], self._about, then)

    def _open(self, carrier: child.Child, port: ports.Port, waited: bool = False) -> None:
        """Have a port carry, which is to know the leases before: who asks its first question gets the right answer."""
        tellers = [other for other in self.ports if leases.concerns(other, port)]
        if not waited and any(map(self.leases.is_awaited, tellers)):
            self.held[port.id] = carrier
            self.loop.later(LEASES_S, lambda: self._open_held(port))
            return
        self.held.pop(port.id, None)
        self._tell_leases(port, [lease for other in tellers for lease in self.leases.of(other)])
        self.mirrors.introduce(port, carrier)
        carrier.send({"op": "open", "port": port.id})

    def _open_held(self, late: ports.Port | None = None) -> None:
        """Open the ports that need not wait for leases any more, and `late` in any case."""
        for number, carrier in list(self.held.items()):
            port = self.ports.by_id.get(number)
            if port is None or port.state in ("removing", "failed") or self.members[port.slot].child is not carrier:
                del self.held[number]
                continue
            awaited = [one for one in self.ports if leases.concerns(one, port) and self.leases.is_awaited(one)]
            if port is late or not awaited:
                self._open(carrier, port, waited=True)

    def _again(self, port: ports.Port, retry_s: float) -> None:
        """Prepare a port anew that its worker carries on with; as often as it takes."""
        member = self.members[port.slot]
        carrier = member.child

        def then(_port: ports.Port, error: str | None) -> None:
            if port.state in ("removing", "failed") or member.child is not carrier or carrier is None:
                return
            if error is None:
                self.processes.keep(carrier, port)
                self._open(carrier, port)
                return
            self._change(port, "waiting", error)
            self.loop.later(
                retry_s, lambda: self._again(port, min(2 * retry_s, RETRY_MAX_S)) if port.state == "waiting" else None
            )

        self.processes.prepare([port], self._about, then)

    def _let_go(self, port: ports.Port, then: Callable[[], None]) -> None:
        """Have the worker stop carrying a port, undo what it did to the host, forget its descriptors, call `then`."""
        member = self.members[port.slot]

        def removed() -> None:
            # Whoever closes the last descriptor of a TAP waits until the kernel has taken the interface apart, 16 ms
            # and more. That shall be us, who carry no frames.
            port.returned = lambda: self.processes.withdraw([port], dropped)
            self._unlend(port)
            self._returned(port, port.slot)

        carrier = member.child

        def dropped() -> None:
            for key in list(dict(self.store.of(port.id))):
                self._forget(port, key)
            then()

        if member.child is None:
            removed()
        else:
            port.removed = removed
            member.child.send({"op": "remove", "port": port.id})
            if member.captures:  # should the disk hold it up
                self.loop.later(REMOVE_S, lambda: carrier.kill() if port.removed is removed else None)

    def _removed(self, port: ports.Port) -> None:
        then, port.removed = port.removed, None
        if then is not None:
            then()


def _ordinal(number: int) -> str:
    return f"{number}{ {1: 'st', 2: 'nd', 3: 'rd'}.get(number, 'th') }"
