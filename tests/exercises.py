"""What a guest of a user-mode network does, as one list: against ours and against libslirp and passt, from a namespace and from a guest.

An exercise does something between a place (where the guest's side runs) and sockets of this host, and returns what came of it in a
word or two. `RIGHT` says what that is for a network as good as a cable; a peer's table says where it answers otherwise, and why.
"""

import contextlib
import dataclasses
import functools
import http.server
import json
import os
import queue
import re
import shlex
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import namespaces
import probe

PROBE = str(Path(probe.__file__))
FULL = "SHARDNET_TEST_FULL" in os.environ  # 200 MB and ten minutes; else sizes that CI has time for
MTUS = (1500, 9000, 65520)
UDP_SIZES = (0, 1, 17, 512, 1472, 1473, 9000, 40_000, 65_487, 65_507)
IDLE_S = 600 if FULL else 1
PATIENCE_S = 60


class Namespace:
    """A place: a network namespace, its interface called `inside`."""

    patience = 10.0  # seconds, for an answer that may never come

    def __init__(self, netns: namespaces.Namespace) -> None:
        self.netns, self.interface, self.size = netns, "inside", 200_000_000 if FULL else 30_000_000
        # Before there is an interface: its addresses are static, whatever a router says, and at once.
        netns.run("sysctl", "-qw", "net.ipv6.conf.default.accept_ra=0", "net.ipv6.conf.default.accept_dad=0")

    def run(self, *command: str, within: float = PATIENCE_S) -> tuple[int, str]:
        """Run a command there: its status, and what it printed."""
        ran = subprocess.run(
            [*self.netns.enter, *command], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=within
        )
        return ran.returncode, ran.stdout + ran.stderr

    def probe(self, verb: str, *arguments: Any, within: float = PATIENCE_S) -> Any:
        """What a verb of probe.py says there."""
        return _said(self.run(sys.executable, "-I", "-S", PROBE, verb, json.dumps(arguments), within=within))


class Guest:
    """A place: a Linux guest in QEMU, booted with tools."""

    patience = 10.0

    def __init__(self, guest: Any) -> None:
        self.guest, self.interface, self.size = guest, "eth0", 200_000_000 if FULL else 8_000_000

    def run(self, *command: str, within: float = PATIENCE_S) -> tuple[int, str]:
        text = self.guest.run(f"{shlex.join(command)} 2>&1; printf '\\n%d' $?", within)
        printed, _, status = text.rpartition("\n")
        return int(status), printed

    def probe(self, verb: str, *arguments: Any, within: float = PATIENCE_S) -> Any:
        return _said(
            self.run("/usr/bin/python3", "-I", "-S", "/probe.py", verb, json.dumps(arguments), within=2 * within)
        )


def _said(ran: tuple[int, str]) -> Any:
    status, text = ran
    assert status == 0, text
    return json.loads(text)


@dataclasses.dataclass(frozen=True)
class Family:
    """Addresses of one version of IP, as the guest has them: `host` is what it calls this host."""

    guest: str
    prefix: int
    host: str
    nobody: str  # in the guest's network
    loopback: str  # of this host
    beyond: str  # a machine outside
    nowhere: str  # outside, and this host has an unreachable route to it

    @property
    def sockets(self) -> socket.AddressFamily:
        return probe.family(self.host)


V4 = Family("10.0.2.15", 24, "10.0.2.2", "10.0.2.99", "127.0.0.1", "198.18.79.2", "198.18.80.1")
V6 = Family("fec0::15", 64, "fec0::2", "fec0::99", "::1", "fd18:79::2", "fd18:80::1")
FAMILIES = {"IPv4": V4, "IPv6": V6}


def address(place: Namespace | Guest) -> None:
    """Give the place its static addresses and routes, of both families."""
    commands = [
        "echo 0 | tee /proc/sys/net/ipv6/conf/{dev}/accept_ra /proc/sys/net/ipv6/conf/{dev}/accept_dad",
        "echo 200 | tee /proc/sys/net/ipv[46]/neigh/{dev}/retrans_time_ms",  # who is asked for nobody need not ask for long
        "ip link set dev {dev} up",
        "ip addr add 10.0.2.15/24 dev {dev}",
        "ip -6 addr add fec0::15/64 dev {dev}",
        "ip route add default via 10.0.2.2 dev {dev}",
        "ip -6 route add default via fec0::2 dev {dev} metric 1",
    ]
    status, text = place.run("sh", "-ec", "; ".join(commands).format(dev=place.interface))
    assert status == 0, text


