"""TFTP's mode netascii (RFC 764 by way of RFC 1350): a line ends in CR LF on the wire, and a CR alone is CR NUL."""


def encode(text: bytes) -> bytes:
    """Write a file's bytes for the wire; pieces of a file may be written one after the other."""
    return text.replace(b"\r", b"\r\0").replace(b"\n", b"\r\n")


class Decoder:
    """Reads what came, in pieces: one may end between a CR and what belongs to it."""

    def __init__(self) -> None:
        self._held = b""

    def read(self, piece: bytes) -> bytes:
        """The file's bytes of the next piece."""
        piece = self._held + piece
        self._held = b"\r" if piece.endswith(b"\r") else b""
        piece = piece[: len(piece) - len(self._held)]
        return b"\r".join(part.replace(b"\r\n", b"\n") for part in piece.split(b"\r\0"))

    def end(self) -> bytes:
        """What was held back at the end of the file."""
        held, self._held = self._held, b""
        return held
