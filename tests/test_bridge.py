"""[bridge NAME] on the kernel's own bridge: made here, made by somebody else, and joined by QEMU's helper."""

import json
from pathlib import Path

import pytest

import deadline
import exchange
import labs
from shardnet import options
from shardnet.workers import bridge

HELPER = "/usr/lib/qemu/qemu-bridge-helper"
ACL = Path("/etc/qemu/bridge.conf")
pytestmark = pytest.mark.needs("root")


@pytest.fixture
def far(namespace):
    """A namespace with the bridge's own in it: (bridge's namespace, far machine's namespace, its veth there)."""
    host, machine = namespace("host"), namespace("far")
    host.run("ip", "link", "add", "v0", "type", "veth", "peer", "name", "eth0", "netns", machine.name)
    host.run("ip", "link", "set", "v0", "up")
    machine.run("ip", "link", "set", "eth0", "up")
    machine.run("ip", "address", "add", "10.6.0.2/24", "dev", "eth0")
    return host, machine


def lab_text(host, guest, *more):
    return "\n".join([
        "[bridge way]", f"netns = {host.name}", *more, "",
        "[tap guest]", "ifname = g0", f"netns = {guest.name}", "address = 10.6.0.1/24", "",
    ])  # fmt: skip


def masters(host, name="br0"):
    return {link["ifname"] for link in json.loads(host.run("ip", "-j", "link", "show", "master", name))}


def test_guests_reach_a_machine_on_the_bridge_that_is_made_here_and_goes_with_the_lab(lab, namespace, far):
    host, machine = far
    running = lab(lab_text(host, guest := namespace("guest"), "create = on", "ifname = sn0"))
    running.until_up("way", "guest")
    host.run("ip", "link", "set", "v0", "master", "br0")
    assert masters(host) == {"sn0", "v0"}
    exchange.ping(guest, "10.6.0.2")
    assert host.run("cat", "/sys/class/net/sn0/address").startswith("fe:")
    host.run("ip", "link", "set", "v0", "nomaster")
    running.stop()
    assert "br0" not in host.links()


def test_a_bridge_that_others_use_stays(lab, namespace, far):
    host, _ = far
    running = lab(lab_text(host, namespace("guest"), "create = on"))
    host.run("ip", "link", "set", "v0", "master", "br0")
    running.stop()
    assert masters(host) == {"v0"}


def test_a_bridge_of_somebody_else_stays_too(lab, namespace, far):
    host, machine = far
    host.run("ip", "link", "add", "br7", "type", "bridge")
    host.run("ip", "link", "set", "br7", "up")
    host.run("ip", "link", "set", "v0", "master", "br7")
    running = lab(lab_text(host, guest := namespace("guest"), "create = on", "br = br7"))
    exchange.ping(guest, "10.6.0.2")
    running.stop()
    assert "br7" in host.links()


def test_a_deleted_tap_comes_back_on_the_bridge(lab, namespace, far):
    host, _ = far
    running = lab(lab_text(host, guest := namespace("guest"), "create = on", "ifname = sn0"))
    host.run("ip", "link", "set", "v0", "master", "br0")
    host.run("ip", "link", "delete", "sn0")
    deadline.until(lambda: "sn0" in masters(host), "the TAP on the bridge again", 20)
    running.until_up("way")
    exchange.ping(guest, "10.6.0.2")


@pytest.fixture
def allowed():
    """br0 in the list of bridges that QEMU's helper puts TAPs on."""
    before = ACL.read_text() if ACL.exists() else None
    ACL.parent.mkdir(exist_ok=True)
    ACL.write_text("allow br0\n")
    yield
    if before is None:
        ACL.unlink()
    else:
        ACL.write_text(before)


def test_qemus_helper_makes_the_tap(lab, namespace, far, allowed):
    host, machine = far
    host.run("ip", "link", "add", "br0", "type", "bridge")
    host.run("ip", "link", "set", "br0", "up")
    host.run("ip", "link", "set", "v0", "master", "br0")
    running = lab(lab_text(host, guest := namespace("guest"), f"helper = {HELPER}"))
    running.until_up("way", "guest")
    assert len(masters(host)) == 2
    exchange.ping(guest, "10.6.0.2")
    with machine.running("iperf3", "--server", "--one-off"):
        deadline.until(lambda: ":5201 " in machine.run("ss", "-Hltn"), "iperf3 listening")
        guest.run("iperf3", "-c", "10.6.0.2", "-n", "20M")
    assert running.counters("way")["tx_super"]  # the helper's TAP takes super-frames as ours do


def test_what_the_helper_refuses_is_said_in_its_words(namespace, far, allowed, tmp_path):
    host, _ = far
    host.run("ip", "link", "add", "br8", "type", "bridge")
    ran = labs.attempt(tmp_path, f"[bridge way]\nnetns = {host.name}\nbr = br8\nhelper = {HELPER}\n")
    assert ran.returncode == 1
    assert "br8: access denied by acl file" in ran.stderr


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"br": "br%d"}, "br = br%d: a bridge has one name"),
        (
            {"helper": HELPER, "queues": "2"},
            "queues = 2: a helper puts one queue of a TAP that it names itself on a bridge that exists",
        ),
        (
            {"helper": HELPER, "create": "on"},
            "create = on: a helper puts one queue of a TAP that it names itself on a bridge that exists",
        ),
    ],
)
def test_a_mistake_is_named_with_its_reason(keys, message):
    with pytest.raises(options.Wrong) as wrong:
        options.read(bridge, keys)
    assert str(wrong.value) == message


def test_a_missing_bridge_is_named(desk, namespace):
    with pytest.raises(OSError, match="no such bridge") as error:
        desk.add(bridge, netns=namespace("host").name, br="br9")
    assert error.value.filename == "br9"


def test_what_is_no_bridge_is_named(desk, namespace):
    with pytest.raises(OSError, match="it is no bridge"):
        desk.add(bridge, netns=namespace("host").name, br="lo")
