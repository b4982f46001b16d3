"""Ways between two machines: a lab, one kind of port, and a program at the other end that is not ours.

A way joins `here`, a namespace on a TAP of the lab (g0), with `there`, a namespace behind the other end. What all of them have to do
alike, and what one of them cannot, is in WAYS.
"""

import contextlib
import dataclasses
import functools
import itertools
import os
import re
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import deadline
import exchange
import labs
import namespaces
from shardnet import options
from shardnet.workers import l2tpv3

HERE, THERE = "10.6.1.1", "10.6.1.2"
MAC = "52:54:00:00:00:02"  # of there: it stays what it was when the other end starts anew
MTU = 9000
HELPER = "/usr/lib/qemu/qemu-bridge-helper"
ACL = Path("/etc/qemu/bridge.conf")
numbers = itertools.count(1)


class Site:
    """Where a way is built; what is entered on the stack is gone after the test."""

    def __init__(self, directory: Path, stack: contextlib.ExitStack, mtu: int) -> None:
        self.directory, self.stack, self.mtu = directory, stack, mtu
        self.make = stack.enter_context(namespaces.making())
        self.start = stack.enter_context(labs.starting(directory))
        self.here, self.there = self.make("here"), self.make("there")

    def lab(self, *section: str) -> labs.Lab:
        """Start the lab of one section and the TAP."""
        tap = f"[tap guest]\nifname = g0\nnetns = {self.here.name}\naddress = {HERE}/24\nmtu = {self.mtu}\n"
        running = self.start("\n".join([*section, "", tap]))
        running.until_up("guest")
        return running

    def kept(self, making: Callable[[], contextlib.AbstractContextManager[object]]) -> Callable[[], None]:
        """Enter what is made, and give what ends it and makes it anew."""
        now = self.stack.enter_context(contextlib.ExitStack())
        now.enter_context(making())

        def again() -> None:
            now.close()
            now.enter_context(making())

        return again


@dataclasses.dataclass
class Joined:
    """A way that stands; `restart` has the other end begin anew."""

    site: Site
    lab: labs.Lab
    far: str  # the interface there
    restart: Callable[[], None]
    to: str = THERE
    allow: Callable[[], None] = lambda: None  # VLAN 7, to the other end

    @property
    def here(self) -> namespaces.Namespace:
        return self.site.here

    @property
    def there(self) -> namespaces.Namespace:
        return self.site.there


@dataclasses.dataclass(frozen=True)
class Way:
    join: Callable[[Site], Joined]
    mtu: int = MTU
    tags: bool = True
    why: str = ""  # it cannot do one of these
    most: int = 0  # bytes that a bulk transfer may have on its way


def veth(site: Site, host: namespaces.Namespace, near: str, last: int | None = 2) -> None:
    """A cable from a namespace to `there`, longer packets and all."""
    host.run("ip", "link", "add", near, "type", "veth", "peer", "name", "eth0", "netns", site.there.name)
    host.run("ip", "link", "set", near, "mtu", str(site.mtu), "up")
    site.there.run("ip", "link", "set", "eth0", "mtu", str(site.mtu), "address", MAC, "up")
    if last is not None:
        site.there.run("ip", "address", "add", f"10.6.1.{last}/24", "dev", "eth0")


@contextlib.contextmanager
def allowed(bridge: str) -> Iterator[None]:
    """QEMU's helper puts TAPs on this bridge."""
    before = ACL.read_text() if ACL.exists() else None
    ACL.parent.mkdir(exist_ok=True)
    ACL.write_text(f"allow {bridge}\n")
    try:
        yield
    finally:
        if before is None:
            ACL.unlink()
        else:
            ACL.write_text(before)


def bridge(site: Site, helper: bool = False) -> Joined:
    """The kernel's bridge, a cable to `there` on it."""
    host = site.make("host")
    if helper:
        site.stack.enter_context(allowed("br0"))
    veth(site, host, "v0")

    def make() -> None:
        host.run("ip", "link", "add", "br0", "type", "bridge")
        host.run("ip", "link", "set", "br0", "up")
        host.run("ip", "link", "set", "v0", "master", "br0")

    def restart() -> None:
        host.run("ip", "link", "delete", "br0")
        make()

    make()
    section = ["[bridge way]", f"netns = {host.name}", f"mtu = {site.mtu}"]
    running = site.lab(*section, *([f"helper = {HELPER}"] if helper else []))
    return Joined(site, running, "eth0", restart)


