"""The way to the resolvers: a socket for each try, none of which is ever waited for.

Datagrams leave by the core's sockets (core/src/relay/sockets.rs), connections by sockets of their own. All are in one epoll,
whose descriptor is the one thing for the worker's loop to watch: it is readable when any of them is.
"""

import contextlib
import errno
import select
import socket

from shardnet import _core
from shardnet.dns import forward, wire

STREAMS_MAX = 64
RECEIVE_MAX = 1 << 16


class Sockets:
    """Implements forward.Way with the host's sockets; `epoll` is readable when `ready` has something to do."""

    def __init__(self, relay: _core.Relay) -> None:
        self.relay = relay
        self.epoll = select.epoll()
        self.epoll.register(relay.fileno(), select.EPOLLIN)
        self.asked: dict[int, forward.Try] = {}  # by datagrams, by the relay's tokens
        self.tries: dict[int, forward.Try] = {}  # over connections
        self.streams: dict[int, tuple[bytes, bytearray]] = {}  # what is still to be sent, and what came

    def datagram(self, one: forward.Try, payload: bytes) -> bool:
        """Send from a new socket; False where that could not be."""
        try:
            self.adopt(one, self.relay.send(one.resolver.sockaddr, payload))
        except OSError:
            return False
        return True

    def adopt(self, one: forward.Try, token: int) -> None:
        """Have what comes to a socket of the relay's be for this try."""
        one.socket = token
        self.asked[token] = one

    def stream(self, one: forward.Try, payload: bytes) -> bool:
        """Send over a new TCP connection; False where that could not be."""
        if len(self.streams) >= STREAMS_MAX:
            return False
        try:
            sock = socket.socket(one.resolver.family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        except OSError:
            return False
        try:
            with contextlib.suppress(BlockingIOError):
                sock.connect(one.resolver.where)
            self._hold(sock, one, select.EPOLLOUT)
        except OSError:
            sock.close()
            return False
        self.streams[sock.fileno()] = len(payload).to_bytes(2) + payload, bytearray()
        return True

    def end(self, one: forward.Try) -> None:
        """Close what was opened for this try; the epoll forgets a closed socket by itself."""
        if not one.tcp:
            del self.asked[one.socket]
            self.relay.close(one.socket)
            return
        fd = one.socket.fileno()
        del self.tries[fd]
        self.streams.pop(fd, None)
        one.socket.close()

    def over(self, guest: bytes) -> None:
        """A question that was adopted is over."""
        self.relay.done(guest)

    def ready(self, forwarder: forward.Forwarder, now: float) -> None:
        """Hand over what has come over connections."""
        for fd, _ in self.epoll.poll(0, STREAMS_MAX + 1) if self.tries else ():
            one = self.tries.get(fd)
            if one is None:
                continue  # closed by an answer before it in this batch, or the relay's
            try:
                message = self._stream(one, fd)
            except BlockingIOError:
                continue
            except OSError:
                forwarder.broken(one, now)
                continue
            if message is not None:
                forwarder.received(one, message, now)

    def close(self) -> None:
        """Close everything."""
        for one in [*self.asked.values(), *self.tries.values()]:
            self.end(one)
        self.epoll.close()

    def _hold(self, sock: socket.socket, one: forward.Try, events: int) -> None:
        fd = sock.fileno()
        self.epoll.register(fd, events)
        self.tries[fd] = one
        one.socket = sock

    def _stream(self, one: forward.Try, fd: int) -> bytes | None:
        """Go on with a connection: the message, once it is whole."""
        out, came = self.streams[fd]
        if out:
            if error := one.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                raise OSError(error, "connect")
            out = out[one.socket.send(out) :]
            self.streams[fd] = out, came
            if not out:
                self.epoll.modify(fd, select.EPOLLIN)
            return None
        data = one.socket.recv(RECEIVE_MAX)
        if not data:
            raise OSError(errno.ECONNRESET, "closed before its answer")
        came += data
        if len(came) < 2 or len(came) < 2 + (size := came[0] << 8 | came[1]):
            return None
        return bytes(came[2 : 2 + min(size, wire.MESSAGE_MAX)])
