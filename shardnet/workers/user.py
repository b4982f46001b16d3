"""[user NAME]: a network for guests that needs no privileges, as QEMU's -netdev user, for every guest of the switch.

A guest's connections go out as sockets of this host: what the host can reach, a guest can, and nobody outside has to know of
it. The picture is QEMU's: the network 10.0.2.0/24 and fec0::/64, where 10.0.2.2 and fec0::2 are this host; who connects there
reaches the host's loopback (host-loopback). What the outside is to reach in a guest is named by hostfwd, and guestfwd puts a
service of the host's at an address of the network. restrict = on leaves guests with nothing but those two.

At 10.0.2.3 and fec0::3 is a DNS server, which [dns NAME] tells of, with the keys that stand there; its port is NAME.dns.

TCP, UDP and echo (ping) pass, for IPv4 and IPv6; router advertisements say prefix, mtu and where the DNS server is. Guests get their
addresses by DHCP, IPv4 from 10.0.2.15 on and IPv6 from fec0::1000 on, or take others by hand; the server is the port
NAME.dhcp, and its keys are those of [dhcp NAME]. A restricted guest is told of no router and no resolver. Echo to the
outside takes net.ipv4.ping_group_range; without it the guest is told that it is forbidden.

tftp = FOLDER puts a TFTP server at this host's addresses, for machines that boot from the network ([tftp] says more), and
smb = FOLDER an SMB server at 10.0.2.4, whose share qemu is the folder ([smb] says more). Both stay with restrict = on, as in
QEMU. Ports 65024 to 65535 of UDP at this host's address are the TFTP server's then. Each is a port of its own, NAME.tftp and NAME.smb, in a
process of its own.

shards = N spreads the guests' flows over N workers: TCP by both ends of a connection, all else by the guest's address, so that
a guest keeps one port of the outside for each of its UDP ports. Those beyond the first are NAME.1 and so on; flows, forwards and
services are the same with any number, and max-flows is divided among them. A shard that dies takes its own flows with it.
"""

import contextlib
import dataclasses
import hashlib
import ipaddress
import mmap
import os
import resource
import socket
import struct
import sys
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from shardnet import _core, addresses, answers, forwards, hands, kinds, moving, options
from shardnet.dhcp import server, server6, settings
from shardnet.dns import settings as names
from shardnet.smb import settings as smb
from shardnet.tftp import settings as tftp
from shardnet.user import settings as its

if TYPE_CHECKING:
    from shardnet import worker

Options = its.Options
check = its.check

EVERYBODY, DHCP_SERVERS = "255.255.255.255", "ff02::1:2"

LEDGER = "flows"  # name of the deposit that outlives the worker
RECORD = 64  # bytes of it for a flow
RESERVED = 256  # descriptors for what is no flow: lanes, doorbells, listening sockets, other ports of the worker

# What is changed while the network carries on, see Port.change.
LIVE = frozenset({"hostfwd", "guestfwd"})
CALLS = "calls"  # the deposit of a shard's socket where the first one passes connections on
LEASES = True  # hears of them
# Why a new flow was refused, and what to do, by the cause that counts its frames.
LACKS = {
    "tx_flows": "all of max-flows are in use, or the three quarters of them that are for one guest (raise max-flows)",
    "tx_sockets": "this worker has all its descriptors in use, or the three quarters of them that are for one guest"
    " (raise the limit: ulimit -Hn, or LimitNOFILE= of the service; or shards, each has its own)",
    "tx_ports": "no port of this host is free (widen it: sysctl -w net.ipv4.ip_local_port_range='1024 65535')",
}
FLOWS_PAGE = 400  # 1 ms of the engine's time, and less than a record of the line
READS = frozenset({"mtu"})
# Only services behind the network read them: a change leaves the guests' connections alone.
PASSED_ON = (settings.KEYS - {"dhcpstart"}) | names.PASSED_ON | tftp.PASSED_ON | smb.PASSED_ON
REFUSED = {"ip": "QEMU's oldest form of the network, which its documents do not have any more; give net = ADDRESS/24"}
NO_QEMU = "it is a network, not a guest's port; a guest attaches to a stream or dgram port of the same switch"


