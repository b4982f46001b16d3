"""Print the manual of a kind of section, or list the kinds.

Usage:
  shardnet help [options] [KIND]

Options:
  -o FORMAT, --output FORMAT  table or json [default: table]
  -h, --help                  print this
"""

import sys
from collections.abc import Sequence

from shardnet import kinds, lab, manual
from shardnet.cli import table, usage

NOT_FOUND = 3


def run(argv: Sequence[str]) -> int:
    """Print what a lab file can say."""
    arguments = usage.parse(__doc__, "help", argv)
    kind = arguments["KIND"]
    as_json = arguments["--output"] == "json"
    if kind is None:
        summaries = {name: manual.summary(kinds.module(name)) for name in [*kinds.OWN, *kinds.names()]}
        if as_json:
            table.json(summaries)
        else:
            table.show(("KIND", "WHAT"), list(summaries.items()))
            print(
                "\nshardnet help KIND prints the options of a section, shardnet COMMAND --help the usage of a command."
            )
        return 0
    try:
        module = kinds.module(kind)
    except LookupError:
        print(f"shardnet help: {kind}: {lab.unknown(kind)}", file=sys.stderr)
        return NOT_FOUND
    if as_json:
        table.json(
            {
                "kind": kind,
                "what": manual.summary(module),
                "options": [entry._asdict() for entry in manual.entries(module)],
            }
        )
    else:
        print(manual.page(module), end="")
    return 0
