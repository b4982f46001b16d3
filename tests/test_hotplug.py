"""Ports come, go and change under load; who is not meant loses no frame, no process and no counter."""

import os
import time

import pytest

import deadline
import ends
import flow

HOT = int(os.environ.get("SHARDNET_HOT", "200"))
BY_COMMAND = 6
TOGETHER = 20  # ports that are there at the same time
WATCHER = 0x6001

STREAMS = "".join(end.section for end in (ends.Stream("left", 1), ends.Stream("right", 2)))
FILE = f"""{STREAMS}
[switch lan]
ageing = 300

[stream goes]
server = on
addr.type = unix
addr.path = goes.sock

[stream retagged]
server = on
addr.type = unix
addr.path = retagged.sock

[stream moves]
server = on
addr.type = unix
addr.path = moves.sock

[dgram stays]
local.type = unix
local.path = stays.sock
"""
CHANGED = f"""{STREAMS}
[switch lan]
ageing = 60

[stream retagged]
server = on
addr.type = unix
addr.path = retagged.sock
vlan = 7

[stream moves]
server = on
addr.type = unix
addr.path = moved.sock

[dgram stays]
local.type = unix
local.path = stays.sock

[stream comes]
server = on
addr.type = unix
addr.path = comes.sock
"""
PLAN = [
    {"action": "remove", "section": "[stream goes]", "why": "no longer in the lab"},
    {"action": "change", "section": "[switch lan]", "why": "ageing = 60 (was 300)"},
    {"action": "change", "section": "[stream retagged]", "why": "vlan = 7 (was not set)"},
    {"action": "restart", "section": "[stream moves]", "why": "addr.path = moved.sock (was moves.sock)"},
    {"action": "add", "section": "[stream comes]", "why": "new in the lab"},
]
TABLE = """\
ACTION   SECTION            WHY
remove   [stream goes]      no longer in the lab
change   [switch lan]       ageing = 60 (was 300)
change   [stream retagged]  vlan = 7 (was not set)
restart  [stream moves]     addr.path = moved.sock (was moves.sock)
add      [stream comes]     new in the lab
"""


def lossless(account):
    print(account)
    assert account["rate"] > 9000
    assert (account["lost"], account["twice"], account["disordered"]) == (0, 0, 0)


def held(lab):
    """Descriptors of the supervisor, and processes of the lab."""
    return len(os.listdir(f"/proc/{lab.supervisor.pid}/fd")), len(lab.processes())


@pytest.mark.parametrize("kind", [ends.Stream, ends.Dgram, pytest.param(ends.Tap, marks=pytest.mark.needs("root"))])
def test_ports_come_and_go_under_load_and_the_others_lose_nothing(lab, kind):
    running = lab(STREAMS + ends.Stream("watch", WATCHER).section)
    watch = ends.Stream("watch", WATCHER)
    watch.attach(running.run_dir)
    count = HOT // 4 if kind is not ends.Stream else HOT - 2 * (HOT // 4)
    took, hot = [], []
    with flow.running(running.run_dir, "left", "right") as numbered, running.client() as client:
        pids = running.workers()
        before = held(running)
        for number in range(count):
            end = kind(f"hot{kind.kind}{number}", 100 + number)
            began = time.monotonic()
            if number < BY_COMMAND:
                keys = end.keys.replace(" = ", "=").replace("\n", ",")
                running.shardnet("port", "add", "--netdev", f"{kind.kind},id={end.name},{keys}")
            else:
                client.port_add(end.section)
                took.append(time.monotonic() - began)
            hot.append(end)
            end.attach(running.run_dir)
            flow.meet(end, watch)
            if len(hot) >= TOGETHER or number == count - 1:
                for end in hot:
                    end.close()
                running.shardnet("port", "remove", *(end.name for end in hot[:BY_COMMAND]))
                for end in hot[BY_COMMAND:]:
                    client.port_remove(end.name)
                hot.clear()
                deadline.until(lambda: len(client.ports()) == 3, "the hot ports gone")
                if number < TOGETHER:
                    shared = running.arena().stat().st_blocks // 2
        deadline.until(lambda: held(running) == before, "descriptors and processes as before")
        grown = running.arena().stat().st_blocks // 2 - shared
        account = numbered.end()
        assert running.workers() == pids
    watch.close()
    print(f"{count} ports, {1000 * sum(took) / len(took):.1f} ms each to add, {grown} KiB more of shared memory")
    lossless(account)
    assert grown < 1024


def test_a_reload_says_what_it_will_do_and_touches_nothing_else(lab):
    running = lab(FILE)
    stays = ends.Stream("retagged", 3)
    stays.attach(running.run_dir)
    with (
        flow.running(running.run_dir, "left", "right") as numbered,
        running.client() as client,
        running.client() as follower,
    ):
        running.until_up("retagged")
        running.file.write_text(CHANGED)
        before = {port["name"]: port for port in client.ports()}
        events = follower.events()
        assert running.json("reload", "--dry-run") == {"plan": PLAN, "done": False}
        assert running.shardnet("reload", "--dry-run") == TABLE
        unchanged = {port["name"]: port["pid"] for port in client.ports()}
        assert unchanged == {name: port["pid"] for name, port in before.items()}, "a dry run did something"
        assert running.shardnet("reload") == TABLE
        told = []
        for event in events:
            told.append(event)
            if event["kind"] == "reloaded":
                break
        after = {port["name"]: port for port in client.ports()}
        assert running.json("reload", "--dry-run") == {"plan": [], "done": False}
        account = numbered.end()
    stays.close()
    assert set(after) == {"left", "right", "retagged", "moves", "stays", "comes"}
    for name in ("left", "right", "retagged", "stays"):
        same = ("id", "pid", "worker", "state", "detail")
        assert {key: after[name][key] for key in same} == {key: before[name][key] for key in same}
        for counter in ("rx_frames", "tx_frames"):
            assert after[name]["counters"][counter] >= before[name]["counters"][counter], "a counter began anew"
    assert after["retagged"]["mode"] == "access 7"
    assert {event["port"] for event in told if "port" in event} == {"goes", "retagged", "moves", "comes"}
    assert not (running.run_dir / "goes.sock").exists()
    lossless(account)
