"""Show, add, remove or change the ports of a running lab.

Usage:
  shardnet port list [options]
  shardnet port show [options] PORT...
  shardnet port add [options] (--netdev SPEC | SECTION)
  shardnet port remove [options] PORT...
  shardnet port up [options] PORT...
  shardnet port down [options] PORT...
  shardnet port set [options] PORT SETTING...
  shardnet port reset [options] PORT...

Options:
  -l LAB, --lab LAB           the lab, where more than one is running
  --netdev SPEC               a port as QEMU's -netdev says it
  -o FORMAT, --output FORMAT  table or json [default: table]
  --no-headers                rows only
  -q, --quiet                 print nothing of what was done
  -h, --help                  print this

SECTION is text as in a lab file, one section or several, - is standard input.
Written on one line it is cut before each KEY=. A SETTING is KEY=VALUE, as in a
lab file too; without a value the default holds again. reset starts a failed
port again. show tells of a service what it has counted, too.

  shardnet port add '[tap host0] address=10.0.2.100/24'
  shardnet port add --netdev stream,id=vm3,server=on,addr.type=unix,addr.path=vm3.sock
  shardnet port set vm1 vlan=10 max_macs=4
"""

import contextlib
import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from shardnet import control
from shardnet.cli import table, usage

DONE = {"remove": "removed", "up": "up", "down": "down", "reset": "started again", "set": "set"}


def run(argv: Sequence[str]) -> int:
    """Do one verb; several ports are done one after the other, and the first refusal ends it."""
    arguments = usage.parse(__doc__, "port", argv)
    verb = next(verb for verb in ("list", "show", "add", *DONE) if arguments[verb])
    names = arguments["PORT"]
    if verb in ("list", "show"):
        return _tell(arguments, names)
    given = settings(arguments["SETTING"])
    with control.Client(arguments["--lab"]) as lab:
        if verb == "add":
            names = lab.port_add(section(arguments["SECTION"]), netdev=arguments["--netdev"])
        elif verb == "set":
            lab.port_set(names[0], **given)
        else:
            for name in names:
                getattr(lab, f"port_{verb}")(name)
    if arguments["--output"] == "json":
        table.json({"ports": names})
    elif not arguments["--quiet"]:
        for name in names:
            print(f"{name}: {DONE.get(verb, 'added')}")
    return 0


def show(ports: Sequence[Mapping[str, Any]], headers: bool) -> None:
    """Print ports, one a line."""
    rows = []
    for one in ports:
        counters = one["counters"]
        drops = counters["rx_drops"] + counters["tx_drops"]
        frames = counters["rx_frames"], counters["tx_frames"], drops
        state = one["state"] if one["up"] else "off"
        rows.append((one["name"], one["kind"], one["switch"], one["mode"], state, *frames, one["macs"], one["detail"]))
    table.show(
        ("PORT", "KIND", "SWITCH", "MODE", "STATE", "RX", "TX", "DROPS", "MACS", "DETAIL"), rows, headers=headers
    )


def settings(words: Sequence[str]) -> dict[str, str]:
    """Read KEY=VALUE words."""
    given = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or not key:
            raise SystemExit(f"shardnet port set: {word}: KEY=VALUE is meant")
        given[key] = value
    return given


def section(typed: str | None) -> str | None:
    """What was typed for SECTION as text of a lab file: one line, `[tap host0] mtu=1500 up=off`, is cut before each KEY=."""
    if typed == "-":
        return sys.stdin.read()
    if typed is None or "\n" in typed.strip():
        return typed
    return re.sub(r"\]\s+|\s+(?=[A-Za-z_][\w.-]*\s*=)", lambda gap: gap[0].strip() + "\n", typed.strip()) + "\n"


def _tell(arguments: Mapping[str, Any], names: Sequence[str]) -> int:
    with control.Client(arguments["--lab"]) as lab:
        ports = lab.ports(*names)
        if arguments["show"]:
            for one in ports:
                if one["service"]:
                    with contextlib.suppress(control.Error):  # its worker is between two lives
                        one["counts"] = lab.ask(one["name"], "counters")
    headers = not arguments["--no-headers"]
    if arguments["--output"] == "json":
        table.json(ports)
    elif arguments["list"]:
        show(ports, headers)
    else:
        for number, one in enumerate(ports):
            if number:
                print()
            told = {**one, "up": "on" if one["up"] else "off"}
            told["options"] = " ".join(f"{key}={value}" for key, value in one["options"].items())
            counters, counts = told.pop("counters"), told.pop("counts", {})
            rows = [*told.items(), *sorted(counters.items()), *sorted(counts.items())]
            table.show(("KEY", "VALUE"), rows, headers=headers)
    return 0
