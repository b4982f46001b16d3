"""Workers as the crew sees them: histories played to it by processes that only say what the test has them say."""

import os

from plays import Play, Process
from shardnet import crew, lab, ports

NETWORK = (("dhcp", "10.0.2.2/24"), ("dns", "10.0.2.3/24"))


def test_a_worker_prepares_all_its_ports_before_it_opens_the_first(play: Play) -> None:
    play.add("a", "b", shard="one")
    assert [message["op"] for message in play.processes[0].sent] == ["setup", "add", "add", "open", "open"]
    assert [message["prepare"] for message in play.processes[0].sent[1:3]] == [True, True]
    assert play.processes[0].sent[0]["fds"] == 65


def test_a_port_settles_when_its_worker_has_opened_it(play: Play) -> None:
    play.opened("a")
    assert play.errors == {"a": None}


def test_ports_have_workers_of_their_own_while_they_are_few() -> None:
    play = Play(shards=3)
    slots = [port.slot for port in play.add(*"abcdefg")]
    assert slots == [0, 1, 2, 0, 1, 2, 0]
    play.close()


def test_ports_of_one_shard_share_a_worker(play: Play) -> None:
    a, b = play.add("a", "b", shard="one")
    (c,) = play.add("c")
    assert a.slot == b.slot != c.slot


def test_a_successor_gets_back_what_was_deposited(play: Play) -> None:
    process, (port,) = play.opened("a")
    process.says("deposit", port, os.dup(0), key="listener")
    process.ended("killed by SIGSEGV")
    successor = play.processes[1]
    assert successor.told(port) == ["keep", "add", "open"]
    assert successor.sent[1] == {"op": "keep", "port": port.id, "key": "listener", "fds": 1}
    successor.says("opened", port)
    assert port.state == "up"


def test_a_forgotten_deposit_is_not_handed_on(play: Play) -> None:
    process, (port,) = play.opened("a")
    before = len(os.listdir("/proc/self/fd"))
    process.says("deposit", port, os.dup(0), key="listener")
    process.says("forget", port, key="listener")
    assert len(os.listdir("/proc/self/fd")) == before
    process.ended("exited with 1")
    assert play.processes[1].told(port) == ["add", "open"]


def test_a_crash_loop_fails_its_own_ports_and_leaves_the_others_alone(play: Play) -> None:
    play.add("a", "b", shard="loop")
    other, (c,) = play.opened("c")
    looping = play.processes[0]
    for _ in range(5):
        looping.ended("killed by SIGSEGV")
        play.turns.pass_time(0.5)
        looping = play.processes[-1]
    assert play.errors == {
        "a": "its worker died 5 times in 10 s, the last time killed by SIGSEGV",
        "b": "its worker died 5 times in 10 s, the last time killed by SIGSEGV",
        "c": None,
    }
    assert (c.state, other.killed) == ("up", False)
    count = len(play.processes)
    play.turns.pass_time(60)
    assert len(play.processes) == count


def serving(play: Play, port: ports.Port) -> Process:
    """The latest process, which carries `port` from now on."""
    process = play.processes[-1]
    process.heard({"op": "ready"}, [])
    process.says("opened", port)
    return process


def test_a_worker_that_somebody_kills_each_second_is_back_at_once_each_time(play: Play) -> None:
    _, (port,) = play.opened("a")
    for count in range(1, 21):
        killed = serving(play, port)
        play.turns.pass_time(1.0)
        killed.ended("killed by SIGKILL")
        assert len(play.processes) == 1 + count
    serving(play, port)
    assert port.state == "up"
    assert play.events().count("killed by SIGKILL, restarted at once") == 20


def test_a_worker_that_a_frame_kills_each_second_waits_and_is_given_up(play: Play) -> None:
    _, (port,) = play.opened("a")
    for _ in range(5):
        dying = serving(play, port)
        play.turns.pass_time(1.0)
        dying.ended("killed by SIGSEGV")
        play.turns.pass_time(0.3)
    assert port.state == "failed"
    assert len(play.processes) == 5


