"""Whatever a guest or a client sends, no worker ends, and the next one is served."""

import contextlib
import socket
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

import deadline
import labs
from shardnet import control

LAB = """
[stream plain]
server = on
addr.type = unix
addr.path = plain.sock

[stream trunk]
trunk = 10,20
native = 5
server = on
addr.type = unix
addr.path = trunk.sock

[stream access]
vlan = 10
mtu = 1500
max_macs = 4
server = on
addr.type = unix
addr.path = access.sock

[dgram loose]
local.type = unix
local.path = loose.sock
"""

addresses = st.sampled_from(
    [bytes(6), b"\xff" * 6, b"\x02" + bytes(4) + b"\x01", b"\x01\x80\xc2" + bytes(3), b"\x01\x00\x5e" + bytes(3)]
)
kinds = st.sampled_from(
    [b"\x08\x00", b"\x86\xdd", b"\x81\x00\x00\x0a\x08\x00", b"\x81\x00\x00\x00", b"\x88\xa8\x00\x01", b"\x00\x2a", b""]
)
frames = st.builds(lambda *parts: b"".join(parts), addresses, addresses, kinds, st.binary(max_size=1600))
record = frames.map(lambda frame: struct.pack("!I", len(frame)) + frame)
wire = st.lists(record | st.binary(max_size=64), max_size=20).map(b"".join)


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    with labs.starting(tmp_path_factory.mktemp("fuzz")) as start:
        lab = start(LAB)
        workers = lab.workers()
        yield lab
        assert lab.workers() == workers, f"a worker ended\n{lab.said()}"


@given(st.sampled_from(["plain", "trunk", "access"]), wire)
def test_a_stream_of_anything_ends_no_worker(running, port, data):
    with socket.socket(socket.AF_UNIX) as guest:
        guest.settimeout(5)
        guest.connect(str(running.run_dir / f"{port}.sock"))
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            guest.sendall(data)


@given(frames | st.binary(max_size=70_000))
def test_a_datagram_of_anything_ends_no_worker(running, data):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as guest:
        guest.settimeout(5)
        with contextlib.suppress(OSError):
            guest.sendto(data, str(running.run_dir / "loose.sock"))


plain = (
    st.none() | st.booleans() | st.integers(-(1 << 63), (1 << 64) - 1) | st.text(max_size=20) | st.binary(max_size=20)
)
value = st.recursive(
    plain,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=10,
)
operations = st.sampled_from(
    [
        "status",
        "ports",
        "port-set",
        "port-remove",
        "port-add",
        "port-up",
        "fdb",
        "fdb-flush",
        "drops",
        "events",
        "capture",
        "plug",
    ]
)
keys = st.sampled_from(
    [
        "v",
        "id",
        "names",
        "name",
        "text",
        "netdev",
        "set",
        "switch",
        "port",
        "ports",
        "snaplen",
        "since",
        "options",
        "kind",
    ]
)
# Names of the lab's own ports are not among the values, so nothing of it is removed on purpose.
requests = st.builds(
    lambda op, rest: {**rest, "op": op}, operations | st.text(max_size=8), st.dictionaries(keys, value, max_size=5)
)


@given(requests.map(control.pack).map(lambda body: struct.pack(">I", len(body)) + body) | st.binary(max_size=100))
def test_a_control_message_of_anything_is_answered_or_hung_up_on(running, data):
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(5)
        client.connect(str(running.run_dir / "control.sock"))
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            client.sendall(data)
            client.shutdown(socket.SHUT_WR)
        deadline.readable(client.fileno(), "an answer")
