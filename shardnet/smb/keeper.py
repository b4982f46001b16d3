"""The process that starts an smbd for each connection of a guest, apart from the worker, whose limits smbd could not live with.

A worker may not call ftruncate and has no capability; smbd truncates files, and as root it would change who it is. So prepare() forks this process off
while there are privileges. It takes a network namespace of its own, with nothing in it but a loopback, and a user namespace, where the lab's
user is itself, or, where that is root, the first ordinary system user: smbd finds itself without root's rights then, and touches files with
those of the lab's user, no capability among them. Root has to have these namespaces; another user does without where they are forbidden.

    worker ── a guest's connection (SCM_RIGHTS) ──► keeper ── TCP over the loopback ──► smbd, one for each, as from inetd

smbd asks who its peer is and takes TCP only, so the keeper carries bytes between the two. When the last copy of the worker's end of its line is
closed (the worker's and the supervisor's, which keeps it for the worker's successor) it ends its smbds, removes its directory and goes. A
directory that a killed one left is not locked any more, and the next keeper of the lab removes it.
"""

import contextlib
import ctypes
import errno
import fcntl
import os
import pwd
import resource
import selectors
import shutil
import signal
import socket
import struct
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

from shardnet import title

PROGRAM = "smbd"
PLACES = "/usr/sbin:/usr/local/sbin:/sbin"  # where it is though PATH may not say so
SHARE = "qemu"  # as QEMU calls it
PREFIX = "smb."
PATH_MAX = 107 - len("/msg.sock/1234567")  # unix(7): smbd makes sockets in its directory
PIECE = 256 << 10
CONNECTIONS_MAX = 32
GOODBYE_S = 0.3
START_S = 10.0
CLONE_NEWUSER, CLONE_NEWNET = 0x1000_0000, 0x4000_0000  # linux/sched.h
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER, PR_SET_NO_NEW_PRIVS = 1, 36, 38  # linux/prctl.h
SIOCSIFFLAGS, IFF_UP = 0x8914, 0x1
OVERFLOW_UID = 65534  # whom a user namespace shows in the place of those that it does not have

CONFIGURATION = """[global]
private dir = {run}
pid directory = {run}
lock directory = {run}
state directory = {run}
cache directory = {run}
ncalrpc dir = {run}/ncalrpc
log file = {run}/log.smbd
max log size = 256
server role = standalone server
security = user
map to guest = Bad User
interfaces = 127.0.0.1/8
bind interfaces only = yes
load printers = no
printing = bsd
printcap name = /dev/null
disable spoolss = yes
usershare max shares = 0
dns proxy = no
wide links = no
follow symlinks = no

[{share}]
path = {folder}
read only = no
guest ok = yes
force user = {user}
"""

_libc = ctypes.CDLL(None, use_errno=True)


def found() -> str:
    """The program's path; raises OSError where there is none."""
    path = shutil.which(PROGRAM, path=f"{os.environ.get('PATH', os.defpath)}:{PLACES}")
    if path is None:
        raise OSError(errno.ENOENT, "no such program (Debian: apt-get install samba)", PROGRAM)
    return path


