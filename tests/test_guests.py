"""Two real Linux guests in QEMU through every kind of socket that QEMU has, and to a TAP.

Both guests boot once, with a network device a transport; each transport is a switch of its own, so a guest's addresses on one reach
nothing on another.
"""

import dataclasses
import hashlib
import os
import socket

import pytest

import deadline
import guest as guests
import labs
import namespaces

pytestmark = pytest.mark.needs("root", "/dev/net/tun", "guests")


@dataclasses.dataclass(frozen=True)
class Way:
    """One way to attach: QEMU's words and the section of the lab. {run}: the lab's run directory, {n}: 1 or 2, {a} and {b}: free ports."""

    netdev: str
    section: str


WAYS = {
    "stream-unix": Way(
        "stream,server=off,addr.type=unix,addr.path={run}/su{n}.sock",
        "[stream NAME]\nserver = on\naddr.type = unix\naddr.path = su{n}.sock",
    ),
    "stream-unix-qemu-listens": Way(
        "stream,server=on,addr.type=unix,addr.path={tmp}/sq{n}.sock",
        "[stream NAME]\nserver = off\naddr.type = unix\naddr.path = {tmp}/sq{n}.sock\nreconnect-ms = 100",
    ),
    "stream-tcp": Way(
        "stream,server=off,addr.type=inet,addr.host=127.0.0.1,addr.port={a}",
        "[stream NAME]\nserver = on\naddr.type = inet\naddr.host = 127.0.0.1\naddr.port = {a}",
    ),
    "dgram-unix": Way(
        "dgram,local.type=unix,local.path={tmp}/dq{n},remote.type=unix,remote.path={tmp}/ds{n}",
        "[dgram NAME]\nlocal.type = unix\nlocal.path = {tmp}/ds{n}\nremote.type = unix\nremote.path = {tmp}/dq{n}",
    ),
    "dgram-udp": Way(
        "dgram,local.type=inet,local.host=127.0.0.1,local.port={a},remote.type=inet,remote.host=127.0.0.1,remote.port={b}",
        "[dgram NAME]\nlocal.type = inet\nlocal.host = 127.0.0.1\nlocal.port = {b}\n"
        "remote.type = inet\nremote.host = 127.0.0.1\nremote.port = {a}",
    ),
    # Each guest has a group of its own, or the two would reach each other without the lab.
    "dgram-multicast": Way(
        "dgram,remote.type=inet,remote.host=230.0.0.{n},remote.port={a},local.type=inet,local.host=127.0.0.1,local.port={a}",
        "[dgram NAME]\nremote.type = inet\nremote.host = 230.0.0.{n}\nremote.port = {a}\n"
        "local.type = inet\nlocal.host = 127.0.0.1\nlocal.port = {a}",
    ),
    "socket-connect": Way("socket,connect=127.0.0.1:{a}", "[socket NAME]\nlisten = 127.0.0.1:{a}"),
    "socket-listen": Way("socket,listen=127.0.0.1:{a}", "[socket NAME]\nconnect = 127.0.0.1:{a}"),
    "socket-mcast": Way(
        "socket,mcast=230.0.1.{n}:{a},localaddr=127.0.0.1",
        "[socket NAME]\nmcast = 230.0.1.{n}:{a}\nlocaladdr = 127.0.0.1",
    ),
    "socket-udp": Way(
        "socket,udp=127.0.0.1:{b},localaddr=127.0.0.1:{a}",
        "[socket NAME]\nudp = 127.0.0.1:{a}\nlocaladdr = 127.0.0.1:{b}",
    ),
}

# Ways in which QEMU needs nobody there when it starts, nor later.
WAYS_THAT_COME_BACK = [
    "stream-unix-qemu-listens",
    "dgram-unix",
    "dgram-udp",
    "dgram-multicast",
    "socket-listen",
    "socket-mcast",
    "socket-udp",
]

# Mixed with TAPs: one on a switch with a port of each guest, one on an access port where a guest has a trunk.
MIXED = """
[tap host]
ifname = host
netns = {netns}
address = 10.0.100.9/24
switch = mixed

[stream mixed-1]
server = on
addr.type = unix
addr.path = mixed1.sock
switch = mixed

[stream mixed-2]
server = on
addr.type = unix
addr.path = mixed2.sock
switch = mixed

[tap office]
ifname = office
netns = {netns}
address = 10.0.110.9/24
switch = floor
vlan = 10

[stream trunk-1]
server = on
addr.type = unix
addr.path = trunk1.sock
switch = floor
trunk = 10,20

[stream trunk-2]
server = on
addr.type = unix
addr.path = trunk2.sock
switch = floor
trunk = 20
"""


