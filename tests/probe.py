"""What a guest does in an exercise: `probe.py VERB JSON`, in a namespace or in a QEMU guest; prints what it found as JSON.

It stands alone, on the standard library: a guest has this file and nothing else of ours. An error of the system is an answer, by its name.
"""

import errno
import hashlib
import json
import selectors
import socket
import struct
import sys
import time

BLOCK = 1 << 20
PATIENCE_S = 10


def blocks(seed, size):
    """`size` bytes that only this seed gives, in blocks of which no two are the same."""
    block = hashlib.shake_128(str(seed).encode()).digest(BLOCK)
    for number, at in enumerate(range(0, size, BLOCK)):
        yield (number.to_bytes(8, "big") + block[8:])[: size - at]


def give(connection, seed, size):
    """Send the bytes and the end; returns their sha256."""
    total = hashlib.sha256()
    for block in blocks(seed, size):
        total.update(block)
        connection.sendall(block)
    connection.shutdown(socket.SHUT_WR)
    return total.hexdigest()


def take(connection):
    """Receive to the end; returns the sha256."""
    total = hashlib.sha256()
    while data := connection.recv(BLOCK):
        total.update(data)
    return total.hexdigest()


def family(host):
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def connected(host, port, patience=PATIENCE_S):
    made = socket.socket(family(host))
    made.settimeout(patience)
    made.connect((host, port))
    return made


def swap(host, port, size, first, patience):
    """All of ours and then all of theirs, or the other way; returns the sums of both. Who ends first goes on receiving."""
    with connected(host, port, patience) as connection:
        if first:
            sent = give(connection, "guest", size)
            return sent, take(connection)
        got = take(connection)
        return give(connection, "guest", size), got


def connect(host, port, patience):
    connected(host, port, patience).close()
    return "connected"


def reset(host, port):
    """Reset a connection once the far end has greeted."""
    with connected(host, port) as connection:
        connection.recv(1)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    return "reset"


def listen(host, port):
    """Receive until something ends it."""
    with connected(host, port) as connection:
        while connection.recv(BLOCK):
            pass
    return "end"


def idle(host, port, seconds):
    """Say a word, be silent, say another; returns the answers."""
    with connected(host, port) as connection:
        connection.sendall(b"before")
        before = connection.recv(100)
        silence = selectors.DefaultSelector()
        silence.register(connection, selectors.EVENT_READ)
        if silence.select(seconds):
            return before.decode(), f"not silent: {connection.recv(100)!r}"
        connection.sendall(b"after")
        return before.decode(), connection.recv(100).decode()


def many(host, port, count, at_once):
    """So many short connections, so many at a time: a question, an answer, the end. Returns how many were answered."""
    selector = selectors.DefaultSelector()
    left, answered, failures = count, 0, {}
    end = time.monotonic() + PATIENCE_S
    while (left or selector.get_map()) and time.monotonic() < end:
        while left and len(selector.get_map()) < at_once:
            one = socket.socket(family(host))
            one.setblocking(False)
            one.connect_ex((host, port))
            selector.register(one, selectors.EVENT_WRITE, bytearray())
            left -= 1
        for key, event in selector.select(1):
            one, answer = key.fileobj, key.data
            try:
                if event & selectors.EVENT_WRITE:
                    one.sendall(b"question")
                    selector.modify(one, selectors.EVENT_READ, answer)
                    continue
                if data := one.recv(100):
                    answer += data
                    continue
                answered += answer == b"answer"
            except OSError as error:
                failures[name(error)] = failures.get(name(error), 0) + 1
            selector.unregister(one)
            one.close()
    return failures or answered


def echo(host, port, sizes, patience):
    """Which of these datagrams came back as they were sent. Once one was lost the others are not waited for as long."""
    back = []
    with socket.socket(family(host), socket.SOCK_DGRAM) as one:
        one.connect((host, port))
        one.settimeout(patience)
        for size in sizes:
            data = b"".join(blocks(size, size))
            try:
                one.send(data)
                while one.recv(1 << 17) != data:
                    pass
                back.append(size)
            except TimeoutError:
                one.settimeout(patience / 10)
    return back


def tell(host, port, patience):
    """Send a datagram; returns what comes of it."""
    with socket.socket(family(host), socket.SOCK_DGRAM) as one:
        one.connect((host, port))
        one.settimeout(patience)
        one.send(b"anybody?")
        return one.recv(100).decode()


def name(error):
    return "silence" if isinstance(error, TimeoutError) and error.errno is None else errno.errorcode[error.errno]


VERBS = {verb.__name__: verb for verb in (swap, connect, reset, listen, idle, many, echo, tell)}

if __name__ == "__main__":
    try:
        found = VERBS[sys.argv[1]](*json.loads(sys.argv[2]))
    except OSError as error:
        found = name(error)
    print(json.dumps(found))
