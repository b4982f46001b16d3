"""[tftp NAME]: a TFTP server for the files of a folder (RFC 1350): what a machine without a disk boots from.

Options of the protocol: blksize to 65464, tsize, timeout, windowsize to 64 (RFC 2348, 2349, 7440); modes octet and netascii. A client that
asks for windows gets a file many times as fast, one that asks for a blksize longer than the network's packets gets fragments; tftp-blksize = mtu keeps
blocks within a packet. Each transfer has a port of its own, one of 65024 to 65535. A client that asks for a block at a time waits for two
processes to be woken for each; with shard = NAME in this section and in its guest's it waits for one, and has its file in three quarters of the time.

Names are looked up within the folder, a leading slash or backslashes notwithstanding; links that lead out of it are refused, and so is whatever is no
regular file. Guests may read only, unless tftp-write says where they may write: a file that comes in replaces an older one at the moment when it is
whole. No folder is made. The folder is opened when the lab starts: files may come, go and change in it.
"""

import dataclasses
import os
import time
from typing import TYPE_CHECKING

from shardnet import options, serving
from shardnet.tftp import folder, server, settings

if TYPE_CHECKING:
    from shardnet import worker

MTU = 1500  # of a port that names none
HEADERS = {4: 20 + 8 + 4, 16: 40 + 8 + 4}  # IP, UDP, TFTP, by the length of an address


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(serving.Options, settings.Options):
    # The folder, from where the lab is started if it is relative.
    tftp: str = options.option()


check = serving.check


class Port:
    def __init__(self, given: Options, place: "worker.Place") -> None:
        self.options = given
        self.place = place
        self.server: server.Server | None = None
        self.folders: list[folder.Folder] = []
        self.timer: int | None = None

    def prepare(self) -> None:
        """Open the folders while there may be a right to: files are read without privileges later."""
        self._deposit("folder", self.options.tftp)
        if self.options.tftp_write not in ("", "."):
            self._deposit("uploads", self.options.tftp_write)

    def open(self) -> None:
        self._let_go()
        reading, writing = self._recalled("folder"), None
        if self.options.tftp_write:
            key = "folder" if self.options.tftp_write == "." else "uploads"
            writing = self._recalled(key, self.options.tftp_write_max)
        self.server = server.Server(
            reading,
            writing,
            settings.PORTS,
            blksize_max=self._blksize,
            guest_max=self.options.tftp_transfers,
            count=self.place.count,
            note=self.place.log,
        )
        description = serving.described(
            self.options, self.place, udp=[server.PORT, (settings.PORTS[0], settings.PORTS[-1])]
        )
        self.place.shard.add_service(self.place.port, description)
        self.place.serve(self.receive)
        self.place.state("up", f"files of {self.options.tftp}")

    def close(self) -> None:
        self.place.shard.remove(self.place.port)
        self._let_go()

    def ended(self, error: int) -> None:
        """A service has no descriptor that could end."""

    def receive(self, datagrams: "worker.Datagrams") -> None:
        assert self.server is not None, "open() made it"
        self.place.answer(self.server.received(datagrams, time.monotonic()))
        self._wait()

    def _tick(self) -> None:
        assert self.server is not None, "open() made it"
        self.timer = None
        self.place.answer(self.server.tick(time.monotonic()))
        self._wait()

    def _wait(self) -> None:
        if self.timer is None and self.server is not None and self.server.jobs:
            self.timer = self.place.later(server.TICK_S, self._tick)

    def _blksize(self, peer: bytes) -> int:
        if self.options.tftp_blksize:
            return self.options.tftp_blksize
        return max(server.BLKSIZE_MIN, min((self.options.mtu or MTU) - HEADERS[len(peer)], server.BLKSIZE_MAX))

    def _deposit(self, key: str, path: str) -> None:
        fd = self.place.recall(key)
        if fd is None:
            fd = folder.opened(path)
            self.place.deposit(key, fd)
        os.close(fd)

    def _recalled(self, key: str, write_max: int | None = None) -> folder.Folder:
        fd = self.place.recall(key)
        assert fd is not None  # prepare() deposited it
        self.folders.append(folder.Folder(fd, write_max))
        return self.folders[-1]

    def _let_go(self) -> None:
        if self.timer is not None:
            self.place.cancel(self.timer)
            self.timer = None
        if self.server is not None:
            self.server.close()
            self.server = None
        for one in self.folders:
            one.close()
        self.folders.clear()
