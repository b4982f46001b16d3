"""Rows of text in aligned columns, or the same things as JSON.

Plain on purpose: a heading, a row a line, two spaces between columns, numbers to the right, nothing around them, so
that awk reads it. Colour only on a terminal that wants it (NO_COLOR and TERM=dumb do not).
"""

import os
import sys
from collections.abc import Sequence
from typing import Any, TextIO

_COLOURS = {
    "up": "32",
    "running": "32",
    "waiting": "33",
    "starting": "33",
    "down": "31",
    "failed": "1;31",
    "ok": "32",
    "poor": "33",
    "missing": "31",
}


def show(
    headings: Sequence[str], rows: Sequence[Sequence[object]], *, headers: bool = True, out: TextIO | None = None
) -> None:
    """Print `rows` under `headings`; a column of nothing but numbers is set to the right. `headers` off: the rows alone."""
    out = out or sys.stdout
    texts = [[_text(value) for value in row] for row in rows]
    shown = [list(headings), *texts] if headers else texts
    widths = [max((len(row[column]) for row in shown), default=0) for column in range(len(headings))]
    numeric = [
        bool(rows) and all(isinstance(row[column], int | float) for row in rows) for column in range(len(headings))
    ]
    colours = coloured(out)
    for row in shown:
        cells = [
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(row, widths, numeric, strict=True)
        ]
        line = "  ".join(_paint(cell) if colours else cell for cell in cells)
        print(line.rstrip(), file=out)


def json(value: Any, out: TextIO | None = None) -> None:
    """Print `value` as JSON for programs: one document, its keys as the lab gave them."""
    import json as encoder  # 8 ms, and most calls print a table

    print(encoder.dumps(value, indent=2, default=str), file=out or sys.stdout)


def coloured(out: TextIO) -> bool:
    """Whether `out` is a terminal whose user has not refused colours."""
    return out.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def duration(seconds: float) -> str:
    """Seconds as a person says them, in the two largest units: 3d 4h, 2m 5s, 12s."""
    parts: list[str] = []
    rest = int(seconds)
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60), ("s", 1)):
        count, rest = divmod(rest, size)
        if count or (unit == "s" and not parts):
            parts.append(f"{count}{unit}")
    return " ".join(parts[:2])


def size(count: int) -> str:
    """Bytes as a person says them: 512 B, 18.4 MiB."""
    if count < 1024:
        return f"{count} B"
    scaled = float(count)
    for unit in ("KiB", "MiB", "GiB", "TiB"):
        scaled /= 1024
        if scaled < 1024 or unit == "TiB":
            break
    return f"{scaled:.1f} {unit}"


def _text(value: object) -> str:
    if value is None or value == "":
        return "-"
    # A port's detail may quote what a peer sent: a control character must not reach the terminal.
    return "".join(letter if letter.isprintable() else "?" for letter in str(value))


def _paint(cell: str) -> str:
    colour = _COLOURS.get(cell.strip())
    return f"\x1b[{colour}m{cell}\x1b[0m" if colour else cell
