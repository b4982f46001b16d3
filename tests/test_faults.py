"""Workers, the forkserver, the supervisor: killed and stopped, while others count every frame.

Twelve victims of three kinds, a worker each, die in turn; a worker that lives for ten seconds between two deaths is
restarted at once. SHARDNET_FAULTS in the environment says how many faults there are to be. How soon a port is back
is printed (pytest -rP) and not judged: that is for bench/, on a machine with nothing else to do.
"""

import contextlib
import os
import signal
import statistics
import subprocess
import time
from pathlib import Path

import pytest

import deadline
import ends
import flow
import labs

FAULTS = int(os.environ.get("SHARDNET_FAULTS", "24"))
LIVED_S = 10.2  # restarts.WINDOW_S and some air
PROBE_S = 0.002
WATCHER = 0x6001

TWO = "".join(end.section for end in (ends.Stream("left", 1), ends.Stream("right", 2)))


class Watch:
    """Finds out when a port carries frames again, both ways, by an end of its own."""

    def __init__(self, lab: labs.Lab) -> None:
        self.lab = lab
        self.end = ends.Stream("watch", WATCHER)
        self.number = 0

    def meets(self, victim: ends.End) -> None:
        """Wait until frames pass both ways between the victim and us; they were sent after this call."""
        first = self.number = self.number + 1
        came = went = False

        def both() -> bool:
            nonlocal came, went
            self.number += 1
            for end in (victim, self.end):
                end.attach(self.lab.run_dir)
            victim.send(ends.frame(self.end.mac, victim.mac, self.number))
            self.end.send(ends.frame(victim.mac, self.end.mac, self.number))
            came |= any(found[6:12] == victim.mac and ends.number(found) >= first for found in self.end.frames())
            went |= any(found[6:12] == self.end.mac and ends.number(found) >= first for found in victim.frames())
            return came and went

        deadline.until(both, f"frames through {victim.name}", every=PROBE_S)


def strike(pid: int, number: signal.Signals) -> None:
    """Kill or stop a process; returns when it does nothing any more."""
    with contextlib.ExitStack() as stack:
        pidfd = os.pidfd_open(pid)
        stack.callback(os.close, pidfd)
        os.kill(pid, number)
        if number == signal.SIGKILL:
            deadline.readable(pidfd, "its death")
        else:
            deadline.until(lambda: process_state(pid) in "TX", "its stop", every=0.001)


def process_state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return "X"


def held(lab: labs.Lab) -> dict[str, int]:
    """What a lab has of what could leak."""
    processes = lab.processes()
    pages = Path(f"/proc/{lab.supervisor.pid}/statm").read_text().split()[1]
    return {
        "processes": len(processes),
        "descriptors": sum(len(os.listdir(f"/proc/{pid}/fd")) for pid in processes),
        "of the supervisor": len(os.listdir(f"/proc/{lab.supervisor.pid}/fd")),
        "resident KiB": int(pages) * 4,
        "/dev/shm KiB": lab.arena().stat().st_blocks // 2,
    }


