"""Questions that the resolvers answer: whom they go to, whose answer counts, what is kept for how long, what one guest may have."""

import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype
import pytest

import resolving
from shardnet.dns import forward, resolvers
from shardnet.dns import zones as names

SOA = "example. 900 IN SOA ns.example. root.example. 1 3600 600 86400 300"
HERE = "www.example. 300 IN A 192.0.2.80"
FIRST, SECOND = "192.0.2.1", "192.0.2.2"


def test_an_answer_is_given_again_with_less_to_live_until_it_is_old():
    bench = resolving.Bench()
    assert bench.ask("www.example") is None
    bench.now += 0.2
    bench.say(HERE)
    (said,) = bench.came()
    assert said.answer[0].ttl == 300 and not said.flags & dns.flags.AA and said.flags & dns.flags.RA
    for age, ttl in ((0.5, 300), (1.5, 299), (299.5, 1)):
        bench.now = 1000.2 + age
        for _ in range(2):  # read, then ready
            assert bench.ask("www.example").answer[0].ttl == ttl
    bench.now = 1300.3
    assert bench.ask("www.example") is None
    assert bench.counts["hits"] == 6 and bench.counts["forwarded"] == 2


def test_the_spelling_of_a_question_is_the_clients_own_and_finds_the_same_answer():
    bench = resolving.Bench()
    bench.ask("wWw.eXample")
    bench.say(HERE)
    assert bench.came()[0].question[0].name.to_text() == "wWw.eXample."
    for spelling in ("www.example", "WWW.EXAMPLE", "www.example", "Www.Example"):
        said = bench.ask(spelling)
        assert said.question[0].name.to_text() == said.answer[0].name.to_text() == spelling + "."
    assert len(bench.way.sent) == 0 and bench.counts["forwarded"] == 1


@pytest.mark.parametrize(
    ("rcode", "authority", "answer", "seconds"),
    [
        (dns.rcode.NXDOMAIN, (SOA,), (), 300),  # RFC 2308, 5: the lesser of the two
        (dns.rcode.NOERROR, (SOA.replace(" 900 ", " 30 "),), (), 30),
        (dns.rcode.NXDOMAIN, (SOA.replace("300", "864000").replace("900", "864000"),), (), 10_800),
        (dns.rcode.NXDOMAIN, (), (), 0),
        (dns.rcode.NOERROR, (), (), 0),
        (dns.rcode.NXDOMAIN, (SOA,), ("www.example. 60 IN CNAME gone.example.",), 60),
        (dns.rcode.NOERROR, (), ("www.example. 0 IN A 192.0.2.1",), 0),
        (dns.rcode.NOERROR, (), ("www.example. 999999 IN A 192.0.2.1",), 86_400),
    ],
)
def test_what_is_there_and_what_is_not_is_kept_as_long_as_it_says(rcode, authority, answer, seconds):
    bench = resolving.Bench()
    bench.ask("www.example")
    bench.say(*answer, rcode=rcode, authority=authority)
    assert bench.came()[0].rcode() == rcode
    start = bench.now
    if seconds:
        bench.now = start + seconds - 0.5
        assert bench.ask("www.example").rcode() == rcode
    bench.now = start + seconds + 0.1
    assert bench.ask("www.example") is None


def test_equal_questions_are_asked_once_and_everybody_is_answered():
    bench = resolving.Bench()
    for name, guest in (
        ("www.example", resolving.GUEST),
        ("WWW.example", resolving.OTHER),
        ("www.example", resolving.GUEST),
    ):
        assert bench.ask(name, guest=guest) is None
    bench.ask("www.example", "AAAA")
    assert len(bench.way.sent) == 2
    bench.say(HERE, number=0)
    assert sorted(said.question[0].name.to_text() for said in bench.came()) == [
        "WWW.example.",
        "www.example.",
        "www.example.",
    ]
    assert bench.counts["merged"] == 2 and bench.counts["forwarded"] == 2


def test_ids_are_spread_over_all_there_are():
    bench = resolving.Bench(count=0)
    seen = [0] * 64
    for number in range(3200):
        bench.ask(f"n{number}.example")
        seen[bench.way.sent[-1][0].ident >> 10] += 1
        bench.say(rcode=dns.rcode.NXDOMAIN)
    # Chi-square with 63 degrees of freedom: 120 is passed once in 50,000 runs of a fair die.
    assert sum((count - 50) ** 2 / 50 for count in seen) < 120


