"""[vxlan NAME]: a VXLAN segment (RFC 7348) in user space: frames in UDP to other hosts, Linux's vxlan devices among them.

    remote = ADDRESS         the far ends, one a line. What is for everybody, or for a station that nobody has heard yet, goes to all of
                             them; nobody else is heard (drops: foreign)
    group = ADDRESS          in their place: a multicast group, whose members find each other

Behind which far end a station is, is learnt from where its frames come, and forgotten after 300 s. The source port is the flow's, one
of eight, so that a network with several ways spreads flows over them. Frames of another VNI are dropped (foreign), so are headers
that are none (bad_header). A UDP checksum of zero is taken. A section has its address and port for itself: two VNIs of one host have
different `local` or `port`.

VXLAN takes 50 bytes of each packet of the network that carries it, 70 over IPv6. mtu is 1450 unless given: 1430 is right over IPv6,
8950 where that network takes 9000, and guests (and a [tap] beside it) have to be told the same. Longer packets are dropped (tx_oversize).

The other end, on Linux, is `ip link add vx0 type vxlan id 5 dstport 4789 remote ADDRESS`. Where only a veth pair lies between, such
a device leaves the inner checksums open and super-frames uncut, for a card that is not there. That is seen here, and made good:
they travel on as super-frames, of segments that fit mtu, which has to be that device's then.
"""

import dataclasses
import errno
import ipaddress
import socket
import struct
from collections.abc import Iterator
from typing import TYPE_CHECKING

from shardnet import addresses, datagrams, links, options
from shardnet.workers import dgram

if TYPE_CHECKING:
    from shardnet import worker

PORT = 4789  # RFC 7348, 8
MTU = 1450  # of 1500, less IPv4, UDP, VXLAN and Ethernet headers
SENDERS = 8  # source ports
REMOTES_MOST = 64
UDP_NO_CHECK6_RX = 102  # linux/udp.h
NO_QEMU = "it leads to other hosts; a guest attaches to a stream or dgram port of the same switch"


def address(text: str) -> str:
    """an address of IPv4 or IPv6"""
    return str(_read(text))


def _read(text: str) -> links.Address:
    try:
        found = ipaddress.ip_address(text)
    except ValueError:
        raise ValueError("no address of IPv4 or IPv6") from None
    if isinstance(found, ipaddress.IPv6Address) and (found.is_link_local or found.scope_id):
        raise ValueError("an address of one link only; give one that is routed")
    return found


def far_end(text: str) -> links.Address:
    """an address of IPv4 or IPv6"""
    found = _read(text)
    if found.is_multicast or found.is_unspecified:
        raise ValueError("no address of one host" + (" (group = takes it)" if found.is_multicast else ""))
    return found


def group(text: str) -> str:
    """a multicast address of IPv4 or IPv6"""
    found = _read(text)
    if not found.is_multicast:
        raise ValueError("no multicast address (remote = takes one of a host)")
    return str(found)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(options.PortOptions):
    # The VXLAN network identifier.
    vni: int = options.option(read=options.between(0, (1 << 24) - 1))
    # The other hosts' addresses.
    remote: tuple[str, ...] = ()
    # The multicast group in which they are.
    group: str | None = options.option(None, read=group)
    # This host's address: frames leave from it and come in at it. Any, unless given.
    local: str | None = options.option(None, read=address)
    # The UDP port, here and there.
    port: int = options.option(PORT, read=options.between(1, 65535))
    # group: the interface that leads to it; the kernel chooses one otherwise.
    interface: str | None = None
    # group: how many routers its datagrams pass.
    ttl: int = options.option(1, read=options.between(1, 255))
    # The network namespace whose network carries the datagrams: a name of ip netns, the id of a process in it, or a path.
    netns: str | None = None
    # On: frames with an 802.1Q tag pass. Off, they are dropped (RFC 7348, 6.1).
    inner_vlan: bool = options.option(False, key="inner-vlan")
    # The largest packet that the port carries; 0: no limit, and the host cuts datagrams to fragments.
    mtu: int = options.option(MTU, read=options.mtu)

    @property
    def remotes(self) -> list[links.Address]:
        """What `remote` says, read."""
        return [far_end(text) for text in self.remote]

    @property
    def everybody(self) -> list[links.Address]:
        """Where goes what is for all."""
        return self.remotes if self.group is None else [ipaddress.ip_address(self.group)]


