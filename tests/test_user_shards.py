"""[user NAME] with shards: one network over several workers, for guests the same as over one."""

import collections
import contextlib
import os
import random
import signal
import socket
import struct
import threading

import pytest

import deadline
from shardnet import lab as labs
from shardnet import links

NETWORK = """
[user net0]
shards = {shards}
echo = on
hostfwd = tcp:127.0.0.1:0-:8000
    tcp:127.0.0.1:0-10.0.2.18:8000
    udp:127.0.0.1:0-10.0.2.15:9000
    udp:127.0.0.1:0-10.0.2.16:9000
    udp:127.0.0.1:0-10.0.2.17:9000
    udp:127.0.0.1:0-10.0.2.18:9000
    unix:{path}-:8000

[tap inside]
ifname = inside
netns = {netns}
address = 10.0.2.15/24
"""
HOST = "10.0.2.2"
GUESTS = [f"10.0.2.{last}" for last in range(15, 23)]


class Family:
    """A lab with a network of several shards, a namespace with several guests, and a host that echoes."""

    def __init__(self, running, netns, shards, path):
        self.lab, self.netns, self.shards, self.path = running, netns, shards, path
        self.names = ["net0", *(f"net0.{share}" for share in range(1, shards))]
        running.until_up(*self.names, "inside")
        for guest in GUESTS[1:]:
            netns.run("ip", "addr", "add", f"{guest}/24", "dev", "inside")

    def guest(self, address, kind=socket.SOCK_STREAM, port=0):
        with links.namespace(self.netns.name):
            made = socket.socket(socket.AF_INET, kind)
        made.settimeout(20)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind((address, port))
        return made

    def flows(self):
        """Flows by the shard that has them."""
        with self.lab.client() as client:
            return {name: list(client.flows(name)) for name in self.names}

    def forwards(self):
        with self.lab.client() as client:
            return client.forwards("net0")

    def listens(self, rule):
        (found,) = [row["listens"] for row in self.forwards() if row["rule"] == rule]
        host, _, port = found.rpartition(":")
        return host, int(port)


@contextlib.contextmanager
def echoing(kind):
    """A server of the host's loopback that sends back what it gets; yields its port and whom it heard."""
    heard, going = [], threading.Event()
    with socket.socket(type=kind) as server, contextlib.ExitStack() as opened:
        server.bind(("127.0.0.1", 0))
        server.settimeout(0.1)

        def stream(one):
            with contextlib.suppress(OSError):
                while data := one.recv(1 << 16):
                    one.sendall(data)

        def serve():
            while not going.is_set():
                with contextlib.suppress(TimeoutError):
                    if kind == socket.SOCK_DGRAM:
                        data, peer = server.recvfrom(70_000)
                        heard.append(peer)
                        server.sendto(data, peer)
                    else:
                        one, peer = server.accept()
                        one.settimeout(None)
                        opened.enter_context(one)
                        heard.append(peer)
                        threading.Thread(target=stream, args=(one,), daemon=True).start()

        if kind == socket.SOCK_STREAM:
            server.listen(100)
        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        try:
            yield server.getsockname()[1], heard
        finally:
            going.set()
            thread.join()


EACH, ONE = ("", 3), ("[lab]\nshards = 1\n", 2)
HUB = ("[lab]\nshards = 2\n[switch lan]\nmode = hub\n", 4)  # nobody picks: the first shard hands over


@pytest.fixture(params=[EACH], ids=["each"])
def family(request, lab, namespace, tmp_path):
    netns = namespace("inside")
    head, shards = request.param
    path = tmp_path / "in"
    return Family(lab(head + NETWORK.format(shards=shards, netns=netns.name, path=path)), netns, shards, path)


def asked(sock, data):
    """What comes back for a datagram or for bytes."""
    sock.send(data)
    if sock.type == socket.SOCK_DGRAM:
        return sock.recv(70_000)
    got = b""
    while len(got) < len(data):
        part = sock.recv(1 << 16)
        assert part, "the end"
        got += part
    return got


