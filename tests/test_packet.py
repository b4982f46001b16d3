"""[packet NAME] on veth pairs and a macvtap, with the kernel's own stack behind them."""

import contextlib
import os
import signal
import socket
import struct
import subprocess
import sys
from types import SimpleNamespace

import pytest

import deadline
import exchange
import flow
import labs
from desk import frame
from exchange import counted, iperf3, wrong_checksums
from shardnet import carrier, links, netdev, options
from shardnet import lab as labfile
from shardnet.workers import packet

root = pytest.mark.needs("root", "/dev/net/tun", "socat", "ethtool", "iperf3")
FAR = ("10.6.0.2", "fd06::2")
PACKET_AUXDATA = 8  # linux/if_packet.h


def veth(host, far):
    """A veth pair from `host`, where it has no address, to `far`, where it has FAR."""
    host.run("ip", "link", "add", "v0", "type", "veth", "peer", "eth0", "netns", far.name)
    host.run("ip", "link", "set", "v0", "up")
    far.run("ip", "link", "set", "eth0", "up")
    far.run("ip", "address", "add", f"{FAR[0]}/24", "dev", "eth0")
    far.run("ip", "address", "add", f"{FAR[1]}/64", "dev", "eth0", "nodad")


def section(host, *more, name="way", ifname="v0"):
    return "\n".join([f"[packet {name}]", f"netns = {host.name}", f"ifname = {ifname}", *more, "", ""])


def tap(guest, *more):
    address = ["address = 10.6.0.1/24", "          fd06::1/64"]
    return "\n".join(["[tap guest]", "ifname = g0", f"netns = {guest.name}", *address, *more, "", ""])


def reaches(side, *addresses):
    for where in addresses or FAR:
        exchange.ping(side, where)


@pytest.fixture
def world(namespace):
    """Where the interface is, what is behind it, where the guest is."""
    made = SimpleNamespace(host=namespace("host"), far=namespace("far"), guest=namespace("guest"))
    veth(made.host, made.far)
    return made


@pytest.fixture(params=[1, 2], ids=["one worker", "two workers"])
def running(request, lab, world):
    made = lab(f"[lab]\nshards = {request.param}\n\n" + section(world.host) + tap(world.guest))
    made.until_up("way", "guest")
    return made


# What the lab file may say.


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "ifname: missing"),
        ({"ifname": "a/b"}, "ifname = a/b: an interface's name has no space, slash or colon in it"),
        ({"ifname": "v%d"}, "ifname = v%d: an interface that exists has one name"),
        ({"ifname": "v0", "rcvbuf": "1K"}, "rcvbuf = 1K: not 64K to 1G"),
        ({"ifname": "v0", "sndbuf": "2G"}, "sndbuf = 2G: not 64K to 1G"),
        ({"ifname": "v0", "netns": ".."}, "netns = ..: no name of a network namespace"),
        ({"ifname": "v0", "promisc": "maybe"}, "promisc = maybe: neither on nor off"),
        ({"ifname": "v0", "queues": "2"}, "queues: a packet socket gets the frames of all of a card's queues"),
        ({"ifname": "v0", "mode": "skb"}, f"mode: {packet.REFUSED['mode']}"),
    ],
)
def test_a_mistake_is_named_with_its_reason(given, message):
    with pytest.raises(options.Wrong) as wrong:
        options.read(packet, given)
    assert str(wrong.value) == message


def test_qemus_af_xdp_is_a_packet_port():
    section = netdev.read("af-xdp,id=n0,ifname=eth0")
    assert (section.kind, section.name, section.options) == ("packet", "n0", options.read(packet, {"ifname": "eth0"}))
    with pytest.raises(labfile.Wrong, match="force-copy: it is about the buffers of AF_XDP"):
        netdev.read("af-xdp,id=n0,ifname=eth0,force-copy=on")


@pytest.mark.needs("root")
@pytest.mark.parametrize(("ifname", "why"), [("nowhere0", "no such interface"), ("lo", "it is no Ethernet interface")])
def test_an_interface_that_cannot_be_carried_is_named(desk, namespace, ifname, why):
    with pytest.raises(OSError, match=why) as error:
        desk.add(packet, netns=namespace("host").name, ifname=ifname)
    assert error.value.filename == ifname


