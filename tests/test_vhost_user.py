"""Linux guests in QEMU whose cards are driven through shared memory: both ends of the socket, one queue and two, and who dies first.

The front end is QEMU's, the driver that of the guest's kernel.
"""

import dataclasses
import hashlib
import os
import signal
import socket
import subprocess
from concurrent import futures

import pytest

import deadline
import exchange
import guest as guests
import labs
import namespaces

pytestmark = pytest.mark.needs("root", "/dev/net/tun", "guests")


@dataclasses.dataclass(frozen=True)
class Way:
    """One way to attach: QEMU's words and the section of the lab. {run}: the lab's run directory, {tmp}: the test's, {n}: 1 or 2."""

    netdev: str
    section: str


WAYS = {
    "server": Way(
        "vhost-user,path={run}/vs{n}.sock,reconnect=1",
        "[vhost-user NAME]\nserver = on\npath = vs{n}.sock\nmtu = 9000",
    ),
    "client": Way(
        "vhost-user,path={tmp}/vc{n}.sock,server=on,wait=off",
        "[vhost-user NAME]\npath = {tmp}/vc{n}.sock\nreconnect-ms = 100\nmtu = 9000",
    ),
    "two-queues": Way(
        "vhost-user,path={run}/vq{n}.sock,reconnect=1,queues=2",
        "[vhost-user NAME]\nserver = on\npath = vq{n}.sock\nqueues = 2\nmtu = 9000",
    ),
}
# A guest, the host by a TAP, and the world by the user-mode network, on one switch.
MIXED = """
[vhost-user inside]
server = on
path = inside.sock
switch = mixed

[tap host]
ifname = host
netns = {netns}
address = 10.0.2.100/24
          fd00:2::100/64
switch = mixed

[user net0]
switch = mixed
"""


def lab_text(directory):
    return "\n".join(
        way.section.replace("NAME", f"{name}-{n}").format(n=n, tmp=directory) + f"\nswitch = {name}\n"
        for name, way in WAYS.items()
        for n in (1, 2)
    )


def netdevs(n, directory, run_dir):
    return [way.netdev.format(n=n, tmp=directory, run=run_dir) for way in WAYS.values()]


