"""[dns NAME]: a DNS server for guests: the lab's own names, and what this host's resolvers know.

It answers at port 53 of its address, over UDP and TCP. Questions about the outside go to the resolvers of this host (resolv-conf, read
anew when it changes) or to dns-servers, whatever their type: the first that answers is asked first, the next ones where it does
not answer. A domain can have resolvers of its own (resolver). Answers are kept as long as they say, "there is none" too.

The lab's names: guests by the names that their leases have (vm1.internal, vm1, and back from the address), host.internal, gateway.internal and
dns.internal, and what record says, in a zone of the lab's or over what the outside says:

    record = www A 10.0.2.20
             *.apps.lab.example 60 A 10.0.2.21
             lab.example MX 10 mail.lab.example
             _ldap._tcp SRV 0 0 389 www
    zone = lab.example
    resolver = corp.example 10.1.1.1,10.1.1.2

A name without a dot lies in domainname. What a zone has no record of is not there, and nobody else is asked. An answer of the outside
that points to the inside (this host's loopback, link-local addresses, the lab's networks) loses that address: rebinding.
"""

import dataclasses
import ipaddress
import socket
import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from shardnet import options, serving
from shardnet.dns import answers, cache, relayed, resolvers, server, settings, sockets, streams, zones

if TYPE_CHECKING:
    from shardnet import worker

PORT = 53
CONNECTIONS_MAX = 64
TICK_S = 0.05  # while questions are under way: how late one may be repeated
SWEEP_S = 5.0  # between looks at idle connections
HOLDS = ("known", "given", "renewed")
LEASES = True  # the leases of this network are told to leased()


def addresses(text: str) -> tuple[zones.Address, ...]:
    """addresses with commas between"""
    try:
        return tuple(ipaddress.ip_address(word) for word in text.replace(",", " ").split())
    except ValueError as why:
        raise ValueError(str(why)) from None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(serving.Options, settings.Options):
    # The addresses of the names host and gateway.
    host: tuple[zones.Address, ...] = options.option((), read=addresses)
    # Off: nobody is asked, the lab's names are all there is.
    forward: bool = True
    # How many answers are kept.
    cache: int = options.option(10_000, read=options.between(0, 1_000_000))
    # The largest answer over UDP, whatever a guest says it takes; what is longer comes over TCP.
    udp_size: int = options.option(server.UDP_MAX, key="udp-size", read=options.between(512, 4096))
    # How many questions a second a guest may have the resolvers asked. 0: no limit.
    rate: int = options.option(10_000, read=options.between(0, 1_000_000))

    @property
    def networks(self) -> list[zones.Network]:
        """The networks whose addresses are the lab's to name."""
        return [one.network for one in (self.address, self.address6) if one is not None]


def check(given: Options) -> Iterator[tuple[str, str]]:
    """Mistakes that take several keys to see."""
    yield from serving.check(given)
    for key, value in (
        ("dns-servers", given.dns_servers),
        ("resolver", given.resolver),
        ("resolv-conf", given.resolv_conf),
    ):
        if value and not given.forward:
            yield key, "forward = off asks nobody"
    yield from settings.check(given)


