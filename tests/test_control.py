"""The control socket, from a raw socket with garbage and from the client library."""

import os
import socket
import struct
import tempfile
import threading
from collections.abc import Callable, Iterator

import msgpack
import pytest

from shardnet import clients, control, loop, rundir


class Server:
    """The supervisor's side of the socket, in a thread, with an `answer` of the test's own."""

    def __init__(self, directory: rundir.RunDir) -> None:
        self.loop = loop.Loop()
        self.seen: list[tuple[dict, int]] = []
        self.answer: Callable[[clients.Request], None] = lambda request: request.answer(echo=request.message)
        self.clients = clients.Clients(self.loop, directory.fd, self._asked)
        self._poke, self._poked = socket.socketpair()
        self._todo: list[Callable[[], None]] = []
        self.loop.watch(self._poked.fileno(), self._do)
        self._running = True
        self._thread = threading.Thread(target=self._turn)
        self._thread.start()

    def run(self, call: Callable[[], None]) -> None:
        """Have something done in the thread of the loop."""
        done = threading.Event()
        self._todo.append(lambda: (call(), done.set()))
        self._poke.send(b"x")
        assert done.wait(5)

    def end(self) -> None:
        self.run(self.clients.close)
        self._running = False
        self._poke.send(b"x")
        self._thread.join()
        self._poke.close()
        self._poked.close()

    def _asked(self, request: clients.Request) -> None:
        self.seen.append((request.message, len(request.fds)))
        self.answer(request)

    def _do(self, _events: int) -> None:
        self._poked.recv(1)
        while self._todo:
            self._todo.pop(0)()

    def _turn(self) -> None:
        while self._running:
            self.loop.turn()


@pytest.fixture
def directory(monkeypatch: pytest.MonkeyPatch) -> Iterator[rundir.RunDir]:
    with tempfile.TemporaryDirectory() as root:
        monkeypatch.setenv("SHARDNET_RUN_DIR", root)
        held = rundir.RunDir("demo")
        yield held
        held.leave()


@pytest.fixture
def server(directory: rundir.RunDir) -> Iterator[Server]:
    running = Server(directory)
    yield running
    running.end()


@pytest.fixture
def raw(server: Server, directory: rundir.RunDir) -> Iterator[socket.socket]:
    with connected(directory) as sock:
        yield sock


def connected(directory: rundir.RunDir) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    sock.connect(str(directory.path / "control.sock"))
    sock.settimeout(10)
    return sock


def framed(data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + data


def reply(sock: socket.socket) -> dict:
    (length,) = struct.unpack(">I", sock.recv(4, socket.MSG_WAITALL))
    return msgpack.unpackb(sock.recv(length, socket.MSG_WAITALL))


def nested(levels: int) -> bytes:
    return msgpack.packb({"op": "x", "deep": None})[:-1] + b"\x91" * levels + b"\xc0"


def test_the_socket_is_for_its_owner_alone(server: Server, directory: rundir.RunDir) -> None:
    assert (directory.path / "control.sock").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (struct.pack(">I", 0xFFFFFFFF), "a message of 4294967295 bytes, the limit is 1048576"),
        (struct.pack(">I", (1 << 20) + 1), "a message of 1048577 bytes, the limit is 1048576"),
        (framed(b""), "not a message: "),
        (framed(b"\xc1"), "not a message: no msgpack"),
        (framed(msgpack.packb([1, 2])), "not a message: no map"),
        (framed(msgpack.packb({1: 2})), "not a message: int is not allowed for map key"),
        (framed(msgpack.packb({"op": msgpack.ExtType(5, b"x")})), "not a message: a ExtType"),
        (framed(msgpack.packb({"op": msgpack.Timestamp(0)})), "not a message: a Timestamp"),
        (framed(nested(40)), "not a message: deeper than 32 levels"),
        (framed(nested(100_000)), "not a message: no msgpack"),
        (framed(b"\x81\xa2op\xdd\xff\xff\xff\xff"), "not a message: 4294967295 exceeds max_array_len(65536)"),
        (framed(msgpack.packb({"op": "x"}) + b"x"), "not a message: unpack(b) received extra data."),
        (framed(b"\x81\xa2op\xa2\xff\xfe"), "not a message: 'utf-8' codec can't decode byte 0xff in position 0"),
    ],
)
def test_what_is_no_message_is_refused_with_the_reason_and_ends_the_connection(
    raw: socket.socket, data: bytes, error: str
) -> None:
    raw.sendall(data)
    answer = reply(raw)
    assert answer["error"].startswith(error)
    assert (answer["ok"], answer["code"]) == (False, 2)
    assert raw.recv(1) == b""


