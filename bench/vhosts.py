"""Row vhost: frames a second between two virtio-net cards whose rings vhostgen drives, through shardnet and through DPDK's testpmd."""

import abc
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from bench import corner, lab, peers, programs
from bench.samples import Round

SIZES = (64, 1514, 65_000)


class VhostPeer(peers.Peer, abc.ABC):
    longest: ClassVar[int] = 65_000

    @abc.abstractmethod
    def start(self, place: corner.Corner) -> tuple[str, str]:
        """Returns the two sockets."""


class Testpmd(VhostPeer):
    """DPDK's testpmd, two vhost ports in a core that polls all the time, io forwarding"""

    name = "testpmd"
    needs: ClassVar = {"dpdk-testpmd": "dpdk-dev librte-net-vhost23 librte-mempool-ring23 librte-bus-vdev23"}
    longest = 1514  # its buffers' size

    def start(self, place: corner.Corner) -> tuple[str, str]:
        paths = [str(place.path / str(n)) for n in range(2)]
        drivers = next(Path("/usr/lib").glob("*/dpdk/pmds-*"), None)
        if drivers is None:
            raise corner.Failed("no drivers of DPDK in /usr/lib")
        ports = [word for n, path in enumerate(paths) for word in ("--vdev", f"net_vhost{n},iface={path}")]
        environment = ["--no-huge", "-m", "512", "--no-pci", "-l", "0-1", "--file-prefix", place.name, "-d", drivers]
        forward = ["--forward-mode=io", "--auto-start", "--nb-cores=1", "--total-num-mbufs=8192", "--no-mlockall"]
        place.daemon("s", "dpdk-testpmd", *environment, *ports, "--", *forward)
        for path in paths:
            corner.wait(path, Path(path).exists)
        return paths[0], paths[1]


class ShardnetVhost2(VhostPeer):
    """shardnet, two [vhost-user] ports, two workers"""

    name = "shardnet 2"
    shards = 2

    @classmethod
    def missing(cls) -> str | None:
        return lab.missing()

    def start(self, place: corner.Corner) -> tuple[str, str]:
        paths = [str(place.path / str(n)) for n in range(2)]
        sections = [f"[vhost-user p{n}]\nserver = on\npath = {path}\n" for n, path in enumerate(paths)]
        lab.Lab(place, sections, self.shards).start()
        return paths[0], paths[1]


class ShardnetVhost1(ShardnetVhost2):
    """shardnet, two [vhost-user] ports, one worker"""

    name = "shardnet 1"
    shards = 1


VHOSTS: tuple[type[VhostPeer], ...] = (Testpmd, ShardnetVhost1, ShardnetVhost2)


def measure(chosen: Sequence[type[VhostPeer]], turn: Round) -> None:
    """One round: each size through each peer, set up anew for each."""
    for bytes_ in SIZES:
        for kind in chosen:
            if bytes_ > kind.longest:
                continue
            with turn.attempt(f"{kind.name}, vhost {bytes_}"):
                if why := kind.missing():
                    raise corner.Failed(why)
                with corner.Corner(kind.name.replace(" ", "-")) as place:
                    source, target = kind().start(place)
                    rate, used_s = speed(place, source, target, bytes_, turn.seconds)
                    turn.add(f"vhost {bytes_}", kind.name, rate / 1e3)
                    turn.add(f"vhost {bytes_} gb", kind.name, rate * bytes_ / 1e9)
                    turn.add(f"vhost {bytes_} cpu", kind.name, used_s * 1e9)


def speed(place: corner.Corner, source: str, target: str, bytes_: int, seconds: float) -> tuple[float, float]:
    """Frames a second that arrive, and CPU seconds that each of them cost."""
    driver = programs.program("vhostgen")
    sink = place.client("s", driver, "sink", target)
    corner.said(sink, "ready")
    before = place.cpu_s()
    corner.finish(place.client("s", driver, "send", source, seconds, bytes_), 30)
    received, took_s, bad = corner.finish(sink, 30)
    used_s = place.cpu_s() - before
    if bad or not took_s:
        raise corner.Failed(f"vhostgen: {received:.0f} frames arrived, {bad:.0f} of them of a wrong length")
    return received / took_s, used_s / received
