"""The line between supervisor and worker: one msgpack map a record, descriptors with it, never blocking.

A unix socket of SOCK_SEQPACKET takes only a few records ahead (net.unix.max_dgram_qlen, 10), and neither side may
wait for the other: the supervisor not for a hung worker, a worker that carries frames not for a stopped supervisor.
So each end keeps what the socket does not take.
"""

import array
import collections
import os
import socket
from collections.abc import Iterable, Sequence
from typing import Any

from shardnet import control

RECORD_MAX = 192 << 10  # less than the least net.core.wmem_default in use
FDS_MAX = 80  # arena and 64 doorbells, with room
BACKLOG_MAX = 4096  # records; a peer that leaves so many lying gets no more


class Line:
    """One end of the line."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self.sock = sock
        self.closed = False
        self._backlog: collections.deque[tuple[bytes, list[int]]] = collections.deque()

    def fileno(self) -> int:
        return self.sock.fileno()

    def send(self, message: dict[str, Any], fds: Iterable[int] = ()) -> None:
        """Send a message, or keep it until `flush`; the descriptors stay the caller's."""
        data = control.pack(message)
        if len(data) > RECORD_MAX:
            raise ValueError(f"a message of {len(data)} bytes, the limit is {RECORD_MAX}")
        if not self.closed and len(self._backlog) < BACKLOG_MAX:
            self._backlog.append((data, [os.dup(fd) for fd in fds]))
            self.flush()

    def flush(self) -> bool:
        """Send what was kept; True if nothing is left. A line that the far side closed swallows it all."""
        while self._backlog:
            data, fds = self._backlog[0]
            try:
                self.sock.sendmsg([data], _rights(fds))
            except BlockingIOError:
                return False
            except (BrokenPipeError, ConnectionResetError):
                pass  # the reader of this line learns of it by EOF
            self._backlog.popleft()
            for fd in fds:
                os.close(fd)
        return True

    def receive(self) -> tuple[dict[str, Any], list[int]] | None:
        """The next message with its descriptors, None where there is none yet; EOFError at the end of the line."""
        try:
            data, ancillary, flags, _ = self.sock.recvmsg(
                RECORD_MAX, socket.CMSG_SPACE(FDS_MAX * 4), socket.MSG_CMSG_CLOEXEC
            )
        except BlockingIOError:
            return None
        except ConnectionResetError:
            raise EOFError from None
        fds = control.descriptors(ancillary)
        if not data:
            raise EOFError
        if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
            for fd in fds:
                os.close(fd)
            raise ValueError("a record longer than the line carries")
        return control.unpack(data), fds

    def close(self) -> None:
        """Close the socket; what was kept is lost."""
        self.closed = True
        self.sock.close()
        for _, fds in self._backlog:
            for fd in fds:
                os.close(fd)
        self._backlog.clear()


def _rights(fds: Sequence[int]) -> list[tuple[int, int, Any]]:
    return [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