@pytest.mark.needs("root", "/dev/net/tun")
def test_workers_die_in_turn_and_nobody_else_loses_a_frame(lab):
    victims = [kind(f"f{kind.kind}{n}", 16 * n + at) for n in range(1, 5) for at, kind in enumerate(ends.KINDS)]
    others = [ends.Stream("left", flow.FROM), ends.Stream("right", flow.TO), ends.Stream("watch", WATCHER)]
    shards = f"[lab]\nshards = {len(victims) + len(others)}\n"
    running = lab(shards + "".join(end.section for end in victims + others))
    watch = Watch(running)
    back: dict[signal.Signals, list[float]] = {signal.SIGKILL: [], signal.SIGSTOP: []}
    died = dict.fromkeys(victims, 0.0)
    try:
        for victim in victims:
            watch.meets(victim)
        for end in (*victims, watch.end):  # to everybody, so that every lane has its memory
            assert end.send(ends.frame(ends.EVERYBODY, end.mac, 0))
        with flow.running(running.run_dir, "left", "right") as numbered, running.client() as client:
            client.status()
            before = held(running)
            for fault in range(FAULTS):
                victim = victims[fault % len(victims)]
                number = list(back)[(fault + fault // len(victims)) % 2]
                rested = died[victim] + LIVED_S
                deadline.until(lambda due=rested: time.monotonic() > due, "a life of ten seconds", LIVED_S + 1)
                pid = client.ports(victim.name)[0]["pid"]
                died[victim] = time.monotonic()
                strike(pid, number)
                watch.meets(victim)
                back[number].append(time.monotonic() - died[victim])
                assert client.ports(victim.name)[0]["pid"] != pid
            deadline.until(lambda: held(running)["descriptors"] == before["descriptors"], "descriptors as before")
            after = held(running)
            account = numbered.end()
    finally:
        for end in (*victims, watch.end):
            end.close()
    print(account)
    for number, times in back.items():
        print(
            f"{number.name}: {len(times)} times, back in {statistics.median(times):.3f} s, {max(times):.3f} s at worst"
        )
    print(f"before {before}\nafter  {after}")
    assert account["sent"] > 10_000
    assert (account["lost"], account["twice"], account["disordered"]) == (0, 0, 0)
    assert all(after[what] == before[what] for what in ("processes", "descriptors", "of the supervisor"))
    assert after["resident KiB"] - before["resident KiB"] < 1024
    assert after["/dev/shm KiB"] - before["/dev/shm KiB"] < 1024


def test_a_crash_loop_fails_its_port_alone_and_a_reset_heals_it(lab):
    victim = ends.Stream("victim", 1)
    running = lab(TWO + victim.section + ends.Stream("watch", WATCHER).section)
    watch = Watch(running)
    with flow.running(running.run_dir, "left", "right") as numbered, running.client() as client:
        watch.meets(victim)
        pids = {port["name"]: port["pid"] for port in client.ports()}
        pid = pids["victim"]
        dead = {None}
        for _ in range(5):
            found = deadline.until(
                lambda: {client.ports("victim")[0]["pid"]} - dead, "another process", every=0.005
            ).pop()
            strike(found, signal.SIGKILL)
            dead.add(found)
        deadline.until(lambda: client.ports("victim")[0]["state"] == "failed", "the end of patience")
        failed = client.ports("victim")[0]
        assert failed["detail"] == "its worker died 5 times in 10 s, the last time killed by SIGKILL"
        assert "victim" in running.shardnet("port", "list")
        running.shardnet("port", "reset", "victim")
        watch.meets(victim)
        now = {port["name"]: port["pid"] for port in client.ports()}
        assert now.pop("victim") not in (None, pid) and now.items() <= pids.items()
        account = numbered.end()
    assert (account["lost"], account["twice"], account["disordered"]) == (0, 0, 0)
    watch.end.close()
    victim.close()


@pytest.mark.needs("root", "/dev/net/tun")
@pytest.mark.parametrize("stopped", [False, True], ids=["workers running", "a worker stopped"])
def test_nothing_is_left_of_a_killed_supervisor_and_the_next_start_works(lab, namespace, stopped):
    ports = [ends.Tap("ftap", 1), ends.Stream("stream", 2), ends.Dgram("dgram", 3), ends.Stream("watch", WATCHER)]
    inside = namespace("inside")
    there = f"[tap inside]\nifname = inside\nnetns = {inside.name}\naddress = 10.9.9.1/24\n"
    running = lab("".join(end.section for end in ports) + there)
    running.until_up("ftap", "inside")
    assert "inside" in inside.links()
    if stopped:
        os.kill(running.workers()["stream"], signal.SIGSTOP)
    processes = running.processes()
    began = time.monotonic()
    running.supervisor.kill()
    running.supervisor.wait()
    for pid in processes:
        deadline.ended(pid, f"the end of process {pid}", 2)
    print(f"{len(processes)} processes gone after {(time.monotonic() - began) * 1000:.0f} ms")
    assert not running.processes()
    left = labs.left_behind() - running.before
    assert not left, left
    assert inside.links() == {"lo"}
    assert (running.run_dir / "stream.sock").is_socket(), "the stale socket that the next start finds"
    began = time.monotonic()
    running.start()
    print(f"ready again after {(time.monotonic() - began) * 1000:.0f} ms")
    watch = Watch(running)
    for end in ports[:3]:
        watch.meets(end)
        end.close()
    watch.end.close()


def test_a_lab_without_its_forkserver_recovers_by_itself(lab):
    ports = [ends.Stream("stream", 1), ends.Dgram("dgram", 2)]
    running = lab("".join(end.section for end in ports) + ends.Stream("watch", WATCHER).section)
    watch = Watch(running)
    for victim in ports:
        watch.meets(victim)
    count = len(running.processes())
    parent = int(Path(f"/proc/{running.workers()['stream']}/stat").read_text().rpartition(")")[2].split()[1])
    assert parent != running.supervisor.pid
    strike(parent, signal.SIGKILL)
    began = time.monotonic()
    for victim in ports:
        watch.meets(victim)
        print(f"{victim.name} back after {(time.monotonic() - began) * 1000:.0f} ms")
    strike(running.workers()["dgram"], signal.SIGKILL)  # and the new one does its work
    watch.meets(ports[1])
    deadline.until(lambda: len(running.processes()) == count, "as many processes as before")
    for end in (*ports, watch.end):
        end.close()


@pytest.mark.parametrize("garbage", ["sockets nobody listens on", "a lock of a dead process"])
def test_what_a_dead_lab_left_in_the_run_directory_blocks_no_start(lab, garbage):
    running = lab(TWO)
    running.stop()
    running.run_dir.mkdir(mode=0o700, exist_ok=True)
    if garbage == "a lock of a dead process":
        gone = subprocess.Popen(["true"])
        gone.wait()
        (running.run_dir / "lock").write_text(f"{gone.pid}\n")
    else:
        for name in ("control.sock", "left.sock"):
            with ends.socket.socket(ends.socket.AF_UNIX) as stale:
                stale.bind(str(running.run_dir / name))
    running.start()
    assert {port["name"] for port in running.json("status")["ports"]} == {"left", "right"}
