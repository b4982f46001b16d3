"""Two network namespaces through two TAP ports: what the kernel's own stack makes of the lab."""

import hashlib
import os

import pytest

import deadline
from exchange import counted, iperf3, ping, vlan, wrong_checksums

pytestmark = pytest.mark.needs("root", "/dev/net/tun", "iperf3", "ethtool", "busybox")

LAB = """
[lab]
shards = {shards}

[tap left]
ifname = left
netns = {left}
address = 10.1.1.1/24
          fd01::1/64

[tap right]
ifname = right
netns = {right}
address = 10.1.1.2/24
          fd01::2/64
"""


class Pair:
    """Two namespaces, `left` and `right`, and the lab between them."""

    def __init__(self, left, right, running):
        self.left, self.right, self.lab = left, right, running

    def iperf3(self, *options, client="left"):
        """Run iperf3 from one side to the other and return its report."""
        here, there = (self.left, self.right) if client == "left" else (self.right, self.left)
        return iperf3(here, there, *options)

    def fetch(self, file):
        """Fetch a file from right to left over http; returns the sha256 of what came."""
        with self.right.running("busybox", "httpd", "-f", "-p", "80", "-h", str(file.parent)):
            deadline.until(lambda: ":80 " in self.right.run("ss", "-Hltn"), "httpd listening")
            self.left.run("busybox", "wget", "-q", "-O", f"{file}.got", f"http://10.1.1.2/{file.name}")
        return hashlib.sha256(file.with_name(f"{file.name}.got").read_bytes()).hexdigest()

    def wrong_checksums(self):
        """How many segments and datagrams the two sides have thrown away for their checksum."""
        return wrong_checksums(self.left, self.right)


@pytest.fixture(params=[1, 2], ids=["one worker", "two workers"])
def pair(request, namespace, lab):
    left, right = namespace("left"), namespace("right")
    running = lab(LAB.format(left=left.name, right=right.name, shards=request.param))
    running.until_up("left", "right")
    return Pair(left, right, running)


def test_they_ping_each_other_over_ipv4_and_ipv6(pair):
    for address in ("10.1.1.2", "fd01::2"):
        ping(pair.left, address)
    assert pair.lab.json("fdb")


@pytest.mark.parametrize("address", ["10.1.1.2", "fd01::2"])
def test_tcp_crosses_in_super_frames(pair, address):
    report = pair.iperf3(address, "--time", "2")
    assert report["sum_received"]["bytes"] > 10_000_000
    left, right = pair.lab.counters("left"), pair.lab.counters("right")
    assert left["rx_super"] > 100
    assert right["tx_super"] == left["rx_super"], "a super-frame was cut on its way"
    assert right["tx_bytes"] / right["tx_frames"] > 3000
    assert pair.wrong_checksums() == 0


def test_udp_crosses_without_a_loss_but_what_the_receiver_is_too_slow_for(pair):
    before = pair.lab.json("drops")  # the kernel's first words may come while the other port is not open yet
    report = pair.iperf3("10.1.1.2", "--udp", "--bitrate", "20M", "--length", "1400", "--time", "2")
    assert report["sum"]["packets"] > 1000
    assert report["sum"]["lost_packets"] == counted(pair.right, "UdpRcvbufErrors")
    assert pair.lab.json("drops") == before
    assert pair.wrong_checksums() == 0


def test_vlan_tagged_traffic_passes_a_plain_port_as_it_is(pair):
    with vlan(pair.left, "left", 10, "10.10.0.1/24"), vlan(pair.right, "right", 10, "10.10.0.2/24"):
        ping(pair.left, "10.10.0.2")
        assert pair.iperf3("10.10.0.2", "--time", "1")["sum_received"]["bytes"] > 100_000
        assert {entry["vlan"] for entry in pair.lab.json("fdb")} >= {0, 10}
    assert pair.wrong_checksums() == 0


def test_mtu_9000_carries_packets_of_9000_bytes(pair):
    pair.left.run("ip", "link", "set", "left", "mtu", "9000")
    pair.right.run("ip", "link", "set", "right", "mtu", "9000")
    ping(pair.left, "10.1.1.2", 8972)
    assert pair.iperf3("10.1.1.2", "--time", "1")["sum_received"]["bytes"] > 10_000_000


@pytest.mark.parametrize("offload", ["on", "off"])
@pytest.mark.parametrize("size", [1000, 20_000_000])
def test_what_arrives_is_what_was_sent(pair, tmp_path, offload, size):
    """With offloads off the sender's kernel fills the checksum in and the receiver's verifies it; with them on nobody does."""
    pair.right.run("ethtool", "-K", "right", "tx", offload, "tso", offload)
    file = tmp_path / "file"
    file.write_bytes(os.urandom(size))
    assert pair.fetch(file) == hashlib.sha256(file.read_bytes()).hexdigest()
    assert pair.wrong_checksums() == 0
