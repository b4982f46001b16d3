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


class Relayed(Protocol):
    """The core's part of the forwarder (relayed.py)."""

    def take(self, datagrams: list[Datagram], now: float) -> list[Datagram]:
        """Take queries; returns those that are to be answered here."""

    def join(self, key: bytes, asker: "Asker", asked: wire.Query) -> bool:
        """Have somebody wait for what is under way there; False where it is not."""

    def aim_anew(self) -> None:
        """The resolvers are others."""


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
        self.relayed: Relayed | None = None  # the core's part of the forwarder; without it all is done here
        self.outbox: list[Datagram] = []

    def receive(self, datagrams: list[Datagram], now: float) -> list[Datagram]:
        """Take queries, and return the answers that there are already."""
        ready_for = self.cache.ready.get
        out: list[Datagram] = []
        unread: list[Datagram] = []
        hits = 0
        for datagram in datagrams:
            payload, peer, peer_port, local, local_port, mac = datagram
            ready = ready_for(payload[2:])
            if ready is not None and (now < ready.until or ready.renew(now)):
                hits += 1
                out.append((payload[:2] + ready.tail, peer, peer_port, local, local_port, mac))
            else:
                unread.append(datagram)
        if unread and self.relayed is not None:
            unread = self.relayed.take(unread, now)
        for datagram in unread:
            answer = self.query(datagram[0], datagram, datagram[5], now)
            if answer is not None:
                out.append((answer, *datagram[1:]))
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
        if self.relayed is not None:
            self.relayed.aim_anew()
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
        if self.relayed is not None and self.relayed.join(key, asker, asked):
            return None
        rcode = self.forwarder.ask(asked, key, asker, guest, now)
        if rcode == forward.SILENCE and not isinstance(asker.to, tuple):
            rcode = wire.REFUSED  # on a connection every query is answered
        return wire.error(asker.asked, rcode) if rcode > 0 else None

    def heard(self, asker: Asker, asked: wire.Query, message: bytes, now: float) -> None:
        """Give somebody what a resolver said to a question of the core's."""
        self._tell(asker, asked, self._read(asked, message, now), now)

    def _answered(self, question: forward.Question, message: bytes | None, now: float) -> None:
        """Give everybody who waits what the resolvers said."""
        answer = self._read(question.asked, message, now)
        self.cache.keep(question.key, answer)
        for asker in question.askers:
            self._tell(asker, question.asked, answer, now)

    def _read(self, asked: wire.Query, message: bytes | None, now: float) -> cache.Answer:
        answer = answers.failure(now)
        try:
            if message is not None and len(message) > 12:
                answer, stripped = answers.read(asked, message, now, self.inside)
                if stripped:
                    self.count("rebinding", stripped)
        except wire.Malformed:
            self.count("strange")
        return answer

    def _tell(self, asker: Asker, target: wire.Query, answer: cache.Answer, now: float) -> None:
        asked, to, alias = asker
        given = answer if alias is None else self._joined(asked, alias, answer, target, now)
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
