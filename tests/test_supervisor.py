"""Labs that really run: started, killed, stopped, reloaded, from outside."""

import contextlib
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import deadline
import shardnet
from shardnet import control

pytest.importorskip("shardnet._core")

LIMIT_S = 20
START = """
import sys
from pathlib import Path
from shardnet import netdev, supervisor
sys.exit(supervisor.start(lambda: netdev.assemble(Path(sys.argv[1]), sys.argv[2:]), detach={detach}))
"""
TWO = """
[stream vm1]
server = on
addr.type = unix
addr.path = vm1.sock

[stream vm2]
server = on
addr.type = unix
addr.path = vm2.sock
"""
FRAME = bytes.fromhex("ffffffffffff 525400000001 88b5") + bytes(50)


class Lab:
    """A lab called demo, its file, and the program that runs it."""

    def __init__(self, root: Path) -> None:
        self.file = root / "demo.ini"
        self.run_dir = root / "demo"
        self.program: subprocess.Popen[str] | None = None

    def start(self, text: str = TWO, *, detach: bool = False) -> "Lab":
        self.file.write_text(text)
        self.program = subprocess.Popen(
            [sys.executable, "-c", START.format(detach=detach), self.file], stderr=subprocess.PIPE, text=True
        )
        return self

    def ready(self) -> "Lab":
        """Wait until the lab has said that it is ready."""
        assert self.program is not None and self.program.stderr is not None
        for line in self.program.stderr:
            if line.startswith("lab demo: ") and " ready in " in line:
                return self
        raise AssertionError(f"ended with {self.program.wait()}")

    def over(self) -> tuple[int, str]:
        """Wait for the end; the exit code and what was said."""
        assert self.program is not None
        _, said = self.program.communicate(timeout=LIMIT_S)
        return self.program.returncode, said

    def pids(self) -> list[int]:
        """Every process that was started by this lab, whoever is its parent now."""
        needle = os.fsencode(f"SHARDNET_RUN_DIR={self.run_dir.parent}")
        found = []
        for entry in os.listdir("/proc"):
            with contextlib.suppress(OSError):
                ours = entry.isdigit() and int(entry) != os.getpid()
                if ours and needle in Path("/proc", entry, "environ").read_bytes().split(b"\0"):
                    found.append(int(entry))
        return found


@pytest.fixture
def demo(monkeypatch: pytest.MonkeyPatch) -> Iterator[Lab]:
    with tempfile.TemporaryDirectory() as root:
        monkeypatch.setenv("SHARDNET_RUN_DIR", root)
        lab = Lab(Path(root))
        yield lab
        for pid in lab.pids():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if lab.program is not None:
            lab.program.communicate()


def until(true: Callable[[], object]) -> None:
    """Wait for something to become true; speed is measured in bench/, so there is time enough."""
    deadline.until(true, "what the line above asks for", within=LIMIT_S, every=0.002)


def port(name: str) -> dict:
    with shardnet.connect("demo") as lab:
        return lab.ports(name)[0]


def worker(name: str) -> int:
    """The pid of the worker that carries a port, once there is one."""
    pids: list[int] = []
    until(lambda: pids.append(port(name)["pid"]) or pids[-1])
    return pids[-1]


def attached(told: dict, before: int) -> bool:
    """True when a port is carried by another process than before."""
    return told["state"] == "waiting" and told["pid"] not in (before, None)


def guest(lab: Lab, name: str) -> socket.socket:
    """Attach to a port as QEMU's -netdev stream does."""
    sock = socket.socket(socket.AF_UNIX)
    sock.settimeout(LIMIT_S)
    sock.connect(str(lab.run_dir / f"{name}.sock"))
    return sock


def receive(sock: socket.socket) -> bytes:
    (length,) = struct.unpack(">I", sock.recv(4, socket.MSG_WAITALL))
    return sock.recv(length, socket.MSG_WAITALL)


def send(sock: socket.socket, frame: bytes) -> None:
    sock.sendall(struct.pack(">I", len(frame)) + frame)


def carried(one: socket.socket, other: socket.socket, tag: int) -> None:
    """Send one tagged frame from guest to guest, again until it arrives: a port may be restarting."""
    frame = FRAME[:-8] + struct.pack(">Q", tag)
    other.settimeout(0.2)
    for _ in range(100):
        send(one, frame)
        with contextlib.suppress(TimeoutError):
            if receive(other) == frame:
                other.settimeout(LIMIT_S)
                return
    raise AssertionError("no frame came through")


