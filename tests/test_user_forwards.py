"""hostfwd and guestfwd of [user NAME] from outside, with restrict = on: curl, socat and nc are the other ends, the worker is confined.

Without restrict, and with a lab of the test's own, they are in test_user.py.
"""

import contextlib
import dataclasses
import ipaddress
import os
import re
import socket
import subprocess
import threading
from http.server import ThreadingHTTPServer

import pytest

import deadline
import exercises
import labs
import namespaces

pytestmark = pytest.mark.needs("root", "/dev/net/tun", "curl", "socat", "nc", "tcpdump")

V4, V6 = exercises.V4, exercises.V6
LAB = """
[user net0]
restrict = on
hostfwd =
{hostfwd}
guestfwd =
{guestfwd}

[tap inside]
ifname = inside
netns = {netns}
"""
# What the kernels on a link say to each other.
NEIGHBOURS = re.compile(r"ICMP6, (multicast listener|neighbor|router)")
# Who speaks there, then what it says: of TCP to its end, of UDP in one datagram.
TOLD = "SYSTEM:'echo $SOCAT_PEERADDR; cat'"
SERVERS = {
    "tcp4": f"TCP4-LISTEN:8000,fork,reuseaddr {TOLD}",
    "tcp6": f"TCP6-LISTEN:8000,fork,reuseaddr,ipv6only=1 {TOLD}",
    "tcp range": f"TCP4-LISTEN:8002,fork,reuseaddr {TOLD}",
    "udp4": "UDP4-RECVFROM:9000,fork SYSTEM:'read word; echo $SOCAT_PEERADDR'",
    "another udp4": "UDP4-RECVFROM:9001,fork SYSTEM:'read word; echo $SOCAT_PEERADDR'",
    "udp6": "UDP6-RECVFROM:9000,fork,ipv6only=1 SYSTEM:'read word; echo $SOCAT_PEERADDR'",
}


@dataclasses.dataclass(frozen=True)
class Forward:
    """A rule, what socat calls its near end, and whom the guest sees there. {p}: a free port, {dir}: a directory."""

    rule: str
    near: str
    seen: str
    beyond: bool = False  # the client is another machine


HOSTFWD = {
    "tcp": Forward("tcp:127.0.0.1:{p}-:8000", "TCP4:127.0.0.1:{p}", V4.host),
    "no protocol, an address of the guest": Forward(f":127.0.0.1:{{p}}-{V4.guest}:8000", "TCP4:127.0.0.1:{p}", V4.host),
    "tcp of every address": Forward("tcp::{p}-:8000", f"TCP4:{V4.beyond[:-1]}1:{{p}}", V4.beyond, True),
    "tcp of IPv6": Forward(f"tcp:[::1]:{{p}}-[{V6.guest}]:8000", "TCP6:[::1]:{p}", V6.host),
    "tcp of every address of IPv6": Forward(
        f"tcp::{{p}}-[{V6.guest}]:8000", f"TCP6:[{V6.beyond[:-1]}1]:{{p}}", V6.beyond, True
    ),
    "tcp of IPv6 to a guest's IPv4": Forward("tcp:[::1]:{p}-:8000", "TCP6:[::1]:{p}", V4.host),
    "udp": Forward("udp:127.0.0.1:{p}-:9000", "UDP4:127.0.0.1:{p}", V4.host),
    "udp of another machine": Forward("udp::{p}-10.0.2.15:9001", f"UDP4:{V4.beyond[:-1]}1:{{p}}", V4.beyond, True),
    "udp of IPv6": Forward(f"udp:[::1]:{{p}}-[{V6.guest}]:9000", "UDP6:[::1]:{p}", V6.host),
    "unix": Forward("unix:{dir}/in.sock-:8000", "UNIX-CONNECT:{dir}/in.sock", V4.host),
    "a range": Forward("tcp:127.0.0.1:{p}-{q}-:8000", "TCP4:127.0.0.1:{q}", V4.host),
}


class World:
    """The lab, the namespace that is its guest, and the rules as they were filled in."""

    def __init__(self, start, make, directory, outside):
        self.outside = outside
        self.near, hostfwd = {}, []
        for name, forward in HOSTFWD.items():
            port = free_run()
            words = {"p": port, "q": port + 2, "dir": directory}
            hostfwd.append(forward.rule.format(**words))
            self.near[name] = forward.near.format(**words)
        hostfwd.append("tcp:127.0.0.1:0-:8080")
        self.web, self.web6 = serve(V4), serve(V6)
        unix = f"{directory}/service.sock"
        self.unix = subprocess.Popen(["socat", f"UNIX-LISTEN:{unix},fork", "EXEC:cat"])
        deadline.until(lambda: os.path.exists(unix), "socat listening")
        guestfwd = [
            f"tcp:10.0.2.100:1-tcp:127.0.0.1:{self.web.server_port}",
            f":10.0.2.100:2-tcp:[::1]:{self.web6.server_port}",
            f"tcp:10.0.2.100:3-unix:{unix}",
            "tcp:10.0.2.101:4-cmd:cat",
            "tcp:10.0.2.101:5-cmd:grep -E 'CapEff|NoNewPrivs' /proc/self/status",
            f"tcp:[fec0::100]:1-tcp:127.0.0.1:{self.web.server_port}",
            "tcp:[fec0::100]:4-cmd:cat",
        ]
        self.place = exercises.Namespace(make("inside"))
        lines = {
            "hostfwd": "\n".join(f"  {rule}" for rule in hostfwd),
            "guestfwd": "\n".join(f"  {rule}" for rule in guestfwd),
        }
        self.lab = start(LAB.format(netns=self.place.netns.name, **lines))
        self.lab.until_up("net0", "inside")
        exercises.address(self.place)
        told = self.lab.port("net0")["detail"]
        self.any_port = int(re.search(r"127\.0\.0\.1:(\d+) to 10\.0\.2\.15:8080", told)[1])

    def close(self):
        self.unix.kill()
        self.unix.wait()
        for server in (self.web, self.web6):
            server.shutdown()
            server.server_close()


