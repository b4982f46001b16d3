"""[vde NAME] with Debian's vde2: as a plug in its vde_switch, and as the switch that its programs plug into."""

import contextlib
import hashlib
import os
import signal
import socket
import struct
import subprocess

import pytest

import deadline
from shardnet import options
from shardnet.workers import vde

BULK = 20_000_000
pytestmark = pytest.mark.needs("root", "/dev/net/tun", "vde_switch", "vde_plug2tap")


@contextlib.contextmanager
def vde_switch(directory):
    """Debian's switch, until the end of the block."""
    process = subprocess.Popen(
        ["vde_switch", "--sock", directory], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        deadline.until((directory / "ctl").exists, "vde_switch's control socket")
        yield process
    finally:
        process.terminate()
        process.wait(10)


@contextlib.contextmanager
def plug2tap(directory, namespace, address, name="vt0"):
    """A TAP in a namespace, plugged into a VDE switch by vde_plug2tap."""
    words = [*namespace.enter, "vde_plug2tap", "--sock", directory, name]
    process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline.until(lambda: name in namespace.links(), f"{name} of vde_plug2tap")
        namespace.run("ip", "address", "add", f"{address}/24", "dev", name)
        namespace.run("ip", "link", "set", name, "up")
        yield process
    finally:
        process.terminate()
        process.wait(10)


def inside(namespace, last=1):
    made = namespace("inside")
    return made, f"[tap guest]\nifname = g0\nnetns = {made.name}\naddress = 10.6.1.{last}/24\nmtu = 1500\n"


def exchange(here, there, address, tmp_path):
    """20 MB each way, compared by their sha256."""
    blob = tmp_path / "blob"
    blob.write_bytes(os.urandom(BULK))
    want = hashlib.sha256(blob.read_bytes()).hexdigest()
    for source, sink, where in ((here, there, address), (there, here, "10.6.1.1")):
        got = tmp_path / "got"
        with sink.running("socat", "-u", "TCP4-LISTEN:7000,reuseaddr", f"CREATE:{got}") as server:
            deadline.until(lambda to=sink: ":7000 " in to.run("ss", "-Hltn"), "socat listening")
            source.run("socat", "-u", f"FILE:{blob}", f"TCP4:{where}:7000")
            server.wait(30)
        assert hashlib.sha256(got.read_bytes()).hexdigest() == want


def ping(namespace, address, within=20):
    def answered():
        return (
            subprocess.run([*namespace.enter, "ping", "-c", "1", "-W", "1", address], capture_output=True).returncode
            == 0
        )

    deadline.until(answered, f"an answer of {address}", within)


def test_a_port_is_a_plug_in_a_vde_switch_and_comes_back_with_it(lab, namespace, tmp_path):
    here, text = inside(namespace)
    there, directory = namespace("there"), tmp_path / "v"
    with vde_switch(directory), plug2tap(directory, there, "10.6.1.2"):
        running = lab(f"[vde out]\nsock = {directory}\n\n{text}")
        running.until_up("out", "guest")
        ping(here, "10.6.1.2")
        exchange(here, there, "10.6.1.2", tmp_path)
        os.kill(running.workers()["out"], signal.SIGKILL)
        deadline.until(lambda: running.port("out")["state"] == "up" and running.workers()["out"], "another worker")
        ping(here, "10.6.1.2")
    deadline.until(lambda: running.port("out")["state"] == "waiting", "the end of vde_switch noticed")
    with vde_switch(directory), plug2tap(directory, there, "10.6.1.2"):
        running.until_up("out")
        here.run("ip", "neighbour", "flush", "dev", "g0")  # the new TAP has an address of its own
        ping(here, "10.6.1.2")


def test_programs_that_plug_in_are_ports_of_their_own(lab, namespace, tmp_path):
    here, text = inside(namespace)
    one, two = namespace("one"), namespace("two")
    running = lab(f"[vde sw]\nlisten = sw.vde\nmax_macs = 5\n\n{text}")
    running.until_up("sw", "guest")
    directory = running.run_dir / "sw.vde"
    with plug2tap(directory, one, "10.6.1.2"):
        with plug2tap(directory, two, "10.6.1.3"):
            running.until_up("sw.1", "sw.2")
            for address in ("10.6.1.2", "10.6.1.3"):
                ping(here, address)
            ping(one, "10.6.1.3")
            exchange(here, one, "10.6.1.2", tmp_path)
            before = running.counters("sw.1")["rx_frames"]
            # The worker of the switch dies: those who are plugged in do not notice.
            old = running.workers()["sw"]
            os.kill(old, signal.SIGKILL)
            ping(one, "10.6.1.3", within=2)
            deadline.until(lambda: running.workers()["sw"] not in (None, old), "another worker")
            assert running.counters("sw.1")["rx_frames"] > before
            running.until_up("sw")
        deadline.until(lambda: "sw.2" not in running.workers(), "the port of who left gone")
        ping(one, "10.6.1.1")
        # And the next one gets its number.
        with plug2tap(directory, two, "10.6.1.3"):
            running.until_up("sw.2")
            ping(two, "10.6.1.2")
        running.shardnet("port", "set", "sw", "isolated=on")
        deadline.until(lambda: running.port("sw.1")["options"].get("isolated") in (True, "on"), "the rule of both")
        running.shardnet("port", "remove", "sw")
        deadline.until(lambda: "sw.1" not in running.workers(), "the end of its ports")
    assert not directory.exists()


def test_qemu_plugs_in(lab, namespace, tmp_path):
    """QEMU's own user network behind its -netdev vde: it is a plug, and its DHCP server answers ours."""
    here, text = inside(namespace)
    running = lab(f"[vde sw]\nlisten = sw.vde\n\n{text}")
    running.until_up("sw", "guest")
    words = [
        "qemu-system-x86_64", "-M", "none", "-nodefaults", "-display", "none", "-monitor", "none",
        "-netdev", f"vde,id=v,sock={running.run_dir / 'sw.vde'}", "-netdev", "user,id=u,net=10.6.1.0/24,host=10.6.1.2",
        "-netdev", "hubport,id=h1,hubid=0,netdev=v", "-netdev", "hubport,id=h2,hubid=0,netdev=u",
    ]  # fmt: skip
    process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE)
    try:
        running.until_up("sw.1")
        ping(here, "10.6.1.2")
    finally:
        process.kill()
        process.communicate()


