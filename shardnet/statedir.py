"""The state directory of a lab: what is to outlive it, such as leases.

A lab called demo has `ROOT/demo/`; ROOT is $SHARDNET_STATE_DIR, else /var/lib/shardnet for root, else $XDG_STATE_HOME/shardnet,
else ~/.local/state/shardnet. Like the run directory it is ours and closed to everybody else, or it is not used. Nothing in it is
needed: a lab without one forgets. Nobody removes it but the user.
"""

import contextlib
import os
from pathlib import Path

from shardnet import rundir


def root() -> Path:
    """The directory that has the state directories of this user's labs."""
    if chosen := os.environ.get("SHARDNET_STATE_DIR"):
        return Path(chosen).absolute()
    if os.geteuid() == 0:
        return Path("/var/lib/shardnet")
    if home := os.environ.get("XDG_STATE_HOME"):
        return Path(home, "shardnet")
    return Path.home() / ".local/state/shardnet"


def opened(lab: str) -> int:
    """Make the state directory of a lab, or check it; returns a descriptor of it. Raises OSError and rundir.Error."""
    path = root() / lab
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with contextlib.suppress(FileExistsError):
        path.mkdir(mode=0o700)
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        rundir.check(fd, path, os.fstat(fd), ours=True)
    except rundir.Error:
        os.close(fd)
        raise
    return fd
