"""Rows user-tcp, user-small, user-flows, user-stream: a guest's way to its host through a user-mode network, beside its peers.

The guest is namespace `a`, the host is `s` (its loopback), both as the network's user sees them: the guest connects to the host
address, HOST. Data to the guest goes the same way, asked for by the guest (iperf3 --reverse). Every peer stands ready, idle, and
they take turns. Row user-stream has a TAP of tapstream's before a stream port in QEMU's framing, in place of a TAP of the network.
"""

import abc
import contextlib
import json
import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import ClassVar

from bench import corner, lab, pair, peers, programs
from bench.samples import Round

GUEST, HOST, PREFIX = "10.0.2.15", "10.0.2.2", 24
OUTSIDE, OUTSIDE_ROUTER = "192.0.2.1", "192.0.2.254"  # RFC 5737; some peers want a way out
ECHO_PORT, SINK_PORT = 7, 9  # IANA: echo, discard
SMALL, LARGE = 1500, 65520
FEW, MANY = 1_000, 10_000
OPEN_S = 4.0
SMALL_S = 1.0


class UserPeer(peers.Peer, abc.ABC):
    mtus: ClassVar[tuple[int, ...]] = (SMALL, LARGE)

    @abc.abstractmethod
    def start(self, place: corner.Corner, mtu: int) -> None:
        """Leave an interface `e` with GUEST in namespace `a`, of this mtu."""


def hand_over(place: corner.Corner, interface: str | None, mtu: int) -> None:
    """Make an interface of namespace `s` the guest's, or that which is there already."""
    if interface:
        place.run("s", "ip", "link", "set", "dev", interface, "netns", f"{place.name}-a", "name", "e")
    place.run("a", "ip", "address", "replace", f"{GUEST}/{PREFIX}", "dev", "e")
    place.run("a", "ip", "link", "set", "e", "up", "mtu", mtu)


def appear(place: corner.Corner, interface: str, namespace: str) -> None:
    """Wait until a peer has made its TAP."""

    def there() -> bool:
        place.cpu_s()  # which fails when the peer is dead
        try:
            place.run(namespace, "ip", "link", "show", "dev", interface)
        except corner.Failed:
            return False
        return True

    corner.wait(f"{place.name}: {interface}", there)


class Veth(UserPeer):
    """no translation: a veth pair from the guest to the host, the kernel's own limit"""

    name = "veth"

    def start(self, place: corner.Corner, mtu: int) -> None:
        place.run("s", "ip", "link", "add", "name", "v", "type", "veth", "peer", "name", "ve")
        place.run("s", "ip", "address", "add", f"{HOST}/{PREFIX}", "dev", "v")
        place.run("s", "ip", "link", "set", "v", "up", "mtu", mtu)
        hand_over(place, "ve", mtu)


class Shardnet2(UserPeer):
    """shardnet as it comes: a worker for [user], one for [tap]"""

    name = "shardnet 2"
    shards = 0  # as it comes

    @classmethod
    def missing(cls) -> str | None:
        return lab.missing()

    def start(self, place: corner.Corner, mtu: int) -> None:
        tap = f"[tap e]\nifname = e\nnetns = {place.name}-a\naddress = {GUEST}/{PREFIX}\nmtu = {mtu}\n"
        lab.Lab(place, [f"[user net]\nmtu = {mtu}\n", tap], self.shards).start()
        hand_over(place, None, mtu)


class Shardnet1(Shardnet2):
    """shardnet, [user] and [tap] in one worker"""

    name = "shardnet 1"
    shards = 1


class Slirp4netns(UserPeer):
    """slirp4netns (libslirp and a TAP), as much mtu as the guest has"""

    name = "slirp4netns"
    needs: ClassVar = {"slirp4netns": "slirp4netns"}

    def start(self, place: corner.Corner, mtu: int) -> None:
        how = ("--mtu", mtu, "--netns-type=path", f"/run/netns/{place.name}-a", "e")
        place.daemon("s", "slirp4netns", "--configure", *how)
        appear(place, "e", "a")
        place.run("a", "ip", "address", "flush", "dev", "e")  # .100, but the guest is .15 everywhere
        hand_over(place, None, mtu)


PASST = ("--foreground", "--runas", "0", "--address", GUEST, "--netmask", PREFIX, "--gateway", HOST)


class Pasta(UserPeer):
    """pasta (passt for a namespace), as much mtu as the guest has"""

    name = "pasta"
    needs: ClassVar = {"pasta": "passt"}

    def start(self, place: corner.Corner, mtu: int) -> None:
        ports = [word for option in ("-t", "-u", "-T", "-U") for word in (option, "none")]
        where = ("--netns", f"/run/netns/{place.name}-a", "--ns-ifname", "e", "--config-net")
        place.daemon("s", "pasta", *PASST, "--mtu", mtu, *ports, *where)
        appear(place, "e", "a")
        hand_over(place, None, mtu)


