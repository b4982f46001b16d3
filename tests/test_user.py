"""[user NAME], with real clients: the kernel of a namespace on one side, programs of this host on the other."""

import contextlib
import errno
import hashlib
import os
import random
import select
import socket
import subprocess
import time

import pytest

from shardnet import links, options
from shardnet.workers import tap, user

GUEST, GUEST6 = "10.0.2.15", "fec0::15"
HOST, HOST6 = "10.0.2.2", "fec0::2"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"ipv4": "off", "ipv6": "off"}, "ipv6 = off: ipv4 is off too, and nothing is left"),
        ({"ipv6": "on", "net": "10.1.0.0/24"}, "net = 10.1.0.0/24: IPv4 is off"),
        ({"net": "10.0.2.0/33"}, "net = 10.0.2.0/33: a prefix of IPv4 is 0 to 32"),
        ({"net": "10.0.2"}, "net = 10.0.2: 10.0.2 is no IPv4 address"),
        ({"host": "10.0.3.2"}, "host = 10.0.3.2: not in 10.0.2.0/24"),
        ({"host-loopback": "80-"}, "host-loopback = 80-: neither on nor off nor ports such as 80,8000-8010"),
        ({"hostfwd": "tcp::80"}, "hostfwd = tcp::80: tcp::80: no - between the host's side and the guest's"),
        ({"hostfwd": "sctp::80-:80"}, "hostfwd = sctp::80-:80: sctp::80-:80: sctp is neither tcp nor udp nor unix"),
        ({"hostfwd": "tcp::80-:0"}, "hostfwd = tcp::80-:0: tcp::80-:0: 0 is no port: 1 to 65535"),
        (
            {"hostfwd": "tcp::80-10.0.9.1:80"},
            "hostfwd = tcp::80-10.0.9.1:80: tcp::80-10.0.9.1:80: 10.0.9.1 is in no network of the guests",
        ),
        (
            {"hostfwd": "unix:a.sock-:80"},
            "hostfwd = unix:a.sock-:80: unix:a.sock-:80: no unix:/PATH-[GUEST]:PORT with an absolute path",
        ),
        (
            {"guestfwd": "tcp:10.0.2.100:80"},
            "guestfwd = tcp:10.0.2.100:80: tcp:10.0.2.100:80: no [tcp]:ADDRESS:PORT- with tcp:HOST:PORT, unix:/PATH or cmd:COMMAND behind",
        ),
    ],
)
def test_a_mistake_is_named_with_its_reason(given, message):
    with pytest.raises(options.Wrong) as wrong:
        options.read(user, given)
    assert str(wrong.value) == message


def test_a_network_without_a_mask_has_the_one_of_its_class():
    found = {
        text: str(options.read(user, {"net": text}).network)
        for text in ("10.1.0.0", "172.20.0.0", "192.168.7.0", "198.18.0.0")
    }
    assert list(found.values()) == ["10.0.0.0/8", "172.16.0.0/12", "192.168.7.0/24", "198.18.0.0/15"]


def test_the_addresses_are_derived_as_qemu_derives_them():
    wide = options.read(user, {"net": "10.0.0.0/8"})
    assert (str(wide.host4), str(wide.lease)) == ("10.0.2.2", "10.0.2.15")
    narrow = options.read(user, {"net": "192.168.76.0/24"})
    assert (str(narrow.host4), str(narrow.lease)) == ("192.168.76.2", "192.168.76.15")


class Inside:
    """A namespace on the desk's switch, and sockets in it that the test itself holds."""

    def __init__(self, desk, netns):
        self.desk, self.netns = desk, netns

    def run(self, *command, seconds=30):
        return self.desk.runs(*self.netns.enter, *command, seconds=seconds)

    def socket(self, family=socket.AF_INET, kind=socket.SOCK_STREAM):
        with links.namespace(self.netns.name):
            made = socket.socket(family, kind)
        made.setblocking(False)
        return made

    def connect(self, host, port):
        """A connection from in here; OSError as connect() has it."""
        made = self.socket(family_of(host))
        made.connect_ex((host, port))
        self.desk.until(lambda: is_writable(made))
        if error := made.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            made.close()
            raise OSError(error, os.strerror(error))
        return made

    def take(self, sock, size=65536):
        """What the socket brings; the loop goes on meanwhile."""
        return self.desk.until(lambda: attempt(lambda: (sock.recv(size),)))[0]


def family_of(host):
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def attempt(call):
    try:
        return call()
    except BlockingIOError:
        return None


def is_writable(sock):
    return bool(select.select([], [sock], [], 0)[1])


