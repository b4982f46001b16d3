"""A DNS server in miniature: `Bench` is the server without sockets, on a clock that the test turns, and the test is the resolvers."""

import ipaddress
import socket
from collections import Counter

import dns.flags
import dns.message
import dns.rrset

from shardnet.dns import answers, cache, relayed, resolvers, server, sockets, zones

GUEST, OTHER = b"\x52\x54\0\0\0\1", b"\x52\x54\0\0\0\2"
NET = ipaddress.ip_network("10.0.2.0/24")


class Way:
    """Where tries go: `sent` has those that are open and unanswered."""

    def __init__(self):
        self.sent, self.ended, self.works = [], 0, True

    def datagram(self, one, payload):
        if self.works:
            self.sent.append((one, payload))
        return self.works

    stream = datagram

    def end(self, one):
        self.ended += 1
        self.sent = [(other, payload) for other, payload in self.sent if other is not one]


class Bench:
    """A server, its guests, its resolvers."""

    def __init__(self, *records, count=1000, servers=("192.0.2.1", "192.0.2.2"), zone=(), private=False, **given):
        self.now, self.counts, self.way = 1000.0, Counter(), Way()
        known = zones.Zones(zones=zone, networks=[NET], records=[zones.record(text) for text in records])
        inside = answers.local([NET], private, given.pop("allowed", ()))
        self.server = server.Server(
            known, cache.Cache(count), self.way, lambda name, by=1: self.counts.update({name: by}), inside, **given
        )
        self.server.resolve_by([resolvers.read(text) for text in servers])

    def send(self, payload, guest=GUEST, port=5353):
        """The answer that there is at once, if any."""
        out = self.server.receive([(payload, b"\n\0\2\x0f", port, b"\n\0\2\3", 53, guest)], self.now)
        return out[0][0] if out else None

    def ask(self, name, kind="A", guest=GUEST, **given):
        """The same, for a question and as a message."""
        given.setdefault("use_edns", False)
        query = dns.message.make_query(name, kind, **given)
        said = self.send(query.to_wire(), guest)
        return None if said is None else reading(query, said)

    def came(self):
        """What came later, for everybody."""
        out, self.server.outbox = self.server.outbox, []
        return [dns.message.from_wire(datagram[0]) for datagram in out]

    def say(self, *records, rcode=0, authority=(), number=-1, flags=0, raw=None, **given):
        """Have a resolver answer what was last asked, or another try; records are texts as in zone files."""
        one, payload = self.way.sent[number]
        wire = answered(payload, *records, rcode=rcode, authority=authority, flags=flags)
        self.server.forwarder.received(one, raw(wire) if raw else wire, self.now)

    def later(self, seconds):
        """Let time pass, as the worker's timer does."""
        for _ in range(max(1, round(seconds / 0.05))):
            self.now += 0.05
            self.server.forwarder.due(self.now)

    def asked(self):
        """Who is being asked, in the order of the tries."""
        return [str(one.resolver) for one, _ in self.way.sent]


def reading(query, said):
    """A message that answers this query."""
    message = dns.message.from_wire(said)
    assert query.is_response(message) or message.rcode() == 1, (query, message)
    return message


def texts(message):
    """The answer section, a text for each record."""
    return sorted(f"{rrset.name} {one.to_text()}" for rrset in message.answer for one in rrset)


class Loopback(Bench):
    """The same with the core's relay and real sockets: one resolver, which is a socket of the test's at the loopback."""

    def __init__(self, *records, **given):
        self.resolver = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self.resolver.bind(("127.0.0.1", 0))
        super().__init__(*records, servers=(f"127.0.0.1:{self.resolver.getsockname()[1]}",), **given)
        made = self.server
        native = relayed.relay(made.inside, made.size, made.forwarder.rate)
        self.way = made.forwarder.way = sockets.Sockets(native)
        made.relayed = self.relayed = relayed.Relayed(native, self.way, made)

    def close(self):
        self.server.forwarder.close()
        self.way.close()
        self.resolver.close()

    def question(self):
        """What the resolver was asked, and by whom; None where nothing was."""
        try:
            return self.resolver.recvfrom(4096)
        except BlockingIOError:
            return None

    def reply(self, raw, peer):
        """Have the resolver, or whoever has that socket, say something."""
        self.resolver.sendto(raw, peer)
        self.relayed.ready(self.now)

    def later(self, seconds):
        for _ in range(max(1, round(seconds / 0.05))):
            self.now += 0.05
            self.relayed.due(self.now)
            self.server.forwarder.due(self.now)


def answered(payload, *records, rcode=0, authority=(), flags=0):
    """A resolver's answer to a query; records are texts as in zone files."""
    answer = dns.message.make_response(dns.message.from_wire(payload), recursion_available=True)
    answer.answer = [dns.rrset.from_text(*text.split(None, 4)) for text in records]
    answer.authority = [dns.rrset.from_text(*text.split(None, 4)) for text in authority]
    answer.set_rcode(rcode)
    answer.flags |= flags
    return answer.to_wire(max_size=65535)
