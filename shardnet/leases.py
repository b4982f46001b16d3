"""Leases as DHCP services tell them: kept for the ports of their network, whose workers come and go.

A service tells each lease once more when it starts, and then that these are all; the others hear of a change at once, and of
all that hold before they open: a lab's first start waits for that.
"""

import dataclasses
import ipaddress
import re
from collections.abc import Iterator, Mapping
from typing import Any

from shardnet import kinds, ports

LEASES_MAX = 16_384  # that one service tells
ATONCE_MAX = 1024  # of one message to a worker
HOLDS, ENDED = ("known", "given", "renewed"), ("released", "expired", "declined")
NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?", re.ASCII)
MAC = re.compile(r"([0-9a-f]{2}:){5}[0-9a-f]{2}")


@dataclasses.dataclass(frozen=True)
class Lease:
    """What happened to an address: `what` is one of HOLDS or ENDED, `name` empty where the guest said none."""

    what: str
    address: str
    mac: str
    name: str
    until: int  # seconds since 1970, 0: always

    @property
    def fields(self) -> tuple[str, str, str, str]:
        """As a carrier's `leased(what, address, mac, name)` is told it."""
        return self.what, self.address, self.mac, self.name


def read(message: Mapping[str, Any]) -> Lease | None:
    """A lease of a service's message; None where it is none. A name that no host could have is left out."""
    what, address, mac = message.get("what"), message.get("address"), message.get("mac")
    name, until = message.get("name"), message.get("until")
    if what not in (*HOLDS, *ENDED) or not isinstance(address, str) or not isinstance(mac, str):
        return None
    try:
        address = str(ipaddress.ip_address(address))
    except ValueError:
        return None
    if not MAC.fullmatch(mac) and mac:
        return None
    name = name if isinstance(name, str) and NAME.fullmatch(name) else ""
    return Lease(str(what), address, mac, name, until if isinstance(until, int) else 0)


class Leases:
    """The leases that hold, by the port that told them."""

    def __init__(self) -> None:
        self._held: dict[int, dict[str, Lease]] = {}
        self._complete: set[int] = set()  # ports that have told all

    def told(self, port: ports.Port, lease: Lease) -> bool:
        """Note what a service tells; False where there is no room for it."""
        held = self._held.setdefault(port.id, {})
        if lease.what in ENDED:
            held.pop(lease.address, None)
        elif lease.address in held or len(held) < LEASES_MAX:
            held[lease.address] = dataclasses.replace(lease, what="known")
        else:
            return False
        return True

    def of(self, port: ports.Port) -> Iterator[Lease]:
        """The leases that hold among those that this port has told."""
        yield from self._held.get(port.id, {}).values()

    def all_told(self, port: ports.Port) -> None:
        """What this port knows from before, it has told."""
        self._complete.add(port.id)

    def is_awaited(self, port: ports.Port) -> bool:
        """Will this port still tell what it knows from before? Its kind's module says `TELLS = True`."""
        tells = not port.plugged and getattr(kinds.module(port.section.kind), "TELLS", False)
        return tells and port.id not in self._complete and port.state not in ("failed", "removing")

    def forget(self, port: ports.Port) -> None:
        """The port is gone for good; who heard of its leases keeps what he heard."""
        self._held.pop(port.id, None)
        self._complete.discard(port.id)


def concerns(teller: ports.Port, port: ports.Port) -> bool:
    """Is `port` one that hears of the leases of `teller`: on its switch and VLAN, of a kind whose module says `LEASES = True`?"""
    here, there = teller.section.options, port.section.options
    is_near = port is not teller and (here.switch, here.vlan) == (there.switch, there.vlan)
    return is_near and not port.plugged and bool(getattr(kinds.module(port.section.kind), "LEASES", False))
