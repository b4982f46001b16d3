"""[echo NAME]: sends back what it gets at port 7, over UDP and TCP (RFC 862).

What a guest needs to see that its network is well: ncat, socat and every language can speak to it. It answers no
datagram from a port below 1024, so that two such services cannot be set upon each other for ever.
"""

import dataclasses
import socket
from typing import TYPE_CHECKING

from shardnet import serving

if TYPE_CHECKING:
    from shardnet import worker

PORT = 7
PRIVILEGED = 1024
CONNECTIONS_MAX = 256


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(serving.Options):
    pass


check = serving.check


class Port:
    def __init__(self, given: Options, place: "worker.Place") -> None:
        self.options = given
        self.place = place
        self.listener: serving.Listener | None = None
        self.connections: set[serving.Connection] = set()

    def prepare(self) -> None:
        """Nothing: a service asks for no privilege."""

    def open(self) -> None:
        self._hang_up()
        self.listener = serving.Listener(self.place, self._accepted)
        tcp = [(PORT, self.listener.sockaddr)]
        description = serving.described(self.options, self.place, udp=[PORT], tcp=tcp, max_flows=CONNECTIONS_MAX)
        self.place.shard.add_service(self.place.port, description)
        self.place.serve(self.receive)
        self.place.state("up", "port 7")

    def close(self) -> None:
        self.place.shard.remove(self.place.port)
        self._hang_up()

    def ended(self, error: int) -> None:
        """A service has no descriptor that could end."""

    def receive(self, datagrams: "worker.Datagrams") -> None:
        answers = [datagram for datagram in datagrams if datagram[2] >= PRIVILEGED]
        self.place.answer(answers)
        self.place.count("datagrams", len(answers))
        if len(answers) < len(datagrams):
            self.place.count("refused", len(datagrams) - len(answers))

    def _accepted(self, sock: socket.socket) -> None:
        self.place.count("connections")
        made = serving.Connection(
            self.place, sock, lambda data: made.send(data), lambda: self.connections.discard(made)
        )
        self.connections.add(made)

    def _hang_up(self) -> None:
        for connection in list(self.connections):
            connection.close()
        if self.listener is not None:
            self.listener.close()
            self.listener = None
