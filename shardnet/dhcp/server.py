"""What a DHCP server for IPv4 answers (RFC 2131): a datagram and the time in, datagrams out.

    DISCOVER          OFFER, or at once ACK where the client asks for that (RFC 4039)
    REQUEST           ACK or NAK, in each of the client's four states: selecting, rebooting, renewing, rebinding
    DECLINE, RELEASE  nothing; the table of leases changes
    INFORM            ACK without an address
    BOOTP             a reply, and a lease

Whom a message is from is told by its frame: a hardware address in the message that is not the frame's is refused, unless a relay agent
sent it on. What a guest sends is bounded by rate (50 a second and origin), by size, and by what its origin may hold.

An address that nobody is known to have is first asked for: the offer waits until `probed` says that nobody answered.
"""

import collections
import contextlib
import dataclasses
import ipaddress
from collections.abc import Callable, Hashable, Iterable
from typing import NamedTuple

from shardnet.dhcp import boot, leases, message

SERVER_PORT, CLIENT_PORT = 67, 68
EVERYBODY = bytes((255, 255, 255, 255))
EVERY_MAC = bytes((255,) * 6)
FOREVER = 0xFFFFFFFF
LEASE_MIN_S = 60  # that a guest may ask for
RATE, BURST = 50.0, 100.0
ORIGINS_MAX = 1024
PROBES_MAX = 64
IPV4_UDP_BYTES = 28

ECHOED = (message.CLIENT_ID, message.MACHINE_ID)  # RFC 6842; PXE 2.1, table 2-1
LAST = (message.RELAY_INFO,)  # RFC 3046, 2.1
FQDN_S, FQDN_O, FQDN_E = 0x01, 0x02, 0x04


class Datagram(NamedTuple):
    """One datagram; `peer` is the far side, `local` ours, both ways. `mac` is the peer's, empty where it is to be found out."""

    payload: bytes
    peer: bytes
    peer_port: int
    local: bytes
    local_port: int
    mac: bytes


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """What clients are told."""

    address: ipaddress.IPv4Address
    network: ipaddress.IPv4Network
    lease_s: int = 86_400
    routers: tuple[ipaddress.IPv4Address, ...] = ()
    dns: tuple[ipaddress.IPv4Address, ...] = ()
    ntp: tuple[ipaddress.IPv4Address, ...] = ()
    hostname: str = ""
    domain: str = ""
    search: tuple[str, ...] = ()
    mtu: int = 0
    routes: tuple[tuple[ipaddress.IPv4Network, ipaddress.IPv4Address], ...] = ()
    next_server: ipaddress.IPv4Address | None = None
    tftp_name: str = ""
    bootfile: str = ""
    rules: tuple[boot.Rule, ...] = ()
    authoritative: bool = True
    relays: tuple[ipaddress.IPv4Address, ...] = ()
    room: int = 1500  # of a packet


class Bucket:
    """How much of a flood from one origin is looked at."""

    def __init__(self) -> None:
        self._left: collections.OrderedDict[Hashable, tuple[float, float]] = collections.OrderedDict()

    def takes(self, origin: Hashable, now: float) -> bool:
        """Is there a token for one more message?"""
        left, since = self._left.pop(origin, (BURST, now))
        left = min(BURST, left + (now - since) * RATE)
        self._left[origin] = (left - 1 if left >= 1 else left, now)
        if len(self._left) > ORIGINS_MAX:
            self._left.popitem(last=False)
        return left >= 1


