"""Watch the ports of a lab: frames, bits and drops a second, again and again.

Usage:
  shardnet top [options] [PORT...]

Options:
  -l LAB, --lab LAB           the lab, where more than one is running
  -n COUNT, --count COUNT     end after so many looks
  -d SECONDS, --delay SECONDS  from one look to the next [default: 1]
  -o FORMAT, --output FORMAT  table or json [default: table]
  -h, --help                  print this

IN is what came from the port's guest, OUT what went to it. On a terminal each
table is written over the one before; otherwise they follow each other, a blank
line between. With json, one object a look and line. Ctrl-C ends it.
"""

import json
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

from shardnet import control
from shardnet.cli import table, usage

HEADINGS = ("PORT", "STATE", "IN/S", "IN BIT/S", "OUT/S", "OUT BIT/S", "DROPS/S")
COUNTED = {
    "in_frames": ("rx_frames",),
    "in_bits": ("rx_bytes",),
    "out_frames": ("tx_frames",),
    "out_bits": ("tx_bytes",),
    "drops": ("rx_drops", "tx_drops"),
}
CLEAR = "\x1b[H\x1b[2J"

Look = dict[str, dict[str, Any]]


def run(argv: Sequence[str]) -> int:
    """Look, wait, look again, print what differs a second."""
    arguments = usage.parse(__doc__, "top", argv)
    looks = usage.number(arguments, "--count", 1, 1 << 31)
    delay = _seconds(arguments["--delay"])
    as_json = arguments["--output"] == "json"
    over = not as_json and table.coloured(sys.stdout)
    with control.Client(arguments["--lab"]) as lab:
        names = arguments["PORT"]
        before: Look = {}
        then = 0.0
        for number in range((looks or 1 << 62) + 1):
            if number:
                time.sleep(max(0.0, then + delay - time.monotonic()))
            now = time.monotonic()
            found = {one["name"]: one for one in lab.ports(*names)}
            if number:
                rates = [{"port": name, **_rates(one, before.get(name), now - then)} for name, one in found.items()]
                _print(rates, as_json, over, first=number == 1)
            before, then = found, now
    return 0


def _rates(now: Mapping[str, Any], before: Mapping[str, Any] | None, seconds: float) -> dict[str, Any]:
    """What happened a second at a port; one that was not there before, or was made anew, has begun at nothing."""
    is_same = before is not None and before["id"] == now["id"]
    told: dict[str, Any] = {"state": now["state"] if now["up"] else "off"}
    for key, counters in COUNTED.items():
        grown = sum(now["counters"][one] - (before["counters"][one] if before and is_same else 0) for one in counters)
        told[f"{key}_per_s"] = max(0, round(grown * (8 if key.endswith("bits") else 1) / seconds))
    return told


def _print(rates: Sequence[Mapping[str, Any]], as_json: bool, over: bool, first: bool) -> None:
    if as_json:
        print(json.dumps({"time": time.time(), "ports": rates}), flush=True)
        return
    if over:
        print(CLEAR, end="")
    elif not first:
        print()
    table.show(HEADINGS, [(one["port"], one["state"], *(one[f"{key}_per_s"] for key in COUNTED)) for one in rates])
    sys.stdout.flush()


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0.05 <= seconds <= 86400:
        raise SystemExit(f"shardnet top: --delay {text}: seconds from 0.05 to 86400 are meant")
    return seconds
