"""Row kill: `kill -9` of one worker after the other, while frames pass through its port and between two others.

Numbered frames cross the victim's port both ways, RATE a second; the outage is the longest silence at either sink. Beside them
numbered frames go at 10,000 a second between two ports whose workers live; every number that never arrives is a frame lost. On a
busy machine frames are lost with nobody killed: in the TAP's own queue, before a worker has seen them. So both are counted.
"""

import json
import os
import signal
import time

from bench import corner, lab, pair, peers, programs
from bench.samples import Round

VICTIMS = 6  # with the two others this is a worker a port, as shardnet places up to eight by itself
VICTIM_RATE, OTHERS_RATE = 1000, 10_000
WATCH_S, KILL_AFTER_S = 1.5, 0.3
SILENCE_MS = 1500  # longer than any outage that is still counted
TO_VICTIM, FROM_VICTIM = 1001, 1002


def measure(turn: Round, victims: int = VICTIMS) -> None:
    """One round: a new lab, a watch in which nobody dies, and each of its victims killed once."""
    with turn.attempt("kill"), corner.Corner("kill") as place:
        sections = peers.taps(place)
        for n in range(victims):
            sections.append(peers.tap(f"victim{n}", place.namespace(f"v{n}"), address(n)))
        running = lab.Lab(place, sections)
        running.start()
        pair.answering(place)
        for n in range(victims):
            pair.answering(place, "a", f"v{n}", address(n))
        watch(place, turn, "nobody killed", 0, None)
        for n in range(victims):
            watch(place, turn, "a worker killed", n, running.worker(f"victim{n}"))


def watch(place: corner.Corner, turn: Round, subject: str, n: int, pid: int | None) -> None:
    """Send both ways through the port of victim `n`, and between the others; kill `pid` on the way."""
    end, udpgen = f"v{n}", programs.program("udpgen")
    others = place.client("b", udpgen, "sink", pair.SINK_PORT)
    sinks = [
        place.client(where, udpgen, "sink", port, SILENCE_MS) for where, port in ((end, TO_VICTIM), ("a", FROM_VICTIM))
    ]
    for sink in others, *sinks:
        corner.said(sink, "ready")
    overflowed = overflows(place)
    flow = place.client("a", udpgen, "send", peers.RIGHT, pair.SINK_PORT, WATCH_S, pair.FRAME, OTHERS_RATE)
    sources = [
        place.client("a", udpgen, "send", address(n), TO_VICTIM, WATCH_S, pair.FRAME, VICTIM_RATE),
        place.client(end, udpgen, "send", peers.LEFT, FROM_VICTIM, WATCH_S, pair.FRAME, VICTIM_RATE),
    ]
    time.sleep(KILL_AFTER_S)
    if pid is not None:
        os.kill(pid, signal.SIGKILL)
    sent, *_ = corner.finish(flow)
    received, *_ = corner.finish(others)
    numbers = [corner.finish(source)[0] for source in sources]
    heard = [corner.finish(sink) for sink in sinks]
    turn.add("kill lost", subject, sent - received)
    turn.add("kill unread", subject, overflows(place) - overflowed)
    if any(highest + 1 < number for number, (*_, highest) in zip(numbers, heard, strict=True)):
        raise corner.Failed(f"victim{n} is not back {WATCH_S - KILL_AFTER_S:.1f} s after its worker's death")
    turn.add("kill", subject, max(gap_ms for *_, gap_ms, _ in heard))


def overflows(place: corner.Corner) -> int:
    """Frames that the queue of the others' TAP had no room for, its worker having been given no CPU for 90 ms."""
    return int(json.loads(place.run("a", "ip", "-json", "-s", "link", "show", "e"))[0]["stats64"]["tx"]["dropped"])


def address(victim: int) -> str:
    return f"10.77.0.{10 + victim}"
