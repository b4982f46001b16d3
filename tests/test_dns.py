"""[dns NAME] in running labs, asked by real clients in a namespace and in a guest; real resolvers behind it."""

import contextlib
import os
import signal
import socket
import struct
import time

import dns.message
import pytest

import deadline
import dnsmessages
import labs
import nameserver
import namespaces
from shardnet import lab as labfile
from shardnet import links, options
from shardnet.services import dns as service

NEEDS = pytest.mark.needs("root", "/dev/net/tun", "dig", "drill", "dnsmasq")
TAP = """
[tap inside]
ifname = inside
netns = {netns}
address = 10.0.2.15/24
"""
ALONE = """
[dns names]
address = 10.0.2.3/24
address6 = fec0::3/64
host = 10.0.2.2,fec0::2
dns-servers = {resolver}
resolver = corp.test {corp}
record = www A 10.0.2.20
         www AAAA fec0::20
         web CNAME www
         lab.example MX 10 www
         _ldap._tcp.lab.example SRV 0 5 389 www
         *.apps.lab.example A 10.0.2.21
zone = lab.example
"""
BEHIND = """
[user net0]
dns-servers = {resolver}
record = www A 10.0.2.20
"""
OUTSIDE = (
    "--host-record=www.out.test,192.0.2.80,2001:db8::80", "--cname=alias.out.test,www.out.test",
    "--mx-host=out.test,mail.out.test,5", "--srv-host=_sip._udp.out.test,sip.out.test,5060,1,2",
    "--txt-record=big.out.test," + ",".join(letter * 250 for letter in "abcdefg"), "--txt-record=out.test,hello",
    "--ptr-record=80.2.0.192.in-addr.arpa,www.out.test", "--host-record=evil.out.test,127.0.0.1", "--local-ttl=300",
    "--caa-record=out.test,0,issue,ca.example", "--naptr-record=out.test,10,20,s,SIP+D2U,,_sip._udp.out.test",
)  # fmt: skip
INSIDE = ("--host-record=intra.corp.test,10.1.1.1", "--host-record=only.corp.test,127.0.0.7")


class Inside:
    """A namespace behind a TAP of the lab, and its clients."""

    def __init__(self, netns, lab=None):
        self.netns, self.lab = netns, lab
        netns.run("sysctl", "-qw", "net.ipv6.conf.default.accept_dad=0")

    def start(self, start, text, **given):
        self.lab = start((text + TAP).format(netns=self.netns.name, **given))
        self.netns.run("ip", "addr", "replace", "fec0::15/64", "dev", "inside", "nodad")
        self.lab.until_up("inside")

    def dig(self, *words, server="10.0.2.3"):
        return self.netns.run("dig", f"@{server}", "+time=5", "+tries=2", *words)

    def short(self, *words, server="10.0.2.3"):
        return sorted(self.dig("+short", *words, server=server).split("\n")[:-1])

    def status(self, *words):
        text = self.dig(*words)
        return text.partition("status: ")[2].partition(",")[0]

    def udp(self):
        with links.namespace(self.netns.name):
            made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        made.connect(("10.0.2.3", 53))
        made.settimeout(5)
        return made

    def tcp(self):
        with links.namespace(self.netns.name):
            return socket.create_connection(("10.0.2.3", 53), timeout=10)


@pytest.fixture(scope="module")
def inside(tmp_path_factory):
    """A DNS service alone on a switch, two resolvers and a namespace."""
    directory = tmp_path_factory.mktemp("dns")
    with contextlib.ExitStack() as stack:
        out = stack.enter_context(nameserver.answering(directory, nameserver.loopback(1), *OUTSIDE))
        corp = stack.enter_context(nameserver.answering(directory, nameserver.loopback(1), *INSIDE, port=5353))
        made = Inside(stack.enter_context(namespaces.making())("in"))
        made.out, made.corp = out, corp
        made.start(
            stack.enter_context(labs.starting(directory)), ALONE, resolver=out.address, corp=f"{corp.address}:5353"
        )
        yield made


