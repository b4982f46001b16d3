"""[stream NAME], against Python's sockets and socat: both sides of a connection, and what ends one."""

import gc
import os
import socket
import subprocess
import time

import pytest

from desk import Far, frame
from shardnet import addresses, links, options
from shardnet.workers import stream


def unix_server(desk, **more):
    return desk.add(stream, server="on", addr__type="unix", addr__path="vm.sock", **more)


def dial(path):
    far = socket.socket(socket.AF_UNIX)
    far.connect(str(path))
    return Far(far)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "addr.type: missing"),
        ({"addr.type": "fd"}, "addr.type = fd: a worker inherits no descriptors; give addr.type = unix or inet"),
        (
            {"addr.type": "unix", "addr.path": "a", "addr.str": "3"},
            "addr.str: a worker inherits no descriptors; give addr.type = unix or inet",
        ),
        ({"addr.type": "unix"}, "addr.path: missing, and addr.type = unix needs it"),
        ({"addr.type": "inet", "addr.port": "1"}, "addr.host: missing, and addr.type = inet needs it"),
        ({"addr.type": "unix", "addr.path": "a", "addr.port": "1"}, "addr.port = 1: an address of type unix has none"),
        (
            {"addr.type": "inet", "addr.host": "h", "addr.port": "1", "addr.keep-alive": "on", "addr.abstract": "on"},
            "addr.abstract = on: an address of type inet has none",
        ),
        (
            {"addr.type": "unix", "addr.path": "x" * 108},
            f"addr.path = {'x' * 87}…: longer than the 107 bytes that a unix socket's path may have",
        ),
        ({"addr.type": "inet", "addr.host": "h", "addr.port": "65536"}, "addr.port = 65536: a port is 0 to 65535"),
        (
            {"addr.type": "unix", "addr.path": "a", "server": "on", "reconnect-ms": "5"},
            "reconnect-ms = 5: a server waits, it does not dial",
        ),
        (
            {"addr.type": "unix", "addr.path": "a", "reconnect": "1", "reconnect-ms": "5"},
            "reconnect = 1: reconnect-ms says it already",
        ),
        (
            {"addr.type": "inet", "addr.host": "h", "addr.port": "9", "addr.to": "8", "server": "on"},
            "addr.to = 8: less than addr.port = 9",
        ),
        (
            {"addr.type": "inet", "addr.host": "h", "addr.port": "9", "addr.ipv4": "off", "addr.ipv6": "off"},
            "addr.ipv6 = off: addr.ipv4 is off too, and nothing is left",
        ),
    ],
)
def test_a_mistake_is_named_with_its_reason(given, message):
    with pytest.raises(options.Wrong) as wrong:
        options.read(stream, given)
    assert str(wrong.value) == message


def test_frames_cross_between_a_client_and_the_switch(desk, wire, tmp_path):
    place = unix_server(desk)
    assert place.states == [("waiting", f"listening on {tmp_path}/vm.sock")]
    far = dial(tmp_path / "vm.sock")
    desk.until(lambda: place.up)
    assert place.states[-1][1] == f"connected: pid {os.getpid()}, uid {os.getuid()}"
    for size in (60, 1514, 9014):
        out, back = frame(1, size), frame(2, size, source=2)
        far.send(out)
        assert desk.until(wire.receive) == out
        wire.send(back)
        assert desk.until(far.receive) == back


def test_a_length_cut_in_pieces_is_put_together(desk, wire, tmp_path):
    place = unix_server(desk)
    far = dial(tmp_path / "vm.sock")
    desk.until(lambda: place.up)
    one = frame(3, 100)
    for byte in len(one).to_bytes(4, "big") + one:
        far.stream.sendall(bytes([byte]))
        desk.turn(0.001)
    assert desk.until(wire.receive) == one


def test_a_frame_of_length_0_is_skipped(desk, wire, tmp_path):
    place = unix_server(desk)
    far = dial(tmp_path / "vm.sock")
    desk.until(lambda: place.up)
    far.send(b"", frame(4), b"", b"", frame(5))
    assert [desk.until(wire.receive), desk.until(wire.receive)] == [frame(4), frame(5)]
    assert place.up


@pytest.mark.parametrize("length", [1 << 17, 1 << 31, (1 << 32) - 1])
def test_a_length_out_of_range_ends_the_connection_and_the_next_one_is_served(desk, wire, tmp_path, length):
    place = unix_server(desk)
    bad = dial(tmp_path / "vm.sock")
    desk.until(lambda: place.up)
    bad.send(frame(6))
    bad.stream.sendall(length.to_bytes(4, "big") + bytes(100))
    desk.until(bad.closed)
    assert desk.until(wire.receive) == frame(6)
    assert place.states[-1][0] == "waiting" and ", after " in place.states[-1][1]
    good = dial(tmp_path / "vm.sock")
    good.send(frame(7))
    assert desk.until(wire.receive) == frame(7)


