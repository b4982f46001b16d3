"""The DNS server under messages that are wrong, from guests and from resolvers: answered in bounds, and the next guest is served."""

import dns.message
import dns.rcode
import pytest

import dnsmessages
import resolving
import wirefile
from shardnet.dns import wire

CORPUS_MIN = 500


def test_malformed_queries_get_an_error_or_nothing():
    corpus = list(dnsmessages.malformed())
    assert len(corpus) >= CORPUS_MIN
    frames = [wirefile.frame("10.0.2.15", 5353, "10.0.2.3", 53, raw) for raw in corpus]
    frames = wirefile.read(wirefile.corpus("dns", frames))
    bench = resolving.Bench()
    for number, raw in enumerate(frame[42:] for frame in frames):
        said = bench.send(raw)
        if len(raw) < 12 or raw[2] & 0x80:
            assert said is None, number
        else:
            message = dns.message.from_wire(said)
            assert (message.rcode(), len(said)) == (dns.rcode.FORMERR, 12), (number, raw, message)
            assert (said[:2], said[2] >> 7) == (raw[:2], 1)
    assert not bench.way.sent
    assert bench.counts["malformed"] == len(corpus) == bench.counts["queries"]
    assert resolving.texts(bench.ask("localhost")) == ["localhost. 127.0.0.1"]


@pytest.mark.parametrize(("raw", "rcode"), list(dnsmessages.refused()))
def test_what_is_no_forwarders_business_is_refused_with_the_reason(raw, rcode):
    bench = resolving.Bench()
    said = dns.message.from_wire(bench.send(raw))
    assert dns.rcode.to_text(said.rcode()) == rcode
    assert said.id == 0x1234 and not said.answer and not bench.way.sent


def test_noise_is_never_answered_at_length_nor_kept():
    bench = resolving.Bench()
    for raw in dnsmessages.noise(1, 2000):
        said = bench.send(raw)
        assert said is None or len(said) <= max(wire.PLAIN_MAX, len(raw) + 100)
    assert len(bench.server.forwarder.questions) <= 64


def test_an_answer_is_not_answered():
    bench = resolving.Bench()
    assert bench.send(dnsmessages.GOOD[:2] + b"\x81\x80" + dnsmessages.GOOD[4:]) is None
    assert bench.counts == {"queries": 1, "malformed": 1}


HOSTILE = {
    "another id": lambda raw: bytes((raw[0] ^ 1,)) + raw[1:],
    "a query": lambda raw: raw[:2] + b"\x01\x00" + raw[4:],
    "another question": lambda raw: raw[:13] + b"x" + raw[14:],
    "another type": lambda raw: raw.replace(b"\0\0\x01\0\x01", b"\0\0\x1c\0\x01", 1),
    "no question": lambda raw: raw[:4] + bytes(2) + raw[6:],
    "nothing": lambda raw: b"",
    "a header": lambda raw: raw[:12],
}


@pytest.mark.parametrize("how", HOSTILE)
def test_a_message_that_is_no_answer_to_the_question_changes_nothing(how):
    bench = resolving.Bench()
    bench.ask("www.example")
    bench.say("www.example. 60 IN A 192.0.2.66", raw=HOSTILE[how])
    assert not bench.came() and bench.counts["strange"] == 1
    bench.say("www.example. 60 IN A 192.0.2.80")
    (said,) = bench.came()
    assert resolving.texts(said) == ["www.example. 192.0.2.80"]


BROKEN = {
    "cut short": lambda raw: raw[:-3],
    "longer": lambda raw: raw + b"\0",
    "a pointer to itself": lambda raw: raw.replace(b"\xc0\x0c", b"\xc0\x1d"),
    "records that are not there": lambda raw: raw[:6] + b"\xff\xff" + raw[8:],
    "a length that lies": lambda raw: raw.replace(b"\0\x04\xc0\0\x02", b"\xff\x04\xc0\0\x02"),
}


@pytest.mark.parametrize("how", BROKEN)
def test_a_broken_answer_of_a_resolver_reaches_no_guest(how):
    bench = resolving.Bench()
    bench.ask("www.example")
    bench.say("www.example. 60 IN A 192.0.2.66", raw=BROKEN[how])
    (said,) = bench.came()
    assert (said.rcode(), said.answer) == (dns.rcode.SERVFAIL, []) and bench.counts["strange"] == 1


def test_every_cut_of_an_answer_is_refused_or_right():
    for cut in range(12, 90):
        bench = resolving.Bench()
        bench.ask("www.example", "MX")
        bench.say("www.example. 60 IN MX 10 mail.example.", raw=lambda raw, cut=cut: raw[:cut])
        for said in bench.came():
            assert resolving.texts(said) in ([], ["www.example. 10 mail.example."])
