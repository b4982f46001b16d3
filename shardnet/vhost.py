"""The vhost-user protocol, as a device speaks it to the front end in a VMM (QEMU's docs/interop/vhost-user.rst).

    | request u32 | flags u32 | size u32 | payload ... |     in the host's byte order, descriptors by SCM_RIGHTS

Messages come a few times in a guest's life: its memory, where its rings are, what rings whom. They are read and checked here;
what a frame meets is in the core (core/src/port/vhost/). A message that is wrong ends the connection with the reason in the
lab's log, since nothing behind it can be believed. Descriptors that a message does not call for are closed.

    GET_FEATURES .. SET_FEATURES          what the device offers and the guest's driver takes
    SET_MEM_TABLE                         the guest's memory, shared by its files
    SET_VRING_NUM, _BASE, _ADDR           a ring's size and place
    SET_VRING_KICK                        its doorbell: the ring runs
    SET_VRING_ENABLE                      frames pass, where protocol features were agreed on; else at once
    GET_VRING_BASE                        the ring stops; says where it would have gone on
"""

import os
import socket
import struct
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from shardnet import worker

HEADER = struct.Struct("=III")
PAYLOAD_MAX = 4096
FDS_MAX = 8  # a table of memory has as many regions
MESSAGES_MAX = 64  # read in a row before frames have their turn
VERSION, VERSION_MASK, REPLY, NEED_REPLY = 1, 3, 4, 8
NO_FD = 1 << 8  # SET_VRING_KICK, _CALL, _ERR
LOG_USED = 1 << 0  # SET_VRING_ADDR: note writes to the used ring
PAIRS_MAX = 128  # PAIRS_MOST of the core; the index of a ring has eight bits

# Feature bits: VIRTIO 1.2, clauses 5.1.3 and 6, and vhost-user's own.
CSUM, GUEST_CSUM, MTU, GUEST_TSO4, GUEST_TSO6, GUEST_ECN = 0, 1, 3, 7, 8, 9
HOST_TSO4, HOST_TSO6, HOST_ECN, MRG_RXBUF, GUEST_ANNOUNCE, MQ = 11, 12, 13, 15, 21, 22
LOG_ALL, ANY_LAYOUT, INDIRECT_DESC, EVENT_IDX, PROTOCOL_FEATURES, VERSION_1 = 26, 27, 28, 29, 30, 32
GUEST_USO4, GUEST_USO6, HOST_USO = 54, 55, 56
FEATURES = sum(
    1 << bit
    for bit in (
        *(CSUM, GUEST_CSUM, MTU, GUEST_TSO4, GUEST_TSO6, GUEST_ECN),
        *(HOST_TSO4, HOST_TSO6, HOST_ECN, MRG_RXBUF, GUEST_ANNOUNCE, MQ),
        *(LOG_ALL, ANY_LAYOUT, INDIRECT_DESC, EVENT_IDX, PROTOCOL_FEATURES, VERSION_1),
        *(GUEST_USO4, GUEST_USO6, HOST_USO),
    )
)
# Protocol features: bits of their own.
# Not CONFIGURE_MEM_SLOTS: QEMU 7.2 adds each region once a queue then, and eight regions do.
P_MQ, P_LOG_SHMFD, P_RARP, P_REPLY_ACK, P_NET_MTU = range(5)
PROTOCOL = sum(1 << bit for bit in (P_MQ, P_LOG_SHMFD, P_RARP, P_REPLY_ACK, P_NET_MTU))

U64 = struct.Struct("=Q")
STATE = struct.Struct("=II")  # a ring, a number
ADDRESSES = struct.Struct("=IIQQQQ")  # a ring, flags, table, used, available, the used ring's address in the guest
TABLE = struct.Struct("=II")
REGION = struct.Struct("=QQQQ")  # address in the guest, size, address in the front end, offset in the file
LOG = struct.Struct("=QQ")  # size, offset
RARP = struct.Struct("=6s2x")


class Wrong(Exception):
    """A message that ends the connection; says why."""


class Form(NamedTuple):
    """A message as the front end sends it."""

    name: str
    layout: struct.Struct | None = None  # of its payload; None: of none
    fds: int = 0  # that it may bring
    answers: bool = False  # whether it is asked or not