def test_a_second_client_waits_until_the_first_has_left(desk, wire, tmp_path):
    unix_server(desk)
    first, second = dial(tmp_path / "vm.sock"), dial(tmp_path / "vm.sock")
    first.send(frame(8))
    second.send(frame(9))
    assert desk.until(wire.receive) == frame(8)
    for _ in range(5):
        desk.turn()
    assert wire.receive() is None
    first.stream.close()
    assert desk.until(wire.receive) == frame(9)


def test_a_thousand_clients_that_leave_in_the_middle_of_a_frame_leave_nothing_behind(desk, tmp_path):
    place = unix_server(desk)
    gc.collect()  # what earlier tests have dropped
    open_before = len(os.listdir("/proc/self/fd"))
    for _ in range(1000):
        with socket.socket(socket.AF_UNIX) as far:
            far.connect(str(tmp_path / "vm.sock"))
            far.sendall(b"\0\0\x05\xdc" + bytes(100))
            desk.until(lambda: place.up)
        desk.until(lambda: not place.up)
    assert len(os.listdir("/proc/self/fd")) <= open_before


def test_the_listening_socket_survives_the_death_of_its_worker(desk, wire, tmp_path):
    place = unix_server(desk)
    dead = place.carried.line.listener
    place.unwatch(dead.fileno())
    dead.close()
    waiting = dial(tmp_path / "vm.sock")  # meanwhile
    waiting.send(frame(10))
    heir = desk.reborn(place, stream, server="on", addr__type="unix", addr__path="vm.sock")
    assert desk.until(wire.receive) == frame(10)
    assert heir.up


def test_the_file_of_a_dead_listener_is_taken_over(desk, tmp_path):
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / "vm.sock"))
        dead.listen()
    place = unix_server(desk)
    dial(tmp_path / "vm.sock")
    desk.until(lambda: place.up)


def test_the_socket_of_a_living_listener_is_left_alone(desk, tmp_path):
    with socket.socket(socket.AF_UNIX) as living:
        living.bind(str(tmp_path / "vm.sock"))
        living.listen()
        with pytest.raises(OSError) as error:
            desk.make(stream, server="on", addr__type="unix", addr__path="vm.sock").carried.prepare()
    assert error.value.strerror == "Address already in use (is this lab running already?)"
    assert error.value.filename == str(tmp_path / "vm.sock")


def test_a_file_that_is_no_socket_is_left_alone(desk, tmp_path):
    (tmp_path / "vm.sock").write_text("precious")
    with pytest.raises(OSError, match="Address already in use"):
        desk.make(stream, server="on", addr__type="unix", addr__path="vm.sock").carried.prepare()
    assert (tmp_path / "vm.sock").read_text() == "precious"


def test_the_socket_file_goes_with_the_port(desk, tmp_path):
    place = unix_server(desk)
    assert (tmp_path / "vm.sock").is_socket()
    place.carried.close()
    assert not (tmp_path / "vm.sock").exists()


def test_a_path_too_long_for_a_socket_is_refused_before_anything_is_made(desk, tmp_path):
    desk.run_dir = tmp_path / ("d" * 90)
    with pytest.raises(OSError) as error:
        unix_server(desk)
    assert error.value.strerror.endswith("bytes, and the path of a unix socket has at most 107")


@pytest.mark.parametrize("tight", ["on", "off"])
def test_an_abstract_address_has_no_file(desk, wire, tmp_path, tight):
    name = f"shardnet-test-{os.getpid()}"
    place = desk.add(stream, server="on", addr__type="unix", addr__path=name, addr__abstract="on", addr__tight=tight)
    with socket.socket(socket.AF_UNIX) as far:
        far.connect(b"\0" + (name.encode() if tight == "on" else name.encode().ljust(107, b"\0")))
        desk.until(lambda: place.up)
        Far(far).send(frame(11))
        assert desk.until(wire.receive) == frame(11)
    assert not list(tmp_path.glob("shardnet-test*"))


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost"])
def test_tcp_works_both_ways(desk, wire, host):
    server = desk.add(stream, server="on", addr__type="inet", addr__host=host, addr__port="0")
    port = server.states[-1][1].rpartition(":")[2]
    with socket.create_connection((host, int(port))) as raw:
        far = Far(raw)
        far.send(frame(12))
        assert desk.until(wire.receive) == frame(12)
        assert server.states[-1][1].startswith("connected: ")
        client = server.carried.line.peer
        assert client.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert client.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        wire.send(frame(13, source=2))
        assert desk.until(far.receive) == frame(13, source=2)


