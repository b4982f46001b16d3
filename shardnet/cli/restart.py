"""End a running lab and start it anew from its file, in the same process.

Usage:
  shardnet restart [options]

Options:
  -l LAB, --lab LAB           the lab, where more than one is running
  -o FORMAT, --output FORMAT  table or json [default: table]
  -q, --quiet                 print nothing
  -h, --help                  print this
"""

import time
from collections.abc import Sequence

from shardnet import control
from shardnet.cli import TRY_AGAIN, Failure, table, usage

WAIT_S = 30.0


def run(argv: Sequence[str]) -> int:
    """Ask for the restart and wait until the new lab answers."""
    arguments = usage.parse(__doc__, "restart", argv)
    with control.Client(arguments["--lab"]) as lab:
        lab.restart()
    wait(lab.lab, WAIT_S)
    if arguments["--output"] == "json":
        table.json({"lab": lab.lab, "restarted": True})
    elif not arguments["--quiet"]:
        print(f"{lab.lab}: restarted")
    return 0


def wait(lab: str, seconds: float) -> None:
    """Return when the lab answers; a lab that starts has no socket to wait on, so ask every 20 ms."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            with control.Client(lab) as client:
                client.status()
                return
        except control.NotRunning:
            if time.monotonic() > deadline:
                raise Failure(f"lab {lab}: not back after {seconds:g} s (its log says why)", TRY_AGAIN) from None
        time.sleep(0.02)
