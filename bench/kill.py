"""Row kill: `kill -9` of one worker after the other, while frames pass through its port and between two others.

Numbered frames cross the victim's port both ways, RATE a second; the outage is the longest silence at either sink. Beside them
numbered frames go at 10,000 a second between two ports whose workers live; every number that never arrives is a frame lost.
"""

import os
import signal
import time

from bench import corner, lab, pair, peers, programs
from bench.samples import Round

VICTIMS = 6  # with the two others this is a worker a port, as shardnet places up to eight by itself
VICTIM_RATE, OTHERS_RATE = 1000, 10_000
WATCH_S, KILL_AFTER_S = 2.5, 0.5
SILENCE_MS = 2500  # longer than any outage that is still counted
TO_VICTIM, FROM_VICTIM = 1001, 1002


def measure(turn: Round, victims: int = VICTIMS) -> None:
    """One round: a new lab, and each of its victims killed once."""
    with turn.attempt("kill"), corner.Corner("kill") as place:
        sections = peers.taps(place)
        for n in range(victims):
            end = place.namespace(f"v{n}")
            sections.append(peers.tap(f"victim{n}", end, address(n)))
        running = lab.Lab(place, sections)
        running.start()
        pair.answering(place)
        udpgen = programs.program("udpgen")
        for n in range(victims):
            pair.answering(place, "a", f"v{n}", address(n))
            others = place.client("b", udpgen, "sink", pair.SINK_PORT)
            sinks = [
                place.client(f"v{n}", udpgen, "sink", TO_VICTIM, SILENCE_MS),
                place.client("a", udpgen, "sink", FROM_VICTIM, SILENCE_MS),
            ]
            for sink in others, *sinks:
                corner.said(sink, "ready")
            pid = running.worker(f"victim{n}")
            flow = place.client("a", udpgen, "send", peers.RIGHT, pair.SINK_PORT, WATCH_S, pair.FRAME, OTHERS_RATE)
            sources = [
                place.client("a", udpgen, "send", address(n), TO_VICTIM, WATCH_S, pair.FRAME, VICTIM_RATE),
                place.client(f"v{n}", udpgen, "send", peers.LEFT, FROM_VICTIM, WATCH_S, pair.FRAME, VICTIM_RATE),
            ]
            time.sleep(KILL_AFTER_S)
            os.kill(pid, signal.SIGKILL)
            sent, _ = corner.finish(flow)
            received, *_ = corner.finish(others)
            turn.add("kill lost", "others at 10,000/s", sent - received)
            numbers = [corner.finish(source)[0] for source in sources]
            heard = [corner.finish(sink) for sink in sinks]
            if any(highest + 1 < number for number, (*_, highest) in zip(numbers, heard, strict=True)):
                raise corner.Failed(f"victim{n} is not back {WATCH_S - KILL_AFTER_S:.0f} s after its worker's death")
            turn.add("kill", "a killed worker", max(gap_ms for *_, gap_ms, _ in heard))


def address(victim: int) -> str:
    return f"10.77.0.{10 + victim}"
