"""Show the conversations that a user-mode network carries.

Usage:
  shardnet flows [options] [PORT...]

Options:
  -l LAB, --lab LAB           the lab, where more than one is running
  --protocol PROTOCOL         only tcp, udp or icmp
  --state STATE               only those in this state, such as established
  --guest ADDRESS             only those of this guest: 10.0.2.15, or 10.0.2.15:22
  --far ADDRESS               only those with this far end: an address, with a port or not
  --direction DIRECTION       only those that guests opened (out), or that came by
                              hostfwd (in)
  --idle SECONDS              only those silent for so long
  -n COUNT, --limit COUNT     at most so many
  --count                     print how many there are, and nothing else
  -o FORMAT, --output FORMAT  table or json [default: table]
  --no-headers                rows only
  -h, --help                  print this

Without a PORT the flows of every network; those of a shard of it (shards = N)
stand under the shard's name, such as net0.1. GUEST and FAR are both ends as the
guest sees them, HOST is this host's socket. FROM and TO are bytes of payload
from the guest and to it, AGE and IDLE seconds; RETX is how often something was
sent to the guest again. Of UDP, FAR is who was heard or spoken to last; of
icmp, the guest's port is the identifier of its echo requests.

With json, one object a line.
"""

import ipaddress
import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from shardnet import control
from shardnet.cli import table, usage

PROTOCOLS, DIRECTIONS = ("tcp", "udp", "icmp"), ("in", "out")
HEADINGS = ("PORT", "PROTO", "STATE", "DIR", "GUEST", "FAR", "HOST", "FROM", "TO", "AGE", "IDLE", "RETX")
AT_ONCE = 1000  # rows of a table whose columns are as wide as theirs

Flow = dict[str, Any]


def run(argv: Sequence[str]) -> int:
    """Print the flows as they are told, page by page."""
    arguments = usage.parse(__doc__, "flows", argv)
    wanted = _wanted(arguments)
    limit = usage.number(arguments, "--limit", 0, 1 << 31)
    with control.Client(arguments["--lab"]) as lab:
        ports = lab.ports(*arguments["PORT"])
        shards = [one for one in lab.ports() if one["kind"] == "user" and one["behind"]]
        named = [one for one in ports if arguments["PORT"] or (one["kind"] == "user" and not one["behind"])]
        networks = [
            name for one in named for name in (one["name"], *(s["name"] for s in shards if s["behind"] == one["name"]))
        ]
        found: Iterator[Flow] = (
            {"port": name, **flow} for name in networks for flow in lab.flows(name) if wanted(flow)
        )
        found = itertools.islice(found, limit)
        if arguments["--count"]:
            print(sum(1 for _ in found))
        elif arguments["--output"] == "json":
            for flow in found:
                print(json.dumps(flow))
        else:
            _show(found, headers=not arguments["--no-headers"])
    return 0


def end(flow: Flow, which: str) -> str:
    """One end of a flow as text, - where it has none."""
    address, port = flow[which], flow[f"{which}_port"]
    if address is None:
        return "-"
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def _show(found: Iterator[Flow], headers: bool) -> None:
    """Print a table, in parts where it is long: nobody waits for the last flow to see the first."""
    while part := list(itertools.islice(found, AT_ONCE)):
        rows = [
            (
                one["port"], one["protocol"], one["state"], one["direction"],
                end(one, "guest"), end(one, "far"), end(one, "host"),
                one["bytes_from_guest"], one["bytes_to_guest"], one["age_ms"] // 1000, one["idle_ms"] // 1000,
                "-" if one["retransmits"] is None else one["retransmits"],
            )
            for one in part
        ]  # fmt: skip
        table.show(HEADINGS, rows, headers=headers)
        headers = False
    if headers:
        table.show(HEADINGS, [])


def _wanted(arguments: dict[str, Any]) -> Callable[[Flow], bool]:
    """What the options ask for; a mistake ends the program with code 2."""
    equal: dict[str, Any] = {}  # what has to be so, by the flow's keys
    for key, words in (("protocol", PROTOCOLS), ("direction", DIRECTIONS), ("state", ())):
        given = arguments[f"--{key}"]
        if given is not None and words and given not in words:
            raise SystemExit(f"shardnet flows: --{key} {given}: one of {', '.join(words)} is meant")
        if given is not None:
            equal[key] = given
    for key in ("guest", "far"):
        if text := arguments[f"--{key}"]:
            equal[key], port = _end(f"--{key}", text)
            if port is not None:
                equal[f"{key}_port"] = port
    idle_ms = 1000 * (usage.number(arguments, "--idle", 0, 1 << 31) or 0)

    def wanted(flow: Flow) -> bool:
        return flow["idle_ms"] >= idle_ms and all(flow[key] == value for key, value in equal.items())

    return wanted


def _end(option: str, text: str) -> tuple[str, int | None]:
    address, port = text, ""
    if text.startswith("["):
        address, _, port = text[1:].partition("]")
        port = port.removeprefix(":")
    elif text.count(":") == 1:
        address, _, port = text.partition(":")
    try:
        return str(ipaddress.ip_address(address)), int(port) if port else None
    except ValueError:
        raise SystemExit(f"shardnet flows: {option} {text}: ADDRESS, ADDRESS:PORT or [ADDRESS]:PORT is meant") from None
