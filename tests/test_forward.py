"""hostfwd and guestfwd of a running lab, and its flows: with a namespace as the guest and sockets of this host as clients."""

import contextlib
import json
import os
import signal
import socket

import pytest

import deadline
import labs
from shardnet import control, forwards, lab, links, options
from shardnet.workers import tap, user

NETWORK = "[user net0]\n{more}\n[tap inside]\nifname = inside\nnetns = {netns}\naddress = 10.0.2.15/24\n"


@pytest.fixture
def running(lab, namespace):
    """A lab with a network and a namespace in it."""
    netns = namespace("inside")
    started = lab(NETWORK.format(netns=netns.name, more=""))
    started.until_up("net0", "inside")
    started.netns = netns
    netns.run("ip", "address", "add", "fec0::15/64", "dev", "inside", "nodad")
    return started


@contextlib.contextmanager
def serving(running, port, family=socket.AF_INET, kind=socket.SOCK_STREAM):
    """A socket in the namespace that listens."""
    with links.namespace(running.netns.name):
        made = socket.socket(family, kind)
    with made:
        made.bind(("", port))
        made.settimeout(20)
        if kind == socket.SOCK_STREAM:
            made.listen()
        yield made


def greeted(server, client):
    """Is whoever the server accepts the client?"""
    client.settimeout(20)
    accepted, _ = server.accept()
    with accepted, client:
        accepted.sendall(b"hello")
        return client.recv(5) == b"hello"


def rules(running):
    return {row["rule"]: row for row in running.json("forward", "list")}


@pytest.mark.needs("root", "/dev/net/tun")
def test_a_rule_is_added_listed_counted_and_removed(running):
    said = running.shardnet("forward", "add", "tcp:127.0.0.1:0-:8000")
    port = int(said.split()[2].rpartition(":")[2])
    assert said == f"net0: hostfwd 127.0.0.1:{port} to 10.0.2.15:8000\n"
    assert running.shardnet("forward", "add", ":127.0.0.1:0-:8000").endswith(" (was there already)\n")
    with serving(running, 8000) as server:
        assert greeted(server, socket.create_connection(("127.0.0.1", port)))
        assert rules(running)["tcp:127.0.0.1:0-:8000"]["taken"] == 1
        held = socket.create_connection(("127.0.0.1", port))
        accepted, _ = server.accept()
        assert running.shardnet("forward", "remove", "tcp:127.0.0.1:0").startswith(
            "net0: tcp:127.0.0.1:0-:8000 removed"
        )
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port))
        held.sendall(b"still")  # what is open goes on
        assert accepted.recv(5) == b"still"
        held.close()
        accepted.close()
    running.shardnet("forward", "remove", "tcp:127.0.0.1:0", status=3)


@pytest.mark.needs("root", "/dev/net/tun")
def test_rules_of_every_form_carry(running, tmp_path):
    path = tmp_path / "in.sock"
    first = labs.free_port()
    echo = "guestfwd=tcp:10.0.2.100:7-cmd:cat"
    running.shardnet(
        "forward", "add", f"unix:{path}-:8000", f"tcp:127.0.0.1:{first}-{first + 2}-:9000", "tcp:[::1]:0-[fec0::15]:8006",
        "udp:127.0.0.1:0-:5353", "tcp:127.0.0.1:987-:8000", echo,
    )  # fmt: skip
    where = {rule: row["listens"] for rule, row in rules(running).items()}
    with serving(running, 8000) as server:
        client = socket.socket(socket.AF_UNIX)
        client.connect(str(path))
        assert greeted(server, client)
        assert greeted(server, socket.create_connection(("127.0.0.1", 987)))  # a port that its worker may not bind
    with serving(running, 9002) as server:
        assert greeted(server, socket.create_connection(("127.0.0.1", first + 2)))
    with serving(running, 8006, socket.AF_INET6) as server:
        port = int(where["tcp:[::1]:0-[fec0::15]:8006"].rpartition(":")[2])
        assert greeted(server, socket.create_connection(("::1", port)))
    with serving(running, 5353, kind=socket.SOCK_DGRAM) as server, socket.socket(type=socket.SOCK_DGRAM) as client:
        port = int(where["udp:127.0.0.1:0-:5353"].rpartition(":")[2])
        client.sendto(b"who is there?", ("127.0.0.1", port))
        data, far = server.recvfrom(100)
        server.sendto(data.upper(), far)
        client.settimeout(20)
        assert client.recv(100) == b"WHO IS THERE?"
    with links.namespace(running.netns.name):
        guest = socket.create_connection(("10.0.2.100", 7), timeout=20)
    guest.sendall(b"echo")
    assert guest.recv(4) == b"echo"
    counts = {rule: row["taken"] for rule, row in rules(running).items()}
    assert list(counts.values()) == [1, 1, 1, 1, 1, 1], counts
    assert rules(running)["tcp:10.0.2.100:7-cmd:cat"]["open"] == 1
    guest.close()
    running.shardnet("forward", "remove", f"unix:{path}", "guestfwd=tcp:10.0.2.100:7")
    assert not path.exists()
    with links.namespace(running.netns.name), pytest.raises(OSError):
        socket.create_connection(("10.0.2.100", 7), timeout=1)


