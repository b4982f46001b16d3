"""When a port is told to open: once it knows the leases of its network, so that who asks its first question gets the right answer."""

from collections.abc import Sequence
from typing import Any

from shardnet import journal, leases, members, mirrors, ports, timers

LEASES_S = 2.0  # how long a port waits for a DHCP service that starts with it


class Opening:
    """Ports that wait for leases, with the process that is to open each of them."""

    def __init__(
        self,
        turns: timers.Timers,
        table: ports.Ports,
        team: members.Members,
        written: mirrors.Mirrors,
        notes: journal.Journal,
    ) -> None:
        self.loop, self.ports, self.members, self.mirrors, self.journal = turns, table, team, written, notes
        self.leases = leases.Leases()
        self._held: dict[int, Any] = {}  # who opens a port when it has been told the leases

    def open(self, carrier: Any, port: ports.Port, waited: bool = False) -> None:
        """Have a process open a port that was handed to it, now or when the leases are known."""
        tellers = [other for other in self.ports if leases.concerns(other, port)]
        if not waited and any(map(self.leases.is_awaited, tellers)):
            self._held[port.id] = carrier
            self.loop.later(LEASES_S, lambda: self.review(port))
            return
        self._held.pop(port.id, None)
        self._tell(port, [lease for other in tellers for lease in self.leases.of(other)])
        self.mirrors.introduce(port, carrier)
        carrier.send({"op": "open", "port": port.id})

    def review(self, late: ports.Port | None = None) -> None:
        """Open the ports that need not wait for leases any more, and `late` in any case."""
        for number, carrier in list(self._held.items()):
            port = self.ports.by_id.get(number)
            if port is None or port.state in ("removing", "failed") or self.members.of(port).child is not carrier:
                del self._held[number]
                continue
            awaited = [one for one in self.ports if leases.concerns(one, port) and self.leases.is_awaited(one)]
            if port is late or not awaited:
                self.open(carrier, port, waited=True)

    def all_told(self, teller: ports.Port) -> None:
        """A DHCP service has told what it knows from before."""
        self.leases.all_told(teller)
        self.review()

    def leased(self, teller: ports.Port, lease: leases.Lease) -> None:
        """Note what a DHCP service tells, and tell it to the ports of its network."""
        if not self.leases.told(teller, lease):
            return
        if lease.what not in ("known", "renewed"):
            whose = f" {lease.mac}" + (f" ({lease.name})" if lease.name else "")
            text = f"{lease.what} {lease.address}{' to' if lease.what == 'given' else ' by'}{whose}"
            self.journal.note("lease", text, port=teller.name, section=teller.title)
        for port in self.ports:
            if leases.concerns(teller, port):
                self._tell(port, [lease])

    def _tell(self, port: ports.Port, found: Sequence[leases.Lease]) -> None:
        for first in range(0, len(found), leases.ATONCE_MAX):
            several = [lease.fields for lease in found[first : first + leases.ATONCE_MAX]]
            self.members.send(port, {"op": "leases", "port": port.id, "leases": several})
