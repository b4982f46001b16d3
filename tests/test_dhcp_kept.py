"""Leases on disk: what a killed service has told its clients is what its successor knows."""

import errno
import ipaddress
import os
import resource
import signal

import pytest

from shardnet import rundir, statedir
from shardnet.dhcp import kept, leases

NOW, WALL, DAY = 50.0, 1_800_000_000.0, 86_400.0


def lease(last, state="bound", until=NOW + 3600, name="vm"):
    mac = bytes([0x52, 0x54, 0, 0, 0, last])
    return leases.Lease(
        ipaddress.IPv4Address(f"10.0.2.{last}").packed, b"h\1" + mac, mac, name, state, until, None, True
    )


@pytest.fixture
def directory(tmp_path):
    fd = os.open(tmp_path, os.O_RDONLY)
    yield fd
    os.close(fd)


def test_leases_are_read_as_they_were_last_written(directory):
    file = kept.Kept(directory, "pool.leases")
    six = leases.Lease(
        ipaddress.IPv6Address("fec0::1000").packed, b"d" + bytes(9), b"", "", "bound", float("inf"), None, True
    )
    file.append([lease(15), lease(16, name=""), six], NOW, WALL)
    file.append([lease(16, "free"), lease(15, until=NOW + 7200)], NOW, WALL)
    file.close()
    found = kept.Kept(directory, "pool.leases").read(NOW + 1000, WALL + 60, DAY)
    assert [(str(ipaddress.ip_address(one.address)), one.state, one.until - NOW - 1000) for one in found] == [
        ("fec0::1000", "bound", DAY), ("10.0.2.16", "free", 3540), ("10.0.2.15", "bound", 7140),
    ]  # fmt: skip
    assert (found[2].key, found[2].mac, found[2].name) == (lease(15).key, lease(15).mac, "vm")


def test_a_line_that_was_cut_and_lines_that_are_none_cost_nothing_else(directory, tmp_path):
    good = "1800003600 10.0.2.15 52:54:00:00:00:0f bound 6801525400 vm\n"
    bad = ["", "x" * 100, "1 10.0.2.999 - bound 68 -", "1800003600 10.0.2.16 - bound 6 -", "\0\xff"]
    (tmp_path / "pool.leases").write_bytes("\n".join([good, *bad, good[:40]]).encode("latin1"))
    file = kept.Kept(directory, "pool.leases")
    assert [one.name for one in file.read(NOW, WALL, DAY)] == ["vm"]
    file.append([lease(17)], NOW, WALL)
    assert len(kept.Kept(directory, "pool.leases").read(NOW, WALL, DAY)) == 2


def test_what_ended_while_nobody_served_is_free_and_a_clock_put_back_gives_nobody_more(directory):
    kept.Kept(directory, "pool.leases").append([lease(15)], NOW, WALL)
    file = kept.Kept(directory, "pool.leases")
    assert [one.state for one in file.read(NOW, WALL + 4000, DAY)] == ["free"]
    assert [one.until - NOW for one in file.read(NOW, WALL - 10 * DAY, DAY)] == [DAY]


def test_a_file_that_has_grown_is_written_anew(directory, tmp_path):
    file = kept.Kept(directory, "pool.leases")
    for number in range(1500):
        file.append([lease(15, until=NOW + number)], NOW, WALL)
        file.tidy([lease(15, until=NOW + number)], 1, NOW, WALL)
    assert (tmp_path / "pool.leases").read_text().count("\n") < 600
    assert [one.until for one in kept.Kept(directory, "pool.leases").read(NOW, WALL, DAY)] == [NOW + 1499]
    assert os.listdir(tmp_path) == ["pool.leases"]


def test_a_full_disk_is_an_error_that_leaves_the_old_file(directory, tmp_path):
    file = kept.Kept(directory, "pool.leases")
    file.append([lease(15)], NOW, WALL)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    former = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (60, before[1]))
        with pytest.raises(OSError) as wrong:
            file.append([lease(16)] * 10, NOW, WALL)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, former)
    assert wrong.value.errno == errno.EFBIG
    assert kept.Kept(directory, "pool.leases").read(NOW, WALL, DAY)[0].name == "vm"


def test_a_table_takes_over_what_still_fits():
    mac = bytes([0x52, 0x54, 0, 0, 0, 16])
    reservations = [leases.Reservation(lease(20).address, "db", mac=bytes(6))]
    table = leases.Leases(lease(15).address, lease(30).address, reservations=reservations)
    table.restore([lease(15), lease(16, "free"), lease(20), lease(99)])
    assert [(one.address[3], one.state) for one in table] == [(15, "bound"), (16, "free")]
    assert table.offer(leases.Client(b"h\1" + mac, mac), NOW).address == lease(16).address
    assert table.offer(leases.Client(b"new", mac), NOW).address == lease(17).address


def test_the_state_directory_is_ours_alone_or_is_not_used(tmp_path, monkeypatch):
    monkeypatch.setenv("SHARDNET_STATE_DIR", str(tmp_path / "state"))
    os.close(statedir.opened("demo"))
    assert (tmp_path / "state/demo").stat().st_mode & 0o777 == 0o700
    (tmp_path / "state/demo").chmod(0o755)
    with pytest.raises(rundir.Error, match="mode 755 lets others in"):
        statedir.opened("demo")
