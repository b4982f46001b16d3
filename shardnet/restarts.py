"""When a dead worker starts again: at once, then later and later, and not for ever."""

import collections
import random
from collections.abc import Callable

DEATHS_MAX = 5  # so many
WINDOW_S = 10.0  # in so short a time are a crash loop
FIRST_DELAY_S = 0.05
DELAY_MAX_S = 5.0
HEALTHY_S = 5.0


class Restarts:
    """The deaths of one worker, and what follows from them.

    A worker that has lived for HEALTHY_S is started again at once, like one that never died. Up to a quarter is added to
    each delay at random, so that workers which died of one cause do not come back in step.
    """

    def __init__(self, chance: Callable[[], float] = random.random) -> None:
        self.chance = chance
        self.count = 0  # in all its life, for `status`
        self._deaths: collections.deque[float] = collections.deque(maxlen=DEATHS_MAX)
        self._streak = 0
        self._healthy = 0.0  # from when on the one that runs now is above suspicion

    def died(self, now: float) -> float | None:
        """Note a death; in how many seconds to start the successor, None: give up until `reset`."""
        if now >= self._healthy:
            self._streak = 0
        self._deaths.append(now)
        self._streak += 1
        self.count += 1
        if self.recent(now) >= DEATHS_MAX:
            return None
        delay = 0.0
        if self._streak > 1:
            delay = min(FIRST_DELAY_S * 2.0 ** (self._streak - 2) * (1 + self.chance() / 4), DELAY_MAX_S)
        self._healthy = now + delay + HEALTHY_S
        return delay

    def recent(self, now: float) -> int:
        """How many deaths lie within the window."""
        return sum(now - then < WINDOW_S for then in self._deaths)

    def reset(self) -> None:
        """Forgive everything; the count stays."""
        self._deaths.clear()
        self._streak = 0
