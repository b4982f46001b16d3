"""[passt NAME] with Debian's passt: the way out of a namespace, started here and by somebody else."""

import os
import subprocess

import pytest

import deadline
import exchange
import labs
from shardnet import options
from shardnet.workers import passt

pytestmark = pytest.mark.needs("root", "passt")


@pytest.fixture
def world(namespace):
    """A host with an address and a way out, and a machine out there."""
    host, far = namespace("host"), namespace("far")
    host.run("ip", "link", "add", "eth0", "type", "veth", "peer", "name", "eth0", "netns", far.name)
    for place, last in (host, 1), (far, 2):
        place.run("ip", "link", "set", "eth0", "up")
        place.run("ip", "address", "add", f"192.0.2.{last}/24", "dev", "eth0")
        place.run("ip", "address", "add", f"2001:db8::{last}/64", "dev", "eth0", "nodad")
    far.run("ip", "address", "add", "192.0.2.3/24", "dev", "eth0")  # the gateway's address stands for the host
    far.run("ip", "address", "add", "2001:db8::3/64", "dev", "eth0", "nodad")
    host.run("ip", "route", "add", "default", "via", "192.0.2.2")
    host.run("ip", "route", "add", "default", "via", "2001:db8::2")
    return host, far


@pytest.fixture
def inside(namespace):
    return namespace("inside")


def text(host, inside, *more):
    return "\n".join([
        "[passt out]", *more, "",
        "[tap guest]", "ifname = g0", f"netns = {inside.name}", "mac = 52:54:00:00:00:01",
        "address = 192.0.2.1/24", "          2001:db8::1/64", "",
    ])  # fmt: skip


def route(inside):
    inside.run("ip", "route", "add", "default", "via", "192.0.2.2")


def speak(inside, far):
    """A connection out, from which passt learns where the guest is."""
    with far.running("socat", "TCP4-LISTEN:7000,fork", "SYSTEM:echo here"):
        deadline.until(lambda: ":7000 " in far.run("ss", "-Hltn"), "socat listening")
        assert inside.run("socat", "-u", "TCP4:192.0.2.3:7000,connect-timeout=10", "-", within=20) == "here\n"


def test_a_guest_reaches_the_world_as_this_host_with_both_families(lab, world, inside, tmp_path):
    host, far = world
    running = lab(text(host, inside, f"netns = {host.name}"))
    running.until_up("out", "guest")
    route(inside)
    for address in ("192.0.2.3", "2001:db8::3"):
        exchange.bulk(inside, far, address, tmp_path, exchange.PASST_MOST)
    assert running.counters("out")["rx_bytes"] < 2 * 2 * exchange.BULK, (
        "passt dropped what found no room, and sent it again and again"
    )


def test_ports_are_forwarded_to_the_guest(lab, world, inside):
    host, far = world
    running = lab(text(host, inside, f"netns = {host.name}", "tcp-ports = 8080:80"))
    running.until_up("out", "guest")
    route(inside)
    speak(inside, far)
    with inside.running("socat", "TCP4-LISTEN:80,fork", "SYSTEM:echo here"):
        deadline.until(lambda: ":80 " in inside.run("ss", "-Hltn"), "socat listening")
        assert far.run("socat", "-", "TCP4:192.0.2.1:8080") == "here\n"


def passts():
    return set(subprocess.run(["pgrep", "-x", "passt|passt.avx2"], capture_output=True, text=True).stdout.split())


def alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def serving(before):
    return {pid for pid in passts() - before if alive(pid)}


