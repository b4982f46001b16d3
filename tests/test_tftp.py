"""[tftp NAME] and [user] tftp = FOLDER: fetched from and written to by the clients that people have."""

import os
import random
import signal
import time

import pytest

import deadline
import lossy
from shardnet import options
from shardnet.services import tftp
from shardnet.workers import user

ALONE, ALONE6, BEHIND, BEHIND6 = "10.0.2.7", "fec0::7", "10.0.2.2", "fec0::2"
LAB = """
[tftp files]
tftp = {root}
tftp-write = on
address = 10.0.2.7/24
address6 = fec0::7/64

[user net0]
tftp = {root}
tftp-write = {uploads}

[tap inside]
ifname = inside
netns = {netns}
address = 10.0.2.15/24
          fec0::15/64
"""
SIZES = [0, 511, 512, 1_000_000]

CLIENTS = {
    "tftp-hpa": "tftp -m binary {host} -c get {name} got",
    "tftp-hpa ascii": "tftp -m ascii {host} -c get {name} got",
    "atftp": "atftp -g -r {name} -l got {host}",
    "busybox": "busybox tftp -g -r {name} -l got {host}",
    "busybox 8192": "busybox tftp -b 8192 -g -r {name} -l got {host}",
    **{
        f"curl {size}": f"curl -s -S --tftp-blksize {size} -o got tftp://{{host}}/{{name}}"
        for size in (8, 512, 1428, 65464)
    },
    "curl plain": "curl -s -S --tftp-no-options -o got tftp://{host}/{name}",
    **{
        f"atftp {blksize} {windowsize}": f"atftp --option 'blksize {blksize}' --option 'windowsize {windowsize}' "
        "-g -r {name} -l got {host}"
        for blksize, windowsize in ((512, 1), (1428, 2), (1428, 64), (8192, 16), (65464, 2))
    },
}
pytestmark = pytest.mark.needs("root", "/dev/net/tun")


class Running:
    """A lab with two servers, its files, and a namespace to ask from."""

    def __init__(self, lab, netns, directory):
        self.netns, self.here = netns, directory / "here"
        self.root, self.uploads = directory / "root", directory / "uploads"
        for path in (self.here, self.root, self.uploads):
            path.mkdir()
        self.files = {f"f{size}": random.Random(size).randbytes(size) for size in SIZES}
        for name, content in self.files.items():
            (self.root / name).write_bytes(content)
        netns.run("sysctl", "-qw", "net.ipv6.conf.default.accept_dad=0")
        self.lab = lab(LAB.format(root=self.root, uploads=self.uploads, netns=netns.name))
        self.lab.until_up("files", "net0", "net0.tftp", "inside")

    def sh(self, command, within=60):
        return self.netns.run("sh", "-c", f"cd {self.here} && exec {command} 2>&1", within=within)


@pytest.fixture
def running(lab, namespace, tmp_path):
    return Running(lab, namespace("in"), tmp_path)


def test_its_mistakes_are_told():
    address = {"address": "10.0.2.7/24"}
    for kind, given, why in (
        (tftp, address, "tftp: missing"),
        (tftp, {**address, "tftp": "x", "tftp-blksize": "7"}, "tftp-blksize = 7: not 8 to 65464"),
        (tftp, {**address, "tftp": "x", "tftp-transfers": "0"}, "tftp-transfers = 0: not 1 to 256"),
        (user, {"tftp-write": "on"}, "tftp-write = on: there is no server without tftp = FOLDER"),
    ):
        with pytest.raises(options.Wrong) as wrong:
            options.read(kind, given)
        assert str(wrong.value) == why


@pytest.mark.needs("tftp", "atftp", "busybox", "curl")
def test_every_client_gets_every_file_whole(running):
    for name, content in running.files.items():
        for client, command in CLIENTS.items():
            if len(content) > 1000 and client in ("curl 8", "tftp-hpa ascii"):
                continue
            for host in (ALONE, BEHIND) if client in ("tftp-hpa", "atftp 1428 64") else (ALONE,):
                (running.here / "got").unlink(missing_ok=True)
                running.sh(command.format(host=host, name=name))
                got = (running.here / "got").read_bytes()
                assert got == content or "ascii" in client, (client, host, name, len(got))
    for host in (ALONE6, BEHIND6):
        running.sh(f"curl -s -S -o got 'tftp://[{host}]/f1000000'")
        assert (running.here / "got").read_bytes() == running.files["f1000000"]


