"""Questions to the workers of a lab: who waits for which answer.

A question goes to the worker that carries a port, and its answer, which is bytes that only the client unpacks, back to who
asked. Nobody waits for it: a worker that has died meanwhile, or says nothing for ANSWER_S, is an answer too. A long
answer comes in pages, each a question of its own with the cursor that the page before it named (see answers.py).
"""

import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from shardnet import options, ports, timers

ANSWER_S = 10.0
WAITING_MAX = 64  # questions to one worker
TRY_AGAIN = 75

Answered = Callable[[bytes], None]
Refused = Callable[[str, int], None]


class Questions:
    """Who waits for which answer."""

    def __init__(self, turns: timers.Timers) -> None:
        self.loop = turns
        self._numbers = itertools.count(1)
        self._waiting: dict[int, tuple[ports.Port, Any, int, Answered, Refused]] = {}

    def ask(
        self,
        port: ports.Port,
        worker: Any,
        what: str,
        args: Mapping[str, Any],
        answered: Answered,
        refused: Refused,
        fds: Sequence[int] = (),
    ) -> None:
        """Ask the worker that carries `port`; exactly one of `answered` and `refused` is called, now or later."""
        if worker is None or port.state in ("failed", "removing", "restarting", "starting"):
            refused(f"{port.title}: {port.state}, nobody there can answer", TRY_AGAIN)
            return
        if sum(other is worker for _, other, *_ in self._waiting.values()) >= WAITING_MAX:
            refused(f"{port.title}: {WAITING_MAX} questions wait for an answer already", TRY_AGAIN)
            return
        number = next(self._numbers)
        limit = self.loop.later(ANSWER_S, functools.partial(self._refuse, number, f"no answer in {ANSWER_S:g} s"))
        self._waiting[number] = (port, worker, limit, answered, refused)
        worker.send({"op": "ask", "port": port.id, "number": number, "what": what, "args": dict(args)}, fds)

    def heard(self, worker: Any, message: Mapping[str, Any]) -> None:
        """Take a worker's answer; one that nobody waits for any more, or that is none, says nothing."""
        number, data = message.get("number"), message.get("data")
        if not isinstance(number, int) or number not in self._waiting or self._waiting[number][1] is not worker:
            return
        if not isinstance(data, bytes):
            code = message.get("code")
            self._refuse(number, options.shown(str(message.get("error"))), code if isinstance(code, int) else 1)
            return
        _, _, limit, answered, _ = self._waiting.pop(number)
        self.loop.cancel(limit)
        answered(data)

    def gone(self, worker: Any) -> None:
        """Refuse what a worker that has died was asked."""
        for number in [number for number, (_, other, *_) in self._waiting.items() if other is worker]:
            self._refuse(number, "its worker died before it answered")

    def _refuse(self, number: int, why: str, code: int = TRY_AGAIN) -> None:
        port, _, limit, _, refused = self._waiting.pop(number)
        self.loop.cancel(limit)
        refused(f"{port.title}: {why}", code)
