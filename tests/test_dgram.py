"""[dgram NAME], against Python's sockets: unix, UDP, multicast, sequenced packets, and whoever sent last."""

import os
import socket
import struct

import pytest

from desk import frame
from shardnet import addresses, links, options
from shardnet.workers import dgram


class Far:
    """The far end of a datagram port."""

    def __init__(self, family, address=None, kind=socket.SOCK_DGRAM):
        self.socket = socket.socket(family, kind)
        self.socket.setblocking(False)
        if address:
            self.socket.bind(address)

    def receive(self):
        try:
            return self.socket.recv(70000)
        except BlockingIOError:
            return None


def free_port():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "local.type: missing (give local and remote, or one of them)"),
        (
            {"local.type": "fd"},
            "local.type = fd: a worker inherits no descriptors; give type = unix, inet or seqpacket",
        ),
        ({"local.str": "3"}, "local.str: a worker inherits no descriptors; give type = unix, inet or seqpacket"),
        ({"local.type": "unix"}, "local.path: missing, and local.type = unix needs it"),
        ({"local.type": "inet", "local.host": "::1"}, "local.port: missing, and local.type = inet needs it"),
        (
            {"local.type": "unix", "local.path": "a", "local.port": "1"},
            "local.port = 1: an address of type unix has none",
        ),
        (
            {"local.type": "unix", "local.path": "a", "remote.path": "b"},
            "remote.path = b: without remote.type it means nothing",
        ),
        ({"remote.type": "unix", "remote.path": "b"}, "local.type: missing: replies need an address to come to"),
        (
            {"local.type": "unix", "local.path": "a", "remote.type": "inet", "remote.host": "h", "remote.port": "1"},
            "remote.type = inet: local.type is unix, and both ends are of one sort",
        ),
        (
            {"local.type": "seqpacket", "local.path": "a", "remote.type": "seqpacket", "remote.path": "b"},
            "remote.type = seqpacket: a connection of sequenced packets has local, which waits, or remote, which dials",
        ),
        (
            {"remote.type": "inet", "remote.host": "ff02::1", "remote.port": "1"},
            "remote.host = ff02::1: a group of IPv4 is meant (224.0.0.0 to 239.255.255.255)",
        ),
    ],
)
def test_a_mistake_is_named_with_its_reason(given, message):
    with pytest.raises(options.Wrong) as wrong:
        options.read(dgram, given)
    assert str(wrong.value) == message


def test_unix_datagrams_go_to_the_far_end_and_come_from_it(desk, wire, tmp_path):
    far = Far(socket.AF_UNIX, str(tmp_path / "b"))
    place = desk.add(dgram, local__type="unix", local__path="a", remote__type="unix", remote__path="b")
    assert place.states == [("up", f"{tmp_path}/a to {tmp_path}/b")]
    far.socket.sendto(frame(1, 1514), str(tmp_path / "a"))
    assert desk.until(wire.receive) == frame(1, 1514)
    wire.send(frame(2, source=2))
    assert desk.until(far.receive) == frame(2, source=2)


def test_a_far_end_that_vanishes_and_comes_back_is_served_again(desk, wire, tmp_path):
    place = desk.add(dgram, local__type="unix", local__path="a", remote__type="unix", remote__path="b")
    for number in range(3):
        wire.send(frame(100 + number))  # into the void: no such file, then connection refused
        for _ in range(3):
            desk.turn()
        far = Far(socket.AF_UNIX, str(tmp_path / "b"))
        wire.send(frame(number))
        assert desk.until(far.receive) == frame(number)
        far.socket.close()
        if number:
            (tmp_path / "b").unlink()
        else:
            wire.send(frame(200))
            for _ in range(3):
                desk.turn()
            (tmp_path / "b").unlink()
    assert [state for state, _ in place.states] == ["up"]


def test_the_file_goes_with_the_port_and_survives_the_worker(desk, wire, tmp_path):
    given = {"local__type": "unix", "local__path": "a", "remote__type": "unix", "remote__path": "b"}
    place = desk.add(dgram, **given)
    inode = (tmp_path / "a").stat().st_ino
    desk.shard.remove(place.port)  # as when the worker dies
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as far:
        far.sendto(frame(3), str(tmp_path / "a"))  # meanwhile
        heir = desk.reborn(place, dgram, **given)
        assert desk.until(wire.receive) == frame(3)
    assert (tmp_path / "a").stat().st_ino == inode
    heir.carried.close()
    assert not (tmp_path / "a").exists()


