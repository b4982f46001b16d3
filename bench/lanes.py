"""Row lane: frames a second from one process to another, a lane of shardnet against a bare C ring.

ring.c and core/examples/lane_speed.rs take the same arguments, `BYTES SECONDS`, print frames a second, and use rings of 4 MiB.
"""

from bench import corner, programs
from bench.samples import Round

BYTES = (64, 1514, 65536)


def measure(turn: Round) -> None:
    """One round: each size through each of the two, one right after the other."""
    for bytes_ in BYTES:
        for name in "ring", "lane":
            with turn.attempt(name):
                program = programs.program("ring") if name == "ring" else programs.lane_speed()
                turn.add(f"lane {bytes_}", name, float(corner.run(program, bytes_, turn.seconds).split()[0]) / 1e6)
