"""The equipment of the tests, without shardnet: if these fail, look here first."""

import signal

import pytest

import namespaces
from deadline import until


@pytest.mark.needs("guests")
def test_two_guests_exchange_20_mb_each_way_through_nothing_but_qemu(guest, tmp_path):
    path = tmp_path / "wire"
    one = guest([f"stream,server=on,addr.type=unix,addr.path={path}"])
    until(path.exists, "QEMU listening")
    two = guest([f"stream,server=off,addr.type=unix,addr.path={path}"])
    one.address(0, "10.0.0.1/24")
    two.address(0, "10.0.0.2/24")
    one.ping("10.0.0.2", count=5)
    ours, theirs = one.fill("file", 20), two.fill("file", 20)
    assert one.fetch("http://10.0.0.2/file") == theirs
    assert two.fetch("http://10.0.0.1/file") == ours
    assert ours != theirs


@pytest.mark.needs("guests")
def test_a_command_that_fails_in_a_guest_fails_the_test_with_its_words(guest):
    with pytest.raises(AssertionError, match="status 1: .*No such file"):
        guest([]).run("cat /nowhere")


@pytest.mark.needs("root")
def test_a_namespace_is_gone_with_its_processes():
    one = namespaces.Namespace("one")
    assert one.links() == {"lo"}
    with one.running("sleep", "1000") as sleeping:
        until(lambda: "sleep" in one.run("cat", f"/proc/{sleeping.pid}/comm"), "sleep running")
        one.close()
        assert sleeping.wait(10) == -signal.SIGKILL
    assert one.name not in namespaces.names()
