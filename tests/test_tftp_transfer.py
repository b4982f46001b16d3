"""Transfers of TFTP as exchanges, on a clock that the test turns; then what no client should ever send."""

import itertools
import random
import struct
import subprocess

import pytest

import wirefile
from shardnet.tftp import folder, message, netascii, server

GUEST, OTHER, HOST = b"\x0a\0\2\x0f", b"\x0a\0\2\x10", b"\x0a\0\2\2"
MAC, OTHER_MAC = b"\x52\x54\0\0\0\1", b"\x52\x54\0\0\0\2"
PORTS = range(65024, 65536)
CORPUS_MIN = 500


class Bench:
    """A server for a folder, a clock, and guests that speak in whole messages."""

    def __init__(self, path, write=None, **how):
        self.path, self.now = path, 100.0
        self.counts, self.notes = {}, []
        self.folders = [folder.Folder(folder.opened(path))]
        if write is not None:
            self.folders.append(folder.Folder(folder.opened(path), write))
        writing = self.folders[1] if write is not None else None
        self.server = server.Server(self.folders[0], writing, PORTS, count=self.count, note=self.notes.append, **how)

    def count(self, name, by):
        self.counts[name] = self.counts.get(name, 0) + by

    def say(self, payload, to=server.PORT, port=2000, peer=GUEST, mac=MAC):
        """What is answered to a datagram: (payload, from port) each."""
        answers = self.server.received([(payload, peer, port, HOST, to, mac)], self.now)
        assert all(answer[1:4] == (peer, port, HOST) and answer[5] == mac for answer in answers)
        return [(answer[0], answer[4]) for answer in answers]

    def ask(self, name, *options, mode="octet", code=message.RRQ, **where):
        """Begin a transfer: the answers' payloads and its port."""
        answers = self.say(request(name, *options, mode=mode, code=code), **where)
        assert len({port for _, port in answers}) == 1
        return [payload for payload, _ in answers], answers[0][1]

    def turn(self, seconds):
        """What is sent while nothing comes."""
        sent = []
        for _ in range(round(seconds / server.TICK_S)):
            self.now += server.TICK_S
            sent += [answer[0] for answer in self.server.tick(self.now)]
        return sent

    def close(self):
        self.server.close()
        for one in self.folders:
            one.close()


def request(name, *options, mode="octet", code=message.RRQ):
    words = [name, mode, *(str(word) for word in options)]
    return struct.pack("!H", code) + b"".join(word.encode() + b"\0" for word in words)


def data(number, content=b""):
    return struct.pack("!HH", 3, number & 0xFFFF) + content


def ack(number):
    return struct.pack("!HH", 4, number & 0xFFFF)


@pytest.fixture
def bench(tmp_path):
    made = []

    def make(files=(), **how):
        for name, content in dict(files).items():
            (tmp_path / name).write_bytes(content)
        made.append(Bench(tmp_path, **how))
        return made[-1]

    yield make
    for one in made:
        one.close()


@pytest.mark.parametrize("size", [0, 1, 511, 512, 513, 1024])
def test_a_file_is_sent_block_by_block_and_ends_with_a_short_one(bench, size):
    content = random.Random(size).randbytes(size)
    said = bench({"f": content})
    got, port = said.ask("f")
    assert port in PORTS
    for number in itertools.count(1):
        assert got == [data(number, content[512 * (number - 1) : 512 * number])]
        got = [payload for payload, _ in said.say(ack(number), port)]
        if number * 512 > size:
            break
    assert got == []
    assert not said.server.jobs
    assert said.counts == {"read_requests": 1, "completed": 1, "bytes_sent": size}


def test_options_are_agreed_on_and_what_is_unknown_or_wrong_is_left_out(bench):
    said = bench({"f": bytes(3000)})
    asked = ["blksize", 1024, "tsize", 0, "timeout", 3, "windowsize", 2, "multicast", "", "BLKSIZE", 8]
    got, port = said.ask("f", *asked)
    assert got == [b"\0\6blksize\x001024\0timeout\x003\0windowsize\x002\0tsize\x003000\0"]
    assert [payload for payload, _ in said.say(ack(0), port)] == [data(1, bytes(1024)), data(2, bytes(1024))]
    for option, value in (("blksize", 7), ("blksize", "x"), ("windowsize", 0), ("timeout", 0), ("timeout", 256)):
        assert said.ask("f", option, value, port=2001)[0] == [data(1, bytes(512))]
    assert said.ask("f", "blksize", 70000, port=2002)[0] == [b"\0\6blksize\x0065464\0"]
    assert said.ask("f", "windowsize", 65535, port=2003)[0] == [b"\0\6windowsize\x0064\0"]
    assert said.ask("f", "windowsize", 64, "blksize", 65464, port=2004)[0] == [
        b"\0\6windowsize\x002\0blksize\x0065464\0"
    ]