def companions(given: Options) -> Iterator[kinds.Companion]:
    """Its shards beyond the first; the services that stand behind the network, and what of its frames is for each."""
    for share in range(1, given.shards):
        yield kinds.Companion(str(share), "user", None, (), share)
    if given.dhcp:
        yield _dhcp(given)
    if given.echo:
        yield _companion("echo", given, (given.host4, given.host6), ("udp", 7, 7), ("tcp", 7, 7))
    if given.tftp:
        transfers = ("udp", tftp.PORTS[0], tftp.PORTS[-1])
        at = (given.host4, given.host6)
        yield _companion("tftp", given, at, ("udp", 69, 69), transfers, **tftp.given(given))
    if given.smb:
        yield _companion("smb", given, (given.smb4, None), ("tcp", 445, 445), ("tcp", 139, 139), **smb.given(given))
    if given.resolvers:
        at = (given.dns4, given.dns6)
        hosts = (given.host4, given.host6)
        yield _companion("dns", given, at, ("udp", 53, 53), ("tcp", 53, 53), **names.given(given, hosts))


def _dhcp(given: Options) -> kinds.Companion:
    """What guests are told of this network: nothing that leads out of it where it is restricted."""
    network, host4, host6 = given.network, given.host4, given.host6
    keys, takes = settings.texts(given), []
    if network is not None and host4 is not None:
        host = str(host4)
        every = ("udp", EVERYBODY, server.SERVER_PORT, server.SERVER_PORT)
        takes += [("udp", host, server.SERVER_PORT, server.SERVER_PORT), every, ("neighbours", host, 0, 0)]
        excepted = [given.dns4, given.smb4, *(one.address for one in given.served)]
        keys |= {"except": ", ".join(str(one) for one in excepted if one is not None)}
        keys.setdefault("next-server", host)
        if not given.restrict:
            keys["router"] = host
    if host6 is not None:
        takes += [("udp", to, server6.SERVER_PORT, server6.SERVER_PORT) for to in (str(host6), DHCP_SERVERS)]
    if given.resolvers:
        keys["dns"] = ", ".join(given.resolvers)
    return _companion("dhcp", given, (host4, host6), **keys)._replace(takes=tuple(takes))


def _companion(
    kind: str,
    given: Options,
    at: tuple[ipaddress.IPv4Address | None, ipaddress.IPv6Address | None],
    *takes: tuple[str, int, int],
    **keys: str,
) -> kinds.Companion:
    """A service at an address of each family, which has these ports of both."""
    for key, address, network in (("address", at[0], given.network), ("address6", at[1], given.network6)):
        if address is not None and network is not None:
            keys[key] = f"{address}/{network.prefixlen}"
    every = [str(address) for address in at if address is not None]
    rules = tuple((what, address, first, last) for what, first, last in takes for address in every)
    return kinds.Companion(kind, kind, keys, rules)


@dataclasses.dataclass
class Inward:
    """A hostfwd that stands: its sockets, what the engine calls them, and the file of a unix socket."""

    rule: forwards.HostForward
    sockets: list[socket.socket]
    numbers: list[int]
    file: tuple[addresses.Unix, tuple[int, int] | None] | None

    @property
    def where(self) -> str:
        """Where it listens, with the port that it got."""
        name = self.sockets[0].getsockname()
        if isinstance(name, str):
            return name
        first = addresses.written(name[0], name[1])
        return f"{first}-{name[1] + self.rule.count - 1}" if self.rule.count > 1 else first