def test_a_worker_that_is_killed_for_not_turning_waits_as_one_that_crashes(play: Play) -> None:
    _, (port,) = play.opened("a")
    for _ in range(2):
        hung = serving(play, port)
        play.turns.pass_time(4.0)
        assert hung.killed
        hung.ended("killed by SIGKILL")
        play.turns.pass_time(0.1)
    assert any(text.endswith("(2nd time in 10 s)") for text in play.events())


def test_a_reset_starts_a_worker_again_that_was_given_up(play: Play) -> None:
    process, (port,) = play.opened("a")
    for _ in range(5):
        play.processes[-1].ended("killed by SIGSEGV")
        play.turns.pass_time(0.5)
    assert port.state == "failed"
    play.crew.reset(port)
    play.processes[-1].says("opened", port)
    assert port.state == "up"


def test_each_restart_is_told_with_its_delay(play: Play) -> None:
    play.opened("vm2")
    play.processes[-1].ended("killed by SIGSEGV")
    play.processes[-1].ended("killed by SIGSEGV")
    assert "killed by SIGSEGV, restarted at once" in play.events()
    assert any(text.startswith("killed by SIGSEGV, restarted in ") for text in play.events())
    assert any(text.endswith("(2nd time in 10 s)") for text in play.events())


def test_a_port_added_to_a_running_worker_is_prepared_by_a_helper_and_then_opened(play: Play) -> None:
    worker, _ = play.opened("a", shard="one")
    (port,) = play.add("b", shard="one")
    helper = play.processes[1]
    assert worker.told(port) == []
    helper.says("deposit", port, os.dup(0), key="listener")
    helper.says("prepared", port)
    assert helper.sent[-1]["op"] == "stop"
    helper.ended("exited with 0")
    assert worker.told(port) == ["keep", "add", "open"]
    assert [message["prepare"] for message in worker.sent if message["op"] == "add"] == [True, False]


def test_a_helper_that_fails_fails_its_port_and_nothing_else(play: Play) -> None:
    worker, (first,) = play.opened("a", shard="one")
    (port,) = play.add("b", shard="one")
    play.processes[1].says("failed", port, error="tap0: Operation not permitted")
    play.processes[1].ended("exited with 0")
    assert play.errors["b"] == "tap0: Operation not permitted"
    assert (worker.told(port), first.state, port.state) == ([], "up", "failed")


def test_a_port_whose_worker_dies_while_a_helper_prepares_it_is_prepared_by_the_successor(play: Play) -> None:
    worker, _ = play.opened("a", shard="one")
    (port,) = play.add("b", shard="one")
    helper = play.processes[1]
    worker.ended("killed by SIGKILL")
    successor = play.processes[2]
    helper.says("prepared", port)
    helper.ended("exited with 0")
    assert successor.told(port) == ["add", "open"]


def test_a_removed_port_is_gone_when_its_worker_has_let_go_of_it(play: Play) -> None:
    worker, (port, _) = play.opened("a", "b", shard="one")
    gone: list[str] = []
    play.crew.remove(port, lambda: gone.append("gone"))
    assert (gone, play.table.named("a")) == ([], port)
    worker.says("removed", port)
    assert (gone, play.table.named("a")) == (["gone"], None)
    assert worker.sent[-1]["op"] == "remove"


def test_a_worker_ends_with_its_last_port(play: Play) -> None:
    worker, (port,) = play.opened("a")
    play.crew.remove(port, lambda: None)
    worker.says("removed", port)
    assert worker.sent[-1]["op"] == "stop"
    worker.ended("exited with 0")
    assert play.crew.members == {}


def test_a_port_whose_worker_dies_instead_of_removing_it_is_gone_too(play: Play) -> None:
    worker, (port, other) = play.opened("a", "b", shard="one")
    play.crew.remove(port, lambda: None)
    worker.ended("killed by SIGKILL")
    assert play.table.named("a") is None
    assert play.processes[1].told(port) == []
    assert play.processes[1].told(other) == ["add", "open"]


