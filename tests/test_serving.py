"""What a service gets and may send: broadcasts, groups, super-datagrams, peers that nobody knows yet. The service here is the
test's own, the other end the kernel's."""

import dataclasses
import ipaddress
import socket
import types

import pytest

from shardnet import links, serving
from shardnet.workers import tap

HERE, HERE6, LOCAL = "10.0.2.7", "fec0::7", "fe80::7"
GUEST, GUEST6 = "10.0.2.15", "fec0::15"
RELAYS = "ff02::1:2"
EVERYBODY = "255.255.255.255"
UDP_SEGMENT = 103  # linux/udp.h

pytestmark = pytest.mark.needs("root", "/dev/net/tun")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(serving.Options):
    pass


class Port:
    """A service that only listens; the test answers."""

    def __init__(self, given, place):
        self.options, self.place, self.got = given, place, []

    def prepare(self):
        pass

    def open(self):
        given = serving.described(
            self.options, self.place, udp=[67, 547, (7000, 7010)], groups=[RELAYS], broadcast=True
        )
        self.place.shard.add_service(self.place.port, given)
        self.place.serve(self.got.extend)

    def close(self):
        self.place.shard.remove(self.place.port)


KIND = types.SimpleNamespace(Options=Options, Port=Port, check=serving.check)


def packed(text):
    return ipaddress.ip_address(text).packed


class Link:
    """The service, and a namespace that speaks to it."""

    def __init__(self, desk, netns):
        self.desk, self.netns = desk, netns
        self.place = desk.add(KIND, address=f"{HERE}/24", address6=f"{HERE6}/64")
        desk.add(tap, ifname="in", netns=netns.name)
        netns.run("sysctl", "-qw", "net.ipv6.conf.in.accept_dad=0")
        for word in (f"{GUEST}/24", f"{GUEST6}/64"):
            netns.run("ip", "addr", "add", word, "dev", "in", *(["nodad"] if ":" in word else []))
        self.mac = bytes.fromhex(netns.run("cat", "/sys/class/net/in/address").strip().replace(":", ""))
        with links.namespace(netns.name):
            self.index = socket.if_nametoindex("in")

    def socket(self, host, port=None):
        with links.namespace(self.netns.name):
            made = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"in")
        made.setblocking(False)
        if port is not None:
            made.bind(("", port))
        return made

    def got(self, count=1):
        """The next datagrams that came to the service."""
        self.desk.until(lambda: len(self.place.carried.got) >= count)
        found, self.place.carried.got[:] = self.place.carried.got[:], []
        return found

    def take(self, sock):
        def attempt():
            try:
                return sock.recvfrom(70000)
            except BlockingIOError:
                return None

        return self.desk.until(attempt)


@pytest.fixture
def link(desk, namespace):
    return Link(desk, namespace("in"))


def test_a_broadcast_comes_with_the_address_it_was_sent_to_and_is_answered_by_one(link):
    client = link.socket(GUEST, 68)
    client.sendto(b"discover", (EVERYBODY, 67))
    client.sendto(b"and here", ("10.0.2.255", 67))
    first, second = link.got(2)
    assert first == (b"discover", packed(GUEST), 68, packed(EVERYBODY), 67, link.mac)
    assert second[3] == packed("10.0.2.255")
    link.place.answer([(b"offer", packed(EVERYBODY), 68, first[3], 67, b"")])
    assert link.take(client) == (b"offer", (HERE, 67))
    link.place.answer([(b"to you alone", packed("10.0.2.99"), 68, packed(HERE), 67, link.mac)])
    link.netns.run("ip", "addr", "add", "10.0.2.99/24", "dev", "in")
    link.place.answer([(b"to you alone", packed("10.0.2.99"), 68, packed(HERE), 67, link.mac)])
    assert link.take(client) == (b"to you alone", (HERE, 67))


def test_a_group_is_answered_from_the_address_on_the_link(link):
    link.netns.run("ip", "addr", "add", "fe80::15/64", "dev", "in", "nodad")
    client = link.socket(LOCAL)
    client.bind(("fe80::15", 546, 0, link.index))
    client.sendto(b"solicit", (RELAYS, 547, 0, link.index))
    ((payload, peer, port, local, to, mac),) = link.got()
    assert (payload, port, local, to, mac) == (b"solicit", 546, packed(RELAYS), 547, link.mac)
    assert peer == packed("fe80::15")
    link.place.answer([(b"advertise", peer, port, local, to, mac)])
    data, where = link.take(client)
    assert (data, where[0].partition("%")[0], where[1]) == (b"advertise", LOCAL, 547)
    client.sendto(b"unicast", (HERE6, 547))
    assert link.got()[0][3] == packed(HERE6)


@pytest.mark.parametrize("host", [HERE, HERE6])
def test_a_super_datagram_arrives_as_those_that_it_is_made_of(link, host):
    client = link.socket(host)
    client.setsockopt(socket.IPPROTO_UDP, UDP_SEGMENT, 1000)
    data = bytes(range(256)) * 41
    client.sendto(data, (host, 7005))
    found = [datagram[0] for datagram in link.got(11)]
    assert [len(one) for one in found] == [1000] * 10 + [496]
    assert b"".join(found) == data


@pytest.mark.parametrize(("host", "guest", "nobody"), [(HERE, GUEST, "10.0.2.99"), (HERE6, GUEST6, "fec0::99")])
def test_a_peer_that_nobody_has_heard_is_asked_for(link, host, guest, nobody):
    client = link.socket(host, 5000)
    link.place.seek(packed(guest))  # whatever it said as it came up is forgotten
    link.place.answer([(b"first", packed(guest), 5000, packed(host), 67, b"")])
    link.place.answer([(b"lost", packed(nobody), 5000, packed(host), 67, b"")])
    assert link.take(client)[0] == b"first"
    assert link.place.found(packed(guest)) == link.mac
    link.desk.until(lambda: link.desk.shard.unresolved(link.place.port) == 1)
    link.place.seek(packed(guest))
    assert link.place.found(packed(guest)) is None
    link.desk.until(lambda: link.place.found(packed(guest)) == link.mac)
    assert link.place.found(packed(nobody)) is None


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({0: bytes(65_508)}, "longer than 65,507"),
        ({1: b"\0" * 5}, "neither 4 nor 16"),
        ({1: packed(GUEST6)}, "nobody"),
        ({2: 0}, "nobody"),
        ({3: packed(GUEST)}, "not the service's"),
        ({4: 68}, "not the service's"),
        ({5: b"\0"}, "neither 0 nor 6"),
    ],
)
def test_what_no_service_may_send_is_refused(link, change, why):
    right = (b"x", packed(GUEST), 5000, packed(HERE), 67, link.mac)
    with pytest.raises(ValueError, match=why):
        link.place.answer([tuple(change.get(at, field) for at, field in enumerate(right))])
