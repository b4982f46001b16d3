"""Descriptors passed on to another process, more than one message of a unix socket takes (SCM_RIGHTS, unix(7)).

The channel is a pair of SOCK_SEQPACKET; each message has as many descriptors as it may and one byte. What is on its way counts against
RLIMIT_NOFILE of who sends, and is closed by the kernel when nobody takes it.
"""

import contextlib
import os
import resource
import socket
from collections.abc import Sequence

FDS_MAX = 250  # SCM_MAX_FD of Linux is 253; bin/shardnet-repair takes as many


def channel() -> tuple[socket.socket, socket.socket]:
    """Both ends of one: nobody waits at either for long."""
    ends = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for end in ends:
        end.settimeout(10)
    return ends


def give(channel: socket.socket, fds: Sequence[int]) -> None:
    """Send descriptors, which stay the caller's; OSError where they are too many."""
    for first in range(0, len(fds), FDS_MAX):
        socket.send_fds(channel, [b"+"], list(fds[first : first + FDS_MAX]))


def take(channel: socket.socket, count: int) -> list[int]:
    """Receive so many descriptors, now the caller's; OSError, and none, where they are not what comes."""
    found: list[int] = []
    try:
        while len(found) < count:
            data, some, flags, _ = socket.recv_fds(channel, 1, FDS_MAX)
            found += some
            if not data or not some or flags & socket.MSG_CTRUNC or len(found) > count:
                raise OSError(0, f"{len(found)} of {count} (descriptors: ulimit -Hn)")
        for fd in found:
            os.set_inheritable(fd, False)
    except OSError:
        close(found)
        raise
    return found


def close(fds: Sequence[int]) -> None:
    for fd in fds:
        os.close(fd)


def widen() -> None:
    """Have room for as many descriptors as the system allows this process."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def namespace() -> str:
    """The network namespace that this process is in, by a name that no other one has; empty where the system does not say."""
    try:
        with open("/proc/sys/kernel/random/boot_id", "rb") as file:  # as bytes: a codec may be out of reach by now
            boot = file.read().strip().decode()
        its = os.stat("/proc/self/ns/net")
    except OSError:
        return ""
    return f"{boot} {its.st_dev}:{its.st_ino}"
