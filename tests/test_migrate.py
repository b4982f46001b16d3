"""shardnet migrate: connections of a user-mode network move to another supervisor in another namespace, and nobody sees it."""

import contextlib
import hashlib
import json
import os
import shlex
import signal
import socket
import subprocess
import threading
import time

import pytest

import deadline
import hosts
import labs
from shardnet import connection, migration

pytestmark = pytest.mark.needs("root", "/dev/net/tun", "ip")
LOT = 200_000_000
RESET_S = 1.0  # issue: within a second


@pytest.fixture
def scene(namespace, lab):
    return hosts.Hosts(lab, namespace, {})


def listening(scene, where, count=1):
    family = socket.AF_INET6 if ":" in where else socket.AF_INET
    with hosts.inside(scene.far):
        listener = socket.create_server((where, 0), family=family, backlog=count)
    listener.settimeout(10)
    return listener


def connected(scene, where=hosts.FAR, count=1):
    """Connections of the guest to the outside: its end and the far one of each."""
    made = []
    with listening(scene, where, count) as listener:
        for _ in range(count):
            with hosts.inside(scene.guest):
                near = socket.create_connection(listener.getsockname()[:2], timeout=10)
            far, _ = listener.accept()
            for one in (near, far):
                one.settimeout(20)
            made.append((near, far))
    return made


def speak(near, far, text=b"hello"):
    """Both ends say something and hear it."""
    for one, other in ((near, far), (far, near)):
        one.sendall(text)
        assert received(other, len(text)) == text


def received(one, count):
    found = b""
    while len(found) < count and (some := one.recv(count - len(found))):
        found += some
    return found


def moved(scene, *options, **more):
    told = json.loads(scene.move(*options, **more))
    print(told)
    return told


def flows(scene, name):
    with scene.labs[name].client() as client:
        shards = [one["name"] for one in client.ports() if one["kind"] == "user"]
        return [flow for shard in shards for flow in client.flows(shard)]


def carried(scene, name):
    return sum(flow["bytes_to_guest"] + flow["bytes_from_guest"] for flow in flows(scene, name))


@contextlib.contextmanager
def running(call, *arguments):
    """Call it beside the block; what it raises is raised at the end."""
    raised = []

    def work():
        try:
            call(*arguments)
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    yield
    thread.join(60)
    assert not thread.is_alive()
    if raised:
        raise raised[0]


@pytest.mark.parametrize("where", [hosts.FAR, hosts.FAR6], ids=["IPv4", "IPv6"])
def test_an_idle_connection_speaks_before_and_after(scene, where):
    ((near, far),) = connected(scene, where)
    with near, far:
        speak(near, far)
        told = moved(scene)
        assert (told["tcp"], told["lost"], told["why"]) == (1, 0, "")
        speak(near, far)
        # What the guest got is counted when it has acknowledged it.
        deadline.until(lambda: flows(scene, "b")[0]["bytes_to_guest"] == 10, "the guest's acknowledgement")
        (flow,) = flows(scene, "b")
        assert (flow["state"], flow["bytes_from_guest"]) == ("established", 10)
        assert flows(scene, "a") == []


def test_a_connection_moves_away_and_back(scene):
    ((near, far),) = connected(scene)
    with near, far:
        for there, here in (("b", "a"), ("a", "b")):
            moved(scene, there=there)
            speak(near, far)
            scene.labs[here].shardnet("migrate", "thaw", "net0")
            scene.labs[here].until_up("net0")


@pytest.mark.needs("iperf3")
@pytest.mark.parametrize("way", [[], ["-R"], ["--bidir"]], ids=["out", "in", "both"])
def test_iperf3_goes_on(scene, way):
    with scene.far.running("iperf3", "-s", "-1", "--forceflush") as server:
        assert "Server listening" in next(line for line in server.stdout if "listening" in line)
        with scene.guest.running("iperf3", "-c", hosts.FAR, "-t", "6", "-J", *way) as client:
            deadline.until(lambda: carried(scene, "a") > 10 << 20, "traffic before")
            told = moved(scene)
            assert told["lost"] == 0 and told["tcp"] >= 2
            # By bytes and not by time: with full queues beside load the silence is seconds.
            before = carried(scene, "b")
            deadline.until(lambda: carried(scene, "b") > before + (10 << 20), "traffic after")
            said, _ = client.communicate(timeout=60)
    assert client.returncode == 0, said
    found = json.loads(said)
    assert "error" not in found, found["error"]
    print([round(8 * interval["sum"]["bytes"] / 1e9, 2) for interval in found["intervals"]])


