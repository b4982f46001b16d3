"""A connection that comes back: one far end at a time, accepted or dialled, again and again.

Server and Client have the four methods of a port (prepare, open, close, ended), so that a port of connections is one of the
two with its own way to carry: `carry` gives the new connection to the loop of the worker, `tune` sets its socket options.

    Server   waiting --a client comes--> up --it leaves--> waiting          further clients wait in the backlog meanwhile
    Client   waiting --the server answers--> up --it leaves--> waiting      then at once, and from then on each `retry_s`

The listening socket is deposited, so neither its path nor its backlog is lost with a worker. A connection is not: a frame may
be cut in the middle of it.

A TCP peer that vanished without a word is looked for here. Keep-alive finds it only while nothing is under way; otherwise
the kernel repeats itself for a quarter of an hour, and its TCP_USER_TIMEOUT would also hang up on a guest that was only paused.
"""

import abc
import errno
import os
import select
import socket
import struct
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from shardnet import addresses

if TYPE_CHECKING:
    from shardnet import worker

    Address = addresses.Unix | addresses.Inet

LISTENER = "listener"  # name of the deposit
ANSWER_MAX_S = 10.0  # how long a connection may take to come about
PAUSE_S = 1.0  # before the next try to accept where the process has no descriptor left
LOOK_S = 5.0  # between looks at a TCP connection
REPEATS_MAX = 7  # unanswered segments or window probes in a row; 0.2 s doubled seven times is 25 s
UCRED = struct.Struct("3i")  # pid, uid, gid; SO_PEERCRED, unix(7)


class Connection(abc.ABC):
    """What Server and Client have in common: the far end that there is now, if any."""

    def __init__(
        self,
        place: "worker.Place",
        address: "Address",
        kind: int,
        carry: Callable[[int], None],
        tune: Callable[[socket.socket], None] = lambda _: None,
    ) -> None:
        self.place = place
        self.address = address
        self.kind = kind
        self.carry = carry
        self.tune = tune
        self.peer: socket.socket | None = None
        self.timer: int | None = None

    @abc.abstractmethod
    def ended(self, error: int) -> None:
        """The far end left, or the engine gave it up."""

    def _take(self, peer: socket.socket, who: object) -> None:
        self.peer = peer
        self.carry(peer.fileno())
        self.place.state("up", f"connected: {who}")
        if peer.family != socket.AF_UNIX:
            self._later(LOOK_S, self._look)

    def _look(self) -> None:
        assert self.peer is not None
        if repeats(self.peer) < REPEATS_MAX:
            self._later(LOOK_S, self._look)
            return
        self.place.shard.remove(self.place.port)
        self.ended(errno.ETIMEDOUT)

    def _hang_up(self) -> None:
        """Close the connection, which the engine carries no more."""
        self._cancel()
        if self.peer is not None:
            self.peer.close()
            self.peer = None

    def _later(self, seconds: float, call: Callable[[], None]) -> None:
        self._cancel()
        self.timer = self.place.later(seconds, call)

    def _cancel(self) -> None:
        if self.timer is not None:
            self.place.cancel(self.timer)
            self.timer = None


class Server(Connection):
    """Waits for one client at a time."""

    listener: socket.socket | None = None
    identity: tuple[int, int] | None = None

    def prepare(self) -> None:
        """Keep the listening socket from before, or bind one."""
        with self._recall() or self.address.bind(self.kind) as listener:
            self.place.deposit(LISTENER, listener.fileno())

    def open(self) -> None:
        self.listener = self._recall()
        if self.listener is None:  # its file was taken away between prepare() and here
            self.place.state("waiting", f"{self.address} is gone")
            self.place.again()
            return
        self.identity = self.address.identity
        self._listen()

    def close(self) -> None:
        if self.peer is not None:
            self.place.shard.remove(self.place.port)
        self._hang_up()
        if self.listener is not None:
            self.place.unwatch(self.listener.fileno())
            self.listener.close()
            self.listener = None
        self.address.remove(self.identity)

    def ended(self, error: int) -> None:
        self._hang_up()
        self._listen(f", after {os.strerror(error)}" if error else "")

    def _listen(self, after: str = "") -> None:
        assert self.listener is not None
        self.timer = None
        self.place.watch(self.listener.fileno(), self._accept)
        self.place.state("waiting", f"listening on {local(self.listener, self.address)}{after}")

    def _accept(self) -> None:
        assert self.listener is not None
        try:
            client, _ = self.listener.accept()
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                self.place.unwatch(self.listener.fileno())
                self.place.state("waiting", f"{self.address}: {error.strerror}")
                self._later(PAUSE_S, self._listen)
            return  # otherwise the client left before it was accepted
        self.place.unwatch(self.listener.fileno())
        client.setblocking(False)
        self.tune(client)
        self._take(client, far(client))

    def _recall(self) -> socket.socket | None:
        fd = self.place.recall(LISTENER)
        if fd is None:
            return None
        listener = socket.socket(fileno=fd)
        listener.setblocking(False)
        if self.address.has_file and self.address.identity is None:
            listener.close()  # nobody can find it any more
            return None
        return listener


