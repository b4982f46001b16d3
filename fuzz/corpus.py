"""A corpus as one file: `corpus.py pack DIRECTORY FILE`, `corpus.py unpack FILE DIRECTORY`.

Each input has its length before it, four bytes, little-endian; the shortest come first, and the longest ones are left out where a
file would become too long for a repository.
"""

import struct
import sys
from pathlib import Path

BYTES_MAX = 80_000


def pack(directory: Path, file: Path) -> None:
    inputs = sorted({path.read_bytes() for path in directory.iterdir()}, key=lambda data: (len(data), data))
    packed = b""
    for data in inputs:
        if len(packed) + len(data) > BYTES_MAX:
            break
        packed += struct.pack("<I", len(data)) + data
    file.write_bytes(packed)


def unpack(file: Path, directory: Path) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    data, at, number = file.read_bytes(), 0, 0
    while at < len(data):
        (length,) = struct.unpack_from("<I", data, at)
        (directory / f"saved{number}").write_bytes(data[at + 4 : at + 4 + length])
        at, number = at + 4 + length, number + 1


if __name__ == "__main__":
    command, source, target = sys.argv[1:]
    {"pack": pack, "unpack": unpack}[command](Path(source), Path(target))
