"""Networks of guests and ports of the host as options of [user] say them."""

import ipaddress
import re

from shardnet import options

# Networks without a mask, as QEMU's net_slirp_init() reads them.
CLASSES = (("10.0.0.0/8", 8), ("172.16.0.0/12", 12), ("198.18.0.0/15", 15), ("224.0.0.0/4", 28))


def net(text: str) -> ipaddress.IPv4Network:
    """ADDRESS/PREFIX, ADDRESS/MASK, or ADDRESS with the prefix of its class"""
    address, slash, mask = text.partition("/")
    try:
        first = ipaddress.IPv4Address(address)
    except ValueError:
        raise ValueError(f"{address} is no IPv4 address") from None
    if not slash:
        mask = str(next((length for block, length in CLASSES if first in ipaddress.ip_network(block)), _class(first)))
    elif mask.isdecimal() and int(mask) > 32:
        raise ValueError("a prefix of IPv4 is 0 to 32")
    try:
        found = ipaddress.IPv4Network(f"{first}/{mask}", strict=False)
    except ValueError:
        raise ValueError(f"{mask} is neither a prefix nor a mask") from None
    if not 4 <= found.prefixlen <= 30:
        raise ValueError("a network for guests has a prefix of 4 to 30")
    return found


def net6(text: str) -> ipaddress.IPv6Network:
    """PREFIX/LENGTH, the length 64 unless given"""
    try:
        found = ipaddress.IPv6Network(text if "/" in text else f"{text}/64", strict=False)
    except ValueError:
        raise ValueError("no network such as fec0::/64") from None
    if found.prefixlen > 126:
        raise ValueError("a network for guests has a prefix of 0 to 126")
    return found


def ports(text: str) -> tuple[tuple[int, int], ...] | None:
    """on, off, or ports such as 80,8000-8010"""
    if text in options.BOOL:
        return None if options.BOOL[text] else ()
    found = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*([0-9]{1,5})(?:-([0-9]{1,5}))?\s*", part)
        low, high = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
        if not 1 <= low <= high <= 65535:
            raise ValueError("neither on nor off nor ports such as 80,8000-8010")
        found.append((low, high))
    return tuple(found)


def _class(address: ipaddress.IPv4Address) -> int:
    first = address.packed[0]
    return 8 if first < 128 else 16 if first < 192 else 24