class Client(Connection):
    """Dials a server until it answers, and again when it has left; `retry_s` 0: only once."""

    retry_s = 1.0
    since = 0.0  # when the connection came about
    dialled: socket.socket | None = None  # a connection that does not stand yet
    epoll: select.epoll | None = None  # tells when it does: it is readable when the socket in it is writable

    def prepare(self) -> None:
        """Nothing: a connection is made anew by each worker."""

    def open(self) -> None:
        self._dial()

    def close(self) -> None:
        if self.peer is not None:
            self.place.shard.remove(self.place.port)
        self._hang_up()
        self._put_down()

    def ended(self, error: int) -> None:
        lasted = time.monotonic() - self.since > self.retry_s
        self._hang_up()
        self._wait(os.strerror(error) if error else "the far end closed the connection", at_once=lasted)

    def _dial(self) -> None:
        self.timer = None
        try:
            self.targets = self.address.targets(self.kind)
        except OSError as error:
            self._wait(str(error.strerror))
            return
        self._try_next()

    def _try_next(self) -> None:
        target = self.targets.pop(0)
        self.dialled = target.socket()
        self.tune(self.dialled)
        code = self.dialled.connect_ex(target.where)
        if code == errno.EINPROGRESS:
            self.epoll = select.epoll()
            self.epoll.register(self.dialled, select.EPOLLOUT)
            self.place.watch(self.epoll.fileno(), self._answered)
            self._later(ANSWER_MAX_S, lambda: self._settle(errno.ETIMEDOUT))
        else:
            self._settle(code)  # EAGAIN: the backlog of a unix server is full

    def _answered(self) -> None:
        assert self.dialled is not None
        self._settle(self.dialled.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR))

    def _settle(self, code: int) -> None:
        """The connection stands (0), or cannot come about."""
        self._cancel()
        if not code:
            peer = self._put_down(keep=True)
            assert peer is not None
            self.since = time.monotonic()
            self._take(peer, self.address)
            return
        self._put_down()
        if self.targets:
            self._try_next()
        else:
            self._wait(os.strerror(code))

    def _put_down(self, keep: bool = False) -> socket.socket | None:
        """Stop dialling; `keep`: return the connection instead of closing it."""
        if self.epoll is not None:
            self.place.unwatch(self.epoll.fileno())
            self.epoll.close()
            self.epoll = None
        dialled, self.dialled = self.dialled, None
        if dialled is not None and not keep:
            dialled.close()
        return dialled

    def _wait(self, why: str, at_once: bool = False) -> None:
        if not self.retry_s:
            self.place.state("down", f"{self.address}: {why}, and it is dialled only once")
            return
        self.place.state("waiting", f"{self.address}: {why}")
        self._later(0 if at_once else self.retry_s, self._dial)


def repeats(tcp: socket.socket) -> int:
    """How often in a row the kernel has said something to the far end without an answer."""
    info = tcp.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 4)
    return max(info[2], info[3])  # tcpi_retransmits, tcpi_probes; linux/tcp.h


def local(listener: socket.socket, address: "Address") -> str:
    """Where a socket listens: as given, but with the port that it has."""
    if isinstance(address, addresses.Unix):
        return str(address)
    return addresses.written(address.host or "*", listener.getsockname()[1])


def far(client: socket.socket) -> str:
    """Who is at the far end: a process of this host, or an address."""
    if client.family == socket.AF_UNIX:
        pid, uid, _ = UCRED.unpack(client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, UCRED.size))
        return f"pid {pid}, uid {uid}"
    try:
        host, port = client.getpeername()[:2]
    except OSError:
        return "a client that left already"
    return addresses.written(host, port)
