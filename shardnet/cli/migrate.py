"""Move the flows of a user-mode network to another shardnet, connections uninterrupted.

Usage:
  shardnet migrate move [options] PORT -- COMMAND...
  shardnet migrate receive [options] PORT
  shardnet migrate freeze [options] PORT
  shardnet migrate wait [options] PORT
  shardnet migrate restore [options] PORT
  shardnet migrate release [options] PORT
  shardnet migrate thaw [options] PORT

Options:
  -l LAB, --lab LAB           the lab, where more than one is running
  --between COMMAND           of move: what a shell is to do when all stands at the
                              other end, before it goes on there
  --helper SOCKET             where shardnet-repair listens
  --no-helper                 do without it: connections are reset
  --hold SECONDS              how long a network stays frozen without another word,
                              and then goes on by itself [default: 60]
  -o FORMAT, --output FORMAT  of move: table or json [default: table]
  -q, --quiet                 print nothing of what was done
  -h, --help                  print this

move freezes the network PORT, hands the state of its flows to COMMAND, and lets
go of them when that has them: COMMAND is receive at the other end, by ssh where
that is another host. Should anything fail, the flows go on here.

  shardnet migrate move net0 -- ssh b shardnet migrate receive net0

The addresses that the flows have here must be addresses there before they are
received, and what is sent to them must go there from then on: --between is the
time to see to that. A guest is to be heard there after it only.

The other words are the steps, for who leads both ends by himself: freeze writes
the state to standard output; wait has a network be silent that flows are to come
to; restore takes a state from standard input and has its flows go on; release
lets go of them where they were, and that network stays silent until thaw, which
before a release has the flows go on where they were.

Between two labs of one network namespace the sockets themselves are handed
over, those of hostfwd too, and nothing else is needed. Elsewhere it takes
shardnet-repair on both sides: the one that listens at --helper, $SHARDNET_REPAIR
or /run/shardnet-repair.sock; root's own commands start it themselves. Without
it, connections are reset, and the rest moves.
"""

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from shardnet import control, hands, migration
from shardnet.cli import FAILED, Failure, table, usage

SOCKET = "/run/shardnet-repair.sock"
VERBS = ("move", "receive", "freeze", "wait", "restore", "release", "thaw")
LINES_ATONCE = 500  # leases in a question
COUNTS = ("tcp", "udp", "lost")
GO = b"go\n"


def run(argv: Sequence[str]) -> int:
    """Do one verb."""
    arguments = usage.parse(__doc__, "migrate", argv)
    hold_s = usage.number(arguments, "--hold", 1, 86_400)
    verb = next(verb for verb in VERBS if arguments[verb])
    if verb == "move" and not arguments["COMMAND"]:
        raise SystemExit(
            "shardnet migrate: move: what takes the flows is missing (-- ssh HOST shardnet migrate receive PORT)"
        )
    with control.Client(arguments["--lab"]) as lab:
        network = Network(lab, arguments["PORT"], hold_s or 60, _helpers(arguments))
        if verb == "move":
            moved = _move(network, arguments["COMMAND"], arguments["--between"])
            if not arguments["--quiet"]:
                _show(moved, arguments["--output"])
        elif verb == "receive":
            _receive(network)
        elif verb == "freeze":
            if sys.stdout.isatty():
                raise Failure("the state is not for a terminal (> FILE, or a pipe)", FAILED)
            state, counts = network.freeze()
            try:
                sys.stdout.buffer.write(state)
                sys.stdout.buffer.flush()
            except OSError:
                network.each("thaw")
                raise
            _say(arguments, counts)
        elif verb == "restore":
            counts = network.restore(_read_state())
            network.each("thaw")
            _say(arguments, counts)
        else:
            network.each(verb, anew=verb == "thaw")
    return 0


