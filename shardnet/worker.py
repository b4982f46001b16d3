"""A worker's life: it is told its ports, opens them, drops every privilege, carries frames until it is told to stop.

The supervisor is at the other end of one socket. Its messages, in the order of a life:

    setup + arena, doorbells   who and where this worker is
    keep + descriptor          what a predecessor deposited under (port, key)
    add                        a port; with `prepare`, also make or recall its descriptors: privileges are still there
    open                       carry the port; the first one of a life drops the privileges, for ever
    change                     a port's options, where its kind can do so while it carries
    ask, leases                a question (answers.py); what a DHCP service of the same network tells (leases.py)
    unplugged                  of a kind that has outlets: the port behind one of them is gone
    captures                   of a kind that captures: the names of ports
    remove, withdraw, capture, stop

A process that is told to add, but never to open, is a helper: it has prepared a port for a worker that could not any
more, leaves what it deposited, and goes. When the socket ends, the supervisor is dead, and so is this process, at once.

Python code of a port that raises fails that port; the others of the worker go on. Nothing here blocks but prepare().
"""

import contextlib
import encodings.idna  # noqa: F401  of getaddrinfo() and names of DHCP, looked for when a worker has no rights left to find it
import errno
import os
import signal
import socket
import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from shardnet import _core, answers, control, kinds, line, options, plugged, timers, title

# Payload, peer's address (4 or 16 bytes) and port, local address and port, peer's MAC (b"" in an answer: where it was last heard).
Datagram = tuple[bytes, bytes, int, bytes, int, bytes]
Datagrams = list[Datagram]

CAPTURE_NICE = 19  # as of [pcap NAME]: the last in line for a core
GONE = (0, errno.EPIPE)  # how a capture ends that was asked to, or whose reader went away
LOG_LINES_MAX = 20  # a port and second
RETRY_S = 0.02  # a line that is full (the supervisor is busy, or stopped) is tried again so often


