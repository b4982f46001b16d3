"""Who transfers what: requests become transfers, each with a port of its own (RFC 1350, section 4), so many for a guest and so many in all.

A datagram is (payload, peer, peer's port, local, local port, MAC), as the place of a service hands it over and takes it back. What
comes to port 69 is a request, or is not answered; what comes to another port belongs to the transfer there, if it comes from that one's peer.
A guest is known by its MAC. Over its share the transfer of its own that has been silent longest makes room if it has been silent for IDLE_S;
otherwise the newcomer is refused. Names are looked up by `folder.Folder`.
"""

import errno
import random
import socket
from collections.abc import Callable, Iterable

from shardnet.tftp import folder, message, transfer

PORT = 69  # RFC 1350, section 4
IDLE_S = 5.0
TICK_S = 0.05  # how often `tick` is to be called while there are transfers
GUEST_MAX, ALL_MAX = 16, 256
BLKSIZE_MIN, BLKSIZE_MAX = 8, 65464  # RFC 2348
WINDOWSIZE_MAX = 64
WINDOW_BYTES = 128 << 10  # between two acknowledgements: what the receive buffer of a client has room for
TIMEOUT_MAX = 255  # RFC 2349
MODES = ("octet", "netascii")
STRAYS_PER_S = 100  # answers to what belongs to no transfer

REASONS = {
    errno.ENOENT: "no such file",
    errno.EXDEV: "outside of the folder",
    errno.EROFS: "read-only",
}

Datagram = tuple[bytes, bytes, int, bytes, int, bytes]
Count = Callable[[str, int], None]


class Job:
    """A transfer with the addresses that it is between."""

    def __init__(self, first: Datagram, port: int, name: bytes, now: float) -> None:
        self.request, self.peer, self.peer_port, self.local, _, self.mac = first
        self.port, self.name, self.began = port, name, now
        self.transfer: transfer.Transfer

    def datagrams(self, payloads: Iterable[bytes]) -> list[Datagram]:
        peer, peer_port, local, port, mac = self.peer, self.peer_port, self.local, self.port, self.mac
        return [(payload, peer, peer_port, local, port, mac) for payload in payloads]


