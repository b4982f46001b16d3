"""[packet NAME]: an interface of this host that exists already (veth, network card, macvtap), by a packet socket.

What comes in by the interface goes to the switch, and what the switch sends leaves by it: behind it are the far end of a veth, a
network. Super-frames and partial checksums pass uncut both ways, VLAN tags stay in their frames, and the lab's own frames are not
read back. The interface is left as it is, but for the promiscuous mode that it has as long as the port. It stays this host's too:
this host hears what comes in by it as before, but what it sends there itself does not reach the guests, nor what they send it.
To have both, give the guests the far end of a veth pair.

The port is up while the interface has a carrier, and waits while it does not exist: once one of that name is there again it is
carried. A renamed one is carried on. Frames wait in the kernel while the worker is replaced.

Frames that the kernel has no room for before they are read are counted (overrun), and so are those that are longer than the
interface's mtu (tx_oversize), that it does not take (tx_full), and that it has no carrier for (tx_down).

A macvtap or macvlan lets through what is for its own address alone, unless it is in mode passthru; a wireless card does too.
A far end with a tunnel (a vxlan device on a veth) has to cut its super-frames itself, or they are dropped (bad_offload):
ethtool -K eth0 tx-udp_tnl-segmentation off tx-udp_tnl-csum-segmentation off.

--netdev af-xdp of QEMU's makes such a port, by a packet socket too: AF_XDP was measured, and is slower.
"""

import dataclasses
import errno
import os
import socket
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from shardnet import _core, carrier, links, options, room
from shardnet.workers import tap

if TYPE_CHECKING:
    from shardnet import worker

RETRY_S = 1.0
BUFFER = 4 << 20

ETH_P_ALL = 3  # linux/if_ether.h
ARPHRD_ETHER = 1
# linux/if_packet.h
SOL_PACKET = 263
PACKET_ADD_MEMBERSHIP, PACKET_MR_PROMISC = 1, 1
PACKET_RX_RING = 5
PACKET_COPY_THRESH = 7
PACKET_VERSION, TPACKET_V2 = 10, 1
PACKET_RESERVE, RESERVE_BYTES = 12, 8  # room for a tag before the frame
PACKET_VNET_HDR = 15
PACKET_IGNORE_OUTGOING = 23  # Linux 4.20

XDP = "frames pass by a packet socket and not by AF_XDP, which sees no super-frames and was measured to be slower"
REFUSED = {
    "mode": f"it says how a program of XDP is attached; {XDP}",
    "force-copy": f"it is about the buffers of AF_XDP; {XDP}",
    "queues": "a packet socket gets the frames of all of a card's queues",
    "start-queue": "a packet socket gets the frames of all of a card's queues",
    "inhibit": f"there is no program of XDP that could be loaded or not; {XDP}",
    "sock-fds": "a worker inherits no descriptors; name the interface with ifname",
    "map-path": f"there is no map of sockets; {XDP}",
    "map-start-index": f"there is no map of sockets; {XDP}",
}
NO_QEMU = "an interface is carried by the lab itself; a guest attaches to a stream or dgram port of the same switch"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(options.PortOptions):
    # The interface.
    ifname: str = options.option(read=tap.ifname)
    # The network namespace it lives in: a name of ip netns, the id of a process in it, or a path.
    netns: str | None = None
    # Off: the interface lets through what it does of itself, and guests whose address it does not know may hear nothing.
    promisc: bool = True
    # How many bytes of long frames may wait in the kernel to be read; of short ones (to 1,900 bytes) 4,096 may, whatever this says.
    rcvbuf: int = options.option(BUFFER, read=tap.size)
    # How many bytes of frames may wait in the kernel to be sent.
    sndbuf: int = options.option(BUFFER, read=tap.size)


def check(given: Options) -> Iterator[tuple[str, str]]:
    """Mistakes that a key's reader cannot see."""
    if "%" in given.ifname:
        yield "ifname", "an interface that exists has one name"
    if given.netns in (".", ".."):
        yield "netns", "no name of a network namespace"
    for key in ("rcvbuf", "sndbuf"):
        if not 1 << 16 <= getattr(given, key) <= 1 << 30:
            yield key, "not 64K to 1G"


