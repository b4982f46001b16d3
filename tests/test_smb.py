"""[smb NAME] and [user] smb = FOLDER: smbd behind them, asked by smbclient and by a Linux guest's kernel."""

import concurrent.futures
import hashlib
import os
import random
import signal
import sys
from pathlib import Path

import pytest

import deadline
import guest as guests
import smbmessages
import wirefile
from shardnet import options
from shardnet.services import smb
from shardnet.smb import keeper
from shardnet.workers import user

LAB = """
[smb files]
smb = {share}
address = 10.0.2.7/24

[user net0]
smb = {share}

[tap inside]
ifname = inside
netns = {netns}
address = 10.0.2.15/24
"""


def test_its_mistakes_are_told():
    for kind, given, why in (
        (smb, {"address": "10.0.2.7/24"}, "smb: missing"),
        (smb, {"smb": "a%b", "address": "10.0.2.7/24"}, "smb = a%b: no folder that smbd's configuration can name"),
        (user, {"smbserver": "10.0.2.9"}, "smbserver = 10.0.2.9: there is no server without smb = FOLDER"),
        (user, {"smb": "x", "smbserver": "10.0.3.9"}, "smbserver = 10.0.3.9: not in 10.0.2.0/24"),
        (user, {"smb": "x", "smbserver": "10.0.2.2"}, "smbserver = 10.0.2.2: the address of this host"),
        (user, {"smb": "x", "ipv4": "off"}, "smb = x: IPv4 is off"),
    ):
        with pytest.raises(options.Wrong) as wrong:
            options.read(kind, given)
        assert str(wrong.value).startswith(why)


