"""A network namespace for one command: made, entered and gone with the process that made it.

Without root a user namespace goes around it, in which the user is root: enough to configure the namespace's interfaces
and to send raw frames, and worth nothing outside it. A process enters with `enter()` and cannot come back, so call it
in a process that has nothing else to do.
"""

import ctypes
import ipaddress
import os
import signal
import socket
import struct

CLONE_NEWUSER = 0x10000000  # linux/sched.h
CLONE_NEWNET = 0x40000000

# linux/rtnetlink.h, linux/netlink.h
RTM_NEWROUTE = 24
NLM_F_REQUEST, NLM_F_ACK, NLM_F_EXCL, NLM_F_CREATE = 0x1, 0x4, 0x200, 0x400
RT_TABLE_MAIN, RTPROT_STATIC, RT_SCOPE_UNIVERSE, RTN_UNICAST = 254, 4, 0, 1
RTA_DST, RTA_GATEWAY = 1, 5


def enter() -> None:
    """Move this process, which must have one thread, into a new network namespace."""
    uid, gid = os.geteuid(), os.getegid()
    if uid == 0:
        _unshare(CLONE_NEWNET)
        return
    _unshare(CLONE_NEWUSER | CLONE_NEWNET)
    # user_namespaces(7): a process may map itself alone, and its group only once it has given up setgroups().
    for file, text in (("setgroups", "deny"), ("uid_map", f"0 {uid} 1"), ("gid_map", f"0 {gid} 1")):
        with open(f"/proc/self/{file}", "w") as out:
            out.write(text)


def tried() -> str:
    """Try in a child whether `enter` works here; what the system said if not, "" if so."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            enter()
        except OSError as error:
            os.write(writer, os.fsencode(error.strerror or str(error)))
        finally:
            os._exit(0)
    os.close(writer)
    with open(reader) as said:
        text = said.read()
    _, status = os.waitpid(child, 0)
    return text or (f"killed by {signal.Signals(os.WTERMSIG(status)).name}" if os.WIFSIGNALED(status) else "")


def _unshare(flags: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(ctypes.c_int(flags)):
        number = ctypes.get_errno()
        raise OSError(number, f"{os.strerror(number)} (shardnet doctor says more)", "new network namespace")


def add_route(
    network: ipaddress.IPv4Network | ipaddress.IPv6Network, gateway: ipaddress.IPv4Address | ipaddress.IPv6Address
) -> None:
    """Reach `network` by way of `gateway`, in the namespace of this process."""
    family = socket.AF_INET if gateway.version == 4 else socket.AF_INET6
    message = struct.pack(
        "=BBBBBBBBI", family, network.prefixlen, 0, 0, RT_TABLE_MAIN, RTPROT_STATIC, RT_SCOPE_UNIVERSE, RTN_UNICAST, 0
    )
    for kind, address in ((RTA_DST, network.network_address), (RTA_GATEWAY, gateway)):
        if kind == RTA_GATEWAY or network.prefixlen:
            message += struct.pack("=HH", 4 + len(address.packed), kind) + address.packed
    flags = NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE) as rtnetlink:
        rtnetlink.send(struct.pack("=IHHII", 16 + len(message), RTM_NEWROUTE, flags, 1, 0) + message)
        (code,) = struct.unpack_from(
            "=i", rtnetlink.recv(65536), 16
        )  # an answer is always an NLMSG_ERROR, with 0 for done
    if code:
        raise OSError(-code, os.strerror(-code), f"route {network} via {gateway}")
