"""[pcap NAME], writing: what tshark and capinfos read in its files, after kills, rotations and full disks too, and that nothing is lost uncounted."""

import collections
import itertools
import os
import signal
import struct
import subprocess

import pytest

import deadline
import labs
import wirefile
from desk import frame
from shardnet import options, rotation
from shardnet.workers import pcap

SINK = "[exec {}]\ncommand = sh -c 'cat >/dev/null'\n"
FRAMES = [frame(number, 60 + 7 * number) for number in range(100)]

pytestmark = pytest.mark.needs("tshark", "capinfos")


def tshark(file, *fields):
    """Rows of fields of every frame; a file that tshark finds fault with fails."""
    words = ["tshark", "-n", "-r", file, "-T", "fields", *itertools.chain(*(("-e", field) for field in fields))]
    ran = subprocess.run(words, capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0, ran.stderr
    return [line.split("\t") for line in ran.stdout.splitlines()]


def count(file):
    """How many frames capinfos and tshark find."""
    ran = subprocess.run(["capinfos", "-T", "-M", "-r", "-c", file], capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0, ran.stderr
    found = int(ran.stdout.split()[-1])
    assert len(tshark(file, "frame.number")) == found
    return found


def sent(running, file, **more):
    """Replay a file into the lab and wait until all of it has passed."""
    given = "".join(f"{key} = {text}\n" for key, text in {"speed": "1000/s", **more}.items())
    running.shardnet("port", "add", f"[pcap sender]\nreplay = {file}\n{given}")
    deadline.until(lambda: "replayed" in running.port("sender")["detail"], "all replayed")
    deadline.until(lambda: not running.counters("sender")["in_hand"], "all settled")


def settled(running, name):
    """The counters of a capture once nothing is on the way to it any more."""
    seen = collections.deque([{}], maxlen=3)

    def still():
        seen.append(running.counters(name))
        return seen[-1] == seen[0] and not seen[-1]["queued"]

    deadline.until(still, f"{name} settled")
    return seen[-1]


@pytest.fixture(scope="module")
def replayed(tmp_path_factory):
    return wirefile.write(tmp_path_factory.mktemp("pcap") / "in.pcap", FRAMES)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"file": "x", "replay": "y"}, "file = x: a file to write, or one to replay: one of the two"),
        ({"file": "x", "speed": "full"}, "speed = full: of a capture that is replayed, and this one is written"),
        ({"replay": "x", "maxlen": "64"}, "maxlen = 64: of a capture that is written, and this one is replayed"),
        (
            {"file": "x", "shard": "one"},
            "shard = one: a capture has a worker to itself, so that a slow disk holds up no port",
        ),
        (
            {"file": "x", "delay": "1ms"},
            "delay = 1ms: a capture takes no part in the switch, it is only told what passes",
        ),
        ({"file": "x", "files": "3"}, "files = 3: of a rotation, which filesize or duration makes"),
        ({"file": "x", "filesize": "1K"}, "filesize = 1K: no size such as 100M, of 64K to 1024G"),
        ({"file": "x", "duration": "0s"}, "duration = 0s: no time such as 1h (with s, m, h or d), of at most a year"),
        (
            {"file": "x", "netdev": "vm1", "switch": "b"},
            "switch = b: netdev says what is written, on whatever switch",
        ),
        (
            {"file": "x", "queue": "rx"},
            "queue: both ways are written; a display filter on frame.p2p_dir tells them apart",
        ),
        ({"file": "x", "maxlen": "300000"}, "maxlen = 300000: not 0 to 262144"),
    ],
)
def test_a_mistake_is_named_with_its_reason(given, message):
    with pytest.raises(options.Wrong) as wrong:
        options.read(pcap, given)
    assert str(wrong.value) == message


def test_names_of_files_go_on_from_the_highest_and_the_oldest_go(tmp_path):
    files = rotation.Files(tmp_path / "a.pcapng", numbered=True, most=3)
    folder = rotation.folder(tmp_path / "a.pcapng")
    (tmp_path / "a_000007_19700101T000000Z.pcapng").write_bytes(b"old")
    (tmp_path / "a_8.pcapng").write_bytes(b"not ours")
    made = []
    for now in range(4):
        fd, name = files.begin(folder, now)
        os.write(fd, b"x")
        os.close(fd)
        made.append(name)
    os.close(folder)
    assert made == [f"a_{number:06}_19700101T00000{number - 8}Z.pcapng" for number in range(8, 12)]
    assert sorted(path.name for path in tmp_path.iterdir()) == [*made[1:], "a_8.pcapng"]


