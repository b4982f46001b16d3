"""The vhost-user protocol spoken by a front end of our own: what it says at its end, and what it says to do harm."""

import contextlib
import os
import random
import struct

import pytest

from desk import frame
from shardnet import vhost
from shardnet.workers import vhost_user
from vhostend import GUEST, LOG_ALL, MEMORY, MRG_RXBUF, NEED_REPLY, P_ACK, PROTOCOL, USER, VERSION_1, FrontEnd

RECEIVE, TRANSMIT = 0, 1


@pytest.fixture
def port(desk):
    return desk.add(vhost_user, path="v.sock", server="on", queues="2", mtu="1500")


@pytest.fixture
def dial(desk, port):
    """Connect front ends: each is closed at the end."""
    with contextlib.ExitStack() as stack:

        def connect():
            end = FrontEnd(desk, str(desk.run_dir / "v.sock"))
            stack.callback(end.close)
            return end

        yield connect


def ready(end):
    """All four rings run, with buffers where frames come in."""
    end.negotiate()
    end.share()
    for ring in range(4):
        end.start(ring)
    for ring in (0, 2):
        for number in range(16):
            end.post(ring, number)
    assert end.number(17) == 2  # pairs; the answer says that all before it was heard
    return end


def arrives(desk, end, ring, wanted):
    desk.until(lambda: any(got[1][12:] == wanted for got in iter(lambda: end.used(ring), None)))


def test_frames_cross_both_ways_and_a_flow_comes_back_on_the_pair_on_which_it_was_heard(desk, wire, dial):
    end = ready(dial())
    for ring in (0, 2):
        out = frame(10 + ring, source=2)
        end.post(ring + 1, 0, out)
        desk.until(lambda out=out: wire.receive() == out)
        # The same two addresses the other way round, so the same flow.
        back = out[6:12] + out[:6].replace(b"\xff" * 6, b"\x02\0\0\0\0\x01") + out[12:]
        asks = b"\x02\0\0\0\0\x01" + out[6:]
        end.post(ring + 1, 1, asks)
        desk.until(lambda asks=asks: wire.receive() == asks)
        wire.send(back)
        arrives(desk, end, ring, back)


def test_the_guest_is_announced_and_its_mtu_is_checked(desk, wire, dial):
    end = ready(dial())
    assert end.number(20, 1500, flags=1 | NEED_REPLY) == 0
    assert end.number(20, 9000, flags=1 | NEED_REPLY) == 1
    end.say(19, b"\x52\x54\0\x12\x34\x56\0\0")
    said = desk.until(wire.receive)
    assert said[:14] == b"\xff" * 6 + b"\x52\x54\0\x12\x34\x56" + b"\x80\x35"
    assert len(said) == 60


