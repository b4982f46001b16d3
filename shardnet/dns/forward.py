"""Questions that others have to answer: which resolver is asked, when the next one is, and whose answer counts.

Each try is a datagram from a socket of its own, connected, on a port that the kernel chose at random, with a random id; an answer
counts when it came to that socket, has that id and repeats the question (RFC 5452, 9.1). A truncated one is fetched over TCP from
the same resolver.

    asked --answer--> done            SERVFAIL, REFUSED and the like: the next resolver at once, and the refusal kept in case
      | no answer within the resolver's patience (four times its usual time): the next one as well; the first answer wins
      | no answer within 5 s, or every resolver tried twice: the best refusal, or None for SERVFAIL

A resolver that failed is asked last for 5 s, doubled each time up to a minute. Equal questions are asked once, whoever asks.
What a guest may have under way is bounded, and what waits behind that; so is the whole.

`Way` is where datagrams and connections are really made; no clock and no socket is in here.
"""

import heapq
import itertools
import os
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol

from shardnet.dns import resolvers, wire

DEADLINE_S = 5.0  # as long as the resolver of libc waits
ROUNDS = 2  # how often each resolver is tried
ALL_MAX = 1024  # questions under way
GUEST_MAX, WAITING_MAX = 64, 192  # of one guest under way, and behind those
GUESTS_MAX = 1024
ASKERS_MAX = 64  # of one question
SILENCE = -1  # in the place of an rcode: no answer
BURST_S = 1.0  # how much of its rate a guest may save up
# What another resolver may know better.
NEXT = frozenset({wire.FORMERR, wire.SERVFAIL, wire.NOTIMP, wire.REFUSED, 9})


class Way(Protocol):
    """How tries leave. `received` and `broken` of the Forwarder are called with the same `Try`, never from within these."""

    def datagram(self, one: "Try", payload: bytes) -> bool:
        """Send from a new socket; False where that could not be."""

    def stream(self, one: "Try", payload: bytes) -> bool:
        """Send over a new TCP connection; False where that could not be."""

    def end(self, one: "Try") -> None:
        """Close what was opened for this try."""

    def over(self, guest: bytes) -> None:
        """A question that was adopted is over."""


class Try:
    """One resolver asked once."""

    __slots__ = ("edns", "ident", "question", "resolver", "since", "socket", "tcp")

    def __init__(self, question: "Question", resolver: resolvers.Resolver, ident: int, tcp: bool, now: float) -> None:
        self.question, self.resolver, self.ident, self.tcp, self.since = question, resolver, ident, tcp, now
        self.edns = resolver.edns
        self.socket: Any = None  # the Way's


class Question:
    """What is asked of the resolvers on behalf of everybody who wants to know."""

    __slots__ = (
        "askers",
        "asked",
        "best",
        "deadline",
        "done",
        "due",
        "guest",
        "key",
        "made",
        "plan",
        "relayed",
        "tries",
    )

    def __init__(self, asked: wire.Query, key: bytes, guest: bytes, deadline: float) -> None:
        self.asked, self.key, self.guest, self.deadline = asked, key, guest, deadline
        self.due = 0.0  # when it is looked at again
        self.askers: list[Any] = []
        self.tries: list[Try] = []  # that are open
        self.plan: list[resolvers.Resolver] = []  # whom to ask, in this order
        self.made = 0
        self.best: bytes | None = None  # a refusal
        self.done = False
        self.relayed = False  # it came from the relay, which counts it


class Guest:
    """What one guest has under way."""

    __slots__ = ("busy", "credit", "since", "under_way", "waiting")

    def __init__(self, credit: float, now: float) -> None:
        self.under_way = 0
        self.busy = False  # what waits is being started
        self.waiting: deque[tuple[wire.Query, bytes, Any, float]] = deque()
        self.credit, self.since = credit, now


