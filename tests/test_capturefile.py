"""Capture files that are damaged: whatever they say, frames that they have or Wrong, nothing else, soon."""

import os
import random
import struct

import pytest

from desk import frame
from shardnet import capturefile

FRAMES = [frame(number, 60 + number) for number in range(4)]


def pcap(order="<", magic=0xA1B2C3D4):
    records = b"".join(
        struct.pack(f"{order}4I", 1, number, len(one), len(one)) + one for number, one in enumerate(FRAMES)
    )
    return struct.pack(f"{order}I2H4I", magic, 2, 4, 0, 0, 65535, 1) + records


def block(order, kind, body):
    body += bytes(-len(body) % 4)
    return struct.pack(f"{order}2I", kind, len(body) + 12) + body + struct.pack(f"{order}I", len(body) + 12)


def section(order, units=9):
    head = block(order, 0x0A0D0D0A, struct.pack(f"{order}I2Hq", 0x1A2B3C4D, 1, 0, -1))
    interface = block(order, 1, struct.pack(f"{order}2HI2HB3x2H", 1, 0, 0, 9, 1, units, 0, 0))
    packets = b"".join(
        block(order, 6, struct.pack(f"{order}5I", 0, 0, number, len(one), len(one)) + one)
        for number, one in enumerate(FRAMES)
    )
    return head + interface + packets + block(order, 5, bytes(12))


WHOLE = {
    "pcap": pcap(),
    "pcap, big-endian": pcap(">"),
    "pcap, nanoseconds": pcap(magic=0xA1B23C4D),
    "pcap, nanoseconds, big-endian": pcap(">", 0xA1B23C4D),
    "pcapng": section("<"),
    "pcapng, big-endian": section(">"),
    "pcapng, sections of either order and of other units": section("<") + section(">", 6) + section("<", 0x80 | 10),
}


@pytest.fixture
def read(tmp_path):
    """Read bytes as a file: the frames up to where it makes no sense any more, and whether that is its end."""
    file = tmp_path / "file"

    def frames(data):
        file.write_bytes(data)
        fd = os.open(file, os.O_RDONLY)
        found = []
        try:
            for one in capturefile.frames(fd):
                assert isinstance(one.data, bytes) and len(one.data) <= len(data)
                assert isinstance(one.time_ns, int)
                found.append(one)
                assert len(found) <= len(data) // 16
        except capturefile.Wrong as wrong:
            assert str(wrong)
            return found, False
        finally:
            os.close(fd)
        return found, True

    return frames


@pytest.mark.parametrize("name", WHOLE)
def test_a_whole_file_has_its_frames_and_times(read, name):
    found, whole = read(WHOLE[name])
    assert whole
    assert [one.data for one in found] == FRAMES * (len(found) // 4)
    assert len(found) == (12 if "sections" in name else 4)
    unit = 1000 if name in ("pcap", "pcap, big-endian") else 1
    base = 10**9 if name.startswith("pcap,") or name == "pcap" else 0
    assert [one.time_ns for one in found[:4]] == [base + number * unit for number in range(4)]


@pytest.mark.parametrize("name", WHOLE)
def test_a_file_that_ends_at_any_byte_has_the_frames_before_it(read, name):
    data = WHOLE[name]
    before = 0
    for size in range(len(data)):
        found, _ = read(data[:size])
        assert [one.data for one in found] == (FRAMES * 3)[: len(found)]
        assert before <= len(found) <= before + 1
        before = len(found)
    assert before >= (len(read(data)[0]) - 1)


@pytest.mark.parametrize("name", WHOLE)
def test_a_word_that_lies_makes_the_file_wrong_or_other_frames_and_no_other_error(read, name):
    data = WHOLE[name]
    for at in range(0, len(data) - 3, 1 if len(data) < 1000 else 4):
        for lie in (
            b"\0\0\0\0",
            b"\xff\xff\xff\xff",
            b"\0\0\0\x80",
            b"\x80\0\0\0",
            b"\x7f\xff\xff\xff",
            b"\x0d\0\0\0",
            b"\0\0\0\x0d",
        ):
            read(data[:at] + lie + data[at + 4 :])


@pytest.mark.parametrize("name", WHOLE)
def test_noise_in_a_file_makes_no_other_error(read, name):
    dice = random.Random(name)
    for _ in range(500):
        data = bytearray(WHOLE[name])
        for _ in range(dice.randint(1, 8)):
            data[dice.randrange(len(data))] = dice.randrange(256)
        read(bytes(data))
