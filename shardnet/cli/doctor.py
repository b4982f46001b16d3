"""Look at this machine: what of shardnet works here, what does not, and what to do about it.

Usage:
  shardnet doctor [options]

Options:
  -o FORMAT, --output FORMAT  table or json [default: table]
  --no-headers                rows only
  -q, --quiet                 say nothing of what is in order
  -h, --help                  print this

"missing" stops something from working, "poor" makes it slower or smaller. The
exit code is 1 where something is missing without which no lab can run; a back
end that lacks its program does not count.
"""

import dataclasses
import importlib
import importlib.metadata
import os
import re
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from shardnet.cli import namespace, table, usage

PACKAGES = ("docopt-ng", "msgpack", "multiprocess", "posix_ipc", "pyroute2")
SHM_LEAST = 256 << 20  # lanes grow to 4 MiB each as they carry bulk
PORT_RANGE = "/proc/sys/net/ipv4/ip_local_port_range"
FILES_LEAST = 1024  # a worker holds 64 doorbells, the supervisor a copy of every port's descriptors
CAP_NET_ADMIN = 1 << 12  # linux/capability.h
PROGRAMS = (  # name, versions from here on are good, what it is for, Debian's package
    ("qemu-system-x86_64", (7, 2), "guests on stream and dgram ports", "qemu-system-x86"),
    ("passt", (), "[passt] ports", "passt"),
    ("vde_switch", (), "[vde] ports to a switch of VDE's", "vde2"),
    ("ip", (), "looking at what shardnet made", "iproute2"),
)


@dataclasses.dataclass(frozen=True)
class Finding:
    """One thing looked at."""

    what: str
    state: str  # ok, poor or missing
    found: str
    todo: str = ""
    essential: bool = False


def run(argv: Sequence[str]) -> int:
    """Print the findings; 1 where an essential one is missing."""
    arguments = usage.parse(__doc__, "doctor", argv)
    findings = list(look())
    if arguments["--output"] == "json":
        table.json([dataclasses.asdict(finding) for finding in findings])
    else:
        told = [finding for finding in findings if finding.state != "ok" or not arguments["--quiet"]]
        if told:
            rows = [(finding.what, finding.state, finding.found) for finding in told]
            table.show(("WHAT", "STATE", "FOUND"), rows, headers=not arguments["--no-headers"])
        for finding in told:
            if finding.todo:
                print(f"{finding.what}: {finding.todo}")
    return int(any(finding.essential and finding.state == "missing" for finding in findings))


def look() -> Iterator[Finding]:
    """Look at everything; what needs a program or a kernel feature tries it."""
    yield from _system()
    yield _tun()
    yield _rights()
    yield _namespaces()
    yield _shm()
    yield from _limits()
    yield from _packages()
    for program in PROGRAMS:
        yield _program(*program)


def _system() -> Iterator[Finding]:
    release = os.uname().release
    if version(release) >= (6, 2):
        yield Finding("kernel", "ok", release)
    else:  # TUN_F_USO4 and TUN_F_USO6 came with 6.2
        yield Finding("kernel", "poor", release, "Linux 6.2 and newer also pass UDP super-frames through a TAP uncut")
    python = sys.version.split()[0]
    yield Finding(
        "python",
        "ok" if sys.version_info >= (3, 11) else "missing",
        python,
        "" if sys.version_info >= (3, 11) else "needs 3.11",
        essential=True,
    )


def _tun() -> Finding:
    path = "/dev/net/tun"
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        todo = "TAP ports and shardnet exec need it: modprobe tun; in a container: --device /dev/net/tun"
        return Finding(path, "missing", error.strerror or str(error), todo)
    return Finding(path, "ok", "opens")


def _rights() -> Finding:
    status = Path("/proc/self/status").read_text()
    effective = int(re.search(r"^CapEff:\s*([0-9a-f]+)", status, re.MULTILINE)[1], 16)  # type: ignore[index]
    if effective & CAP_NET_ADMIN:
        return Finding("CAP_NET_ADMIN", "ok", "held: TAP, bridge and namespace ports work")
    todo = "a [tap] needs it, or a TAP made for you: ip tuntap add tap0 mode tap user NAME; shardnet exec works without"
    return Finding("CAP_NET_ADMIN", "poor", "not held", todo)


