"""Rows tcp1, tcp4, udp64, pingpong: what crosses a switch between two network namespaces.

All peers stand ready at the same time, idle, and take turns row by row: a value and the control's lie seconds apart. Each round
sets them up anew. Generator, sink and switch share the machine's cores, as guests and a switch do.
"""

import contextlib
import json
from collections.abc import Callable, Sequence

from bench import corner, peers, programs
from bench.samples import Round

ECHO_PORT, SINK_PORT = 7, 9  # IANA: echo, discard
FRAME = 64


def tcp(streams: int) -> Callable[[corner.Corner, str, Round], None]:
    """Bulk from `a` to `b` by iperf3."""

    def measure(place: corner.Corner, name: str, turn: Round) -> None:
        rate, cost = stream(place, turn.seconds, "a", "b", peers.RIGHT, streams)
        turn.add(f"tcp{streams}", name, rate)
        if place.daemons:
            turn.add(f"tcp{streams} cpu", name, cost)

    return measure


def stream(
    place: corner.Corner, seconds: float, source: str, target: str, address: str, streams: int = 1
) -> tuple[float, float]:
    """Bulk by iperf3: Gbit/s that arrive, CPU seconds of the switch for each of their GB."""
    server = place.client(target, "iperf3", "--server", "--one-off", "--forceflush")
    corner.said(server, "listening")
    before = place.cpu_s()
    how = ("--time", max(1, round(seconds)), "--parallel", streams, "--json")
    report = place.run(source, "iperf3", "--client", address, *how)
    used_s = place.cpu_s() - before
    received = json.loads(report)["end"]["sum_received"]
    server.communicate()
    if not received["bytes"]:
        raise corner.Failed("iperf3: nothing arrived")
    return received["bits_per_second"] / 1e9, used_s / (received["bytes"] / 1e9)


def udp64(place: corner.Corner, name: str, turn: Round) -> None:
    """As many small frames as the sender can make; what counts is what arrives."""
    delivered, used_s, seconds = flood(place, "a", "b", peers.RIGHT, turn.seconds)
    turn.add("udp64", name, delivered / seconds / 1e3)
    if place.daemons:
        turn.add("udp64 cpu", name, delivered / used_s / 1e3)


def flood(place: corner.Corner, source: str, target: str, address: str, seconds: float) -> tuple[float, float, float]:
    """Frames delivered, CPU seconds that the switch used for them, seconds from the first to the last."""
    sink = place.client(target, programs.program("udpgen"), "sink", SINK_PORT)
    corner.said(sink, "ready")
    before = place.cpu_s()
    corner.finish(place.client(source, programs.program("udpgen"), "send", address, SINK_PORT, seconds, FRAME), 30)
    delivered, took_s, *_ = corner.finish(sink)
    if not took_s:
        raise corner.Failed(f"udpgen: {delivered:.0f} frames arrived")
    if took_s < seconds / 2:
        raise corner.Failed(f"udpgen: nothing came any more after {took_s:.2f} of {seconds:.1f} s")
    return delivered, max(place.cpu_s() - before, 0.01), took_s


def pingpong(place: corner.Corner, name: str, turn: Round) -> None:
    """Round trips, one at a time."""
    client = place.client("a", programs.program("pingpong"), "ask", peers.RIGHT, ECHO_PORT, turn.seconds)
    p50, p99, *_ = corner.finish(client, 30)
    turn.add("p50", name, p50)
    turn.add("p99", name, p99)


ROWS = {"tcp1": tcp(1), "tcp4": tcp(4), "udp64": udp64, "pingpong": pingpong}


def answering(place: corner.Corner, source: str = "a", target: str = "b", address: str = peers.RIGHT) -> None:
    """Start the echo at one end and wait until the other end reaches it."""
    corner.said(place.client(target, programs.program("pingpong"), "echo", ECHO_PORT), "ready")

    def answers() -> bool:
        place.cpu_s()  # which fails when the switch is dead
        try:
            place.run(source, programs.program("pingpong"), "ask", address, ECHO_PORT, 0.05)
        except corner.Failed:
            return False
        return True

    corner.wait(f"{place.name}: first answer", answers)


def measure(rows: Sequence[str], chosen: Sequence[type[peers.TapPeer]], turn: Round) -> None:
    """One round: every peer set up, then each row through each peer, the first one another one each time."""
    with contextlib.ExitStack() as stack:
        set_up = ready(chosen, turn, stack)
        for index, row in enumerate(row for row in ROWS if row in rows):
            first = (turn.number + index) % max(1, len(set_up))
            for name, place in set_up[first:] + set_up[:first]:
                with turn.attempt(f"{name}, {row}"):
                    ROWS[row](place, name, turn)


def ready(
    chosen: Sequence[type[peers.TapPeer]], turn: Round, stack: contextlib.ExitStack
) -> list[tuple[str, corner.Corner]]:
    """Set the peers up; those that could be are there with their names until the stack is unwound."""
    found: list[tuple[str, corner.Corner]] = []
    for kind in chosen:
        with turn.attempt(kind.name):
            if why := kind.missing():
                raise corner.Failed(why)
            place = stack.enter_context(corner.Corner(kind.name.replace(" ", "-")))
            kind().start(place)
            answering(place)
            found.append((kind.name, place))
    return found
