"""Row packet: what crosses a switch between two namespaces behind veth pairs, or a veth pair and a TAP.

All peers stand ready at the same time, as in `pair`, and take turns; each way is a measure of its own, since a packet socket and a TAP differ.
"""

import contextlib
from collections.abc import Sequence
from typing import ClassVar

from bench import corner, lab, pair, peers
from bench.samples import Round

WAYS = {"there": ("a", "b", peers.RIGHT), "back": ("b", "a", peers.LEFT)}


class PacketPair2(peers.TapPeer):
    """shardnet, two [packet] ports on veth pairs, two workers"""

    name = "packets 2"
    shards: ClassVar[int] = 2

    @classmethod
    def missing(cls) -> str | None:
        return lab.missing()

    def start(self, place: corner.Corner) -> None:
        lab.Lab(place, self.sections(place), self.shards).start()

    def sections(self, place: corner.Corner) -> list[str]:
        return [packet(place, "v0", "a", peers.LEFT), packet(place, "v1", "b", peers.RIGHT)]


class PacketPair1(PacketPair2):
    """shardnet, two [packet] ports on veth pairs, one worker"""

    name = "packets 1"
    shards = 1


class PacketTap2(PacketPair2):
    """shardnet, a [packet] port on a veth pair and a TAP, two workers"""

    name = "packet tap 2"

    def sections(self, place: corner.Corner) -> list[str]:
        return [packet(place, "v0", "a", peers.LEFT), peers.tap("right", f"{place.name}-b", peers.RIGHT)]


class PacketTap1(PacketTap2):
    """shardnet, a [packet] port on a veth pair and a TAP, one worker"""

    name = "packet tap 1"
    shards = 1


PACKETS: tuple[type[peers.TapPeer], ...] = (
    peers.Bridge,
    PacketPair1,
    PacketPair2,
    PacketTap1,
    PacketTap2,
    peers.Shardnet2,
    peers.OvsTsoVeth,
)


def packet(place: corner.Corner, interface: str, side: str, address: str) -> str:
    """Lay a veth pair to an end; the section of a port on it."""
    peers.veth(place, interface, side, address)
    return f"[packet {interface}]\nifname = {interface}\n"


def measure(chosen: Sequence[type[peers.TapPeer]], turn: Round) -> None:
    """One round: every peer set up, then each measure through each peer, the first one another one each time."""
    with contextlib.ExitStack() as stack:
        ready = pair.ready(chosen, turn, stack)
        for index, (way, ends) in enumerate(WAYS.items()):
            first = (turn.number + index) % max(1, len(ready))
            for name, place in ready[first:] + ready[:first]:
                with turn.attempt(f"{name}, tcp {way}"):
                    gbits, used_s = pair.stream(place, turn.seconds, *ends)
                    turn.add(f"packet tcp {way}", name, gbits)
                    if place.daemons:
                        turn.add(f"packet tcp {way} cpu", name, used_s)
            for name, place in ready[first:] + ready[:first]:
                with turn.attempt(f"{name}, udp64 {way}"):
                    delivered, used_s, seconds = pair.flood(place, *ends, turn.seconds)
                    turn.add(f"packet udp64 {way}", name, delivered / seconds / 1e3)
                    if place.daemons:
                        turn.add(f"packet udp64 {way} cpu", name, delivered / used_s / 1e3)
