"""[vde NAME]: VDE, as a client of a vde_switch (QEMU's -netdev vde), or with listen = DIR as the switch itself.

As a client the port plugs into the switch whose directory is `sock`, dials again each second while there is none, and again at once
when the switch comes back.

With `listen` other programs find a vde_switch in that directory: vde_plug, vde_plug2tap, QEMU's -netdev vde, slirpvde. Each of
them becomes a port of its own, NAME.1, NAME.2 and so on, with this section's switch, VLANs and limits; it lives until the program
leaves. A program that misbehaves is unplugged, and no other one notices. They survive the death of this port's worker. A worker
has no privileges left: the programs have to be of the lab's user, or let it write to their sockets (vde_plug --mod 777).
"""

import dataclasses
import errno
import grp
import os
import socket
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from shardnet import addresses, options, room

if TYPE_CHECKING:
    from shardnet import worker

# The protocol of libvdeplug, host byte order.
MAGIC = 0xFEEDFACE
VERSION = 3
NEW_CONTROL, NEW_PORT_0 = 0, 1  # any port, or that of the number beside it; the port 0
REQUEST = struct.Struct("=III110s")  # magic, version, type | port << 8, struct sockaddr_un; a description follows
REQUEST_1 = struct.Struct("=III6s110s")  # version 1 has a MAC address before that
REQUEST_BYTES = 256
CONTROL = "ctl"

RETRY_S = 1.0
BURST_BYTES = 1 << 20
PATIENCE_S = 5.0  # for a request, or for its answer
PLUGS = True  # the supervisor makes ports of what this kind plugs in
NO_QEMU = "its directory is only known to a client; see listen"


def mode(text: str) -> int:
    """an octal number such as 0700"""
    try:
        number = int(text, 8)
    except ValueError:
        raise ValueError("no octal number such as 0700") from None
    if not 0 < number <= 0o777:
        raise ValueError("no mode of 1 to 0777")
    return number


def group(text: str) -> int:
    """a group's name or number"""
    try:
        return int(text) if text.isdecimal() else grp.getgrnam(text).gr_gid
    except KeyError:
        raise ValueError("no such group") from None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(options.PortOptions):
    # The directory of the vde_switch to plug into.
    sock: Path | None = None
    # The number of the switch's port that is wanted; 0: any.
    port: int = options.option(0, read=options.between(0, 255))
    # The group of the sockets that are made.
    group: int | None = options.option(None, read=group)
    # Their mode, octal. QEMU's and vde_switch's default is 0700.
    permissions: int = options.option(0o700, key="mode", read=mode)
    # Be a vde_switch, in this directory, made if need be; in the run directory where relative.
    listen: Path | None = None
    # How many programs may be plugged in at once.
    clients: int = options.option(32, read=options.between(1, 256))


def check(given: Options) -> Iterator[tuple[str, str]]:
    """Mistakes that take several keys to see."""
    if (given.sock is None) == (given.listen is None):
        yield "sock", "missing (or listen, to be the switch)" if given.sock is None else "listen is given too"
    if given.listen is not None and given.port:
        yield "port", "only a client wants one; programs that are plugged in are counted up"
    if given.sock is not None and given.clients != Options.clients:
        yield "clients", "only a switch has some"
    where = given.sock or given.listen
    if where is not None and len(os.fsencode(where)) > addresses.SUN_PATH_BYTES - 20:
        yield "sock" if given.sock else "listen", "too long for the name of a socket in it"


def Port(given: Options, place: "worker.Place") -> "Client | Switch":
    """The port: a plug, or a switch."""
    return Client(given, place) if given.listen is None else Switch(given, place)


