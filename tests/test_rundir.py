"""The run directory: who may have it, who gets it, what is cleared away."""

import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from shardnet import rundir

HOLD = """
import sys
from shardnet import rundir
try:
    held = rundir.RunDir("demo")
    print("held", flush=True)
except rundir.Error as error:
    print(error, error.code, flush=True)
sys.stdin.read()
"""


@pytest.fixture
def root(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as directory:
        monkeypatch.setenv("SHARDNET_RUN_DIR", directory)
        yield Path(directory)


def holder() -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", HOLD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def refusal() -> rundir.Error:
    with pytest.raises(rundir.Error) as caught:
        rundir.RunDir("demo")
    return caught.value


def test_the_directory_is_ours_alone_and_gone_afterwards(root: Path) -> None:
    held = rundir.RunDir("demo")
    assert held.path == root / "demo"
    assert held.path.stat().st_mode & 0o777 == 0o700
    held.leave()
    assert not held.path.exists()


def test_the_second_start_is_told_who_holds_the_lab(root: Path) -> None:
    held = rundir.RunDir("demo")
    error = refusal()
    assert str(error) == f"lab demo: already running (pid {os.getpid()})"
    assert error.code == 4
    held.leave()


def test_of_twenty_starts_at_once_exactly_one_wins(root: Path) -> None:
    starts = [holder() for _ in range(20)]
    said = [start.stdout.readline().strip() for start in starts]
    winners = [start for start, line in zip(starts, said, strict=True) if line == "held"]
    assert len(winners) == 1
    assert set(said) == {"held", f"lab demo: already running (pid {winners[0].pid}) 4"}
    for start in starts:
        start.communicate()


def test_a_killed_holder_leaves_nothing_that_blocks_the_next(root: Path) -> None:
    with holder() as first:
        assert first.stdout.readline() == "held\n"
        with socket.socket(socket.AF_UNIX) as stale:
            stale.bind(str(root / "demo" / "vm1.sock"))
        (root / "demo" / "pymp-x").mkdir()
        (root / "demo" / "pymp-x" / "listener").touch()
        assert rundir.running() == ["demo"]
        first.kill()
    assert rundir.running() == []
    held = rundir.RunDir("demo")
    assert os.listdir(held.path) == ["lock"]
    held.leave()


def test_sockets_are_left_alone_while_another_holds_the_lock(root: Path) -> None:
    held = rundir.RunDir("demo")
    with socket.socket(socket.AF_UNIX) as used:
        used.bind(str(held.path / "vm1.sock"))
        refusal()
        assert (held.path / "vm1.sock").exists()
    held.leave()


def test_a_file_of_the_users_own_is_left_alone(root: Path) -> None:
    held = rundir.RunDir("demo")
    (held.path / "capture.pcapng").touch()
    held.leave()
    assert os.listdir(root / "demo") == ["capture.pcapng"]


def test_looking_for_running_labs_does_not_hinder_a_start(root: Path) -> None:
    rundir.RunDir("demo").leave()
    for _ in range(50):
        held = rundir.RunDir("demo")
        assert rundir.running() == ["demo"]
        held.leave()


def test_a_directory_that_others_may_enter_is_refused(root: Path) -> None:
    (root / "demo").mkdir()
    (root / "demo").chmod(0o755)
    assert str(refusal()) == f"{root}/demo: mode 755 lets others in (chmod 700 {root}/demo)"


def test_a_symlink_in_its_place_is_refused(root: Path) -> None:
    (root / "elsewhere").mkdir(mode=0o700)
    (root / "demo").symlink_to(root / "elsewhere")
    assert str(refusal()) == f"{root}/demo: not a directory (remove it)"


def test_a_directory_above_that_others_may_write_is_refused(root: Path) -> None:
    root.chmod(0o777)
    assert str(refusal()) == f"{root}: mode 777 lets others write (chmod go-w {root})"


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to make a directory of another user's")
def test_a_directory_of_another_user_is_refused(root: Path) -> None:
    (root / "demo").mkdir(mode=0o700)
    os.chown(root / "demo", 65534, 65534)
    assert "belongs to uid 65534" in str(refusal())


def test_a_symlink_in_the_place_of_the_lock_is_refused(root: Path) -> None:
    (root / "demo").mkdir(mode=0o700)
    (root / "demo" / "lock").symlink_to(root / "precious")
    with pytest.raises(OSError, match="lock"):
        rundir.RunDir("demo")
    assert not (root / "precious").exists()


def test_a_path_too_long_for_a_socket_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHARDNET_RUN_DIR", "/tmp/" + "x" * 100)
    assert "too long, a socket in it may have 107 bytes" in str(refusal())
