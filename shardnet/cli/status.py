"""Show a running lab: its ports, its workers.

Usage:
  shardnet status [options]

Options:
  -l LAB, --lab LAB           the lab, where more than one is running
  -o FORMAT, --output FORMAT  table or json [default: table]
  --no-headers                rows only
  -h, --help                  print this

RX is what came from the port's guest, TX what went to it, in frames; DROPS is
what was refused either way (shardnet drops says why).
"""

from collections.abc import Sequence

from shardnet import control
from shardnet.cli import port, table, usage


def run(argv: Sequence[str]) -> int:
    """Print the lab's state."""
    arguments = usage.parse(__doc__, "status", argv)
    with control.Client(arguments["--lab"]) as lab:
        status = lab.status()
    if arguments["--output"] == "json":
        table.json(status)
        return 0
    headers = not arguments["--no-headers"]
    if headers:
        up, file = table.duration(status["uptime_s"]), status["file"] or "no file"
        print(f"lab {status['lab']}: up {up}, pid {status['pid']}, {file}, in {status['run_dir']}\n")
    port.show(status["ports"], headers)
    print()
    rows = [
        (
            one["worker"],
            one["name"],
            one["pid"],
            one["state"],
            one["restarts"],
            table.size(one["rss_bytes"]),
            " ".join(one["ports"]),
        )
        for one in status["workers"]
    ]
    table.show(("WORKER", "NAME", "PID", "STATE", "RESTARTS", "MEMORY", "PORTS"), rows, headers=headers)
    return 0