def address(guest, n):
    for nic in range(len(WAYS)):
        guest.address(nic, f"10.1.{nic}.{n}/24")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Two guests with a card a way, the first with one more on a switch with a TAP and the user-mode network."""
    directory = tmp_path_factory.mktemp("vhost")
    with namespaces.making() as make, labs.starting(directory) as start, guests.booting(directory) as boot:
        host = make("host")
        lab = start(lab_text(directory) + MIXED.format(netns=host.name))
        pair = []
        for n in (1, 2):
            more = [f"vhost-user,path={lab.run_dir}/inside.sock,reconnect=1"] if n == 1 else []
            pair.append(boot(netdevs(n, directory, lab.run_dir) + more))
        for n, guest in enumerate(pair, 1):
            address(guest, n)
        lab.until_up(*(f"{name}-{n}" for name in WAYS for n in (1, 2)), "inside")
        for guest in pair:
            guest.fill("file", 20)
        yield lab, pair, host


@pytest.mark.parametrize("way", WAYS)
def test_guests_exchange_20_mb_each_way_in_super_frames_that_nobody_cuts(world, way):
    lab, (one, two), _ = world
    nic = list(WAYS).index(way)
    queues = "queues=" in WAYS[way].netdev
    assert one.run(f"ls /sys/class/net/eth{nic}/queues").count("rx-") == 1 + queues
    one.ping(f"10.1.{nic}.2", count=10)
    assert one.fetch(f"http://10.1.{nic}.2/file") == two.sums["file"]
    assert two.fetch(f"http://10.1.{nic}.1/file") == one.sums["file"]
    counters = [lab.counters(f"{way}-{n}") for n in (1, 2)]
    for here, there in (counters, counters[::-1]):
        assert here["rx_super"] > 100
        assert there["tx_super"] == here["rx_super"]
        assert here["segmented"] == here["checksummed"] == 0


def test_a_guest_a_tap_and_the_world_exchange_super_frames(world, tmp_path):
    lab, (one, _), host = world
    one.address(3, "10.0.2.15/24")
    one.address(3, "fd00:2::15/64")
    one.ping("10.0.2.100", count=10)
    one.ping("fd00:2::100", count=10)
    one.ping("10.0.2.2", count=3)
    file = tmp_path / "file"
    file.write_bytes(os.urandom(20_000_000))
    whole = hashlib.sha256(file.read_bytes()).hexdigest()
    with host.running("busybox", "httpd", "-f", "-p", "80", "-h", str(tmp_path)):
        deadline.until(lambda: ":80 " in host.run("ss", "-Hltn"), "httpd listening")
        assert one.fetch("http://10.0.2.100/file") == whole
        assert one.fetch("http://[fd00:2::100]/file") == whole
    host.run("busybox", "wget", "-q", "-O", str(tmp_path / "got"), "http://10.0.2.15/file")
    assert hashlib.sha256((tmp_path / "got").read_bytes()).hexdigest() == one.sums["file"]
    port = labs.free_port()
    served = subprocess.Popen(["busybox", "httpd", "-f", "-p", f"127.0.0.1:{port}", "-h", str(tmp_path)])
    try:
        deadline.until(lambda: socket.socket().connect_ex(("127.0.0.1", port)) == 0, "httpd listening")
        assert one.fetch(f"http://10.0.2.2:{port}/file") == whole
    finally:
        served.kill()
        served.wait()
    inside, outside = lab.counters("inside"), lab.counters("host")
    assert inside["rx_super"] > 100
    assert inside["tx_super"] > 200
    assert outside["rx_super"] > 100
    assert outside["tx_super"] > 100
    assert inside["segmented"] == outside["segmented"] == outside["checksummed"] == 0
    assert one.run("awk '/^Tcp:/ {errors = $NF} END {print errors}' /proc/net/snmp").strip() == "0"


def test_bytes_to_and_from_the_world_cross_in_super_frames(world, tmp_path):
    """Guest to world, world to guest, and a TAP to and from the world: 20 MB each, by their sha256."""
    lab, (one, _), host = world
    one.ping("10.0.2.2")
    file = tmp_path / "file"
    file.write_bytes(os.urandom(exchange.BULK))
    whole = hashlib.sha256(file.read_bytes()).hexdigest()
    guest_sum = one.sums["file"]
    before = {name: lab.counters(name) for name in ("inside", "host", "net0")}

    def read() -> str:
        with listener.accept()[0] as connection:
            connection.settimeout(60)
            digest = hashlib.sha256()
            while data := connection.recv(1 << 20):
                digest.update(data)
            return digest.hexdigest()

    def write() -> None:
        with listener.accept()[0] as connection:
            connection.sendall(file.read_bytes())

    with socket.create_server(("127.0.0.1", 0)) as listener, futures.ThreadPoolExecutor() as threads:
        listener.settimeout(60)
        port = listener.getsockname()[1]
        got = threads.submit(read)
        one.run(f"nc 10.0.2.2 {port} </srv/file", within=60)
        assert got.result(60) == guest_sum
        threads.submit(write)
        assert one.run(f"nc 10.0.2.2 {port} </dev/null | sha256sum", within=60).split()[0] == whole
        got = threads.submit(read)
        host.run("socat", "-u", f"FILE:{file}", f"TCP4:10.0.2.2:{port}")
        assert got.result(60) == whole
        threads.submit(write)
        host.run("socat", "-u", f"TCP4:10.0.2.2:{port}", f"CREATE:{tmp_path}/got")
        assert hashlib.sha256((tmp_path / "got").read_bytes()).hexdigest() == whole
    more = {
        name: {key: count - before[name][key] for key, count in lab.counters(name).items() if key in before[name]}
        for name in before
    }
    for name in ("inside", "host"):
        assert more[name]["rx_super"] > 100, name
        assert more[name]["tx_super"] > 100, name
        assert more[name]["segmented"] == more[name]["checksummed"] == 0, name
    assert more["net0"]["rx_super"] > 200
    assert more["net0"]["segmented"] == 0


@pytest.mark.parametrize("way", WAYS)
def test_a_tag_and_an_mtu_of_9000_pass(world, way):
    _, (one, two), _ = world
    nic = list(WAYS).index(way)
    for n, guest in ((1, one), (2, two)):
        guest.run(f"ip link set eth{nic} mtu 9000 && ip link add link eth{nic} name v7{nic} type vlan id 7")
        guest.run(f"ip link set v7{nic} mtu 8996 up && ip address add 10.0.7{nic}.{n}/24 dev v7{nic}")
    one.ping(f"10.1.{nic}.2", count=5, size=8972)
    one.ping(f"10.0.7{nic}.2", count=5, size=8968)
    assert one.fetch(f"http://10.0.7{nic}.2/file") == two.sums["file"]
    one.run(f"! ping -c 1 -W 1 -s 8980 -M do 10.1.{nic}.2")


def test_a_guest_keeps_its_card_when_shardnet_a_worker_or_qemu_starts_anew(world):
    lab, (one, two), _ = world
    for nic in range(len(WAYS)):
        one.ping(f"10.1.{nic}.2", count=1)
    lab.restart()
    for nic in range(len(WAYS)):
        one.ping(f"10.1.{nic}.2", count=3)
    assert one.fetch("http://10.1.0.2/file") == two.sums["file"]
    for worker in set(lab.workers().values()):
        os.kill(worker, signal.SIGKILL)
    for nic in range(len(WAYS)):
        one.ping(f"10.1.{nic}.2", count=3)
    assert one.fetch("http://10.1.1.2/file") == two.sums["file"]
    two.restart()
    address(two, 2)
    for nic in range(len(WAYS)):
        one.ping(f"10.1.{nic}.2", count=3)


def test_qemu_comes_up_with_the_words_of_shardnet_qemu(lab):
    running = lab("[vhost-user vm1]\npath = vm1.sock\nserver = on\nqueues = 2\n")
    words = running.json("qemu", "vm1", "--memory", "64M")
    machine = [guests.QEMU, "-S", "-display", "none", "-nodefaults", "-net", "none"]
    with subprocess.Popen([*machine, *words], stdin=subprocess.DEVNULL) as qemu:
        try:
            running.until_up("vm1")
        finally:
            qemu.kill()
    running.shardnet("qemu", "vm1", "--model", "e1000", status=1)
    running.shardnet("qemu", "vm1", "--memory", "much", status=2)