FORMS = {
    1: Form("get_features", answers=True),
    2: Form("set_features", U64),
    3: Form("set_owner"),
    4: Form("reset_owner"),
    5: Form("set_mem_table", TABLE, FDS_MAX),
    6: Form("set_log_base", LOG, 1, answers=True),
    7: Form("set_log_fd", fds=1),
    8: Form("set_vring_num", STATE),
    9: Form("set_vring_addr", ADDRESSES),
    10: Form("set_vring_base", STATE),
    11: Form("get_vring_base", STATE, answers=True),
    12: Form("set_vring_kick", U64, 1),
    13: Form("set_vring_call", U64, 1),
    14: Form("set_vring_err", U64, 1),
    15: Form("get_protocol_features", answers=True),
    16: Form("set_protocol_features", U64),
    17: Form("get_queue_num", answers=True),
    18: Form("set_vring_enable", STATE),
    19: Form("send_rarp", U64),
    20: Form("net_set_mtu", U64),
}


class Session:
    """One front end, from its first message to its last; `ended` is told why it ended, or "" where it left."""

    def __init__(
        self, place: "worker.Place", peer: socket.socket, pairs: int, mtu: int, ended: Callable[[str], None]
    ) -> None:
        self.place, self.peer, self.pairs, self.mtu, self.ended = place, peer, pairs, mtu, ended
        self.features = self.protocol = 0
        self.bytes = bytearray()
        self.fds: list[int] = []  # that came with the message at hand
        place.shard.add_vhost(place.port, pairs)
        place.watch(peer.fileno(), self._ready)

    def close(self) -> None:
        """Forget the connection; its socket and the port in the loop stay the caller's to close."""
        self.place.unwatch(self.peer.fileno())
        self._close_fds()

    def _ready(self) -> None:
        why = None
        try:
            for _ in range(MESSAGES_MAX):
                if not self._receive():
                    return
        except (EOFError, ConnectionResetError):
            why = "in the middle of a message" if self.bytes else ""
        except (Wrong, OSError, ValueError) as error:
            why = str(error)
        finally:
            self._close_fds(partial=why is None)
        if why is not None:
            self.ended(why)

    def _receive(self) -> bool:
        """Read one message and obey it; False where it has not come as a whole.

        Never more than one is read at a time, or its descriptors could be another's.
        """
        while True:
            needed = HEADER.size
            if len(self.bytes) >= HEADER.size:
                needed += HEADER.unpack_from(self.bytes)[2]
                if needed > HEADER.size + PAYLOAD_MAX:
                    raise Wrong(f"a message of {needed} bytes")
                if len(self.bytes) == needed:
                    break
            try:
                data, fds, flags, _ = socket.recv_fds(
                    self.peer, needed - len(self.bytes), FDS_MAX, socket.MSG_CMSG_CLOEXEC
                )
            except (BlockingIOError, InterruptedError):
                return False
            self.fds += fds
            if not data:
                raise EOFError
            if flags & socket.MSG_CTRUNC or len(self.fds) > FDS_MAX:
                raise Wrong(f"more than {FDS_MAX} descriptors")
            self.bytes += data
        request, flags, _ = HEADER.unpack_from(self.bytes)
        payload = bytes(self.bytes[HEADER.size :])
        self.bytes.clear()
        self._obey(request, flags, payload)
        self._close_fds()
        return True

    def _obey(self, request: int, flags: int, payload: bytes) -> None:
        form = FORMS.get(request)
        if flags & VERSION_MASK != VERSION or flags & REPLY:
            raise Wrong(f"message {request} with flags {flags:#x}: version 1 and no reply is meant")
        if form is None:
            raise Wrong(f"message {request}: not one of what was offered")
        if len(self.fds) > form.fds:
            raise Wrong(f"{form.name}: {len(self.fds)} descriptors, {form.fds} at most are meant")
        least = form.layout.size if form.layout else 0
        if len(payload) < least or (form.name != "set_mem_table" and form.layout and len(payload) != least):
            raise Wrong(f"{form.name}: a payload of {len(payload)} bytes, {least} are meant")
        wants_answer = bool(flags & NEED_REPLY and self.protocol >> P_REPLY_ACK & 1 and not form.answers)
        try:
            fields = form.layout.unpack_from(payload) if form.layout else ()
            answer: bytes | None = getattr(self, f"_{form.name}")(payload, *fields)
        except (Wrong, OSError, ValueError) as error:
            if wants_answer:
                self._answer(request, U64.pack(1))
            raise Wrong(f"{form.name}: {error}") from None
        if wants_answer:
            answer = answer or U64.pack(0)
        if answer is not None and (wants_answer or form.answers):
            self._answer(request, answer)

    def _answer(self, request: int, payload: bytes) -> None:
        try:
            self.peer.sendall(HEADER.pack(request, VERSION | REPLY, len(payload)) + payload)
        except BlockingIOError:
            raise Wrong("the front end does not read its answers") from None

    def _close_fds(self, partial: bool = False) -> None:
        """Close what came and was not taken; `partial`: not what belongs to a message that has begun."""
        if partial and self.bytes:
            return
        for fd in self.fds:
            os.close(fd)
        self.fds.clear()

    def _get_features(self, _: bytes) -> bytes:
        return U64.pack(FEATURES)

    def _set_features(self, _: bytes, features: int) -> None:
        if features & ~FEATURES:
            raise Wrong(f"{features & ~FEATURES:#x}: not offered")
        self.features = features
        self.place.shard.vhost_features(self.place.port, features)

    def _get_protocol_features(self, _: bytes) -> bytes:
        return U64.pack(PROTOCOL)

    def _set_protocol_features(self, _: bytes, features: int) -> None:
        if features & ~PROTOCOL:
            raise Wrong(f"{features & ~PROTOCOL:#x}: not offered")
        self.protocol = features

    def _get_queue_num(self, _: bytes) -> bytes:
        return U64.pack(self.pairs)

    def _set_owner(self, _: bytes) -> None:
        """Nothing: there is one owner, who is connected."""

    def _reset_owner(self, _: bytes) -> None:
        for ring in range(2 * self.pairs):
            self.place.shard.vhost_enable(self.place.port, ring, False)

    def _set_mem_table(self, payload: bytes, count: int, _padding: int) -> None:
        if count > FDS_MAX or len(payload) != TABLE.size + count * REGION.size or count != len(self.fds):
            raise Wrong(f"{count} regions in {len(payload)} bytes with {len(self.fds)} descriptors")
        regions = [REGION.unpack_from(payload, TABLE.size + at * REGION.size) for at in range(count)]
        self.place.shard.vhost_memory(self.place.port, list(zip(regions, self.fds, strict=True)))

    def _set_log_base(self, _: bytes, size: int, offset: int) -> bytes | None:
        self.place.shard.vhost_log(self.place.port, offset, size, self._fd())
        return b"" if self.protocol >> P_LOG_SHMFD & 1 else None

    def _set_log_fd(self, _: bytes) -> None:
        """Nothing: the front end reads the log when it wants to."""

    def _set_vring_num(self, _: bytes, ring: int, size: int) -> None:
        self.place.shard.vhost_size(self.place.port, ring, size)

    def _set_vring_base(self, _: bytes, ring: int, base: int) -> None:
        self.place.shard.vhost_base(self.place.port, ring, base & 0xFFFF)

    def _set_vring_addr(self, _: bytes, ring: int, flags: int, table: int, used: int, available: int, log: int) -> None:
        noted = log if flags & LOG_USED else None
        self.place.shard.vhost_places(self.place.port, ring, table, available, used, noted)

    def _get_vring_base(self, _: bytes, ring: int, _number: int) -> bytes:
        return STATE.pack(ring, self.place.shard.vhost_stop(self.place.port, ring))

    def _set_vring_enable(self, _: bytes, ring: int, on: int) -> None:
        self.place.shard.vhost_enable(self.place.port, ring, on != 0)

    def _set_vring_kick(self, _: bytes, which: int) -> None:
        fd = self._bell(which)
        if fd is None:
            raise Wrong("without a descriptor: a guest that never rings would have to be asked all the time")
        self.place.shard.vhost_kick(self.place.port, which & 0xFF, fd)

    def _set_vring_call(self, _: bytes, which: int) -> None:
        self.place.shard.vhost_call(self.place.port, which & 0xFF, self._bell(which))

    def _set_vring_err(self, _: bytes, which: int) -> None:
        self.place.shard.vhost_error(self.place.port, which & 0xFF, self._bell(which))

    def _send_rarp(self, payload: bytes, _: int) -> None:
        (mac,) = RARP.unpack(payload)
        if mac[0] & 1 or not any(mac):
            raise Wrong(f"{mac.hex(':')}: no address of one interface")
        self.place.shard.vhost_announce(self.place.port, mac)

    def _net_set_mtu(self, _: bytes, mtu: int) -> bytes | None:
        if self.mtu and mtu > self.mtu:
            self.place.log(f"the guest is to have an mtu of {mtu}, and this port's is {self.mtu}")
            return U64.pack(1)
        return None

    def _fd(self) -> int:
        if not self.fds:
            raise Wrong("without a descriptor")
        return self.fds[0]

    def _bell(self, which: int) -> int | None:
        """The eventfd that a message brings, which no write to it blocks; None where it says that there is none."""
        if which & NO_FD:
            return None
        fd = self._fd()
        if os.readlink(f"/proc/self/fd/{fd}") != "anon_inode:[eventfd]":
            raise Wrong("no eventfd")  # a write to a pipe could wait for ever
        os.set_blocking(fd, False)
        return fd
