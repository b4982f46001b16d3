"""Queries of DNS that are wrong, each in one way, made from right ones."""

import itertools
import random
import struct
from collections.abc import Iterator

import dns.message

GOOD = dns.message.make_query("www.lab.example", "A", use_edns=False, id=0x1234).to_wire()
EDNS = dns.message.make_query(
    "www.lab.example", "AAAA", use_edns=0, want_dnssec=True, payload=4096, id=0x1234
).to_wire()
COOKIE = EDNS[:-2] + struct.pack(">HHHQ", 12, 10, 8, 1)
HEADER = struct.pack(">HHHHHH", 0x1234, 0x0100, 1, 0, 0, 0)
TAIL = struct.pack(">HH", 1, 1)


def malformed() -> Iterator[bytes]:
    """Messages that no server may answer with more than an error."""
    for good in (GOOD, EDNS, COOKIE):
        yield from (good[:cut] for cut in range(len(good)))
        yield from (good + bytes(more) for more in (1, 2, 11, 100, 1000))
    for count, at in itertools.product(
        (2, 3, 255, 256, 65535), (4, 6, 8, 10)
    ):  # questions and records that are not there
        yield GOOD[:at] + struct.pack(">H", count) + GOOD[at + 2 :]
    yield GOOD[:4] + bytes(2) + GOOD[6:]
    yield from (HEADER + bytes((step,)) + GOOD[13:] for step in range(17, 256))  # lengths of the first label that lie
    yield from (GOOD[:16] + bytes((step,)) + GOOD[17:] for step in range(17, 256))
    yield from (HEADER + struct.pack(">H", 0xC000 | to) + TAIL for to in (0, 2, 11, 12, 13, 14, 16, 255, 0x3FFF))
    for size in (4, 5, 16, 100, 1000):  # names without an end, or longer than 255
        yield HEADER + b"\x3f" + b"a" * 63 + b"\x3f" * size + b"\0" + TAIL
        yield HEADER + b"\x01a" * (size * 32) + b"\0" + TAIL
    for length in (1, 2, 3, 4, 12, 13, 255, 256, 1000, 65535):  # lies in OPT
        yield EDNS[:-2] + struct.pack(">H", length)
        yield COOKIE[:-10] + struct.pack(">H", length) + COOKIE[-8:]
        yield COOKIE[:-12] + struct.pack(">HHH", length, 10, 8) + COOKIE[-8:] if length != 12 else COOKIE + b"\0"
    opt = EDNS[-11:]
    yield EDNS[:10] + struct.pack(">H", 2) + EDNS[12:] + opt  # two of them
    yield EDNS[:-11] + b"\x01a\0" + opt[1:]  # at a name
    yield EDNS[:-11] + struct.pack(">BHHIHI", 0, 1, 1, 60, 4, 1)  # an address in its place
    yield EDNS[:8] + struct.pack(">HH", 1, 0) + EDNS[12:]  # in the authority section


def refused() -> Iterator[tuple[bytes, str]]:
    """Messages that are right and yet none for a forwarder, with the rcode that says so."""
    for opcode in (1, 2, 3, 4, 5, 6, 7, 8, 15):
        yield GOOD[:2] + struct.pack(">H", opcode << 11 | 0x0100) + GOOD[4:], "NOTIMP"
    for kind in (41, 249, 250, 251, 252, 253, 254):
        yield GOOD[:-4] + struct.pack(">HH", kind, 1), "REFUSED"
    for cls in (0, 2, 3, 4, 254, 65535):
        yield GOOD[:-2] + struct.pack(">H", cls), "REFUSED"
    for version in (1, 2, 255):
        yield EDNS[:-5] + bytes((version,)) + EDNS[-4:], "BADVERS"


def noise(seed: int, count: int) -> Iterator[bytes]:
    """Right queries with bytes changed, and no queries at all."""
    dice = random.Random(seed)
    for _ in range(count):
        raw = bytearray(dice.choice((GOOD, EDNS, COOKIE)))
        for _ in range(dice.randint(1, 8)):
            raw[dice.randrange(len(raw))] = dice.randrange(256)
        yield bytes(raw)
        yield dice.randbytes(dice.randint(0, 600))