def start(name: str, folder: str, run_dir: Path) -> socket.socket:
    """Start a keeper for a folder, by a name for ps; returns our end of its line; raises OSError."""
    program = found()
    place = os.path.realpath(folder)
    os.close(os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
    ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    child = os.fork()
    if child == 0:  # and its child in turn, so that nobody here has to wait for it
        try:
            os.setsid()
            if os.fork() == 0:
                _live(its.detach(), name, program, place, run_dir)
        finally:
            os._exit(0)
    its.close()
    os.waitpid(child, 0)
    ours.settimeout(START_S)
    try:
        code, _, why = ours.recv(4096).partition(b" ")
        if code != b"0":
            raise OSError(int(code or errno.EIO), why.decode() or "ended as it started", PROGRAM)
    except OSError as error:
        ours.close()
        if isinstance(error, TimeoutError):
            raise OSError(errno.ETIMEDOUT, "did not start", PROGRAM) from None
        raise
    ours.setblocking(False)
    return ours


def alive(line: socket.socket) -> bool:
    """Is there a keeper at the other end?"""
    line.setblocking(False)
    try:
        return line.recv(1, socket.MSG_PEEK) != b""
    except BlockingIOError:
        return True
    except OSError:
        return False


def hand(line: socket.socket, connection: socket.socket) -> bool:
    """Give a keeper a guest's connection; False where it takes none now."""
    try:
        socket.send_fds(line, [b"c"], [connection.fileno()])
    except OSError:
        return False
    return True


def end(line: socket.socket) -> None:
    """Ask a keeper to end, and wait a moment for it."""
    with contextlib.suppress(OSError):
        line.settimeout(2 * GOODBYE_S)
        line.send(b"end")
        while line.recv(16):
            pass


def _live(line: int, name: str, program: str, folder: str, run_dir: Path) -> None:
    """Be the keeper; never returns."""
    _close_all_but(line)
    sock = socket.socket(fileno=line)
    directory: tuple[Path, int] | None = None
    try:
        try:
            title.write(name)
            for left in run_dir.glob(f"{PREFIX}*"):
                _remove_forsaken(left)
            user = _leave()
            directory = _directory(run_dir)
            file = directory[0] / "smb.conf"
            file.write_text(CONFIGURATION.format(run=directory[0], user=user, folder=folder, share=SHARE))
        except OSError as error:
            why = f"{error.filename}: {error.strerror}" if error.filename else error.strerror or str(error)
            sock.send(f"{error.errno or errno.EIO} {why}".encode())
        else:
            sock.send(b"0")
            _Keeper(sock, [program, "-s", str(file), "-l", str(directory[0])]).run()
    finally:
        if directory is not None:
            shutil.rmtree(directory[0], ignore_errors=True)
        os._exit(0)


class _Keeper:
    """The loop: connections come, bytes pass, smbds end."""

    def __init__(self, line: socket.socket, command: list[str]) -> None:
        self.line, self.command = line, command
        self.selector = selectors.DefaultSelector()
        self.smbds: dict[int, subprocess.Popen[bytes]] = {}  # by process id
        self.bell, self.rope = socket.socketpair()  # rings when a child has ended
        self.running = True

    def run(self) -> None:
        _libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)  # smbd leaves children behind
        self.line.setblocking(False)
        self.selector.register(self.line, selectors.EVENT_READ, lambda _: self._listen())
        for side in (self.bell, self.rope):
            side.setblocking(False)
        signal.set_wakeup_fd(self.rope.fileno(), warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        self.selector.register(self.bell, selectors.EVENT_READ, lambda _: self._bury())
        try:
            while self.running:
                for key, events in self.selector.select():
                    if (
                        self.selector.get_map().get(key.fd) is key
                    ):  # what another did before may have ended or changed it
                        key.data(events)
        finally:
            self._end()

    def _listen(self) -> None:
        try:
            said, fds, _, _ = socket.recv_fds(self.line, 16, 1)
        except BlockingIOError:
            return
        except OSError:
            said, fds = b"", []
        if said != b"c":
            self.running = False
        for fd in fds:
            self._serve(socket.socket(fileno=fd))

    def _serve(self, guest: socket.socket) -> None:
        try:
            if len(self.smbds) >= CONNECTIONS_MAX:
                raise OSError(errno.EUSERS, "too many")
            ours, its = _pair()
        except OSError:
            guest.close()
            return
        with its:
            try:
                smbd = subprocess.Popen(
                    self.command,
                    stdin=its.fileno(),
                    stdout=its.fileno(),
                    stderr=subprocess.DEVNULL,
                    start_new_session=True,  # smbd ends all of its process group when it ends
                    preexec_fn=_follow(os.getpid()),  # noqa: PLW1509  this process has no threads
                )
            except OSError:
                guest.close()
                ours.close()
                return
        self.smbds[smbd.pid] = smbd
        Carried(self.selector, guest, ours)

    def _bury(self) -> None:
        """Wait for whatever has ended: an smbd, or what one left behind and ends in its own time."""
        with contextlib.suppress(BlockingIOError):
            self.bell.recv(4096)
        with contextlib.suppress(ChildProcessError):
            while True:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if pid == 0:
                    return
                if smbd := self.smbds.pop(pid, None):
                    smbd.returncode = os.waitstatus_to_exitcode(status)

    def _end(self) -> None:
        for smbd in self.smbds.values():
            smbd.terminate()
        for smbd in self.smbds.values():
            try:
                smbd.wait(GOODBYE_S)
            except subprocess.TimeoutExpired:
                smbd.kill()
                smbd.wait()


class Carried:
    """Two connected sockets, and what comes from either for the other: bounded, and each direction ends by itself."""

    def __init__(self, selector: selectors.BaseSelector, left: socket.socket, right: socket.socket) -> None:
        self.selector = selector
        self.sides = (left, right)
        self.pending: list[memoryview] = [memoryview(b""), memoryview(b"")]  # from this side, for the other
        self.ended = [False, False]
        for number, side in enumerate(self.sides):
            side.setblocking(False)
            selector.register(side, selectors.EVENT_READ, self._ready(number))

    def _ready(self, number: int) -> Callable[[int], None]:
        def ready(events: int) -> None:
            try:
                if events & selectors.EVENT_WRITE:
                    self._write(1 - number)
                if events & selectors.EVENT_READ and not self.pending[number]:
                    self._read(number)
                self._wait()
            except OSError:
                self._close()

        return ready

    def _read(self, number: int) -> None:
        try:
            data = self.sides[number].recv(PIECE)
        except BlockingIOError:
            return
        if not data:
            self.ended[number] = True
            self.sides[1 - number].shutdown(socket.SHUT_WR)
            return
        self.pending[number] = memoryview(data)
        self._write(number)

    def _write(self, number: int) -> None:
        """Send on what came from a side."""
        with contextlib.suppress(BlockingIOError):
            while self.pending[number]:
                self.pending[number] = self.pending[number][self.sides[1 - number].send(self.pending[number]) :]

    def _wait(self) -> None:
        if all(self.ended):
            self._close()
            return
        for number, side in enumerate(self.sides):
            wanted = 0
            if not self.pending[number] and not self.ended[number]:
                wanted |= selectors.EVENT_READ
            if self.pending[1 - number]:
                wanted |= selectors.EVENT_WRITE
            known = side in self.selector.get_map()
            if known and not wanted:
                self.selector.unregister(side)
            elif known and self.selector.get_key(side).events != wanted:
                self.selector.modify(side, wanted, self.selector.get_key(side).data)
            elif wanted and not known:
                self.selector.register(side, wanted, self._ready(number))

    def _close(self) -> None:
        for side in self.sides:
            with contextlib.suppress(KeyError, ValueError):
                self.selector.unregister(side)
            side.close()


def _pair() -> tuple[socket.socket, socket.socket]:
    """Two ends of a TCP connection over the loopback; nobody else can be at either."""
    with socket.socket() as listener, contextlib.ExitStack() as stack:
        listener.bind(("127.0.0.1", 0))
        listener.listen(1)
        ours = stack.enter_context(socket.socket())
        ours.connect(listener.getsockname())
        its, peer = listener.accept()
        stack.enter_context(its)
        if peer != ours.getsockname():
            raise OSError(errno.ECONNABORTED, "somebody else was faster")
        for end_ in (ours, its):
            end_.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        stack.pop_all()
        return ours, its


def _leave() -> str:
    """Leave the host's network and root's identity; returns the name of the user that this process is now."""
    uid, gid = os.getuid(), os.getgid()
    user = _stand_in() if uid == 0 else _named(uid)
    inside_gid = user.pw_gid if uid == 0 else gid
    if _libc.unshare(CLONE_NEWUSER | CLONE_NEWNET) == 0:
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"{user.pw_uid} {uid} 1")
        Path("/proc/self/gid_map").write_text(f"{inside_gid} {gid} 1")
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
            fcntl.ioctl(any_socket, SIOCSIFFLAGS, struct.pack("16sH14x", b"lo", IFF_UP))
    elif uid == 0:
        why = os.strerror(ctypes.get_errno())
        raise OSError(ctypes.get_errno(), f"a user namespace: {why} (root's labs need one; any other user's do not)")
    _libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    return user.pw_name