class Network:
    """A user-mode network of a running lab, with all its shards."""

    def __init__(
        self, lab: control.Client, name: str, hold_s: int, helpers: Callable[[], socket.socket | None]
    ) -> None:
        self.lab, self.name, self.hold_s = lab, name, hold_s
        (port,) = lab.ports(name)
        if port["kind"] != "user" or port["behind"]:
            raise Failure(f"{name}: a {port['kind']} port, and flows are those of a user network", 2)
        every = lab.ports()
        self.shards = [name, *(one["name"] for one in every if one["behind"] == name and one["kind"] == "user")]
        self.dhcp = [
            one["name"] for one in every
            if one["kind"] == "dhcp" and one["switch"] == port["switch"] and one["behind"] in ("", name)
        ]  # fmt: skip
        self.helpers = helpers
        self.rules: list[str] = []  # of hostfwd, whose sockets both networks have

    def ready(self) -> "dict[str, socket.socket | None]":
        """A connection to the helper for each shard, which answers; or None."""
        return {shard: self.helpers() for shard in self.shards}

    @property
    def namespace(self) -> str:
        """Where its sockets are."""
        return str(self.lab.ask(self.name, "network")["namespace"])

    def freeze(
        self,
        helpers: "dict[str, socket.socket | None] | None" = None,
        channels: "dict[str, socket.socket] | None" = None,
    ) -> tuple[bytes, dict[str, Any]]:
        """Freeze the network; the state of its flows, and how many there are. By `channels` each shard gives its sockets."""
        helpers = self.ready() if helpers is None else helpers
        leases = [row["line"] for name in self.dhcp for row in self.lab.rows(name, "lines")]
        told: list[dict[str, Any]] = []
        sections = []
        try:
            for shard in self.shards:
                with _memory() as file:
                    told.append(self._ask(shard, "freeze", helpers[shard], file, channels[shard] if channels else None))
                    sections.append(_content(file))
        except BaseException:
            for shard in self.shards[: len(told)]:
                with contextlib.suppress(control.Error):
                    self._ask(shard, "thaw", None)
            raise
        handed = [one["handed"] for one in told]
        hostfwd = [one["hostfwd"] for one in told]
        head = {"lab": self.lab.lab, "port": self.name, "leases": leases, "handed": handed, "hostfwd": hostfwd}
        state = migration.pack(head, sections)
        why = next((one["why"] for one in told if one["why"]), "")
        self.rules = _rules(hostfwd)
        return state, {**_sum(told), "bytes": len(state), "why": why}

    def restore(
        self,
        state: bytes,
        helpers: "dict[str, socket.socket | None] | None" = None,
        channels: Sequence[socket.socket] = (),
    ) -> dict[str, Any]:
        """Have the flows of a state stand here, frozen, or have nothing of them. By `channels` come the sockets of each section."""
        try:
            head, _ = migration.unpack(state)
        except ValueError as why:
            raise Failure(f"{self.name}: {why}") from None
        helpers = self.ready() if helpers is None else helpers
        told: list[dict[str, Any]] = []
        with _memory() as file, _sockets(head, channels) as (sockets, args):
            _fill(file, state)
            try:
                for shard in self.shards:
                    told.append(self._restore(shard, helpers[shard], file, sockets if channels else None, args))
                self.rules = _rules(head["hostfwd"]) if channels else []
                for name in self.dhcp:
                    for first in range(0, len(head["leases"]), LINES_ATONCE):
                        self.lab.ask(name, "adopt", lines=head["leases"][first : first + LINES_ATONCE])
            except BaseException:
                for shard in self.shards[: len(told)]:
                    with contextlib.suppress(control.Error):
                        self._ask(shard, "forget", None)
                raise
        return _sum(told)

    def take_forwards(self) -> None:
        """Forward as the other network did: the sockets have come."""
        if self.rules:
            self.lab.forward_add(*self.rules, port=self.name)

    def end_forwards(self) -> None:
        """Listen no more where the other network does."""
        if self.rules:
            self.lab.forward_remove(*self.rules, port=self.name)

    def _restore(
        self, shard: str, helper: socket.socket | None, file: int, sockets: Sequence[int] | None, args: dict[str, Any]
    ) -> dict[str, Any]:
        if sockets is None:
            return self._ask(shard, "restore", helper, file)
        near, far = hands.channel()
        with near, far:
            hands.give(near, sockets)
            return self._ask(shard, "restore", None, file, far, **args)

    def each(self, step: str, anew: bool = False) -> None:
        """Have all shards do a step; one that cannot does not hold up the others. `anew`: with a helper in the place of that before."""
        wrong = []
        for shard in self.shards:
            try:
                self._ask(shard, step, self.helpers() if anew else None)
            except control.Error as error:
                wrong.append(error)
        if wrong:
            raise wrong[0]

    def _ask(
        self,
        shard: str,
        what: str,
        helper: socket.socket | None,
        file: int | None = None,
        channel: socket.socket | None = None,
        **args: Any,
    ) -> dict[str, Any]:
        more = channel or helper
        fds = [*([] if file is None else [file]), *([] if more is None else [more.fileno()])]
        if channel is not None:
            args["hand"] = True
        return self.lab.ask(shard, what, fds, hold_s=self.hold_s, **args)


