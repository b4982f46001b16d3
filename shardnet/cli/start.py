"""Start a lab and carry its frames, in the foreground unless told otherwise.

Usage:
  shardnet start [options] [--netdev SPEC]...

Options:
  -c FILE, --config FILE  the lab file
  --netdev SPEC           a port as QEMU's -netdev says it, beside those of FILE
  --name NAME             what the lab is called, instead of its file's stem
  -d, --detach            go to the background once every port is open
  -h, --help              print this

Without a file and without --netdev it is the lab that comes with shardnet: a
user-mode network, net0, and a port for QEMU, vm1 (shardnet qemu vm1 prints how).
It needs no rights.

The log goes to standard error. Ctrl-C and SIGTERM end the lab in order, SIGHUP
reads its file again.

  shardnet start --netdev stream,id=vm1,server=on,addr.type=unix,addr.path=vm1.sock
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import shardnet
from shardnet import lab, netdev, options, supervisor
from shardnet.cli import usage

DEFAULT = Path(shardnet.__file__).parent / "default.ini"


def run(argv: Sequence[str]) -> int:
    """Be the lab's supervisor until it ends."""
    arguments = usage.parse(__doc__, "start", argv)
    file, specs, name = arguments["--config"], arguments["--netdev"], arguments["--name"]
    if name is not None:
        try:
            options.name(name)
        except ValueError as why:
            raise SystemExit(f"shardnet start: --name {name}: {why}") from None

    def read() -> lab.Lab:
        found = netdev.assemble(Path(file) if file else None if specs else DEFAULT, specs)
        return dataclasses.replace(found, name=name or found.name)

    return supervisor.start(read, detach=arguments["--detach"])
