"""A network namespace for one command: made, entered and gone with the process that made it.

Without root a user namespace goes around it, in which the user is root: enough to configure the namespace's interfaces
and to send raw frames, and worth nothing outside it. A process enters with `enter()` and cannot come back, so call it
in a process that has nothing else to do.
"""

import ctypes
import os
import signal
import tempfile
from collections.abc import Sequence

CLONE_NEWNS = 0x00020000
MS_BIND, MS_REC, MS_PRIVATE = 1 << 12, 1 << 14, 1 << 18  # linux/mount.h
CLONE_NEWUSER = 0x10000000  # linux/sched.h
CLONE_NEWNET = 0x40000000


def enter() -> None:
    """Move this process, which must have one thread, into a new network namespace."""
    uid, gid = os.geteuid(), os.getegid()
    if uid == 0:
        _unshare(CLONE_NEWNET)
        return
    _unshare(CLONE_NEWUSER | CLONE_NEWNET)
    # user_namespaces(7): a process may map itself alone, and its group only once it has given up setgroups().
    for file, text in (("setgroups", "deny"), ("uid_map", f"0 {uid} 1"), ("gid_map", f"0 {gid} 1")):
        with open(f"/proc/self/{file}", "w") as out:
            out.write(text)


def resolve_by(servers: Sequence[str]) -> None:
    """Have this process and its children read an /etc/resolv.conf with these servers; the host's stays as it is."""
    _unshare(CLONE_NEWNS)
    _mount(None, "/", MS_REC | MS_PRIVATE)  # what is mounted from here on is nobody else's matter
    with tempfile.NamedTemporaryFile("w") as file:  # the mount keeps it when its name is gone
        file.write("".join(f"nameserver {server}\n" for server in servers))
        file.flush()
        os.fchmod(file.fileno(), 0o644)
        _mount(file.name, "/etc/resolv.conf", MS_BIND)


def tried() -> str:
    """Try in a child whether `enter` works here; what the system said if not, "" if so."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            enter()
        except OSError as error:
            os.write(writer, os.fsencode(error.strerror or str(error)))
        finally:
            os._exit(0)
    os.close(writer)
    with open(reader) as said:
        text = said.read()
    _, status = os.waitpid(child, 0)
    return text or (f"killed by {signal.Signals(os.WTERMSIG(status)).name}" if os.WIFSIGNALED(status) else "")


def _unshare(flags: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(ctypes.c_int(flags)):
        number = ctypes.get_errno()
        raise OSError(number, f"{os.strerror(number)} (shardnet doctor says more)", "new namespace")


def _mount(source: str | None, target: str, flags: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    given = None if source is None else os.fsencode(source)
    if libc.mount(given, os.fsencode(target), None, ctypes.c_ulong(flags), None):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), target)