class Port:
    def __init__(self, given: Options, place: "worker.Place") -> None:
        self.options = given
        self.place = place
        self.listener: serving.Listener | None = None
        self.connections: dict[serving.Connection, streams.Stream] = {}
        self.file = None if given.dns_servers else resolvers.File(given.resolv_conf or "/etc/resolv.conf")
        self.ticking = self.sweeping = False
        self.server = self._server()

    def prepare(self) -> None:
        """Nothing: a service asks for no privilege."""

    def open(self) -> None:
        self._hang_up()
        self.listener = serving.Listener(self.place, self._accepted)
        tcp = [(PORT, self.listener.sockaddr)]
        description = serving.described(self.options, self.place, udp=[PORT], tcp=tcp, max_flows=CONNECTIONS_MAX)
        self.place.shard.add_service(self.place.port, description)
        self.place.watch(self.way.epoll.fileno(), self._answered)
        self.place.serve(self.receive)
        self.server.resolve_by([resolvers.read(text) for text in self.options.dns_servers])
        self._look(time.monotonic())
        self._tell()

    def close(self) -> None:
        self.place.shard.remove(self.place.port)
        self._hang_up()
        self.server.forwarder.close()
        self.place.unwatch(self.way.epoll.fileno())
        self.way.close()

    def ended(self, error: int) -> None:
        """A service has no descriptor that could end."""

    def receive(self, datagrams: "worker.Datagrams") -> None:
        now = time.monotonic()
        self._look(now)
        self.place.answer(self.server.receive(datagrams, now))
        self._settle(now)

    def leased(self, what: str, address: str, mac: str, name: str) -> None:
        """A lease was given, or ended."""
        self.server.lease(name if what in HOLDS else "", address, mac)

    def asked(self, what: str, args: Mapping[str, Any]) -> dict[str, Any] | list[dict[str, Any]]:
        """names: what the lab knows; resolvers: who is asked."""
        if what == "names":
            return list(self.server.zones.known())
        if what == "resolvers":
            now = time.monotonic()
            return [
                {"domain": where, "resolver": str(one), "failing": one.last_until > now}
                for where, one in self._resolvers()
            ]
        raise ValueError("unknown question" + options.meant(what, ["names", "resolvers"]))

    def _server(self) -> server.Server:
        given = self.options
        own = [one.ip for one in (given.address, given.address6) if one is not None]
        fixed = [zones.host(f"host.{given.domain}", address, "lab") for address in given.host]
        fixed += [zones.host(f"gateway.{given.domain}", address, "lab") for address in given.host]
        fixed += [zones.host(f"dns.{given.domain}", address, "lab") for address in own]
        known = zones.Zones(given.domain, given.zone, given.networks, [*given.records, *fixed])
        inside = None
        if given.rebinding != "off":
            allowed = [*given.domains, *map(zones.packed, given.rebinding_allow)]
            inside = answers.local(given.networks, given.rebinding == "private", allowed)
        native = relayed.relay(inside, given.udp_size, given.rate)
        self.way = sockets.Sockets(native)
        made = server.Server(
            known,
            cache.Cache(given.cache),
            self.way,
            self.place.count,
            inside=inside,
            size=given.udp_size,
            rate=given.rate,
            forwards=given.forward,
        )
        made.forwarder.domains = {
            name: [resolvers.read(text) for text in texts] for name, texts in given.domains.items()
        }
        made.relayed = self.relayed = relayed.Relayed(native, self.way, made)
        return made

    def _answered(self) -> None:
        """Something came from the resolvers."""
        now = time.monotonic()
        try:
            self.relayed.ready(now)
            self.way.ready(self.server.forwarder, now)
        except Exception:
            self.place.mistake()
        self._settle(now)

    def _settle(self, now: float) -> None:
        """Send what has become ready, and see to it that nothing under way is forgotten."""
        if self.server.outbox:
            out, self.server.outbox = self.server.outbox, []
            self.place.answer(out)
        if not self.ticking and (self.relayed.is_busy or self.server.forwarder.wait(now) is not None):
            self.ticking = True
            self.place.later(TICK_S, self._tick)

    def _tick(self) -> None:
        self.ticking = False
        now = time.monotonic()
        try:
            self.relayed.due(now)
            self.server.forwarder.due(now)
        except Exception:
            self.place.mistake()
        self._settle(now)

    def _look(self, now: float) -> None:
        """Follow the file that names the resolvers."""
        if self.file is not None and self.options.forward and (found := self.file.changed(now)) is not None:
            self.server.resolve_by(found)
            self._tell()

    def _tell(self) -> None:
        asked = ", ".join(dict.fromkeys(f"{where + ': ' if where else ''}{one}" for where, one in self._resolvers()))
        self.place.state("up", f"port {PORT}; " + (f"asks {asked}" if asked else "asks nobody"))

    def _resolvers(self) -> Iterator[tuple[str, resolvers.Resolver]]:
        if self.options.forward:
            yield from (("", one) for one in self.server.forwarder.resolvers)
        for name, found in self.server.forwarder.domains.items():
            yield from ((zones.written(name), one) for one in found)

    def _accepted(self, sock: socket.socket) -> None:
        now = time.monotonic()
        if len(self.connections) >= CONNECTIONS_MAX:
            min(self.connections, key=lambda one: self.connections[one].last).close()
        stream = streams.Stream(self.server, lambda data: made.send(data), now)
        made = serving.Connection(
            self.place, sock, lambda data: self._fed(made, stream, data), lambda: self._gone(made, stream)
        )
        self.connections[made] = stream
        if not self.sweeping:
            self.sweeping = True
            self.place.later(SWEEP_S, self._sweep)

    def _fed(self, connection: serving.Connection, stream: streams.Stream, data: bytes) -> None:
        now = time.monotonic()
        self._look(now)
        if not stream.feed(data, now):
            connection.close()
        self._settle(now)

    def _gone(self, connection: serving.Connection, stream: streams.Stream) -> None:
        stream.gone = True
        self.connections.pop(connection, None)

    def _sweep(self) -> None:
        now = time.monotonic()
        for connection, stream in list(self.connections.items()):
            if stream.idle(now):
                connection.close()
        self.sweeping = bool(self.connections)
        if self.sweeping:
            self.place.later(SWEEP_S, self._sweep)

    def _hang_up(self) -> None:
        for connection in list(self.connections):
            connection.close()
        if self.listener is not None:
            self.listener.close()
            self.listener = None
