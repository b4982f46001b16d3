"""[user NAME] with more UDP flows than a process has descriptors, over four shards and both families.

Each is a port of this host, whoever it speaks to, and a family has no more than 64,512 that anybody may take: 65,536 flows are half of
IPv4 and half of IPv6. The lab is in a namespace of its own, where net.ipv4.ip_local_port_range is as wide as it may be.
"""

import collections
import contextlib
import os
import resource
import select
import socket
import threading
import time

import pytest

import deadline
import exercises
from shardnet import links

SHARDS, GUESTS = 4, 2  # a hardware address has three quarters of a shard at most
CHOSEN = 2  # addresses of a family that a guest has in a shard
NETS = {"10.0.2.{}": ("10.0.2.2", "/24"), "fec0::{:x}": ("fec0::2", "/64")}
EACH = 2048 if exercises.FULL else 256  # ports of an address
FLOWS = SHARDS * GUESTS * CHOSEN * len(NETS) * EACH
FIRST_PORT = 20_000
BATCH = 256
LAB = """
[user net0]
shards = {shards}
max-flows = {flows}
"""
TAP = """
[tap in{number}]
ifname = inside
netns = {netns}
address = 10.0.2.{first}/24
"""


def made_in(netns, family, *options):
    with links.namespace(netns.name):
        return socket.socket(family, socket.SOCK_DGRAM, *options)


@pytest.fixture
def host(namespace):
    """A machine whose every port from 1024 on may be had."""
    made = namespace("host")
    made.run("sysctl", "-qw", "net.ipv4.ip_local_port_range=1024 65535")
    return made


@pytest.fixture
def echo(host):
    """Servers of the host's loopback, at one port, that answer each datagram with the port it came from."""
    ended = threading.Event()
    with made_in(host, socket.AF_INET) as v4, made_in(host, socket.AF_INET6) as v6:
        v4.bind(("127.0.0.1", 0))
        v6.bind(("::1", v4.getsockname()[1]))

        def serve():
            with select.epoll() as poller:
                at = {server.fileno(): server for server in (v4, v6)}
                for fd in at:
                    poller.register(fd, select.EPOLLIN)
                while not ended.is_set():
                    for fd, _ in poller.poll(0.1):
                        _, peer = at[fd].recvfrom(100)
                        at[fd].sendto(str(peer[1]).encode(), peer)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield v4.getsockname()[1]
        ended.set()
        thread.join()


def asked(netns, address, ports, echo):
    """Ask from each port of a guest's address: the port of the outside that it has there."""
    waiting, outer = {}, {}
    poller = select.epoll()
    is_v6 = ":" in address
    with links.namespace(netns.name):
        several = [socket.socket(socket.AF_INET6 if is_v6 else socket.AF_INET, socket.SOCK_DGRAM) for _ in ports]
    for port, made in zip(ports, several, strict=True):
        made.bind((address, port))
        made.connect(("fec0::2" if is_v6 else "10.0.2.2", echo))
        made.setblocking(False)
        poller.register(made, select.EPOLLIN)
        waiting[made.fileno()] = port, made
        made.send(b"?")

    def answered():
        ready = poller.poll(0.2)
        for fd, _ in ready:
            port, made = waiting.pop(fd)
            outer[port] = int(made.recv(100))
            made.close()
        for _, made in waiting.values() if not ready else ():
            made.send(b"?")  # what was lost, as datagrams are, is asked again
        return not waiting

    with poller:
        deadline.until(answered, f"answers for {address}")
    return outer


