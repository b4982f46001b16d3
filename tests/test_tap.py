"""[tap NAME], against the kernel: what it makes, what it leaves alone, what comes back."""

import json
import os
import subprocess
from types import SimpleNamespace

import pytest

import exchange
from shardnet import links, options
from shardnet.workers import tap


def ip(netns, *words):
    done = subprocess.run(["ip", "-n", netns, "-j", "-d", *words], check=True, capture_output=True, text=True)
    return json.loads(done.stdout or "[]")


def link(netns, name):
    return next((one for one in ip(netns, "addr") if one["ifname"] == name), None)


def read(**given):
    return options.read(tap, given)


@pytest.mark.parametrize(
    ("key", "text", "message"),
    [
        ("ifname", "a/b", "ifname = a/b: an interface's name has no space, slash or colon in it"),
        ("ifname", "sixteen-letters-", "ifname = sixteen-letters-: an interface's name has 1 to 15 bytes"),
        ("ifname", "%d%d", "ifname = %d%d: the only use of % is one %d"),
        ("mac", "52:54:00:12:34", "mac = 52:54:00:12:34: no MAC address such as 52:54:00:12:34:56"),
        (
            "mac",
            "01:00:5e:00:00:01",
            "mac = 01:00:5e:00:00:01: no address of one interface (the first byte is even, and not all are zero)",
        ),
        ("queues", "0", "queues = 0: not 1 to 256"),
        ("sndbuf", "1x", "sndbuf = 1x: no size such as 1048576 or 1M"),
        (
            "address",
            "10.0.0.300/24",
            "address = 10.0.0.300/24: '10.0.0.300/24' does not appear to be an IPv4 or IPv6 interface (write 10.0.2.1/24 or fd00::1/64)",
        ),
        (
            "vhost",
            "on",
            "vhost: vhost moves frames between the kernel and a guest's queues; here the switch reads the TAP",
        ),
        ("fd", "3", "fd: a worker inherits no descriptors; name the interface with ifname"),
    ],
)
def test_a_mistake_is_named_with_its_reason(key, text, message):
    with pytest.raises(options.Wrong) as wrong:
        read(**{key: text})
    assert str(wrong.value) == message


def test_sizes_are_written_as_qemu_writes_them():
    assert read(sndbuf="1M").sndbuf == 1 << 20
    assert read(sndbuf="1048576").sndbuf == 1 << 20


def test_no_is_no_script():
    assert read(script="no", downscript="no") == read()


@pytest.mark.needs("root")
def test_a_tap_is_made_in_its_namespace_with_its_addresses_and_switched_on(desk, namespace):
    netns = namespace("host").name
    place = desk.add(
        tap,
        ifname="sn0",
        netns=netns,
        address="10.7.0.1/24\nfd07::1/64, 10.7.0.2/24",
        mac="52:54:00:aa:bb:cc",
        mtu="9000",
    )
    assert place.states == [("up", "sn0")]
    found = link(netns, "sn0")
    assert "UP" in found["flags"]
    assert (found["address"], found["mtu"]) == ("52:54:00:aa:bb:cc", 9000)
    assert found["linkinfo"]["info_data"]["vnet_hdr"]
    assert not found["linkinfo"]["info_data"]["persist"]
    got = [f"{a['local']}/{a['prefixlen']}" for a in found["addr_info"] if a["scope"] == "global"]
    assert got == ["10.7.0.1/24", "10.7.0.2/24", "fd07::1/64"]
    assert not links.exists("sn0")  # not here


