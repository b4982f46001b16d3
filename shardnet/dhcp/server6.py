"""What a DHCP server for IPv6 answers (RFC 8415): a datagram and the time in, datagrams out.

    SOLICIT                ADVERTISE, or at once REPLY where the client asks for a rapid commit
    REQUEST, RENEW         REPLY with leases; a client that is not known is taken in if what it has is free
    REBIND                 the same, from whichever server
    CONFIRM                REPLY: is it still the right link?
    RELEASE, DECLINE       REPLY; the table of leases changes
    INFORMATION-REQUEST    REPLY with what needs no lease: DNS, search list, NTP, boot file

There is one address for each IA_NA; prefixes (IA_PD) and temporary addresses (IA_TA) are refused by their status. Relay agents are not
served. Our preference is 255, so that a client does not wait a second for other servers.
"""

import dataclasses
import ipaddress
from collections.abc import Callable, Hashable

from shardnet.dhcp import boot, leases, message, message6, server

SERVER_PORT, CLIENT_PORT = 547, 546
FQDN_S, FQDN_O = 0x01, 0x02
REFRESH_MIN_S, REFRESH_S = 600, 86_400  # RFC 8415, 21.23
IPV6_UDP_BYTES = 48
MINIMUM_MTU = 1280
ASSOCIATIONS_MAX = 16
HTTP_CLASS = (343).to_bytes(4, "big") + (10).to_bytes(2, "big") + b"HTTPClient"  # UEFI 2.10, 24.7.3.1
ADDRESSED = (message6.REQUEST, message6.RENEW, message6.RELEASE, message6.DECLINE)
ANYBODYS = (message6.SOLICIT, message6.CONFIRM, message6.REBIND)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """What clients are told."""

    duid: bytes
    address: ipaddress.IPv6Address
    network: ipaddress.IPv6Network
    lease_s: int = 86_400
    dns: tuple[ipaddress.IPv6Address, ...] = ()
    ntp: tuple[ipaddress.IPv6Address, ...] = ()
    domain: str = ""
    search: tuple[str, ...] = ()
    bootfile: str = ""
    rules: tuple[boot.Rule, ...] = ()