def check(given: Options) -> Iterator[tuple[str, str]]:
    """Mistakes that take several keys to see."""
    try:
        everybody = given.everybody
    except ValueError as why:
        yield "remote", str(why)
        return
    if not everybody:
        yield "remote", "missing (give remote, once for each far end, or group)"
        return
    if given.remote and given.group is not None:
        yield "group", "the far ends are in a group or listed in remote, not both"
    if len(everybody) > REMOTES_MOST:
        yield "remote", f"at most {REMOTES_MOST} far ends"
    local = [ipaddress.ip_address(given.local)] if given.local else []
    if len({one.version for one in (*everybody, *local)}) > 1:
        yield "local" if given.local else "remote", "IPv4 and IPv6 do not go together in a section"
    if given.group is None:
        for key in ("interface", "ttl"):
            if getattr(given, key) != (1 if key == "ttl" else None):
                yield key, "it is for a group"
    if given.tagged is not None and not given.inner_vlan:
        yield "inner-vlan", "off, and the frames of a trunk have tags"


class Port:
    def __init__(self, given: Options, place: "worker.Place") -> None:
        self.options, self.place = given, place
        sockets = datagrams.Sockets(place, 1 + SENDERS, self._make, self._carry)
        self.prepare = sockets.prepare
        self.open = sockets.open
        self.close = sockets.close
        self.ended = sockets.ended

    @property
    def _family(self) -> socket.AddressFamily:
        return socket.AF_INET if self.options.everybody[0].version == 4 else socket.AF_INET6

    def _make(self) -> list[socket.socket]:
        made: list[socket.socket] = []
        given = self.options
        try:
            with links.namespace(given.netns):
                index = 0 if given.interface is None else _index(given.interface)
                made.append(self._bound(given.port))
                if given.group is not None:
                    self._join(made[0], index)
                for _ in range(SENDERS):
                    made.append(self._bound(0))
                    self._aim(made[-1], index)
        except BaseException:
            for one in made:
                one.close()
            raise
        return made

    def _bound(self, port: int) -> socket.socket:
        any_host = "0.0.0.0" if self._family == socket.AF_INET else "::"
        # A group is heard at any address, and so is what its members send to this host alone.
        host = any_host if port and self.options.group is not None else self.options.local or any_host
        made = socket.socket(self._family, socket.SOCK_DGRAM)
        try:
            if self._family == socket.AF_INET6:
                made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                made.setsockopt(socket.IPPROTO_UDP, UDP_NO_CHECK6_RX, 1)  # RFC 6935; RFC 7348, 5
            made.bind((host, port))
            dgram.enlarge(made)
        except OSError as error:
            made.close()
            hint = (
                " (another section or a vxlan device of the kernel's has it)" if error.errno == errno.EADDRINUSE else ""
            )
            raise OSError(error.errno, f"{error.strerror}{hint}", addresses.written(host, port)) from None
        return made

    def _join(self, receive: socket.socket, index: int) -> None:
        """Receive what is sent to the group."""
        (group,) = self.options.everybody
        try:
            if group.version == 4:
                receive.setsockopt(socket.IPPROTO_IP, dgram.IP_MULTICAST_ALL, 0)
                request = struct.pack("=4s4si", group.packed, self._local(), index)  # struct ip_mreqn
                receive.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, request)
            else:
                request = struct.pack("=16si", group.packed, index)  # struct ipv6_mreq
                receive.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, request)
        except OSError as error:
            hint = " (no interface leads there: name one, interface)" if error.errno == errno.ENODEV else ""
            raise OSError(error.errno, f"{error.strerror}{hint}", str(group)) from None

    def _aim(self, send: socket.socket, index: int) -> None:
        """Send to the group by its interface, and not to this host itself."""
        if self.options.group is None:
            return
        if self._family == socket.AF_INET:
            request = struct.pack("=4s4si", bytes(4), self._local(), index)
            send.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, request)
            send.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL, self.options.ttl)
            send.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_LOOP, 0)
        else:
            send.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, index)
            send.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, self.options.ttl)
            send.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_LOOP, 0)

    def _local(self) -> bytes:
        return ipaddress.ip_address(self.options.local or "0.0.0.0").packed

    def _carry(self, fds: list[int]) -> str:
        given = self.options
        everybody = [
            addresses.packed(self._family, (str(one), given.port, 0, 0)[: 2 if one.version == 4 else 4])
            for one in given.everybody
        ]
        closed = given.group is None
        self.place.shard.add_vxlan(self.place.port, fds[0], fds[1:], given.vni, everybody, closed, given.inner_vlan)
        return f"VNI {given.vni}, port {given.port}, to {', '.join(map(str, given.everybody))}"


def _index(interface: str) -> int:
    try:
        return socket.if_nametoindex(interface)
    except OSError as error:
        raise OSError(error.errno, "no such interface", interface) from None


def qemu(given: Options, run_dir: object, version: tuple[int, ...]) -> None:
    """Nothing: see NO_QEMU."""
