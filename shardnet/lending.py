"""Descriptors of ports that are lent to the workers of others: who writes to a TAP himself is one process fewer on a frame's way.

What is lent is asked back before it is closed for good, and counts as returned when its borrower says so or has died.
"""

from shardnet import members, ports, store


class Lending:
    """What of the store is lent to whom."""

    def __init__(self, team: members.Members, kept: store.Store) -> None:
        self.members, self.store = team, kept

    def lend(self, port: ports.Port, key: str) -> None:
        """Let all workers write to a deposit of a port that another carries."""
        port.lent = key
        for member in self.members.values():
            self.lend_to(member, port)

    def lend_to(self, member: members.Member, port: ports.Port) -> None:
        """Let one of them do so, if there is anything to lend."""
        if port.lent is not None and port.id not in member.ports and member.child is not None:
            member.child.send({"op": "lend", "port": port.id}, [dict(self.store.of(port.id))[port.lent]])

    def forget(self, port: ports.Port, key: str) -> None:
        """Keep a deposit no longer, nor let others."""
        if key == port.lent:
            self.unlend(port)
        self.store.forget(port.id, key)

    def unlend(self, port: ports.Port) -> None:
        """Ask for what was lent."""
        if port.lent is None:
            return
        port.lent = None
        for member in self.members.values():
            if member.child is not None and port.id not in member.ports:
                port.borrowers.add(member.slot)
                member.child.send({"op": "unlend", "port": port.id})

    def returned(self, port: ports.Port, slot: int) -> None:
        """Note that the worker of a slot has what was lent no more."""
        port.borrowers.discard(slot)
        if not port.borrowers and port.returned is not None:
            then, port.returned = port.returned, None
            then()
