"""shardnet migrate between two labs of one network namespace: the sockets themselves are handed over, and nothing else is needed."""

import contextlib
import os
import shlex
import socket

import pytest

import deadline
import hosts
from test_migrate import connected, flows, moved, received, running, speak, transferred

pytestmark = pytest.mark.needs("root", "/dev/net/tun", "ip")
NO_HELPER = ("--no-helper",)  # nor is one needed


@pytest.fixture
def scene(namespace, lab):
    made = hosts.Hosts(lab, namespace, {})
    made.another(lab, "c", "a")
    return made


def handed(scene, there="c", here="a", **more):
    told = moved(scene, *NO_HELPER, there=there, here=here, receive=NO_HELPER, **more)
    assert told["way"] == "handed"
    return told


@pytest.mark.parametrize("where", [hosts.FAR, hosts.FAR6], ids=["IPv4", "IPv6"])
def test_connections_move_to_a_lab_beside_theirs_and_back(scene, where):
    ((near, far),) = connected(scene, where)
    with near, far:
        for there, here in (("c", "a"), ("a", "c")):
            told = handed(scene, there, here)
            assert (told["tcp"], told["lost"], told["why"]) == (1, 0, "")
            speak(near, far)
            assert flows(scene, here) == [] and len(flows(scene, there)) == 1
            scene.labs[here].shardnet("migrate", "thaw", "net0")
            scene.labs[here].until_up("net0")
        near.close()
        assert far.recv(1) == b""
        far.close()
        deadline.until(lambda: all(flow["state"] == "time-wait" for flow in flows(scene, "a")), "its end")


@pytest.mark.parametrize("way", ["out", "in"])
def test_a_transfer_under_way_arrives_to_the_byte(scene, way):
    ((near, far),) = connected(scene)
    told = transferred(near, far, way, lambda: handed(scene))
    assert (told["tcp"], told["lost"]) == (1, 0)


@pytest.mark.parametrize(("here", "there"), [(1, 3), (3, 2)])
def test_what_repair_cannot_move_goes_too_into_other_numbers_of_shards(namespace, lab, here, there):
    """Connections to the host's own loopback; 600 of them, more than go in a message."""
    scene = hosts.Hosts(lab, namespace, {"a": f"shards = {here}"})
    scene.another(lab, "c", "a", f"shards = {there}")
    with contextlib.ExitStack() as opened:
        with hosts.inside(scene.hosts["a"]):
            listener = opened.enter_context(socket.create_server(("127.0.0.1", 0), backlog=600))
        both = []
        for _ in range(600):
            with hosts.inside(scene.guest):
                near = opened.enter_context(socket.create_connection(("10.0.2.2", listener.getsockname()[1])))
            far = opened.enter_context(listener.accept()[0])
            for one in (near, far):
                one.settimeout(20)
            both.append((near, far))
        told = handed(scene)
        assert (told["tcp"], told["lost"]) == (600, 0)
        for near, far in both:
            speak(near, far)