class Forwarder:
    """Asks resolvers; what they say goes to `answered(question, message or None)`."""

    def __init__(
        self,
        way: Way,
        answered: Callable[[Question, bytes | None, float], None],
        count: Callable[[str], None],
        rate: float = 0,
    ) -> None:
        self.way, self.answered, self.count, self.rate = way, answered, count, rate
        self.resolvers: list[resolvers.Resolver] = []
        self.domains: dict[bytes, list[resolvers.Resolver]] = {}  # split DNS
        self.questions: dict[bytes, Question] = {}
        self.guests: dict[bytes, Guest] = {}
        self._due: list[tuple[float, int, Question]] = []
        self._numbers = itertools.count()
        self._random = b""

    def ask(self, asked: wire.Query, key: bytes, asker: Any, guest: bytes, now: float) -> int:
        """Ask, or wait with those who have asked the same; what is not NOERROR is the asker's answer at once."""
        question = self.questions.get(key)
        if question is not None:
            if len(question.askers) >= ASKERS_MAX:
                self.count("limited")
                return wire.REFUSED
            self.count("merged")
            question.askers.append(asker)
            return wire.NOERROR
        known = self.guests.get(guest)
        if known is None:
            if len(self.guests) >= GUESTS_MAX:
                self._forget_idle(now)
            if len(self.guests) >= GUESTS_MAX:
                self.count("limited")
                return SILENCE
            known = self.guests[guest] = Guest(self.rate * BURST_S, now)
        if self.rate and not self._may(known, now):
            self.count("limited")
            return SILENCE
        if known.under_way >= GUEST_MAX or len(self.questions) >= ALL_MAX:
            if len(known.waiting) >= WAITING_MAX or not known.under_way:
                self.count("limited")
                return wire.REFUSED
            known.waiting.append((asked, key, asker, now + DEADLINE_S))
            return wire.NOERROR
        self._start(asked, key, asker, guest, now + DEADLINE_S, now)
        return wire.NOERROR

    def adopt(
        self, asked: wire.Query, key: bytes, askers: list[Any], guest: bytes, resolver: resolvers.Resolver, since: float
    ) -> Question:
        """Go on with a question that this resolver was asked already; the caller gives it that try."""
        question = self.questions[key] = Question(asked, key, guest, since + DEADLINE_S)
        question.askers, question.relayed, question.made = askers, True, 1
        question.plan = [resolver, *(one for one in self.planned(asked.name, since) if one is not resolver)]
        return question

    def late(self, question: Question, now: float) -> None:
        """Nobody has answered yet: ask the next resolver as well."""
        self._advance(question, now)

    def received(self, one: Try, message: bytes, now: float) -> None:
        """A message came for a try; whether it is the answer is seen here."""
        question = one.question
        if question.done or one not in question.tries:
            return
        sent = question.asked.question
        end = 12 + len(sent)
        if len(message) < 12:
            self.count("strange")
            return
        ident, flags, questions, _, _, _ = wire.HEADER.unpack_from(message)
        bare = (
            not questions and len(message) == 12 and flags & wire.RCODE in NEXT
        )  # who could not read it repeats nothing
        right = ident == one.ident and flags & wire.QR and not flags & wire.OPCODE
        if not right or not (bare or (questions == 1 and message[12:end].lower() == sent.lower())):
            self.count("strange")
            return
        rcode = flags & wire.RCODE
        if rcode in (wire.FORMERR, wire.NOTIMP):
            one.resolver.edns = not one.edns  # RFC 6891, 7: perhaps it knows no OPT; where that was not it, it is back
            if one.edns:
                self._again(one, one.tcp, now)
                return
        if flags & wire.TC and not one.tcp:
            self._again(one, True, now)
            return
        if not one.tcp:
            one.resolver.answered(now - one.since)
        if rcode in NEXT:
            question.best = question.best or message
            self._close(one)
            self._advance(question, now)
            return
        for other in question.tries:
            if other.since < one.since and other.resolver is not one.resolver:
                other.resolver.failed(now)
        self._finish(question, message, now)

    def broken(self, one: Try, now: float) -> None:
        """The socket of a try says that nothing will come."""
        if one.question.done or one not in one.question.tries:
            return
        one.resolver.failed(now)
        self._close(one)
        if not one.question.tries:
            self._advance(one.question, now)

    def wait(self, now: float) -> float | None:
        """Seconds until `due` has something to do, None where nothing is under way."""
        while self._due and self._due[0][2].done:
            heapq.heappop(self._due)
        return max(0.0, self._due[0][0] - now) if self._due else None

    def due(self, now: float) -> None:
        """Do what has become due: ask the next resolver too, or give up."""
        while self._due and self._due[0][0] <= now:
            at, _, question = heapq.heappop(self._due)
            if at == question.due and not question.done:
                self._advance(question, now)

    def replace(self, found: list[resolvers.Resolver]) -> None:
        """Ask these from now on; what is under way goes on."""
        self.resolvers = found

    def close(self) -> None:
        """Give up whatever is under way, without a word."""
        for question in self.questions.values():
            question.done = True
            for one in list(question.tries):
                self._close(one)
        self.questions.clear()
        self.guests.clear()
        self._due.clear()

    def chosen(self, name: bytes) -> list[resolvers.Resolver]:
        """The resolvers for a name: those of the longest domain it lies in, or those for all."""
        if self.domains:
            while name[0]:
                if name in self.domains:
                    return self.domains[name]
                name = name[name[0] + 1 :]
        return self.resolvers

    def planned(self, name: bytes, now: float) -> list[resolvers.Resolver]:
        """The same in the order in which they are asked."""
        found = self.chosen(name)
        return sorted(found, key=lambda one: one.last_until > now) if len(found) > 1 else found

    def _start(self, asked: wire.Query, key: bytes, asker: Any, guest: bytes, deadline: float, now: float) -> None:
        question = self.questions[key] = Question(asked, key, guest, deadline)
        question.askers.append(asker)
        self.guests[guest].under_way += 1
        question.plan = self.planned(asked.name, now)
        self.count("forwarded")
        self._advance(question, now)

    def _advance(self, question: Question, now: float) -> None:
        """Ask the next resolver that there is, or finish where there is none left and nobody may answer any more."""
        while now < question.deadline and question.made < ROUNDS * len(question.plan):
            if question.best is not None and question.made >= len(question.plan):
                # Each was asked; another round would not make them wiser, but one may still be thinking.
                question.deadline = min(question.deadline, now + resolvers.PATIENCE_MAX_S)
                break
            resolver = question.plan[question.made % len(question.plan)]
            question.made += 1
            if self._try(question, resolver, False, now):
                return
            resolver.failed(now)
        if now >= question.deadline or not question.tries:
            self._finish(question, question.best, now)
        else:
            self._remind(question, question.deadline)

    def _try(self, question: Question, resolver: resolvers.Resolver, tcp: bool, now: float) -> bool:
        one = Try(question, resolver, self._ident(), tcp, now)
        payload = wire.ask(one.ident, question.asked, one.edns)
        question.tries.append(one)
        if not (self.way.stream if tcp else self.way.datagram)(one, payload):
            question.tries.remove(one)
            return False
        self._remind(question, min(question.deadline, now + resolver.patience * (2 if tcp else 1)))
        return True

    def _again(self, one: Try, tcp: bool, now: float) -> None:
        """Ask the same resolver in another way."""
        self._close(one)
        if not self._try(one.question, one.resolver, tcp, now):
            self._advance(one.question, now)

    def _remind(self, question: Question, at: float) -> None:
        question.due = at
        heapq.heappush(self._due, (at, next(self._numbers), question))

    def _finish(self, question: Question, message: bytes | None, now: float) -> None:
        question.done = True
        for one in list(question.tries):
            if message is None:
                one.resolver.failed(now)
            self._close(one)
        del self.questions[question.key]
        if message is None:
            self.count("failed")
        if question.relayed:
            self.way.over(question.guest)
            self.answered(question, message, now)
            return
        guest = self.guests[question.guest]
        guest.under_way -= 1
        self.answered(question, message, now)
        if guest.busy:
            return  # the loop below is at work, further out
        guest.busy = True
        while guest.waiting and guest.under_way < GUEST_MAX:
            asked, key, asker, deadline = guest.waiting.popleft()
            if (same := self.questions.get(key)) is not None:
                same.askers.append(asker)
            else:
                self._start(asked, key, asker, question.guest, deadline, now)
        guest.busy = False

    def _close(self, one: Try) -> None:
        one.question.tries.remove(one)
        self.way.end(one)

    def _may(self, guest: Guest, now: float) -> bool:
        guest.credit = min(guest.credit + (now - guest.since) * self.rate, self.rate * BURST_S)
        guest.since = now
        if guest.credit < 1:
            return False
        guest.credit -= 1
        return True

    def _forget_idle(self, now: float) -> None:
        for name, guest in list(self.guests.items()):
            if not guest.under_way and now - guest.since >= BURST_S:
                del self.guests[name]

    def _ident(self) -> int:
        if not self._random:
            self._random = os.urandom(512)
        ident = self._random[0] << 8 | self._random[1]
        self._random = self._random[2:]
        return ident
