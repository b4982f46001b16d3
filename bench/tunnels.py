"""Row tunnel: TCP and small frames between two hosts through VXLAN, L2TPv3 and datagrams over UDP, against the kernel's vxlan and QEMU.

The two hosts are the namespaces `s` and `t`, a veth pair between them, as long as the network of a data centre allows (mtu 1550, so
that 1500 is left for the guests, whatever the header). The guests are `a` and `b`.
"""

import abc
import contextlib
from collections.abc import Sequence
from typing import ClassVar

from bench import corner, lab, pair, peers
from bench.samples import Round

HOSTS = ("192.0.2.1", "192.0.2.2")
WIRE_MTU, MTU = 1600, 1500


class TunnelPeer(peers.TapPeer):
    def hosts(self, place: corner.Corner) -> None:
        """The second host, and the cable between both."""
        place.namespace("t")
        place.run("s", "ip", "link", "add", "w", "type", "veth", "peer", "name", "w", "netns", f"{place.name}-t")
        for side, address in zip("st", HOSTS, strict=True):
            place.run(side, "ip", "link", "set", "w", "mtu", WIRE_MTU, "up")
            place.run(side, "ip", "address", "add", f"{address}/24", "dev", "w")

    def start(self, place: corner.Corner) -> None:
        self.hosts(place)
        for near, side, guest, address in (0, "s", "a", peers.LEFT), (1, "t", "b", peers.RIGHT):
            self.end(place, near, side, guest, address)

    @abc.abstractmethod
    def end(self, place: corner.Corner, near: int, side: str, guest: str, address: str) -> None:
        """The tunnel's end at host `side` and the guest behind it."""


def kernels(place: corner.Corner, near: int, side: str, guest: str, address: str) -> None:
    """The kernel's vxlan device, handed over to the guest."""
    ways = ("local", HOSTS[near], "remote", HOSTS[1 - near])
    place.run(side, "ip", "link", "add", "vx", "type", "vxlan", "id", 5, "dstport", 4789, *ways)
    place.run(side, "ip", "link", "set", "vx", "mtu", MTU, "netns", f"{place.name}-{guest}", "name", "e")
    place.run(guest, "ip", "address", "add", f"{address}/{peers.PREFIX}", "dev", "e")
    place.run(guest, "ip", "link", "set", "e", "up")


class Kernel(TunnelPeer):
    """the kernel's vxlan devices at both ends: no process"""

    name = "kernel vxlan"

    def end(self, place: corner.Corner, near: int, side: str, guest: str, address: str) -> None:
        kernels(place, near, side, guest, address)


class Lab(TunnelPeer):
    """shardnet at both ends, [vxlan], a lab and two workers a host"""

    name = "shardnet vxlan"
    section = "[vxlan way]\nvni = 5\nlocal = {here}\nremote = {there}\nnetns = {netns}\nmtu = 1500\n"

    @classmethod
    def missing(cls) -> str | None:
        return lab.missing() or super().missing()

    def end(self, place: corner.Corner, near: int, side: str, guest: str, address: str) -> None:
        here, there = HOSTS[near], HOSTS[1 - near]
        way = self.section.format(here=here, there=there, netns=f"{place.name}-{side}", near=near)
        tap = peers.tap("guest", f"{place.name}-{guest}", address) + f"mtu = {MTU}\n"
        lab.Lab(place, [way, tap], name=f"{lab.NAME}{near}", inside=side).start()


class LabKernel(Lab):
    """shardnet's [vxlan] at one end, the kernel's vxlan device at the other"""

    name = "shardnet to kernel"

    def end(self, place: corner.Corner, near: int, side: str, guest: str, address: str) -> None:
        if near:
            kernels(place, near, side, guest, address)
        else:
            super().end(place, near, side, guest, address)


class LabL2tpv3(Lab):
    """shardnet at both ends, [l2tpv3] over UDP"""

    name = "shardnet l2tpv3"
    section = "[l2tpv3 way]\nsrc = {here}\ndst = {there}\nudp = on\nsrcport = 1701\ndstport = 1701\ntxsession = 1\n"


class LabDgram(Lab):
    """shardnet at both ends, [dgram] over UDP"""

    name = "shardnet dgram"
    section = (
        "[dgram way]\nlocal.type = inet\nlocal.host = {here}\nlocal.port = 7\n"
        "remote.type = inet\nremote.host = {there}\nremote.port = 7\n"
    )


class QemuL2tpv3(TunnelPeer):
    """QEMU without a machine at both ends, -netdev l2tpv3 over UDP and a TAP in a hub"""

    name = "qemu l2tpv3"
    needs: ClassVar = {"qemu-system-x86_64": "qemu-system-x86"}

    def end(self, place: corner.Corner, near: int, side: str, guest: str, address: str) -> None:
        ports = "udp=on,srcport=1701,dstport=1701,txsession=1,rxsession=1"
        nets = (
            "-netdev", f"l2tpv3,id=n,src={HOSTS[near]},dst={HOSTS[1 - near]},{ports}",
            "-netdev", "hubport,id=h0,hubid=0,netdev=n",
            "-netdev", f"tap,id=t,ifname=t{near},script=no,downscript=no,vnet_hdr=off",
            "-netdev", "hubport,id=h1,hubid=0,netdev=t",
        )  # fmt: skip
        place.daemon(side, *peers.QEMU, *nets)
        corner.wait(f"{place.name}: t{near}", lambda: present(place, side, f"t{near}"))
        place.run(side, "ip", "link", "set", f"t{near}", "netns", f"{place.name}-{guest}", "name", "e")
        place.run(guest, "ip", "address", "add", f"{address}/{peers.PREFIX}", "dev", "e")
        place.run(guest, "ip", "link", "set", "e", "up")


def present(place: corner.Corner, side: str, interface: str) -> bool:
    """Tell whether the host has the interface by now."""
    place.cpu_s()  # which fails when the program is dead
    with contextlib.suppress(corner.Failed):
        place.run(side, "ip", "link", "show", "dev", interface)
        return True
    return False


TUNNELS: tuple[type[TunnelPeer], ...] = (Kernel, Lab, LabKernel, LabL2tpv3, LabDgram, QemuL2tpv3)


def measure(chosen: Sequence[type[TunnelPeer]], turn: Round) -> None:
    """One round: each peer set up anew, bulk each way and small frames through it."""
    for kind in chosen:
        with turn.attempt(f"{kind.name}, tunnel"):
            if why := kind.missing():
                raise corner.Failed(why)
            with corner.Corner(kind.name.replace(" ", "-")) as place:
                kind().start(place)
                pair.answering(place)
                for way, source, target, address in (
                    ("out", "a", "b", peers.RIGHT),
                    ("in", "b", "a", peers.LEFT),
                ):
                    rate, cost = pair.stream(place, turn.seconds, source, target, address)
                    turn.add(f"tunnel {way}", kind.name, rate)
                    if place.daemons:
                        turn.add(f"tunnel {way} cpu", kind.name, cost)
                delivered, _, seconds = pair.flood(place, "a", "b", peers.RIGHT, turn.seconds)
                turn.add("tunnel udp64", kind.name, delivered / seconds / 1e3)
