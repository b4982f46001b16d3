"""One transfer of TFTP, seen from the server: what it sends for what has come and for what has not (RFC 1350, 2347 to 2349, 7440).

A window of blocks is sent, or awaited, between two acknowledgements; without the option it is one block. Blocks are counted from 1 and
never wrap in here: 16 bits are on the wire, and what they stand for is the nearest block that fits.

Sending, an ACK within the window moves it and is answered by the next window; one behind it is old. An ACK of what was acknowledged
already says, with windows, that the first block was lost: the window is sent once more, once, however often that is said. Without windows it says
nothing, and is not answered: two of it would double all that follows (the Sorcerer's Apprentice, RFC 1123, 4.2.3.1).

Receiving, a gap is told once by the ACK of what came in order. The last ACK is repeated for a sender that did not hear it, until LINGER_S
after the file's end. To repeat lost blocks is the sender's part: unasked, an ACK is sent again once, and then only after QUIET_S.

What got no answer is sent again after a time that follows the round trip (RFC 6298, at least RTO_MIN_S), doubled each time, or after as many
seconds as the option timeout says; after GIVE_UP_S, or TRIES of those, the peer is gone. Clients wait 5 s before they say again what was
lost (tftp-hpa, atftp), and any datagram starts that clock anew, also one that they ignore: so RTO_MAX_S and QUIET_S are longer.
"""

import abc
import errno
import os
from typing import NamedTuple, Protocol

from shardnet.tftp import message, netascii

RTO_FIRST_S, RTO_MIN_S, RTO_MAX_S = 0.5, 0.1, 8.0
GIVE_UP_S = 40.0
TRIES = 5
LINGER_S = 3.0
QUIET_S = 8.0

Send = list[bytes]


class Agreed(NamedTuple):
    """What request and answer agree on; `timeout` is in seconds, 0 where the option is not used."""

    blksize: int = 512
    windowsize: int = 1
    timeout: int = 0


class Source(Protocol):
    """A file that is sent."""

    def blocks(self, first: int, count: int) -> list[bytes]:
        """Blocks from `first` on, counted from 1; the one that is shorter than the others, and only that, ends the file.

        Never called for a block behind that one, nor for one before the `first` of an earlier call.
        """

    def close(self) -> None: ...


class Octets:
    """A file as it stands, read where the blocks are."""

    def __init__(self, fd: int, size: int, blksize: int) -> None:
        self.fd, self.size, self.blksize = fd, size, blksize

    def blocks(self, first: int, count: int) -> list[bytes]:
        start = (first - 1) * self.blksize
        end = min(start + count * self.blksize, self.size)
        content = os.pread(self.fd, end - start, start) if end > start else b""
        if len(content) < end - start:
            raise OSError(0, "the file became shorter meanwhile")
        found = [content[at : at + self.blksize] for at in range(0, len(content), self.blksize)]
        if len(found) < count and (not found or len(found[-1]) == self.blksize):
            found.append(b"")
        return found

    def close(self) -> None:
        os.close(self.fd)


class Text:
    """A file in netascii: read from front to end, and kept from the first block that may be asked for again."""

    def __init__(self, fd: int, blksize: int) -> None:
        self.fd, self.blksize = fd, blksize
        self._first = 1
        self._kept: list[bytes] = []
        self._rest, self._ended = b"", False

    def blocks(self, first: int, count: int) -> list[bytes]:
        del self._kept[: first - self._first]
        self._first = first
        while len(self._kept) < count and not self._ended:
            while len(self._rest) < self.blksize and (piece := os.read(self.fd, 8192)):
                self._rest += netascii.encode(piece)
            self._kept.append(self._rest[: self.blksize])
            self._ended = len(self._kept[-1]) < self.blksize
            self._rest = self._rest[self.blksize :]
        return self._kept[:count]

    def close(self) -> None:
        os.close(self.fd)


