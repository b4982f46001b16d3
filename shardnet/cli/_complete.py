"""Print names for a shell that completes a word: a line each, and nothing at all where there is nobody to ask.

Usage:
  shardnet _complete [--lab LAB] (labs|ports|switches|kinds)

Options:
  -l LAB, --lab LAB  the lab, where more than one is running
"""

from collections.abc import Iterable, Sequence

from shardnet.cli import usage


def run(argv: Sequence[str]) -> int:
    """Print the names of one sort; never an error, for it would land in the middle of the user's command line."""
    arguments = usage.parse(__doc__, "_complete", argv)
    for name in sorted(set(_names(arguments))):
        print(name)
    return 0


def _names(arguments: dict[str, str]) -> Iterable[str]:
    if arguments["kinds"]:
        from shardnet import kinds

        return kinds.names()
    from shardnet import control, rundir

    try:
        if arguments["labs"]:
            return rundir.running()
        with control.Client(arguments["--lab"] or None) as lab:
            ports = lab.ports()
    except (control.Error, OSError):
        return []
    return [one["name" if arguments["ports"] else "switch"] for one in ports]
