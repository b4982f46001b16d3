"""The native core: shared memory of a lab, seen by the supervisor (Arena) and by a worker (Shard)."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

WORKERS: Final[int]  # slots for worker processes in an arena, 64
PORTS: Final[int]  # port ids are 1 to PORTS - 1, 1024
SWITCHES: Final[int]  # 64
COUNTERS: Final[tuple[str, ...]]  # names of a port's counters, drops not among them
DROP_CAUSES: Final[tuple[str, ...]]  # names of the reasons to drop, ingress first; egress ones begin with "tx_"

PACKET_RING: Final[tuple[int, int, int, int]]  # struct tpacket_req of the ring that add_packet maps

class Arena:
    """The shared memory of a lab. Raises ValueError where the descriptor holds no arena of this version."""

    def __init__(self, fd: int) -> None: ...
    @staticmethod
    def create(fd: int, lane_bytes: int = 4 << 20) -> Arena:
        """Lay out a new arena in the empty shared memory object `fd`; `lane_bytes` is a power of two from 256 KiB to 64 MiB."""

    def configure_switch(self, switch: int, *, hub: bool = False, age_s: int = 300, reserved: int = 0) -> None:
        """`reserved`: a bit a group address 01-80-c2-00-00-0X that is forwarded; the others are dropped."""

    def configure_port(
        self,
        port: int,
        *,
        worker: int,
        switch: int,
        up: bool = True,
        access: int = 0,  # VLAN of an access port, 0: not an access port
        trunk: Sequence[int] | None = None,  # VLANs of a trunk port, None: not a trunk port
        native: int = 0,
        isolated: bool = False,
        max_macs: int = 0,
        mtu: int = 0,
        # Faults of the lines to the guest and from it, keys of `shardnet.impairments.line`.
        out: Mapping[str, int | None] | None = None,
        inward: Mapping[str, int | None] | None = None,
        behind: int = 0,  # the port whose companion this is: it gets what that hands over, is not flooded to and not learnt
        shards: int = 0,  # over how many shards its frames are spread, itself and companions of it
        share: int = 0,  # which of those this companion is
        capture: bool = False,  # its worker writes down what passes others; nothing is forwarded to it
    ) -> None: ...
    def clear_port(self, port: int) -> None:
        """Take the port out of the switch, its addresses out of the table, its counters to zero."""

    def mirror(self, port: int, worker: int, on: bool) -> None:
        """Copy what passes `port`, both ways, to the lane of `worker` (a capture); counting losses begins at 0."""

    def counters(self, port: int) -> dict[str, int]:
        """All of COUNTERS, summed over workers; rx_frames, rx_drops, tx_drops, in_hand and queued beside them."""

    def drops(self, port: int) -> dict[str, int]:
        """Frames dropped by cause, causes without a drop left out."""

    def macs(self, port: int) -> int: ...
    def port_worker(self, port: int) -> int | None: ...
    def beat(self, worker: int) -> int:
        """A number that the worker's loop changes at each turn; liveness is a change after its doorbell rang."""

    def asleep(self, worker: int) -> bool: ...
    def faults(self, worker: int) -> int:
        """Times that `worker` was caught breaking the protocol of a lane; a worker that does is to be killed."""

    def repair(self, worker: int) -> int:
        """After the death of `worker` and before its successor: make its lanes consistent; returns frames lost, now booked as worker_died and tx_worker_died."""

    def fdb(self, switch: int) -> list[tuple[str, int, int, int]]:
        """(MAC, VLAN, port, age in seconds) for each live entry."""

    def fdb_flush(self, switch: int, port: int = 0) -> int: ...
    def lanes(self) -> list[tuple[int, int, int, int]]:
        """(from, to, frames queued, frames refused for want of room) for each lane ever used."""

