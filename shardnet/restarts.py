"""When a dead worker starts again: at once, then later and later, and not for ever."""

import collections
import random
from collections.abc import Callable

DEATHS_MAX = 5  # so many
WINDOW_S = 10.0  # in so short a time are a crash loop
FIRST_DELAY_S = 0.05
DELAY_MAX_S = 5.0


class Restarts:
    """The deaths of one worker, and what follows from them.

    A worker that has lived for WINDOW_S begins with a clean sheet. Up to a quarter is added to each delay at random,
    so that workers which died of one cause do not come back in step.
    """

    def __init__(self, chance: Callable[[], float] = random.random) -> None:
        self.chance = chance
        self.count = 0  # in all its life, for `status`
        self._deaths: collections.deque[float] = collections.deque(maxlen=DEATHS_MAX)
        self._streak = 0

    def died(self, now: float) -> float | None:
        """Note a death; in how many seconds to start the successor, None: give up until `reset`."""
        if self._deaths and now - self._deaths[-1] >= WINDOW_S:
            self._streak = 0
        self._deaths.append(now)
        self._streak += 1
        self.count += 1
        if self.recent(now) >= DEATHS_MAX:
            return None
        if self._streak == 1:
            return 0.0
        return min(FIRST_DELAY_S * 2 ** (self._streak - 2) * (1 + self.chance() / 4), DELAY_MAX_S)

    def recent(self, now: float) -> int:
        """How many deaths lie within the window."""
        return sum(now - then < WINDOW_S for then in self._deaths)

    def reset(self) -> None:
        """Forgive everything; the count stays."""
        self._deaths.clear()
        self._streak = 0