class Place:
    """What a port gets from the process that carries it."""

    def __init__(self, worker: "Worker", port: int, kind: str, name: str) -> None:
        self.port, self.kind, self.name = port, kind, name
        self.module: Any = None  # of the kind
        self.options: Any = None
        self.carrier: Any = None  # the module's Port
        self.kept: dict[str, int] = {}
        self.watched: dict[int, Callable[[], None]] = {}
        self.timers: set[int] = set()
        self.behind = ""  # the port whose companion this one is
        self.owner, self.share = port, 0  # its id, or our own; which of its shards this is
        self.companions: dict[str, int] = {}  # the ids of the owner's companions, this one among them
        self.counts: dict[str, int] = {}  # of a service
        self.receive: Callable[[Datagrams], None] | None = None
        self._worker = worker
        self._told: tuple[str, str] | None = None
        self._second, self._lines = 0, 0

    @property
    def run_dir(self) -> Path:
        """The run directory of the lab."""
        return self._worker.run_dir

    @property
    def shard(self) -> _core.Shard:
        """The native loop; not for prepare()."""
        assert self._worker.shard is not None, "prepare() has no loop"
        return self._worker.shard

    def deposit(self, key: str, fd: int) -> None:
        """Have the supervisor keep a copy of `fd` that outlives this process."""
        self.keep(key, os.dup(fd))
        self.tell("deposit", [fd], key=key)

    def recall(self, key: str) -> int | None:
        """A descriptor of the caller's own for what was deposited, by this process or one before it, or None."""
        return os.dup(self.kept[key]) if key in self.kept else None

    def forget(self, key: str) -> None:
        """Have all copies of a deposit closed."""
        if key in self.kept:
            os.close(self.kept.pop(key))
            self.tell("forget", key=key)

    def lend(self, key: str) -> None:
        """Let the other workers of the lab write to this deposit, a queue of a TAP, while nothing of theirs waits in a lane to us."""
        self.tell("lend", key=key)

    def keep(self, key: str, fd: int) -> None:
        """Take over a descriptor under this key, in the place of an older one."""
        if key in self.kept:
            os.close(self.kept[key])
        self.kept[key] = fd

    def watch(self, fd: int, ready: Callable[[], None]) -> None:
        """Have `ready` called, between turns of the native loop, for as long as `fd` is readable."""
        self.shard.watch(fd)
        self.watched[fd] = ready

    def unwatch(self, fd: int) -> None:
        """Ask no more about `fd`; to be called before it is closed."""
        if self.watched.pop(fd, None):
            self.shard.unwatch(fd)

    def serve(self, receive: Callable[[Datagrams], None]) -> None:
        """Have `receive` called, between turns of the native loop, with the datagrams that came for this service: all there are.

        Where it raises, that is logged and counted (mistakes), and the service goes on: a guest must not end it.
        """
        self.receive = receive

    def received(self, datagrams: Datagrams) -> None:
        """Give datagrams to the service."""
        if self.receive is None:
            return
        try:
            self.receive(datagrams)
        except Exception:
            self.mistake()

    def mistake(self) -> None:
        """Log the exception at hand, which a guest has provoked in a service, and count it."""
        self.count("mistakes")
        self.log(traceback.format_exc().rstrip())

    def answer(self, datagrams: Iterable[Datagram]) -> None:
        """Send datagrams of this service; those for which there is no room are drops of the port."""
        self.shard.answer(self.port, datagrams)

    def seek(self, address: bytes) -> None:
        """Ask on the link who has an address of 4 or 16 bytes; `found` says who, a moment later."""
        self.shard.seek(self.port, address)

    def found(self, address: bytes) -> bytes | None:
        """The MAC that was last heard to have an address."""
        return self.shard.found(self.port, address)

    def count(self, name: str, by: int = 1) -> None:
        """Add to a counter of this service's."""
        self.counts[name] = self.counts.get(name, 0) + by

    def counters(self) -> dict[str, int]:
        """The counters of this service; unresolved are datagrams whose peer did not say where it is."""
        return {**self.counts, "unresolved": self.shard.unresolved(self.port)}

    def later(self, seconds: float, call: Callable[[], None]) -> int:
        """Have `call` called once, in `seconds`; the token is for `cancel`."""

        def due() -> None:
            self.timers.discard(token)
            self._worker.attempt(self, call)

        token = self._worker.timers.later(seconds, due)
        self.timers.add(token)
        return token

    def cancel(self, token: int) -> None:
        """Forget a call; one that was made already is no mistake."""
        self.timers.discard(token)
        self._worker.timers.cancel(token)

    def state(self, state: str, detail: str = "") -> None:
        """Say whether the port has a carrier: up, waiting or down."""
        if (state, detail) != self._told:
            self._told = (state, detail)
            self.tell("state", state=state, detail=detail)

    def log(self, text: str) -> None:
        """Write a line to the lab's log; a port that writes too many has the rest of the second counted only."""
        second = int(time.monotonic())
        if second != self._second:
            if self._lines > LOG_LINES_MAX:
                self.tell("log", text=f"{self._lines - LOG_LINES_MAX} lines suppressed")
            self._second, self._lines = second, 0
        self._lines += 1
        if self._lines <= LOG_LINES_MAX:
            self.tell("log", text=text)

    def again(self) -> None:
        """Ask for another prepare(), with privileges, in a process of its own; then open() is called anew."""
        self.tell("again")

    def tell(self, op: str, fds: Sequence[int] = (), **fields: Any) -> None:
        """Send the supervisor a message about this port."""
        self._worker.line.send({"op": op, "port": self.port, **fields}, fds)


