"""[user NAME] in a running lab: what the death of its worker does to its guests, and to the others."""

import os
import signal
import socket
import subprocess

import pytest

import deadline
from shardnet import links

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

        guest, far = connect()
        before = running.workers()
        os.kill(before["net0"], signal.SIGKILL)
        with pytest.raises(ConnectionResetError):
            far.recv(1)
        deadline.until(lambda: running.workers()["net0"] not in (None, before["net0"]), "a new worker")
        running.until_up("net0")
        connect()
        guest.sendall(b"is anybody there?")
        with pytest.raises(ConnectionResetError):
            guest.recv(1)
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
