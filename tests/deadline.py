"""Wait for something to come true, for so long and no longer."""

import contextlib
import os
import select
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def until(condition: Callable[[], T], what: str, within: float = 10, every: float = 0.02) -> T:
    """Return the first true value of `condition`, or fail with `what` was waited for.

    For what can only be asked, not waited for: prefer a descriptor and `readable`.
    """
    end = time.monotonic() + within
    while not (value := condition()):
        if time.monotonic() > end:
            raise AssertionError(f"not within {within:g} s: {what}")
        with contextlib.suppress(InterruptedError):
            select.select([], [], [], every)
    return value


def readable(descriptor: int, what: str, within: float = 10) -> None:
    """Wait until `descriptor` can be read, or fail with `what` was waited for."""
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    if not poll.poll(within * 1000):
        raise AssertionError(f"not within {within:g} s: {what}")


def ended(pid: int, what: str, within: float = 10) -> None:
    """Wait until the process is gone; it need not be a child."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        readable(descriptor, what, within)
    finally:
        os.close(descriptor)
