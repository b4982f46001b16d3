"""A user-mode network's flows move to another network, or come from one: what its worker does when `shardnet migrate` asks.

    freeze    [state, helper]    hear and say nothing, write the state of the flows
    cut                          reset what cannot go
    release                      let go of the flows; the network stays frozen
    wait                         freeze a network that is to have flows of another
    restore   [state, helper]    check a state, build its connections anew
    thaw      [helper]           go on: with what was restored, or with what was not released
    forget                       have nothing of what was restored, and be as before

The brackets have the descriptors that come with the question. With `hand` in the place of the helper's comes a channel, by which the
sockets themselves are given to a network of the same namespace, and with them those of `hostfwd`; `handed` says how many of them each
section has, `hostfwd` the deposits that the last ones are. The far end has nothing in them until it goes on. Repair mode is switched by the helper (bin/shardnet-repair), whose
connection comes with the question too, and is kept until the network goes on. Without one, connections are reset.

A network that nobody says the next word to goes on by itself after `hold_s`, and logs it: who froze it may have died. What was released
does not, for the flows are elsewhere.
"""

import array
import contextlib
import os
import socket
import struct
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from shardnet import _core, hands, migration

if TYPE_CHECKING:
    from shardnet import worker

HANDED = (
    "hostfwd tcp:",
    "hostfwd udp:",
)  # deposits of shardnet/workers/user.py; the file of a unix socket is its lab's
SIZES = struct.Struct(">II")
ANSWER_S = 2.0
HOLD_S = 60.0
PIECE = 1 << 20