def test_thirty_levels_are_not_too_deep(raw: socket.socket) -> None:
    raw.sendall(framed(nested(30)))
    assert reply(raw)["ok"]


def test_random_bytes_hurt_nobody(server: Server, directory: rundir.RunDir) -> None:
    import random

    chance = random.Random(5)
    for _ in range(300):
        with connected(directory) as sock:
            body = chance.randbytes(chance.randrange(64))
            sock.sendall(framed(body) if chance.random() < 0.7 else body)
    with control.Client("demo") as client:
        assert client.call("hello")["echo"]["op"] == "hello"


def test_a_message_may_arrive_byte_by_byte(raw: socket.socket) -> None:
    for byte in framed(msgpack.packb({"id": 7, "op": "x"})):
        raw.sendall(bytes([byte]))
    assert reply(raw)["id"] == 7


def test_two_messages_may_arrive_at_once(raw: socket.socket) -> None:
    raw.sendall(framed(msgpack.packb({"id": 1, "op": "x"})) + framed(msgpack.packb({"id": 2, "op": "y"})))
    assert [reply(raw)["id"], reply(raw)["id"]] == [1, 2]


def test_a_silent_client_is_let_go(server: Server, directory: rundir.RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clients, "MESSAGE_S", 0.1)
    with connected(directory) as sock:
        assert sock.recv(1) == b""


def test_a_client_that_stops_in_a_message_is_let_go(
    server: Server, directory: rundir.RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clients, "MESSAGE_S", 0.1)
    with connected(directory) as sock:
        sock.sendall(framed(msgpack.packb({"op": "x"})) + b"\0\0")
        assert reply(sock)["ok"]
        assert sock.recv(1) == b""


def test_a_client_may_be_silent_after_a_whole_message(
    server: Server, directory: rundir.RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clients, "MESSAGE_S", 0.05)
    with control.Client("demo") as client, connected(directory) as silent:
        client.call("x")
        assert silent.recv(1) == b""  # by now the time is over, for both
        assert client.call("y")["echo"]["op"] == "y"


def test_a_client_that_does_not_read_is_let_go_and_others_are_served(server: Server, directory: rundir.RunDir) -> None:
    server.answer = lambda request: request.answer(text="x" * 500_000)
    with connected(directory) as sock:
        with pytest.raises(OSError):
            for _ in range(1000):
                sock.sendall(framed(msgpack.packb({"op": "x"})))
    with control.Client("demo") as client:
        assert len(client.call("x")["text"]) == 500_000


def test_the_sixty_fifth_client_is_turned_away(server: Server, directory: rundir.RunDir) -> None:
    socks = [connected(directory) for _ in range(64)]
    for sock in socks:
        sock.sendall(framed(msgpack.packb({"op": "x"})))
        reply(sock)
    with connected(directory) as one_more:
        assert reply(one_more) == {"id": None, "ok": False, "code": 75, "error": "64 clients are connected already"}
    for sock in socks:
        sock.close()


def test_descriptors_come_with_the_message_that_brought_them(raw: socket.socket, server: Server) -> None:
    reader, writer = os.pipe()
    bare, bringing = (framed(msgpack.packb({"id": number, "op": "x"})) for number in (1, 2))
    raw.sendall(bare[:3])
    raw.sendall(bare[3:])
    socket.send_fds(raw, [bringing], [reader, writer])
    raw.sendall(bare)
    for _ in range(3):
        reply(raw)
    assert [fds for _, fds in server.seen] == [0, 2, 0]
    os.close(reader)
    os.close(writer)


