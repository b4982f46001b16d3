"""The DNS server: queries in, answers out.

    a query ──ready?──> the bytes kept for it                        nearly every one
       └─read──> kept? ──> counted down, and made ready
                   └─> the lab's name or zone? ──> its records
                          └─> the resolvers (forward.py) ──answer──> kept, to all who asked

What guests send is bounded: a query is read once and has no loop that it could make long, an answer over UDP is no longer than
`size` bytes whatever the client says it takes, nothing but a query is ever answered, and questions under way are bounded for each
guest, which is known by its MAC.
"""

from collections.abc import Callable
from typing import NamedTuple, Protocol

from shardnet.dns import answers, cache, forward, wire, zones

UDP_MAX = 1232  # DNS flag day 2020: no fragments, and no more of an amplifier than that

# payload, peer, its port, local address, its port, MAC: as the place of a service receives and answers it
Datagram = tuple[bytes, bytes, int, bytes, int, bytes]


class Stream(Protocol):
    """A client's TCP connection."""

    def answer(self, message: bytes, now: float) -> None:
        """Give it an answer; one that is gone takes it without a word."""


class Asker(NamedTuple):
    """Who waits for the resolvers."""

    asked: wire.Query
    to: Datagram | Stream
    alias: cache.Answer | None = None  # what the lab said already, with the query that it was asked


class Server:
    """Answers for one lab; `outbox` is where answers over UDP are that came later."""

    def __init__(
        self,
        known: zones.Zones,
        kept: cache.Cache,
        way: forward.Way,
        count: Callable[..., None],
        inside: answers.Filter | None = None,
        size: int = UDP_MAX,
        rate: float = 0,
        forwards: bool = True,
    ) -> None:
        self.zones, self.cache, self.inside, self.size, self.forwards = known, kept, inside, size, forwards
        self.count = count  # of (name) or (name, by)
        self.forwarder = forward.Forwarder(way, self._answered, count, rate)
        self.outbox: list[Datagram] = []

    def receive(self, datagrams: list[Datagram], now: float) -> list[Datagram]:
        """Take queries, and return the answers that there are already."""
        ready_for = self.cache.ready.get
        out: list[Datagram] = []
        hits = 0
        for datagram in datagrams:
            payload, peer, peer_port, local, local_port, mac = datagram
            ready = ready_for(payload[2:])
            if ready is not None and (now < ready.until or ready.renew(now)):
                hits += 1
                out.append((payload[:2] + ready.tail, peer, peer_port, local, local_port, mac))
                continue
            answer = self.query(payload, datagram, mac, now)
            if answer is not None:
                out.append((answer, peer, peer_port, local, local_port, mac))
        self.count("queries", len(datagrams))
        if hits:
            self.count("hits", hits)
        return out

    def query(self, payload: bytes, to: Datagram | Stream, guest: bytes, now: float) -> bytes | None:
        """Answer a query that takes reading; None where the answer comes later, or never."""
        try:
            asked = wire.query(payload, self.size)
        except wire.Malformed:
            self.count("malformed")
            return None
        except wire.Refused as refused:
            self.count("refused" if refused.rcode != wire.FORMERR else "malformed")
            return refused.reply
        key = asked.key
        answer = self.cache.find(key, now)
        if answer is not None:
            self.count("hits")
            if isinstance(to, tuple):
                self.cache.prepare(payload, asked, answer, now)  # it was asked twice: it may be asked often
            return self._written(asked, to, answer, now)
        found = self.zones.find(asked)
        if found is None:
            return self._ask(Asker(asked, to), asked, key, guest, now)
        self.count("local")
        if found.onward is not None:
            return self._onward(asked, to, found.answer, found.onward, guest, now)
        if found.answer.counts[0]:
            self.cache.keep(key, found.answer)
        return self._written(asked, to, found.answer, now)

    def lease(self, name: str, address: str, mac: str) -> None:
        """Give an address a name, or take it away with ""."""
        if self.zones.lease(name, address, mac):
            self.cache.forget_lasting()

    def resolve_by(self, found: list) -> None:
        """Ask these resolvers from now on; what others said is forgotten, as they may say otherwise (a VPN came or went)."""
        self.forwarder.replace(found)
        self.cache.forget()

    def _onward(
        self, asked: wire.Query, to: Datagram | Stream, alias: cache.Answer, name: bytes, guest: bytes, now: float
    ) -> bytes | None:
        """Answer with an alias of the lab's whose target others know."""
        target = asked._replace(question=name + asked.question[-4:], name=name)
        key = target.key
        answer = self.cache.find(key, now)
        if answer is None:
            return self._ask(Asker(asked, to, alias), target, key, guest, now)
        return self._written(asked, to, self._joined(asked, alias, answer, target, now), now)

    def _joined(
        self, asked: wire.Query, alias: cache.Answer, answer: cache.Answer, target: wire.Query, now: float
    ) -> cache.Answer:
        try:
            return answers.joined(alias, asked, answer, target, now)
        except wire.Malformed:
            return answers.failure(now)

    def _ask(self, asker: Asker, asked: wire.Query, key: bytes, guest: bytes, now: float) -> bytes | None:
        if not self.forwards:
            self.count("refused")
            return wire.error(asker.asked, wire.REFUSED)
        rcode = self.forwarder.ask(asked, key, asker, guest, now)
        if rcode == forward.SILENCE and not isinstance(asker.to, tuple):
            rcode = wire.REFUSED  # on a connection every query is answered
        return wire.error(asker.asked, rcode) if rcode > 0 else None

    def _answered(self, question: forward.Question, message: bytes | None, now: float) -> None:
        """Give everybody who waits what the resolvers said."""
        try:
            answer = answers.failure(now)
            if message is not None and len(message) > 12:
                answer, stripped = answers.read(question.asked, message, now, self.inside)
                if stripped:
                    self.count("rebinding", stripped)
        except wire.Malformed:
            self.count("strange")
        self.cache.keep(question.key, answer)
        for asked, to, alias in question.askers:
            given = answer if alias is None else self._joined(asked, alias, answer, question.asked, now)
            written = self._written(asked, to, given, now)
            if isinstance(to, tuple):
                self.outbox.append((written, *to[1:]))
            else:
                to.answer(written, now)

    def _written(self, asked: wire.Query, to: Datagram | Stream, answer: cache.Answer, now: float) -> bytes:
        if not isinstance(to, tuple):
            return asked.ident + answer.tail(asked, now, wire.MESSAGE_MAX)[0]
        tail, cut = answer.tail(asked, now, asked.size)
        if cut:
            self.count("truncated")
        return asked.ident + tail
