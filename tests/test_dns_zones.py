"""Names of the lab: guests' by their leases, records and zones of the lab file."""

import dns.rcode
import pytest

import resolving
from shardnet.dns import zones

RECORDS = (
    "www A 10.0.2.20",
    "www AAAA fec0::20",
    "web CNAME www",
    "out CNAME www.example.org",
    "one CNAME two",
    "two CNAME one",
    "lab.example MX 10 mail",
    "_ldap._tcp.lab.example SRV 0 5 389 www",
    'lab.example TXT "v=spf1 -all" "and more"',
    "*.apps.lab.example 60 A 10.0.2.21",
    "real.apps.lab.example A 10.0.2.22",
    "www.over.example A 192.0.2.99",
)


@pytest.fixture
def bench():
    return resolving.Bench(*RECORDS, zone=["lab.example"])


@pytest.mark.parametrize(
    ("name", "kind", "said"),
    [
        ("www.internal", "A", ["www.internal. 10.0.2.20"]),
        ("WWW.Internal", "AAAA", ["WWW.Internal. fec0::20"]),
        ("www", "A", ["www. 10.0.2.20"]),
        ("web.internal", "A", ["web.internal. www.internal.", "www.internal. 10.0.2.20"]),
        ("web.internal", "CNAME", ["web.internal. www.internal."]),
        ("lab.example", "MX", ["lab.example. 10 mail.internal."]),
        ("lab.example", "TXT", ['lab.example. "v=spf1 -all" "and more"']),
        ("_ldap._tcp.lab.example", "SRV", ["_ldap._tcp.lab.example. 0 5 389 www.internal."]),
        ("a.apps.lab.example", "A", ["a.apps.lab.example. 10.0.2.21"]),
        ("b.a.apps.lab.example", "A", ["b.a.apps.lab.example. 10.0.2.21"]),
        ("real.apps.lab.example", "A", ["real.apps.lab.example. 10.0.2.22"]),
        ("20.2.0.10.in-addr.arpa", "PTR", ["20.2.0.10.in-addr.arpa. www.internal."]),
        ("www.over.example", "A", ["www.over.example. 192.0.2.99"]),
        ("localhost", "A", ["localhost. 127.0.0.1"]),
        ("x.localhost", "AAAA", ["x.localhost. ::1"]),
    ],
)
def test_what_the_lab_knows_it_says_itself(bench, name, kind, said):
    for _ in range(2):  # the second time it is kept
        answer = bench.ask(name, kind)
        assert resolving.texts(answer) == said and answer.rcode() == dns.rcode.NOERROR
    assert not bench.way.sent


@pytest.mark.parametrize(
    ("name", "kind", "rcode", "soa"),
    [
        ("nobody.internal", "A", "NXDOMAIN", "internal."),
        ("www.internal", "MX", "NOERROR", "internal."),
        ("internal", "A", "NOERROR", "internal."),
        ("nobody.lab.example", "A", "NXDOMAIN", "lab.example."),
        ("apps.lab.example", "A", "NOERROR", "lab.example."),  # RFC 4592, 2.2.2: names below it are there
        ("_tcp.lab.example", "A", "NOERROR", "lab.example."),
        ("below.real.apps.lab.example", "A", "NXDOMAIN", "lab.example."),  # RFC 4592, 2.2.1: real is closer
        ("a.apps.lab.example", "MX", "NOERROR", "lab.example."),
        ("99.2.0.10.in-addr.arpa", "PTR", "NXDOMAIN", "2.0.10.in-addr.arpa."),
        ("x.onion", "A", "NXDOMAIN", "onion."),
        ("_dns.resolver.arpa", "SVCB", "NXDOMAIN", "resolver.arpa."),
        ("www.over.example", "AAAA", "NOERROR", None),
    ],
)
def test_what_the_lab_does_not_know_in_its_zones_nobody_is_asked(bench, name, kind, rcode, soa):
    said = bench.ask(name, kind)
    assert dns.rcode.to_text(said.rcode()) == rcode and not said.answer and not bench.way.sent
    assert [str(rrset.name) for rrset in said.authority] == ([soa] if soa else [])


@pytest.mark.parametrize("name", ["over.example", "other.over.example", "example", "nobody", "30.2.0.11.in-addr.arpa"])
def test_other_names_are_asked_of_the_resolvers(bench, name):
    assert bench.ask(name) is None and len(bench.way.sent) == 1


