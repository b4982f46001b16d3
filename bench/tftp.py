"""Row tftp: the time for a file of 20 MB from each TFTP server, fetched block by block, and with windows where there are any."""

import filecmp
import functools
import os
import shutil
import time
from pathlib import Path

from bench import corner, lab, peers
from bench.samples import Round

SERVER, CLIENT = "10.0.2.2", "10.0.2.15"
FILE, BYTES = "file", 20_000_000
PATIENCE_S = 120.0
CLIENTS = {
    "tftp block": ("curl", "-s", "-S", "--tftp-blksize", "1428", "-o", "got", f"tftp://{SERVER}/{FILE}"),
    "tftp window": (
        *("atftp", "--option", "blksize 1428", "--option", "windowsize 64"),
        *("-g", "-r", FILE, "-l", "got", SERVER),
    ),
}


class Shardnet(peers.Peer):
    """shardnet, [tftp] and a TAP, a worker each"""

    name = "shardnet"
    placed = ""

    @classmethod
    def missing(cls) -> str | None:
        return lab.missing()

    def start(self, place: corner.Corner, files: Path) -> None:
        tap = f"[tap e]\n{self.placed}ifname = e\nnetns = {place.name}-a\naddress = {CLIENT}/24\n"
        lab.Lab(place, [f"[tftp files]\n{self.placed}tftp = {files}\naddress = {SERVER}/24\n", tap]).start()


class Together(Shardnet):
    """the same in one worker (shard = one): no process is woken between a block and its ACK"""

    name = "shardnet 1"
    placed = "shard = one\n"


class Hpa(peers.Peer):
    """tftpd-hpa over a veth pair, no switch between"""

    name = "tftpd-hpa"
    needs = {"in.tftpd": "tftpd-hpa"}

    def start(self, place: corner.Corner, files: Path) -> None:
        place.run("s", "ip", "link", "add", "name", "v", "type", "veth", "peer", "name", "ve")
        place.run("s", "ip", "address", "add", f"{SERVER}/24", "dev", "v")
        place.run("s", "ip", "link", "set", "v", "up")
        attach(place, "ve")
        place.daemon("s", "in.tftpd", "-L", "-u", "root", "-s", "--address", f"{SERVER}:69", files)


class Libslirp(peers.Peer):
    """libslirp's, of QEMU without a machine, and a TAP in a hub"""

    name = "libslirp"
    needs = {"qemu-system-x86_64": "qemu-system-x86"}

    def start(self, place: corner.Corner, files: Path) -> None:
        nets: list[str] = []
        for n, net in enumerate((f"user,id=n0,tftp={files}", "tap,id=n1,ifname=t1,script=no,downscript=no")):
            nets += ["-netdev", net, "-netdev", f"hubport,id=h{n},hubid=0,netdev=n{n}"]
        place.daemon("s", *peers.QEMU, *nets)
        corner.wait("libslirp: t1", lambda: peers.present(place, "t1"))
        attach(place, "t1")


SERVERS = (Shardnet, Together, Hpa, Libslirp)


def attach(place: corner.Corner, interface: str) -> None:
    """Give an interface to the client."""
    place.run("s", "ip", "link", "set", "dev", interface, "netns", f"{place.name}-a", "name", "e")
    place.run("a", "ip", "address", "add", f"{CLIENT}/24", "dev", "e")
    place.run("a", "ip", "link", "set", "e", "up")


def measure(turn: Round) -> None:
    """One round: each client from each server."""
    for kind in SERVERS:
        with turn.attempt(f"{kind.name}, tftp"):
            if why := kind.missing() or absent():
                raise corner.Failed(why)
            with corner.Corner(f"tftp-{kind.name}") as place:
                files = place.path / "files"
                files.mkdir()
                (files / FILE).write_bytes(os.urandom(BYTES))
                kind().start(place, files)
                answered = functools.partial(answers, place, files)
                corner.wait(f"{kind.name}: an answer", answered, 30)
                for measured in CLIENTS:
                    turn.add(measured, kind.name, fetched(place, files, measured) * 1e3)


def absent() -> str | None:
    missing = [words[0] for words in CLIENTS.values() if not shutil.which(words[0])]
    return f"not installed: {' '.join(missing)} (tools/setup bench)" if missing else None


def answers(place: corner.Corner, files: Path) -> bool:
    """Is the server there by now?"""
    return fetched(place, files, "tftp block") > 0


def fetched(place: corner.Corner, files: Path, measured: str) -> float:
    """Seconds that a client takes; 0 where it gets nothing yet."""
    got = place.path / "got"
    got.unlink(missing_ok=True)
    began = time.monotonic()
    try:
        place.run("a", "timeout", PATIENCE_S, "env", "-C", place.path, *CLIENTS[measured])
    except corner.Failed:
        if measured == "tftp block":
            return 0.0
        raise
    took = time.monotonic() - began
    if not filecmp.cmp(got, files / FILE, shallow=False):
        raise corner.Failed(f"{measured}: the file is not the same")
    return took
