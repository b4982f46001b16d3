"""A lab that runs for a test: the real command, stopped at the end, and nothing of it left."""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import deadline
import shardnet
from shardnet import control

SHARDNET = Path(sys.executable).parent / "shardnet"


class Lab:
    """`shardnet start -c FILE` in the foreground, with a run directory of its own; without a file, of `--netdev` alone."""

    def __init__(self, file: Path | None, *options: str, user: int | None = None) -> None:
        self.file = file
        self.name = file.stem if file else "lab"
        self.options = options
        # Short, since the name of a unix socket has 107 characters and pytest's own directories take most of them.
        self.directory = Path(tempfile.mkdtemp(prefix="sn"))
        self.environment = {**os.environ, "SHARDNET_RUN_DIR": str(self.directory), "SHARDNET_LAB": self.name}
        self.environment["SHARDNET_STATE_DIR"] = str(self.directory / "state")
        self.before = left_behind()
        self.log = tempfile.TemporaryFile(dir=self.directory)
        self.words, self.identity = [str(SHARDNET)], {}
        if user is not None:
            self._belong(user)
        try:
            self.start()
        except BaseException:
            self.close()
            raise

    def _belong(self, user: int) -> None:
        """Be a lab of this user, who has no privileges; an interpreter that he may not reach is changed for the system's."""
        self.identity = {"user": user, "group": user, "extra_groups": []}
        os.chown(self.directory, user, user)
        for above in [self.file, *self.file.parents]:
            with contextlib.suppress(PermissionError):
                above.chmod(above.stat().st_mode | (0o111 if above.is_dir() else 0o444))
        python = Path(sys.executable).resolve()
        if not all(above.stat().st_mode & 0o001 for above in [python, *python.parents]):
            self.words.insert(0, f"/usr/bin/python3.{sys.version_info.minor}")
            self.environment["PYTHONPATH"] = f"{Path(shardnet.__file__).parents[1]}:{Path(pytest.__file__).parents[1]}"

    @property
    def run_dir(self) -> Path:
        """Where the sockets of the lab are."""
        return self.directory / self.name

    def start(self, within: float = 20) -> None:
        """Start the lab and wait until it says that it is ready, as it says it to systemd."""
        ready = self.directory / "ready"
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
            notify.bind(str(ready))
            ready.chmod(0o777)
            try:
                self.supervisor = subprocess.Popen(
                    [*self.words, "start", *(["-c", self.file] if self.file else []), *self.options],
                    env={**self.environment, "NOTIFY_SOCKET": str(ready)},
                    stdin=subprocess.DEVNULL, stdout=self.log, stderr=self.log, **self.identity,
                )  # fmt: skip
                deadline.until(lambda: self._ready(notify), f"lab {self.name} ready", within)
            except AssertionError as late:
                raise AssertionError(f"{late}\n{self.said()}") from None
            finally:
                ready.unlink()

    def _ready(self, notify: socket.socket) -> bool:
        assert self.supervisor.poll() is None, f"shardnet start ended with status {self.supervisor.returncode}"
        notify.settimeout(0.1)
        with contextlib.suppress(TimeoutError):
            return b"READY=1" in notify.recv(4096).split(b"\n")
        return False

    def shardnet(self, *words: str, status: int = 0) -> str:
        """Run another shardnet command on this lab and return its standard output."""
        ran = subprocess.run(
            [*self.words, *words],
            env=self.environment,
            **self.identity,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert ran.returncode == status, (
            f"shardnet {' '.join(words)}: status {ran.returncode}\n{ran.stdout}{ran.stderr}{self.said()}"
        )
        return ran.stdout

    def client(self) -> control.Client:
        """A connection to this lab, as Python programs have it."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("SHARDNET_RUN_DIR", str(self.directory))
            return shardnet.connect(self.name)

    def json(self, *words: str) -> Any:
        """Run another shardnet command on this lab and return what it answers as JSON."""
        return json.loads(self.shardnet(*words, "-o", "json"))

    def port(self, name: str) -> dict[str, Any]:
        """Everything about one port."""
        (found,) = [port for port in self.json("status")["ports"] if port["name"] == name]
        return found

    def counters(self, name: str) -> dict[str, int]:
        return self.port(name)["counters"]

    def until_up(self, *names: str, within: float = 20) -> None:
        """Wait until the ports carry: for a stream, that its peer is connected."""
        up = set()

        def all_up() -> bool:
            up.update(port["name"] for port in self.json("status")["ports"] if port["state"] == "up")
            return up.issuperset(names)

        try:
            deadline.until(all_up, "ports up", within)
        except AssertionError as late:
            raise AssertionError(f"{late}: {', '.join(set(names) - up)}\n{self.said()}") from None

    def until_balanced(self, *names: str) -> None:
        """Wait until each frame that a port took in, or was offered, has met a fate or is known to wait for one."""

        def balanced(of: dict[str, int]) -> bool:
            fates = of["forwarded"] + of["filtered"] + of["rx_drops"] + of["in_hand"]
            out = of["tx_frames"] + of["handed_over"] + of["tx_drops"] + of["queued"]
            return (of["rx_taken"], of["offered"]) == (fates, out)

        deadline.until(lambda: all(balanced(self.counters(name)) for name in names), f"the books of {names} closed")

    def restart(self) -> None:
        """Stop the lab in order and start it again under whatever is connected to it."""
        self.stop()
        self.start()

    def stop(self, within: float = 20) -> None:
        """Stop the lab in order, if it runs; fails where it has not ended well or left something behind."""
        self.supervisor.send_signal(signal.SIGTERM)
        deadline.ended(self.supervisor.pid, f"the end of lab {self.name}\n{self.said()}", within)
        assert self.supervisor.wait() == 0, (
            f"shardnet start ended with status {self.supervisor.returncode}\n{self.said()}"
        )
        self.nothing_is_left()

    def nothing_is_left(self, within: float = 10) -> None:
        """Wait until no process, interface, shared memory or socket of the lab is there any more."""
        for pid in self.processes():
            deadline.ended(pid, f"the end of process {pid}: {_title(pid)}", within)
        with contextlib.suppress(AssertionError):
            deadline.until(lambda: not self.left(), "nothing left", within)
        assert not self.left(), f"left behind: {', '.join(sorted(self.left()))}"
        sockets = [path.name for path in self.run_dir.glob("**/*") if path.is_socket()]
        assert not sockets, f"left behind in the run directory: {', '.join(sockets)}"

    def left(self) -> set[str]:
        """Interfaces that the lab names, and shared memory; other labs of this host have their own."""
        words = set(re.split(r"[\s,=]+", " ".join([self.file.read_text() if self.file else "", *self.options])))
        return {thing for thing in left_behind() - self.before if thing.startswith("/dev/shm/") or thing in words}

    def processes(self) -> list[int]:
        """All processes of the lab: those that have its run directory in their environment."""
        mark = f"SHARDNET_RUN_DIR={self.directory}".encode()
        found = []
        for environment in Path("/proc").glob("[0-9]*/environ"):
            with contextlib.suppress(OSError):
                if mark in environment.read_bytes().split(b"\0"):
                    found.append(int(environment.parent.name))
        return found

    def workers(self) -> dict[str, int]:
        """The process of each port."""
        return {port["name"]: port["pid"] for port in self.json("status")["ports"]}

    def arena(self) -> Path:
        """The shared memory of the lab, which has no name any more: the supervisor's descriptor of it."""
        for entry in Path(f"/proc/{self.supervisor.pid}/fd").iterdir():
            if os.readlink(entry).startswith("/dev/shm/shardnet-"):
                return entry
        raise AssertionError("the supervisor has no shared memory")

    def said(self) -> str:
        """What the lab has logged."""
        return "--- log of the lab\n" + os.pread(self.log.fileno(), 1 << 20, 0).decode(errors="replace")

    def close(self) -> None:
        """End whatever a failed test has left, without a check."""
        with contextlib.suppress(ProcessLookupError):
            for pid in self.processes():
                os.kill(pid, signal.SIGKILL)
        self.supervisor.wait()
        self.log.close()
        subprocess.run(["rm", "-rf", self.directory], check=True)


@contextlib.contextmanager
def starting(directory: Path) -> Iterator[Callable[..., Lab]]:
    """Start labs by calling what this gives with the text of a lab file.

    After the block those that still run are stopped in order, which is a check; after a failure they are killed, which is none.
    """
    started: list[Lab] = []

    def start(text: str | None, *options: str, name: str = "lab", user: int | None = None) -> Lab:
        file = None
        if text is not None:
            file = directory / f"{name}.ini"
            file.write_text(text)
        started.append(Lab(file, *options, user=user))
        return started[-1]

    try:
        yield start
        for lab in reversed(started):
            lab.stop()
    finally:
        for lab in started:
            lab.close()


def free_port(kind: socket.SocketKind = socket.SOCK_STREAM) -> int:
    """A port of 127.0.0.1 that nobody has now."""
    with socket.socket(socket.AF_INET, kind) as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def left_behind() -> set[str]:
    """What a lab could leave on this host: shared memory by its path, interfaces by their name."""
    shared = {f"/dev/shm/{path.name}" for path in Path("/dev/shm").iterdir()}
    return shared | {path.name for path in Path("/sys/class/net").iterdir()}


def _title(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:
        return "gone"


def attempt(directory: Path, text: str) -> subprocess.CompletedProcess[str]:
    """Start a lab that is not to come up, and tell how it ended."""
    file = directory / "lab.ini"
    file.write_text(text)
    return subprocess.run(
        [SHARDNET, "start", "-c", file], env={**os.environ, "SHARDNET_RUN_DIR": str(directory)},
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
