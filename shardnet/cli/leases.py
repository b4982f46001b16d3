"""Show the addresses that DHCP has lent, or end a lease.

Usage:
  shardnet leases [options] [PORT]
  shardnet leases --forget ADDRESS [options] [PORT]

Options:
  -l LAB, --lab LAB           the lab, where more than one is running
  -a, --all                   also what is offered, free again, or declined
  --forget ADDRESS            end the lease of this address
  -o FORMAT, --output FORMAT  table or json [default: table]
  --no-headers                rows only
  -h, --help                  print this

A lease that ends at no time, and a reservation that nobody holds, have - for the time.
Who had a lease that --forget has ended is told when it asks again.
"""

import time
from collections.abc import Sequence
from typing import Any

from shardnet import control
from shardnet.cli import table, usage

LENT = ("bound", "reserved")


def run(argv: Sequence[str]) -> int:
    """Print the leases of one DHCP service or of all, or end one."""
    arguments = usage.parse(__doc__, "leases", argv)
    with control.Client(arguments["--lab"]) as lab:
        ports = [arguments["PORT"]] if arguments["PORT"] else _services(lab)
        if arguments["--forget"]:
            _forget(lab, ports, arguments["--forget"])
            return 0
        leases = [{"port": port, **lease} for port in ports for lease in lab.rows(port, "leases")]
    if not arguments["--all"]:
        leases = [lease for lease in leases if lease["state"] in LENT]
    if arguments["--output"] == "json":
        table.json(leases)
        return 0
    rows = [(one["address"], one["mac"], one["name"], one["state"], _left(one["until"]), one["port"]) for one in leases]
    headings = ("ADDRESS", "MAC", "NAME", "STATE", "ENDS IN", "PORT")
    table.show(headings, rows, headers=not arguments["--no-headers"])
    return 0


def _services(lab: control.Client) -> list[str]:
    return [port["name"] for port in lab.ports() if port["kind"] == "dhcp"]


def _forget(lab: control.Client, ports: Sequence[str], address: str) -> None:
    """Ask one service after another; the last one's refusal stands for all."""
    refusal = control.Error(f"{address}: no DHCP service in this lab", 3)
    for port in ports:
        try:
            lab.ask(port, "forget", address=address)
            return
        except control.Error as error:
            refusal = error
    raise refusal


def _left(until: Any) -> str | None:
    return None if until is None else table.duration(max(0, until - time.time()))
