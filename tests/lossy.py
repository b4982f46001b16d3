"""A cable that loses frames: between a TAP in a namespace and a [dgram] port of a lab, carried by a thread of the test."""

import contextlib
import fcntl
import os
import random
import select
import socket
import struct
import threading
from collections.abc import Iterator
from pathlib import Path

from shardnet import links

TUNSETIFF, IFF_TAP, IFF_NO_PI = 0x400454CA, 0x0002, 0x1000  # linux/if_tun.h

SECTION = """
[dgram {name}]
local.type = unix
local.path = {name}.sock
remote.type = unix
remote.path = {name}-far.sock
"""


@contextlib.contextmanager
def cable(netns: str, ifname: str, run_dir: Path, name: str, loss: float, seed: int = 1) -> Iterator[None]:
    """Join the interface `ifname`, made here, to the port `name`, and lose one frame in 1 / `loss` each way."""
    with contextlib.ExitStack() as stack:
        with links.namespace(netns):
            tap = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
        stack.callback(os.close, tap)
        fcntl.ioctl(tap, TUNSETIFF, struct.pack("16sH22x", ifname.encode(), IFF_TAP | IFF_NO_PI))
        far = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
        far.bind(str(run_dir / f"{name}-far.sock"))
        stack.callback((run_dir / f"{name}-far.sock").unlink)
        far.setblocking(False)
        stop = os.eventfd(0)
        stack.callback(os.close, stop)
        near, dice = str(run_dir / f"{name}.sock"), random.Random(seed)

        def carry() -> None:
            while stop not in (ready := select.select([tap, far, stop], [], [])[0]):
                with contextlib.suppress(OSError):  # nothing there any more, or the other side is full
                    if tap in ready:
                        frame = os.read(tap, 65536)
                        if dice.random() >= loss:
                            far.sendto(frame, near)
                with contextlib.suppress(OSError):
                    if far in ready:
                        frame = far.recv(65536)
                        if dice.random() >= loss:
                            os.write(tap, frame)

        thread = threading.Thread(target=carry)
        thread.start()
        try:
            yield
        finally:
            os.eventfd_write(stop, 1)
            thread.join()
