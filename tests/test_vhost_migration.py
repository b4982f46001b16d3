"""A guest moves from one QEMU to another while it downloads: what the device writes meanwhile is in the dirty log, or the file is not whole."""

import hashlib
import os

import pytest

import deadline
from monitor import Monitor

pytestmark = pytest.mark.needs("root", "/dev/net/tun", "guests")

LAB = """
[vhost-user here]
server = on
path = here.sock

[vhost-user there]
server = on
path = there.sock

[tap host]
ifname = host
netns = {netns}
address = 10.0.0.9/24
"""


def test_a_guest_that_moves_keeps_its_connections(lab, guest, namespace, tmp_path):
    host = namespace("host")
    running = lab(LAB.format(netns=host.name))
    socket_of = f"vhost-user,path={running.run_dir}/{{}}.sock"
    here = guest([socket_of.format("here")], more=["-qmp", f"unix:{tmp_path}/qmp,server=on,wait=off"])
    there = guest([socket_of.format("there")], more=["-incoming", f"unix:{tmp_path}/incoming"], number=here.number)
    here.address(0, "10.0.0.1/24")
    here.ping("10.0.0.9")
    file = tmp_path / "file"
    file.write_bytes(os.urandom(150_000_000))
    monitor = Monitor(tmp_path / "qmp")
    with host.running("busybox", "httpd", "-f", "-p", "80", "-h", str(tmp_path)):
        deadline.until(lambda: ":80 " in host.run("ss", "-Hltn"), "httpd listening")
        here.run("(wget -q -O - http://10.0.0.9/file | sha256sum >/tmp/sum; touch /tmp/done) >/dev/null 2>&1 & true")
        deadline.until(lambda: running.counters("here")["tx_bytes"] > 10_000_000, "the download")
        monitor.ask("migrate", uri=f"unix:{tmp_path}/incoming")
        before = deadline.until(lambda: moved(monitor, running), "the move", within=60)
        assert before < len(file.read_bytes()), "the download was over before the guest had moved"
        there.ready = True
        there.run("while [ ! -e /tmp/done ]; do sleep 0.1; done", within=60)
    assert there.run("cat /tmp/sum").split()[0] == hashlib.sha256(file.read_bytes()).hexdigest()
    assert running.counters("there")["tx_bytes"] > 1_000_000
    there.ping("10.0.0.9")


def moved(monitor, running):
    """How much had been sent to the guest's old place, once it has moved."""
    status = monitor.ask("query-migrate")["status"]
    assert status in ("setup", "active", "device", "completed"), status
    return status == "completed" and running.counters("here")["tx_bytes"]