class Client:
    """A plug in somebody's vde_switch: the control connection, which says nothing, and a socket of datagrams."""

    def __init__(self, given: Options, place: "worker.Place") -> None:
        self.options, self.place = given, place
        assert given.sock is not None or given.listen is not None
        self.directory = place.run_dir / (given.sock or "")
        self.path = place.run_dir / f"{place.name}.vde"
        self.control: socket.socket | None = None
        self.data: socket.socket | None = None
        self.timer: int | None = None
        self.carried = False

    def prepare(self) -> None:
        """Nothing: a connection is made anew by each worker."""

    def open(self) -> None:
        self.timer = None
        try:
            self._ask()
        except OSError as error:
            self._wait(error.strerror or str(error))

    def close(self) -> None:
        self._unplug()

    def ended(self, error: int) -> None:
        """The engine gave the socket up."""
        self.carried = False
        self._wait(os.strerror(error) if error else "the switch closed the port")

    def _ask(self) -> None:
        self.path.unlink(missing_ok=True)
        self.data = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self.data.bind(os.fsencode(self.path))
        own(self.path, self.options)
        enlarge(self.data)
        self.control = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        self.control.connect(os.fsencode(self.directory / CONTROL))  # at once, or EAGAIN: its backlog is full
        name = struct.pack("=H108s", socket.AF_UNIX, os.fsencode(self.path))
        request = REQUEST.pack(MAGIC, VERSION, NEW_CONTROL | self.options.port << 8, name)
        self.control.send(request + f"shardnet {self.place.name}".encode())
        self.place.watch(self.control.fileno(), self._answered)
        self.timer = self.place.later(PATIENCE_S, lambda: self._wait("no answer"))

    def _answered(self) -> None:
        assert self.control is not None and self.data is not None
        try:
            said = self.control.recv(110)
        except OSError as error:
            self._wait(error.strerror or str(error))
            return
        if not said:
            self._wait("the switch closed the connection" if self.carried else "the switch has no such port free")
            return
        if self.carried:
            return  # it has nothing more to say
        family, path = said[:2], said[2:].split(b"\0")[0]
        if family != struct.pack("=H", socket.AF_UNIX) or not path:
            self._wait("an answer that is no address")
            return
        try:
            self.data.connect(path)
        except OSError as error:
            self._wait(f"{os.fsdecode(path)}: {error.strerror}")
            return
        self._cancel()
        self.place.shard.add_dgram(self.place.port, self.data.fileno())
        self.carried = True
        self.place.state("up", f"plugged into {self.directory} by {os.fsdecode(path)}")

    def _wait(self, why: str) -> None:
        at_once = self.carried
        self._unplug()
        self.place.state("waiting", f"{self.directory}: {why}")
        self.timer = self.place.later(0.05 if at_once else RETRY_S, self.open)

    def _unplug(self) -> None:
        self._cancel()
        if self.carried:
            self.place.shard.remove(self.place.port)
            self.carried = False
        if self.control is not None:
            self.place.unwatch(self.control.fileno())
            self.control.close()
            self.control = None
        if self.data is not None:
            self.data.close()
            self.data = None
            self.path.unlink(missing_ok=True)

    def _cancel(self) -> None:
        if self.timer is not None:
            self.place.cancel(self.timer)
            self.timer = None


