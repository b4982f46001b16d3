"""What a line was asked for and what is measured of it: for a minute with SHARDNET_TEST_FULL=1 and within 2 %, else for seconds and as near
as so few frames allow.

Each measurement is taken at the far ends of stream ports, by their clock and their count. `pytest -s` shows the figures.
"""

import itertools
import os
import select
import statistics
import time

import pytest

import deadline
import ends

FULL = "SHARDNET_TEST_FULL" in os.environ
SECONDS = 60 if FULL else 5
FRAMES = 1_000_000 if FULL else 150_000
NEAR = 0.02 if FULL else 0.05
LATE = 0.02 if FULL else 0.2  # of times: in seconds, what a busy machine did is a large part of them
DELAY_MS, JITTER_MS = 20, 4
TWINS = 8  # ports with one sort of line, each with its own seed
GAP_S = 0.04  # of frames on a line: jitter leaves them in their order, and none is to wait for the one before


def started(lab, lines):
    """A lab with a sender and a port a line; all of them attached, and known to the switch."""
    sender = ends.Stream("sender", 1)
    receivers = {name: ends.Stream(name, number) for number, name in enumerate(lines, 2)}
    sections = [f"{receivers[name].section}{keys}\n" for name, keys in lines.items()]
    running = lab("\n".join(["[lab]\nshards = 2\n", sender.section, *sections]))
    for end in (sender, *receivers.values()):
        end.attach(running.run_dir)
    running.until_up("sender", *receivers)
    for end in receivers.values():
        assert end.send(ends.frame(sender.mac, end.mac, 0))
    seen = set()

    def all_heard():
        seen.update(one[6:12] for one in sender.frames())
        return len(seen) == len(receivers)

    deadline.until(all_heard, "every port heard")
    deadline.until(lambda: not any(running.counters(name)["queued"] for name in receivers), "an empty line")
    return running, sender, receivers


def latencies_ms(sender, receivers):
    """How long each frame took, by port: each port in turn is sent one that carries the time."""
    names = itertools.cycle(receivers)
    found = {name: [] for name in receivers}
    by_fd = {end.socket.fileno(): name for name, end in receivers.items()}
    poll = select.poll()
    for fd in by_fd:
        poll.register(fd, select.POLLIN)
    gap_ns = int(GAP_S * 1e9 / len(receivers))
    due = time.monotonic_ns()
    end_ns = due + int(SECONDS * 1e9)
    while (now := time.monotonic_ns()) < end_ns + 500_000_000:
        if due <= now < end_ns:
            assert sender.send(ends.frame(receivers[next(names)].mac, sender.mac, time.monotonic_ns()))
            due += gap_ns
        wait_ms = max(0, (due if due < end_ns else now + 50_000_000) - time.monotonic_ns()) / 1e6
        for fd, _ in poll.poll(wait_ms):
            name = by_fd[fd]
            came = list(receivers[name].frames())
            now = time.monotonic_ns()
            found[name] += [(now - ends.number(one)) / 1e6 for one in came if one[6:12] == sender.mac]
    return found


# Standard deviation (None: four moments of it are infinite, so that no sample has it), and quartiles, in units of jitter.
SHAPES = {
    "uniform": (1 / 3**0.5, (-0.5, 0, 0.5)),
    "normal": (1, (-0.6745, 0, 0.6745)),
    "pareto": (None, tuple(((1 - p) ** (-1 / 3) - 1.5) / 0.75**0.5 for p in (0.25, 0.5, 0.75))),
}


def test_delay_and_each_distribution_of_jitter_are_what_was_asked(lab):
    lines = {"wire": "", **{f"plain-{n}": f"delay = {DELAY_MS}ms/0" for n in range(TWINS)}}
    for shape in SHAPES:
        keys = f"delay = {DELAY_MS}ms/0\njitter = {JITTER_MS}ms/0\ndistribution = {shape}\nseed = "
        lines |= {f"{shape}-{n}": f"{keys}{n}" for n in range(TWINS)}
    _, sender, receivers = started(lab, lines)
    found = latencies_ms(sender, receivers)
    wire = statistics.median(found["wire"])
    for sort in ("plain", *SHAPES):
        took = [one - wire for n in range(TWINS) for one in found[f"{sort}-{n}"]]
        assert len(took) > 0.9 * TWINS * SECONDS / GAP_S
        mean, deviation, quartiles = statistics.fmean(took), statistics.stdev(took), statistics.quantiles(took, n=4)
        shown = " ".join(f"{one:.2f}" for one in quartiles)
        print(
            f"{sort}: {len(took)} frames, mean {mean:.3f} ms, standard deviation {deviation:.3f} ms, quartiles {shown}"
        )
        if sort == "plain":
            assert quartiles[1] == pytest.approx(DELAY_MS, rel=LATE)
            continue
        wanted, parts = SHAPES[sort]
        assert quartiles == pytest.approx([DELAY_MS + JITTER_MS * part for part in parts], rel=LATE)
        if FULL:
            assert mean == pytest.approx(DELAY_MS, rel=NEAR)
            if wanted:
                assert deviation == pytest.approx(wanted * JITTER_MS, rel=NEAR)


