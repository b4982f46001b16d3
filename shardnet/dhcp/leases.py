"""Who has which address of a pool: the table of leases of one family.

    offered ── bind ──► bound ── release, or its time ──► free ── bind ──► bound, by its client or another
       └── 10 s ──► forgotten          declined ── 10 min ──► forgotten

A client is known by a key: "c" and its client identifier, "d" and its DUID with the IAID, else "h" and its hardware address
(which a client identifier may say too: it is the same client then, so a boot ROM and the system it boots share a lease). It gets the
address reserved for it, else the one it had, else the one it asks for, else the lowest that nobody has had yet, else the one
that has been free for longest. So guests that start one after the other get .15, .16, .17, and get them again.

What one origin (a port of the switch) can hold is bounded: offered, bound and declined addresses count, reservations do not.
At the bound its own oldest offer makes room; where it has none the newcomer is refused. So no port drains the pool, and no
flood of requests pushes out a lease in use.

Times are seconds on a clock that the caller passes in and that never goes back.
"""

import collections
import dataclasses
import hashlib
import heapq
from collections.abc import Collection, Hashable, Iterable, Iterator, Sequence
from typing import Literal, NamedTuple

OFFER_S = 10.0
DECLINED_S = 600.0
TABLE_MAX = 16_384
KEY_MAX = 136  # "d", a DUID of 130 bytes (RFC 8415, 11.1), an IAID

State = Literal["offered", "bound", "free", "declined"]
What = Literal["given", "renewed", "released", "expired", "declined"]


class Client(NamedTuple):
    """Who asks: its key, the hardware address to show and to reserve for, and whose bound it counts towards (None: nobody's)."""

    key: bytes
    mac: bytes
    origin: Hashable = None


@dataclasses.dataclass(slots=True)
class Lease:
    """An address and its client; `until` is when its state ends, `had` says that it was bound before."""

    address: bytes
    key: bytes
    mac: bytes
    name: str
    state: State
    until: float
    origin: Hashable = None
    had: bool = False


@dataclasses.dataclass(frozen=True)
class Reservation:
    """An address kept for a hardware address (6 bytes in `mac`) or for a client identifier or DUID."""

    address: bytes
    name: str = ""
    mac: bytes = b""
    client: bytes = b""


class Refused(Exception):
    """Why a client gets no address: `no_address` or `too_many`."""


def key4(htype: int, chaddr: bytes, client: bytes) -> bytes:
    """The key of a client of IPv4, by what it says of itself."""
    if not client or client == bytes((htype,)) + chaddr:
        return b"h" + bytes((htype,)) + chaddr
    return _short(b"c" + client)


def key6(duid: bytes, iaid: bytes) -> bytes:
    """The key of one association of a client of IPv6."""
    return _short(b"d" + duid + iaid)


def _short(key: bytes) -> bytes:
    return key if len(key) <= KEY_MAX else b"x" + hashlib.blake2s(key).digest()


def client_of(key: bytes) -> bytes:
    """The client identifier or DUID in a key."""
    return {b"c": key[1:], b"d": key[1:-4]}.get(key[:1], b"")


