"""The books: every frame that came into a port went out of another, or was dropped for a cause that has a name, to the frame.

The ends count on their own; for a TAP the kernel does. A killed worker leaves two things open, for it dies in a system
call: what that call took in was counted by nobody yet, and what it gave out is still booked as lost.
"""

import collections
import contextlib
import itertools
import os
import random
import select
import signal
import time
from pathlib import Path

import pytest

import deadline
import ends
import flow
from shardnet import _core

FIRST_EGRESS = _core.DROP_CAUSES.index("tx_oversize")
INGRESS, EGRESS = _core.DROP_CAUSES[:FIRST_EGRESS], _core.DROP_CAUSES[FIRST_EGRESS:]
SIZES = (60, 60, 64, 128, 590, 1514, 1514, 4000)
BURST = 64
QUIET_S = 0.05  # a worker that is held, or whose socket does not say when it has room, looks each millisecond
DATAGRAMS = 32  # that a worker takes in at once
ALONE = 2 * len(ends.kinds_here())  # a worker a port
EACH = pytest.mark.parametrize("shards", [ALONE, 2], ids=["a worker a port", "two workers"])


class Books:
    """A lab of two ends of each kind, driven and audited by the test; all figures are since `open`."""

    def __init__(self, lab, shards):
        self.chance = random.Random(shards)
        kinds = [kind for kind in ends.kinds_here() for _ in range(2)]
        self.ends = [kind(f"a{kind.kind}{at}", at) for at, kind in enumerate(kinds, 1)]
        sections = "".join(f"{end.section}mtu = 5000\n" for end in self.ends)
        self.lab = lab(f"[lab]\nshards = {shards}\nlane_bytes = 256K\n{sections}")
        self.ids = {port["name"]: port["id"] for port in self.lab.json("status")["ports"]}
        arena = os.open(self.lab.arena(), os.O_RDWR)
        self.arena = _core.Arena(arena)
        os.close(arena)
        self.numbers = itertools.count()
        self.before = {}
        for end in self.ends:
            if isinstance(end, ends.Tap):
                Path(f"/proc/sys/net/ipv6/conf/{end.name}/disable_ipv6").write_text("1")  # else it speaks for itself
        self.attach()
        for one, other in itertools.pairwise([*self.ends, self.ends[0]]):
            flow.meet(one, other)
        self.open()

    def attach(self):
        for end in self.ends:
            end.attach(self.lab.run_dir)

    def open(self):
        """Begin the books anew, with nothing under way."""
        self.settle()
        self.before = {}
        self.before = {end: self.of(end) for end in self.ends}

    def of(self, end):
        """Everything that is counted for an end: by the lab, by itself, or by the kernel for a TAP."""
        found = collections.Counter(self.arena.counters(self.ids[end.name]))
        found.update(self.arena.drops(self.ids[end.name]))
        tap = isinstance(end, ends.Tap)
        found["put in"] = end.statistic("tx_packets") if tap else end.sent
        found["got out"] = end.statistic("rx_packets") if tap else end.received
        found.subtract(self.before.get(end, {}))
        return found

    def all(self):
        """The same summed over all ends."""
        return sum((collections.Counter(self.of(end)) for end in self.ends), collections.Counter())

    def in_lanes(self):
        return sum(queued for *_, queued, _ in self.arena.lanes())

    def send(self, source, sink):
        """Send a frame of some size, to everybody where there is no sink; is it sent?"""
        size = self.chance.choice(SIZES)
        if isinstance(source, ends.Tap) or sink is None or isinstance(sink, ends.Tap):
            size = min(size, 1514)
        to = sink.mac if sink else ends.EVERYBODY
        return source.send(ends.frame(to, source.mac, next(self.numbers), size))

    def receive(self, deaf=()):
        return sum(1 for end in self.ends if end not in deaf for _ in end.frames())

    def storm(self, seconds, deaf=(), floods=0.0):
        """Random load from all to all, while those that are deaf read nothing."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            for source in self.ends:
                sink = self.chance.choice([end for end in self.ends if end is not source])
                if self.chance.random() < floods:
                    sink = None
                for _ in range(self.chance.randrange(BURST)):
                    if not self.send(source, sink):
                        break
            self.receive(deaf)
            self.attach()

    def settle(self, deaf=(), cut=False):
        """Let all arrive that can; what a killed worker had in a system call, where one was `cut` short, never does."""
        seen = None

        def quiet():
            nonlocal seen
            self.drain(deaf)
            now = [self.of(end) for end in self.ends], self.in_lanes()
            still, seen = now == seen, now
            taken = cut or all(found["put in"] == found["rx_frames"] for found in now[0])
            done = deaf or not any(found["queued"] or found["in_hand"] for found in now[0]) and not now[1]
            return still and taken and done

        try:
            deadline.until(quiet, "quiescence")
        except AssertionError as late:
            left = {end.name: (self.of(end)["queued"], self.of(end)["in_hand"]) for end in self.ends}
            lanes = [lane for lane in self.arena.lanes() if lane[2]]
            raise AssertionError(f"{late}: queued, in hand {left}; lanes {lanes}") from None

    def drain(self, deaf):
        """Read until nothing has come for a while."""
        self.flush()
        while select.select([end.socket for end in self.ends if end.socket and end not in deaf], [], [], QUIET_S)[0]:
            self.receive(deaf)
            self.attach()
            self.flush()

    def flush(self):
        """Send the rest of what was sent in part."""
        for end in self.ends:
            if isinstance(end, ends.Stream):
                end.flush()


@pytest.fixture
def books(lab):
    with contextlib.ExitStack() as stack:

        def make(shards):
            made = Books(lab, shards)
            for end in made.ends:
                stack.callback(end.close)
            return made

        yield make


def drops(found, causes):
    return sum(found[cause] for cause in causes)


def balances(found):
    """Check the equations that hold for all ports together."""
    assert found["rx_frames"] == found["forwarded"] + found["filtered"] + drops(found, INGRESS)
    assert found["offered"] == found["tx_frames"] + drops(found, EGRESS) + found["queued"]


def on_their_way(found):
    """How many frames have left one port for another and are not there yet, while nothing is flooded."""
    return found["forwarded"] - found["offered"]


def agree(book):
    """Check that the ends, and the kernel, have counted what the lab has."""
    for end in book.ends:
        found = book.of(end)
        assert found["rx_frames"] == found["put in"], (end.name, found)
        assert found["tx_frames"] == found["got out"], (end.name, found)


@EACH
def test_what_goes_into_one_port_comes_out_of_another(books, shards):
    book = books(shards)
    for source, sink in itertools.product(book.ends[::2], book.ends[1::2]):
        before = book.of(source), book.of(sink)
        for _ in range(300):
            book.send(source, sink)
            book.receive()
        book.settle()
        into, out = (book.of(end) - earlier for end, earlier in zip((source, sink), before, strict=True))
        assert into["rx_frames"] == into["put in"] > 0
        assert into["rx_frames"] == out["tx_frames"] + drops(into, INGRESS) + drops(out, EGRESS)
        assert out["tx_frames"] == out["got out"]


@EACH
def test_the_books_close_under_random_load_and_a_reader_that_stopped(books, shards):
    book = books(shards)
    deaf = [end for end in book.ends if isinstance(end, ends.Stream)][:1]
    book.storm(1)
    book.storm(1.5, deaf)
    book.settle(deaf)
    assert book.all()["queued"] > 0, "the one that stopped has frames waiting"

    def lanes_close():
        lanes = book.in_lanes()
        return (lanes > 0) == (shards == ALONE) and lanes == on_their_way(book.all())

    # Waited for: a worker that lost its core in the middle of a batch has taken what its lane has still booked.
    deadline.until(lanes_close, "frames are in lanes where a worker has no other port, and all that are on their way")
    balances(book.all())
    book.settle()
    found = book.all()
    print(dict(found))
    assert found["lane_full" if shards == ALONE else "tx_full"] > 0, "something was to be lost"
    assert found["flooded"] == found["queued"] == found["in_hand"] == on_their_way(found) == 0
    balances(found)
    agree(book)


def test_every_copy_of_a_flooded_frame_is_accounted_for(books):
    book = books(ALONE)
    deaf = [end for end in book.ends if isinstance(end, ends.Stream)][:1]
    book.storm(1, floods=0.5)
    book.storm(1.5, deaf, floods=0.5)
    book.settle()
    found = book.all()
    print(dict(found))
    assert found["flooded"] > 0 and found["copies_lost"] > 0
    agree(book)
    others = len(book.ends) - 1
    owed = found["forwarded"] + found["flooded"] * (others - 1) - found["copies_lost"]
    # A frame that found no lane with room at all is a drop, and no loss of copies beside it.
    whole, rest = divmod(found["offered"] - owed, others)
    assert rest == 0 and 0 <= whole <= found["lane_full"]


@EACH
def test_the_books_close_over_the_death_of_workers(books, shards):
    book = books(shards)
    kills = collections.Counter()
    deaf = [end for end in book.ends if isinstance(end, ends.Stream)][:1]
    for victim in book.ends:
        book.storm(0.4, deaf)
        workers = book.lab.workers()
        os.kill(workers[victim.name], signal.SIGKILL)
        kills.update(name for name, pid in workers.items() if pid == workers[victim.name])
        book.storm(0.2)
    book.settle(cut=True)
    found = book.all()
    print(dict(found))
    balances(found)
    # In the few instructions between a lane and a cell a frame is in both, or in none.
    assert abs(on_their_way(found)) <= len(book.ends), found
    for end in book.ends:
        found, times = book.of(end), kills[end.name]
        print(
            end.name, {what: found[what] for what in ("put in", "rx_frames", "tx_frames", "tx_worker_died", "got out")}
        )
        cut = found["put in"] - found["rx_frames"]
        assert cut >= 0
        if not isinstance(end, ends.Stream):  # its connection was cut, and nobody knows with what in it
            assert cut <= times * (1 if isinstance(end, ends.Tap) else DATAGRAMS)
        assert 0 <= found["got out"] - found["tx_frames"] <= found["tx_worker_died"] + times