class Server:
    """One server and its pool; without one (`table` None) it leases nothing and says the rest."""

    def __init__(
        self, config: Config, table: leases.Leases | None, count: Callable[[str], None] = lambda _name: None
    ) -> None:
        self.config, self.leases, self.count = config, table, count
        self._bucket = server.Bucket()

    def receive(self, came: server.Datagram, now: float, origin: Hashable = None) -> list[server.Datagram]:
        """Answer one datagram; `origin` is where it came from, the peer's hardware address unless more is known."""
        origin = came.mac if origin is None else origin
        if not self._bucket.takes(origin, now):
            self.count("too_fast")
            return []
        try:
            asked = message6.read(came.payload)
        except message.Malformed:
            self.count("malformed")
            return []
        if why := self._refused(asked, came):
            self.count(why)
            return []
        self.count(message6.KINDS[asked.kind])
        reply = self._answer(asked, came, origin, now)
        if reply is None:
            return []
        self.count(message6.KINDS[reply.kind])
        payload = message6.write(reply, MINIMUM_MTU - IPV6_UDP_BYTES)
        # From the address it was sent to; where that is a group, from the one that the service has on the peer's link.
        return [server.Datagram(payload, came.peer, came.peer_port, came.local, SERVER_PORT, came.mac)]

    def _refused(self, asked: message6.Message, came: server.Datagram) -> str:
        """Why a message is not looked at (RFC 8415, 16): the name of a counter, or nothing."""
        mine = asked.first(message6.SERVER)
        is_from_client = asked.first(message6.CLIENT) is not None
        if asked.kind in (message6.ADVERTISE, message6.REPLY, message6.RECONFIGURE):
            return "senseless"
        if asked.kind in ADDRESSED:
            if not is_from_client or mine is None:
                return "senseless"
            return "" if mine == self.config.duid else "other_server"
        if asked.kind in ANYBODYS and (not is_from_client or mine is not None):
            return "senseless"
        if mine not in (None, self.config.duid):
            return "other_server"
        if came.local[:1] != b"\xff":
            return "unicast"
        return "senseless" if asked.kind == message6.INFORMATION and asked.every(message6.IA_NA) else ""

    def _answer(
        self, asked: message6.Message, came: server.Datagram, origin: Hashable, now: float
    ) -> message6.Message | None:
        duid = asked.first(message6.CLIENT)
        kind = message6.REPLY
        head: message6.Options = [(message6.SERVER, self.config.duid)]
        if duid is not None:
            head.insert(0, (message6.CLIENT, duid))
        if asked.kind in ADDRESSED and came.local[:1] != b"\xff":
            # RFC 8415, 18.3: without our leave a client sends to the group only.
            return message6.Message(kind, asked.transaction, [*head, _status(message6.USE_MULTICAST)])
        if asked.kind == message6.CONFIRM:
            return self._confirm(asked, head)
        body: message6.Options = []
        if asked.kind == message6.SOLICIT:
            if asked.first(message6.RAPID_COMMIT) is None:
                kind = message6.ADVERTISE
                head.append((message6.PREFERENCE, b"\xff"))
            else:
                head.append((message6.RAPID_COMMIT, b""))
        if asked.kind in (message6.RELEASE, message6.DECLINE):
            self._end(asked, duid or b"", came, origin, now)
            return message6.Message(kind, asked.transaction, [*head, _status(message6.SUCCESS)])
        if asked.kind != message6.INFORMATION:
            names = []
            for one in asked.associations[:ASSOCIATIONS_MAX]:
                value, name = self._association(asked, kind, one, duid or b"", came, origin, now)
                body.append((message6.IA_NA, value))
                names.append(name)
            body += _not_ours(asked)
            body += self._fqdn(asked, next(filter(None, names), ""))
        return message6.Message(kind, asked.transaction, [*head, *body, *self._said(asked)])

    def _association(
        self,
        asked: message6.Message,
        kind: int,
        one: message6.Association,
        duid: bytes,
        came: server.Datagram,
        origin: Hashable,
        now: float,
    ) -> tuple[bytes, str]:
        """An IA_NA of the reply, and the name that goes with its address."""
        refusal = message6.association(one.iaid, 0, 0, [message6.status(message6.NO_ADDRESSES, "no address")])
        if self.leases is None:
            return refusal, ""
        client = leases.Client(leases.key6(duid, one.iaid), came.mac, origin)
        seconds = self.config.lease_s
        known = self.leases.held(client.key)
        stale = [ip for ip in one.addresses if known is None or ip != known.address]
        wanted = next((ip for ip in one.addresses if self.leases.is_free_for(client, ip)), None)
        if known is None and wanted is None and asked.kind in (message6.RENEW, message6.REBIND) and one.addresses:
            # RFC 8415, 18.3.4 and 18.3.5: what it has is not to be had here.
            gone = [message6.address(ip, 0, 0) for ip in one.addresses[:ASSOCIATIONS_MAX]]
            return message6.association(one.iaid, 0, 0, gone), ""
        try:
            lease = self.leases.offer(client, now, wanted)
            if kind == message6.REPLY:
                until = float("inf") if seconds == server.FOREVER else float(seconds)
                lease = self.leases.bind(client, lease.address, now, until, _name_in(asked))
        except leases.Refused as refused:
            self.count(str(refused))
            return refusal, ""
        times = (0, 0) if seconds == server.FOREVER else (seconds // 2, seconds * 4 // 5)
        inner = [message6.address(lease.address, seconds, seconds)]
        if asked.kind in (message6.RENEW, message6.REBIND):
            inner += [message6.address(ip, 0, 0) for ip in stale[:ASSOCIATIONS_MAX] if ip != lease.address]
        return message6.association(one.iaid, *times, inner), lease.name

    def _confirm(self, asked: message6.Message, head: message6.Options) -> message6.Message | None:
        named = [ip for one in asked.associations for ip in one.addresses]
        if not named:
            return None  # RFC 8415, 18.3.3
        on_link = all(ipaddress.IPv6Address(ip) in self.config.network for ip in named)
        status = _status(message6.SUCCESS if on_link else message6.NOT_ON_LINK)
        return message6.Message(message6.REPLY, asked.transaction, [*head, status])

    def _end(self, asked: message6.Message, duid: bytes, came: server.Datagram, origin: Hashable, now: float) -> None:
        if self.leases is None:
            return
        for one in asked.associations[:ASSOCIATIONS_MAX]:
            client = leases.Client(leases.key6(duid, one.iaid), came.mac, origin)
            lease = self.leases.held(client.key)
            if lease is None or lease.state != "bound" or lease.address not in one.addresses:
                continue
            if asked.kind == message6.RELEASE:
                self.leases.release(lease)
                continue
            try:
                self.leases.decline(lease.address, client, now)
            except leases.Refused as refused:
                self.count(str(refused))

    def _said(self, asked: message6.Message) -> message6.Options:
        """What needs no lease: what the client asks for, of what there is."""
        config, wanted = self.config, asked.wanted
        ntp = b"".join(message6.written(1, ip.packed) for ip in config.ntp)  # RFC 5908, 4.1
        have: message6.Options = [
            (message6.DNS, b"".join(ip.packed for ip in config.dns)),
            (message6.SEARCH, b"".join(map(message.labels, config.search or filter(None, [config.domain])))),
            (message6.NTP, ntp),
            (message6.SNTP, b"".join(ip.packed for ip in config.ntp)),
            (message6.BOOT_URL, self._boot(asked).encode()),
        ]
        found = [(code, value) for code, value in have if value and code in wanted]
        if asked.kind == message6.INFORMATION and message6.REFRESH in wanted:
            seconds = min(max(config.lease_s, REFRESH_MIN_S), REFRESH_S)
            found.append((message6.REFRESH, seconds.to_bytes(4, "big")))
        is_http = any(b"HTTPClient" in value for value in asked.every(message6.VENDOR_CLASS))
        if is_http and self._boot(asked).startswith(("http://", "https://")):
            found.append((message6.VENDOR_CLASS, HTTP_CLASS))
        return found

    def _boot(self, asked: message6.Message) -> str:
        """The boot file's URL (RFC 5970); a name alone is a file of ours, to be had by TFTP."""
        vendor = (asked.first(message6.VENDOR_CLASS) or b"")[6:]
        asker = boot.Asker(
            boot.numbers(asked.first(message6.ARCHITECTURE) or b""),
            boot.classes(asked.first(message6.USER_CLASS) or b"", 2),
            vendor,
        )
        file = boot.file(asker, self.config.rules, self.config.bootfile)
        if not file or "://" in file:
            return file
        return f"tftp://[{self.config.address}]/{file.lstrip('/')}"

    def _fqdn(self, asked: message6.Message, name: str) -> message6.Options:
        """The client's full name (RFC 4704), if it says one."""
        said = asked.first(message6.FQDN)
        if not said or not name:
            return []
        full = f"{name}.{self.config.domain}" if self.config.domain else name
        flags = FQDN_S | (0 if said[0] & FQDN_S else FQDN_O)
        return [(message6.FQDN, bytes((flags,)) + message.labels(full))]


def duid(mac: bytes) -> bytes:
    """A DUID made of a hardware address (RFC 8415, 11.4): the same in every life of a server."""
    return b"\0\3\0\1" + mac


def _status(code: int) -> tuple[int, bytes]:
    return message6.STATUS, code.to_bytes(2, "big")


def _not_ours(asked: message6.Message) -> message6.Options:
    """Refuse prefixes and temporary addresses, each by its status."""
    refused: message6.Options = []
    for code, head, why in ((message6.IA_PD, 12, message6.NO_PREFIX), (message6.IA_TA, 4, message6.NO_ADDRESSES)):
        for value in asked.every(code)[:ASSOCIATIONS_MAX]:
            if len(value) >= head:
                refused.append((code, value[:4].ljust(head, b"\0") + message6.status(why)))
    return refused


def _name_in(asked: message6.Message) -> str:
    said = asked.first(message6.FQDN) or b""
    return message.name_of(said[1:], True)