@pytest.mark.needs("root")
def test_a_lab_with_a_wrong_name_says_so_and_does_not_start(namespace, tmp_path):
    ran = labs.attempt(tmp_path, section(namespace("host"), ifname="eth9"))
    assert ran.returncode == 1
    assert "packet way: eth9: no such interface" in ran.stderr


@pytest.mark.needs("root", "setpriv")
def test_without_the_right_the_message_says_which_is_needed(tmp_path):
    file = tmp_path / "lab.ini"
    file.write_text("[packet way]\nifname = eth0\n")
    program = "from shardnet import options; from shardnet.workers import packet\npacket.opened(options.read(packet, {'ifname': 'eth0'}))"
    drop = ["setpriv", "--bounding-set=-all", "--inh-caps=-all", "--reuid=65534", "--regid=65534", "--clear-groups"]
    ran = subprocess.run([*drop, sys.executable, "-c", program], capture_output=True, text=True, cwd="/")
    assert "Operation not permitted (needs CAP_NET_RAW): 'eth0'" in ran.stderr


# What passes.


@root
def test_guests_reach_what_is_behind_the_interface_in_super_frames(running, world):
    reaches(world.guest)
    for where in FAR:
        assert iperf3(world.guest, world.far, where, "--time", "1")["sum_received"]["bytes"] > 10_000_000
        assert iperf3(world.guest, world.far, where, "--time", "1", "-R")["sum_received"]["bytes"] > 10_000_000
    way, guest = running.counters("way"), running.counters("guest")
    assert way["rx_super"] == guest["tx_super"] > 100, "a super-frame was cut on its way in"
    assert guest["rx_super"] == way["tx_super"] > 100, "a super-frame was cut on its way out"
    for port in way, guest:
        assert "segmented" not in port or port["segmented"] == 0
    running.until_balanced("way", "guest")
    assert wrong_checksums(world.guest, world.far) == 0


@root
@pytest.mark.parametrize("offload", ["on", "off"])
def test_what_arrives_is_what_was_sent(running, world, tmp_path, offload):
    """With offloads off the sender's kernel fills checksums in and the receiver's verifies them; with them on nobody does."""
    words = [word for feature in ("tx", "tso", "gso") for word in (feature, offload)]
    world.far.run("ethtool", "-K", "eth0", *words)
    world.guest.run("ethtool", "-K", "g0", *words)
    for where in FAR:
        exchange.bulk(world.guest, world.far, where, tmp_path)
    udp = iperf3(world.guest, world.far, FAR[0], "--udp", "--bitrate", "20M", "--length", "1400", "--time", "1")
    assert udp["sum"]["packets"] > 1000
    assert udp["sum"]["lost_packets"] == counted(world.far, "UdpRcvbufErrors")
    assert wrong_checksums(world.guest, world.far) == 0
    assert (running.counters("way")["rx_super"] > 100) is (offload == "on")


@root
def test_mtu_9000_carries_packets_of_9000_bytes(lab, world):
    for side, name in (world.host, "v0"), (world.far, "eth0"):
        side.run("ip", "link", "set", name, "mtu", "9000")
    lab(section(world.host) + tap(world.guest, "mtu = 9000")).until_up("way", "guest")
    exchange.ping(world.guest, FAR[0], 8972)
    assert iperf3(world.guest, world.far, FAR[0], "--time", "1")["sum_received"]["bytes"] > 10_000_000


@root
def test_tagged_frames_of_the_far_end_pass_with_their_tags(running, world):
    with exchange.vlan(world.far, "eth0", 10, "10.10.0.2/24"), exchange.vlan(world.guest, "g0", 10, "10.10.0.1/24"):
        reaches(world.guest, "10.10.0.2")
        assert iperf3(world.guest, world.far, "10.10.0.2", "--time", "1")["sum_received"]["bytes"] > 100_000
        assert {entry["vlan"] for entry in running.json("fdb")} >= {0, 10}
    assert wrong_checksums(world.guest, world.far) == 0


