"""What the lab itself knows: names of guests, records of the lab file, zones.

A name is the lab's when it has a record, when a wildcard covers it (RFC 4592: `*.apps.lab` stands for every name below apps.lab
that is not there, nor below one that is), or when it lies in a zone of the lab. Within a zone what is not there is not (NXDOMAIN,
with the SOA record that says for how long, RFC 2308); other names are somebody else's, and `find` says nothing about them. A name
of the lab has no records but the lab's: asked for another type it has none.

A name without a dot lies in the lab's domain, in the lab file as in a lease, and answers with and without that domain. Where a name
has an address within the lab's networks, that address has the name (PTR); these networks' reverse zones are the lab's.
"""

import contextlib
import dataclasses
import ipaddress
import re
import struct
from collections.abc import Iterable, Iterator

from shardnet.dns import cache, wire

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

TTL_S = 10  # unless a record says; a lease may end, and its name move
TTL_MAX = 0x7FFFFFFF  # RFC 2181, 8
CHAIN_MAX = 8  # aliases in a row
LEASES_MAX = 16_384  # as many as a DHCP service gives
TYPES = ("A", "AAAA", "CNAME", "MX", "NS", "PTR", "SRV", "TXT")
LABEL = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?", re.ASCII)
# Names that never leave a host or its network: RFC 6761 (invalid, localhost), RFC 7686, RFC 9462 6.4, ICANN's internal.
SPECIAL = ("invalid", "onion", "resolver.arpa", "localhost")
DOMAIN = "internal"


@dataclasses.dataclass(frozen=True)
class Record:
    """A record of the lab's: names as they are written, data as they are on the wire."""

    name: str
    kind: int
    data: bytes
    ttl: int = TTL_S
    source: str = "record"
    text: str = ""


def packed(name: str) -> bytes:
    """A name as it is on the wire, in lower case; raises ValueError where it is none."""
    labels = name.rstrip(".").lower().split(".") if name.rstrip(".") else []
    for label in labels:
        if not LABEL.fullmatch(label):
            raise ValueError(f"{name}: no name (letters, digits and - between dots)")
    found = b"".join(bytes((len(label),)) + label.encode() for label in labels) + b"\0"
    if len(found) > wire.NAME_MAX:
        raise ValueError(f"{name}: longer than 255")
    return found


def written(name: bytes) -> str:
    """A name of the wire as it is written."""
    labels, at = [], 0
    while step := name[at]:
        labels.append(name[at + 1 : at + 1 + step].decode("ascii", "backslashreplace"))
        at += step + 1
    return ".".join(labels) or "."


def absolute(name: str, domain: str) -> str:
    """The whole name: one without a dot lies in the domain."""
    return name if "." in name else f"{name}.{domain}"


def record(text: str, domain: str = DOMAIN) -> Record:
    """NAME [TTL] TYPE VALUE, such as www A 10.0.2.20, or mail.example MX 10 mail"""
    name, _, rest = text.strip().partition(" ")
    words = rest.split(None, 1)
    ttl = TTL_S
    if words and words[0].isdecimal():
        ttl = int(words[0])
        if ttl > TTL_MAX:
            raise ValueError(f"{words[0]}: a time to live is at most {TTL_MAX} seconds")
        words = words[1].split(None, 1) if len(words) > 1 else []
    if len(words) < 2:
        raise ValueError("NAME [TTL] TYPE VALUE is meant, such as www A 10.0.2.20")
    kind, value = words[0].upper(), words[1].strip()
    if kind not in TYPES:
        raise ValueError(f"{words[0]}: not one of {', '.join(TYPES)}")
    wild = name.startswith("*.")
    whole = absolute(name.removeprefix("*."), domain).rstrip(".")
    packed(whole)
    number, data = _data(kind, value, domain)
    return Record(("*." if wild else "") + whole, number, data, ttl, "record", f"{kind} {value}")


def _data(kind: str, value: str, domain: str) -> tuple[int, bytes]:
    """A type's number, and its data on the wire."""
    if kind in ("A", "AAAA"):
        version = ipaddress.IPv4Address if kind == "A" else ipaddress.IPv6Address
        try:
            return (wire.A if kind == "A" else wire.AAAA), version(value).packed
        except ValueError:
            raise ValueError(f"{value}: no IPv{'4' if kind == 'A' else '6'} address") from None
    import dns.exception  # takes 50 ms, which a service without such records need not wait for
    import dns.rdata
    import dns.rdatatype

    if kind != "TXT":
        *before, target = value.split()
        value = " ".join([*before, absolute(target, domain).rstrip(".") + "."])
    try:
        read = dns.rdata.from_text("IN", kind, value, relativize=False)
    except (dns.exception.DNSException, ValueError) as why:
        raise ValueError(f"{value}: no data of {kind} ({str(why).rstrip('.').lower()})") from None
    return int(dns.rdatatype.from_text(kind)), read.to_wire() or b""


