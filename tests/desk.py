"""A worker in miniature for the tests of back ends: real ports on the real core, driven step by step from the test."""

import collections
import contextlib
import os
import socket
import subprocess
import time
from collections.abc import Callable
from types import ModuleType

from shardnet import _core, options
from shardnet.workers import dgram

DEADLINE_S = 10.0
NOBODY = 200  # a port's number that no port has here: what is for it is dropped


class Place:
    """What a port gets from the process that carries it; `port` is set once it is made."""

    def __init__(self, desk, name, number):
        self.desk, self.name, self.port = desk, name, number
        self.run_dir = desk.run_dir
        self.behind, self.counts = "", {}
        self.owner, self.share = number, 0
        self.companions = collections.defaultdict(lambda: NOBODY)
        self.states = []
        self.lines = []
        self.carried = None

    @property
    def shard(self):
        return self.desk.shard

    def deposit(self, key, fd):
        self.forget(key)
        self.desk.store[self.port, key] = os.dup(fd)

    def recall(self, key):
        kept = self.desk.store.get((self.port, key))
        return None if kept is None else os.dup(kept)

    @property
    def kept(self):
        return [key for port, key in self.desk.store if port == self.port]

    def forget(self, key):
        with contextlib.suppress(KeyError):
            os.close(self.desk.store.pop((self.port, key)))

    def lend(self, key):
        assert (self.port, key) in self.desk.store, "only what was deposited can be lent; here is nobody to borrow it"

    def watch(self, fd, ready):
        assert fd not in self.desk.watched
        self.desk.watched[fd] = ready
        self.shard.watch(fd)

    def unwatch(self, fd):
        if self.desk.watched.pop(fd, None):
            self.shard.unwatch(fd)

    def serve(self, receive):
        self.receive = receive

    def answer(self, datagrams):
        self.shard.answer(self.port, datagrams)

    def seek(self, address):
        self.shard.seek(self.port, address)

    def found(self, address):
        return self.shard.found(self.port, address)

    def count(self, name, by=1):
        self.counts[name] = self.counts.get(name, 0) + by

    def mistake(self):
        raise  # noqa: PLE0704  # in a test it is one

    def later(self, seconds, call):
        self.desk.tokens += 1
        self.desk.timers[self.desk.tokens] = (time.monotonic() + seconds, call)
        return self.desk.tokens

    def cancel(self, token):
        self.desk.timers.pop(token, None)

    def state(self, word, detail=""):
        assert word in ("up", "waiting", "down")
        self.states.append((word, detail))

    def log(self, text):
        assert "\n" not in text
        self.lines.append(text)

    def again(self):
        self.later(0, self.start)

    def start(self):
        self.carried.prepare()
        self.carried.open()

    @property
    def up(self):
        return self.states[-1:] != [] and self.states[-1][0] == "up"


