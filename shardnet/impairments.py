"""How a line's faults are written: durations, parts, rates, queues, each for both directions or for one.

`delay = 10ms` is for both directions. With a slash the value before it is for what leaves by the port, to its guest or
to the far side of a link, and the one behind it for what comes in: `delay = 10ms/0`.
"""

import re
from collections.abc import Callable, Iterator
from typing import Any

TIME_NS = {"ns": 1, "us": 10**3, "ms": 10**6, "s": 10**9}
TIME_MAX_S = 600
BITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9}
RATE_MIN, RATE_MAX = 1000, 10**12
BYTES = {"K": 1 << 10, "M": 1 << 20}
BYTES_MAX = 64 << 20  # as much as a line holds
ALWAYS = 1 << 32  # a probability of one, in the core's words
BURST_MAX = 10_000
QUEUE_S, QUEUE_MIN = 0.1, 128 << 10  # without a word of its own a queue holds what it sends in so long

Each = tuple[Any, Any]
KEYS = (
    "delay",
    "jitter",
    "distribution",
    "loss",
    "loss_burst",
    "duplicate",
    "reorder",
    "corrupt",
    "bandwidth",
    "bandwidth_burst",
    "bandwidth_queue",
)


def each(read: Callable[[str], Any]) -> Callable[[str], Each]:
    """Make a reader of one value for both directions, or two with a slash between them, out and in."""

    def both(text: str) -> Each:
        parts = [part.strip() for part in text.split("/")]
        if len(parts) > 2:
            raise ValueError("more than two directions, out/in")
        return read(parts[0]), read(parts[-1])

    both.__doc__ = f"{read.__doc__}, or OUT/IN"
    return both


@each
def duration(text: str) -> int:
    """TIME such as 10ms (ns, us, ms, s)"""
    found = re.fullmatch(r"([0-9]{1,9}(?:\.[0-9]{1,9})?)(ns|us|ms|s)", text, re.ASCII)
    if text == "0":
        return 0
    if not found:
        raise ValueError("no time such as 10ms (with ns, us, ms or s)")
    time_ns = round(float(found[1]) * TIME_NS[found[2]])
    if time_ns > TIME_MAX_S * 10**9:
        raise ValueError(f"longer than {TIME_MAX_S} s")
    return time_ns


@each
def part(text: str) -> int:
    """PERCENT such as 0.5%"""
    found = re.fullmatch(r"([0-9]{1,3}(?:\.[0-9]{1,9})?)%", text, re.ASCII)
    if text == "0":
        return 0
    if not found or float(found[1]) > 100:
        raise ValueError("no part such as 0.5%, of 0% to 100%")
    return round(float(found[1]) / 100 * ALWAYS)


@each
def distribution(text: str) -> int:
    """uniform | normal | pareto"""
    words = ("uniform", "normal", "pareto")
    if text not in words:
        raise ValueError("neither uniform nor normal nor pareto")
    return words.index(text)


@each
def burst(text: str) -> int:
    """0 to 10000 frames"""
    if not re.fullmatch(r"[0-9]{1,5}", text, re.ASCII) or int(text) > BURST_MAX:
        raise ValueError(f"not 0 to {BURST_MAX}")
    return int(text)


@each
def bandwidth(text: str) -> int:
    """BITS a second such as 10M (K, M, G), 0 for no limit"""
    found = re.fullmatch(r"([0-9]{1,13}(?:\.[0-9]{1,9})?)([KMG]?)", text, re.ASCII)
    if not found:
        raise ValueError("no bandwidth such as 10M (bits a second)")
    bits = round(float(found[1]) * BITS[found[2]])
    if bits and not RATE_MIN <= bits <= RATE_MAX:
        raise ValueError("neither 0 nor 1K to 1000G")
    return bits


@each
def size(text: str) -> int:
    """BYTES such as 64K (K, M)"""
    found = re.fullmatch(r"([0-9]{1,9})([KM]?)", text, re.ASCII)
    if not found or int(found[1]) * BYTES.get(found[2], 1) > BYTES_MAX:
        raise ValueError("no size such as 64K, of at most 64M")
    return int(found[1]) * BYTES.get(found[2], 1)


@each
def queue(text: str) -> tuple[int, int] | None:
    """FRAMES, or bytes such as 64K (K, M); 0 for as much as usual"""
    found = re.fullmatch(r"([0-9]{1,9})([KM]?)", text, re.ASCII)
    if not found:
        raise ValueError("neither a number of frames nor a size such as 64K")
    if not int(found[1]):
        return None
    if not found[2]:
        return int(found[1]), 0
    if int(found[1]) * BYTES[found[2]] > BYTES_MAX:
        raise ValueError("more than 64M")
    return 0, int(found[1]) * BYTES[found[2]]


def at_odds(options: Any) -> Iterator[tuple[str, str]]:
    """Mistakes that take several keys to see."""
    for out in (True, False):
        found = {key: _of(options, key, out) for key in KEYS}
        delay, jitter = found["delay"], found["jitter"]
        if jitter > delay:
            yield "jitter", "more than delay, and no frame arrives before it was sent"
        elif found["distribution"] == 1 and 3 * jitter > delay:
            yield "jitter", "more than a third of delay, and a normal distribution would be cut off at 0"
        elif found["reorder"] and not delay:
            yield "reorder", "without delay there is nothing to overtake"
        elif found["loss_burst"] and found["loss"] > ALWAYS * found["loss_burst"] / (found["loss_burst"] + 1):
            yield "loss", "more than bursts of this loss_burst make, one good frame between them"
        elif (found["bandwidth_burst"] or found["bandwidth_queue"]) and not found["bandwidth"]:
            yield (
                "bandwidth_burst" if found["bandwidth_burst"] else "bandwidth_queue",
                "without bandwidth nothing waits for it",
            )
        else:
            continue
        return


def line(options: Any, out: bool) -> dict[str, int | None] | None:
    """What is wrong with the line out of a port, or in, in the core's words; None: nothing."""
    found = {key: _of(options, key, out) for key in KEYS}
    frames, size_bytes = found["bandwidth_queue"] or (0, 0)
    if found["bandwidth"] and not (frames or size_bytes):
        size_bytes = min(max(QUEUE_MIN, round(QUEUE_S * found["bandwidth"] / 8)), BYTES_MAX)
    if not any(found[key] for key in KEYS):
        return None
    return {
        "delay_ns": found["delay"],
        "jitter_ns": found["jitter"],
        "distribution": found["distribution"] if found["jitter"] else 0,
        "loss": found["loss"],
        "loss_burst": found["loss_burst"] if found["loss"] else 0,
        "duplicate": found["duplicate"],
        "reorder": found["reorder"],
        "corrupt": found["corrupt"],
        "rate_bps": found["bandwidth"],
        "rate_burst": found["bandwidth_burst"],
        "queue_frames": frames,
        "queue_bytes": size_bytes,
        "seed": options.seed,
    }


def _of(options: Any, key: str, out: bool) -> Any:
    given = getattr(options, key)
    return 0 if given is None else given[0 if out else 1]