@pytest.mark.needs("root", "/dev/net/tun", "ping")
@pytest.mark.parametrize("family", [EACH, ONE, HUB], indirect=True, ids=["each", "one", "hub"])
def test_flows_are_spread_and_no_guest_sees_it(family):
    data = random.Random(1).randbytes(60_000)
    with contextlib.ExitStack() as opened:
        tcp, _ = opened.enter_context(echoing(socket.SOCK_STREAM))
        udp, heard = opened.enter_context(echoing(socket.SOCK_DGRAM))
        other, heard_there = opened.enter_context(echoing(socket.SOCK_DGRAM))
        for guest in GUESTS * 4:
            one = opened.enter_context(family.guest(guest))
            one.connect((HOST, tcp))
            assert asked(one, data) == data
        for guest in GUESTS:
            one = opened.enter_context(family.guest(guest, socket.SOCK_DGRAM))
            for port in (udp, other):  # whoever it speaks to, it does from one port (RFC 4787, 4.1)
                one.connect((HOST, port))
                for size in (1, 1472, 1473, 20_000, 60_000):  # some in fragments, both ways
                    assert asked(one, data[:size]) == data[:size]
            one.connect((HOST, 7))  # a service behind the network, whoever asks
            assert asked(one, data[:3000]) == data[:3000]
            echo = opened.enter_context(family.guest(guest))
            echo.connect((HOST, 7))
            assert asked(echo, data) == data
        assert sorted(set(heard)) == sorted(set(heard_there)) and len(set(heard)) == len(GUESTS)
        for guest in GUESTS[:3]:
            family.netns.run("ping", "-c1", "-W5", "-I", guest, HOST)
        flows = family.flows()
        streams = {name: [one for one in found if one["protocol"] == "tcp"] for name, found in flows.items()}
        assert sum(map(len, streams.values())) == 4 * len(GUESTS) and all(streams.get(name) for name in family.names)
        where = collections.defaultdict(set)
        for name, found in flows.items():
            for one in found:
                if one["protocol"] == "udp" and one["state"] != "forwarded":
                    where[one["guest"]].add(name)
        assert len(where) == len(GUESTS) and all(len(names) == 1 for names in where.values())
        assert len(set.union(*where.values())) > 1
        told = int(family.lab.shardnet("flows", "--count", "--protocol", "tcp"))
        assert told == 4 * len(GUESTS) == int(family.lab.shardnet("flows", "net0", "--count", "--protocol", "tcp"))
    family.lab.until_balanced(*family.names)
    assert all(family.lab.counters(name)["tx_frames"] > 0 for name in family.names)


def checksum(data):
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def syn_in_fragments(guest, port, to):
    """The packets of a SYN that was cut inside its options."""
    ends = socket.inet_aton(guest) + socket.inet_aton(HOST)
    syn = struct.pack("!HHIIBBHHH", port, to, 1, 0, 0xA0, 2, 64000, 0, 0) + bytes([2, 4, 5, 0xB4]) + bytes([1] * 16)
    syn = syn[:16] + struct.pack("!H", checksum(ends + struct.pack("!HH", 6, len(syn)) + syn)) + syn[18:]
    for offset, more in ((0, 0x2000), (24, 0)):
        part = syn[offset:24] if more else syn[offset:]
        yield struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(part), port, more | offset // 8, 64, 6, 0) + ends + part


@pytest.mark.needs("root", "/dev/net/tun")
def test_a_connection_that_comes_in_fragments_is_where_its_whole_segments_are(family):
    with socket.create_server(("127.0.0.1", 0)) as server, links.namespace(family.netns.name):
        server.settimeout(20)
        raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
        handed = sum(family.lab.counters(name)["handed_over"] for name in family.names)
        for port in range(40_000, 40_016):
            for packet in syn_in_fragments("10.0.2.15", port, server.getsockname()[1]):
                raw.sendto(packet, (HOST, 0))
            far, _ = server.accept()
            far.settimeout(20)
            with pytest.raises(ConnectionResetError):  # the guest knows nothing of it, and its RST is whole
                far.recv(1)
        raw.close()
    assert sum(family.lab.counters(name)["handed_over"] for name in family.names) > handed
    family.lab.until_balanced(*family.names)


@pytest.mark.needs("root", "/dev/net/tun")
@pytest.mark.parametrize("family", [EACH, ONE], indirect=True, ids=["each", "one"])
def test_what_comes_in_from_the_host_reaches_guests_whatever_shard_has_them(family):
    rules = [row["rule"] for row in family.forwards()]
    assert len(rules) == 7 and all(row["listens"] for row in family.forwards())
    servers = {}
    with contextlib.ExitStack() as opened:
        for guest, rule in zip(("10.0.2.15", "10.0.2.18"), rules, strict=False):
            server = servers[guest] = opened.enter_context(family.guest(guest, port=8000))
            server.listen(64)
            clients = [opened.enter_context(socket.create_connection(family.listens(rule), 20)) for _ in range(24)]
            for client in clients:
                client.sendall(struct.pack("!H", client.getsockname()[1]))
            for _ in clients:
                made, peer = server.accept()
                opened.enter_context(made).settimeout(20)
                assert peer == (HOST, struct.unpack("!H", made.recv(2))[0])  # the client's own port
            (row,) = [row for row in family.forwards() if row["rule"] == rule]
            assert (row["taken"], row["refused"], row["open"]) == (24, 0, 24)
        flows = family.flows()
        assert all(any(one["state"] == "established" for one in flows[name]) for name in family.names)
        for _ in range(8):
            client = opened.enter_context(socket.socket(socket.AF_UNIX))
            client.settimeout(20)
            client.connect(str(family.path))
            made, (far, _) = servers["10.0.2.15"].accept()
            assert far == HOST
            opened.enter_context(made).sendall(b"hello")
            assert client.recv(5, socket.MSG_WAITALL) == b"hello"
        for guest in GUESTS[:4]:
            one = opened.enter_context(family.guest(guest, socket.SOCK_DGRAM, 9000))
            client = opened.enter_context(socket.socket(type=socket.SOCK_DGRAM))
            client.settimeout(20)
            client.connect(family.listens(f"udp:127.0.0.1:0-{guest}:9000"))
            client.send(b"question")
            question, peer = one.recvfrom(100)
            one.sendto(b"answer to " + question, peer)
            assert client.recv(100) == b"answer to question"


