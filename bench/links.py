"""Row link: TCP over a line that delays and loses, against a C program that does nothing else, and against the line without delay.

10 ms each way; with 1 % of the frames lost, by Reno and by BBR (a namespace may have no CUBIC), and with none and windows as large as the
way is long (net.ipv4.tcp_rmem and tcp_wmem of both ends at 256 MB): what a line without delay carries is to come through one with it. A run takes longer than others, since
TCP has to open its window, and what losses leave of it differs from second to second.
"""

import abc
from collections.abc import Sequence
from typing import ClassVar

from bench import corner, lab, pair, peers, programs
from bench.samples import Round

DELAY_MS, LOSS_PERCENT = 10, 1
WINDOW = 256 << 20
LONGER = 6  # times a usual measurement


class Line(peers.Peer, abc.ABC):
    @abc.abstractmethod
    def lay(self, place: corner.Corner, delay_ms: int, loss_percent: int) -> None:
        """Lay a line between two namespaces, as a switch's `start` leaves them."""


class Delayer(Line):
    """bare C program, TAP to TAP, a queue each way: the control"""

    name = "delayer"
    needs: ClassVar = {"cc": "gcc"}

    def lay(self, place: corner.Corner, delay_ms: int, loss_percent: int) -> None:
        place.daemon("s", programs.program("delayer"), "t0", "t1", delay_ms * 1000, loss_percent * 10_000)
        peers.hand_over_taps(place, "t0", "t1")


class ShardnetLink(Line):
    """shardnet, two switches and a [link] between them, as it comes"""

    name = "shardnet link"

    @classmethod
    def missing(cls) -> str | None:
        return lab.missing()

    def lay(self, place: corner.Corner, delay_ms: int, loss_percent: int) -> None:
        left, right = peers.taps(place)
        keys = f"delay = {delay_ms}ms\n" * bool(delay_ms) + f"loss = {loss_percent}%\n" * bool(loss_percent)
        line = f"[link line]\nswitch = one\nto = two\n{keys}"
        lab.Lab(place, [f"{left}switch = one\n", f"{right}switch = two\n", line]).start()


LINES: tuple[type[Line], ...] = (Delayer, ShardnetLink)
SORTS = {
    "reno": (DELAY_MS, LOSS_PERCENT, "reno"),
    "bbr": (DELAY_MS, LOSS_PERCENT, "bbr"),
    "delay": (DELAY_MS, 0, "bbr"),
    "none": (0, 0, "bbr"),
}


def measure(chosen: Sequence[type[Line]], turn: Round) -> None:
    """One round: each sort of line by each program, set up anew for each."""
    for sort, (delay_ms, loss_percent, control) in SORTS.items():
        for kind in chosen:
            with turn.attempt(f"{kind.name}, link {sort}"):
                if why := kind.missing():
                    raise corner.Failed(why)
                with corner.Corner(kind.name.replace(" ", "-")) as place:
                    kind().lay(place, delay_ms, loss_percent)
                    for side in "ab":
                        for key in "rmem", "wmem":
                            place.run(side, "sysctl", "-qew", f"net.ipv4.tcp_{key}=4096 131072 {WINDOW}")
                        place.run(side, "sysctl", "-qew", f"net.ipv4.tcp_congestion_control={control}")
                    pair.answering(place)
                    rate, cost = pair.stream(place, LONGER * turn.seconds, "a", "b", peers.RIGHT)
                    turn.add(f"link {sort}", kind.name, 1000 * rate if loss_percent else rate)
                    turn.add(f"link {sort} cpu", kind.name, cost)
