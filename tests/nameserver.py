"""Resolvers for the DNS service to ask: dnsmasq on a loopback address of this host, with names of the test's own."""

import contextlib
import os
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import deadline


def loopback(number: int = 1) -> str:
    """An address of the loopback that no other test run has, on which port 53 is free."""
    pid = os.getpid()
    return f"127.{100 + number}.{pid >> 8 & 255}.{max(1, pid & 255)}"


class Dnsmasq:
    """A dnsmasq that answers at one address; what it was asked stands in its log."""

    def __init__(self, directory: Path, address: str, port: int = 53, *options: str) -> None:
        self.address, self.port, self.options = address, port, options
        self.log = directory / f"dnsmasq-{address}-{port}.log"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, and wait until it listens."""
        self.process = subprocess.Popen(
            ["dnsmasq", "--keep-in-foreground", "--conf-file=/dev/null", "--no-resolv", "--no-hosts", "--pid-file=", "--user=root"]
            + [f"--port={self.port}", f"--listen-address={self.address}", "--bind-interfaces", "--local=/test/", "--edns-packet-max=4096"]
            + ["--log-queries", f"--log-facility={self.log}", *self.options],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        deadline.until(self._listens, f"dnsmasq at {self.address}")

    def stop(self) -> None:
        """End it."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def asked(self, name: str) -> int:
        """How often it was asked for a name."""
        return self.log.read_text().count(f"] {name} from ") if self.log.exists() else 0

    def _listens(self) -> bool:
        assert self.process is not None and self.process.poll() is None, "dnsmasq ended"
        with socket.socket() as probe:
            return probe.connect_ex((self.address, self.port)) == 0


@contextlib.contextmanager
def answering(directory: Path, address: str, *options: str, port: int = 53) -> Iterator[Dnsmasq]:
    """A dnsmasq for as long as the block."""
    made = Dnsmasq(directory, address, port, *options)
    made.start()
    try:
        yield made
    finally:
        made.stop()