def transferred(near, far, way, move):
    """Send a lot one way and move what carries it in between; what the move told. It arrives to the byte."""
    data = os.urandom(1 << 20) * (LOT >> 20)
    sender, receiver = (near, far) if way == "out" else (far, near)

    def send():
        sender.sendall(data)
        sender.shutdown(socket.SHUT_WR)

    with near, far, running(send):
        found, count, told, begun = hashlib.sha256(), 0, {}, False
        while some := receiver.recv(1 << 18):
            found.update(some)
            count += len(some)
            if not begun and count > LOT // 3:
                begun = True
                with running(lambda: told.update(move())):
                    # What arrives meanwhile is read: the move is under load.
                    while not told and (some := receiver.recv(1 << 18)):
                        found.update(some)
                        count += len(some)
        assert (count, found.digest()) == (len(data), hashlib.sha256(data).digest())
    return told


@pytest.mark.parametrize("way", ["out", "in"])
@pytest.mark.parametrize("where", [hosts.FAR, hosts.FAR6], ids=["IPv4", "IPv6"])
def test_a_transfer_under_way_arrives_to_the_byte(scene, way, where):
    ((near, far),) = connected(scene, where)
    told = transferred(near, far, way, lambda: moved(scene))
    assert (told["tcp"], told["lost"]) == (1, 0)


def fill(one, data):
    """Send until nothing has been taken for half a second; how much was."""
    one.setblocking(False)
    sent, last = 0, time.monotonic()

    def is_full():
        nonlocal sent, last
        with contextlib.suppress(BlockingIOError):
            while True:
                sent += one.send(data[sent : sent + (1 << 20)])
                last = time.monotonic()
        return time.monotonic() - last > 0.5

    deadline.until(is_full, "full queues", 30)
    one.settimeout(20)
    return sent


def test_what_is_queued_both_ways_moves(scene):
    """Nobody reads at either end, so every queue is full: the kernel's, and what the guest sent beyond it."""
    ((near, far),) = connected(scene)
    with near, far:
        data = os.urandom(64 << 20)
        queued = [(near, far, fill(near, data)), (far, near, fill(far, data))]
        told = moved(scene)
        assert told["tcp"] == 1 and told["bytes"] > 1 << 20
        for _, other, sent in queued:
            assert hashlib.sha256(received(other, sent)).digest() == hashlib.sha256(data[:sent]).digest()
        speak(near, far)


@pytest.mark.parametrize("closer", ["guest", "far", "far unheard"])
def test_a_half_closed_connection_carries_the_other_half_and_ends(scene, closer):
    ((near, far),) = connected(scene)
    with near, far:
        speak(near, far)
        first, second = (near, far) if closer == "guest" else (far, near)
        if closer == "far unheard":
            first.sendall(b"last words")
        first.shutdown(socket.SHUT_WR)
        state = "close-wait" if closer == "guest" else "fin-wait-2"
        deadline.until(lambda: flows(scene, "a")[0]["state"] == state, state)
        moved(scene)
        if closer == "far unheard":
            assert received(second, 10) == b"last words"
        assert second.recv(1) == b""
        second.sendall(b"x" * 100_000)
        assert received(first, 100_000) == b"x" * 100_000
        second.shutdown(socket.SHUT_WR)
        assert first.recv(1) == b""
        deadline.until(lambda: all(flow["state"] == "time-wait" for flow in flows(scene, "b")), "its end")


def test_a_frozen_network_is_silent_and_what_came_meanwhile_is_heard(scene, tmp_path):
    connections = connected(scene, count=3)
    go = tmp_path / "go"
    os.mkfifo(go)
    between = f"read word < {go}; {scene.between('b')}"
    with contextlib.ExitStack() as opened:
        opened.enter_context(open(os.open(go, os.O_RDWR), "rb"))  # so that nobody waits for the other
        for one in (end for both in connections for end in both):
            opened.enter_context(one)
        (near, far), (near_ends, its_far), (its_near, far_ends) = connections
        told = {}
        with running(lambda: told.update(moved(scene, between=between))):
            deadline.until(lambda: "its flows are to move" in scene.labs["a"].said(), "all frozen")
            near.sendall(b"said into the silence")
            far.sendall(b"and this too")
            near_ends.shutdown(socket.SHUT_WR)
            far_ends.shutdown(socket.SHUT_WR)
            # Each has said it twice at least, and nobody has answered.
            deadline.until(
                lambda: all(connection.repeats(one) >= 2 for one in (near, far, near_ends, far_ends)), "repeats"
            )
            go.write_text("now\n")
        assert received(far, 21) == b"said into the silence"
        assert received(near, 12) == b"and this too"
        assert its_far.recv(1) == b"" and its_near.recv(1) == b""