@root
def test_super_frames_cross_a_trunk_with_their_tags(lab, namespace, tmp_path):
    """Two switches with a veth pair for a trunk: the tag is put in at one end, and the kernel takes it out of band at the other."""
    host, here, there = namespace("host"), namespace("here"), namespace("there")
    host.run("ip", "link", "add", "v0", "type", "veth", "peer", "v1")
    for name in "v0", "v1":
        host.run("ip", "link", "set", name, "up")
    made = lab(
        section(host, "switch = one", "trunk = 10,20", name="t0", ifname="v0")
        + section(host, "switch = two", "trunk = 10,20", name="t1", ifname="v1")
        + f"[tap a]\nswitch = one\nvlan = 10\nifname = g0\nnetns = {here.name}\naddress = 10.6.0.1/24\n  fd06::1/64\n"
        + f"[tap b]\nswitch = two\nvlan = 10\nifname = g0\nnetns = {there.name}\naddress = 10.6.0.2/24\n  fd06::2/64\n"
    )
    made.until_up("t0", "t1", "a", "b")
    reaches(here)
    for where in FAR:
        exchange.bulk(here, there, where, tmp_path)
    a, t0, t1, b = (made.counters(name) for name in ("a", "t0", "t1", "b"))
    assert a["rx_super"] == t0["tx_super"] == t1["rx_super"] == b["tx_super"] > 100
    assert b["rx_super"] == t1["tx_super"] == t0["rx_super"] == a["tx_super"] > 100
    assert {entry["vlan"] for entry in made.json("fdb")} == {10}
    assert wrong_checksums(here, there) == 0


@root
def test_a_macvtap_is_carried(lab, namespace, tmp_path):
    host, far, guest = namespace("host"), namespace("far"), namespace("guest")
    veth(host, far)
    host.run("ip", "link", "add", "link", "v0", "name", "mv0", "type", "macvtap", "mode", "passthru")
    host.run("ip", "link", "set", "mv0", "up")
    made = lab(section(host, ifname="mv0") + tap(guest))
    made.until_up("way", "guest")
    reaches(guest)
    exchange.bulk(guest, far, FAR[0], tmp_path)
    assert made.counters("way")["rx_super"] > 10 < made.counters("way")["tx_super"]
    assert wrong_checksums(guest, far) == 0


@root
def test_the_far_end_reaches_a_user_network(lab, namespace, tmp_path):
    host, far = namespace("host"), namespace("far")
    veth(host, far)
    far.run("ip", "address", "add", "10.0.2.15/24", "dev", "eth0")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    lab(section(host) + "[user net0]\n").until_up("way", "net0")
    reaches(far, "10.0.2.2")
    blob, got = tmp_path / "blob", tmp_path / "got"
    blob.write_bytes(os.urandom(20_000_000))

    def listening():
        return subprocess.run(["ss", "-Hltn", f"sport = :{port}"], capture_output=True, check=True).stdout

    for here, there in (blob, got), (got, tmp_path / "back"):
        with subprocess.Popen(
            ["socat", "-u", f"TCP4-LISTEN:{port},bind=127.0.0.1,reuseaddr", f"CREATE:{there}"]
        ) as server:
            deadline.until(listening, "socat listening")
            far.run("socat", "-u", f"FILE:{here}", f"TCP4:10.0.2.2:{port}")
            server.wait(30)
        assert there.read_bytes() == blob.read_bytes()
    assert wrong_checksums(far) == 0


# What comes in and goes out, frame by frame.


@pytest.fixture
def raw(namespace):
    """A veth pair without a stack's chatter, and a packet socket at its far end."""
    host = namespace("host")
    host.run("sysctl", "-qw", "net.ipv6.conf.default.disable_ipv6=1")
    host.run("ip", "link", "add", "v0", "type", "veth", "peer", "v1")
    for name in "v0", "v1":
        host.run("ip", "link", "set", name, "up")
    with far_end(host) as far:
        yield SimpleNamespace(host=host, socket=far)


