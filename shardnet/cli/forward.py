"""Show, add or remove what a user-mode network forwards, while it carries on.

Usage:
  shardnet forward list [options]
  shardnet forward add [options] RULE...
  shardnet forward remove [options] RULE...

Options:
  -l LAB, --lab LAB           the lab, where more than one is running
  -p PORT, --port PORT        the network, where the lab has several
  -o FORMAT, --output FORMAT  table or json [default: table]
  --no-headers                rows only
  -q, --quiet                 print nothing of what was done
  -h, --help                  print this

A RULE is QEMU's hostfwd, or its guestfwd with guestfwd= in front:

  [hostfwd=][tcp|udp]:[HOST]:PORT[-LAST]-[GUEST]:PORT
  [hostfwd=]unix:/PATH-[GUEST]:PORT
  guestfwd=[tcp]:ADDRESS:PORT-tcp:HOST:PORT | -unix:/PATH | -cmd:COMMAND

Port 0 of the host is any that is free; add prints which. A GUEST is an address,
the name of a lease, or nothing for the first lease. To remove a rule its side
before the - is enough.

A rule that is there already is no mistake, and one to remove that is not there
is exit code 3. Several rules are added or removed together, or none. They last
until the lab ends; in the lab file they last for good. Connections that there
are go on when their rule is removed.

  shardnet forward add tcp:127.0.0.1:2222-:22
  shardnet forward add udp::5353-vm1:53 guestfwd=tcp:10.0.2.100:80-tcp:127.0.0.1:8080
  shardnet forward remove tcp:127.0.0.1:2222
"""

from collections.abc import Sequence

from shardnet import control
from shardnet.cli import table, usage

COUNTS = ("taken", "open", "refused")


def run(argv: Sequence[str]) -> int:
    """Do one verb."""
    arguments = usage.parse(__doc__, "forward", argv)
    name, rules, as_json = arguments["--port"], arguments["RULE"], arguments["--output"] == "json"
    with control.Client(arguments["--lab"]) as lab:
        if arguments["list"]:
            networks = (
                [name] if name else [one["name"] for one in lab.ports() if one["kind"] == "user" and not one["behind"]]
            )
            rows = [{"port": network, **row} for network in networks for row in lab.forwards(network)]
        elif arguments["add"]:
            done = lab.forward_add(*rules, port=name)
            rows = [row for row in lab.forwards(done["port"]) if row["rule"] in done["added"] + done["present"]]
        else:
            done = lab.forward_remove(*rules, port=name)
    if arguments["list"]:
        _show(rows, arguments)
    elif as_json:
        table.json({**done, "forwards": rows} if arguments["add"] else done)
    elif not arguments["--quiet"] and arguments["add"]:
        for row in rows:
            there = "" if row["rule"] in done["added"] else " (was there already)"
            print(f"{done['port']}: {row['way']} {row['listens']} to {row['to']}{there}")
    elif not arguments["--quiet"]:
        for rule in done["removed"]:
            print(f"{done['port']}: {rule} removed")
    return 0


def _show(rows: Sequence[dict[str, object]], arguments: dict[str, object]) -> None:
    if arguments["--output"] == "json":
        table.json(rows)
        return
    shown = [
        (one["port"], one["way"], one["rule"], one["listens"], one["to"], *(one[key] for key in COUNTS)) for one in rows
    ]
    headings = ("PORT", "WAY", "RULE", "LISTENS", "TO", "TAKEN", "OPEN", "REFUSED")
    table.show(headings, shown, headers=not arguments["--no-headers"])
