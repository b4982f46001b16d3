"""The control socket of a running lab: its messages, and the client for programs and for the command line.

    import shardnet

    with shardnet.connect("demo") as lab:
        for port in lab.ports():
            print(port["name"], port["state"], port["counters"]["rx_frames"])

A message is a big-endian u32 length and a msgpack map; descriptors travel with the message by SCM_RIGHTS. A request
{v, id, op, ...} is answered by {id, ok: true, ...} or {id, ok: false, code, error}. A reply too long for a message
comes in several: all but the last have `more`, and their lists are to be joined. {event: {...}} may stand between.
Whoever reads a message trusts nothing in it: 1 MiB, 32 levels, plain types, text keys.

Neither multiprocess nor pyroute2 may be imported from here: a command that only asks must start quickly.
"""

import array
import contextlib
import os
import socket
import struct
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import msgpack

from shardnet import rundir

VERSION = 1
MESSAGE_MAX = 1 << 20
LEVELS_MAX = 32
ENTRIES_MAX = 1 << 16  # of one list or map: msgpack makes room for what is claimed before it has seen it
FDS_MAX = 16  # descriptors under way on one connection
LENGTH = struct.Struct(">I")


class Error(Exception):
    """Why a request was refused, for the user to read; `code` is the exit code that says it to a script."""

    def __init__(self, text: str, code: int = 1) -> None:
        super().__init__(text)
        self.code = code


class NotRunning(Error):
    """There is no such lab, or it ended while we spoke to it."""

    def __init__(self, text: str) -> None:
        super().__init__(text, 69)


def pack(message: Mapping[str, Any]) -> bytes:
    """Write a message, without its length."""
    data: bytes = msgpack.packb(message)
    return data


def unpack(data: bytes) -> dict[str, Any]:
    """Read a message; ValueError where it is none or outgrows a limit."""
    try:
        message = msgpack.unpackb(data, max_array_len=ENTRIES_MAX, max_map_len=ENTRIES_MAX)
    except (ValueError, TypeError, RecursionError, OverflowError) as error:
        raise ValueError(f"not a message: {error}" if str(error) else "not a message: no msgpack") from None
    if not isinstance(message, dict):
        raise ValueError("not a message: no map")
    _plain(message, LEVELS_MAX)
    return message


def descriptors(ancillary: Iterable[tuple[int, int, bytes]]) -> list[int]:
    """The descriptors among what recvmsg returned; they are the caller's now."""
    fds = array.array("i")
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(data[: len(data) - len(data) % fds.itemsize])
    return fds.tolist()


class Stream:
    """Messages on a stream socket, as they arrive; used by both ends."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self._data = bytearray()
        self._taken = 0  # bytes of the stream before _data
        self._fds: deque[tuple[int, int]] = deque()  # (bytes of the stream up to the end of its chunk, descriptor)

    @property
    def partial(self) -> bool:
        """True while the beginning of a message waits for its rest."""
        return bool(self._data)

    def receive(self) -> list[tuple[dict[str, Any], list[int]]]:
        """Read once; the messages that are whole now, with their descriptors. EOFError at the end, ValueError: rubbish.

        The kernel ends a chunk after data that came with descriptors. So they belong to the message that ends there,
        or to the first one that ends later.
        """
        data, ancillary, flags, _ = self.sock.recvmsg(1 << 16, socket.CMSG_SPACE(FDS_MAX * 4), socket.MSG_CMSG_CLOEXEC)
        self._data += data
        end = self._taken + len(self._data)
        self._fds += ((end, fd) for fd in descriptors(ancillary))
        if not data:
            raise EOFError
        if flags & socket.MSG_CTRUNC or len(self._fds) > FDS_MAX:
            raise ValueError("too many descriptors")
        messages = []
        while (message := self._next()) is not None:
            messages.append(message)
        return messages

    def close(self) -> None:
        """Close the socket with the descriptors that nobody took."""
        self.sock.close()
        for _, fd in self._fds:
            os.close(fd)
        self._fds.clear()

    def _next(self) -> tuple[dict[str, Any], list[int]] | None:
        if len(self._data) < LENGTH.size:
            return None
        (length,) = LENGTH.unpack_from(self._data)
        if length > MESSAGE_MAX:
            raise ValueError(f"a message of {length} bytes, the limit is {MESSAGE_MAX}")
        end = LENGTH.size + length
        if len(self._data) < end:
            return None
        message = unpack(bytes(self._data[LENGTH.size : end]))
        del self._data[:end]
        self._taken += end
        fds = []
        while self._fds and self._fds[0][0] <= self._taken:
            fds.append(self._fds.popleft()[1])
        return message, fds


def frames(reply: dict[str, Any]) -> Iterator[bytes]:
    """Write a reply as it goes on the wire, in several messages where it is too long for one."""
    data = pack(reply)
    if len(data) <= MESSAGE_MAX:
        yield LENGTH.pack(len(data)) + data
        return
    lists = {key: len(value) for key, value in reply.items() if isinstance(value, list)}
    longest = max(lists, key=lambda key: lists[key], default=None)
    if longest is None or lists[longest] < 2:
        raise ValueError(f"a reply of {len(data)} bytes that cannot be cut")
    half = lists[longest] // 2
    yield from frames({**reply, longest: reply[longest][:half], "more": True})
    yield from frames(
        {**{key: [] if key in lists else value for key, value in reply.items()}, longest: reply[longest][half:]}
    )


def labs() -> list[str]:
    """The names of this user's running labs."""
    return rundir.running()