def test_the_file_of_a_dead_program_is_taken_over_and_that_of_a_living_one_is_not(desk, tmp_path):
    given = {"local__type": "unix", "local__path": "a", "remote__type": "unix", "remote__path": "b"}
    living = Far(socket.AF_UNIX, str(tmp_path / "a"))
    with pytest.raises(OSError, match="Address already in use"):
        desk.make(dgram, **given).carried.prepare()
    living.socket.close()
    assert desk.add(dgram, **given).up


def test_vfkit_names_itself_by_its_first_datagram(desk, wire, tmp_path):
    desk.add(dgram, local__type="unix", local__path="vfkit.sock")
    first = Far(socket.AF_UNIX, str(tmp_path / "guest1"))
    first.socket.sendto(b"VFKT", str(tmp_path / "vfkit.sock"))
    first.socket.sendto(frame(4), str(tmp_path / "vfkit.sock"))
    assert desk.until(wire.receive) == frame(4)
    wire.send(frame(5))
    assert desk.until(first.receive) == frame(5)
    second = Far(socket.AF_UNIX, str(tmp_path / "guest2"))  # the guest was started anew
    second.socket.sendto(frame(6), str(tmp_path / "vfkit.sock"))
    assert desk.until(wire.receive) == frame(6)
    wire.send(frame(7))
    assert desk.until(second.receive) == frame(7)
    assert first.receive() is None


