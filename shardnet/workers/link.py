"""[link NAME]: a cable between two switches of the lab, with whatever faults a line may have.

One end is the port NAME on `switch`, the other the port NAME.far on the switch `to`. What the line does to frames is said by the keys
of every port: delay, jitter, loss, bandwidth and so on, one value for both directions, or two as OUT/IN: from `switch` to `to`, and back.

  delay = 20ms/30ms
  bandwidth = 10M/1M
  loss = 0.1%

Super-frames cross uncut where there are no faults, or a delay only. Two links between the same switches are a loop, in which a
broadcast goes round for ever: nothing here speaks a spanning tree.
"""

import dataclasses
from collections.abc import Iterator
from typing import TYPE_CHECKING

from shardnet import kinds, options

if TYPE_CHECKING:
    from shardnet import worker

NO_QEMU = "it joins two switches, and no guest is at it"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(options.PortOptions):
    # The switch at the other end.
    to: str = options.option(read=options.name)


def check(given: Options) -> Iterator[tuple[str, str]]:
    """Mistakes that take several keys to see."""
    if given.to == given.switch:
        yield "to", "both ends on one switch are a loop"


def companions(given: Options) -> list[kinds.Companion]:
    """The other end."""
    return [kinds.Companion("far", "link", {"switch": given.to, "to": given.switch}, ())]


class Port:
    """Either end."""

    def __init__(self, given: Options, place: "worker.Place") -> None:
        self.given = given
        self.place = place

    def prepare(self) -> None:
        """Nothing: a link asks for no privilege."""

    def open(self) -> None:
        far = self.place.owner if self.place.behind else self.place.companions["far"]
        self.place.shard.add_link(self.place.port, far)
        self.place.state("up", f"to {self.given.to}")

    def close(self) -> None:
        self.place.shard.remove(self.place.port)

    def ended(self, error: int) -> None:
        """A link has no descriptor that could end."""