def test_every_page_that_is_written_is_in_the_dirty_log(desk, wire, dial):
    end = dial()
    end.negotiate()
    end.share()
    end.start(RECEIVE)
    at = end.post(RECEIVE, 3)
    log = os.memfd_create("log")
    os.truncate(log, (GUEST + MEMORY) // 4096 // 8)
    assert end.ask(6, struct.pack("=QQ", (GUEST + MEMORY) // 4096 // 8, 0), [log]) == b""
    end.say(2, struct.pack("=Q", VERSION_1 | PROTOCOL | MRG_RXBUF | LOG_ALL))
    end.place(RECEIVE, log=GUEST + 0x2000)
    assert end.number(17) == 2
    assert not any(os.pread(log, 1 << 20, GUEST // 4096 // 8))
    wire.send(frame(1))
    arrives(desk, end, RECEIVE, frame(1))
    bits = os.pread(log, 1 << 20, GUEST // 4096 // 8)
    pages = {8 * byte + bit for byte, value in enumerate(bits) for bit in range(8) if value >> bit & 1}
    assert pages == {at // 4096, 2}
    os.close(log)


def test_a_ring_that_stops_says_where_and_a_ring_without_sense_is_stopped_alone(desk, wire, dial, port):
    end = ready(dial())
    end.post(TRANSMIT, 0, frame(1))
    desk.until(lambda: wire.receive() == frame(1))
    assert struct.unpack("=II", end.ask(11, struct.pack("=II", TRANSMIT, 0))) == (TRANSMIT, 1)
    end.memory[3 * 0x10000 + 0x1002 : 3 * 0x10000 + 0x1004] = b"\xff\xff"
    os.eventfd_write(end.bells[0], 1)
    desk.until(lambda: "queue 1 transmits makes no sense" in "".join(port.lines))
    wire.send(frame(2))
    arrives(desk, end, RECEIVE, frame(2))


def test_memory_that_is_cut_ends_the_connection_and_the_next_one_is_served(desk, wire, dial, port):
    end = ready(dial())
    end.memory.close()
    os.truncate(end.file, 0)
    wire.send(frame(1))
    desk.until(end.is_gone)
    assert "memory of the guest's away" in port.lines[-1]
    arrived = ready(dial())
    wire.send(frame(2))
    arrives(desk, arrived, RECEIVE, frame(2))


WRONG = {
    "a message that was not offered": lambda end: end.say(36),
    "another version": lambda end: end.say(1, flags=2),
    "a reply that nobody asked for": lambda end: end.say(1, flags=5),
    "a payload too long": lambda end: end.say(2, bytes(8), size=1 << 31),
    "a payload too short": lambda end: end.say(2, bytes(4)),
    "features that were not offered": lambda end: end.say(2, struct.pack("=Q", 1 << 34)),
    "regions that overlap": lambda end: end.share([(GUEST, 8192, USER, 0), (GUEST + 4096, 8192, 2 * USER, 0)]),
    "a region that wraps": lambda end: end.share([((1 << 64) - 4096, 8192, USER, 0)]),
    "an empty region": lambda end: end.share([(GUEST, 0, USER, 0)]),
    "a region beyond its file": lambda end: end.share([(GUEST, MEMORY, USER, 4096)]),
    "an offset that wraps": lambda end: end.share([(GUEST, MEMORY, USER, (1 << 64) - 4096)]),
    "more regions than descriptors": lambda end: end.share([(GUEST, 4096, USER, 0)], fds=[]),
    "nine regions": lambda end: end.share([(n << 20, 4096, n << 20, 0) for n in range(1, 10)], fds=[end.file] * 8),
    "memory on a disk": lambda end: end.share(fds=[os.open(__file__, os.O_RDONLY)]),
    "a ring of no power of two": lambda end: end.say(8, struct.pack("=II", 0, 100)),
    "a ring too large": lambda end: end.say(8, struct.pack("=II", 0, 65536)),
    "a ring that is not there": lambda end: end.say(8, struct.pack("=II", 4, 64)),
    "a ring outside the memory": lambda end: (
        end.say(8, struct.pack("=II", 0, 64)),
        end.say(9, struct.pack("=IIQQQQ", 0, 0, USER + MEMORY - 16, USER, USER, 0)),
        end.say(12, struct.pack("=Q", 0), [os.eventfd(0)]),
    ),
    "a ring that is started before it is set up": lambda end: end.say(12, struct.pack("=Q", 0), [os.eventfd(0)]),
    "a pipe to ring": lambda end: end.say(13, struct.pack("=Q", 0), [os.pipe()[1]]),
    "no bell": lambda end: end.say(12, struct.pack("=Q", 256)),
    "no descriptor": lambda end: end.say(13, struct.pack("=Q", 0)),
    "a group address to announce": lambda end: end.say(19, b"\xff" * 8),
    "an empty log": lambda end: end.say(6, struct.pack("=QQ", 0, 0), [end.file]),
    "a log beyond its file": lambda end: end.say(6, struct.pack("=QQ", 1 << 40, 0), [end.file]),
}


@pytest.mark.parametrize("harm", WRONG)
def test_what_makes_no_sense_ends_the_connection_with_the_reason_and_the_next_one_is_served(desk, dial, port, harm):
    end = dial()
    end.negotiate(protocol=P_ACK)
    end.share()
    WRONG[harm](end)
    desk.until(end.is_gone)
    assert port.lines[-1].startswith("the VMM is left: ")
    dial().negotiate()


def test_messages_at_random_leave_neither_descriptors_nor_memory_behind(desk, wire, dial, port):
    """Seeded: what fails once fails again."""
    chance = random.Random(7)
    path = str(desk.run_dir / "v.sock")
    bell, before, mapped = os.eventfd(0), None, None
    end = ready(FrontEnd(desk, path))
    for turn in range(3000):
        request = chance.choice([*vhost.FORMS, chance.randrange(64)])
        form = vhost.FORMS.get(request)
        size = form.layout.size if form and form.layout else chance.choice([0, 8, 40])
        payload = bytes(chance.choice([0, 0, 0, 1, 2, 16, 255, chance.randrange(256)]) for _ in range(size))
        fds = [chance.choice([end.file, bell]) for _ in range(chance.choice([0, 0, 1, 1, 3, 8]))]
        with contextlib.suppress(BlockingIOError, BrokenPipeError, ConnectionResetError):
            end.say(request, payload, fds, chance.choice([1, 1, 9]))
        desk.turn(0)
        if end.is_gone():
            end.close()
            end = FrontEnd(desk, path)
            if turn % 2:
                ready(end)
        if turn == 500:
            before, mapped = len(os.listdir("/proc/self/fd")), maps()
    end.close()
    os.close(bell)
    desk.until(lambda: port.states[-1][0] == "waiting")
    assert len(os.listdir("/proc/self/fd")) <= before
    assert maps() <= mapped + 2
    wire.send(frame(1))
    arrived = ready(dial())
    wire.send(frame(2))
    arrives(desk, arrived, RECEIVE, frame(2))


def maps():
    with open("/proc/self/maps") as lines:
        return sum("memfd:guest" in line for line in lines)
