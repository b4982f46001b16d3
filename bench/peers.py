"""The switches that are measured: how each is set up between two namespaces, or between two stream sockets.

`start` of a TAP peer leaves an interface `e` with LEFT in namespace `a` and with RIGHT in namespace `b`, and starts every process
that carries frames with `corner.daemon`, so that its CPU time counts. `start` of a stream peer returns the two places to connect
to. Tearing down is the corner's business. `needs` are the commands that must be there, with Debian's package for each.
"""

import abc
import functools
import shutil
import sys
from pathlib import Path
from typing import ClassVar

from bench import corner, lab, programs

LEFT, RIGHT, PREFIX = "10.77.0.1", "10.77.0.2", 24


class Peer:
    """A switch; the class's sentence is its line in the results."""

    name: ClassVar[str]
    needs: ClassVar[dict[str, str]] = {}

    @classmethod
    def missing(cls) -> str | None:
        """Say what must be installed first, if anything."""
        absent = sorted({package for command, package in cls.needs.items() if not shutil.which(command)})
        return f"not installed: {' '.join(absent)} (tools/setup bench, or apt-get install)" if absent else None


class TapPeer(Peer, abc.ABC):
    @abc.abstractmethod
    def start(self, place: corner.Corner) -> None: ...


class StreamPeer(Peer, abc.ABC):
    @abc.abstractmethod
    def start(self, place: corner.Corner) -> tuple[str, str]: ...


def hand_over(place: corner.Corner, interface: str, side: str, address: str) -> None:
    """Move an interface out of the switch's namespace to one of the ends."""
    place.run("s", "ip", "link", "set", "dev", interface, "netns", f"{place.name}-{side}", "name", "e")
    place.run(side, "ip", "address", "add", f"{address}/{PREFIX}", "dev", "e")
    place.run(side, "ip", "link", "set", "e", "up")


def hand_over_taps(place: corner.Corner, left: str, right: str) -> None:
    """Move the two TAPs of a switch that makes them itself, as soon as it has."""
    for interface, side, address in (left, "a", LEFT), (right, "b", RIGHT):
        corner.wait(f"{place.name}: {interface}", functools.partial(present, place, interface))
        hand_over(place, interface, side, address)


def present(place: corner.Corner, interface: str) -> bool:
    """Tell whether the switch's namespace has the interface by now."""
    place.cpu_s()  # which fails when the switch is dead, so that nobody waits for it
    try:
        place.run("s", "ip", "link", "show", "dev", interface)
    except corner.Failed:
        return False
    return True


def veth(place: corner.Corner, inner: str, side: str, address: str) -> None:
    """Lay a veth pair from the switch's namespace to an end."""
    place.run("s", "ip", "link", "add", "name", inner, "type", "veth", "peer", "name", f"{inner}e")
    place.run("s", "ip", "link", "set", inner, "up")
    hand_over(place, f"{inner}e", side, address)


class Forwarder(TapPeer):
    """bare C forwarder, TAP to TAP, vnet header passed on: the control"""

    name = "forwarder"
    needs: ClassVar = {"cc": "gcc"}

    def start(self, place: corner.Corner) -> None:
        place.daemon("s", programs.program("forwarder"), "t0", "t1")
        hand_over_taps(place, "t0", "t1")


class Bridge(TapPeer):
    """Linux bridge between two veth pairs: the kernel's own limit, no process, no TAP"""

    name = "bridge"

    def start(self, place: corner.Corner) -> None:
        place.run("s", "ip", "link", "add", "name", "br0", "type", "bridge", "forward_delay", "0")
        place.run("s", "ip", "link", "set", "br0", "up")
        for inner, side, address in ("v0", "a", LEFT), ("v1", "b", RIGHT):
            veth(place, inner, side, address)
            place.run("s", "ip", "link", "set", inner, "master", "br0")


class Vde(TapPeer):
    """vde_switch with two TAP ports"""

    name = "vde_switch"
    needs: ClassVar = {"vde_switch": "vde2"}

    def start(self, place: corner.Corner) -> None:
        place.daemon("s", "vde_switch", "-sock", place.path / "vde", "-tap", "t0", "-tap", "t1")
        hand_over_taps(place, "t0", "t1")


QEMU = ("qemu-system-x86_64", "-M", "none", "-nodefaults", "-display", "none")


class QemuHub(TapPeer):
    """QEMU without a machine (-M none), two TAP back ends in a hub"""

    name = "qemu hub"
    needs: ClassVar = {"qemu-system-x86_64": "qemu-system-x86"}

    def start(self, place: corner.Corner) -> None:
        nets: list[str] = []
        for n in range(2):
            nets += ["-netdev", f"tap,id=n{n},ifname=t{n},script=no,downscript=no"]
            nets += ["-netdev", f"hubport,id=h{n},hubid=0,netdev=n{n}"]
        place.daemon("s", *QEMU, *nets)
        hand_over_taps(place, "t0", "t1")


class Ovs(TapPeer):
    """Open vSwitch, userspace datapath, two TAPs, as it comes"""

    name = "ovs"
    needs: ClassVar = {"ovs-vswitchd": "openvswitch-switch"}
    tso = False

    def start(self, place: corner.Corner) -> None:
        database, server = place.path / "conf.db", f"unix:{place.path}/db.sock"
        where = {"OVS_RUNDIR": str(place.path), "OVS_LOGDIR": str(place.path), "OVS_DBDIR": str(place.path)}
        corner.run("ovsdb-tool", "create", database, "/usr/share/openvswitch/vswitch.ovsschema")
        place.daemon("s", "ovsdb-server", database, f"--remote=p{server}", **where)
        corner.wait("ovsdb-server", (place.path / "db.sock").exists)
        self.server = server
        self.set("--no-wait", "init")
        self.set("--no-wait", "set", "Open_vSwitch", ".", f"other_config:userspace-tso-enable={str(self.tso).lower()}")
        place.daemon("s", "ovs-vswitchd", server, **where)
        self.set("add-br", "br", "--", "set", "bridge", "br", "datapath_type=netdev")
        self.ports(place)

    def set(self, *words: str) -> None:
        corner.run("ovs-vsctl", f"--db={self.server}", "--timeout=10", *words)

    def ports(self, place: corner.Corner) -> None:
        for name in "t0", "t1":
            self.set("add-port", "br", name, "--", "set", "interface", name, "type=tap")
        hand_over_taps(place, "t0", "t1")