def test_forwards_go_along_with_who_waits_at_them_and_datagrams(namespace, lab, tmp_path):
    served = "hostfwd = tcp::8000-:9000\n    udp::8001-:9001\n    tcp::8002-8003-:9002"
    scene = hosts.Hosts(lab, namespace, {"a": served})
    scene.another(lab, "c", "a")
    with contextlib.ExitStack() as opened:
        enter = opened.enter_context
        with hosts.inside(scene.guest):
            inner = enter(socket.create_server((hosts.GUEST, 9000)))
            guest_udp = enter(socket.socket(type=socket.SOCK_DGRAM))
            guest_udp.bind((hosts.GUEST, 9001))
            asks = enter(socket.socket(type=socket.SOCK_DGRAM))
        with hosts.inside(scene.far):
            client = enter(socket.create_connection((hosts.MOVES, 8000), timeout=10))
            datagrams = enter(socket.socket(type=socket.SOCK_DGRAM))
            far = enter(socket.socket(type=socket.SOCK_DGRAM))
            far.bind((hosts.FAR, 0))
        guest = enter(inner.accept()[0])
        for one in (guest, guest_udp, datagrams, far, asks):
            one.settimeout(10)
        asks.sendto(b"question", far.getsockname())
        _, peer = far.recvfrom(100)
        go, here = tmp_path / "go", scene.labs["a"]
        os.mkfifo(go)
        enter(open(os.open(go, os.O_RDWR), "rb"))  # so that nobody waits for the other
        told = {}
        with running(lambda: told.update(handed(scene, between=f"read word < {go}; {scene.between('c')}"))):
            deadline.until(lambda: "its flows are to move" in here.said(), "all frozen")
            with hosts.inside(scene.far):
                waits = enter(socket.create_connection((hosts.MOVES, 8000), timeout=10))
            far.sendto(b"answer", peer)
            go.write_text("now\n")
        assert (told["tcp"], told["udp"], told["lost"]) == (1, 1, 0)
        speak(guest, client)
        assert asks.recv(100) == b"answer"
        speak(enter(inner.accept()[0]), waits)
        with hosts.inside(scene.far):
            again = enter(socket.create_connection((hosts.MOVES, 8000), timeout=10))
        speak(enter(inner.accept()[0]), again)
        datagrams.sendto(b"knock", (hosts.MOVES, 8001))
        heard, who = guest_udp.recvfrom(100)
        guest_udp.sendto(heard, who)
        assert datagrams.recv(100) == b"knock"
        rules = {row["rule"] for row in scene.labs["c"].json("forward", "list")}
        assert len(rules) == 3 and scene.labs["a"].json("forward", "list") == []


@pytest.mark.parametrize("fails", ["ends", "dies", "between", "refuses"])
def test_whoever_fails_in_the_middle_the_flows_go_on_where_they_were(namespace, lab, fails):
    scene = hosts.Hosts(lab, namespace, {"a": "hostfwd = tcp::8000-:9000"})
    scene.another(lab, "c", "a", "restrict = on" if fails == "refuses" else "")
    ((near, far),) = connected(scene)
    a, c = scene.labs["a"], scene.labs["c"]
    with near, far:
        if fails == "between":
            scene.move(*NO_HELPER, there="c", here="a", between="exit 7", status=1)
        elif fails == "dies":
            dies = f"exec 3<&0; {shlex.join(scene.receive('c'))} <&3 | head -n 1; exec 3<&-; exit 1"
            a.shardnet("migrate", "move", "net0", "--", "sh", "-c", dies, status=1)
        elif fails == "refuses":
            scene.move(*NO_HELPER, there="c", here="a", status=1)
        else:
            a.shardnet("migrate", "move", "net0", "--", "true", status=1)
        speak(near, far, os.urandom(1 << 18))
        for one in (a, c):
            deadline.until(lambda one=one: one.port("net0")["state"] == "up", "both as before")
        assert len(flows(scene, "a")) == 1 and flows(scene, "c") == []
        assert c.json("forward", "list") == []
        with hosts.inside(scene.guest):
            inner = socket.create_server((hosts.GUEST, 9000))
        with inner, hosts.inside(scene.far), socket.create_connection((hosts.MOVES, 8000), timeout=10) as client:
            guest, _ = inner.accept()
            with guest:
                speak(guest, client)
        if fails != "refuses":
            assert handed(scene)["tcp"] >= 1
            speak(near, far)


def test_what_waits_for_the_guest_and_what_ended_meanwhile_arrives(scene, tmp_path):
    (near, far), (gone, its_far), (ends, far_ends) = connected(scene, count=3)
    go = tmp_path / "go"
    os.mkfifo(go)
    # Open here too, so that nobody waits for the other.
    with open(os.open(go, os.O_RDWR), "rb"), near, far, gone, its_far, ends, far_ends:
        told = {}
        with running(lambda: told.update(handed(scene, between=f"read word < {go}; {scene.between('c')}"))):
            deadline.until(lambda: "its flows are to move" in scene.labs["a"].said(), "all frozen")
            far.sendall(b"into the silence")
            its_far.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            its_far.close()  # a reset
            far_ends.shutdown(socket.SHUT_WR)
            go.write_text("now\n")
        assert received(near, 16) == b"into the silence"
        with pytest.raises(ConnectionResetError):
            gone.recv(1)
        assert ends.recv(1) == b""
