"""The folder that TFTP serves, opened once: a name that a guest sends is looked up beneath it and nowhere else.

The kernel does the looking up (openat2(2), RESOLVE_BENEATH and RESOLVE_NO_MAGICLINKS), so that no spelling, no symbolic link
and no folder renamed at that moment leads out: links that stay within the folder are followed, others are refused. Only regular
files are served, and opening one waits for nobody (a FIFO has no writer).

A file that comes in is written under a name of its own in the folder and renamed when it is whole. It is locked meanwhile, so what a
killed service left behind is told from what another one writes now, and is taken away at the next start.
"""

import contextlib
import ctypes
import errno
import fcntl
import os
import secrets
import stat

SYS_OPENAT2 = 437  # the same on every architecture, as all since Linux 5.0
RESOLVE_NO_MAGICLINKS, RESOLVE_BENEATH = 0x02, 0x08  # linux/openat2.h
TRIES = 8  # openat2(2): EAGAIN where something was renamed on the way
PARTIAL, PARTIAL_END = ".tftp-", ".part"
MODE = 0o644

_syscall = ctypes.CDLL(None, use_errno=True).syscall


class OpenHow(ctypes.Structure):
    """struct open_how, linux/openat2.h."""

    _fields_ = [("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64)]


def openat2(folder: int, name: bytes, flags: int) -> int:
    """Open a name beneath a folder; raises OSError, EXDEV where it leads out."""
    how = OpenHow(flags | os.O_CLOEXEC, 0, RESOLVE_BENEATH | RESOLVE_NO_MAGICLINKS)
    for _ in range(TRIES):
        fd = _syscall(SYS_OPENAT2, folder, ctypes.c_char_p(name), ctypes.byref(how), ctypes.sizeof(how))
        if fd >= 0:
            return int(fd)
        if ctypes.get_errno() != errno.EAGAIN:
            break
    raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def opened(path: str | os.PathLike[str]) -> int:
    """A descriptor of a folder, for `Folder`; raises OSError."""
    fd = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.close(openat2(fd, b".", os.O_PATH))
    except OSError as error:
        os.close(fd)
        why = f"{error.strerror} (openat2 is needed, of Linux 5.6)"
        raise OSError(error.errno, why, os.fspath(path)) from None
    return fd


class Folder:
    """The files of one folder."""

    def __init__(self, fd: int, write_max: int | None = None) -> None:
        """Take over the folder's descriptor; `write_max` is the most bytes of a file that comes in, None for no files."""
        self.fd, self.write_max = fd, write_max
        if write_max is not None:
            self._tidy()

    def close(self) -> None:
        os.close(self.fd)

    def open(self, name: bytes) -> tuple[int, int]:
        """Open a file to read: its descriptor and size; raises OSError."""
        name = _beneath(name)
        if os.path.basename(name).startswith(PARTIAL.encode()):
            raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))
        fd = openat2(self.fd, name, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY)
        try:
            found = os.fstat(fd)
            if not stat.S_ISREG(found.st_mode):
                raise OSError(errno.EACCES, "not a regular file")
        except OSError:
            os.close(fd)
            raise
        return fd, found.st_size

    def create(self, name: bytes) -> "Incoming":
        """Begin a file that comes in; raises OSError."""
        name = _beneath(name)
        if self.write_max is None:
            raise OSError(errno.EROFS, "read-only")
        folder, last = os.path.split(name)
        if last in (b"", b".", b"..") or last.startswith(PARTIAL.encode()):
            raise OSError(errno.EACCES, "not a regular file")
        place = openat2(self.fd, folder or b".", os.O_PATH | os.O_DIRECTORY)
        try:
            with contextlib.suppress(FileNotFoundError):
                if not stat.S_ISREG(os.stat(last, dir_fd=place, follow_symlinks=False).st_mode):
                    raise OSError(errno.EACCES, "not a regular file")
            return Incoming(self.fd, place, last, self.write_max)
        except BaseException:
            os.close(place)
            raise

    def _tidy(self) -> None:
        """Take away what a killed service was writing."""
        with contextlib.suppress(OSError):
            listed = openat2(self.fd, b".", os.O_RDONLY | os.O_DIRECTORY)
            try:
                for name in os.listdir(listed):
                    if name.startswith(PARTIAL) and name.endswith(PARTIAL_END):
                        self._tidy_one(name)
            finally:
                os.close(listed)

    def _tidy_one(self, name: str) -> None:
        with contextlib.suppress(OSError):
            fd = openat2(self.fd, name.encode(), os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                os.unlink(name, dir_fd=self.fd)
            finally:
                os.close(fd)


class Incoming:
    """One file on its way in: nobody sees it under its name before it is whole."""

    def __init__(self, root: int, place: int, name: bytes, most: int) -> None:
        """`place` is the descriptor of the folder that it comes into, taken over."""
        self._root, self._place, self._name, self._most = root, place, name, most
        self._partial = f"{PARTIAL}{secrets.token_hex(8)}{PARTIAL_END}"
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        self._fd = os.open(self._partial, flags, MODE, dir_fd=root)
        self.size = 0
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX)
        except OSError:
            os.unlink(self._partial, dir_fd=root)
            os.close(self._fd)
            raise

    def expect(self, size: int) -> None:
        """Refuse a file that is announced as too long."""
        if size > self._most:
            raise OSError(errno.EFBIG, f"more than {self._most} bytes")

    def write(self, content: bytes) -> None:
        """Append; raises OSError, EFBIG where the file becomes too long."""
        self.expect(self.size + len(content))
        rest = memoryview(content)
        while rest:
            rest = rest[os.write(self._fd, rest) :]
        self.size += len(content)

    def commit(self) -> None:
        """The file is whole: give it its name, in the place of an older one."""
        os.rename(self._partial, self._name, src_dir_fd=self._root, dst_dir_fd=self._place)
        self._close()

    def abort(self) -> None:
        """It will not become whole."""
        if self._fd >= 0:
            with contextlib.suppress(OSError):
                os.unlink(self._partial, dir_fd=self._root)
            self._close()

    def _close(self) -> None:
        os.close(self._fd)
        os.close(self._place)
        self._fd = self._place = -1


def _beneath(name: bytes) -> bytes:
    """A name as clients write it, as one below the folder: some begin with a slash, and Windows' boot loader has backslashes."""
    name = name.replace(b"\\", b"/").lstrip(b"/")
    if not name or b"\0" in name:
        raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))
    return name
