"""What a resolver said, made into an answer to keep: how long it holds, and that it points no guest at this host.

The way of nearly all is one walk over the records. What takes a message apart and puts it together again (addresses to strip, an OPT
record that is not the last, the lab's alias before somebody else's answer) is left to dnspython, which is imported when that happens.

Rebinding: a name of the outside that has an address of the inside makes a browser's page a way in. Such addresses are stripped:
loopback, unspecified and link-local ones, those of the lab's networks, and with `private` those of RFC 1918, 6598 and 4193, unless the
name is in a domain that may have them.
"""

import ipaddress
from collections.abc import Iterable, Sequence

from shardnet.dns import cache, wire, zones

LOCAL = ("0.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16", "::/127", "fe80::/10")
PRIVATE = ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "fc00::/7", "fec0::/10")
MAPPED = bytes(10) + b"\xff\xff"  # ::ffff:0:0/96, RFC 4291, 2.5.5.2
HINTS = {64, 65}  # SVCB, HTTPS (RFC 9460)
HINT4, HINT6 = 4, 6


class Filter:
    """Tells which addresses no answer may have."""

    def __init__(self, networks: Sequence[zones.Network], allowed: Iterable[bytes] = ()) -> None:
        self.networks = {
            wire.A: [_masked(network) for network in networks if network.version == 4],
            wire.AAAA: [_masked(network) for network in networks if network.version == 6],
        }
        self.allowed = frozenset(allowed)
        # Nearly all addresses are told from those of the inside by their first byte.
        self.first = {
            wire.A: _first_bytes([network for network in networks if network.version == 4]),
            wire.AAAA: _first_bytes([network for network in networks if network.version == 6]) | {0},
        }

    def allows(self, name: bytes) -> bool:
        """Whether names in this domain may have any address."""
        while name[0]:
            if name in self.allowed:
                return True
            name = name[name[0] + 1 :]
        return False

    def forbids(self, message: bytes, one: wire.Record) -> bool:
        """Whether a record has an address that it may not have."""
        if one.kind in (wire.A, wire.AAAA):
            return self._inside(one.kind, message[one.data : one.end])
        return one.kind in HINTS and any(self._inside(*hint) for hint in _hints(message, one.data, one.end))

    def _inside(self, kind: int, address: bytes) -> bool:
        if address[:1] and address[0] not in self.first[kind]:
            return False
        if kind == wire.AAAA and address[:12] == MAPPED:
            kind, address = wire.A, address[12:]
        number = int.from_bytes(address)
        return any(number & mask == network for network, mask in self.networks[kind])


def local(networks: Iterable[zones.Network], private: bool, allowed: Iterable[bytes] = ()) -> Filter:
    """A filter of what is inside: this host's own, the lab's, and with `private` that of everybody's inside."""
    words = (*LOCAL, *PRIVATE) if private else LOCAL
    return Filter([*map(ipaddress.ip_network, words), *networks], allowed)


def read(asked: wire.Query, message: bytes, now: float, inside: Filter | None) -> tuple[cache.Answer, int]:
    """Make an answer of what a resolver said to `asked`, and say how many addresses were stripped; raises wire.Malformed."""
    if inside is not None and inside.allows(asked.name):
        inside = None
    found = list(wire.records(message, 12 + len(asked.question)))
    opts = [one for one in found if one.kind == wire.OPT_TYPE]
    stripped = 0 if inside is None else sum(inside.forbids(message, one) for one in found)
    if stripped or len(opts) > 1 or (opts and found[-1] is not opts[0]):
        message = _without(message, inside)
        found, opts = list(wire.records(message, 12 + len(asked.question))), []
    return _kept(asked, message, found, opts, now), stripped


def failure(now: float) -> cache.Answer:
    """What is said where no resolver said anything."""
    return cache.Answer(wire.SERVFAIL, (0, 0, 0), b"", since=now, expires=now + cache.FAILURE_S)


