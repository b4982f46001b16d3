"""Addresses of sockets: unix paths and internet hosts, as QEMU writes them."""

import contextlib
import dataclasses
import errno
import os
import socket
import stat
import struct
from collections.abc import Mapping
from typing import Any, NamedTuple

SUN_PATH_BYTES = 108  # of struct sockaddr_un, unix(7); a path ends with a NUL inside
IPPROTO_MPTCP = 262  # linux/in.h
BACKLOG = 16
ANY = ("", "0.0.0.0", "::")  # hosts that stand for all addresses of this one


class Target(NamedTuple):
    """One address of one family, as the socket module takes it."""

    family: int
    kind: int
    protocol: int
    where: Any

    def socket(self) -> socket.socket:
        """A non-blocking socket of that family."""
        made = socket.socket(self.family, self.kind, self.protocol)
        made.setblocking(False)
        return made


@dataclasses.dataclass(frozen=True, kw_only=True)
class Unix:
    """A unix socket's address: an absolute path, or a name without a file where `abstract`."""

    path: str
    abstract: bool = False
    tight: bool = True  # False: the abstract name is filled up with NULs, as QEMU once wrote it

    def __str__(self) -> str:
        return f"@{self.path}" if self.abstract else self.path

    @property
    def name(self) -> bytes:
        """What sun_path holds."""
        path = self.path.encode()
        if len(path) > SUN_PATH_BYTES - 1:
            why = f"{len(path)} bytes, and the path of a unix socket has at most {SUN_PATH_BYTES - 1}"
            raise OSError(errno.ENAMETOOLONG, why, str(self))
        if not self.abstract:
            return path
        return b"\0" + (path if self.tight else path.ljust(SUN_PATH_BYTES - 1, b"\0"))

    @property
    def sockaddr(self) -> bytes:
        """The address as the kernel takes it."""
        return struct.pack("=H", socket.AF_UNIX) + self.name + (b"" if self.abstract else b"\0")

    def targets(self, kind: int) -> list[Target]:
        """Where to connect to."""
        return [Target(socket.AF_UNIX, kind, 0, self.name)]

    def bind(self, kind: int) -> socket.socket:
        """A socket at this address; the file that a dead program left there is taken away first."""
        bound = self.targets(kind)[0].socket()
        try:
            if self.identity is not None and self._forsaken(kind):
                os.unlink(self.path)
            bound.bind(self.name)
            if kind != socket.SOCK_DGRAM:
                bound.listen(BACKLOG)
        except OSError as error:
            bound.close()
            raise about(error, self) from None
        return bound

    @property
    def has_file(self) -> bool:
        """True where a file stands for the address."""
        return not self.abstract

    @property
    def identity(self) -> tuple[int, int] | None:
        """Which socket's file is at the path now; None where there is none."""
        if self.abstract:
            return None
        try:
            found = os.lstat(self.path)
        except OSError:
            return None
        return (found.st_dev, found.st_ino) if stat.S_ISSOCK(found.st_mode) else None

    def remove(self, identity: tuple[int, int] | None) -> None:
        """Take the socket's file away if it is still that one."""
        if identity is not None and self.identity == identity:
            with contextlib.suppress(OSError):  # where this process may not, the next bind() will
                os.unlink(self.path)

    def qemu(self, prefix: str) -> dict[str, str]:
        """The address in QEMU's words."""
        keys = {f"{prefix}type": "unix", f"{prefix}path": self.path}
        if self.abstract:
            keys[f"{prefix}abstract"] = "on"
            keys[f"{prefix}tight"] = "on" if self.tight else "off"
        return keys

    def _forsaken(self, kind: int) -> bool:
        with self.targets(kind)[0].socket() as probe:
            return probe.connect_ex(self.name) == errno.ECONNREFUSED