@pytest.mark.needs("root", "/dev/net/tun")
def test_rules_outlive_their_worker_and_what_the_file_does_not_say_outlives_a_reload(running):
    one, two, three = (labs.free_port() for _ in range(3))
    running.shardnet("forward", "add", f"tcp:127.0.0.1:{one}-:8000")
    pid = running.workers()["net0"]
    os.kill(pid, signal.SIGKILL)
    deadline.until(lambda: running.workers()["net0"] not in (None, pid), "a new worker")
    running.until_up("net0")
    with serving(running, 8000) as server:
        assert greeted(server, socket.create_connection(("127.0.0.1", one)))
        pid = running.workers()["net0"]
        more = f"hostfwd = tcp:127.0.0.1:{two}-:8000\n  tcp:127.0.0.1:{three}-:8000\n"
        running.file.write_text(NETWORK.format(netns=running.netns.name, more=more))
        assert "change" in running.shardnet("reload")
        running.file.write_text(
            NETWORK.format(netns=running.netns.name, more=more.replace(f"\n  tcp:127.0.0.1:{three}-:8000", ""))
        )
        running.shardnet("reload")
        assert set(rules(running)) == {f"tcp:127.0.0.1:{port}-:8000" for port in (one, two)}
        assert running.shardnet("reload", "--dry-run") == "nothing differs\n"
        assert greeted(server, socket.create_connection(("127.0.0.1", two)))
    assert running.workers()["net0"] == pid  # nobody was restarted for it


@pytest.mark.needs("root", "/dev/net/tun")
def test_what_cannot_be_bound_is_refused_and_leaves_nothing_behind(running):
    free = labs.free_port()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with running.client() as client, pytest.raises(control.Error, match="Address already in use"):
            client.forward_add(f"tcp:127.0.0.1:{free}-:1", f"tcp:127.0.0.1:{port}-:2")
    assert rules(running) == {}
    deadline.until(lambda: socket.socket().connect_ex(("127.0.0.1", free)) != 0, "the first one closed again")
    running.shardnet("forward", "add", f"tcp:127.0.0.1:{free}-:1")


@pytest.mark.parametrize(
    ("rule", "code", "message"),
    [
        ("tcp::80", 2, "hostfwd=tcp::80: no - between the host's side and the guest's"),
        ("guestfwd=udp:10.0.2.9:1-cmd:cat", 2, "guestfwd=udp:10.0.2.9:1-cmd:cat: only TCP is forwarded to a service"),
        ("tcp:127.0.0.1:4000-10.9.9.9:80", 1, "10.9.9.9 is in no network of the guests"),
        ("tcp:127.0.0.1:4000-10.0.2.300:80", 2, "10.0.2.300 is no address"),
    ],
)
def test_a_wrong_rule_is_named_with_the_reason(lab, rule, code, message):
    running = lab("[user net0]\n")
    with running.client() as client, pytest.raises(control.Error) as wrong:
        client.forward_add(rule)
    assert wrong.value.code == code and message in str(wrong.value)
    assert client.lab and rules(running) == {}


def test_two_rules_at_one_place_and_none_to_remove(lab):
    running = lab("[user net0]\n[user net1]\nswitch = other\n")
    running.shardnet("forward", "add", "tcp:127.0.0.1:0-:80", status=2)  # which of the two?
    port = labs.free_port()
    running.shardnet("forward", "add", "-p", "net1", f"tcp:127.0.0.1:{port}-:80")
    running.shardnet("forward", "add", "-p", "net1", f"tcp:127.0.0.1:{port}-:81", status=4)
    running.shardnet("forward", "remove", "-p", "net0", f"tcp:127.0.0.1:{port}", status=3)


def test_a_rule_may_name_a_lease():
    rule = forwards.host("tcp::2222-VM1:22")
    assert (rule.name, rule.guest, str(rule)) == ("vm1", None, "tcp::2222-vm1:22")
    with pytest.raises(options.Wrong, match="is forwarded already"):
        options.read(user, {"hostfwd": "tcp::2222-vm1:22\ntcp::2000-3000-:1"})