def test_blocks_stay_within_a_packet_where_that_is_asked_for(bench):
    said = bench({"f": bytes(3000)}, blksize_max=lambda peer: 1468 if len(peer) == 4 else 1448)
    assert said.ask("f", "blksize", 8192)[0] == [b"\0\6blksize\x001468\0"]
    assert said.ask("f", "blksize", 8192, peer=bytes(16))[0] == [b"\0\6blksize\x001448\0"]


def test_what_gets_no_answer_is_sent_again_ever_more_rarely_and_then_given_up(bench):
    said = bench({"f": b"x" * 600})
    _, port = said.ask("f")
    assert said.turn(0.4) == []
    again = said.turn(8)
    assert again == [data(1, b"x" * 512)] * 4
    (second,) = said.say(ack(1), port)
    assert second[0] == data(2, b"x" * 88)
    assert set(said.turn(41)) == {data(2, b"x" * 88)}
    assert said.turn(9) == []
    assert said.notes == ["f to 10.0.2.15: no answer (after 512 bytes)"]
    assert said.counts["failed"] == 1


def test_the_option_timeout_says_when(bench):
    said = bench({"f": b"x"})
    _, port = said.ask("f", "timeout", 3)
    assert said.turn(2.9) == []
    assert said.turn(0.2) == [b"\0\6timeout\x003\0"]
    said.say(ack(0), port)
    assert said.turn(2.9) == []
    assert said.turn(3.2) == [data(1, b"x")] * 2


def test_a_doubled_ack_doubles_nothing(bench):
    said = bench({"f": bytes(5000)})
    _, port = said.ask("f")
    assert len(said.say(ack(1), port)) == 1
    assert said.say(ack(1), port) == []
    assert said.say(ack(0), port) == []
    assert said.say(ack(7), port) == []
    assert len(said.say(ack(2), port)) == 1


def test_a_window_goes_on_where_the_ack_says_and_is_repeated_once(bench):
    content = random.Random(1).randbytes(20 * 512)
    blocks = [data(number + 1, content[512 * number : 512 * number + 512]) for number in range(21)]
    said = bench({"f": content})
    _, port = said.ask("f", "windowsize", 4)
    payloads = lambda number: [payload for payload, _ in said.say(ack(number), port)]  # noqa: E731
    assert payloads(0) == blocks[0:4]
    assert payloads(2) == blocks[2:6]  # 3 was lost
    assert payloads(2) == blocks[2:6]  # and again
    assert payloads(2) == []  # which was said already
    assert said.turn(1)[:4] == blocks[2:6]
    assert payloads(6) == blocks[6:10]
    assert payloads(4) == []
    for number in (10, 14, 18):
        assert payloads(number) == blocks[number : number + 4]
    assert payloads(21) == []
    assert said.counts["completed"] == 1


def test_block_numbers_roll_over(bench):
    content = random.Random(2).randbytes(8 * 140_000)
    said = bench({"f": content})
    got, port = said.ask("f", "blksize", 8, "windowsize", 64)
    whole, number = bytearray(), 0
    got = [payload for payload, _ in said.say(ack(0), port)]
    while got:
        for payload in got:
            number += 1
            assert payload[:4] == data(number)
            whole += payload[4:]
        got = [payload for payload, _ in said.say(ack(number), port)]
    assert number == 140_001
    assert whole == content


def test_somebody_elses_datagram_is_answered_and_disturbs_nobody(bench):
    said = bench({"f": bytes(600)})
    _, port = said.ask("f")
    unknown = message.error(message.UNKNOWN_ID, "unknown transfer")
    assert said.say(ack(1), port, port=2001) == [(unknown, port)]
    assert said.say(ack(1), port, peer=OTHER, mac=OTHER_MAC) == [(unknown, port)]
    assert said.say(message.error(0, "no"), port, port=2001) == []
    assert said.say(ack(1), port) == [(data(2, bytes(88)), port)]
    assert said.say(message.error(0, "enough"), port) == []
    assert said.notes == ["f to 10.0.2.15: the client ended it: enough (after 512 bytes)"]
    answers = [answer for _ in range(300) for answer in said.say(ack(1), 65100)]
    assert len(answers) <= server.STRAYS_PER_S


def test_a_request_that_is_repeated_is_one_transfer(bench):
    said = bench({"f": bytes(600)})
    first = said.ask("f")
    assert said.ask("f") == first
    assert len(said.server.jobs) == 1
    said.ask("f", "blksize", 1000)
    assert len(said.server.jobs) == 1


