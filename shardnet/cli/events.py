"""Print what happens in a lab, a line each, until it ends.

Usage:
  shardnet events [options]

Options:
  -l LAB, --lab LAB           the lab, where more than one is running
  --since SECONDS             first what happened in the last SECONDS
  -o FORMAT, --output FORMAT  table or json [default: table]
  -h, --help                  print this

With json, one object a line.
"""

import json
import time
from collections.abc import Mapping, Sequence
from typing import Any

from shardnet import control
from shardnet.cli import usage


def run(argv: Sequence[str]) -> int:
    """Follow the events; returns when the lab has ended."""
    arguments = usage.parse(__doc__, "events", argv)
    seconds = usage.number(arguments, "--since", 0, 1 << 31)
    with control.Client(arguments["--lab"]) as lab:
        for event in lab.events(None if seconds is None else time.time() - seconds):
            print(json.dumps(event) if arguments["--output"] == "json" else line(event), flush=True)
    return 0


def line(event: Mapping[str, Any]) -> str:
    """An event as a person reads it: the time of day, whom it concerns, what happened."""
    clock = time.strftime("%H:%M:%S", time.localtime(event["time"])) + f".{int(event['time'] * 1000) % 1000:03}"
    whom = event.get("port") or event.get("worker") or "lab"
    text = "".join(letter if letter.isprintable() else "?" for letter in event["text"])
    return f"{clock}  {whom}  {text}"
