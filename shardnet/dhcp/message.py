"""Messages of DHCP for IPv4 (RFC 2131, RFC 2132) and of BOOTP (RFC 951), read and written.

       0       1       2       3
    0  op      htype   hlen    hops
    4  xid
    8  secs            flags
   12  ciaddr          the client has it
   16  yiaddr          the client is to have it
   20  siaddr          where its boot file is
   24  giaddr          the relay agent's
   28  chaddr (16)     hardware address
   44  sname (64)      name of the boot server, or options
  108  file (128)      boot file, or options
  236  99.130.83.99, then options to the end

An option is a code, a length and as many bytes; 0 pads, 255 ends. A code that comes again goes on where it stopped (RFC 3396).
"""

import dataclasses
import struct
from collections.abc import Collection, Iterable

FIXED = struct.Struct(">BBBBIHH4s4s4s4s16s64s128s")
COOKIE = bytes((99, 130, 83, 99))
LEAST_BYTES = 300  # RFC 951, 3: old clients and relays drop what is shorter
MOST_BYTES = 4096  # of a request; no client writes as much
USUAL_BYTES = 548  # RFC 2131, 2: what every client takes, a packet of 576 bytes
OPTIONS_MAX = 64
BROADCAST = 0x8000

REQUEST_OP, REPLY_OP = 1, 2
ETHERNET = 1

DISCOVER, OFFER, REQUEST, DECLINE, ACK, NAK, RELEASE, INFORM = range(1, 9)
KINDS = ("", "discover", "offer", "request", "decline", "ack", "nak", "release", "inform")

PAD, END = 0, 255
MASK, ROUTER, DNS, HOST_NAME, DOMAIN, MTU, BROADCAST_ADDRESS, NTP = 1, 3, 6, 12, 15, 26, 28, 42
ADDRESS, LEASE_TIME, OVERLOAD, KIND, SERVER, WANTED, TEXT, SIZE_MAX = 50, 51, 52, 53, 54, 55, 56, 57
RENEWAL, REBINDING, VENDOR_CLASS, CLIENT_ID, BOOT_SERVER, BOOT_FILE, USER_CLASS = 58, 59, 60, 61, 66, 67, 77
RAPID_COMMIT, FQDN, RELAY_INFO, ARCHITECTURE, MACHINE_ID = 80, 81, 82, 93, 97
SEARCH, ROUTES, TFTP_SERVERS, ROUTES_MICROSOFT = 119, 121, 150, 249

NOWHERE = bytes(4)


class Malformed(ValueError):
    """What is wrong with a message; nothing of it is used."""


@dataclasses.dataclass(slots=True)
class Message:
    """One message; addresses are 4 bytes, `sname` and `file` without what fills them up."""

    op: int = REPLY_OP
    htype: int = ETHERNET
    hops: int = 0
    xid: int = 0
    secs: int = 0
    flags: int = 0
    ciaddr: bytes = NOWHERE
    yiaddr: bytes = NOWHERE
    siaddr: bytes = NOWHERE
    giaddr: bytes = NOWHERE
    chaddr: bytes = b""
    sname: bytes = b""
    file: bytes = b""
    options: dict[int, bytes] = dataclasses.field(default_factory=dict)

    @property
    def kind(self) -> int:
        """DISCOVER to INFORM; 0 for BOOTP, which has no such option."""
        return self.options[KIND][0] if KIND in self.options else 0

    def address(self, code: int) -> bytes | None:
        """The address in an option, None where it is not of 4 bytes."""
        value = self.options.get(code, b"")
        return value if len(value) == 4 else None


def read(data: bytes) -> Message:
    """Read a request; raises Malformed."""
    if not FIXED.size <= len(data) <= MOST_BYTES:
        raise Malformed(f"{len(data)} bytes")
    op, htype, hlen, hops, xid, secs, flags, ciaddr, yiaddr, siaddr, giaddr, chaddr, sname, file = FIXED.unpack_from(
        data
    )
    if op not in (REQUEST_OP, REPLY_OP):
        raise Malformed(f"op {op}")
    if hlen > 16:
        raise Malformed(f"a hardware address of {hlen} bytes")
    found: dict[int, bytes] = {}
    if data[FIXED.size :].startswith(COOKIE):
        left = OPTIONS_MAX
        left = _gather(data[FIXED.size + 4 :], found, left)
        overload = found.pop(OVERLOAD, b"")
        if overload and (len(overload) != 1 or not 1 <= overload[0] <= 3):
            raise Malformed("overload is 1, 2 or 3")
        # RFC 2131, 4.1: file first. What they hold cannot be overloaded again.
        if overload and overload[0] & 1:
            left = _gather(file, found, left)
            file = b""
        if overload and overload[0] & 2:
            _gather(sname, found, left)
            sname = b""
        found.pop(OVERLOAD, None)
    if KIND in found and (len(found[KIND]) != 1 or not DISCOVER <= found[KIND][0] <= INFORM):
        raise Malformed("no message type of DHCP")
    return Message(
        op,
        htype,
        hops,
        xid,
        secs,
        flags,
        ciaddr,
        yiaddr,
        siaddr,
        giaddr,
        chaddr[:hlen],
        sname.partition(b"\0")[0],
        file.partition(b"\0")[0],
        found,
    )


