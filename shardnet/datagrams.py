"""Datagram sockets of a port: made with privileges, kept by the supervisor, carried by the core."""

import contextlib
import os
import socket
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from shardnet import worker

RETRY_S = 1.0


class Sockets:
    """A port that is so many sockets; `make` makes them, `carry` gives their descriptors to the core and says how it stands.

    Nothing connects and nothing ends: the port is up as long as it has its sockets.
    """

    def __init__(
        self,
        place: "worker.Place",
        count: int,
        make: Callable[[], Sequence[socket.socket]],
        carry: Callable[[list[int]], str],
    ) -> None:
        self.place = place
        self.make = make
        self.carry = carry
        self.keys = [f"socket{number}" for number in range(count)]
        self.fds: list[int] = []
        self.timer: int | None = None

    def prepare(self) -> None:
        """Keep the sockets from before, or make them."""
        if kept := self._recall():
            for fd in kept:
                os.close(fd)
            return
        with contextlib.ExitStack() as stack:
            made = [stack.enter_context(one) for one in self.make()]
            for key, one in zip(self.keys, made, strict=True):
                one.setblocking(False)
                self.place.deposit(key, one.fileno())

    def open(self) -> None:
        self.timer = None
        self.fds = self._recall()
        if not self.fds:
            self._wait("its sockets are gone")
            return
        try:
            detail = self.carry(self.fds)
        except OSError as error:
            self._let_go()
            self._wait(f"{error.filename}: {error.strerror}" if error.filename else str(error.strerror))
            return
        self.place.state("up", detail)

    def close(self) -> None:
        if self.timer is not None:
            self.place.cancel(self.timer)
            self.timer = None
        if self.fds:
            self.place.shard.remove(self.place.port)
        self._let_go()

    def ended(self, error: int) -> None:
        """The core gave a socket up, which one without a connection gives no cause for: make others."""
        self._let_go()
        for key in self.keys:
            self.place.forget(key)
        self._wait(os.strerror(error) if error else "ended")

    def _recall(self) -> list[int]:
        """The sockets from before, all of them or none."""
        kept = [fd for key in self.keys if (fd := self.place.recall(key)) is not None]
        if len(kept) == len(self.keys):
            return kept
        for fd in kept:
            os.close(fd)
        return []

    def _let_go(self) -> None:
        for fd in self.fds:
            os.close(fd)
        self.fds = []

    def _wait(self, why: str) -> None:
        self.place.state("waiting", why)
        self.timer = self.place.later(RETRY_S, self.place.again)
