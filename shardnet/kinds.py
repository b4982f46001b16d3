"""Kinds of section: `[stream vm1]` is read, carried or answered by the module `stream`.

A kind is a module of `shardnet/workers/` or `shardnet/services/` that has `Options`; a hyphen in its name is an
underscore in the file's. Nothing else registers it: a new file is a new kind.
"""

import functools
import importlib
import importlib.util
import pkgutil
from collections.abc import Mapping
from types import ModuleType
from typing import Any, NamedTuple

PACKAGES = ("shardnet.workers", "shardnet.services")
OWN = {"lab": "shardnet.lab", "switch": "shardnet.switch"}  # sections that are no ports


class Companion(NamedTuple):
    """A service that stands behind a port, NAME.SUFFIX, and what of the port's frames is for it; or a shard of the port.

    Or, where its kind is no service and it is no shard, another end of the port: a port like any other, carried by the same worker.

    A module that has any says so by `companions(options)`. `given` are the keys of its section as texts, None: all of the
    port's; those of the switch are the port's. `share` is of a shard: its number, from 1. `takes`: ("tcp" | "udp",
    address or group, first port, last port), or ("neighbours", address,
    0, 0): answers to its own questions who has an address. Keys that only companions read are in the module's
    PASSED_ON; changing them leaves the port alone.
    """

    suffix: str
    kind: str
    given: Mapping[str, str] | None
    takes: tuple[tuple[str, str, int, int], ...]
    share: int = 0


def names() -> list[str]:
    """Every kind of port and service, without importing any."""
    found = set()
    for package in PACKAGES:
        spec = importlib.util.find_spec(package)
        places = spec.submodule_search_locations if spec else None
        found |= {module.name.replace("_", "-") for module in pkgutil.iter_modules(places or ())}
    return sorted(name for name in found if not name.startswith("-"))


def is_service(kind: str) -> bool:
    """Does it answer requests, rather than carry frames?"""
    return module(kind).__name__.startswith(PACKAGES[1])


@functools.cache
def module(kind: str) -> ModuleType:
    """Import the module of a kind; raises LookupError where there is none."""
    if kind in OWN:
        return importlib.import_module(OWN[kind])
    if kind in names():
        for package in PACKAGES:
            path = f"{package}.{kind.replace('-', '_')}"
            try:
                found = importlib.import_module(path)
            except ModuleNotFoundError as missing:
                if missing.name not in (path, package):
                    raise
            else:
                if hasattr(found, "Options"):
                    return found
    raise LookupError(kind)


def captures(section: Any) -> tuple[str, ...] | None:
    """The ports that a section writes down, none: all of its switch; None where it is none that does: its module's `captures`."""
    said = getattr(module(section.kind), "captures", None)
    found: tuple[str, ...] | None = said(section.options) if said is not None else None
    return found


def live(kind: str) -> frozenset[str]:
    """The keys of a kind that a worker changes while it carries the port: its module's `LIVE`, for a Port with `change`."""
    return getattr(module(kind), "LIVE", frozenset())
