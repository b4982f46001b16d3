"""The state of a network's flows as a stream of bytes, between `shardnet migrate` and who takes it.

    magic and version (8) | how long it is (8) | length, head | length, section of a shard | ... | SHA-256 of all before (32)

Numbers are big-endian, lengths have four bytes in front of the head and eight in front of a section. The head is a msgpack map: `lab`
and `port` whose it was, `leases`, lines as DHCP services keep them, and for each section how many sockets go along (`handed`), and
of which forwards (`hostfwd`, deposits as shardnet/workers/user.py names them).
Sections are the core's (core/src/user/migrate/record.rs). Whoever reads one trusts nothing in it; the checksum is against accidents.
"""

import hashlib
import struct
from collections.abc import Callable, Sequence
from typing import Any

from shardnet import control

MAGIC, VERSION = b"SNFLOWS", 1
STATE_MAX = 1 << 30
FRONT = struct.Struct(">7sBQ")
HEAD_LENGTH, SECTION_LENGTH = struct.Struct(">I"), struct.Struct(">Q")
SUM = 32
SECTIONS_MAX = 64
HANDED_MAX = 1 << 20


def pack(head: dict[str, Any], sections: Sequence[bytes]) -> bytes:
    """Write a state."""
    packed = control.pack(head)
    parts = [HEAD_LENGTH.pack(len(packed)), packed]
    for section in sections:
        parts += [SECTION_LENGTH.pack(len(section)), section]
    length = FRONT.size + sum(map(len, parts)) + SUM
    data = b"".join([FRONT.pack(MAGIC, VERSION, length), *parts])
    return data + hashlib.sha256(data).digest()


def receive(read: Callable[[int], bytes]) -> bytes:
    """One state from a stream, of which `read` gives so many bytes or, at its end, fewer; ValueError where it is none."""
    front = read(FRONT.size)
    length = _length(front)
    rest = read(length - FRONT.size)
    return front + rest


def unpack(data: bytes) -> tuple[dict[str, Any], list[bytes]]:
    """Head and sections of a state; ValueError says why it is none."""
    length = _length(data[: FRONT.size])
    if len(data) != length:
        raise ValueError(f"cut: {len(data)} bytes of {length}" if len(data) < length else "more than a state")
    if hashlib.sha256(memoryview(data)[:-SUM]).digest() != data[-SUM:]:
        raise ValueError("damaged: its checksum is wrong")
    at, end = FRONT.size, length - SUM
    packed, at = _part(data, at, end, HEAD_LENGTH)
    head = control.unpack(packed)
    leases, handed, hostfwd = head.get("leases"), head.get("handed"), head.get("hostfwd")
    if not isinstance(leases, list) or not all(isinstance(line, str) for line in leases):
        raise ValueError("damaged: no leases in its head")
    if not isinstance(handed, list) or not all(type(count) is int and 0 <= count <= HANDED_MAX for count in handed):
        raise ValueError("damaged: no numbers of sockets in its head")
    if not isinstance(hostfwd, list) or not all(isinstance(keys, list) and all(map(_is_key, keys)) for keys in hostfwd):
        raise ValueError("damaged: no forwards in its head")
    sections = []
    while at < end:
        section, at = _part(data, at, end, SECTION_LENGTH)
        sections.append(section)
    if not 1 <= len(sections) <= SECTIONS_MAX:
        raise ValueError(f"{len(sections)} sections, a state has 1 to {SECTIONS_MAX}")
    if not len(sections) == len(handed) == len(hostfwd):
        raise ValueError("damaged: its head is of another number of sections")
    return head, sections


def _is_key(key: Any) -> bool:
    return isinstance(key, str) and len(key.split(" ")) == 3


def _length(front: bytes) -> int:
    if len(front) < FRONT.size:
        raise ValueError("cut: not even its beginning is there" if front else "nothing came")
    magic, version, length = FRONT.unpack(front)
    if magic != MAGIC:
        raise ValueError("no state of a network's flows")
    if version != VERSION:
        raise ValueError(f"a state of version {version}, this shardnet knows {VERSION}")
    if not FRONT.size + HEAD_LENGTH.size + SUM <= length <= STATE_MAX:
        raise ValueError(f"a state of {length} bytes, the limit is {STATE_MAX}")
    return int(length)


def _part(data: bytes, at: int, end: int, kind: struct.Struct) -> tuple[bytes, int]:
    if at + kind.size > end:
        raise ValueError("damaged: a length is cut")
    (length,) = kind.unpack_from(data, at)
    at += kind.size
    if length > end - at:
        raise ValueError("damaged: a part is longer than the whole")
    return data[at : at + length], at + length
