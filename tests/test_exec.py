"""[exec NAME], with real commands: frames over their standard input and output, their errors, their end."""

import os
import select
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from desk import Far, frame
from shardnet import options
from shardnet.workers import exec


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "command: missing"),
        ({"command": "socat 'x"}, "command = socat 'x: no closing quotation"),
    ],
)
def test_a_mistake_is_named_with_its_reason(given, message):
    with pytest.raises(options.Wrong) as wrong:
        options.read(exec, given)
    assert str(wrong.value) == message


def test_a_program_that_does_not_exist_is_refused(desk):
    with pytest.raises(FileNotFoundError) as error:
        desk.make(exec, command="no-such-program --at all").carried.prepare()
    assert (error.value.filename, error.value.strerror) == ("no-such-program", "no such program")


def test_frames_pass_with_two_bytes_of_length(desk, wire, tmp_path):
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "plug"))
        listener.listen()
        desk.add(exec, command=f"socat - UNIX-CONNECT:{tmp_path}/plug")
        accepted, _ = listener.accept()
    with accepted:
        plug = Far(accepted, prefix=2)
        plug.send(frame(1, 1514), b"", frame(2))
        assert [desk.until(wire.receive), desk.until(wire.receive)] == [frame(1, 1514), frame(2)]
        wire.send(frame(3, source=2))
        assert desk.until(plug.receive) == frame(3, source=2)


def test_it_runs_in_the_run_directory_and_its_errors_are_logged(desk, tmp_path):
    place = desk.add(exec, command='sh -c \'printf "in %s\\nunfinished" "$PWD" >&2; exec cat\'')
    desk.until(lambda: place.lines)
    assert place.lines == [f"in {tmp_path}"]
    os.kill(place.carried.process.pid, 15)
    desk.until(lambda: len(place.lines) > 1)
    assert place.lines == [f"in {tmp_path}", "unfinished"]


def test_it_is_run_again_when_it_ends_and_each_time_later(desk):
    place = desk.add(exec, command="sh -c 'echo ran >&2; exit 3'")
    desk.until(lambda: len(place.lines) == 3)
    details = [detail for state, detail in place.states if state == "waiting"]
    assert details[:2] == ["exited with 3, run again in 0.1 s", "exited with 3, run again in 0.2 s"]


def test_a_command_killed_comes_back(desk, wire):
    place = desk.add(exec, command="cat")
    first = place.carried.process.pid
    os.kill(first, 9)
    desk.until(lambda: place.carried.process and place.carried.process.pid != first)
    assert ("waiting", "killed by SIGKILL, run again in 0.1 s") in place.states
    assert place.up


def test_a_bad_length_ends_the_command(desk):
    place = desk.add(exec, command="sh -c 'printf \"\\0\\1x\"; exec 1>&- 0<&-; sleep 1000'")
    pid = place.carried.process.pid
    desk.until(lambda: not place.up)
    assert not Path(f"/proc/{pid}").exists()


def test_the_command_and_its_children_go_with_the_port(desk, tmp_path):
    place = desk.add(exec, command="sh -c 'trap \"\" TERM; sleep 1000 & echo $! >&2; wait'")
    desk.until(lambda: place.lines)
    pids = [place.carried.process.pid, int(place.lines[0])]
    assert all(Path(f"/proc/{pid}").exists() for pid in pids)
    place.carried.close()
    desk.until(lambda: not any(running(pid) for pid in pids))


def running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


def test_the_command_dies_with_its_worker():
    """follow() asks for it; nothing else could, when the worker is killed."""
    code = """
import os, subprocess
from shardnet.workers import exec
child = subprocess.Popen(["sleep", "1000"], stdout=subprocess.DEVNULL, preexec_fn=exec.follow(os.getpid()))
print(child.pid, flush=True)
os.kill(os.getpid(), 9)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == -9
    try:
        pidfd = os.pidfd_open(int(done.stdout))
    except ProcessLookupError:
        return
    try:
        assert select.select([pidfd], [], [], 10)[0]
    finally:
        os.close(pidfd)