class Desk:
    """Ports on one shard, and the store of descriptors that outlives them."""

    def __init__(self, run_dir):
        self.run_dir = run_dir
        self.fds = [os.eventfd(0, os.EFD_NONBLOCK) for _ in range(_core.WORKERS)]
        memory = os.memfd_create("arena")
        self.arena = _core.Arena.create(memory, 1 << 20)
        self.fds.append(memory)
        self.arena.configure_switch(0)
        self.shard = _core.Shard(self.arena, 0, self.fds[: _core.WORKERS])
        self.store, self.watched, self.timers, self.places = {}, {}, {}, {}
        self.tokens = 0

    def make(self, kind: ModuleType, behind: int = 0, **given: str) -> Place:
        """A port that is not opened yet; keys are written with underscores for dots (addr__type) and hyphens."""
        number = len(self.places) + 1
        place = Place(self, f"port{number}", number)
        place.carried = kind.Port(options.read(kind, keys(given)), place)
        self.places[number] = place
        self.arena.configure_port(number, worker=0, switch=0, behind=behind)
        return place

    def add(self, kind: ModuleType, **given: str) -> Place:
        place = self.make(kind, **given)
        place.start()
        return place

    def reborn(self, place: Place, kind: ModuleType, **given: str) -> Place:
        """The same port in the successor of a worker that died: nothing is left of it but its deposits."""
        heir = Place(self, place.name, place.port)
        heir.carried = kind.Port(options.read(kind, keys(given)), heir)
        self.places[place.port] = heir
        heir.start()
        return heir

    def turn(self, seconds: float = 0.002) -> None:
        now = time.monotonic()
        for token, (due, call) in list(self.timers.items()):
            if due <= now and self.timers.pop(token, None):
                call()
        for what, number, error in self.shard.run(seconds):
            if what == "datagrams":
                self.places[number].receive(self.shard.datagrams(number))
            elif what == "ended":
                self.places[number].carried.ended(error)
            elif what == "stopped":
                self.places[number].carried.stopped(error)
            elif number in self.watched:
                self.watched[number]()

    def until(self, true: Callable[[], object], seconds: float = DEADLINE_S) -> object:
        """Carry frames until `true()` says so, and return what it said."""
        deadline = time.monotonic() + seconds
        while not (said := true()):
            assert time.monotonic() < deadline, {place.name: place.states[-3:] for place in self.places.values()}
            self.turn()
        return said

    def runs(self, *command: object, seconds: float = DEADLINE_S) -> subprocess.CompletedProcess[str]:
        """Carry frames while a command runs."""
        process = subprocess.Popen(
            [str(word) for word in command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        try:
            self.until(lambda: process.poll() is not None, seconds)
        finally:
            process.kill()
            out, _ = process.communicate()
        return subprocess.CompletedProcess(command, process.returncode, out)

    def close(self) -> None:
        for place in self.places.values():
            place.carried.close()
        del self.shard  # in this thread, which made it: a cycle would end it in any
        for fd in (*self.fds, *self.store.values()):
            os.close(fd)


def keys(given: dict[str, str]) -> dict[str, str]:
    """addr__keep_alive of Python's keywords is addr.keep-alive of the lab file's."""
    plain = {"max_macs", "vnet_hdr"}
    return {key if key in plain else key.replace("__", ".").replace("_", "-"): text for key, text in given.items()}


def frame(number: int, size: int = 60, source: int = 1) -> bytes:
    """An Ethernet frame to everybody, unlike any other."""
    head = b"\xff" * 6 + b"\x52\x54\x00\x00\x00" + bytes([source]) + b"\x88\xb5" + number.to_bytes(8, "big")
    return head + bytes((number + at) & 0xFF for at in range(size - len(head)))


class Wire:
    """The far end of a port that is on the switch beside the one under test, to see what comes out and to put frames in."""

    def __init__(self, desk: Desk) -> None:
        self.near, far = str(desk.run_dir / "wire"), str(desk.run_dir / "wire-far")
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(far)
        self.socket.setblocking(False)
        desk.add(dgram, local__type="unix", local__path="wire", remote__type="unix", remote__path="wire-far")

    def send(self, *frames: bytes) -> None:
        for one in frames:
            self.socket.sendto(one, self.near)

    def receive(self) -> bytes | None:
        try:
            return self.socket.recv(70000)
        except BlockingIOError:
            return None


class Far:
    """The far end of a stream: frames with a length in front."""

    def __init__(self, stream: socket.socket, prefix: int = 4):
        self.stream, self.prefix, self.text = stream, prefix, b""
        stream.setblocking(False)

    def send(self, *frames: bytes) -> None:
        self.stream.sendall(b"".join(len(f).to_bytes(self.prefix, "big") + f for f in frames))

    def receive(self) -> bytes | None:
        """The next frame, None while there is none; ConnectionError when the other side has closed."""
        try:
            text = self.stream.recv(1 << 20)
        except BlockingIOError:
            pass
        else:
            if not text:
                raise ConnectionError("closed")
            self.text += text
        size = int.from_bytes(self.text[: self.prefix], "big")
        if len(self.text) < self.prefix + size or not self.text:
            return None
        found, self.text = self.text[self.prefix :][:size], self.text[self.prefix + size :]
        return found

    def closed(self) -> bool:
        try:
            self.receive()
        except ConnectionError:
            return True
        return False
