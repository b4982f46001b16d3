"""Ports that another port asks for: each program that plugs into a [vde] switch becomes one.

The worker of the port that has the outlets sends a connected socket of datagrams with a number; the new port is called after
both, OWNER.NUMBER, has the owner's switch rules, and lives until the worker says `unplug`, the owner is removed, or its socket fails.
It lives in a worker like any other port, so the owner's death costs it nothing. Only kinds with PLUGS may ask.
"""

import os
from typing import TYPE_CHECKING, Any

from shardnet import kinds, lab, options, plugged, ports

if TYPE_CHECKING:
    from shardnet import supervisor

NUMBER_MAX = 256


class Outlets:
    """The ports that ports have asked for, by the id of the owner and the number."""

    def __init__(self, run: "supervisor.Supervisor") -> None:
        self.run = run
        self.made: dict[tuple[int, int], ports.Port] = {}

    def of(self, owner: ports.Port) -> list[ports.Port]:
        """The ports behind one."""
        return [port for (number, _), port in self.made.items() if number == owner.id]

    def heard(self, owner: ports.Port, message: dict[str, Any], fds: list[int]) -> None:
        """Take a worker's `plug` or `unplug`; what is malformed says nothing. Takes over the descriptor that it needs."""
        number = message.get("number")
        may = getattr(kinds.module(owner.section.kind), "PLUGS", False)
        if not may or owner.state == "removing" or not isinstance(number, int) or not 1 <= number <= NUMBER_MAX:
            return
        self._remove(owner, number)
        if message["op"] == "plug" and fds:
            try:
                self._make(owner, number, fds.pop())
            except (lab.Wrong, options.Wrong, ValueError) as why:
                self.run.journal.note("log", f"{number} is not plugged in: {why}", port=owner.name)
                self._tell(owner, number)

    def configure(self, owner: ports.Port) -> None:
        """The owner's rules have changed, and so have those of the ports behind it."""
        for port in self.of(owner):
            port.section = self._section(owner, port.name)
            self.run.ports.configure(port)

    def _make(self, owner: ports.Port, number: int, fd: int) -> None:
        try:
            section = self._section(owner, f"{owner.name}.{number}")
            lab.extended(self.run.now(), [section])
            (port,) = self.run.ports.make(section, plugged=True)
        except BaseException:
            os.close(fd)
            raise
        self.made[owner.id, number] = port

        def lost() -> None:
            self._remove(owner, number)
            self._tell(owner, number)

        port.lost = lost
        self.run.crew.store.deposit(port.id, "fd0", fd)
        self.run.crew.add([port])
        self.run.journal.note("added", "added", port=port.name, section=port.title)

    def _remove(self, owner: ports.Port, number: int) -> None:
        port = self.made.pop((owner.id, number), None)
        if port is not None and port.state != "removing":
            self.run.crew.remove(port, lambda: None)

    def _tell(self, owner: ports.Port, number: int) -> None:
        self.run.crew.members.send(owner, {"op": "unplugged", "port": owner.id, "number": number})

    def _section(self, owner: ports.Port, name: str) -> lab.Section:
        given = {key: text for key, text in owner.section.given.items() if key in options.ARENA_KEYS}
        return lab.Section("dgram", name, given, options.read(plugged, given))