class OvsTso(Ovs):
    """the same with userspace-tso-enable"""

    name = "ovs tso"
    tso = True


class OvsTsoVeth(Ovs):
    """the same with userspace-tso-enable, two veth pairs in place of TAPs"""

    name = "ovs tso veth"
    tso = True

    def ports(self, place: corner.Corner) -> None:
        for inner, side, address in ("v0", "a", LEFT), ("v1", "b", RIGHT):
            veth(place, inner, side, address)
            self.set("add-port", "br", inner)


class Shardnet2(TapPeer):
    """shardnet as it comes: a worker a port, so two workers"""

    name = "shardnet 2"
    shards = 2

    @classmethod
    def missing(cls) -> str | None:
        return lab.missing()

    def start(self, place: corner.Corner) -> None:
        lab.Lab(place, taps(place), self.shards).start()


class Shardnet1(Shardnet2):
    """shardnet with both ports in one worker (shards = 1)"""

    name = "shardnet 1"
    shards = 1


def tap(name: str, namespace: str, address: str) -> str:
    """The section of a TAP port."""
    return f"[tap {name}]\nifname = e\nnetns = {namespace}\naddress = {address}/{PREFIX}\n"


def taps(place: corner.Corner) -> list[str]:
    """The sections of the two TAP ports at the two ends."""
    return [tap("left", f"{place.name}-a", LEFT), tap("right", f"{place.name}-b", RIGHT)]


class Relay(StreamPeer):
    """bare C relay between two unix sockets, bytes and not frames: the limit of the mechanism"""

    name = "relay"
    needs: ClassVar = {"cc": "gcc"}

    def start(self, place: corner.Corner) -> tuple[str, str]:
        paths = [place.path / str(n) for n in range(2)]
        place.daemon("s", programs.program("relay"), *paths)
        return f"unix:{paths[0]}", f"unix:{paths[1]}"


class QemuStream(StreamPeer):
    """QEMU without a machine, two -netdev stream on unix sockets in a hub"""

    name = "qemu stream"
    needs: ClassVar = {"qemu-system-x86_64": "qemu-system-x86"}
    kinds: tuple[str, str] = (
        "stream,id=n0,server=on,addr.type=unix,addr.path={}/0",
        "stream,id=n1,server=on,addr.type=unix,addr.path={}/1",
    )

    def targets(self, path: Path) -> tuple[str, str]:
        return f"unix:{path}/0", f"unix:{path}/1"

    def start(self, place: corner.Corner) -> tuple[str, str]:
        nets: list[str] = []
        for n, kind in enumerate(self.kinds):
            nets += ["-netdev", kind.format(place.path), "-netdev", f"hubport,id=h{n},hubid=0,netdev=n{n}"]
        place.daemon("s", *QEMU, *nets)
        targets = self.targets(place.path)
        for target in targets:
            if target.startswith("unix:"):
                # It listens from a thread of its own; who connects to one before it listens at the other wedges it.
                corner.wait(target, Path(target.removeprefix("unix:")).exists)
        return targets


class QemuSocket(QemuStream):
    """QEMU without a machine, two -netdev socket on TCP in a hub"""

    name = "qemu socket"
    kinds = ("socket,id=n0,listen=127.0.0.1:7001", "socket,id=n1,listen=127.0.0.1:7002")

    def targets(self, path: Path) -> tuple[str, str]:
        return "tcp:127.0.0.1:7001", "tcp:127.0.0.1:7002"


class ShardnetStream2(StreamPeer):
    """shardnet, two [stream] ports on unix sockets, two workers"""

    name = "shardnet 2"
    shards = 2

    @classmethod
    def missing(cls) -> str | None:
        return lab.missing()

    def start(self, place: corner.Corner) -> tuple[str, str]:
        sections = [f"[stream p{n}]\nserver = on\naddr.type = unix\naddr.path = {place.path}/{n}\n" for n in range(2)]
        lab.Lab(place, sections, self.shards).start()
        return f"unix:{place.path}/0", f"unix:{place.path}/1"


class ShardnetStream1(ShardnetStream2):
    """shardnet, two [stream] ports on unix sockets, one worker"""

    name = "shardnet 1"
    shards = 1


TAPS: tuple[type[TapPeer], ...] = (Forwarder, Shardnet1, Shardnet2, Bridge, Vde, QemuHub, Ovs, OvsTso, OvsTsoVeth)
STREAMS: tuple[type[StreamPeer], ...] = (Relay, ShardnetStream1, ShardnetStream2, QemuStream, QemuSocket)


def versions() -> dict[str, str]:
    """First line that each program says about itself."""
    asked = {
        "vde_switch": ("vde_switch", "--version"),
        "QEMU": ("qemu-system-x86_64", "--version"),
        "Open vSwitch": ("ovs-vswitchd", "--version"),
        "iperf3": ("iperf3", "--version"),
        "Python": (sys.executable, "--version"),
    }
    return {name: corner.run(*command).splitlines()[0] for name, command in asked.items() if shutil.which(command[0])}