def test_a_guest_has_its_share_and_takes_nobody_elses(bench):
    said = bench({"f": bytes(600)}, guest_max=3)
    for port in range(2000, 2003):
        said.ask("f", port=port)
    assert said.ask("f", port=2003)[0] == [message.error(0, "too many transfers")]
    assert said.ask("f", port=2003, peer=OTHER, mac=OTHER_MAC)[0] == [data(1, bytes(512))]
    said.turn(server.IDLE_S + 1)
    assert said.ask("f", port=2004)[0] == [data(1, bytes(512))]
    assert sorted(job.peer_port for job in said.server.jobs.values() if job.mac == MAC) == [2001, 2002, 2004]


def test_a_file_comes_in_under_its_name_when_it_is_whole(bench, tmp_path):
    said = bench({"f": b"old"}, write=2000)
    got, port = said.ask("f", code=message.WRQ)
    assert got == [ack(0)]
    assert said.say(data(1, b"a" * 512), port) == [(ack(1), port)]
    assert said.say(data(1, b"a" * 512), port) == [(ack(1), port)]
    assert (tmp_path / "f").read_bytes() == b"old"
    assert said.ask(next(tmp_path.glob(".tftp-*")).name, port=2001)[0] == [message.error(1, "no such file")]
    assert said.say(data(2, b"b"), port) == [(ack(2), port)]
    assert (tmp_path / "f").read_bytes() == b"a" * 512 + b"b"
    assert said.say(data(2, b"b"), port) == [(ack(2), port)]  # the last ACK was lost
    said.turn(4)
    assert not said.server.jobs
    assert [path.name for path in tmp_path.iterdir()] == ["f"]


def test_windows_come_in_with_a_gap_told_once(bench, tmp_path):
    said = bench(write=1 << 20)
    got, port = said.ask("f", "windowsize", 4, "tsize", 3000, code=message.WRQ)
    assert got == [b"\0\6windowsize\x004\0tsize\x003000\0"]
    send = lambda number, size=512: [payload for payload, _ in said.say(data(number, bytes(size)), port)]  # noqa: E731
    assert [send(1), send(3), send(4)] == [[], [ack(1)], []]
    assert [send(2), send(3), send(4), send(5)] == [[], [], [], [ack(5)]]
    assert send(6, 440) == [ack(6)]
    assert (tmp_path / "f").stat().st_size == 3000


def test_a_file_too_long_or_given_up_leaves_nothing(bench, tmp_path):
    said = bench(write=1000)
    assert said.ask("f", "tsize", 1001, code=message.WRQ)[0] == [message.error(3, "more than 1000 bytes")]
    _, port = said.ask("f", code=message.WRQ)
    said.say(data(1, bytes(512)), port)
    assert said.say(data(2, bytes(512)), port) == [(message.error(3, "more than 1000 bytes"), port)]
    said.ask("g", code=message.WRQ)
    assert len(list(tmp_path.iterdir())) == 1
    sent = said.turn(45)
    assert set(sent) == {ack(0)} and len(sent) <= 6
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_service_was_writing_is_taken_away_and_what_another_writes_is_not(bench, tmp_path):
    (tmp_path / ".tftp-0123456789abcdef.part").write_bytes(b"left")
    said = bench(write=1000)
    assert list(tmp_path.iterdir()) == []
    said.ask("f", code=message.WRQ)
    bench(write=1000)
    assert len(list(tmp_path.iterdir())) == 1


def test_a_folder_is_read_only_unless_it_says_otherwise(bench, tmp_path):
    assert bench().ask("f", code=message.WRQ)[0] == [message.error(2, "read-only")]
    assert list(tmp_path.iterdir()) == []