@contextlib.contextmanager
def world() -> Iterator[namespaces.Namespace]:
    """A machine beyond this host, in a namespace; routes that are unreachable; echo allowed to whoever is a worker."""
    near = f"u{os.getpid()}"
    allowed = Path("/proc/sys/net/ipv4/ping_group_range")
    before = allowed.read_text()
    with namespaces.making() as make, contextlib.ExitStack() as undo:
        netns = make("beyond")
        _ip("link", "add", near, "type", "veth", "peer", "name", "far", "netns", netns.name)
        undo.callback(_ip, "link", "del", near)
        allowed.write_text("0 2147483647")
        undo.callback(allowed.write_text, before)
        for family, bits in ((V4, 24), (V6, 64)):
            nodad = ["nodad"] if bits == 64 else []
            _ip("addr", "add", f"{family.beyond[:-1]}1/{bits}", "dev", near, *nodad)
            netns.run("ip", "addr", "add", f"{family.beyond}/{bits}", "dev", "far", *nodad)
            _ip("route", "replace", "unreachable", family.nowhere)
            undo.callback(_ip, "route", "del", "unreachable", family.nowhere)
        _ip("link", "set", near, "up")
        netns.run("ip", "link", "set", "far", "up")
        yield netns


def _ip(*words: str) -> None:
    family = ["-6"] if any(":" in word for word in words) else []
    subprocess.run(["ip", *family, *words], check=True)


@contextlib.contextmanager
def served(family: Family, answer: Callable[[socket.socket], Any]) -> Iterator[tuple[int, "queue.Queue[Any]"]]:
    """Accept on this host's loopback, answer each connection in a thread of its own: the port, and what the answers return."""
    said: queue.Queue[Any] = queue.Queue()

    def one(connection: socket.socket) -> None:
        connection.settimeout(PATIENCE_S + IDLE_S)
        with connection:
            try:
                said.put(answer(connection))
            except OSError as error:
                said.put(probe.name(error))

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=one, args=listener.accept()[:1], daemon=True).start()

    with socket.create_server((family.loopback, 0), family=family.sockets, backlog=512) as listener:
        threading.Thread(target=accept, daemon=True).start()
        try:
            yield listener.getsockname()[1], said
        finally:
            listener.shutdown(socket.SHUT_RDWR)


def heard(said: "queue.Queue[Any]") -> Any:
    """What this host's end of a connection has met with, once it has."""
    try:
        return said.get(timeout=PATIENCE_S)
    except queue.Empty:
        return "silence"


def free(family: Family, kind: socket.SocketKind = socket.SOCK_STREAM) -> int:
    """A port of the loopback where nobody listens."""
    with socket.socket(family.sockets, kind) as gone:
        gone.bind((family.loopback, 0))
        return gone.getsockname()[1]


def swap(place: Any, family: Family, size: int, guest_first: bool) -> str:
    """Bytes both ways over one connection; each side goes on after the other's end, so both halves close alone."""

    def answer(connection: socket.socket) -> tuple[str, str]:
        got = probe.take(connection) if guest_first else ""
        sent = probe.give(connection, "host", size)
        return (got or probe.take(connection)), sent

    with served(family, answer) as (port, said):
        found = place.probe("swap", family.host, port, size, guest_first, place.patience, within=60 + size / 500_000)
        if isinstance(found, str):
            return found
        there = heard(said)
        if isinstance(there, str):
            return there
        return "equal" if tuple(found) == there else "different"


@contextlib.contextmanager
def mtu_of(place: Any, mtu: int) -> Iterator[None]:
    """The guest's interface with this mtu, and with Ethernet's afterwards."""

    def change(to: int) -> None:
        status, text = place.run("ip", "link", "set", "dev", place.interface, "mtu", str(to))
        assert status == 0, text

    change(mtu)
    yield
    change(1500)


def transfer(mtu: int, place: Any, family: Family) -> str:
    with mtu_of(place, mtu):
        return swap(place, family, place.size, guest_first=False)


def half_close(guest_first: bool, place: Any, family: Family) -> str:
    return swap(place, family, 300_000, guest_first)


class Page(http.server.BaseHTTPRequestHandler):
    """An answer of some size to everything."""

    protocol_version = "HTTP/1.1"
    body = b"".join(probe.blocks("page", 100_000))

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(self.body)))
        self.end_headers()
        self.wfile.write(self.body)

    def log_message(self, *words: Any) -> None:
        """Not on the test's output."""


def curl(place: Any, family: Family) -> str:
    kind = type("Server", (http.server.ThreadingHTTPServer,), {"address_family": family.sockets})
    with kind((family.loopback, 0), Page) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            host = f"[{family.host}]" if ":" in family.host else family.host
            url = f"http://{host}:{server.server_address[1]}/"
            options = ["-sS", "-g", "-m", "30", "-o", "/dev/null", "-w", "%{http_code} %{size_download}"]
            return place.run("/usr/bin/curl", *options, url)[1]
        finally:
            server.shutdown()


def reset_by_guest(place: Any, family: Family) -> str:
    def answer(connection: socket.socket) -> str:
        connection.sendall(b"!")
        return "end" if connection.recv(1) == b"" else "data"

    with served(family, answer) as (port, said):
        place.probe("reset", family.host, port)
        return heard(said)


def reset_by_host(place: Any, family: Family) -> str:
    def answer(connection: socket.socket) -> None:
        connection.sendall(b"!")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    with served(family, answer) as (port, _):
        return place.probe("listen", family.host, port)


def refused(place: Any, family: Family) -> str:
    return place.probe("connect", family.host, free(family), place.patience)


