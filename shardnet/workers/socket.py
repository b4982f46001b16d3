"""[socket NAME]: QEMU's older -netdev socket, with its four ways to say what [stream] and [dgram] say more fully.

listen = [HOST]:PORT     [stream] server = on, TCP
connect = HOST:PORT      [stream], TCP; dialled again each second
mcast = GROUP:PORT       [dgram] to a multicast group; localaddr = ADDRESS names the interface
udp = HOST:PORT          [dgram] to that address; localaddr = [HOST]:PORT is this end
"""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shardnet import addresses, options
from shardnet.workers import dgram, stream

if TYPE_CHECKING:
    from shardnet import worker

WAYS = ("listen", "connect", "mcast", "udp")

REFUSED = {"fd": "a worker inherits no descriptors; give listen, connect, mcast or udp"}
NO_QEMU = "its TCP port is chosen when it listens; give one"


def host_port(text: str) -> tuple[str, str]:
    """HOST:PORT, an IPv6 address in brackets"""
    host, port = addresses.split(text)
    return host, stream.port(port)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(options.PortOptions):
    # Wait for a client at this TCP address.
    listen: tuple[str, str] | None = options.option(None, read=host_port)
    # Dial the server at this TCP address.
    connect: tuple[str, str] | None = options.option(None, read=host_port)
    # Exchange frames with everybody in this multicast group.
    mcast: tuple[str, str] | None = options.option(None, read=host_port)
    # Exchange frames with this UDP address.
    udp: tuple[str, str] | None = options.option(None, read=host_port)
    # udp: this end's HOST:PORT. mcast: the address of the interface to use.
    localaddr: str | None = None

    @property
    def fuller(self) -> stream.Options | dgram.Options:
        """The same in the words of [stream] or [dgram]."""
        common = {field.name: getattr(self, field.name) for field in dataclasses.fields(options.PortOptions)}
        if self.listen or self.connect:
            host, port = self.listen or self.connect or ("", "")
            return stream.Options(type="inet", server=self.listen is not None, host=host, port=port, **common)
        host, port = self.mcast or self.udp or ("", "")
        remote: dict[str, Any] = {"remote_type": "inet", "remote_host": host, "remote_port": port}
        local: dict[str, Any]
        if self.mcast:
            local = {"local_type": "inet", "local_host": self.localaddr} if self.localaddr else {}
        else:
            local_host, local_port = host_port(self.localaddr or "")
            local = {"local_type": "inet", "local_host": local_host or None, "local_port": local_port}
        return dgram.Options(**remote, **local, **common)


def check(given: Options) -> Iterator[tuple[str, str]]:
    """Mistakes that take several keys to see."""
    ways = [way for way in WAYS if getattr(given, way)]
    if len(ways) != 1:
        yield (
            (ways[1], f"{ways[0]} is given too, and a port has one way")
            if ways
            else ("listen", "missing, as are connect, mcast and udp")
        )
        return
    (way,) = ways
    if given.localaddr and way not in ("mcast", "udp"):
        yield "localaddr", f"{way} has no use for it"
    elif way == "udp":
        if not given.localaddr:
            yield "localaddr", "missing, and udp needs it: frames have to come in somewhere"
            return
        try:
            host_port(given.localaddr)
        except ValueError as why:
            yield "localaddr", str(why)
    elif way == "mcast" and not _is_group(given.fuller):
        yield "mcast", "no multicast group of IPv4 (224.0.0.0 to 239.255.255.255)"


def _is_group(given: stream.Options | dgram.Options) -> bool:
    return isinstance(given, dgram.Options) and given.multicast and ":" not in (given.remote_host or "")


def Port(given: Options, place: "worker.Place") -> stream.Port | dgram.Port:
    """The port of the fuller words."""
    fuller = given.fuller
    return stream.Port(fuller, place) if isinstance(fuller, stream.Options) else dgram.Port(fuller, place)


def qemu(given: Options, run_dir: Path, version: tuple[int, ...]) -> list[str] | None:
    """The other half of this port, in the older words too: every QEMU has them."""
    if given.mcast:
        return addresses.netdev(
            "socket",
            {"mcast": addresses.written(*given.mcast), **({"localaddr": given.localaddr} if given.localaddr else {})},
        )
    if given.udp:
        return addresses.netdev("socket", {"udp": near(host_port(given.localaddr or "")), "localaddr": near(given.udp)})
    where = given.listen or given.connect or ("", "")
    if where[1] == "0":
        return None
    return addresses.netdev("socket", {"connect" if given.listen else "listen": near(where)})


def near(where: tuple[str, str]) -> str:
    """An address to reach, the loopback of this host where it is any."""
    host, port = where
    return addresses.written("127.0.0.1" if host in addresses.ANY else host, port)
