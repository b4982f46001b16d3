"""The supervisor of a lab: starts it, keeps it, changes it, ends it. It touches no frame.

The order of a start: the lab file is read and checked; the run directory is locked; the forkserver begins to boot;
arena and doorbells are made; the control socket is opened; workers are started. When every port is open the lab is
ready. If one cannot be opened, everything is taken down again, and the exit code is 1. From then on a port that fails
is that port's matter only.

One loop then sees to signals, dead workers, what workers and clients say, and timers, and sleeps in between.
"""

import dataclasses
import os
import resource
import secrets
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from typing import Any, TextIO

from shardnet import control, forwarding, journal, lab, notify, ports, rundir

READY = "SHARDNET_READY"  # set in a detached supervisor: the descriptor to tell, empty when it has been told
ENDING = (signal.SIGTERM, signal.SIGINT)


def start(read: Callable[[], lab.Lab], *, detach: bool = False) -> int:
    """Run the lab that `read` returns until it is told to stop; returns the exit code.

    `read` is called again for each reload. With `detach` the program is started once more, in a session of its own, and
    this returns when that one is ready, or has ended.
    """
    if detach and READY not in os.environ:
        return _detach()
    began = time.monotonic()
    log = _leave_terminal() if os.environ.get(READY) else sys.stderr
    try:
        found = read()
        directory = rundir.RunDir(found.name)
    except lab.Wrong as wrong:
        print(wrong, file=log)
        return 1
    except rundir.Error as error:
        print(error, file=log)
        return error.code
    except OSError as error:
        print(f"{error.filename}: {error.strerror}" if error.filename else error.strerror, file=log)
        return 1
    code = Supervisor(read, found, directory, began, log).run()
    if code is None:  # a restart
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
    return code