@pytest.mark.needs("root", "/dev/net/tun")
def test_a_forward_to_a_name_is_refused_until_somebody_has_its_lease(desk, namespace):
    netns = namespace("inside")
    place = desk.add(user, dhcp="off", hostfwd="tcp:127.0.0.1:0-vm1:22\nudp:127.0.0.1:0-vm1:53")
    desk.add(tap, ifname="inside", netns=netns.name, address="10.0.2.77/24")
    tcp, udp = (one.sockets[0].getsockname() for one in place.carried.inward.values())

    def asked():
        return [(row["taken"], row["refused"]) for row in place.carried.asked("forwards", {})]

    with socket.create_connection(tcp) as refused, socket.socket(type=socket.SOCK_DGRAM) as lost:
        lost.sendto(b"anybody?", udp)
        refused.setblocking(False)
        desk.until(lambda: asked() == [(0, 1), (0, 1)])
        with pytest.raises(ConnectionResetError):
            refused.recv(1)
    place.carried.leased("given", "10.0.2.77", "52:54:00:12:34:56", "VM1")
    with links.namespace(netns.name):
        server = socket.create_server(("10.0.2.77", 22))
        names = socket.socket(type=socket.SOCK_DGRAM)
        names.bind(("10.0.2.77", 53))
    for one in (server, names):
        one.setblocking(False)
    with server, names, socket.create_connection(tcp), socket.socket(type=socket.SOCK_DGRAM) as client:
        client.sendto(b"vm1?", udp)

        def came(call):
            with contextlib.suppress(BlockingIOError):
                return call()

        desk.until(lambda: came(server.accept))[0].close()
        assert desk.until(lambda: came(lambda: names.recv(10))) == b"vm1?"
        assert asked() == [(1, 1), (1, 1)]
    place.carried.leased("expired", "10.0.2.77", "52:54:00:12:34:56", "VM1")
    with socket.create_connection(tcp) as refused:
        desk.until(lambda: asked()[0] == (1, 2))


@pytest.mark.needs("root", "/dev/net/tun")
def test_a_unix_socket_may_be_forwarded_to_whoever_has_a_lease(desk, namespace, tmp_path):
    netns = namespace("inside")
    path = str(tmp_path / "vm1.sock")
    place = desk.add(user, dhcp="off", hostfwd=f"unix:{path}-vm1:80")
    desk.add(tap, ifname="inside", netns=netns.name, address="10.0.2.77/24")

    def client():
        made = socket.socket(socket.AF_UNIX)
        made.connect(path)
        return made

    def counts():
        return [(row["taken"], row["refused"]) for row in place.carried.asked("forwards", {})]

    with client():
        desk.until(lambda: counts() == [(0, 1)])
    place.carried.leased("given", "10.0.2.77", "52:54:00:12:34:56", "vm1")
    with links.namespace(netns.name):
        server = socket.create_server(("10.0.2.77", 80))
    server.setblocking(False)

    def accepted():
        with contextlib.suppress(BlockingIOError):
            return server.accept()

    with server, client() as one:
        one.sendall(b"to whom?")
        guest, peer = desk.until(accepted)
        assert peer[0] == "10.0.2.2"
        desk.until(lambda: counts() == [(1, 1)])
        guest.sendall(b"to vm1")
        one.setblocking(False)

        def heard():
            with contextlib.suppress(BlockingIOError):
                return one.recv(10)

        assert desk.until(heard) == b"to vm1"
        guest.close()


def test_leases_reach_the_networks_of_their_switch_again_after_a_restart(play):
    def told(worker):
        return [lease for message in worker.sent if message["op"] == "leases" for lease in message["leases"]]

    dhcp, (teller,) = play.opened("a")
    networks = []
    for name, given in (("net0", {}), ("net1", {"switch": "other"})):
        port = play.table.new(lab.section("user", name, given))
        play.crew.add([port])
        play.processes[-1].says("opened", port)
        networks.append(port)
    near, far = play.processes[-2:]
    lease = {"address": "10.0.2.15", "mac": "52:54:00:12:34:56", "until": 0}
    dhcp.says("lease", teller, what="given", name="vm1", **lease)
    dhcp.says("lease", teller, what="given", name="no host\n", **{**lease, "address": "10.0.2.16"})
    dhcp.says("lease", teller, what="taken", name="vm2", **lease)
    dhcp.says("lease", teller, what="released", name="vm1", **{**lease, "address": "10.0.2.16"})
    assert [one[:2] + one[3:] for one in told(near)] == [
        ("given", "10.0.2.15", "vm1"), ("given", "10.0.2.16", ""), ("released", "10.0.2.16", "vm1"),
    ]  # fmt: skip
    assert told(far) == []
    near.ended("killed by SIGKILL")
    play.processes[-1].says("opened", networks[0])
    assert told(play.processes[-1]) == [("known", "10.0.2.15", "52:54:00:12:34:56", "vm1")]


