"""Run a command in a network namespace of its own that is plugged into the lab.

Usage:
  shardnet exec [options] [--address ADDRESS]... [--route ROUTE]... [PORT] -- COMMAND...

Options:
  -l LAB, --lab LAB      the lab, where more than one is running
  --address ADDRESS      an address with its prefix, 10.0.2.100/24 or fd00::1/64
  --route ROUTE          the address of a default gateway, or NETWORK=GATEWAY
  --mac MAC              the interface's Ethernet address
  --mtu BYTES            the interface's largest packet
  --ifname NAME          what the interface is called [default: eth0]
  --switch SWITCH        the switch to be on
  --no-config            no addresses, routes and resolvers of the switch's user
                         network
  -h, --help             print this

PORT is the new port's name; without it the lab finds one. Without root the
command runs in a user namespace too, where it seems to be root. The port lives
as long as the command, whose exit code is passed on. A PORT without --mac has
the Ethernet address that shardnet-mac prints.

On a switch with a user network the command is a guest of it: without --address
it has one of that network, from its end down, without --route it goes out by
its host address, and /etc/resolv.conf names the network's resolvers, where it
has any; IPv6 comes by router advertisements. The other files are the host's.

  shardnet exec -- curl http://10.0.2.2:8000/
  shardnet exec --address 10.0.2.100/24 -- ping 10.0.2.101
"""

import ctypes
import ipaddress
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from shardnet import control, links
from shardnet.cli import TRY_AGAIN, Failure, namespace, qemu, usage

NOT_EXECUTABLE, NO_COMMAND = 126, 127  # as shells say it
LEASES = 64  # addresses at the beginning of a network that exec leaves alone
PASSED_ON = (signal.SIGTERM, signal.SIGHUP)
PR_SET_PDEATHSIG = 1  # linux/prctl.h


def run(argv: Sequence[str]) -> int:
    """Connect, enter a namespace, make a TAP in it, hand it to the lab, run the command."""
    arguments = usage.parse(__doc__, "exec", argv)
    wanted = _wanted(arguments)
    # Connect first: the lab lets in who we are outside of the namespace.
    with control.Client(arguments["--lab"]) as lab:
        name = arguments["PORT"]
        if name and not wanted["mac"]:
            wanted["mac"] = bytes.fromhex(qemu.mac(lab.lab, name).replace(":", ""))
        namespace.enter()
        fd = _interface(arguments["--ifname"], **wanted)
        try:
            options = {"switch": arguments["--switch"]} if arguments["--switch"] else {}
            name = lab.plug([fd], "tap", name, **options)
        finally:
            os.close(fd)  # the lab has its own: the interface goes when the port does
        if not arguments["--no-config"]:
            _configure(lab, name, arguments["--ifname"], wanted)
        return _command(arguments["COMMAND"])


def _wanted(arguments: dict[str, Any]) -> dict[str, Any]:
    """Read what the user said of the interface; a mistake ends the program with code 2."""
    mac = arguments["--mac"]
    if mac and not re.fullmatch(r"[0-9a-fA-F]{2}(:[0-9a-fA-F]{2}){5}", mac):
        raise SystemExit(f"shardnet exec: --mac {mac}: six bytes such as 52:54:00:12:34:56 are meant")
    try:
        addresses = [ipaddress.ip_interface(text) for text in arguments["--address"]]
        routes = [_route(text) for text in arguments["--route"]]
    except ValueError as error:
        raise SystemExit(f"shardnet exec: {error}") from None
    return {
        "addresses": addresses,
        "routes": routes,
        "mac": bytes.fromhex(mac.replace(":", "")) if mac else None,
        "mtu": usage.number(arguments, "--mtu", 68, 65521),
    }


def _route(text: str) -> tuple[Any, Any]:
    network, equals, gateway = text.rpartition("=")
    via = ipaddress.ip_address(gateway)
    return ipaddress.ip_network(network if equals else ("0.0.0.0/0" if via.version == 4 else "::/0")), via


def _interface(
    name: str, addresses: list[Any], routes: list[tuple[Any, Any]], mac: bytes | None, mtu: int | None
) -> int:
    """Make the namespace's interface and configure it; returns its descriptor."""
    tap = links.open_tap(name)
    links.set_up("lo")
    if mac:
        links.set_mac(tap.name, mac)
    if mtu:
        links.set_mtu(tap.name, mtu)
    links.set_up(tap.name)
    for address in addresses:
        links.add_address(tap.name, address)
    for network, gateway in routes:
        links.add_route(network, gateway)
    return tap.fds[0]


def _configure(lab: control.Client, name: str, ifname: str, wanted: Mapping[str, Any]) -> None:
    """Be a guest of the user network on the port's switch, as far as the user has not said otherwise."""
    every = lab.ports()
    (own,) = [one for one in every if one["name"] == name]
    where = next(
        (one for one in every if (one["kind"], one["switch"], one["behind"]) == ("user", own["switch"], "")), None
    )
    if where is None:
        return
    try:
        told = lab.ask(where["name"], "network")
    except control.Error as error:
        if error.code != TRY_AGAIN:
            raise
        print(f"shardnet exec: {error}; nothing is configured", file=sys.stderr)
        return
    if told["mtu"] and not wanted["mtu"]:
        links.set_mtu(ifname, told["mtu"])
    if told["net"] is not None:
        net, host = ipaddress.IPv4Network(told["net"]), ipaddress.IPv4Address(told["host"])
        if not wanted["addresses"]:
            links.add_address(ifname, ipaddress.ip_interface(f"{guest(net, host, own['id'])}/{net.prefixlen}"))
        is_in = any(one in net for one in wanted["addresses"]) or not wanted["addresses"]
        if is_in and not wanted["routes"]:
            links.add_route(ipaddress.IPv4Network("0.0.0.0/0"), host)
    if told["resolvers"]:
        namespace.resolve_by(told["resolvers"])


def guest(net: ipaddress.IPv4Network, host: ipaddress.IPv4Address, number: int) -> ipaddress.IPv4Address:
    """An address for the guest of this number: from the end of the network down, away from the leases, which go up."""
    free = max(1, net.num_addresses - 2 - LEASES)
    address = net.broadcast_address - 1 - (number - 1) % free
    return address - 1 if address == host else address


def _command(command: Sequence[str]) -> int:
    """Run the command to its end, passing on signals that only we were sent."""
    # A signal that comes while the command starts is the command's, so it has to wait until we can pass it on.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, PASSED_ON)
    try:
        child = subprocess.Popen(command, preexec_fn=lambda: _begin(before))
    except FileNotFoundError:
        raise Failure(f"{command[0]}: no such command", NO_COMMAND) from None
    except PermissionError:
        raise Failure(f"{command[0]}: Permission denied", NOT_EXECUTABLE) from None
    for number in (signal.SIGINT, signal.SIGQUIT):  # the terminal sends these to both of us; the command decides
        signal.signal(number, signal.SIG_IGN)
    for number in PASSED_ON:
        signal.signal(number, lambda number, _: child.send_signal(number))
    signal.pthread_sigmask(signal.SIG_SETMASK, before)
    code = child.wait()
    return code if code >= 0 else 128 - code


def _begin(mask: Iterable[int]) -> None:
    """In the command's process: hear signals again, and die with the parent, without whose port there is nothing to do."""
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
