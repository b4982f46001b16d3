"""[pcap NAME]: a capture file, replayed into a switch.

The frames of a pcap or pcapng file come in at this port as if a station behind it had sent them: at the pace at which they were
captured, faster or slower, so many a second, or as fast as the switch takes them. A port that cannot take more is waited for. Frames
that were cut when they were captured, shorter than an Ethernet header or longer than 65535 bytes, are skipped; `shardnet status` tells
how many. A capture of several ports has a frame once for each time that it passed one, and all of them are replayed. What the switch
sends to this port is dropped.

Replaying begins when the port is there, so add it when those who are to hear it are: shardnet port add '[pcap again] replay=a.pcapng'.
It begins anew when the worker died. To write a file is not this section's: see shardnet capture, or, in a ring of files,
tshark -i shardnet:LAB:PORT -b filesize:1000 -b files:5 -w FILE with shardnet-extcap.
"""

import contextlib
import dataclasses
import errno
import os
import re
import select
import socket
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from shardnet import capturefile, options

if TYPE_CHECKING:
    from shardnet import worker

FILE = "file"  # name of the deposit
PREFIX_BYTES = 4
FRAME_MIN, FRAME_MAX = 14, 65535
BATCH_BYTES = 128 << 10
LOOK_MAX_S = 3600.0
DRAIN_BYTES = 256 << 10

NO_QEMU = "a guest attaches to a stream or dgram port of the same switch"


class Speed(NamedTuple):
    """How fast: so many times the pace of the capture, or so many frames a second; 0 and 0: at once."""

    times: float = 0.0
    rate: float = 0.0


def speed(text: str) -> Speed:
    """original, full, a factor such as 2x, or frames a second such as 1000/s"""
    if text == "original":
        return Speed(times=1.0)
    if text == "full":
        return Speed()
    found = re.fullmatch(r"([0-9]{1,9}(?:\.[0-9]{1,6})?)(x|/s)", text, re.ASCII)
    if not found or not float(found[1]):
        raise ValueError("neither original nor full nor a factor (2x) nor a rate (1000/s)")
    return Speed(times=float(found[1])) if found[2] == "x" else Speed(rate=float(found[1]))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(options.PortOptions):
    # The file to replay, pcap or pcapng. A relative path is taken from where the lab was started.
    replay: Path
    # The pace: as captured, which is the default, so many times that, so many frames a second, or as fast as the switch takes them.
    speed: Speed = options.option(Speed(times=1.0), read=speed)
    # On: begin again at the end of the file, for ever.
    loop: bool = False


