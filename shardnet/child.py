"""A process of the forkserver's, as the supervisor sees it: its line, its pidfd, its end.

The forkserver is multiprocess's. It has imported what workers need, so a new one takes a few milliseconds.
"""

import contextlib
import importlib.machinery
import os
import signal
import socket
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import multiprocess

from shardnet import line, loop

Heard = Callable[[dict[str, Any], list[int]], None]
Ended = Callable[[str], None]
KILLED = "killed by SIGKILL"  # how it died of a kill that may be anybody's
EXIT_WAIT_S = 0.5  # the forkserver reaps a dead child and says how it ended; a busy machine may need a moment
SAFE = "PYTHONSAFEPATH"  # python(1)
OURS = (signal.SIGTERM, signal.SIGHUP)  # meant for the supervisor, sent by some to all processes of a group or service


class Forkserver:
    """The process that workers are forked from."""

    def __init__(self, directory_fd: int, preload: Iterable[str]) -> None:
        """Start it, so that it boots while the caller does something else; it imports the modules `preload`.

        Its socket is made in the directory: /tmp would keep it after a `kill -9`, and an abstract one is open to all.
        """
        self._directory_fd = directory_fd
        # Every child would run the main script of the program again. A name like this tells multiprocess not to.
        sys.modules["__main__"].__spec__ = importlib.machinery.ModuleSpec("shardnet.__main__", None)
        self._context = multiprocess.get_context("forkserver")
        self._context.set_forkserver_preload(["shardnet.worker", *preload])
        self.ensure()

    def ensure(self) -> None:
        """Start it again if it died."""
        os.environ[SAFE] = "1"  # both are `python -c`, which would import from the current directory first
        multiprocess.resource_tracker.ensure_running()  # first, because it unblocks the signals
        signal.pthread_sigmask(signal.SIG_BLOCK, OURS)
        tempfile.tempdir = f"/proc/self/fd/{self._directory_fd}"  # short enough for a socket, wherever the directory is
        try:
            multiprocess.forkserver.ensure_running()
        finally:
            tempfile.tempdir = None
            del os.environ[SAFE]
            signal.pthread_sigmask(signal.SIG_UNBLOCK, OURS)

    def fork(self, sock: socket.socket) -> Any:
        """Start a process that runs `shardnet.worker.main(sock)`; returns multiprocess's object for it."""
        from shardnet import worker

        self.ensure()
        process = self._context.Process(target=worker.main, args=(sock,), daemon=True)
        process.start()
        return process

    def child(self, turns: loop.Loop, heard: Heard, ended: Ended) -> "Child":
        """Start a worker process and watch it; see Child."""
        return Child(self, turns, heard, ended)

    def shut(self) -> None:
        """End it, with multiprocess's resource tracker: both would be zombies of an executed successor."""
        multiprocess.forkserver._forkserver._stop()
        multiprocess.resource_tracker._resource_tracker._stop()


class Child:
    """One process that runs `shardnet.worker.main`."""

    def __init__(self, forkserver: Forkserver, turns: loop.Loop, heard: Heard, ended: Ended) -> None:
        """Start it. `heard` gets its messages and their descriptors, `ended` how it died, after its last message."""
        self._loop, self._heard, self._ended = turns, heard, ended
        self._is_mad = False
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._line = line.Line(ours)
        with theirs:
            try:
                self._process = forkserver.fork(theirs)
            except BaseException:
                self._line.close()
                raise
        self.pid: int = self._process.pid
        try:
            self._pidfd = os.pidfd_open(self.pid)
        except ProcessLookupError:  # dead and reaped already: what multiprocess waits on says so too
            self._pidfd = os.dup(self._process.sentinel)
        turns.watch(self._line.fileno(), self._ready)
        turns.watch(self._pidfd, lambda _: self._die())

    def send(self, message: dict[str, Any], fds: Sequence[int] = ()) -> None:
        """Send a message; never waits."""
        self._line.send(message, fds)
        self._flush()

    def kill(self) -> None:
        """End it by force; `ended` follows."""
        with contextlib.suppress(ProcessLookupError, OSError):
            signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)

    def abandon(self) -> None:
        """Know nothing of it any more, though it lives: nobody waits for its end, multiprocess at ours neither."""
        for fd in (self._line.fileno(), self._pidfd):
            self._loop.unwatch(fd)
        self._line.close()
        os.close(self._pidfd)
        multiprocess.process._children.discard(self._process)

    def _flush(self) -> None:
        if not self._line.closed:
            mask = loop.READ if self._line.flush() else loop.READ | loop.WRITE
            self._loop.watch(self._line.fileno(), self._ready, mask)

    def _ready(self, _events: int) -> None:
        try:
            while (message := self._line.receive()) is not None:
                self._heard(*message)
                if self._line.closed:
                    return
            self._flush()
        except EOFError:
            self._loop.unwatch(self._line.fileno())
            self.kill()  # it has closed its line, so it ends
        except ValueError:
            self._is_mad = True
            self._loop.unwatch(self._line.fileno())
            self.kill()

    def _die(self) -> None:
        with contextlib.suppress(EOFError, ValueError):
            while (message := self._line.receive()) is not None:
                self._heard(*message)
        for fd in (self._line.fileno(), self._pidfd):
            self._loop.unwatch(fd)
        self._line.close()
        os.close(self._pidfd)
        self._process.join(EXIT_WAIT_S)
        code = self._process.exitcode
        if code is not None:
            self._process.close()  # its descriptors would stay until the garbage collector comes by
        how = ending(code)
        self._ended(f"said what is no message: {how}" if self._is_mad else how)


def ending(code: int | None) -> str:
    """Say how a process ended, by the exit code of multiprocess: negative for a signal."""
    if code is None:
        return "ended"
    if code >= 0:
        return f"exited with {code}"
    try:
        return f"killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"killed by signal {-code}"
