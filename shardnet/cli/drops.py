"""Show the frames that were refused, by port and cause.

Usage:
  shardnet drops [options] [PORT...]

Options:
  -l LAB, --lab LAB           the lab, where more than one is running
  -o FORMAT, --output FORMAT  table or json [default: table]
  --no-headers                rows only
  -h, --help                  print this

Causes that begin with tx_ are on the way to the port's guest, the others on the
way from it. A cause without a drop has no line.
"""

from collections.abc import Sequence

from shardnet import control
from shardnet.cli import table, usage


def run(argv: Sequence[str]) -> int:
    """Print what was dropped, at the named ports or at all."""
    arguments = usage.parse(__doc__, "drops", argv)
    names = arguments["PORT"]
    with control.Client(arguments["--lab"]) as lab:
        if names:
            lab.ports(*names)  # refuses a name that no port has
        drops = lab.drops()
    drops = [one for one in drops if not names or one["port"] in names]
    if arguments["--output"] == "json":
        table.json(drops)
        return 0
    rows = [(one["port"], one["cause"], one["frames"]) for one in drops]
    table.show(("PORT", "CAUSE", "FRAMES"), rows, headers=not arguments["--no-headers"])
    return 0