def reverse(network: Network) -> list[str]:
    """The reverse zones that a network's addresses have their names in, on the border of a label (RFC 1035, 3.5; RFC 3596, 2.5)."""
    unit = 8 if network.version == 4 else 4
    up = -(-network.prefixlen // unit) * unit
    if up - network.prefixlen > 8 or not up:
        return []
    labels = network.max_prefixlen // unit - up // unit
    return [part.network_address.reverse_pointer.split(".", labels)[labels] for part in network.subnets(new_prefix=up)]


@dataclasses.dataclass(frozen=True)
class Found:
    """What the lab says: an answer, or the alias whose target others know."""

    answer: cache.Answer
    onward: bytes | None = None


class Zones:
    """The names of one lab."""

    def __init__(
        self,
        domain: str = DOMAIN,
        zones: Iterable[str] = (),
        networks: Iterable[Network] = (),
        records: Iterable[Record] = (),
    ) -> None:
        self.domain = domain
        self.networks = tuple(networks)
        reverses = [name for network in self.networks for name in reverse(network)]
        own = [*zones, *SPECIAL, *([DOMAIN] if domain == DOMAIN else []), *reverses]
        self.zones = {packed(name) for name in own}
        self.records = tuple(records)
        self.leases: dict[str, tuple[str, str]] = {}  # address: name and MAC, the oldest first
        self.given: dict[str, list[Record]] = {}  # what stands in `names` for the leases of this name
        self.names: dict[bytes, dict[int, list[Record]]] = {}
        self.wild: dict[bytes, dict[int, list[Record]]] = {}  # by the name behind the asterisk
        self.inner: dict[bytes, int] = {}  # names on the way to one that is there, with how many there are below
        for one in [*self.records, *_LOCALHOST]:
            self._add(one)
            for pointer in self._pointers(one):
                self._add(pointer)

    def lease(self, name: str, address: str, mac: str = "") -> bool:
        """Give an address a name, or none with ""; whether that changed anything.

        A guest chooses its name. So one that is no host's is left out, one of the lab file's stays what it is, and of two machines
        that want one name the first has it, until it gives it up.
        """
        name = name.lower().rstrip(".")
        old, _ = was = self.leases.get(address, ("", ""))
        if was == (name, mac):
            return False
        self.leases.pop(address, None)
        with contextlib.suppress(ValueError):
            packed(absolute(name, self.domain))
            if name and len(self.leases) < LEASES_MAX:
                self.leases[address] = name, mac
        for one in dict.fromkeys((old, name)):  # in this order: an address has one name (PTR)
            if one:
                self._give(one)
        return True

    def known(self) -> Iterator[dict[str, object]]:
        """What `shardnet names` lists, sorted by name."""
        rows = {one for kinds in (*self.names.values(), *self.wild.values()) for each in kinds.values() for one in each}
        for one in sorted(rows, key=lambda one: (one.name, one.kind, one.data)):
            if one.source != "special":
                kind, _, value = one.text.partition(" ")
                yield {"name": one.name, "type": kind, "value": value, "ttl": one.ttl, "source": one.source}

    def find(self, asked: wire.Query) -> Found | None:
        """What the lab says to a query, None where it has nothing to say."""
        name, owner, count = asked.name, b"\xc0\x0c", 0
        body: list[bytes] = []
        for _ in range(CHAIN_MAX):
            kinds = self._at(name)
            zone = self._zone(name)
            if kinds is None and zone is None:
                return Found(_answer(body, count), name) if body else None
            here = self._asked_for(kinds or {}, asked.kind)
            if zone == name and asked.kind in (wire.SOA, wire.ANY):
                here.append(_soa_record(zone))
            for one in here:
                body.append(owner + wire.FIXED.pack(one.kind, wire.IN, one.ttl, len(one.data)) + one.data)
                count += 1
            if here and here[0].kind == wire.CNAME and asked.kind not in (wire.CNAME, wire.ANY):
                name, owner = here[0].data.lower(), here[0].data
                continue
            if here:
                return Found(_answer(body, count))
            there = kinds is not None or zone == name or name in self.inner
            soa = _soa_record(zone) if zone is not None else None
            return Found(_answer(body, count, wire.NOERROR if there else wire.NXDOMAIN, zone, soa))
        return Found(cache.Answer(wire.SERVFAIL, (0, 0, 0), b""))  # aliases in a circle

    def _asked_for(self, kinds: dict[int, list[Record]], kind: int) -> list[Record]:
        if kind == wire.ANY:
            return [one for each in kinds.values() for one in each]
        return list(kinds.get(kind) or kinds.get(wire.CNAME) or ())

    def _at(self, name: bytes) -> dict[int, list[Record]] | None:
        """The records of a name, its own or a wildcard's."""
        kinds = self.names.get(name)
        if kinds is not None or not self.wild or name in self.inner:
            return kinds
        for above in _above(name):
            if above in self.wild:
                return self.wild[above]
            if above in self.names or above in self.inner:
                return None
        return None

    def _zone(self, name: bytes) -> bytes | None:
        if name in self.zones:
            return name
        return next((above for above in _above(name) if above in self.zones), None)

    def _add(self, one: Record) -> None:
        wild = one.name.startswith("*.")
        name = packed(one.name.removeprefix("*."))
        kinds = (self.wild if wild else self.names).setdefault(name, {})
        if one in kinds.setdefault(one.kind, []):
            return
        kinds[one.kind].append(one)
        if wild:
            self.inner[name] = self.inner.get(name, 0) + 1
        for above in _above(name):
            self.inner[above] = self.inner.get(above, 0) + 1
        if not wild and one.name.lower() == absolute(one.name.partition(".")[0].lower(), self.domain):
            self.names[packed(one.name.partition(".")[0])] = kinds

    def _remove(self, one: Record) -> None:
        name = packed(one.name)
        kinds = self.names[name]
        kinds[one.kind].remove(one)
        if not kinds[one.kind]:
            del kinds[one.kind]
        if not kinds:
            del self.names[name]
            if self.names.get(bare := name[: name[0] + 1] + b"\0") is kinds:
                del self.names[bare]
        for above in _above(name):
            self.inner[above] -= 1
            if not self.inner[above]:
                del self.inner[above]

    def _give(self, name: str) -> None:
        """Make the records of a leased name anew."""
        for one in self.given.pop(name, ()):
            self._remove(one)
        whole = absolute(name, self.domain)
        claims = [(address, mac) for address, (wanted, mac) in self.leases.items() if wanted == name]
        if not claims or packed(whole) in self.names:
            return
        given = self.given[name] = []
        for address in [address for address, mac in claims if mac == claims[0][1]]:
            one = host(whole, address, "lease")
            for made in [one, *self._pointers(one)]:
                self._add(made)
                given.append(made)

    def _pointers(self, one: Record) -> list[Record]:
        """The name of a record's address, where that is the lab's and has none yet."""
        if one.kind not in (wire.A, wire.AAAA) or one.name.startswith("*."):
            return []
        address = ipaddress.ip_address(one.data)
        name = address.reverse_pointer
        if not any(address in network for network in self.networks) or packed(name) in self.names:
            return []
        return [Record(name, wire.PTR, packed(one.name), one.ttl, one.source, f"PTR {one.name}")]


def host(name: str, address: str | Address, source: str) -> Record:
    """The record of a name with an address."""
    read = ipaddress.ip_address(address)
    kind, word = (wire.A, "A") if read.version == 4 else (wire.AAAA, "AAAA")
    return Record(name, kind, read.packed, TTL_S, source, f"{word} {read}")


_LOCALHOST = [
    host(name, address, "special") for name in ("localhost", "*.localhost") for address in ("127.0.0.1", "::1")
]


def _above(name: bytes) -> Iterator[bytes]:
    """The names that a name lies in, the nearest first, without the root."""
    while (name := name[name[0] + 1 :]) and name[0]:
        yield name


def _soa_record(zone: bytes) -> Record:
    data = b"\3dns" + zone + b"\x0ahostmaster" + zone + struct.pack(">5I", 1, 3600, 600, 86_400, TTL_S)
    return Record(written(zone), wire.SOA, data, TTL_S, "special")


def _answer(
    body: list[bytes], count: int, rcode: int = wire.NOERROR, zone: bytes | None = None, soa: Record | None = None
) -> cache.Answer:
    records = b"".join(body)
    if zone is None or soa is None:
        return cache.Answer(wire.AA | rcode, (count, 0, 0), records)
    records += zone + wire.FIXED.pack(wire.SOA, wire.IN, soa.ttl, len(soa.data)) + soa.data
    return cache.Answer(wire.AA | rcode, (count, 1, 0), records)