@contextlib.contextmanager
def far_end(host):
    """A packet socket on v1 that hears what arrives there, and what tag the kernel has taken out of it."""
    with links.namespace(host.name):
        far = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(packet.ETH_P_ALL))
        far.bind(("v1", packet.ETH_P_ALL))
    far.setsockopt(packet.SOL_PACKET, packet.PACKET_IGNORE_OUTGOING, 1)
    far.setsockopt(packet.SOL_PACKET, PACKET_AUXDATA, 1)
    far.setblocking(False)
    with far:
        yield far


def came(far):
    """The next frame at a packet socket, and the tag that the kernel took out of it; None while there is none."""
    try:
        found, extra, *_ = far.recvmsg(70000, 64)
    except OSError:  # nothing there, or the interface was down meanwhile
        return None
    status, _, _, _, _, tci, tpid = struct.unpack("=IIIHHHH", extra[0][2])
    return found, (tpid, tci) if status & 16 else None


@pytest.mark.needs("root")
@pytest.mark.parametrize("size", [60, 1514, 1900, 2100])
@pytest.mark.parametrize("tpid", [0x8100, 0x88A8])
def test_a_tag_is_put_back_where_it_was(desk, wire, raw, size, tpid):
    raw.host.run("ip", "link", "set", "v0", "mtu", "3000")
    raw.host.run("ip", "link", "set", "v1", "mtu", "3000")
    desk.add(packet, netns=raw.host.name, ifname="v0")
    one = frame(7, size)
    sent = one[:12] + struct.pack("!HH", tpid, 0xA00A) + one[12:]
    for _ in range(3):
        raw.socket.send(sent)
        assert desk.until(wire.receive) == sent
        raw.socket.send(one)
        assert desk.until(wire.receive) == one


@pytest.mark.needs("root")
def test_a_tag_leaves_in_the_frame_and_our_own_frames_are_not_read_back(desk, wire, raw):
    place = desk.add(packet, netns=raw.host.name, ifname="v0")
    one = frame(7)
    wire.send(one[:12] + b"\x81\x00\xa0\x0a" + one[12:], one)
    assert desk.until(lambda: came(raw.socket)) == (one, (0x8100, 0xA00A))
    assert desk.until(lambda: came(raw.socket)) == (one, None)
    raw.socket.send(frame(8, source=2))
    assert desk.until(wire.receive) == frame(8, source=2)
    counters = desk.arena.counters(place.port)
    assert (counters["rx_taken"], counters["tx_frames"]) == (1, 2)


@pytest.mark.needs("root")
def test_what_is_longer_than_the_mtu_is_dropped_and_counted(desk, wire, raw):
    place = desk.add(packet, netns=raw.host.name, ifname="v0")
    longest, longer = frame(1, 1514), frame(2, 1515)
    tag = b"\x81\x00\x00\x0a"
    wire.send(longer, longest, longest[:12] + tag + longest[12:], longer[:12] + tag + longer[12:])
    assert desk.until(lambda: came(raw.socket)) == (longest, None)
    assert desk.until(lambda: came(raw.socket)) == (longest, (0x8100, 10))
    desk.until(lambda: desk.arena.drops(place.port) == {"tx_oversize": 2})
    raw.host.run("ip", "link", "set", "v0", "mtu", "1600")
    raw.host.run("ip", "link", "set", "v1", "mtu", "1600")

    def passes():
        wire.send(longer)
        desk.turn()
        return came(raw.socket)

    assert desk.until(passes) == (longer, None)  # the port follows its interface


@pytest.mark.needs("root", "tc")
@pytest.mark.parametrize("limit", ["3000", "10M"], ids=["a full qdisc (ENOBUFS)", "a full socket (EAGAIN)"])
def test_what_the_interface_does_not_take_is_counted_and_nobody_waits(desk, wire, raw, limit):
    place = desk.add(packet, netns=raw.host.name, ifname="v0", sndbuf="64K")
    raw.host.run(*"tc qdisc add dev v0 root tbf rate 8kbit burst 1600 limit".split(), limit)
    for number in range(400):
        wire.send(frame(number))
        desk.turn(0)
    desk.until(lambda: desk.arena.counters(place.port)["offered"] == 400)
    counters, drops = desk.arena.counters(place.port), desk.arena.drops(place.port)
    assert list(drops) == ["tx_full"]
    assert drops["tx_full"] > 100
    assert counters["tx_frames"] + drops["tx_full"] == 400
    assert counters["tx_frames"] > 10


