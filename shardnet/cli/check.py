"""Check a lab file, start nothing.

Usage:
  shardnet check [options] [--netdev SPEC]... [FILE]

Options:
  -c FILE, --config FILE      the lab file, as start takes it
  --netdev SPEC               a port as QEMU's -netdev says it, beside those of the file
  -o FORMAT, --output FORMAT  table or json [default: table]
  -q, --quiet                 print mistakes only
  -h, --help                  print this

Every mistake is printed, a line each, with the line of the file, the section,
the key. Exit code 0: the lab is right, 1: it is not.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from shardnet import lab, netdev
from shardnet.cli import table, usage


def run(argv: Sequence[str]) -> int:
    """Print the mistakes of a lab, or what is in it."""
    arguments = usage.parse(__doc__, "check", argv)
    file = arguments["FILE"] or arguments["--config"]
    if not file and not arguments["--netdev"]:
        raise SystemExit("shardnet check: FILE or --netdev SPEC is needed")
    if arguments["FILE"] and arguments["--config"]:
        raise SystemExit(f"shardnet check: {arguments['FILE']} or {arguments['--config']}: one file is meant")
    as_json = arguments["--output"] == "json"
    try:
        found = netdev.assemble(Path(file) if file else None, arguments["--netdev"])
    except lab.Wrong as wrong:
        if as_json:
            table.json({"file": file, "mistakes": [mistake._asdict() for mistake in wrong.mistakes]})
        else:
            print(wrong, file=sys.stderr)
        return 1
    if as_json:
        ports = [{"kind": port.kind, "name": port.name, "switch": port.options.switch} for port in found.ports]
        switches = list(found.switch_names)
        table.json({"file": file, "lab": found.name, "ports": ports, "switches": switches, "mistakes": []})
    elif not arguments["--quiet"]:
        print(f"{found.name}: {_count(len(found.ports), 'port')} on {_count(len(found.switch_names), 'switch')}")
    return 0


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}{'es' if what.endswith('ch') else 's'}"
