"""[bridge NAME]: a TAP on a bridge of this host, as QEMU's -netdev bridge: guests are on the network that the bridge is on.

With the right to do so (CAP_NET_ADMIN) the TAP is made and put on the bridge here; create = on makes a missing bridge too, switched
on, without an address, and removes it when the last of its interfaces has left with the lab. Without that right, or where `helper`
is given, QEMU's setuid qemu-bridge-helper does it: /etc/qemu/bridge.conf has to say `allow BRIDGE`.

The TAP lives as that of [tap]: it survives the death of its worker, and comes back when somebody deletes it. It goes back on the bridge
when that was removed and is there again, or somebody took the TAP off it.
"""

import array
import contextlib
import dataclasses
import errno
import os
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from shardnet import links, masters, options
from shardnet.workers import tap

if TYPE_CHECKING:
    from shardnet import worker

HELPER = Path("/usr/lib/qemu/qemu-bridge-helper")
HELPER_S = 10.0
OURS = "shardnet"  # ifalias of a bridge that was made here
NEWS = "news"  # name of a deposit
HIGH = b"\xfe"  # a bridge takes the lowest address of its interfaces; a TAP's is to be none of them

NO_QEMU = tap.NO_QEMU


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(options.PortOptions):
    # The bridge.
    br: str = options.option("br0", read=tap.ifname)
    # The program that makes the TAP and puts it on the bridge. Without it we do, and ask QEMU's where we may not.
    helper: Path | None = None
    # On: make the bridge where it does not exist, and remove it at the end.
    create: bool = False
    # The TAP's name. %d stands for the first free number; a helper chooses for itself.
    ifname: str = options.option("tap%d", read=tap.ifname)
    # The network namespace of the bridge: a name of ip netns, the id of a process in it, or a path.
    netns: str | None = None
    # Queues of a multi-queue TAP; a helper makes one.
    queues: int = options.option(1, read=options.between(1, 256))
    # Off: the host hands over no super-frames and no partial checksums.
    vnet_hdr: bool = True

    @property
    def tap(self) -> tap.Options:
        """The TAP in the words of [tap]."""
        common = {field.name: getattr(self, field.name) for field in dataclasses.fields(options.PortOptions)}
        return tap.Options(ifname=self.ifname, netns=self.netns, queues=self.queues, vnet_hdr=self.vnet_hdr, **common)


def check(given: Options) -> Iterator[tuple[str, str]]:
    """Mistakes that take several keys to see."""
    yield from tap.check(given.tap)
    if "%" in given.br:
        yield "br", "a bridge has one name"
    if given.helper is not None:
        for key in ("create", "queues", "ifname"):
            if getattr(given, key) != getattr(Options(), key):
                yield key, "a helper puts one queue of a TAP that it names itself on a bridge that exists"


class Port(tap.Port):
    """The TAP, and a socket on which the kernel tells of its links: a worker has no right to ask in the bridge's namespace."""

    def __init__(self, given: Options, place: "worker.Place") -> None:
        super().__init__(given.tap, place)
        self.bridge = given
        self.news: socket.socket | None = None

    def prepare(self) -> None:
        """As for any TAP; one that is kept and has left its bridge is put on it again."""
        given = self.bridge
        with links.namespace(given.netns):
            with masters.changes() as news:
                self.place.deposit(NEWS, news.fileno())  # first, so that nothing is missed
            kept = self._recall()
            try:
                if kept and not masters.is_on_bridge(name := links.tap_of(kept[0])[0]):
                    if given.helper is None:
                        self._join(name)
                    else:
                        self.place.forget("queue0")  # it only puts TAPs on bridges that it makes itself
            finally:
                for fd in kept:
                    os.close(fd)
        super().prepare()

    def open(self) -> None:
        super().open()
        fd = self.place.recall(NEWS)
        if fd is not None and self.fds:
            self.news = socket.socket(fileno=fd)
            self.news.setblocking(False)
            self.place.watch(self.news.fileno(), self._told)
        elif fd is not None:
            os.close(fd)

    def _let_go(self) -> None:
        super()._let_go()
        if self.news is not None:
            self.place.unwatch(self.news.fileno())
            self.news.close()
            self.news = None

    def _told(self) -> None:
        """Links have changed: is the TAP still on a bridge?"""
        assert self.news is not None
        if masters.has_left(self.news, self.name):
            self.place.shard.remove(self.place.port)
            self._let_go()
            self._wait(f"{self.name} is no longer on {self.bridge.br}")

    def _attach(self) -> list[int]:
        given = self.bridge
        if given.helper is not None:
            return [self._helped(given.helper)]
        try:
            self._find()
            fds = super()._attach()
        except PermissionError:
            if given.create or given.queues > 1 or not HELPER.exists():
                raise
            return [self._helped(HELPER)]
        try:
            name, _ = links.tap_of(fds[0])
            links.set_mac(name, HIGH + links.mac_of(name)[1:])
            join(name, given.br)
        except BaseException:
            for fd in fds:
                os.close(fd)
            raise
        return fds

    def _find(self) -> None:
        """Make sure that there is a bridge."""
        if self.bridge.create:
            make(self.bridge.br)
        if not links.exists(self.bridge.br):
            raise OSError(errno.ENODEV, "no such bridge (create = on makes it)", self.bridge.br)

    def _join(self, name: str) -> None:
        """Put the TAP on the bridge."""
        self._find()
        join(name, self.bridge.br)

    def _helped(self, helper: Path) -> int:
        """A TAP from QEMU's helper, which sends its descriptor over the socket that it is given."""
        ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        words = [str(helper), "--use-vnet", f"--br={self.bridge.br}", f"--fd={its.fileno()}"]
        with ours, its:
            try:
                ran = subprocess.run(
                    words,
                    pass_fds=[its.fileno()],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.PIPE,
                    timeout=HELPER_S,
                    text=True,
                    check=False,
                )
            except subprocess.TimeoutExpired:
                raise OSError(errno.ETIMEDOUT, "no answer", words[0]) from None
            if ran.returncode:
                raise OSError(errno.EPERM, f"{self.bridge.br}: {ran.stderr.strip() or 'refused'}", words[0])
            ours.setblocking(False)
            fds = array.array("i")
            _, ancillary, _, _ = ours.recvmsg(1, socket.CMSG_SPACE(fds.itemsize))
            for _, _, data in ancillary:
                fds.frombytes(data[: fds.itemsize])
        if not fds:
            raise OSError(errno.EPROTO, "sent no descriptor", words[0])
        links.adopt_tap(fds[0], offload=self.bridge.vnet_hdr)
        return fds[0]


