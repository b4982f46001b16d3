"""The usual way of a question, which is gone in the core (core/src/relay): what that is told, and what it leaves to Python.

Nearly every question that others have to answer is a plain one, asked of the resolver that answered last, which answers it: a
datagram out, one in. The core does that for a tenth of the time that it takes here. What is not so comes here with all that is known of it, its
socket too: a resolver that is late, refuses, cuts its answer short, gives an address that may have to be stripped. `forward.py` goes on.

A question is known by its key to both, and never under way in both: the core asks whether it is known here, and who asks
here what is under way there joins it.
"""

from typing import Any

from shardnet import _core
from shardnet.dns import answers, cache, forward, resolvers, server, sockets, wire

AIM_S = 0.05  # between looks at which resolver is asked first


def relay(inside: answers.Filter | None, size: int, rate: float) -> _core.Relay:
    """Make the core's part, with the limits of `forward.py`; `size`: of an answer, `rate`: of one guest's questions a second."""
    return _core.Relay(
        {
            "guest": forward.GUEST_MAX,
            "waiting": forward.WAITING_MAX,
            "wait_s": forward.DEADLINE_S,
            "all": forward.ALL_MAX,
            "guests": forward.GUESTS_MAX,
            "askers": forward.ASKERS_MAX,
            "rate": rate,
            "size": size,
            "patience_s": (resolvers.PATIENCE_MIN_S, resolvers.PATIENCE_MAX_S),
            "inside": None if inside is None else (sorted(inside.first[wire.A]), sorted(inside.first[wire.AAAA])),
        }
    )


class Relayed:
    """The core's part of a server's forwarding."""

    def __init__(self, native: _core.Relay, way: sockets.Sockets, served: server.Server) -> None:
        self.native, self.way, self.server = native, way, served
        self.resolvers: dict[int, resolvers.Resolver] = {}  # by the numbers that the core knows them by
        self._next_look = 0.0
        self._named: list[tuple[int, bytes, bytes, bool]] = []
        zones = served.zones
        self._known = (served.cache.answers, served.forwarder.questions, zones.names, zones.zones, zones.wild)

    @property
    def is_busy(self) -> bool:
        """Whether `due` is to be called."""
        return self.native.is_busy()

    def take(self, datagrams: list[server.Datagram], now: float) -> list[server.Datagram]:
        """Take queries; returns those that are to be answered here."""
        self._aim(now)
        return self._done(self.native.take(datagrams, now, self._known), now)

    def join(self, key: bytes, asker: server.Asker, asked: wire.Query) -> bool:
        """Have somebody wait for what is under way there; False where it is not."""
        return self.native.join(key, (asker, asked))

    def ready(self, now: float) -> None:
        """Hand out what has come from the resolvers."""
        self._answer(self._done(self.native.ready(now, self._known), now), now)

    def due(self, now: float) -> None:
        """Go on with what is late."""
        self._aim(now)
        self._answer(self._done(self.native.late(now, self._known), now), now)

    def aim_anew(self) -> None:
        """The resolvers are others."""
        self._next_look = 0.0

    def _aim(self, now: float) -> None:
        """Learn which resolvers have answered, and name others where others come first now."""
        if now < self._next_look:
            return
        self._next_look = now + AIM_S
        for number, patience in self.native.answered():
            self.resolvers[number].works(patience)
        forwarder = self.server.forwarder
        first = [(name, found[0]) for name in (b"\0", *forwarder.domains) if (found := forwarder.planned(name, now))]
        named = [(id(one), name, one.sockaddr, one.edns) for name, one in first]
        if named != self._named:
            self._named = named
            if not self.is_busy:
                self.resolvers.clear()
            self.resolvers.update((id(one), one) for _, one in first)
            self.native.aim([(*words, one.patience) for words, (_, one) in zip(named, first, strict=True)])

    def _done(self, done: tuple[Any, ...], now: float) -> list[server.Datagram]:
        """Do what the core leaves to be done, but for the queries that are to be answered."""
        said, kept, left, heard, handed, came, counts = done
        self.server.outbox += said
        for key, flags, numbers, records, ttls, additional, hold in kept:
            self.server.cache.keep(key, cache.Answer(flags, numbers, records, ttls, additional, now, now + hold))
        for name, count in counts:
            self.server.count(name, count)
        for (asker, asked), message in heard:
            self.server.heard(asker, asked, message, now)
        for one in handed:
            self._adopt(one, now)
        for token, message in came:
            self._came(token, message, now)
        return left  # type: ignore[no-any-return]  # datagrams, as they were given

    def _answer(self, left: list[server.Datagram], now: float) -> None:
        for datagram in left:
            answer = self.server.query(datagram[0], datagram, datagram[5], now)
            if answer is not None:
                self.server.outbox.append((answer, *datagram[1:]))

    def _adopt(self, handed: tuple[Any, ...], now: float) -> None:
        """Go on with a question, with all who asked it."""
        token, key, guest, number, ident, edns, since, asked, message = handed
        askers = []
        for payload, to in asked:
            known = len(to) == 2  # it has joined
            askers.append(to[0] if known else server.Asker(wire.query(payload, self.server.size), to))
        resolver, forwarder = self.resolvers[number], self.server.forwarder
        read = wire.query(asked[0][0], self.server.size)
        question = forwarder.adopt(read, key, askers, guest, resolver, since)
        one = forward.Try(question, resolver, ident, False, since)
        one.edns = edns
        question.tries.append(one)
        self.way.adopt(one, token)
        if message is None:
            forwarder.late(question, now)
        else:
            self._came(token, message or None, now)

    def _came(self, token: int, message: bytes | None, now: float) -> None:
        one = self.way.asked.get(token)
        if one is None:
            return
        self._next_look = 0.0  # another may be asked first from here on
        if message is None:
            self.server.forwarder.broken(one, now)
        else:
            self.server.forwarder.received(one, message, now)
