"""[l2tpv3 NAME] with QEMU's -netdev l2tpv3, in each form of its header, and with datagrams that are none."""

import contextlib
import socket
import struct
import subprocess

import pytest

import ways
from desk import frame
from shardnet import options
from shardnet.workers import l2tpv3

OURS, FAR = "127.0.0.1", "127.0.0.2"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"udp": "on", "srcport": "1"}, "dstport: missing, and udp = on needs it"),
        ({"srcport": "1"}, "srcport = 1: without udp = on there is none"),
        ({"txcookie": "1"}, "rxcookie: missing: txcookie alone makes no header (QEMU wants both)"),
        (
            {"txcookie": "0x100000000", "rxcookie": "1"},
            "txcookie = 0x100000000: more than 32 bits, and cookie64 is not on",
        ),
        (
            {"cookie64": "off"},
            "cookie64 = off: QEMU has a cookie of 64 bits then too; leave it out for one of 32",
        ),
        ({"cookie64": "on"}, "cookie64 = on: without txcookie and rxcookie it means nothing"),
        (
            {"pincounter": "on"},
            "pincounter = on: without counter = on there is no counter, in QEMU's header either",
        ),
        ({"offset": "257"}, "offset = 257: not 0 to 256"),
    ],
)
def test_a_mistake_is_named_with_its_reason(given, message):
    with pytest.raises(options.Wrong) as wrong:
        options.read(l2tpv3, {"src": OURS, "dst": FAR, "txsession": "1", **given})
    assert str(wrong.value) == message


class Behind:
    """The network card behind QEMU's hub: frames on UDP."""

    def __init__(self):
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.bind(("127.0.0.1", 0))
        self.socket.setblocking(False)

    def receive(self):
        try:
            return self.socket.recv(70000)
        except BlockingIOError:
            return None


@contextlib.contextmanager
def qemu(netdev):
    """A QEMU without a machine, whose hub joins the tunnel and a UDP netdev; gives the socket and QEMU's address."""
    behind, (port, _) = Behind(), ways.free_ports()
    words = [
        "qemu-system-x86_64", "-M", "none", "-display", "none", "-nodefaults", "-monitor", "none", "-serial", "none",
        "-netdev", netdev, "-netdev", "hubport,id=h0,hubid=0,netdev=net0",
        "-netdev", f"socket,id=out,udp=127.0.0.1:{behind.socket.getsockname()[1]},localaddr=127.0.0.1:{port}",
        "-netdev", "hubport,id=h1,hubid=0,netdev=out",
    ]  # fmt: skip
    process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    try:
        yield process, behind, ("127.0.0.1", int(port))
    finally:
        process.kill()
        process.communicate()
        behind.socket.close()


@pytest.mark.needs("root", "qemu-system-x86_64")
@pytest.mark.parametrize(
    ("sort", "form"),
    [("udp4", form) for form in ways.FORMS] + [("udp6", "everything"), ("ip4", "plain"), ("ip4", "everything")],
)
def test_qemu_understands_each_form_of_the_header(desk, wire, sort, form):
    given = {**ways.way(sort), **ways.SESSION, **ways.FORMS[form]}
    place = desk.add(l2tpv3, **given)
    (_, netdev) = l2tpv3.qemu(options.read(l2tpv3, given), desk.run_dir, (7, 2))
    for _ in range(2):  # the second time it was restarted
        with qemu(netdev) as (process, behind, address):
            exchange(desk, wire, process, behind, address)
    assert place.up
    assert not {"bad_header", "runt"} & {cause for cause, count in desk.arena.drops(place.port).items() if count}


def exchange(desk, wire, process, behind, address):
    """Frames of several lengths each way; the first ones may come before QEMU is there."""

    def first():
        assert process.poll() is None, process.stdout.read()
        wire.send(frame(1))
        return behind.receive()

    assert desk.until(first) == frame(1)
    for size in (60, 61, 1514):
        wire.send(frame(size, size))
        while (found := desk.until(behind.receive)) == frame(1):
            pass
        assert found == frame(size, size)
        behind.socket.sendto(frame(size + 1, size, source=2), address)
        assert desk.until(wire.receive) == frame(size + 1, size, source=2)


def test_the_header_is_counted_and_its_offset_zero(desk, wire):
    given = {**ways.way("udp4"), **ways.SESSION, **ways.FORMS["everything"]}
    desk.add(l2tpv3, **given)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as far:
        far.bind((FAR, int(given["dstport"])))
        far.setblocking(False)
        for number in (1, 2, 3):
            wire.send(frame(number))

            def received():
                with contextlib.suppress(BlockingIOError):
                    return far.recv(70000)

            head = struct.pack("!IIQI256x", 0x00030000, 0x11223344, 0x0A0B0C0D, number)
            assert desk.until(received) == head + frame(number)


def test_what_is_none_of_ours_is_dropped_with_its_cause(desk, wire):
    given = {**ways.way("udp4"), **ways.SESSION, **ways.COOKIES, "offset": "4"}
    place = desk.add(l2tpv3, **given)
    good = struct.pack("!III4x", 0x00030000, 0x55667788, 0x01020304)
    sent = [
        (b"", "bad_header"),
        (good[:11], "bad_header"),
        (good[:15], "bad_header"),
        (struct.pack("!I", 0x80030000) + good[4:] + frame(1), "bad_header"),  # a control message
        (struct.pack("!I", 0x00020000) + good[4:] + frame(1), "bad_header"),  # L2TPv2
        (good[:4] + bytes(4) + good[8:] + frame(1), "foreign"),
        (good[:8] + bytes(8) + frame(1), "foreign"),
        (good, "runt"),
        (good + frame(1)[:13], "runt"),
    ]
    wanted = {}
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as far:
        for payload, cause in sent:
            far.sendto(payload, (OURS, int(given["srcport"])))
            wanted[cause] = wanted.get(cause, 0) + 1
        far.sendto(good + frame(7), (OURS, int(given["srcport"])))
        assert desk.until(wire.receive) == frame(7)
    assert {cause: count for cause, count in desk.arena.drops(place.port).items() if count} == wanted
