"""A guest of QEMU's moves between two hosts and its connections go along, by the steps of docs/migration.md."""

import hashlib
import os
import shlex

import pytest

import deadline
import hosts
from monitor import Monitor
from test_migrate import flows

pytestmark = pytest.mark.needs("root", "/dev/net/tun", "guests")
PLUG = "\n[stream vm]\nserver = on\naddr.type = unix\naddr.path = vm.sock\n"
SIZE = 150_000_000


@pytest.mark.parametrize("fails", [False, True], ids=["moves", "stays"])
def test_a_guest_moves_and_its_download_is_whole(namespace, lab, guest, tmp_path, fails):
    scene = hosts.Hosts(lab, namespace, {"": PLUG})
    ways = {name: f"stream,server=off,addr.type=unix,addr.path={scene.labs[name].run_dir}/vm.sock" for name in "ab"}
    here = guest([ways["a"]], more=["-qmp", f"unix:{tmp_path}/qmp,server=on,wait=off"])
    there = guest([ways["b"]], more=["-incoming", f"unix:{tmp_path}/incoming"], number=here.number)
    here.address(0, "10.0.2.16/24")
    here.run("ip route add default via 10.0.2.2")
    file = tmp_path / "file"
    file.write_bytes(os.urandom(SIZE))
    monitor = Monitor(tmp_path / "qmp")
    monitor.ask("migrate-set-capabilities", capabilities=[{"capability": "pause-before-switchover", "state": True}])
    with scene.far.running("busybox", "httpd", "-f", "-p", "80", "-h", str(tmp_path)):
        deadline.until(lambda: ":80 " in scene.far.run("ss", "-Hltn"), "httpd listening")
        here.run(
            f"(wget -q -O - http://{hosts.FAR}/file | sha256sum >/tmp/sum; touch /tmp/done) >/dev/null 2>&1 & true"
        )
        deadline.until(lambda: [flow for flow in flows(scene, "a") if flow["bytes_to_guest"] > 1 << 20], "the download")
        monitor.ask("migrate", uri=f"unix:{tmp_path}/incoming")
        deadline.until(lambda: monitor.migration() == "pre-switchover", "the guest stopped", within=60)
        (flow,) = flows(scene, "a")
        assert flow["state"] == "established" and flow["bytes_to_guest"] < SIZE
        switch = " && ".join(map(shlex.join, scene.routing("b")))
        print(scene.move(between="exit 7" if fails else switch, status=int(fails)))
        if fails:
            monitor.ask("migrate_cancel")
            deadline.until(lambda: monitor.migration() == "cancelled", "the migration given up")
            print(monitor.ask("query-status"))
            monitor.ask("cont")
            its = here
        else:
            monitor.ask("migrate-continue", state="pre-switchover")
            deadline.until(lambda: monitor.migration() == "completed", "the move", within=60)
            its, there.ready = there, True
        its.run("while [ ! -e /tmp/done ]; do sleep 0.1; done", within=60)
    assert its.run("cat /tmp/sum").split()[0] == hashlib.sha256(file.read_bytes()).hexdigest()
    assert len(flows(scene, "a")) == (1 if fails else 0)
