"""The life of a lab's ports in its workers, from the first start over deaths to the end.

Which worker a port falls to is in members.py, who is killed for hanging in watch.py, when the dead start again in restarts.py.
What takes privileges later (a port added to a worker, a TAP that vanished) is prepared by a helper.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from shardnet import (
    child,
    journal,
    lab,
    leases,
    lending,
    loop,
    members,
    mirrors,
    opening,
    ports,
    processes,
    questions,
    restarts,
    store,
    watch,
)

DRAIN_S = 0.7
STUCK_S = 2.0  # after a SIGKILL; one that waits in the kernel for a disk that hangs does not hear it
RETRY_S, RETRY_MAX_S = 0.2, 5.0
REMOVE_S = 5.0
TEXTS = ("op", "key", "error", "state", "detail", "text")  # of a worker's messages
STATES = ("up", "waiting", "down")


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
        self.outlets: Callable[[ports.Port, dict[str, Any], list[int]], None] | None = None
        self.members = members.Members(self.arena, shards)
        self.watch = watch.Watch(turns, self.members, notes, doorbells)
        self.store = store.Store()
        setup = {"lab": name, "run_dir": str(run_dir)}
        self.processes = processes.Processes(turns, fork, self.store, notes, setup, [arena_fd, *doorbells])
        self.questions = questions.Questions(turns)
        self.mirrors = mirrors.Mirrors(table, self.members.send)
        self.opening = opening.Opening(turns, table, self.members, self.mirrors, notes)
        self.lending = lending.Lending(self.members, self.store)
        self._stopping: Callable[[], None] | None = None

    # Ports come, change and go.

    def add(self, new: Sequence[ports.Port]) -> None:
        """Have ports carried; each one settles when it is open, or has failed."""
        fresh, hot = [], []
        for port in new:
            member = self.members.place(port)
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
            member = self.members.of(port)
            del member.ports[port.id]
            self.ports.forget(port)
            self.opening.leases.forget(port)
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
        member = self.members.of(port)
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
        carrier = self.members.of(port).child
        if carrier is None or port.state in ("starting", "restarting"):
            return  # whoever opens it next does so as this section says, and then it settles

        def then(_port: ports.Port, error: str | None) -> None:
            if port.state in ("removing", "failed") or self.members.of(port).child is not carrier:
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
            self.members.of(port).child.send({"op": "change", "port": port.id, "given": dict(before.given)})
        port.settle(error or None)

    def reset(self, port: ports.Port) -> None:
        """Try a failed port again, with the descriptors it had."""
        member = self.members.of(port)
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
        self.watch.end()
        self.processes.kill_helpers()
        for member in self.members.values():
            if member.timer is not None:
                self.loop.cancel(member.timer)
            if member.child is not None:
                member.child.send({"op": "stop"})
        self.loop.later(DRAIN_S, self.kill_all)
        self.loop.later(DRAIN_S + STUCK_S, self._abandon)
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

    def _start(self, member: members.Member) -> None:
        member.begin(self.arena.faults(member.slot))
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
            self.opening.open(member.child, port)
        for port in self.ports:
            self.lending.lend_to(member, port)
        self.watch.begin()

    def _revive(self, member: members.Member) -> None:
        """Start a worker now that was given up, or that would start later."""
        if member.timer is not None:
            self.loop.cancel(member.timer)
        member.restarts.reset()
        self._start(member)

    def _dismiss(self, member: members.Member) -> None:
        """End a worker that has nothing to carry any more."""
        if member.timer is not None:
            self.loop.cancel(member.timer)
        if member.child is None:
            del self.members[member.slot]
        else:
            member.child.send({"op": "stop"})

    def _died(self, member: members.Member, how: str) -> None:
        dead, member.child = member.child, None
        self.questions.gone(dead)
        lost = self.arena.repair(member.slot)
        for port in list(member.ports.values()):
            if port.removed is not None:
                self._removed(port)
        for port in list(self.ports):
            self.lending.returned(port, member.slot)
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
        delay = member.restarts.died(now, by_others=how == child.KILLED and not member.is_condemned)
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

    def _abandon(self) -> None:
        """At the end, wait no longer for whoever cannot be killed; he dies when what he waits for in the kernel is over."""
        stuck = [(member, member.child) for member in self.members.values() if member.child is not None]
        for member, its in stuck:
            why = "cannot be killed, it waits in the kernel (does a disk hang?): left behind"
            self.journal.note("hung", why, worker=member.title, level=journal.ERROR)
            its.abandon()
            member.child = None
        if stuck:
            self._maybe_stopped()

    def _maybe_stopped(self) -> None:
        if self._stopping is None or any(member.child is not None for member in self.members.values()):
            return
        then, self._stopping = self._stopping, lambda: None
        self.processes.withdraw(list(self.ports), then)

    # What workers say.

    def _heard(self, member: members.Member, message: dict[str, Any], fds: list[int]) -> None:
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
                member.restarts.serves(self.loop.clock())
            case "unlent" if port is not None:
                self.lending.returned(port, member.slot)
            case "crashed":
                self.journal.note("log", str(message.get("text")), worker=member.title, level=journal.ERROR)

    def _about(self, port: ports.Port, message: dict[str, Any], fds: list[int]) -> None:
        """Take a message about a port, from its worker or a helper; what is malformed or too late says nothing."""
        text = {key: str(message.get(key, "")) for key in TEXTS}
        match text["op"]:
            case "deposit" if fds and port.state != "failed":
                self.store.deposit(port.id, text["key"], fds.pop())
            case "forget":
                self.lending.forget(port, text["key"])
            case "lend" if text["key"] in dict(self.store.of(port.id)):
                self.lending.lend(port, text["key"])
            case "lease" if (lease := leases.read(message)) is not None:
                self.opening.leased(port, lease)
            case "told":
                self.opening.all_told(port)
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
        self.opening.review()
        self.mirrors.closed(port)
        port.settle(why)
        if port.lost is not None:
            port.lost()

    # Helpers.

    def _prepare_and_open(self, wanted: Sequence[ports.Port]) -> None:
        """Have a helper prepare ports, then their workers open them."""
        carriers = {port.id: self.members.of(port).child for port in wanted}

        def then(port: ports.Port, error: str | None) -> None:
            carrier = carriers[port.id]
            if port.state != "starting" or self.members.of(port).child is not carrier:
                return  # its worker died meanwhile, and the next one prepares it with the others
            if error is not None:
                self._fail(port, error)
                return
            self.processes.hand(carrier, port, prepare=False)
            self.opening.open(carrier, port)

        self.processes.prepare([port for port in wanted if carriers[port.id] is not None], self._about, then)

    def _again(self, port: ports.Port, retry_s: float) -> None:
        """Prepare a port anew that its worker carries on with; as often as it takes."""
        member = self.members.of(port)
        carrier = member.child

        def then(_port: ports.Port, error: str | None) -> None:
            if port.state in ("removing", "failed") or member.child is not carrier or carrier is None:
                return
            if error is None:
                self.processes.keep(carrier, port)
                self.opening.open(carrier, port)
                return
            self._change(port, "waiting", error)
            self.loop.later(
                retry_s, lambda: self._again(port, min(2 * retry_s, RETRY_MAX_S)) if port.state == "waiting" else None
            )

        self.processes.prepare([port], self._about, then)

    def _let_go(self, port: ports.Port, then: Callable[[], None]) -> None:
        """Have the worker stop carrying a port, undo what it did to the host, forget its descriptors, call `then`."""
        member = self.members.of(port)

        def removed() -> None:
            # Whoever closes the last descriptor of a TAP waits until the kernel has taken the interface apart, 16 ms
            # and more. That shall be us, who carry no frames.
            port.returned = lambda: self.processes.withdraw([port], dropped)
            self.lending.unlend(port)
            self.lending.returned(port, port.slot)

        carrier = member.child

        def dropped() -> None:
            for key in list(dict(self.store.of(port.id))):
                self.lending.forget(port, key)
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
