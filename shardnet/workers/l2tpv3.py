"""[l2tpv3 NAME]: frames in a session of L2TPv3 (RFC 3931), over UDP or as IP protocol 115, as QEMU's -netdev l2tpv3.

    udp = on                 over UDP, from srcport to dstport; off: IP protocol 115, for which the lab needs CAP_NET_RAW to start
    txcookie and rxcookie    both or none; cookie64 = on makes them 64 bits long
    counter = on             datagrams are counted, from 1 on; with pincounter = on too the number stays 0. Received ones are not looked at
    offset                   as many bytes, zero, between the header and the frame; received ones are ignored

The session and the cookie that come in are checked, not who sends (drops: foreign, bad_header), and no session is negotiated: both
ends are told the same numbers. QEMU's header has its quirks, and they are this one's: without counter, pincounter adds no field; and
as QEMU takes cookie64 = off for on, it is refused here. A datagram longer than the network takes is cut to fragments by the host; mtu
says what frames may have.
"""

import dataclasses
import errno
import socket
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from shardnet import addresses, datagrams, options
from shardnet.workers import dgram, stream

if TYPE_CHECKING:
    from shardnet import worker

IPPROTO_L2TP = 115
VERSION = bytes([0, 3, 0, 0])  # RFC 3931, 4.1.2.1: a data message of version 3


def cookie64(text: str) -> bool:
    """on"""
    if not options.BOOL.get(text, True):
        raise ValueError("QEMU has a cookie of 64 bits then too; leave it out for one of 32")
    if text not in options.BOOL:
        raise ValueError("not on")
    return True


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(options.PortOptions):
    # This host's address.
    src: str
    # The far end's address.
    dst: str
    # udp: this end's port.
    srcport: str | None = options.option(None, read=stream.port)
    # udp: the far end's port.
    dstport: str | None = options.option(None, read=stream.port)
    # On: the addresses are of IPv6.
    ipv6: bool = False
    # On: over UDP. Off: straight over IP.
    udp: bool = False
    # The session of frames that leave.
    txsession: int = options.option(read=options.between(0, 0xFFFFFFFF))
    # The session of frames that come in; the same unless given.
    rxsession: int | None = options.option(None, read=options.between(0, 0xFFFFFFFF))
    # The cookie of frames that leave.
    txcookie: int | None = options.option(None, read=options.between(0, 0xFFFFFFFFFFFFFFFF))
    # The cookie of frames that come in.
    rxcookie: int | None = options.option(None, read=options.between(0, 0xFFFFFFFFFFFFFFFF))
    # On: cookies have 64 bits.
    cookie64: bool = options.option(False, read=cookie64)
    # On: a counter is in the header.
    counter: bool = False
    # On: the counter stays 0.
    pincounter: bool = False
    # Bytes between the header and the frame.
    offset: int = options.option(0, read=options.between(0, 256))

    @property
    def head(self) -> bytes:
        """The header that leaves, its counter zero."""
        return b"".join([
            VERSION if self.udp else b"",
            self._named(self.txsession, self.txcookie),
            bytes(4 if self.counter else 0),
            bytes(self.offset),
        ])  # fmt: skip

    @property
    def expected(self) -> bytes:
        """The session and the cookie of frames that come in."""
        return self._named(self.txsession if self.rxsession is None else self.rxsession, self.rxcookie)

    def _named(self, session: int, cookie: int | None) -> bytes:
        named = struct.pack("!I", session)
        return named if cookie is None else named + cookie.to_bytes(8 if self.cookie64 else 4, "big")

    def address(self, host: str, port: str | None) -> addresses.Inet:
        return addresses.Inet(host=host, port=port or "0", ipv4=not self.ipv6, ipv6=self.ipv6)


def check(given: Options) -> Iterator[tuple[str, str]]:
    """Mistakes that take several keys to see."""
    for key in ("srcport", "dstport"):
        if (getattr(given, key) is None) == given.udp:
            yield key, "missing, and udp = on needs it" if given.udp else "without udp = on there is none"
    for key, other in (("txcookie", "rxcookie"), ("rxcookie", "txcookie")):
        cookie = getattr(given, key)
        if cookie is not None and getattr(given, other) is None:
            yield other, f"missing: {key} alone makes no header (QEMU wants both)"
        elif cookie is not None and cookie >> 32 and not given.cookie64:
            yield key, "more than 32 bits, and cookie64 is not on"
    if given.cookie64 and given.txcookie is None and given.rxcookie is None:
        yield "cookie64", "without txcookie and rxcookie it means nothing"
    if given.pincounter and not given.counter:
        yield "pincounter", "without counter = on there is no counter, in QEMU's header either"


class Port:
    def __init__(self, given: Options, place: "worker.Place") -> None:
        self.options, self.place = given, place
        sockets = datagrams.Sockets(place, 1, self._make, self._carry)
        self.prepare = sockets.prepare
        self.open = sockets.open
        self.close = sockets.close
        self.ended = sockets.ended

    def _make(self) -> list[socket.socket]:
        given = self.options
        local = given.address(given.src, given.srcport)
        if given.udp:
            made = local.bind(socket.SOCK_DGRAM)
        else:
            target = local.targets(socket.SOCK_DGRAM)[0]
            made = _raw(target._replace(kind=socket.SOCK_RAW, protocol=IPPROTO_L2TP), given.src)
        dgram.enlarge(made)
        return [made]

    def _carry(self, fds: list[int]) -> str:
        given = self.options
        remote = given.address(given.dst, given.dstport)
        counter = len(given.head) - given.offset - 4 if given.counter and not given.pincounter else None
        self.place.shard.add_l2tpv3(
            self.place.port,
            fds[0],
            remote.sockaddr,
            given.head,
            given.expected,
            len(given.head) - len(given.expected) - (len(VERSION) if given.udp else 0),
            counter=counter,
            udp=given.udp,
            has_ip_header=not given.udp and not given.ipv6,
        )
        way = f"{given.address(given.src, given.srcport)} to {remote}" if given.udp else f"{given.src} to {given.dst}"
        return f"{way}, session {given.txsession:#x}"


def _raw(target: addresses.Target, host: str) -> socket.socket:
    try:
        made = target.socket()
    except PermissionError as error:
        raise OSError(
            error.errno, f"{error.strerror} (IP protocol 115 needs CAP_NET_RAW; udp = on does not)", host
        ) from None
    try:
        made.bind((target.where[0], 0, *target.where[2:]))
    except OSError as error:
        made.close()
        hint = " (it is no address of this host)" if error.errno == errno.EADDRNOTAVAIL else ""
        raise OSError(error.errno, f"{error.strerror}{hint}", host) from None
    return made


def qemu(given: Options, run_dir: Path, version: tuple[int, ...]) -> list[str]:
    """The other half of this port: what it sends is what QEMU receives."""
    rxsession = given.txsession if given.rxsession is None else given.rxsession
    keys = {"src": given.dst, "dst": given.src}
    if given.udp:
        keys |= {"srcport": str(given.dstport), "dstport": str(given.srcport), "udp": "on"}
    keys |= {"ipv6": "on"} if given.ipv6 else {}
    keys |= {"txsession": str(rxsession), "rxsession": str(given.txsession)}
    if given.txcookie is not None:
        keys |= {"txcookie": str(given.rxcookie), "rxcookie": str(given.txcookie)}
    for key in ("cookie64", "counter", "pincounter"):
        if getattr(given, key):
            keys[key] = "on"
    if given.offset:
        keys["offset"] = str(given.offset)
    return addresses.netdev("l2tpv3", keys)
