"""[pcap NAME]: a capture file, written from ports or replayed into a switch.

With `file` it writes down what passes the ports of its switch, or those that `netdev` names, in both directions, for as long as the
lab runs: QEMU's filter-dump. pcapng tells ports, directions and losses apart, pcap only has the frames. It has a worker of its own
and slows nobody: what cannot be written as fast as it comes is lost and counted (tx_full; at the end of a pcapng file, by port). In a
switch every frame is there once where it came in and once for each port by which it left. A worker that died is replaced, and goes on
in the same file behind the last whole frame. When the disk is full, or cannot be written, the port fails, its file is whole, and
the lab goes on; `shardnet port reset NAME` tries again. What `shardnet capture` does, this does without a client.

With `replay` the frames of a pcap or pcapng file come in at this port as if a station behind it had sent them: at the pace at which they were
captured, faster or slower, so many a second, or as fast as the switch takes them. A port that cannot take more is waited for. Frames
that were cut when they were captured, shorter than an Ethernet header or longer than 65535 bytes, are skipped; `shardnet status` tells
how many. A capture of several ports has a frame once for each time that it passed one, and all of them are replayed. What the switch
sends to this port is dropped.

Replaying begins when the port is there, so add it when those who are to hear it are: shardnet port add '[pcap again] replay=a.pcapng'.
It begins anew when the worker died.
"""

import contextlib
import dataclasses
import errno
import os
import re
import select
import socket
import stat
import struct
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from shardnet import capturefile, impairments, options, rotation

if TYPE_CHECKING:
    from shardnet import worker

FILE, FOLDER, LEDGER = "file", "folder", "ledger"  # names of deposits
PREFIX_BYTES = 4
FRAME_MIN, FRAME_MAX = 14, 65535
BATCH_BYTES = 128 << 10
LOOK_MAX_S = 3600.0
DRAIN_BYTES = 256 << 10

BYTES = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
FILESIZE_MIN, FILESIZE_MAX = 64 << 10, 1 << 40
SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
DURATION_MAX_S = 366 * 86400
MAXLEN_MAX = 1 << 18
NICE = 19  # the last in line for a core: where there are too few of them a capture loses frames, and a port no speed

REFUSED = {
    "queue": "both ways are written; a display filter on frame.p2p_dir tells them apart",
    "status": "up = off is the same",
    "position": "there are no filters to come before or after",
    "insert": "there are no filters to come before or after",
}
DENIED = "Permission denied (files after the first are made without privileges)"
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


def filesize(text: str) -> int:
    """BYTES such as 100M (K, M, G), from 64K"""
    found = re.fullmatch(r"([0-9]{1,13})([KMG]?)", text, re.ASCII)
    if not found or not FILESIZE_MIN <= int(found[1]) * BYTES[found[2]] <= FILESIZE_MAX:
        raise ValueError("no size such as 100M, of 64K to 1024G")
    return int(found[1]) * BYTES[found[2]]