def _namespaces() -> Finding:
    what = "user namespaces" if os.geteuid() else "network namespaces"
    if error := namespace.tried():
        todo = "shardnet exec needs them; "
        for path, wanted in (
            ("/proc/sys/kernel/unprivileged_userns_clone", "1"),
            ("/proc/sys/kernel/apparmor_restrict_unprivileged_userns", "0"),
        ):
            if os.path.exists(path) and Path(path).read_text().strip() != wanted:
                return Finding(
                    what,
                    "missing",
                    error,
                    f"{todo}as root: sysctl -w {path.removeprefix('/proc/sys/').replace('/', '.')}={wanted}",
                )
        return Finding(
            what, "missing", error, f"{todo}in a container: --security-opt seccomp=unconfined, or --privileged"
        )
    return Finding(what, "ok", "can be made")


def _shm() -> Finding:
    try:
        room = os.statvfs("/dev/shm")
    except OSError as error:
        return Finding(
            "/dev/shm", "missing", error.strerror or str(error), "mount -t tmpfs tmpfs /dev/shm", essential=True
        )
    free = room.f_bavail * room.f_frsize
    found = f"{table.size(free)} free of {table.size(room.f_blocks * room.f_frsize)}"
    if free < SHM_LEAST:
        return Finding(
            "/dev/shm",
            "poor",
            found,
            "busy lanes want 4 MiB each: mount -o remount,size=1g /dev/shm; in a container: --shm-size=1g",
        )
    return Finding("/dev/shm", "ok", found)


def _limits() -> Iterator[Finding]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < FILES_LEAST:
        yield Finding("open files", "poor", f"at most {soft}", f"ulimit -n {FILES_LEAST} (the hard limit is {hard})")
    else:
        found = f"at most {_limit(soft)}" + (f", {_limit(hard)} in a lab, which raises it" if soft != hard else "")
        yield Finding("open files", "ok", found)
    first, last = map(int, Path(PORT_RANGE).read_text().split())
    yield Finding("host ports", "ok", f"{last - first + 1}: as many UDP flows of a family has a [user] network at most")
    for what, which, option in (
        ("address space", resource.RLIMIT_AS, "-v"),
        ("file size", resource.RLIMIT_FSIZE, "-f"),
    ):
        soft = resource.getrlimit(which)[0]
        # The arena is 16 GiB of addresses, most of them never touched, each mapped twice.
        if soft == resource.RLIM_INFINITY:
            yield Finding(what, "ok", "no limit")
        else:
            yield Finding(
                what,
                "missing",
                f"at most {table.size(soft)}",
                f"ulimit {option} unlimited: the shared memory of a lab is large and sparse",
                essential=True,
            )


def _packages() -> Iterator[Finding]:
    for name in PACKAGES:
        try:
            yield Finding(name, "ok", importlib.metadata.version(name), essential=True)
        except importlib.metadata.PackageNotFoundError:
            yield Finding(name, "missing", "not installed", f"pip install {name}", essential=True)
    try:
        importlib.import_module("shardnet._core")
        yield Finding("native core", "ok", "loads", essential=True)
    except ImportError as error:
        yield Finding("native core", "missing", str(error), "pip install . (needs Rust 1.88 or newer)", essential=True)


def _program(name: str, least: tuple[int, ...], purpose: str, package: str) -> Finding:
    if shutil.which(name) is None:
        return Finding(name, "missing", f"not installed ({purpose})", f"apt-get install {package}")
    found = program_version(name)
    if found and least and version(found) < least:
        return Finding(name, "poor", f"{found} ({purpose})", f"{'.'.join(map(str, least))} or newer is wanted")
    return Finding(name, "ok", f"{found or 'found'} ({purpose})")


def program_version(name: str) -> str:
    """What a program calls its version, "" where it says none."""
    option = "-V" if name == "ip" else "--version"
    try:
        said = subprocess.run([name, option], capture_output=True, text=True, timeout=10, stdin=subprocess.DEVNULL)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    match = re.search(r"\d+(?:[.-]\d+)+|\d{4}_\d\d_\d\d", said.stdout + said.stderr)
    return match[0] if match else ""


def version(text: str) -> tuple[int, ...]:
    """The leading numbers of a version, for comparing."""
    return tuple(int(part) for part in re.match(r"[\d.]*", text)[0].split(".") if part)  # type: ignore[index]


def _limit(value: int) -> str:
    return "any number" if value == resource.RLIM_INFINITY else str(value)
