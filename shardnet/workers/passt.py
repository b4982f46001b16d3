"""[passt NAME]: a passt process as the way out, as QEMU's -netdev passt: the guests have the addresses of this host.

passt is started with the port, by its name in PATH unless `path` says where it is, and ends with it. When it dies another one is
started; connections through it are lost then, as they are when the worker dies. It reads one frame at a time, so frames for it are cut
to what its interface takes; mtu is what it tells the guests (65520 unless given).

The keys are QEMU's and become passt's options of the same meaning; what the installed passt does not know it refuses, in its words.
`socket` attaches to a passt that runs already (passt --socket PATH) in the place of starting one.
"""

import dataclasses
import errno
import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shardnet import addresses, connection, links, options, room

if TYPE_CHECKING:
    from shardnet import worker

PREFIX_BYTES = 4
START_S = 10.0
RETRY_S = 0.1
RETRY_MAX_S = 5.0
ROOM_BYTES = 8 << 20  # for a TCP window: what finds no room passt drops, and sends all of it again
KEPT = "passt"  # name of the deposit, our end of its socket
NOISE = ("Failed to send ", "Don't run as root")  # what it writes to standard error without a syslog, and as root

# Fields and the options of passt that they become; a switch that is off becomes the option.
VALUES = {
    "address": "--address",
    "netmask": "--netmask",
    "mac": "--mac-addr",
    "gateway": "--gateway",
    "interface": "--interface",
    "outbound": "--outbound",
    "outbound_if4": "--outbound-if4",
    "outbound_if6": "--outbound-if6",
    "dns": "--dns",
    "fqdn": "--fqdn",
    "map_host_loopback": "--map-host-loopback",
    "map_guest_addr": "--map-guest-addr",
    "dns_forward": "--dns-forward",
    "dns_host": "--dns-host",
}
LISTS = {"search": "--search", "tcp_ports": "--tcp-ports", "udp_ports": "--udp-ports"}
SWITCHES = {
    "dhcp_dns": "--no-dhcp-dns",
    "dhcp_search": "--no-dhcp-search",
    "tcp": "--no-tcp",
    "udp": "--no-udp",
    "icmp": "--no-icmp",
    "dhcp": "--no-dhcp",
    "ndp": "--no-ndp",
    "dhcpv6": "--no-dhcpv6",
    "ra": "--no-ra",
}

REFUSED = {"vhost-user": "frames of this switch reach passt through its stream socket; guests attach to [vhost-user]"}
NO_QEMU = "it is a way out, not a guest's port; a guest attaches to a stream or dgram port of the same switch"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(options.PortOptions):
    # The program.
    path: str = "passt"
    # Attach to the passt that listens at this unix socket instead of starting one.
    socket: Path | None = None
    # The network namespace in which passt is started: a name of ip netns, the id of a process in it, or a path.
    netns: str | None = None
    # Off: passt prints what it found out about the host.
    quiet: bool = True
    # The address that guests are given, of IPv4 or IPv6.
    address: str | None = None
    # Its mask.
    netmask: str | None = None
    # The address from which its frames come.
    mac: str | None = None
    # The gateway that guests are told.
    gateway: str | None = None
    # The interface whose addresses and routes guests are given.
    interface: str | None = None
    # The address that it goes out from.
    outbound: str | None = None
    # The interface for IPv4 to go out.
    outbound_if4: str | None = options.option(None, key="outbound-if4")
    # The interface for IPv6 to go out.
    outbound_if6: str | None = options.option(None, key="outbound-if6")
    # The resolver that guests are told.
    dns: str | None = None
    # Search domains, once for each.
    search: tuple[str, ...] = ()
    # The guest's fully qualified name.
    fqdn: str | None = None
    # Off: DHCP, DHCPv6 and NDP name no resolvers.
    dhcp_dns: bool = options.option(True, key="dhcp-dns")
    # Off: DHCP, DHCPv6 and NDP name no search domains.
    dhcp_search: bool = options.option(True, key="dhcp-search")
    # An address behind which guests reach the host's loopback.
    map_host_loopback: str | None = options.option(None, key="map-host-loopback")
    # An address that stands for the guest's own one on the host.
    map_guest_addr: str | None = options.option(None, key="map-guest-addr")
    # An address at which queries for names are forwarded.
    dns_forward: str | None = options.option(None, key="dns-forward")
    # The resolver that they are forwarded to.
    dns_host: str | None = options.option(None, key="dns-host")
    # Off: no TCP.
    tcp: bool = True
    # Off: no UDP.
    udp: bool = True
    # Off: no ICMP and ICMPv6.
    icmp: bool = True
    # Off: no DHCP server.
    dhcp: bool = True
    # Off: no answers to neighbour solicitations.
    ndp: bool = True
    # Off: no DHCPv6 server.
    dhcpv6: bool = True
    # Off: no router advertisements.
    ra: bool = True
    # On: it may bind any address of forwarded ports.
    freebind: bool = False
    # Off: IPv6 only.
    ipv4: bool = True
    # Off: IPv4 only.
    ipv6: bool = True
    # TCP ports of the host that are forwarded to the guest, as passt writes them, once for each.
    tcp_ports: tuple[str, ...] = options.option((), key="tcp-ports")
    # UDP ports likewise.
    udp_ports: tuple[str, ...] = options.option((), key="udp-ports")
    # More words for passt's command line, once for each.
    param: tuple[str, ...] = ()

    @property
    def words(self) -> list[str]:
        """passt's options, without those that say where its socket is."""
        found = ["--quiet"] if self.quiet else []
        if self.mtu:
            found += ["--mtu", str(self.mtu)]
        for field, word in VALUES.items():
            if getattr(self, field) is not None:
                found += [word, getattr(self, field)]
        for field, word in LISTS.items():
            for value in getattr(self, field):
                found += [word, value]
        found += [word for field, word in SWITCHES.items() if not getattr(self, field)]
        found += ["--freebind"] if self.freebind else []
        found += ["--ipv4-only"] if not self.ipv6 else ["--ipv6-only"] if not self.ipv4 else []
        return [*found, *self.param]