def joined(
    first: cache.Answer, asked: wire.Query, second: cache.Answer, target: wire.Query, now: float
) -> cache.Answer:
    """The lab's alias and, behind it, what is known of its target."""
    import dns.exception
    import dns.message

    def message(of: cache.Answer, to: wire.Query) -> "dns.message.Message":
        return dns.message.from_wire(bytes(2) + of.tail(to, now, wire.MESSAGE_MAX)[0])

    try:
        whole, rest = message(first, asked), message(second, target)
        whole.answer += rest.answer
        whole.authority = rest.authority
        whole.set_rcode(rest.rcode())
        whole.use_edns(False)
        made = whole.to_wire(max_size=wire.MESSAGE_MAX)
        return _kept(asked, made, list(wire.records(made, 12 + len(asked.question))), [], now)
    except (dns.exception.DNSException, ValueError) as why:
        raise wire.Malformed(str(why)) from None


def _kept(
    asked: wire.Query, message: bytes, found: list[wire.Record], opts: list[wire.Record], now: float
) -> cache.Answer:
    """An answer without its OPT record, which is the last if there is one."""
    _, flags, _, answers, authority, additional = wire.HEADER.unpack_from(message)
    start, end = 12 + len(asked.question), len(message)
    rcode = flags & wire.RCODE
    for one in opts:
        if one.ttl >> 24:
            rcode = wire.SERVFAIL  # an extended rcode is about our OPT, and no business of a client's
        end, additional = one.start, additional - 1
        found.pop()
    hold = _hold(asked, message, found, rcode)
    return cache.Answer(
        flags & wire.AD | rcode,
        (answers, authority, additional),
        message[start:end],
        tuple((one.ttl_at - start, one.ttl) for one in found),
        next((one.start for one in found if one.section == 3), end) - start,
        now,
        now + hold,
    )


def _hold(asked: wire.Query, message: bytes, found: list[wire.Record], rcode: int) -> float:
    """For how many seconds an answer may be kept."""
    if rcode not in (wire.NOERROR, wire.NXDOMAIN):
        return cache.FAILURE_S
    least = min((one.ttl for one in found), default=0)
    there = any(one.section == 1 and asked.kind in (one.kind, wire.ANY) for one in found)
    if there and rcode == wire.NOERROR:
        return min(least, cache.TTL_MAX_S)
    for one in found:
        if one.section == 2 and one.kind == wire.SOA and one.end - one.data >= 22:
            minimum = int.from_bytes(message[one.end - 4 : one.end])  # RFC 2308, 5
            return min(least, minimum, cache.NEGATIVE_MAX_S)
    return 0  # a referral, or a "no" that does not say for how long


def _without(message: bytes, inside: Filter | None) -> bytes:
    """The message written anew, without OPT and without addresses of the inside."""
    import dns.exception
    import dns.message

    try:
        whole = dns.message.from_wire(message)
        whole.use_edns(False)
        for section in (whole.answer, whole.authority, whole.additional):
            for rrset in list(section):
                for one in list(rrset):
                    data = one.to_wire()
                    record = wire.Record(1, 0, int(rrset.rdtype), wire.IN, 0, 0, 0, len(data))
                    if inside is not None and inside.forbids(data, record):
                        rrset.remove(one)
                if not rrset:
                    section.remove(rrset)
        return whole.to_wire(max_size=wire.MESSAGE_MAX)
    except (dns.exception.DNSException, ValueError) as why:
        raise wire.Malformed(str(why)) from None


def _hints(message: bytes, at: int, end: int) -> Iterable[tuple[int, bytes]]:
    """The addresses in the data of an SVCB record: kind and bytes (RFC 9460, 2.2 and 7.3)."""
    try:
        at = wire.skip(message, at + 2)
        while at < end:
            key, size = message[at] << 8 | message[at + 1], message[at + 2] << 8 | message[at + 3]
            if key in (HINT4, HINT6):
                kind, each = (wire.A, 4) if key == HINT4 else (wire.AAAA, 16)
                for step in range(at + 4, min(at + 4 + size, end), each):
                    yield kind, message[step : step + each]
            at += 4 + size
    except IndexError:
        raise wire.Malformed("a parameter longer than its record") from None


def _first_bytes(networks: Iterable[zones.Network]) -> frozenset[int]:
    return frozenset(
        byte
        for network in networks
        for byte in range(network.network_address.packed[0], network.broadcast_address.packed[0] + 1)
    )


def _masked(network: zones.Network) -> tuple[int, int]:
    return int(network.network_address), int(network.netmask)