class Leases:
    """The table. What happens to leases is appended to `news`, for the caller to take out."""

    def __init__(
        self,
        first: bytes,
        last: bytes,
        *,
        never: Collection[bytes] = (),
        reservations: Sequence[Reservation] = (),
        each: int = 0,
    ) -> None:
        """Lend the addresses `first` to `last` but those in `never`; `each` is how many an origin may hold, 0 for no limit."""
        self.width = len(first)
        self.first, self.last = int.from_bytes(first, "big"), int.from_bytes(last, "big")
        self.reservations = tuple(reservations)
        self.never = frozenset(never) | {reserved.address for reserved in reservations}
        self.each = each
        self.news: list[tuple[What, Lease]] = []
        self._by_address: dict[bytes, Lease] = {}
        self._by_key: dict[bytes, Lease] = {}
        self._names: dict[str, Lease] = {}
        self._held: dict[Hashable, dict[bytes, None]] = {}  # in the order in which they were taken
        self._free: collections.OrderedDict[bytes, None] = collections.OrderedDict()  # longest free first
        self._due: list[tuple[float, bytes]] = []
        self._fresh = self.first  # below it nothing is fresh

    def __iter__(self) -> Iterator[Lease]:
        return iter(self._by_address.values())

    def __len__(self) -> int:
        return len(self._by_address)

    def held(self, key: bytes) -> Lease | None:
        """The lease of this client, in whatever state."""
        return self._by_key.get(key)

    def at(self, address: bytes) -> Lease | None:
        """The lease of this address, in whatever state."""
        return self._by_address.get(address)

    def reserved(self, key: bytes, mac: bytes) -> Reservation | None:
        """What is kept for a client; its identifier says more than its hardware address."""
        client = client_of(key)
        by_client = [one for one in self.reservations if one.client and one.client == client]
        return next(iter(by_client or [one for one in self.reservations if one.mac and one.mac == mac]), None)

    def is_free_for(self, client: Client, address: bytes) -> bool:
        """May this client have this address, now or again?"""
        reserved = self.reserved(client.key, client.mac)
        if reserved is not None:
            return address == reserved.address
        lease = self._by_address.get(address)
        own = lease is None or lease.state == "free" or lease.key == client.key
        return own and len(address) == self.width and self._lends(address)

    def offer(self, client: Client, now: float, wanted: bytes | None = None) -> Lease:
        """Choose an address and hold it for a moment; raises Refused. A lease in force is returned as it is."""
        self.expire(now)
        lease = self._by_key.get(client.key)
        if lease is not None and not self.is_free_for(client, lease.address):
            self._end(lease, "released")  # reserved for somebody meanwhile, or something else is reserved for this one
            self._forget(lease)
            lease = None
        if lease is not None and lease.state == "bound":
            return lease
        if reserved := self.reserved(client.key, client.mac):
            return self._set(client._replace(origin=None), reserved.address, "offered", now + OFFER_S)
        self._make_room(client.origin, lease.address if lease else None)
        address = lease.address if lease else self._choose(client, wanted)
        return self._set(client, address, "offered", now + OFFER_S)

    def bind(self, client: Client, address: bytes, now: float, seconds: float, name: str = "") -> Lease:
        """Lease an address that `is_free_for` this client, or lengthen its lease; raises Refused."""
        self.expire(now)
        reserved = self.reserved(client.key, client.mac)
        before = self._by_key.get(client.key)
        again = before is not None and before.address == address and before.state == "bound"
        if reserved:
            client = client._replace(origin=None)
        else:
            self._make_room(client.origin, address)
        lease = self._set(client, address, "bound", now + seconds)
        lease.had = True
        self._call(lease, reserved.name if reserved and reserved.name else name, bool(reserved and reserved.name))
        self.news.append(("renewed" if again else "given", lease))
        return lease

    def release(self, lease: Lease) -> None:
        """Let others have the address, once there is no fresher one."""
        self._end(lease, "released")

    def decline(self, address: bytes, client: Client, now: float) -> None:
        """Lend the address to nobody for a while: somebody has it already. Raises Refused for one decline too many."""
        lease = self._by_address.get(address)
        if lease is not None:
            self._end(lease, "declined")
            self._forget(lease)
        self._make_room(client.origin, None)
        self._set(client._replace(key=b""), address, "declined", now + DECLINED_S)

    def forget(self, lease: Lease) -> None:
        """End a lease, and know nothing of it any more."""
        self._end(lease, "released")
        self._forget(lease)

    def expire(self, now: float) -> None:
        """End what is due."""
        while self._due and self._due[0][0] <= now:
            _, address = heapq.heappop(self._due)
            lease = self._by_address.get(address)
            if lease is not None and lease.until <= now and lease.state != "free":
                self._end(lease, "expired")

    def next_due(self) -> float | None:
        """When `expire` may have something to do."""
        return self._due[0][0] if self._due else None

    def restore(self, kept: Iterable[Lease]) -> None:
        """Take over leases of a former life, bound or free, as far as they still fit."""
        for lease in kept:
            client = Client(lease.key, lease.mac, lease.origin)
            if not self.is_free_for(client, lease.address) or len(self) >= TABLE_MAX:
                continue
            reserved = self.reserved(lease.key, lease.mac)
            made = self._set(client._replace(origin=None) if reserved else client, lease.address, "bound", lease.until)
            made.had = True
            self._call(made, lease.name, bool(reserved and reserved.name))
            if lease.state == "free":
                self._let_go(made)

    def _lends(self, address: bytes) -> bool:
        return self.first <= int.from_bytes(address, "big") <= self.last and address not in self.never

    def _make_room(self, origin: Hashable, own: bytes | None) -> None:
        """See that the origin may hold one more, at the cost of its own oldest offer."""
        held = self._held.get(origin, {})
        if not self.each or origin is None or len(held) < self.each or own in held:
            return
        oldest = next((address for address in held if self._by_address[address].state == "offered"), None)
        if oldest is None:
            raise Refused("too_many")
        self._end(self._by_address[oldest], "expired")

    def _choose(self, client: Client, wanted: bytes | None) -> bytes:
        if wanted is not None and self.is_free_for(client, wanted):
            return wanted
        if len(self) >= TABLE_MAX and self._free:
            self._forget(self._by_address[next(iter(self._free))])
        while self._fresh <= self.last and len(self) < TABLE_MAX:
            address = self._fresh.to_bytes(self.width, "big")
            if address not in self._by_address and address not in self.never:
                return address
            self._fresh += 1
        if not self._free:
            raise Refused("no_address")
        return next(iter(self._free))

    def _set(self, client: Client, address: bytes, state: State, until: float) -> Lease:
        """Put a lease into the table, in the place of what its address and its client had."""
        for former in (self._by_key.get(client.key), self._by_address.get(address)):
            if former is not None and (former.address, former.key) != (address, client.key):
                self._end(former, "released")
                self._forget(former)
        lease = self._by_address.get(address)
        if lease is None:
            lease = self._by_address[address] = Lease(address, client.key, client.mac, "", state, until)
        else:
            self._unhold(lease)
            self._free.pop(address, None)
        lease.mac, lease.state, lease.until, lease.origin = client.mac, state, until, client.origin
        if client.key:
            self._by_key[client.key] = lease
        if client.origin is not None:
            self._held.setdefault(client.origin, {})[address] = None
        heapq.heappush(self._due, (until, address))
        if len(self._due) > 2 * len(self) + 64:  # renewals leave what is not due any more
            self._due = [(one.until, one.address) for one in self if one.state != "free"]
            heapq.heapify(self._due)
        return lease

    def _end(self, lease: Lease, what: What) -> None:
        """End a state: what was bound once stays known as free."""
        if lease.state == "bound":
            self.news.append((what, dataclasses.replace(lease)))
        if lease.had:
            self._let_go(lease)
        else:
            self._forget(lease)

    def _let_go(self, lease: Lease) -> None:
        self._unhold(lease)
        if self._names.get(lease.name) is lease:
            del self._names[lease.name]
        lease.origin, lease.state = None, "free"
        if self._lends(lease.address):
            self._free[lease.address] = None
            self._free.move_to_end(lease.address)

    def _forget(self, lease: Lease) -> None:
        if self._by_address.get(lease.address) is not lease:
            return
        self._let_go(lease)
        self._free.pop(lease.address, None)
        del self._by_address[lease.address]
        if self._by_key.get(lease.key) is lease:
            del self._by_key[lease.key]
        if self._lends(lease.address):
            self._fresh = min(self._fresh, int.from_bytes(lease.address, "big"))

    def _unhold(self, lease: Lease) -> None:
        if held := self._held.get(lease.origin):
            held.pop(lease.address, None)
            if not held:
                del self._held[lease.origin]

    def _call(self, lease: Lease, name: str, is_reserved: bool) -> None:
        """Give the lease a name, unless another machine has it; a reservation's name is nobody else's."""
        if self._names.get(lease.name) is lease:
            del self._names[lease.name]
        holder = self._names.get(name)
        is_kept = not is_reserved and any(one.name == name for one in self.reservations)
        if is_kept or (holder is not None and holder.mac != lease.mac and not is_reserved):
            name = ""
        elif holder is not None:
            holder.name = ""
        lease.name = name
        if name:
            self._names[name] = lease