def test_dpipe_joins_two_labs(lab, namespace, tmp_path):
    here, text = inside(namespace)
    running = lab(f"[vde sw]\nlisten = sw.vde\n\n{text}")
    running.until_up("sw")
    there = namespace("there")
    other = lab(
        f"[vde sw]\nlisten = sw.vde\n\n[tap far]\nifname = f0\nnetns = {there.name}\naddress = 10.6.1.9/24\n",
        name="other",
    )
    other.until_up("sw")
    words = ["dpipe", "vde_plug", running.run_dir / "sw.vde", "=", "vde_plug", other.run_dir / "sw.vde"]
    process = subprocess.Popen(words, stdin=subprocess.DEVNULL, process_group=0)
    try:
        running.until_up("sw.1")
        other.until_up("sw.1")
        ping(here, "10.6.1.9")
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(10)


def test_what_is_no_request_is_refused_and_hurts_nobody(lab, namespace, tmp_path):
    here, text = inside(namespace)
    running = lab(f"[vde sw]\nlisten = sw.vde\nclients = 1\n\n{text}")
    running.until_up("sw", "guest")
    control = str(running.run_dir / "sw.vde" / "ctl")
    one = namespace("one")
    with plug2tap(running.run_dir / "sw.vde", one, "10.6.1.2"):
        running.until_up("sw.1")
        mine = tmp_path / "m"
        name = struct.pack("=H108s", socket.AF_UNIX, os.fsencode(mine))
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as data:
            data.bind(os.fsencode(mine))
            for wrong, why in (
                (b"hello", "a request of 5 bytes"),
                (b"x" * 200, "it does not speak VDE"),
                (struct.pack("=III110s", vde.MAGIC, 2, 1, name), "version 2 of the protocol"),
                (struct.pack("=III110s", vde.MAGIC, 3, 9, name), "a request of type 9"),
                (struct.pack("=III", vde.MAGIC, 3, 1), "a request of 12 bytes"),
                (struct.pack("=III110s", vde.MAGIC, 3, 1, b"\x01\x00"), "its socket has no path"),
                (struct.pack("=III110s", vde.MAGIC, 3, 1, struct.pack("=H108s", 1, b"/nowhere")), ""),
                (struct.pack("=III110s", vde.MAGIC, 3, 1, name), "1 are plugged in"),
            ):
                with socket.socket(socket.AF_UNIX) as client:
                    client.settimeout(10)
                    client.connect(control)
                    client.send(wrong)
                    assert client.recv(100) == b"", wrong
                deadline.until(lambda why=why: why in running.said(), f"'{why}' in the log")
        ping(here, "10.6.1.2")


def test_version_1_of_the_protocol_is_answered_too(lab, namespace, tmp_path):
    _, text = inside(namespace)
    running = lab(f"[vde sw]\nlisten = sw.vde\n\n{text}")
    running.until_up("sw")
    mine = tmp_path / "m"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as data, socket.socket(socket.AF_UNIX) as client:
        data.bind(os.fsencode(mine))
        data.settimeout(10)
        client.settimeout(10)
        client.connect(str(running.run_dir / "sw.vde" / "ctl"))
        name = struct.pack("=H108s", socket.AF_UNIX, os.fsencode(mine))
        client.send(struct.pack("=III6s110s", vde.MAGIC, 1, 1, bytes(6), name) + b"an old one")
        answer = client.recv(200)
        assert len(answer) == 110
        data.connect(answer[2:].split(b"\0")[0])
        running.until_up("sw.1")
        data.send(b"\xff" * 6 + b"\x52\x54\x00\x00\x00\x09" + b"\x08\x00" + bytes(50))
        deadline.until(lambda: running.counters("sw.1")["rx_frames"] == 1, "its frame counted")


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({}, "sock: missing (or listen, to be the switch)"),
        ({"sock": "/a", "listen": "b"}, "sock = /a: listen is given too"),
        (
            {"listen": "b", "port": "3"},
            "port = 3: only a client wants one; programs that are plugged in are counted up",
        ),
        ({"sock": "/a", "mode": "9"}, "mode = 9: no octal number such as 0700"),
        ({"sock": "/a", "clients": "2"}, "clients = 2: only a switch has some"),
    ],
)
def test_a_mistake_is_named_with_its_reason(keys, message):
    with pytest.raises(options.Wrong) as wrong:
        options.read(vde, keys)
    assert str(wrong.value) == message
