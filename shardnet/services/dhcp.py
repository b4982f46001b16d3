"""[dhcp NAME]: a DHCP server for IPv4 and IPv6, for the guests of a switch.

Guests get addresses in the order in which they come, x.y.2.15 first, and get them again; who is to have a certain one is
named by lease. Leases outlive the service and the lab: they are kept in $SHARDNET_STATE_DIR, else /var/lib/shardnet (root),
else $XDG_STATE_HOME/shardnet or ~/.local/state/shardnet, in LAB/NAME.leases. `shardnet leases` shows them, `shardnet events`
tells of each. Before an address is lent to somebody for the first time it is asked whether somebody has it already.

What guests are told is what stands here and nothing else: no router, no dns without the key. For IPv6 there have to be router
advertisements with the flags M and O, as [user] sends them. For boot files see boot; conf/dhcp.ini is a lab with one.
"""

import dataclasses
import ipaddress
import os
import time
from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from shardnet import options, rundir, serving, statedir
from shardnet.dhcp import kept, leases, server, server6, settings

if TYPE_CHECKING:
    from shardnet import worker

PROBE_S = 0.2
LOOK_S, SOON_S = 30.0, 0.05
TELLS = True  # the ports of its network hear of its leases
KNOWN_ATONCE = 256  # what the supervisor is told in one go
STATE = "state"
NEVER = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(serving.Options, settings.Options):
    # Routers that guests are told, the default one first.
    router: tuple[settings.Address, ...] = options.option((), read=settings.addresses)
    # Resolvers that guests are told.
    dns: tuple[settings.Address, ...] = options.option((), read=settings.addresses)
    # Addresses of the range that are never lent.
    excepted: tuple[settings.Address, ...] = options.option((), key="except", read=settings.addresses)
    # Off: a guest that asks for an address which we have not lent is left to other servers.
    authoritative: bool = True
    # Relay agents that speak for many guests: max-leases does not hold for what comes through them.
    relay: tuple[settings.Address, ...] = options.option((), read=settings.addresses)


def check(given: Options) -> Iterator[tuple[str, str]]:
    """Mistakes that take several keys to see."""
    yield from serving.check(given)
    own = [one for one in (given.address, given.address6) if one is not None]
    if any(one.network.prefixlen > one.max_prefixlen - 2 for one in own):
        yield "address", "a network of one machine has nothing to lend"
        return
    yield from settings.check(given, [one.network for one in own])
    for key, found in (("router", given.router), ("relay", given.relay)):
        for one in found:
            if one.version == 6:
                yield key, f"{one}: only IPv4 has such a thing"