def test_five_hundred_connections_move_at_once(scene):
    connections = connected(scene, count=500)
    try:
        told = moved(scene)
        assert (told["tcp"], told["lost"]) == (500, 0)
        for near, far in connections:
            speak(near, far)
    finally:
        for one in (end for both in connections for end in both):
            one.close()


@pytest.mark.parametrize("where", [hosts.FAR, hosts.FAR6], ids=["IPv4", "IPv6"])
def test_a_port_of_udp_is_the_same_one_for_the_outside(scene, where):
    family = socket.AF_INET6 if ":" in where else socket.AF_INET
    with hosts.inside(scene.far):
        far = socket.socket(family, socket.SOCK_DGRAM)
        far.bind((where, 0))
    with hosts.inside(scene.guest):
        near = socket.socket(family, socket.SOCK_DGRAM)
    with near, far:
        for one in (near, far):
            one.settimeout(10)
        near.sendto(b"question", far.getsockname()[:2])
        _, peer = far.recvfrom(100)
        far.sendto(b"answer", peer)
        assert near.recv(100) == b"answer"
        assert moved(scene)["udp"] == 1
        far.sendto(b"and one more", peer)  # the guest has said nothing since
        assert near.recv(100) == b"and one more"
        near.sendto(b"thanks", far.getsockname()[:2])
        assert far.recvfrom(100) == (b"thanks", peer)


def test_without_the_helper_both_ends_are_reset_within_a_second(scene):
    connections = connected(scene, count=20)
    with contextlib.ExitStack() as opened:
        for one in (end for both in connections for end in both):
            opened.enter_context(one)
        began = time.monotonic()
        told = moved(scene, "--no-helper")
        assert (told["tcp"], told["lost"]) == (0, 20) and "no helper" in told["why"]
        for one in (end for both in connections for end in both):
            with pytest.raises(ConnectionResetError):
                one.recv(1)
        took = time.monotonic() - began
        print(f"all reset {1000 * took:.0f} ms after the command was begun")
        assert took < RESET_S + 1  # the command's own start among it
    ((near, far),) = connected(scene)  # by the other lab
    with near, far:
        speak(near, far)


def test_what_the_target_refuses_goes_on_where_it_was(namespace, lab):
    scene = hosts.Hosts(lab, namespace, {"b": "max-flows = 16"})
    connections = connected(scene, count=13)  # three quarters of 16 are 12
    with contextlib.ExitStack() as opened:
        for one in (end for both in connections for end in both):
            opened.enter_context(one)
        near, far = connections[0]
        with running(far.sendall, os.urandom(20_000_000)):
            scene.move(status=1)
            assert len(received(near, 20_000_000)) == 20_000_000
        for near, far in connections:
            speak(near, far)
        assert len(flows(scene, "a")) == 13 and flows(scene, "b") == []
        assert scene.labs["b"].port("net0")["state"] == scene.labs["a"].port("net0")["state"] == "up"
        for one in connections.pop():
            one.close()
        deadline.until(lambda: all(f["state"] == "established" for f in flows(scene, "a")) or None, "one fewer", 20)
        assert moved(scene)["tcp"] == 12
        for near, far in connections:
            speak(near, far)


ENDS, TALKS = ["true"], ["sh", "-c", "echo nonsense; cat >/dev/null"]


@pytest.mark.parametrize("fails", ["ends", "talks", "dies", "between", "no helper there"])
def test_whoever_fails_in_the_middle_the_flows_go_on_where_they_were(scene, fails):
    ((near, far),) = connected(scene)
    a, b = scene.labs["a"], scene.labs["b"]
    with near, far:
        if fails == "between":
            scene.move(between="exit 7", status=1)
        elif fails == "no helper there":
            scene.move(receive=("--no-helper",), status=1)
        elif fails == "dies":  # it has the flows, and does not live to say so
            dies = f"exec 3<&0; {shlex.join(scene.receive())} <&3 | head -n 1; exec 3<&-; exit 1"
            a.shardnet("migrate", "move", "net0", "--", "sh", "-c", dies, status=1)
        else:
            a.shardnet("migrate", "move", "net0", "--", *(ENDS if fails == "ends" else TALKS), status=1)
        speak(near, far, os.urandom(1 << 18))
        for one in (a, b):
            deadline.until(lambda one=one: one.port("net0")["state"] == "up", "both as before")
        assert moved(scene)["tcp"] == 1
        speak(near, far)


