"""Interfaces as the kernel tells of them: there or gone, with a carrier or without, how long their packets may be (rtnetlink(7)).

A socket of this kind sees the namespace that it was made in, whatever namespace its reader is in, and needs no privilege to be read or asked.
"""

import contextlib
import errno
import os
import socket
import struct
from collections.abc import Iterator
from typing import NamedTuple

# linux/netlink.h, linux/rtnetlink.h, linux/if_link.h, linux/if.h
RTMGRP_LINK = 1
NLMSG_ERROR, RTM_NEWLINK, RTM_DELLINK, RTM_GETLINK = 2, 16, 17, 18
NLM_F_REQUEST = 0x1
IFLA_IFNAME, IFLA_MTU = 3, 4
IFF_UP, IFF_LOWER_UP = 0x1, 0x10000
HEAD, INFO = struct.Struct("=IHHII"), struct.Struct("=BxHiII")  # nlmsghdr, ifinfomsg
ATTRIBUTE = struct.Struct("=HH")
MESSAGES_BYTES = 1 << 16


class Link(NamedTuple):
    """An interface, as it is or, where `gone`, as it was."""

    number: int  # its index
    name: str
    mtu: int
    kind: int  # ARPHRD_*
    up: bool  # switched on
    carrier: bool  # and connected
    gone: bool


def follow() -> socket.socket:
    """A socket, not blocking, at which the kernel tells what changes of this namespace's interfaces."""
    made = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.NETLINK_ROUTE)
    try:
        made.bind((0, RTMGRP_LINK))
    except BaseException:
        made.close()
        raise
    return made


def ask(follower: socket.socket, name: str) -> None:
    """Have the kernel say at once how an interface is; where there is none `told` says so by an OSError (ENODEV)."""
    text = name.encode() + b"\0"
    attribute = ATTRIBUTE.pack(ATTRIBUTE.size + len(text), IFLA_IFNAME) + text + bytes(-len(text) % 4)
    body = INFO.pack(socket.AF_UNSPEC, 0, 0, 0, 0) + attribute
    follower.send(HEAD.pack(HEAD.size + len(body), RTM_GETLINK, NLM_F_REQUEST, 0, 0) + body)


def told(follower: socket.socket) -> Iterator[Link | OSError]:
    """What waits, in its order. An error of ENODEV answers `ask`; one of ENOBUFS says that some was lost, so ask."""
    while True:
        try:
            messages = follower.recv(MESSAGES_BYTES)
        except BlockingIOError:
            return
        except OSError as lost:
            yield lost
            continue
        yield from _read(messages)


def now(name: str) -> Link:
    """How an interface of this namespace is; OSError where there is none."""
    with contextlib.closing(follow()) as follower:
        ask(follower, name)
        for one in told(follower):
            if isinstance(one, OSError):
                raise OSError(one.errno, "no such interface" if one.errno == errno.ENODEV else one.strerror, name)
            if one.name == name:
                return one
    raise OSError(errno.ENODEV, "no such interface", name)


def _read(messages: bytes) -> Iterator[Link | OSError]:
    at = 0
    while at + HEAD.size <= len(messages):
        length, kind, *_ = HEAD.unpack_from(messages, at)
        body = messages[at + HEAD.size : at + length]
        at += (max(length, HEAD.size) + 3) & ~3
        if kind == NLMSG_ERROR:
            (code,) = struct.unpack_from("=i", body)
            yield OSError(-code, os.strerror(-code))
        elif kind in (RTM_NEWLINK, RTM_DELLINK):
            family, hardware, index, flags, _ = INFO.unpack_from(body)
            if family == socket.AF_UNSPEC:  # a bridge tells of its ports too
                has = dict(_attributes(body[INFO.size :]))
                name = has.get(IFLA_IFNAME, b"").rstrip(b"\0").decode(errors="replace")
                (mtu,) = struct.unpack("=I", has.get(IFLA_MTU, bytes(4)))
                up = bool(flags & IFF_UP)
                yield Link(index, name, mtu, hardware, up, up and bool(flags & IFF_LOWER_UP), gone=kind == RTM_DELLINK)


def _attributes(body: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at + ATTRIBUTE.size <= len(body):
        length, kind = ATTRIBUTE.unpack_from(body, at)
        yield kind & 0x3FFF, body[at + ATTRIBUTE.size : at + length]
        at += (max(length, ATTRIBUTE.size) + 3) & ~3
