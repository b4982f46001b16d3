"""[socket NAME]: QEMU's older words mean what the newer ones do."""

import socket as sockets

import pytest

from desk import Far, frame
from shardnet import options
from shardnet.workers import dgram, socket, stream


def read(**given):
    return options.read(socket, given)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "listen: missing, as are connect, mcast and udp"),
        ({"listen": ":1", "connect": "h:2"}, "connect = h:2: listen is given too, and a port has one way"),
        ({"listen": "1234"}, "listen = 1234: no host:port"),
        ({"listen": "::1:1"}, "listen = ::1:1: an IPv6 address is written in brackets, [::1]:1234"),
        ({"connect": "h:70000"}, "connect = h:70000: a port is 0 to 65535"),
        ({"udp": "h:1"}, "localaddr: missing, and udp needs it: frames have to come in somewhere"),
        ({"udp": "h:1", "localaddr": "h"}, "localaddr = h: no host:port"),
        ({"listen": ":1", "localaddr": "h"}, "localaddr = h: listen has no use for it"),
        ({"mcast": "192.0.2.1:1"}, "mcast = 192.0.2.1:1: no multicast group of IPv4 (224.0.0.0 to 239.255.255.255)"),
        ({"fd": "3"}, "fd: a worker inherits no descriptors; give listen, connect, mcast or udp"),
    ],
)
def test_a_mistake_is_named_with_its_reason(given, message):
    with pytest.raises(options.Wrong) as wrong:
        read(**given)
    assert str(wrong.value) == message


def test_the_older_words_mean_what_the_newer_ones_do():
    inet = {"addr.type": "inet", "addr.host": "h", "addr.port": "1"}
    assert read(listen="h:1").fuller == options.read(stream, {**inet, "server": "on"})
    assert read(connect="h:1", vlan="5").fuller == options.read(stream, {**inet, "vlan": "5"})
    remote = {"remote.type": "inet", "remote.host": "230.0.0.1", "remote.port": "1"}
    assert read(mcast="230.0.0.1:1").fuller == options.read(dgram, remote)
    local = {"local.type": "inet", "local.host": "127.0.0.1"}
    assert read(mcast="230.0.0.1:1", localaddr="127.0.0.1").fuller == options.read(dgram, {**remote, **local})
    remote["remote.host"] = "192.0.2.1"
    assert read(udp="192.0.2.1:1", localaddr="127.0.0.1:2").fuller == options.read(
        dgram, {**remote, **local, "local.port": "2"}
    )
    assert read(udp="192.0.2.1:1", localaddr=":2").fuller.local_host is None


def test_listen_and_connect_find_each_other(desk, tmp_path):
    with sockets.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    listener = desk.add(socket, listen=f"127.0.0.1:{port}")
    with sockets.create_connection(("127.0.0.1", port)) as raw:
        desk.until(lambda: listener.up)
        with sockets.create_server(("127.0.0.1", 0)) as server:
            dialler = desk.add(socket, connect=f"127.0.0.1:{server.getsockname()[1]}")
            desk.until(lambda: dialler.up)
            accepted, _ = server.accept()
        with accepted:
            one, other = Far(raw), Far(accepted)
            one.send(frame(1))
            assert desk.until(other.receive) == frame(1)
            other.send(frame(2, source=2))
            assert desk.until(one.receive) == frame(2, source=2)


def test_qemu_gets_the_other_half(tmp_path):
    def words(**given):
        made = socket.qemu(read(**given), tmp_path, (7, 2))
        return made and made[1]

    assert words(listen=":1234") == "socket,id=net0,connect=127.0.0.1:1234"
    assert words(connect="192.0.2.1:1") == "socket,id=net0,listen=192.0.2.1:1"
    assert words(mcast="230.0.0.1:1", localaddr="127.0.0.1") == "socket,id=net0,mcast=230.0.0.1:1,localaddr=127.0.0.1"
    assert words(udp="127.0.0.1:1", localaddr=":2") == "socket,id=net0,udp=127.0.0.1:2,localaddr=127.0.0.1:1"
    assert words(listen=":0") is None
