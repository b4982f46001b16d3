"""What may be said of a DNS service: alone on a switch, or behind a user-mode network in that network's section."""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal

from shardnet import options
from shardnet.dns import resolvers, zones

# What a user-mode network only says to the DNS service behind it.
PASSED_ON = frozenset("dns-servers domainname rebinding rebinding-allow record resolv-conf resolver zone".split())


def domain(text: str) -> str:
    """a domain such as lab.example"""
    zones.packed(text)
    return text.lower().rstrip(".")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(options.PortOptions):
    # The domain that guests are in. Without it their names are in internal, a zone of the lab's.
    domainname: str = options.option("", read=domain)
    # Whom to ask, in this order, instead of the resolvers of this host.
    dns_servers: tuple[str, ...] = options.option((), key="dns-servers", read=resolvers.several)
    # The file that says who the resolvers of this host are, /etc/resolv.conf unless given.
    resolv_conf: str = options.option("", key="resolv-conf")
    # Whom to ask about a domain and what is in it, one a line: DOMAIN ADDRESS[,ADDRESS].
    resolver: tuple[str, ...] = ()
    # Records of the lab, one a line: NAME [TTL] TYPE VALUE. A, AAAA, CNAME, MX, NS, PTR, SRV, TXT; *.NAME is every name below.
    record: tuple[str, ...] = ()
    # Domains of which nobody but the lab knows anything, one a line.
    zone: tuple[str, ...] = ()
    # What is stripped from answers of the outside: addresses of the inside, those of private networks too, or nothing.
    rebinding: Literal["local", "private", "off"] = "local"
    # Domains that may have such addresses, one a line; those with a resolver may.
    rebinding_allow: tuple[str, ...] = options.option((), key="rebinding-allow")

    @property
    def domain(self) -> str:
        """The domain of the lab's names."""
        return self.domainname or zones.DOMAIN

    @functools.cached_property
    def records(self) -> list[zones.Record]:
        """What record says, read."""
        return [zones.record(text, self.domain) for text in self.record]

    @property
    def domains(self) -> dict[bytes, tuple[str, ...]]:
        """What resolver says, read."""
        return dict(resolvers.split(text) for text in self.resolver)


def check(given: Options) -> Iterator[tuple[str, str]]:
    """Mistakes that take several keys to see."""
    if given.dns_servers and given.resolv_conf:
        yield "resolv-conf", "dns-servers says whom to ask"
    for key, values, read in (
        ("resolver", given.resolver, resolvers.split),
        ("zone", given.zone, zones.packed),
        ("rebinding-allow", given.rebinding_allow, zones.packed),
        ("record", given.record, lambda text: zones.record(text, given.domain)),
    ):
        yield from _read_each(key, values, read)
    yield from _aliases(given)


def given(of: Options, hosts: Iterable[zones.Address | None]) -> dict[str, str]:
    """The keys of the section of the service behind a network whose addresses of this host are `hosts`."""
    keys = {"host": ",".join(str(host) for host in hosts if host is not None)}
    for key in sorted(PASSED_ON):
        value = getattr(of, key.replace("-", "_"))
        text = value if isinstance(value, str) else ("," if key == "dns-servers" else "\n").join(value)
        if text:
            keys[key] = text
    return keys


def _read_each(key: str, values: tuple[str, ...], read: Callable[[str], Any]) -> Iterator[tuple[str, str]]:
    for text in values:
        try:
            read(text)
        except ValueError as why:
            yield key, f"{text}: {why}"


def _aliases(given: Options) -> Iterator[tuple[str, str]]:
    """An alias is alone at its name (RFC 2181, 10.1)."""
    try:
        records = given.records
    except ValueError:
        return  # said already
    for one in records:
        if one.text.startswith("CNAME ") and any(
            other is not one and other.name.lower() == one.name.lower() for other in records
        ):
            yield "record", f"{one.name} {one.text}: a name with an alias has no other record"