class Timer:
    """When to send again, and when to give up."""

    def __init__(self, timeout: int, now: float) -> None:
        self._fixed = float(timeout)
        self._rto = self._fixed or RTO_FIRST_S
        self._patience = max(GIVE_UP_S, TRIES * self._fixed)
        self._smooth = self._varies = 0.0
        self._sent: float | None = (
            None  # when the exchange began that tells the round trip, None where it was sent twice
        )
        self.since = now  # the last progress
        self.due = now + self._rto

    def sent(self, now: float) -> None:
        """Something new was sent that asks for an answer."""
        self._sent = now
        self.due = now + self._rto

    def progress(self, now: float) -> None:
        """The answer came, or a part of it."""
        self.since = now
        self.due = now + self._rto
        if self._fixed:
            return
        if self._sent is not None:
            trip = now - self._sent
            if self._smooth:
                self._varies += (abs(self._smooth - trip) - self._varies) / 4
                self._smooth += (trip - self._smooth) / 8
            else:
                self._smooth, self._varies = trip, trip / 2
            self._sent = None
        wanted = self._smooth + 4 * self._varies if self._smooth else RTO_FIRST_S
        self._rto = min(max(wanted, RTO_MIN_S), RTO_MAX_S)

    def again(self, now: float) -> bool:
        """No answer came in time; False where the peer is given up."""
        if now - self.since >= self._patience:
            return False
        if not self._fixed:
            self._rto = min(2 * self._rto, RTO_MAX_S)
        self._sent = None
        self.due = now + self._rto
        return True


class Transfer(abc.ABC):
    """What both directions have; `outcome` is "" under way, then done, or why it is not."""

    def __init__(self, agreed: Agreed, options: dict[str, str], now: float) -> None:
        self.agreed, self.options = agreed, options
        self.timer = Timer(agreed.timeout, now)
        self.outcome = ""
        self.bytes = 0  # of the file, that the other side has or that came
        self.resent = 0  # datagrams that were sent more than once
        self.ends = float("inf")  # until when a finished one stays

    def fail(self, code: int, why: str) -> Send:
        """End it, and say so."""
        self.drop(why)
        return [message.error(code, why)]

    def drop(self, why: str) -> None:
        """End it without a word."""
        self.outcome = self.outcome or why
        self.ends = 0.0
        self.close()

    @abc.abstractmethod
    def start(self, now: float) -> Send:
        """The answer to the request, also to its repetition."""

    @abc.abstractmethod
    def received(self, payload: bytes, now: float) -> Send:
        """Take a datagram of the transfer."""

    @abc.abstractmethod
    def expired(self, now: float) -> Send:
        """Nothing came until `timer.due`."""

    @abc.abstractmethod
    def close(self) -> None:
        """Let go of the file."""

    def _told(self, payload: bytes) -> None:
        """The other side's ERROR ends it and is not answered."""
        said = payload[4 : 4 + message.TEXT_MAX].split(b"\0")[0].decode("ascii", "replace")
        self.drop(f"the client ended it: {said or 'no reason given'}")


class Sending(Transfer):
    """A file for the other side."""

    def __init__(self, source: Source, agreed: Agreed, options: dict[str, str], now: float) -> None:
        super().__init__(agreed, options, now)
        self._source = source
        self._acked = 0
        self._sent = 0
        self._last: int | None = None  # the block that ends the file, once it is known
        self._last_size = 0
        self._open = not options  # the options have been acknowledged
        self._repeated = False

    def start(self, now: float) -> Send:
        if self._acked or (self.options and self._open):
            return []
        self.timer.sent(now)
        return self._blocks() if self._open else [message.oack(self.options)]

    def received(self, payload: bytes, now: float) -> Send:
        if len(payload) < 4 or payload[0] != 0:
            return self.fail(message.ILLEGAL, "no message of TFTP")
        code, number = message.numbers.unpack_from(payload)
        if code == message.ERROR:
            self._told(payload)
            return []
        if code != message.ACK:
            return self.fail(message.ILLEGAL, "an ACK was expected")
        if not self._open:
            if number != 0:
                return []
            self._open = True
        else:
            ahead = (number - self._acked) & 0xFFFF
            if ahead > self._sent - self._acked:
                return []
            if ahead == 0:
                if self.agreed.windowsize == 1 or self._repeated or not self._sent:
                    return []
                self._repeated = True
                return self._again()
            self._acked += ahead
        self._repeated = False
        self.timer.progress(now)
        if self._acked == self._last:
            self.bytes = (self._last - 1) * self.agreed.blksize + self._last_size
            self.drop("done")
            return []
        self.bytes = self._acked * self.agreed.blksize
        self.timer.sent(now)
        return self._blocks()

    def expired(self, now: float) -> Send:
        if not self.timer.again(now):
            self.drop("no answer")
            return []
        if not self._open:
            self.resent += 1
            return [message.oack(self.options)]
        return self._again()

    def close(self) -> None:
        self._source.close()

    def _again(self) -> Send:
        sent = self._blocks()
        self.resent += len(sent)
        return sent

    def _blocks(self) -> Send:
        """The window behind what was acknowledged."""
        first = self._acked + 1
        try:
            found = self._source.blocks(first, self.agreed.windowsize)
        except OSError as error:
            return self.fail(message.UNDEFINED, said(error))
        self._sent = self._acked + len(found)
        if len(found[-1]) < self.agreed.blksize:
            self._last, self._last_size = self._sent, len(found[-1])
        pack, code = message.numbers.pack, message.DATA
        return [pack(code, number & 0xFFFF) + block for number, block in enumerate(found, first)]


