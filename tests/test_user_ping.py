"""Echo through [user NAME], to a machine behind a router: two more namespaces, and the lab in one of its own.

`inside` is the guest behind a TAP, `near` the host that the lab runs on, then `router` and `beyond`, with 1,300 bytes a packet
between the last two.
"""

import re
import tempfile
from pathlib import Path

import pytest

import exchange
import labs
import namespaces
from shardnet import links

pytestmark = pytest.mark.needs("root", "/dev/net/tun", "traceroute", "ping")

LAB = """
[user net0]

[tap inside]
ifname = inside
netns = {netns}
address = 10.0.2.15/24
"""
V4 = {"host": "10.0.2.2", "router": "192.0.2.254", "beyond": "198.51.100.1", "nowhere": "203.0.113.1"}
V6 = {"host": "fec0::2", "router": "2001:db8:1::254", "beyond": "2001:db8:2::1", "nowhere": "2001:db8:3::1"}
BOTH = pytest.mark.parametrize("at", [V4, V6], ids=["v4", "v6"])


def chain(namespace):
    """The namespaces with links, addresses and routes; the lab is not running yet."""
    inside, near, router, beyond = (namespace(word) for word in ("inside", "near", "router", "beyond"))
    near.run("ip", "link", "add", "out", "type", "veth", "peer", "name", "left", "netns", router.name)
    router.run("ip", "link", "add", "right", "type", "veth", "peer", "name", "out", "netns", beyond.name)
    for place, name, *addresses in (
        (near, "out", "192.0.2.1/24", "2001:db8:1::1/64"),
        (router, "left", "192.0.2.254/24", "2001:db8:1::254/64"),
        (router, "right", "198.51.100.254/24", "2001:db8:2::254/64"),
        (beyond, "out", "198.51.100.1/24", "2001:db8:2::1/64"),
    ):
        for address in addresses:
            place.run("ip", "addr", "add", address, "dev", name, *(["nodad"] if ":" in address else []))
        place.run("ip", "link", "set", name, "up")
    for place, v4, v6 in ((near, "192.0.2.254", "2001:db8:1::254"), (beyond, "198.51.100.254", "2001:db8:2::254")):
        place.run("ip", "route", "add", "default", "via", v4)
        place.run("ip", "route", "add", "default", "via", v6)
    router.run("sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1")
    router.run("sysctl", "-qw", "net.ipv4.icmp_ratemask=0", "net.ipv6.icmp.ratelimit=0")
    router.run("ip", "route", "add", "unreachable", "203.0.113.0/24")
    router.run("ip", "route", "add", "unreachable", "2001:db8:3::/64")
    router.run("ip", "link", "set", "right", "mtu", "1300")
    beyond.run("ip", "link", "set", "out", "mtu", "1300")
    return inside, near


def start(lab, inside, near):
    with links.namespace(near.name):
        running = lab(LAB.format(netns=inside.name))
    running.until_up("net0", "inside")
    inside.run("ip", "addr", "add", "fec0::15/64", "dev", "inside", "nodad")
    inside.run("ip", "route", "add", "default", "via", "10.0.2.2")
    inside.run("ip", "route", "add", "default", "via", "fec0::2", "metric", "1")


@pytest.fixture(scope="module")
def world():
    """The guest and the host, while the lab runs; one for all tests of this file."""
    with namespaces.making() as namespace, tempfile.TemporaryDirectory() as directory:
        inside, near = chain(namespace)
        near.run("sysctl", "-qw", "net.ipv4.ping_group_range=0 2147483647")
        with labs.starting(Path(directory)) as lab:
            start(lab, inside, near)
            yield inside, near


@pytest.fixture
def guest(world):
    """The guest; nothing is known of the way to beyond."""
    for place in world:
        place.run("ip", "route", "flush", "cache")
        place.run("ip", "-6", "route", "flush", "cache")
    return world[0]


def ping(guest, *words):
    """What ping says, whatever its status."""
    return guest.run("sh", "-c", 'ping -n "$@" || true', "ping", *words)


@BOTH
@pytest.mark.parametrize("size", ["0", "56", "1200", "4000"])
def test_a_machine_beyond_a_router_answers(guest, at, size):
    ping(guest, "-c", "1", "-W", "10", "-s", size, at["beyond"])  # IPv6 learns how much passes
    exchange.ping(guest, at["beyond"], int(size), cut=True)


@BOTH
def test_identifiers_of_several_pings_are_kept_apart(guest, at):
    said = guest.run("sh", "-ec", 'for i in 1 2 3 4 5; do ping -n -c 8 -l 7 -i 1 "$0" & done; wait', at["beyond"])
    assert said.count(" 0% packet loss") == 5, said


@BOTH
@pytest.mark.parametrize("how", [[], ["-I"]], ids=["UDP", "ICMP"])
def test_traceroute_names_the_routers_behind(guest, at, how):
    said = guest.run("traceroute", "-n", "-q", "1", "-N", "1", "-w", "10", "-m", "5", *how, at["beyond"])
    hops = re.findall(r"^ *\d+ +(\S+)", said, re.MULTILINE)
    assert hops == [at["host"], at["router"], at["beyond"]], said


@BOTH
def test_a_router_that_knows_no_way_says_so_itself(guest, at):
    said = ping(guest, "-c", "1", "-W", "10", at["nowhere"])
    # A route of type unreachable: ICMP 3/1, and ICMPv6 1/3 or 1/0.
    told = re.search(rf"From {at['router']} icmp_seq=1 Destination (Host Unreachable|unreachable: .*)", said)
    assert told, said


@BOTH
def test_a_packet_that_is_too_big_for_a_link_beyond_comes_back_with_its_mtu(guest, at):
    said = ping(guest, "-c", "1", "-W", "10", "-M", "do", "-s", "1400", at["beyond"])
    assert f"From {at['router']} icmp_seq=1" in said, said
    assert re.search(r"mtu ?= ?1300", said), said


def test_where_echo_is_not_allowed_the_guest_is_told(namespace, lab):
    inside, near = chain(namespace)
    start(lab, inside, near)
    assert "From 10.0.2.2 icmp_seq=1 Packet filtered" in ping(inside, "-c", "1", "-W", "10", V4["beyond"])
    said = ping(inside, "-c", "1", "-W", "10", V6["beyond"])
    assert "From fec0::2 icmp_seq=1 Destination unreachable: Administratively prohibited" in said, said