@pytest.mark.needs("root")
def test_the_namespace_may_be_named_by_a_process_or_a_path(desk, namespace):
    netns = namespace("host").name
    sleeper = subprocess.Popen(["ip", "netns", "exec", netns, "cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        sleeper.stdin.write(b"here\n")
        sleeper.stdin.flush()
        assert sleeper.stdout.readline() == b"here\n"  # so it has entered the namespace
        desk.add(tap, ifname="by-pid", netns=str(sleeper.pid))
        desk.add(tap, ifname="by-path", netns=f"/run/netns/{netns}")
    finally:
        sleeper.kill()
        sleeper.communicate()
    assert link(netns, "by-pid") and link(netns, "by-path")


@pytest.mark.needs("root")
def test_a_namespace_that_does_not_exist_is_named(desk):
    with pytest.raises(FileNotFoundError) as error:
        desk.add(tap, netns="nowhere")
    assert error.value.filename == "/run/netns/nowhere"


@pytest.mark.needs("root")
def test_a_percent_d_takes_the_first_free_number(desk, namespace):
    netns = namespace("host").name
    assert [desk.add(tap, ifname="sn%d", netns=netns).states[-1] for _ in range(2)] == [("up", "sn0"), ("up", "sn1")]


@pytest.mark.needs("root")
def test_queues_are_queues_of_one_interface(desk, namespace):
    netns = namespace("host").name
    desk.add(tap, ifname="sn0", netns=netns, queues="3")
    data = link(netns, "sn0")["linkinfo"]["info_data"]
    assert data["multi_queue"] and data["numqueues"] == 3


@pytest.mark.needs("root")
@pytest.mark.parametrize("multi_queue", [[], ["multi_queue"]])
def test_an_interface_that_exists_is_attached_and_left_as_it_is(desk, namespace, multi_queue):
    netns = namespace("host").name
    ip(netns, "tuntap", "add", "theirs", "mode", "tap", *multi_queue)
    before = link(netns, "theirs")
    place = desk.add(tap, ifname="theirs", netns=netns, address="10.7.0.1/24", mac="52:54:00:aa:bb:cc")
    after = link(netns, "theirs")
    assert place.up
    assert (after["address"], after["addr_info"], "UP" in after["flags"]) == (before["address"], [], False)
    place.carried.close()
    place.forget("queue0")
    assert link(netns, "theirs")


@pytest.mark.needs("root")
def test_an_interface_in_use_is_refused_with_the_reason(desk, namespace):
    netns = namespace("host").name
    desk.add(tap, ifname="sn0", netns=netns)
    with pytest.raises(OSError) as error:
        desk.add(tap, ifname="sn0", netns=netns)
    assert (error.value.filename, error.value.strerror) == (
        "sn0",
        "Device or resource busy (another program has it open)",
    )


@pytest.mark.needs("root")
def test_what_is_no_tap_is_refused_with_the_reason(desk, namespace):
    with pytest.raises(OSError) as error:
        desk.add(tap, ifname="lo", netns=namespace("host").name)
    assert error.value.strerror == "Invalid argument (it is no TAP)"


@pytest.mark.needs("root")
def test_the_script_is_run_in_the_namespace_with_the_name(desk, namespace, tmp_path):
    netns = namespace("host").name
    script = tmp_path / "ifup"
    script.write_text('#!/bin/sh\nip link set "$1" alias "raised by $# word"\n')
    script.chmod(0o755)
    desk.add(tap, ifname="sn0", netns=netns, script=str(script))
    assert link(netns, "sn0")["ifalias"] == "raised by 1 word"


@pytest.mark.needs("root")
def test_a_script_that_fails_leaves_no_interface(desk, namespace):
    netns = namespace("host").name
    place = desk.make(tap, ifname="sn0", netns=netns, script="/bin/false")
    with pytest.raises(OSError) as error:
        place.start()
    assert (error.value.filename, error.value.strerror) == ("/bin/false", "exited with 1")
    assert not link(netns, "sn0")


@pytest.mark.needs("root")
def test_the_downscript_is_run_while_the_interface_is_still_there(desk, namespace, tmp_path):
    netns = namespace("host").name
    script = tmp_path / "ifdown"
    script.write_text(f'#!/bin/sh\nip -o link show "$1" > {tmp_path}/seen\n')
    script.chmod(0o755)
    place = desk.add(tap, ifname="sn%d", netns=netns, downscript=str(script))
    place.carried.close()
    tap.withdraw(place.carried.options, place)
    assert "sn0" in (tmp_path / "seen").read_text()


@pytest.mark.needs("root")
def test_the_interface_survives_the_death_of_its_worker(desk, namespace):
    netns = namespace("host").name
    given = {"ifname": "sn%d", "netns": netns, "address": "10.7.0.1/24", "queues": "2"}
    place = desk.add(tap, **given)
    before = link(netns, "sn0")
    place.carried.close()
    assert desk.reborn(place, tap, **given).states == [("up", "sn0")]
    assert link(netns, "sn0")["ifindex"] == before["ifindex"]


@pytest.mark.needs("root")
def test_an_interface_of_ours_that_is_deleted_is_made_again(desk, namespace):
    netns = namespace("host").name
    place = desk.add(tap, ifname="sn0", netns=netns, address="10.7.0.1/24")
    old = link(netns, "sn0")["ifindex"]
    ip(netns, "link", "del", "sn0")
    desk.until(lambda: not place.up)
    assert place.states[-1] == ("waiting", "sn0 is gone: File descriptor in bad state")
    desk.until(lambda: place.up, 1.0)
    new = link(netns, "sn0")
    assert new["ifindex"] != old
    assert new["addr_info"][0]["local"] == "10.7.0.1"


@pytest.mark.needs("root")
def test_a_persistent_interface_is_waited_for_until_it_is_back(desk, namespace):
    here = f"sn{os.getpid()}"
    subprocess.run(["ip", "tuntap", "add", here, "mode", "tap"], check=True)
    try:
        place = desk.add(tap, ifname=here)
        subprocess.run(["ip", "link", "del", here], check=True)
        desk.until(lambda: len(place.states) > 2)  # it has looked once and found nothing
        assert not links.exists(here)
        subprocess.run(["ip", "tuntap", "add", here, "mode", "tap"], check=True)
        desk.until(lambda: place.up, 2.0)
    finally:
        subprocess.run(["ip", "link", "del", here], check=False)


@pytest.mark.needs("root")
def test_an_interface_switched_off_for_a_while_is_no_loss(desk, namespace):
    left, right = namespace("left").name, namespace("right").name
    desk.add(tap, ifname="sn0", netns=left, address="10.7.0.1/24")
    place = desk.add(tap, ifname="sn0", netns=right, address="10.7.0.2/24")
    ip(right, "link", "set", "sn0", "down")
    desk.runs("ip", "netns", "exec", left, "ping", "-c", "1", "-W", "0.2", "10.7.0.2")
    ip(right, "link", "set", "sn0", "up")
    assert desk.runs("ip", "netns", "exec", left, "ping", "-c", "1", "-W", "3", "10.7.0.2").returncode == 0
    assert place.states == [("up", "sn0")]


@pytest.mark.needs("root")
def test_two_namespaces_reach_each_other(desk, namespace):
    left, right = namespace("left").name, namespace("right").name
    desk.add(tap, ifname="sn0", netns=left, address="10.7.0.1/24\nfd07::1/64")
    desk.add(tap, ifname="sn0", netns=right, address="10.7.0.2/24\nfd07::2/64", queues="2")
    for address in ("10.7.0.2", "fd07::2"):
        exchange.all_answered(desk.runs("ip", "netns", "exec", left, *exchange.PING, address).stdout)


@pytest.mark.needs("root")
def test_sndbuf_and_vnet_hdr_off_are_taken(desk, namespace):
    left, right = namespace("left").name, namespace("right").name
    desk.add(tap, ifname="sn0", netns=left, address="10.7.0.1/24", sndbuf="1M", vnet_hdr="off")
    desk.add(tap, ifname="sn0", netns=right, address="10.7.0.2/24")
    assert desk.runs("ip", "netns", "exec", left, "ping", "-c", "1", "-W", "3", "10.7.0.2").returncode == 0


def test_a_kernel_without_uso_gets_the_offloads_it_knows(monkeypatch):
    """Linux before 6.2 refuses TUNSETOFFLOAD as a whole when it does not know a bit of it."""
    known = links.TUN_F_CSUM | links.TUN_F_TSO4 | links.TUN_F_TSO6 | links.TUN_F_TSO_ECN
    taken = []

    def ioctl(fd, request, flags):
        if flags & ~known:
            raise OSError(22, "Invalid argument")
        taken.append(flags)

    monkeypatch.setattr(links, "fcntl", SimpleNamespace(ioctl=ioctl))
    links._set_offload(-1, links.OFFLOADS)
    assert taken == [known]


def test_without_privileges_the_message_says_what_is_needed():
    assert links._why(1, "sn0", 1).startswith(
        " (needs CAP_NET_ADMIN, or a TAP made for this user: ip tuntap add sn0 mode tap user "
    )
