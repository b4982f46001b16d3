"""When a dead worker starts again: at once, then later and later, and not for ever.

What keeps a machine from a worker that dies of what it does (a frame that it cannot bear, a setting that it cannot open) is that it
waits, and is given up at last; and that is no use where somebody else killed it. A worker that carried for SERVED_S and was then
killed by a signal that we did not send (`kill -9`; the kernel, for want of memory) is started again at once, however often, and the
death is held against nobody. So such a one costs its ports a start each time, and the machine two starts a second at most. Any other
death counts: its own signal, an end without one, ours because it hung or broke a rule, and whatever comes before SERVED_S.
"""

import collections
import random
from collections.abc import Callable

DEATHS_MAX = 5  # so many
WINDOW_S = 10.0  # in so short a time are a crash loop
FIRST_DELAY_S = 0.05
DELAY_MAX_S = 5.0
HEALTHY_S = 5.0
SERVED_S = 0.5  # ten starts' worth


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
        self._serving: float | None = None  # since when it carries

    def serves(self, now: float) -> None:
        """Note that the one that runs now has begun to carry."""
        self._serving = now

    def died(self, now: float, by_others: bool = False) -> float | None:
        """Note a death; in how many seconds to start the successor, None: give up until `reset`.

        `by_others`: it was killed, neither by itself nor by us.
        """
        serving, self._serving = self._serving, None
        self.count += 1
        if by_others and serving is not None and now - serving >= SERVED_S:
            self._healthy = max(self._healthy, now + HEALTHY_S)
            return 0.0
        if now >= self._healthy:
            self._streak = 0
        self._deaths.append(now)
        self._streak += 1
        if self.recent(now) >= DEATHS_MAX:
            return None
        delay = 0.0
        if self._streak > 1:
            delay = min(FIRST_DELAY_S * 2.0 ** (self._streak - 2) * (1 + self.chance() / 4), DELAY_MAX_S)
        self._healthy = now + delay + HEALTHY_S
        return delay

    def recent(self, now: float) -> int:
        """How many deaths that count lie within the window."""
        return sum(now - then < WINDOW_S for then in self._deaths)

    def reset(self) -> None:
        """Forgive everything; the count stays."""
        self._deaths.clear()
        self._streak = 0