def test_a_port_that_asks_for_it_is_prepared_again_by_a_helper_as_often_as_it_takes(play: Play) -> None:
    worker, (port,) = play.opened("a")
    worker.says("state", port, state="waiting", detail="tap0 is gone")
    worker.says("again", port)
    play.processes[1].says("failed", port, error="no such namespace")
    play.processes[1].ended("exited with 0")
    assert (port.state, port.detail) == ("waiting", "no such namespace")
    play.turns.pass_time(0.3)
    helper = play.processes[2]
    helper.says("deposit", port, os.dup(0), key="queue0")
    helper.says("prepared", port)
    helper.ended("exited with 0")
    assert worker.told(port) == ["add", "open", "keep", "open"]


def test_a_worker_speaks_for_no_port_but_its_own(play: Play) -> None:
    one, (a,) = play.opened("a")
    _, (b,) = play.opened("b")
    before = len(os.listdir("/proc/self/fd"))
    one.says("failed", b, error="a lie")
    one.says("deposit", b, os.dup(0), key="listener")
    one.heard({"op": "failed", "port": "a"}, [])
    one.heard({}, [])
    assert (a.state, b.state) == ("up", "up")
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_worker_whose_loop_does_not_turn_is_killed(play: Play) -> None:
    worker, _ = play.opened("a")
    play.turns.pass_time(2.4)
    assert not worker.killed
    play.turns.pass_time(1.0)
    assert worker.killed


def test_a_worker_that_is_still_opening_a_port_is_not_hung(play: Play) -> None:
    play.add("a")
    play.turns.pass_time(30)
    assert not play.processes[0].killed


def test_a_stop_tells_every_worker_and_ends_the_late_by_force(play: Play) -> None:
    quick, _ = play.opened("a")
    late, _ = play.opened("b")
    done: list[str] = []
    play.crew.stop(lambda: done.append("done"))
    assert (quick.sent[-1]["op"], late.sent[-1]["op"]) == ("stop", "stop")
    quick.ended("exited with 0")
    assert (done, late.killed) == ([], False)
    play.turns.pass_time(crew.DRAIN_S)
    assert late.killed
    late.ended("killed by SIGKILL")
    assert done == ["done"]
    assert len(play.processes) == 2


def network(play: Play) -> tuple[ports.Port, ports.Port, Process, Process]:
    """A DHCP service and one that hears of its leases, each in a worker."""
    new = [play.table.new(lab.section(kind, kind, {"address": address})) for kind, address in NETWORK]
    play.crew.add(new)
    dhcp, dns = new
    return dhcp, dns, play.processes[dhcp.slot], play.processes[dns.slot]


def test_who_hears_of_leases_opens_when_all_that_are_known_from_before_were_told(play: Play) -> None:
    dhcp, dns, teller, hearer = network(play)
    teller.says("opened", dhcp)
    assert hearer.told(dns) == ["add"]
    teller.says("lease", dhcp, what="known", address="10.0.2.15", mac="52:54:00:00:00:01", name="vm1", until=0)
    teller.says("told", dhcp)
    assert hearer.told(dns)[-1] == "open" and "leases" in hearer.told(dns)
    hearer.ended("killed by SIGKILL")
    assert play.processes[-1].told(dns) == ["add", "leases", "open"]


def test_who_hears_of_leases_waits_for_nobody_who_has_failed_or_says_nothing(play: Play) -> None:
    dhcp, dns, teller, hearer = network(play)
    teller.says("failed", dhcp, error="no such file")
    assert hearer.told(dns) == ["add", "open"]
    other = Play()
    dhcp, dns, teller, hearer = network(other)
    other.turns.pass_time(2.1)
    assert hearer.told(dns) == ["add", "open"]
    teller.says("told", dhcp)
    assert hearer.told(dns) == ["add", "open"]
    other.close()
