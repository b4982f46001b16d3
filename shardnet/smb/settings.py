"""What a lab file says about SMB: the keys that [user] and [smb] share."""

import dataclasses

from shardnet import options


def folder(text: str) -> str:
    """FOLDER"""
    if any(not c.isprintable() for c in text) or "%" in text:
        raise ValueError("no folder that smbd's configuration can name (it has control characters, or %)")
    return text


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(options.PortOptions):
    # A folder that guests read and write as //SERVER/qemu over SMB, from where the lab is started if it is relative.
    smb: str = options.option("", read=folder)


def given(chosen: Options) -> dict[str, str]:
    """The keys as a companion's section has them."""
    return {"smb": chosen.smb}


PASSED_ON = frozenset({"smb"})
