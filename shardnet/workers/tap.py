"""[tap NAME]: a TAP interface of this host, as a port of the lab.

The interface is attached to where it exists and made where it does not; one that is made here is configured here (mac, mtu,
address, switched on, then `script`) and goes when the lab does. One that exists is left as it is. Super-frames cross uncut and
checksums stay partial: the virtio-net header is always on.

The descriptors of the queues are deposited with the supervisor, so the interface, its addresses and the routes over it survive
the death of the worker. An interface deleted by somebody comes back: one of our own is made again at once; for a persistent
one of somebody else's (ip tuntap add) the port waits until it exists again. A deleted network namespace whose TAP was made
here does not count as a deletion, for the kernel keeps it alive, without its name, as long as the TAP is open.
"""

import dataclasses
import errno
import ipaddress
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from shardnet import links, options

if TYPE_CHECKING:
    from shardnet import worker

RETRY_S = 0.1
RETRY_MAX_S = 1.0
SUFFIXES = {"": 1, "b": 1, "k": 1 << 10, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}

INHERITED = "a worker inherits no descriptors; name the interface with ifname"
VHOST = "vhost moves frames between the kernel and a guest's queues; here the switch reads the TAP"
REFUSED = {
    "fd": INHERITED,
    "fds": INHERITED,
    "br": "a TAP is put on a bridge by script, or by hand: ip link set IFNAME master BRIDGE",
    "helper": "it hands over a descriptor; put the TAP on a bridge by script, or by hand: ip link set IFNAME master BRIDGE",
    "vhost": VHOST,
    "vhostfd": VHOST,
    "vhostfds": VHOST,
    "vhostforce": VHOST,
    "poll-us": VHOST,
}
NO_QEMU = "a TAP is held by the lab itself; a guest attaches to a stream or dgram port of the same switch"


def ifname(text: str) -> str:
    """an interface's name, at most 15 bytes; %d is the first free number"""
    if not 1 <= len(text.encode()) <= 15:
        raise ValueError("an interface's name has 1 to 15 bytes")
    if text in (".", "..") or re.search(r"[\s/:]", text):
        raise ValueError("an interface's name has no space, slash or colon in it")
    if text.replace("%d", "", 1).count("%"):
        raise ValueError("the only use of % is one %d")
    return text


def mac(text: str) -> bytes:
    """six hexadecimal bytes such as 52:54:00:12:34:56"""
    if not re.fullmatch(r"[0-9a-fA-F]{2}(:[0-9a-fA-F]{2}){5}", text):
        raise ValueError("no MAC address such as 52:54:00:12:34:56")
    address = bytes.fromhex(text.replace(":", ""))
    if address[0] & 1 or not any(address):
        raise ValueError("no address of one interface (the first byte is even, and not all are zero)")
    return address


def size(text: str) -> int:
    """bytes, or with b, k, M, G or T behind"""
    match = re.fullmatch(r"([0-9]{1,12})([bkKMGT]?)", text, re.ASCII)
    if not match:
        raise ValueError("no size such as 1048576 or 1M")
    return int(match[1]) * SUFFIXES[match[2]]


def program(text: str) -> Path | None:
    """a program's file, or no"""
    return None if text == "no" else Path(text)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(options.PortOptions):
    # The interface to attach to, or to make. %d stands for the first free number.
    ifname: str = options.option("tap%d", read=ifname)
    # The network namespace it lives in: a name of ip netns, the id of a process in it, or a path.
    netns: str | None = None
    # Addresses with prefix for an interface made here, one a line or with commas between.
    address: tuple[str, ...] = ()
    # Hardware address for an interface made here; the kernel draws one otherwise.
    mac: bytes | None = options.option(None, read=mac)
    # Queues of a multi-queue TAP.
    queues: int = options.option(1, read=options.between(1, 256))  # MAX_TAP_QUEUES of the kernel
    # Run with the interface's name after it was made (qemu-ifup), in its namespace. Unlike QEMU's, the default is no.
    script: Path | None = options.option(None, read=program)
    # Run with the interface's name when the port is removed or the lab stops (qemu-ifdown).
    downscript: Path | None = options.option(None, read=program)
    # How many bytes of frames may wait in the kernel behind the interface. 0: no limit.
    sndbuf: int = options.option(0, read=size)
    # Off: the host hands over no super-frames and no partial checksums.
    vnet_hdr: bool = True

    @property
    def addresses(self) -> list[ipaddress.IPv4Interface | ipaddress.IPv6Interface]:
        """What `address` says, read."""
        return [ipaddress.ip_interface(word) for line in self.address for word in re.split(r"[\s,]+", line) if word]