class Sink(Protocol):
    """A file that comes in."""

    def write(self, content: bytes) -> None: ...
    def commit(self) -> None: ...
    def abort(self) -> None: ...


class Receiving(Transfer):
    """A file from the other side."""

    def __init__(self, sink: Sink, text: bool, agreed: Agreed, options: dict[str, str], now: float) -> None:
        super().__init__(agreed, options, now)
        self._sink = sink
        self._decoder = netascii.Decoder() if text else None
        self._got = 0
        self._acked = 0
        self._gap = False

    def start(self, now: float) -> Send:
        if self._got:
            return []
        self.timer.sent(now)
        return [self._answer()]

    def received(self, payload: bytes, now: float) -> Send:
        if len(payload) < 4 or payload[0] != 0:
            return [] if self.outcome else self.fail(message.ILLEGAL, "no message of TFTP")
        code, number = message.numbers.unpack_from(payload)
        ahead = (number - self._got) & 0xFFFF
        if self.outcome:  # it lingers, for a sender that has not heard the last ACK
            return [message.ack(self._got)] if code == message.DATA and ahead == 0 else []
        if code == message.ERROR:
            self._told(payload)
            return []
        if code != message.DATA:
            return self.fail(message.ILLEGAL, "DATA was expected")
        if len(payload) - 4 > self.agreed.blksize:
            return self.fail(message.ILLEGAL, f"a block is {self.agreed.blksize} bytes")
        if ahead == 1:
            return self._take(payload[4:], now)
        if ahead == 0 and self._got:  # the sender has not heard the last ACK
            self.resent += 1
            return [message.ack(self._got)]
        if 1 < ahead <= self.agreed.windowsize and not self._gap:
            self._gap = True
            self._acked = self._got
            return [message.ack(self._got)]
        return []

    def expired(self, now: float) -> Send:
        if not self.timer.again(now):
            self.drop("no answer")
            return []
        if self.agreed.timeout == 0:
            self.timer.due = now + QUIET_S
        self.resent += 1
        self._gap = False
        self._acked = self._got
        return [self._answer()]

    def close(self) -> None:
        self._sink.abort()  # nothing, after a commit

    def _take(self, content: bytes, now: float) -> Send:
        """The next block in order."""
        last = len(content) < self.agreed.blksize
        try:
            decoded = self._decoder.read(content) if self._decoder else content
            if self._decoder and last:
                decoded += self._decoder.end()
            self._sink.write(decoded)
            if last:
                self._sink.commit()
        except OSError as error:
            return self.fail(error_code(error), said(error))
        self._got += 1
        self._gap = False
        self.bytes += len(decoded)
        self.timer.progress(now)
        if last:
            self.outcome, self.ends = "done", now + LINGER_S
        elif self._got - self._acked < self.agreed.windowsize:
            return []
        self._acked = self._got
        self.timer.sent(now)
        return [message.ack(self._got)]

    def _answer(self) -> bytes:
        """What says how far we are."""
        return message.oack(self.options) if self.options and not self._got else message.ack(self._got)


def said(error: OSError) -> str:
    """The system's words."""
    return error.strerror or str(error)


def error_code(error: OSError) -> int:
    """TFTP's word for a failed system call."""
    match error.errno:
        case errno.ENOENT | errno.ENOTDIR | errno.ENAMETOOLONG:
            return message.NOT_FOUND
        case errno.EACCES | errno.EPERM | errno.EXDEV | errno.ELOOP | errno.EROFS | errno.EISDIR:
            return message.ACCESS
        case errno.ENOSPC | errno.EDQUOT | errno.EFBIG:
            return message.DISK_FULL
    return message.UNDEFINED
