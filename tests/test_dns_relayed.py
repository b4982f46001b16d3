"""The core's relay of DNS questions, with sockets at the loopback: what it does alone, and what it leaves and hands over."""

import contextlib
import random

import dns.flags
import dns.message
import dns.rcode
import pytest

import resolving
from shardnet.dns import forward, zones

HERE = "www.example. 300 IN A 192.0.2.80"
SOA = "example. 900 IN SOA ns.example. root.example. 1 3600 600 86400 300"


@pytest.fixture
def bench():
    with contextlib.closing(resolving.Loopback(rate=0)) as made:
        yield made


def test_a_question_goes_out_once_and_its_answer_to_everybody_and_into_the_cache(bench):
    for guest, name in (
        (resolving.GUEST, "www.example"),
        (resolving.OTHER, "wWw.example"),
        (resolving.GUEST, "www.example"),
    ):
        assert bench.ask(name, guest=guest) is None
    payload, peer = bench.question()
    assert bench.question() is None
    bench.reply(resolving.answered(payload, HERE), peer)
    assert sorted(said.question[0].name.to_text() for said in bench.came()) == [
        "wWw.example.",
        "www.example.",
        "www.example.",
    ]
    assert bench.ask("www.example").answer[0].ttl == 300
    assert bench.counts == {"queries": 4, "hits": 1, "forwarded": 1, "merged": 2}


def test_each_question_has_a_port_and_an_id_of_its_own(bench):
    ports, idents = set(), set()
    for number in range(300):
        bench.ask(f"n{number}.example")
        payload, peer = bench.question()
        ports.add(peer[1])
        idents.add(payload[:2])
        bench.reply(resolving.answered(payload, f"n{number}.example. 9 IN A 192.0.2.1"), peer)
    assert len(bench.came()) == 300
    assert len(ports) > 280 and len(idents) > 290  # of 28,232 and 65,536: some twice


def test_who_guesses_wrong_or_late_or_from_elsewhere_is_not_heard(bench):
    bench.ask("www.example")
    payload, peer = bench.question()
    good = resolving.answered(payload, HERE)
    ident = int.from_bytes(good[:2])
    for wrong in (
        ((ident + 1) % 65536).to_bytes(2) + good[2:],
        good.replace(b"\3www", b"\3wwx", 1),
        good[:2] + b"\x01\x00" + good[4:],
        good[:11],
        b"",
    ):
        bench.reply(wrong, peer)
    assert not bench.came() and bench.counts["strange"] == 5
    with resolving.socket.socket(resolving.socket.AF_INET, resolving.socket.SOCK_DGRAM) as other:
        other.sendto(good, peer)
        bench.relayed.ready(bench.now)
    assert not bench.came() and bench.counts["strange"] == 5
    bench.reply(good, peer)
    assert len(bench.came()) == 1
    bench.reply(good, peer)  # the port is closed by now
    bench.ask("other.example")
    payload, other = bench.question()
    assert other != peer
    bench.reply(resolving.answered(payload, "other.example. 5 IN A 192.0.2.1"), other)
    assert [said.question[0].name.to_text() for said in bench.came()] == ["other.example."]


def test_silence_and_refusals_are_handed_over_with_the_socket(bench):
    bench.ask("www.example")
    first = bench.question()
    bench.later(0.6)
    again = bench.question()  # of the same resolver, which is the only one
    assert again is not None and again[1] != first[1]
    bench.reply(resolving.answered(first[0], HERE), first[1])  # the first answer counts
    assert resolving.texts(bench.came()[0]) == ["www.example. 192.0.2.80"]
    bench.ask("gone.example")
    for _ in range(forward.ROUNDS):
        payload, peer = bench.question()
        bench.reply(resolving.answered(payload, rcode=dns.rcode.SERVFAIL), peer)
        if bench.server.outbox:
            break
    assert bench.came()[0].rcode() == dns.rcode.SERVFAIL
    assert not bench.server.forwarder.questions and not bench.way.asked


def test_without_an_answer_the_failure_is_said_in_five_seconds(bench):
    bench.ask("www.example")
    bench.later(4.8)
    assert not bench.came()
    bench.later(0.4)
    assert bench.came()[0].rcode() == dns.rcode.SERVFAIL
    assert not bench.server.forwarder.questions and not bench.way.asked and not bench.relayed.is_busy


def test_an_answer_that_points_inside_or_is_cut_takes_the_long_way(bench):
    bench.ask("evil.example")
    payload, peer = bench.question()
    bench.reply(resolving.answered(payload, "evil.example. 60 IN A 127.0.0.1", "evil.example. 60 IN A 192.0.2.1"), peer)
    assert resolving.texts(bench.came()[0]) == ["evil.example. 192.0.2.1"] and bench.counts["rebinding"] == 1
    bench.ask("long.example", "TXT")
    payload, peer = bench.question()
    bench.reply(resolving.answered(payload, flags=dns.flags.TC), peer)
    (one,) = bench.way.tries.values()
    assert one.tcp and one.resolver is bench.server.forwarder.resolvers[0]