def test_netascii_is_written_and_read_back(bench, tmp_path):
    text = b"one\ntwo\r\nthree\rfour\n" * 100
    said = bench({"f": text}, write=1 << 20)
    got, port = said.ask("f", "tsize", 0, mode="NetASCII")
    wire = b""
    for number in itertools.count(1):
        (block,) = got
        wire += block[4:]
        if len(block) < 516:
            break
        got = [payload for payload, _ in said.say(ack(number), port)]
    said.say(ack(number), port)
    assert wire == text.replace(b"\r", b"\r\0").replace(b"\n", b"\r\n")
    _, port = said.ask("g", mode="netascii", code=message.WRQ)
    for number in range(len(wire) // 512 + 1):
        said.say(data(number + 1, wire[512 * number : 512 * number + 512]), port)
    assert (tmp_path / "g").read_bytes() == text
    decoder = netascii.Decoder()
    assert b"".join(decoder.read(bytes([byte])) for byte in b"a\r\nb\r\0c\rd\r") + decoder.end() == b"a\nb\rc\rd\r"


NAMES = [
    *("../secret", "/../secret", "//../secret", "in/../../secret", "..\\secret", "in\\..\\..\\secret", "out", "in/out"),
    *(
        "outdir/secret",
        "in/../outdir/secret",
        "..",
        "../",
        ".",
        "in",
        "in/",
        "/",
        "fifo",
        "loop",
        "proc/self/root/etc/passwd",
    ),
    *("%2e%2e/secret", "..%2fsecret", "\u002e\u002e/secret", "....//secret", "..;/secret", "/proc/self/cwd/secret"),
]


@pytest.mark.parametrize("code", [message.RRQ, message.WRQ])
def test_no_spelling_and_no_link_leads_out_of_the_folder(bench, tmp_path, code):
    inside = tmp_path / "root"
    (inside / "in").mkdir(parents=True)
    (tmp_path / "secret").write_bytes(b"secret")
    (inside / "file").write_bytes(b"file")
    (inside / "out").symlink_to(tmp_path / "secret")
    (inside / "in" / "out").symlink_to("../../secret")
    (inside / "outdir").symlink_to("..")
    (inside / "proc").symlink_to("/proc")
    (inside / "loop").symlink_to("loop")
    (inside / "link").symlink_to("in/../file")
    subprocess.run(["mkfifo", inside / "fifo"], check=True)
    said = Bench(inside, write=1000)
    for number, name in enumerate(NAMES):
        got, port = said.ask(name, code=code, port=2000 + number)
        if got[0][:2] != b"\0\5":  # a name that is only odd
            assert code == message.WRQ
            said.say(data(1, b"new"), port, port=2000 + number)
    assert said.ask("link", port=3000)[0] == [data(1, b"file")]
    assert said.ask("\\in\\..\\file", port=3001)[0] == [data(1, b"file")]
    said.close()
    assert (tmp_path / "secret").read_bytes() == b"secret"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["root", "secret"]


def corpus():
    """Messages that no client should send, the same ones each time."""
    dice = random.Random(1350)
    goods = [
        request("f", "blksize", 1024, "tsize", 0, "timeout", 2, "windowsize", 8),
        request("f", mode="netascii"),
        request("new", "tsize", 100, code=message.WRQ),
        data(1, b"x" * 20),
        ack(1),
        message.error(0, "no"),
        message.oack({"blksize": "8"}),
    ]
    for good in goods:
        yield from (good[:size] for size in range(len(good)))
        for _ in range(60):
            at, bit = dice.randrange(len(good)), 1 << dice.randrange(8)
            yield good[:at] + bytes([good[at] ^ bit]) + good[at + 1 :]
            yield good[:at] + dice.randbytes(dice.randrange(9)) + good[at:]
    for code in (message.RRQ, message.WRQ):
        for name in ("", "a" * 255, "a" * 256, "a" * 600, "/" * 200, "\x01\x02", "é" * 100):
            yield request(name, code=code)
        yield from (request("f", *["x", "y"] * count, code=code) for count in (8, 9, 60, 5000))
        for option in ("blksize", "tsize", "timeout", "windowsize"):
            for value in ("", "-1", "0", "1e3", "9" * 40, "١٢", " 8", "8 ", "0x200", "65465", "99999999999999999999"):
                yield request("f", option, value, code=code)
        yield from (request("f", mode=mode, code=code) for mode in ("", "mail", "o" * 400, "OCTET\n"))
        yield struct.pack("!H", code) + b"f\0octet"
        yield struct.pack("!H", code) + bytes(510)
    yield from (dice.randbytes(dice.randrange(1, 600)) for _ in range(100))
    yield from (struct.pack("!H", code) + dice.randbytes(20) for code in range(7, 40))


def test_malformed_messages_are_answered_shortly_or_not_at_all(bench, tmp_path):
    frames = [wirefile.frame("10.0.2.15", 2000, "10.0.2.2", 69, payload) for payload in corpus()]
    assert len(frames) >= CORPUS_MIN
    written = wirefile.corpus("tftp", frames)
    root = tmp_path / "root"
    root.mkdir()
    (root / "f").write_bytes(bytes(100))
    said = Bench(root, write=1000)
    _, port = said.ask("f", port=1999)
    for frame in wirefile.read(written):
        for to in (server.PORT, port, 65000):
            for answer, _ in said.say(frame[42:], to):
                assert len(answer) <= max(len(frame), 516), frame
        for to in [job.port for job in said.server.jobs.values() if job.peer_port == 2000]:
            said.say(frame[42:], to)
        said.turn(0.05)
    assert said.counts["malformed"] > 300
    assert said.ask("f", port=1998)[0] == [data(1, bytes(100))]
    said.close()
    assert all(path.is_file() and path.stat().st_size <= 1000 for path in root.iterdir())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["root"]