class Port:
    """Writes frames to one end of a socket pair, whose other end the native loop reads as a stream."""

    def __init__(self, given: Options, place: "worker.Place") -> None:
        self.given, self.place = given, place
        self.fd = -1
        self.near: socket.socket | None = None
        self.far: socket.socket | None = None
        self.writable: select.epoll | None = (
            None  # readable when `near` can be written, once for each time that it is asked
        )
        self.timer: int | None = None
        self.frames: Iterator[capturefile.Frame] | None = None  # of this round; None where all is replayed
        self.next: capturefile.Frame | None = None  # read, and not due yet
        self.rest = memoryview(b"")  # of a batch
        self.replayed = self.skipped = 0
        self.origin_ns: int | None = None  # of the first frame of this round, in the capture's time
        self.begun = 0.0  # and in ours
        self.round = 0  # frames of it

    def prepare(self) -> None:
        """Open the file and see that its beginning makes sense."""
        fd = os.open(self.given.replay, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
        try:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise OSError(errno.EINVAL, "no regular file", str(self.given.replay))
            try:
                next(capturefile.frames(fd), None)
            except capturefile.Wrong as wrong:
                raise OSError(errno.EINVAL, str(wrong), str(self.given.replay)) from None
            self.place.deposit(FILE, fd)
        finally:
            os.close(fd)

    def open(self) -> None:
        fd = self.place.recall(FILE)
        assert fd is not None, "prepare() has deposited it"
        self.fd = fd
        self.near, self.far = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        self.near.setblocking(False)
        self.far.setblocking(False)
        self.writable = select.epoll()
        self.writable.register(self.near, select.EPOLLONESHOT)
        self.place.watch(self.near.fileno(), self._drain)
        self.place.watch(self.writable.fileno(), self._resume)
        self.place.shard.add_stream(self.place.port, self.far.fileno(), self.far.fileno(), PREFIX_BYTES)
        self.place.state("up", f"replaying {self.given.replay}")
        self._rewind()
        self.timer = self.place.later(0, self._go_on)

    def close(self) -> None:
        self._cancel()
        if self.near is None or self.far is None or self.writable is None:
            return
        self.place.shard.remove(self.place.port)
        self.place.unwatch(self.near.fileno())
        self.place.unwatch(self.writable.fileno())
        for one in (self.near, self.far, self.writable):
            one.close()
        self.near = self.far = self.writable = None
        os.close(self.fd)

    def _rewind(self) -> None:
        self.frames, self.next = capturefile.frames(self.fd), None
        self.origin_ns, self.begun, self.round = None, time.monotonic(), 0

    def _go_on(self) -> None:
        """Write what is due; then wait for room, or until more is."""
        self.timer = None
        assert self.near is not None and self.writable is not None, "the port is open"
        while True:
            if not self.rest and not self._gather():
                return
            try:
                self.rest = self.rest[self.near.send(self.rest) :]
            except BlockingIOError:
                self.writable.modify(self.near, select.EPOLLOUT | select.EPOLLONESHOT)
                return

    def _gather(self) -> bool:
        """Make a batch of the frames that are due; False where there is none, and then it is seen to that we come back."""
        batch, size = list[bytes](), 0
        while size < BATCH_BYTES and self.frames is not None:
            if self.next is None:
                try:
                    self.next = next(self.frames, None)
                except (capturefile.Wrong, OSError) as wrong:
                    self._end(f", then {wrong}")
                    break
                if self.next is None:
                    if not self.given.loop or not self.round:
                        self._end("")
                        break
                    self._rewind()
                    continue
            one = self.next
            if len(one.data) != one.size or not FRAME_MIN <= one.size <= FRAME_MAX:
                self.skipped += 1
                self.next = None
                continue
            wait_s = self._wait(one)
            if wait_s > 0:
                if not batch:
                    self.timer = self.place.later(min(wait_s, LOOK_MAX_S), self._go_on)
                break
            batch += [one.size.to_bytes(PREFIX_BYTES, "big"), one.data]
            size += one.size
            self.round += 1
            self.replayed += 1
            self.next = None
        self.rest = memoryview(b"".join(batch))
        return bool(batch)

    def _wait(self, one: capturefile.Frame) -> float:
        """Seconds until a frame is due."""
        if self.origin_ns is None:
            self.origin_ns = one.time_ns
        since = time.monotonic() - self.begun
        if self.given.speed.rate:
            return self.round / self.given.speed.rate - since
        if self.given.speed.times:
            return (one.time_ns - self.origin_ns) / 1e9 / self.given.speed.times - since
        return 0.0

    def _end(self, why: str) -> None:
        self.frames, self.next = None, None
        self.place.state("up", f"{self.replayed} frames replayed, {self.skipped} skipped{why}")

    def _resume(self) -> None:
        assert self.writable is not None, "it is watched"
        if self.writable.poll(0):
            self._go_on()

    def _drain(self) -> None:
        assert self.near is not None, "it is watched"
        with contextlib.suppress(BlockingIOError):
            self.near.recv(DRAIN_BYTES)

    def _cancel(self) -> None:
        if self.timer is not None:
            self.place.cancel(self.timer)
            self.timer = None


def qemu(given: Options, run_dir: Path, version: tuple[int, ...]) -> None:
    """Nothing: see NO_QEMU."""
