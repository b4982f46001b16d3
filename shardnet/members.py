"""The workers of a lab, each in its slot of the arena, with the ports that fall to it.

A port goes to the worker that its `shard` names, else to one of its own while there are few, else to the worker with
the fewest.
"""

import os
from typing import Any

from shardnet import _core, kinds, lab, ports, pulse, restarts

AUTO_MAX = 56  # workers that `shards` did not ask for; the rest of the slots is for captures


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
        self.is_condemned = False  # for what it did: the kill is ours

    @property
    def title(self) -> str:
        """How logs call it: as its port where that is the only one."""
        titles = [port.title for port in self.ports.values()]
        return titles[0] if len(titles) == 1 else f"worker {self.slot}"

    def begin(self, faults: int) -> None:
        """Judge the process that is about to start by what it does itself; `faults` are those of its slot until now."""
        self.timer = None
        self.pulse = pulse.Pulse()
        self.faults = faults
        self.is_condemned = False
        self.state = "starting"


class Members(dict[int, Member]):
    """All workers by slot; a slot that is lent belongs to nobody here."""

    def __init__(self, arena: _core.Arena, shards: int | None) -> None:
        super().__init__()
        self.arena = arena
        self.limit = shards or min(max(8, 4 * (os.cpu_count() or 1)), AUTO_MAX)
        self.lent: set[int] = set()  # slots of captures
        self._used: set[int] = set()  # slots that had a process once

    def of(self, port: ports.Port) -> Member:
        """Who carries a port."""
        return self[port.slot]

    def send(self, port: ports.Port, message: dict[str, Any]) -> None:
        """Say something to the worker of a port, if it has one now."""
        member = self.get(port.slot)
        if member is not None and member.child is not None:
            member.child.send(message)

    def slot(self) -> int | None:
        """A free slot of the arena, made ready for a new process."""
        taken = self.keys() | self.lent
        number = next((number for number in range(_core.WORKERS) if number not in taken), None)
        if number is not None:
            if number in self._used:
                self.arena.repair(number)
            self._used.add(number)
        return number

    def free(self) -> int:
        """How many slots of the arena nobody has."""
        return _core.WORKERS - len(self.keys() | self.lent)

    def place(self, port: ports.Port) -> Member:
        """Give a port to a worker, to a new one where it is to have one."""
        if port.behind is not None and not port.section.share and not kinds.is_service(port.section.kind):
            member = self.of(port.behind)  # the other end of a port that comes before it
        else:
            member = self._choose(port.section)
        port.slot = member.slot
        member.ports[port.id] = port
        return member

    def _choose(self, section: lab.Section) -> Member:
        shard = section.options.shard
        if kinds.captures(section) is not None:
            slot = self.slot()
            if slot is None:
                raise ValueError("no worker is free")
            member = self[slot] = Member(slot, None, captures=True)
            return member
        if shard is not None:
            found = next((member for member in self.values() if member.shard == shard), None)
            if found is not None:
                return found
        if shard is not None or len(self) < self.limit:
            slot = self.slot()
            if slot is not None:
                member = self[slot] = Member(slot, shard)
                return member
        others = [member for member in self.values() if not member.captures]
        if not others:
            raise ValueError("no worker is free")
        return min(others, key=lambda member: (member.shard is not None, len(member.ports)))