class Supervisor:
    """A running lab."""

    def __init__(
        self, read: Callable[[], lab.Lab], found: lab.Lab, directory: rundir.RunDir, began: float, log: TextIO
    ) -> None:
        # Imported here, the slow one first: the forkserver boots on another core while this process goes on.
        from shardnet import child, kinds

        everything = [one for section in found.ports for one in (section, *lab.companions(section).values())]
        preload = {kinds.module(section.kind).__name__ for section in everything}
        self.forkserver = child.Forkserver(directory.fd, sorted(preload))
        from shardnet import clients, crew, loop, operations, outlets

        self.read, self.lab, self.rundir, self.started = read, found, directory, began
        self.pid = os.getpid()
        self.loop = loop.Loop()
        self.journal = journal.Journal(log)
        self._code: int | None = 0
        self._running = True
        self._ending = False
        self._ready = False
        self._reloading = False
        _raise_descriptors()
        self.arena, arena_fd = _arena(found.options.lane_bytes)
        doorbells = [os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC) for _ in range(64)]
        self.ports = ports.Ports(self.arena)
        self.crew = crew.Crew(
            self.loop,
            self.ports,
            self.journal,
            self.forkserver.child,
            name=found.name,
            run_dir=directory.path,
            arena_fd=arena_fd,
            doorbells=doorbells,
            shards=found.options.shards,
        )
        self.outlets = outlets.Outlets(self)
        self.crew.outlets = self.outlets.heard
        self.loop.signals((*ENDING, signal.SIGHUP), self._signalled)
        self.clients = clients.Clients(self.loop, directory.fd, lambda request: operations.answer(self, request))

    def run(self) -> int | None:
        """Start the ports, then turn the loop until the end; the exit code, None for a restart."""
        self.ports.configure_switches(self.lab.switches)
        new = [port for section in self.lab.ports for port in self.ports.make(section)]
        ports.together(new, self._opened)
        self.crew.add(new)
        while self._running:
            self.loop.turn()
        self.forkserver.shut()
        self.rundir.leave()
        self.clients.close()  # the last of all: `shardnet stop` waits for it, and then nothing may be left
        return self._code

    def now(self) -> lab.Lab:
        """The lab as it runs: with the ports that were added, without those that were removed."""
        return dataclasses.replace(self.lab, ports=tuple(port.section for port in self.ports if port.behind is None))

    def stop(self, why: str, *, again: bool = False, code: int = 0) -> None:
        """End the lab in order; with `again`, start it anew. A second call does not wait for the order."""
        if self._ending:
            self.crew.kill_all()
            return
        self._ending = True
        self.crew.outlets = None
        self._code = None if again else code
        notify.notify("STOPPING=1", f"STATUS={why}")
        self.journal.note("stopping", f"lab {self.lab.name}: {why}")
        self.crew.stop(self._stopped)

    def change(self, port: ports.Port, section: lab.Section) -> None:
        """Give a port another section of its kind: while it carries on where that can be, else the port is made anew.

        Its companions follow. Who waits for the port is told when all of them are open.
        """
        self.journal.note("changed", "changed", port=port.name, section=port.title)
        wanted = lab.companions(section)
        for suffix in [suffix for suffix in port.companions if suffix not in wanted]:
            self.crew.remove(port.companions.pop(suffix), lambda: None)
        kept = [(one, wanted[suffix]) for suffix, one in port.companions.items()]
        added = self.ports.accompany(port, {word: one for word, one in wanted.items() if word not in port.companions})
        anew, altered = {}, {}
        for one, new in [*kept, (port, section)]:
            alters = lab.alters(one.section, new)
            if not lab.carries_on(one.section, new) or (alters and one.state == "failed"):
                anew[one] = new
            elif alters:
                altered[one] = new
            else:
                one.section = new
                self.ports.configure(one)
        self.outlets.configure(port)
        waiters, port.waiters = port.waiters, []

        def settled(errors: dict[ports.Port, str]) -> None:
            port.waiters += waiters
            port.settle("; ".join(errors.values()) or None)

        ports.together([*anew, *added, *altered], settled)
        self.crew.add(added)
        for one, new in altered.items():
            self.crew.alter(one, new)
        for one, new in anew.items():
            self.crew.reopen(one, new)

    def remove(self, port: ports.Port, then: Callable[[], None]) -> None:
        """Take a port away for good, with its companions, then call `then`."""
        gone = [port, *port.companions.values(), *self.outlets.of(port)]
        left = len(gone)

        def removed() -> None:
            nonlocal left
            left -= 1
            if not left:
                then()

        for one in gone:
            self.crew.remove(one, removed)

    def reload(self, done: Callable[..., None], *, dry_run: bool = False) -> None:
        """Read the lab file again and do what differs; `done(plan=, done=)` is called when all of it is done.

        Raises lab.Wrong for a wrong file, control.Error for what no reload can do; nothing is changed then.
        """
        new = self.read()
        steps = lab.plan(self.lab, new)
        told = [{"action": step.action, "section": str(step.section), "why": step.why} for step in steps]
        if dry_run:
            done(plan=told, done=False)
            return
        if whole := [step for step in steps if step.section.kind == "lab"]:
            raise control.Error(f"{whole[0].section} {whole[0].why}: takes a restart of the lab (shardnet restart)", 1)
        if self._reloading or self._ending or not self._ready:
            raise control.Error("reload: the lab is starting, ending or reloading already", 75)
        self._reloading = True

        def finished(errors: dict[ports.Port, str]) -> None:
            self._reloading = False
            self.journal.note("reloaded", f"lab {self.lab.name}: reloaded, {len(steps)} changes")
            done(plan=told, done=not errors)

        self._apply(new, steps, finished)

    def bug(self, where: str) -> None:
        """Log the exception at hand, which is a mistake of this program."""
        self.journal.write(traceback.format_exc(), where, journal.ERROR)

    def _apply(self, new: lab.Lab, steps: Sequence[lab.Step], done: Callable[[dict[ports.Port, str]], None]) -> None:
        """Remove first, and when that is done change, make anew and add."""
        gone = [port for step in steps if step.action == "remove" and (port := self.ports.named(step.section.name))]
        left = len(gone)

        def removed() -> None:
            nonlocal left
            left -= 1
            if left <= 0:
                go_on()

        def go_on() -> None:
            self.ports.configure_switches(new.switches)
            old, self.lab = self.lab, new
            added, settling, changes = [], [], []
            for step in steps:
                if step.action == "remove" or step.section.kind == "switch":
                    continue
                port = self.ports.named(step.section.name)
                if port is None:
                    made = self.ports.make(step.section)
                    added += made
                    settling += made
                else:
                    changes.append((port, forwarding.merged(old, port.section, step.section)))
                    settling.append(port)
            ports.together(settling, done)
            for port, section in changes:
                self.change(port, section)
            self.crew.add(added)

        for port in gone:
            self.remove(port, removed)
        if not gone:
            go_on()

    def _opened(self, errors: dict[ports.Port, str]) -> None:
        if self._ending:
            return
        if errors:
            self.stop(f"not started, {len(errors)} of {len(self.lab.ports)} ports cannot be opened", code=1)
            return
        self._ready = True
        count = len(self.lab.ports)
        text = f"{count} port{'' if count == 1 else 's'} ready in {(time.monotonic() - self.started) * 1000:.0f} ms"
        self.journal.note("ready", f"lab {self.lab.name}: {text}")
        notify.notify("READY=1", f"STATUS={text}")
        if waiting := os.environ.get(READY):
            os.environ[READY] = ""
            self.journal.out.close()
            self.journal.out = open(os.devnull, "w")  # from here on `shardnet events` is the log
            os.write(int(waiting), b"\n")
            os.close(int(waiting))

    def _signalled(self, number: int) -> None:
        if number != signal.SIGHUP:
            self.stop(f"stopped by {signal.Signals(number).name}")
            return

        def done(**_fields: Any) -> None:
            notify.notify("READY=1")

        notify.notify("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")
        try:
            self.reload(done)
        except (lab.Wrong, control.Error, OSError) as error:
            self.journal.note("not reloaded", str(error), level=journal.ERROR)
            done()

    def _stopped(self) -> None:
        self._running = False


def _arena(lane_bytes: int) -> tuple[Any, int]:
    """Make the shared memory of a lab: nobody else can open it, and it goes with the last process that has it."""
    import posix_ipc

    from shardnet import _core

    memory = posix_ipc.SharedMemory(f"/shardnet-{secrets.token_hex(16)}", posix_ipc.O_CREX, mode=0o600)
    memory.unlink()
    return _core.Arena.create(memory.fd, lane_bytes), memory.fd


def _raise_descriptors() -> None:
    """Allow as many descriptors as we may: the store has those of every port."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _detach() -> int:
    """Start this program again in a session of its own; wait until it is ready or has ended."""
    import subprocess

    reader, writer = os.pipe2(os.O_CLOEXEC)
    again = subprocess.Popen(
        [sys.executable, *sys.orig_argv[1:]],
        stdin=subprocess.DEVNULL,
        pass_fds=[writer],
        env={**os.environ, READY: str(writer)},
        start_new_session=True,
    )
    os.close(writer)
    return 0 if os.read(reader, 1) else again.wait()


def _leave_terminal() -> TextIO:
    """Keep the terminal, or what stands for it, for our own messages only: no process of the lab shall hold it open."""
    log = os.fdopen(os.dup(2), "w")
    null = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    os.close(null)
    return log