def test_a_resolver_that_says_nothing_is_joined_by_the_next_and_then_asked_last():
    bench = resolving.Bench()
    bench.ask("www.example")
    assert bench.asked() == [FIRST]
    bench.later(0.6)
    assert bench.asked() == [FIRST, SECOND]
    bench.say(HERE)
    assert len(bench.came()) == 1 and not bench.way.sent
    bench.ask("other.example")
    assert bench.asked() == [SECOND]
    bench.say("other.example. 5 IN A 192.0.2.1")
    bench.later(6)
    bench.ask("third.example")
    assert bench.asked() == [FIRST]


def test_the_first_of_two_answers_wins_and_the_other_finds_nobody():
    bench = resolving.Bench()
    bench.ask("www.example")
    bench.later(0.6)
    slow = bench.way.sent[0]
    bench.say(HERE)
    bench.way.sent.append(slow)
    bench.say("www.example. 300 IN A 192.0.2.99")
    assert [resolving.texts(said) for said in bench.came()] == [["www.example. 192.0.2.80"]]


@pytest.mark.parametrize("rcode", [dns.rcode.SERVFAIL, dns.rcode.REFUSED, dns.rcode.NOTIMP, dns.rcode.NOTAUTH])
def test_what_one_resolver_refuses_the_next_may_know(rcode):
    bench = resolving.Bench()
    bench.ask("www.example", use_edns=0)
    while len(bench.way.sent) and bench.asked() == [FIRST]:
        bench.say(rcode=rcode)
    assert bench.asked() == [SECOND]
    bench.say(HERE)
    assert bench.came()[0].rcode() == dns.rcode.NOERROR


def test_what_every_resolver_refuses_is_refused_and_kept_for_a_second():
    bench = resolving.Bench()
    bench.ask("www.example")
    bench.say(rcode=dns.rcode.REFUSED)
    bench.say(rcode=dns.rcode.SERVFAIL)
    assert bench.came()[0].rcode() == dns.rcode.REFUSED
    assert bench.ask("www.example").rcode() == dns.rcode.REFUSED
    bench.now += 1.1
    assert bench.ask("www.example") is None


def test_without_any_answer_the_failure_is_said_in_five_seconds():
    bench = resolving.Bench()
    bench.ask("www.example")
    bench.later(4.8)
    assert not bench.came()
    bench.later(0.4)
    assert bench.came()[0].rcode() == dns.rcode.SERVFAIL
    assert not bench.way.sent and not bench.server.forwarder.questions and bench.counts["failed"] == 1


@pytest.mark.parametrize("servers", [(FIRST, SECOND), ()])
def test_without_a_way_to_any_resolver_the_failure_is_said_at_once_however_many_wait(servers):
    bench = resolving.Bench(servers=servers)
    for number in range(300):
        bench.ask(f"n{number}.example")
    if servers:
        bench.came()
        bench.way.works = False
        bench.later(6)
    assert {said.rcode() for said in bench.came()} <= {dns.rcode.SERVFAIL, dns.rcode.REFUSED}
    assert not bench.server.forwarder.questions


def test_a_port_that_is_closed_there_is_not_waited_for():
    bench = resolving.Bench()
    bench.ask("www.example")
    bench.server.forwarder.broken(bench.way.sent[0][0], bench.now)
    assert bench.asked() == [SECOND]


def test_a_truncated_answer_is_fetched_over_tcp_and_cut_for_those_who_take_less():
    bench = resolving.Bench()
    long = [f'big.example. 60 IN TXT "{letter * 250}"' for letter in "abcdefgh"]
    bench.ask("big.example", "TXT", use_edns=0, payload=4096)
    bench.say(flags=dns.flags.TC)
    (one, _) = bench.way.sent[-1]
    assert one.tcp and str(one.resolver) == FIRST
    bench.say(*long)
    (said,) = bench.came()
    assert said.flags & dns.flags.TC and not said.answer  # 1232 is what the server sends
    query = dns.message.make_query("big.example", "TXT", use_edns=False)
    got = []

    class Connection:
        def answer(self, message, now):
            got.append(message)

    whole = dns.message.from_wire(bench.server.query(query.to_wire(), Connection(), b"tcp", bench.now))
    assert len(resolving.texts(whole)) == 8 and not whole.flags & dns.flags.TC