def duration(text: str) -> int:
    """TIME such as 1h (s, m, h, d)"""
    found = re.fullmatch(r"([1-9][0-9]{0,8})([smhd])", text, re.ASCII)
    if not found or int(found[1]) * SECONDS[found[2]] > DURATION_MAX_S:
        raise ValueError("no time such as 1h (with s, m, h or d), of at most a year")
    return int(found[1]) * SECONDS[found[2]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(options.PortOptions):
    # The file to write, in a folder that is there; a relative path is taken from where the lab was started. A file that is there already is
    # never written to unless it is empty: then this capture gets another name, with a number and the time, as those of a rotation.
    file: Path | None = None
    # What is written: these ports, with the services behind them, on whatever switch, as soon as there is such a port. Without it every
    # port of the switch, those that come later too.
    netdev: tuple[str, ...] = ()
    # Keep at most so many bytes of a frame; 0: all of it. What is cut away is not even copied.
    maxlen: int = options.option(0, read=options.between(0, MAXLEN_MAX))
    # The sort of file; unless given, pcap for a name that ends in .pcap and pcapng for any other.
    format: Literal["pcapng", "pcap"] | None = None
    # Begin another file before this one grows longer. Each has a number and the time in its name: lan_000001_20261128T021422Z.pcapng.
    filesize: int | None = options.option(None, read=filesize)
    # Begin another file when this one, having frames in it, is as old as that.
    duration: int | None = options.option(None, read=duration)
    # Keep at most so many of these files, those of earlier runs counted, and remove the oldest; 0: keep all.
    files: int = options.option(0, read=options.between(0, 100_000))
    # The file to replay, pcap or pcapng. A relative path is taken from where the lab was started.
    replay: Path | None = None
    # The pace: as captured, which is the default, so many times that, so many frames a second, or as fast as the switch takes them.
    speed: Speed | None = options.option(None, read=speed)
    # On: begin again at the end of the file, for ever.
    loop: bool = False


def check(given: Options) -> Iterator[tuple[str, str]]:
    """Find keys that do not belong to what the section does."""
    writes = given.file is not None
    if writes == (given.replay is not None):
        yield "file", "a file to write, or one to replay: one of the two"
        return
    if not writes:
        for key in ("netdev", "maxlen", "format", "filesize", "duration", "files"):
            if getattr(given, key):
                yield key, "of a capture that is written, and this one is replayed"
        return
    for key in ("speed", "loop"):
        if getattr(given, key):
            yield key, "of a capture that is replayed, and this one is written"
    for key in ("vlan", "trunk", "native", "mtu", "isolated", "max_macs", "seed", *impairments.KEYS):
        if getattr(given, key):
            yield key, "a capture takes no part in the switch, it is only told what passes"
    if given.shard:
        yield "shard", "a capture has a worker to itself, so that a slow disk holds up no port"
    if given.files and not (given.filesize or given.duration):
        yield "files", "of a rotation, which filesize or duration makes"
    if given.netdev and given.switch != "lan":
        yield "switch", "netdev says what is written, on whatever switch"
    for name in given.netdev:
        try:
            options.name(name)
        except ValueError as why:
            yield "netdev", f"{options.shown(name)}: {why}"


def captures(given: Options) -> tuple[str, ...] | None:
    """The ports that are to be written, none: all of the switch; None where the section replays."""
    return None if given.file is None else given.netdev


def Port(given: Options, place: "worker.Place") -> "Writer | Replayer":  # noqa: N802  # a kind's Port is what carries it
    """What the section does."""
    return Writer(given, place) if given.file is not None else Replayer(given, place)


class Writer:
    """Has the native loop write, sees to its files.

    Deposits: the folder, the file, and a ledger in memory in which the engine says of what file (its inode) how many bytes are whole.
    """

    def __init__(self, given: Options, place: "worker.Place") -> None:
        assert given.file is not None, "it writes"
        self.given, self.place = given, place
        self.path = given.file
        rotates = bool(given.filesize or given.duration)
        self.files = rotation.Files(given.file, numbered=rotates, most=given.files)
        self.pcapng = (given.format or ("pcap" if given.file.suffix == ".pcap" else "pcapng")) == "pcapng"
        self.ports: list[tuple[int, str]] = []  # heard of before there was a loop
        self.fds: list[int] = []  # file, ledger, folder
        self.timer: int | None = None
        self.failed: OSError | None = None

    def prepare(self) -> None:
        """Open the folder and a file in it; or cut off what a predecessor, or a full disk, has left of a frame."""
        file, ledger = self.place.recall(FILE), self.place.recall(LEDGER)
        try:
            if file is not None and ledger is not None and _mended(file, ledger):
                return
            with _closing(rotation.folder(self.path)) as folder:
                with _closing(self.files.begin(folder)[0]) as made:
                    self.place.deposit(FILE, made)
                self.place.deposit(FOLDER, folder)
            if ledger is None:
                with _closing(os.memfd_create("ledger", os.MFD_CLOEXEC)) as made:
                    self.place.deposit(LEDGER, made)
        finally:
            for fd in (file, ledger):
                if fd is not None:
                    os.close(fd)

    def open(self) -> None:
        if self.failed is not None:
            raise self.failed
        found = [self.place.recall(key) for key in (FILE, LEDGER, FOLDER)]
        self.fds = [fd for fd in found if fd is not None]
        file, ledger, folder = self.fds
        if self.files.numbered and not os.access(".", os.W_OK | os.X_OK, dir_fd=folder, effective_ids=True):
            raise OSError(errno.EACCES, DENIED, str(self.path.parent))
        os.setpriority(os.PRIO_PROCESS, 0, NICE)
        anew = not os.fstat(ledger).st_size
        os.lseek(file, 0, os.SEEK_END)
        self.place.shard.add_capture(
            file,
            self.ports,
            self.given.maxlen,
            port=self.place.port,
            pcapng=self.pcapng,
            size=os.fstat(file).st_size,
            limit=self.given.filesize or 0,
            ledger=ledger,
            anew=anew,
        )
        self.place.state("up", f"writing {self._name(file)}")
        self._wait()

    def captured(self, ports: Sequence[tuple[int, str]]) -> None:
        """Write these ports too; a frame of theirs comes after this."""
        if self.fds:
            for port, name in ports:
                self.place.shard.capture_port(port, name)
        else:
            self.ports += ports

    def full(self) -> None:
        """Go on in another file: this one has had its end."""
        file, _, folder = self.fds
        try:
            made, _ = self.files.begin(folder)
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self.path.parent / (error.filename or ""))) from None
        os.close(file)
        self.fds[0] = made
        self.place.deposit(FILE, made)
        self.place.shard.capture_file(made, os.fstat(made).st_size)
        self._wait()

    def ended(self, error: int) -> None:
        """Fail, once a process with the privilege to do so has cut off what the disk took of a frame."""
        file = self.fds[0]
        self.failed = OSError(error, os.strerror(error), str(self._name(file)))
        self._cancel()
        self.place.again()

    def close(self) -> None:
        self._cancel()
        if self.fds:
            error = self.place.shard.end_capture()[3]
            if error and self.failed is None:
                self.place.log(f"{self._name(self.fds[0])}: {os.strerror(error)}")
            for fd in self.fds:
                os.close(fd)
            self.fds = []

    def _name(self, file: int) -> Path:
        """What the file is called, or all of them are."""
        if self.files.numbered:
            return self.path.with_name(f"{self.path.stem}_*{self.path.suffix}")
        return self.path.with_name(os.path.basename(os.readlink(f"/proc/self/fd/{file}")))

    def _wait(self) -> None:
        self._cancel()
        if self.given.duration:
            self.timer = self.place.later(self.given.duration, self._due)

    def _due(self) -> None:
        self.timer = None
        if self.place.shard.turn_capture():
            self.full()
        else:
            self._wait()

    def _cancel(self) -> None:
        if self.timer is not None:
            self.place.cancel(self.timer)
            self.timer = None


