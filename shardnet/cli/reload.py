"""Read a running lab's file again and change what differs, nothing else.

Usage:
  shardnet reload [options]

Options:
  -l LAB, --lab LAB           the lab, where more than one is running
  -n, --dry-run               say what would be done, do nothing
  -o FORMAT, --output FORMAT  table or json [default: table]
  --no-headers                rows only
  -q, --quiet                 print nothing
  -h, --help                  print this
"""

from collections.abc import Sequence

from shardnet import control
from shardnet.cli import table, usage


def run(argv: Sequence[str]) -> int:
    """Print the plan, which has been carried out unless --dry-run was given."""
    arguments = usage.parse(__doc__, "reload", argv)
    with control.Client(arguments["--lab"]) as lab:
        answer = lab.reload(dry_run=arguments["--dry-run"])
    if arguments["--output"] == "json":
        table.json({"plan": answer["plan"], "done": answer["done"]})
    elif not arguments["--quiet"]:
        if answer["plan"]:
            rows = [(step["action"], step["section"], step["why"]) for step in answer["plan"]]
            table.show(("ACTION", "SECTION", "WHY"), rows, headers=not arguments["--no-headers"])
        else:
            print("nothing differs")
    return 0