def check(given: Options) -> Iterator[tuple[str, str]]:
    """Mistakes that take several keys to see."""
    if not given.ipv4 and not given.ipv6:
        yield "ipv6", "ipv4 is off too, and nothing is left"
    if given.socket is not None:
        ours = {field.name for field in dataclasses.fields(options.PortOptions)} | {"socket"}
        for field in dataclasses.fields(Options):
            if field.name not in ours and getattr(given, field.name) != field.default:
                key = field.metadata.get("key") or field.name
                yield key, "the passt behind socket runs already; it took its options when it was started"


def Port(given: Options, place: "worker.Place") -> Any:
    """The port: a client of a running passt, or a passt of its own."""
    if given.socket is None:
        return Own(given, place)
    return connection.Client(
        place,
        addresses.Unix(path=str(place.run_dir / given.socket)),
        socket.SOCK_STREAM,
        lambda fd: place.shard.add_stream(place.port, fd, fd, PREFIX_BYTES),
    )


class Own:
    """Starts passt, which ends when our end of its socket, and the supervisor's copy of that, is closed."""

    def __init__(self, given: Options, place: "worker.Place") -> None:
        self.options = given
        self.place = place
        self.stream: socket.socket | None = None
        self.retry_s = RETRY_S
        self.timer: int | None = None

    def prepare(self) -> None:
        """Start a passt; the one of before has met the end of a stream that may be cut within a frame."""
        self.place.forget(KEPT)
        ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        with ours, its, links.namespace(self.options.netns):
            room.make(its, send=ROOM_BYTES)
            start(self.options.path, [*self.options.words, "--fd", str(its.fileno())], its)
            self.place.deposit(KEPT, ours.fileno())

    def open(self) -> None:
        fd = self.place.recall(KEPT)
        assert fd is not None  # prepare() deposited it
        self.timer = None
        self.stream = socket.socket(fileno=fd)
        self.stream.setblocking(False)
        self.place.shard.add_stream(self.place.port, fd, fd, PREFIX_BYTES)
        self.place.state("up", " ".join([self.options.path, *self.options.words]))

    def close(self) -> None:
        if self.timer is not None:
            self.place.cancel(self.timer)
        if self.stream is not None:
            self.place.shard.remove(self.place.port)
            self.stream.close()
        self.place.forget(KEPT)

    def ended(self, error: int) -> None:
        """It died, or wrote what is no frame."""
        assert self.stream is not None
        self.stream.close()
        self.stream = None
        self.place.forget(KEPT)
        how = os.strerror(error) if error else "it ended"
        self.place.state("waiting", f"passt: {how}, started again in {self.retry_s:g} s")
        self.timer = self.place.later(self.retry_s, self.place.again)
        self.retry_s = min(2 * self.retry_s, RETRY_MAX_S)


def start(path: str, words: list[str], its: socket.socket) -> None:
    """Run passt until it has gone to the background, where it serves `its`; OSError with its words where it refuses."""
    if shutil.which(path) is None:
        raise OSError(errno.ENOENT, "no such program (Debian's package is called passt)", path)
    with tempfile.TemporaryFile() as said:
        try:
            code = subprocess.run(
                [path, *words],
                pass_fds=[its.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=said,
                timeout=START_S,
                check=False,
            ).returncode
        except subprocess.TimeoutExpired:
            raise OSError(errno.ETIMEDOUT, "it does not go to the background", path) from None
        if code:
            said.seek(0)
            lines = said.read(4096).decode(errors="replace").splitlines()
            why = [line for line in lines if line.strip() and not line.startswith(NOISE)]
            usage = next((number for number, line in enumerate(why) if line.startswith("Usage:")), len(why))
            raise OSError(errno.EINVAL, " ".join(why[:usage][:3]) or f"exited with {code}", path)


def qemu(given: Options, run_dir: Path, version: tuple[int, int]) -> None:
    """Nothing: see NO_QEMU."""
