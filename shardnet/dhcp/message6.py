"""Messages of DHCP for IPv6 (RFC 8415), read and written: a type, a transaction, options of two bytes code and two bytes length."""

import dataclasses
from collections.abc import Iterable

from shardnet.dhcp.message import MOST_BYTES, OPTIONS_MAX, Malformed

(
    SOLICIT, ADVERTISE, REQUEST, CONFIRM, RENEW, REBIND, REPLY, RELEASE, DECLINE, RECONFIGURE, INFORMATION
) = range(1, 12)  # fmt: skip
RELAY_FORWARD, RELAY_REPLY = 12, 13
KINDS = (
    "", "solicit", "advertise", "request", "confirm", "renew", "rebind", "reply", "release", "decline", "reconfigure",
    "information",
)  # fmt: skip

CLIENT, SERVER, IA_NA, IA_TA, IA_ADDRESS, WANTED, PREFERENCE = 1, 2, 3, 4, 5, 6, 7
STATUS, RAPID_COMMIT, USER_CLASS, VENDOR_CLASS, DNS, SEARCH, IA_PD = 13, 14, 15, 16, 23, 24, 25
SNTP, REFRESH, FQDN, NTP, BOOT_URL, ARCHITECTURE = 31, 32, 39, 56, 59, 61

SUCCESS, UNSPECIFIED, NO_ADDRESSES, NO_BINDING, NOT_ON_LINK, USE_MULTICAST, NO_PREFIX = range(7)

DUID_MAX = 130  # RFC 8415, 11.1: a type of 2 bytes and up to 128 more
Options = list[tuple[int, bytes]]


@dataclasses.dataclass(slots=True)
class Association:
    """An IA_NA: its id, and the addresses that the client names in it."""

    iaid: bytes
    addresses: list[bytes]


@dataclasses.dataclass(slots=True)
class Message:
    """One message; options may come several times."""

    kind: int
    transaction: bytes
    options: Options

    def first(self, code: int) -> bytes | None:
        """The first option of this code."""
        return next((value for one, value in self.options if one == code), None)

    def every(self, code: int) -> list[bytes]:
        """All options of this code."""
        return [value for one, value in self.options if one == code]

    @property
    def wanted(self) -> set[int]:
        """The codes that the client asks for."""
        value = self.first(WANTED) or b""
        return {int.from_bytes(value[at : at + 2], "big") for at in range(0, len(value), 2)}

    @property
    def associations(self) -> list[Association]:
        """Each IA_NA, one for each id."""
        found: dict[bytes, Association] = {}
        for value in self.every(IA_NA):
            inner = options(value[12:])
            addresses = [said[:16] for code, said in inner if code == IA_ADDRESS]
            found.setdefault(value[:4], Association(value[:4], addresses))
        return list(found.values())


def read(data: bytes) -> Message:
    """Read what a client sends; raises Malformed. A relay agent's message has another head and is none."""
    if not 4 <= len(data) <= MOST_BYTES:
        raise Malformed(f"{len(data)} bytes")
    if not SOLICIT <= data[0] <= INFORMATION:
        raise Malformed(f"type {data[0]}")
    found = Message(data[0], data[1:4], options(data[4:]))
    for code, least, most in ((CLIENT, 3, DUID_MAX), (SERVER, 3, DUID_MAX)):
        values = found.every(code)
        if len(values) > 1 or any(not least <= len(value) <= most for value in values):
            raise Malformed(f"option {code} is not one DUID")
    if len(found.first(WANTED) or b"") % 2:
        raise Malformed("an odd list of options")
    for value in found.every(IA_NA):
        if len(value) < 12:
            raise Malformed(f"an IA_NA of {len(value)} bytes")
        for code, said in options(value[12:]):
            if code == IA_ADDRESS and len(said) < 24:
                raise Malformed(f"an address of {len(said)} bytes")
    return found


def options(data: bytes) -> Options:
    """The options in `data`, at most 64; raises Malformed."""
    found: Options = []
    at = 0
    while at < len(data):
        size = int.from_bytes(data[at + 2 : at + 4], "big")
        if at + 4 + size > len(data):
            raise Malformed("an option goes beyond the end")
        found.append((int.from_bytes(data[at : at + 2], "big"), data[at + 4 : at + 4 + size]))
        if len(found) > OPTIONS_MAX:
            raise Malformed(f"more than {OPTIONS_MAX} options")
        at += 4 + size
    return found


def write(message: Message, most: int) -> bytes:
    """Write a message; an option that would make it longer than `most` bytes is left out."""
    whole = bytes((message.kind,)) + message.transaction
    for code, value in message.options:
        option = written(code, value)
        if len(whole) + len(option) <= most:
            whole += option
    return whole


def written(code: int, value: bytes) -> bytes:
    """One option."""
    return code.to_bytes(2, "big") + len(value).to_bytes(2, "big") + value


def status(code: int, text: str = "") -> bytes:
    """The option that says how something went."""
    return written(STATUS, code.to_bytes(2, "big") + text.encode())


def address(ip: bytes, preferred_s: int, valid_s: int) -> bytes:
    """An address in an IA_NA."""
    return written(IA_ADDRESS, ip + preferred_s.to_bytes(4, "big") + valid_s.to_bytes(4, "big"))


def association(iaid: bytes, t1_s: int, t2_s: int, inner: Iterable[bytes]) -> bytes:
    """What an IA_NA holds."""
    return iaid + t1_s.to_bytes(4, "big") + t2_s.to_bytes(4, "big") + b"".join(inner)