@pytest.fixture
def network(desk, namespace):
    """Make a network and a namespace in it."""

    def make(mtu="1500", **given):
        netns = namespace("in")
        netns.run("sysctl", "-qw", "net.ipv6.conf.default.accept_dad=0")
        place = desk.add(user, dhcp="off", **given)
        desk.add(tap, ifname="in", netns=netns.name, mtu="0")
        netns.run("ip", "link", "set", "in", "mtu", mtu)
        for word in (f"{GUEST}/24", f"{GUEST6}/64"):
            netns.run("ip", "addr", "add", word, "dev", "in")
        netns.run("ip", "route", "replace", "default", "via", HOST)
        netns.run("ip", "-6", "route", "replace", "default", "via", HOST6)
        inside = Inside(desk, netns)
        inside.place = place
        return inside

    return make


@contextlib.contextmanager
def listening(host="127.0.0.1", kind=socket.SOCK_STREAM):
    with socket.socket(family_of(host), kind) as bound:
        bound.bind((host, 0))
        if kind == socket.SOCK_STREAM:
            bound.listen(64)
        bound.setblocking(False)
        yield bound


def loopback(host):
    return "::1" if ":" in host else "127.0.0.1"


def accepted(desk, listener):
    made, _ = desk.until(lambda: attempt(listener.accept))
    made.setblocking(False)
    return made


def port(bound):
    return bound.getsockname()[1]


def forwarded(inside):
    """The port of the host that hostfwd took."""
    return int(inside.place.states[-1][1].split(" to ")[0].rpartition(":")[2])


def send(sock, data):
    """How much of it the socket took."""
    return attempt(lambda: sock.send(data[: 1 << 20])) or 0


def pump(desk, sender, receiver, data):
    """Send all of it from one socket to the other, then the end."""
    sent, got = 0, hashlib.sha256()
    ended = False
    deadline = time.monotonic() + 60
    while not ended:
        assert time.monotonic() < deadline
        if sent < len(data):
            count = send(sender, memoryview(data)[sent:])
            sent += count
            if sent == len(data):
                sender.shutdown(socket.SHUT_WR)
        while (piece := attempt(lambda: receiver.recv(1 << 20))) is not None:
            if not piece:
                ended = True
                break
            got.update(piece)
        desk.turn(0.001)
    return got.hexdigest()


@pytest.mark.needs("root", "/dev/net/tun")
@pytest.mark.parametrize("host", ["10.0.2.99", "fec0::99"])
def test_an_address_of_nobody_is_unreachable(network, host):
    inside = network()
    inside.netns.run("ip", "neigh", "add", host, "lladdr", "52:55:0a:00:02:02", "dev", "in")
    with pytest.raises(OSError) as error:
        inside.connect(host, 80)
    assert error.value.errno == errno.EHOSTUNREACH


@pytest.mark.needs("root", "/dev/net/tun")
def test_a_guest_that_stops_reading_holds_the_sender_and_loses_nothing(desk, network):
    inside = network()
    data = random.Random(2).randbytes(16 << 20)
    with listening() as listener:
        guest = inside.connect(HOST, port(listener))
        server = accepted(desk, listener)
        sent, idle = 0, 0
        while idle < 50:  # until nothing moves any more
            count = send(server, memoryview(data)[sent:])
            sent, idle = sent + count, 0 if count else idle + 1
            desk.turn(0.005)
        assert 0 < sent < len(data)
        assert pump(desk, server, guest, data[sent:]) == hashlib.sha256(data).hexdigest()


@pytest.mark.needs("root", "/dev/net/tun")
def test_a_port_of_a_guest_is_one_port_outside_whoever_it_speaks_to(desk, network):
    inside = network()
    with listening(kind=socket.SOCK_DGRAM) as one, listening(kind=socket.SOCK_DGRAM) as two:
        guest = inside.socket(kind=socket.SOCK_DGRAM)
        clients = []
        for server in (one, two):
            guest.sendto(b"who am I?", (HOST, port(server)))
            clients.append(desk.until(lambda server=server: attempt(lambda: server.recvfrom(100)))[1])
        assert clients[0] == clients[1]


@pytest.fixture
def outside(namespace):
    """A machine beyond this host."""
    netns = namespace("out")
    near = f"u{os.getpid()}"
    subprocess.run(["ip", "link", "add", near, "type", "veth", "peer", "name", "far", "netns", netns.name], check=True)
    subprocess.run(["ip", "addr", "add", "198.18.79.1/30", "dev", near], check=True)
    subprocess.run(["ip", "link", "set", near, "up"], check=True)
    netns.run("ip", "addr", "add", "198.18.79.2/30", "dev", "far")
    netns.run("ip", "link", "set", "far", "up")
    yield netns
    subprocess.run(["ip", "link", "del", near], check=True)