def test_a_file_with_something_in_it_is_never_opened_and_an_empty_one_is(tmp_path):
    files = rotation.Files(tmp_path / "a.pcapng", numbered=False)
    folder = rotation.folder(tmp_path / "a.pcapng")
    for begun, expected in ((None, "a.pcapng"), (b"", "a.pcapng"), (b"x", "a_000001_19700101T000000Z.pcapng")):
        if begun is not None:
            (tmp_path / "a.pcapng").write_bytes(begun)
        fd, name = files.begin(folder, 0)
        os.close(fd)
        assert name == expected
    (tmp_path / "b").mkdir()
    os.symlink(tmp_path / "a.pcapng", tmp_path / "c.pcapng")
    fd, name = rotation.Files(tmp_path / "c.pcapng", numbered=False).begin(folder, 0)
    os.close(fd)
    os.close(folder)
    assert name == "c_000001_19700101T000000Z.pcapng"
    assert (tmp_path / "a.pcapng").read_bytes() == b"x"


def test_a_whole_switch_is_written_with_names_directions_and_tags(lab, replayed, tmp_path):
    text = SINK.format("access") + "vlan = 10\n" + SINK.format("trunk") + "trunk = 10\n"
    running = lab(
        text + f"[pcap all]\nfile = {tmp_path}/all.pcapng\n[pcap cut]\nfile = {tmp_path}/cut.pcap\nmaxlen = 40\n"
    )
    sent(running, replayed, vlan="10")
    counters = settled(running, "all")
    assert (counters["tx_frames"], counters["offered"], counters["tx_drops"]) == (300, 300, 0)
    assert settled(running, "cut")["tx_frames"] == 300
    running.stop()
    found = tshark(
        tmp_path / "all.pcapng", "frame.interface_name", "frame.packet_flags_direction", "vlan.id", "frame.len"
    )
    kinds = collections.Counter((name, int(way, 0), vlan) for name, way, vlan, _ in found)
    assert kinds == {("sender", 1, ""): 100, ("access", 2, ""): 100, ("trunk", 2, "10"): 100}
    assert [int(row[3]) for row in found if row[0] == "trunk"] == [len(one) + 4 for one in FRAMES]
    assert {int(row[0]) for row in tshark(tmp_path / "cut.pcap", "frame.cap_len")} == {40}
    assert max(int(row[0]) for row in tshark(tmp_path / "cut.pcap", "frame.len")) == 60 + 7 * 99 + 4
    assert (tmp_path / "all.pcapng").stat().st_mode & 0o777 == 0o600


def test_a_port_that_comes_later_is_captured_and_one_that_goes_harms_nothing(lab, replayed, tmp_path):
    running = lab(SINK.format("first"))
    running.shardnet("port", "add", f"[pcap all] file={tmp_path}/all.pcapng")
    running.shardnet("port", "add", f"[pcap one]\nfile = {tmp_path}/one.pcapng\nnetdev = late\n")
    running.shardnet("port", "add", SINK.format("late"))
    sent(running, replayed)
    running.shardnet("port", "remove", "first")
    running.shardnet("port", "remove", "sender")
    sent(running, replayed)
    assert settled(running, "one")["tx_frames"] == 200
    running.shardnet("port", "set", "one", "up=off")
    running.shardnet("port", "remove", "sender")
    sent(running, replayed)
    assert settled(running, "one")["tx_frames"] == 200
    for name in ("all", "one"):
        running.shardnet("port", "remove", name)  # and with that the files are whole
    names = collections.Counter(row[0] for row in tshark(tmp_path / "all.pcapng", "frame.interface_name"))
    assert names == {"first": 100, "late": 300, "sender": 300}
    assert count(tmp_path / "one.pcapng") == 200


def test_captured_replayed_and_captured_again_every_frame_is_the_same(lab, replayed, tmp_path):
    running = lab(SINK.format("one") + f"[pcap first]\nfile = {tmp_path}/first.pcapng\nnetdev = one\n")
    sent(running, replayed)
    settled(running, "first")
    running.shardnet("port", "remove", "sender")
    running.shardnet("port", "remove", "first")
    running.shardnet("port", "add", f"[pcap second]\nfile = {tmp_path}/second.pcap\nnetdev = one\n")
    sent(running, tmp_path / "first.pcapng")
    settled(running, "second")
    running.shardnet("port", "remove", "second")
    read = [
        tshark(file, "frame.len", "eth.dst", "eth.src", "data.data") for file in (replayed, *tmp_path.glob("*.pcap*"))
    ]
    assert len(read) == 3
    assert len(read[0]) == 100
    assert read[0] == read[1] == read[2]


