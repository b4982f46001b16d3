"""[dgram NAME]: a frame a datagram, over unix sockets, UDP or multicast, as QEMU's -netdev dgram.

    local and remote         frames go to remote and come in at local, from anybody; the far end may come and go
    remote is a multicast    everybody who sends to the group is on one wire; local.host names the interface (IPv4 only)
    local alone              an addition: the far end is whoever sent last. With unix this is vfkit's unixgram, whose hello of
                             four bytes is counted as a runt
    type seqpacket           an addition: SOCK_SEQPACKET, a frame a record ("bess"). local waits for one client at a time,
                             remote dials a server and does so again every reconnect-ms

A relative path is in the lab's run directory. The sockets are deposited with the supervisor and outlive the worker. What a
socket cannot take is dropped: the kernel keeps ten datagrams for a unix socket (net.unix.max_dgram_qlen), which bulk traffic
overruns; prefer [stream] where both ends can.
"""

import contextlib
import dataclasses
import errno
import ipaddress
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from shardnet import addresses, connection, options, room
from shardnet.workers import stream

if TYPE_CHECKING:
    from shardnet import worker

RETRY_S = 1.0
RECEIVE, SEND = "receive", "send"  # names of the deposits
RECEIVE_BYTES, SEND_BYTES = 4 << 20, 1 << 20  # as gvproxy's
IP_MULTICAST_ALL = 49  # linux/in.h

INHERITED = "a worker inherits no descriptors; give type = unix, inet or seqpacket"
KEYS = {None: (), "unix": ("path",), "inet": ("host", "port"), "seqpacket": ("path",)}  # of an address, by its type
REFUSED = {"local.str": INHERITED, "remote.str": INHERITED}
NO_QEMU = "QEMU has no sequenced packets"


def sort(text: str) -> str:
    """unix | inet | seqpacket"""
    if text == "fd":
        raise ValueError(INHERITED)
    if text not in KEYS:
        raise ValueError("not one of unix, inet, seqpacket")
    return text


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(options.PortOptions):
    # What sort of address this end has.
    local_type: str | None = options.option(None, key="local.type", read=sort)
    # inet: this end's address, any unless given; with multicast, the address of the interface to use.
    local_host: str | None = options.option(None, key="local.host")
    # inet: this end's port.
    local_port: str | None = options.option(None, key="local.port", read=stream.port)
    # unix, seqpacket: this end's file, in the lab's run directory where relative.
    local_path: str | None = options.option(None, key="local.path", read=stream.path)
    # What sort of address the far end has.
    remote_type: str | None = options.option(None, key="remote.type", read=sort)
    # inet: the far end's address, or a multicast group.
    remote_host: str | None = options.option(None, key="remote.host")
    # inet: the far end's port.
    remote_port: str | None = options.option(None, key="remote.port", read=stream.port)
    # unix, seqpacket: the far end's file, in the lab's run directory where relative.
    remote_path: str | None = options.option(None, key="remote.path", read=stream.path)
    # remote.type = seqpacket: milliseconds between tries to dial; 0: only once.
    reconnect_ms: int = options.option(stream.RETRY_MS, key="reconnect-ms", read=options.between(0, 86_400_000))

    @property
    def multicast(self) -> bool:
        """True where the far end is a group."""
        try:
            return self.remote_type == "inet" and ipaddress.ip_address(self.remote_host or "").is_multicast
        except ValueError:  # a name
            return False

    @property
    def connected(self) -> bool:
        """True where there is a connection, of sequenced packets."""
        return "seqpacket" in (self.local_type, self.remote_type)

    def local(self, run_dir: Path) -> addresses.Unix | addresses.Inet:
        """Where frames come in."""
        if self.local_type != "inet":
            return stream.unix(self.local_path or "", run_dir)
        any_host = "::" if ":" in (self.remote_host or "") else "0.0.0.0"
        return addresses.Inet(host=self.local_host or any_host, port=self.local_port or "")

    def remote(self, run_dir: Path) -> addresses.Unix | addresses.Inet | None:
        """Where frames go; None for whoever sent last."""
        if self.remote_type is None:
            return None
        if self.remote_type != "inet":
            return stream.unix(self.remote_path or "", run_dir)
        return addresses.Inet(host=self.remote_host or "", port=self.remote_port or "")