class Libslirp(UserPeer):
    """libslirp of QEMU without a machine, in a hub with a TAP; QEMU has no option for its mtu"""

    name = "libslirp"
    needs: ClassVar = {"qemu-system-x86_64": "qemu-system-x86"}
    mtus = (SMALL,)

    def start(self, place: corner.Corner, mtu: int) -> None:
        place.daemon("s", *peers.QEMU, *hub("user,id=n0", "tap,id=n1,ifname=t,script=no,downscript=no"))
        appear(place, "t", "s")
        hand_over(place, "t", mtu)


def hub(*nets: str) -> list[str]:
    """The options of a QEMU that joins these back ends, whose ids are n0, n1."""
    joined = [("-netdev", net, "-netdev", f"hubport,id=h{n},hubid=0,netdev=n{n}") for n, net in enumerate(nets)]
    return [word for words in joined for word in words]


class UserStream(peers.Peer, abc.ABC):
    @abc.abstractmethod
    def start(self, place: corner.Corner) -> str:
        """Return the path of the socket for the guest."""


class ShardnetStream2(UserStream):
    """shardnet as it comes: a worker for [user], one for [stream]"""

    name = "shardnet 2"
    shards = 0  # as it comes

    @classmethod
    def missing(cls) -> str | None:
        return lab.missing()

    def start(self, place: corner.Corner) -> str:
        path = f"{place.path}/guest"
        stream = f"[stream e]\nserver = on\naddr.type = unix\naddr.path = {path}\n"
        lab.Lab(place, ["[user net]\n", stream], self.shards).start()
        return path


class ShardnetStream1(ShardnetStream2):
    """shardnet, [user] and [stream] in one worker"""

    name = "shardnet 1"
    shards = 1


class LibslirpStream(UserStream):
    """libslirp of QEMU without a machine, in a hub with -netdev stream"""

    name = "libslirp"
    needs: ClassVar = {"qemu-system-x86_64": "qemu-system-x86"}

    def start(self, place: corner.Corner) -> str:
        path = f"{place.path}/guest"
        stream = f"stream,id=n1,server=on,addr.type=unix,addr.path={path}"
        place.daemon("s", *peers.QEMU, *hub("user,id=n0", stream))
        corner.wait(path, Path(path).exists)
        return path


class Passt(UserStream):
    """passt, on its unix socket"""

    name = "passt"
    needs: ClassVar = {"passt": "passt"}

    def start(self, place: corner.Corner) -> str:
        path = f"{place.path}/guest"
        place.daemon("s", "passt", *PASST, "--mtu", SMALL, "--socket", path)
        corner.wait(path, Path(path).exists)
        return path


USERS: tuple[type[UserPeer], ...] = (Veth, Shardnet1, Shardnet2, Slirp4netns, Pasta, Libslirp)
STREAMS: tuple[type[UserStream], ...] = (ShardnetStream1, ShardnetStream2, LibslirpStream, Passt)


def bulk(measure: str, *way: str) -> Callable[[corner.Corner, str, Round], None]:
    """TCP by iperf3, and the CPU time of a GB."""

    def measured(place: corner.Corner, name: str, turn: Round) -> None:
        server = place.client("s", "iperf3", "--server", "--one-off", "--forceflush")
        corner.said(server, "listening")
        before = place.cpu_s()
        how = ("--time", max(1, int(turn.seconds)), "--json", *way)
        received = json.loads(place.run("a", "iperf3", "--client", HOST, *how))["end"]["sum_received"]
        used_s = place.cpu_s() - before
        server.communicate()
        turn.add(measure, name, received["bits_per_second"] / 1e9)
        if place.daemons:
            turn.add(f"{measure} cpu", name, used_s / (received["bytes"] / 1e9))

    return measured


def crr(place: corner.Corner, name: str, turn: Round) -> None:
    """Connect, ask, read the answer and the end; one at a time."""
    before = place.cpu_s()
    client = place.client("a", programs.program("connections"), "crr", HOST, ECHO_PORT, min(turn.seconds, SMALL_S))
    count, seconds = corner.finish(client, 30)
    turn.add("user crr", name, count / seconds)
    if place.daemons:
        turn.add("user crr cpu", name, (place.cpu_s() - before) / count * 1e6)


def pingpong(place: corner.Corner, name: str, turn: Round) -> None:
    """64 bytes there and back on one connection."""
    client = place.client("a", programs.program("connections"), "ask", HOST, ECHO_PORT, min(turn.seconds, SMALL_S))
    p50, p99, *_ = corner.finish(client, 30)
    turn.add("user p50", name, p50)
    turn.add("user p99", name, p99)


def udp64(place: corner.Corner, name: str, turn: Round) -> None:
    """As many small frames as the guest can make; what counts is what arrives."""
    delivered, used_s, seconds = pair.flood(place, "a", "s", HOST, min(turn.seconds, SMALL_S))
    turn.add("user udp64", name, delivered / seconds / 1e3)
    if place.daemons:
        turn.add("user udp64 cpu", name, delivered / used_s / 1e3)