def packet(site: Site, macvtap: bool = False) -> Joined:
    """A cable to `there`, or a macvtap on one."""
    host = site.make("host")

    def make() -> None:
        veth(site, host, "v0")
        if macvtap:
            host.run("ip", "link", "add", "link", "v0", "name", "m0", "type", "macvtap", "mode", "passthru")
            host.run("ip", "link", "set", "m0", "mtu", str(site.mtu), "up")

    def restart() -> None:
        host.run("ip", "link", "delete", "v0")
        make()

    make()
    running = site.lab("[packet way]", f"netns = {host.name}", f"ifname = {'m0' if macvtap else 'v0'}")
    return Joined(site, running, "eth0", restart)


@contextlib.contextmanager
def ended(process: subprocess.Popen[bytes]) -> Iterator[subprocess.Popen[bytes]]:
    """End a program, and what it started in its group, after the block."""
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        process.wait(10)
        for end in (process.stdin, process.stdout):
            if end is not None:
                end.close()


def program(
    *words: object, stdin: int = subprocess.DEVNULL
) -> contextlib.AbstractContextManager[subprocess.Popen[bytes]]:
    """A program beside the test, in a process group of its own."""
    return ended(subprocess.Popen([str(word) for word in words], stdin=stdin, stdout=subprocess.DEVNULL,
                                  stderr=subprocess.DEVNULL, process_group=0))  # fmt: skip


@contextlib.contextmanager
def vde_switch(directory: Path) -> Iterator[None]:
    """Debian's vde_switch."""
    management = directory.with_suffix(".mgmt")
    with program("vde_switch", "--sock", directory, "--mgmt", management, stdin=subprocess.PIPE):
        deadline.until((directory / "ctl").exists, "vde_switch's control socket")
        deadline.until(management.exists, "vde_switch's management socket")
        yield


def trunk(directory: Path) -> None:
    """Put the ports of a vde_switch's first two programs on VLAN 7, by unixterm."""
    for command in ("vlan/create 7", "vlan/addport 7 1", "vlan/addport 7 2"):
        said = terminal(directory.with_suffix(".mgmt"), command)
        assert "1000 Success" in said, f"{command}: {said}"


def terminal(management: Path, command: str) -> str:
    """What a vde_switch answers to a command that is typed into unixterm."""
    words = ["unixterm", management]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0) as process:
        said = b""
        process.stdin.write(command.encode() + b"\n")
        while not re.search(rb"^(vde\$ )?1\d{3} ", said, re.M):  # a code and a word end each answer
            deadline.readable(process.stdout.fileno(), f"an answer to {command}: {said!r}")
            said += os.read(process.stdout.fileno(), 4096)
        process.stdin.close()
        process.kill()
    return said.decode()


@contextlib.contextmanager
def plug2tap(directory: Path, there: namespaces.Namespace, name: str = "vt0") -> Iterator[None]:
    """A TAP there, plugged into a VDE switch by vde_plug2tap."""
    with program(*there.enter, "vde_plug2tap", "--sock", directory, name):
        deadline.until(lambda: name in there.links(), f"{name} of vde_plug2tap")
        there.run("ip", "link", "set", name, "address", MAC, "up")
        there.run("ip", "address", "add", f"{THERE}/24", "dev", name)
        yield


def vde_client(site: Site) -> Joined:
    """A plug in Debian's vde_switch."""
    directory = site.directory / "v"

    @contextlib.contextmanager
    def far() -> Iterator[None]:
        with vde_switch(directory), plug2tap(directory, site.there):
            yield

    again = site.kept(far)
    return Joined(site, site.lab("[vde way]", f"sock = {directory}"), "vt0", again, allow=lambda: trunk(directory))


def vde_server(site: Site) -> Joined:
    """The switch for Debian's vde_plug2tap."""
    running = site.lab("[vde way]", "listen = way.vde")
    again = site.kept(lambda: plug2tap(running.run_dir / "way.vde", site.there))
    return Joined(site, running, "vt0", again)


