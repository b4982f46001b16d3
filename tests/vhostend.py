"""A front end of vhost-user in Python: it says what the test wants it to say, and drives rings in a memory of its own."""

import mmap
import os
import socket
import struct

MEMORY = 4 << 20
GUEST, USER = 0x1_0000_0000, 0x7F00_0000_0000
SIZE = 64
RING, AVAILABLE, USED, BUFFERS = 0x10000, 0x1000, 0x2000, 0x100000
VERSION_1, PROTOCOL, LOG_ALL, MRG_RXBUF = 1 << 32, 1 << 30, 1 << 26, 1 << 15
P_MQ, P_LOG, P_RARP, P_ACK, P_MTU = 1, 2, 4, 8, 16
NEED_REPLY = 8


class FrontEnd:
    """One connection, and a memory of two pages of rings and some of buffers."""

    def __init__(self, desk, path):
        self.desk = desk
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.connect(path)
        self.socket.setblocking(False)
        self.file = os.memfd_create("guest")
        os.truncate(self.file, MEMORY)
        self.memory = mmap.mmap(self.file, MEMORY)
        self.bells = []
        self.posted, self.taken = {}, {}

    def say(self, request, payload=b"", fds=(), flags=1, size=None):
        head = struct.pack("=III", request, flags, len(payload) if size is None else size)
        socket.send_fds(self.socket, [head + payload], list(fds))

    def ask(self, request, payload=b"", fds=(), flags=1):
        """Say it, and return the payload of the answer."""
        self.say(request, payload, fds, flags)
        answer = self.desk.until(self.hear)
        assert struct.unpack("=III", answer[:12]) == (request, 5, len(answer) - 12)
        return answer[12:]

    def hear(self):
        try:
            return self.socket.recv(4096)
        except BlockingIOError:
            return None

    def number(self, request, *numbers, fds=(), flags=1):
        (value,) = struct.unpack("=Q", self.ask(request, struct.pack(f"={len(numbers)}Q", *numbers), fds, flags))
        return value

    def negotiate(self, features=VERSION_1 | PROTOCOL | MRG_RXBUF, protocol=P_MQ | P_LOG | P_RARP | P_ACK | P_MTU):
        self.offered = self.number(1)
        self.say(2, struct.pack("=Q", features))
        self.say(16, struct.pack("=Q", protocol))
        self.say(3)

    def share(self, regions=((GUEST, MEMORY, USER, 0),), fds=None):
        table = struct.pack("=II", len(regions), 0) + b"".join(struct.pack("=4Q", *region) for region in regions)
        self.say(5, table, [self.file] * len(regions) if fds is None else fds)

    def start(self, ring, kick=None, log=0):
        """Set a ring up and have it run, as QEMU does."""
        at = USER + ring * RING
        bell = os.eventfd(0, os.EFD_NONBLOCK) if kick is None else kick
        self.bells.append(bell)
        self.posted[ring] = self.taken[ring] = 0
        self.say(8, struct.pack("=II", ring, SIZE))
        self.say(10, struct.pack("=II", ring, 0))
        self.place(ring, log)
        self.say(12, struct.pack("=Q", ring), [bell])
        self.say(13, struct.pack("=Q", ring | 256))
        self.say(18, struct.pack("=II", ring, 1))
        return at

    def place(self, ring, log=0):
        at = USER + ring * RING
        addresses = struct.pack("=IIQQQQ", ring, 1 if log else 0, at, at + USED, at + AVAILABLE, log)
        self.say(9, addresses)

    def post(self, ring, number, data=None, room=2048):
        """Make buffer `number` available: to be filled, or with `data` behind an empty virtio-net header."""
        at = BUFFERS + (ring * SIZE + number) * 4096
        text = b"" if data is None else bytes(12) + data
        self.memory[at : at + len(text)] = text
        size, flags = (room, 2) if data is None else (len(text), 0)
        base = ring * RING
        self.memory[base + 16 * number : base + 16 * number + 16] = struct.pack("=QIHH", GUEST + at, size, flags, 0)
        slot = base + AVAILABLE + 4 + 2 * (self.posted[ring] % SIZE)
        self.memory[slot : slot + 2] = struct.pack("=H", number)
        self.posted[ring] += 1
        self.memory[base + AVAILABLE + 2 : base + AVAILABLE + 4] = struct.pack("=H", self.posted[ring])
        os.eventfd_write(self.bells[0], 1)
        return at

    def used(self, ring):
        """The next buffer that came back, (number, bytes in it), or None."""
        base = ring * RING + USED
        (index,) = struct.unpack("=H", self.memory[base + 2 : base + 4])
        if index == self.taken[ring]:
            return None
        entry = base + 4 + 8 * (self.taken[ring] % SIZE)
        number, length = struct.unpack("=II", self.memory[entry : entry + 8])
        self.taken[ring] += 1
        at = BUFFERS + (ring * SIZE + number) * 4096
        return number, self.memory[at : at + length]

    def is_gone(self):
        """Has the device hung up?"""
        try:
            return self.socket.recv(4096) == b""
        except BlockingIOError:
            return False
        except ConnectionResetError:
            return True

    def close(self):
        self.socket.close()
        self.memory.close()
        for fd in {self.file, *self.bells}:
            os.close(fd)