def test_an_alias_to_the_outside_is_followed_there(bench):
    assert bench.ask("OUT.internal") is None
    bench.say("www.example.org. 60 IN CNAME cdn.example.net.", "cdn.example.net. 60 IN A 192.0.2.7")
    expected = ["cdn.example.net. 192.0.2.7", "OUT.internal. www.example.org.", "www.example.org. cdn.example.net."]
    assert resolving.texts(bench.came()[0]) == sorted(expected)
    bench.now += 10.2
    said = bench.ask("out.internal")
    assert resolving.texts(said) == sorted(text.replace("OUT", "out") for text in expected)
    assert [rrset.ttl for rrset in said.answer][1:] == [50, 50]


def test_aliases_in_a_circle_are_a_failure(bench):
    assert bench.ask("one.internal").rcode() == dns.rcode.SERVFAIL


def test_a_lease_names_a_guest_both_ways_until_it_ends(bench):
    bench.server.lease("VM1", "10.0.2.15", "52:54:00:00:00:01")
    for name in ("vm1.internal", "vm1"):
        assert resolving.texts(bench.ask(name)) == [f"{name}. 10.0.2.15"]
    back = "15.2.0.10.in-addr.arpa"
    assert resolving.texts(bench.ask(back, "PTR")) == [f"{back}. vm1.internal."]
    bench.server.lease("vm1", "10.0.2.16", "52:54:00:00:00:01")
    assert resolving.texts(bench.ask("vm1")) == ["vm1. 10.0.2.15", "vm1. 10.0.2.16"]
    bench.server.lease("other", "10.0.2.15", "52:54:00:00:00:01")
    assert resolving.texts(bench.ask("vm1")) == ["vm1. 10.0.2.16"]
    assert resolving.texts(bench.ask(back, "PTR")) == [f"{back}. other.internal."]
    for address in ("10.0.2.15", "10.0.2.16"):
        bench.server.lease("", address, "52:54:00:00:00:01")
    assert bench.ask("vm1.internal").rcode() == bench.ask(back, "PTR").rcode() == dns.rcode.NXDOMAIN
    assert not bench.server.zones.given


def test_a_guest_cannot_take_the_name_of_the_lab_or_of_another(bench):
    bench.server.lease("www", "10.0.2.15", "52:54:00:00:00:01")
    bench.server.lease("vm2", "10.0.2.16", "52:54:00:00:00:02")
    bench.server.lease("vm2", "10.0.2.15", "52:54:00:00:00:01")
    bench.server.lease("bad name!", "10.0.2.17", "52:54:00:00:00:03")
    assert resolving.texts(bench.ask("www")) == ["www. 10.0.2.20"]
    assert resolving.texts(bench.ask("vm2")) == ["vm2. 10.0.2.16"]
    bench.server.lease("", "10.0.2.16", "52:54:00:00:00:02")
    assert resolving.texts(bench.ask("vm2")) == ["vm2. 10.0.2.15"]


def test_what_is_known_is_listed(bench):
    bench.server.lease("vm1", "10.0.2.15", "52:54:00:00:00:01")
    rows = [(row["name"], row["type"], row["value"], row["source"]) for row in bench.server.zones.known()]
    assert ("vm1.internal", "A", "10.0.2.15", "lease") in rows
    assert ("15.2.0.10.in-addr.arpa", "PTR", "vm1.internal", "lease") in rows
    assert ("*.apps.lab.example", "A", "10.0.2.21", "record") in rows
    assert not [row for row in rows if "localhost" in row[0]]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("www", "NAME [TTL] TYPE VALUE is meant, such as www A 10.0.2.20"),
        ("www A", "NAME [TTL] TYPE VALUE is meant, such as www A 10.0.2.20"),
        ("www 60", "NAME [TTL] TYPE VALUE is meant, such as www A 10.0.2.20"),
        ("www A 10.0.2.256", "10.0.2.256: no IPv4 address"),
        ("www AAAA 10.0.2.2", "10.0.2.2: no IPv6 address"),
        ("www HINFO x y", "HINFO: not one of A, AAAA, CNAME, MX, NS, PTR, SRV, TXT"),
        ("w_w! A 10.0.2.2", "w_w!.internal: no name (letters, digits and - between dots)"),
        ("x 4294967296 A 10.0.2.2", "4294967296: a time to live is at most 2147483647 seconds"),
    ],
)
def test_a_wrong_record_says_what_is_meant(text, why):
    with pytest.raises(ValueError) as wrong:
        zones.record(text)
    assert str(wrong.value) == why


def test_a_record_with_wrong_data_says_so():
    for text in ("lab.example MX mail", "x SRV 1 2 www", 'x TXT "open'):
        with pytest.raises(ValueError, match="no data of"):
            zones.record(text)
