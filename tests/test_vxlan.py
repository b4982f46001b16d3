"""[vxlan NAME] with the kernel's vxlan devices in namespaces, and with datagrams that are none."""

import socket
import struct

import pytest

import exchange
from desk import frame
from shardnet import options
from shardnet.workers import vxlan


class Far:
    """A far end in Python, at an address of the loopback network."""

    def __init__(self, host, port):
        self.socket = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.bind((host, port))
        self.socket.setblocking(False)

    def receive(self):
        try:
            return self.socket.recvfrom(70000)
        except BlockingIOError:
            return None


def free_port(host="127.0.0.1"):
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM) as free:
        free.bind((host, 0))
        return free.getsockname()[1]


def header(vni, flags=0x08):
    return struct.pack("!B3xI", flags, vni << 8)


def drops(desk, place):
    return desk.arena.drops(place.port)


def tagged(found):
    return found[:12] + b"\x81\x00\x00\x0a" + found[12:]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "vni: missing"),
        ({"vni": "16777216", "remote": "192.0.2.1"}, "vni = 16777216: not 0 to 16777215"),
        ({"vni": "5"}, "remote: missing (give remote, once for each far end, or group)"),
        ({"vni": "5", "remote": "far.example"}, "remote = far.example: no address of IPv4 or IPv6"),
        ({"vni": "5", "remote": "239.1.1.1"}, "remote = 239.1.1.1: no address of one host (group = takes it)"),
        ({"vni": "5", "group": "192.0.2.1"}, "group = 192.0.2.1: no multicast address (remote = takes one of a host)"),
        (
            {"vni": "5", "remote": "192.0.2.1", "local": "2001:db8::1"},
            "local = 2001:db8::1: IPv4 and IPv6 do not go together in a section",
        ),
        ({"vni": "5", "remote": "192.0.2.1", "ttl": "9"}, "ttl = 9: it is for a group"),
        ({"vni": "5", "remote": "192.0.2.1", "trunk": "all"}, "inner-vlan: off, and the frames of a trunk have tags"),
    ],
)
def test_a_mistake_is_named_with_its_reason(given, message):
    with pytest.raises(options.Wrong) as wrong:
        options.read(vxlan, given)
    assert str(wrong.value) == message


def test_what_nobody_knows_goes_to_all_and_what_was_heard_to_one(desk, wire):
    port = free_port()
    local, *remotes = "127.0.0.1", "127.0.0.2", "127.0.0.3"
    place = desk.add(vxlan, vni="5", local=local, remote="\n".join(remotes), port=str(port))
    one, other = (Far(host, port) for host in remotes)
    wire.send(frame(1))
    for far in (one, other):
        payload, (host, source) = desk.until(far.receive)
        assert (payload, host) == (header(5) + frame(1), local)
        assert source != port
    answer = frame(2, source=9)
    other.socket.sendto(header(5) + answer, (local, port))
    assert desk.until(wire.receive) == answer
    to_it = answer[6:12] + frame(3)[6:]
    wire.send(to_it)
    assert desk.until(other.receive)[0] == header(5) + to_it
    assert one.receive() is None
    counters = desk.arena.counters(place.port)
    assert counters["offered"] == counters["tx_frames"] == 3
    assert counters["tx_bytes"] == 180


def test_what_is_none_of_ours_is_dropped_with_its_cause(desk, wire):
    port = free_port()
    place = desk.add(vxlan, vni="5", local="127.0.0.1", remote="127.0.0.2", port=str(port))
    far, stranger = Far("127.0.0.2", port), Far("127.0.0.3", port)
    sent = [
        (far, b"", "bad_header"),
        (far, header(5)[:7], "bad_header"),
        (far, header(5, flags=0) + frame(1), "bad_header"),
        (far, header(6) + frame(1), "foreign"),
        (stranger, header(5) + frame(1), "foreign"),
        (far, header(5) + tagged(frame(1)), "vlan"),
        (far, header(5), "runt"),
        (far, header(5) + frame(1)[:13], "runt"),
    ]
    wanted = {}
    for end, payload, cause in sent:
        end.socket.sendto(payload, ("127.0.0.1", port))
        wanted[cause] = wanted.get(cause, 0) + 1
    # What a sender sets of the reserved bits is no reason (RFC 7348, 5).
    far.socket.sendto(b"\xff\x01\x02\x03\x00\x00\x05\xff" + frame(7), ("127.0.0.1", port))
    assert desk.until(wire.receive) == frame(7)
    assert {cause: count for cause, count in drops(desk, place).items() if count} == wanted
    wire.send(tagged(frame(8)))
    desk.until(lambda: drops(desk, place).get("tx_vlan") == 1)