@pytest.mark.needs("tftp", "atftp", "busybox")
def test_files_are_put_where_that_is_allowed(running):
    content = random.Random(9).randbytes(100_000)
    (running.here / "mine").write_bytes(content)
    puts = (
        "tftp -m binary {host} -c put mine {name}; atftp -p -l mine -r {name}2 {host}; "
        "atftp --option 'windowsize 16' -p -l mine -r {name}3 {host}; busybox tftp -b 1400 -p -l mine -r {name}4 {host}"
    )
    for host, where in ((ALONE, running.root), (BEHIND, running.uploads)):
        for command in puts.format(host=host, name="new").split("; "):
            running.sh(command)
        for name in ("new", "new2", "new3", "new4"):
            assert (where / name).read_bytes() == content
    running.sh(f"tftp -m binary {BEHIND} -c put mine f512")
    assert (running.root / "f512").read_bytes() == running.files["f512"]
    running.lab.shardnet("port", "set", "files", "tftp-write=off")
    said = running.sh(f"tftp -m binary {ALONE} -c put mine f511; true")
    assert "Error code 2: read-only" in said
    assert (running.root / "f511").read_bytes() == running.files["f511"]


@pytest.mark.needs("tftp", "atftp", "busybox")
def test_one_frame_in_twenty_lost_costs_time_and_nothing_else(lab, namespace, tmp_path):
    netns = namespace("in")
    content = random.Random(5).randbytes(100_000)
    (tmp_path / "f").write_bytes(content)
    running = lab(
        f"[tftp files]\ntftp = {tmp_path}\ntftp-write = on\naddress = 10.0.2.7/24\n" + lossy.SECTION.format(name="far")
    )
    with lossy.cable(netns.name, "far", running.run_dir, "far", 0.05):
        netns.run("ip", "link", "set", "far", "up")
        netns.run("ip", "addr", "add", "10.0.2.15/24", "dev", "far")
        netns.run("ping", "-c", "1", "-w", "20", ALONE)
        for command in (
            f"atftp --option 'blksize 1428' --option 'windowsize 16' -g -r f -l got {ALONE}",
            f"atftp --option 'blksize 1428' -g -r f -l got {ALONE}",
            f"busybox tftp -b 1400 -g -r f -l got {ALONE}",
            f"atftp --option 'blksize 1428' --option 'windowsize 16' -p -l got -r put {ALONE}",
        ):
            # atftp gives up where its first ACK is lost and the OACK comes once more.
            again = f"cd {tmp_path}; until said=$({command} 2>&1); do case $said in *'unexpected OACK'*) ;; *) echo $said; exit 1 ;; esac; done"
            netns.run("sh", "-c", again, within=100)
            assert (tmp_path / "got").read_bytes() == content, command
        deadline.until(lambda: (tmp_path / "put").exists(), "the file that was put")
        assert (tmp_path / "put").read_bytes() == content


@pytest.mark.needs("curl")
def test_a_killed_server_is_back_and_no_other_port_is_disturbed(running):
    url = f"curl -s -S -m 20 -o got tftp://{BEHIND}/f1000000"
    running.sh(url)
    took = []
    with running.netns.running("ping", "-i", "0.01", "-q", ALONE) as ping:
        for _ in range(3):
            with running.netns.running("sh", "-c", f"cd {running.here}; while :; do {url}; done"):
                pid = running.lab.workers()["net0.tftp"]
                os.kill(pid, signal.SIGKILL)
                began = time.monotonic()
                deadline.until(
                    lambda old=pid: running.lab.workers().get("net0.tftp") not in (None, old), "the next worker"
                )
                running.lab.until_up("net0.tftp")
                took.append(time.monotonic() - began)
            running.sh(url)
            assert (running.here / "got").read_bytes() == running.files["f1000000"]
        ping.send_signal(signal.SIGINT)
        assert " 0% packet loss" in ping.stdout.read()
    print("back after", *(f"{1000 * seconds:.0f} ms" for seconds in took), "as status says it")
