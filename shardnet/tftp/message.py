"""TFTP's messages as bytes (RFC 1350, RFC 2347): requests are read here, everything else is two numbers and a rest.

A request is read to its end and no further: at most REQUEST_MAX bytes, NAME_MAX of a name, OPTIONS_MAX options.
"""

import struct
from typing import NamedTuple

RRQ, WRQ, DATA, ACK, ERROR, OACK = range(1, 7)  # RFC 1350, section 5; RFC 2347
REQUEST_MAX = 512  # RFC 2347
NAME_MAX = 255
OPTIONS_MAX = 8
TEXT_MAX = 100  # of an ERROR of ours

# RFC 1350, appendix; RFC 2347 for the last.
UNDEFINED, NOT_FOUND, ACCESS, DISK_FULL, ILLEGAL, UNKNOWN_ID, EXISTS, NO_USER, OPTION = range(9)

numbers = struct.Struct("!HH")


class Malformed(ValueError):
    """A datagram that is no message of TFTP's."""


class Request(NamedTuple):
    """RRQ or WRQ: what is wanted, in which mode (lower case), with which options (names in lower case, no name twice)."""

    write: bool
    name: bytes
    mode: str
    options: dict[str, str]


def request(payload: bytes) -> Request:
    """Read a request; raises Malformed."""
    if len(payload) > REQUEST_MAX:
        raise Malformed(f"a request of {len(payload)} bytes, and {REQUEST_MAX} is the most")
    if len(payload) < 2 or payload[0] != 0 or payload[1] not in (RRQ, WRQ):
        raise Malformed("no request")
    if payload[-1] != 0:
        raise Malformed("a request without its end")
    # Name and mode, then pairs; the last piece is what stands behind the last NUL: nothing.
    words = payload[2:].split(b"\0", 2 + 2 * OPTIONS_MAX)[:-1]
    if len(words) < 2:
        raise Malformed("a request without a mode")
    name, mode, *pairs = words
    if not 1 <= len(name) <= NAME_MAX:
        raise Malformed(f"a name of {len(name)} bytes")
    options: dict[str, str] = {}
    for key, value in zip(pairs[::2], pairs[1::2], strict=False):
        options.setdefault(key.decode("latin-1").lower(), value.decode("latin-1"))
    return Request(payload[1] == WRQ, name, mode.decode("latin-1").lower(), options)


def data(block: int, content: bytes) -> bytes:
    """A block; its number is taken modulo 65,536."""
    return numbers.pack(DATA, block & 0xFFFF) + content


def ack(block: int) -> bytes:
    """The acknowledgement of a block."""
    return numbers.pack(ACK, block & 0xFFFF)


def error(code: int, text: str) -> bytes:
    """An error, with what went wrong in words."""
    return numbers.pack(ERROR, code) + text.encode("ascii", "replace")[:TEXT_MAX] + b"\0"


def oack(options: dict[str, str]) -> bytes:
    """The options that were agreed on."""
    words = [word for pair in options.items() for word in pair]
    return struct.pack("!H", OACK) + b"".join(word.encode("ascii") + b"\0" for word in words)
