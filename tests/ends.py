"""Far ends of a lab's ports, all with one face: a stream's client, a datagram socket, the host's side of a TAP.

An end makes its own section of the lab file. It sends what the kernel takes at once, receives what is there, and counts both.
"""

import abc
import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path

ETHERTYPE = 0x88B5  # IEEE 802, for local experiments
EVERYBODY = b"\xff" * 6
OUTGOING = 4  # PACKET_OUTGOING of packet(7): our own frames, seen again
LOW, HIGH = 60, 1514


def mac(number: int) -> bytes:
    """The address of the end of this number."""
    return b"\x02\x00\x00\x00" + number.to_bytes(2, "big")


def frame(to: bytes, source: bytes, number: int, size: int = LOW) -> bytes:
    """A numbered frame of the experiments' own type."""
    return b"".join((to, source, ETHERTYPE.to_bytes(2, "big"), number.to_bytes(8, "big"))).ljust(size, b"\0")


def number(found: bytes) -> int | None:
    """The number of such a frame, None for any other."""
    return int.from_bytes(found[14:22], "big") if found[12:14] == b"\x88\xb5" else None


class End(abc.ABC):
    """What the three kinds have in common: a name, an address, a socket while it is attached."""

    kind = ""

    def __init__(self, name: str, address: int) -> None:
        self.name, self.mac = name, mac(address)
        self.sent = self.received = 0
        self.socket: socket.socket | None = None

    @property
    def section(self) -> str:
        return f"[{self.kind} {self.name}]\n{self.keys}\n"

    @property
    @abc.abstractmethod
    def keys(self) -> str: ...

    @abc.abstractmethod
    def attach(self, run_dir: Path) -> None:
        """Attach to the port, where we are not attached."""

    @abc.abstractmethod
    def send(self, one: bytes) -> bool:
        """Send a frame; False where the kernel takes no more for now, or nobody is there."""

    @abc.abstractmethod
    def frames(self) -> Iterator[bytes]:
        """What has come and not been seen yet."""

    def close(self) -> None:
        if self.socket is not None:
            self.socket.close()
            self.socket = None


class Stream(End):
    """A client of [stream NAME], as QEMU is one."""

    kind = "stream"

    def __init__(self, name: str, address: int) -> None:
        super().__init__(name, address)
        self._in, self._out, self._broken = bytearray(), b"", False

    @property
    def keys(self) -> str:
        return f"server = on\naddr.type = unix\naddr.path = {self.name}.sock"

    def attach(self, run_dir: Path) -> None:
        if self.socket is None:
            fresh = socket.socket(socket.AF_UNIX)
            try:
                fresh.connect(str(run_dir / f"{self.name}.sock"))
            except OSError:
                fresh.close()
                return
            fresh.setblocking(False)
            self.socket, self._out, self._broken = fresh, b"", False
            self._in.clear()

    def send(self, one: bytes) -> bool:
        if self.socket is None or not self.flush() or self._broken:
            return False
        self._out = len(one).to_bytes(4, "big") + one
        self.sent += 1
        self.flush()
        return True

    def flush(self) -> bool:
        """Write the rest of the last frame; False where some of it is left."""
        while self._out and self.socket is not None:
            try:
                self._out = self._out[self.socket.send(self._out) :]
            except BlockingIOError:
                return False
            except OSError:  # what has come before is still to be read
                self._out, self._broken = b"", True
        return True

    def frames(self) -> Iterator[bytes]:
        if self.socket is not None:
            try:
                came = self.socket.recv(1 << 18)
                if not came:
                    self.close()
                self._in += came
            except BlockingIOError:
                pass
            except OSError:
                self.close()
        begin, filled = 0, len(self._in)
        while begin + 4 <= filled:
            end = begin + 4 + int.from_bytes(self._in[begin : begin + 4], "big")
            if end > filled:
                break
            self.received += 1
            yield bytes(self._in[begin + 4 : end])
            begin = end
        del self._in[:begin]


class Dgram(End):
    """The other of the two sockets of [dgram NAME]."""

    kind = "dgram"

    @property
    def keys(self) -> str:
        return (
            f"local.type = unix\nlocal.path = {self.name}.sock\nremote.type = unix\nremote.path = {self.name}.far.sock"
        )

    def attach(self, run_dir: Path) -> None:
        if self.socket is None:
            self._near, self._far = str(run_dir / f"{self.name}.sock"), run_dir / f"{self.name}.far.sock"
            self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            self.socket.setblocking(False)
            self.socket.bind(str(self._far))

    def send(self, one: bytes) -> bool:
        with contextlib.suppress(OSError):
            self.socket.sendto(one, self._near)
            self.sent += 1
            return True
        return False

    def frames(self) -> Iterator[bytes]:
        with contextlib.suppress(BlockingIOError):
            while True:
                yield self.socket.recv(1 << 17)
                self.received += 1

    def close(self) -> None:
        if self.socket is not None:
            super().close()
            self._far.unlink(missing_ok=True)


class Tap(End):
    """The host's side of [tap NAME], by a packet socket on its interface."""

    kind = "tap"

    @property
    def keys(self) -> str:
        return f"ifname = {self.name}"

    def attach(self, run_dir: Path) -> None:
        if self.socket is None:
            self.socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETHERTYPE))
            self.socket.setblocking(False)
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8 << 20)
            self.socket.bind((self.name, ETHERTYPE))

    def send(self, one: bytes) -> bool:
        with contextlib.suppress(BlockingIOError):  # ENOBUFS would be a full queue, which we never let come about
            self.socket.send(one)
            self.sent += 1
            return True
        return False

    def frames(self) -> Iterator[bytes]:
        with contextlib.suppress(BlockingIOError):
            while True:
                found, sender = self.socket.recvfrom(1 << 17)
                if sender[2] != OUTGOING:
                    self.received += 1
                    yield found

    def statistic(self, name: str) -> int:
        """What the kernel counted on the interface."""
        return int(Path(f"/sys/class/net/{self.name}/statistics/{name}").read_text())


KINDS = (Tap, Stream, Dgram)


def kinds_here() -> tuple[type[End], ...]:
    """Those that this user can have."""
    return KINDS if os.geteuid() == 0 else KINDS[1:]