@pytest.mark.needs("root", "/dev/net/tun")
def test_flows_are_told_with_both_ends_and_what_they_carried(running):
    port = int(running.shardnet("forward", "add", "tcp:127.0.0.1:0-:8000").split()[2].rpartition(":")[2])
    with contextlib.ExitStack() as opened:
        host = opened.enter_context(socket.create_server(("127.0.0.1", 0)))
        echo = opened.enter_context(socket.socket(type=socket.SOCK_DGRAM))
        echo.bind(("127.0.0.1", 0))
        with links.namespace(running.netns.name):
            out = opened.enter_context(socket.create_connection(("10.0.2.2", host.getsockname()[1]), timeout=20))
            many = [opened.enter_context(socket.socket(type=socket.SOCK_DGRAM)) for _ in range(900)]
        far, there = host.accept()
        opened.enter_context(far)
        out.sendall(b"x" * 1000)
        far.sendall(b"y" * 500)
        assert out.recv(500, socket.MSG_WAITALL) and far.recv(1000, socket.MSG_WAITALL)
        server = opened.enter_context(serving(running, 8000))
        client = opened.enter_context(socket.create_connection(("127.0.0.1", port)))
        opened.enter_context(server.accept()[0])
        for one in many:
            one.sendto(b"1234", ("10.0.2.2", echo.getsockname()[1]))
            echo.settimeout(20)
            echo.recv(10)

        def flows(*words):
            return [json.loads(line) for line in running.shardnet("flows", *words, "-o", "json").splitlines()]

        deadline.until(
            lambda: flows("--protocol", "tcp", "--direction", "out")[0]["bytes_to_guest"] == 500, "acknowledged"
        )
        (found,) = flows("--protocol", "tcp", "--direction", "out")
        assert (found["guest"], found["guest_port"]) == out.getsockname()
        assert (found["far"], found["far_port"]) == out.getpeername()
        assert (found["host"], found["host_port"]) == there
        assert (found["port"], found["state"], found["bytes_from_guest"]) == ("net0", "established", 1000)
        assert 0 <= found["idle_ms"] <= found["age_ms"] and found["retransmits"] >= 0
        (inward,) = flows("--far", f"10.0.2.2:{client.getsockname()[1]}", "--direction", "in")
        assert (inward["guest_port"], inward["host_port"]) == (8000, port)
        udp = flows("--protocol", "udp")
        assert len({flow["guest_port"] for flow in udp}) == len(udp) == 900  # three pages
        assert {flow["bytes_from_guest"] for flow in udp} == {4}
        assert running.shardnet("flows", "--count", "--guest", "10.0.2.15").strip() == "902"
        assert len(running.shardnet("flows", "-n", "3", "--no-headers").splitlines()) == 3
        assert running.shardnet("flows", "--state", "time-wait", "--no-headers") == ""
    running.shardnet("flows", "inside", status=2)  # a TAP has none


@pytest.mark.needs("root", "ping")
def test_top_tells_what_a_port_carries_a_second(lab):
    running = lab("[user net0]\n")
    names = [port["name"] for port in running.json("status")["ports"]]  # its services are ports too
    looks = [json.loads(line) for line in running.shardnet("top", "-n", "2", "-d", "0.1", "-o", "json").splitlines()]
    assert [[one["port"] for one in look["ports"]] for look in looks] == [names, names]
    said = running.shardnet(
        "exec",
        "--",
        "sh",
        "-c",
        f"ping -q -i 0.01 10.0.2.2 >/dev/null & {labs.SHARDNET} top net0 -n 1 -o json; kill $!",
    )
    (busy,) = json.loads(said)["ports"]
    assert busy["in_frames_per_s"] > 0 and busy["out_bits_per_s"] >= 8 * 60 * busy["out_frames_per_s"] > 0
    assert len(running.shardnet("top", "-n", "1", "-d", "0.1").splitlines()) == 1 + len(names)
    running.shardnet("top", "-d", "0", status=2)
    running.shardnet("top", "nobody", status=3)
