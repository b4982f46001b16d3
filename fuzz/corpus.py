"""A corpus as one file: `corpus.py pack DIRECTORY FILE`, `corpus.py unpack FILE DIRECTORY`.

Each input has its length before it, four bytes, little-endian; the shortest come first.
"""

import struct
import sys
from pathlib import Path


def pack(directory: Path, file: Path) -> None:
    inputs = sorted({path.read_bytes() for path in directory.iterdir()}, key=lambda data: (len(data), data))
    file.write_bytes(b"".join(struct.pack("<I", len(data)) + data for data in inputs))


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