def test_a_worker_that_dies_while_it_is_frozen_resets_the_flows(scene):
    ((near, far),) = connected(scene)
    with near, far:
        frozen(scene)
        os.kill(scene.labs["a"].workers()["net0"], signal.SIGKILL)
        with pytest.raises(ConnectionResetError):
            near.recv(1)
        far.sendall(b"hello?")  # it hears so when it speaks: a socket in repair mode ends without a word
        with pytest.raises(ConnectionResetError):
            far.recv(1)


def test_a_frozen_network_goes_on_by_itself_when_nobody_says_more(scene):
    ((near, far),) = connected(scene)
    with near, far:
        frozen(scene, "--hold", "1")
        near.sendall(b"patience")
        assert received(far, 8) == b"patience"
        assert "nobody has said how the migration goes on" in scene.labs["a"].said()


def test_the_steps_by_hand(scene, tmp_path):
    ((near, far),) = connected(scene)
    with near, far:
        scene.labs["b"].shardnet("migrate", "wait", "net0")
        state = frozen(scene)
        assert scene.labs["a"].shardnet("migrate", "freeze", "net0", status=2) == ""  # it is frozen already
        for command in (*scene.routing("b"), *scene.plugging("b")):
            subprocess.run(command, check=True)
        restored(scene, state)
        speak(near, far)
        scene.labs["a"].shardnet("migrate", "release", "net0")
        speak(near, far)
        assert scene.labs["a"].port("net0")["state"] == "waiting"


