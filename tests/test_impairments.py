"""Ports whose lines delay, lose and slow frames down, as the kernel's own stack meets them."""

import itertools
import json
import os
import re

import pytest

import deadline
import ends
from shardnet import lab, options

TAPS = """
[lab]
shards = {shards}

[tap left]
ifname = left
netns = {left}
address = 10.1.1.1/24

[tap right]
ifname = right
netns = {right}
address = 10.1.1.2/24
{keys}
"""

STREAMS = """
[stream one]
server = on
addr.type = unix
addr.path = one.sock

[stream two]
server = on
addr.type = unix
addr.path = two.sock
{keys}
"""


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("delay = 10", "delay = 10: no time such as 10ms (with ns, us, ms or s)"),
        ("delay = 1ms/2ms/3ms", "delay = 1ms/2ms/3ms: more than two directions, out/in"),
        ("delay = 601s", "delay = 601s: longer than 600 s"),
        ("loss = 1", "loss = 1: no part such as 0.5%, of 0% to 100%"),
        ("loss = 101%", "loss = 101%: no part such as 0.5%, of 0% to 100%"),
        ("bandwidth = 10", "bandwidth = 10: neither 0 nor 1K to 1000G"),
        ("bandwidth = fast", "bandwidth = fast: no bandwidth such as 10M (bits a second)"),
        ("bandwidth_queue = x", "bandwidth_queue = x: neither a number of frames nor a size such as 64K"),
        ("bandwidth_queue = 10", "bandwidth_queue = 10: without bandwidth nothing waits for it"),
        ("delay = 1ms\njitter = 2ms", "jitter = 2ms: more than delay, and no frame arrives before it was sent"),
        ("delay = 0/1ms\njitter = 1ms/0", "jitter = 1ms/0: more than delay, and no frame arrives before it was sent"),
        ("reorder = 5%", "reorder = 5%: without delay there is nothing to overtake"),
        ("distribution = gauss", "distribution = gauss: neither uniform nor normal nor pareto"),
        ("loss = 90%\nloss_burst = 2", "loss = 90%: more than bursts of this loss_burst make, one good frame between them"),
    ],
)  # fmt: skip
def test_a_mistake_says_what_was_meant(key, message):
    with pytest.raises(lab.Wrong) as wrong:
        lab.ports(f"[tap up]\n{key}")
    assert message in str(wrong.value)


def test_one_value_is_for_both_directions_and_two_are_out_and_in():
    (port,) = lab.ports("[tap up]\ndelay = 10ms/0\nloss = 25%\nbandwidth = 2.5M")
    assert (port.options.delay, port.options.loss) == ((10_000_000, 0), (1 << 30, 1 << 30))
    assert port.options.bandwidth == (2_500_000, 2_500_000)
    assert "delay" in options.ARENA_KEYS


class Pair:
    def __init__(self, left, right, running):
        self.left, self.right, self.lab = left, right, running

    def rtts_ms(self, count, gap_s):
        said = self.left.run("ping", "-c", str(count), "-i", str(gap_s), "-W", "5", "10.1.1.2")
        return [float(found) for found in re.findall(r"time=([0-9.]+)", said)]

    def iperf3(self, *words):
        with self.right.running("iperf3", "--server", "--one-off"):
            deadline.until(lambda: ":5201 " in self.right.run("ss", "-Hltn"), "iperf3 listening")
            return json.loads(self.left.run("iperf3", "--json", "--client", "10.1.1.2", *words))["end"]


@pytest.fixture
def pair(namespace, lab):
    left, right = namespace("left"), namespace("right")

    def start(keys="", shards=2):
        running = lab(TAPS.format(left=left.name, right=right.name, keys=keys, shards=shards))
        running.until_up("left", "right")
        return Pair(left, right, running)

    return start