class Plan:
    """Which port of the lab and which device of which guest belong together."""

    def __init__(self, ways, directory):
        self.ways = list(ways)
        self.directory = directory
        ports = [(labs.free_port(), labs.free_port(socket.SOCK_DGRAM)) for _ in range(2 * len(self.ways))]
        self.ports = {(way, n): ports.pop() for way in self.ways for n in (1, 2)}

    def _filled(self, text, way, n, run_dir=""):
        a, b = self.ports[way, n]
        return text.format(n=n, a=a, b=b, tmp=self.directory, run=run_dir)

    def lab(self):
        """The text of the lab file."""
        sections = []
        for way in self.ways:
            for n in (1, 2):
                section = self._filled(WAYS[way].section, way, n).replace("NAME", f"{way}-{n}")
                sections.append(f"{section}\nswitch = {way}\n")
        return "\n".join(sections)

    def netdevs(self, n, run_dir=""):
        """QEMU's words for guest 1 or 2."""
        return [self._filled(WAYS[way].netdev, way, n, run_dir) for way in self.ways]

    def names(self):
        return [f"{way}-{n}" for way in self.ways for n in (1, 2)]

    def address(self, guest, n):
        for nic in range(len(self.ways)):
            guest.address(nic, f"10.0.{nic}.{n}/24")

    def ping_all(self, one):
        for nic in range(len(self.ways)):
            one.ping(f"10.0.{nic}.2", count=3)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Two guests, a namespace with a TAP, the lab that they are all on, and a file of 20 MB with each guest."""
    directory = tmp_path_factory.mktemp("guests")
    plan = Plan(WAYS, directory)
    with namespaces.making() as make, labs.starting(directory) as start, guests.booting(directory) as boot:
        host = make("host")
        lab = start(plan.lab() + MIXED.format(netns=host.name))
        pair = []
        for n in (1, 2):
            netdevs = plan.netdevs(n, lab.run_dir)
            netdevs += [
                f"stream,server=off,addr.type=unix,addr.path={lab.run_dir}/{word}{n}.sock"
                for word in ("mixed", "trunk")
            ]
            pair.append(boot(netdevs))
        for n, guest in enumerate(pair, 1):
            plan.address(guest, n)
            guest.address(len(plan.ways), f"10.0.100.{n}/24")
        lab.until_up(*plan.names(), "host", "mixed-1", "mixed-2", "office", "trunk-1", "trunk-2")
        for guest in pair:
            guest.fill("file", 20)
        yield plan, lab, pair, host


@pytest.mark.parametrize("way", WAYS)
def test_guests_ping_and_exchange_20_mb_each_way_through(world, way):
    plan, lab, (one, two), _ = world
    nic = plan.ways.index(way)
    one.ping(f"10.0.{nic}.2", count=10)
    assert one.fetch(f"http://10.0.{nic}.2/file") == two.sums["file"]
    assert two.fetch(f"http://10.0.{nic}.1/file") == one.sums["file"]
    for n in (1, 2):
        counters = lab.counters(f"{way}-{n}")
        assert counters["rx_bytes"] > 20_000_000
        assert counters["tx_bytes"] > 20_000_000


def exchange(guest, guest_address, host, host_address, directory):
    """20 MB each way between a guest and a namespace, whole."""
    file = directory / "file"
    file.write_bytes(os.urandom(20_000_000))
    with host.running("busybox", "httpd", "-f", "-p", f"{host_address}:80", "-h", str(directory)):
        deadline.until(lambda: ":80 " in host.run("ss", "-Hltn"), "httpd listening")
        assert guest.fetch(f"http://{host_address}/file") == hashlib.sha256(file.read_bytes()).hexdigest()
    host.run("busybox", "wget", "-q", "-O", str(directory / "got"), f"http://{guest_address}/file")
    assert hashlib.sha256((directory / "got").read_bytes()).hexdigest() == guest.sums["file"]
    assert guest.run("awk '/^Tcp:/ {errors = $NF} END {print errors}' /proc/net/snmp").strip() == "0"


def test_a_guest_and_a_tap_exchange_20_mb_each_way(world, tmp_path):
    """The TAP's side sends super-frames with partial checksums: the guest's port cuts and completes them."""
    _, lab, (one, two), host = world
    two.ping("10.0.100.9", count=3)
    one.ping("10.0.100.9", count=10)
    exchange(one, "10.0.100.1", host, "10.0.100.9", tmp_path)
    assert lab.counters("host")["rx_super"] > 100


def test_a_guest_on_a_trunk_and_a_tap_in_one_vlan_of_it_exchange_20_mb_each_way(world, tmp_path):
    """Super-frames of an access port are tagged, then cut; VLAN 20 of the same trunks does not see them."""
    plan, _, (one, two), host = world
    nic = len(plan.ways) + 1
    for guest, vlan in ((one, 10), (one, 20), (two, 10), (two, 20)):
        guest.run(
            f"ip link set eth{nic} up && ip link add link eth{nic} name v{vlan} type vlan id {vlan} && ip link set v{vlan} up"
        )
    one.run("ip address add 10.0.110.1/24 dev v10 && ip address add 10.0.120.1/24 dev v20")
    two.run("ip address add 10.0.110.2/24 dev v10 && ip address add 10.0.120.2/24 dev v20")
    one.ping("10.0.110.9", count=10)
    one.ping("10.0.120.2", count=10)
    exchange(one, "10.0.110.1", host, "10.0.110.9", tmp_path)
    two.run("! ping -c 1 -W 1 10.0.110.9")
    two.run("! ping -c 1 -W 1 10.0.110.1")


def test_ports_come_back_when_shardnet_or_qemu_restarts(lab, guest, tmp_path):
    plan = Plan(WAYS_THAT_COME_BACK, tmp_path)
    one, two = (guest(plan.netdevs(n)) for n in (1, 2))
    one.run("true")
    running = lab(plan.lab())  # QEMU was there first
    plan.address(one, 1)
    plan.address(two, 2)
    plan.ping_all(one)
    running.restart()
    plan.ping_all(one)
    two.restart()
    plan.address(two, 2)
    plan.ping_all(one)


def test_a_guest_that_connects_is_served_again_after_qemu_restarts(world):
    plan, lab, (one, two), _ = world
    two.restart()
    plan.address(two, 2)
    lab.until_up(*plan.names())
    plan.ping_all(one)
