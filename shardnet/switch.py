"""[switch NAME]: a broadcast domain.

A switch needs no section: a port that names it makes it, and ports that name none are on the switch "lan". The
section is for what is not as usual.

mode = hub is QEMU's hub: every frame goes to every other port. mode = learn sends a frame only where its address
was seen, and everywhere while it was not.
"""

import dataclasses
from typing import Literal

from shardnet import options

# Group addresses 01-80-c2-00-00-0X that a bridge keeps from passing (IEEE 802.1Q-2018, table 8-1).
LINK_LOCAL = {"stp": 0x0, "pause": 0x1, "lacp": 0x2, "eapol": 0x3, "lldp": 0xE}


def link_local(text: str) -> int:
    """drop, forward, or a list such as lldp,stp,8"""
    if text in ("drop", "forward"):
        return 0 if text == "drop" else 0xFFFF
    mask = 0
    for word in (word.strip() for word in text.split(",")):
        if word in LINK_LOCAL:
            mask |= 1 << LINK_LOCAL[word]
        elif len(word) == 1 and word in "0123456789abcdefABCDEF":
            mask |= 1 << int(word, 16)
        else:
            known = ", ".join(LINK_LOCAL)
            raise ValueError(f"{options.shown(word)} is neither of {known} nor the last hex digit of an address")
    return mask


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    # Learn addresses, or send every frame to every other port.
    mode: Literal["learn", "hub"] = "learn"
    # After how many silent seconds an address is forgotten.
    ageing: int = options.option(300, read=options.between(1, 1_000_000))  # IEEE 802.1D-2004, table 7-5
    # What to do with frames to 01-80-c2-00-00-0X, which a bridge keeps from passing, as this switch does unless told to
    # forward them all, or those in a list of names (stp, pause, lacp, eapol, lldp) and hex digits X.
    link_local: int = options.option(0, key="link-local", read=link_local)
