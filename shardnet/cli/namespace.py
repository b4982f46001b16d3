"""A network namespace for one command: made, entered and gone with the process that made it.

Without root a user namespace goes around it, in which the user is root: enough to configure the namespace's interfaces
and to send raw frames, and worth nothing outside it. A process enters with `enter()` and cannot come back, so call it
in a process that has nothing else to do.
"""

import ctypes
import ipaddress
import os
import signal

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Address = ipaddress.IPv4Address | ipaddress.IPv6Address

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
        raise OSError(number, f"{os.strerror(number)} (shardnet doctor says more)", "new network namespace")


def add_route(network: Network, gateway: Address) -> None:
    """Reach `network` by way of `gateway`, in the namespace of this process."""
    import pyroute2  # 0.2 s, and only here

    try:
        with pyroute2.IPRoute() as netlink:
            netlink.route("add", dst=str(network), gateway=str(gateway))
    except pyroute2.NetlinkError as error:
        raise OSError(error.code, os.strerror(error.code), f"route {network} via {gateway}") from None