@NEEDS
@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("www.out.test", ["192.0.2.80"]),
        ("www.out.test AAAA", ["2001:db8::80"]),
        ("alias.out.test", ["192.0.2.80", "www.out.test."]),
        ("out.test MX", ["5 mail.out.test."]),
        ("out.test TXT", ['"hello"']),
        ("out.test CAA", ['0 issue "ca.example"']),
        ("out.test NAPTR", ['10 20 "s" "SIP+D2U" "" _sip._udp.out.test.']),
        ("_sip._udp.out.test SRV", ["1 2 5060 sip.out.test."]),
        ("-x 192.0.2.80", ["www.out.test."]),
        ("intra.corp.test", ["10.1.1.1"]),
        ("only.corp.test", ["127.0.0.7"]),
        ("evil.out.test", []),
        ("www.internal", ["10.0.2.20"]),
        ("www", ["10.0.2.20"]),
        ("web.internal AAAA", ["fec0::20", "www.internal."]),
        ("gateway", ["10.0.2.2"]),
        ("host.internal AAAA", ["fec0::2"]),
        ("dns.internal", ["10.0.2.3"]),
        ("lab.example MX", ["10 www.internal."]),
        ("_ldap._tcp.lab.example SRV", ["0 5 389 www.internal."]),
        ("any.thing.apps.lab.example", ["10.0.2.21"]),
        ("-x 10.0.2.20", ["www.internal."]),
        ("-x fec0::20", ["www.internal."]),
    ],
)
def test_dig_gets_every_kind_of_record(inside, words, said):
    for more in ((), ("+tcp",), ("+noedns",)):
        assert inside.short(*words.split(), *more) == said
    assert inside.short(*words.split(), server="fec0::3") == said


@NEEDS
@pytest.mark.parametrize(
    ("words", "status"),
    [
        ("nowhere.out.test", "NXDOMAIN"),
        ("nowhere.lab.example", "NXDOMAIN"),
        ("nowhere.internal", "NXDOMAIN"),
        ("-x 10.0.2.99", "NXDOMAIN"),
        ("www.internal TXT", "NOERROR"),
        ("version.bind CH TXT", "REFUSED"),
        ("out.test AXFR +tcp", "REFUSED"),
        ("+edns=1 +noednsnegotiation www.internal", "BADVERS"),
        ("+opcode=notify www.internal +noedns", "NOTIMP"),
        ("+header-only +noedns", "FORMERR"),
    ],
)
def test_dig_is_told_what_is_not_there_and_what_is_not_done(inside, words, status):
    text = inside.dig(*words.split())
    assert f"status: {status}" in text or (status == "REFUSED" and "Transfer failed" in text), text


@NEEDS
def test_other_clients_get_their_answers(inside, tmp_path):
    assert "192.0.2.80" in inside.netns.run("drill", "www.out.test", "@10.0.2.3")
    assert "2001:db8::80" in inside.netns.run("drill", "www.out.test", "AAAA", "@fec0::3")
    conf = tmp_path / "resolv.conf"
    conf.write_text("nameserver 10.0.2.3\nsearch internal\n")
    libc = f"mount --bind {conf} /etc/resolv.conf && getent "
    for words, said in (
        ("ahostsv4 www", "10.0.2.20"),
        ("ahostsv6 web", "fec0::20"),
        ("hosts 10.0.2.20", "www.internal"),
        ("ahostsv4 www.out.test", "192.0.2.80"),
    ):
        assert said in inside.netns.run("unshare", "-m", "sh", "-c", libc + words)


@NEEDS
def test_a_long_answer_is_cut_at_what_the_client_takes_and_whole_over_tcp(inside):
    for size, flag in ((512, "tc"), (1232, "tc"), (4096, "tc")):  # 1232 is the most that the service sends
        text = inside.dig("big.out.test", "TXT", f"+bufsize={size}", "+ignore")
        assert f" {flag} " in text.partition("flags:")[2].partition(";")[0], text
    assert len(inside.short("big.out.test", "TXT")[0].split()) == 7
    assert inside.out.asked("big.out.test") <= 4  # once for each form of the question, over UDP and TCP


@NEEDS
def test_questions_on_one_connection_are_all_answered(inside):
    names = ["www.out.test", "www.internal", "nowhere.out.test", "intra.corp.test"] * 20
    queries = [dns.message.make_query(name, "A", id=number) for number, name in enumerate(names)]
    raw = b"".join(struct.pack(">H", len(wire)) + wire for wire in (query.to_wire() for query in queries))
    got = {}
    with inside.tcp() as sock:
        sock.sendall(raw)
        stream = sock.makefile("rb")
        while len(got) < len(queries):
            (size,) = struct.unpack(">H", stream.read(2))
            said = dns.message.from_wire(stream.read(size))
            assert queries[said.id].is_response(said)
            got[said.id] = said
    with inside.tcp() as sock:  # what is no query is hung up on
        sock.sendall(b"\0\x03GET / HTTP/1.1\r\n\r\n")
        with contextlib.suppress(ConnectionResetError):
            assert sock.recv(1000) == b""


@NEEDS
def test_malformed_messages_cost_the_service_nothing(inside):
    before = inside.lab.workers()
    corpus = [*dnsmessages.malformed(), *dnsmessages.noise(2, 300)]
    with inside.udp() as sock:
        for raw in corpus:
            with contextlib.suppress(ConnectionRefusedError):
                sock.send(raw)
    assert inside.short("www.internal") == ["10.0.2.20"]
    assert inside.lab.workers() == before
    (names,) = inside.lab.json("port", "show", "names")
    counts = names["counts"]
    assert counts["malformed"] > 400 and "mistakes" not in counts, counts


