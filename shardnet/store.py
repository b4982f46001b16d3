"""Descriptors that outlive a worker: what its ports deposited, kept for its successor."""

import os
from collections.abc import Iterator


class Store:
    """One descriptor under each (port, key)."""

    def __init__(self) -> None:
        self._fds: dict[int, dict[str, int]] = {}

    def deposit(self, port: int, key: str, fd: int) -> None:
        """Take over a descriptor, in the place of an older one."""
        self.forget(port, key)
        self._fds.setdefault(port, {})[key] = fd

    def forget(self, port: int, key: str) -> None:
        """Close one descriptor, if there is one."""
        fd = self._fds.get(port, {}).pop(key, None)
        if fd is not None:
            os.close(fd)

    def drop(self, port: int) -> None:
        """Close all descriptors of a port."""
        for fd in self._fds.pop(port, {}).values():
            os.close(fd)

    def of(self, port: int) -> Iterator[tuple[str, int]]:
        """The keys of a port with their descriptors, which stay the store's."""
        yield from self._fds.get(port, {}).items()