@pytest.mark.parametrize(("family", "host"), [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")])
def test_udp_goes_to_the_far_end_and_comes_from_anybody(desk, wire, family, host):
    far = Far(family, (host, 0))
    ours = free_port()
    place = desk.add(
        dgram,
        local__type="inet",
        local__host=host,
        local__port=str(ours),
        remote__type="inet",
        remote__host=host,
        remote__port=str(far.socket.getsockname()[1]),
    )
    assert place.up
    stranger = Far(family)
    for one, number in ((far, 8), (stranger, 9)):
        one.socket.sendto(frame(number), (host, ours))
        assert desk.until(wire.receive) == frame(number)
    wire.send(frame(10))
    assert desk.until(far.receive) == frame(10)
    assert stranger.receive() is None


def test_udp_without_a_far_end_answers_whoever_sent_last(desk, wire):
    ours = free_port()
    desk.add(dgram, local__type="inet", local__host="127.0.0.1", local__port=str(ours))
    for number in range(2):
        far = Far(socket.AF_INET)
        far.socket.sendto(frame(number), ("127.0.0.1", ours))
        assert desk.until(wire.receive) == frame(number)
        wire.send(frame(number, source=2))
        assert desk.until(far.receive) == frame(number, source=2)


def test_nobody_at_the_udp_address_is_no_end(desk, wire):
    nobody, ours = free_port(), free_port()
    given = {"local__type": "inet", "local__host": "127.0.0.1", "local__port": str(ours)}
    place = desk.add(dgram, **given, remote__type="inet", remote__host="127.0.0.1", remote__port=str(nobody))
    for number in range(5):
        wire.send(frame(number))
        desk.turn()
    far = Far(socket.AF_INET, ("127.0.0.1", nobody))
    wire.send(frame(9))
    assert desk.until(far.receive) == frame(9)
    assert [state for state, _ in place.states] == ["up"]


def test_a_multicast_group_is_one_wire_without_echoes(desk, wire):
    group, port = "239.192.7.1", free_port()
    given = {
        "remote__type": "inet",
        "remote__host": group,
        "remote__port": str(port),
        "local__type": "inet",
        "local__host": "127.0.0.1",
    }
    place = desk.add(dgram, **given)
    assert place.states == [("up", f"group {group}:{port}")]
    member = Far(socket.AF_INET)  # as QEMU does it: one socket for both ways
    member.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    member.socket.bind((group, port))
    member.socket.setsockopt(
        socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, socket.inet_aton(group) + socket.inet_aton("127.0.0.1")
    )
    member.socket.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton("127.0.0.1"))
    wire.send(frame(11))
    assert desk.until(member.receive) == frame(11)
    for _ in range(5):
        desk.turn()
    assert wire.receive() is None  # what came back to the port was its own
    member.socket.sendto(frame(12, source=2), (group, port))
    assert desk.until(wire.receive) == frame(12, source=2)


@pytest.mark.needs("root")
def test_a_group_that_no_interface_leads_to_is_refused_with_the_reason(desk, namespace):
    place = desk.make(dgram, remote__type="inet", remote__host="239.192.7.1", remote__port="1102")
    with links.namespace(namespace("host").name), pytest.raises(OSError) as error:
        place.carried.prepare()
    assert error.value.strerror.endswith(" (no interface leads there: name one by its address, local.host)")


def test_a_server_of_sequenced_packets_has_one_client_at_a_time(desk, wire, tmp_path):
    place = desk.add(dgram, local__type="seqpacket", local__path="bess.sock")
    assert place.states == [("waiting", f"listening on {tmp_path}/bess.sock")]
    for number in range(3):
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as far:
            far.connect(str(tmp_path / "bess.sock"))
            desk.until(lambda: place.up)
            far.send(frame(number))
            assert desk.until(wire.receive) == frame(number)
            wire.send(frame(number, 1514, source=2))
            desk.until(lambda: received(far))
        desk.until(lambda: not place.up)


def received(far):
    """True when a record is there, whole."""
    try:
        return far.recv(70000, socket.MSG_DONTWAIT | socket.MSG_PEEK) and len(far.recv(70000)) == 1514
    except BlockingIOError:
        return False


def test_a_client_of_sequenced_packets_dials_again(desk, wire, tmp_path):
    place = desk.add(dgram, remote__type="seqpacket", remote__path="bess.sock", reconnect_ms="50")
    for number in range(2):
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as server:
            server.bind(str(tmp_path / "bess.sock"))
            server.listen()
            desk.until(lambda: place.up)
            far, _ = server.accept()
        with far:
            far.send(frame(number))
            assert desk.until(wire.receive) == frame(number)
        (tmp_path / "bess.sock").unlink()
        desk.until(lambda: not place.up)


def test_buffers_are_as_large_as_the_system_allows(tmp_path):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ours:
        before = ours.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)
        dgram.enlarge(ours)
        wanted = 2 * dgram.RECEIVE_BYTES if os.geteuid() == 0 else before
        assert ours.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) >= wanted


def test_qemu_gets_the_other_half(tmp_path):
    def words(**given):
        made = dgram.qemu(
            options.read(dgram, {key.replace("__", "."): text for key, text in given.items()}), tmp_path, (7, 2)
        )
        return made and made[1]

    assert (
        words(local__type="unix", local__path="a", remote__type="unix", remote__path="/b")
        == f"dgram,id=net0,local.type=unix,local.path=/b,remote.type=unix,remote.path={tmp_path}/a"
    )
    assert (
        words(local__type="inet", local__port="1", remote__type="inet", remote__host="192.0.2.1", remote__port="2")
        == "dgram,id=net0,local.type=inet,local.host=192.0.2.1,local.port=2,remote.type=inet,remote.host=127.0.0.1,remote.port=1"
    )
    group = "remote.type=inet,remote.host=230.0.0.1,remote.port=1234"
    assert words(remote__type="inet", remote__host="230.0.0.1", remote__port="1234") == f"dgram,id=net0,{group}"
    assert words(local__type="seqpacket", local__path="a") is None


def test_the_kernel_sees_the_sockaddr_that_was_meant():
    assert addresses.Unix(path="/x").sockaddr == struct.pack("=H", socket.AF_UNIX) + b"/x\0"
    assert addresses.Inet(host="1.2.3.4", port="258").sockaddr == struct.pack(
        "=H", socket.AF_INET
    ) + b"\x01\x02\x01\x02\x03\x04" + bytes(8)
    assert len(addresses.Inet(host="::1", port="1").sockaddr) == 28