@pytest.mark.parametrize("suffix", ["pcapng", "pcap"])
def test_files_change_by_size_and_the_oldest_go(lab, replayed, tmp_path, suffix):
    running = lab(
        SINK.format("one") + f"[pcap all]\nfile = {tmp_path}/all.{suffix}\nfilesize = 64K\nfiles = 4\n", name="size"
    )
    sent(running, replayed, speed="5000/s")
    first = sorted(tmp_path.glob(f"all_*.{suffix}"))
    for _ in range(4):
        running.shardnet("port", "remove", "sender")
        sent(running, replayed, speed="5000/s")
    assert settled(running, "all")["tx_drops"] == 0
    running.stop()
    last = sorted(tmp_path.glob(f"all_*.{suffix}"))
    assert len(last) == 4
    assert last[0] > first[-1]
    assert all(file.stat().st_size <= 64 << 10 for file in last)
    assert all(count(file) > 50 for file in last[:3])
    assert count(last[3]) > 0
    running.start()  # and what is there stays there until it is too much
    assert len(sorted(tmp_path.glob(f"all_*.{suffix}"))) == 4
    assert last[-1].exists()


def test_files_change_by_time_where_there_is_something_in_them(lab, replayed, tmp_path):
    running = lab(SINK.format("one") + f"[pcap all]\nfile = {tmp_path}/all.pcapng\nnetdev = one\nduration = 1s\n")
    sent(running, replayed, speed="40/s")
    assert settled(running, "all")["tx_frames"] == 100
    running.stop()
    files = sorted(tmp_path.glob("all_*.pcapng"))
    assert 3 <= len(files) <= 5
    assert sum(count(file) for file in files) == 100
    assert all(count(file) for file in files[:-1])


@pytest.mark.parametrize("suffix", ["pcapng", "pcap"])
def test_a_killed_capture_goes_on_in_its_file_and_every_frame_is_in_it_or_counted(lab, replayed, tmp_path, suffix):
    file = tmp_path / f"one.{suffix}"
    running = lab(SINK.format("one") + f"[pcap cap]\nfile = {file}\nnetdev = one\n")
    running.shardnet("port", "add", f"[pcap sender]\nreplay = {replayed}\nspeed = full\nloop = on\n")
    for times in range(1, 4):
        before = running.counters("cap")["tx_frames"]
        deadline.until(lambda: running.counters("cap")["tx_frames"] > before + 10_000, "frames written")  # noqa: B023
        os.kill(running.workers()["cap"], signal.SIGKILL)
        deadline.until(lambda: running.said().count("restarted") == times, "its death is seen")  # noqa: B023
        deadline.until(lambda: running.port("cap")["state"] == "up", "it is back")
    running.shardnet("port", "remove", "sender")
    counters = settled(running, "cap")
    passed = running.counters("one")["tx_frames"]
    running.stop()
    assert counters["offered"] == passed
    assert counters["tx_frames"] + counters["tx_drops"] == passed
    assert count(file) == counters["tx_frames"]
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith("one")] == [file.name]


@pytest.fixture
def small_disk(tmp_path):
    where = tmp_path / "disk"
    where.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", where], check=True)
    yield where
    subprocess.run(["umount", where], check=True)


@pytest.mark.needs("root")
@pytest.mark.parametrize("suffix", ["pcapng", "pcap"])
def test_a_full_disk_ends_the_capture_and_nothing_else(lab, replayed, tmp_path, small_disk, suffix):
    file = small_disk / f"one.{suffix}"
    (small_disk / "other").write_bytes(bytes(100_000))
    running = lab(
        SINK.format("one") + f"[pcap cap]\nfile = {file}\nnetdev = one\n[pcap all]\nfile = {tmp_path}/all.pcapng\n"
    )
    running.shardnet("port", "add", f"[pcap sender]\nreplay = {replayed}\nspeed = 5000/s\nloop = on\n")
    deadline.until(lambda: running.port("cap")["state"] == "failed", "the disk is full")
    assert running.port("cap")["detail"] == f"{file}: No space left on device"
    written = running.counters("cap")["tx_frames"]
    assert count(file) == written > 50
    before = running.counters("one")["tx_frames"]
    deadline.until(lambda: running.counters("one")["tx_frames"] > before + 1000, "frames go on")
    assert running.said().count("No space left") == 1
    counters = settled_failed(running)
    assert counters["offered"] == counters["tx_frames"] + counters["tx_drops"]
    (small_disk / "other").unlink()
    running.shardnet("port", "reset", "cap")
    deadline.until(lambda: running.counters("cap")["tx_frames"] > written + 10, "it goes on")
    running.shardnet("port", "remove", "sender")
    running.stop()
    assert count(file) > written


@pytest.fixture
def frozen_disk(tmp_path):
    """A disk that hangs: who writes waits in the kernel, and no signal wakes him."""
    image, where = tmp_path / "disk.img", tmp_path / "disk"
    where.mkdir()
    with open(image, "wb") as file:
        file.truncate(32 << 20)
    subprocess.run(["mkfs.ext4", "-q", image], check=True)
    subprocess.run(["mount", "-o", "loop", image, where], check=True)
    try:
        yield where
    finally:
        subprocess.run(["fsfreeze", "-u", where], check=False, stderr=subprocess.DEVNULL)
        subprocess.run(["umount", "-l", where], check=True)


