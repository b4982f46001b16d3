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

Moving a TCP connection takes shardnet-repair on both sides: the one that listens
at --helper, $SHARDNET_REPAIR or /run/shardnet-repair.sock; root's own commands
start it themselves. Without it, connections are reset, and the rest moves.
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

from shardnet import control, migration
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

    def ready(self) -> "dict[str, socket.socket | None]":
        """A connection to the helper for each shard, which answers; or None."""
        return {shard: self.helpers() for shard in self.shards}

    def freeze(self, helpers: "dict[str, socket.socket | None] | None" = None) -> tuple[bytes, dict[str, Any]]:
        """Freeze the network; the state of its flows, and how many there are."""
        helpers = self.ready() if helpers is None else helpers
        leases = [row["line"] for name in self.dhcp for row in self.lab.rows(name, "lines")]
        told: list[dict[str, Any]] = []
        sections = []
        try:
            for shard in self.shards:
                with _memory() as file:
                    told.append(self._ask(shard, "freeze", helpers[shard], file))
                    sections.append(_content(file))
        except BaseException:
            for shard in self.shards[: len(told)]:
                with contextlib.suppress(control.Error):
                    self._ask(shard, "thaw", None)
            raise
        state = migration.pack({"lab": self.lab.lab, "port": self.name, "leases": leases}, sections)
        why = next((one["why"] for one in told if one["why"]), "")
        return state, {**_sum(told), "bytes": len(state), "why": why}

    def restore(self, state: bytes, helpers: "dict[str, socket.socket | None] | None" = None) -> dict[str, Any]:
        """Have the flows of a state stand here, frozen, or have nothing of them."""
        try:
            head, _ = migration.unpack(state)
        except ValueError as why:
            raise Failure(f"{self.name}: {why}") from None
        helpers = self.ready() if helpers is None else helpers
        told: list[dict[str, Any]] = []
        with _memory() as file:
            _fill(file, state)
            try:
                for shard in self.shards:
                    told.append(self._ask(shard, "restore", helpers[shard], file))
                for name in self.dhcp:
                    for first in range(0, len(head["leases"]), LINES_ATONCE):
                        self.lab.ask(name, "adopt", lines=head["leases"][first : first + LINES_ATONCE])
            except BaseException:
                for shard in self.shards[: len(told)]:
                    with contextlib.suppress(control.Error):
                        self._ask(shard, "forget", None)
                raise
        return _sum(told)

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

    def _ask(self, shard: str, what: str, helper: socket.socket | None, file: int | None = None) -> dict[str, Any]:
        fds = [*([] if file is None else [file]), *([] if helper is None else [helper.fileno()])]
        return self.lab.ask(shard, what, fds, hold_s=self.hold_s)


def _move(network: Network, command: Sequence[str], between: str | None) -> dict[str, Any]:
    helpers = network.ready()
    with _far(command) as far:
        far.hear("awaits")
        began = time.monotonic()
        state, counts = network.freeze(helpers)
        frozen = time.monotonic()
        try:
            far.say(state)
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
    return {
        **{key: stood[key] for key in COUNTS},
        "bytes": counts["bytes"],
        "silent_ms": round(1000 * (ended - began), 1),
        "freeze_ms": round(1000 * (frozen - began), 1),
        "restore_ms": round(1000 * (standing - frozen), 1),
        "between_ms": round(1000 * (switched - standing), 1),
        "why": counts["why"],
    }


def _receive(network: Network) -> None:
    helpers = network.ready()
    _tell("awaits")
    counts = network.restore(_read_state(), helpers)
    try:
        _tell("stands", **counts)
        if sys.stdin.buffer.readline(len(GO)) != GO:
            raise Failure(f"{network.name}: nobody said that the flows are to go on here")
    except BaseException:
        network.each("forget")
        raise
    network.each("thaw")
    _tell("goes on")


class Far:
    """The command that takes the flows, as it is spoken with."""

    def __init__(self, process: "subprocess.Popen[bytes]", words: Sequence[str]) -> None:
        self.process, self.name = process, " ".join(words)

    def say(self, data: bytes) -> None:
        with contextlib.suppress(BrokenPipeError):  # it has said why, and `hear` says that it ended
            _pipe(self.process.stdin).write(data)
            _pipe(self.process.stdin).flush()

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
    process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        yield Far(process, words)
    finally:
        with contextlib.suppress(BrokenPipeError):
            _pipe(process.stdin).close()
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


def _read_state() -> bytes:
    try:
        return migration.receive(sys.stdin.buffer.read)
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
