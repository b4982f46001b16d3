"""[stream NAME]: frames with a length in front over a unix or TCP stream, as QEMU's -netdev stream.

Each frame has its length before it, four bytes, big-endian. With server = on one client at a time is served, as by QEMU;
others wait until it leaves. Otherwise the port dials, and unlike QEMU's it does so again by itself: at once when a connection
ends that lasted, then every reconnect-ms (1000 unless said otherwise, 0: never). A frame of length 0 is skipped; a length out of
range ends the connection, and the next one starts clean.

A relative addr.path is in the lab's run directory. TCP connections have keep-alive on unless it is switched off. A far end
that vanished without a word is noticed after half a minute, and the next client gets its turn. A host's name is looked up
each time the port listens or dials, and the ports of one worker wait for the answer: prefer numbers where they share one.

A QEMU older than 8.0 dials only once; there it has to be the server (server = on in its -netdev) to survive a restart.
"""

import dataclasses
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from shardnet import addresses, connection, options

if TYPE_CHECKING:
    from shardnet import worker

RETRY_MS = 1000
INET_KEYS = ("host", "port", "to", "ipv4", "ipv6", "numeric", "mptcp", "keep_alive")
UNIX_KEYS = ("path", "abstract", "tight")

NO_QEMU = "its TCP port is chosen when it listens; give one with addr.port, without addr.to"
INHERITED = "a worker inherits no descriptors; give addr.type = unix or inet"
REFUSED = {"addr.str": INHERITED}


def port(text: str) -> str:
    """0 to 65535, or the name of a service"""
    if text.isdecimal() and int(text) > 65535:
        raise ValueError("a port is 0 to 65535")
    return text


def sort(text: str) -> str:
    """unix | inet"""
    if text == "fd":
        raise ValueError(INHERITED)
    if text not in ("unix", "inet"):
        raise ValueError("neither unix nor inet")
    return text


def path(text: str) -> str:
    """a file's path, at most 107 bytes, in the run directory where it is relative"""
    if len(text.encode()) >= addresses.SUN_PATH_BYTES:
        raise ValueError(f"longer than the {addresses.SUN_PATH_BYTES - 1} bytes that a unix socket's path may have")
    return text


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(options.PortOptions):
    # On: wait for a client. Off: dial a server.
    server: bool = False
    # Which sort of address follows.
    type: str = options.option(key="addr.type", read=sort)
    # unix: the socket's file, in the lab's run directory where relative; a name where abstract.
    path: str | None = options.option(None, key="addr.path", read=path)
    # unix: on for an address without a file, of Linux only.
    abstract: bool | None = options.option(None, key="addr.abstract")
    # unix: off fills an abstract address up with NULs, for old programs that do so.
    tight: bool | None = options.option(None, key="addr.tight")
    # inet: a name or an address.
    host: str | None = options.option(None, key="addr.host")
    # inet: a number or a service's name; 0 for a server: any that is free.
    port: str | None = options.option(None, key="addr.port", read=port)
    # inet, server: the last of the ports to try.
    to: int | None = options.option(None, key="addr.to", read=options.between(1, 65535))
    # inet: on for IPv4 only (both on, or neither given: either), off for IPv6 only.
    ipv4: bool | None = options.option(None, key="addr.ipv4")
    # inet: on for IPv6 only, off for IPv4 only.
    ipv6: bool | None = options.option(None, key="addr.ipv6")
    # inet: on where nothing has to be looked up.
    numeric: bool | None = options.option(None, key="addr.numeric")
    # inet: on for multi-path TCP.
    mptcp: bool | None = options.option(None, key="addr.mptcp")
    # inet: ask a silent far end now and then whether it is still there. Unlike QEMU's, the default is on.
    keep_alive: bool | None = options.option(None, key="addr.keep-alive")
    # inet: how many questions go unanswered before the connection is given up.
    keep_alive_count: int = options.option(4, key="addr.keep-alive-count", read=options.between(1, 127))
    # inet: seconds of silence before the first question.
    keep_alive_idle: int = options.option(10, key="addr.keep-alive-idle", read=options.between(1, 32767))
    # inet: seconds between questions.
    keep_alive_interval: int = options.option(5, key="addr.keep-alive-interval", read=options.between(1, 32767))
    # client: milliseconds between tries to dial, 1000 unless given; 0: only once.
    reconnect_ms: int | None = options.option(None, key="reconnect-ms", read=options.between(0, 86_400_000))
    # client: the same in seconds, QEMU's older name.
    reconnect: int | None = options.option(None, read=options.between(0, 86_400))

    @property
    def retry_ms(self) -> int:
        """Milliseconds between tries to dial; 0: only once."""
        if self.reconnect is not None:
            return self.reconnect * 1000
        return RETRY_MS if self.reconnect_ms is None else self.reconnect_ms

    def address(self, run_dir: Path) -> addresses.Unix | addresses.Inet:
        """Where to listen or to dial."""
        if self.type == "unix":
            assert self.path is not None  # check() saw to it
            return unix(self.path, run_dir, abstract=bool(self.abstract), tight=self.tight is not False)
        return addresses.Inet(
            host=self.host or "",
            port=self.port or "",
            to=self.to or 0,
            ipv4=self.ipv4,
            ipv6=self.ipv6,
            numeric=bool(self.numeric),
            mptcp=bool(self.mptcp),
        )


