"""A Linux guest in QEMU that runs commands for a test: Debian's cloud kernel, busybox, an emulated processor.

It boots in two or three seconds. Commands go to its second serial port, which is QEMU's standard input and output; what its kernel
says goes to a file that a failure quotes. Each network device is a `-netdev` string of QEMU's without its id; in the guest they are
eth0, eth1 and so on, in that order. Of vhost-user the string has what its socket's chardev is told, and queues=N; the guest has two
processors where a device has several queues. An http server serves /srv on every address: a file crosses by wget, and its sha256 is compared.
With tools it has this host's curl, ping, traceroute and Python too, in /usr/bin, and /probe.py.

With firmware, "bios" or "uefi", it has no kernel: the firmware is to find one on the network, by iPXE in the card's ROM (bios) or by
itself (uefi). A kernel started with COMMAND_LINE and archive() is the same guest then.
"""

import contextlib
import functools
import itertools
import os
import shutil
import stat
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import deadline
from guest import initramfs, toolbox

KERNEL = Path(__file__).parents[2] / "build" / "guest"
OVMF = Path("/usr/share/OVMF")
BUSYBOX = Path("/bin/busybox")
QEMU = "qemu-system-x86_64"
COMMAND_LINE = "console=ttyS0 quiet panic=-1 edd=off mitigations=off audit=0"
PROBE = Path(__file__).parents[1] / "probe.py"
TOOLS = ("curl", "ping", "traceroute")
MODULES = ("errno", "hashlib", "json", "selectors", "socket", "struct", "time")  # what probe.py imports
numbers = itertools.count(1)
consoles = itertools.count(1)


