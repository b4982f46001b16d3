"""Whether a worker's loop still turns, judged from outside.

The loop changes a number in the arena at every turn. An idle loop does not turn, so a worker whose number stands
still has its doorbell rung, and then it must change. One that is stopped (SIGSTOP) is told by its state in /proc at
two looks running, whether it still turned before the first or not; anything else gets ten looks' time, because on a busy machine a healthy worker waits for a core.
Where the looks themselves came late (this process was stopped, the machine slept), they prove nothing: start over.
"""

LOOK_S = 0.25
AGAIN_S = 0.1  # the second look at a worker that seems stopped
MISSES_MAX = 10


class Pulse:
    """What was seen of one worker."""

    def __init__(self) -> None:
        self._at: float | None = None
        self._beat = -1
        self._misses = 0
        self._stopped = False

    def look(self, now: float, beat: int, process_state: str) -> str:
        """Judge from the worker's number and its state in /proc: well, ring (its doorbell), stopped or hung."""
        late = self._at is not None and now - self._at > 3 * LOOK_S
        self._at = now
        turned, self._beat = beat != self._beat, beat
        if process_state == "T" and not late:
            if self._stopped and not turned:
                return "stopped"
            self._misses, self._stopped = 0, True
            return "ring"
        if turned or late:
            self._misses, self._stopped = 0, False
            return "well" if not late else "ring"
        self._stopped = False
        self._misses += 1
        return "hung" if self._misses > MISSES_MAX else "ring"

    @property
    def doubtful(self) -> bool:
        """True where the next look should come soon."""
        return self._stopped


def process_state(pid: int) -> str:
    """The state letter of a process as in proc_pid_stat(5): R, S, D, T, t, Z; X where there is none."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            text = file.read()
    except (FileNotFoundError, ProcessLookupError):
        return "X"
    return chr(text[text.rindex(b")") + 2])  # the name before it may have brackets and spaces in it


def resident_bytes(pid: int) -> int:
    """Memory of a process that is in RAM, its part of shared memory too; 0 where there is no such process."""
    import resource

    try:
        with open(f"/proc/{pid}/statm", "rb") as file:
            return int(file.read().split()[1]) * resource.getpagesize()
    except (FileNotFoundError, ProcessLookupError):
        return 0
