"""A private corner of the machine: namespaces, processes and their CPU time, gone with the benchmark.

The benchmark runs itself again in PID, mount, network and IPC namespaces of its own, with an empty /run. So it neither meets
nor touches what else runs on the machine, and whatever way it ends, the kernel ends its processes and takes back its
interfaces. Within, each peer gets a Corner: three network namespaces (`a` and `b` for the two ends, `s` for the switch).
"""

import contextlib
import ctypes
import os
import select
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Self

INSIDE = "SHARDNET_BENCH_INSIDE"
PATIENCE_S = 10.0
CLONE_NEWNET = 0x40000000  # sched.h
TICKS_A_SECOND = os.sysconf("SC_CLK_TCK")


class Failed(Exception):
    """A measurement that could not be made; its text says why."""


def enter() -> None:
    """Run this very command again in namespaces of its own; return only there."""
    if os.environ.get(INSIDE):
        subprocess.run(["mount", "-t", "tmpfs", "tmpfs", "/run"], check=True)
        os.mkdir("/run/netns")
        return
    if os.geteuid() != 0:
        raise SystemExit("bench: namespaces and TAPs are made here, which needs root")
    wall = ["unshare", "--mount", "--net", "--pid", "--ipc", "--fork", "--kill-child", "--mount-proc", "--"]
    os.execvpe(wall[0], [*wall, sys.executable, "-m", "bench", *sys.argv[1:]], {**os.environ, INSIDE: "1"})


def run(*command: object) -> str:
    """Run a command to its end and return what it printed."""
    argv = [str(word) for word in command]
    done = subprocess.run(argv, check=False, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode:
        raise Failed(f"{' '.join(argv)}: {(done.stderr or done.stdout).strip() or f'exit {done.returncode}'}")
    return done.stdout


def said(process: subprocess.Popen[bytes], word: str, patience_s: float = PATIENCE_S) -> str:
    """Wait until `process` prints a line with `word` in it; return all that it printed by then."""
    assert process.stdout is not None and isinstance(process.args, list)
    until, text = time.monotonic() + patience_s, b""
    while word.encode() not in text:
        left = until - time.monotonic()
        if left <= 0 or not select.select([process.stdout], [], [], left)[0]:
            raise Failed(f"{' '.join(process.args)}: no {word!r} within {patience_s:.0f} s")
        more = os.read(process.stdout.fileno(), 4096)
        if not more:
            raise Failed(f"{' '.join(process.args)}: ended with {process.wait()}")
        text += more
    return text.decode()


def finish(process: subprocess.Popen[bytes], patience_s: float = PATIENCE_S) -> list[float]:
    """Wait for the end of a measuring program and return the numbers it printed last."""
    assert isinstance(process.args, list)
    try:
        output = process.communicate(timeout=patience_s)[0].decode()
    except subprocess.TimeoutExpired:
        raise Failed(f"{' '.join(process.args)}: still running after {patience_s:.0f} s") from None
    if process.returncode:
        raise Failed(f"{' '.join(process.args)}: exit {process.returncode}")
    return [float(word) for word in output.split() if word != "ready"]


def wait(what: str, ready: Callable[[], bool], patience_s: float = PATIENCE_S) -> None:
    """Call `ready` until it is true."""
    until = time.monotonic() + patience_s
    while not ready():
        if time.monotonic() > until:
            raise Failed(f"{what}: not within {patience_s:.0f} s")
        time.sleep(0.01)


@contextlib.contextmanager
def standing_in(namespace: str) -> Iterator[None]:
    """Let this process make sockets in another network namespace."""
    libc = ctypes.CDLL(None, use_errno=True)
    with open("/proc/self/ns/net") as home, open(f"/run/netns/{namespace}") as there:
        if libc.setns(there.fileno(), CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), namespace)
        try:
            yield
        finally:
            libc.setns(home.fileno(), CLONE_NEWNET)


def socket_in(namespace: str, *kind: int) -> socket.socket:
    """Make a socket in another network namespace."""
    with standing_in(namespace):
        return socket.socket(*kind)


