"""Services behind a user-mode network: made from its section, handed its frames, restarted alone."""

import itertools
import os
import random
import select
import signal
import socket
import threading
import time

import pytest

import deadline
import ends
import flow
from shardnet import lab as labs
from shardnet import links

LAB = """
[lab]
shards = {shards}

[user net0]
echo = on

[tap inside]
ifname = inside
netns = {netns}
address = 10.0.2.15/24
"""
ALONE = """
[user net0]
echo = on

[tap inside]
ifname = inside
netns = {netns}
address = 10.0.2.15/24
"""
HOST, HOST6 = "10.0.2.2", "fec0::2"


def test_a_companion_takes_its_place_on_the_switch_from_its_port():
    (net0,) = labs.ports("[user net0]\necho = on\nvlan = 7\nmtu = 9000\nmax_macs = 3\nshard = one")
    found = labs.companions(net0)["echo"]
    assert str(found) == "[echo net0.echo]"
    assert found.given == {"vlan": "7", "mtu": "9000", "address": "10.0.2.2/24", "address6": "fec0::2/64"}


def test_a_name_that_a_companion_has_is_taken():
    with pytest.raises(labs.Wrong, match=r"text:3: \[stream net0.echo\] has the name of \[echo net0.echo\] on line 1"):
        labs.read("[user net0]\necho = on\n[stream net0.echo]\nserver = on\naddr.type = unix\naddr.path = a")
    with pytest.raises(labs.Wrong, match=r"a name too long for its services \(27 characters at most\)"):
        labs.read(f"[user {'n' * 28}]\necho = on")


class Inside:
    """Sockets in the guest's namespace."""

    def __init__(self, netns):
        self.netns = netns
        netns.run("sysctl", "-qw", "net.ipv6.conf.inside.accept_dad=0")
        netns.run("ip", "addr", "replace", "fec0::15/64", "dev", "inside", "nodad")

    def socket(self, host, kind=socket.SOCK_DGRAM):
        with links.namespace(self.netns.name):
            made = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, kind)
        made.settimeout(10)
        made.connect((host, 7))
        return made

    def ask(self, sock, data, tries=5):
        """What comes back; a datagram may be lost while a service is away."""
        for _ in range(tries):
            sock.send(data)
            try:
                return sock.recv(70000)
            except TimeoutError:
                continue
        raise AssertionError("no answer")


@pytest.fixture(
    params=[ALONE, LAB.format(shards=1, netns="{netns}"), LAB.format(shards=2, netns="{netns}")],
    ids=["each", "one", "two"],
)
def running(request, lab, namespace):
    netns = namespace("inside")
    made = lab(request.param.format(netns=netns.name))
    made.until_up("net0", "net0.echo", "inside")
    made.inside = Inside(netns)
    return made


@pytest.mark.needs("root", "/dev/net/tun")
def test_a_guest_speaks_to_the_service_at_the_networks_address(running):
    data = random.Random(1).randbytes(65_507)
    early = running.counters("net0")["tx_drops"]  # the kernel's first words may come while the network is not open yet
    for host in (HOST, HOST6):
        sock = running.inside.socket(host)
        for size in (0, 1, 64, 1472, 1473, 4000, 9000, 65_487):
            assert running.inside.ask(sock, data[:size]) == data[:size]
        stream = running.inside.socket(host, socket.SOCK_STREAM)
        stream.sendall(data)
        got = b""
        while len(got) < len(data):
            got += stream.recv(1 << 20)
        assert got == data
        stream.shutdown(socket.SHUT_WR)
        assert stream.recv(1) == b""
    (told,) = running.json("port", "show", "net0.echo")
    assert told["counts"] == {"datagrams": 16, "connections": 2, "unresolved": 0}
    assert (told["behind"], told["macs"]) == ("net0", 0)
    net0, echo = running.counters("net0"), told["counters"]
    assert net0["handed_over"] == echo["tx_frames"] > 0
    assert (net0["queued"], net0["tx_drops"]) == (0, early)


@pytest.mark.needs("root", "/dev/net/tun")
def test_a_companion_is_not_set_by_itself(running):
    for words in (("set", "net0.echo", "mtu=1500"), ("remove", "net0.echo"), ("down", "net0.echo")):
        running.shardnet("port", *words, status=1)
    running.shardnet("port", "set", "net0", "echo=off")
    deadline.until(lambda: "net0.echo" not in running.workers(), "the service gone")
    with pytest.raises(ConnectionRefusedError):
        running.inside.socket(HOST, socket.SOCK_STREAM)
    running.shardnet("port", "set", "net0", "echo=on", "mtu=1400")
    running.until_up("net0", "net0.echo")
    assert running.inside.ask(running.inside.socket(HOST), b"again") == b"again"
    assert running.port("net0.echo")["options"]["mtu"] == "1400"
    before = running.port("net0.echo")["id"]
    running.shardnet("port", "set", "net0", "mtu=1300")  # the size of a fragment is the engine's matter
    running.inside.netns.run("ip", "link", "set", "inside", "mtu", "1300")
    sock = running.inside.socket(HOST)
    sent = running.counters("net0.echo")["rx_frames"]
    assert running.inside.ask(sock, bytes(1350)) == bytes(1350)  # would go whole at the 1400 of before
    assert running.counters("net0.echo")["rx_frames"] == sent + 2
    assert running.port("net0.echo")["id"] == before
    running.shardnet("port", "remove", "net0")
    assert {port["name"] for port in running.json("status")["ports"]} == {"inside"}


class Asker(threading.Thread):
    """Asks the service once a millisecond and keeps the times of its answers."""

    def __init__(self, sock):
        super().__init__(daemon=True)
        self.sock, self.times, self.going = sock, [], True
        sock.setblocking(False)

    def run(self):
        number = 0
        while self.going:
            number += 1
            self.sock.send(number.to_bytes(8, "big"))
            if select.select([self.sock], [], [], 0.001)[0]:
                self.sock.recv(100)
                self.times.append(time.monotonic())


@pytest.mark.needs("root", "/dev/net/tun")
def test_a_service_killed_under_load_is_back_and_nobody_else_loses_a_frame(lab, namespace):
    netns = namespace("inside")
    streams = [ends.Stream("left", flow.FROM), ends.Stream("right", flow.TO)]
    running = lab(ALONE.format(netns=netns.name) + "".join(end.section for end in streams))
    running.until_up("net0", "net0.echo", "inside")
    asker = Asker(Inside(netns).socket(HOST))
    back = []
    with flow.running(running.run_dir, "left", "right") as numbered:
        asker.start()
        for _ in range(3):
            deadline.until(lambda: len(asker.times) > 100, "answers")
            asker.times.clear()
            before = running.workers()
            killed = time.monotonic()
            os.kill(before["net0.echo"], signal.SIGKILL)
            deadline.ended(before["net0.echo"], "its death")
            deadline.until(lambda killed=killed: asker.times and asker.times[-1] > killed + 0.3, "answers again", 20)
            gaps = [after - earlier for earlier, after in itertools.pairwise([killed, *asker.times])]
            back.append(round(max(gaps) * 1000))
            after = running.workers()
            assert after["net0.echo"] != before["net0.echo"]
            assert all(after[name] == before[name] for name in before if name != "net0.echo")
        account = numbered.end()
    asker.going = False
    asker.join()
    assert (account["lost"], account["twice"], account["disordered"]) == (0, 0, 0)
    print("silent for", back, "ms")
    running.until_balanced("net0")