def test_a_killed_passt_is_started_again_and_none_is_left_when_the_lab_or_its_worker_ends(lab, world, inside):
    host, far = world
    before = passts()
    running = lab(text(host, inside, f"netns = {host.name}"))
    running.until_up("out", "guest")
    (first,) = serving(before)
    os.kill(int(first), 9)
    deadline.until(lambda: serving(before) - {first}, "another passt", 20)
    running.until_up("out")
    second = serving(before)
    os.kill(running.workers()["out"], 9)
    deadline.until(lambda: serving(before) and not serving(before) & second, "a passt for the next worker", 20)
    deadline.until(lambda: len(serving(before)) == 1, "only one of them", 20)
    running.until_up("out")
    route(inside)
    speak(inside, far)
    running.stop()
    deadline.until(lambda: not serving(before), "the end of passt", 20)


def test_a_passt_that_runs_already_is_attached_to(lab, world, inside, tmp_path):
    host, far = world
    path = tmp_path / "p"
    tmp_path.chmod(0o777)
    for above in list(tmp_path.parents)[:2]:
        above.chmod(0o755)
    with host.running("passt", "--foreground", "--socket", str(path), "--runas", "0"):
        deadline.until(path.exists, "passt's socket")
        running = lab(text(host, inside, f"socket = {path}"))
        running.until_up("out", "guest")
        route(inside)
        speak(inside, far)
        running.stop()


def test_what_passt_refuses_is_said_in_its_words(tmp_path):
    ran = labs.attempt(tmp_path, "[passt out]\nparam = --no-such-thing\n")
    assert ran.returncode == 1
    assert "passt: passt: unrecognized option '--no-such-thing'" in ran.stderr


def test_a_missing_passt_is_said_with_its_package(tmp_path):
    ran = labs.attempt(tmp_path, "[passt out]\npath = /nowhere/passt\n")
    assert ran.returncode == 1
    assert "/nowhere/passt: no such program (Debian's package is called passt)" in ran.stderr


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"ipv4": "off", "ipv6": "off"}, "ipv6 = off: ipv4 is off too, and nothing is left"),
        (
            {"socket": "p", "dhcp-dns": "off"},
            "dhcp-dns = off: the passt behind socket runs already; it took its options when it was started",
        ),
    ],
)
def test_a_mistake_is_named_with_its_reason(keys, message):
    with pytest.raises(options.Wrong) as wrong:
        options.read(passt, keys)
    assert str(wrong.value) == message


def test_every_option_becomes_one_of_passts():
    given = options.read(passt, {
        "mtu": "9000", "address": "10.0.0.5", "netmask": "24", "mac": "52:54:00:00:00:02", "gateway": "10.0.0.1",
        "interface": "eth0", "outbound": "10.0.0.9", "outbound-if4": "eth1", "outbound-if6": "eth2", "dns": "10.0.0.3",
        "search": "a\nb", "fqdn": "vm.a", "dhcp-dns": "off", "dhcp-search": "off", "map-host-loopback": "10.0.0.7",
        "map-guest-addr": "10.0.0.8", "dns-forward": "10.0.0.3", "dns-host": "10.0.0.4", "tcp": "off", "udp": "off",
        "icmp": "off", "dhcp": "off", "ndp": "off", "dhcpv6": "off", "ra": "off", "freebind": "on", "ipv6": "off",
        "tcp-ports": "22\n80:8080", "udp-ports": "53", "quiet": "off", "param": "--stderr",
    })  # fmt: skip
    assert " ".join(given.words) == (
        "--mtu 9000 --address 10.0.0.5 --netmask 24 --mac-addr 52:54:00:00:00:02 --gateway 10.0.0.1 --interface eth0"
        " --outbound 10.0.0.9 --outbound-if4 eth1 --outbound-if6 eth2 --dns 10.0.0.3 --fqdn vm.a"
        " --map-host-loopback 10.0.0.7 --map-guest-addr 10.0.0.8 --dns-forward 10.0.0.3 --dns-host 10.0.0.4"
        " --search a --search b --tcp-ports 22 --tcp-ports 80:8080 --udp-ports 53 --no-dhcp-dns --no-dhcp-search --no-tcp"
        " --no-udp --no-icmp --no-dhcp --no-ndp --no-dhcpv6 --no-ra --freebind --ipv4-only --stderr"
    )