def processes() -> dict[int, tuple[int, float]]:
    """Parent and CPU seconds used so far, by process id."""
    found = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError):
                fields = Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2].split()
                found[int(entry)] = int(fields[1]), (int(fields[11]) + int(fields[12])) / TICKS_A_SECOND
    return found


def descendants(ancestors: set[int], everybody: dict[int, tuple[int, float]]) -> set[int]:
    """Those of the processes that are the ancestors, or below one of them."""
    found = ancestors & everybody.keys()
    while more := {child for child, (parent, _) in everybody.items() if parent in found} - found:
        found |= more
    return found


def memory(pid: int) -> dict[str, int]:
    """What a process holds, in bytes, by the words of /proc/PID/smaps_rollup."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    return {word: int(text.split()[0]) * 1024 for word, text in (line.split(":", 1) for line in lines)}


class Corner:
    """Namespaces and processes of one peer; `with` ends them all."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.path = Path("/run/bench") / name
        self.daemons: list[subprocess.Popen[bytes]] = []
        self.clients: list[subprocess.Popen[bytes]] = []
        self.namespaces: list[str] = []

    def __enter__(self) -> Self:
        self.path.mkdir(parents=True)
        for place in "abs":
            self.namespace(place)
        return self

    def __exit__(self, *_: object) -> None:
        for process in reversed(self.clients + self.daemons):
            end(process)
        for name in self.namespaces:
            run("ip", "netns", "del", name)
        run("rm", "-rf", self.path)

    def namespace(self, place: str) -> str:
        """Make a network namespace without IPv6, whose chatter would be measured too."""
        name = f"{self.name}-{place}"
        run("ip", "netns", "add", name)
        self.namespaces.append(name)
        run("ip", "-n", name, "link", "set", "lo", "up")
        self.run(place, "sysctl", "-qew", "net.ipv6.conf.all.disable_ipv6=1", "net.ipv6.conf.default.disable_ipv6=1")
        return name

    def argv(self, place: str | None, command: tuple[object, ...]) -> list[str]:
        """Make `command` one that runs in the namespace `place`."""
        there = ["nsenter", f"--net=/run/netns/{self.name}-{place}", "--"] if place else []
        return there + [str(word) for word in command]

    def run(self, place: str | None, *command: object) -> str:
        return run(*self.argv(place, command))

    def daemon(self, place: str | None, *command: object, **environment: str) -> subprocess.Popen[bytes]:
        """Start a process that is part of the switch: what it uses is the switch's CPU time."""
        # A pipe that nobody closes stands in for a terminal: some of the switches end when stdin does.
        with open(self.path / f"log{len(self.daemons)}", "wb") as log:
            process = subprocess.Popen(
                self.argv(place, command),
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                env={**os.environ, **environment},
            )
        self.daemons.append(process)
        return process

    def client(self, place: str | None, *command: object) -> subprocess.Popen[bytes]:
        """Start a program that measures, its output in a pipe."""
        process = subprocess.Popen(self.argv(place, command), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
        self.clients.append(process)
        return process

    def cpu_s(self) -> float:
        """CPU seconds that the switch's processes and their descendants used so far."""
        for process in self.daemons:
            if process.poll() is not None:
                raise Failed(f"{self.name}: ended with {process.returncode}: {self.log()}")
        everybody = processes()
        return sum(everybody[pid][1] for pid in descendants({process.pid for process in self.daemons}, everybody))

    def pss(self) -> int:
        """Bytes that those processes hold, what they share counted once."""
        ours = descendants({process.pid for process in self.daemons}, processes())
        return sum(memory(pid)["Pss"] for pid in ours)

    def log(self) -> str:
        """The last words of the switch."""
        text = "".join(path.read_text(errors="replace") for path in sorted(self.path.glob("log*")))
        return " / ".join(text.strip().splitlines()[-3:])


def end(process: subprocess.Popen[bytes]) -> None:
    """Ask a process to end, then make it."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(2)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    for pipe in process.stdin, process.stdout:
        if pipe:
            pipe.close()
