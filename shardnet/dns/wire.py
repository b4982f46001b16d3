"""DNS messages as bytes: what a forwarder reads of them, and no more (RFC 1035, 4.1; RFC 6891).

A query is read in full, as it is short and has one form: header, one question, at most one OPT record. An answer is walked from
record to record, for types, times to live and lengths; names in it are stepped over and compression pointers never followed, so
each loop ends with the message. The question of an answer has the length of the query's, so the rest of an answer can be kept and
given again behind another spelling of the name.
"""

import struct
from collections.abc import Iterator
from typing import NamedTuple

HEADER = struct.Struct(">HHHHHH")  # id, flags, questions, answers, authority, additional
FIXED = struct.Struct(">HHIH")  # of a record behind its name: type, class, time to live, length
OPT = struct.Struct(">BHHBBHH")  # root, type, payload size, extended rcode, version, flags, length

QR, OPCODE, AA, TC, RD, RA, AD, CD, RCODE = 0x8000, 0x7800, 0x0400, 0x0200, 0x0100, 0x0080, 0x0020, 0x0010, 0x000F
DO = 0x8000  # in the flags of OPT
NOERROR, FORMERR, SERVFAIL, NXDOMAIN, NOTIMP, REFUSED, BADVERS = 0, 1, 2, 3, 4, 5, 16
A, NS, CNAME, SOA, PTR, AAAA, OPT_TYPE, ANY = 1, 2, 5, 6, 12, 28, 41, 255
IN, ANY_CLASS = 1, 255
# Types that are no question to a forwarder: OPT, TKEY, TSIG, IXFR, AXFR, MAILB, MAILA (RFC 6895, 3.1).
NEVER_ASKED = frozenset({OPT_TYPE, 249, 250, 251, 252, 253, 254})

MESSAGE_MAX = 65535
PLAIN_MAX = 512  # a UDP answer to a query without OPT (RFC 1035, 4.2.1)
NAME_MAX = 255
QUERY_MAX = 12 + NAME_MAX + 4 + 11 + 1024  # with options that are worth reading


class Malformed(ValueError):
    """No DNS message, or one with a lie in it."""


class Refused(Exception):
    """A query that is answered with an error and nothing else; `reply` is that answer."""

    def __init__(self, rcode: int, reply: bytes) -> None:
        super().__init__(rcode)
        self.rcode, self.reply = rcode, reply


class Query(NamedTuple):
    """A question as a client asked it."""

    ident: bytes
    flags: int
    question: bytes  # name, type and class, spelled as asked
    name: bytes  # on the wire, lower case
    kind: int
    size: int  # the largest answer over UDP
    edns: bool
    dnssec: bool  # the DO bit
    bare: bool  # OPT, if any, has no options: the bytes behind the id say everything

    @property
    def key(self) -> bytes:
        """Equal for queries with one answer: lower-case question, and the flags that change the answer."""
        return self.name + self.question[-4:] + bytes((self.flags >> 8 & 1, self.flags & CD, self.dnssec))


def query(payload: bytes, size_max: int) -> Query:
    """Read a query whose answer over UDP may have `size_max` bytes.

    Raises Malformed where there is nobody to answer (no header, or an answer itself, which to answer would make a loop), and
    Refused with the answer where there is.
    """
    length = len(payload)
    if length < 12:
        raise Malformed("no header")
    _, flags, questions, answers, authority, additional = HEADER.unpack_from(payload)
    if flags & QR:
        raise Malformed("an answer")
    if flags & OPCODE:
        raise Refused(NOTIMP, _error(payload, flags, NOTIMP))
    if questions != 1 or answers or authority or additional > 1 or flags & TC or length > QUERY_MAX:
        raise Refused(FORMERR, _error(payload, flags, FORMERR))
    at = 12
    try:
        while step := payload[at]:
            if step > 63:  # neither a pointer nor another kind of label is a question's
                raise IndexError
            at += step + 1
        end = at + 5
        if at - 11 > NAME_MAX or end > length:
            raise IndexError
        size, edns, dnssec, bare = PLAIN_MAX, False, False, True
        if additional:
            root, kind, size, _, version, more, options = OPT.unpack_from(payload, end)
            if root or kind != OPT_TYPE or end + 11 + options != length:
                raise IndexError
            edns, dnssec, bare = True, bool(more & DO), not options
            if options:
                _check_options(payload, end + 11)
            size = min(max(size, PLAIN_MAX), size_max)
        elif end != length:
            raise IndexError
    except (IndexError, struct.error):
        raise Refused(FORMERR, _error(payload, flags, FORMERR)) from None
    question = payload[12:end]
    kind, cls = question[-4] << 8 | question[-3], question[-2] << 8 | question[-1]
    found = Query(payload[:2], flags, question, question[:-4].lower(), kind, size, edns, dnssec, bare)
    if edns and version:
        raise Refused(BADVERS, error(found, BADVERS))
    if cls not in (IN, ANY_CLASS) or kind in NEVER_ASKED:
        raise Refused(REFUSED, error(found, REFUSED))
    return found