class Guest:
    """One running guest."""

    def __init__(
        self,
        netdevs: Sequence[str],
        directory: Path,
        memory: int = 128,
        tools: bool = False,
        more: Sequence[str] = (),
        number: int | None = None,
        firmware: str = "",
        model: str = "virtio-net-pci",
        rom: str = "",  # a file for the card's ROM in place of QEMU's own, which only bios has
    ) -> None:
        self.number = number or next(numbers)
        self.netdevs = list(netdevs)
        self.directory = directory
        self.memory = memory
        self.tools = tools
        self.more = list(more)  # words for QEMU
        self.firmware, self.model, self.rom = firmware, model, rom
        self.sums: dict[str, str] = {}  # of the files that it serves
        self.start()

    def mac(self, nic: int) -> str:
        return f"52:54:00:00:{self.number:02x}:{nic:02x}"

    def start(self) -> None:
        """Boot; returns at once. The first command waits for the guest to be up."""
        self.console = self.directory / f"guest{next(consoles)}.console"
        options = [
            "setpriv",
            "--pdeathsig",
            "KILL",
            QEMU,
            "-no-user-config",
            "-nodefaults",
            "-display",
            "none",
            "-no-reboot",
            "-accel",
            "tcg",
        ]
        options += [*self._beginning(), "-m", str(self.memory), "-serial", f"file:{self.console}", "-serial", "stdio"]
        if any(netdev.startswith("vhost-user,") for netdev in self.netdevs):
            options += ["-object", f"memory-backend-memfd,id=mem,size={self.memory}M,share=on"]
            options += ["-machine", "memory-backend=mem"]
        if any("queues=" in netdev for netdev in self.netdevs):
            options += ["-smp", "2"]
        for nic, netdev in enumerate(self.netdevs):
            kind, _, rest = netdev.partition(",")
            device = f"{self.model},netdev=n{nic},mac={self.mac(nic)}"
            if self.rom or self.firmware != "bios":
                device += f",romfile={self.rom}"
            if kind == "vhost-user":
                rest, _, queues = rest.partition(",queues=")
                options += ["-chardev", f"socket,id=c{nic},{rest}"]
                rest = f"chardev=c{nic}"
                # QEMU 7.2 without KVM dies at an interrupt of such a device by MSI-X.
                device += ",vectors=0"
                if queues:
                    rest += f",queues={queues}"
                    device += ",mq=on"
            options += ["-netdev", f"{kind},id=n{nic},{rest}", "-device", device]
        options += self.more
        self.errors = tempfile.TemporaryFile(dir=self.directory)
        self.qemu = subprocess.Popen(
            options, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors, bufsize=0
        )
        self.ready = False

    def _beginning(self) -> list[str]:
        """QEMU's words for what the processor begins with; firmware speaks on the first serial port."""
        if not self.firmware:
            return [
                "-M",
                "pc",
                "-kernel",
                str(KERNEL / "vmlinuz"),
                "-initrd",
                str(archive(self.tools)),
                "-append",
                COMMAND_LINE,
            ]
        if self.firmware == "bios":
            return ["-M", "pc,graphics=off", "-boot", "n"]
        variables = shutil.copy(OVMF / "OVMF_VARS_4M.fd", self.console.with_suffix(".fd"))
        flash = [f"readonly=on,file={OVMF / 'OVMF_CODE_4M.fd'}", f"file={variables}"]
        return ["-M", "q35", *(word for part in flash for word in ("-drive", f"if=pflash,format=raw,{part}"))]

    def run(self, command: str, within: float = 30) -> str:
        """Run one line of shell in the guest and return what it printed; a status other than 0 is a failure."""
        if not self.ready:
            self._until(b"READY\n", "boot", within=240 if self.firmware else 60)
            self.ready = True
        assert "\n" not in command
        self.qemu.stdin.write(f"{{ {command} ; }} </dev/null; printf '\\001%d\\002' $?\n".encode())
        printed, _, status = self._until(b"\x02", command, within).rpartition(b"\x01")
        text = printed.decode(errors="replace")
        assert status == b"0", f"guest {self.number}: {command}: status {status.decode()}: {text}"
        return text

    def address(self, nic: int, address: str, mtu: int = 1500) -> None:
        """Give the network device an address, ADDRESS/BITS, of either family."""
        nodad = f"echo 0 >/proc/sys/net/ipv6/conf/eth{nic}/accept_dad; " if ":" in address else ""
        self.run(f"{nodad}ip link set eth{nic} mtu {mtu} up; ip address add {address} dev eth{nic}")

    def ping(self, address: str, count: int = 3, size: int = 56) -> None:
        """Ping until the first reply, then `count` times without a loss."""
        self.run(f"for i in $(seq 30); do ping -c 1 -W 1 {address} >/dev/null && break; done", within=60)
        said = self.run(f"ping -c {count} -i 0.1 -W 3 -s {size} {address}", within=10 + 3 * count)
        assert f"{count} packets transmitted, {count} packets received" in said, said

    def fill(self, name: str, megabytes: int) -> str:
        """Make a file of random bytes that others can fetch; returns its sha256."""
        said = self.run(f"head -c {megabytes}m /dev/urandom >/srv/{name} && sha256sum </srv/{name}", within=60)
        self.sums[name] = said.split()[0]
        return self.sums[name]

    def fetch(self, url: str, within: float = 120) -> str:
        """Fetch a file from another guest's or host's http server; returns the sha256 of what came."""
        return self.run(f"set -o pipefail; wget -q -O - {url} | sha256sum", within).split()[0]

    def restart(self) -> None:
        """Kill QEMU and start it anew with the same devices."""
        self.close()
        self.start()

    def close(self) -> None:
        self.qemu.kill()
        self.qemu.wait()
        for end in (self.qemu.stdin, self.qemu.stdout, self.errors):
            end.close()

    def _until(self, mark: bytes, what: str, within: float) -> bytes:
        """Read the guest's output up to `mark`."""
        end = time.monotonic() + within
        output = b""
        while not output.endswith(mark):
            try:
                deadline.readable(self.qemu.stdout.fileno(), what, max(0, end - time.monotonic()))
            except AssertionError as late:
                raise AssertionError(
                    f"guest {self.number}: {what}: no answer within {within:g} s{self._trouble(output)}"
                ) from late
            data = os.read(self.qemu.stdout.fileno(), 65536)
            assert data, f"guest {self.number}: {what}: QEMU ended{self._trouble(output)}"
            output += data
        return output[: -len(mark)]

    def _trouble(self, output: bytes) -> str:
        """What the guest, its kernel and QEMU had to say."""
        self.errors.seek(0)
        parts = {"printed": output, "QEMU": self.errors.read(), "console": self.console.read_bytes()[-2000:]}
        return "".join(f"\n{name}: {text.decode(errors='replace')}" for name, text in parts.items() if text)


@contextlib.contextmanager
def booting(directory: Path) -> Iterator[Callable[..., Guest]]:
    """Boot guests by calling what this gives; they are gone after the block."""
    with contextlib.ExitStack() as stack:

        def boot(netdevs: list[str], **given: Any) -> Guest:
            booted = Guest(netdevs, directory, **given)
            stack.callback(booted.close)
            return booted

        yield boot


def lacking() -> str | None:
    """Why guests cannot run here, or None."""
    if not shutil.which(QEMU):
        return f"no {QEMU} (Debian: qemu-system-x86)"
    if not BUSYBOX.exists():
        return f"no {BUSYBOX} (Debian: busybox-static)"
    if not (KERNEL / "vmlinuz").exists():
        return f"no kernel for guests (tools/guest-kernel {KERNEL})"
    return None


@functools.cache
def archive(tools: bool = False) -> Path:
    """The file of the guests' initramfs, made anew once a run."""
    path = KERNEL / ("initramfs-tools" if tools else "initramfs")
    more = [*toolbox.entries(TOOLS, MODULES), ("probe.py", 0o644 | stat.S_IFREG, PROBE.read_bytes())] if tools else []
    fresh = path.with_suffix(f".{os.getpid()}")  # another run of the tests may be booting from it
    fresh.write_bytes(initramfs.build(BUSYBOX, KERNEL / "modules", more))
    fresh.replace(path)
    return path