@NEEDS
def test_the_names_are_listed(inside):
    rows = inside.lab.shardnet("names", "--no-headers")
    assert any(row.split() == ["www.internal", "10", "A", "10.0.2.20", "record", "names"] for row in rows.splitlines())
    assert "PTR" not in rows and "www.internal" in inside.lab.shardnet("names", "--reverse", "names")
    with inside.lab.client() as client:
        (first, second) = client.rows("names", "resolvers")
    assert (first["domain"], first["resolver"]) == ("", inside.out.address)
    assert (second["domain"], second["resolver"]) == ("corp.test", f"{inside.corp.address}:5353")


@NEEDS
def test_a_killed_service_is_back_under_load_and_answers_right(inside):
    before = inside.lab.workers()
    query = dns.message.make_query("www.out.test", "A")
    answered = 0
    with inside.udp() as sock:
        sock.settimeout(0.01)
        end = time.monotonic() + 20
        while answered < 200 and time.monotonic() < end:
            if answered == 100 and inside.lab.workers()["names"] == before["names"]:
                os.kill(before["names"], signal.SIGKILL)
            sock.send(query.to_wire())
            with contextlib.suppress(TimeoutError, ConnectionRefusedError):
                said = dns.message.from_wire(sock.recv(4096))
                answered += "192.0.2.80" in said.to_text()
    assert answered == 200
    inside.lab.until_up("names")
    after = inside.lab.workers()
    assert after["names"] != before["names"] and after["inside"] == before["inside"]
    assert inside.short("www.internal") == ["10.0.2.20"]


@NEEDS
def test_a_resolver_that_is_dead_is_passed_over(lab, namespace, tmp_path):
    made = Inside(namespace("in"))
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent,
        nameserver.answering(tmp_path, nameserver.loopback(2), *OUTSIDE) as out,
    ):
        silent.bind((nameserver.loopback(3), 53))
        made.start(lab, BEHIND, resolver=f"{silent.getsockname()[0]},{out.address}")
        made.lab.until_up("net0", "net0.dns")
        assert made.short("www.out.test") == ["192.0.2.80"]
        silent.setblocking(False)
        assert b"\3www\3out\4test" in silent.recv(1000)
        assert made.short("alias.out.test", server="fec0::3") == ["192.0.2.80", "www.out.test."]
        with pytest.raises(BlockingIOError):
            silent.recv(1000)  # it is asked last now
        assert made.short("www") == ["10.0.2.20"] and made.short("gateway.internal") == ["10.0.2.2"]
        out.stop()
        assert made.status("other.out.test", "+tries=1", "+time=10") == "SERVFAIL"


@NEEDS
def test_a_resolv_conf_is_followed_from_before_it_is_there(lab, namespace, tmp_path):
    made, conf = Inside(namespace("in")), tmp_path / "resolv.conf"
    text = ALONE.replace("dns-servers = {resolver}", f"resolv-conf = {conf}").replace(
        "resolver = corp.test {corp}\n", ""
    )
    one, two = nameserver.loopback(4), nameserver.loopback(5)
    with (
        nameserver.answering(tmp_path, one, "--host-record=who.out.test,192.0.2.1"),
        nameserver.answering(tmp_path, two, "--host-record=who.out.test,192.0.2.2"),
    ):
        made.start(lab, text)
        assert made.short("www.internal") == ["10.0.2.20"]
        for address, said in ((one, "192.0.2.1"), (two, "192.0.2.2")):
            fresh = tmp_path / "fresh"
            fresh.write_text(f"nameserver {address}\n")
            fresh.rename(conf)
            deadline.until(lambda said=said: made.short("who.out.test") == [said], f"an answer of {address}", every=0.1)


LEASED = """
[dhcp pool]
address = 10.0.2.2/24
lease = 52:54:00:00:00:99 10.0.2.50 web1

[dns names]
address = 10.0.2.3/24
forward = off

[tap inside]
ifname = inside
netns = {netns}
"""


