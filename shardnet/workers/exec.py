"""[exec NAME]: a command whose standard input and output carry frames, as VDE's dpipe and vde_plug.

Each frame has its length before it, two bytes, big-endian. Both descriptors are one unix stream socket; frames longer than
65535 bytes cannot pass. The command is run as it stands, without a shell (write sh -c '...' where one is needed), without the
worker's privileges, in the lab's run directory. It is run anew when it ends: after 0.1 s at first, after up to 5 s where it keeps
ending. What it writes to standard error goes to the lab's log. When the port is removed it is asked to end and then killed, and so
is what it started; when the worker dies it is killed, and what it started meets the end of its input.
"""

import contextlib
import ctypes
import dataclasses
import errno
import os
import select
import shlex
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from shardnet import options

if TYPE_CHECKING:
    from shardnet import worker

PREFIX_BYTES = 2
RETRY_S = 0.1
RETRY_MAX_S = 5.0
STEADY_S = 10.0  # a command that ran for so long starts over with the shortest wait
GOODBYE_S = 0.2  # from SIGTERM to SIGKILL
LINE_BYTES = 1000
READ_BYTES = 4096
PR_SET_PDEATHSIG = 1  # linux/prctl.h

NO_QEMU = "a guest attaches to a stream or dgram port of the same switch"


def command(text: str) -> tuple[str, ...]:
    """a program and its arguments, quoted as for a shell"""
    try:
        words = tuple(shlex.split(text))
    except ValueError as why:
        raise ValueError(str(why).lower()) from None
    if not words:
        raise ValueError("no program")
    return words


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(options.PortOptions):
    # The program to run, with its arguments.
    command: tuple[str, ...] = options.option(read=command)


class Port:
    def __init__(self, given: Options, place: "worker.Place") -> None:
        self.command = given.command
        self.place = place
        self.process: subprocess.Popen[bytes] | None = None
        self.stream: socket.socket | None = None
        self.pidfd = -1
        self.errors: int | None = None  # its standard error
        self.line = b""  # of it, so far
        self.retry_s = RETRY_S
        self.since = 0.0
        self.timer: int | None = None

    def prepare(self) -> None:
        """Refuse a command that does not exist; nothing of it outlives a worker."""
        if shutil.which(self.command[0], path=os.environ.get("PATH", os.defpath)) is None:
            raise OSError(errno.ENOENT, "no such program", self.command[0])

    def open(self) -> None:
        self.timer = None
        ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        errors, its_errors = os.pipe()
        try:
            self.process = subprocess.Popen(
                self.command,
                stdin=its.fileno(),
                stdout=its.fileno(),
                stderr=its_errors,
                cwd=self.place.run_dir,
                start_new_session=True,
                preexec_fn=follow(os.getpid()),  # noqa: PLW1509  a worker has no threads
            )
        except OSError as error:
            ours.close()
            os.close(errors)
            self._wait(f"{self.command[0]}: {error.strerror}")
            return
        finally:
            its.close()
            os.close(its_errors)
        ours.setblocking(False)
        os.set_blocking(errors, False)
        self.stream, self.errors = ours, errors
        self.since = time.monotonic()
        self.pidfd = os.pidfd_open(self.process.pid)
        self.place.watch(errors, self._read_errors)
        self.place.watch(self.pidfd, self._exited)
        self.place.shard.add_stream(self.place.port, ours.fileno(), ours.fileno(), PREFIX_BYTES)
        self.place.state("up", f"pid {self.process.pid}")

    def close(self) -> None:
        if self.timer is not None:
            self.place.cancel(self.timer)
            self.timer = None
        self._stop()

    def ended(self, error: int) -> None:
        """It closed its end, or wrote what is no frame; one that goes by itself may say with which code."""
        self._release_stream()
        if error:
            self._run_again(f"a bad stream of frames: {os.strerror(error)}")
        else:
            self.timer = self.place.later(GOODBYE_S, lambda: self._run_again("closed its end"))

    def _exited(self) -> None:
        self._run_again("")

    def _run_again(self, why: str) -> None:
        if self.timer is not None:
            self.place.cancel(self.timer)
        if time.monotonic() - self.since >= STEADY_S:
            self.retry_s = RETRY_S
        how = self._stop()
        self._wait(", ".join(filter(None, (why, how))))

    def _wait(self, why: str) -> None:
        self.place.state("waiting", f"{why}, run again in {self.retry_s:g} s")
        self.timer = self.place.later(self.retry_s, self.open)
        self.retry_s = min(2 * self.retry_s, RETRY_MAX_S)

    def _stop(self) -> str:
        """End the command and what it started; returns how it ended."""
        if self.stream is not None:
            self.place.shard.remove(self.place.port)
            self._release_stream()
        if self.process is None:
            return ""
        process, self.process = self.process, None
        self.place.unwatch(self.pidfd)
        os.killpg(process.pid, signal.SIGTERM)  # not reaped yet, so the group's number is still its own
        select.select([self.pidfd], [], [], GOODBYE_S)
        os.killpg(process.pid, signal.SIGKILL)
        os.close(self.pidfd)
        code = process.wait()
        self._release_errors()
        return f"exited with {code}" if code >= 0 else f"killed by {signal.Signals(-code).name}"

    def _release_stream(self) -> None:
        if self.stream is not None:
            self.stream.close()
            self.stream = None

    def _read_errors(self) -> None:
        """Log the lines of standard error that are complete."""
        assert self.errors is not None
        try:
            text = os.read(self.errors, READ_BYTES)
        except BlockingIOError:
            return
        if not text:
            self._release_errors()
            return
        *lines, self.line = (self.line + text).split(b"\n")
        if len(self.line) > LINE_BYTES:
            lines.append(self.line)
            self.line = b""
        for line in lines:
            self._log(line)

    def _release_errors(self) -> None:
        if self.errors is None:
            return
        self.place.unwatch(self.errors)
        with contextlib.suppress(BlockingIOError):  # what it said last may be why it ended
            self.line += os.read(self.errors, READ_BYTES)
        for line in self.line.split(b"\n"):
            self._log(line)
        os.close(self.errors)
        self.errors, self.line = None, b""

    def _log(self, line: bytes) -> None:
        if line.strip():
            self.place.log(line[:LINE_BYTES].decode(errors="replace").rstrip())


def follow(parent: int) -> Callable[[], None]:
    """What a command does before it starts: ask to be killed when its worker dies, and heed the signals that a worker ignores."""
    libc = ctypes.CDLL(None)

    def ask() -> None:
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        if os.getppid() != parent:  # it died before it was asked
            os._exit(1)

    return ask


def qemu(given: Options, run_dir: Path, version: tuple[int, ...]) -> None:
    """Nothing: see NO_QEMU."""
