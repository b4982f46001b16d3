"""What a lab file says about DHCP: keys that [user] and [dhcp] share, and what they mean together."""

import dataclasses
import ipaddress
import re
from collections.abc import Iterable, Iterator
from typing import Any

from shardnet import options
from shardnet.dhcp import boot, leases, message, server

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network
LEASE4, LEASE6 = 0x020F, 0x1000  # x.y.2.15, as QEMU has it, and ::1000 within the network
POOL_MAX = 1 << 16
LEASE_LEAST_S = 10  # that a lab may say; a guest may not ask for as little
UNITS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86_400}
MAC_BYTES = 6


def address4(text: str) -> ipaddress.IPv4Address:
    """an IPv4 address"""
    try:
        return ipaddress.IPv4Address(text)
    except ValueError:
        raise ValueError("no IPv4 address") from None


def address6(text: str) -> ipaddress.IPv6Address:
    """an IPv6 address"""
    try:
        return ipaddress.IPv6Address(text)
    except ValueError:
        raise ValueError("no IPv6 address") from None


def addresses(text: str) -> tuple[Address, ...]:
    """addresses with commas between"""
    try:
        return tuple(ipaddress.ip_address(word) for word in re.split(r"[\s,]+", text) if word)
    except ValueError as why:
        raise ValueError(str(why)) from None


def duration(text: str) -> int:
    """seconds, or a number with m, h or d behind, or infinite"""
    if text == "infinite":
        return server.FOREVER
    found = re.fullmatch(r"([0-9]{1,9})([smhd]?)", text, re.ASCII)
    seconds = int(found[1]) * UNITS[found[2]] if found else 0
    if not LEASE_LEAST_S <= seconds < server.FOREVER:
        raise ValueError(f"no time from {LEASE_LEAST_S} seconds on, such as 3600, 12h, 7d, or infinite")
    return seconds


def host(text: str) -> str:
    """the name of a host"""
    if not 1 <= len(text) <= 253 or not all(message.name_of(label.encode(), False) for label in text.split(".")):
        raise ValueError("no name of a host")
    return text


def domain(text: str) -> str:
    """a domain's name"""
    message.labels(text)
    if re.search(r"[\s/]", text):
        raise ValueError("no domain's name")
    return text.lower().rstrip(".")


def short(text: str) -> str:
    """TEXT"""
    if len(text.encode()) > 255:
        raise ValueError("longer than 255 bytes, which no message says")
    return text


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(options.PortOptions):
    # The first address to lend, x.y.2.15 of the network unless given.
    dhcpstart: ipaddress.IPv4Address | None = options.option(None, read=address4)
    # The last one, the network's last unless given.
    dhcpend: ipaddress.IPv4Address | None = options.option(None, read=address4)
    # The first address of IPv6 to lend, ::1000 of the network unless given.
    dhcpstart6: ipaddress.IPv6Address | None = options.option(None, read=address6)
    # The last one.
    dhcpend6: ipaddress.IPv6Address | None = options.option(None, read=address6)
    # An address for one guest, of IPv4 or IPv6: its hardware address, or its client identifier or DUID (bytes with colons, or id:TEXT), the
    # address, and a name if it is to have one: 52:54:00:12:34:56 10.0.2.50 web1.
    reserved: tuple[str, ...] = options.option((), key="lease")
    # For how long an address is lent, from 10 seconds on; a guest may ask for less, down to a minute.
    lease_time: int = options.option(86_400, key="lease-time", read=duration)
    # How many addresses the guests behind one port may have, reservations not counted. 0: no limit.
    max_leases: int = options.option(8, key="max-leases", read=options.between(0, 16_384))
    # The name that guests are told to be theirs, where a reservation has none for them.
    hostname: str = options.option("", read=host)
    # The domain that guests are in.
    domainname: str = options.option("", read=domain)
    # Domains that guests search, in their order.
    dnssearch: tuple[str, ...] = ()
    # Time servers that guests are told.
    ntp: tuple[Address, ...] = options.option((), read=addresses)
    # Routes beside the default: a network and its router, 10.9.0.0/16 10.0.2.7.
    route: tuple[str, ...] = ()
    # The boot file's name or URL; a name alone is to be had by TFTP.
    bootfile: str = options.option("", read=short)
    # The boot file for some: bios, efi-x64, efi-arm64, ..., http-x64, ..., arch:NUMBER; ipxe or user:TEXT by user class; http or vendor:TEXT
    # by vendor class; and the file. The first line that fits is taken, else bootfile.
    boots: tuple[str, ...] = options.option((), key="boot")
    # The name of the boot server (option 66).
    tftp_server_name: str = options.option("", key="tftp-server-name", read=short)
    # Where the boot file is (siaddr, option 150): this service's address unless given.
    next_server: ipaddress.IPv4Address | None = options.option(None, key="next-server", read=address4)

    @property
    def reservations(self) -> list[leases.Reservation]:
        """What `lease` says, read."""
        return [reservation(text) for text in self.reserved]

    @property
    def rules(self) -> tuple[boot.Rule, ...]:
        """What `boot` says, read."""
        return tuple(map(boot.rule, self.boots))

    @property
    def routes(self) -> tuple[tuple[ipaddress.IPv4Network, ipaddress.IPv4Address], ...]:
        """What `route` says, read."""
        return tuple(map(_route, self.route))