@pytest.mark.needs("root", "/dev/net/tun")
def test_forwards_change_while_the_shards_carry_on(family):
    with contextlib.ExitStack() as opened:
        tcp, _ = opened.enter_context(echoing(socket.SOCK_STREAM))
        kept = []
        for guest in GUESTS:
            kept.append(opened.enter_context(family.guest(guest)))
            kept[-1].connect((HOST, tcp))
        before = family.lab.workers()
        new = ["tcp:127.0.0.1:0-10.0.2.20:8001", *(f"udp:127.0.0.1:0-{guest}:8001" for guest in GUESTS)]
        family.lab.shardnet("forward", "add", *new)
        for guest in GUESTS:
            one = opened.enter_context(family.guest(guest, socket.SOCK_DGRAM, 8001))
            client = opened.enter_context(socket.socket(type=socket.SOCK_DGRAM))
            client.connect(family.listens(f"udp:127.0.0.1:0-{guest}:8001"))
            client.send(b"question")
            assert one.recv(100) == b"question"
        server = opened.enter_context(family.guest("10.0.2.20", port=8001))
        server.listen()
        for _ in range(8):
            opened.enter_context(socket.create_connection(family.listens(new[0]), 20))
            opened.enter_context(server.accept()[0])
        where = family.listens(new[0])
        family.lab.shardnet("forward", "remove", *new)
        assert len(family.forwards()) == 7
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(where, 20)
        assert family.lab.workers() == before
        for one in kept:
            assert asked(one, b"still here") == b"still here"


@pytest.mark.needs("root", "/dev/net/tun")
def test_a_shard_that_is_killed_takes_its_own_flows_with_it_and_no_others(family):
    for victim in ("net0.1", "net0"):
        killed(family, victim)
    family.lab.until_balanced(*family.names)


def killed(family, victim):
    data = bytes(30_000)
    with contextlib.ExitStack() as opened:
        tcp, _ = opened.enter_context(echoing(socket.SOCK_STREAM))
        conns = {}
        for guest in GUESTS * 4:
            one = opened.enter_context(family.guest(guest))
            one.connect((HOST, tcp))
            conns[one.getsockname()] = one
        flows = family.flows()
        own = {(one["guest"], one["guest_port"]) for one in flows[victim]} & conns.keys()
        others = [one for name, one in conns.items() if name not in own]
        assert own and others
        before = family.lab.workers()
        os.kill(before[victim], signal.SIGKILL)
        for one in others * 3:  # while it is away, and after
            assert asked(one, data) == data
        deadline.until(lambda: family.lab.workers()[victim] not in (None, before[victim]), "a new worker")
        family.lab.until_up(*family.names)
        after = family.lab.workers()
        assert {name for name in before if before[name] != after[name]} == {victim}
        for name in own:
            with pytest.raises((ConnectionResetError, BrokenPipeError)):
                asked(conns[name], b"is anybody there?")
        for guest in GUESTS * 2:
            one = opened.enter_context(family.guest(guest))
            one.connect((HOST, tcp))
            assert asked(one, data) == data
        # Connections from the host find the new shard too, which asks for the guest itself.
        server = opened.enter_context(family.guest("10.0.2.18", port=8000))
        server.listen(64)
        for _ in range(16):
            opened.enter_context(socket.create_connection(family.listens("tcp:127.0.0.1:0-10.0.2.18:8000"), 20))
            opened.enter_context(server.accept()[0])
        for guest in GUESTS[:4]:
            one = opened.enter_context(family.guest(guest, socket.SOCK_DGRAM, 9000))
            client = opened.enter_context(socket.socket(type=socket.SOCK_DGRAM))
            client.connect(family.listens(f"udp:127.0.0.1:0-{guest}:9000"))
            client.send(b"question")
            assert one.recv(100) == b"question"


def test_a_shard_has_its_ports_section_and_a_place_behind_it():
    (net0,) = labs.ports("[user net0]\nshards = 3\nvlan = 7\nmax_macs = 3\nshard = one\nmax-flows = 100")
    found = labs.companions(net0)
    assert [(one.name, one.behind, one.share) for one in found.values() if one.kind == "user"] == [
        ("net0.1", "net0", 1),
        ("net0.2", "net0", 2),
    ]
    assert found["1"].given == {"vlan": "7", "shards": "3", "max-flows": "100"}
    assert labs.companions(found["1"]) == {}


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ("shards = 0", r"shards = 0: not 1 to 16"),
        ("shards = 2\nhostfwd = udp::53-vm1:53", "with shards a UDP forward goes to an address"),
    ],
)
def test_wrong_shards_are_refused(keys, message):
    with pytest.raises(labs.Wrong, match=message):
        labs.ports(f"[user net0]\n{keys}")