class Moving:
    """What a network's worker knows of a move; `told` says again how the port is."""

    def __init__(self, place: "worker.Place", told: Callable[[], None]) -> None:
        self.place, self.told = place, told
        self.state = ""  # frozen, cut, released, waiting, restored
        self.helper: socket.socket | None = None
        self.timer: int | None = None
        self.given: list[str] = []  # deposits of forwards that are to be ours
        self.awaits = False  # it was frozen for flows to come, and stays so while they do not

    def asked(self, what: str, args: Mapping[str, Any], fds: Sequence[int]) -> dict[str, Any]:
        """Do one step; ValueError where it is none, or not the next. The descriptors stay the caller's."""
        step = STEPS[what]
        if self.state not in step.after:
            known = {"": "is not frozen", "released": "has let its flows go", "restored": "has flows of another"}
            raise ValueError(known.get(self.state, "is frozen already"))
        hold_s = args.get("hold_s", HOLD_S)
        if not isinstance(hold_s, int | float) or not 0 < hold_s <= 86_400:
            raise ValueError("hold_s: seconds up to a day are meant")
        files, helper = fds[: step.files], fds[step.files : step.files + 1]
        if len(files) < step.files:
            raise ValueError("a descriptor for the state is needed")
        if args.get("hand"):
            if not step.files or not helper:
                raise ValueError("hand: this step passes no sockets on, or a channel for them is needed")
            with socket.socket(fileno=os.dup(helper[0])) as channel:
                channel.settimeout(ANSWER_S)
                found = step.do(self, *files, channel, args)
            self._watch(float(hold_s))
            return found
        if helper:
            self._let_go_of_helper()
            self.helper = socket.socket(fileno=os.dup(helper[0]))
            self.helper.settimeout(ANSWER_S)
        found = step.do(self, *files)
        self._watch(float(hold_s))
        return found

    def close(self) -> None:
        """The network is closed: so is what it was to have."""
        self.state = ""
        self._watch(0)
        self._let_go_of_helper()

    @property
    def shard(self) -> _core.Shard:
        return self.place.shard

    def _freeze(
        self, state: int, channel: socket.socket | None = None, args: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        began, port = time.monotonic(), self.place.port
        self.shard.freeze(port)
        why = "" if channel else self._lock()
        section, counts, fds = self.shard.export(port, channel is not None)
        hostfwd = {key: fd for key, fd in self.place.kept.items() if key.startswith(HANDED)} if channel else {}
        try:
            _write(state, section)
            if channel is not None:
                hands.give(channel, [*fds, *hostfwd.values()])
        except OSError as error:
            self._thaw()
            raise ValueError(f"the state cannot be written: {error.strerror}") from None
        self._be("frozen", "its flows are to move, it is frozen")
        told = {"handed": len(fds), "hostfwd": list(hostfwd)}
        return {**counts, **told, "bytes": len(section), "ms": _ms(began), "why": why}

    def _lock(self) -> str:
        """Lock the connections that can go and have them in repair mode; why that cannot be, or nothing."""
        port = self.place.port
        if self.helper is None:
            return "no helper for TCP_REPAIR"
        fds = self.shard.lock(port)
        try:
            self._switch("+", [(fd, 0, 0) for fd in fds])
        except OSError as error:
            with contextlib.suppress(OSError):
                self._switch("-", [(fd, 0, 0) for fd in self.shard.locked(port)])
            self.shard.thaw(port, True)
            self.shard.freeze(port)
            return f"the helper for TCP_REPAIR: {error.strerror or error}"
        return ""

    def _cut(self) -> dict[str, Any]:
        self.shard.cut(self.place.port)
        self.state = "cut"
        return {}

    def _release(self) -> dict[str, Any]:
        self.shard.release(self.place.port)
        self._let_go_of_helper()
        self._be("released", "its flows have moved away, it is frozen (shardnet migrate thaw has it go on without)")
        return {}

    def _wait(self) -> dict[str, Any]:
        self.shard.freeze(self.place.port)
        return self._wait_on()

    def _wait_on(self) -> dict[str, Any]:
        self.awaits = True
        self._be("waiting", "flows of another network are to come, it is frozen")
        return {}

    def _restore(
        self, state: int, channel: socket.socket | None = None, args: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        began, port = time.monotonic(), self.place.port
        _, sections = migration.unpack(_read(state))
        handed = [] if channel is None or args is None else self._taken(channel, args)
        self.shard.freeze(port)
        try:
            wanted = self.shard.stage(port, sections, handed)
            if wanted and self.helper is None:
                raise ValueError("no helper for TCP_REPAIR")
            self._switch("+", wanted)
            counts = self.shard.adopt(port)
        except (ValueError, OSError) as error:
            self._forget()
            if isinstance(error, OSError):
                raise ValueError(f"the helper for TCP_REPAIR: {error.strerror or error}") from None
            raise
        self._be("restored", "flows of another network are here, it is frozen")
        return {**counts, "ms": _ms(began)}

    def _taken(self, channel: socket.socket, args: Mapping[str, Any]) -> list[list[int]]:
        """Take the sockets that come: those of flows for each section; those of forwards are kept for when the forwards come."""
        counts: Any = args.get("handed")
        keys: Any = args.get("hostfwd")
        if (
            not _are(counts, int)
            or not _are(keys, str)
            or not all(0 <= count <= migration.HANDED_MAX for count in counts)
        ):
            raise ValueError("handed, hostfwd: how many sockets each section has, and the forwards' deposits are meant")
        try:
            fds = hands.take(channel, sum(counts) + len(keys))
        except OSError as error:
            raise ValueError(f"the sockets did not come: {error.strerror or error}") from None
        handed = []
        for count in counts:
            handed.append(fds[:count])
            del fds[:count]
        for key, fd in zip(keys, fds, strict=True):
            if key.startswith(HANDED) and key not in self.place.kept:
                self.place.deposit(key, fd)
                self.given.append(key)
            os.close(fd)
        return handed

    def _thaw(self) -> dict[str, Any]:
        began, port = time.monotonic(), self.place.port
        fds, repaired = self.shard.locked(port), True
        try:
            self._switch("-", [(fd, 0, 0) for fd in fds])
        except OSError as error:
            repaired = False
            self.place.log(f"{len(fds)} connections are reset: the helper for TCP_REPAIR: {error.strerror or error}")
        self.shard.thaw(port, repaired)
        self._let_go_of_helper()
        self.state, self.awaits, self.given = "", False, []
        self.told()
        return {"ms": _ms(began)}

    def _forget(self) -> dict[str, Any]:
        self.shard.forget(self.place.port)
        for key in self.given:
            self.place.forget(key)
        self.given = []
        return self._wait_on() if self.awaits else self._thaw()

    def _be(self, state: str, detail: str) -> None:
        self.state = state
        self.place.state("waiting", detail)

    def _watch(self, hold_s: float) -> None:
        if self.timer is not None:
            self.place.cancel(self.timer)
            self.timer = None
        if self.state not in ("", "released"):
            self.timer = self.place.later(hold_s, lambda: self._late(hold_s))

    def _late(self, hold_s: float) -> None:
        self.timer = None
        self.place.log(f"nobody has said how the migration goes on for {hold_s:g} s: it is given up here")
        self.awaits = False
        self._forget()

    def _switch(self, way: str, wanted: Sequence[tuple[int, int, int]]) -> None:
        """Have the helper switch sockets, given with the room that their buffers need; OSError where it does not."""
        for first in range(0, len(wanted), hands.FDS_MAX):
            some = wanted[first : first + hands.FDS_MAX]
            if self.helper is None:
                raise OSError(0, "there is none")
            data = way.encode() + b"".join(SIZES.pack(send, receive) for _, send, receive in some)
            rights = array.array("i", [fd for fd, _, _ in some])
            self.helper.sendmsg([data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
            answer = self.helper.recv(1)
            if answer != b"\0":
                raise OSError(answer[0], os.strerror(answer[0])) if answer else OSError(0, "it has gone")

    def _let_go_of_helper(self) -> None:
        if self.helper is not None:
            self.helper.close()
            self.helper = None


class Step:
    """What is done, in which states, and how many descriptors beside the helper's it takes."""

    def __init__(self, do: Callable[..., dict[str, Any]], *after: str, files: int = 0) -> None:
        self.do, self.after, self.files = do, after, files


STEPS = {
    "freeze": Step(Moving._freeze, "", files=1),
    "cut": Step(Moving._cut, "frozen"),
    "release": Step(Moving._release, "frozen", "cut"),
    "wait": Step(Moving._wait, ""),
    "restore": Step(Moving._restore, "", "waiting", files=1),
    "thaw": Step(Moving._thaw, "frozen", "cut", "released", "waiting", "restored"),
    "forget": Step(Moving._forget, "waiting", "restored"),
}


def _are(value: Any, kind: type) -> bool:
    return isinstance(value, list) and all(type(one) is kind for one in value)


def _ms(began: float) -> float:
    return round(1000 * (time.monotonic() - began), 3)


def _write(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def _read(fd: int) -> bytes:
    """All of a file, from its beginning; copied once, since it may be changed under our hands."""
    found = bytearray()
    while piece := os.pread(fd, PIECE, len(found)):
        found += piece
        if len(found) > migration.STATE_MAX:
            raise ValueError(f"a state of more than {migration.STATE_MAX} bytes")
    return bytes(found)