def _named(uid: int) -> pwd.struct_passwd:
    try:
        return pwd.getpwuid(uid)
    except KeyError:
        raise OSError(errno.ENOENT, f"user {uid} has no name in /etc/passwd, and smbd wants one") from None


def _stand_in() -> pwd.struct_passwd:
    """Who root is to smbd: somebody who is neither root nor whom all strangers look like."""
    others = [user for user in pwd.getpwall() if user.pw_uid not in (0, OVERFLOW_UID) and user.pw_gid != 0]
    if not others:
        raise OSError(errno.ENOENT, "no user but root in /etc/passwd, and smbd wants one")
    return min(others, key=lambda user: user.pw_uid)


def _directory(run_dir: Path) -> tuple[Path, int]:
    """A directory of smbd's own, locked for as long as this process lives."""
    while True:
        path = Path(tempfile.mkdtemp(prefix=PREFIX, dir=run_dir))  # mode 0700
        with contextlib.suppress(FileNotFoundError):
            lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            fcntl.flock(lock, fcntl.LOCK_EX)
            if path.exists():
                break
            os.close(lock)
        # another keeper, which starts too, took it for forsaken before it was locked
    if len(os.fsencode(path)) > PATH_MAX:
        shutil.rmtree(path)
        raise OSError(errno.ENAMETOOLONG, f"too long for smbd's sockets in it ({PATH_MAX} bytes)", str(path))
    return path, lock


def _remove_forsaken(path: Path) -> None:
    """Remove the directory of a keeper that was killed."""
    with contextlib.suppress(OSError):
        lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(path, ignore_errors=True)
        finally:
            os.close(lock)


def _follow(parent: int) -> Callable[[], None]:
    """What smbd does before it starts: ask to be killed when its keeper dies."""

    def ask() -> None:
        _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        if os.getppid() != parent:
            os._exit(1)

    return ask


def _close_all_but(keep: int) -> None:
    null = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(null, standard)
    for name in os.listdir("/proc/self/fd"):
        if int(name) > 2 and int(name) != keep:
            with contextlib.suppress(OSError):  # the one that listed them
                os.close(int(name))
