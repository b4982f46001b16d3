"""[echo NAME] alone on a switch, and with it what every service has: the kernel asks it through a TAP."""

import random
import socket

import pytest

import exchange
from shardnet import links, options
from shardnet.services import echo
from shardnet.workers import tap

HERE, HERE6 = "10.0.2.7", "fec0::7"
BOTH = pytest.mark.parametrize("host", [HERE, HERE6])


class Inside:
    """A namespace on the desk's switch, and sockets in it."""

    def __init__(self, desk, netns):
        self.desk, self.netns = desk, netns

    def socket(self, host, kind, port=0):
        with links.namespace(self.netns.name):
            made = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, kind)
        made.setblocking(False)
        made.bind(("", port))
        return made

    def ask(self, sock, data, host, port=echo.PORT):
        """What comes back for a datagram."""
        sock.sendto(data, (host, port))
        return self.desk.until(lambda: attempt(lambda: (sock.recv(70000),)))[0]

    def run(self, *command):
        return self.desk.runs(*self.netns.enter, *command, seconds=30)


def attempt(call):
    try:
        return call()
    except BlockingIOError:
        return None


def send(sock, data):
    return attempt(lambda: sock.send(data)) or 0


@pytest.fixture
def inside(desk, namespace):
    """An echo service and a namespace on one switch."""

    def make(mtu="1500"):
        netns = namespace("in")
        netns.run("sysctl", "-qw", "net.ipv6.conf.default.accept_dad=0")
        found = Inside(desk, netns)
        found.place = desk.add(echo, address=f"{HERE}/24", address6=f"{HERE6}/64", mtu=mtu)
        desk.add(tap, ifname="in", netns=netns.name, mtu="0")
        netns.run("ip", "link", "set", "in", "mtu", mtu)
        for word in ("10.0.2.15/24", "fec0::15/64"):
            netns.run("ip", "addr", "add", word, "dev", "in")
        return found

    return make


def test_a_service_needs_an_address():
    for given, why in (
        ({}, "address: missing (or address6)"),
        ({"address": "10.0.2.0/24"}, "address = 10.0.2.0/24: no address of one machine"),
        ({"address6": "ff02::1/64"}, "address6 = ff02::1/64: no address of one machine"),
        ({"address": "10.0.2"}, "address = 10.0.2: no address such as 10.0.2.3/24"),
    ):
        with pytest.raises(options.Wrong, match=f"^{why.replace('(', '.').replace(')', '.')}$"):
            options.read(echo, given)


@pytest.mark.needs("root", "/dev/net/tun")
@pytest.mark.parametrize("mtu", ["1500", "9000", "65520"])
@BOTH
def test_datagrams_of_every_length_come_back_as_they_were(inside, host, mtu):
    lab = inside(mtu)
    data = random.Random(1).randbytes(65_507)
    sock = lab.socket(host, socket.SOCK_DGRAM)
    for size in (0, 1, 7, 64, 1471, 1472, 1473, 1480, 4000, 8972, 9000, 32_000, 65_487, 65_507):
        assert lab.ask(sock, data[:size], host) == data[:size]
    assert lab.place.counts == {"datagrams": 14}


@pytest.mark.needs("root", "/dev/net/tun", "ping")
@BOTH
def test_its_address_answers_echo_and_other_ports_refuse(inside, host):
    lab = inside()
    exchange.all_answered(lab.run(*exchange.PING, "-s4000", host).stdout)
    sock = lab.socket(host, socket.SOCK_DGRAM)
    sock.connect((host, 9))
    sock.send(b"x")
    with pytest.raises(ConnectionRefusedError):
        lab.desk.until(lambda: attempt(lambda: sock.recv(10)))
    sock = lab.socket(host, socket.SOCK_STREAM)
    sock.connect_ex((host, 9))
    lab.desk.until(lambda: sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) != 0)


@pytest.mark.needs("root", "/dev/net/tun")
@BOTH
def test_what_comes_from_a_privileged_port_is_not_answered(inside, host):
    lab = inside()
    low, high = lab.socket(host, socket.SOCK_DGRAM, 1023), lab.socket(host, socket.SOCK_DGRAM)
    low.sendto(b"loop", (host, echo.PORT))
    assert lab.ask(high, b"hello", host) == b"hello"
    assert attempt(lambda: low.recv(10)) is None
    assert lab.place.counts == {"datagrams": 1, "refused": 1}


@pytest.mark.needs("root", "/dev/net/tun")
@BOTH
def test_a_connection_gets_back_all_that_it_sent_however_slowly_it_reads(inside, host):
    lab = inside()
    data = random.Random(2).randbytes(20 << 20)
    sock = lab.socket(host, socket.SOCK_STREAM)
    sock.connect_ex((host, echo.PORT))
    lab.desk.until(lambda: attempt(lambda: sock.send(data[:1])))
    rest, got = memoryview(data)[1:], bytearray()
    while rest:  # nothing is read while the service still takes
        if took := send(sock, rest):
            rest = rest[took:]
        else:
            lab.desk.turn()
            got += attempt(lambda: sock.recv(1 << 20)) or b""
    sock.shutdown(socket.SHUT_WR)
    while (piece := lab.desk.until(lambda: attempt(lambda: (sock.recv(1 << 20),)))[0]) != b"":
        got += piece
    assert got == data
    lab.desk.until(lambda: not lab.place.carried.connections)