@pytest.mark.needs("root")
@pytest.mark.parametrize("size", [60, 3000])
def test_what_finds_the_kernels_queue_full_is_counted(desk, raw, size):
    """4,096 short ones wait; of long ones as many as rcvbuf holds."""
    for name in "v0", "v1":
        raw.host.run("ip", "link", "set", name, "mtu", "3000")
    place = desk.add(packet, netns=raw.host.name, ifname="v0", rcvbuf="64K")
    raw.socket.setblocking(True)
    for number in range(5000):
        raw.socket.send(frame(number, size))
    raw.socket.send(frame(1, 60))
    while desk.shard.run(0.0):
        pass
    raw.socket.send(frame(2, 60))

    def all_counted():
        counters = desk.arena.counters(place.port)
        return counters["rx_taken"] == 5002 or None

    desk.until(all_counted)
    counters, drops = desk.arena.counters(place.port), desk.arena.drops(place.port)
    assert drops["overrun"] > 900
    assert counters["forwarded"] + counters["filtered"] + drops["overrun"] == 5002


@pytest.mark.needs("root")
def test_frames_wait_for_a_successor_and_none_comes_twice_or_in_another_order(desk, wire, raw):
    for name in "v0", "v1":
        raw.host.run("ip", "link", "set", name, "mtu", "9000")
    given = {"netns": raw.host.name, "ifname": "v0"}
    place = desk.add(packet, **given)
    sizes = [60, 2500, 1514, 3000]
    raw.socket.setblocking(True)
    number = 0
    for _ in range(60):  # more than once round the ring
        for batch in 17, 23, 40:
            sent = [frame(number + n, sizes[(number + n) % 4]) for n in range(batch)]
            number += batch
            for one in sent[: batch // 2]:
                raw.socket.send(one)
            for one in sent[: batch // 4]:
                assert desk.until(wire.receive) == one
            place.carried.close()
            for one in sent[batch // 2 :]:
                raw.socket.send(one)
            place = desk.reborn(place, packet, **given)
            for one in sent[batch // 4 :]:
                assert desk.until(wire.receive) == one
    assert wire.receive() is None
    assert desk.arena.drops(place.port) == {}


# What becomes of the interface.


@pytest.mark.needs("root")
def test_the_port_has_the_carrier_of_its_interface(desk, wire, raw):
    place = desk.add(packet, netns=raw.host.name, ifname="v0")
    assert place.states == [("up", "v0")]
    raw.host.run("ip", "link", "set", "v1", "down")
    desk.until(lambda: place.states[-1] == ("down", "v0 has no carrier"))
    wire.send(frame(1))
    desk.until(lambda: desk.arena.drops(place.port) == {"tx_down": 1})
    raw.host.run("ip", "link", "set", "v1", "up")
    desk.until(lambda: place.up)
    raw.host.run("ip", "link", "set", "v0", "down")
    desk.until(lambda: place.states[-1] == ("down", "v0 is switched off"))
    raw.host.run("ip", "link", "set", "v0", "up")
    desk.until(lambda: place.up)
    wire.send(frame(2))
    assert desk.until(lambda: came(raw.socket)) == (frame(2), None)
    raw.socket.send(frame(3))
    assert desk.until(wire.receive) == frame(3)


@pytest.mark.needs("root")
def test_a_worker_without_anything_to_do_sleeps(desk, raw):
    """An interface that goes down leaves an error at the socket, which would wake it for ever."""
    place = desk.add(packet, netns=raw.host.name, ifname="v0")
    raw.host.run("ip", "link", "set", "v0", "down")
    desk.until(lambda: place.states[-1][0] == "down")
    for _ in range(5):
        desk.turn()
    beat = desk.arena.beat(0)
    desk.shard.run(0.3)
    assert desk.arena.beat(0) - beat < 10


@pytest.mark.needs("root")
@pytest.mark.parametrize("promisc", ["on", "off"])
def test_an_interface_that_is_made_again_is_carried_again(desk, wire, raw, promisc):
    place = desk.add(packet, netns=raw.host.name, ifname="v0", promisc=promisc)
    for number in range(3):
        assert ("promiscuity 1" in raw.host.run("ip", "-d", "link", "show", "v0")) is (promisc == "on")
        raw.host.run("ip", "link", "delete", "v0")
        desk.until(lambda: place.states[-1] == ("waiting", "v0 is gone"))
        wire.send(frame(9))
        desk.until(lambda n=number: desk.arena.drops(place.port) == {"tx_down": n + 1})
        raw.host.run("ip", "link", "add", "v0", "up", "type", "veth", "peer", "v1")
        raw.host.run("ip", "link", "set", "v1", "up")
        desk.until(lambda: place.up)
        with far_end(raw.host) as far:
            far.send(frame(number))
            assert desk.until(wire.receive) == frame(number)
            wire.send(frame(number, source=2))
            assert desk.until(lambda there=far: came(there)) == (frame(number, source=2), None)


@pytest.mark.needs("root")
def test_an_interface_that_is_moved_away_and_back_is_carried_again(desk, wire, raw, namespace):
    place, other = desk.add(packet, netns=raw.host.name, ifname="v0"), namespace("other")
    raw.host.run("ip", "link", "set", "v0", "netns", other.name)
    desk.until(lambda: place.states[-1] == ("waiting", "v0 is gone"))
    other.run("ip", "link", "set", "v0", "netns", raw.host.name)
    desk.until(lambda: place.states[-1] == ("down", "v0 is switched off"))
    raw.host.run("ip", "link", "set", "v0", "up")
    desk.until(lambda: place.up)
    raw.socket.send(frame(3))
    assert desk.until(wire.receive) == frame(3)


@pytest.mark.needs("root")
def test_one_that_is_made_again_while_no_worker_looks_is_found_by_the_successor(desk, wire, raw):
    given = {"netns": raw.host.name, "ifname": "v0"}
    place = desk.add(packet, **given)
    place.carried.close()
    raw.host.run("ip", "link", "delete", "v0")
    place = desk.reborn(place, packet, **given)
    desk.until(lambda: place.states[-1] == ("waiting", "v0 is gone"))
    place.carried.close()
    raw.host.run("ip", "link", "add", "v0", "up", "type", "veth", "peer", "v1")
    raw.host.run("ip", "link", "delete", "v0")
    raw.host.run("ip", "link", "add", "v0", "up", "type", "veth", "peer", "v1")
    raw.host.run("ip", "link", "set", "v1", "up")
    place = desk.reborn(place, packet, **given)
    desk.until(lambda: place.up)
    assert "promiscuity 1" in raw.host.run("ip", "-d", "link", "show", "v0")


@pytest.mark.needs("root")
def test_an_interface_that_is_renamed_is_carried_on(desk, wire, raw):
    given = {"netns": raw.host.name, "ifname": "v0"}
    place = desk.add(packet, **given)
    raw.host.run("ip", "link", "set", "v0", "name", "w0")
    desk.until(lambda: place.states[-1] == ("up", "w0"))
    raw.socket.send(frame(3))
    assert desk.until(wire.receive) == frame(3)
    place.carried.close()
    place = desk.reborn(place, packet, **given)
    desk.until(lambda: place.states[-1] == ("up", "w0"))


@pytest.mark.needs("root")
def test_the_kernel_is_asked_again_where_it_had_more_to_tell_than_there_was_room_for(desk, raw):
    place = desk.add(packet, netns=raw.host.name, ifname="v0")
    place.carried.follower.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)

    def chatter():
        for number in range(40):
            raw.host.run("ip", "link", "set", "v1", "mtu", str(1400 + number))

    chatter()
    raw.host.run("ip", "link", "set", "v1", "down")
    desk.until(lambda: place.states[-1] == ("down", "v0 has no carrier"))
    raw.host.run("ip", "link", "set", "v1", "up")
    desk.until(lambda: place.up)
    chatter()
    raw.host.run("ip", "link", "delete", "v0")
    desk.until(lambda: place.states[-1] == ("waiting", "v0 is gone"))


@pytest.mark.needs("root")
def test_a_bridge_that_lets_the_interface_go_does_not_take_it_away(desk, raw):
    place = desk.add(packet, netns=raw.host.name, ifname="v0")
    raw.host.run("ip", "link", "add", "br7", "type", "bridge")
    raw.host.run("ip", "link", "set", "v0", "master", "br7")
    raw.host.run("ip", "link", "set", "v0", "nomaster")
    raw.host.run("ip", "link", "set", "v1", "down")
    desk.until(lambda: place.states[-1] == ("down", "v0 has no carrier"))
    assert "waiting" not in dict(place.states)


# A lab that goes on.


@root
def test_the_far_end_may_be_made_anew(running, world, namespace):
    reaches(world.guest)
    world.far.run("ip", "link", "delete", "eth0")
    deadline.until(lambda: running.port("way")["state"] == "waiting", "the port waits")
    assert running.port("way")["detail"] == "v0 is gone"
    another = namespace("another")
    veth(world.host, another)
    running.until_up("way")
    world.guest.run("ip", "neigh", "flush", "dev", "g0")  # it has another hardware address
    exchange.answered(world.guest, FAR[0])
    reaches(world.guest)


@root
def test_the_death_of_its_worker_costs_nobody_a_connection(lab, world):
    streams = "".join(
        f"[stream {name}]\nserver = on\naddr.type = unix\naddr.path = {name}.sock\nswitch = other\n\n"
        for name in ("a", "b")
    )
    running = lab(section(world.host) + tap(world.guest) + streams)
    running.until_up("way", "guest")
    with flow.running(running.run_dir, "a", "b", 2000) as others, world.far.running("iperf3", "--server", "--one-off"):
        deadline.until(lambda: ":5201 " in world.far.run("ss", "-Hltn"), "iperf3 listening")
        with world.guest.running("iperf3", "--json", "--client", FAR[0], "--time", "4", "--bidir") as client:
            for _ in range(3):
                before = running.workers()["way"]
                was = running.counters("way")["rx_taken"]
                deadline.until(lambda w=was: running.counters("way")["rx_taken"] > w, "traffic")
                os.kill(before, signal.SIGKILL)
                deadline.until(lambda b=before: running.workers()["way"] not in (None, b), "a new worker")
                running.until_up("way")
            said, _ = client.communicate(timeout=30)
        account = others.end()
    assert client.returncode == 0, said
    assert (account["lost"], account["twice"]) == (0, 0)
    reaches(world.guest)
    assert wrong_checksums(world.guest, world.far) == 0
    running.until_balanced("way", "guest")


@root
def test_a_worker_keeps_no_privilege(running, world):
    pid = running.workers()["way"]
    status = dict(line.split(":\t", 1) for line in open(f"/proc/{pid}/status").read().splitlines() if ":\t" in line)
    assert {status[name] for name in ("CapEff", "CapPrm", "CapInh", "CapBnd", "CapAmb")} == {"0000000000000000"}
    assert status["NoNewPrivs"] == "1"


@root
def test_a_port_is_added_to_a_lab_that_runs(lab, world):
    running = lab(tap(world.guest))
    running.shardnet("port", "add", section(world.host))
    running.until_up("way")
    reaches(world.guest)
    running.shardnet("port", "remove", "way")
    assert "promiscuity 0" in world.host.run("ip", "-d", "link", "show", "v0")


@pytest.mark.needs("root")
def test_the_kernel_says_at_once_how_an_interface_is(raw):
    with links.namespace(raw.host.name):
        found = carrier.now("v0")
        assert (found.name, found.mtu, found.kind, found.up, found.carrier, found.gone) == (
            "v0",
            1500,
            1,
            True,
            True,
            False,
        )
        with pytest.raises(OSError, match="no such interface"):
            carrier.now("nowhere0")
