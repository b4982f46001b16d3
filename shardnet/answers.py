"""What a port's worker says when it is asked: the answer packed, a long list in pages.

A carrier that can be asked has a method

    asked(what: str, args: dict) -> dict | list
    handed(what: str, args: dict, fds: list) -> dict

the second for a question that comes with descriptors, which stay the caller's. It answers at once from what it knows, without a system call that could wait. ValueError says that the question is a bad
one, LookupError that what it names is not there. A list is cut into pages here, of rows that `asked` builds anew for each
page. Where that would cost too much (flows), it cuts by itself: it answers `page(rows, cursor)`, and gets that cursor back
as args["cursor"] in the next question.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from shardnet import control

ANSWER_MAX = 160 << 10  # fits a record of the line with room (line.RECORD_MAX)
ROWS_MAX = 1024  # of a page
CURSOR = "cursor"


def page(rows: Sequence[Any], cursor: int | None) -> dict[str, Any]:
    """One page of a list, and where the next one begins; None: this is the last."""
    return {"rows": list(rows), CURSOR: cursor}


def answer(carrier: Any, what: str, args: Mapping[str, Any], fds: Sequence[int] = ()) -> dict[str, Any]:
    """Put a question to a carrier; the fields of the message that answers it. Whatever a carrier raises becomes an answer,
    but for what is no mistake of the question: that the caller has to log."""
    if not hasattr(carrier, "asked"):
        return {"error": "a port of this kind answers no questions", "code": 2}
    if fds and not hasattr(carrier, "handed"):
        return {"error": "a port of this kind takes no descriptors", "code": 2}
    try:
        found = carrier.handed(what, args, fds) if fds else carrier.asked(what, args)
        return {"data": _packed(found, args)}
    except ValueError as why:
        return {"error": f"{what}: {why}", "code": 2}
    except LookupError as why:
        return {"error": f"{what}: {why.args[0] if why.args else 'not found'}", "code": 3}


def _packed(found: Any, args: Mapping[str, Any]) -> bytes:
    if isinstance(found, dict):
        return _bounded(control.pack(found))
    first = args.get(CURSOR) or 0
    if not isinstance(first, int) or first < 0:
        raise ValueError("no cursor of an answer")
    count = ROWS_MAX
    while True:
        rows = found[first : first + count]
        after = first + len(rows)
        data = control.pack(page(rows, after if after < len(found) else None))
        if len(data) <= ANSWER_MAX or len(rows) <= 1:
            return _bounded(data)
        count = len(rows) // 2


def _bounded(data: bytes) -> bytes:
    if len(data) > ANSWER_MAX:
        raise ValueError(f"the answer has {len(data)} bytes, the limit is {ANSWER_MAX}")
    return data