class Server:
    """One server and its pool."""

    def __init__(
        self,
        config: Config,
        table: leases.Leases,
        count: Callable[[str], None] = lambda _name: None,
        probes: bool = False,
    ) -> None:
        """`count` is told what happened, by name. With `probes`, whoever drives this sees to `asking`."""
        self.config, self.leases, self.count, self.probes = config, table, count, probes
        self.asking: dict[bytes, tuple[message.Message, Datagram, leases.Client]] = {}  # addresses to be probed
        self._bucket = Bucket()
        self._address = config.address.packed
        self._static = self._said(config)

    def receive(self, came: Datagram, now: float, origin: Hashable = None) -> list[Datagram]:
        """Answer one datagram; `origin` is where it came from, the peer's hardware address unless more is known."""
        origin = came.mac if origin is None else origin
        if not self._bucket.takes(origin, now):
            self.count("too_fast")
            return []
        try:
            request = message.read(came.payload)
        except message.Malformed:
            self.count("malformed")
            return []
        why = self._refused(request, came)
        if why:
            self.count(why)
            return []
        if request.giaddr != message.NOWHERE and ipaddress.IPv4Address(request.giaddr) in self.config.relays:
            origin = None
        key = leases.key4(request.htype, request.chaddr, request.options.get(message.CLIENT_ID, b""))
        client = leases.Client(key, request.chaddr, origin)
        self.count(message.KINDS[request.kind] or "bootp")
        try:
            match request.kind:
                case message.DISCOVER:
                    return self._discover(request, came, client, now)
                case message.REQUEST:
                    return self._request(request, came, client, now)
                case message.DECLINE:
                    self._decline(request, client, now)
                case message.RELEASE:
                    self._release(request, client)
                case message.INFORM:
                    return self._inform(request, came)
                case 0:
                    return self._bootp(request, came, client, now)
                case _:
                    self.count("senseless")
        except leases.Refused as refused:
            self.count(str(refused))
        return []

    def probed(self, address: bytes, taken_by: bytes | None, now: float) -> list[Datagram]:
        """Go on after an address was asked for: somebody with this hardware address answered, or (None) nobody did."""
        request, came, client = self.asking.pop(address, (None, None, None))
        if request is None or came is None or client is None:
            return []
        try:
            if taken_by is not None and taken_by != request.chaddr:
                self.count("conflict")
                with contextlib.suppress(
                    leases.Refused
                ):  # it says so of too many: a liar, or a router that answers for all
                    self.leases.decline(address, client._replace(mac=taken_by, origin=taken_by), now)
                    return self._discover(request, came, client, now)
            return self._offer(request, came, client, now, self.leases.offer(client, now, address))
        except leases.Refused as refused:
            self.count(str(refused))
            return []

    def _refused(self, request: message.Message, came: Datagram) -> str:
        """Why a message is not looked at: the name of a counter, or nothing."""
        if request.op != message.REQUEST_OP:
            return "senseless"
        if request.giaddr != message.NOWHERE:
            relay = ipaddress.IPv4Address(request.giaddr)
            return "" if relay in self.config.network or relay in self.config.relays else "unknown_relay"
        if request.htype != message.ETHERNET or len(request.chaddr) != 6 or request.chaddr[0] & 1:
            return "senseless"
        return "" if request.chaddr == came.mac else "spoofed"

    # Messages.

    def _discover(self, request: message.Message, came: Datagram, client: leases.Client, now: float) -> list[Datagram]:
        lease = self.leases.offer(client, now, request.address(message.ADDRESS))
        if self.probes and lease.state == "offered" and not lease.had:
            if len(self.asking) < PROBES_MAX:
                self.asking[lease.address] = (request, came, client)
            return []
        return self._offer(request, came, client, now, lease)

    def _offer(
        self, request: message.Message, came: Datagram, client: leases.Client, now: float, lease: leases.Lease
    ) -> list[Datagram]:
        if message.RAPID_COMMIT in request.options:
            return self._ack(request, came, client, lease.address, now, {message.RAPID_COMMIT: b""})
        reply = self._reply(request, message.OFFER, lease.address, self._name(client), self._seconds(request))
        return [self._send(reply, request, came)]

    def _request(self, request: message.Message, came: Datagram, client: leases.Client, now: float) -> list[Datagram]:
        server = request.address(message.SERVER)
        wanted = request.address(message.ADDRESS)
        lease = self.leases.held(client.key)
        if server is not None and server != self._address:
            if lease is not None and lease.state == "offered":
                self.leases.release(lease)  # it takes another server's offer
            self.count("other_server")
            return []
        is_selecting = server is not None and request.ciaddr == message.NOWHERE
        address = request.ciaddr if request.ciaddr != message.NOWHERE else wanted
        if address is None:
            self.count("senseless")
            return []
        is_known = lease is not None and lease.address == address and lease.state != "declined"
        if ipaddress.IPv4Address(address) not in self.config.network:
            return self._nak(request, came, "wrong network")
        if not is_known and not is_selecting and not self.config.authoritative:
            # RFC 2131, 4.3.2: of a client without a record nothing is said, another server may know it.
            if lease is None:
                self.count("unknown_client")
                return []
            return self._nak(request, came, "leased another address")
        if not is_known and not is_selecting and lease is not None and lease.state == "bound":
            return self._nak(request, came, "leased another address")
        if not self.leases.is_free_for(client, address):
            return self._nak(request, came, "address not available")
        try:
            return self._ack(request, came, client, address, now, {})
        except leases.Refused as refused:
            self.count(str(refused))
            return self._nak(request, came, "address not available")

    def _ack(
        self,
        request: message.Message,
        came: Datagram,
        client: leases.Client,
        address: bytes,
        now: float,
        more: dict[int, bytes],
    ) -> list[Datagram]:
        seconds = self._seconds(request)
        until = float("inf") if seconds == FOREVER else float(seconds)
        lease = self.leases.bind(client, address, now, until, _name_in(request))
        reply = self._reply(request, message.ACK, lease.address, lease.name, seconds)
        reply.ciaddr = request.ciaddr
        reply.options.update(more)
        return [self._send(reply, request, came)]

    def _nak(self, request: message.Message, came: Datagram, why: str) -> list[Datagram]:
        reply = message.Message(
            htype=request.htype,
            xid=request.xid,
            flags=request.flags | (message.BROADCAST if request.giaddr != message.NOWHERE else 0),
            giaddr=request.giaddr,
            chaddr=request.chaddr,
            options={
                message.KIND: bytes((message.NAK,)),
                message.SERVER: self._address,
                message.TEXT: why.encode(),
                **_echo(request),
            },
        )
        return [self._send(reply, request, came)]

    def _decline(self, request: message.Message, client: leases.Client, now: float) -> None:
        address = request.address(message.ADDRESS)
        lease = self.leases.held(client.key)
        if address is None or lease is None or lease.address != address or not self._is_ours(request):
            self.count("senseless")
            return
        self.leases.decline(address, client, now)

    def _release(self, request: message.Message, client: leases.Client) -> None:
        lease = self.leases.held(client.key)
        if lease is None or lease.address != request.ciaddr or lease.state != "bound" or not self._is_ours(request):
            self.count("senseless")
            return
        self.leases.release(lease)

    def _is_ours(self, request: message.Message) -> bool:
        return request.address(message.SERVER) in (None, self._address)

    def _inform(self, request: message.Message, came: Datagram) -> list[Datagram]:
        if ipaddress.IPv4Address(request.ciaddr) not in self.config.network:
            self.count("senseless")
            return []
        reply = self._reply(request, message.ACK, message.NOWHERE, "", None)
        reply.ciaddr = request.ciaddr
        return [self._send(reply, request, came)]

    def _bootp(self, request: message.Message, came: Datagram, client: leases.Client, now: float) -> list[Datagram]:
        name = request.sname.decode("ascii", "replace")
        if name and name not in (self.config.tftp_name, str(self.config.address)):
            self.count("other_server")
            return []
        lease = self.leases.offer(client, now)
        lease = self.leases.bind(client, lease.address, now, self.config.lease_s, _name_in(request))
        reply = self._reply(request, 0, lease.address, lease.name, None)
        return [self._send(reply, request, came)]

    # Replies.

    def _seconds(self, request: message.Message) -> int:
        asked = request.options.get(message.LEASE_TIME, b"")
        if len(asked) != 4:
            return self.config.lease_s
        return min(max(int.from_bytes(asked, "big"), LEASE_MIN_S), self.config.lease_s)

    def _name(self, client: leases.Client) -> str:
        reserved = self.leases.reserved(client.key, client.mac)
        lease = self.leases.held(client.key)
        return (reserved.name if reserved else "") or (lease.name if lease else "")

    def _reply(
        self, request: message.Message, kind: int, address: bytes, name: str, seconds: int | None
    ) -> message.Message:
        """A reply with what the client asked for, in the order in which it did (RFC 2132, 9.8)."""
        reply = message.Message(
            htype=request.htype,
            xid=request.xid,
            flags=request.flags,
            yiaddr=address,
            giaddr=request.giaddr,
            chaddr=request.chaddr,
        )
        options = reply.options
        if kind:
            options |= {message.KIND: bytes((kind,)), message.SERVER: self._address}
        if seconds is not None:
            options[message.LEASE_TIME] = seconds.to_bytes(4, "big")
            if seconds != FOREVER:
                options[message.RENEWAL] = (seconds // 2).to_bytes(4, "big")
                options[message.REBINDING] = (seconds * 7 // 8).to_bytes(4, "big")
        have = dict(self._static)
        is_kept = name and any(one.name == name for one in self.leases.reservations)
        if host := (name if is_kept else self.config.hostname or name or _name_in(request)):
            have[message.HOST_NAME] = host.encode()
        self._add_boot(request, reply, have)
        wanted = list(dict.fromkeys(request.options.get(message.WANTED, b"")))
        if wanted and message.MASK in wanted and message.ROUTER in wanted:
            wanted.remove(message.MASK)
            wanted.insert(wanted.index(message.ROUTER), message.MASK)  # RFC 2132, 3.3
        for code in wanted or (code for code in have if code != message.ROUTES_MICROSOFT):
            if code in have:
                options.setdefault(code, have[code])
        if message.FQDN in request.options:
            options |= self._fqdn(request.options[message.FQDN], name)
        options |= _echo(request)
        return reply

    def _add_boot(self, request: message.Message, reply: message.Message, have: dict[int, bytes]) -> None:
        vendor = request.options.get(message.VENDOR_CLASS, b"")
        asker = boot.Asker(
            boot.numbers(request.options.get(message.ARCHITECTURE, b"")),
            boot.classes(request.options.get(message.USER_CLASS, b"")),
            vendor,
        )
        file = boot.file(asker, self.config.rules, self.config.bootfile)
        server = self.config.next_server or (self.config.address if file else None)
        if server is not None:
            reply.siaddr = server.packed
            have[message.TFTP_SERVERS] = server.packed
        if name := self.config.tftp_name or (str(server) if file and server else ""):
            have[message.BOOT_SERVER] = name.encode()
        reply.sname = self.config.tftp_name.encode()
        if not file:
            return
        reply.file = have[message.BOOT_FILE] = file.encode()
        if len(reply.file) > 127 and reply.kind:
            reply.options[message.BOOT_FILE] = reply.file
        if vendor.startswith(b"HTTPClient") and file.startswith(("http://", "https://")):
            reply.options[message.VENDOR_CLASS] = (
                b"HTTPClient"  # UEFI 2.10, 24.7.3.1: what else is no offer to boot by HTTP
            )

    def _fqdn(self, asked: bytes, name: str) -> dict[int, bytes]:
        """The client's full name (RFC 4702): names of the lab are ours to give, so S is set whatever it wished."""
        if len(asked) < 3 or not name:
            return {}
        full = f"{name}.{self.config.domain}" if self.config.domain else name
        flags = FQDN_S | (asked[0] & FQDN_E) | (0 if asked[0] & FQDN_S else FQDN_O)
        return {message.FQDN: bytes((flags, 255, 255)) + (message.labels(full) if flags & FQDN_E else full.encode())}

    def _send(self, reply: message.Message, request: message.Message, came: Datagram) -> Datagram:
        """Address a reply (RFC 2131, 4.1) and write it."""
        asked = request.options.get(message.SIZE_MAX, b"")
        packet = max(int.from_bytes(asked, "big"), 576) if len(asked) == 2 else 576
        most = min(packet, self.config.room) - IPV4_UDP_BYTES if reply.kind else message.LEAST_BYTES
        payload = message.write(reply, most, LAST)
        self.count({message.OFFER: "offer", message.ACK: "ack", message.NAK: "nak"}.get(reply.kind, "bootp_reply"))
        to, mac, port = EVERYBODY, EVERY_MAC, CLIENT_PORT
        if request.giaddr != message.NOWHERE:
            to, mac, port = request.giaddr, came.mac, SERVER_PORT
        elif reply.kind == message.NAK:
            pass
        elif request.ciaddr != message.NOWHERE:
            to, mac = request.ciaddr, came.mac
        elif not request.flags & message.BROADCAST:
            to, mac = reply.yiaddr, request.chaddr
        return Datagram(payload, to, port, self._address, SERVER_PORT, mac)

    @staticmethod
    def _said(config: Config) -> dict[int, bytes]:
        """What every client may have."""
        every = list(config.routes)
        if every and config.routers:
            # RFC 3442: who asks for these routes does not look at the router.
            every.append((ipaddress.IPv4Network("0.0.0.0/0"), config.routers[0]))
        classless = message.routes((net.network_address.packed, net.prefixlen, by.packed) for net, by in every)
        found = {
            message.MASK: config.network.netmask.packed,
            message.ROUTER: _packed(config.routers),
            message.DNS: _packed(config.dns),
            message.DOMAIN: config.domain.encode(),
            message.BROADCAST_ADDRESS: config.network.broadcast_address.packed,
            message.MTU: config.mtu.to_bytes(2, "big") if config.mtu else b"",
            message.NTP: _packed(config.ntp),
            message.SEARCH: message.search(config.search),
            message.ROUTES: classless,
            message.ROUTES_MICROSOFT: classless,
        }
        return {code: value for code, value in found.items() if value}


def _packed(addresses: Iterable[ipaddress.IPv4Address]) -> bytes:
    return b"".join(address.packed for address in addresses)


def _echo(request: message.Message) -> dict[int, bytes]:
    return {code: request.options[code] for code in (*ECHOED, *LAST) if code in request.options}


def _name_in(request: message.Message) -> str:
    """The name that a client gives itself."""
    full = request.options.get(message.FQDN, b"")
    if len(full) > 3 and (name := message.name_of(full[3:], bool(full[0] & FQDN_E))):
        return name
    return message.name_of(request.options.get(message.HOST_NAME, b""), False)
