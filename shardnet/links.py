"""Interfaces of this host: TAPs, the network namespaces they live in, and their settings.

Plain ioctls and two netlink messages. pyroute2 would say it more nicely, but its import takes 130 ms or more and 13 MB, in every
worker that gives a TAP an address, and the whole of a worker's restart has 100 ms.

Everything here works in the network namespace of the calling thread; `namespace()` changes that for a while.
"""

import array
import contextlib
import ctypes
import errno
import fcntl
import ipaddress
import os
import socket
import struct
import time
from collections.abc import Iterator
from typing import NamedTuple

TUN = "/dev/net/tun"
NETNS = "/run/netns"  # where `ip netns add` keeps the names

# linux/if_tun.h
TUNSETIFF = 0x400454CA
TUNSETOFFLOAD = 0x400454D0
TUNGETIFF = 0x800454D2
TUNSETSNDBUF = 0x400454D4
TUNSETVNETHDRSZ = 0x400454D8
IFF_TAP = 0x0002
IFF_MULTI_QUEUE = 0x0100
IFF_PERSIST = 0x0800
IFF_NO_PI = 0x1000
IFF_VNET_HDR = 0x4000
TUN_F_CSUM, TUN_F_TSO4, TUN_F_TSO6, TUN_F_TSO_ECN = 0x01, 0x02, 0x04, 0x08
TUN_F_USO4, TUN_F_USO6 = 0x20, 0x40
OFFLOADS = (  # the most first; what a kernel does not know it refuses as a whole
    TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6 | TUN_F_TSO_ECN | TUN_F_USO4 | TUN_F_USO6,  # from Linux 6.2
    TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6 | TUN_F_TSO_ECN,
    TUN_F_CSUM,
    0,
)
BUSY_S, BUSY_LOOK_S = 0.3, 0.005
VNET_HEADER_BYTES = 10  # struct virtio_net_hdr without num_buffers

# linux/sockios.h, linux/if.h
SIOCGIFFLAGS = 0x8913
SIOCSIFFLAGS = 0x8914
SIOCSIFMTU = 0x8922
SIOCSIFHWADDR = 0x8924
SIOCGIFHWADDR = 0x8927
IFF_UP = 0x1
ARPHRD_ETHER = 1

# linux/rtnetlink.h, linux/if_addr.h
RTM_NEWROUTE, RTA_DST, RTA_GATEWAY = 24, 1, 5
RT_TABLE_MAIN, RTPROT_BOOT, RT_SCOPE_UNIVERSE, RTN_UNICAST = 254, 3, 0, 1
RTM_NEWADDR = 20
NLM_F_REQUEST, NLM_F_ACK, NLM_F_CREATE, NLM_F_REPLACE = 0x1, 0x4, 0x400, 0x100
NLMSG_ERROR = 2
IFA_ADDRESS, IFA_LOCAL, IFA_BROADCAST = 1, 2, 4
IFA_F_NODAD = 0x02

CLONE_NEWNET = 0x40000000


Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Address = ipaddress.IPv4Address | ipaddress.IPv6Address


class Tap(NamedTuple):
    """A TAP just opened: its name, a descriptor a queue, and whether it did not exist before."""

    name: str
    fds: tuple[int, ...]
    new: bool


def open_tap(ifname: str, queues: int = 1, *, offload: bool = True, sndbuf: int | None = None) -> Tap:
    """Attach to the TAP of that name, or make it; a name with %d takes the first free number.

    The descriptors are non-blocking and carry a virtio-net header of 10 bytes. A TAP that nobody made persistent lives as long as they do.
    """
    new = not exists(ifname)
    fds: list[int] = []
    name = ifname
    try:
        for _ in range(queues):
            fd = _open_tun()
            fds.append(fd)
            name = _attach(fd, name, queues)
            fcntl.ioctl(fd, TUNSETVNETHDRSZ, struct.pack("i", VNET_HEADER_BYTES))
            _set_offload(fd, OFFLOADS if offload else (0,))
            if sndbuf:
                fcntl.ioctl(fd, TUNSETSNDBUF, struct.pack("i", min(sndbuf, 0x7FFFFFFF)))
    except OSError:
        for fd in fds:
            os.close(fd)
        raise
    return Tap(name, tuple(fds), new)