def test_a_lab_carries_frames_from_guest_to_guest(demo: Lab) -> None:
    demo.start().ready()
    with guest(demo, "vm1") as one, guest(demo, "vm2") as two:
        carried(one, two, 1)
        carried(two, one, 2)


def test_a_lab_ends_in_order_and_leaves_nothing(demo: Lab) -> None:
    demo.start().ready()
    demo.program.send_signal(signal.SIGTERM)
    code, _ = demo.over()
    assert code == 0
    assert demo.pids() == []
    assert not demo.run_dir.exists()


def test_a_killed_worker_is_back_with_its_socket_and_the_others_never_went(demo: Lab) -> None:
    demo.start().ready()
    before, other = worker("vm1"), worker("vm2")
    os.kill(before, signal.SIGKILL)
    until(lambda: attached(port("vm1"), before))
    assert worker("vm2") == other
    with guest(demo, "vm1") as one, guest(demo, "vm2") as two:
        carried(one, two, 1)


def test_a_stopped_worker_is_noticed_killed_and_replaced(demo: Lab) -> None:
    demo.start().ready()
    before = worker("vm1")
    os.kill(before, signal.SIGSTOP)
    until(lambda: port("vm1")["pid"] not in (before, None))
    with guest(demo, "vm1") as one, guest(demo, "vm2") as two:
        carried(one, two, 1)


def test_descriptors_and_processes_are_as_before_after_twenty_kills(demo: Lab) -> None:
    demo.start().ready()

    def held() -> tuple[int, int]:
        return len(os.listdir(f"/proc/{demo.program.pid}/fd")), len(demo.pids())

    with shardnet.connect("demo") as lab:
        lab.status()  # our own connection is accepted by now
        before = held()
        for _ in range(20):
            pid = worker("vm1")
            os.kill(pid, signal.SIGKILL)
            until(lambda pid=pid: port("vm1")["pid"] != pid)
            if port("vm1")["state"] == "failed":
                lab.port_reset("vm1")
        until(lambda: port("vm1")["state"] == "waiting")
        until(lambda: held() == before)


def test_kills_of_other_workers_cost_two_ports_no_frame(demo: Lab) -> None:
    victims = [f"victim{number}" for number in range(14)]
    text = "[lab]\nname = demo\nshards = 16\n" + TWO
    for name in victims:
        text += f"[stream {name}]\nserver = on\naddr.type = unix\naddr.path = {name}.sock\n"
    demo.start(text).ready()
    with guest(demo, "vm1") as one, guest(demo, "vm2") as two, shardnet.connect("demo") as lab:
        carried(one, two, 0)
        sent, stop = 0, threading.Event()
        heard: list[int] = []

        def listen() -> None:
            while (frame := receive(two))[-8:] != b"\xff" * 8:
                heard.append(struct.unpack(">Q", frame[-8:])[0])

        def speak() -> None:
            nonlocal sent
            while not stop.wait(0.001):
                for _ in range(10):
                    sent += 1
                    send(one, FRAME[:-8] + struct.pack(">Q", sent))
            send(one, FRAME[:-8] + b"\xff" * 8)

        threads = [threading.Thread(target=target) for target in (listen, speak)]
        for thread in threads:
            thread.start()
        for number in range(50):
            name = victims[number % len(victims)]
            before = worker(name)
            os.kill(before, signal.SIGSTOP if number % 10 == 9 else signal.SIGKILL)
            until(lambda name=name, before=before: attached(lab.ports(name)[0], before))
        stop.set()
        for thread in threads:
            thread.join()
    assert heard == list(range(1, sent + 1))
    assert sent > 1000


def test_a_crash_loop_fails_its_port_alone_and_a_reset_heals_it(demo: Lab) -> None:
    demo.start().ready()
    other = worker("vm2")

    def is_failed() -> bool:
        told = port("vm1")
        if told["pid"]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(told["pid"], signal.SIGKILL)
        return told["state"] == "failed"

    until(is_failed)
    assert port("vm1")["detail"] == "its worker died 5 times in 10 s, the last time killed by SIGKILL"
    assert worker("vm2") == other
    with shardnet.connect("demo") as lab:
        lab.port_reset("vm1")
    with guest(demo, "vm1") as one, guest(demo, "vm2") as two:
        carried(one, two, 1)


def test_nothing_outlives_a_killed_supervisor_not_even_a_stopped_worker(demo: Lab) -> None:
    demo.start().ready()
    os.kill(worker("vm1"), signal.SIGSTOP)
    demo.program.kill()
    demo.program.wait()
    until(lambda: demo.pids() == [])
    assert not list(Path("/dev/shm").glob("shardnet-*"))
    demo.program.communicate()
    demo.start().ready()


