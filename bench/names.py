"""Row dns: questions a second that each DNS server answers, from what it keeps and by asking the next one, and what it loses at 5,000.

The next one is a dnsmasq that knows every name itself, on the loopback of the server's namespace; dnsperf asks from the client's.
"""

import contextlib
import re
import shutil
from collections.abc import Iterator

from bench import corner, lab, peers
from bench.samples import Round

SERVER, CLIENT, NEXT = "10.0.2.3", "10.0.2.15", "127.0.0.1"
KEPT, FRESH = 1000, 300_000  # names that are asked again and again, and names that are asked once
CACHE = 10_000
UNDER_WAY, CLIENTS = 100, 8
RATE = 5_000
NEEDS = {"dnsperf": "dnsperf", "dnsmasq": "dnsmasq-base"}


class Shardnet(peers.Peer):
    """shardnet, [dns] and a TAP, a worker each"""

    name = "shardnet"
    keeps = True

    @classmethod
    def missing(cls) -> str | None:
        return lab.missing()

    def start(self, place: corner.Corner) -> None:
        dns = f"[dns names]\naddress = {SERVER}/24\ndns-servers = {NEXT}\ncache = {CACHE}\nrate = 0\n"
        tap = f"[tap e]\nifname = e\nnetns = {place.name}-a\naddress = {CLIENT}/24\n"
        lab.Lab(place, [dns, tap]).start()


class Dnsmasq(peers.Peer):
    """dnsmasq over a veth pair, no switch between"""

    name = "dnsmasq"
    keeps = True

    def start(self, place: corner.Corner) -> None:
        place.run("s", "ip", "link", "add", "name", "v", "type", "veth", "peer", "name", "ve")
        place.run("s", "ip", "address", "add", f"{SERVER}/24", "dev", "v")
        place.run("s", "ip", "link", "set", "v", "up")
        peers.hand_over(place, "ve", "a", CLIENT)
        most = ("--dns-forward-max=1000", f"--cache-size={CACHE}")
        place.daemon("s", *dnsmasq(SERVER), f"--server={NEXT}", *most)


class Libslirp(peers.Peer):
    """libslirp's forwarding, of QEMU without a machine, and a TAP in a hub"""

    name = "libslirp"
    needs = {"qemu-system-x86_64": "qemu-system-x86"}
    keeps = False

    def start(self, place: corner.Corner) -> None:
        nets: list[str] = []
        for n, net in enumerate(("user,id=n0", "tap,id=n1,ifname=way,script=no,downscript=no")):
            nets += ["-netdev", net, "-netdev", f"hubport,id=h{n},hubid=0,netdev=n{n}"]
        place.daemon("s", *peers.QEMU, *nets)
        corner.wait("libslirp: its TAP", lambda: peers.present(place, "way"))
        peers.hand_over(place, "way", "a", CLIENT)


SERVERS = (Shardnet, Dnsmasq, Libslirp)


def measure(turn: Round) -> None:
    """One round: each server, in the same order."""
    for kind in SERVERS:
        with turn.attempt(f"{kind.name}, dns"):
            if why := kind.missing() or absent():
                raise corner.Failed(why)
            with corner.Corner(f"dns-{kind.name}") as place, resolved(place):
                kind().start(place)
                one(place, turn, kind.name, kind.keeps)


def one(place: corner.Corner, turn: Round, name: str, keeps: bool) -> None:
    """Measure the server that is there."""
    first, second = files(place)
    corner.wait(f"{name}: an answer", lambda: answers(place), 30)
    lost = 0.0
    if keeps:
        load(place, "kept", turn.seconds / 2)
        turn.add("dns kept", name, load(place, "kept", turn.seconds)[0] / 1e3)
        lost += load(place, "kept", turn.seconds, RATE)[1]
    turn.add("dns asked", name, load(place, first, turn.seconds)[0] / 1e3)
    lost += load(place, second, turn.seconds, RATE)[1]
    turn.add("dns lost", name, lost)


def absent() -> str | None:
    missing = [package for program, package in NEEDS.items() if not shutil.which(program)]
    return f"not installed: {' '.join(missing)} (tools/setup bench)" if missing else None


def dnsmasq(address: str) -> list[str]:
    """A dnsmasq with nothing but what is said."""
    alone = ("--conf-file=/dev/null", "--no-resolv", "--no-hosts", "--pid-file=", "--user=root", "--bind-interfaces")
    return ["dnsmasq", "--keep-in-foreground", *alone, f"--listen-address={address}"]


@contextlib.contextmanager
def resolved(place: corner.Corner) -> Iterator[None]:
    """Start the next server, and have it in resolv.conf, which is where libslirp looks."""
    names = place.path / "names"
    names.write_text("".join(f"192.0.2.{n % 250} n{n}.kept.test\n" for n in range(KEPT)))
    place.daemon("s", *dnsmasq(NEXT), f"--addn-hosts={names}", "--address=/fresh.test/192.0.2.1", "--local-ttl=300")
    conf = place.path / "resolv.conf"
    conf.write_text(f"nameserver {NEXT}\n")
    corner.run("mount", "--bind", conf, "/etc/resolv.conf")  # in the mount namespace of the benchmark
    try:
        yield
    finally:
        corner.run("umount", "/etc/resolv.conf")


def files(place: corner.Corner) -> list[str]:
    """Write what dnsperf asks; the fresh names are in two files, of which each is read once."""
    (place.path / "kept").write_text("".join(f"n{n}.kept.test A\n" for n in range(KEPT)))
    halves = {"fresh1": range(FRESH // 2), "fresh2": range(FRESH // 2, FRESH)}
    for name, numbers in halves.items():
        (place.path / name).write_text("".join(f"n{n}.fresh.test A\n" for n in numbers))
    return list(halves)


def answers(place: corner.Corner) -> bool:
    """Is the server there by now?"""
    try:
        return load(place, "kept", 0.2, 20)[0] > 0
    except corner.Failed:
        return False


def load(place: corner.Corner, file: str, seconds: float, rate: int = 0) -> tuple[float, float]:
    """Questions answered a second, and how many never were."""
    words = ["dnsperf", "-s", SERVER, "-d", place.path / file, "-l", max(1, round(seconds)), "-q", UNDER_WAY]
    words += ["-c", CLIENTS, "-t", 2, *(("-Q", rate) if rate else ())]
    said = place.run("a", *words)
    codes = re.search(r"Response codes: +(.*)", said)
    if not codes or not re.fullmatch(r"NOERROR \d+ \(100\.00%\)", codes[1]):
        raise corner.Failed(f"{file}: {codes[1] if codes else said.strip()[-200:]}")
    speed, lost = re.search(r"Queries per second: +([\d.]+)", said), re.search(r"Queries lost: +(\d+)", said)
    assert speed and lost, said
    return float(speed[1]), float(lost[1])