def _gather(data: bytes, found: dict[int, bytes], left: int) -> int:
    """Add the options in `data` to `found`, `left` of them at most; returns how many more there may be."""
    at = 0
    while at < len(data):
        code = data[at]
        at += 1
        if code == PAD:
            continue
        if code == END:
            break
        if at == len(data) or at + 1 + data[at] > len(data):
            raise Malformed(f"option {code} goes beyond the end")
        left -= 1
        if left < 0:
            raise Malformed(f"more than {OPTIONS_MAX} options")
        size = data[at]
        found[code] = found.get(code, b"") + data[at + 1 : at + 1 + size]
        at += 1 + size
    return left


def write(message: Message, most: int = USUAL_BYTES, last: Collection[int] = ()) -> bytes:
    """Write a message of 300 to `most` bytes, its options in their order, those of `last` behind all others.

    What does not fit behind the cookie goes into file and sname (option 52), the boot file's name then into option 67. What
    then finds no room is left out, so the order is one of importance. BOOTP knows no such thing: there the rest is left out.
    """
    room = max(most, LEAST_BYTES) - FIXED.size - len(COOKIE) - 1
    main = bytearray()
    file = message.file if len(message.file) < 128 else b""
    sname = message.sname if len(message.sname) < 64 else b""
    encoded = [_option(code, value) for code, value in message.options.items() if code not in last]
    ends = b"".join(_option(code, message.options[code]) for code in message.options if code in last)
    if sum(map(len, encoded)) + len(ends) <= room or not message.kind:
        for option in encoded:
            if len(main) + len(option) + len(ends) <= room:
                main += option
    else:
        main, in_file, in_sname = _overloaded(message, encoded, room - len(ends))
        file = in_file or file
        sname = in_sname or sname
    head = FIXED.pack(
        message.op,
        message.htype,
        len(message.chaddr),
        message.hops,
        message.xid,
        message.secs,
        message.flags,
        message.ciaddr,
        message.yiaddr,
        message.siaddr,
        message.giaddr,
        message.chaddr,
        sname,
        file,
    )
    return (head + COOKIE + bytes(main) + ends + bytes((END,))).ljust(LEAST_BYTES, b"\0")


def _overloaded(message: Message, encoded: list[bytes], room: int) -> tuple[bytearray, bytes, bytes]:
    """Deal options over the three fields that may hold them; what file and sname held becomes an option."""
    moved = {BOOT_FILE: message.file, BOOT_SERVER: message.sname}
    said = [_option(code, value) for code, value in moved.items() if value and code not in message.options]
    rooms = (room - 3, 128 - 1, 64 - 1)
    areas = (bytearray(), bytearray(), bytearray())
    for option in [*encoded[:3], *said, *encoded[3:]]:
        for area, its_room in zip(areas, rooms, strict=True):
            if len(area) + len(option) <= its_room:
                area += option
                break
    main, file, sname = areas
    overload = (1 if file else 0) | (2 if sname else 0)
    if overload:
        main[3:3] = bytes((OVERLOAD, 1, overload))  # behind the message type, which is first
    return main, bytes(file) + bytes((END,)) if file else b"", bytes(sname) + bytes((END,)) if sname else b""


def _option(code: int, value: bytes) -> bytes:
    """One option; what is longer than 255 bytes is said in several (RFC 3396)."""
    parts = [value[at : at + 255] for at in range(0, len(value), 255)] or [b""]
    return b"".join(bytes((code, len(part))) + part for part in parts)


def labels(name: str) -> bytes:
    """A domain's name as DNS writes it (RFC 1035, 3.1); ValueError for what is none."""
    written = bytearray()
    for label in name.rstrip(".").split("."):
        raw = label.encode("idna") if not label.isascii() else label.encode()
        if not 1 <= len(raw) <= 63:
            raise ValueError(f"{name}: a label has 1 to 63 bytes")
        written += bytes((len(raw),)) + raw
    if len(written) > 254:
        raise ValueError(f"{name}: a name has at most 253 bytes")
    return bytes(written) + b"\0"


def search(domains: Iterable[str]) -> bytes:
    """A search list (RFC 3397), a name's end written once: later ones point to it."""
    written = bytearray()
    places: dict[bytes, int] = {}
    for domain in domains:
        whole = labels(domain)
        at = 0
        while whole[at]:
            rest = whole[at:]
            if rest in places:
                written += (0xC000 | places[rest]).to_bytes(2, "big")
                break
            if len(written) < 0x4000:
                places[rest] = len(written)
            written += whole[at : at + 1 + whole[at]]
            at += 1 + whole[at]
        else:
            written.append(0)
    return bytes(written)


def routes(found: Iterable[tuple[bytes, int, bytes]]) -> bytes:
    """Classless static routes (RFC 3442) of (network, prefix, router): of the network only the bytes that count."""
    return b"".join(bytes((prefix,)) + network[: (prefix + 7) // 8] + router for network, prefix, router in found)


def name_of(value: bytes, canonical: bool) -> str:
    """The host's name in a client's option: its first label, in small letters; "" where that is no name of a host.

    `canonical`: written in labels (RFC 4702, 2.3.1) and not as text.
    """
    if canonical:
        size = value[0] if value else 0
        first = value[1 : 1 + size] if len(value) > size else b""
    else:
        first = value.partition(b"\0")[0].partition(b".")[0]
    text = first.decode("ascii", "replace").lower()
    letters = set("abcdefghijklmnopqrstuvwxyz0123456789-_")
    is_name = 1 <= len(text) <= 63 and set(text) <= letters and text[0] not in "-_" and text[-1] not in "-_"
    return text if is_name else ""
