"""Frames out of a capture file, pcap or pcapng, as it is read piece by piece.

pcap (draft-ietf-opsawg-pcap, sections 4 and 5): both byte orders, times in us and ns. pcapng (draft-ietf-opsawg-pcapng, sections
4.1 to 4.4 and the obsolete packet block): several sections, interfaces with a resolution and an offset of their own, blocks that we do
not know passed over. Only Ethernet is understood. A file that ends in the middle of a frame, as one does whose writer was killed, ends
with the frame before.
"""

import os
import struct
from collections.abc import Iterator
from typing import NamedTuple

ETHERNET = 1  # LINKTYPE_ETHERNET
PIECE_BYTES = 1 << 20
BLOCK_MAX = 16 << 20  # what Wireshark takes for damage
PCAP = {0xA1B2C3D4: 1000, 0xA1B23C4D: 1}  # the magic number: nanoseconds of the second field
SECTION, INTERFACE, PACKET, SIMPLE, ENHANCED = 0x0A0D0D0A, 1, 2, 3, 6
BYTE_ORDER = 0x1A2B3C4D
IF_TSRESOL, IF_TSOFFSET = 9, 14


class Wrong(ValueError):
    """Why a file is none that we can read, or where it makes no sense any more."""


class Frame(NamedTuple):
    """A frame as it was captured: `time_ns` since 1970, `size` in bytes when it was on the wire."""

    time_ns: int
    size: int
    data: bytes


class _Interface(NamedTuple):
    linktype: int
    snaplen: int
    units: int  # a second
    offset_s: int


class _Pieces:
    """The bytes of a descriptor from its beginning on; its own position is left alone, others may share it."""

    def __init__(self, fd: int) -> None:
        self.fd, self.at, self.piece, self.used = fd, 0, b"", 0

    def take(self, size: int) -> bytes:
        """The next `size` bytes, fewer at the end."""
        while len(self.piece) - self.used < size:
            more = os.pread(self.fd, max(PIECE_BYTES, size), self.at)
            if not more:
                break
            self.at += len(more)
            self.piece, self.used = self.piece[self.used :] + more, 0
        taken = self.piece[self.used : self.used + size]
        self.used += len(taken)
        return taken


def frames(fd: int) -> Iterator[Frame]:
    """Every frame of a file, read as it is asked for; raises Wrong."""
    pieces = _Pieces(fd)
    magic = pieces.take(4)
    for order in "<>":
        if len(magic) == 4 and (number := struct.unpack(f"{order}I", magic)[0]) in PCAP:
            return _pcap(pieces, order, PCAP[number])
    if magic == SECTION.to_bytes(4, "big"):
        return _pcapng(pieces)
    raise Wrong("neither pcap nor pcapng")


def _pcap(pieces: _Pieces, order: str, unit_ns: int) -> Iterator[Frame]:
    header = pieces.take(20)
    if len(header) < 20:
        raise Wrong("cut short in its header")
    # The upper bits of the field say whether frames end with a checksum, and how long it is.
    _check(struct.unpack_from(f"{order}I", header, 16)[0] & 0xFFFF)
    record = struct.Struct(f"{order}4I")
    while len(head := pieces.take(16)) == 16:
        seconds, part, kept, size = record.unpack(head)
        if kept > BLOCK_MAX:
            raise Wrong(f"a frame of {kept} bytes")
        data = pieces.take(kept)
        if len(data) < kept:
            return
        yield Frame(seconds * 1_000_000_000 + part * unit_ns, size, data)


def _pcapng(pieces: _Pieces) -> Iterator[Frame]:
    order, interfaces = "<", list[_Interface]()
    kind = SECTION.to_bytes(4, "big")
    while len(kind) == 4:
        head = pieces.take(4)
        body = b""
        if kind == SECTION.to_bytes(4, "big"):  # the same in both orders
            body = pieces.take(4)
            order = next((one for one in "<>" if body == struct.pack(f"{one}I", BYTE_ORDER)), "")
            if not order:
                raise Wrong("a section without a byte order")
            interfaces = []
        if len(head) < 4:
            return
        size = struct.unpack(f"{order}I", head)[0]
        if not 12 + len(body) <= size <= BLOCK_MAX or size % 4:
            raise Wrong(f"a block of {size} bytes")
        body += pieces.take(size - 12 - len(body))
        if len(body) < size - 12 or len(pieces.take(4)) < 4:
            return
        try:
            found = _block(order, struct.unpack(f"{order}I", kind)[0], body, interfaces)
        except (struct.error, IndexError):
            raise Wrong("a block that makes no sense") from None
        if found is not None:
            yield found
        kind = pieces.take(4)


def _block(order: str, kind: int, body: bytes, interfaces: list[_Interface]) -> Frame | None:
    """Read one block: a frame, or an interface, which is added to those of the section."""
    if kind == INTERFACE:
        interfaces.append(_interface(order, body))
        return None
    if kind == SIMPLE:
        (size,) = struct.unpack_from(f"{order}I", body)
        of = interfaces[0]
        kept = min(size, of.snaplen or size, len(body) - 4)
        _check(of.linktype)
        return Frame(0, size, body[4 : 4 + kept])
    if kind == ENHANCED:
        number, high, low, kept, size = struct.unpack_from(f"{order}5I", body)
    elif kind == PACKET:
        number, _, high, low, kept, size = struct.unpack_from(f"{order}2H4I", body)
    else:
        return None
    of = interfaces[number]
    _check(of.linktype)
    if kept > len(body) - 20:
        raise Wrong(f"a frame of {kept} bytes in a block of {len(body)}")
    time_ns = (high << 32 | low) * 1_000_000_000 // of.units + of.offset_s * 1_000_000_000
    return Frame(time_ns, size, body[20 : 20 + kept])


def _interface(order: str, body: bytes) -> _Interface:
    linktype, _, snaplen = struct.unpack_from(f"{order}2HI", body)
    units, offset_s, at = 1_000_000, 0, 8
    while at + 4 <= len(body):
        code, size = struct.unpack_from(f"{order}2H", body, at)
        value = body[at + 4 : at + 4 + size]
        if code == IF_TSRESOL:
            units = 2 ** (value[0] & 0x7F) if value[0] & 0x80 else 10 ** value[0]
        elif code == IF_TSOFFSET:
            (offset_s,) = struct.unpack(f"{order}q", value)
        elif code == 0:
            break
        at += 4 + size + -size % 4
    return _Interface(linktype, snaplen, units, offset_s)


def _check(linktype: int) -> None:
    if linktype != ETHERNET:
        raise Wrong(f"link type {linktype}, only Ethernet (1) can be replayed")