class Port:
    def __init__(self, given: Options, place: "worker.Place") -> None:
        self.options, self.place = given, place
        self.socket: socket.socket | None = None
        self.follower: socket.socket | None = None
        self.index = 0  # of the interface that is carried; 0: there is none
        self.attached = False  # the socket is on an interface, even if the kernel has yet to tell which
        self.timer: int | None = None

    def prepare(self) -> None:
        """Keep the socket from before, or make it; the interface has to be there then."""
        if self._recall():
            self._let_go()
            return
        given = self.options
        with links.namespace(given.netns):
            found = carrier.now(given.ifname)
            with carrier.follow() as follower, opened(given) as made:
                attach(made, found, given)
                self.place.deposit("link", follower.fileno())
                self.place.deposit("socket", made.fileno())

    def open(self) -> None:
        if self.timer is not None:
            self.place.cancel(self.timer)
            self.timer = None
        if not self._recall():
            self._again("its socket is gone")
            return
        assert self.socket is not None and self.follower is not None, "both were recalled"
        self.place.shard.add_packet(self.place.port, self.socket.fileno())
        self.place.lend("socket")
        self.place.watch(self.follower.fileno(), self._told)
        self.attached = self._bound() != ""
        for _ in carrier.told(self.follower):
            pass  # what the kernel said while nobody listened is old
        carrier.ask(self.follower, self._name())
        self._told()

    def close(self) -> None:
        if self.timer is not None:
            self.place.cancel(self.timer)
            self.timer = None
        if self.socket is not None:
            self.place.shard.remove(self.place.port)
        self._let_go()

    def ended(self, error: int) -> None:
        """The core gave the socket up, which an interface that comes and goes gives no cause for: make another."""
        self._let_go()
        self.place.forget("socket")
        self.place.forget("link")
        self._again(os.strerror(error) if error else "ended")

    def _told(self) -> None:
        """The kernel says something of its interfaces."""
        assert self.follower is not None, "it is watched"
        lost = False
        for one in carrier.told(self.follower):
            if isinstance(one, OSError):
                if one.errno == errno.ENOBUFS:
                    lost = True
                elif not self.index:
                    self._gone()
            elif one.gone:
                if one.number == self.index:
                    self._gone()
            elif one.number == self.index:
                self._are(one)
            elif not self.index and one.name == self._name():
                self._meet(one)
        if lost:
            if not self._bound():
                self._gone()
            carrier.ask(self.follower, self._name())  # there is room for the answer now

    def _meet(self, link: carrier.Link) -> None:
        """An interface of our name is there: it is the one that the socket has, or a new one."""
        assert self.socket is not None, "it is open"
        if not self.attached:
            try:
                attach(self.socket, link, self.options)
            except OSError as error:  # gone again, or it is no Ethernet
                self.place.state("waiting", f"{link.name}: {error.strerror}")
                return
        self.index, self.attached = link.number, True
        self._are(link)

    def _are(self, link: carrier.Link) -> None:
        """Our interface is so now."""
        self.place.shard.set_link(self.place.port, link.mtu if link.carrier else None)
        if link.carrier:
            self.place.state("up", link.name)
        else:
            self.place.state("down", f"{link.name} {'has no carrier' if link.up else 'is switched off'}")

    def _gone(self) -> None:
        self.index, self.attached = 0, False
        self.place.shard.set_link(self.place.port, None)
        self.place.state("waiting", f"{self.options.ifname} is gone")

    def _again(self, why: str) -> None:
        self.place.state("waiting", why)
        self.timer = self.place.later(RETRY_S, self.place.again)

    def _name(self) -> str:
        """What the interface is called that we carry, or would."""
        return self._bound() if self.attached else self.options.ifname

    def _bound(self) -> str:
        """The name of the interface that the socket has; empty where that is gone."""
        assert self.socket is not None, "it is open"
        return str(self.socket.getsockname()[0])

    def _recall(self) -> bool:
        """Take over both sockets from before; False where there are none."""
        fd, follower = self.place.recall("socket"), self.place.recall("link")
        if fd is not None:
            self.socket = socket.socket(fileno=fd)
        if follower is not None:
            self.follower = socket.socket(fileno=follower)
        if fd is None or follower is None:
            self._let_go()
            return False
        return True

    def _let_go(self) -> None:
        if self.follower is not None:
            self.place.unwatch(self.follower.fileno())
            self.follower.close()
        if self.socket is not None:
            self.socket.close()
        self.socket = self.follower = None
        self.index, self.attached = 0, False


def opened(given: Options) -> socket.socket:
    """A packet socket as the core wants it, bound to no interface yet."""
    try:
        made = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    except PermissionError as error:
        raise OSError(error.errno, f"{error.strerror} (needs CAP_NET_RAW)", given.ifname) from None
    try:
        for option, value in (
            (PACKET_VERSION, TPACKET_V2),
            (PACKET_VNET_HDR, 1),
            (PACKET_RESERVE, RESERVE_BYTES),
            (PACKET_COPY_THRESH, 1),
            (PACKET_IGNORE_OUTGOING, 1),
        ):
            made.setsockopt(SOL_PACKET, option, value)
        made.setsockopt(SOL_PACKET, PACKET_RX_RING, struct.pack("4I", *_core.PACKET_RING))
        made.setblocking(False)
        room.make(made, given.rcvbuf, given.sndbuf)
    except BaseException:
        made.close()
        raise
    return made


def attach(made: socket.socket, link: carrier.Link, given: Options) -> None:
    """Bind the socket to an interface; this needs no privilege."""
    if link.kind != ARPHRD_ETHER:
        raise OSError(errno.EINVAL, "it is no Ethernet interface", link.name)
    try:
        made.bind((link.name, ETH_P_ALL))
        if given.promisc:
            request = struct.pack("=iHH8s", link.number, PACKET_MR_PROMISC, 0, b"")  # struct packet_mreq
            made.setsockopt(SOL_PACKET, PACKET_ADD_MEMBERSHIP, request)
    except OSError as error:
        raise OSError(error.errno, error.strerror, link.name) from None


def qemu(given: Options, run_dir: Path, version: tuple[int, int]) -> None:
    """Nothing: see NO_QEMU."""