def frozen(scene, *options):
    """The state of a's flows, which are frozen."""
    a = scene.labs["a"]
    ran = subprocess.run(
        [labs.SHARDNET, "migrate", "freeze", "-q", *options, "net0"],
        env=a.environment, stdin=subprocess.DEVNULL, capture_output=True, timeout=60,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def restored(scene, state, status=0):
    """Give b a state; what it says."""
    ran = subprocess.run(
        [labs.SHARDNET, "migrate", "restore", "net0"],
        env=scene.labs["b"].environment, input=state, capture_output=True, timeout=60,
    )  # fmt: skip
    assert ran.returncode == status, ran.stderr
    return ran.stderr.decode()


def test_a_damaged_state_is_refused_whole_and_says_why(scene):
    ((near, far),) = connected(scene)
    with near, far:
        state = frozen(scene)
        head, (section,) = migration.unpack(state)

        def other(**fields):
            return migration.pack({**head, **fields}, [section])

        wrong = {
            "nothing came": b"",
            "cut: not even its beginning is there": state[:9],
            "no state of a network's flows": b"GIF89a" + state[6:],
            "a state of version 9, this shardnet knows 1": state[:7] + b"\x09" + state[8:],
            "a state of 18446744073709551615 bytes": state[:8] + b"\xff" * 8 + state[16:],
            f"cut: {len(state) - 1} bytes of {len(state)}": state[:-1],
            "damaged: its checksum is wrong": state[:60] + bytes((state[60] ^ 1,)) + state[61:],
            "damaged: no state of a network's flows": migration.pack(head, [section[:-1]]),
            "damaged: no leases in its head": other(leases=[1]),
            "is here already": migration.pack({**head, "handed": [0, 0], "hostfwd": [[], []]}, [section, section]),
            "damaged: its head is of another number of sections": migration.pack(head, [section, section]),
            "damaged: no numbers of sockets in its head": other(handed=[-1]),
            "damaged: no forwards in its head": other(hostfwd=[["x"]]),
        }
        for why, bad in wrong.items():
            assert why in restored(
                scene,
                bad,
                status=1 if why != "damaged: no state of a network's flows" and why != "is here already" else 2,
            ), why
        assert flows(scene, "b") == [] and scene.labs["b"].port("net0")["state"] == "up"
        scene.labs["a"].shardnet("migrate", "thaw", "net0")
        speak(near, far)


def test_a_network_of_other_addresses_refuses(namespace, lab):
    scene = hosts.Hosts(lab, namespace, {"b": "net = 10.0.3.0/24"})
    ((near, far),) = connected(scene)
    with near, far:
        assert "10.0.2.2/24 for IPv4 there, and 10.0.3.2/24 here" in restored(scene, frozen(scene), status=2)


@pytest.mark.parametrize(("here", "there"), [(1, 3), (3, 2), (2, 1)])
def test_networks_may_have_other_numbers_of_shards(namespace, lab, here, there):
    scene = hosts.Hosts(lab, namespace, {"a": f"shards = {here}", "b": f"shards = {there}"})
    connections = connected(scene, count=30)
    with contextlib.ExitStack() as opened:
        for one in (end for both in connections for end in both):
            opened.enter_context(one)
        assert moved(scene)["tcp"] == 30
        for near, far in connections:
            speak(near, far)


def test_connections_that_came_by_a_forward_move_and_those_that_cannot_are_reset(namespace, lab, tmp_path):
    path = tmp_path / "served"
    served = f"hostfwd = tcp:{hosts.MOVES}:8000-:9000\nguestfwd = tcp:10.0.2.100:80-unix:{path}"
    scene = hosts.Hosts(lab, namespace, {"a": served, "b": "hostfwd = tcp::8000-:9000"})
    with contextlib.ExitStack() as opened:
        enter = opened.enter_context
        with hosts.inside(scene.guest):
            inner = enter(socket.create_server((hosts.GUEST, 9000)))
        with hosts.inside(scene.far):
            client = enter(socket.create_connection((hosts.MOVES, 8000), timeout=10))
        guest = enter(inner.accept()[0])
        guest.settimeout(10)
        # To the host's loopback, and to a unix socket.
        with hosts.inside(scene.hosts["a"]):
            loopback = enter(socket.create_server(("127.0.0.1", 0)))
        unix = enter(socket.socket(socket.AF_UNIX))
        unix.bind(str(path))
        unix.listen()
        lost = []
        for where, listener in ((("10.0.2.2", loopback.getsockname()[1]), loopback), (("10.0.2.100", 80), unix)):
            with hosts.inside(scene.guest):
                near = enter(socket.create_connection(where, timeout=10))
            lost += [near, enter(listener.accept()[0])]
        told = moved(scene)
        assert (told["tcp"], told["lost"]) == (1, 2)
        speak(guest, client)
        for one in lost[:3]:
            one.settimeout(10)
            with pytest.raises(ConnectionResetError):
                one.recv(1)
        assert lost[3].recv(1) == b""  # a unix socket knows no reset
        with hosts.inside(scene.far):
            again = enter(socket.create_connection((hosts.MOVES, 8000), timeout=10))
        speak(enter(inner.accept()[0]), again)


def test_leases_go_along(scene):
    mac = bytes.fromhex("525400000099")
    with scene.labs["a"].client() as client:
        client.ask(
            "net0.dhcp",
            "adopt",
            lines=[f"{int(time.time()) + 3000} 10.0.2.15 {mac.hex(':')} bound 6801{mac.hex()} vm1"],
        )
    moved(scene)
    with scene.labs["b"].client() as client:
        (lease,) = client.rows("net0.dhcp", "leases")
    assert (lease["address"], lease["mac"], lease["name"], lease["state"]) == (
        "10.0.2.15",
        mac.hex(":"),
        "vm1",
        "bound",
    )


def test_a_helper_that_listens_serves_those_it_knows(scene, tmp_path):
    path = tmp_path / "repair.sock"
    helper = subprocess.Popen([hosts.REPAIR, path, "daemon"])
    try:
        deadline.until(path.exists, "the helper")
        ((near, far),) = connected(scene)
        with near, far:
            assert moved(scene, "--helper", str(path), receive=("--helper", str(path)))["tcp"] == 1
            speak(near, far)
        assert asked_by(65534, path, b"+") == b""  # nobody
        assert asked_by(1, path, b"+") == b"\0"  # daemon
        with socket.socket(socket.AF_UNIX) as none, socket.socket(type=socket.SOCK_DGRAM) as udp:
            for one in (none, udp):
                assert asked(path, b"+" + bytes(8), one) == b"\x5b"  # EPROTOTYPE
        assert asked(path, b"x") == asked(path, b"+12345678") == b"\x4a"  # EBADMSG
    finally:
        helper.kill()
        helper.wait()


def asked(path, data, *fds):
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as client:
        client.settimeout(10)
        client.connect(str(path))
        with contextlib.suppress(ConnectionError):
            socket.send_fds(client, [data], [one.fileno() for one in fds])
            return client.recv(10)
        return b""


def asked_by(uid, path, data):
    """The answer that this user gets."""
    reader, writer = os.pipe()
    path.parent.chmod(0o711)
    for above in path.parent.parents:
        with contextlib.suppress(PermissionError):
            above.chmod(above.stat().st_mode | 0o111)
    if not (child := os.fork()):
        os.setresuid(uid, uid, uid)
        os.write(writer, asked(path, data) or b"!")
        os._exit(0)
    os.waitpid(child, 0)
    os.close(writer)
    with os.fdopen(reader, "rb") as answer:
        return answer.read().rstrip(b"!")
