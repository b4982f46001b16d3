"""Show the addresses that the switches have learned, or forget them.

Usage:
  shardnet fdb [options] [SWITCH]
  shardnet fdb --flush [options] [--port PORT] [SWITCH]

Options:
  -l LAB, --lab LAB           the lab, where more than one is running
  --flush                     forget the addresses, print how many there were
  --port PORT                 only those behind this port
  -o FORMAT, --output FORMAT  table or json [default: table]
  --no-headers                rows only
  -h, --help                  print this
"""

from collections.abc import Sequence

from shardnet import control
from shardnet.cli import table, usage


def run(argv: Sequence[str]) -> int:
    """Print or flush the table of one switch or of all."""
    arguments = usage.parse(__doc__, "fdb", argv)
    with control.Client(arguments["--lab"]) as lab:
        if arguments["--flush"]:
            flushed = lab.fdb_flush(arguments["SWITCH"], arguments["--port"])
        else:
            entries = lab.fdb(arguments["SWITCH"])
    if arguments["--flush"]:
        if arguments["--output"] == "json":
            table.json({"flushed": flushed})
        else:
            print(flushed)
    elif arguments["--output"] == "json":
        table.json(entries)
    else:
        rows = [(one["switch"], one["mac"], one["vlan"] or "-", one["port"], one["age_s"]) for one in entries]
        table.show(("SWITCH", "MAC", "VLAN", "PORT", "AGE"), rows, headers=not arguments["--no-headers"])
    return 0
