"""Answers that are kept, for as long as they hold, and given again without being read.

An answer is kept under the key of its question (`wire.Query.key`) as the bytes behind the question. Beside it stand its
`Ready` forms: everything behind the id of an answer, under everything behind the id of the query, which stub resolvers repeat
to the byte. So the way of a repeated query is one look into one dictionary. The times to live in a ready form are counted down
once a second. Only a query in lower case and without options gets one: others have spellings without number, and are read.

Memory is bounded by count and by bytes. The oldest answer goes first, unless it was used since it was last looked at (the clock
of page replacement). RFC 2181, 8 and RFC 2308, 5 say how long an answer holds.
"""

import struct
from collections import OrderedDict
from collections.abc import Iterable

from shardnet.dns import wire

TTL_MAX_S = 86_400  # a day, for what is there
NEGATIVE_MAX_S = 10_800  # three hours, for what is not (RFC 2308, 5)
FAILURE_S = 1  # RFC 9520, 3.2: a failure is remembered for a second at least
READY_MAX = 4  # forms of one answer: EDNS or not, flags
BYTES_EACH, READY_BYTES = (
    1200,
    700,
)  # what an answer and a ready form take beside their bytes, measured with tracemalloc
BIG = float("inf")
TTL = struct.Struct(">I")


class Answer:
    """What a resolver, or the lab itself, says to a question."""

    __slots__ = (
        "additional",
        "bytes",
        "counts",
        "expires",
        "flags",
        "key",
        "ready",
        "records",
        "since",
        "ttls",
        "used",
    )

    def __init__(
        self,
        flags: int,
        counts: tuple[int, int, int],
        records: bytes,
        ttls: tuple[tuple[int, int], ...] = (),
        additional: int | None = None,
        since: float = 0.0,
        expires: float = BIG,
    ) -> None:
        self.flags = flags  # rcode, AA, AD
        self.counts = counts
        self.records = records  # compressed against a header and a question of the same length in front of them
        self.ttls = ttls  # where in `records` a time to live stands that counts down, and what it was
        self.additional = len(records) if additional is None else additional  # where the additional section begins
        self.since, self.expires = since, expires
        self.key = b""
        self.ready: list[bytes] = []
        self.used = False
        self.bytes = BYTES_EACH + len(records)

    def aged(self, now: float) -> bytes:
        """The records with their times to live counted down."""
        age = int(now - self.since)
        if not self.ttls or age <= 0:
            return self.records
        records = bytearray(self.records)
        for at, ttl in self.ttls:
            TTL.pack_into(records, at, max(0, ttl - age))
        return bytes(records)

    def tail(self, asked: wire.Query, now: float, limit: int) -> tuple[bytes, bool]:
        """What stands behind the id of an answer to `asked`, at most `limit` bytes with the id; and whether it was cut short.

        Additional records go first, and silently (RFC 2181, 9). Where the others do not fit there are none, and TC says so.
        """
        room = limit - 12 - len(asked.question) - (11 if asked.edns else 0)
        answers, authority, additional = self.counts
        if len(self.records) <= room:
            return wire.tail(asked, self.flags, (answers, authority, additional), self.aged(now)), False
        if self.additional <= room:
            return wire.tail(asked, self.flags, (answers, authority, 0), self.aged(now)[: self.additional]), False
        return wire.tail(asked, self.flags | wire.TC, (0, 0, 0), b""), True


class Ready:
    """An answer in the form that one kind of query gets; to be used while `now < until`."""

    __slots__ = ("answer", "asked", "tail", "until")

    def __init__(self, answer: Answer, asked: wire.Query, now: float) -> None:
        self.answer, self.asked = answer, asked
        self._write(now)

    def renew(self, now: float) -> bool:
        """Count the times to live down to this second; False where the answer holds no longer."""
        if now >= self.answer.expires:
            return False
        self.answer.used = True
        self._write(now)
        return True

    def _write(self, now: float) -> None:
        answer = self.answer
        self.tail, _ = answer.tail(self.asked, now, self.asked.size)
        self.until = min(answer.since + int(now - answer.since) + 1, answer.expires) if answer.ttls else answer.expires


class Cache:
    """At most `count` answers and `size` bytes of them."""

    def __init__(self, count: int, size: int = 1 << 24) -> None:
        self.count, self.size = count, size
        self.bytes = 0
        self.answers: OrderedDict[bytes, Answer] = (
            OrderedDict()
        )  # a dict takes the longer, the more went from its front
        self.ready: dict[bytes, Ready] = {}  # by everything behind the id of a query

    def find(self, key: bytes, now: float) -> Answer | None:
        """The answer to the question with this key, while it holds."""
        answer = self.answers.get(key)
        if answer is None:
            return None
        if now >= answer.expires:
            self._drop(answer)
            return None
        answer.used = True
        return answer

    def keep(self, key: bytes, answer: Answer) -> None:
        """Keep an answer in the place of an older one to the same question."""
        if answer.expires <= answer.since or not self.count:
            return
        if old := self.answers.get(key):
            self._drop(old)
        answer.key = key
        self.answers[key] = answer
        self.bytes += answer.bytes
        while len(self.answers) > self.count or self.bytes > self.size:
            self._evict()

    def prepare(self, query: bytes, asked: wire.Query, answer: Answer, now: float) -> None:
        """Have the next query with the same bytes behind its id answered without being read, where `answer` is kept."""
        if not asked.bare or self.answers.get(answer.key) is not answer or not asked.question.startswith(asked.name):
            return
        behind = query[2:]
        if behind not in self.ready:
            if len(answer.ready) >= READY_MAX:
                self._drop_ready(answer, answer.ready.pop(0))
            answer.ready.append(behind)
        else:
            self._drop_ready(answer, behind)
        self.ready[behind] = ready = Ready(answer, asked, now)
        size = READY_BYTES + len(behind) + len(ready.tail)
        answer.bytes += size
        self.bytes += size

    def forget(self, keys: Iterable[bytes] | None = None) -> None:
        """Drop the answers with these keys, or all."""
        if keys is None:
            self.answers.clear()
            self.ready.clear()
            self.bytes = 0
            return
        for key in keys:
            if answer := self.answers.get(key):
                self._drop(answer)

    def forget_lasting(self) -> None:
        """Drop the answers that hold until what they say is changed: the lab's own."""
        self.forget([key for key, answer in self.answers.items() if answer.expires == BIG])

    def _drop(self, answer: Answer) -> None:
        for behind in answer.ready:
            self._drop_ready(answer, behind)
        answer.ready.clear()
        del self.answers[answer.key]
        self.bytes -= answer.bytes

    def _drop_ready(self, answer: Answer, behind: bytes) -> None:
        size = READY_BYTES + len(behind) + len(self.ready.pop(behind).tail)
        answer.bytes -= size
        self.bytes -= size

    def _evict(self) -> None:
        """Drop the oldest answer that was not used; each is passed over once, so this ends."""
        while True:
            key, answer = next(iter(self.answers.items()))
            if not answer.used:
                self._drop(answer)
                return
            answer.used = False
            self.answers.move_to_end(key)