def adopt_tap(fd: int, *, offload: bool = True) -> None:
    """Make a TAP's descriptor that another program opened, with IFF_VNET_HDR, one as open_tap() returns them."""
    os.set_inheritable(fd, False)
    os.set_blocking(fd, False)
    fcntl.ioctl(fd, TUNSETVNETHDRSZ, struct.pack("i", VNET_HEADER_BYTES))
    _set_offload(fd, OFFLOADS if offload else (0,))


def tap_of(fd: int) -> tuple[str, bool]:
    """The name of the TAP behind a descriptor, and whether it outlives it; OSError (EBADFD) when it is gone."""
    request = fcntl.ioctl(fd, TUNGETIFF, bytes(40))
    name, flags = struct.unpack_from("16sH", request)
    return name.rstrip(b"\0").decode(errors="replace"), bool(flags & IFF_PERSIST)


def exists(name: str) -> bool:
    """True where the namespace has an interface of that name."""
    try:
        socket.if_nametoindex(name)
    except OSError:
        return False
    return True


def mac_of(name: str) -> bytes:
    """The interface's hardware address, 6 bytes."""
    return _interface(name, SIOCGIFHWADDR, b"")[18:24]


def set_mac(name: str, mac: bytes) -> None:
    """Give the interface its hardware address."""
    _interface(name, SIOCSIFHWADDR, struct.pack("H6s", ARPHRD_ETHER, mac))


def set_mtu(name: str, mtu: int) -> None:
    """Set the largest packet that the interface sends."""
    _interface(name, SIOCSIFMTU, struct.pack("i", mtu))


def set_up(name: str) -> None:
    """Switch the interface on."""
    (flags,) = struct.unpack_from("H", _interface(name, SIOCGIFFLAGS, b""), 16)
    _interface(name, SIOCSIFFLAGS, struct.pack("H", flags | IFF_UP))


def add_address(name: str, address: ipaddress.IPv4Interface | ipaddress.IPv6Interface) -> None:
    """Add an address with its prefix; one that is there already stays as it is.

    Duplicate address detection is left out: an address of a lab has to answer at once.
    """
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    attributes = _attribute(IFA_LOCAL, address.ip.packed) + _attribute(IFA_ADDRESS, address.ip.packed)
    if address.version == 4 and address.network.prefixlen < 31:
        attributes += _attribute(IFA_BROADCAST, address.network.broadcast_address.packed)
    body = (
        struct.pack("=BBBBI", family, address.network.prefixlen, IFA_F_NODAD, 0, socket.if_nametoindex(name))
        + attributes
    )
    _rtnetlink(RTM_NEWADDR, body, f"{name} {address}")


def add_route(network: Network, gateway: Address) -> None:
    """Reach `network` by way of `gateway`, in the namespace of this process; rtnetlink(7)."""
    family = socket.AF_INET if network.version == 4 else socket.AF_INET6
    head = struct.pack(
        "=BBBBBBBBI", family, network.prefixlen, 0, 0, RT_TABLE_MAIN, RTPROT_BOOT, RT_SCOPE_UNIVERSE, RTN_UNICAST, 0
    )
    destination = _attribute(RTA_DST, network.network_address.packed) if network.prefixlen else b""
    what = f"route {network} via {gateway}"
    _rtnetlink(RTM_NEWROUTE, head + destination + _attribute(RTA_GATEWAY, gateway.packed), what)


def namespace_path(where: str) -> str:
    """The file of a network namespace: of a process by its id, of `ip netns` by its name, or the path itself."""
    if where.isdecimal():
        return f"/proc/{where}/ns/net"
    return where if "/" in where else f"{NETNS}/{where}"


@contextlib.contextmanager
def namespace(where: str | None) -> Iterator[None]:
    """Be in another network namespace for the length of the block; None: stay in this one."""
    if where is None:
        yield
        return
    path = namespace_path(where)
    here = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        there = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            _setns(there, path)
        finally:
            os.close(there)
        try:
            yield
        finally:
            _setns(here, "/proc/thread-self/ns/net")
    finally:
        os.close(here)