@pytest.mark.needs("root", "/dev/net/tun")
def test_a_machine_beyond_the_host_is_reached_and_the_way_there_is_shown(desk, network, outside):
    inside = network()
    with links.namespace(outside.name):
        listener = socket.create_server(("198.18.79.2", 7000))
    guest = inside.connect("198.18.79.2", 7000)
    assert guest.getpeername() == ("198.18.79.2", 7000)
    listener.close()
    hops = []
    for ttl in (1, 2):
        probe = inside.socket(kind=socket.SOCK_DGRAM)
        probe.setsockopt(socket.IPPROTO_IP, 11, 1)  # IP_RECVERR
        probe.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, ttl)
        probe.sendto(b"", ("198.18.79.2", 33434))
        said = desk.until(lambda probe=probe: attempt(lambda: probe.recvmsg(100, 512, socket.MSG_ERRQUEUE)))
        error = said[1][0][2]
        hops.append((socket.inet_ntoa(error[20:24]), error[5], error[6]))
    assert hops == [(HOST, 11, 0), ("198.18.79.2", 3, 3)]


@pytest.mark.needs("root", "/dev/net/tun")
def test_datagrams_longer_than_the_way_out_takes_arrive_all_the_same_many_in_a_turn(desk, network, outside):
    inside = network(mtu="9000")
    with links.namespace(outside.name):
        far = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    far.bind(("198.18.79.2", 7000))
    far.setblocking(False)
    guest = inside.socket(kind=socket.SOCK_DGRAM)
    for size in (100, 3000, 3000, 100):  # the third time the kernel is not asked any more to cut
        sent = [bytes([number]) * size for number in range(10)]
        for data in sent:
            guest.sendto(data, ("198.18.79.2", 7000))
        assert [inside.take(far) for _ in sent] == sent