class Server:
    """All transfers of a service."""

    def __init__(
        self,
        reading: folder.Folder,
        writing: folder.Folder | None,
        ports: range,
        *,
        blksize_max: Callable[[bytes], int] = lambda _: BLKSIZE_MAX,
        guest_max: int = GUEST_MAX,
        count: Count = lambda _name, _by: None,
        note: Callable[[str], None] = lambda _: None,
    ) -> None:
        """Serve the files of `reading`; transfers have ports of `ports`, which are more than ALL_MAX.

        `writing` takes what comes in, None nothing. `blksize_max` says the largest block by the guest's address. `count` is told
        what happened by name and number, `note` the end of a transfer in words.
        """
        self.reading, self.writing = reading, writing
        self.ports = ports
        self.blksize_max, self.guest_max = blksize_max, guest_max
        self.count, self.note = count, note
        self.jobs: dict[int, Job] = {}  # by their ports
        self._random = random.SystemRandom()
        self._strays = (0, 0)

    def received(self, datagrams: Iterable[Datagram], now: float) -> list[Datagram]:
        """Take what has come; returns what is to be sent."""
        answers: list[Datagram] = []
        for datagram in datagrams:
            payload, peer, peer_port, local, port, _ = datagram
            job = self.jobs.get(port)
            if job is not None and job.peer_port == peer_port and job.peer == peer and job.local == local:
                answers += job.datagrams(job.transfer.received(payload, now))
                if job.transfer.outcome:
                    self._settle(job, now)
            elif not peer_port:
                self.count("malformed", 1)
            elif port == PORT:
                answers += self._asked(datagram, now)
            else:
                answers += self._stray(datagram, now)
        return answers

    def tick(self, now: float) -> list[Datagram]:
        """Do what is due; to be called every TICK_S while there are `jobs`."""
        answers: list[Datagram] = []
        for job in list(self.jobs.values()):
            if not job.transfer.outcome and job.transfer.timer.due <= now:
                answers += job.datagrams(job.transfer.expired(now))
            if job.transfer.outcome:
                self._settle(job, now)
        return answers

    def close(self) -> None:
        """End every transfer without a word: a successor, or nobody, is asked again."""
        for job in self.jobs.values():
            job.transfer.drop("the service ends")
        self.jobs.clear()

    def _settle(self, job: Job, now: float) -> None:
        """Tell how a transfer ended, once; forget it when nothing more is to be said."""
        moved = job.transfer
        if job.name:
            what = message_text(job.name)
            way = "from" if isinstance(moved, transfer.Receiving) else "to"
            if moved.outcome == "done":
                took = f"{moved.bytes} bytes in {now - job.began:.2f} s"
                self.note(f"{what} {way} {address_text(job.peer)}: {took}")
            else:
                self.note(f"{what} {way} {address_text(job.peer)}: {moved.outcome} (after {moved.bytes} bytes)")
            self.count("completed" if moved.outcome == "done" else "failed", 1)
            self.count("bytes_received" if way == "from" else "bytes_sent", moved.bytes)
            if moved.resent:
                self.count("resent", moved.resent)
            job.name = b""
        if moved.ends <= now:
            del self.jobs[job.port]

    def _asked(self, datagram: Datagram, now: float) -> list[Datagram]:
        """Begin a transfer, or say why not."""
        payload, peer, peer_port, local, _, mac = datagram
        if not payload.startswith((b"\0\1", b"\0\2")):
            self.count("malformed", 1)
            return []
        earlier = next((job for job in self.jobs.values() if (job.peer, job.peer_port) == (peer, peer_port)), None)
        if earlier is not None and not earlier.transfer.outcome:
            if earlier.request == payload:  # the client has not heard the answer
                earlier.transfer.resent += 1
                return earlier.datagrams(earlier.transfer.start(now))
            earlier.transfer.drop("the client asks for something else")
            self._settle(earlier, now)
        job = Job(datagram, 0, b"", now)
        try:
            wanted = message.request(payload)
        except message.Malformed as why:
            self.count("malformed", 1)
            return self._refused(job, message.ILLEGAL, str(why))
        self.count("write_requests" if wanted.write else "read_requests", 1)
        if wanted.mode not in MODES:
            return self._refused(job, message.ILLEGAL, "a mode is octet or netascii")
        if not self._room(mac, now):
            return self._refused(job, message.UNDEFINED, "too many transfers")
        agreed, options = self._agree(wanted, peer)
        try:
            if wanted.write:
                moved = self._write(wanted, agreed, options, now)
            else:
                moved = self._read(wanted, agreed, options, now)
        except OSError as error:
            what = REASONS.get(error.errno or 0) or transfer.said(error)
            way = "from" if wanted.write else "to"
            self.note(f"{message_text(wanted.name)} {way} {address_text(peer)}: {what}")
            return self._refused(job, transfer.error_code(error), what)
        job.port, job.name, job.transfer = self._free(), wanted.name, moved
        self.jobs[job.port] = job
        answers = job.datagrams(moved.start(now))
        if moved.outcome:
            self._settle(job, now)
        return answers

    def _read(
        self, wanted: message.Request, agreed: transfer.Agreed, options: dict[str, str], now: float
    ) -> transfer.Transfer:
        fd, size = self.reading.open(wanted.name)
        if wanted.mode == "netascii":
            return transfer.Sending(transfer.Text(fd, agreed.blksize), agreed, options, now)
        if size and "tsize" in wanted.options:  # curl takes a size of 0 for a mistake
            options = {**options, "tsize": str(size)}
        return transfer.Sending(transfer.Octets(fd, size, agreed.blksize), agreed, options, now)

    def _write(
        self, wanted: message.Request, agreed: transfer.Agreed, options: dict[str, str], now: float
    ) -> transfer.Transfer:
        if self.writing is None:
            raise OSError(errno.EROFS, "")
        incoming = self.writing.create(wanted.name)
        try:
            size = _number(wanted.options.get("tsize", ""))
            if size is not None:
                incoming.expect(size)
                options = {**options, "tsize": str(size)}
        except OSError:
            incoming.abort()
            raise
        return transfer.Receiving(incoming, wanted.mode == "netascii", agreed, options, now)

    def _agree(self, wanted: message.Request, peer: bytes) -> tuple[transfer.Agreed, dict[str, str]]:
        """What we take of the options that were asked for; what is no number, or too small, is as if it had not been asked for."""
        blksize, windowsize, timeout = 512, 1, 0
        options: dict[str, str] = {}
        for name, text in wanted.options.items():
            number = _number(text)
            if number is None:
                continue
            if name == "blksize" and number >= BLKSIZE_MIN:
                blksize = min(number, BLKSIZE_MAX, self.blksize_max(peer))
                options[name] = str(blksize)
            elif name == "timeout" and 1 <= number <= TIMEOUT_MAX:
                timeout = number
                options[name] = str(timeout)
            elif name == "windowsize" and number >= 1:
                windowsize = min(number, WINDOWSIZE_MAX)
                options[name] = ""  # by the block's size, which may come behind it
        if "windowsize" in options:
            windowsize = max(1, min(windowsize, WINDOW_BYTES // blksize))
            options["windowsize"] = str(windowsize)
        return transfer.Agreed(blksize, windowsize, timeout), options

    def _room(self, mac: bytes, now: float) -> bool:
        """Is there room for one more of this guest's?"""
        its = [job for job in self.jobs.values() if job.mac == mac]
        if len(its) < self.guest_max and len(self.jobs) < ALL_MAX:
            return True
        oldest = min(its or self.jobs.values(), key=lambda job: (not job.transfer.outcome, job.transfer.timer.since))
        if not oldest.transfer.outcome:
            if now - oldest.transfer.timer.since < IDLE_S:
                return False
            oldest.transfer.drop("silent, and others wait")
        oldest.transfer.ends = 0.0
        self._settle(oldest, now)
        return True

    def _free(self) -> int:
        while (port := self._random.choice(self.ports)) in self.jobs:
            pass
        return port

    def _refused(self, job: Job, code: int, why: str) -> list[Datagram]:
        """Answer a request with an error, from a port of its own, as RFC 1350 would have it."""
        self.count("refused", 1)
        job.port = self._free()
        return job.datagrams([message.error(code, why)])

    def _stray(self, datagram: Datagram, now: float) -> list[Datagram]:
        """Answer what belongs to no transfer, or to another's (RFC 1350, section 4); never an error, and not without end."""
        payload, peer, peer_port, local, port, mac = datagram
        self.count("unknown_id", 1)
        second, told = self._strays
        if second != int(now):
            second, told = int(now), 0
        self._strays = second, told + 1
        if told >= STRAYS_PER_S or not payload.startswith((b"\0\3", b"\0\4")):
            return []
        return [(message.error(message.UNKNOWN_ID, "unknown transfer"), peer, peer_port, local, port, mac)]


def _number(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdecimal() and len(text) <= 18 else None


def message_text(name: bytes) -> str:
    """A name as a guest sent it, fit for a log."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in name.decode("utf-8", "backslashreplace"))


def address_text(packed: bytes) -> str:
    """An address in words."""
    return socket.inet_ntop(socket.AF_INET if len(packed) == 4 else socket.AF_INET6, packed)