def check(given: Options) -> Iterator[tuple[str, str]]:
    """Mistakes that take several keys to see."""
    ends = {"local": given.local_type, "remote": given.remote_type}
    if not any(ends.values()):
        yield "local.type", "missing (give local and remote, or one of them)"
        return
    for end, kind in ends.items():
        yield from _check_end(given, end, kind)
    if all(ends.values()) and given.connected:
        yield "remote.type", "a connection of sequenced packets has local, which waits, or remote, which dials"
    elif all(ends.values()) and len(set(ends.values())) > 1:
        yield "remote.type", f"local.type is {given.local_type}, and both ends are of one sort"
    elif given.local_type is None and not given.multicast and not given.connected:
        yield "local.type", "missing: replies need an address to come to"
    if given.multicast and ":" in (given.remote_host or ""):
        yield "remote.host", "a group of IPv4 is meant (224.0.0.0 to 239.255.255.255)"


def _check_end(given: Options, end: str, kind: str | None) -> Iterator[tuple[str, str]]:
    for key in ("host", "port", "path"):
        value = getattr(given, f"{end}_{key}")
        if value is not None and key not in KEYS[kind]:
            yield (
                f"{end}.{key}",
                f"an address of type {kind} has none" if kind else f"without {end}.type it means nothing",
            )
        elif value is None and key in KEYS[kind] and (end == "remote" or key != "host" and not given.multicast):
            yield f"{end}.{key}", f"missing, and {end}.type = {kind} needs it"


class Port:
    def __init__(self, given: Options, place: "worker.Place") -> None:
        way = connected(given, place) if given.connected else Datagrams(given, place)
        self.prepare = way.prepare
        self.open = way.open
        self.close = way.close
        self.ended = way.ended


def connected(given: Options, place: "worker.Place") -> connection.Server | connection.Client:
    """A port of sequenced packets."""

    def carry(fd: int) -> None:
        place.shard.add_dgram(place.port, fd)

    if given.local_type is not None:
        return connection.Server(place, given.local(place.run_dir), socket.SOCK_SEQPACKET, carry, enlarge)
    remote = given.remote(place.run_dir)
    assert remote is not None  # check() saw to it
    client = connection.Client(place, remote, socket.SOCK_SEQPACKET, carry, enlarge)
    client.retry_s = given.reconnect_ms / 1000
    return client


