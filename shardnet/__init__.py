"""A virtual network for virtual machines, containers and labs, as a program of its own."""

import typing

if typing.TYPE_CHECKING:
    from shardnet.control import Client

__version__ = "0.1.0"


def connect(lab: str | None = None) -> "Client":
    """Connect to a running lab, without a name to the only one that runs; returns a `shardnet.control.Client`."""
    from shardnet import control  # here, because the workers import this package too

    return control.Client(lab)
