"""Two switches with a link between them, as the kernel's own stack on either side meets it."""

import json
import re

import pytest

import deadline
from shardnet import lab as labs_read

LAB = """
[lab]
shards = {shards}

[tap left]
switch = one
ifname = left
netns = {left}
address = 10.1.1.1/24

[tap right]
switch = two
ifname = right
netns = {right}
address = 10.1.1.2/24

[link line]
switch = one
to = two
{keys}
"""

pytestmark = pytest.mark.needs("root", "/dev/net/tun", "iperf3")


@pytest.fixture
def joined(namespace, lab):
    left, right = namespace("left"), namespace("right")

    def start(keys="", shards=3):
        running = lab(LAB.format(left=left.name, right=right.name, keys=keys, shards=shards))
        running.until_up("left", "right", "line", "line.far")
        return left, right, running

    return start


def rtts_ms(left, count):
    said = left.run("ping", "-c", str(count), "-i", "0.05", "-W", "5", "10.1.1.2")
    return [float(found) for found in re.findall(r"time=([0-9.]+)", said)]


def iperf3(left, right, *words):
    with right.running("iperf3", "--server", "--one-off"):
        deadline.until(lambda: ":5201 " in right.run("ss", "-Hltn"), "iperf3 listening")
        return json.loads(left.run("iperf3", "--json", "--client", "10.1.1.2", *words))["end"]


@pytest.mark.parametrize("shards", [1, 3])
def test_frames_cross_a_link_uncut_and_its_books_close(joined, shards):
    left, right, running = joined(shards=shards)
    assert iperf3(left, right, "--time", "2")["sum_received"]["bytes"] > 10_000_000
    assert running.counters("right")["tx_super"] > 100
    workers = running.workers()
    assert workers["line"] == workers["line.far"]
    # The kernel's first words may come while an end is not open yet.
    assert "tx_full" not in {row["cause"] for row in running.json("drops", "line")}
    running.until_balanced("line", "line.far")
    switches = {entry["switch"] for entry in running.json("fdb")}
    assert switches == {"one", "two"}


def test_a_delay_each_way_is_changed_while_frames_pass_and_so_is_the_far_switch(joined):
    left, _, running = joined("delay = 20ms/10ms")
    assert 30 <= min(rtts_ms(left, 10)) < 31
    worker = running.workers()["line"]
    running.shardnet("port", "set", "line", "delay=5ms")
    assert 10 <= min(rtts_ms(left, 10)) < 11
    running.shardnet("port", "set", "line", "delay=", "to=three")
    running.until_up("line", "line.far")
    assert running.port("line.far")["switch"] == "three"
    running.shardnet("port", "set", "line", "to=two")
    running.until_up("line", "line.far")
    assert min(rtts_ms(left, 10)) < 10
    assert running.workers()["line"] == worker
    assert "both ends on one switch are a loop" in _refused(running, "port", "set", "line", "to=one")
    assert "a part of line" in _refused(running, "port", "set", "line.far", "delay=1ms")


def _refused(running, *words):
    with pytest.raises(AssertionError) as refused:
        running.shardnet(*words)
    return str(refused.value)


def test_losses_and_10_ms_each_way_leave_tcp_what_a_sender_can_make_of_them(joined):
    """Mathis et al., 1997: MSS / RTT * sqrt(3 / 2 / p) for Reno that is acknowledged at once; CUBIC does no worse."""
    left, right, running = joined("delay = 10ms\nloss = 1%/0\nseed = 3\nbandwidth = 20M/0\nbandwidth_queue = 1M/0")
    report = iperf3(left, right, "--time", "8", "--congestion", "reno")
    bound = 1448 * 8 / 0.020 * (3 / 2 / 0.01) ** 0.5 / 2**0.5
    assert report["sum_received"]["bits_per_second"] > 0.5 * bound, "an RTT of more than asked for, or more loss"
    assert running.counters("line")["tx_super"] == 0
    assert {row["cause"] for row in running.json("drops", "line")} == {"tx_impair_loss"}


@pytest.mark.needs()
def test_a_link_has_two_switches():
    with pytest.raises(labs_read.Wrong, match="to = lan: both ends on one switch are a loop"):
        labs_read.ports("[link a]\nto = lan")
    with pytest.raises(labs_read.Wrong, match="to: missing"):
        labs_read.ports("[link a]")
