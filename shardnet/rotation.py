"""The files that a capture writes, one after the other, in one folder: what they are called, and which of them go.

Without rotation there is one, FILE. With it, and where FILE is there already, each has a number and the time (UTC) at which it was
begun before its suffix: lan.pcapng becomes lan_000001_20261128T021422Z.pcapng. Numbers go on from the highest in the folder, so names
sort as the files were written, over every run. No file is ever opened that has something in it.
"""

import contextlib
import errno
import os
import re
import stat
import time
from pathlib import Path

CREATE = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
MODE = 0o600  # as dumpcap's: what passes a network is not for everybody


class Files:
    """FILE and those called after it; `most` of them are kept where it is not 0."""

    def __init__(self, path: Path, *, numbered: bool, most: int = 0) -> None:
        self.path, self.numbered, self.most = path, numbered, most
        stem, suffix = re.escape(path.stem), re.escape(path.suffix)
        self._pattern = re.compile(rf"{stem}_([0-9]{{6,}})_[0-9]{{8}}T[0-9]{{6}}Z{suffix}")

    def begin(self, folder: int, now: float | None = None) -> tuple[int, str]:
        """Make the next file in the folder, and remove what is too many; its descriptor and its name. Raises OSError."""
        there = self.there(folder)
        if not self.numbered and (opened := _opened(self.path.name, folder)) is not None:
            return opened, self.path.name
        if (
            there and (opened := _opened(there[-1][1], folder)) is not None
        ):  # whoever made it died before the first byte
            return opened, there[-1][1]
        number = there[-1][0] if there else 0
        when = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(now))
        while True:
            number += 1
            name = f"{self.path.stem}_{number:06}_{when}{self.path.suffix}"
            with contextlib.suppress(FileExistsError):
                fd = os.open(name, CREATE, MODE, dir_fd=folder)
                break
        if self.most and self.numbered:
            for _, old in there[: max(0, len(there) + 1 - self.most)]:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(old, dir_fd=folder)
        return fd, name

    def there(self, folder: int) -> list[tuple[int, str]]:
        """Numbers and names of the files that are there, in their order."""
        found = (self._pattern.fullmatch(name) for name in os.listdir(folder))
        return sorted((int(match[1]), match[0]) for match in found if match)


def _opened(name: str, folder: int) -> int | None:
    """The file of this name, made, or there and empty; None where there is something in it."""
    with contextlib.suppress(FileExistsError):
        return os.open(name, CREATE, MODE, dir_fd=folder)
    status = os.stat(name, dir_fd=folder, follow_symlinks=False)
    if status.st_size or not stat.S_ISREG(status.st_mode):
        return None
    fd = os.open(name, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
    if stat.S_ISREG(os.fstat(fd).st_mode) and not os.fstat(fd).st_size:
        return fd
    os.close(fd)
    return None


def folder(path: Path) -> int:
    """A descriptor of the folder that a file is to be in. Raises OSError."""
    if not path.name:
        raise OSError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    return os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
