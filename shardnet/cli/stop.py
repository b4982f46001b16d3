"""End a running lab, in order: every port closed, nothing left behind.

Usage:
  shardnet stop [options]

Options:
  -l LAB, --lab LAB           the lab, where more than one is running
  -o FORMAT, --output FORMAT  table or json [default: table]
  -q, --quiet                 print nothing
  -h, --help                  print this
"""

from collections.abc import Sequence

from shardnet import control
from shardnet.cli import table, usage


def run(argv: Sequence[str]) -> int:
    """Ask the lab to stop and wait until it has."""
    arguments = usage.parse(__doc__, "stop", argv)
    with control.Client(arguments["--lab"]) as lab:
        lab.stop()
    if arguments["--output"] == "json":
        table.json({"lab": lab.lab, "stopped": True})
    elif not arguments["--quiet"]:
        print(f"{lab.lab}: stopped")
    return 0