class Shard:
    """The loop of a worker: carries its ports' frames until something needs Python."""

    def __init__(self, arena: Arena, worker: int, doorbells: Sequence[int]) -> None: ...
    def add_tap(self, port: int, fds: Sequence[int]) -> None:
        """Queues of a TAP opened with IFF_VNET_HDR, header of 10 bytes, non-blocking, offloads set; frames cross uncut."""

    def add_stream(self, port: int, read_fd: int, write_fd: int, prefix: int = 4) -> None:
        """Big-endian length of `prefix` bytes (2 or 4) and a frame; read_fd may equal write_fd. Ended by EOF, error or a bad length."""

    def add_dgram(
        self,
        port: int,
        fd: int,
        remote: bytes | None = None,
        *,
        send_fd: int = -1,
        follow: bool = False,
        ignore: bytes | None = None,
    ) -> None:
        """A frame a datagram (or a record of SOCK_SEQPACKET).

        `remote`: a sockaddr to send to; None: the socket is connected. `send_fd`: a second socket for sending (multicast). `follow`: answer to
        whoever sent last. `ignore`: a sockaddr whose datagrams are our own, come back.
        """

    def add_vxlan(
        self,
        port: int,
        fd: int,
        send_fds: Sequence[int],
        vni: int,
        everybody: Sequence[bytes],
        closed: bool,
        tags: bool,
    ) -> None:
        """Frames in VXLAN (RFC 7348), received from `fd` and sent from `send_fds` by their flows.

        `everybody`: sockaddrs to which goes what is for all or for somebody unknown; `closed`: nobody else is heard. `tags`: 802.1Q tags pass.
        """

    def add_l2tpv3(
        self,
        port: int,
        fd: int,
        remote: bytes,
        head: bytes,
        expected: bytes,
        rest: int,
        *,
        counter: int | None = None,
        udp: bool = True,
        has_ip_header: bool = False,
    ) -> None:
        """Frames behind `head`, in which `counter` is where datagrams are counted, to the sockaddr `remote`.

        What comes in has `expected` (session and cookie), then `rest` bytes, before the frame; in front of all of it over `udp` the word with
        the version, and the IP header where the socket is a raw one of IPv4.
        """

    def add_packet(self, port: int, fd: int) -> None:
        """A packet socket with PACKET_VNET_HDR, PACKET_COPY_THRESH and a receive ring of PACKET_RING (TPACKET_V2); it outlives its worker."""

    def set_link(self, port: int, mtu: int | None) -> None:
        """Say what the interface behind a port takes, to all who write to it: packets of at most `mtu` bytes, 0: any; None: it has no carrier."""

    def add_link(self, port: int, peer: int) -> None:
        """One end of a link; `peer` is the other one, a port of this worker on another switch, which is added by itself."""

    def add_user(self, port: int, given: Mapping[str, Any]) -> None:
        """A user-mode network. All of the keys are needed:

        `ipv4`, `ipv6`: (network, prefix, host's address, address to bind outgoing sockets to or None) or None; `mtu`: 0 for none;
        `restrict`; `loopback`: ranges of ports, None for all; `interface`: to bind outgoing sockets to, or ""; `max_flows`; `managed`: advertise DHCP; `resolvers`;
        `guestfwd`: (address, port, sockaddr as bytes | command as str) each;
        `services`: ("tcp" | "udp", address or group, first port, last port, companion's port) or ("neighbours", address, 0, 0, port) each: what is handed over;
        `shards`: the ports over which its flows are spread, or none; `share`: which of them it is, from 0;
        `links`: where the other shards take calls, as sockaddr, for the first; `calls`: that socket of our own, or None.
        """

    def add_service(self, port: int, given: Mapping[str, Any]) -> None:
        """The network of a service. All of the keys are needed, and `shardnet.serving.described` makes them:

        `ipv4`, `ipv6`, `mtu`, `max_flows` as for `add_user` (nothing is bound: None); `link_local`: its address on the link, or None;
        `udp`: ranges of ports whose datagrams come to Python; `tcp`: (address, port, sockaddr of a listening socket) each;
        `groups`: multicast groups and `broadcast`: also what is sent there; `announce`: tell everybody the addresses now.
        """

    def datagrams(self, port: int) -> list[tuple[bytes, bytes, int, bytes, int, bytes]]:
        """Take what has come for a service: (payload, peer, peer's port, local address, local port, peer's MAC) each, addresses of 4 or 16 bytes."""

    def answer(self, port: int, datagrams: Iterable[tuple[bytes, bytes, int, bytes, int, bytes]]) -> int:
        """Send a service's datagrams; returns for how many there was room, the others are drops of the port (lane_full).

        The local address is the service's, or the group that it was asked at; without a MAC a datagram goes where the peer was last heard, which is
        asked for if need be. Raises ValueError for one that no service may send; those before it are sent.
        """

    def seek(self, port: int, address: bytes) -> None:
        """Have a service ask by ARP or NDP who has an address; what was known of it is forgotten."""

    def found(self, port: int, address: bytes) -> bytes | None:
        """The MAC that was last heard to have an address on the service's link."""

    def heard(self, port: int, mac: bytes) -> int | None:
        """The port behind which this station (6 bytes) was last heard, on the switch and in the VLAN of `port`; None where it is not known."""

    def unresolved(self, port: int) -> int:
        """Datagrams of a service whose peer did not say where it is."""

    def add_vhost(self, port: int, pairs: int) -> None:
        """A virtio-net device of so many pairs of rings, driven by a guest whose memory is shared: rings 2n are what it receives from."""

    # Of such a device. OSError where what the front end says makes no sense. Descriptors stay the caller's. A region is (its address in the
    # guest, its size, its address in the front end, its offset in the file).
    def vhost_features(self, port: int, features: int) -> None: ...
    def vhost_memory(self, port: int, regions: Sequence[tuple[tuple[int, int, int, int], int]]) -> None:
        """All of the guest's memory: regions with their files."""

    def vhost_log(self, port: int, offset: int, size: int, fd: int) -> None:
        """Where pages that are written are noted, a bit each, while the features have VHOST_F_LOG_ALL."""

    def vhost_size(self, port: int, ring: int, size: int) -> None: ...
    def vhost_places(self, port: int, ring: int, table: int, available: int, used: int, log: int | None = None) -> None:
        """Addresses in the front end; `log`: the used ring's in the guest, where writes to it are to be noted."""

    def vhost_base(self, port: int, ring: int, base: int) -> None: ...
    def vhost_kick(self, port: int, ring: int, fd: int) -> None:
        """What the driver rings (an eventfd). The ring runs from here on."""

    def vhost_call(self, port: int, ring: int, fd: int | None) -> None: ...
    def vhost_error(self, port: int, ring: int, fd: int | None) -> None: ...
    def vhost_enable(self, port: int, ring: int, on: bool) -> None: ...
    def vhost_stop(self, port: int, ring: int) -> int:
        """Stop a ring; returns the entry with which it would have gone on."""

    def vhost_announce(self, port: int, mac: bytes) -> None:
        """Have the switch hear a RARP request from this address of six bytes."""

    def add_forward(self, port: int, number: int, fd: int, kind: str, guest: str | None, guest_port: int) -> int:
        """Give a user-mode network what arrives at a bound (listening) socket, "tcp", "udp" or "unix"; returns the forward's number.

        That is the one given, or where it is taken the next that is free.

        The socket stays the caller's, and open until the forward is removed. Without a guest what comes is refused.
        """

    def move_forward(self, port: int, forward: int, guest: str | None) -> None:
        """Have a forward go to another guest; connections that there are stay."""

    def remove_forward(self, port: int, forward: int) -> None: ...
    def serve_at(self, port: int, guestfwd: Sequence[tuple[str, int, bytes | str]]) -> None:
        """Have these guestfwd in the place of those before, as `add_user` takes them."""

    def forwards(self, port: int) -> dict[int, tuple[int, int, int]]:
        """Connections or datagrams taken, refused, and connections open now, by the forward's number."""

    def served(self, port: int) -> list[tuple[int, int, int]]:
        """The same for each guestfwd, in their order."""

    def flows(self, port: int, cursor: int, most: int) -> tuple[list[dict[str, Any]], int | None]:
        """At most `most` flows of a user-mode network from `cursor` on (0: from the first), and where to go on, None at the end."""

    # A network's flows move to another (core/src/user/migrate): freeze, lock, export, cut, release there; freeze, stage, adopt here;
    # locked and thaw where they are in the end. Descriptors stay the network's. Counts are `tcp`, `udp`, and `lost`: what is reset.
    def freeze(self, port: int) -> None:
        """Hear nothing and say nothing until `thaw`; frames of guests are drops (tx_down)."""

    def lock(self, port: int) -> list[int]:
        """TCP sockets that can move; they are to be switched to repair mode."""

    def export(self, port: int, hand: bool = False) -> tuple[bytes, dict[str, int], list[int]]:
        """The state of the flows, the locked sockets being in repair mode; `hand`: and the sockets that go along, which stay ours too."""

    def cut(self, port: int) -> None:
        """Reset the connections whose sockets are not locked: their far ends now, their guests when the network goes on."""

    def release(self, port: int) -> None:
        """Let go of all flows; locked sockets, in repair mode, end without a word."""

    def stage(
        self, port: int, sections: Sequence[bytes], handed: Sequence[Sequence[int]] = ()
    ) -> list[tuple[int, int, int]]:
        """Check the states of all shards of a network, ValueError says why not; sockets for repair mode, with room to send and to receive in bytes.

        `handed` are the sockets that came with each state. They are the network's from here on.
        """

    def adopt(self, port: int) -> dict[str, int]:
        """Build the staged connections anew in sockets that are in repair mode; ValueError where one cannot be, `forget` is right then."""

    def forget(self, port: int) -> None:
        """Drop what was staged."""

    def locked(self, port: int) -> list[int]:
        """Locked and staged sockets, which are to leave repair mode before `thaw`."""

    def thaw(self, port: int, repaired: bool) -> None:
        """Go on; without `repaired` what is in repair mode is reset."""

    def add_capture(
        self,
        fd: int,
        ports: Sequence[tuple[int, str]],
        snaplen: int = 0,
        *,
        port: int | None = None,  # that the capture is, for its counters
        pcapng: bool = True,
        size: int = 0,  # of the file, which is gone on with at its end
        limit: int = 0,  # most bytes of a file; then ("full", port, 0) is told
        ledger: int = -1,  # a file in memory: 16 bytes say of which inode how many bytes are whole, little-endian
        anew: bool = True,  # what is on the way to this worker is of another capture
    ) -> None:
        """Write what arrives by mirroring to `fd`, an interface a port. An error ends it: ("ended", port or 0, errno)."""

    def capture_port(self, port: int, name: str) -> None:
        """Capture a port too; to be called before it is mirrored."""

    def capture_file(self, fd: int, size: int) -> None:
        """Go on in this file, the one before having had its end."""

    def turn_capture(self) -> bool:
        """Write the end of the file; False where it has no frames yet, or could not be written: then it goes on, or has ended."""

    def lend(self, port: int, fd: int) -> None:
        """Write to another worker's TAP through `fd` directly, while nothing of ours waits in the lane to that worker; `remove` ends it."""

    def remove(self, port: int) -> None:
        """Stop carrying the port; its descriptors stay open and stay the caller's."""

    def watch(self, fd: int) -> None:
        """Return from run() with ("ready", fd, 0) while `fd` is readable (or has ended)."""

    def unwatch(self, fd: int) -> None: ...
    def run(self, timeout_s: float | None = None) -> list[tuple[str, int, int]]:
        """Carry frames, without the GIL, until there is news; [] at the time-out.

        ("ready", fd, 0), ("datagrams", port, 0), ("ended", port, errno or 0 at EOF), ("stopped", port, ring) of a vhost-user port whose ring makes no sense any more,
        ("full", port, 0) of a capture whose file has had its end, ("short", port, place in DROP_CAUSES) of a user-mode network that had none of
        something for a new flow: at once, then once a minute.

        A descriptor that ended has been removed from the loop already. Raises InterruptedError when a signal came (after Python's handlers ran).
        """

    def end_capture(self) -> tuple[int, int, int, int]:
        """Write what is still on the way to this worker and the end of the file.

        Frames written, frames lost, length of the file as far as it is whole, and an errno or 0; the same again once it has ended.
        """

