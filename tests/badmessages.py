"""Malformed messages of DHCP, made from well-formed ones: cut, lengthened, with lying lengths, with single bytes changed."""

import random
from collections.abc import Iterator


def broken(good: bytes, head: int, seed: int) -> Iterator[bytes]:
    """Each way to break one message: cut at every place of its options, every option's length changed, bytes at random."""
    for at in range(0, len(good), max(1, len(good) // 60)):
        yield good[:at]
    for at in range(head, len(good)):
        for value in (0, 1, 254, 255):
            yield good[:at] + bytes((value,)) + good[at + 1 :]
    dice = random.Random(seed)
    for _ in range(100):
        raw = bytearray(good)
        for _ in range(dice.randint(1, 12)):
            raw[dice.randrange(len(raw))] = dice.randrange(256)
        yield bytes(raw)
    yield good + good[head:] * 20
    yield good[:head] + bytes(range(256)) * 4
    yield good[:head] + b"\x0c\0" * 600
    yield good[:head] + b"\xff\xff\xff\xff" * 30
    yield good.ljust(1400, b"\0")
    yield good.ljust(1400, b"\xff")
