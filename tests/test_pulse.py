"""Liveness, told as histories of looks: (time, beat, state in /proc) and what follows."""

import os
import signal
import subprocess

from shardnet import pulse


def verdicts(*looks: tuple[float, int, str]) -> list[str]:
    seen = pulse.Pulse()
    return [seen.look(*look) for look in looks]


def test_a_loop_that_turns_is_well() -> None:
    assert verdicts((0.0, 1, "R"), (0.25, 2, "R"), (0.5, 9, "R")) == ["well", "well", "well"]


def test_an_idle_loop_has_its_doorbell_rung_and_is_well_when_it_turns() -> None:
    assert verdicts((0.0, 1, "S"), (0.25, 1, "S"), (0.5, 2, "S")) == ["well", "ring", "well"]


def test_a_worker_stopped_at_two_looks_running_is_told() -> None:
    assert verdicts((0.0, 1, "S"), (0.25, 1, "T"), (0.35, 1, "T")) == ["well", "ring", "stopped"]


def test_a_worker_stopped_right_after_it_turned_is_told_no_later() -> None:
    assert verdicts((0.0, 1, "S"), (0.25, 2, "T"), (0.35, 2, "T")) == ["well", "ring", "stopped"]


def test_a_worker_that_turned_between_two_stops_is_not_told() -> None:
    assert verdicts((0.0, 1, "S"), (0.25, 1, "T"), (0.35, 2, "T"), (0.45, 2, "S")) == ["well", "ring", "ring", "ring"]


def test_a_worker_stopped_at_one_look_only_goes_on() -> None:
    assert verdicts((0.0, 1, "S"), (0.25, 1, "T"), (0.35, 1, "S"), (0.6, 1, "T")) == ["well", "ring", "ring", "ring"]


def test_a_worker_that_waits_for_a_core_gets_ten_looks() -> None:
    looks = [(0.25 * i, 7, "R") for i in range(11)]
    assert "hung" not in verdicts(*looks)


def test_a_loop_that_never_turns_is_hung() -> None:
    looks = [(0.25 * i, 7, "R") for i in range(12)]
    assert verdicts(*looks)[-1] == "hung"


def test_looks_that_came_late_prove_nothing() -> None:
    before = [(0.25 * i, 7, "R") for i in range(11)]
    after = [(100.0 + 0.25 * i, 7, "R") for i in range(10)]
    assert "hung" not in verdicts(*before, *after)


def test_a_worker_seen_stopped_before_a_late_look_is_not_yet_told() -> None:
    assert verdicts((0.0, 1, "S"), (0.25, 1, "T"), (60.0, 1, "T"))[-1] == "ring"


def test_the_state_of_a_process_is_read_past_a_name_with_brackets(tmp_path) -> None:
    program = tmp_path / "a) R (b"
    program.symlink_to("/bin/sleep")
    with subprocess.Popen([program, "60"]) as process:
        try:
            process.send_signal(signal.SIGSTOP)
            os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WNOWAIT)
            assert pulse.process_state(process.pid) == "T"
        finally:
            process.kill()
    assert pulse.process_state(process.pid) == "X"
    assert pulse.resident_bytes(process.pid) == 0