def vde_dpipe(site: Site) -> Joined:
    """The switch, and Debian's vde_switch beside it, joined by dpipe and two vde_plug."""
    running = site.lab("[vde way]", "listen = way.vde")
    directory = site.directory / "v"

    @contextlib.contextmanager
    def far() -> Iterator[None]:
        plugs = ["vde_plug", running.run_dir / "way.vde", "=", "vde_plug", directory]
        with vde_switch(directory), plug2tap(directory, site.there), program("dpipe", *plugs):
            running.until_up("way.1")
            yield

    return Joined(site, running, "vt0", site.kept(far), allow=lambda: trunk(directory))


@contextlib.contextmanager
def hub(there: namespaces.Namespace, netdev: str, mtu: int = MTU) -> Iterator[None]:
    """A QEMU without a machine, whose hub joins a -netdev (its id far) with a TAP that is in `there`."""
    name = f"q{os.getpid()}x{next(numbers)}"
    words = [
        "qemu-system-x86_64", "-M", "none", "-display", "none", "-nodefaults", "-monitor", "none", "-serial", "none",
        "-netdev", netdev, "-netdev", "hubport,id=h0,hubid=0,netdev=far",
        "-netdev", f"tap,id=tap,ifname={name},script=no,downscript=no,vnet_hdr=off",
        "-netdev", "hubport,id=h1,hubid=0,netdev=tap",
    ]  # fmt: skip
    with program(*words) as qemu:

        def is_there() -> bool:
            assert qemu.poll() is None, " ".join(words)
            return Path("/sys/class/net", name).exists()

        deadline.until(is_there, "QEMU's TAP")
        subprocess.run(["ip", "link", "set", name, "netns", there.name], check=True)
        there.run("ip", "link", "set", name, "name", "eth0", "address", MAC, "mtu", str(mtu), "up")
        there.run("ip", "address", "add", f"{THERE}/24", "dev", "eth0")
        yield


def vde_qemu(site: Site) -> Joined:
    """The switch for QEMU's -netdev vde."""
    running = site.lab("[vde way]", "listen = way.vde")
    again = site.kept(lambda: hub(site.there, f"vde,id=far,sock={running.run_dir / 'way.vde'}"))
    return Joined(site, running, "eth0", again)


SESSION = {"txsession": "0x11223344", "rxsession": "0x55667788"}
COOKIES = {"txcookie": "0x0a0b0c0d", "rxcookie": "0x01020304"}
FORMS = {
    "plain": {},
    "counter": {"counter": "on"},
    "pinned": {"counter": "on", "pincounter": "on"},
    "cookie": COOKIES,
    "cookie64": {**COOKIES, "cookie64": "on", "txcookie": "0x0a0b0c0d0e0f1011"},
    "offset": {"offset": "8"},
    "everything": {**COOKIES, "cookie64": "on", "counter": "on", "offset": "256"},
}


def way(sort: str) -> dict[str, str]:
    """Addresses and ports of an L2TPv3 port over UDP or IP, of either family."""
    given = (
        {"src": "::1", "dst": "::1", "ipv6": "on"} if sort.endswith("6") else {"src": "127.0.0.1", "dst": "127.0.0.2"}
    )
    if sort.startswith("udp"):
        srcport, dstport = free_ports()
        given |= {"udp": "on", "srcport": srcport, "dstport": dstport}
    return given


def free_ports() -> list[str]:
    """Two UDP ports of the loopback that nobody has."""
    with contextlib.ExitStack() as stack:
        both = [stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) for _ in range(2)]
        for one in both:
            one.bind(("127.0.0.1", 0))
        return [str(one.getsockname()[1]) for one in both]


def session(site: Site, sort: str, form: str) -> Joined:
    """A session of L2TPv3 with QEMU's -netdev l2tpv3."""
    given = {**way(sort), **SESSION, **FORMS[form]}
    running = site.lab("[l2tpv3 way]", *(f"{key} = {value}" for key, value in given.items()))
    (_, netdev) = l2tpv3.qemu(options.read(l2tpv3, given), running.run_dir, (7, 2))
    again = site.kept(lambda: hub(site.there, netdev.replace("id=net0", "id=far")))
    return Joined(site, running, "eth0", again)


