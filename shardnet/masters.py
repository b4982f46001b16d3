"""Whether an interface is on a bridge: asked of the kernel, and told by it when that changes.

A socket keeps the network namespace that it was made in, and reading it takes no privilege: so a worker hears of a namespace that it
could not enter.
"""

import errno
import socket
import struct

# linux/netlink.h, linux/rtnetlink.h, linux/if_link.h
NLMSG = struct.Struct("=IHHII")  # length, type, flags, sequence, port
IFINFOMSG = struct.Struct("=BxHiII")  # family, type, index, flags, change
NLM_F_REQUEST = 0x1
RTMGRP_LINK = 0x1
RTM_NEWLINK, RTM_GETLINK = 16, 18
IFLA_IFNAME, IFLA_MASTER = 3, 10


def changes() -> socket.socket:
    """A socket on which the kernel tells of links that change, in the network namespace that it is made in."""
    made = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)
    made.bind((0, RTMGRP_LINK))
    return made


def has_left(news: socket.socket, name: str) -> bool:
    """Read what `changes` was told: is the interface without a master now, as far as that says anything about it?

    Where more was told than the socket holds nobody knows: it counts as left, and whoever looks will see.
    """
    left = False
    while True:
        try:
            text = news.recv(1 << 16)
        except BlockingIOError:
            return left
        except OSError as error:
            if error.errno != errno.ENOBUFS:
                raise
            left = True
            continue
        while len(text) >= NLMSG.size + IFINFOMSG.size:
            length, kind, *_ = NLMSG.unpack_from(text)
            family, *_ = IFINFOMSG.unpack_from(text, NLMSG.size)
            about = _attributes(text[NLMSG.size + IFINFOMSG.size : length])
            if kind == RTM_NEWLINK and family == socket.AF_UNSPEC and about.get(IFLA_IFNAME) == name.encode() + b"\0":
                left = IFLA_MASTER not in about
            text = text[max(length + 3 & ~3, NLMSG.size) :]


def is_on_bridge(name: str) -> bool:
    """Has the interface a master, in the current network namespace?"""
    request = NLMSG.pack(NLMSG.size + IFINFOMSG.size, RTM_GETLINK, NLM_F_REQUEST, 1, 0)
    request += IFINFOMSG.pack(socket.AF_UNSPEC, 0, socket.if_nametoindex(name), 0, 0)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE) as rtnetlink:
        rtnetlink.send(request)
        return IFLA_MASTER in _attributes(rtnetlink.recv(1 << 16)[NLMSG.size + IFINFOMSG.size :])


def _attributes(text: bytes) -> dict[int, bytes]:
    """Attributes of a message of rtnetlink, by their type."""
    found = {}
    while len(text) >= 4:
        length, kind = struct.unpack_from("=HH", text)
        found[kind] = text[4:length]
        text = text[max(length + 3 & ~3, 4) :]
    return found
