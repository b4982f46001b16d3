"""The run directory of a lab: its lock, its control socket, the sockets of its ports.

A lab called demo lives in `ROOT/demo/`; ROOT is $SHARDNET_RUN_DIR, else /run/shardnet for root, else
$XDG_RUNTIME_DIR/shardnet, else /tmp/shardnet-UID. The directory is ours and closed to everybody else, or it is not
used. The file `lock` in it is held by flock while the lab runs and has the holder's pid in it: the kernel lets go of
it when the holder dies, however it dies. Sockets left by such a death are removed by the next holder, by nobody else.
"""

import contextlib
import errno
import fcntl
import os
import stat
import time
from pathlib import Path

SUN_PATH_MAX = 107  # struct sockaddr_un has 108 bytes, the last one is zero
LOCK_WAIT_S = 0.2  # `running` holds the lock for an instant when it looks; a supervisor holds it for longer
ROOM = len("/control.sock")


class Error(Exception):
    """Why the directory cannot be used; `code` is the exit code for it."""

    def __init__(self, text: str, code: int = 1) -> None:
        super().__init__(text)
        self.code = code


def root() -> Path:
    """The directory that has the run directories of this user's labs."""
    if chosen := os.environ.get("SHARDNET_RUN_DIR"):
        return Path(chosen).absolute()
    if os.geteuid() == 0:
        return Path("/run/shardnet")
    if runtime := os.environ.get("XDG_RUNTIME_DIR"):
        return Path(runtime, "shardnet")
    return Path(f"/tmp/shardnet-{os.geteuid()}")


def of(lab: str) -> Path:
    """The run directory of a lab, running or not; refuses one too long for a unix socket's path."""
    path = root() / lab
    if len(os.fsencode(path)) + ROOM > SUN_PATH_MAX:
        raise Error(f"{path}: too long, a socket in it may have {SUN_PATH_MAX} bytes (set SHARDNET_RUN_DIR)")
    return path


def running() -> list[str]:
    """The names of this user's running labs, sorted."""
    try:
        names = sorted(os.listdir(root()))
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return []
    return [name for name in names if holder(root() / name) is not None]


def holder(path: Path) -> int | None:
    """The pid that holds the lock of this run directory (0 where it has not written it yet), None where nobody does."""
    try:
        fd = os.open(path / "lock", os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return _pid(fd)
    finally:
        os.close(fd)
    return None


class RunDir:
    """The run directory of the lab that this process runs, held until `leave`."""

    def __init__(self, lab: str) -> None:
        """Make the directory, or check it; take the lock; clear away what a killed predecessor left."""
        self.path = of(lab)
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        give_up = time.monotonic() + LOCK_WAIT_S
        while True:
            self.fd = self._open_directory()
            self.lock = self._open_lock()
            try:
                fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if self._same_lock():
                    break
            except BlockingIOError:
                if time.monotonic() > give_up:
                    pid = _pid(self.lock)
                    self._close()
                    raise Error(f"lab {lab}: already running (pid {pid or 'unknown'})", 4) from None
            self._close()  # it was looked at, or removed by a lab that ends: once more
            time.sleep(0.005)
        os.ftruncate(self.lock, 0)
        os.pwrite(self.lock, b"%d\n" % os.getpid(), 0)
        self._clear()

    def leave(self) -> None:
        """Remove the directory with all that is ours in it, then let go of the lock."""
        self._clear()
        with contextlib.suppress(OSError):
            os.unlink("lock", dir_fd=self.fd)
            os.rmdir(self.path)  # stays where somebody put a file of his own into it
        self._close()

    def _open_directory(self) -> int:
        above = os.open(self.path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            check(above, self.path.parent, os.fstat(above), ours=False)
            with contextlib.suppress(FileExistsError):
                os.mkdir(self.path.name, 0o700, dir_fd=above)
            try:
                fd = os.open(self.path.name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=above)
            except OSError as error:
                if error.errno not in (errno.ELOOP, errno.ENOTDIR):
                    raise
                raise Error(f"{self.path}: not a directory (remove it)", 77) from None
        finally:
            os.close(above)
        try:
            check(fd, self.path, os.fstat(fd), ours=True)
        except Error:
            os.close(fd)
            raise
        return fd

    def _open_lock(self) -> int:
        while True:
            try:
                return os.open("lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=self.fd)
            except FileNotFoundError:  # the directory went away under us
                os.close(self.fd)
                self.fd = self._open_directory()

    def _same_lock(self) -> bool:
        """True if the file that we locked is still the one that others will find."""
        try:
            there, held = os.stat(self.path / "lock", follow_symlinks=False), os.fstat(self.lock)
        except FileNotFoundError:
            return False
        return (there.st_dev, there.st_ino) == (held.st_dev, held.st_ino)

    def _clear(self) -> None:
        """Remove sockets, and what multiprocess calls its own (`pymp-*`); other files are not ours to touch."""
        for entry in os.scandir(self.fd):
            with contextlib.suppress(FileNotFoundError):
                mode = os.stat(entry.name, dir_fd=self.fd, follow_symlinks=False).st_mode
                if stat.S_ISSOCK(mode):
                    os.unlink(entry.name, dir_fd=self.fd)
                elif stat.S_ISDIR(mode) and entry.name.startswith("pymp-"):
                    for inner in os.listdir(self.path / entry.name):
                        os.unlink(self.path / entry.name / inner)
                    os.rmdir(entry.name, dir_fd=self.fd)

    def _close(self) -> None:
        os.close(self.lock)
        os.close(self.fd)


def check(fd: int, path: Path, found: os.stat_result, ours: bool) -> None:
    """Refuse a directory in which others could put something under a name of ours."""
    me = os.geteuid()
    if found.st_uid != me and (ours or found.st_uid != 0):
        raise Error(f"{path}: belongs to uid {found.st_uid}, not to {me} (remove it, or set SHARDNET_RUN_DIR)", 77)
    mode = stat.S_IMODE(found.st_mode)
    if ours and mode & 0o077:
        raise Error(f"{path}: mode {mode:o} lets others in (chmod 700 {path})", 77)
    if not ours and mode & 0o022 and not mode & stat.S_ISVTX:
        raise Error(f"{path}: mode {mode:o} lets others write (chmod go-w {path})", 77)


def _pid(lock: int) -> int:
    """The pid written in a lock file, 0 where there is none yet."""
    text = os.pread(lock, 20, 0).strip()
    return int(text) if text.isdigit() else 0
