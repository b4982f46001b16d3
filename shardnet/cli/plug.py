"""Make a port of standard input and output, which carry frames as VDE's plugs do.

Usage:
  shardnet plug [options] [--set SETTING]... [PORT]

Options:
  -l LAB, --lab LAB     the lab, where more than one is running
  --set SETTING         a key of the port, KEY=VALUE as in a lab file
  -h, --help            print this

PORT is the new port's name; without it the lab finds one. A frame has its
length in front, two bytes, big-endian (--set prefix=4: four bytes, as QEMU's
stream). The port lives as long as the command, which ends when the other side
closes or the lab ends.

  dpipe vde_plug /run/vde.ctl = shardnet plug
  dpipe shardnet plug = ssh host shardnet -l demo plug
"""

import contextlib
import fcntl
import os
import select
import sys
from collections.abc import Iterator, Sequence

from shardnet import control
from shardnet.cli import FAILED, NOT_RUNNING, Failure, port, usage

IN, OUT = 0, 1


def run(argv: Sequence[str]) -> int:
    """Hand both descriptors to the lab and wait until either side has had enough."""
    arguments = usage.parse(__doc__, "plug", argv)
    given = port.settings(arguments["--set"])
    if os.isatty(IN) or os.isatty(OUT):
        raise Failure("frames are not for a terminal (dpipe shardnet plug = COMMAND)", FAILED)
    with control.Client(arguments["--lab"]) as lab, _as_they_were(IN, OUT):
        lab.plug([IN, OUT], "stream", arguments["PORT"], **given)
        ends = select.poll()
        ends.register(lab, select.POLLIN)
        for fd in (IN, OUT):
            ends.register(fd, 0)  # nothing but its hang-up
        by_lab = [fd for fd, _ in ends.poll()] == [lab.fileno()]
    if by_lab:
        print(f"shardnet: lab {lab.lab}: it ended, or the port was removed", file=sys.stderr)
        return NOT_RUNNING
    return 0


@contextlib.contextmanager
def _as_they_were(*fds: int) -> Iterator[None]:
    """Put back the descriptors' flags: the lab makes them non-blocking, and whoever shares them with us would suffer."""
    flags = {fd: fcntl.fcntl(fd, fcntl.F_GETFL) for fd in fds}
    try:
        yield
    finally:
        for fd, before in flags.items():
            fcntl.fcntl(fd, fcntl.F_SETFL, before)
