"""Calls that are due at a time of a monotonic clock."""

import heapq
import itertools
import time
from collections.abc import Callable


class Timers:
    """A heap of calls; whoever owns it sleeps for `wait()` seconds and then says `fire()`."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self._calls: dict[int, Callable[[], None]] = {}
        self._heap: list[tuple[float, int]] = []
        self._tokens = itertools.count(1)

    def later(self, seconds: float, call: Callable[[], None]) -> int:
        """Have `call` called once, in `seconds`; the token is for `cancel`."""
        token = next(self._tokens)
        self._calls[token] = call
        heapq.heappush(self._heap, (self.clock() + seconds, token))
        return token

    def cancel(self, token: int) -> None:
        """Forget a call; a token that has fired or was cancelled is no mistake."""
        self._calls.pop(token, None)

    def wait(self) -> float | None:
        """Seconds until the next call, 0 where one is due, None where there is none."""
        while self._heap and self._heap[0][1] not in self._calls:
            heapq.heappop(self._heap)
        return max(0.0, self._heap[0][0] - self.clock()) if self._heap else None

    def fire(self) -> None:
        """Make the calls that are due now, in the order of their times; what they add waits for the next `fire`."""
        now, due = self.clock(), []
        while self._heap and self._heap[0][0] <= now:
            due.append(heapq.heappop(self._heap)[1])
        for token in due:
            if call := self._calls.pop(token, None):
                call()