@pytest.mark.needs("root", "/dev/net/tun")
@pytest.mark.timeout(600)
def test_flows_of_udp_are_held_over_four_shards_and_each_answers_again_from_its_port(namespace, host, echo, lab):
    if resource.getrlimit(resource.RLIMIT_NOFILE)[1] < FLOWS // SHARDS + 1000:
        pytest.skip("RLIMIT_NOFILE: a shard has a descriptor for each of its flows")
    places = [namespace(f"in{number}") for number in range(GUESTS)]
    for netns in places:
        netns.run("sysctl", "-qw", "net.ipv6.conf.default.accept_ra=0", "net.ipv6.conf.default.accept_dad=0")
    taps = [TAP.format(number=n, netns=netns.name, first=20 + 100 * n) for n, netns in enumerate(places)]
    with links.namespace(host.name):
        running = lab("".join([LAB.format(shards=SHARDS, flows=FLOWS * 5 // 4), *taps]))
    names = ["net0", *(f"net0.{share}" for share in range(1, SHARDS))]
    running.until_up(*names, "in0", "in1")
    home = {}
    for n, netns in enumerate(places):
        for pattern, (_, prefix) in NETS.items():
            for last in range(20 + 100 * n, 52 + 100 * n):
                address = pattern.format(last)
                if address != f"10.0.2.{20 + 100 * n}":
                    netns.run("ip", "address", "add", f"{address}{prefix}", "dev", "inside")
                home[address] = netns

    def flows():
        with running.client() as client:
            return {name: [one["guest"] for one in client.flows(name) if one["protocol"] == "udp"] for name in names}

    # Some addresses of each guest for each shard, whichever they are.
    for address, netns in home.items():
        asked(netns, address, [FIRST_PORT], echo)
    chosen = []
    for found in flows().values():
        for netns in places:
            for is_v6 in (False, True):
                of = [address for address in found if home[address] is netns and (":" in address) is is_v6]
                chosen += of[:CHOSEN]
    assert len(chosen) * EACH == FLOWS
    batches = [range(at, min(at + BATCH, FIRST_PORT + EACH)) for at in range(FIRST_PORT, FIRST_PORT + EACH, BATCH)]

    def ask_all():
        """The outer port of every flow."""
        began = time.monotonic()
        outer = {
            (address, port): outer
            for address in chosen
            for batch in batches
            for port, outer in asked(home[address], address, batch, echo).items()
        }
        print(f"{len(outer)} flows have answered after {time.monotonic() - began:.1f} s")
        return outer

    first = ask_all()
    assert len(first) == FLOWS
    held = {name: collections.Counter(found) for name, found in flows().items()}
    for of in held.values():
        assert sorted(of[address] for address in of if address in chosen) == [EACH] * (FLOWS // SHARDS // EACH)
    assert ask_all() == first  # the same mapping for each


def narrow(running, host):
    host.run("sysctl", "-qw", "net.ipv4.ip_local_port_range=40000 40019")


def drops(running):
    return {one["cause"]: one["frames"] for one in running.json("drops") if one["port"] == "net0"}


def limit(running, host):
    pid = running.workers()["net0"]
    few = len(os.listdir(f"/proc/{pid}/fd")) + 20
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (few, few))


@pytest.mark.needs("root", "/dev/net/tun")
@pytest.mark.parametrize(
    ("cause", "options", "run_short"),
    [
        ("tx_flows", {"flows": 16}, lambda running, host: None),
        ("tx_sockets", {"flows": 65_536}, limit),
        ("tx_ports", {"flows": 65_536}, narrow),
    ],
    ids=["max-flows", "descriptors", "host ports"],
)
def test_what_new_flows_run_short_of_is_counted_and_told_and_the_others_go_on(
    namespace, host, echo, lab, cause, options, run_short
):
    netns = namespace("in0")
    with links.namespace(host.name):
        running = lab(LAB.format(shards=1, **options) + TAP.format(number=0, netns=netns.name, first=20))
    running.until_up("net0", "in0")
    run_short(running, host)
    held = asked(netns, "10.0.2.20", range(FIRST_PORT, FIRST_PORT + 8), echo)
    with contextlib.ExitStack() as stack:
        for _ in range(64):
            guest = stack.enter_context(made_in(netns, socket.AF_INET))
            guest.sendto(b"?", ("10.0.2.2", echo))
        deadline.until(lambda: drops(running).get(cause, 0) >= 30, "drops")
    deadline.until(lambda: running.said().count(f"counted as {cause}") == 1, "a line in the log")
    assert set(drops(running)) == {cause}
    assert asked(netns, "10.0.2.20", range(FIRST_PORT, FIRST_PORT + 8), echo) == held