class Worker:
    """One process, its native loop, its ports."""

    def __init__(self, sock: socket.socket) -> None:
        self.line = line.Line(sock)
        self.timers = timers.Timers()
        self.shard: _core.Shard | None = None
        self.run_dir = Path()
        self.lab = ""
        self.worker = -1
        self.fds: list[int] = []  # arena and doorbells
        self.places: dict[int, Place] = {}
        self.kept: dict[int, dict[str, int]] = {}  # what came for ports that are not added yet
        self.lent: dict[int, int] = {}  # descriptors of other workers' ports
        self.capturing = False

    def run(self) -> None:
        """Do what the supervisor says until it says stop, or says nothing any more (EOFError)."""
        self.line.sock.setblocking(True)
        while self.shard is None:
            message = self.line.receive()
            assert message is not None, "a blocking socket"
            self.obey(*message)
        self.line.sock.setblocking(False)
        self.shard.watch(self.line.fileno())
        while True:
            with contextlib.suppress(InterruptedError):
                for what, number, error in self.shard.run(self._patience()):
                    if what == "datagrams":
                        if place := self.places.get(number):
                            place.received(self.shard.datagrams(number))
                    elif what == "ended":
                        self._ended(number, error)
                    elif what == "stopped":
                        self._stopped(number, error)
                    elif what == "full":
                        self._full(number)
                    elif what == "short":
                        self._short(number, error)
                    elif number == self.line.fileno():
                        self._listen()
                    else:
                        self._ready(number)
            self.timers.fire()
            self.line.flush()

    def obey(self, message: dict[str, Any], fds: list[int]) -> None:
        """Do what one message says."""
        match message:
            case {"op": "setup"}:
                self.lab, self.worker, self.run_dir = message["lab"], message["worker"], Path(message["run_dir"])
                self.fds = fds
            case {"op": "keep", "port": port, "key": key}:
                if place := self.places.get(port):
                    place.keep(key, fds[0])
                else:
                    self.kept.setdefault(port, {})[key] = fds[0]
            case {"op": "add", "port": port}:
                self._add(port, message)
            case {"op": "lend", "port": port}:
                self._lend(port, fds[0])
            case {"op": "unlend", "port": port}:
                self._unlend(port)
                self.line.send({"op": "unlent", "port": port})
            case {"op": "open", "port": port}:
                self._unlend(port)
                self._carry()
                if place := self.places.get(port):
                    self.attempt(place, self._open, place)
            case {"op": "remove", "port": port}:
                if place := self.places.get(port):
                    self._close(place)
                self.line.send({"op": "removed", "port": port})
            case {"op": "change", "port": port}:
                if place := self.places.get(port):
                    self.attempt(place, self._change, place, message["given"])
            case {"op": "ask", "port": port}:
                self._ask(port, message, fds)
            case {"op": "leases", "port": port}:
                for lease in message["leases"]:
                    if place := self.places.get(port):
                        self.attempt(place, place.carrier.leased, *lease)
            case {"op": "captures", "port": port}:
                if place := self.places.get(port):
                    self.attempt(place, place.carrier.captured, [(number, name) for number, name in message["ports"]])
            case {"op": "unplugged", "port": port, "number": number}:
                if place := self.places.get(port):
                    self.attempt(place, place.carrier.unplugged, number)
            case {"op": "withdraw", "port": port}:
                place = self.places[port]
                self.attempt(place, self._withdraw, place)
            case {"op": "capture"}:
                self._carry()
                assert self.shard is not None, "_carry() has made it"
                os.setpriority(os.PRIO_PROCESS, 0, CAPTURE_NICE)
                self.shard.add_capture(fds[0], [(port, name) for port, name in message["ports"]], message["snaplen"])
                self.capturing = True
                self.line.send({"op": "capturing"})
            case {"op": "stop"}:
                self._stop()

    def attempt(self, place: Place, call: Callable[..., None], *arguments: Any) -> bool:
        """Call a port's code; where it raises, fail this port and no other."""
        try:
            call(*arguments)
            return True
        except OSError as error:
            why = said(error)
        except Exception as error:
            place.log(traceback.format_exc().rstrip())
            why = f"a mistake in its program: {error or type(error).__name__}"
        self._close(place)
        place.tell("failed", error=why)
        return False

    def _add(self, port: int, message: dict[str, Any]) -> None:
        if port in self.places:
            self._close(self.places[port])
        place = self.places[port] = Place(self, port, message["kind"], message["name"])
        place.kept = self.kept.pop(port, {})
        place.behind, place.companions = message.get("behind", ""), message.get("companions", {})
        place.owner, place.share = message.get("owner", port), message.get("share", 0)
        self.attempt(place, self._prepare, place, message)

    def _prepare(self, place: Place, message: dict[str, Any]) -> None:
        place.module = plugged if message.get("plugged") else kinds.module(place.kind)
        place.options = options.read(place.module, message["given"])
        place.carrier = place.module.Port(place.options, place)
        if message["prepare"]:
            place.carrier.prepare()
            place.tell("prepared")

    def _change(self, place: Place, given: dict[str, str]) -> None:
        """Carry on with other options; where the port refuses them it goes on as it can, and the supervisor takes them back."""
        wanted = options.read(place.module, given)
        try:
            place.carrier.change(wanted)
        except OSError as error:
            place.tell("changed", error=said(error))
            return
        place.options = wanted
        place.tell("changed")

    def _ask(self, port: int, message: dict[str, Any], fds: list[int]) -> None:
        """Answer a question about a port; one that a carrier stumbles over fails nothing but itself."""
        place = self.places.get(port)
        if place is not None and place.receive is not None and message["what"] == "counters":
            said: dict[str, Any] = {"data": control.pack(place.counters())}
        elif place is None:
            said = {"error": "its worker does not carry it", "code": 75}
        else:
            try:
                said = answers.answer(place.carrier, message["what"], message["args"], fds)
            except Exception as error:
                place.log(traceback.format_exc().rstrip())
                said = {"error": f"a mistake in its program: {error or type(error).__name__}", "code": 1}
        for fd in fds:
            os.close(fd)
        self.line.send({"op": "answer", "port": port, "number": message["number"], **said})

    def _withdraw(self, place: Place) -> None:
        place.module.withdraw(place.options, place)
        place.tell("withdrawn")

    def _open(self, place: Place) -> None:
        place.carrier.open()
        place.tell("opened")

    def _lend(self, port: int, fd: int) -> None:
        self._unlend(port)
        if self.shard is None or port in self.places:
            os.close(fd)
            return
        self.shard.lend(port, fd)
        self.lent[port] = fd

    def _unlend(self, port: int) -> None:
        if port in self.lent and self.shard is not None:
            self.shard.remove(port)
            os.close(self.lent.pop(port))

    def _carry(self) -> None:
        """Become what carries frames: from here on without privileges."""
        if self.shard is not None:
            return
        names = [f"{place.kind} {place.name}" for place in self.places.values()]
        name = names[0] if len(names) == 1 else f"worker {self.worker}"
        _core.process_title(name)  # has room for 15 bytes, so the rest of it is for ps alone
        title.write(f"shardnet {self.lab} {name}")
        _core.drop_privileges()
        arena, *doorbells = self.fds
        self.shard = _core.Shard(_core.Arena(arena), self.worker, doorbells)
        self.line.send({"op": "ready"})

    def _close(self, place: Place) -> None:
        """Let go of a port, however broken it is."""
        self.places.pop(place.port, None)
        for token in list(place.timers):
            place.cancel(token)
        if self.shard is not None and place.carrier is not None:
            try:
                place.carrier.close()
            except Exception:
                place.log(traceback.format_exc().rstrip())
            with contextlib.suppress(Exception):  # mostly close() has done it
                self.shard.remove(place.port)
        for fd in list(place.watched):
            with contextlib.suppress(Exception):
                place.unwatch(fd)
        for fd in place.kept.values():
            os.close(fd)
        place.kept.clear()

    def _listen(self) -> None:
        while (message := self.line.receive()) is not None:
            self.obey(*message)

    def _ready(self, fd: int) -> None:
        for place in list(self.places.values()):
            if call := place.watched.get(fd):
                self.attempt(place, call)

    def _ended(self, port: int, error: int) -> None:
        place = self.places.get(port)
        if place is None:
            if self.capturing:
                self._stop()  # nobody reads it any more, or the disk is full
            return
        if hasattr(place.carrier, "ended"):
            self.attempt(place, place.carrier.ended, error)
        else:
            self._close(place)
            place.tell("failed", error=os.strerror(error) if error else "its descriptor ended")

    def _stopped(self, port: int, ring: int) -> None:
        if place := self.places.get(port):
            self.attempt(place, place.carrier.stopped, ring)

    def _full(self, port: int) -> None:
        if place := self.places.get(port):
            self.attempt(place, place.carrier.full)

    def _short(self, port: int, cause: int) -> None:
        if place := self.places.get(port):
            self.attempt(place, place.carrier.short, _core.DROP_CAUSES[cause])

    def _patience(self) -> float | None:
        """How long the native loop may go on without us."""
        wait = self.timers.wait()
        return wait if self.line.flush() else min(RETRY_S, RETRY_S if wait is None else wait)

    def _stop(self) -> None:
        for place in list(self.places.values()):
            self._close(place)
        said: dict[str, Any] = {}
        if self.shard is not None and self.capturing:
            written, lost, whole, error = self.shard.end_capture()
            why = "" if error in GONE else os.strerror(error)
            said = {"written": written, "lost": lost, "whole": whole, "error": why}
        self.line.sock.setblocking(True)
        self.line.send({"op": "stopped", **said})
        os._exit(0)