def _move(network: Network, command: Sequence[str], between: str | None) -> dict[str, Any]:
    helpers, here = network.ready(), network.namespace
    with _far(command) as far, contextlib.ExitStack() as opened:
        there = far.hear("awaits").get("namespace")
        channels: dict[str, tuple[socket.socket, socket.socket]] = {}
        if here and here == there:
            channels = {shard: hands.channel() for shard in network.shards}
            for end in (end for ends in channels.values() for end in ends):
                opened.enter_context(end)
        began = time.monotonic()
        state, counts = network.freeze(helpers, {shard: near for shard, (near, _) in channels.items()})
        frozen = time.monotonic()
        try:
            far.say(state, [its.fileno() for _, its in channels.values()])
            stood = far.hear("stands")
            network.each("cut")
            standing = time.monotonic()
            if between is not None and (
                status := subprocess.run(between, shell=True, stdin=subprocess.DEVNULL).returncode
            ):
                raise Failure(f"{between}: status {status}, the flows go on here")
        except BaseException:
            network.each("thaw")
            raise
        switched = time.monotonic()
        network.each("release")
        far.say(GO)
        far.hear("goes on")
        ended = time.monotonic()
        network.end_forwards()
    return {
        **{key: stood[key] for key in COUNTS},
        "way": "handed" if channels else "rebuilt",
        "bytes": counts["bytes"],
        "silent_ms": round(1000 * (ended - began), 1),
        "freeze_ms": round(1000 * (frozen - began), 1),
        "restore_ms": round(1000 * (standing - frozen), 1),
        "between_ms": round(1000 * (switched - standing), 1),
        "why": counts["why"],
    }


def _receive(network: Network) -> None:
    helpers = network.ready()
    with contextlib.ExitStack() as opened:
        near = _near()
        # Only by a socket of this host, that nothing has passed on, sockets can come.
        _tell("awaits", namespace=network.namespace if near else "")
        channels: list[socket.socket] = []
        state = _read_state(lambda size: _first(near, size, channels) if near else sys.stdin.buffer.read(size))
        for channel in channels:
            opened.enter_context(channel).settimeout(10)
        counts = network.restore(state, helpers, channels)
    try:
        _tell("stands", **counts)
        if sys.stdin.buffer.readline(len(GO)) != GO:
            raise Failure(f"{network.name}: nobody said that the flows are to go on here")
    except BaseException:
        network.each("forget")
        raise
    try:
        network.take_forwards()  # no earlier: the other network listens until it has let go
    finally:
        network.each("thaw")
    _tell("goes on")


def _near() -> socket.socket | None:
    """Standard input, where it is a socket of this host."""
    try:
        near = socket.socket(fileno=os.dup(0))
    except OSError:
        return None
    if (near.family, near.type) == (socket.AF_UNIX, socket.SOCK_STREAM):
        return near
    near.close()
    return None


def _first(near: socket.socket, size: int, channels: list[socket.socket]) -> bytes:
    """Read so many bytes, fewer at the end, and the descriptors that come with them."""
    found = bytearray()
    while len(found) < size:
        data, fds, _, _ = socket.recv_fds(near, min(size - len(found), 1 << 20), migration.SECTIONS_MAX)
        channels += (socket.socket(fileno=fd) for fd in fds)
        if not data:
            break
        found += data
    return bytes(found)


@contextlib.contextmanager
def _sockets(head: dict[str, Any], channels: Sequence[socket.socket]) -> Iterator[tuple[list[int], dict[str, Any]]]:
    """What comes by the channels, for as long as the block: sockets of all sections, then of forwards; what a worker is told of them."""
    flows: list[int] = []
    forwards: dict[str, int] = {}
    hands.widen()
    try:
        for channel, count, keys in zip(channels, head["handed"], head["hostfwd"], strict=True) if channels else ():
            found = hands.take(channel, count + len(keys))
            flows += found[:count]
            forwards |= zip(keys, found[count:], strict=True)
        yield [*flows, *forwards.values()], {"handed": head["handed"], "hostfwd": list(forwards)}
    except (OSError, ValueError) as error:
        raise Failure(f"the sockets did not come: {error}") from None
    finally:
        hands.close([*flows, *forwards.values()])


def _rules(hostfwd: Sequence[Sequence[str]]) -> list[str]:
    """The rules whose deposits these are (shardnet/workers/user.py): hostfwd RULE STEP."""
    return list(dict.fromkeys(key.split(" ")[1] for keys in hostfwd for key in keys))