class Client:
    """A connection to a running lab: a method an operation; Error says why one was refused.

    What is tied to the connection (a plugged port, a capture) lasts until `close`. Not for several threads at once.
    """

    def __init__(self, lab: str | None = None, timeout_s: float | None = 60.0) -> None:
        """Connect to the lab of this name, to $SHARDNET_LAB, or else to the only one that runs."""
        self.lab = lab or os.environ.get("SHARDNET_LAB") or _only()
        try:
            path = rundir.of(self.lab) / "control.sock"
        except rundir.Error as error:
            raise Error(str(error), error.code) from None
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            sock.connect(os.fspath(path))
            sock.settimeout(timeout_s)  # not before: connect would fail at once while the lab has others to accept
        except (FileNotFoundError, ConnectionRefusedError, NotADirectoryError):
            sock.close()
            raise NotRunning(f"lab {self.lab}: not running{_others()}") from None
        except OSError as error:
            sock.close()
            code = 77 if isinstance(error, PermissionError) else 1
            raise Error(f"lab {self.lab}: {path}: {error.strerror}", code) from None
        self._stream = Stream(sock)
        self._inbox: deque[dict[str, Any]] = deque()
        self._events: deque[dict[str, Any]] = deque()
        self._ids = 0

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the connection, and with it what was plugged or captured over it."""
        self._stream.close()

    def fileno(self) -> int:
        """The socket's descriptor, to select on beside others: it ends when the lab does."""
        return self._stream.sock.fileno()

    def call(self, op: str, fds: Sequence[int] = (), **arguments: Any) -> dict[str, Any]:
        """Send a request with these descriptors, wait for its reply; for operations without a method of their own."""
        self._ids += 1
        data = pack({"v": VERSION, "id": self._ids, "op": op, **arguments})
        data = LENGTH.pack(len(data)) + data
        try:
            sent = socket.send_fds(self._stream.sock, [data], list(fds))
            self._stream.sock.sendall(data[sent:])
            return self._reply(self._ids)
        except TimeoutError:
            raise Error(f"lab {self.lab}: no answer to {op} in {self._stream.sock.gettimeout():g} s", 75) from None
        except (EOFError, OSError):
            raise NotRunning(f"lab {self.lab}: it ended before it answered") from None

    def status(self) -> dict[str, Any]:
        """The lab, its workers and its ports."""
        return self.call("status")

    def ports(self, *names: str) -> list[dict[str, Any]]:
        """The ports of these names, all without one: options, state and counters."""
        return self._list("ports", "ports", names=list(names))

    def port_add(self, text: str | None = None, *, netdev: str | None = None) -> list[str]:
        """Add the ports of INI sections, or of one QEMU -netdev string; returns their names when all are open."""
        given = {"text": text} if netdev is None else {"netdev": netdev}
        return self._list("port-add", "ports", **given)

    def port_remove(self, name: str) -> None:
        """Take a port out of the lab."""
        self.call("port-remove", name=name)

    def port_set(self, name: str, **keys: str) -> None:
        """Change keys of a port as if they stood in its section; dots as in `port_set("vm1", **{"addr.path": "a"})`."""
        self.call("port-set", name=name, set=keys)

    def port_up(self, name: str) -> None:
        """Let a port carry frames again."""
        self.call("port-up", name=name)

    def port_down(self, name: str) -> None:
        """Have a port drop what comes, both ways; it stays open."""
        self.call("port-down", name=name)

    def port_reset(self, name: str) -> None:
        """Try a failed port again."""
        self.call("port-reset", name=name)

    def fdb(self, switch: str | None = None) -> list[dict[str, Any]]:
        """The addresses that the switches have learnt."""
        return self._list("fdb", "entries", switch=switch)

    def fdb_flush(self, switch: str | None = None, port: str | None = None) -> int:
        """Forget addresses, of one switch or of one port or all; returns how many."""
        return int(self.call("fdb-flush", switch=switch, port=port)["flushed"])

    def drops(self) -> list[dict[str, Any]]:
        """What was dropped, by port and cause."""
        return self._list("drops", "drops")

    def events(self, since: float | None = None) -> Iterator[dict[str, Any]]:
        """Events as they happen, until the lab ends; with `since`, in seconds since 1970, first the remembered ones."""
        self.call("events", since=since)
        self._stream.sock.settimeout(None)
        return self._follow()

    def capture(self, ports: Sequence[str], fd: int, snaplen: int = 0) -> None:
        """Write what passes these ports to `fd` as pcapng until `capture_end` or `close`; snaplen 0 is whole frames."""
        self.call("capture", [fd], ports=list(ports), snaplen=snaplen)

    def capture_end(self) -> dict[str, Any]:
        """End the captures of this connection and with them the connection; frames written and lost."""
        with contextlib.suppress(OSError):  # the lab is gone, or has ended the capture
            self._stream.sock.shutdown(socket.SHUT_WR)
        while True:
            try:
                event = self._event()
            except (EOFError, OSError):
                raise NotRunning(f"lab {self.lab}: it ended before the capture did") from None
            if event["kind"] == "capture-ended":
                return event

    def plug(self, fds: Sequence[int], kind: str = "stream", name: str | None = None, **options: str) -> str:
        """Make a port of descriptors of our own; it lasts as long as this connection. Returns its name."""
        return str(self.call("plug", fds, kind=kind, name=name, options=options)["port"])

    def ask(self, port: str, what: str, /, fds: Sequence[int] = (), **args: Any) -> dict[str, Any]:
        """Put a question to the worker of a port; what there is to ask, and with which descriptors, its kind says.

        A list has one page, see `rows`.
        """
        data = self.call("ask", fds, port=port, what=what, args=args)["data"]
        try:
            return unpack(data)
        except ValueError as why:
            raise Error(f"{port}: {what}: {why}") from None

    def flows(self, port: str) -> Iterator[dict[str, Any]]:
        """The flows of a user-mode network, or of one of its shards, asked for as they are read."""
        return self.rows(port, "flows")

    def forwards(self, port: str) -> list[dict[str, Any]]:
        """What a user-mode network forwards, with what came by it to any of its shards."""
        shards = [one["name"] for one in self.ports() if one["behind"] == port and one["kind"] == "user"]
        found: dict[str, dict[str, Any]] = {}
        for row in (row for name in (port, *shards) for row in self.rows(name, "forwards")):
            there = found.setdefault(row["rule"], row)
            if there is not row:
                sums = {key: there[key] + row[key] for key in ("taken", "refused", "open")}
                found[row["rule"]] = {**there, **sums, "listens": there["listens"] or row["listens"]}
        return list(found.values())

    def forward_add(self, *rules: str, port: str | None = None) -> dict[str, Any]:
        """Forward as these rules say, all or none: QEMU's hostfwd, or guestfwd with `guestfwd=` in front.

        `port` is the user-mode network where there are several. Returns its name as `port`, the rules `added`, those there
        were already as `present`.
        """
        return self.call("forward-add", rules=list(rules), port=port)

    def forward_remove(self, *rules: str, port: str | None = None) -> dict[str, Any]:
        """Forward these no more; the host's side is enough. Connections that there are go on."""
        return self.call("forward-remove", rules=list(rules), port=port)

    def rows(self, port: str, what: str, **args: Any) -> Iterator[dict[str, Any]]:
        """A list that the worker of a port tells, row by row; a page is asked for when the one before it is read."""
        cursor = None
        while True:
            page = self.ask(port, what, **args, **({} if cursor is None else {"cursor": cursor}))
            yield from page.get("rows", [])
            cursor = page.get("cursor")
            if cursor is None:
                return

    def reload(self, dry_run: bool = False) -> dict[str, Any]:
        """Apply the lab file as it is now; or only say what would be done."""
        return self.call("reload", dry_run=dry_run)

    def stop(self) -> None:
        """End the lab; returns when its supervisor has gone."""
        self.call("stop")
        self.wait_closed()

    def restart(self) -> None:
        """End the lab and have its supervisor start itself anew; returns when the old one has gone."""
        self.call("restart")
        self.wait_closed()

    def wait_closed(self) -> None:
        """Wait until the lab closes the connection, as it does when it ends."""
        with contextlib.suppress(EOFError, OSError):
            while True:
                self._message()
                self._inbox.clear()

    def _list(self, op: str, key: str, **arguments: Any) -> list[Any]:
        found: list[Any] = self.call(op, **arguments)[key]
        return found

    def _reply(self, wanted: int) -> dict[str, Any]:
        whole: dict[str, Any] = {}
        while True:
            message = self._message()
            if "event" in message:
                self._events.append(message["event"])
            elif not message.get("ok"):
                raise Error(str(message.get("error")), int(message.get("code", 1)))
            elif message.get("id") == wanted:
                more = message.pop("more", False)
                del message["id"], message["ok"]
                for key, value in message.items():
                    whole[key] = whole.get(key, []) + value if isinstance(value, list) else value
                if not more:
                    return whole

    def _follow(self) -> Iterator[dict[str, Any]]:
        with contextlib.suppress(EOFError, OSError):
            while True:
                yield self._event()

    def _event(self) -> dict[str, Any]:
        while not self._events:
            message = self._message()
            if "event" in message:
                self._events.append(message["event"])
        return self._events.popleft()

    def _message(self) -> dict[str, Any]:
        while not self._inbox:
            for message, fds in self._stream.receive():
                self._inbox.append(message)
                for fd in fds:  # no operation returns any
                    os.close(fd)
        return self._inbox.popleft()


def _plain(value: Any, levels: int) -> None:
    """Refuse what is nested too deep, types of msgpack's own, and keys that are no text."""
    if isinstance(value, dict):
        if levels == 0 or not all(isinstance(key, str) for key in value):
            raise ValueError(
                f"not a message: deeper than {LEVELS_MAX} levels" if levels == 0 else "not a message: a key is no text"
            )
        for inner in value.values():
            _plain(inner, levels - 1)
    elif isinstance(value, list):
        if levels == 0:
            raise ValueError(f"not a message: deeper than {LEVELS_MAX} levels")
        for inner in value:
            _plain(inner, levels - 1)
    elif not isinstance(value, str | bytes | int | float | None):
        raise ValueError(f"not a message: a {type(value).__name__}")


def _only() -> str:
    found = labs()
    if not found:
        raise NotRunning("no lab is running")
    if len(found) > 1:
        raise Error(f"several labs are running: {', '.join(found)} (choose one with -l NAME)", 2)
    return found[0]


def _others() -> str:
    found = labs()
    return f" (running: {', '.join(found)})" if found else ""