def check(given: Options) -> Iterator[tuple[str, str]]:
    """Mistakes that take several keys to see."""
    needed, others = (("path",), INET_KEYS) if given.type == "unix" else (("host", "port"), UNIX_KEYS)
    for name in needed:
        if getattr(given, name) is None:
            yield f"addr.{name}", f"missing, and addr.type = {given.type} needs it"
    for name in others:
        if getattr(given, name) is not None:
            yield f"addr.{name.replace('_', '-')}", f"an address of type {given.type} has none"
    if given.ipv4 is False and given.ipv6 is False:
        yield "addr.ipv6", "addr.ipv4 is off too, and nothing is left"
    if given.to is not None and not given.server:
        yield "addr.to", "only a server has ports to choose from"
    if given.to is not None and (given.port or "").isdecimal() and given.to < int(given.port or 0):
        yield "addr.to", f"less than addr.port = {given.port}"
    if given.reconnect is not None and given.reconnect_ms is not None:
        yield "reconnect", "reconnect-ms says it already"
    for key, value in (("reconnect", given.reconnect), ("reconnect-ms", given.reconnect_ms)):
        if given.server and value:
            yield key, "a server waits, it does not dial"


class Port:
    def __init__(self, given: Options, place: "worker.Place", prefix: int = 4) -> None:
        def carry(fd: int) -> None:
            place.shard.add_stream(place.port, fd, fd, prefix)

        def tune(stream: socket.socket) -> None:
            if stream.family != socket.AF_UNIX:
                set_tcp(stream, given)

        address = given.address(place.run_dir)
        self.line: connection.Server | connection.Client
        if given.server:
            self.line = connection.Server(place, address, socket.SOCK_STREAM, carry, tune)
        else:
            self.line = connection.Client(place, address, socket.SOCK_STREAM, carry, tune)
            self.line.retry_s = given.retry_ms / 1000
        self.prepare = self.line.prepare
        self.open = self.line.open
        self.close = self.line.close
        self.ended = self.line.ended


def set_tcp(stream: socket.socket, given: Options) -> None:
    """Send small frames at once, and notice a far end that is no more."""
    stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if given.keep_alive is not False:
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, given.keep_alive_count)
        stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, given.keep_alive_idle)
        stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, given.keep_alive_interval)


def unix(text: str, run_dir: Path, *, abstract: bool = False, tight: bool = True) -> addresses.Unix:
    """The address of a unix socket as a section gives it."""
    return addresses.Unix(path=text if abstract else str(run_dir / text), abstract=abstract, tight=tight)


def qemu(given: Options, run_dir: Path, version: tuple[int, ...]) -> list[str] | None:
    """The other half of this port: a client where it is the server, and the other way round."""
    if given.to is not None or given.port == "0":
        return None
    keys = {"server": "off" if given.server else "on", **given.address(run_dir).qemu("addr.")}
    if given.server and version >= (9, 2):
        keys["reconnect-ms"] = "1000"
    elif given.server and version >= (8, 0):
        keys["reconnect"] = "1"
    return addresses.netdev("stream", keys)