def test_descriptors_that_no_operation_takes_are_closed(raw: socket.socket) -> None:
    reader, writer = os.pipe()
    socket.send_fds(raw, [framed(msgpack.packb({"op": "x"}))], [writer])
    os.close(writer)
    reply(raw)
    assert os.read(reader, 1) == b""
    os.close(reader)


def test_too_many_descriptors_end_the_connection_and_are_closed(raw: socket.socket) -> None:
    reader, writer = os.pipe()
    socket.send_fds(raw, [b"\0\0\0"], [writer] * 17)
    os.close(writer)
    assert reply(raw)["error"] == "too many descriptors"
    assert os.read(reader, 1) == b""
    os.close(reader)


def test_a_reply_too_long_for_a_message_arrives_whole(server: Server) -> None:
    entries = [{"mac": f"52:54:00:{i:06x}", "port": "p" * 30} for i in range(60_000)]
    server.answer = lambda request: request.answer(entries=entries, other=[1, 2], text="t")
    with control.Client("demo") as client:
        assert client.call("fdb") == {"entries": entries, "other": [1, 2], "text": "t"}


def test_a_refusal_is_an_error_with_its_exit_code(server: Server) -> None:
    server.answer = lambda request: request.refuse("vm9: no such port", 3)
    with control.Client("demo") as client, pytest.raises(control.Error, match="vm9: no such port") as caught:
        client.port_remove("vm9")
    assert caught.value.code == 3


def test_a_lab_that_ends_in_between_is_not_running(server: Server) -> None:
    server.answer = lambda request: request.client.close()
    with control.Client("demo") as client, pytest.raises(control.NotRunning) as caught:
        client.status()
    assert (str(caught.value), caught.value.code) == ("lab demo: it ended before it answered", 69)


def test_events_between_replies_are_kept_for_who_asks(server: Server) -> None:
    def answer(request: clients.Request) -> None:
        request.client.send({"event": {"kind": "early"}})
        request.answer()
        request.client.send({"event": {"kind": "late"}})

    server.answer = answer
    with control.Client("demo") as client:
        events = client.events()
        assert [next(events)["kind"], next(events)["kind"]] == ["early", "late"]
        server.run(server.clients.close)
        assert list(events) == []


def test_a_client_finished_speaking_still_gets_what_it_is_owed(server: Server) -> None:
    ended: list[str] = []

    def answer(request: clients.Request) -> None:
        client = request.client
        client.owed += 1
        client.ties.append(
            lambda: (ended.append("tie"), client.send({"event": {"kind": "capture-ended"}}), client.settle())
        )
        request.answer()

    server.answer = answer
    with control.Client("demo") as client:
        client.capture(["vm1"], 0)
        assert client.capture_end() == {"kind": "capture-ended"}
    assert ended == ["tie"]


def test_without_a_name_the_only_running_lab_is_meant(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    with control.Client() as client:
        assert client.lab == "demo"
    other = rundir.RunDir("other")
    with pytest.raises(control.Error, match=r"several labs are running: demo, other \(choose one with -l NAME\)"):
        control.Client()
    monkeypatch.setenv("SHARDNET_LAB", "demo")
    with control.Client() as client:
        assert client.lab == "demo"
    other.leave()


def test_a_lab_that_is_not_running_is_told_with_those_that_are(server: Server) -> None:
    with pytest.raises(control.NotRunning, match=r"lab dmo: not running \(running: demo\)"):
        control.Client("dmo")


def test_importing_the_client_library_is_quick_because_it_leaves_much_alone() -> None:
    import subprocess
    import sys

    code = "import sys, shardnet.control; print([m for m in ('multiprocess', 'pyroute2', 'dill') if m in sys.modules])"
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "[]\n"
