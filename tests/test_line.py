"""The line between supervisor and worker: records, descriptors, and a far side that does not read."""

import os
import socket
from collections.abc import Iterator

import pytest

from shardnet import line


@pytest.fixture
def ends() -> Iterator[tuple[line.Line, line.Line]]:
    one, other = map(line.Line, socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET))
    yield one, other
    one.close()
    other.close()


def test_a_descriptor_arrives_with_its_message(ends: tuple[line.Line, line.Line]) -> None:
    reader, writer = os.pipe()
    ends[0].send({"op": "bare"})
    ends[0].send({"op": "keep"}, [writer])
    os.close(writer)
    assert ends[1].receive() == ({"op": "bare"}, [])
    message, fds = ends[1].receive()
    assert message == {"op": "keep"}
    os.write(fds[0], b"x")
    assert os.read(reader, 1) == b"x"
    for fd in (reader, *fds):
        os.close(fd)


def test_what_the_far_side_does_not_read_is_kept_in_order(ends: tuple[line.Line, line.Line]) -> None:
    for number in range(1000):
        ends[0].send({"n": number})
    assert not ends[0].flush()
    seen = []
    while len(seen) < 1000:
        while (received := ends[1].receive()) is not None:
            seen.append(received[0]["n"])
        ends[0].flush()
    assert seen == list(range(1000))


def test_a_far_side_that_never_reads_costs_no_more_than_the_backlog(ends: tuple[line.Line, line.Line]) -> None:
    reader, writer = os.pipe()
    for _ in range(line.BACKLOG_MAX + 500):
        ends[0].send({"op": "log"})
    before = len(os.listdir("/proc/self/fd"))
    ends[0].send({"op": "keep"}, [writer])
    assert len(os.listdir("/proc/self/fd")) == before
    os.close(reader)
    os.close(writer)


def test_the_end_of_the_far_side_is_told_after_its_last_message(ends: tuple[line.Line, line.Line]) -> None:
    ends[0].send({"op": "last"})
    ends[0].close()
    assert ends[1].receive() == ({"op": "last"}, [])
    with pytest.raises(EOFError):
        ends[1].receive()


def test_sending_to_a_far_side_that_ended_is_no_error(ends: tuple[line.Line, line.Line]) -> None:
    ends[1].close()
    ends[0].send({"op": "state"})
    assert ends[0].flush()


def test_garbage_from_a_worker_is_an_error_not_a_message(ends: tuple[line.Line, line.Line]) -> None:
    ends[0].sock.send(b"\xc1\xc1")
    with pytest.raises(ValueError, match="not a message"):
        ends[1].receive()