def check(given: Options) -> Iterator[tuple[str, str]]:
    """Mistakes that a key's reader cannot see."""
    try:
        for address in given.addresses:
            if address.version == 6 and 0 < given.mtu < 1280:
                yield "mtu", "an interface with an IPv6 address has at least 1280 (RFC 8200, 5)"
    except ValueError as why:
        yield "address", f"{why} (write 10.0.2.1/24 or fd00::1/64)"
    if given.netns in (".", ".."):
        yield "netns", "no name of a network namespace"


class Port:
    def __init__(self, given: Options, place: "worker.Place") -> None:
        self.options = given
        self.place = place
        self.fds: list[int] = []
        self.name = given.ifname
        self.persistent = False
        self.retry_s = RETRY_S
        self.timer: int | None = None

    def prepare(self) -> None:
        """Find the queues kept from before, or attach to the interface anew."""
        kept = self._recall()
        if not kept:
            with links.namespace(self.options.netns):
                kept = self._attach()
        for queue, fd in enumerate(kept):
            self.place.deposit(f"queue{queue}", fd)
            os.close(fd)

    def open(self) -> None:
        self.fds = self._recall()
        if not self.fds:  # it was deleted between prepare() and here
            self._wait(f"{self.name} is gone")
            return
        self.name, self.persistent = links.tap_of(self.fds[0])
        self.retry_s = RETRY_S
        self.place.shard.add_tap(self.place.port, self.fds)
        self.place.lend("queue0")
        self.place.state("up", self.name)

    def close(self) -> None:
        if self.timer is not None:
            self.place.cancel(self.timer)
            self.timer = None
        if self.fds:
            self.place.shard.remove(self.place.port)
            self._let_go()

    def ended(self, error: int) -> None:
        """The interface was deleted, or the kernel took it from us in some other way."""
        self._let_go()
        for queue in range(self.options.queues):
            self.place.forget(f"queue{queue}")
        self._wait(f"{self.name} is gone: {os.strerror(error)}" if error else f"{self.name} is gone")

    def _recall(self) -> list[int]:
        """The queues of an interface that still exists, or none."""
        fds = [self.place.recall(f"queue{queue}") for queue in range(self.options.queues)]
        kept = [fd for fd in fds if fd is not None]
        try:
            if len(kept) == len(fds) and all(links.tap_of(fd) for fd in kept):
                return kept
        except OSError as error:
            if error.errno not in (errno.EBADFD, errno.ENODEV):
                raise
        for fd in kept:
            os.close(fd)
        return []

    def _attach(self) -> list[int]:
        given = self.options
        tap = links.open_tap(given.ifname, given.queues, offload=given.vnet_hdr, sndbuf=given.sndbuf)
        try:
            if tap.new:
                self._configure(tap.name)
        except BaseException:
            for fd in tap.fds:
                os.close(fd)
            raise
        return list(tap.fds)

    def _configure(self, name: str) -> None:
        if self.options.mac:
            links.set_mac(name, self.options.mac)
        if self.options.mtu:
            links.set_mtu(name, self.options.mtu)
        links.set_up(name)
        for address in self.options.addresses:
            links.add_address(name, address)
        run(self.options.script, name)

    def _wait(self, why: str) -> None:
        self.place.state("waiting", why)
        self.timer = self.place.later(self.retry_s, self._look)
        self.retry_s = min(2 * self.retry_s, RETRY_MAX_S)

    def _look(self) -> None:
        """Ask for prepare() once it can do something: what is ours we make anew, what is another's has to be there again."""
        self.timer = None
        netns = self.options.netns
        if netns is not None and not os.path.exists(links.namespace_path(netns)):
            self._wait(f"{self.name} is gone, and so is its network namespace {netns}")
        elif netns is None and self.persistent and not links.exists(self.name):
            self._wait(f"{self.name} is gone")
        else:
            self.place.again()

    def _let_go(self) -> None:
        for fd in self.fds:
            os.close(fd)
        self.fds = []


def run(script: Path | None, name: str) -> None:
    """Run a script as QEMU runs qemu-ifup: the interface's name is its only argument."""
    if script is None:
        return
    code = subprocess.run([script, name], stdin=subprocess.DEVNULL, check=False).returncode
    if code:
        how = f"exited with {code}" if code > 0 else f"killed by signal {-code}"
        raise OSError(errno.ECHILD, how, str(script))


def withdraws(given: Options) -> bool:
    """Is there something to be undone once the port is removed?"""
    return given.downscript is not None


def withdraw(given: Options, place: "worker.Place") -> None:
    """Run `downscript` while the interface is still there, after the port is removed for good."""
    fd = place.recall("queue0")
    if fd is None:
        return
    try:
        with links.namespace(given.netns):
            run(given.downscript, links.tap_of(fd)[0])
    finally:
        os.close(fd)


def qemu(given: Options, run_dir: Path, version: tuple[int, int]) -> None:
    """Nothing: see NO_QEMU."""