def _check_options(payload: bytes, at: int) -> None:
    """Step over the options of OPT to the end of the message; raises IndexError where they do not end there."""
    while at < len(payload):
        at += 4 + (payload[at + 2] << 8 | payload[at + 3])
    if at != len(payload):
        raise IndexError


def _error(payload: bytes, flags: int, rcode: int) -> bytes:
    """An error about a query that could not be read: a header alone."""
    return payload[:2] + struct.pack(">HQ", QR | flags & (OPCODE | RD) | rcode, 0)


def error(asked: Query, rcode: int) -> bytes:
    """An answer that says `rcode` and nothing else."""
    return asked.ident + tail(asked, rcode & RCODE, (0, 0, 0), b"", rcode >> 4)


def tail(asked: Query, flags: int, counts: tuple[int, int, int], records: bytes, extended: int = 0) -> bytes:
    """What stands behind the id of an answer; OPT is added where the query had one.

    `flags` are rcode and AA and AD; the others follow from the query.
    """
    answers, authority, additional = counts
    flags |= QR | RA | asked.flags & (RD | CD)
    if not (asked.dnssec or asked.flags & AD):
        flags &= ~AD  # RFC 6840, 5.8
    head = struct.pack(">HHHHH", flags, 1, answers, authority, additional + asked.edns)
    if not asked.edns:
        return head + asked.question + records
    return head + asked.question + records + opt(extended, asked.dnssec)


def opt(extended: int = 0, dnssec: bool = False, size: int = 1232) -> bytes:
    """An OPT record without options."""
    return OPT.pack(0, OPT_TYPE, size, extended, 0, DO if dnssec else 0, 0)


def ask(ident: int, asked: Query, edns: bool) -> bytes:
    """Write the query to a resolver for what a client asked.

    What a resolver may send in one datagram is what the Internet passes without fragments (DNS flag day 2020), whatever the
    client takes.
    """
    flags = asked.flags & (RD | CD | AD)
    head = HEADER.pack(ident, flags, 1, 0, 0, edns) + asked.question
    return head + opt(dnssec=asked.dnssec) if edns else head


class Record(NamedTuple):
    """Where a record stands in a message."""

    section: int  # 1 answer, 2 authority, 3 additional
    start: int
    kind: int
    cls: int
    ttl_at: int
    ttl: int
    data: int  # where its data begin
    end: int


def records(message: bytes, start: int) -> Iterator[Record]:
    """Walk the records of an answer whose question ends at `start`; raises Malformed where they do not end with the message."""
    at, length = start, len(message)
    try:
        for section, count in enumerate(HEADER.unpack_from(message)[3:], 1):
            for _ in range(count):
                first = at
                at = skip(message, at)
                kind, cls, ttl, size = FIXED.unpack_from(message, at)
                data = at + 10
                at = data + size
                if at > length:
                    raise Malformed("a record longer than the message")
                if ttl & 0x80000000:
                    ttl = 0  # RFC 2181, 8
                yield Record(section, first, kind, cls, data - 6, ttl, data, at)
    except (IndexError, struct.error):
        raise Malformed("cut short") from None
    if at != length:
        raise Malformed("something behind the last record")


def skip(message: bytes, at: int) -> int:
    """Where a name ends that begins at `at`; raises IndexError behind the message, Malformed where it is no name."""
    first = at
    while step := message[at]:
        if step >= 0xC0:
            if (step & 0x3F) << 8 | message[at + 1] >= first:
                raise Malformed("a pointer forward")
            return at + 2
        if step > 63:
            raise Malformed("an unknown kind of label")
        at += step + 1
        if at - first >= NAME_MAX:
            raise Malformed("an endless name")
    return at + 1