def make(bridge: str) -> None:
    """Make the bridge where it does not exist, marked as ours."""
    from pyroute2 import IPRoute  # slow to import, and needed once in a port's life

    with IPRoute() as route:
        if route.link_lookup(ifname=bridge):
            return
        with _named(bridge):
            route.link("add", ifname=bridge, kind="bridge", ifalias=OURS)
            (index,) = route.link_lookup(ifname=bridge)
            route.link("set", index=index, state="up", ifalias=OURS)


def join(name: str, bridge: str) -> None:
    """Put an interface on a bridge; OSError where there is no bridge of that name."""
    from pyroute2 import IPRoute

    with IPRoute() as route:
        index = route.link_lookup(ifname=bridge)
        if not index:
            raise OSError(errno.ENODEV, "no such bridge (create = on makes it)", bridge)
        if _about(route, index[0]).get("IFLA_INFO_KIND") != "bridge":
            raise OSError(errno.EINVAL, "it is no bridge", bridge)
        with _named(bridge):
            route.link("set", index=route.link_lookup(ifname=name)[0], master=index[0])


def _about(route: object, index: int) -> dict[str, object]:
    (link,) = route.get_links(index)  # type: ignore[attr-defined]
    info = link.get_attr("IFLA_LINKINFO")
    return {"IFLA_INFO_KIND": info and info.get_attr("IFLA_INFO_KIND"), "IFLA_IFALIAS": link.get_attr("IFLA_IFALIAS")}


@contextlib.contextmanager
def _named(name: str) -> Iterator[None]:
    """Have netlink's errors name the interface."""
    from pyroute2.netlink.exceptions import NetlinkError

    try:
        yield
    except NetlinkError as error:
        hint = " (needs CAP_NET_ADMIN)" if error.code == errno.EPERM else ""
        raise OSError(error.code, os.strerror(error.code) + hint, name) from None


def withdraws(given: Options) -> bool:
    """Is there something to be undone once the port is removed?"""
    return given.create


def withdraw(given: Options, place: "worker.Place") -> None:
    """Take the TAP off the bridge, and remove a bridge that was made here once nothing is on it."""
    from pyroute2 import IPRoute

    fd = place.recall("queue0")
    if fd is None:
        return
    try:
        with links.namespace(given.netns), IPRoute() as route, _named(given.br):
            name, _ = links.tap_of(fd)
            route.link("set", index=route.link_lookup(ifname=name)[0], master=0)
            for index in route.link_lookup(ifname=given.br):
                about = _about(route, index)
                if about["IFLA_IFALIAS"] == OURS and not route.get_links(master=index):
                    route.link("del", index=index)
    finally:
        os.close(fd)


def qemu(given: Options, run_dir: Path, version: tuple[int, int]) -> None:
    """Nothing: see NO_QEMU."""