def test_who_asks_over_tcp_joins_what_is_under_way(bench):
    said = []

    class Connection:
        def answer(self, message, now):
            said.append(message)

    bench.ask("www.example")
    query = dns.message.make_query("www.example", "A")
    assert bench.server.query(query.to_wire(), Connection(), b"tcp", bench.now) is None
    payload, peer = bench.question()
    assert bench.question() is None
    bench.reply(resolving.answered(payload, HERE), peer)
    assert len(bench.came()) == 1 and query.is_response(dns.message.from_wire(said[0]))


def test_a_guest_has_so_many_under_way_and_so_many_waiting_and_others_are_not_kept_from_asking(bench):
    most = forward.GUEST_MAX + forward.WAITING_MAX
    refused = [bench.ask(f"n{number}.example") for number in range(most + 10)]
    assert [one.rcode() for one in bench.came()] == [dns.rcode.REFUSED] * 10 and not any(refused)
    asked = []
    while (one := bench.question()) is not None:
        asked.append(one)
    assert len(asked) == forward.GUEST_MAX
    bench.ask("mine.example", guest=resolving.OTHER)
    asked.append(bench.question())
    assert asked[-1] is not None
    while asked:
        payload, peer = asked.pop(0)
        bench.reply(resolving.answered(payload, rcode=dns.rcode.NXDOMAIN, authority=(SOA,)), peer)
        while (one := bench.question()) is not None:
            asked.append(one)
    assert len(bench.came()) == most + 1 and not bench.relayed.is_busy
    assert bench.counts["limited"] == 10


def test_the_rate_of_a_guest_is_bounded():
    with contextlib.closing(resolving.Loopback(rate=50)) as bench:
        for number in range(100):
            bench.ask(f"n{number}.example")
            if (one := bench.question()) is not None:
                bench.reply(resolving.answered(one[0], rcode=dns.rcode.NXDOMAIN), one[1])
        assert bench.counts["forwarded"] == bench.counts["limited"] == 50


def test_what_the_lab_knows_is_asked_of_nobody_and_other_resolvers_are_asked_at_once():
    records = [zones.record("www.lab.example A 10.0.2.20"), zones.record("*.apps.lab.example A 10.0.2.21")]
    with contextlib.closing(resolving.Loopback(*(f"{one.name} {one.text}" for one in records))) as bench:
        assert bench.ask("www.lab.example").answer and bench.ask("x.apps.lab.example").answer
        assert bench.ask("unknown.internal").rcode() == dns.rcode.NXDOMAIN
        assert bench.question() is None
        bench.server.resolve_by([])
        assert bench.ask("www.example") is None
        assert bench.came()[0].rcode() == dns.rcode.SERVFAIL


def test_the_short_way_and_the_long_way_say_the_same():
    """Answers of all kinds, whole and broken, through a server with the relay and one without."""
    dice = random.Random(1)
    texts = [
        f"a.example. {ttl} IN {data}"
        for ttl in (0, 7, 99_999)
        for data in ("A 192.0.2.1", "AAAA 2001:db8::1", 'TXT "x"', "CNAME b.example.")
    ]
    for number in range(400):
        name, kind = dice.choice(["a.example", "A.Example"]), dice.choice(["A", "AAAA", "TXT", "MX", "ANY"])
        given = dice.choice([{}, {"use_edns": 0, "payload": 600}, {"use_edns": 0, "want_dnssec": True}])
        rcode, flags = dice.choice([0, 0, 3, 5]), dice.choice([0, 0, int(dns.flags.AD)])
        records, authority = dice.sample(texts, dice.randint(0, 4)), dice.choice([(), (SOA,)])
        cut, flip = (
            dice.choice([None, None, dice.randrange(13, 90)]),
            dice.choice([None, None, dice.randrange(12, 120)]),
        )
        said = []

        def broken(raw, cut=cut, flip=flip):
            raw = raw if flip is None or flip >= len(raw) else raw[:flip] + bytes((raw[flip] ^ 1,)) + raw[flip + 1 :]
            return raw[:cut]

        for made in (resolving.Bench(), resolving.Loopback()):
            query = dns.message.make_query(name, kind, id=number, **given)
            made.send(query.to_wire())
            for _ in range(3):
                if made.server.outbox:
                    break
                if isinstance(made, resolving.Loopback):
                    payload, peer = made.question() or (None, None)
                    if payload is not None:
                        made.reply(
                            broken(
                                resolving.answered(payload, *records, rcode=rcode, authority=authority, flags=flags)
                            ),
                            peer,
                        )
                elif made.way.sent:
                    made.say(*records, rcode=rcode, authority=authority, flags=flags, raw=broken)
            kept = {
                key: (one.flags, one.counts, one.records, one.ttls, one.additional, one.expires)
                for key, one in made.server.cache.answers.items()
            }
            said.append(([datagram[0] for datagram in made.server.outbox], kept))
            if isinstance(made, resolving.Loopback):
                made.close()
        assert said[0] == said[1], number
