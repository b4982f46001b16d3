"""What two machines on one wire show each other, by programs that are not ours: echoes, 20 MB each way, a VLAN of their own."""

import contextlib
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import deadline
import vlan_device
from namespaces import Namespace

BULK = 20_000_000
# For `bulk` through passt. That of 2023 tells the guest of more room than it has, and sends what the guest has room for where it has
# none itself; it drops the rest, sends much of it again, and may reset the connection or end it early.
PASST_MOST = 65_536
PORT = 7000
# Three at once: after the last ping waits for two round trips or for its interval, whichever is longer, and no more.
PING = ("ping", "-n", "-c", "3", "-l", "3", "-i", "1", "-W", "10")
CHECKSUMS = ("TcpInCsumErrors", "UdpInCsumErrors", "Udp6InCsumErrors", "IcmpInCsumErrors")


def answered(namespace: Namespace, address: str, within: float = 20) -> None:
    """Wait for the first answer to a ping."""
    words = [*namespace.enter, "ping", "-n", "-c", "1", "-W", "1", address]

    def asked() -> bool:
        return subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True).returncode == 0

    deadline.until(asked, f"an answer of {address}", within)


def ping(namespace: Namespace, address: str, size: int = 56, cut: bool = False) -> None:
    """Ping three times; every answer has to come, once, and no packet may be cut to fragments but where this is said."""
    all_answered(namespace.run(*PING, *([] if cut else ["-M", "do"]), "-s", str(size), address))


def all_answered(said: str) -> None:
    """Check what PING has printed: each answer came, once, and is what was asked."""
    assert " 0% packet loss" in said and "DUP" not in said and "wrong" not in said, said


def bulk(client: Namespace, server: Namespace, address: str, directory: Path, most: int = 0) -> None:
    """20 MB from the client to the server by socat, and 20 MB back, each compared by its sha256; the client dials.

    most: bytes that its socket may hold in each direction, which bounds what is on its way; 0: as many as the kernel likes.
    """
    blob, got = directory / "blob", directory / "got"
    blob.write_bytes(os.urandom(BULK))
    want = hashlib.sha256(blob.read_bytes()).hexdigest()
    kind, host = ("TCP6", f"[{address}]") if ":" in address else ("TCP4", address)
    bound = f",sndbuf={most},rcvbuf={most}" if most else ""
    listen, dial = f"{kind}-LISTEN:{PORT},reuseaddr", f"{kind}:{host}:{PORT}{bound}"
    read, write = f"FILE:{blob}", f"CREATE:{got}"
    for near, far in (((read, dial), (listen, write)), ((dial, write), (read, listen))):
        got.unlink(missing_ok=True)
        with server.running("socat", "-u", *far) as process:
            deadline.until(lambda: f":{PORT} " in server.run("ss", "-Hltn"), "socat listening")
            client.run("socat", "-u", *near)
            assert process.wait(30) == 0
        assert hashlib.sha256(got.read_bytes()).hexdigest() == want


@contextlib.contextmanager
def vlan(namespace: Namespace, link: str, number: int, address: str) -> Iterator[None]:
    """A VLAN interface on a link, with an address, by a program in user space: this kernel need not have 8021q."""
    name = f"v{number}"
    with namespace.running(sys.executable, vlan_device.__file__, link, name, str(number)) as device:
        assert device.stdout.readline() == "ready\n"
        namespace.run("ip", "link", "set", name, "mtu", "1400", "up")
        namespace.run("ip", "address", "add", address, "dev", name)
        yield


def iperf3(here: Namespace, there: Namespace, address: str, *options: str) -> dict[str, Any]:
    """Run iperf3 from here to there and return the end of its report."""
    with there.running("iperf3", "--server", "--one-off"):
        deadline.until(lambda: ":5201 " in there.run("ss", "-Hltn"), "iperf3 listening")
        return json.loads(here.run("iperf3", "--json", "--client", address, *options))["end"]


def counted(side: Namespace, name: str) -> int:
    """One of the kernel's counters of a namespace."""
    (line,) = [line for line in side.run("nstat", "-asz", name).splitlines() if not line.startswith("#")]
    return int(line.split()[1])


def wrong_checksums(*sides: Namespace) -> int:
    """How many segments and datagrams these have thrown away for their checksum."""
    return sum(counted(side, name) for side in sides for name in CHECKSUMS)