def test_a_server_takes_the_next_free_port_up_to_the_last(desk):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        place = desk.add(
            stream,
            server="on",
            addr__type="inet",
            addr__host="127.0.0.1",
            addr__port=str(port),
            addr__to=str(min(port + 50, 65535)),
        )
    assert port < int(place.states[-1][1].rpartition(":")[2]) <= port + 50


def test_a_taken_tcp_port_is_refused_with_the_reason(desk):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(OSError) as error:
            desk.add(stream, server="on", addr__type="inet", addr__host="127.0.0.1", addr__port=str(port))
    assert (error.value.filename, error.value.strerror) == (
        f"127.0.0.1:{port}",
        "Address already in use (is this lab running already?)",
    )


def test_any_host_is_both_families(desk):
    place = desk.make(stream, server="on", addr__type="inet", addr__host="0.0.0.0", addr__port="0")
    any_host = addresses.Inet(host="", port="0")
    with any_host.bind(socket.SOCK_STREAM) as listener:
        port = listener.getsockname()[1]
        for host in ("127.0.0.1", "::1"):
            socket.create_connection((host, port)).close()
    assert place.states == []


@pytest.mark.parametrize("kind", ["unix", "inet"])
def test_a_client_dials_until_the_server_is_there_and_again_when_it_was_restarted(desk, wire, tmp_path, kind):
    if kind == "unix":
        where = {"addr__type": "unix", "addr__path": "qemu.sock"}
        family, address = socket.AF_UNIX, str(tmp_path / "qemu.sock")
    else:
        with socket.create_server(("127.0.0.1", 0)) as free:
            address = free.getsockname()
        family, where = socket.AF_INET, {"addr__type": "inet", "addr__host": "127.0.0.1", "addr__port": str(address[1])}
    place = desk.add(stream, reconnect_ms="50", **where)
    desk.until(lambda: place.states)
    why = "No such file or directory" if kind == "unix" else "Connection refused"
    desk.until(lambda: place.states[-1][1].endswith(why))
    for number in range(3):
        with socket.socket(family) as server:
            server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_UNIX and os.path.exists(address):
                os.unlink(address)
            server.bind(address)
            server.listen()
            server.setblocking(False)
            desk.until(lambda: place.up)
            accepted, _ = server.accept()
        with accepted:
            far = Far(accepted)
            far.send(frame(number))
            assert desk.until(wire.receive) == frame(number)
            wire.send(frame(number, source=2))
            assert desk.until(far.receive) == frame(number, source=2)
        desk.until(lambda: not place.up)


def test_reconnect_in_seconds_is_the_same_in_milliseconds():
    base = {"addr.type": "unix", "addr.path": "a"}
    assert options.read(stream, base).retry_ms == 1000
    assert options.read(stream, {**base, "reconnect": "3"}).retry_ms == 3000
    assert options.read(stream, {**base, "reconnect-ms": "0"}).retry_ms == 0


def test_reconnect_0_dials_only_once(desk, tmp_path):
    place = desk.add(stream, addr__type="unix", addr__path="qemu.sock", reconnect_ms="0")
    assert place.states == [("down", f"{tmp_path}/qemu.sock: No such file or directory, and it is dialled only once")]
    assert not desk.timers


def test_a_server_that_hangs_up_at_once_is_not_dialled_in_a_loop(desk, tmp_path):
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "qemu.sock"))
        server.listen()
        server.setblocking(False)
        desk.add(stream, addr__type="unix", addr__path="qemu.sock", reconnect_ms="300")
        met, until = 0, time.monotonic() + 1.0
        while time.monotonic() < until:
            try:
                server.accept()[0].close()
                met += 1
            except BlockingIOError:
                pass
            desk.turn()
    assert 1 <= met <= 5


