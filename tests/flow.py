"""Numbered frames from one stream port to another: `flow.py FROM TO RATE`, until its input ends.

It runs beside the test, so that what the test does costs it no time. Then it says what became of the frames, as JSON:
sent, received, lost, twice, disordered, and how long the receiver heard nothing at most.
"""

import contextlib
import json
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import deadline
import ends

TICK_S = 0.005
DRAIN_S = 3.0
FROM, TO = 0x7001, 0x7002  # addresses of the two ends
HELLO = 1 << 63


class Flow:
    """The program, as the test that runs it sees it."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process

    def end(self) -> dict[str, Any]:
        """Stop sending, let what is under way arrive, and return the account."""
        said, _ = self.process.communicate(timeout=30)
        assert self.process.returncode == 0, said
        return json.loads(said)


@contextlib.contextmanager
def running(run_dir: Path, source: str, sink: str, rate: int = 10_000) -> Iterator[Flow]:
    """Have frames flow between two ports from the first line of the block on."""
    words = [sys.executable, __file__, str(run_dir), source, sink, str(rate)]
    process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        deadline.readable(process.stdout.fileno(), "the first numbered frame")
        assert process.stdout.readline() == "flowing\n"
        yield Flow(process)
    finally:
        process.kill()
        process.wait()
        process.stdin.close()
        process.stdout.close()


def main(run_dir: Path, source: ends.Stream, sink: ends.Stream, rate: int) -> dict[str, Any]:
    """Send until the standard input is readable, then wait for the rest."""
    for end in (source, sink):
        end.attach(run_dir)
        assert end.socket is not None, f"nobody listens for {end.name}"
    meet(source, sink)
    expected = twice = disordered = received = sent = 0
    missing: set[int] = set()
    began = heard = time.monotonic()
    silence = 0.0
    flowing = ending = False
    while True:
        now = time.monotonic()
        if not ending:
            while sent < (now - began) * rate and source.send(ends.frame(sink.mac, source.mac, sent)):
                sent += 1
        source.flush()
        assert source.socket is not None and sink.socket is not None, "the lab has hung up"
        for found in sink.frames():
            if found[6:12] != source.mac:
                continue
            number = ends.number(found)
            if number == HELLO:
                continue
            silence, heard = max(silence, now - heard), now
            received += 1
            if number == expected:
                expected += 1
            elif number > expected:
                missing.update(range(expected, number))
                expected = number + 1
            elif number in missing:
                missing.discard(number)
                disordered += 1
            else:
                twice += 1
        for _ in source.frames():
            pass
        if received and not flowing:
            flowing = True
            print("flowing", flush=True)
        if ending and (expected == sent and not missing or now - ending > DRAIN_S):
            break
        if select.select([] if ending else [sys.stdin], [], [], TICK_S)[0]:
            ending = now
    return {
        "sent": sent, "received": received, "lost": len(missing) + sent - expected, "twice": twice, "disordered": disordered,
        "rate": round(sent / (ending - began)), "silence_ms": round(1000 * silence),
    }  # fmt: skip


def meet(*both: ends.End) -> None:
    """Go on once both ends are heard by the other, so that the lab has taken them up and knows their addresses."""
    one, other = both
    deaf = set(both)
    end = time.monotonic() + 10
    while deaf:
        assert time.monotonic() < end, f"{one.name} and {other.name} do not hear each other"
        for speaker, hearer in ((one, other), (other, one)):
            speaker.send(ends.frame(ends.EVERYBODY, speaker.mac, HELLO))
            if any(found[6:12] == speaker.mac for found in hearer.frames()):
                deaf.discard(hearer)
        select.select([], [], [], TICK_S)


if __name__ == "__main__":
    where, source_name, sink_name, pace = sys.argv[1:]
    account = main(Path(where), ends.Stream(source_name, FROM), ends.Stream(sink_name, TO), int(pace))
    print(json.dumps(account))