def vxlan(site: Site, sort: str, version: int) -> Joined:
    """The kernel's vxlan device on another host, unicast or in a group."""
    hosts = {4: ("192.0.2.1", "192.0.2.2"), 6: ("2001:db8::1", "2001:db8::2")}[version]
    group = {4: "239.5.5.5", 6: "ff05::5"}[version]
    host = site.make("host")
    host.run("ip", "link", "add", "eth0", "type", "veth", "peer", "name", "eth0", "netns", site.there.name)
    for place, address in zip((host, site.there), hosts, strict=True):
        place.run("ip", "link", "set", "eth0", "mtu", str(site.mtu + 70), "up")
        place.run(
            "ip", "address", "add", *([f"{address}/64", "nodad"] if version == 6 else [f"{address}/24"]), "dev", "eth0"
        )
    far = ["group", group, "dev", "eth0"] if sort == "group" else ["local", hosts[1], "remote", hosts[0]]
    ours = [f"group = {group}", "interface = eth0"] if sort == "group" else [f"remote = {hosts[1]}"]

    @contextlib.contextmanager
    def device() -> Iterator[None]:
        site.there.run("ip", "link", "add", "vx0", "address", MAC, "type", "vxlan", "id", "5", "dstport", "4789", *far)
        site.there.run("ip", "link", "set", "vx0", "mtu", str(site.mtu), "up")
        site.there.run("ip", "address", "add", f"{THERE}/24", "dev", "vx0")
        yield
        site.there.run("ip", "link", "delete", "vx0")

    again = site.kept(device)
    section = ["[vxlan way]", "vni = 5", f"netns = {host.name}", f"mtu = {site.mtu}", "inner-vlan = on", *ours]
    return Joined(site, site.lab(*section), "vx0", again)


def passt(site: Site) -> Joined:
    """A passt: `here` is who this host is, and `there` a machine that the host reaches."""
    host = site.make("host")
    veth(site, host, "eth0")
    site.there.run("ip", "address", "add", "10.6.1.3/24", "dev", "eth0")  # the gateway's address stands for the host
    host.run("ip", "address", "add", f"{HERE}/24", "dev", "eth0")
    host.run("ip", "route", "add", "default", "via", THERE)
    host.run("sysctl", "-qw", "net.ipv4.ping_group_range=0 2147483647")
    running = site.lab("[passt way]", f"netns = {host.name}", f"mtu = {site.mtu}")

    def children() -> set[int]:
        names = {pid: Path(f"/proc/{pid}/comm") for pid in running.processes()}
        return {pid for pid, name in names.items() if name.exists() and name.read_text().startswith("passt")}

    def restart() -> None:
        before = children()
        assert before
        for pid in before:
            os.kill(pid, signal.SIGKILL)
        deadline.until(lambda: children() - before, "another passt", 20)
        running.until_up("way")

    return Joined(site, running, "eth0", restart, to="10.6.1.3")


QEMU_READS = "QEMU's -netdev l2tpv3 has room for 2048 bytes of a frame (BUFFER_SIZE of net/l2tpv3.c)"
QEMU_MTU = 2048 - 14 - 4
SHORT = "vde2 has room for 1504 bytes behind the addresses (struct packet of vde_switch)"
WAYS: dict[str, Way] = {
    "bridge": Way(bridge),
    "bridge by QEMU's helper": Way(functools.partial(bridge, helper=True)),
    "packet on a veth": Way(packet),
    "packet on a macvtap": Way(functools.partial(packet, macvtap=True)),
    "vde in vde_switch": Way(vde_client, mtu=1500, why=SHORT),
    "vde with vde_plug2tap": Way(vde_server, mtu=1500, why=SHORT),
    "vde with dpipe": Way(vde_dpipe, mtu=1500, why=SHORT),
    "vde with QEMU": Way(vde_qemu),
    **{
        f"l2tpv3 udp4 {form}": Way(functools.partial(session, sort="udp4", form=form), QEMU_MTU, why=QEMU_READS)
        for form in FORMS
    },
    **{
        f"l2tpv3 {sort} {form}": Way(functools.partial(session, sort=sort, form=form), QEMU_MTU, why=QEMU_READS)
        for sort, form in (("udp6", "everything"), ("ip4", "plain"), ("ip4", "everything"), ("ip6", "plain"))
    },
    **{
        f"vxlan {sort} {version}": Way(functools.partial(vxlan, sort=sort, version=version))
        for sort in ("unicast", "group")
        for version in (4, 6)
    },
    "passt": Way(passt, tags=False, why="passt takes no frame with a tag", most=exchange.PASST_MOST),
}