class Switch:
    """The control socket of a vde_switch. Who connects asks for a port, and is one as long as the connection stands."""

    def __init__(self, given: Options, place: "worker.Place") -> None:
        self.options, self.place = given, place
        self.directory = place.run_dir / (given.listen or "")
        self.listener: socket.socket | None = None
        self.asking: dict[
            int, tuple[socket.socket, int]
        ] = {}  # by descriptor: who has asked nothing yet, and the timer
        self.plugged: dict[int, socket.socket] = {}  # by number

    def prepare(self) -> None:
        """Keep the listening socket from before, or make the directory and bind one."""
        kept = self.place.recall(CONTROL)
        if kept is not None and (self.directory / CONTROL).is_socket():
            os.close(kept)
            return
        if kept is not None:
            os.close(kept)
        given = self.options
        if not self.directory.exists():
            self.directory.mkdir(mode=0o700)
            # Who may write to the sockets may enter the directory.
            self.directory.chmod(0o700 | (given.permissions & 0o022) // 2 | (given.permissions & 0o022) << 1)
            if given.group is not None:
                os.chown(self.directory, -1, given.group)
        for left in self.directory.glob("[0-9][0-9][0-9].*"):
            if left.is_socket():
                left.unlink()
        with addresses.Unix(path=str(self.directory / CONTROL)).bind(socket.SOCK_STREAM) as listener:
            own(self.directory / CONTROL, given)
            self.place.deposit(CONTROL, listener.fileno())

    def open(self) -> None:
        fd = self.place.recall(CONTROL)
        assert fd is not None  # prepare() deposited it
        self.listener = socket.socket(fileno=fd)
        self.listener.setblocking(False)
        self.place.watch(fd, self._accept)
        for key in sorted(self.place.kept):
            word, _, number = key.partition(" ")
            if word == "client" and (kept := self.place.recall(key)) is not None:
                self._attend(int(number), socket.socket(fileno=kept))
        self._say()

    def close(self) -> None:
        for fd in list(self.asking):
            self._refuse(fd)
        for number in list(self.plugged):
            self._drop(number, tell=True)
        if self.listener is not None:
            self.place.unwatch(self.listener.fileno())
            self.listener.close()
            (self.directory / CONTROL).unlink(missing_ok=True)
            if self.options.listen is not None and not any(self.directory.iterdir()):
                self.directory.rmdir()

    def ended(self, error: int) -> None:
        """The switch itself has no descriptor of frames that could end."""

    def unplugged(self, number: int) -> None:
        """The supervisor has removed the port, or could not make it."""
        self._drop(number, tell=False)

    def _accept(self) -> None:
        assert self.listener is not None
        try:
            client, _ = self.listener.accept()
        except OSError:
            return  # it left before it was accepted, or there are no descriptors: it is asked again
        client.setblocking(False)
        fd = client.fileno()
        self.asking[fd] = (client, self.place.later(PATIENCE_S, lambda: self._refuse(fd)))
        self.place.watch(fd, lambda: self._asked(fd))

    def _asked(self, fd: int) -> None:
        client, _ = self.asking[fd]
        try:
            wanted = read_request(client.recv(REQUEST_BYTES))
            number = next((free for free in range(1, self.options.clients + 1) if free not in self.plugged), 0)
            if not number:
                raise OSError(errno.EMFILE, f"{self.options.clients} are plugged in")
            self._plug(number, client, wanted)
        except BlockingIOError:
            return
        except (OSError, ValueError) as why:
            self.place.log(f"a program was not plugged in: {why}")
            self._refuse(fd)

    def _plug(self, number: int, client: socket.socket, theirs: bytes) -> None:
        """Give a program its port: a socket that speaks with its, and the name of that as the answer."""
        path = self._file(number)
        path.unlink(missing_ok=True)
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as data:
            data.bind(os.fsencode(path))
            own(path, self.options)
            enlarge(data)
            try:
                data.connect(theirs)
            except OSError:
                path.unlink()
                raise
            self._forget_asking(client.fileno())
            self.place.deposit(f"client {number}", client.fileno())
            self.place.tell("plug", [os.dup(data.fileno())], number=number)
        client.send(struct.pack("=H108s", socket.AF_UNIX, os.fsencode(path)))
        self._attend(number, client)
        self._say()

    def _attend(self, number: int, client: socket.socket) -> None:
        client.setblocking(False)
        self.plugged[number] = client
        self.place.watch(client.fileno(), lambda: self._heard(number))

    def _heard(self, number: int) -> None:
        try:
            if self.plugged[number].recv(REQUEST_BYTES):
                return
        except BlockingIOError:
            return
        except OSError:
            pass
        self._drop(number, tell=True)

    def _drop(self, number: int, *, tell: bool) -> None:
        client = self.plugged.pop(number, None)
        if client is None:
            return
        self.place.unwatch(client.fileno())
        client.close()
        self.place.forget(f"client {number}")
        self._file(number).unlink(missing_ok=True)
        if tell:
            self.place.tell("unplug", number=number)
        self._say()

    def _refuse(self, fd: int) -> None:
        client = self._forget_asking(fd)
        client.close()

    def _forget_asking(self, fd: int) -> socket.socket:
        client, timer = self.asking.pop(fd)
        self.place.unwatch(fd)
        self.place.cancel(timer)
        return client

    def _file(self, number: int) -> Path:
        """As vde_switch calls them: the port, and a number that tells its lives apart."""
        return self.directory / f"{number:03}.{number}"

    def _say(self) -> None:
        count = len(self.plugged)
        self.place.state("up", f"a switch for VDE at {self.directory}, {count or 'nobody'} plugged in")


def read_request(data: bytes) -> bytes:
    """The path of the socket of who asks for a port; ValueError says what is wrong with the request."""
    if len(data) < 12:
        raise ValueError(f"a request of {len(data)} bytes")
    magic, version, kind = struct.unpack_from("=III", data)
    if magic != MAGIC:
        raise ValueError("it does not speak VDE")
    layout = {1: REQUEST_1, VERSION: REQUEST}.get(version)
    if layout is None:
        raise ValueError(f"version {version} of the protocol")
    if kind & 0xFF not in (NEW_CONTROL, NEW_PORT_0):
        raise ValueError(f"a request of type {kind & 0xFF}")
    if len(data) < layout.size:
        raise ValueError(f"a request of {len(data)} bytes")
    name = layout.unpack_from(data)[-1]
    family, path = struct.unpack("=H108s", name)
    path = path.split(b"\0")[0]
    if family != socket.AF_UNIX or not path.startswith(b"/"):
        raise ValueError("its socket has no path")
    return bytes(path)


def own(path: Path, given: Options) -> None:
    """Give a socket's file its mode and group."""
    path.chmod(given.permissions & 0o777)
    if given.group is not None:
        os.chown(path, -1, given.group)


def enlarge(any_socket: socket.socket) -> None:
    """Give the socket room for bursts."""
    room.make(any_socket, BURST_BYTES, BURST_BYTES)


def qemu(given: Options, run_dir: Path, version: tuple[int, ...]) -> list[str] | None:
    """A client of the switch that this port is."""
    if given.listen is None:
        return None
    return addresses.netdev("vde", {"sock": str(run_dir / given.listen)})
