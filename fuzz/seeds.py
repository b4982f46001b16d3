"""First plays for the fuzzing of the user-mode network: `seeds.py DIRECTORY` (fuzz/core/src/play.rs has the format).

What lies before a layer is made right by the fuzzer's repair, so here it may be anything.
"""

import random
import struct
import sys
from pathlib import Path

HEADERS = 14 + 20 + 20
SYN, FIN, ACK, RST = 2, 1, 16, 4


def act(kind: int, data: bytes) -> bytes:
    return struct.pack("<BH", kind, len(data)) + data


def segment(flags: int, data: bytes = b"", version: int = 4) -> bytes:
    """A segment of port 40000; seq and ack are off by nothing."""
    header = struct.pack("!HHIIBBHHH", 40000, 7, 0, 0, 0, flags, 0xFFFF, 0, 0)
    return act(0, b"\x02" + bytes(13 + (20 if version == 4 else 40)) + header + data)


def conversations(version: int) -> list[bytes]:
    """Connections that open, say something and end in some way; 3 is the far end's turn (accept, write, close)."""
    opening = segment(SYN, version=version) + act(3, b"\x05") + segment(ACK, version=version)
    said = segment(ACK, b"hello", version) + act(3, b"\x04") + act(3, b"\x05world") + segment(ACK, version=version)
    return [
        opening + said + segment(FIN | ACK, version=version) + act(3, b"\x00") + segment(ACK, version=version),
        opening + said + act(3, b"\x01") + segment(ACK, version=version) + segment(RST, version=version),
        opening + act(3, b"\x03") + act(2, b"\x01\x00") + segment(ACK, version=version) + act(2, b"\xff\xff"),
    ]


def main(directory: Path) -> None:
    chance = random.Random(1)
    directory.mkdir(parents=True, exist_ok=True)
    plays = conversations(4) + conversations(6)
    for number in range(200):
        acts = [act(chance.choice((0, 0, 0, 1, 2, 3)), chance.randbytes(chance.choice((2, 42, 60, 80, 120, 600))))
                for _ in range(1 + number % 5)]  # fmt: skip
        plays.append(b"".join(acts))
    for number, play in enumerate(plays):
        (directory / f"seed{number}").write_bytes(play)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