def _mended(file: int, ledger: int) -> bool:
    """Cut a file off behind what its ledger says is whole; False where it cannot be gone on with."""
    inode, whole = struct.unpack("<2Q", os.pread(ledger, 16, 0).ljust(16, b"\0"))
    status = os.fstat(file)
    if not status.st_nlink or inode not in (0, status.st_ino):
        return False
    try:
        if status.st_size > whole:
            os.ftruncate(file, whole)
    except OSError:
        return False
    return True


@contextlib.contextmanager
def _closing(fd: int) -> Iterator[int]:
    try:
        yield fd
    finally:
        os.close(fd)


class Replayer:
    """Writes frames to one end of a socket pair, whose other end the native loop reads as a stream."""

    def __init__(self, given: Options, place: "worker.Place") -> None:
        assert given.replay is not None, "it replays"
        self.given, self.place, self.file = given, place, given.replay
        self.speed = given.speed or Speed(times=1.0)
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
        fd = os.open(self.file, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
        try:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise OSError(errno.EINVAL, "no regular file", str(self.file))
            try:
                next(capturefile.frames(fd), None)
            except capturefile.Wrong as wrong:
                raise OSError(errno.EINVAL, str(wrong), str(self.file)) from None
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
        self.place.state("up", f"replaying {self.file}")
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
        if self.speed.rate:
            return self.round / self.speed.rate - since
        if self.speed.times:
            return (one.time_ns - self.origin_ns) / 1e9 / self.speed.times - since
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