def test_a_killed_forkserver_is_replaced_with_its_workers(demo: Lab) -> None:
    demo.start().ready()
    before = worker("vm1")
    parent = int(Path(f"/proc/{before}/stat").read_text().rsplit(")")[1].split()[1])
    os.kill(parent, signal.SIGKILL)
    until(lambda: port("vm1")["pid"] not in (before, None))
    with guest(demo, "vm1") as one, guest(demo, "vm2") as two:
        carried(one, two, 1)


def test_a_stopped_supervisor_costs_no_frame_and_kills_nobody_afterwards(demo: Lab) -> None:
    demo.start().ready()
    pids = [worker("vm1"), worker("vm2")]
    with guest(demo, "vm1") as one, guest(demo, "vm2") as two:
        carried(one, two, 1)
        demo.program.send_signal(signal.SIGSTOP)
        for tag in range(2, 12):
            frame = FRAME[:-8] + struct.pack(">Q", tag)
            send(one, frame)
            assert receive(two) == frame
            assert not select.select([two], [], [], 0.1)[0]  # once, and nothing else
        demo.program.send_signal(signal.SIGCONT)
        assert [worker("vm1"), worker("vm2")] == pids


def test_the_second_start_of_a_name_is_told_who_runs_it(demo: Lab) -> None:
    demo.start().ready()
    again = subprocess.run(
        [sys.executable, "-c", START.format(detach=False), demo.file], capture_output=True, text=True, timeout=LIMIT_S
    )
    assert (again.returncode, again.stderr) == (4, f"lab demo: already running (pid {demo.program.pid})\n")
    assert worker("vm1")


def test_a_lab_with_one_port_that_cannot_open_never_half_starts(demo: Lab) -> None:
    text = TWO + "[stream vm3]\nserver = on\naddr.type = unix\naddr.path = /nonexistent/vm3.sock\n"
    code, said = demo.start(text).over()
    assert code == 1
    assert "stream vm3: /nonexistent/vm3.sock: No such file or directory\n" in said
    assert "lab demo: not started, 1 of 3 ports cannot be opened\n" in said
    assert demo.pids() == []
    assert not demo.run_dir.exists()


def test_a_wrong_file_is_told_and_touches_nothing(demo: Lab) -> None:
    code, said = demo.start(TWO + "server = maybe\n").over()
    assert code == 1
    assert said.startswith(f"{demo.file}:11: [stream vm2] server")
    assert not demo.run_dir.exists()


def test_a_reload_touches_what_changed_and_nothing_else(demo: Lab) -> None:
    demo.start().ready()
    before = worker("vm2")
    demo.file.write_text(TWO.replace("vm1", "vm7") + "vlan = 5\n")
    with shardnet.connect("demo") as lab:
        planned = lab.reload(dry_run=True)
        assert [(step["action"], step["section"]) for step in planned["plan"]] == [
            ("remove", "[stream vm1]"),
            ("add", "[stream vm7]"),
            ("change", "[stream vm2]"),
        ]
        assert sorted(one["name"] for one in lab.ports()) == ["vm1", "vm2"]
        assert lab.reload() == {**planned, "done": True}
        assert sorted(one["name"] for one in lab.ports()) == ["vm2", "vm7"]
        assert lab.ports("vm2")[0]["mode"] == "access 5"
    assert worker("vm2") == before
    assert not (demo.run_dir / "vm1.sock").exists()


def test_a_hangup_reloads_and_a_wrong_file_changes_nothing(demo: Lab) -> None:
    demo.start().ready()
    demo.file.write_text("[stream vm1]\nserver = maybe\n")
    with shardnet.connect("demo") as events:
        follow = events.events()
        demo.program.send_signal(signal.SIGHUP)
        assert "neither on nor off" in next(follow)["text"]
        demo.file.write_text(TWO + "up = off\n")
        demo.program.send_signal(signal.SIGHUP)
        assert next(event for event in follow if event["kind"] == "reloaded")
    assert port("vm2")["up"] is False


def test_ports_come_and_go_while_the_others_carry(demo: Lab) -> None:
    demo.start().ready()
    with guest(demo, "vm1") as one, guest(demo, "vm2") as two, shardnet.connect("demo") as lab:
        carried(one, two, 1)
        for number in range(20):
            name = lab.port_add(f"[stream hot{number}]\nserver = on\naddr.type = unix\naddr.path = hot{number}.sock\n")[
                0
            ]
            with guest(demo, name) as hot:
                carried(one, hot, number)
            lab.port_remove(name)
        assert sorted(found["name"] for found in lab.ports()) == ["vm1", "vm2"]
        carried(one, two, 2)


