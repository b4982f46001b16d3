"""What a lab file says about a user-mode network: the keys of [user], and what several of them say together."""

import dataclasses
import ipaddress
import re
from collections.abc import Iterator
from typing import Any

from shardnet import forwards, nets, options
from shardnet.dhcp import settings
from shardnet.dns import settings as names
from shardnet.smb import settings as smb
from shardnet.tftp import settings as tftp

IPV4 = ipaddress.IPv4Network("10.0.2.0/24")
IPV6 = ipaddress.IPv6Network("fec0::/64")
# .2.2, .2.3 and .2.4 within the network, as QEMU has them.
HOST, DNS, SMB_SERVER = 0x0202, 0x0203, 0x0204
SHARDS_MAX = 16


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(names.Options, settings.Options, tftp.Options, smb.Options):
    # IPv4. Given alone as on, IPv6 is off.
    ipv4: bool | None = None
    # IPv6. Given alone as on, IPv4 is off.
    ipv6: bool | None = None
    # The guests' IPv4 network.
    net: ipaddress.IPv4Network | None = options.option(None, read=nets.net)
    # This host's address in it, the second of its last 65,536 (x.y.2.2) unless given.
    host: ipaddress.IPv4Address | None = options.option(None, read=settings.address4)
    # The guests' IPv6 network.
    ipv6_net: ipaddress.IPv6Network | None = options.option(None, key="ipv6-net", read=nets.net6)
    # The same in two keys, QEMU's older form: the prefix.
    ipv6_prefix: ipaddress.IPv6Address | None = options.option(None, key="ipv6-prefix", read=settings.address6)
    # And its length.
    ipv6_prefixlen: int | None = options.option(None, key="ipv6-prefixlen", read=options.between(0, 126))
    # This host's address in the IPv6 network, ::2 there unless given.
    ipv6_host: ipaddress.IPv6Address | None = options.option(None, key="ipv6-host", read=settings.address6)
    # On: guests reach what guestfwd names, and nothing else.
    restrict: bool = False
    # From the host to a guest, once for each: see QEMU's. The guest is x.y.2.15 unless said; a name is whoever has its lease.
    hostfwd: tuple[str, ...] = ()
    # From guests to a service of the host's, once for each: see QEMU's.
    guestfwd: tuple[str, ...] = ()
    # Which ports of this host's loopback guests reach at the host's address.
    host_loopback: tuple[tuple[int, int], ...] | None = options.option(None, key="host-loopback", read=nets.ports)
    # Where connections go out: an address of this host, or an interface.
    outbound: str = ""
    # Off: no DHCP server is on this network, and router advertisements do not send guests to one.
    dhcp: bool = True
    # On: port 7 of this host's address sends back what it gets, over TCP and UDP (RFC 862), for guests to see that all is well.
    echo: bool = False
    # The address of the SMB server, x.y.2.4 of the network unless given.
    smbserver: ipaddress.IPv4Address | None = options.option(None, read=settings.address4)
    # How many TCP connections there may be, and as many ports of UDP, each of which is a port of this host: in each family
    # as many as net.ipv4.ip_local_port_range has, 28,232 as Linux comes. What is refused is counted.
    max_flows: int = options.option(65_536, key="max-flows", read=options.between(16, 1 << 20))
    # Over how many workers the flows are spread.
    shards: int = options.option(1, read=options.between(1, SHARDS_MAX))
    # Where the guests' DNS server is, x.y.2.3 unless given.
    dns: ipaddress.IPv4Address | None = options.option(None, read=settings.address4)
    # And in the IPv6 network, ::3 there unless given.
    ipv6_dns: ipaddress.IPv6Address | None = options.option(None, key="ipv6-dns", read=settings.address6)

    @property
    def network(self) -> ipaddress.IPv4Network | None:
        """The IPv4 network, None where IPv4 is off."""
        off = self.ipv4 is False or (self.ipv4 is None and self.ipv6 is True)
        return None if off else self.net or IPV4

    @property
    def network6(self) -> ipaddress.IPv6Network | None:
        """The IPv6 network, None where IPv6 is off."""
        if self.ipv6 is False or (self.ipv6 is None and self.ipv4 is True):
            return None
        if self.ipv6_prefix is not None or self.ipv6_prefixlen is not None:
            prefix = self.ipv6_prefix or IPV6.network_address
            return ipaddress.IPv6Network(
                (prefix, 64 if self.ipv6_prefixlen is None else self.ipv6_prefixlen), strict=False
            )
        return self.ipv6_net or IPV6

    @property
    def host4(self) -> ipaddress.IPv4Address | None:
        """This host in the IPv4 network."""
        return self.host or _within(self.network, HOST)

    @property
    def host6(self) -> ipaddress.IPv6Address | None:
        """This host in the IPv6 network."""
        if self.ipv6_host is not None or self.network6 is None:
            return self.ipv6_host
        return self.network6.network_address + 2

    @property
    def smb4(self) -> ipaddress.IPv4Address | None:
        """The SMB server in the IPv4 network."""
        return self.smbserver or _within(self.network, SMB_SERVER)

    @property
    def dns4(self) -> ipaddress.IPv4Address | None:
        """The DNS server in the IPv4 network; None where that is too small for a third address."""
        usual = _within(self.network, DNS)
        if self.network is not None and usual in (self.host4, self.network.broadcast_address):
            usual = None
        return self.dns or usual

    @property
    def dns6(self) -> ipaddress.IPv6Address | None:
        """The DNS server in the IPv6 network."""
        if self.ipv6_dns is not None or self.network6 is None or self.network6.prefixlen > 126:
            return self.ipv6_dns
        return self.network6.network_address + 3

    @property
    def resolvers(self) -> list[str]:
        """The DNS server's addresses, for guests to ask."""
        return [] if self.restrict else [str(address) for address in (self.dns4, self.dns6) if address is not None]

    @property
    def lease(self) -> ipaddress.IPv4Address | None:
        """Where hostfwd goes unless it says where: the first address that DHCP lends."""
        return self.dhcpstart or _within(self.network, settings.LEASE4)

    @property
    def flows_each(self) -> int:
        """How many TCP connections a shard may have."""
        return -(-self.max_flows // self.shards)

    @property
    def inward(self) -> list[forwards.HostForward]:
        """What hostfwd says, read."""
        return [forwards.host(text) for text in self.hostfwd]

    @property
    def served(self) -> list[forwards.GuestForward]:
        """What guestfwd says, read."""
        return [forwards.guest(text) for text in self.guestfwd]


def _within(network: ipaddress.IPv4Network | None, low: int) -> ipaddress.IPv4Address | None:
    return None if network is None else network.network_address + (low & int(network.hostmask))


def check(given: Options) -> Iterator[tuple[str, str]]:
    """Mistakes that take several keys to see."""
    network, network6 = given.network, given.network6
    if network is None and network6 is None:
        yield "ipv6", "ipv4 is off too, and nothing is left"
        return
    for key in ("net", "host", "dns"):
        if network is None and getattr(given, key) is not None:
            yield key, "IPv4 is off"
    for key in ("ipv6_net", "ipv6_prefix", "ipv6_prefixlen", "ipv6_host", "ipv6_dns"):
        if network6 is None and getattr(given, key) is not None:
            yield key.replace("_", "-"), "IPv6 is off"
    if given.ipv6_net is not None and (given.ipv6_prefix is not None or given.ipv6_prefixlen is not None):
        yield "ipv6-net", "ipv6-prefix says it too"
    for key, address, its_net in (
        ("host", given.host, network),
        ("dns", given.dns, network),
        ("ipv6-host", given.ipv6_host, network6),
        ("ipv6-dns", given.ipv6_dns, network6),
    ):
        if address is not None and its_net is not None and address not in its_net:
            yield key, f"not in {its_net}"
    for key, address in (("host", given.host4), ("dns", given.dns4)):
        if network is not None and address in (network.network_address, network.broadcast_address):
            yield key, f"no address of one machine in {network}"
    if given.smb and network is None:
        yield "smb", "IPv4 is off"
    if given.smbserver is not None:
        if not given.smb:
            yield "smbserver", "there is no server without smb = FOLDER"
        elif network is not None and given.smbserver not in network:
            yield "smbserver", f"not in {network}"
        elif given.smbserver == given.host4:
            yield "smbserver", "the address of this host"
    if given.tftp_write and not given.tftp:
        yield "tftp-write", "there is no server without tftp = FOLDER"
    yield from _check_dns(given)
    yield from _check_forwards(given)
    yield from settings.check(given, [one for one in (network, network6) if one is not None])
    if not given.dhcp:
        yield from ((key, "DHCP is off") for key in settings.texts(given))
    if re.search(r"[\s/]", given.outbound) or len(given.outbound.encode()) > 45:
        yield "outbound", "neither an address nor an interface's name"


def _check_dns(given: Options) -> Iterator[tuple[str, str]]:
    for key, here, other in (("dns", given.dns4, given.host4), ("ipv6-dns", given.dns6, given.host6)):
        if here is not None and here == other:
            yield key, f"{here} is this host"
    if given.smb and given.smb4 == given.dns4:
        yield "smbserver", "the address of the DNS server"
    if given.restrict:
        for key in sorted(names.PASSED_ON - {"domainname", "rebinding"}):
            if getattr(given, key.replace("-", "_")):
                yield key, "restrict = on leaves guests without a DNS server"
    yield from names.check(given)


def _check_forwards(given: Options) -> Iterator[tuple[str, str]]:
    seen: set[Any] = set()
    inward: list[forwards.HostForward] = []
    for text in given.hostfwd:
        try:
            rule = forwards.host(text)
        except ValueError as why:
            yield "hostfwd", f"{text}: {why}"
            continue
        if earlier := next((one for one in inward if one.collides(rule)), None):
            yield "hostfwd", f"{text}: {earlier.here} is forwarded already, by {earlier}"
        inward.append(rule)
        if rule.name:
            if rule.kind == "udp" and given.shards > 1:
                yield "hostfwd", f"{text}: with shards a UDP forward goes to an address, and to no name of a lease"
            continue
        guest = rule.guest or given.lease
        its_net = given.network6 if guest is not None and guest.version == 6 else given.network
        if guest is None:
            yield "hostfwd", f"{text}: IPv4 is off, so the guest's address has to be said"
        elif its_net is None or guest not in its_net:
            yield "hostfwd", f"{text}: {guest} is in no network of the guests"
        elif guest in (given.host4, given.host6):
            yield "hostfwd", f"{text}: {guest} is this host"
        if rule.kind == "udp":
            for port in range(rule.port, rule.port + rule.count):
                if (guest, port) in seen:
                    yield "hostfwd", f"{text}: two UDP forwards go to port {port} of {guest}"
                seen.add((guest, port))
    for text in given.guestfwd:
        try:
            service = forwards.guest(text)
        except ValueError as why:
            yield "guestfwd", f"{text}: {why}"
            continue
        its_net = given.network6 if service.address.version == 6 else given.network
        if its_net is None or service.address not in its_net:
            yield "guestfwd", f"{text}: {service.address} is in no network of the guests"
        elif service.port == 53 and str(service.address) in given.resolvers:
            yield "guestfwd", f"{text}: {service.address}:53 is the DNS server"
        elif (service.address, service.port) in seen:
            yield "guestfwd", f"{text}: {service.address}:{service.port} is forwarded already"
        seen.add((service.address, service.port))