def _open_tun() -> int:
    try:
        return os.open(TUN, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        hint = {
            errno.ENOENT: " (modprobe tun; in a container: --device /dev/net/tun)",
            errno.ENODEV: " (modprobe tun)",
            errno.EACCES: " (give this user read and write access to it)",
            errno.EPERM: " (the container has to allow the device: --device /dev/net/tun)",
        }.get(error.errno or 0, "")
        raise OSError(error.errno, f"{error.strerror}{hint}", TUN) from None


def _attach(fd: int, name: str, queues: int) -> str:
    """Make `fd` a queue of the TAP `name`; returns the name that the kernel gave it.

    A TAP that is made anew may still be open for a moment, in workers that it was lent to.
    """
    deadline = time.monotonic() + BUSY_S
    while True:
        try:
            return _attach_once(fd, name, queues)
        except OSError as error:
            if error.errno != errno.EBUSY or time.monotonic() > deadline:
                raise
        time.sleep(BUSY_LOOK_S)


def _attach_once(fd: int, name: str, queues: int) -> str:
    wanted = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR
    # A TAP is made for one queue or for several. One made for several is content with one.
    tries = (wanted | IFF_MULTI_QUEUE,) if queues > 1 else (wanted, wanted | IFF_MULTI_QUEUE)
    for flags in tries:
        try:
            request = fcntl.ioctl(fd, TUNSETIFF, struct.pack("16sH22x", name.encode(), flags))
        except OSError as error:
            if error.errno == errno.EINVAL and flags != tries[-1]:
                continue
            raise OSError(error.errno, f"{error.strerror}{_why(error.errno, name, queues)}", name) from None
        return request[:16].rstrip(b"\0").decode(errors="replace")
    raise AssertionError("the last of the tries returns or raises")


def _why(code: int | None, name: str, queues: int) -> str:
    if code == errno.EPERM:
        return f" (needs CAP_NET_ADMIN, or a TAP made for this user: ip tuntap add {name} mode tap user {os.geteuid()})"
    if code == errno.EBUSY:
        return " (another program has it open)"
    if code == errno.EINVAL and exists(name):
        return " (it is no TAP" + (", or it was made without multi_queue)" if queues > 1 else ")")
    if code == errno.E2BIG:
        return f" (it has no room for {queues} queues)"
    return ""


def _set_offload(fd: int, choices: tuple[int, ...]) -> None:
    for flags in choices:
        try:
            fcntl.ioctl(fd, TUNSETOFFLOAD, flags)
        except OSError as error:
            if error.errno != errno.EINVAL or flags == choices[-1]:
                raise
        else:
            return


def _interface(name: str, request: int, value: bytes) -> bytes:
    """One ioctl with a struct ifreq: the name, and the union that holds `value`."""
    ifreq = array.array("B", struct.pack("16s24s", name.encode(), value))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as any_socket:
        try:
            fcntl.ioctl(any_socket, request, ifreq)
        except OSError as error:
            raise OSError(error.errno, error.strerror, name) from None
    return ifreq.tobytes()


def _rtnetlink(kind: int, body: bytes, what: str) -> None:
    """Have the kernel make or replace something; OSError names it by `what`."""
    flags = NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE | NLM_F_REPLACE
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE) as rtnetlink:
        rtnetlink.send(struct.pack("=IHHII", 16 + len(body), kind, flags, 1, 0) + body)
        answer, code = struct.unpack_from("=4xH10xi", rtnetlink.recv(65536))
    if answer == NLMSG_ERROR and code:
        raise OSError(-code, os.strerror(-code), what)


def _attribute(kind: int, value: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(value), kind) + value  # addresses are multiples of four bytes, so no padding


def _setns(fd: int, path: str) -> None:
    """os.setns() is only there from Python 3.12."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(fd, CLONE_NEWNET):
        code = ctypes.get_errno()
        hint = " (needs CAP_SYS_ADMIN)" if code == errno.EPERM else ""
        raise OSError(code, os.strerror(code) + hint, path)
