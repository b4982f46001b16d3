"""Rows start, memory, ports: what a lab costs, and what it costs more when it is larger."""

import select
import socket
import sys
import time
from pathlib import Path

from bench import corner, lab, pair, peers
from bench.samples import Round

STARTS = (2, 100)
SIZES = (2, 20, 100, 200)
ETHERTYPE = 0x88B5  # IEEE 802: for local experiments
BEACON = b"\xff" * 6 + bytes.fromhex("020000000001") + ETHERTYPE.to_bytes(2, "big") + bytes(46)
BEACON_S = 0.001


def start(turn: Round) -> None:
    """Time from the command to the first frame, with every port but the first as its witness, beside an empty Python's.

    The first TAP gets a broadcast each millisecond as soon as it exists; the clock stops when one has come out of every other.
    """
    began = time.monotonic()
    corner.run(sys.executable, "-c", "pass")
    turn.add("start", "an empty Python", (time.monotonic() - began) * 1e3)
    for count in STARTS:
        with turn.attempt(f"start, {count} ports"), corner.Corner("start") as place:
            sections = [f"[tap p{n}]\nifname = p{n}\nnetns = {place.name}-{'b' if n else 'a'}\n" for n in range(count)]
            protocol = socket.htons(ETHERTYPE)
            with (
                corner.socket_in(f"{place.name}-a", socket.AF_PACKET, socket.SOCK_RAW, 0) as source,
                corner.socket_in(f"{place.name}-b", socket.AF_PACKET, socket.SOCK_RAW, protocol) as sink,
            ):
                began = time.monotonic()
                lab.Lab(place, sections).launch()
                seen: set[str] = set()
                while len(seen) < count - 1:
                    if time.monotonic() > began + 30:
                        raise corner.Failed(f"after 30 s {len(seen) + 1} of {count} ports carry: {place.log()}")
                    try:
                        source.sendto(BEACON, ("p0", ETHERTYPE))
                    except OSError:  # not there yet, or not up
                        time.sleep(BEACON_S)
                    while len(seen) < count - 1 and select.select([sink], [], [], BEACON_S)[0]:
                        seen.add(sink.recvfrom(64)[1][0])
                turn.add("start", f"{count} ports", (time.monotonic() - began) * 1e3)


def memory(turn: Round) -> None:
    """What the processes of a lab with two ports hold after traffic through both."""
    with turn.attempt("memory"), corner.Corner("memory") as place:
        running = lab.Lab(place, peers.taps(place))
        running.start()
        pair.answering(place)
        pair.flood(place, "a", "b", peers.RIGHT, turn.seconds)
        status = running.status()
        workers = {worker["pid"] for worker in status["workers"]}
        for pid in workers:
            held(turn, "a worker", pid)
        held(turn, "supervisor", status["pid"])
        for pid in corner.descendants({status["pid"]}, corner.processes()) - workers - {status["pid"]}:
            command = Path(f"/proc/{pid}/cmdline").read_bytes()
            held(turn, "forkserver" if b"forkserver" in command else "resource tracker", pid)


def held(turn: Round, subject: str, pid: int) -> None:
    """Keep RSS and PSS of a process."""
    memory = corner.memory(pid)
    for measure in "rss", "pss":
        turn.add(measure, subject, memory[measure.capitalize()] / 1e6)


def ports(turn: Round) -> None:
    """Small frames between two ports on two workers, with ever more idle ports beside them."""
    for count in SIZES:
        with turn.attempt(f"{count} ports"), corner.Corner("ports") as place:
            sections = peers.taps(place)
            sections += [f"[tap idle{n}]\nifname = idle{n}\nnetns = {place.name}-s\n" for n in range(count - 2)]
            lab.Lab(place, sections, shards=2).start()
            pair.answering(place)
            delivered, used_s, seconds = pair.flood(place, "a", "b", peers.RIGHT, turn.seconds)
            turn.add("ports", f"{count} ports", delivered / seconds / 1e3)
            turn.add("ports cpu", f"{count} ports", used_s / delivered * 1e6)