def free_run():
    """The first of three ports, all of them free."""
    while True:
        first = labs.free_port()
        with contextlib.suppress(OSError), contextlib.ExitStack() as stack:
            for port in range(first, first + 3):
                for family, host in ((socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::")):
                    stack.enter_context(socket.create_server((host, port), family=family))
            return first


def serve(family):
    kind = type("Server", (ThreadingHTTPServer,), {"address_family": family.sockets})
    server = kind((family.loopback, 0), exercises.Page)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A restricted guest with a server for every forward."""
    directory = tmp_path_factory.mktemp("fwd")
    with (
        exercises.world() as outside,
        namespaces.making() as make,
        labs.starting(directory) as start,
        contextlib.ExitStack() as stack,
    ):
        made = World(start, make, directory, outside)
        stack.callback(made.close)
        for server in SERVERS.values():
            stack.enter_context(made.place.netns.running("sh", "-c", f"exec socat {server}"))
        stack.enter_context(made.place.netns.running("busybox", "httpd", "-f", "-p", "8080", "-h", "/etc"))
        deadline.until(
            lambda: made.place.netns.run("ss", "-Hlnut").count("\n") >= len(SERVERS) + 1, "servers in the guest", 20
        )
        yield made


@pytest.mark.parametrize("name", HOSTFWD)
def test_hostfwd_brings_a_client_to_the_guest_which_sees_who_it_is(world, name):
    forward = HOSTFWD[name]
    enter = world.outside.enter if forward.beyond else []
    with subprocess.Popen(
        [*enter, "socat", "-t20", "-", world.near[name]], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as client:
        try:
            client.stdin.write("word\n")
            client.stdin.close()
            deadline.readable(client.stdout.fileno(), "an answer", 20)
            address = client.stdout.readline().strip("[]\n")
            assert ipaddress.ip_address(address) == ipaddress.ip_address(forward.seen)
            if "udp" not in name:  # datagrams have no end
                assert client.stdout.read() == "word\n"
        finally:
            client.kill()


def test_nc_and_curl_reach_the_guest_at_a_port_that_was_free(world):
    url = f"http://127.0.0.1:{world.any_port}/hostname"
    got = subprocess.run(["curl", "-sS", "-m", "20", url], capture_output=True, text=True)
    assert (got.stdout, got.stderr) == (open("/etc/hostname").read(), "")
    near = world.near["tcp"].split(":")
    told = subprocess.run(["nc", "-N", near[1], near[2]], input="by nc\n", capture_output=True, text=True, timeout=30)
    assert told.stdout == f"{V4.host}\nby nc\n"


@pytest.mark.parametrize("url", ["http://10.0.2.100:1/", "http://10.0.2.100:2/", "http://[fec0::100]:1/"])
def test_guestfwd_to_tcp_by_curl(world, url):
    command = ["curl", "-sS", "-g", "-m", "20", "-o", "/dev/null", "-w", "%{http_code} %{size_download}", url]
    assert world.place.run(*command) == (0, "200 100000")


@pytest.mark.parametrize("where", ["10.0.2.100 3", "10.0.2.101 4", "fec0::100 4"])
def test_guestfwd_to_a_unix_socket_and_to_a_command_by_nc(world, where):
    assert world.place.run("sh", "-c", f"echo hello | nc -N -w 10 {where}") == (0, "hello\n")


def test_a_command_of_guestfwd_has_no_privileges(world):
    status, text = world.place.run("nc", "-d", "-w", "10", "10.0.2.101", "5")
    assert (status, text.split()) == (0, ["CapEff:", "0000000000000000", "NoNewPrivs:", "1"])


def test_a_restricted_guest_sends_nothing_out(world):
    near = f"u{os.getpid()}"
    seen = ["tcpdump", "-lnni", near, "ip or ip6"]
    with subprocess.Popen(seen, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as capture:
        try:
            deadline.readable(capture.stderr.fileno(), "tcpdump listening")
            for family in exercises.FAMILIES.values():
                world.place.patience = 0.5
                assert exercises.ping("beyond", "56", world.place, family) != "answered"
                for host, port in ((family.beyond, 80), (family.beyond, 53), (family.host, world.web.server_port)):
                    assert world.place.probe("connect", host, port, 2) == "ECONNREFUSED"
                for host in (family.beyond, family.host):
                    assert world.place.probe("tell", host, 53, 0.3) in ("silence", "ECONNREFUSED")
                assert family.beyond not in exercises.trace(world.place, family)
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as marker:
                marker.sendto(b"marker", (V4.beyond, 7777))
            lines = []
            while "7777" not in "".join(lines):
                deadline.readable(capture.stdout.fileno(), "the marker outside")
                lines.append(os.read(capture.stdout.fileno(), 65536).decode())
            leaked = [
                line for line in "".join(lines).splitlines() if "7777" not in line and not NEIGHBOURS.search(line)
            ]
            assert leaked == []
        finally:
            capture.kill()
