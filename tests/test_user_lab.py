"""[user NAME] in a running lab: what the death of its worker does to its guests, and to the others."""

import os
import signal
import socket
import statistics
import subprocess
import threading
import time
from http.server import ThreadingHTTPServer

import pytest

import deadline
import exercises
import flow
import labs
from shardnet import links

KILLS = 20 if exercises.FULL else 6

LAB = """
[user net0]
hostfwd = tcp:127.0.0.1:{port}-:8000

[tap inside]
ifname = inside
netns = {netns}
address = 10.0.2.15/24
"""


@pytest.mark.needs("root", "/dev/net/tun")
def test_the_death_of_its_worker_resets_what_was_open_and_new_connections_work(lab, namespace):
    netns = namespace("inside")
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
        free.close()
        running = lab(LAB.format(netns=netns.name, port=port))
        running.until_up("net0", "inside")
        where = ("10.0.2.2", listener.getsockname()[1])

        def connect():
            with links.namespace(netns.name):
                made = socket.create_connection(where, timeout=10)
            far, _ = listener.accept()
            far.settimeout(10)
            return made, far

        guests = [connect() for _ in range(20)]
        before = running.workers()
        os.kill(before["net0"], signal.SIGKILL)
        began = time.monotonic()
        for guest, far in guests:
            with pytest.raises(ConnectionResetError):
                far.recv(1)
            with pytest.raises(ConnectionResetError):
                guest.recv(1)  # it says nothing itself
        print(f"all reset after {1000 * (time.monotonic() - began):.1f} ms")
        connect()
        deadline.until(lambda: running.workers()["net0"] not in (None, before["net0"]), "a new worker")
        running.until_up("net0")
        # What is forwarded from the host was kept by the supervisor: nobody was refused meanwhile.
        with links.namespace(netns.name):
            inner = socket.create_server(("10.0.2.15", 8000))
        client = socket.create_connection(("127.0.0.1", port), timeout=10)
        inner.settimeout(10)
        assert inner.accept()[1][0] == "10.0.2.2"
        client.close()
        inner.close()


@pytest.mark.needs("root", "/dev/net/tun", "curl")
def test_a_guest_behind_a_tap_fetches_from_the_host(lab, namespace, tmp_path):
    netns = namespace("inside")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port, web = free.getsockname()[1], free.getsockname()[1] ^ 1
    running = lab(LAB.format(netns=netns.name, port=port))
    running.until_up("net0", "inside")
    (tmp_path / "page").write_text("hello")
    command = ["python3", "-m", "http.server", str(web), "--bind", "127.0.0.1", "-d", str(tmp_path)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline.until(lambda: socket.socket().connect_ex(("127.0.0.1", web)) == 0, "the server")
        assert netns.run("curl", "-sS", f"http://10.0.2.2:{web}/page") == "hello"
    finally:
        server.kill()
        server.wait()


OTHERS = """
[stream one]
switch = others
server = on
addr.type = unix
addr.path = one.sock

[stream two]
switch = others
server = on
addr.type = unix
addr.path = two.sock
"""


@pytest.mark.needs("root", "/dev/net/tun")
def test_a_worker_killed_each_second_is_back_at_once_and_other_ports_lose_no_frame(lab, namespace):
    """More often than a crash loop may. How soon a connection is there that was begun meanwhile is printed (pytest -rP)."""
    netns = namespace("inside")
    took = []
    with socket.create_server(("127.0.0.1", 0)) as listener:
        running = lab(LAB.format(netns=netns.name, port=labs.free_port()) + OTHERS)
        running.until_up("net0", "inside")
        where = ("10.0.2.2", listener.getsockname()[1])
        with links.namespace(netns.name):
            socket.create_connection(where, timeout=10).close()  # both know each other's addresses
            with flow.running(running.run_dir, "one", "two") as others, running.client() as client:
                for _ in range(KILLS):
                    due = time.monotonic() + 1
                    deadline.until(lambda due=due: time.monotonic() > due, "a life of a second")
                    pid = client.ports("net0")[0]["pid"]
                    began = time.monotonic()
                    os.kill(pid, signal.SIGKILL)
                    socket.create_connection(where, timeout=10).close()  # begun while nobody was there
                    took.append(1000 * (time.monotonic() - began))
                    assert client.ports("net0")[0]["pid"] not in (None, pid)
                account = others.end()
    print(f"{KILLS} kills: connected after {statistics.median(took):.1f} ms, {max(took):.1f} ms at worst")
    assert running.said().count("killed by SIGKILL, ") == running.said().count(", restarted at once") == KILLS
    assert (account["lost"], account["twice"], account["disordered"]) == (0, 0, 0), account


@pytest.mark.needs("root", "/dev/net/tun", "curl", "unshare")
def test_a_command_of_a_user_without_privileges_fetches_from_the_host(tmp_path):
    """Lab and command run as user 1000 of a user namespace, with no capability over this host's network."""
    user = ["unshare", "--user", "--map-user=1000", "--map-group=1000"]
    environment = {**os.environ, "SHARDNET_RUN_DIR": str(tmp_path), "SHARDNET_LAB": "lab"}
    (tmp_path / "lab.ini").write_text("[user net0]\n")
    server = ThreadingHTTPServer(("127.0.0.1", 0), exercises.Page)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    command = [*user, labs.SHARDNET, "start", "-c", str(tmp_path / "lab.ini")]
    with open(tmp_path / "log", "w") as log:
        supervisor = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        address = ["--address", "10.0.2.15/24", "--route", "10.0.2.2"]
        curl = ["curl", "-sS", "-m", "20", "-w", "%{http_code}", "-o", "/dev/null"]
        url = f"http://10.0.2.2:{server.server_port}/"
        words = [*user, labs.SHARDNET, "exec", *address, "--", *curl, url]

        def fetched():
            ran = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=60)
            is_early = ran.returncode != 0 or ": starting, " in ran.stderr
            return None if is_early and supervisor.poll() is None else ran

        ran = deadline.until(fetched, "a page", 30)
        assert (ran.stdout, ran.stderr) == ("200", ""), (tmp_path / "log").read_text()
    finally:
        supervisor.terminate()
        assert supervisor.wait(30) == 0, (tmp_path / "log").read_text()
        server.shutdown()
        server.server_close()
