"""Which ports a [pcap NAME] writes down: told to its worker by their names, then to the arena, as ports come, change and go.

A worker hears the name of a port before the first frame of it is on the way. What is mirrored to a worker that died stays in the
lanes for its successor, so nothing is changed then; a capture that failed, is removed or switched off is mirrored nothing.
"""

from collections.abc import Callable
from typing import Any

from shardnet import kinds, ports


class Mirrors:
    """The captures of a lab; `send` says something to a port's worker."""

    def __init__(self, table: ports.Ports, send: Callable[[ports.Port, dict[str, Any]], None]) -> None:
        self.ports, self.send = table, send
        self._slots: dict[int, int] = {}  # of the captures that are written, by id
        self._named: dict[int, dict[int, ports.Port]] = {}  # what each was told, by the ports' ids
        table.changed = self.review

    def opened(self, capture: ports.Port) -> None:
        """A capture has a file, and nothing in it or what its predecessor wrote."""
        if kinds.captures(capture.section) is not None:
            self._slots[capture.id] = capture.slot
            self.review()

    def closed(self, capture: ports.Port) -> None:
        """Mirror nothing to it any more."""
        self.review(without=capture)
        self._slots.pop(capture.id, None)
        self._named.pop(capture.id, None)

    def introduce(self, capture: ports.Port, carrier: Any) -> None:
        """Tell a worker that is about to open a capture what it will write."""
        if kinds.captures(capture.section) is None:
            return
        known = self._named[capture.id] = self._wanted(capture)
        carrier.send(_told(capture, known))

    def review(self, without: ports.Port | None = None) -> None:
        """See to it that every capture is mirrored what it is to have."""
        for number, slot in list(self._slots.items()):
            capture = self.ports.by_id.get(number)
            if capture is None:
                del self._slots[number]
                continue
            named = self._named.setdefault(number, {})
            wanted = {} if capture is without or not capture.section.options.up else self._wanted(capture)
            fresh = {one: port for one, port in wanted.items() if named.get(one) is not port}
            if fresh:
                self.send(capture, _told(capture, fresh))
                named.update(fresh)
            for port in self.ports:
                if (port.id in wanted) != (slot in port.mirrors):
                    (port.mirrors.add if port.id in wanted else port.mirrors.discard)(slot)
                    self.ports.arena.mirror(port.id, slot, port.id in wanted)

    def _wanted(self, capture: ports.Port) -> dict[int, ports.Port]:
        names = kinds.captures(capture.section) or ()
        switch = capture.section.options.switch
        return {
            port.id: port
            for port in self.ports
            if port.state != "removing"
            and kinds.captures(port.section) is None
            and (
                (port.name in names or (port.behind is not None and port.behind.name in names))
                if names
                else port.section.options.switch == switch
            )
        }


def _told(capture: ports.Port, named: dict[int, ports.Port]) -> dict[str, Any]:
    return {"op": "captures", "port": capture.id, "ports": [[port.id, port.name] for port in named.values()]}
