"""A client's TCP connection: messages behind their lengths, several under way at once (RFC 7766).

Answers leave in the order in which they are there (6.2.1.1). While a client has as many questions under way as it may, the ones
behind them wait; one that goes on sending all the same is left.
"""

from collections.abc import Callable

from shardnet.dns import server, wire

UNDER_WAY_MAX = 32
WAITING_MAX = 1 << 17  # bytes
IDLE_S = 10.0  # RFC 7766, 6.2.3: a few seconds
TCP_GUEST = b"tcp"  # who connects is not known by a MAC: all of them are one guest to the bounds of the forwarder


class Stream:
    """One connection, without its socket: bytes in by `feed`, out by `send`."""

    def __init__(self, served: server.Server, send: Callable[[bytes], None], now: float) -> None:
        self.server, self.send = served, send
        self.last = now
        self.under_way = 0
        self.gone = False
        self._in = bytearray()
        self._feeding = False

    def feed(self, data: bytes, now: float) -> bool:
        """Take what was read, and answer what is whole in it; False where it is no query, and the client is to be left."""
        self._in += data
        self.last = now
        return len(self._in) <= WAITING_MAX and self._go_on(now)

    def answer(self, message: bytes, now: float) -> None:
        """Give the client an answer, and go on with what waits."""
        self.under_way -= 1
        if not self.gone:
            self.last = now
            self.send(len(message).to_bytes(2, "big") + message)
            if not self._feeding and not self._go_on(now):
                self._in.clear()  # what cannot be read is met again when more comes, or the client is idle

    def idle(self, now: float) -> bool:
        """Whether the client has said nothing and got nothing for so long that it is left."""
        return now - self.last >= IDLE_S

    def _go_on(self, now: float) -> bool:
        self._feeding = True
        try:
            while self.under_way < UNDER_WAY_MAX and len(self._in) >= 2:
                size = self._in[0] << 8 | self._in[1]
                if not 12 <= size <= wire.QUERY_MAX:
                    return False
                if len(self._in) < 2 + size:
                    break
                message = bytes(self._in[2 : 2 + size])
                del self._in[: 2 + size]
                if message[2] & 0x80:
                    return False  # an answer: nothing is said to it
                self.under_way += 1
                self.server.count("tcp")
                answer = self.server.query(message, self, TCP_GUEST, now)
                if answer is not None:
                    self.answer(answer, now)
            return True
        finally:
            self._feeding = False
