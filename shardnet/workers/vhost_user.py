"""[vhost-user NAME]: a virtio-net device for a guest of QEMU or another VMM, which shares its memory (vhost-user).

The guest's rings are read and written here, in its own memory: a frame is copied once each way, and the VMM touches none.
Super-frames and partial checksums cross uncut, from guest to guest, to TAPs and to the user-mode network; what a guest's driver
did not ask for is cut and summed for it. With server = on one VMM at a time is served; otherwise the port dials the VMM, again and
again, as a stream does. Either side may be restarted under the other: the guest keeps its device, and its connections.

QEMU needs the guest's memory shared, and a virtio-net card; shardnet qemu NAME prints the options, without -m:

    -object memory-backend-memfd,id=mem,size=512M,share=on -machine memory-backend=mem
    -chardev socket,id=chr,path=RUN_DIR/vm1.sock,reconnect=1
    -netdev vhost-user,id=net0,chardev=chr -device virtio-net-pci,netdev=net0

Several queues take queues = N here, queues=N in the -netdev, and mq=on,vectors=2N+2 in the -device. The guest's mtu is QEMU's
host_mtu=N; one above this port's mtu is refused. A guest that moved is announced as the VMM asks (RARP), or announces itself. The
dirty log of a live migration is kept.

QEMU 7.2 without KVM dies at the first interrupt of such a card by MSI-X: vectors=0 in the -device keeps it alive.

A VMM can do harm to its own port only: a guest's ring that makes no sense is stopped and the log says so, a guest's memory that
is taken away ends the connection. Memory has to be a memfd, or a file of tmpfs or hugetlbfs, for the page faults of others can
wait for ever. At a worker's death at most a batch of frames is sent twice, or lost on the way in.

Not offered: packed rings, a vIOMMU, RSS and hash reports, UFO, in-flight descriptors (buffers are given back in order, so the
used ring says where a successor goes on), polling of a guest that never rings.
"""

import dataclasses
import errno
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from shardnet import addresses, connection, options, vhost

if TYPE_CHECKING:
    from shardnet import worker

RETRY_MS = 1000

REFUSED = {
    "chardev": "it names a socket of QEMU's; give path, and server = on where QEMU is to dial",
    "vhostforce": "it tells QEMU what to do for a guest without MSI-X, so it belongs into QEMU's -netdev",
}
QEMU_MODEL = "virtio-net"  # what the card's name begins with
QEMU_SHARES_MEMORY = True


def path(text: str) -> str:
    """a file's path, at most 107 bytes, in the run directory where it is relative"""
    if len(text.encode()) >= addresses.SUN_PATH_BYTES:
        raise ValueError(f"longer than the {addresses.SUN_PATH_BYTES - 1} bytes that a unix socket's path may have")
    return text


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(options.PortOptions):
    # The socket's file, in the lab's run directory where relative; a name where abstract.
    path: str = options.option(read=path)
    # On: wait for a VMM. Off: dial one that listens.
    server: bool = False
    # On for an address without a file, of Linux only.
    abstract: bool = False
    # Off fills an abstract address up with NULs, for old programs that do so.
    tight: bool = True
    # Pairs of rings that the guest may use.
    queues: int = options.option(1, read=options.between(1, vhost.PAIRS_MAX))
    # Client: milliseconds between tries to dial, 1000 unless given; 0: only once.
    reconnect_ms: int | None = options.option(None, key="reconnect-ms", read=options.between(0, 86_400_000))
    # Client: the same in seconds, QEMU's older name.
    reconnect: int | None = options.option(None, read=options.between(0, 86_400))

    @property
    def retry_ms(self) -> int:
        """Milliseconds between tries to dial; 0: only once."""
        if self.reconnect is not None:
            return self.reconnect * 1000
        return RETRY_MS if self.reconnect_ms is None else self.reconnect_ms

    def address(self, run_dir: Path) -> addresses.Unix:
        """Where to listen or to dial."""
        where = self.path if self.abstract else str(run_dir / self.path)
        return addresses.Unix(path=where, abstract=self.abstract, tight=self.tight)


def check(given: Options) -> Iterator[tuple[str, str]]:
    """Mistakes that take several keys to see."""
    if not given.tight and not given.abstract:
        yield "tight", "only an abstract address is filled up"
    if given.reconnect is not None and given.reconnect_ms is not None:
        yield "reconnect", "reconnect-ms says it already"
    for key, value in (("reconnect", given.reconnect), ("reconnect-ms", given.reconnect_ms)):
        if given.server and value:
            yield key, "a server waits, it does not dial"


class Port:
    def __init__(self, given: Options, place: "worker.Place") -> None:
        self.given, self.place = given, place
        self.session: vhost.Session | None = None
        address = given.address(place.run_dir)
        self.line: connection.Server | connection.Client
        if given.server:
            self.line = connection.Server(place, address, socket.SOCK_STREAM, self._carry)
        else:
            self.line = connection.Client(place, address, socket.SOCK_STREAM, self._carry)
            self.line.retry_s = given.retry_ms / 1000
        self.prepare = self.line.prepare
        self.open = self.line.open

    def close(self) -> None:
        """End the session and the line."""
        self._end()
        self.line.close()

    def ended(self, error: int) -> None:
        """The core gave the guest up, and carries the port no more: its memory was taken away (EFAULT)."""
        self._end()
        if error == errno.EFAULT:
            self.place.log("the VMM took memory of the guest's away (its file was cut, or the host has none left)")
        self.line.ended(error)

    def stopped(self, ring: int) -> None:
        """A ring of the guest's makes no sense any more."""
        sort = "transmits" if ring % 2 else "receives"
        self.place.log(f"the ring on which queue {ring // 2} {sort} makes no sense and was stopped")

    def _carry(self, _fd: int) -> None:
        peer = self.line.peer
        assert peer is not None  # the line has just got it
        self.session = vhost.Session(self.place, peer, self.given.queues, self.given.mtu, self._left)

    def _left(self, why: str) -> None:
        """The VMM left, or said what it may not."""
        if why:
            self.place.log(f"the VMM is left: {why}")
        self.place.shard.remove(self.place.port)
        self._end()
        self.line.ended(errno.EPROTO if why else 0)

    def _end(self) -> None:
        if self.session is not None:
            self.session.close()
            self.session = None


def qemu(given: Options, run_dir: Path, version: tuple[int, ...]) -> list[str]:
    """The other half of this port: a client where it is the server, and the other way round."""
    keys = given.address(run_dir).qemu("")
    del keys["type"]
    if not given.server:
        keys.update(server="on", wait="off")
    elif version >= (9, 2):
        keys["reconnect-ms"] = "1000"
    else:
        keys["reconnect"] = "1"
    chardev = ",".join(["socket,id=net0-socket", *(f"{key}={text.replace(',', ',,')}" for key, text in keys.items())])
    queues = f",queues={given.queues}" if given.queues > 1 else ""
    return ["-chardev", chardev, "-netdev", f"vhost-user,id=net0,chardev=net0-socket{queues}"]


def qemu_device(given: Options) -> str:
    """What the guest's card has to be told for several queues: a vector each way, one for its state and one for control."""
    return f",mq=on,vectors={2 * given.queues + 2}" if given.queues > 1 else ""
