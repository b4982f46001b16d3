"""Which file a client boots from: by what it says of its architecture, its user class and its vendor class.

A rule is `WHO FILE`; the first that fits is taken. WHO is one of the words below, arch:NUMBER, user:TEXT (the user class is TEXT)
or vendor:TEXT (the vendor class begins so). The numbers are of IANA's registry "Processor Architecture Types" (RFC 4578, 2.1;
firmware for x64 says 9 as often as 7).
"""

import dataclasses
from collections.abc import Sequence

ARCHITECTURES = {
    "bios": (0,),
    "efi-ia32": (6,),
    "efi-x64": (7, 9),
    "efi-arm": (10,),
    "efi-arm64": (11,),
    "efi-riscv64": (27,),
    "http-ia32": (15,),
    "http-x64": (16,),
    "http-arm": (18,),
    "http-arm64": (19,),
    "http-riscv64": (28,),
}
CLASSES = {"ipxe": ("user", b"iPXE"), "http": ("vendor", b"HTTPClient")}


@dataclasses.dataclass(frozen=True)
class Asker:
    """What a client said of itself."""

    architectures: tuple[int, ...] = ()
    user: tuple[bytes, ...] = ()
    vendor: bytes = b""


@dataclasses.dataclass(frozen=True)
class Rule:
    """For whom a file is: one of the three, and the file."""

    file: str
    architectures: tuple[int, ...] = ()
    user: bytes = b""
    vendor: bytes = b""

    def fits(self, asker: Asker) -> bool:
        """Is the file for this client?"""
        if self.architectures:
            return any(number in self.architectures for number in asker.architectures)
        return self.user in asker.user if self.user else asker.vendor.startswith(self.vendor)


def rule(text: str) -> Rule:
    """WHO FILE: bios, efi-x64, http-x64, ipxe, ..., arch:7, user:iPXE or vendor:HTTPClient, and a file"""
    who, _, file = text.partition(" ")
    file = file.strip()
    if not file:
        raise ValueError("no file behind the word that says for whom")
    kind, colon, value = who.partition(":")
    if who in ARCHITECTURES:
        return Rule(file, ARCHITECTURES[who])
    if who in CLASSES:
        kind, raw = CLASSES[who]
    elif kind == "arch" and value.isascii() and value.isdigit() and int(value) <= 0xFFFF:
        return Rule(file, (int(value),))
    elif kind in ("user", "vendor") and value:
        raw = value.encode()
    else:
        words = ", ".join([*ARCHITECTURES, *CLASSES])
        raise ValueError(f"{who} is none of {words}, arch:NUMBER, user:TEXT, vendor:TEXT")
    return Rule(file, user=raw) if kind == "user" else Rule(file, vendor=raw)


def file(asker: Asker, rules: Sequence[Rule], default: str) -> str:
    """The file for this client, "" for none."""
    return next((rule.file for rule in rules if rule.fits(asker)), default)


def numbers(value: bytes) -> tuple[int, ...]:
    """The architectures in an option: two bytes each."""
    return tuple(int.from_bytes(value[at : at + 2], "big") for at in range(0, len(value) - len(value) % 2, 2))


def classes(value: bytes, width: int = 1) -> tuple[bytes, ...]:
    """The user classes in an option, each with its length of `width` bytes in front (RFC 3004, 4); iPXE writes one without."""
    found, at = [value], 0
    while at + width <= len(value):
        size = int.from_bytes(value[at : at + width], "big")
        found.append(value[at + width : at + width + size])
        at += width + size
    return tuple(found)
