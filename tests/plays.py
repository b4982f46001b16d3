"""A crew whose processes only say what the test has them say, on a clock that the test turns."""

import io
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from shardnet import _core, crew, journal, lab, ports, timers


class Turns(timers.Timers):
    """The loop, on a clock that the test turns."""

    def __init__(self) -> None:
        self.now = 1000.0
        super().__init__(lambda: self.now)

    def pass_time(self, seconds: float) -> None:
        end = self.now + seconds
        while (wait := self.wait()) is not None and self.now + wait <= end:
            self.now += wait
            self.fire()
        self.now = end


class Process:
    """What child.Child is, without a process."""

    def __init__(self, heard: Callable[[dict[str, Any], list[int]], None], ended: Callable[[str], None]) -> None:
        self.pid = os.getpid()
        self.heard, self.ended = heard, ended
        self.sent: list[dict[str, Any]] = []
        self.killed = False

    def send(self, message: dict[str, Any], fds: Any = ()) -> None:
        self.sent.append({**message, "fds": len(list(fds))})

    def kill(self) -> None:
        self.killed = True

    def says(self, op: str, port: ports.Port, *fds: int, **fields: Any) -> None:
        self.heard({"op": op, "port": port.id, **fields}, list(fds))

    def told(self, port: ports.Port) -> list[str]:
        return [message["op"] for message in self.sent if message.get("port") == port.id]


class Play:
    """A crew with an arena of its own."""

    def __init__(self, shards: int | None = None) -> None:
        self.memory = memory = os.memfd_create("arena")
        self.turns = Turns()
        self.table = ports.Ports(_core.Arena.create(memory))
        self.journal = journal.Journal(io.StringIO())
        self.processes: list[Process] = []
        self.bells = [os.eventfd(0, os.EFD_NONBLOCK) for _ in range(64)]
        self.crew = crew.Crew(
            self.turns,  # type: ignore[arg-type]
            self.table,
            self.journal,
            self.fork,
            name="play",
            run_dir=Path(tempfile.gettempdir()),
            arena_fd=memory,
            doorbells=self.bells,
            shards=shards,
        )
        self.errors: dict[str, str | None] = {}

    def fork(self, _turns: Any, heard: Any, ended: Any) -> Process:
        self.processes.append(Process(heard, ended))
        return self.processes[-1]

    def add(self, *names: str, **given: str) -> list[ports.Port]:
        new = []
        for name in names:
            text = {"server": "on", "addr.type": "unix", "addr.path": f"{name}.sock", **given}
            port = self.table.new(lab.section("stream", name, text))
            port.waiters.append(lambda error, name=name: self.errors.__setitem__(name, error))
            new.append(port)
        self.crew.add(new)
        return new

    def opened(self, *names: str, **given: str) -> tuple[Process, list[ports.Port]]:
        """Ports of one worker, open."""
        before = len(self.processes)
        new = self.add(*names, **given)
        for port in new:
            self.processes[before].says("opened", port)
        return self.processes[before], new

    def events(self) -> list[str]:
        return [event["text"] for event in self.journal.events]

    def close(self) -> None:
        for port in list(self.table):
            self.crew.store.drop(port.id)
        for fd in (self.memory, *self.bells):
            os.close(fd)
