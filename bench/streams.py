"""Row stream: frames a second through two stream ports in QEMU's framing, against QEMU's own back ends in a hub."""

from collections.abc import Sequence

from bench import corner, peers, programs
from bench.samples import Round

BYTES = (64, 1514)


def measure(chosen: Sequence[type[peers.StreamPeer]], turn: Round) -> None:
    """One round: each size through each peer, set up anew for each."""
    for bytes_ in BYTES:
        for kind in chosen:
            with turn.attempt(f"{kind.name}, stream {bytes_}"):
                if why := kind.missing():
                    raise corner.Failed(why)
                with corner.Corner(kind.name.replace(" ", "-")) as place:
                    source, target = kind().start(place)
                    turn.add(f"stream {bytes_}", kind.name, speed(place, source, target, bytes_, turn.seconds) / 1e3)


def speed(place: corner.Corner, source: str, target: str, bytes_: int, seconds: float) -> float:
    """Frames a second that arrive."""
    generator = programs.program("framegen")
    sink = place.client("s", generator, "sink", target)
    corner.said(sink, "ready")
    corner.finish(place.client("s", generator, "send", source, seconds, bytes_), 30)
    received, took_s, bad = corner.finish(sink, 30)
    if bad or not took_s:
        raise corner.Failed(f"framegen: {received:.0f} frames arrived, {bad:.0f} of them of a wrong length")
    if took_s < seconds / 2:
        raise corner.Failed(f"framegen: nothing came any more after {took_s:.2f} of {seconds:.1f} s")
    return received / took_s
