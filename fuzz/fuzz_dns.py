"""Whatever guests ask and resolvers say, the DNS server answers within bounds, and what dnspython reads it reads alike."""

import struct

import dns.exception
import dns.message
from hypothesis import given
from hypothesis import strategies as st

import dnsmessages
import resolving
from shardnet.dns import cache, wire

LABELS = ["www", "lab", "example", "internal", "apps", "x" * 63, "_tcp", "*", ""]
KINDS = [1, 2, 5, 6, 12, 15, 16, 28, 33, 41, 64, 65, 250, 252, 255, 0, 65535]

name = st.lists(st.sampled_from(LABELS).map(str.encode) | st.binary(max_size=63), max_size=8).map(
    lambda labels: b"".join(bytes((len(label),)) + label for label in labels if label) + b"\0"
)
number = st.integers(0, 65535)
flags = st.sampled_from([0x0100, 0x0120, 0x0110, 0, 0x8180]) | number
pointer = st.integers(0, 300).map(lambda to: struct.pack(">H", 0xC000 | to))
owner = name | pointer | st.just(b"\xc0\x0c")
data = st.binary(max_size=40) | st.sampled_from([b"\x7f\0\0\1", bytes(16), b"\x0a\0\2\2"]) | owner
record = st.builds(
    lambda owner, kind, cls, ttl, data, lie: (
        owner + struct.pack(">HHIH", kind, cls, ttl, max(0, len(data) + lie)) + data
    ),
    owner,
    st.sampled_from(KINDS),
    st.sampled_from([1, 1, 1, 255, 1232]),
    st.integers(0, 2**32 - 1),
    data,
    st.sampled_from([0, 0, 0, 0, 1, -1, 1000]),
)
counts = st.tuples(*[st.integers(0, 3)] * 4) | st.tuples(*[number] * 4)
message = st.builds(
    lambda ident, flags, counts, name, kind, cls, records, tail: (
        struct.pack(">HHHHHH", ident, flags, *counts) + name + struct.pack(">HH", kind, cls) + b"".join(records) + tail
    ),
    number,
    flags,
    counts | st.sampled_from([(1, 0, 0, 0), (1, 0, 0, 1)]),
    name,
    st.sampled_from(KINDS),
    st.sampled_from([1, 1, 3, 255]),
    st.lists(record, max_size=4),
    st.sampled_from([b"", b"", b"\0", b"\0\0\x29\x04\xd0\0\0\0\0\0\0"]),
)
RECORDS = ("www A 10.0.2.20", "web CNAME out.example", "*.apps.lab.example A 10.0.2.21", "lab.example MX 10 www")


def bench():
    return resolving.Bench(*RECORDS, zone=["lab.example"], count=8, rate=0)


@given(st.lists(message | st.binary(max_size=600) | st.sampled_from(list(dnsmessages.malformed())), max_size=10))
def test_any_query_is_answered_within_bounds(queries):
    made = bench()
    for raw in queries:
        for _ in range(2):
            said = made.send(raw)
            if said is None:
                continue
            assert raw[2] & 0x80 == 0 and said[2] & 0x80 and said[:2] == raw[:2]
            assert len(said) <= max(wire.PLAIN_MAX, made.server.size)
            dns.message.from_wire(said)


@given(message, st.lists(message | st.binary(max_size=300), max_size=3))
def test_whatever_a_resolver_says_a_guest_gets_a_message_or_nothing(query, said):
    made = bench()
    made.send(query)
    for raw in said:
        if not made.way.sent:
            break
        one, sent = made.way.sent[-1]
        end = 12 + len(one.question.asked.question)
        like = sent[:2] + b"\x81\x80" + sent[4:6] + raw[6:12].ljust(6, b"\0") + sent[12:end] + raw[end:]
        made.server.forwarder.received(one, like, made.now)
    made.later(6)
    assert not made.server.forwarder.questions and not made.way.sent
    for answer in made.server.outbox:
        assert len(answer[0]) <= max(wire.PLAIN_MAX, made.server.size)
        assert answer[0][:2] == query[:2]
    kept: cache.Cache = made.server.cache
    assert len(kept.answers) <= kept.count and kept.bytes == sum(one.bytes for one in kept.answers.values())


@given(message, message | st.binary(max_size=300), st.booleans())
def test_the_relay_says_what_the_forwarder_says(query, raw, alike):
    said = []
    for made in (bench(), resolving.Loopback(*RECORDS, zone=["lab.example"], count=8, rate=0)):
        made.send(query)
        if isinstance(made, resolving.Loopback):
            asked = made.question()
        else:
            asked = (made.way.sent[-1][1], None) if made.way.sent else None
        if asked is not None:
            sent, peer = asked
            end = sent.index(b"\0", 12) + 5
            like = sent[:2] + b"\x81\x80" + sent[4:6] + raw[6:12].ljust(6, b"\0") + sent[12:end] + raw[end:]
            answer = like if alike else raw
            if isinstance(made, resolving.Loopback):
                made.reply(answer, peer)
            else:
                made.server.forwarder.received(made.way.sent[-1][0], answer, made.now)
        kept = {key: (one.flags, one.counts, one.records, one.ttls) for key, one in made.server.cache.answers.items()}
        said.append(([one[0] for one in made.server.outbox], kept))
        if isinstance(made, resolving.Loopback):
            made.close()
    # The forwarder has two resolvers here, so a refusal is not the last word there.
    assert said[0] == said[1] or not said[0][0]


@given(message)
def test_a_query_that_is_read_is_one_for_dnspython_too(raw):
    try:
        ours = wire.query(raw, 1232)
    except (wire.Malformed, wire.Refused):
        return
    try:
        theirs = dns.message.from_wire(raw)
    except dns.exception.DNSException:
        assert not ours.bare  # an option that only its own reader would have understood
        return
    (question,) = theirs.question
    assert (question.name.to_wire().lower(), int(question.rdtype)) == (ours.name, ours.kind)
    assert (theirs.edns >= 0, bool(theirs.ednsflags & 0x8000)) == (ours.edns, ours.dnssec)