def main(sock: socket.socket) -> None:
    """Live, in the child of the forkserver; never returns."""
    code, worker = 1, None
    try:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(
                number, lambda *_: None
            )  # meant for the supervisor, which tells us; SIG_IGN would be inherited
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        os.environ.pop("PYTHONSAFEPATH", None)  # meant for the forkserver, not for the commands of ports
        worker = Worker(socket.socket(fileno=_alone(sock.detach())))
        worker.run()
    except EOFError:
        code = 0
    except BaseException:
        if worker is not None:
            worker.line.send({"op": "crashed", "text": traceback.format_exc().rstrip()})
    finally:
        os._exit(code)  # nothing of multiprocess's is left to tidy up, see _alone


def said(error: OSError) -> str:
    """What went wrong as `what: why`, the system's words last."""
    why = error.strerror or str(error)
    return f"{error.filename}: {why}" if error.filename else why


def _alone(keep: int) -> int:
    """Close every descriptor but the standard ones and `keep`.

    multiprocess gives each child the pipe whose end tells the forkserver that it is not needed any more: with a copy in
    a stopped worker the forkserver would outlive a killed supervisor, and the worker the forkserver.
    """
    for name in os.listdir("/proc/self/fd"):
        if int(name) > 2 and int(name) != keep:
            with contextlib.suppress(OSError):  # the one that listed them
                os.close(int(name))
    return keep
