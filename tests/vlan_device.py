"""A VLAN interface in user space, for kernels without 8021q: `vlan_device.py LINK NAME VLAN` runs until it is killed.

NAME is a TAP; what the kernel sends to it leaves LINK with a tag, and what comes to LINK with that tag arrives on it.
"""

import contextlib
import fcntl
import os
import select
import socket
import struct
import sys

TUNSETIFF = 0x400454CA
IFF_TAP, IFF_NO_PI = 2, 0x1000
SOL_PACKET, PACKET_AUXDATA = 263, 8
AUXDATA = struct.Struct("=IIIHHHH")  # linux/if_packet.h, struct tpacket_auxdata
ETH_P_ALL, ETH_P_8021Q = 3, 0x8100
OUTGOING = 4  # PACKET_OUTGOING: our own frames, seen again


def main(link: str, name: str, vlan: int) -> None:
    tap = os.open("/dev/net/tun", os.O_RDWR)
    fcntl.ioctl(tap, TUNSETIFF, struct.pack("16sH22x", name.encode(), IFF_TAP | IFF_NO_PI))
    wire = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
    wire.bind((link, ETH_P_ALL))
    wire.setsockopt(SOL_PACKET, PACKET_AUXDATA, 1)
    wire.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
    print("ready", flush=True)
    tag = struct.pack("!HH", ETH_P_8021Q, vlan)
    while True:
        for ready in select.select([tap, wire], [], [])[0]:
            if ready is tap:
                frame = os.read(tap, 65536)
                wire.send(frame[:12] + tag + frame[12:])
            else:
                frame, extra, _, sender = wire.recvmsg(65536, socket.CMSG_SPACE(AUXDATA.size))
                if sender[2] != OUTGOING and extra and AUXDATA.unpack(extra[0][2])[5] & 0xFFF == vlan:
                    with contextlib.suppress(
                        OSError
                    ):  # it is not up yet, and this frame is none that anybody waits for
                        os.write(tap, frame)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