class Datagrams:
    """A port without connections: a socket, and for a multicast group one more to send from.

    What is sent to a group comes back to every member on this host, the sender among them. As the frames leave from a socket
    of their own, their source tells which of the frames that come in are ours.
    """

    def __init__(self, given: Options, place: "worker.Place") -> None:
        self.options = given
        self.place = place
        self.receive: socket.socket | None = None
        self.send: socket.socket | None = None
        self.identity: tuple[int, int] | None = None
        self.timer: int | None = None

    def prepare(self) -> None:
        """Keep the sockets from before, or bind them."""
        with contextlib.ExitStack() as stack:
            receive = self._recall(RECEIVE)
            if receive is None:
                receive = (
                    self._join()
                    if self.options.multicast
                    else self.options.local(self.place.run_dir).bind(socket.SOCK_DGRAM)
                )
                enlarge(receive)
            self.place.deposit(RECEIVE, stack.enter_context(receive).fileno())
            if self.options.multicast:
                send = self._recall(SEND) or self._sender()
                self.place.deposit(SEND, stack.enter_context(send).fileno())

    def open(self) -> None:
        self.timer = None
        self.receive = self._recall(RECEIVE)
        self.send = self._recall(SEND) if self.options.multicast else None
        if self.receive is None or (self.options.multicast and self.send is None):
            self._wait("its socket is gone")
            return
        shard, port = self.place.shard, self.place.port
        try:
            if self.send is not None:
                ours = addresses.packed(self.send.family, self.send.getsockname())
                shard.add_dgram(port, self.receive.fileno(), send_fd=self.send.fileno(), ignore=ours)
                self.place.state("up", f"group {self.options.remote_host}:{self.options.remote_port}")
                return
            local = self.options.local(self.place.run_dir)
            self.identity = local.identity
            remote = self._remote(self.receive.family)
            shard.add_dgram(port, self.receive.fileno(), remote.sockaddr if remote else None, follow=remote is None)
        except OSError as error:
            self._let_go()
            self._wait(f"{error.filename}: {error.strerror}" if error.filename else str(error.strerror))
            return
        self.place.state("up", f"{local} to {remote or 'whoever sent last'}")

    def close(self) -> None:
        if self.timer is not None:
            self.place.cancel(self.timer)
            self.timer = None
        if self.receive is not None:
            self.place.shard.remove(self.place.port)
        self._let_go()
        self.options.local(self.place.run_dir).remove(self.identity)

    def ended(self, error: int) -> None:
        """The engine gave the socket up, which a socket without a connection gives no cause for: bind another."""
        self._let_go()
        self.place.forget(RECEIVE)
        self.place.forget(SEND)
        self._wait(os.strerror(error) if error else "ended")

    def _remote(self, family: int) -> addresses.Unix | addresses.Inet | None:
        """The far end, in the address family of the socket that sends to it."""
        remote = self.options.remote(self.place.run_dir)
        if isinstance(remote, addresses.Inet):
            return dataclasses.replace(remote, ipv4=family == socket.AF_INET, ipv6=family == socket.AF_INET6)
        return remote

    def _join(self) -> socket.socket:
        """A socket that receives what is sent to the group."""
        group, port, interface = self._group()
        receive = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        try:
            receive.setblocking(False)
            receive.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            receive.setsockopt(socket.IPPROTO_IP, IP_MULTICAST_ALL, 0)  # not what others joined on other interfaces
            receive.bind((group, port))
            receive.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, socket.inet_aton(group) + interface)
        except OSError as error:
            receive.close()
            raise no_route(error, f"{group}:{port}") from None
        return receive

    def _sender(self) -> socket.socket:
        """A socket that sends to the group, with an address of its own."""
        group, port, interface = self._group()
        send = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        try:
            send.setblocking(False)
            if any(interface):
                send.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, interface)
            send.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_LOOP, 1)
            send.connect((group, port))
        except OSError as error:
            send.close()
            raise no_route(error, f"{group}:{port}") from None
        enlarge(send)
        return send

    def _group(self) -> tuple[str, int, bytes]:
        """The group, its port, and the address of the interface to use (zeros: the kernel's choice)."""
        remote = addresses.Inet(host=self.options.remote_host or "", port=self.options.remote_port or "", ipv4=True)
        group, port = remote.targets(socket.SOCK_DGRAM)[0].where
        if self.options.local_host is None:
            return group, port, bytes(4)
        local = addresses.Inet(host=self.options.local_host, port="0", ipv4=True)
        return group, port, socket.inet_aton(local.targets(socket.SOCK_DGRAM)[0].where[0])

    def _recall(self, key: str) -> socket.socket | None:
        fd = self.place.recall(key)
        if fd is None:
            return None
        kept = socket.socket(fileno=fd)
        kept.setblocking(False)
        local = self.options.local(self.place.run_dir)
        if local.has_file and local.identity is None:
            kept.close()  # its file was taken away, nobody can find it any more
            return None
        return kept

    def _let_go(self) -> None:
        for kept in (self.receive, self.send):
            if kept is not None:
                kept.close()
        self.receive = self.send = None

    def _wait(self, why: str) -> None:
        self.place.state("waiting", why)
        self.timer = self.place.later(RETRY_S, self.place.again)


def enlarge(any_socket: socket.socket) -> None:
    """Give the socket room for bursts."""
    room.make(any_socket, RECEIVE_BYTES, SEND_BYTES)


def no_route(error: OSError, group: str) -> OSError:
    """The same error, with what to do where no interface leads to the group."""
    hint = " (no interface leads there: name one by its address, local.host)"
    if error.errno not in (errno.ENODEV, errno.ENETUNREACH, errno.EADDRNOTAVAIL):
        hint = ""
    return OSError(error.errno, f"{error.strerror}{hint}", group)


def qemu(given: Options, run_dir: Path, version: tuple[int, ...]) -> list[str] | None:
    """The other half of this port: its remote is our local, and the other way round."""
    if given.connected:
        return None
    if given.multicast:
        keys = {"remote.type": "inet", "remote.host": str(given.remote_host), "remote.port": str(given.remote_port)}
        if given.local_host:
            keys |= {"local.type": "inet", "local.host": given.local_host, "local.port": given.local_port or "0"}
        return addresses.netdev("dgram", keys)
    local, remote = given.local(run_dir), given.remote(run_dir)
    if remote is None and isinstance(local, addresses.Unix):
        remote = addresses.Unix(path=f"{local.path}.guest")
    elif remote is None:
        remote = addresses.Inet(host="", port="0")
    return addresses.netdev("dgram", remote.qemu("local.") | local.qemu("remote."))
