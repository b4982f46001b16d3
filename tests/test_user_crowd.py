"""[user NAME] with more UDP flows than a process has descriptors, over four shards.

Each is a port of this host, whoever it speaks to: no more than net.ipv4.ip_local_port_range has, 28,232 as Linux comes.
"""

import collections
import resource
import select
import socket
import threading

import pytest

import deadline
import exercises
from shardnet import links

SHARDS, GUESTS = 4, 2  # a hardware address has three quarters of a shard at most
EACH = 1600 if exercises.FULL else 512  # ports of an address, of which a shard has four
FIRST_PORT = 20_000
BATCH = 128
LAB = """
[user net0]
shards = 4
max-flows = {flows}
"""
TAP = """
[tap in{number}]
ifname = inside
netns = {netns}
address = 10.0.2.{first}/24
"""


@pytest.fixture
def echo():
    """A server of the host's loopback that answers each datagram with the port it came from; its own."""
    ended = threading.Event()
    with socket.socket(type=socket.SOCK_DGRAM) as server:
        server.bind(("127.0.0.1", 0))
        server.settimeout(0.1)

        def serve():
            while not ended.is_set():
                try:
                    _, peer = server.recvfrom(100)
                except TimeoutError:
                    continue
                server.sendto(str(peer[1]).encode(), peer)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield server.getsockname()[1]
        ended.set()
        thread.join()


def asked(netns, address, ports, echo):
    """Ask from each port of a guest's address: the port of the outside that it has there."""
    waiting, outer = {}, {}
    poller = select.epoll()
    for port in ports:
        with links.namespace(netns.name):
            made = socket.socket(type=socket.SOCK_DGRAM)
        made.bind((address, port))
        made.connect(("10.0.2.2", echo))
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
def test_flows_of_udp_are_held_over_four_shards_and_each_answers_again_from_its_port(lab, namespace, echo):
    if resource.getrlimit(resource.RLIMIT_NOFILE)[1] < 4 * EACH + 1000:
        pytest.skip("RLIMIT_NOFILE: a shard has a descriptor for each of its flows")
    places = [namespace(f"in{number}") for number in range(GUESTS)]
    taps = [TAP.format(number=n, netns=netns.name, first=20 + 100 * n) for n, netns in enumerate(places)]
    running = lab("".join([LAB.format(flows=5 * SHARDS * EACH), *taps]))
    names = ["net0", *(f"net0.{share}" for share in range(1, SHARDS))]
    running.until_up(*names, "in0", "in1")
    home = {}
    for n, netns in enumerate(places):
        for last in range(20 + 100 * n, 52 + 100 * n):
            if last != 20 + 100 * n:
                netns.run("ip", "address", "add", f"10.0.2.{last}/24", "dev", "inside")
            home[f"10.0.2.{last}"] = netns

    def flows():
        with running.client() as client:
            return {name: [one["guest"] for one in client.flows(name) if one["protocol"] == "udp"] for name in names}

    # Two addresses of each guest for each shard, whichever they are.
    for address, netns in home.items():
        asked(netns, address, [FIRST_PORT], echo)
    chosen = []
    for found in flows().values():
        for netns in places:
            chosen += [address for address in found if home[address] is netns][:2]
    assert len(chosen) == SHARDS * GUESTS * 2
    batches = [range(at, min(at + BATCH, FIRST_PORT + EACH)) for at in range(FIRST_PORT, FIRST_PORT + EACH, BATCH)]

    def ask_all():
        """The outer port of every flow."""
        return {
            (address, port): outer
            for address in chosen
            for batch in batches
            for port, outer in asked(home[address], address, batch, echo).items()
        }

    first = ask_all()
    assert len(first) == SHARDS * GUESTS * 2 * EACH
    held = {name: collections.Counter(found) for name, found in flows().items()}
    for of in held.values():
        assert sorted(of[address] for address in of if address in chosen) == [EACH] * 4
    assert ask_all() == first  # the same mapping for each