def test_a_missing_smbd_is_told_with_its_package(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(keeper, "PLACES", str(tmp_path))
    with pytest.raises(OSError, match=r"no such program \(Debian: apt-get install samba\): 'smbd'"):
        keeper.start("test", str(tmp_path), tmp_path)


@pytest.mark.needs("root", "smbd")
def test_keepers_that_start_at_once_leave_each_other_their_directories(tmp_path):
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        for _ in range(50):
            lines = list(pool.map(lambda name: keeper.start(name, str(tmp_path), tmp_path), "abcdefgh"))
            assert len(list(tmp_path.glob(f"{keeper.PREFIX}*"))) == 8
            list(pool.map(keeper.end, lines))
            assert not list(tmp_path.iterdir())


class Running:
    """A lab with two servers of one folder, and a namespace to ask from."""

    def __init__(self, lab, netns, directory):
        self.netns, self.share, self.here = netns, directory / "share", directory / "here"
        for path in (self.share, self.here):
            path.mkdir()
        self.content = random.Random(1).randbytes(1_000_000)
        (self.share / "file").write_bytes(self.content)
        self.lab = lab(LAB.format(share=self.share, netns=netns.name))
        self.lab.until_up("files", "net0", "net0.smb", "inside")

    def smbclient(self, host, command, *words):
        return self.netns.run(
            "smbclient", "-N", *words, f"//{host}/qemu", "-D", "", "-c", f"lcd {self.here}; {command}"
        )

    def directories(self):
        return list(self.lab.run_dir.glob(f"{keeper.PREFIX}*"))

    def keeper(self, port):
        """The process that starts the smbds of a port."""
        for pid in self.lab.processes():
            if f"smbd for {port}\0".encode() in Path(f"/proc/{pid}/cmdline").read_bytes():
                return pid
        raise AssertionError(f"no keeper of {port}")


@pytest.fixture
def running(lab, namespace, tmp_path):
    return Running(lab, namespace("in"), tmp_path)


@pytest.mark.needs("root", "/dev/net/tun", "smbd", "smbclient")
def test_smbclient_lists_gets_and_puts(running):
    for host, port in (("10.0.2.7", "445"), ("10.0.2.4", "139")):
        assert "file " in running.smbclient(host, "ls", "-p", port)
        running.smbclient(host, "get file got; put got back; mkdir dir; rename back dir\\there", "-p", port)
        for path in (running.here / "got", running.share / "dir" / "there"):
            assert path.read_bytes() == running.content
        running.smbclient(host, "del dir\\there; rmdir dir", "-p", port)
        assert [path.name for path in running.share.iterdir()] == ["file"]
    (running.share / "passwd").symlink_to("/etc/passwd")
    assert "NT_STATUS_" in running.netns.run(
        "sh", "-c", f"smbclient -N //10.0.2.4/qemu -c 'get passwd {running.here}/stolen' 2>&1; true"
    )
    assert not (running.here / "stolen").exists()


@pytest.mark.needs("root", "/dev/net/tun", "smbd", "smbclient")
def test_smbd_has_no_privilege_and_a_directory_for_itself_alone(running):
    assert {path.stat().st_mode & 0o777 for path in running.directories()} == {0o700}
    pid = running.keeper("files")
    with running.netns.running("smbclient", "-N", "//10.0.2.7/qemu", "-c", "!sleep 60"):
        children = Path(f"/proc/{pid}/task/{pid}/children")
        deadline.until(children.read_text, "an smbd")
        smbd = children.read_text().split()[0]
        status = Path(f"/proc/{smbd}/status").read_text()
        assert "NoNewPrivs:\t1" in status
        for namespace in ("net", "user"):
            assert os.readlink(f"/proc/{smbd}/ns/{namespace}") != os.readlink(f"/proc/self/ns/{namespace}")


@pytest.mark.needs("root", "/dev/net/tun", "smbd", "smbclient")
def test_whatever_is_killed_is_back_and_leaves_nothing(running):
    os.kill(running.lab.workers()["files"], signal.SIGKILL)
    first = running.keeper("files")
    running.lab.until_up("files")
    assert "file " in running.smbclient("10.0.2.7", "ls")
    assert running.keeper("files") == first
    assert len(running.directories()) == 2
    os.kill(first, signal.SIGKILL)
    deadline.until(lambda: running.lab.port("files")["state"] == "up" and _is_another(running, first), "another keeper")
    deadline.until(lambda: len(running.directories()) == 2, "the end of the directory that was left")
    assert "file " in running.smbclient("10.0.2.7", "ls")
    running.lab.stop()
    assert not running.directories()


SEND = """
import concurrent.futures, socket, sys
host, messages = sys.argv[1], [bytes.fromhex(line) for line in open(sys.argv[2])]
def send(message):
    with socket.create_connection((host, 445), 20) as sock:
        came = b""
        try:
            sock.sendall(message)
            sock.shutdown(socket.SHUT_WR)
            while data := sock.recv(65536):
                came += data
        except ConnectionError:
            pass
        return len(came)
with concurrent.futures.ThreadPoolExecutor(8) as pool:
    print(max(pool.map(send, messages)))
"""


@pytest.mark.needs("root", "/dev/net/tun", "smbd", "smbclient")
def test_malformed_messages_end_their_own_connection_and_nothing_else(running, tmp_path):
    messages = list(smbmessages.malformed())
    assert len(messages) >= 500
    frames = [
        wirefile.segment("10.0.2.15", 40000 + number, "10.0.2.4", 445, raw) for number, raw in enumerate(messages)
    ]
    file = tmp_path / "messages"
    file.write_text("".join(frame[54:].hex() + "\n" for frame in wirefile.read(wirefile.corpus("smb", frames))))
    around = sorted(path for path in tmp_path.rglob("*"))
    pid = running.keeper("net0.smb")
    longest = running.netns.run(sys.executable, "-c", SEND, "10.0.2.4", str(file), within=240)
    assert int(longest) < 2000
    children = Path(f"/proc/{pid}/task/{pid}/children")
    deadline.until(lambda: not children.read_text(), "the end of every smbd")
    assert running.keeper("net0.smb") == pid
    running.smbclient("10.0.2.4", "get file got")
    assert (running.here / "got").read_bytes() == running.content
    (running.here / "got").unlink()
    assert sorted(path for path in tmp_path.rglob("*")) == around


def _is_another(running, pid):
    try:
        return running.keeper("files") != pid
    except AssertionError:
        return False


MODULES = [
    *(
        "netfs",
        "fscache",
        "dns_resolver",
        "cifs_arc4",
        "cifs_md4",
        "gf128mul",
        "ghash-generic",
        "ctr",
        "ccm",
        "gcm",
        "cmac",
    ),
    *("sha512_generic", "cifs"),
]


@pytest.mark.needs("guests", "smbd")
def test_a_guests_kernel_mounts_the_share_with_modules_that_it_gets_by_tftp(lab, guest, tmp_path):
    content = random.Random(3).randbytes(3_000_000)
    (tmp_path / "share").mkdir()
    (tmp_path / "share" / "file").write_bytes(content)
    running = lab(
        f"[user net0]\nsmb = {tmp_path / 'share'}\ntftp = {guests.KERNEL / 'modules'}\n"
        "[stream vm]\nserver = on\naddr.type = unix\naddr.path = vm.sock\n"
    )
    one = guest([f"stream,server=off,addr.type=unix,addr.path={running.run_dir}/vm.sock"])
    one.address(0, "10.0.2.15/24")
    for name in MODULES:
        one.run(f"cd /tmp && tftp -b 1400 -g -r {name}.ko 10.0.2.2 && insmod {name}.ko && rm {name}.ko", within=60)
    one.run(
        "mkdir /mnt && mount -i -t cifs -o ip=10.0.2.4,username=guest,password=,vers=3.0 //10.0.2.4/qemu /mnt || { dmesg | tail -5; false; }",
        within=60,
    )
    assert one.run("sha256sum </mnt/file", within=60).split()[0] == hashlib.sha256(content).hexdigest()
    sums = one.run("head -c 2m /dev/urandom >/tmp/new; cp /tmp/new /mnt/new; sync; sha256sum </tmp/new", within=60)
    one.run("mkdir /mnt/dir && mv /mnt/new /mnt/dir/there && umount /mnt", within=60)
    assert hashlib.sha256((tmp_path / "share" / "dir" / "there").read_bytes()).hexdigest() == sums.split()[0]