@dataclasses.dataclass(frozen=True, kw_only=True)
class Inet:
    """A TCP or UDP address: a host by name or number (empty: any), and a port, or the first free one from `port` to `to`."""

    host: str
    port: str
    to: int = 0
    ipv4: bool | None = None
    ipv6: bool | None = None
    numeric: bool = False
    mptcp: bool = False

    has_file = False
    identity = None

    def __str__(self) -> str:
        return written(self.host, self.port)

    @property
    def sockaddr(self) -> bytes:
        """The address as the kernel takes it."""
        target = self.targets(socket.SOCK_DGRAM)[0]
        return packed(target.family, target.where)

    def targets(self, kind: int) -> list[Target]:
        """Where to connect to, one after the other until one answers."""
        return self._look_up(kind, 0)

    def bind(self, kind: int) -> socket.socket:
        """A socket at the first of the addresses and ports that is free."""
        targets = self._look_up(kind, socket.AI_PASSIVE)
        if not self.host:  # one IPv6 socket serves both families
            targets.sort(key=lambda target: target.family != socket.AF_INET6)
        trouble: OSError | None = None
        for target in targets:
            port = target.where[1]
            for free in range(port, max(port, self.to) + 1):
                try:
                    return self._bind(target, free)
                except OSError as error:
                    trouble = trouble or error
        assert trouble is not None  # getaddrinfo() found an address, so one was tried
        raise about(trouble, self)

    def remove(self, identity: object) -> None:
        """Nothing was left behind."""

    def qemu(self, prefix: str) -> dict[str, str]:
        """The address in QEMU's words; the loopback of this host where it is any."""
        host = ("::1" if self._family == socket.AF_INET6 else "127.0.0.1") if self.host in ANY else self.host
        return {f"{prefix}type": "inet", f"{prefix}host": host, f"{prefix}port": self.port}

    def _bind(self, target: Target, port: int) -> socket.socket:
        bound = target.socket()
        try:
            if target.family == socket.AF_INET6:
                any_family = not self.host and self._family == socket.AF_UNSPEC
                bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, not any_family)
            if target.kind == socket.SOCK_STREAM:
                bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            bound.bind((target.where[0], port, *target.where[2:]))
            if target.kind == socket.SOCK_STREAM:
                bound.listen(BACKLOG)  # here and not in bind() a port with a listener is refused
        except OSError:
            bound.close()
            raise
        return bound

    @property
    def _family(self) -> int:
        if self.ipv4 is self.ipv6:
            return socket.AF_UNSPEC
        return socket.AF_INET6 if self.ipv6 or self.ipv4 is False else socket.AF_INET

    def _look_up(self, kind: int, flags: int) -> list[Target]:
        if self.numeric:
            flags |= socket.AI_NUMERICHOST | socket.AI_NUMERICSERV
        try:
            found = socket.getaddrinfo(self.host or None, self.port, self._family, kind, 0, flags)
        except socket.gaierror as error:
            raise OSError(errno.EADDRNOTAVAIL, error.strerror, str(self)) from None
        protocol = IPPROTO_MPTCP if self.mptcp else 0
        return [Target(family, kind, protocol, where) for family, _, _, _, where in found]


def written(host: str, port: object) -> str:
    """Write a host and a port as one text."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def split(text: str) -> tuple[str, str]:
    """host:port, [IPV6]:port, or :port for any host"""
    host, colon, port = text.rpartition(":")
    if not colon or not port:
        raise ValueError("no host:port")
    if host.startswith("[") and host.endswith("]"):
        return host[1:-1], port
    if ":" in host:
        raise ValueError("an IPv6 address is written in brackets, [::1]:1234")
    return host, port


def netdev(kind: str, keys: Mapping[str, str]) -> list[str]:
    """Write a -netdev of QEMU's."""
    return ["-netdev", ",".join([kind, "id=net0", *(f"{key}={text.replace(',', ',,')}" for key, text in keys.items())])]


def packed(family: int, where: tuple[Any, ...]) -> bytes:
    """Make the kernel's form of an address from Python's."""
    head = struct.pack("=H", family) + struct.pack("!H", where[1])
    if family == socket.AF_INET:
        return head + socket.inet_aton(where[0]) + bytes(8)
    host = socket.inet_pton(family, where[0].partition("%")[0])
    return head + struct.pack("!I", where[2]) + host + struct.pack("=I", where[3])


def about(error: OSError, address: object) -> OSError:
    """The same error, with the address it is about and what to do."""
    hint = {
        errno.EADDRINUSE: " (is this lab running already?)",
        errno.EACCES: " (needs the right to write there, or CAP_NET_BIND_SERVICE for a port below 1024)",
    }.get(error.errno or 0, "")
    return OSError(error.errno, f"{error.strerror}{hint}", str(address))