@pytest.mark.needs("root", "/dev/net/tun", "tcpdump")
def test_a_restricted_guest_sends_nothing_out(desk, network, outside):
    inside = network(restrict="on")
    near = f"u{os.getpid()}"
    with subprocess.Popen(
        ["tcpdump", "-ni", near, "-c", "1", "ip"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as seen:
        with pytest.raises(ConnectionRefusedError):
            inside.connect("198.18.79.2", 7000)
        probe = inside.socket(kind=socket.SOCK_DGRAM)
        probe.sendto(b"out?", ("198.18.79.2", 53))
        for _ in range(20):
            desk.turn()
        seen.terminate()
        assert seen.stdout.read().strip() == b""


@pytest.mark.needs("root", "/dev/net/tun")
def test_only_the_listed_ports_of_the_loopback_are_reached(network):
    with listening() as listed, listening() as other:
        inside = network(host_loopback=str(port(listed)))
        inside.connect(HOST, port(listed)).close()
        with pytest.raises(ConnectionRefusedError):
            inside.connect(HOST, port(other))


@pytest.mark.needs("root", "/dev/net/tun")
def test_a_guest_takes_an_address_by_router_advertisement(desk, network, namespace):
    network()
    newcomer = namespace("slaac")
    desk.add(tap, ifname="slaac", netns=newcomer.name)
    desk.until(lambda: "fec0::" in newcomer.run("ip", "-6", "addr", "show", "dev", "slaac") or None, 15)
    assert "default via fe80::2" in newcomer.run("ip", "-6", "route")


def inner_server(inside, family=socket.AF_INET, kind=socket.SOCK_STREAM):
    server = inside.socket(family, kind)
    server.bind((GUEST6 if family == socket.AF_INET6 else GUEST, 8000))
    if kind == socket.SOCK_STREAM:
        server.listen(16)
    return server


@pytest.mark.needs("root", "/dev/net/tun")
@pytest.mark.parametrize(
    ("rule", "host", "family", "seen"),
    [
        ("tcp:127.0.0.1:0-:8000", "127.0.0.1", socket.AF_INET, HOST),
        (f":127.0.0.1:0-{GUEST}:8000", "127.0.0.1", socket.AF_INET, HOST),
        (f"tcp:[::1]:0-[{GUEST6}]:8000", "::1", socket.AF_INET6, HOST6),
        (f"tcp:[::1]:0-{GUEST}:8000", "::1", socket.AF_INET, HOST),
    ],
)
def test_hostfwd_brings_a_client_of_the_host_to_the_guest(desk, network, rule, host, family, seen):
    inside = network(hostfwd=rule)
    server = inner_server(inside, family)
    number = forwarded(inside)
    client = socket.create_connection((host, number))
    client.setblocking(False)
    guest, peer = desk.until(lambda: attempt(server.accept))
    guest.setblocking(False)
    assert peer[0] == seen
    client.sendall(b"in")
    assert inside.take(guest) == b"in"
    guest.sendall(b"out")
    assert inside.take(client) == b"out"
    guest.close()
    assert inside.take(client) == b""


@pytest.mark.needs("root", "/dev/net/tun")
def test_hostfwd_to_a_guest_that_refuses_resets_the_client(desk, network):
    inside = network(hostfwd="tcp:127.0.0.1:0-:8000")
    number = forwarded(inside)
    client = socket.create_connection(("127.0.0.1", number))
    client.setblocking(False)
    with pytest.raises(ConnectionResetError):
        inside.take(client)


@pytest.mark.needs("root", "/dev/net/tun")
def test_the_guest_sees_where_a_client_of_another_machine_comes_from(desk, network, outside):
    inside = network(hostfwd="tcp::0-:8000")
    server = inner_server(inside)
    number = forwarded(inside)
    with links.namespace(outside.name):
        client = socket.create_connection(("198.18.79.1", number))
    _, peer = desk.until(lambda: attempt(server.accept))
    assert peer == client.getsockname()


@pytest.mark.needs("root", "/dev/net/tun")
def test_hostfwd_of_a_unix_socket(desk, network, tmp_path):
    inside = network(hostfwd=f"unix:{tmp_path}/in-side.sock-:8000")
    server = inner_server(inside)
    client = socket.socket(socket.AF_UNIX)
    client.connect(str(tmp_path / "in-side.sock"))
    client.setblocking(False)
    guest, peer = desk.until(lambda: attempt(server.accept))
    assert peer[0] == HOST
    data = random.Random(3).randbytes(3 << 20)
    guest.setblocking(False)
    assert pump(desk, client, guest, data) == hashlib.sha256(data).hexdigest()
    assert pump(desk, guest, client, data) == hashlib.sha256(data).hexdigest()


@pytest.mark.needs("root", "/dev/net/tun")
def test_hostfwd_of_udp_answers_from_the_published_port(desk, network):
    inside = network(hostfwd="udp:127.0.0.1:0-:8000")
    server = inner_server(inside, kind=socket.SOCK_DGRAM)
    number = forwarded(inside)
    client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    client.connect(("127.0.0.1", number))
    client.setblocking(False)
    client.send(b"question")
    question, peer = desk.until(lambda: attempt(lambda: server.recvfrom(100)))
    assert (question, peer[0]) == (b"question", HOST)
    server.sendto(b"answer", peer)
    assert inside.take(client) == b"answer"


@pytest.mark.needs("root", "/dev/net/tun")
def test_hostfwd_of_a_range_is_one_rule(desk, network):
    with listening() as free:
        first = port(free)
    inside = network(hostfwd=f"tcp:127.0.0.1:{first}-{first + 2}-:8000")
    server = inside.socket()
    server.bind((GUEST, 8002))
    server.listen()
    socket.create_connection(("127.0.0.1", first + 2)).close()
    desk.until(lambda: attempt(server.accept))


@pytest.mark.needs("root", "/dev/net/tun")
@pytest.mark.parametrize("sort", ["tcp", "unix", "cmd"])
def test_guestfwd_works_in_a_restricted_network_too(desk, network, tmp_path, sort):
    unix = socket.socket(socket.AF_UNIX)
    unix.bind(str(tmp_path / "service"))
    unix.listen()
    unix.setblocking(False)
    with listening() as tcp:
        to = {"tcp": f"tcp:127.0.0.1:{port(tcp)}", "unix": f"unix:{tmp_path}/service", "cmd": "cmd:cat"}[sort]
        inside = network(restrict="on", guestfwd=f"tcp:10.0.2.100:1234-{to}")
        guest = inside.connect("10.0.2.100", 1234)
        data = random.Random(4).randbytes(1 << 20)
        if sort == "cmd":
            server = guest
        else:
            server = accepted(desk, tcp if sort == "tcp" else unix)
        assert pump(desk, guest, server, data) == hashlib.sha256(data).hexdigest()


@pytest.mark.needs("root", "/dev/net/tun")
def test_descriptors_are_flat_after_150_connections(desk, network):
    inside = network()
    before = None
    with listening() as listener:
        for number in range(150):
            guest = inside.connect(HOST, port(listener))
            server = accepted(desk, listener)
            server.close()
            assert inside.take(guest) == b""
            guest.close()
            if number == 10:
                before = len(os.listdir("/proc/self/fd"))
        for _ in range(20):
            desk.turn()
    assert len(os.listdir("/proc/self/fd")) <= before + 2