@pytest.mark.needs("root", "mkfs.ext4", "fsfreeze", "/dev/loop-control")
def test_a_disk_that_hangs_costs_the_capture_frames_and_nothing_else(lab, replayed, tmp_path, frozen_disk):
    file = frozen_disk / "one.pcapng"
    running = lab(SINK.format("one") + f"[pcap cap]\nfile = {file}\nnetdev = one\n")
    running.shardnet("port", "add", f"[pcap sender]\nreplay = {replayed}\nspeed = 5000/s\nloop = on\n")
    deadline.until(lambda: running.counters("cap")["tx_frames"] > 100, "it is written")
    subprocess.run(["fsfreeze", "-f", frozen_disk], check=True)
    deadline.until(lambda: running.counters("cap")["tx_drops"] > 1000, "losses that are counted", 60)
    before = running.counters("one")
    deadline.until(lambda: running.counters("one")["tx_frames"] > before["tx_frames"] + 5000, "frames go on")
    assert running.counters("one")["tx_drops"] == 0 and running.counters("sender")["rx_drops"] == 0
    running.supervisor.send_signal(signal.SIGTERM)  # and it stops, without the one that cannot be killed
    deadline.ended(running.supervisor.pid, f"the end\n{running.said()}", 20)
    assert running.supervisor.wait() == 0
    assert "cannot be killed, it waits in the kernel (does a disk hang?): left behind" in running.said()
    subprocess.run(["fsfreeze", "-u", frozen_disk], check=True)
    running.nothing_is_left()
    assert count(file) > 100


def settled_failed(running):
    """The counters of a capture that failed while frames pass: nothing comes to it any more."""
    seen = collections.deque([{}], maxlen=2)

    def still():
        seen.append(running.counters("cap"))
        return seen[0] == seen[1]

    deadline.until(still, "nothing is mirrored to what failed")
    return seen[-1]


@pytest.mark.needs("root")
def test_shardnet_capture_tells_that_the_disk_is_full(lab, replayed, small_disk):
    running = lab(SINK.format("one"))
    running.shardnet("port", "add", f"[pcap sender]\nreplay = {replayed}\nspeed = 5000/s\nloop = on\n")
    file = small_disk / "client.pcapng"
    ran = subprocess.run(
        [labs.SHARDNET, "capture", "-w", file, "one"],
        env=running.environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ran.returncode == 1
    counts, why = ran.stderr.splitlines()
    assert why == f"shardnet: {file}: No space left on device"
    assert count(file) == int(counts.split()[0]) > 100
    running.shardnet("port", "remove", "sender")


def test_the_end_of_a_capture_tells_what_each_port_lost(lab, replayed, tmp_path):
    running = lab(SINK.format("one") + f"[pcap cap]\nfile = {tmp_path}/one.pcapng\nnetdev = one\n")
    pid = running.workers()["cap"]
    running.shardnet("port", "add", f"[pcap sender]\nreplay = {replayed}\nspeed = full\nloop = on\n")
    # Stopped, it is killed by the supervisor after a while; until then what does not fit into its lane is lost.
    os.kill(pid, signal.SIGSTOP)
    deadline.until(lambda: running.counters("cap")["tx_drops"] > 1000, "frames lost")
    deadline.until(lambda: running.said().count("restarted") == 1, "it is killed")
    deadline.until(lambda: running.port("cap")["state"] == "up", "it is back")
    running.shardnet("port", "remove", "sender")
    counters = settled(running, "cap")
    lost = running.json("drops")
    running.stop()
    (full,) = [row["frames"] for row in lost if (row["port"], row["cause"]) == ("cap", "tx_full")]
    assert full > 1000
    assert statistics(tmp_path / "one.pcapng") == {0: full}
    assert count(tmp_path / "one.pcapng") == counters["tx_frames"]


def statistics(file):
    """isb_ifdrop of each interface, draft-ietf-opsawg-pcapng 4.6."""
    data, at, found = file.read_bytes(), 0, {}
    while at < len(data):
        kind, size = struct.unpack_from("<2I", data, at)
        if kind == 5:
            interface, option = struct.unpack_from("<I", data, at + 8)[0], at + 20
            while (code := struct.unpack_from("<H", data, option)[0]) != 0:
                length = struct.unpack_from("<H", data, option + 2)[0]
                if code == 5:
                    found[interface] = struct.unpack_from("<Q", data, option + 4)[0]
                option += 4 + length + -length % 4
        at += size
    return found
