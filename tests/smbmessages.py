"""Malformed messages of SMB over TCP (MS-SMB2 2.2; RFC 1002, 4.3.1), made from well-formed ones."""

import struct
from collections.abc import Iterator

import badmessages

SESSION = b"\x60\x48\x06\x06\x2b\x06\x01\x05\x05\x02\xa0\x3e\x30\x3c\xa0\x0e\x30\x0c\x06\x0a\x2b\x06\x01\x04\x01\x82\x37\x02\x02\x0a"
NTLM = b"\xa2\x2a\x04\x28NTLMSSP\0\x01\0\0\0\x97\x82\x08\xe2" + bytes(16) + b"\x06\x01\xb1\x1d\0\0\0\x0f"


def framed(message: bytes) -> bytes:
    """A message behind its length."""
    return struct.pack(">I", len(message)) + message


def smb2(command: int, body: bytes) -> bytes:
    """A request of SMB 2 with the first message id."""
    return framed(
        b"\xfeSMB" + struct.pack("<HHIHHIIQIIQ", 64, 0, 0, command, 1, 0, 0, 0, 0xFEFF, 0, 0) + bytes(16) + body
    )


def malformed() -> Iterator[bytes]:
    """Each to be sent as the first of a connection."""
    dialects = struct.pack("<5H", 0x0202, 0x0210, 0x0300, 0x0302, 0x0311)
    negotiate = struct.pack("<HHHHI", 36, 5, 1, 0, 0x7F) + bytes(24) + dialects
    setup = struct.pack("<HBBIIHHQ", 25, 0, 1, 1, 0, 88, len(SESSION + NTLM), 0) + SESSION + NTLM
    old = b"\xffSMB\x72\0\0\0\0\x18\x53\xc8" + bytes(20) + b"\0\x22\0\x02NT LM 0.12\0\x02SMB 2.002\0\x02SMB 2.???\0"
    for number, good in enumerate(
        (
            smb2(0, negotiate),
            smb2(1, setup),
            framed(old),
            b"\x81\0\0\x44" + b"\x20CKFDENECFDEFFCFGEFFCCACACACACACA\0" * 2,
        )
    ):
        yield from list(badmessages.broken(good, 4, number))[number::4]
    yield from (framed(b"\xfeSMB" + bytes((size,)) * size) for size in range(0, 200, 5))
    yield b"\0\xff\xff\xff" + b"\xfeSMB" + bytes(1000)
    yield b"GET / HTTP/1.0\r\n\r\n"
