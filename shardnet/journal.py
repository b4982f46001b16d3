"""What happened in a lab: remembered for `shardnet events`, written to the log.

The log is a line an event, on standard error. Under the systemd journal a line begins with its priority (sd-daemon(3)).
"""

import collections
import os
import time
from collections.abc import Callable
from typing import Any, TextIO

REMEMBERED = 1000
ERROR, WARNING, NOTICE = 3, 4, 5  # syslog(3)


class Journal:
    """The last events of a lab, and who follows them."""

    def __init__(self, out: TextIO, clock: Callable[[], float] = time.time) -> None:
        self.out, self.clock = out, clock
        self.events: collections.deque[dict[str, Any]] = collections.deque(maxlen=REMEMBERED)
        self.followers: list[Callable[[dict[str, Any]], None]] = []
        self._prefixed = _is_journal(out)

    def note(
        self,
        kind: str,
        text: str,
        *,
        port: str | None = None,
        section: str | None = None,
        worker: str | None = None,
        level: int = NOTICE,
    ) -> None:
        """Record an event of a port (`section` is its `KIND NAME`), of a worker, or of the lab."""
        event: dict[str, Any] = {"time": self.clock(), "kind": kind, "text": text}
        if port is not None:
            event["port"] = port
        if worker is not None:
            event["worker"] = worker
        self.events.append(event)
        for follow in list(self.followers):
            follow(event)
        self.write(text, section or worker or "", level)

    def write(self, text: str, where: str = "", level: int = NOTICE) -> None:
        """Write to the log alone; control characters in it are written as escapes."""
        for line in text.splitlines():
            clean = "".join(c if c.isprintable() else c.encode("unicode_escape", "replace").decode() for c in line)
            prefix = f"<{level}>" if self._prefixed else ""
            try:
                self.out.write(f"{prefix}{where}{': ' if where else ''}{clean}\n")
                self.out.flush()
            except OSError:
                pass  # a full disk or a closed pipe is no reason to end a lab


def _is_journal(out: TextIO) -> bool:
    """True where this is what systemd connected to its journal."""
    device, _, inode = os.environ.get("JOURNAL_STREAM", "").partition(":")
    try:
        found = os.fstat(out.fileno())
    except OSError:
        return False
    return (device, inode) == (str(found.st_dev), str(found.st_ino))