class Port:
    def __init__(self, given: Options, place: "worker.Place") -> None:
        self.options = given
        self.place = place
        self.descriptors = 0
        self.inward: dict[str, Inward] = {}  # by the rule
        self.named: dict[str, forwards.Address] = {}  # the leases
        self.calls = -1  # of a shard beyond the first: where that one passes connections on
        self.moving = moving.Moving(place, self._tell)

    def prepare(self) -> None:
        """Bind what is forwarded from the host, while there may be a right to low ports; make the list of flows."""
        if (kept := self.place.recall(LEDGER)) is not None:
            os.close(kept)
        else:
            memory = os.memfd_create(f"shardnet {self.place.name} flows")
            os.ftruncate(memory, -(-self.options.flows_each * RECORD // mmap.PAGESIZE) * mmap.PAGESIZE)
            self.place.deposit(LEDGER, memory)
            os.close(memory)
        if self.place.share:
            if (kept := self.place.recall(CALLS)) is not None:
                os.close(kept)
            else:
                with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK) as bound:
                    bound.bind(self._link(self.place.port))
                    bound.listen(8)
                    self.place.deposit(CALLS, bound.fileno())
        for rule in filter(self._has, self.options.inward):
            for key, step in _keys(rule):
                if (kept := self.place.recall(key)) is not None:
                    os.close(kept)
                    continue
                with self._bind(rule, step) as bound:
                    self.place.deposit(key, bound.fileno())

    def open(self) -> None:
        self.descriptors = _descriptors()
        wanted = 2 * self.options.flows_each
        if self.descriptors < wanted:
            self.place.log(
                f"{self.descriptors} flows at most, of TCP and UDP together, instead of {wanted}: each is a descriptor"
                " (raise the limit: ulimit -Hn, or LimitNOFILE= of the service)"
            )
        self._close_sockets()
        if self.place.share:
            calls = self.place.recall(CALLS)
            assert calls is not None  # prepare() deposited it
            self.calls = calls
        ledger = self.place.recall(LEDGER)
        assert ledger is not None  # prepare() deposited it
        try:
            self.place.shard.add_user(self.place.port, {**self._described(), "ledger": ledger})
        finally:
            os.close(ledger)  # it is mapped
        self.change(self.options)

    def change(self, wanted: Options) -> None:
        """Forward as `wanted` says from now on; what is open stays open. The sockets were bound by prepare()."""
        rules = {str(rule): rule for rule in filter(self._has, wanted.inward)}
        for text in [text for text in self.inward if text not in rules]:
            self._end(self.inward.pop(text))
        keys = {key for rule in rules.values() for key, _ in _keys(rule)}
        for key in [
            key for key in self.place.kept if key.startswith("hostfwd ") and key not in keys
        ]:  # of a change that could not be made
            self.place.forget(key)
        for text, rule in rules.items():
            if text not in self.inward:
                self._begin(text, rule)
        self.place.shard.serve_at(self.place.port, [_served(one) for one in wanted.served])
        self.options = wanted
        if not self.moving.state:
            self._tell()

    def short(self, cause: str) -> None:
        """Say what new flows are refused for, and what to do."""
        self.place.log(f"new flows are refused: {LACKS[cause]}; counted as {cause}")

    def _tell(self) -> None:
        """Say that the network is up, and where what is forwarded goes."""
        wanted = self.options
        hosts = " and ".join(str(host) for host in (wanted.host4, wanted.host6) if host is not None)
        told = [f"{one.rule.kind} {one.where} to {self._goal(one.rule)}" for one in self.inward.values()]
        who = f"shard {self.place.share} of {self.place.behind}" if self.place.share else f"this host is {hosts}"
        self.place.state("up", "; ".join([who, *told]))

    def leased(self, what: str, address: str, mac: str, name: str) -> None:
        """Note who has a name; forwards to it follow."""
        ip = ipaddress.ip_address(address)
        self.named = {known: its for known, its in self.named.items() if its != ip}
        if what in ("known", "given", "renewed") and name:
            self.named[name.lower()] = ip
        for one in self.inward.values():
            if one.rule.name:
                guest = self._guest(one.rule)
                for number in one.numbers:
                    with contextlib.suppress(OSError):  # another UDP forward goes there already: to nobody then
                        self.place.shard.move_forward(self.place.port, number, None if guest is None else str(guest))

    def close(self) -> None:
        self.moving.close()
        self.place.shard.remove(self.place.port)
        self._close_sockets()

    def asked(self, what: str, args: Mapping[str, Any]) -> dict[str, Any] | list[Any]:
        """network: the addresses, for who wants to be a guest by hand; flows; forwards with what came by them; steps of a move."""
        if what in moving.STEPS:
            return self.moving.asked(what, args, ())
        if what == "flows":
            cursor = args.get(answers.CURSOR, 0)
            if not isinstance(cursor, int) or not 0 <= cursor < 1 << 40:
                raise ValueError("no cursor of an answer")
            rows, after = self.place.shard.flows(self.place.port, cursor, FLOWS_PAGE)
            return answers.page(rows, after)
        if what == "forwards":
            return self._forwards()
        if what != "network":
            raise ValueError("unknown question" + options.meant(what, ["flows", "forwards", "network", *moving.STEPS]))
        given = self.options
        found = {
            "net": given.network,
            "host": given.host4,
            "lease": given.lease,
            "net6": given.network6,
            "host6": given.host6,
        }
        told = {key: None if value is None else str(value) for key, value in found.items()}
        return {**told, "mtu": given.mtu, "resolvers": given.resolvers, "namespace": hands.namespace()}

    def handed(self, what: str, args: Mapping[str, Any], fds: Sequence[int]) -> dict[str, Any]:
        """The steps of a move."""
        if what not in moving.STEPS:
            raise ValueError("this question takes no descriptors" + options.meant(what, moving.STEPS))
        return self.moving.asked(what, args, fds)

    def ended(self, error: int) -> None:
        """A network has no descriptor that could end."""

    def _forwards(self) -> list[dict[str, Any]]:
        """Each shard has a row for every rule, but says only of its own where they listen."""
        counts = self.place.shard.forwards(self.place.port)
        found = []
        for rule in self.options.inward:
            text, one = str(rule), self.inward.get(str(rule))
            numbers = one.numbers if one else [_number(key) for key, _ in _keys(rule)]
            each = [counts.get(number, (0, 0, 0)) for number in numbers]
            taken, refused, opened = (sum(count[at] for count in each) for at in range(3))
            row = {"way": "hostfwd", "rule": text, "listens": one.where if one else "", "to": self._goal(rule)}
            found.append({**row, "taken": taken, "refused": refused, "open": opened})
        served = zip(self.options.served, self.place.shard.served(self.place.port), strict=True)
        for service, (taken, refused, opened) in served:
            where = addresses.written(str(service.address), service.port)
            row = {"way": "guestfwd", "rule": str(service), "listens": where, "to": str(service).split("-", 1)[1]}
            found.append({**row, "taken": taken, "refused": refused, "open": opened})
        return found

    def _begin(self, text: str, rule: forwards.HostForward) -> None:
        guest = self._guest(rule)
        one = Inward(rule, [], [], None)
        try:
            for key, step in _keys(rule):
                fd = self.place.recall(key)
                assert fd is not None  # prepare() deposited it
                one.sockets.append(socket.socket(fileno=fd))
                to = None if guest is None else str(guest)
                number = self.place.shard.add_forward(
                    self.place.port, _number(key), fd, rule.kind, to, rule.port + step
                )
                one.numbers.append(number)
        except OSError:
            self._end(one)
            raise
        if rule.kind == "unix":
            address = addresses.Unix(path=rule.path)
            one.file = (address, address.identity)
        self.inward[text] = one

    def _end(self, one: Inward) -> None:
        """Take nothing more there, and have nobody keep the sockets."""
        for number in one.numbers:
            self.place.shard.remove_forward(self.place.port, number)
        _close(one)
        for key, _ in _keys(one.rule):
            self.place.forget(key)

    def _close_sockets(self) -> None:
        for one in self.inward.values():
            _close(one)
        self.inward.clear()
        if self.calls >= 0:
            os.close(self.calls)
            self.calls = -1

    def _has(self, rule: forwards.HostForward) -> bool:
        """Does this shard listen for a rule? The first one does for connections, a guest's own for its datagrams."""
        if rule.kind != "udp" or self.options.shards == 1:
            return self.place.share == 0
        return _core.share(str(rule.guest or self.options.lease), self.options.shards) == self.place.share

    def _link(self, port: int) -> bytes:
        """The name at which a shard of this network listens: of no file, so it leaves nothing behind."""
        where = f"{self.place.run_dir} {self.place.owner} {port}"
        return b"\0shardnet " + hashlib.sha256(where.encode()).hexdigest().encode()

    def _guest(self, rule: forwards.HostForward) -> forwards.Address | None:
        """Who a forward goes to now."""
        if not rule.name:
            return rule.guest or self.options.lease
        found = self.named.get(rule.name)
        if found is None:
            return None
        its_net = self.options.network6 if found.version == 6 else self.options.network
        return found if its_net is not None and found in its_net else None

    def _goal(self, rule: forwards.HostForward) -> str:
        return f"{rule.name}:{rule.port}" if rule.name else addresses.written(str(self._guest(rule)), rule.port)

    def _bind(self, rule: forwards.HostForward, step: int) -> socket.socket:
        if rule.kind == "unix":
            return addresses.Unix(path=rule.path).bind(socket.SOCK_STREAM)
        guest = rule.guest or self.options.lease  # a name may have either, and IPv4 mostly
        host = rule.host or ("::" if guest is not None and guest.version == 6 else "0.0.0.0")
        kind = socket.SOCK_DGRAM if rule.kind == "udp" else socket.SOCK_STREAM
        port = rule.first + step if rule.first else 0
        return addresses.Inet(host=host, port=str(port)).bind(kind)

    def _described(self) -> dict[str, Any]:
        given = self.options
        out4, out6, interface = None, None, given.outbound
        with contextlib.suppress(ValueError):
            out = ipaddress.ip_address(given.outbound)
            out4, out6, interface = (str(out) if out.version == 4 else None, str(out) if out.version == 6 else None, "")
        net, net6 = given.network, given.network6
        shards = [self.place.companions[str(share)] for share in range(1, given.shards)]
        links = [struct.pack("=H", socket.AF_UNIX) + self._link(port) for port in shards]
        return {
            "ipv4": net and (str(net.network_address), net.prefixlen, str(given.host4), out4),
            "ipv6": net6 and (str(net6.network_address), net6.prefixlen, str(given.host6), out6),
            "mtu": given.mtu,
            "restrict": given.restrict,
            "loopback": None if given.host_loopback is None else list(given.host_loopback),
            "interface": interface,
            "max_flows": given.flows_each,
            "managed": given.dhcp,
            "sockets": self.descriptors,
            "resolvers": [address for address in given.resolvers if ":" in address],
            "search": list(given.dnssearch) or [name for name in [given.domainname] if name],
            "services": [(*rule, self.place.companions[one.suffix]) for one in companions(given) for rule in one.takes],
            "guestfwd": [_served(one) for one in given.served],
            "shards": [self.place.owner, *shards] if shards else [],
            "share": self.place.share,
            "links": [] if self.place.share else links,
            "calls": self.calls if self.place.share else None,
        }


def _descriptors() -> int:
    """How many descriptors this process may have for flows: as many as the system allows it, without those for the rest."""
    hands.widen()
    allowed, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return max(16, allowed - RESERVED) if allowed != resource.RLIM_INFINITY else sys.maxsize


def _number(key: str) -> int:
    """What a forward is called in the engine of every shard, now and after its death."""
    return zlib.crc32(key.encode())


def _keys(rule: forwards.HostForward) -> list[tuple[str, int]]:
    """The deposits of a rule, one a port of its range."""
    return [(f"hostfwd {rule} {step}", step) for step in range(rule.count)]


def _close(one: Inward) -> None:
    for bound in one.sockets:
        bound.close()
    if one.file is not None:
        address, identity = one.file
        address.remove(identity)


def _served(service: forwards.GuestForward) -> tuple[str, int, bytes | str]:
    return str(service.address), service.port, _target(service)


def _target(service: forwards.GuestForward) -> bytes | str:
    if service.kind == "cmd":
        return service.to
    if service.kind == "unix":
        return addresses.Unix(path=service.to).sockaddr
    return addresses.Inet(host=service.to, port=str(service.to_port)).sockaddr