class Relay:
    """Asks resolvers what guests ask in the usual way, and leaves the rest to `shardnet.dns`; core/src/relay says how.

    `take`, `ready` and `late` return what is to be done: answers to send, as datagrams; answers to keep, as (key, flags, counts, records,
    times to live by place, where the additional records begin, seconds); datagrams to be answered; (asker, message) of those who joined;
    questions to go on with, as (token, key, guest, resolver, id, EDNS, since when, (query, datagram or asker) each, message | b"" where none will
    come | None where it is late); (token, message | None where none will come) of what was sent by `send`; counts by name.
    `known`: answers and questions by their key, names of the lab, zones and wildcards by name: a question that one of them has is left.
    """

    def __init__(self, given: Mapping[str, Any]) -> None:
        """All of the keys are needed: `guest`, `waiting`, `all`, `guests`, `askers`, `rate`: limits as in `shardnet.dns.forward`; `wait_s`: the
        longest that a question waits for others of its guest; `size`: of an answer; `patience_s`: least and most of a resolver's;
        `inside`: first bytes of IPv4 and IPv6 addresses that an answer is not to have, or None.
        """

    def fileno(self) -> int:
        """An epoll, readable when `ready` has something to do."""

    def aim(self, targets: Sequence[tuple[int, bytes, bytes, bool, float]]) -> None:
        """Ask these from now on: (number, domain, sockaddr, knows EDNS, patience in seconds) each."""

    def answered(self) -> list[tuple[int, float]]:
        """(number, patience) of each that has answered since the last call."""

    def is_busy(self) -> bool: ...
    def take(
        self, datagrams: list[tuple[bytes, bytes, int, bytes, int, bytes]], now_s: float, known: tuple[Any, ...]
    ) -> tuple[Any, ...]:
        """Take queries; those that are asked of a resolver now, or wait for that, need nothing more."""

    def join(self, key: bytes, asker: Any) -> bool:
        """Have `asker` hear what is said to a question that is under way here."""

    def ready(self, now_s: float, known: tuple[Any, ...]) -> tuple[Any, ...]:
        """Hand out what has come."""

    def late(self, now_s: float, known: tuple[Any, ...]) -> tuple[Any, ...]:
        """Hand over what was waited for long enough."""

    def send(self, sockaddr: bytes, payload: bytes) -> int:
        """Send from a port of its own, which `close` gives up; raises OSError."""

    def close(self, token: int) -> None: ...
    def done(self, guest: bytes) -> None:
        """A question of this guest that was handed over is over."""

def drop_privileges() -> None:
    """Give up all capabilities and the right to gain any, leave no core, die with the parent (SIGKILL)."""

def share(guest: str, shards: int) -> int:
    """Which of `shards` has what comes from a guest, but for TCP."""

def process_title(text: str) -> None:
    """Name this process in ps and top; 15 bytes are kept."""
