"""A port made of descriptors that a client handed over; it lasts as long as the client's connection.

stream   one descriptor, or one to read and one to write: a length of `prefix` bytes before each frame
dgram    a connected datagram or sequenced-packet socket
tap      the queues of a TAP that has IFF_VNET_HDR on
"""

import dataclasses
import os
from typing import TYPE_CHECKING, Literal

from shardnet import options

if TYPE_CHECKING:
    from shardnet import worker

KINDS = {"stream": 2, "dgram": 1, "tap": 64}  # and how many descriptors each may have at most


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(options.PortOptions):
    # Bytes of the length in front of a frame of a stream: 2 as VDE's, 4 as QEMU's.
    prefix: Literal["2", "4"] = "2"


class Port:
    def __init__(self, given: Options, place: "worker.Place") -> None:
        self.options = given
        self.place = place
        self.fds: list[int] = []

    def prepare(self) -> None:
        """Nothing: the client's descriptors are deposits already."""

    def open(self) -> None:
        while (fd := self.place.recall(f"fd{len(self.fds)}")) is not None:
            os.set_blocking(fd, False)
            self.fds.append(fd)
        shard, port = self.place.shard, self.place.port
        match self.place.kind:
            case "stream":
                shard.add_stream(port, self.fds[0], self.fds[-1], int(self.options.prefix))
            case "dgram":
                shard.add_dgram(port, self.fds[0])
            case "tap":
                shard.add_tap(port, self.fds)
                self.place.lend("fd0")
        self.place.state("up", "plugged by a client")

    def close(self) -> None:
        self.place.shard.remove(self.place.port)
        for fd in self.fds:
            os.close(fd)
        self.fds.clear()
