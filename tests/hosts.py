"""Two hosts with a lab each on one wire with a machine of the outside, and a guest that is plugged into one lab or the other.

    far 192.0.2.1 ── wire ─┬─ a (192.0.2.10, lab a: net0) ── ta ─┐
                           └─ b (192.0.2.20, lab b: net0) ── tb ─┴─ guest 10.0.2.15

The address 192.0.2.10 moves from a to b. Before that b has it too, at its loopback, and answers for it to nobody; what the machine of the
outside sends to it goes where its neighbour entry says, as a fabric would have it. The guest is a bridge with one of two TAPs.
"""

import contextlib
import subprocess
from collections.abc import Callable, Iterator

import labs
from shardnet import links

REPAIR = labs.SHARDNET.parent / "shardnet-repair"
FAR, FAR6 = "192.0.2.1", "2001:db8::1"
MOVES, MOVES6 = "192.0.2.10", "2001:db8::10"
OWN = {"a": (MOVES, MOVES6), "b": ("192.0.2.20", "2001:db8::20")}
GUEST, GUEST6 = "10.0.2.15", "fec0::15"
LAB = """
[user net0]
{options}

[tap t{name}]
ifname = t{name}
netns = {guest}
"""


class Hosts:
    """The machines, with both labs running."""

    def __init__(
        self,
        lab: Callable[..., labs.Lab],
        namespace: Callable[..., object],
        options: dict[str, str],
        user: int | None = None,
    ) -> None:
        self.user = user
        self.far, self.wire, self.guest = namespace("far"), namespace("wire"), namespace("guest")
        self.hosts = {"a": namespace("a"), "b": namespace("b")}
        self.wire.run("ip", "link", "add", "name", "wire", "up", "type", "bridge")
        for name, one in (("far", self.far), *self.hosts.items()):
            end = f"to{name}"
            self.wire.run("ip", "link", "add", end, "type", "veth", "peer", "name", "out", "netns", one.name)
            self.wire.run("ip", "link", "set", end, "master", "wire", "up")
            one.run("ip", "link", "set", "out", "up")
            for address in (FAR, FAR6) if name == "far" else OWN[name]:
                add(one, address, "out")
        self.hosts["b"].run("sysctl", "-qw", "net.ipv4.conf.all.arp_ignore=1")
        for address in (MOVES, MOVES6):
            add(self.hosts["b"], address, "lo", alone=True)
        self.guest.run("ip", "link", "add", "name", "wire", "address", "52:54:00:00:00:15", "type", "bridge")
        self.guest.run("ip", "link", "set", "wire", "up")
        add(self.guest, GUEST, "wire")
        add(self.guest, GUEST6, "wire")
        self.guest.run("ip", "route", "add", "default", "via", "10.0.2.2")
        self.guest.run("ip", "route", "add", "default", "via", "fec0::2", "dev", "wire")
        self.labs: dict[str, labs.Lab] = {}
        for name in self.hosts:
            self.begin(lab, name, options.get(name, options.get("", "")))
        self.route("a")
        self.plug("a")

    def begin(self, lab: Callable[..., labs.Lab], name: str, options: str = "") -> None:
        text = LAB.format(name=name, guest=self.guest.name, options=options)
        if self.user is not None:
            self.give(name, self.user)
            text = text.replace(f"netns = {self.guest.name}\n", "")
        with links.namespace(self.hosts[name].name):
            self.labs[name] = lab(text, name=name, user=self.user)
        self.labs[name].until_up("net0", f"t{name}")
        self.guest.run("ip", "link", "set", f"t{name}", "up")

    def give(self, name: str, user: int) -> None:
        """Make what a user's lab cannot: a TAP that is his, and the way from it to the guest."""
        host, bridge, end = self.hosts[name], f"br{name}", f"end{name}"
        host.run("ip", "tuntap", "add", f"t{name}", "mode", "tap", "user", str(user))
        host.run("ip", "link", "add", "name", bridge, "up", "type", "bridge")
        host.run("ip", "link", "add", end, "type", "veth", "peer", "name", f"t{name}", "netns", self.guest.name)
        for device in (f"t{name}", end):
            host.run("ip", "link", "set", device, "master", bridge, "up")

    def another(self, lab: Callable[..., labs.Lab], name: str, host: str, options: str = "") -> None:
        """A lab more on one of the hosts."""
        self.hosts[name] = self.hosts[host]
        self.begin(lab, name, options)

    def route(self, name: str) -> None:
        """Have what goes to the address that moves go to this host."""
        for command in self.routing(name):
            subprocess.run(command, check=True)

    def routing(self, name: str) -> Iterator[list[str]]:
        mac = self.hosts[name].run("cat", "/sys/class/net/out/address").strip()
        for address in (MOVES, MOVES6):
            at = ["lladdr", mac, "dev", "out", "nud", "permanent"]
            yield ["ip", "-n", self.far.name, "neigh", "replace", address, *at]

    def plugging(self, name: str) -> Iterator[list[str]]:
        for other in self.labs:
            if other != name:
                yield ["ip", "-n", self.guest.name, "link", "set", f"t{other}", "nomaster"]
        yield ["ip", "-n", self.guest.name, "link", "set", f"t{name}", "master", "wire"]

    def plug(self, name: str) -> None:
        """Have the guest be one of this lab's."""
        for command in self.plugging(name):
            subprocess.run(command, check=True)

    def between(self, name: str) -> str:
        """What is to happen between, for a shell: address and guest are with this host from then on."""
        return " && ".join(" ".join(command) for command in (*self.routing(name), *self.plugging(name)))

    def receive(self, name: str = "b", *options: str) -> list[str]:
        """The command that takes flows at a host."""
        environment = self.labs[name].environment
        variables = [f"{key}={environment[key]}" for key in ("SHARDNET_RUN_DIR", "SHARDNET_LAB")]
        return ["env", *variables, *self.labs[name].words, "migrate", "receive", *options, "net0"]

    def move(
        self,
        *options: str,
        there: str = "b",
        here: str = "",
        between: str = "",
        receive: tuple[str, ...] = (),
        status: int = 0,
    ) -> str:
        """Move the flows of the other host's network here."""
        source = self.labs[here or ("b" if there == "a" else "a")]
        words = ["migrate", "move", "-o", "json", "--between", between or self.between(there), *options, "net0"]
        return source.shardnet(*words, "--", *self.receive(there, *receive), status=status)


def add(where: object, address: str, device: str, alone: bool = False) -> None:
    """Give an interface an address; `alone`: and no route."""
    is_v6 = ":" in address
    prefix = (128 if is_v6 else 32) if alone else 64 if is_v6 else 24
    where.run("ip", "addr", "add", f"{address}/{prefix}", "dev", device, *(["nodad"] if is_v6 else []))


@contextlib.contextmanager
def inside(one: object) -> Iterator[None]:
    """In this machine for as long as the block: sockets that are made there stay there."""
    with links.namespace(one.name):
        yield