def nobody(place: Any, family: Family) -> str:
    """An address of the network that nobody has: the guest hears no answer when it asks who does."""
    return place.probe("connect", family.nobody, 80, place.patience)


def nowhere(place: Any, family: Family) -> str:
    return place.probe("connect", family.nowhere, 80, place.patience)


def idle(place: Any, family: Family) -> str:
    def answer(connection: socket.socket) -> None:
        while data := connection.recv(100):
            connection.sendall(data)

    with served(family, answer) as (port, _):
        return " ".join(place.probe("idle", family.host, port, IDLE_S, within=PATIENCE_S + IDLE_S))


def many(place: Any, family: Family) -> str:
    def answer(connection: socket.socket) -> None:
        connection.recv(100)
        connection.sendall(b"answer")

    with served(family, answer) as (port, _):
        return f"{place.probe('many', family.host, port, 500, 50, within=90)} of 500"


def udp(mtu: int, place: Any, family: Family) -> str:
    with socket.socket(family.sockets, socket.SOCK_DGRAM) as server, mtu_of(place, mtu):
        server.bind((family.loopback, 0))
        server.settimeout(PATIENCE_S)

        def answer() -> None:
            with contextlib.suppress(OSError):
                for _ in UDP_SIZES:
                    data, client = server.recvfrom(1 << 17)
                    server.sendto(data, client)

        threading.Thread(target=answer, daemon=True).start()
        back = place.probe("echo", family.host, server.getsockname()[1], UDP_SIZES, place.patience)
        if isinstance(back, str):
            return back
        lost = [str(size) for size in UDP_SIZES if size not in back]
        return f"lost {' '.join(lost)}" if lost else "all sizes"


def udp_refused(place: Any, family: Family) -> str:
    return place.probe("tell", family.host, free(family, socket.SOCK_DGRAM), place.patience)


def ping(to: str, size: str, place: Any, family: Family) -> str:
    count = "1" if to in ("nobody", "nowhere") else "3"
    _, text = place.run(
        "/usr/bin/ping", "-n", "-c", count, "-i", "0.2", "-W", f"{place.patience:g}", "-s", size, getattr(family, to)
    )
    if " 0% packet loss" in text:
        return "answered"
    told = re.search(r"From (\S+) icmp_seq=1 (.*)", text)
    if not told:
        return "silence"
    # As the kernel names ICMP type 3 code 1, and ICMPv6 type 1 code 3.
    host = told[2] in ("Destination Host Unreachable", "Destination unreachable: Address unreachable")
    return f"{'host unreachable' if host else told[2]}, says {told[1]}"


def trace(place: Any, family: Family) -> str:
    """By UDP, with one probe a hop: who says that its time was up, and who that the port is none."""
    version = "-6" if ":" in family.host else "-4"
    command = [
        "/usr/bin/traceroute",
        version,
        "-n",
        "-q",
        "1",
        "-N",
        "1",
        "-w",
        f"{place.patience:g}",
        "-m",
        "3",
        family.beyond,
    ]
    _, text = place.run(*command)
    return " ".join(re.findall(r"^ *\d+ +(\S+)", text, re.MULTILINE))


@dataclasses.dataclass(frozen=True)
class Exercise:
    do: Callable[[Any, Family], str]
    right: str


EXERCISES: dict[str, Exercise] = {
    **{f"bytes both ways at mtu {mtu}": Exercise(functools.partial(transfer, mtu), "equal") for mtu in MTUS},
    "the guest ends first": Exercise(functools.partial(half_close, True), "equal"),
    "the far end ends first": Exercise(functools.partial(half_close, False), "equal"),
    "curl": Exercise(curl, "200 100000"),
    "a reset by the guest": Exercise(reset_by_guest, "ECONNRESET"),
    "a reset by the far end": Exercise(reset_by_host, "ECONNRESET"),
    "no listener": Exercise(refused, "ECONNREFUSED"),
    "nobody": Exercise(nobody, "EHOSTUNREACH"),
    "nowhere": Exercise(nowhere, "EHOSTUNREACH"),
    "idle": Exercise(idle, "before after"),
    "500 connections, 50 at a time": Exercise(many, "500 of 500"),
    **{f"udp of every size at mtu {mtu}": Exercise(functools.partial(udp, mtu), "all sizes") for mtu in MTUS[::2]},
    "udp without a socket": Exercise(udp_refused, "ECONNREFUSED"),
    "ping the host": Exercise(functools.partial(ping, "host", "56"), "answered"),
    "ping the host with 8000 bytes": Exercise(functools.partial(ping, "host", "8000"), "answered"),
    "ping beyond": Exercise(functools.partial(ping, "beyond", "56"), "answered"),
    "ping nobody": Exercise(functools.partial(ping, "nobody", "56"), "host unreachable, says {guest}"),
    "ping nowhere": Exercise(functools.partial(ping, "nowhere", "56"), "host unreachable, says {host}"),
    "traceroute": Exercise(trace, "{host} {beyond}"),
}


def right(exercise: str, family: Family) -> str:
    """What the exercise should come to."""
    return EXERCISES[exercise].right.format(**dataclasses.asdict(family))