class Far:
    """The command that takes the flows, as it is spoken with."""

    def __init__(self, process: "subprocess.Popen[bytes]", line: socket.socket, words: Sequence[str]) -> None:
        self.process, self.line, self.name = process, line, " ".join(words)

    def say(self, data: bytes, fds: Sequence[int] = ()) -> None:
        with contextlib.suppress(
            BrokenPipeError, ConnectionResetError
        ):  # it has said why, and `hear` says that it ended
            sent = socket.send_fds(self.line, [data], list(fds)) if fds else 0
            self.line.sendall(memoryview(data)[sent:])

    def hear(self, wanted: str) -> dict[str, Any]:
        """What it says next, which has to be this."""
        line = _pipe(self.process.stdout).readline(1 << 16)
        try:
            said = json.loads(line)
            if said["said"] == wanted:
                return dict(said)
        except (ValueError, TypeError, KeyError):
            pass
        what = line.decode(errors="replace").strip()
        raise Failure(f"{self.name}: {f'says {what!r}' if what else 'ended'} instead of {wanted!r}")


@contextlib.contextmanager
def _far(words: Sequence[str]) -> Iterator[Far]:
    """Run the command for as long as the block; it has to end well after it."""
    line, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with its:
        process = subprocess.Popen(words, stdin=its.fileno(), stdout=subprocess.PIPE)
    try:
        yield Far(process, line, words)
    finally:
        line.close()
        _pipe(process.stdout).close()
        process.wait()


def _helpers(arguments: dict[str, Any]) -> Callable[[], socket.socket | None]:
    """How to come by a connection to the helper."""
    path = arguments["--helper"] or os.environ.get("SHARDNET_REPAIR")
    if arguments["--no-helper"]:
        return lambda: None
    if path is None and os.geteuid() == 0 and (program := _program()) is not None:
        return lambda: _started(program)
    if path is None and not os.path.exists(SOCKET):
        return lambda: None
    return lambda: _connected(path or SOCKET)


def _program() -> str | None:
    beside = Path(sys.argv[0]).resolve().parent / "shardnet-repair"
    return str(beside) if os.access(beside, os.X_OK) else shutil.which("shardnet-repair")


def _started(program: str) -> socket.socket:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        # It ends when nobody has the connection any more: that is the worker's, longer than ours.
        subprocess.Popen(
            [program, "-"],
            stdin=theirs.fileno(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,  # nor shall it hold a pipe of ours open
            start_new_session=True,
        )
    return _answering(ours, program)


def _connected(path: str) -> socket.socket:
    ours = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        ours.connect(path)
    except OSError as error:
        raise Failure(f"{path}: {error.strerror} (is shardnet-repair running there?)") from None
    return _answering(ours, path)


def _answering(helper: socket.socket, where: str) -> socket.socket:
    """See that it does: a helper that turns us away is to be known before anything is silent."""
    helper.settimeout(10)
    try:
        helper.send(b"+")
        answer = helper.recv(1)
    except OSError:
        answer = b""
    if answer != b"\0":
        raise Failure(f"{where}: does not answer (does it serve this user?)", 77)
    helper.settimeout(None)
    return helper


@contextlib.contextmanager
def _memory() -> Iterator[int]:
    fd = os.memfd_create("shardnet flows")
    try:
        yield fd
    finally:
        os.close(fd)


def _content(fd: int) -> bytes:
    os.lseek(fd, 0, os.SEEK_SET)
    with os.fdopen(os.dup(fd), "rb") as file:
        return file.read()


def _fill(fd: int, data: bytes) -> None:
    with os.fdopen(os.dup(fd), "wb") as file:
        file.write(data)


def _read_state(read: "Callable[[int], bytes] | None" = None) -> bytes:
    try:
        return migration.receive(read or sys.stdin.buffer.read)
    except ValueError as why:
        raise Failure(f"standard input: {why}") from None


def _sum(told: Sequence[dict[str, Any]]) -> dict[str, Any]:
    return {key: sum(one[key] for one in told) for key in COUNTS}


def _tell(what: str, **fields: Any) -> None:
    print(json.dumps({"said": what, **fields}), flush=True)


def _pipe(pipe: "IO[bytes] | None") -> "IO[bytes]":
    assert pipe is not None
    return pipe


def _say(arguments: dict[str, Any], counts: dict[str, Any]) -> None:
    if not arguments["--quiet"]:
        why = f" ({counts['why']})" if counts.get("why") else ""
        print(f"{counts['tcp']} TCP flows, {counts['udp']} of UDP, {counts['lost']} to be reset{why}", file=sys.stderr)


def _show(moved: dict[str, Any], output: str) -> None:
    if output == "json":
        print(json.dumps(moved))
        return
    table.show(
        ("TCP", "UDP", "RESET", "BYTES", "SILENT"),
        [(*(moved[key] for key in COUNTS), moved["bytes"], f"{moved['silent_ms']:.1f} ms")],
    )
    if moved["why"]:
        print(f"connections were reset: {moved['why']}", file=sys.stderr)
