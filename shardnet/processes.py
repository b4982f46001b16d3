"""The processes of a lab: how a worker is told its ports, and helpers that do what takes privileges.

A worker drops its privileges when it first opens a port. A helper is a process of the same forkserver that never does:
it prepares ports for such a worker, or undoes what ports did to the host, and goes. What it makes is left in the store.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from shardnet import child, journal, kinds, loop, ports, store

WITHDRAW_S = 5.0
About = Callable[[ports.Port, dict[str, Any], list[int]], None]


class Processes:
    """Starts workers and helpers; `fork` is `child.Forkserver.child`, or what a test has in its place."""

    def __init__(
        self,
        turns: loop.Loop,
        fork: Callable[[loop.Loop, child.Heard, child.Ended], Any],
        kept: store.Store,
        notes: journal.Journal,
        setup: Mapping[str, str],
        fds: Sequence[int],
    ) -> None:
        """`setup` is what every process is told of the lab; `fds` are the arena and the doorbells, for workers."""
        self.loop, self.fork, self.store, self.journal = turns, fork, kept, notes
        self.setup, self.fds = setup, fds
        self._helpers: set[Any] = set()

    def start(self, heard: child.Heard, ended: child.Ended, slot: int = -1) -> Any:
        """Start a process for a slot of the arena, or a helper, which has none."""
        made = self.fork(self.loop, heard, ended)
        made.send({"op": "setup", "worker": slot, **self.setup}, self.fds if slot >= 0 else ())
        return made

    def hand(self, to: Any, port: ports.Port, prepare: bool) -> None:
        """Give a process a port with what was deposited for it."""
        self.keep(to, port)
        given = {"kind": port.section.kind, "name": port.name, "given": dict(port.section.given)}
        owner = port.behind or port
        around = {
            "behind": port.behind.name if port.behind else "",
            "owner": owner.id,
            "share": port.section.share,
            "companions": {suffix: one.id for suffix, one in owner.companions.items()},
        }
        to.send({"op": "add", "port": port.id, "prepare": prepare, "plugged": port.plugged, **around, **given})

    def keep(self, to: Any, port: ports.Port) -> None:
        """Give a process what was deposited for a port."""
        for key, fd in self.store.of(port.id):
            to.send({"op": "keep", "port": port.id, "key": key}, [fd])

    def prepare(
        self, wanted: Sequence[ports.Port], about: About, then: Callable[[ports.Port, str | None], None]
    ) -> None:
        """Have one helper prepare ports; when it has gone, call `then` for each, with what went wrong.

        `about` gets what it says beside that: what it deposits, what is to be logged.
        """
        results: dict[int, str | None] = {}

        def said(port: ports.Port, message: dict[str, Any], fds: list[int]) -> None:
            if message.get("op") in ("prepared", "failed"):
                results[port.id] = str(message["error"]) if "error" in message else None
                if len(results) == len(wanted):
                    helper.send({"op": "stop"})
            else:
                about(port, message, fds)

        def ended(how: str) -> None:
            for port in wanted:
                then(port, results.get(port.id, how))

        if not wanted:
            return
        try:
            helper = self._helper(wanted, said, ended)
        except OSError as error:
            ended(error.strerror or str(error))
            return
        for port in wanted:
            self.hand(helper, port, prepare=True)

    def withdraw(self, gone: Sequence[ports.Port], then: Callable[[], None]) -> None:
        """Have a helper undo what ports did to the host, as far as their kinds know how; then call `then`."""
        affected = [port for port in gone if _withdraws(port)]
        left = {port.id for port in affected}

        def said(port: ports.Port, message: dict[str, Any], fds: list[int]) -> None:
            for fd in fds:
                os.close(fd)
            if message.get("op") == "failed":
                text = str(message.get("error"))
                self.journal.note("log", text, port=port.name, section=port.title, level=journal.WARNING)
            if message.get("op") in ("failed", "withdrawn"):
                left.discard(port.id)
            if not left:
                helper.send({"op": "stop"})

        def ended(_how: str) -> None:
            self.loop.cancel(limit)
            then()

        if not affected:
            then()
            return
        try:
            helper = self._helper(affected, said, ended)
        except OSError as error:
            self.journal.write(f"nothing was withdrawn: {error.strerror}", level=journal.WARNING)
            then()
            return
        limit = self.loop.later(WITHDRAW_S, helper.kill)
        for port in affected:
            self.hand(helper, port, prepare=False)
            helper.send({"op": "withdraw", "port": port.id})

    def kill_helpers(self) -> None:
        """End what still prepares ports: the lab ends."""
        for helper in list(self._helpers):
            helper.kill()

    def _helper(self, concerned: Sequence[ports.Port], said: About, ended: child.Ended) -> Any:
        """Start a helper that may speak of these ports only."""
        ids = {port.id: port for port in concerned}

        def heard(message: dict[str, Any], fds: list[int]) -> None:
            port = ids.get(message.get("port", 0))
            if port is not None:
                said(port, message, fds)
                return
            for fd in fds:
                os.close(fd)

        def gone(how: str) -> None:
            self._helpers.discard(helper)
            ended(how)

        helper = self.start(heard, gone)
        self._helpers.add(helper)
        return helper


def _withdraws(port: ports.Port) -> bool:
    """Has the port done something to the host that is to be undone?"""
    module = kinds.module(port.section.kind)
    return not port.plugged and hasattr(module, "withdraw") and module.withdraws(port.section.options)
