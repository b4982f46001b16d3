"""Whatever guests send to a TFTP server, in whatever order, it answers within bounds and touches nothing outside of its folder."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardnet.tftp import folder, message, netascii, server

HOST, PORTS = b"\x0a\0\2\2", range(65024, 65536)
FILES = {"f": b"", "g": bytes(511), "h": b"\r\n\r" * 3000}
SECRET = b"nobody is to see this"
SIZE_MAX = 5000

number = st.sampled_from(["0", "1", "7", "8", "9", "64", "512", "1428", "65464", "65465", "-1", "9" * 30, ""])
name = st.sampled_from([*FILES, "new", "in/new", "../secret", "/", "..\\secret", "out", "in", "in/../../secret"])
option = st.tuples(st.sampled_from(["blksize", "tsize", "timeout", "windowsize", "x"]), number | st.text(max_size=5))
asked = st.builds(
    lambda code, name, mode, options, tail: (
        struct.pack("!H", code) + b"\0".join(word.encode() for word in (name, mode, *sum(options, ()))) + tail
    ),
    st.sampled_from([message.RRQ, message.WRQ]),
    name | st.text(max_size=20),
    st.sampled_from(["octet", "netascii", "OCTET", "mail"]) | st.text(max_size=8),
    st.lists(option, max_size=10),
    st.sampled_from([b"\0", b"", b"\0\0"]),
)
numbered = st.builds(
    lambda code, number, content: struct.pack("!HH", code, number) + content,
    st.integers(0, 8),
    st.integers(0, 20) | st.integers(65500, 65535) | st.integers(0, 65535),
    st.binary(max_size=20) | st.sampled_from([bytes(512), bytes(8), bytes(1428)]),
)
# To port 69, to the port of a transfer, to any other; from one of two guests with two ports each; or time passes.
step = st.one_of(
    st.tuples(st.just("ask"), st.integers(0, 3), asked),
    st.tuples(st.just("go on"), st.integers(0, 3), numbered | st.integers(0, 3)),
    st.tuples(st.just("stray"), st.integers(0, 3), numbered | asked | st.binary(max_size=600)),
    st.tuples(st.just("wait"), st.floats(0, 20), st.none()),
)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    base = tmp_path_factory.mktemp("tftp")
    (base / "secret").write_bytes(SECRET)
    root = base / "root"
    (root / "in").mkdir(parents=True)
    (root / "out").symlink_to("../secret")
    for name, content in FILES.items():
        (root / name).write_bytes(content)
    return root


@given(st.lists(step, max_size=40))
def test_any_exchange_stays_within_bounds(root, steps):
    reading, writing = (folder.Folder(folder.opened(root), write) for write in (None, SIZE_MAX))
    said = server.Server(reading, writing, PORTS, guest_max=4)
    now = 10.0
    for what, who, payload in steps:
        if what == "wait":
            now += who
            answers = said.tick(now)
            assert sum(map(len, (answer[0] for answer in answers))) <= 8 * (server.WINDOW_BYTES + 65468)
        else:
            peer, port, mac = (b"\x0a\0\2" + bytes([15 + who % 2]), 2000 + who, bytes(5) + bytes([who % 2]))
            to = server.PORT if what == "ask" else 65100
            if what == "go on":
                mine = [job.port for job in said.jobs.values() if job.peer_port == port]
                to = mine[0] if mine else to
                if isinstance(payload, int):  # what a client would say next: an ACK, or a block
                    job = said.jobs.get(to)
                    moved = job.transfer if job else None
                    block = getattr(moved, "_sent", None)
                    if block is None:
                        payload = struct.pack("!HH", 3, getattr(moved, "_got", 0) + 1 & 0xFFFF) + bytes(
                            512 * (payload > 0)
                        )
                    else:
                        payload = struct.pack("!HH", 4, max(0, block - (payload == 3)) & 0xFFFF)
            answers = said.received([(payload, peer, port, HOST, to, mac)], now)
            assert len(answers) <= server.WINDOWSIZE_MAX
            assert sum(len(answer[0]) for answer in answers) <= server.WINDOW_BYTES + 65468
            assert all(answer[1:4] == (peer, port, HOST) for answer in answers)
        assert not any(SECRET in answer[0] for answer in answers)
        assert len(said.jobs) <= 8
        assert len({job.port for job in said.jobs.values()}) == len(said.jobs)
    said.close()
    reading.close()
    writing.close()
    assert (root.parent / "secret").read_bytes() == SECRET
    assert sorted(path.name for path in root.parent.iterdir()) == ["root", "secret"]
    for path in [*root.iterdir(), *(root / "in").iterdir()]:
        assert path.is_dir() or path.is_symlink() or path.stat().st_size <= 2 * SIZE_MAX
        assert not path.name.startswith(".tftp-")


@given(st.lists(st.binary(max_size=12)))
def test_netascii_is_read_back_however_it_is_cut(pieces):
    wire = netascii.encode(b"".join(pieces))
    decoder, back = netascii.Decoder(), b""
    for at in range(0, len(wire), 3):
        back += decoder.read(wire[at : at + 3])
    assert back + decoder.end() == b"".join(pieces)
    decoder = netascii.Decoder()
    assert len(b"".join(map(decoder.read, pieces)) + decoder.end()) <= sum(map(len, pieces))


@given(asked | st.binary(max_size=700))
def test_a_request_is_read_or_refused(payload):
    try:
        found = message.request(payload)
    except message.Malformed as why:
        assert str(why)
    else:
        assert 1 <= len(found.name) <= message.NAME_MAX
        assert len(found.options) <= message.OPTIONS_MAX