@pytest.mark.parametrize(
    ("payload", "most"), [(None, 512), (0, 512), (512, 512), (700, 700), (1232, 1232), (4096, 1232)]
)
def test_an_answer_over_udp_is_as_long_as_the_client_takes_and_the_server_sends(payload, most):
    bench = resolving.Bench()
    given = {"use_edns": False} if payload is None else {"use_edns": 0, "payload": payload}
    bench.ask("big.example", "TXT", **given)
    bench.say(*[f'big.example. 60 IN TXT "{letter * 200}"' for letter in "ab"])
    assert not bench.came()[0].flags & dns.flags.TC
    for size in range(1, 8):
        name = f"n{size}.example"
        bench.ask(name, "TXT", **given)
        bench.say(*[f'{name}. 60 IN TXT "{letter * 200}"' for letter in "abcdefgh"[:size]])
        raw = bench.server.outbox[0][0]
        (said,) = bench.came()
        whole = len(dns.message.from_wire(raw).answer) == 1
        assert len(raw) <= most and whole is not bool(said.flags & dns.flags.TC)
        assert whole is (40 + size * 213 <= most) or abs(40 + size * 213 - most) < 40


def test_additional_records_that_do_not_fit_are_left_out_silently():
    bench = resolving.Bench()
    bench.ask("example", "MX")

    def more(raw):
        message = dns.message.from_wire(raw)
        for letter in "abcdef":
            message.additional.append(dns.rrset.from_text(f"{letter}.example.", 60, "IN", "TXT", f'"{letter * 200}"'))
        return message.to_wire()

    bench.say("example. 60 IN MX 10 a.example.", raw=more)
    (said,) = bench.came()
    assert resolving.texts(said) == ["example. 10 a.example."]
    assert not said.flags & dns.flags.TC and not said.additional


def test_opt_is_sent_to_who_sent_it_and_asked_of_a_resolver_until_it_knows_none():
    bench = resolving.Bench()
    assert bench.ask("a.example") is None
    assert dns.message.from_wire(bench.way.sent[0][1]).edns == 0
    bench.say(rcode=dns.rcode.FORMERR)
    assert bench.asked() == [FIRST] and dns.message.from_wire(bench.way.sent[0][1]).edns == -1
    bench.say("a.example. 60 IN A 192.0.2.1")
    assert bench.came()[0].edns == -1
    assert bench.ask("a.example", use_edns=0).edns == 0
    bench.ask("b.example", use_edns=0)
    assert dns.message.from_wire(bench.way.sent[0][1]).edns == -1


def test_dnssec_records_are_for_those_who_asked_for_them():
    bench = resolving.Bench()
    bench.ask("www.example", use_edns=0, want_dnssec=True)
    assert dns.message.from_wire(bench.way.sent[0][1]).ednsflags & dns.flags.DO
    bench.say(HERE, flags=dns.flags.AD)
    (said,) = bench.came()
    assert said.flags & dns.flags.AD and said.ednsflags & dns.flags.DO
    assert bench.ask("www.example") is None
    bench.say(HERE, flags=dns.flags.AD)
    assert not bench.came()[0].flags & dns.flags.AD


def test_one_guest_cannot_have_more_than_its_share_under_way():
    bench = resolving.Bench()
    sent = forward.GUEST_MAX + forward.WAITING_MAX
    refused = [bench.ask(f"n{number}.example") for number in range(sent + 10)][sent:]
    assert [said.rcode() for said in refused] == [dns.rcode.REFUSED] * 10
    assert len(bench.way.sent) == forward.GUEST_MAX and bench.counts["limited"] == 10
    assert bench.ask("mine.example", guest=resolving.OTHER) is None
    assert len(bench.way.sent) == forward.GUEST_MAX + 1
    for _ in range(sent + 1):
        bench.say(rcode=dns.rcode.NXDOMAIN)
    assert len(bench.came()) == sent + 1 and not bench.server.forwarder.questions


def test_the_rate_of_a_guest_is_bounded():
    bench = resolving.Bench(rate=50)
    for number in range(100):
        bench.ask(f"n{number}.example")
        if bench.way.sent:
            bench.say(rcode=dns.rcode.NXDOMAIN)
    assert bench.counts["forwarded"] == bench.counts["limited"] == 50
    bench.now += 0.5
    for number in range(200, 300):
        bench.ask(f"n{number}.example")
    assert bench.counts["forwarded"] == 75


