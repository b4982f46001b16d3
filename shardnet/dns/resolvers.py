"""Which resolvers are asked: those of the host (resolv.conf(5)), those of the lab file, and some for one domain only."""

import ipaddress
import os
import re
import socket
import struct
from typing import Any

from shardnet.dns import zones

PORT = 53
RESOLVERS_MAX = 8
FILE_MAX = 1 << 16
LOOK_S = 1.0  # between looks at the file
FAILED_S, FAILED_MAX_S = 5.0, 60.0  # how long one that failed is asked last
PATIENCE_S, PATIENCE_MIN_S, PATIENCE_MAX_S = 0.5, 0.1, 1.0  # before the next one is asked too


class Resolver:
    """A server that is asked, and what is known of it."""

    def __init__(self, host: str, port: int = PORT) -> None:
        """Takes a numeric address, of IPv6 perhaps with a zone; raises OSError where it is none."""
        found = socket.getaddrinfo(
            host, port, type=socket.SOCK_DGRAM, flags=socket.AI_NUMERICHOST | socket.AI_NUMERICSERV
        )
        self.family: int = found[0][0]
        self.where: tuple[Any, ...] = found[0][4]
        self.sockaddr = _sockaddr(self.family, self.where)
        self.edns = True  # until it says that it knows no OPT
        self.failures = 0
        self.last_until = 0.0  # asked after the others until then
        self.patience = PATIENCE_S  # how long an answer is waited for before the next one is asked

    def __str__(self) -> str:
        host, port = str(self.where[0]), self.where[1]
        return host if port == PORT else f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    def answered(self, took: float) -> None:
        """It did, in `took` seconds; four times the usual is what is waited for (RFC 6298's way)."""
        self.failures, self.last_until = 0, 0.0
        wait = self.patience * 0.875 + took * 4 * 0.125
        self.patience = min(max(wait, PATIENCE_MIN_S), PATIENCE_MAX_S)

    def works(self, patience: float) -> None:
        """It has answered the core, which waits so long for it by now."""
        self.failures, self.last_until, self.patience = 0, 0.0, patience

    def failed(self, now: float) -> None:
        """It did not, or could not."""
        if now >= self.last_until:
            self.last_until = now + min(FAILED_S * 2**self.failures, FAILED_MAX_S)
            self.failures = min(self.failures + 1, 8)


def _sockaddr(family: int, where: tuple[Any, ...]) -> bytes:
    """An address as the kernel takes it (ip(7), ipv6(7))."""
    packed, port = socket.inet_pton(family, where[0].partition("%")[0]), where[1]
    if family == socket.AF_INET:
        return struct.pack("=H", family) + struct.pack(">H", port) + packed + bytes(8)
    _, _, flow, scope = where
    return struct.pack("=H", family) + struct.pack(">HI", port, flow) + packed + struct.pack("=I", scope)


def read(text: str) -> Resolver:
    """ADDRESS, ADDRESS:PORT or [ADDRESS]:PORT"""
    match = re.fullmatch(r"\[([0-9A-Fa-f:.]+(?:%[\w.-]+)?)\](?::([0-9]{1,5}))?", text)
    match = match or re.fullmatch(r"([0-9.]+)(?::([0-9]{1,5}))?", text)
    host, port = (match[1], int(match[2] or PORT)) if match else (text, PORT)
    try:
        ipaddress.ip_address(host)
        if not 1 <= port <= 65535:
            raise ValueError
        return Resolver(host, port)
    except (ValueError, OSError):
        raise ValueError(f"{text}: no address of a resolver (10.0.0.1, 10.0.0.1:5353 or [fd00::1]:5353)") from None


def several(text: str) -> tuple[str, ...]:
    """addresses with commas between, each ADDRESS, ADDRESS:PORT or [ADDRESS]:PORT"""
    found = tuple(word for word in re.split(r"[\s,]+", text) if word)
    for word in found:
        read(word)
    if len(found) > RESOLVERS_MAX:
        raise ValueError(f"more than {RESOLVERS_MAX} resolvers")
    return found


def split(text: str, domain: str = zones.DOMAIN) -> tuple[bytes, tuple[str, ...]]:
    """DOMAIN ADDRESS[,ADDRESS...], such as corp.example 10.1.1.1"""
    name, _, rest = text.strip().partition(" ")
    if not rest.strip():
        raise ValueError("DOMAIN ADDRESS is meant, such as corp.example 10.1.1.1")
    return zones.packed(name), several(rest)


def configured(text: str) -> list[Resolver]:
    """The name servers of a resolv.conf; what is none there is passed over, as the resolver of libc does.

    Without any it is the one on this host, resolv.conf(5) says.
    """
    found: list[Resolver] = []
    for line in text.splitlines():
        words = line.split()
        if len(words) >= 2 and words[0] == "nameserver" and len(found) < RESOLVERS_MAX:
            try:
                found.append(Resolver(words[1]))
            except (OSError, UnicodeError):
                continue
    return found or [Resolver("127.0.0.1")]


class File:
    """A resolv.conf that is followed: it is looked at once a second at most, and read when it is another."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.next_look = 0.0
        self.seen: tuple[int, ...] | None = None
        self.text: str | None = None

    def changed(self, now: float) -> list[Resolver] | None:
        """The resolvers, where they are others than at the last call."""
        if now < self.next_look:
            return None
        self.next_look = now + LOOK_S
        try:
            stat = os.stat(self.path)
            seen: tuple[int, ...] = (stat.st_dev, stat.st_ino, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_size)
        except OSError:
            seen = ()
        if seen == self.seen:
            return None
        self.seen = seen
        text = _text(self.path) if seen else ""
        if text == self.text:
            return None
        self.text = text
        return configured(text)


def _text(path: str) -> str:
    try:
        # Not to wait where it is a pipe.
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as opened:
            return opened.read(FILE_MAX).decode("ascii", "replace")
    except OSError:
        return ""
