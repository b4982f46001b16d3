"""Labs of a user without privileges move their connections by a helper that root has running, and reset them without it."""

import contextlib
import os
import subprocess
import time

import pytest

import deadline
import hosts
from test_migrate import RESET_S, connected, moved, running, speak

pytestmark = pytest.mark.needs("root", "/dev/net/tun", "ip")
USER, OTHER = 12345, 12346


@pytest.fixture
def scene(namespace, lab):
    made = hosts.Hosts(lab, namespace, {}, user=USER)
    status = dict(line.split(":", 1) for line in open(f"/proc/{made.labs['a'].workers()['net0']}/status"))
    assert status["Uid"].split() == [str(USER)] * 4 and int(status["CapPrm"], 16) == 0
    return made


@contextlib.contextmanager
def helping(directory, user):
    """A helper of root's that serves this user."""
    for above in directory.parents:
        with contextlib.suppress(PermissionError):
            above.chmod(above.stat().st_mode | 0o111)
    directory.chmod(0o711)
    path = directory / "repair.sock"
    helper = subprocess.Popen([hosts.REPAIR, path, str(user)])
    try:
        deadline.until(path.exists, "the helper")
        yield str(path)
    finally:
        helper.kill()
        helper.wait()


def test_connections_of_a_users_lab_move_by_the_helper(scene, tmp_path):
    connections = connected(scene, count=3)
    fifos = [tmp_path / name for name in ("frozen", "go")]
    with contextlib.ExitStack() as opened, helping(tmp_path, USER) as helper:
        for fifo in fifos:
            os.mkfifo(fifo)
            fifo.chmod(0o666)
        frozen, _ = (opened.enter_context(open(os.open(fifo, os.O_RDWR), "r+b", 0)) for fifo in fifos)
        for one in (end for both in connections for end in both):
            opened.enter_context(one)
        told = {}
        between = f"echo > {fifos[0]} && read word < {fifos[1]}"
        given = ("--helper", helper)
        with running(lambda: told.update(moved(scene, *given, receive=given, between=between))):
            deadline.readable(frozen.fileno(), "all frozen", 20)
            for command in (*scene.routing("b"), *scene.plugging("b")):  # what takes a privilege is the administrator's
                subprocess.run(command, check=True)
            fifos[1].write_text("now\n")
        assert (told["tcp"], told["lost"], told["way"]) == (3, 0, "rebuilt")
        for near, far in connections:
            speak(near, far)


@pytest.mark.parametrize("helper", ["none", "of another"])
def test_without_the_helper_they_are_reset_or_stay(scene, tmp_path, helper):
    connections = connected(scene, count=3)
    with contextlib.ExitStack() as opened:
        for one in (end for both in connections for end in both):
            opened.enter_context(one)
        if helper == "of another":  # it turns us away, which is known before anything is silent
            with helping(tmp_path, OTHER) as path:
                scene.move("--helper", path, between="true", status=77)
            for near, far in connections:
                speak(near, far)
            return
        began = time.monotonic()
        told = moved(scene, between="true")
        assert (told["tcp"], told["lost"]) == (0, 3) and "no helper" in told["why"]
        for _, far in connections:
            with pytest.raises(ConnectionResetError):
                far.recv(1)
        assert time.monotonic() - began < RESET_S + 3  # the commands' own start among it
        for command in scene.plugging("b"):
            subprocess.run(command, check=True)
        for near, _ in connections:
            with pytest.raises(ConnectionResetError):
                near.send(b"?")
                near.recv(1)


def test_a_users_labs_in_one_namespace_need_no_helper(scene, lab):
    scene.another(lab, "c", "a")
    connections = connected(scene, count=3)
    with contextlib.ExitStack() as opened:
        for one in (end for both in connections for end in both):
            opened.enter_context(one)
        told = moved(scene, there="c", here="a", between="true")
        assert (told["tcp"], told["lost"], told["way"]) == (3, 0, "handed")
        for command in scene.plugging("c"):
            subprocess.run(command, check=True)
        for near, far in connections:
            speak(near, far)