def test_what_is_kept_is_bounded_and_what_is_used_stays():
    bench = resolving.Bench(count=100)
    for number in range(500):
        bench.ask(f"n{number}.example")
        bench.say(f"n{number}.example. 3000 IN A 192.0.2.1")
        bench.now += 0.1
        assert bench.ask("n0.example") is not None
    kept = bench.server.cache
    assert len(kept.answers) == 100 and len(kept.ready) <= 400
    assert kept.bytes == sum(answer.bytes for answer in kept.answers.values())
    kept.forget()
    assert not kept.bytes and not kept.ready


def test_addresses_of_the_inside_are_stripped_from_answers_of_the_outside():
    bench = resolving.Bench(allowed=[names.packed("corp.example")])
    bench.ask("evil.example")
    inside = ("127.0.0.1", "169.254.169.254", "0.0.0.0", "10.0.2.2", "192.0.2.80", "192.168.1.1")
    bench.say(*[f"evil.example. 60 IN A {address}" for address in inside])
    assert resolving.texts(bench.came()[0]) == ["evil.example. 192.0.2.80", "evil.example. 192.168.1.1"]
    bench.ask("evil.example", "AAAA")
    inside = ("::1", "::", "fe80::1", "::ffff:127.0.0.1", "2001:db8::1")
    bench.say(*[f"evil.example. 60 IN AAAA {address}" for address in inside])
    assert resolving.texts(bench.came()[0]) == ["evil.example. 2001:db8::1"]
    bench.ask("evil.example", "HTTPS")
    bench.say("evil.example. 60 IN HTTPS 1 . ipv4hint=127.0.0.1", "evil.example. 60 IN HTTPS 2 . ipv4hint=192.0.2.1")
    assert resolving.texts(bench.came()[0]) == ['evil.example. 2 . ipv4hint="192.0.2.1"']
    assert bench.counts["rebinding"] == 9
    bench.ask("www.corp.example")
    bench.say("www.corp.example. 60 IN A 127.0.0.1")
    assert resolving.texts(bench.came()[0]) == ["www.corp.example. 127.0.0.1"]


def test_private_addresses_are_stripped_where_that_was_asked_for():
    bench = resolving.Bench(private=True)
    bench.ask("www.example")
    bench.say("www.example. 60 IN A 192.168.1.1", "www.example. 60 IN A 10.1.1.1", HERE)
    assert resolving.texts(bench.came()[0]) == ["www.example. 192.0.2.80"]


def test_a_domain_with_resolvers_of_its_own_is_asked_of_them_alone():
    bench = resolving.Bench()
    bench.server.forwarder.domains = {names.packed("corp.example"): [resolvers.read("192.0.2.9:5353")]}
    for name in ("www.corp.example", "corp.example", "deep.www.CORP.example", "acorp.example"):
        bench.ask(name)
    assert bench.asked() == ["192.0.2.9:5353"] * 3 + [FIRST]


def test_other_resolvers_are_asked_anew():
    bench = resolving.Bench()
    bench.ask("www.example")
    bench.say(HERE)
    assert bench.ask("www.example") is not None
    bench.server.resolve_by([resolvers.read("192.0.2.7")])
    assert bench.ask("www.example") is None and bench.asked() == ["192.0.2.7"]


def test_a_resolv_conf_is_read_as_libc_reads_it(tmp_path):
    conf = tmp_path / "resolv.conf"
    conf.write_text(
        "# nameserver 192.0.2.66\nsearch example\nnameserver 192.0.2.1 # main\n nameserver\t2001:db8::1\n"
        "nameserver fe80::1%lo\nnameserver nonsense\noptions edns0\nnameserver 127.0.0.53\n"
    )
    follow = resolvers.File(str(conf))
    assert [str(one) for one in follow.changed(0)] == ["192.0.2.1", "2001:db8::1", "fe80::1", "127.0.0.53"]
    assert follow.changed(0.5) is None and follow.changed(1.1) is None
    for text in ("nameserver 192.0.2.2\n", "", "\xff\0nameserver", "x" * 200_000):
        conf.write_text(text)
        found = follow.changed(follow.next_look)
        assert (
            [str(one) for one in found] == (["192.0.2.2"] if "192" in text else ["127.0.0.1"])
            if found
            else "192" not in text
        )
    missing = resolvers.File(str(tmp_path / "nowhere"))
    assert [str(one) for one in missing.changed(0)] == ["127.0.0.1"]