# What a lab file may say of these.
KEYS = frozenset(options.key_of(field) for field in dataclasses.fields(Options)) - options.common(Options)


def reservation(text: str) -> leases.Reservation:
    """Read WHO ADDRESS [NAME]."""
    words = text.split()
    if len(words) not in (2, 3):
        raise ValueError("no hardware address or client identifier, address, and perhaps a name")
    who, where, name = (*words, "")[:3]
    try:
        address = ipaddress.ip_address(where).packed
    except ValueError:
        raise ValueError(f"{where} is no address") from None
    if name and message.name_of(name.encode(), False) != name:
        raise ValueError(f"{name} is no name of a host (small letters, digits and -)")
    if who.startswith("id:") and len(who) > 3:
        return leases.Reservation(address, name, client=who[3:].encode())
    if not re.fullmatch(r"[0-9a-fA-F]{2}(:[0-9a-fA-F]{2}){1,129}", who):
        raise ValueError(f"{who} is neither bytes with colons between nor id:TEXT")
    raw = bytes.fromhex(who.replace(":", ""))
    if len(raw) == MAC_BYTES + 1 and raw[0] == message.ETHERNET:
        raw = raw[1:]  # a client identifier that is the hardware address
    return (
        leases.Reservation(address, name, mac=raw)
        if len(raw) == MAC_BYTES
        else leases.Reservation(address, name, client=raw)
    )


def pool(given: Options, network: Any) -> tuple[Any, Any]:
    """The first and the last address to lend in a network; in a small one that is all there are."""
    is_four = network.version == 4
    first, last = (given.dhcpstart, given.dhcpend) if is_four else (given.dhcpstart6, given.dhcpend6)
    bottom, top = int(network.network_address) + 1, int(network.broadcast_address) - 1
    usual = int(network.network_address) + ((LEASE4 if is_four else LEASE6) & int(network.hostmask))
    if not bottom <= usual < top:
        usual = bottom
    address = type(network.network_address)
    first = first or address(usual)
    return first, last or address(min(top, int(first) | (POOL_MAX - 1)))


def texts(given: Options) -> dict[str, str]:
    """What was said, as a section of [dhcp] says it."""
    said = {}
    for field in dataclasses.fields(Options):
        value = getattr(given, field.name)
        if field.name not in options.common(Options) and value != field.default:
            key = options.key_of(field)
            if key in ("lease", "route", "dnssearch", "boot"):
                said[key] = "\n".join(value)
            elif isinstance(value, tuple):
                said[key] = ", ".join(map(str, value))
            else:
                said[key] = "infinite" if key == "lease-time" and value == server.FOREVER else str(value)
    return said


def check(given: Options, networks: Iterable[Network]) -> Iterator[tuple[str, str]]:
    """Mistakes in what is said of DHCP for these networks."""
    nets = {network.version: network for network in networks}
    for key, first, last, version in (
        ("dhcpstart", given.dhcpstart, given.dhcpend, 4),
        ("dhcpstart6", given.dhcpstart6, given.dhcpend6, 6),
    ):
        for word, address in ((key, first), (key.replace("start", "end"), last)):
            if address is not None and (version not in nets or address not in nets[version]):
                yield word, f"not in {nets[version]}" if version in nets else f"IPv{version} is off"
        if first is not None and last is not None and int(last) < int(first):
            yield key, f"behind {key.replace('start', 'end')}"
    taken: set[bytes] = set()
    for text in given.reserved:
        try:
            one = reservation(text)
        except ValueError as why:
            yield "lease", f"{text}: {why}"
            continue
        address = ipaddress.ip_address(one.address)
        if address.version not in nets or address not in nets[address.version]:
            yield "lease", f"{text}: {address} is in no network of the guests"
        if one.address in taken:
            yield "lease", f"{text}: {address} is reserved already"
        taken.add(one.address)
    for key, texts, read in (
        ("boot", given.boots, boot.rule),
        ("route", given.route, _route),
        ("dnssearch", given.dnssearch, domain),
    ):
        for text in texts:
            try:
                read(text)
            except ValueError as why:
                yield key, f"{text}: {why}"


def _route(text: str) -> tuple[ipaddress.IPv4Network, ipaddress.IPv4Address]:
    network, _, router = text.partition(" ")
    try:
        return ipaddress.IPv4Network(network), ipaddress.IPv4Address(router.strip())
    except ValueError as why:
        raise ValueError(f"no network and router such as 10.9.0.0/16 10.0.2.7 ({why})") from None