class Port:
    def __init__(self, given: Options, place: "worker.Place") -> None:
        self.options = given
        self.place = place
        self.tables: list[leases.Leases] = []
        self.kept: kept.Kept | None = None
        self.four: server.Server | None = None
        self.six: server6.Server | None = None
        self.probing: set[bytes] = set()
        self._directory: int | None = None
        self._timer: tuple[float, int] | None = None

    def prepare(self) -> None:
        """Open the state directory, while there may be a right to make it."""
        held = self.place.recall(STATE)
        if held is None:
            try:
                held = statedir.opened(self.place.run_dir.name)
            except (OSError, rundir.Error, RuntimeError) as why:  # RuntimeError: a user without a home
                self.place.log(f"leases are forgotten when the service ends: {why}")
                return
            self.place.deposit(STATE, held)
        os.close(held)

    def open(self) -> None:
        self._let_go()
        self._make_servers()
        self._restore()
        ports = [server.SERVER_PORT] if self.four else []
        ports += [server6.SERVER_PORT] if self.six else []
        groups = ["ff02::1:2"] if self.six else []
        described = serving.described(self.options, self.place, udp=ports, groups=groups, broadcast=True)
        self.place.shard.add_service(self.place.port, described)
        self.place.serve(self.receive)
        ranges = [f"{_shown(table.first, table.width)} to {_shown(table.last, table.width)}" for table in self.tables]
        self.place.state("up", ", ".join(ranges))
        self._tell_known(list(self._known()))
        self._watch_time()

    def close(self) -> None:
        self.place.shard.remove(self.place.port)
        self._let_go()

    def ended(self, error: int) -> None:
        """A service has no descriptor that could end."""

    def asked(self, what: str, args: Mapping[str, Any]) -> dict[str, Any] | list[dict[str, Any]]:
        """leases: all that are known, by address; forget: end the lease of `address`; lines: as they are kept; adopt: `lines` of another."""
        if what == "leases":
            return self._rows()
        if what == "forget":
            return {"forgotten": self._forget_one(str(args.get("address")))}
        if what == "lines":
            bound = [lease for table in self.tables for lease in table if lease.state == "bound"]
            return [{"line": kept.written(lease, _now(), time.time()).rstrip("\n")} for lease in bound]
        if what == "adopt":
            return {"adopted": self._adopt(args.get("lines"))}
        raise ValueError("unknown question" + options.meant(what, ["leases", "forget", "lines", "adopt"]))

    def receive(self, datagrams: "Sequence[worker.Datagram]") -> None:
        now = _now()
        answers: list[server.Datagram] = []
        for came in datagrams:
            datagram = server.Datagram(*came)
            origin = self._origin(datagram.mac)
            if datagram.local_port == server.SERVER_PORT and self.four:
                answers += self.four.receive(datagram, now, origin)
            elif datagram.local_port == server6.SERVER_PORT and self.six:
                answers += self.six.receive(datagram, now, origin)
        self._answer(answers, now)

    def _answer(self, answers: Sequence[server.Datagram], now: float) -> None:
        """Write down what has changed, then say it: nobody is told what a successor of ours would not know."""
        self._note(now)
        self.place.answer(answers)
        for address in list(self.four.asking) if self.four else []:
            if address not in self.probing:
                self.probing.add(address)
                self.place.seek(address)
                self.place.later(PROBE_S, lambda address=address: self._probed(address))  # type: ignore[misc]
        self._watch_time()

    def _probed(self, address: bytes) -> None:
        self.probing.discard(address)
        if self.four is not None:
            now = _now()
            self._answer(self.four.probed(address, self.place.found(address), now), now)

    def _origin(self, mac: bytes) -> Hashable:
        """Whose bound a lease counts towards: the port of the switch, or the station where a hub knows of no ports."""
        return self.place.shard.heard(self.place.port, mac) or mac

    def _make_servers(self) -> None:
        given = self.options
        own = [one.ip for one in (given.address, given.address6) if one is not None]
        never = [one.packed for one in (*own, *given.router, *given.dns, *given.excepted)]
        mac = bytes((0x52, 0x55)) + (own[0].packed[-4:])
        told = {"domain": given.domainname, "search": given.dnssearch, "lease_s": given.lease_time}
        self.tables = []
        for interface in (given.address, given.address6):
            if interface is not None:
                first, last = settings.pool(given, interface.network)
                reservations = [one for one in given.reservations if len(one.address) == len(first.packed)]
                table = leases.Leases(
                    first.packed, last.packed, never=never, reservations=reservations, each=given.max_leases
                )
                self.tables.append(table)
        if given.address is not None:
            config = server.Config(
                address=given.address.ip,
                network=given.address.network,
                routers=_fours(given.router),
                dns=_fours(given.dns),
                ntp=_fours(given.ntp),
                hostname=given.hostname,
                mtu=given.mtu,
                routes=given.routes,
                next_server=given.next_server,
                tftp_name=given.tftp_server_name,
                bootfile=given.bootfile,
                rules=given.rules,
                authoritative=given.authoritative,
                relays=_fours(given.relay),
                room=given.mtu or 1500,
                **told,  # type: ignore[arg-type]
            )
            self.four = server.Server(config, self.tables[0], self.place.count, probes=True)
        if given.address6 is not None:
            config6 = server6.Config(
                duid=server6.duid(mac),
                address=given.address6.ip,
                network=given.address6.network,
                dns=_sixes(given.dns),
                ntp=_sixes(given.ntp),
                bootfile=given.bootfile,
                rules=given.rules,
                **told,  # type: ignore[arg-type]
            )
            self.six = server6.Server(config6, self.tables[-1], self.place.count)

    def _restore(self) -> None:
        held = self.place.recall(STATE)
        if held is None:
            return
        self._directory = held
        try:
            self.kept = kept.Kept(held, f"{self.place.name}.leases")
            found = self.kept.read(_now(), time.time(), float(self.options.lease_time))
        except OSError as why:
            self._lost(why)
            return
        for table in self.tables:
            mine = [lease for lease in found if len(lease.address) == table.width]
            for lease in mine:
                lease.origin = self._origin(lease.mac) if len(lease.mac) == settings.MAC_BYTES else lease.mac
            table.restore(mine)

    def _note(self, now: float) -> None:
        """Write down and tell what has become of leases."""
        news = [one for table in self.tables for one in table.news]
        for table in self.tables:
            table.news.clear()
        if not news:
            return
        if self.kept is not None:
            try:
                self.kept.append([lease for _, lease in news], now, time.time())
                count = sum(map(len, self.tables))
                self.kept.tidy((lease for table in self.tables for lease in table), count, now, time.time())
            except OSError as why:
                self._lost(why)
        for what, lease in news:
            self.place.count(what)
            self._tell(what, lease, now)

    def _lost(self, why: OSError) -> None:
        """Go on without the file."""
        self.place.log(f"leases are not kept from here on: {why.strerror}")
        if self.kept is not None:
            self.kept.close()
            self.kept = None

    def _tell(self, what: str, lease: leases.Lease, now: float) -> None:
        until = NEVER if lease.until == float("inf") else round(time.time() + lease.until - now)
        address = str(ipaddress.ip_address(lease.address))
        self.place.tell("lease", what=what, address=address, mac=lease.mac.hex(":"), name=lease.name, until=until)

    def _known(self) -> Iterator[leases.Lease]:
        """Leases that hold, and reservations, whose addresses have their names whoever runs."""
        for table in self.tables:
            for one in table.reservations:
                lease = table.at(one.address)
                if lease is None or lease.state != "bound":
                    yield leases.Lease(one.address, b"", one.mac, one.name, "bound", float("inf"))
            yield from (lease for lease in table if lease.state == "bound")

    def _tell_known(self, left: list[leases.Lease]) -> None:
        now = _now()
        for lease in left[:KNOWN_ATONCE]:
            self._tell("known", lease, now)
        if left[KNOWN_ATONCE:]:
            self.place.later(SOON_S, lambda: self._tell_known(left[KNOWN_ATONCE:]))
        else:
            self.place.tell("told")

    def _rows(self) -> list[dict[str, Any]]:
        now, wall = _now(), time.time()
        found = []
        for table in self.tables:
            reserved = {one.address: one for one in table.reservations}
            for address in sorted({lease.address for lease in table} | reserved.keys()):
                lease, one = table.at(address), reserved.get(address)
                forever = lease is None or lease.until == float("inf")
                found.append(
                    {
                        "address": str(ipaddress.ip_address(address)),
                        "mac": (lease.mac if lease else one.mac if one else b"").hex(":"),
                        "name": (lease.name if lease else "") or (one.name if one else ""),
                        "state": lease.state if lease and lease.state != "free" else "reserved" if one else "free",
                        "until": None if forever or lease is None else round(wall + lease.until - now, 3),
                        "client": (leases.client_of(lease.key) if lease else one.client if one else b"").hex(":"),
                        "reserved": one is not None,
                    }
                )
        return found

    def _forget_one(self, text: str) -> bool:
        try:
            address = ipaddress.ip_address(text).packed
        except ValueError:
            raise ValueError(f"{options.shown(text)} is no address") from None
        for table in self.tables:
            if (lease := table.at(address)) is not None and lease.state != "free":
                table.forget(lease)
                self._note(_now())
                return True
        raise LookupError(f"{text} is lent to nobody")

    def _adopt(self, lines: Any) -> int:
        """Take over leases of another server: all of those that this one could have given, or none where somebody has one of them."""
        now, wall = _now(), time.time()
        if not isinstance(lines, list):
            raise ValueError("lines of leases are needed")
        found = [kept.read(str(line), now, wall, float(self.options.lease_time)) for line in lines]
        mine = []
        for lease in filter(None, found):
            for table in self.tables:
                held = table.at(lease.address)
                if held is not None and held.state == "bound" and held.key != lease.key:
                    where = ipaddress.ip_address(lease.address)
                    raise ValueError(f"{where}: is lent to {held.mac.hex(':')} here, and to {lease.mac.hex(':')} there")
                if table.is_free_for(leases.Client(lease.key, lease.mac), lease.address) and lease.state == "bound":
                    mine.append((table, lease))
        for table, lease in mine:
            lease.origin = self._origin(lease.mac) if len(lease.mac) == settings.MAC_BYTES else lease.mac
            table.restore([lease])
            if (made := table.held(lease.key)) is not None:
                table.news.append(("given", made))
        self._note(now)
        self._watch_time()
        return len(mine)

    def _watch_time(self) -> None:
        """See that leases end when they are due, and not only when somebody asks for one."""
        dues = [due for table in self.tables if (due := table.next_due()) is not None]
        now = _now()
        due = min([now + LOOK_S, *dues])
        if self._timer is not None:
            if self._timer[0] <= due:
                return
            self.place.cancel(self._timer[1])
        self._timer = (due, self.place.later(max(due - now, SOON_S), self._expire))

    def _expire(self) -> None:
        self._timer = None
        now = _now()
        for table in self.tables:
            table.expire(now)
        self._note(now)
        self._watch_time()

    def _let_go(self) -> None:
        if self._timer is not None:
            self.place.cancel(self._timer[1])
            self._timer = None
        if self.kept is not None:
            self.kept.close()
            self.kept = None
        if self._directory is not None:
            os.close(self._directory)
            self._directory = None


def _now() -> float:
    """The clock of leases: it goes on while the host sleeps, and nobody sets it."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def _shown(number: int, width: int) -> str:
    return str(ipaddress.ip_address(number.to_bytes(width, "big")))


def _fours(found: Sequence[settings.Address]) -> tuple[ipaddress.IPv4Address, ...]:
    return tuple(one for one in found if isinstance(one, ipaddress.IPv4Address))


def _sixes(found: Sequence[settings.Address]) -> tuple[ipaddress.IPv6Address, ...]:
    return tuple(one for one in found if isinstance(one, ipaddress.IPv6Address))