def sent_to(running, sender, name, end, count):
    """Send numbered frames to a port; the numbers that came, in their order, None for a frame that was damaged."""
    found = []

    def take():
        for one in end.frames():
            if one[6:12] != sender.mac:
                continue  # it was not known yet, and others spoke to it
            number = ends.number(one)
            if number is None or number >= count or one[22:] != filler:
                found.append(None)
            else:
                found.append(number)

    before = running.counters(name)
    filler = ends.frame(end.mac, sender.mac, 0, 200)[22:]
    for number in range(count):
        one = ends.frame(end.mac, sender.mac, number, 200)
        while not sender.send(one):
            take()
        if number % 16 == 0:
            take()

    def settled():
        take()
        now = running.counters(name)
        done = now["queued"] == 0 and now["offered"] - before["offered"] >= count
        return done and now["tx_frames"] - before["tx_frames"] == len(found)

    try:
        deadline.until(settled, f"every frame to {name} settled")
    except AssertionError as late:
        raise AssertionError(f"{late}: {len(found)} of {running.counters(name)}") from None
    assert not running.json("drops", "sender")
    return found


def test_loss_duplication_damage_and_overtaking_are_as_frequent_as_asked(lab):
    lines = {
        "single": "loss = 10%/0\nseed = 1",
        "burst": "loss = 20%/0\nloss_burst = 4/0\nseed = 2",
        "twice": "duplicate = 10%/0\nseed = 3",
        "damage": "corrupt = 10%/0\nseed = 4",
        "overtake": "delay = 5ms/0\nreorder = 10%/0\nseed = 5",
    }
    running, sender, receivers = started(lab, lines)
    found = {name: sent_to(running, sender, name, end, FRAMES) for name, end in receivers.items()}
    damaged = sum(number != place for place, number in enumerate(found["damage"]))  # in the number itself, too
    lost = {name: FRAMES - len(set(found[name])) for name in ("single", "burst")}
    runs = [1 for before, after in itertools.pairwise(sorted({-1, *found["burst"], FRAMES})) if after - before > 1]
    first, overtook = FRAMES, 0
    for number in reversed(found["overtake"]):
        overtook += number > first
        first = min(first, number)
    measured = {
        "loss": (lost["single"] / FRAMES, 0.10),
        "loss in bursts": (lost["burst"] / FRAMES, 0.20),
        "their length": (lost["burst"] / len(runs), 4),
        "duplicate": ((len(found["twice"]) - len(set(found["twice"]))) / FRAMES, 0.10),
        "corrupt": (damaged / FRAMES, 0.10),
        "reorder": (overtook / FRAMES, 0.10),
    }
    for what, (got, wanted) in measured.items():
        print(f"{what}: {got:.5g} of {FRAMES} frames, asked {wanted:g}, {100 * (got / wanted - 1):+.2f} %")
    for what, (got, wanted) in measured.items():
        assert got == pytest.approx(wanted, rel=NEAR), what


@pytest.mark.parametrize("bits", [1_000_000, 20_000_000, 200_000_000])
def test_a_rate_is_the_one_that_was_asked(lab, bits):
    _, sender, receivers = started(lab, {"slow": f"bandwidth = {bits}/0"})
    (slow,) = receivers.values()
    one = ends.frame(slow.mac, sender.mac, 1, ends.HIGH)
    poll = select.poll()
    poll.register(slow.socket.fileno(), select.POLLIN)
    end = time.monotonic() + SECONDS
    pace_s = ends.HIGH * 8 / bits / 2  # twice as many as go through
    due, came = time.monotonic(), []
    while (now := time.monotonic()) < end:
        while due <= now:
            sender.send(one)
            due += pace_s
        poll.poll(max(0, (due - time.monotonic()) * 1000))
        came += [time.monotonic()] * len(list(slow.frames()))
    measured = (len(came) - 1) * ends.HIGH * 8 / (came[-1] - came[0])
    print(f"bandwidth {bits:,}: {measured:,.0f} bit/s, {100 * (measured / bits - 1):+.2f} %")
    assert measured == pytest.approx(bits, rel=NEAR)
