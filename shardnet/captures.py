"""Captures: a worker that carries no port, but writes what passes other ports to a client's descriptor.

It ends with the client's connection, or when nobody reads what it writes, or when the disk is full, which the client is told.
It is not started again.
"""

import os
from typing import Any

from shardnet import clients, control, crew, journal, ports


class Capture:
    """One capture, from the request to its `capture-ended` event."""

    def __init__(
        self, team: crew.Crew, notes: journal.Journal, request: clients.Request, taken: list[ports.Port], snaplen: int
    ) -> None:
        """Start it; the request is answered when frames are being written."""
        slot = team.members.slot()
        if slot is None:
            raise control.Error("capture: every worker slot of the lab is in use", 75)
        self._crew, self._journal, self._request, self._slot = team, notes, request, slot
        self._ports = taken
        self._counts: dict[str, Any] = {"written": 0, "lost": 0, "whole": 0, "error": ""}
        self._stopped = False
        self._running = False
        self._child: Any = team.processes.start(self._heard, self._ended, slot)
        team.members.lent.add(slot)
        request.client.owed += 1
        request.client.ties.append(self._stop)
        names = [[port.id, port.name] for port in taken]
        self._child.send({"op": "capture", "ports": names, "snaplen": snaplen}, request.fds[:1])

    def _heard(self, message: dict[str, Any], fds: list[int]) -> None:
        for fd in fds:
            os.close(fd)
        match message.get("op"):
            case "capturing":
                self._running = True
                self._mirror(True)
                self._journal.note("capture", "capture of " + ", ".join(port.name for port in self._ports))
                self._request.answer(capture=self._slot)
            case "stopped":
                self._stopped = True
                self._counts = {key: type(was)(message.get(key, was)) for key, was in self._counts.items()}

    def _stop(self) -> None:
        self._mirror(False)
        self._child.send({"op": "stop"})

    def _ended(self, how: str) -> None:
        self._mirror(False)
        self._crew.arena.repair(self._slot)
        self._crew.members.lent.discard(self._slot)
        client = self._request.client
        if self._stop in client.ties:
            client.ties.remove(self._stop)
        if self._running:
            if not self._stopped:
                self._counts["error"] = f"its worker {how}"
            text = f"{self._counts['written']} frames written, {self._counts['lost']} lost"
            text += f": {self._counts['error']}" if self._counts["error"] else ""
            self._journal.note("capture-ended", text)
            client.send(
                {"event": {"time": self._journal.clock(), "kind": "capture-ended", "text": text, **self._counts}}
            )
        else:
            self._request.refuse(f"capture: its worker {how}")
        client.settle()

    def _mirror(self, on: bool) -> None:
        for port in self._ports:
            if port.id in self._crew.ports.by_id:
                self._crew.arena.mirror(port.id, self._slot, on)