def test_tags_pass_where_that_is_said_and_stations_are_known_by_vlan(desk, wire):
    port = free_port()
    desk.add(vxlan, vni="5", local="127.0.0.1", remote="127.0.0.2", port=str(port), inner_vlan="on")
    far = Far("127.0.0.2", port)
    wire.send(tagged(frame(8)))
    assert desk.until(far.receive)[0] == header(5) + tagged(frame(8))
    far.socket.sendto(header(5) + tagged(frame(9, source=3)), ("127.0.0.1", port))
    assert desk.until(wire.receive) == tagged(frame(9, source=3))


def test_stations_beyond_all_bounds_are_flooded_and_not_kept(desk, wire):
    port = free_port()
    place = desk.add(vxlan, vni="5", local="127.0.0.1", remote="127.0.0.2", port=str(port))
    far = Far("127.0.0.2", port)
    for number in range(20_000):
        one = frame(number)
        far.socket.sendto(header(5) + one[:6] + b"\x02\x00" + struct.pack("!I", number) + one[12:], ("127.0.0.1", port))
        if number % 64 == 63:
            desk.turn(0)
    wire.send(one[:6] + b"\x02\x01\x00\x00\x00\x01" + one[12:])
    assert desk.until(far.receive)[0][:8] == header(5)
    assert place.up


@pytest.fixture
def world(namespace):
    """This host, another one, and a guest in a namespace of its own; the two hosts are on one wire."""
    host, other, guest = namespace("host"), namespace("other"), namespace("guest")
    host.run("ip", "link", "add", "eth0", "type", "veth", "peer", "name", "eth0", "netns", other.name)
    for place, last in (host, 1), (other, 2):
        place.run("ip", "link", "set", "eth0", "mtu", "9000", "up")
        place.run("ip", "address", "add", f"192.0.2.{last}/24", "dev", "eth0")
        place.run("ip", "address", "add", f"2001:db8::{last}/64", "dev", "eth0", "nodad")
    return host, other, guest


def text(host, guest, *more, mtu=1430):
    return "\n".join([
        "[vxlan way]", "vni = 5", f"netns = {host.name}", f"mtu = {mtu}", *more, "",
        "[tap guest]", "ifname = g0", f"netns = {guest.name}", f"mtu = {mtu}",
        "address = 10.5.0.1/24", "          fd05::1/64", "",
    ])  # fmt: skip


def kernels(other, *words, mtu=1430):
    """A vxlan device of the kernel's."""
    other.run(
        "ip",
        "link",
        "add",
        "vx0",
        "address",
        "52:54:00:00:00:02",
        "type",
        "vxlan",
        "id",
        "5",
        "dstport",
        "4789",
        *words,
    )
    other.run("ip", "link", "set", "vx0", "mtu", str(mtu), "up")
    other.run("ip", "address", "add", "10.5.0.2/24", "dev", "vx0")
    other.run("ip", "address", "add", "fd05::2/64", "dev", "vx0", "nodad")


def reaches(guest):
    for where in ("10.5.0.2", "fd05::2"):
        exchange.ping(guest, where)


