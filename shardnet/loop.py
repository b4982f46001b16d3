"""The supervisor's loop: descriptors, signals, timers, one after the other, asleep in between."""

import os
import selectors
import signal
import socket
import types
from collections.abc import Callable, Iterable

from shardnet import timers

READ, WRITE = selectors.EVENT_READ, selectors.EVENT_WRITE


class Loop(timers.Timers):
    """A selector with timers; each callback runs to its end, so nothing here needs a lock."""

    def __init__(self) -> None:
        super().__init__()
        self._selector = selectors.DefaultSelector()

    def watch(self, fd: int, call: Callable[[int], None], mask: int = READ) -> None:
        """Have `call(events)` called while `fd` is ready; watching it again replaces what was asked before."""
        if fd in self._selector.get_map():
            self._selector.modify(fd, mask, call)
        else:
            self._selector.register(fd, mask, call)

    def unwatch(self, fd: int) -> None:
        """Ask no more about `fd`; to be called before it is closed."""
        if fd in self._selector.get_map():
            self._selector.unregister(fd)

    def signals(self, numbers: Iterable[signal.Signals], call: Callable[[int], None]) -> None:
        """Have `call(number)` called from the loop, not from the signal's handler."""

        def nothing(_number: int, _frame: types.FrameType | None) -> None:
            """The byte in the wake-up socket says all; SIG_IGN would not write it."""

        reader, writer = socket.socketpair()
        reader.setblocking(False)
        writer.setblocking(False)
        self._wakeup = (reader, writer)
        signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
        for number in numbers:
            signal.signal(number, nothing)

        def read(_events: int) -> None:
            for number in os.read(reader.fileno(), 64):
                call(number)

        self.watch(reader.fileno(), read)

    def turn(self) -> None:
        """Sleep until something is ready or due, then see to it."""
        for key, events in self._selector.select(self.wait()):
            current = self._selector.get_map().get(key.fd)
            if current is not None and current.data is key.data:  # no call before it in this turn has closed it
                key.data(events)
        self.fire()