def test_what_cannot_be_added_is_not_there_afterwards(demo: Lab) -> None:
    demo.start().ready()
    wrong = "[stream vm3]\nserver = on\naddr.type = unix\naddr.path = /nonexistent/vm3.sock\n"
    with shardnet.connect("demo") as lab:
        with pytest.raises(control.Error, match="stream vm3: /nonexistent/vm3.sock: No such file or directory"):
            lab.port_add(wrong)
        until(lambda: len(lab.ports()) == 2)
        with pytest.raises(control.Error, match="vm1: there is a port of this name already") as caught:
            lab.port_add(TWO)
        assert caught.value.code == 4


def test_a_change_that_does_not_open_is_taken_back(demo: Lab) -> None:
    demo.start().ready()
    with shardnet.connect("demo") as lab:
        with pytest.raises(control.Error, match="No such file or directory"):
            lab.port_set("vm1", **{"addr.path": "/nonexistent/vm1.sock"})
        until(lambda: lab.ports("vm1")[0]["state"] == "waiting")
    guest(demo, "vm1").close()


def test_a_plugged_port_lives_as_long_as_its_connection(demo: Lab) -> None:
    demo.start().ready()
    ours, theirs = socket.socketpair()
    ours.settimeout(LIMIT_S)
    with guest(demo, "vm1") as one, shardnet.connect("demo") as watching:
        with shardnet.connect("demo") as lab:
            assert lab.plug([theirs.fileno()], name="mine", prefix="4") == "mine"
            theirs.close()
            carried(one, ours, 1)
        until(lambda: [found["name"] for found in watching.ports()] == ["vm1", "vm2"])
        assert ours.recv(1) == b""


def test_workers_have_no_privileges_and_no_descriptors_of_others(demo: Lab) -> None:
    demo.start().ready()
    status = dict(line.split(":\t") for line in Path(f"/proc/{worker('vm1')}/status").read_text().splitlines())
    assert {status[key].strip() for key in ("CapEff", "CapPrm", "CapInh", "CapBnd", "CapAmb")} == {"0" * 16}
    assert status["NoNewPrivs"] == "1"
    assert status["Seccomp"] == "2"
    if os.geteuid() == 0:  # others may not look
        held = [os.readlink(entry) for entry in Path(f"/proc/{worker('vm1')}/fd").iterdir() if int(entry.name) > 2]
        kinds = {link.split(":[")[0] for link in held if "shardnet-" not in link}
        assert kinds == {"anon_inode", "socket"}


def test_a_detached_start_returns_when_the_lab_is_ready(demo: Lab) -> None:
    code, said = demo.start(detach=True).over()
    assert code == 0, said
    with shardnet.connect("demo") as lab:
        assert len(lab.ports()) == 2
        lab.stop()
    until(lambda: demo.pids() == [])


def test_a_detached_start_that_fails_says_why(demo: Lab) -> None:
    code, said = demo.start("[stream vm1]\nserver = maybe\n", detach=True).over()
    assert (code, "neither on nor off" in said) == (1, True)


def test_a_restart_is_the_same_process_with_other_workers(demo: Lab) -> None:
    demo.start().ready()
    before = worker("vm1")
    with shardnet.connect("demo") as lab:
        lab.restart()
    demo.ready()
    with shardnet.connect("demo") as lab:
        assert lab.status()["pid"] == demo.program.pid
    assert worker("vm1") != before


def test_the_service_manager_is_told_when_the_lab_is_ready(demo: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    with tempfile.TemporaryDirectory() as directory, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(f"{directory}/notify")
        manager.settimeout(LIMIT_S)
        monkeypatch.setenv("NOTIFY_SOCKET", f"{directory}/notify")
        demo.start().ready()
        assert manager.recv(1000).startswith(b"READY=1\nSTATUS=2 ports ready")
        demo.program.send_signal(signal.SIGTERM)
        assert manager.recv(1000).startswith(b"STOPPING=1")
        demo.over()


def test_a_worker_is_called_after_its_port(demo: Lab) -> None:
    demo.start().ready()
    assert Path(f"/proc/{worker('vm1')}/cmdline").read_bytes().rstrip(b"\0") == b"shardnet demo stream vm1"
    assert Path(f"/proc/{worker('vm1')}/comm").read_text() == "stream vm1\n"
