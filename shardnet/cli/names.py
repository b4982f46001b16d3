"""Show the names that the lab's DNS servers know themselves.

Usage:
  shardnet names [options] [PORT]

Options:
  -l LAB, --lab LAB           the lab, where more than one is running
  -r, --reverse               also the names of addresses (PTR)
  -o FORMAT, --output FORMAT  table or json [default: table]
  --no-headers                rows only
  -h, --help                  print this

SOURCE is what a name is from: a lease, a record of the lab file, or the lab
itself. Behind [user net0] the DNS server's port is net0.dns.
"""

from collections.abc import Sequence

from shardnet import control
from shardnet.cli import table, usage


def run(argv: Sequence[str]) -> int:
    """Print the names of one DNS server or of all."""
    arguments = usage.parse(__doc__, "names", argv)
    with control.Client(arguments["--lab"]) as lab:
        ports = (
            [arguments["PORT"]] if arguments["PORT"] else [one["name"] for one in lab.ports() if one["kind"] == "dns"]
        )
        names = [{"port": port, **row} for port in ports for row in lab.rows(port, "names")]
    if not arguments["--reverse"]:
        names = [one for one in names if one["type"] != "PTR"]
    if arguments["--output"] == "json":
        table.json(names)
        return 0
    rows = [(one["name"], one["ttl"], one["type"], one["value"], one["source"], one["port"]) for one in names]
    table.show(("NAME", "TTL", "TYPE", "VALUE", "SOURCE", "PORT"), rows, headers=not arguments["--no-headers"])
    return 0
