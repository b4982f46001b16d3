"""What a lab file says about TFTP: the keys that [user] and [tftp] share."""

import dataclasses

from shardnet import options
from shardnet.tftp import server

PORTS = range(65024, 65536)  # of transfers
WRITE_MAX = 1 << 40  # bytes


def block(text: str) -> int:
    """mtu | 8 to 65464"""
    if text == "mtu":
        return 0
    return options.between(server.BLKSIZE_MIN, server.BLKSIZE_MAX)(text)


def write(text: str) -> str:
    """off | on | FOLDER"""
    if text in options.BOOL:
        return "." if options.BOOL[text] else ""
    return text


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(options.PortOptions):
    # A folder whose files guests get by TFTP, from where the lab is started if it is relative.
    tftp: str = ""
    # Whether guests may write by TFTP: not at all, into the same folder, or into this one.
    tftp_write: str = options.option("", key="tftp-write", read=write)
    # The most bytes of a file that they write.
    tftp_write_max: int = options.option(1 << 30, key="tftp-write-max", read=options.between(0, WRITE_MAX))
    # The largest block that guests may ask for: a number of bytes, or what fits into one packet.
    tftp_blksize: int = options.option(server.BLKSIZE_MAX, key="tftp-blksize", read=block)
    # How many transfers a guest may have at a time.
    tftp_transfers: int = options.option(
        server.GUEST_MAX, key="tftp-transfers", read=options.between(1, server.ALL_MAX)
    )


def given(chosen: Options) -> dict[str, str]:
    """The keys as a companion's section has them."""
    return {
        "tftp": chosen.tftp,
        "tftp-write": chosen.tftp_write or "off",
        "tftp-write-max": str(chosen.tftp_write_max),
        "tftp-blksize": str(chosen.tftp_blksize or "mtu"),
        "tftp-transfers": str(chosen.tftp_transfers),
    }


PASSED_ON = frozenset({"tftp", "tftp-write", "tftp-write-max", "tftp-blksize", "tftp-transfers"})
