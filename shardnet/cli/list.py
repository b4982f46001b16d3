"""List the labs that are running.

Usage:
  shardnet list [options]

Options:
  -o FORMAT, --output FORMAT  table or json [default: table]
  --no-headers                rows only
  -h, --help                  print this
"""

import contextlib
from collections.abc import Sequence

from shardnet import control, rundir
from shardnet.cli import table, usage


def run(argv: Sequence[str]) -> int:
    """Ask each lab of this user what it is."""
    arguments = usage.parse(__doc__, "list", argv)
    found = []
    for name in rundir.running():
        # One that ends just now, or is only starting, is not listed.
        with contextlib.suppress(control.Error), control.Client(name) as lab:
            found.append(lab.status())
    if arguments["--output"] == "json":
        table.json(
            [
                {key: one[key] for key in ("lab", "pid", "file", "run_dir", "uptime_s", "version")}
                | {"ports": len(one["ports"])}
                for one in found
            ]
        )
        return 0
    rows = [(one["lab"], one["pid"], len(one["ports"]), table.duration(one["uptime_s"]), one["file"]) for one in found]
    table.show(("LAB", "PID", "PORTS", "UP", "FILE"), rows, headers=not arguments["--no-headers"])
    return 0