TCP = {
    way: {mtu: bulk(f"user {way} {mtu}", *options) for mtu in (SMALL, LARGE)}
    for way, options in (("out", ()), ("in", ("--reverse",)))
}
ROWS: dict[str, dict[int, Sequence[Callable[[corner.Corner, str, Round], None]]]] = {
    "user-tcp": {mtu: [TCP["out"][mtu], TCP["in"][mtu]] for mtu in (SMALL, LARGE)},
    "user-small": {SMALL: [crr, pingpong, udp64]},
}


def answering(place: corner.Corner) -> None:
    """Give the host its echo, and wait until the guest reaches it."""
    server = place.client("s", programs.program("connections"), "serve", ECHO_PORT)
    corner.said(server, "ready")

    def answers() -> bool:
        place.cpu_s()  # which fails when the peer is dead
        try:
            place.run("a", programs.program("connections"), "ask", HOST, ECHO_PORT, 0.02)
        except corner.Failed:
            return False
        return True

    corner.wait(f"{place.name}: first answer", answers)


@contextlib.contextmanager
def corner_of(kind: type[peers.Peer], what: str) -> Iterator[corner.Corner]:
    """A corner whose host has a way out, and whose guest and host have ports enough."""
    if why := kind.missing():
        raise corner.Failed(why)
    with corner.Corner(f"{kind.name.replace(' ', '-')}-{what}") as place:
        for side in "as":
            place.run(side, "sysctl", "-qw", "net.ipv4.ip_local_port_range=1024 65535")
        place.run("s", "ip", "link", "add", "name", "outside", "up", "type", "veth", "peer", "name", "nobody")
        place.run("s", "ip", "address", "add", f"{OUTSIDE}/24", "dev", "outside")
        place.run("s", "ip", "link", "set", "outside", "up")
        place.run("s", "ip", "route", "add", "default", "via", OUTSIDE_ROUTER)
        yield place


def measure(rows: Sequence[str], wanted: Callable[[type[peers.Peer]], bool], turn: Round) -> None:
    """One round of each row that is asked for."""
    for mtu in SMALL, LARGE:
        taken = [take for row, mtus in ROWS.items() if row in rows for take in mtus.get(mtu, ())]
        if taken:
            in_turns([kind for kind in USERS if mtu in kind.mtus and wanted(kind)], mtu, taken, turn)
    if "user-flows" in rows:
        for kind in filter(wanted, USERS):
            with turn.attempt(f"{kind.name}, flows"), corner_of(kind, "flows") as place:
                kind().start(place, SMALL)
                answering(place)
                flows(place, kind.name, turn)
    if "user-stream" in rows:
        for stream in filter(wanted, STREAMS):
            with turn.attempt(f"{stream.name}, user stream"), corner_of(stream, "stream") as place:
                place.client("a", programs.program("tapstream"), "e", stream().start(place))
                appear(place, "e", "a")
                hand_over(place, None, SMALL)
                answering(place)
                for way, options in ("out", ()), ("in", ("--reverse",)):
                    bulk(f"user stream {way}", *options)(place, stream.name, turn)


def in_turns(
    kinds: Sequence[type[UserPeer]],
    mtu: int,
    taken: Sequence[Callable[[corner.Corner, str, Round], None]],
    turn: Round,
) -> None:
    """Set all of them up, then each measurement of each of them, another one first each time."""
    with contextlib.ExitStack() as stack:
        ready: list[tuple[str, corner.Corner]] = []
        for kind in kinds:
            with turn.attempt(f"{kind.name}, mtu {mtu}"):
                place = stack.enter_context(corner_of(kind, str(mtu)))
                kind().start(place, mtu)
                answering(place)
                ready.append((kind.name, place))
        for index, take in enumerate(taken):
            first = (turn.number + index) % max(1, len(ready))
            for name, place in ready[first:] + ready[:first]:
                with turn.attempt(f"{name}, mtu {mtu}"):
                    take(place, name, turn)


def flows(place: corner.Corner, name: str, turn: Round) -> None:
    """Memory of a peer's processes without flows and with some, and the time until many are open and answer."""
    idle = place.pss()
    few, _, _ = opened(place, FEW)
    with_few = place.pss()
    corner.end(few)
    _, seconds, answered = opened(place, MANY)
    if place.daemons:
        turn.add("user idle", name, idle / 1e6)
        turn.add("user few", name, with_few / 1e6)
    if answered < MANY:
        raise corner.Failed(f"{answered} of {MANY} flows answered within {OPEN_S:.0f} s")
    turn.add("user open", name, seconds)
    if place.daemons:
        turn.add("user flow", name, (place.pss() - idle) / MANY / 1e3)


def opened(place: corner.Corner, count: int) -> tuple[subprocess.Popen[bytes], float, int]:
    """Have the guest open `count` flows and keep them: its process, the seconds it took, and how many answered."""
    client = place.client("a", programs.program("connections"), "open", HOST, ECHO_PORT, count, OPEN_S)
    said = corner.said(client, "ready", OPEN_S + 10)
    seconds, answered, *_ = said.split()
    return client, float(seconds), int(answered)