@NEEDS
@pytest.mark.needs("/bin/busybox")
def test_a_guest_has_a_name_while_it_has_its_lease_and_after_the_service_was_killed(lab, namespace):
    made = Inside(namespace("in"))
    made.lab = lab(LEASED.format(netns=made.netns.name))
    made.lab.until_up("inside", "pool", "names")
    got = made.netns.run("busybox", "udhcpc", "-i", "inside", "-n", "-q", "-f", "-s", "/bin/true", "-x", "hostname:vm1")
    assert "10.0.2.15" in got, got
    made.netns.run("ip", "address", "add", "10.0.2.15/24", "dev", "inside")

    def known():
        expected = {"vm1": "10.0.2.15", "vm1.internal": "10.0.2.15", "web1": "10.0.2.50"}
        return all(made.short(name) == [address] for name, address in expected.items())

    deadline.until(known, "the names of the leases")
    assert made.short("-x", "10.0.2.15") == ["vm1.internal."] and made.short("-x", "10.0.2.50") == ["web1.internal."]
    assert made.status("www.out.test") == "REFUSED"
    before = made.lab.workers()["names"]
    os.kill(before, signal.SIGKILL)
    deadline.until(lambda: made.lab.workers()["names"] not in (None, before), "a new worker")
    deadline.until(known, "the names, told once more")
    rows = [row.split() for row in made.lab.shardnet("names", "--no-headers").splitlines()]
    assert ["vm1.internal", "10", "A", "10.0.2.15", "lease", "names"] in rows


@NEEDS
@pytest.mark.needs("/bin/busybox")
def test_the_names_of_old_leases_are_there_when_a_lab_has_started(lab, namespace):
    made = Inside(namespace("in"))
    made.lab = lab(LEASED.format(netns=made.netns.name))
    made.lab.until_up("inside", "pool", "names")
    made.netns.run("busybox", "udhcpc", "-i", "inside", "-n", "-q", "-f", "-s", "/bin/true", "-x", "hostname:vm1")
    for _ in range(5):
        made.lab.restart()
        # At once, without a second look.
        names = made.lab.shardnet("names", "--no-headers")
        assert "vm1.internal 10 A 10.0.2.15 lease names" in [" ".join(row.split()) for row in names.splitlines()]


@NEEDS
@pytest.mark.needs("guests")
def test_a_guest_asks_with_its_own_resolver(lab, guest, tmp_path):
    text = BEHIND + "[stream vm1]\nserver = on\naddr.type = unix\naddr.path = vm1.sock\n"
    with nameserver.answering(tmp_path, nameserver.loopback(6), *OUTSIDE) as out:
        running = lab(text.format(resolver=out.address))
        vm = guest([f"stream,server=off,addr.type=unix,addr.path={running.run_dir}/vm1.sock"])
        vm.address(0, "10.0.2.15/24")
        vm.run("mkdir -p /etc && echo nameserver 10.0.2.3 >/etc/resolv.conf")
        assert "192.0.2.80" in vm.run("nslookup www.out.test")
        assert "2001:db8::80" in vm.run("nslookup -type=aaaa www.out.test")
        assert "10.0.2.20" in vm.run("nslookup www.internal 10.0.2.3")
        assert "www.internal" in vm.run("nslookup 10.0.2.20")
        assert "NXDOMAIN" in vm.run("nslookup nowhere.out.test || true")


def test_a_restricted_network_has_no_dns_server():
    (net0,) = labfile.ports("[user net0]\nrestrict = on")
    assert "dns" not in labfile.companions(net0)
    with pytest.raises(labfile.Wrong, match="dns-servers = 10.0.0.1: restrict = on leaves guests without a DNS server"):
        labfile.ports("[user net0]\nrestrict = on\ndns-servers = 10.0.0.1")


def test_qemus_options_place_the_server():
    (net0,) = labfile.ports(
        "[user net0]\nnet = 10.9.0.0/24\ndns = 10.9.0.53\nipv6-dns = fec0::53\ndomainname = lab.example"
    )
    given = labfile.companions(net0)["dns"].given
    assert given == {
        "address": "10.9.0.53/24", "address6": "fec0::53/64", "host": "10.9.0.2,fec0::2", "domainname": "lab.example",
        "rebinding": "local",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({"record": "www A x"}, ": x: no IPv4 address"),
        ({"record": "a CNAME b\na A 10.0.2.1"}, "a.internal CNAME b: a name with an alias has no other record"),
        (
            {"resolver": "corp.example"},
            "corp.example: DOMAIN ADDRESS is meant, such as corp.example 10.1.1.1",
        ),
        ({"dns_servers": "10.0.0"}, "dns-servers = 10.0.0: 10.0.0: no address of a resolver"),
        ({"dns_servers": "10.0.0.1", "resolv_conf": "/x"}, "resolv-conf = /x: dns-servers says whom to ask"),
        ({"forward": "off", "dns_servers": "10.0.0.1"}, "dns-servers = 10.0.0.1: forward = off asks nobody"),
        ({"domainname": "a..b"}, "domainname = a..b: a..b: no name"),
    ],
)
def test_a_mistake_says_what_is_meant(given, why):
    with pytest.raises(options.Wrong) as wrong:
        options.read(
            service, {"address": "10.0.2.3/24", **{key.replace("_", "-"): text for key, text in given.items()}}
        )
    assert why in str(wrong.value)
