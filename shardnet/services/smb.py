"""[smb NAME]: a folder of this host as the share \\\\SERVER\\qemu, by Samba's smbd (Debian: samba).

Guests need no password. They read and write with the rights of the user who runs the lab and with no more: smbd runs without any privilege, in a network of
its own, and does not follow symbolic links. Ports 445 and 139. Linux: mount -t cifs -o guest //10.0.2.4/qemu /mnt. Windows: net use z:
\\\\10.0.2.4\\qemu (Windows 10 and later refuse shares without a password until AllowInsecureGuestAuth is set).

Each connection has an smbd of its own, at most 32 at a time, which begin in a moment and end with it. Configuration and state of smbd are in a
directory of the lab's run directory, gone when the lab ends.
"""

import dataclasses
import os
import socket
from typing import TYPE_CHECKING

from shardnet import options, serving
from shardnet.smb import keeper, settings

if TYPE_CHECKING:
    from shardnet import worker

PORTS = (445, 139)
KEY = "keeper"
TOLD_BYTES = 64


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(serving.Options, settings.Options):
    # The folder, from where the lab is started if it is relative.
    smb: str = options.option(read=settings.folder)


check = serving.check


class Port:
    def __init__(self, given: Options, place: "worker.Place") -> None:
        self.options = given
        self.place = place
        self.listener: serving.Listener | None = None
        self.line: socket.socket | None = None

    def prepare(self) -> None:
        """Have a keeper, while there is a right to start one."""
        fd = self.place.recall(KEY)
        if fd is not None:
            with socket.socket(fileno=fd) as kept:
                if keeper.alive(kept):
                    return
        with keeper.start(f"shardnet smbd for {self.place.name}", self.options.smb, self.place.run_dir) as line:
            self.place.deposit(KEY, line.fileno())

    def open(self) -> None:
        self._let_go()
        fd = self.place.recall(KEY)
        assert fd is not None  # prepare() deposited it
        self.line = socket.socket(fileno=fd)
        self.line.setblocking(False)
        self.place.watch(self.line.fileno(), self._ended)
        self.listener = serving.Listener(self.place, self._accepted)
        tcp = [(port, self.listener.sockaddr) for port in PORTS]
        description = serving.described(self.options, self.place, tcp=tcp, max_flows=4 * keeper.CONNECTIONS_MAX)
        self.place.shard.add_service(self.place.port, description)
        self.place.state("up", f"{os.path.realpath(self.options.smb)} is {keeper.SHARE}")

    def close(self) -> None:
        self.place.shard.remove(self.place.port)
        line, self.line = self.line, None
        self._let_go()
        if line is not None:
            self.place.unwatch(line.fileno())
            keeper.end(line)
            line.close()

    def ended(self, error: int) -> None:
        """A service has no descriptor that could end."""

    def _accepted(self, connection: socket.socket) -> None:
        assert self.line is not None, "open() has it"
        handed = keeper.hand(self.line, connection)
        self.place.count("connections" if handed else "refused")
        connection.close()

    def _ended(self) -> None:
        """The keeper has died: what it kept is gone, and another one takes privileges to start."""
        assert self.line is not None, "open() has it"
        if keeper.alive(self.line):
            self.line.recv(TOLD_BYTES)
            return
        self.place.shard.remove(self.place.port)
        self._let_go()
        self.place.state("waiting", "smbd's keeper died")
        self.place.again()

    def _let_go(self) -> None:
        if self.listener is not None:
            self.listener.close()
            self.listener = None
        if self.line is not None:
            self.place.unwatch(self.line.fileno())
            self.line.close()
            self.line = None
