"""Every option of QEMU's -netdev, for the kinds that shardnet has too, is read or refused with a reason."""

import pytest

from shardnet import kinds, options

INET = (
    "host",
    "port",
    "to",
    "ipv4",
    "ipv6",
    "numeric",
    "mptcp",
    "keep-alive",
    "keep-alive-count",
    "keep-alive-idle",
    "keep-alive-interval",
)
QEMU = {  # qapi/net.json and qapi/sockets.json, 7.2 to 10.2, as -netdev writes them; of dgram what its manual names
    "tap": [
        "ifname",
        "fd",
        "fds",
        "script",
        "downscript",
        "br",
        "helper",
        "sndbuf",
        "vnet_hdr",
        "vhost",
        "vhostfd",
        "vhostfds",
        "vhostforce",
        "queues",
        "poll-us",
    ],
    "stream": [
        "server",
        "reconnect",
        "reconnect-ms",
        *(f"addr.{key}" for key in ("type", "path", "abstract", "tight", "str", *INET)),
    ],
    "dgram": [f"{end}.{key}" for end in ("local", "remote") for key in ("type", "host", "port", "path", "str")],
    "vhost-user": ["chardev", "vhostforce", "queues"],
    "socket": ["fd", "listen", "connect", "mcast", "localaddr", "udp"],
}


@pytest.mark.parametrize(("kind", "key"), [(kind, key) for kind, keys in QEMU.items() for key in keys])
def test_an_option_of_qemus_is_known(kind, key):
    module = kinds.module(kind)
    read = {options.key_of(field) for field in options.declared(module.Options)}
    assert (key in read) != (key in module.REFUSED)
