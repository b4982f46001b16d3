"""Datagrams as a pcap, and what tshark says of them."""

import ipaddress
import json
import struct
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

CORPORA = Path(__file__).resolve().parent.parent / "build" / "corpora"
MAC = bytes.fromhex("525400123456")
OUR_MAC = bytes.fromhex("52550a000202")


def frame(source: str, source_port: int, to: str, to_port: int, payload: bytes) -> bytes:
    """An Ethernet frame with one UDP datagram, IPv4 or IPv6; the checksum of UDP is right."""
    here, there = ipaddress.ip_address(source), ipaddress.ip_address(to)
    udp = struct.pack(">HHHH", source_port, to_port, 8 + len(payload), 0) + payload
    pseudo = here.packed + there.packed + struct.pack(">HH", len(udp), 17)
    udp = udp[:6] + struct.pack(">H", checksum(pseudo + udp) or 0xFFFF) + udp[8:]
    if here.version == 6:
        return (
            MAC + OUR_MAC + b"\x86\xdd" + struct.pack(">IHBB", 6 << 28, len(udp), 17, 64)
            + here.packed + there.packed + udp
        )  # fmt: skip
    head = struct.pack(">BBHHHBBH", 0x45, 0, 20 + len(udp), 0, 0, 64, 17, 0) + here.packed + there.packed
    head = head[:10] + struct.pack(">H", checksum(head)) + head[12:]
    return MAC + OUR_MAC + b"\x08\x00" + head + udp


def segment(source: str, source_port: int, to: str, to_port: int, payload: bytes) -> bytes:
    """An Ethernet frame with one segment of TCP over IPv4, the first with data of its connection."""
    here, there = ipaddress.ip_address(source), ipaddress.ip_address(to)
    tcp = struct.pack(">HHIIBBHHH", source_port, to_port, 1, 1, 0x50, 0x18, 65535, 0, 0) + payload
    pseudo = here.packed + there.packed + struct.pack(">HH", 6, len(tcp))
    tcp = tcp[:16] + struct.pack(">H", checksum(pseudo + tcp)) + tcp[18:]
    head = struct.pack(">BBHHHBBH", 0x45, 0, 20 + len(tcp), 0, 0, 64, 6, 0) + here.packed + there.packed
    return MAC + OUR_MAC + b"\x08\x00" + head[:10] + struct.pack(">H", checksum(head)) + head[12:] + tcp


def corpus(name: str, frames: Iterable[bytes]) -> Path:
    """Write a corpus of malformed messages to where a person finds it: build/corpora/NAME.pcap of this tree, the same each time."""
    CORPORA.mkdir(parents=True, exist_ok=True)
    return write(CORPORA / f"{name}.pcap", frames)


def checksum(data: bytes) -> int:
    """RFC 1071."""
    total = sum(struct.unpack(f">{(len(data) + 1) // 2}H", data + b"\0" * (len(data) % 2)))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def write(path: Path, frames: Iterable[bytes]) -> Path:
    """Write frames as a pcap of Ethernet."""
    with path.open("wb") as out:
        out.write(struct.pack("=IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 262144, 1))
        for number, one in enumerate(frames):
            out.write(struct.pack("=IIII", number, 0, len(one), len(one)) + one)
    return path


def read(path: Path) -> list[bytes]:
    """The frames of a pcap as `write` makes it."""
    data, at, found = path.read_bytes(), 24, []
    while at < len(data):
        (size,) = struct.unpack_from("=8xI4x", data, at)
        found.append(data[at + 16 : at + 16 + size])
        at += 16 + size
    return found


def dissected(path: Path, protocol: str) -> list[dict[str, Any]]:
    """What tshark finds in each frame, as fields of one protocol; a frame that it calls malformed is a failure."""
    ran = subprocess.run(
        ["tshark", "-n", "-r", path, "-T", "json", "--no-duplicate-keys"],
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    found = []
    for packet in json.loads(ran.stdout):
        layers = packet["_source"]["layers"]
        assert protocol in layers, f"no {protocol}: {list(layers)}"
        assert not [name for name in layers if name.startswith("_ws")], layers
        found.append(layers[protocol])
    return found


def values(tree: Any, field: str) -> list[str]:
    """All values of a field in what `dissected` returned, in their order."""
    found: list[str] = []
    if isinstance(tree, dict):
        for key, value in tree.items():
            if key == field:
                found += [one for one in (value if isinstance(value, list) else [value]) if isinstance(one, str)]
            if not isinstance(value, str):
                found += values(value, field)
    elif isinstance(tree, list):
        for value in tree:
            found += values(value, field)
    return found