def test_a_host_that_does_not_answer_does_not_hold_up_the_others(desk, wire, tmp_path, monkeypatch):
    monkeypatch.setattr("shardnet.connection.ANSWER_MAX_S", 0.3)
    with socket.socket() as full:  # a listener whose backlog is full drops what knocks
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        fillers = [socket.socket() for _ in range(4)]
        for filler in fillers:
            filler.setblocking(False)
            filler.connect_ex(full.getsockname())
        place = desk.add(
            stream, addr__type="inet", addr__host="127.0.0.1", addr__port=str(full.getsockname()[1]), reconnect_ms="50"
        )
        assert place.states == []
        unix_server(desk)
        far = dial(tmp_path / "vm.sock")
        far.send(frame(14))
        assert desk.until(wire.receive) == frame(14)
        desk.until(lambda: place.states and place.states[-1][1].endswith("Connection timed out"))
        for filler in fillers:
            filler.close()


@pytest.fixture
def remote(desk, namespace, monkeypatch):
    """A TCP client on another host, so to speak, whose cable can be pulled; the port looks at it more often than usual."""
    monkeypatch.setattr("shardnet.connection.LOOK_S", 0.1)
    monkeypatch.setattr("shardnet.connection.REPEATS_MAX", 3)
    netns = namespace("remote")
    near = f"v{os.getpid()}"
    subprocess.run(["ip", "link", "add", near, "type", "veth", "peer", "name", "far", "netns", netns.name], check=True)
    subprocess.run(["ip", "addr", "add", "198.18.77.1/30", "dev", near], check=True)
    subprocess.run(["ip", "link", "set", near, "up"], check=True)
    netns.run("ip", "addr", "add", "198.18.77.2/30", "dev", "far")
    netns.run("ip", "link", "set", "far", "up")
    place = desk.add(stream, server="on", addr__type="inet", addr__host="198.18.77.1", addr__port="0")
    with links.namespace(netns.name):
        raw = socket.create_connection(("198.18.77.1", int(place.states[-1][1].rpartition(":")[2])))
    with raw:
        desk.until(lambda: place.up)
        yield place, netns, raw
    subprocess.run(["ip", "link", "del", near], check=True)


@pytest.mark.needs("root")
def test_a_tcp_client_that_vanished_without_a_word_makes_room_for_the_next(desk, wire, remote):
    place, netns, _ = remote
    netns.run("ip", "link", "set", "far", "down")
    wire.send(frame(1))  # under way for ever: keep-alive is of no use
    desk.until(lambda: not place.up)
    assert place.states[-1][1].endswith(", after Connection timed out")


@pytest.mark.needs("root")
def test_a_tcp_client_that_is_only_paused_is_waited_for(desk, wire, remote):
    place, _, raw = remote
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    filled = time.monotonic() + 3.0
    while time.monotonic() < filled:
        for _ in range(8):
            wire.send(frame(2, 1514))
        desk.turn(0.001)
    assert place.up
    far = Far(raw)
    desk.until(far.receive)


def test_socat_carries_the_stream_to_tcp(desk, wire, tmp_path):
    server = desk.add(stream, server="on", addr__type="inet", addr__host="127.0.0.1", addr__port="0")
    port = server.states[-1][1].rpartition(":")[2]
    unix_server(desk)
    bridge = subprocess.Popen(["socat", f"UNIX-LISTEN:{tmp_path}/bridge", f"TCP:127.0.0.1:{port}"])
    try:
        desk.until((tmp_path / "bridge").exists)
        far = dial(tmp_path / "bridge")
        far.send(*(frame(number, 1514) for number in range(8)))
        for number in range(8):
            assert desk.until(wire.receive) == frame(number, 1514)
    finally:
        bridge.kill()
        bridge.wait()


def test_qemu_gets_the_other_half(tmp_path):
    def words(version, **given):
        made = stream.qemu(
            options.read(stream, {key.replace("__", "."): text for key, text in given.items()}), tmp_path, version
        )
        return made and " ".join(made)

    unix = {"server": "on", "addr__type": "unix", "addr__path": "a,b.sock"}
    plain = f"-netdev stream,id=net0,server=off,addr.type=unix,addr.path={tmp_path}/a,,b.sock"
    assert words((7, 2), **unix) == plain
    assert words((8, 2), **unix) == plain + ",reconnect=1"
    assert words((10, 2), **unix) == plain + ",reconnect-ms=1000"
    inet = {"addr__type": "inet", "addr__host": "192.0.2.1", "addr__port": "4000"}
    assert (
        words((10, 2), **inet) == "-netdev stream,id=net0,server=on,addr.type=inet,addr.host=192.0.2.1,addr.port=4000"
    )
    assert words((7, 2), server="on", addr__type="inet", addr__host="0.0.0.0", addr__port="4000").endswith(
        "addr.host=127.0.0.1,addr.port=4000"
    )
    assert words((7, 2), server="on", addr__type="inet", addr__host="h", addr__port="0") is None