@pytest.mark.needs("root", "/dev/net/tun", "socat", "ethtool")
@pytest.mark.parametrize("card", ["on", "off"])
@pytest.mark.parametrize(("here", "there"), [("192.0.2.1", "192.0.2.2"), ("2001:db8::1", "2001:db8::2")])
def test_the_kernels_vxlan_device_is_reached(lab, world, tmp_path, here, there, card):
    """With card = on the veth says that it fills in the inner checksums and cuts the inner super-frames, and does not."""
    host, other, guest = world
    other.run("ethtool", "-K", "eth0", "tx", card)
    kernels(other, "local", there, "remote", here)
    running = lab(text(host, guest, f"remote = {there}"))
    reaches(guest)
    exchange.bulk(guest, other, "10.5.0.2", tmp_path)
    exchange.bulk(guest, other, "fd05::2", tmp_path)
    other.run("ip", "link", "delete", "vx0")  # the other end restarted
    kernels(other, "local", there, "remote", here, *([] if ":" in there else ["noudpcsum"]))
    reaches(guest)
    counters = running.counters("way")
    assert counters["segmented"] > 100
    assert counters["tx_frames"] > 2 * exchange.BULK / 1430
    assert (counters["rx_super"] > 100) == (card == "on"), (
        "a packet through the veth is a segment, or a whole super-frame"
    )
    assert not running.json("drops", "way")
    assert guest.run("nstat", "-asz", "TcpInCsumErrors").split()[2] == "0"


@pytest.mark.needs("root", "/dev/net/tun", "socat")
def test_a_wider_network_takes_longer_frames(lab, world, tmp_path):
    host, other, guest = world
    kernels(other, "local", "192.0.2.2", "remote", "192.0.2.1", mtu=8950)
    lab(text(host, guest, "remote = 192.0.2.2", mtu=8950))
    exchange.ping(guest, "10.5.0.2", 8922)
    exchange.bulk(guest, other, "10.5.0.2", tmp_path)


@pytest.mark.needs("root", "/dev/net/tun", "socat")
def test_two_labs_send_trains_of_datagrams_and_join_what_comes_in_one(lab, world, tmp_path):
    host, other, guest = world
    there = "[vxlan way]\nvni = 5\nremote = 192.0.2.1\nmtu = 1430\n" + f"netns = {other.name}\n\n"
    lab(there + f"[tap guest]\nifname = g1\nnetns = {other.name}\nmtu = 1430\naddress = 10.5.0.2/24\n", name="there")
    running = lab(text(host, guest, "remote = 192.0.2.2"))
    exchange.answered(guest, "10.5.0.2")
    exchange.bulk(guest, other, "10.5.0.2", tmp_path)
    counters = running.counters("way")
    assert counters["segmented"] > 100
    assert counters["rx_super"] > 100


@pytest.mark.needs("root", "/dev/net/tun", "socat")
def test_a_narrow_network_gets_fragments_and_no_trains(lab, world, tmp_path):
    host, other, guest = world
    for place in (host, other):
        place.run("ip", "link", "set", "eth0", "mtu", "1300")
    kernels(other, "local", "192.0.2.2", "remote", "192.0.2.1")
    running = lab(text(host, guest, "remote = 192.0.2.2"))
    exchange.answered(guest, "10.5.0.2")
    exchange.bulk(guest, other, "10.5.0.2", tmp_path)
    assert running.counters("way")["segmented"] > 100
    assert not running.json("drops", "way")


@pytest.mark.needs("root", "/dev/net/tun")
@pytest.mark.parametrize("group", ["239.5.5.5", "ff05::5"])
def test_members_of_a_group_find_each_other(lab, world, group):
    host, other, guest = world
    kernels(other, "group", group, "dev", "eth0")
    running = lab(text(host, guest, f"group = {group}", "interface = eth0"))
    reaches(guest)
    other.run("ip", "neigh", "flush", "dev", "vx0")
    before = running.counters("way")["rx_taken"]
    exchange.ping(other, "10.5.0.1")
    assert running.counters("way")["rx_taken"] > before


@pytest.mark.needs("root", "/dev/net/tun")
def test_a_port_that_the_kernel_has_is_named(lab, world, desk):
    host, _, _ = world
    kernels(host, "remote", "192.0.2.2")
    with pytest.raises(OSError, match="another section or a vxlan device of the kernel's has it"):
        desk.add(vxlan, vni="5", remote="192.0.2.2", netns=host.name)
