"""The supervisor's side of the control socket: who is connected, what each asked, what each is owed.

A connection has 5 s for its first message and for the rest of each message that it began, and room for 4 MiB of
answers that it has not read. There are 64 at most. Nobody but our own user and root is served, even where others were
given a way into the directory.
"""

import contextlib
import errno
import os
import socket
import struct
from collections.abc import Callable
from typing import Any

from shardnet import control, loop

CLIENTS_MAX = 64
MESSAGE_S = 5.0
UNREAD_MAX = 4 << 20
ACCEPT_AGAIN_S = 0.1  # after the process ran out of descriptors
UCRED = struct.Struct("iII")


class Request:
    """One request: what it says, and the way to answer it, now or later."""

    def __init__(self, client: "Connection", message: dict[str, Any], fds: list[int]) -> None:
        self.client, self.message, self.fds = client, message, fds

    def answer(self, **fields: Any) -> None:
        """Say that it is done."""
        self.client.send({"id": self.message.get("id"), "ok": True, **fields})

    def refuse(self, text: str, code: int = 1) -> None:
        """Say why it is not done; `code` is the client's exit code."""
        self.client.send({"id": self.message.get("id"), "ok": False, "code": code, "error": text})

    def take(self, key: str, kind: type | tuple[type, ...], default: Any = ...) -> Any:
        """An argument of the request; a missing or mistyped one is an error for the client."""
        value = self.message.get(key)
        if value is None and default is not ...:
            return default
        if not isinstance(value, kind) or isinstance(value, bool) and kind is int:
            raise control.Error(f"{self.message.get('op')}: {key}: missing or of the wrong type", 2)
        return value

    def texts(self, key: str, default: Any = ...) -> dict[str, str]:
        """An argument that is a map of texts."""
        value = self.take(key, dict, default)
        if not all(isinstance(text, str) for text in value.values()):
            raise control.Error(f"{self.message.get('op')}: {key}: a value is no text", 2)
        return dict(value)

    def names(self, key: str, default: Any = ...) -> list[str]:
        """An argument that is a list of texts."""
        value = self.take(key, list, default)
        if not all(isinstance(name, str) for name in value):
            raise control.Error(f"{self.message.get('op')}: {key}: a name is no text", 2)
        return list(value)


class Connection:
    """One client."""

    def __init__(self, clients: "Clients", sock: socket.socket) -> None:
        sock.setblocking(False)
        self._clients, self._loop = clients, clients.loop
        self._stream = control.Stream(sock)
        self._out = bytearray()
        self._done = False  # nothing more will come from it
        self._limit: int | None = None
        self.closed = False
        self.ties: list[Callable[[], None]] = []  # what ends with the connection
        self.owed = 0  # things that will still be said to a client that has finished speaking
        self._expect()
        self._watch()

    def send(self, message: dict[str, Any]) -> None:
        """Send a message, as soon as the client reads."""
        if self.closed:
            return
        for data in control.frames(message):
            self._out += data
        if len(self._out) > UNREAD_MAX:
            self.close()
        else:
            self._write()

    def close(self) -> None:
        """End the connection and what is tied to it."""
        if self.closed:
            return
        self.closed = True
        if self._limit is not None:
            self._loop.cancel(self._limit)
        self._loop.unwatch(self._stream.sock.fileno())
        self._stream.close()
        self._clients.open.discard(self)
        self._part()

    def settle(self) -> None:
        """Note that something owed was said; a client that finished speaking is let go when nothing is owed."""
        self.owed -= 1
        self._finish()

    def _part(self) -> None:
        ties, self.ties = self.ties, []
        for end in ties:
            end()

    def _ready(self, events: int) -> None:
        if events & loop.WRITE:
            self._write()
        if events & loop.READ and not self.closed and not self._done:
            self._read()

    def _read(self) -> None:
        try:
            messages = self._stream.receive()
        except (BlockingIOError, InterruptedError):
            return
        except EOFError:
            self._done = True
            self._watch()
            self._part()
            self._finish()
            return
        except ValueError as error:
            self.send({"id": None, "ok": False, "code": 2, "error": str(error)})
            self.close()
            return
        except OSError:
            self.close()
            return
        for message, fds in messages:
            request = Request(self, message, fds)
            try:
                self._clients.asked(request)
            finally:
                for fd in request.fds:  # whatever the operation did not take
                    os.close(fd)
            if self.closed:
                return
        if messages or not self._stream.partial:
            self._unexpect()
        if self._stream.partial:
            self._expect()

    def _write(self) -> None:
        try:
            while self._out:
                del self._out[: self._stream.sock.send(self._out)]
        except BlockingIOError:
            pass
        except OSError:
            self.close()
            return
        self._watch()
        self._finish()

    def _watch(self) -> None:
        mask = (0 if self._done else loop.READ) | (loop.WRITE if self._out else 0)
        if mask:
            self._loop.watch(self._stream.sock.fileno(), self._ready, mask)
        else:
            self._loop.unwatch(self._stream.sock.fileno())

    def _finish(self) -> None:
        if self._done and not self._out and self.owed <= 0:
            self.close()

    def _expect(self) -> None:
        if self._limit is None:
            self._limit = self._loop.later(MESSAGE_S, self.close)

    def _unexpect(self) -> None:
        if self._limit is not None:
            self._loop.cancel(self._limit)
            self._limit = None


class Clients:
    """The listening socket and all connections."""

    def __init__(self, turns: loop.Loop, directory_fd: int, asked: Callable[[Request], None]) -> None:
        """Listen at `control.sock` in the run directory; `asked` gets each request."""
        self.loop, self.asked = turns, asked
        self.open: set[Connection] = set()
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        path = f"/proc/self/fd/{directory_fd}/control.sock"
        before = os.umask(0o177)
        try:
            self._listener.bind(path)
        finally:
            os.umask(before)
        self._listener.listen(CLIENTS_MAX)
        turns.watch(self._listener.fileno(), self._accept)

    def close(self) -> None:
        """End every connection; what they were told last is sent as far as they read."""
        if self._listener.fileno() >= 0:
            self.loop.unwatch(self._listener.fileno())
            self._listener.close()
        for client in list(self.open):
            client.close()

    def _accept(self, _events: int) -> None:
        try:
            sock, _ = self._listener.accept()
        except BlockingIOError:
            return
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                self.loop.unwatch(self._listener.fileno())  # it would be ready again at once
                self.loop.later(ACCEPT_AGAIN_S, self._listen_again)
            return
        _, uid, _ = UCRED.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, UCRED.size))
        if uid not in (0, os.geteuid()):
            _turn_away(sock, "another user's lab", 77)
        elif len(self.open) >= CLIENTS_MAX:
            _turn_away(sock, f"{CLIENTS_MAX} clients are connected already", 75)
        else:
            self.open.add(Connection(self, sock))

    def _listen_again(self) -> None:
        if self._listener.fileno() >= 0:
            self.loop.watch(self._listener.fileno(), self._accept)


def _turn_away(sock: socket.socket, why: str, code: int) -> None:
    sock.setblocking(False)
    with sock, contextlib.suppress(OSError):
        for data in control.frames({"id": None, "ok": False, "code": code, "error": why}):
            sock.send(data)
