"""Leases on disk: a file of lines, one for each change, so that whoever is killed loses nothing that a client was told.

    1795252345 10.0.2.15 52:54:00:12:34:56 bound 6801525400123456 vm1

When the lease ends (seconds since 1970, or never), address, hardware address, bound or free, the client's key, its name or -. The
last line about an address counts. A line is appended before the answer is sent; a file that has grown to several times of what it
says is written anew beside itself and put in its own place. Lines are not waited for until the disk has them: after a power failure
some leases may be missing, and their clients, who ask for their addresses, are believed.
"""

import contextlib
import ipaddress
import os
import re
from collections.abc import Iterable

from shardnet.dhcp import leases

FILE_MAX = 16 << 20
SPARE_LINES = 1000
LINE = re.compile(
    r"([0-9]{1,12}|never) ([0-9a-f.:]{2,45}) ((?:[0-9a-f]{2}:)*[0-9a-f]{2}|-) (bound|free) ([0-9a-f]{2,400}) ([a-z0-9_-]{1,63})"
)


class Kept:
    """The file of one service, in a directory that stays the caller's."""

    def __init__(self, directory_fd: int, name: str) -> None:
        self.directory_fd, self.name = directory_fd, name
        self._lines = 0
        self._fd = os.open(
            name, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=directory_fd
        )

    def close(self) -> None:
        os.close(self._fd)

    def read(self, now: float, wall: float, longest_s: float) -> list[leases.Lease]:
        """What the file says, those that ended in the meantime as free; `now` is the time of leases, `wall` that of the file.

        No lease has more left than `longest_s`, whatever has been done to the clock of this host.
        """
        data = os.pread(self._fd, FILE_MAX, 0)
        if data and not data.endswith(b"\n"):
            os.write(self._fd, b"\n")  # a line that was cut
        found: dict[bytes, leases.Lease] = {}
        for text in data.decode("ascii", "replace").splitlines():
            self._lines += 1
            if (lease := read(text, now, wall, longest_s)) is not None:
                found.pop(lease.address, None)
                found[lease.address] = lease
        return list(found.values())

    def append(self, changed: Iterable[leases.Lease], now: float, wall: float) -> None:
        """Write down what leases have become."""
        lines = [written(lease, now, wall) for lease in changed]
        self._lines += len(lines)
        _write(self._fd, "".join(lines).encode())

    def tidy(self, every: Iterable[leases.Lease], count: int, now: float, wall: float) -> None:
        """Write the file anew if most of it is out of date; `count` is how many leases there are."""
        if self._lines <= 2 * count + SPARE_LINES:
            return
        lines = [written(lease, now, wall) for lease in every if lease.had and lease.state in ("bound", "free")]
        new = f"{self.name}.new"
        with contextlib.suppress(FileNotFoundError):
            os.unlink(new, dir_fd=self.directory_fd)
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(new, flags, 0o600, dir_fd=self.directory_fd)
        try:
            _write(fd, "".join(lines).encode())
            os.replace(new, self.name, src_dir_fd=self.directory_fd, dst_dir_fd=self.directory_fd)
        except OSError:
            os.close(fd)
            raise
        os.close(self._fd)
        self._fd, self._lines = fd, len(lines)


def read(text: str, now: float, wall: float, longest_s: float) -> leases.Lease | None:
    """The lease that a line says, without its end; None where it is none."""
    match = LINE.fullmatch(text)
    try:
        return _read(match, now, wall, longest_s) if match else None
    except ValueError:
        return None


def _read(match: re.Match[str], now: float, wall: float, longest_s: float) -> leases.Lease:
    until, address, mac, state, key, name = match.groups()
    left = float("inf") if until == "never" else int(until) - wall
    return leases.Lease(
        ipaddress.ip_address(address).packed,
        bytes.fromhex(key),
        b"" if mac == "-" else bytes.fromhex(mac.replace(":", "")),
        "" if name == "-" else name,
        "bound" if state == "bound" and left > 0 else "free",
        now + min(max(left, 0.0), longest_s),
    )


def written(lease: leases.Lease, now: float, wall: float) -> str:
    """The line of a lease, with its end."""
    until = "never" if lease.until == float("inf") else max(0, round(wall + lease.until - now))
    address = ipaddress.ip_address(lease.address)
    mac = lease.mac.hex(":") or "-"
    state = "bound" if lease.state == "bound" else "free"
    return f"{until} {address} {mac} {state} {lease.key.hex()} {lease.name or '-'}\n"


def _write(fd: int, data: bytes) -> None:
    while data:
        data = data[os.write(fd, data) :]
