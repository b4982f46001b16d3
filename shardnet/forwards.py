"""QEMU's `hostfwd` and `guestfwd`, read.

    hostfwd    [tcp|udp]:[HOST]:PORT[-LAST]-[GUEST]:PORT     unix:/PATH-[GUEST]:PORT
    guestfwd   [tcp]:ADDRESS:PORT-tcp:HOST:PORT | -unix:/PATH | -cmd:COMMAND

The forms are QEMU's; ranges, IPv6 (in brackets) and names are ours. A range is as long on both sides: the guest's begins at the
port that is given. Port 0 of the host is any that is free. A GUEST that is a name is whoever has a lease of that name when
somebody connects.
"""

import dataclasses
import ipaddress
import re
from typing import Any

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?", re.ASCII)
HOST = r"(?:\[[^\]]*\]|[^\[\]:]*)"
INET = re.compile(rf"(tcp|udp)?:({HOST}):([0-9]{{1,5}})(?:-([0-9]{{1,5}}))?-({HOST}):([0-9]{{1,5}})")
UNIX = re.compile(rf"unix:(/.*)-({HOST}):([0-9]{{1,5}})")
SERVED = re.compile(rf"(?:tcp)?:({HOST}):([0-9]{{1,5}})-(?:(tcp):({HOST}):([0-9]{{1,5}})|(unix):(/.+)|(cmd):(.+))")


@dataclasses.dataclass(frozen=True, kw_only=True)
class HostForward:
    """What arrives at the host goes to a guest."""

    kind: str  # tcp, udp, unix
    host: str = ""  # empty: every address of the guest's family
    first: int = 0
    count: int = 1
    path: str = ""
    guest: Address | None = None  # None, and no name: the first lease
    name: str = ""  # of the lease that it goes to, in small letters
    port: int

    @property
    def here(self) -> str:
        """The host's side, as QEMU's hostfwd_remove takes it."""
        return str(self).rpartition("-")[0]

    def collides(self, other: "HostForward") -> bool:
        """Would both take what arrives at one place of the host's?"""
        if self.kind != other.kind or (self.path, self.host) != (other.path, other.host):
            return False
        if self.kind == "unix":
            return True
        return 0 not in (self.first, other.first) and (
            self.first < other.first + other.count and other.first < self.first + self.count
        )

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        where = self.path or f"{host}:{self.first}" + (f"-{self.first + self.count - 1}" if self.count > 1 else "")
        return f"{self.kind}:{where}-{self.name if self.guest is None else written(self.guest)}:{self.port}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class GuestForward:
    """What a guest sends to an address of the network's own goes elsewhere."""

    address: Address
    port: int
    kind: str  # tcp, unix, cmd
    to: str  # a host, a path, a command
    to_port: int = 0

    def __str__(self) -> str:
        host = f"[{self.to}]" if ":" in self.to else self.to
        to = f"tcp:{host}:{self.to_port}" if self.kind == "tcp" else f"{self.kind}:{self.to}"
        return f"tcp:{written(self.address)}:{self.port}-{to}"


def host(text: str) -> HostForward:
    """[tcp|udp]:[HOST]:PORT[-LAST]-[GUEST]:PORT or unix:/PATH-[GUEST]:PORT"""
    if text.startswith("unix:"):
        match = UNIX.fullmatch(text)
        if not match:
            raise ValueError("no unix:/PATH-[GUEST]:PORT with an absolute path")
        return HostForward(kind="unix", path=match[1], **_goal(match[2]), port=_port(match[3]))
    match = INET.fullmatch(text)
    if not match:
        raise ValueError(_hint(text))
    goal, low = _goal(match[5]), _port(match[3], least=0)
    high = low if match[4] is None else _port(match[4])
    if high < low or (low == 0 and high):
        raise ValueError(f"the range {match[3]}-{match[4]} is empty: the lower port comes first")
    count, port = high - low + 1, _port(match[6])
    if port + count > 65536:
        raise ValueError(f"the guest's ports end beyond 65535: {port} and {count - 1} more")
    return HostForward(kind=match[1] or "tcp", host=match[2].strip("[]"), first=low, count=count, **goal, port=port)


def guest(text: str) -> GuestForward:
    """[tcp]:ADDRESS:PORT-tcp:HOST:PORT, -unix:/PATH or -cmd:COMMAND"""
    match = SERVED.fullmatch(text)
    if not match:
        if text.startswith("udp:"):
            raise ValueError("only TCP is forwarded to a service")
        raise ValueError("no [tcp]:ADDRESS:PORT- with tcp:HOST:PORT, unix:/PATH or cmd:COMMAND behind")
    address = _guest(match[1])
    if address is None:
        raise ValueError("the address that guests connect to is missing")
    kind = match[3] or match[6] or match[8]
    if kind == "tcp":
        return GuestForward(
            address=address, port=_port(match[2]), kind=kind, to=match[4].strip("[]"), to_port=_port(match[5])
        )
    return GuestForward(address=address, port=_port(match[2]), kind=kind, to=match[7] or match[9])


def written(address: Address) -> str:
    """An address as it stands before a port."""
    return f"[{address}]" if address.version == 6 else str(address)


def _goal(text: str) -> dict[str, Any]:
    """The guest of a hostfwd: an address, a name, or nothing."""
    if NAME.fullmatch(text) and not re.fullmatch(r"[0-9.]*", text):
        return {"name": text.lower()}
    return {"guest": _guest(text)}


def _guest(text: str) -> Address | None:
    if not text:
        return None
    try:
        return ipaddress.ip_address(text.strip("[]"))
    except ValueError:
        raise ValueError(f"{text} is no address") from None


def _port(text: str, least: int = 1) -> int:
    if not least <= int(text) <= 65535:
        raise ValueError(f"{text} is no port: {least} to 65535")
    return int(text)


def _hint(text: str) -> str:
    protocol = text.partition(":")[0]
    if protocol not in ("", "tcp", "udp"):
        return f"{protocol} is neither tcp nor udp nor unix"
    if "-" not in text:
        return "no - between the host's side and the guest's"
    return (
        "no [tcp|udp]:[HOST]:PORT[-LAST]-[GUEST]:PORT (an IPv6 address is written in brackets,"
        " a range at the host's side alone)"
    )
