"""What services have in common: their addresses, on a switch of their own or behind a user-mode network.

A service never sees a frame. The network of its worker (core/src/user/service.rs) owns the service's addresses and
answers ARP, neighbour discovery and echo for them; datagrams for its UDP ports come to `Place.serve`, and connections to
its TCP ports to a socket that it listens on (`Listener`, or any unix socket).

Alone on a switch it has the addresses that its section says. Behind a user-mode network it is a companion of that port,
and has addresses of that network, which hands its frames over.
"""

import contextlib
import dataclasses
import ipaddress
import os
import select
import socket
import struct
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

from shardnet import options

if TYPE_CHECKING:
    from shardnet import worker

BACKLOG = 128
PIECE = 1 << 16
ROUTER = "fe80::2"  # of a user-mode network, as QEMU's
Range = int | tuple[int, int]


def interface4(text: str) -> ipaddress.IPv4Interface:
    """ADDRESS/PREFIX"""
    try:
        return ipaddress.IPv4Interface(text)
    except ValueError:
        raise ValueError("no address such as 10.0.2.3/24") from None


def interface6(text: str) -> ipaddress.IPv6Interface:
    """ADDRESS/PREFIX"""
    try:
        return ipaddress.IPv6Interface(text)
    except ValueError:
        raise ValueError("no address such as fec0::3/64") from None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(options.PortOptions):
    # The service's IPv4 address, with the prefix of the network.
    address: ipaddress.IPv4Interface | None = options.option(None, read=interface4)
    # Its IPv6 address, likewise.
    address6: ipaddress.IPv6Interface | None = options.option(None, read=interface6)


def check(given: Options) -> Iterator[tuple[str, str]]:
    """Mistakes in the addresses; a kind's own `check` goes on from here."""
    if given.address is None and given.address6 is None:
        yield "address", "missing (or address6)"
    for key, address in (("address", given.address), ("address6", given.address6)):
        if address is not None and not _is_one(address):
            yield key, "no address of one machine"


def described(
    given: Options,
    place: "worker.Place",
    *,
    udp: Iterable[Range] = (),
    tcp: Iterable[tuple[int, bytes]] = (),
    groups: Iterable[str] = (),
    broadcast: bool = False,
    max_flows: int = 4096,
) -> dict[str, Any]:
    """Describe the service to `Shard.add_service`.

    `udp`: ports, or (first, last). `tcp`: a port and the sockaddr of a unix socket that listens for it, each, on every
    address. `groups`, `broadcast`: datagrams to these multicast groups, and to everybody, are for the service too.
    """
    hosts = [str(one.ip) for one in (given.address, given.address6) if one is not None]
    return {
        "ipv4": _net(given.address),
        "ipv6": _net(given.address6),
        "link_local": _link_local(given.address6, place.behind),
        "mtu": given.mtu,
        "udp": [(one, one) if isinstance(one, int) else one for one in udp],
        "tcp": [(host, port, sockaddr) for port, sockaddr in tcp for host in hosts],
        "groups": list(groups),
        "broadcast": broadcast,
        "announce": not place.behind,
        "max_flows": max_flows,
    }


class Listener:
    """Where the connections to a TCP port of a service arrive.

    An abstract unix socket, which leaves nothing behind. Others of this host could find it, so only connections of this
    process are let in: the guest's end of each is in the engine here.
    """

    def __init__(self, place: "worker.Place", accepted: Callable[[socket.socket], None]) -> None:
        """`accepted` gets each connection, non-blocking."""
        self.place, self.accepted = place, accepted
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        self.socket.bind("")  # the kernel finds a name: unix(7), autobind
        self.socket.listen(BACKLOG)
        place.watch(self.socket.fileno(), self._ready)

    @property
    def sockaddr(self) -> bytes:
        """The address for `described`."""
        name: bytes = self.socket.getsockname()
        return struct.pack("=H", socket.AF_UNIX) + name

    def close(self) -> None:
        """Listen no more; what was accepted goes on."""
        self.place.unwatch(self.socket.fileno())
        self.socket.close()

    def _ready(self) -> None:
        with contextlib.suppress(BlockingIOError, ConnectionError):
            made, _ = self.socket.accept()
            made.setblocking(False)
            pid, _, _ = struct.unpack("3i", made.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
            if pid == os.getpid():
                self.accepted(made)
            else:
                made.close()


class Connection:
    """One connection to a service: what comes is told, what is sent goes as the guest takes it.

    While something is on its way out nothing is read, so that a guest that does not listen has to wait with its
    questions. At the guest's end of data the rest is sent, and the connection is closed.
    """

    def __init__(
        self,
        place: "worker.Place",
        sock: socket.socket,
        received: Callable[[bytes], None],
        closed: Callable[[], None] = lambda: None,
    ) -> None:
        self.place, self.socket, self.received, self.closed = place, sock, received, closed
        self.is_open = True
        self._pending = bytearray()
        self._finishing = False
        self._room: select.epoll | None = None  # readable when the socket has room
        place.watch(sock.fileno(), self._readable)

    def send(self, data: bytes) -> None:
        """Send, now or when there is room."""
        if self.is_open:
            self._pending += data
            self._write()

    def finish(self) -> None:
        """Close, once all has been sent."""
        self._finishing = True
        if self.is_open:
            self._write()

    def close(self) -> None:
        """Close at once; `closed` is called, the first time."""
        if self.is_open:
            self.is_open = False
            self._stop_waiting()
            self.place.unwatch(self.socket.fileno())
            self.socket.close()
            self.closed()

    def _readable(self) -> None:
        try:
            data = self.socket.recv(PIECE)
        except BlockingIOError:
            return
        except OSError:
            return self.close()
        if not data:
            return self.finish()
        try:
            self.received(data)
        except Exception:
            self.place.mistake()
            self.close()

    def _write(self) -> None:
        try:
            while self._pending:
                del self._pending[: self.socket.send(self._pending)]
        except BlockingIOError:
            self._wait_for_room()
            return
        except OSError:
            return self.close()
        if self._finishing:
            return self.close()
        if self._room is not None:
            self._stop_waiting()
            self.place.watch(self.socket.fileno(), self._readable)

    def _wait_for_room(self) -> None:
        if self._room is None:
            self.place.unwatch(self.socket.fileno())
            self._room = select.epoll()
            self._room.register(self.socket.fileno(), select.EPOLLOUT)
            self.place.watch(self._room.fileno(), self._write)

    def _stop_waiting(self) -> None:
        if self._room is not None:
            self.place.unwatch(self._room.fileno())
            self._room.close()
            self._room = None


def _net(address: ipaddress.IPv4Interface | ipaddress.IPv6Interface | None) -> tuple[str, int, str, None] | None:
    if address is None:
        return None
    return str(address.network.network_address), address.network.prefixlen, str(address.ip), None


def _link_local(address: ipaddress.IPv6Interface | None, behind: str) -> str | None:
    if address is None:
        return None
    return ROUTER if behind else str(ipaddress.IPv6Address(0xFE80 << 112 | int(address.ip) & (1 << 64) - 1))


def _is_one(address: ipaddress.IPv4Interface | ipaddress.IPv6Interface) -> bool:
    ip, network = address.ip, address.network
    if ip.is_multicast or ip.is_unspecified or ip.is_loopback or ip.is_link_local:
        return False
    return ip.version == 6 or network.prefixlen >= 31 or ip not in (network.network_address, network.broadcast_address)