@pytest.mark.needs("root", "/dev/net/tun")
def test_a_delay_is_met_both_ways_and_changed_while_the_port_carries(pair):
    both = pair("delay = 20ms/10ms")
    worker = both.lab.workers()["right"]
    rtts = both.rtts_ms(20, 0.05)
    assert len(rtts) == 20
    # No frame may be early; how late one is a busy machine decides, so the bound above is for the best of them.
    assert min(rtts) >= 30
    assert min(rtts) < 31
    both.lab.shardnet("port", "set", "right", "delay=")
    assert min(both.rtts_ms(20, 0.05)) < 5
    assert both.lab.workers()["right"] == worker, "the port was made anew"
    assert both.lab.port("right")["options"].get("delay") is None
    with pytest.raises(AssertionError, match="jitter = 1ms: more than delay"):
        both.lab.shardnet("port", "set", "right", "jitter=1ms")


@pytest.mark.needs("root", "/dev/net/tun", "iperf3")
def test_a_rate_holds_for_tcp_in_super_frames(pair):
    both = pair("bandwidth = 50M/0")
    report = both.iperf3("--time", "4")
    bits = 8 * both.lab.counters("right")["tx_bytes"] / report["sum_sent"]["seconds"]
    assert 40e6 < report["sum_received"]["bits_per_second"] < 50e6
    assert bits < 52e6
    assert both.lab.counters("right")["tx_super"] == 0, "a super-frame passed uncut"


@pytest.mark.needs("root", "/dev/net/tun", "iperf3")
def test_a_mere_delay_leaves_super_frames_whole_and_has_no_cliff(pair):
    both = pair("delay = 10ms")
    before = both.lab.json("drops")  # the kernel's first words may come while the other port is not open yet
    report = both.iperf3("--time", "4", "--omit", "1")
    assert report["sum_received"]["bits_per_second"] > 100e6, "a window of 64 KiB would do 26 Mbit/s"
    counters = both.lab.counters("right")
    assert counters["tx_super"] > 100
    assert both.lab.json("drops") == before


@pytest.mark.needs("root", "/dev/net/tun", "busybox")
def test_damaged_frames_are_refused_by_the_receiver_and_tcp_goes_on(pair, tmp_path):
    both = pair("corrupt = 1%\nseed = 7")
    file, got = tmp_path / "file", tmp_path / "got"
    file.write_bytes(os.urandom(20_000_000))
    with both.right.running("busybox", "httpd", "-f", "-p", "80", "-h", str(tmp_path)):
        deadline.until(lambda: ":80 " in both.right.run("ss", "-Hltn"), "httpd listening")
        both.left.run("busybox", "wget", "-q", "-O", str(got), "http://10.1.1.2/file")
    assert got.read_bytes() == file.read_bytes()
    lines = both.left.run("nstat", "-asz", "TcpInCsumErrors").splitlines()
    assert int(lines[-1].split()[1]) > 20, "14,000 frames and more came, one in a hundred damaged"


def came(running, count, pace):
    """Which of `count` numbered frames from one to two arrive, in the order of their arrival."""
    one, two = ends.Stream("one", 1), ends.Stream("two", 2)
    for end in (one, two):
        end.attach(running.run_dir)
    running.until_up("one", "two")
    found = []
    for number in range(count):
        deadline.until(lambda number=number: one.send(ends.frame(two.mac, one.mac, number, 200)), "room")
        if number % pace == 0:
            found += two.frames()

    def all_settled():
        if not one.flush():
            return False
        found.extend(two.frames())
        counters = running.counters("two")
        return counters["queued"] == 0 and counters["offered"] >= count and len(found) == counters["tx_frames"]

    deadline.until(all_settled, "every frame settled")
    for end in (one, two):
        end.socket.close()
    return found


def test_two_runs_with_one_seed_are_equal_frame_by_frame(lab):
    keys = "loss = 5%/0\nloss_burst = 3/0\nduplicate = 2%/0\ncorrupt = 2%/0\nseed = {}"
    runs = []
    for seed, pace in ((5, 1), (5, 50), (6, 1)):
        running = lab(STREAMS.format(keys=keys.format(seed)), name=f"run{len(runs)}")
        runs.append(came(running, 3000, pace))
        drops = {row["cause"]: row["frames"] for row in running.json("drops", "two")}
        counters = running.counters("two")
        assert counters["offered"] == counters["tx_frames"] + drops["tx_impair_loss"]
        running.stop()
    same, again, other = runs
    assert same == again
    assert same != other
    assert 60 < 3000 - len({found[14:22] for found in same}) < 300
    assert any(one == two for one, two in itertools.pairwise(same)), "no frame came twice"
