"""What a kind says of QEMU is what a real QEMU takes: as a hub without a guest, it carries frames from the port to a plain socket."""

import contextlib
import re
import socket
import subprocess

import pytest

from desk import Far, frame
from shardnet import kinds, options

QEMU = "qemu-system-x86_64"


def free_port(kind=socket.SOCK_STREAM):
    with socket.socket(socket.AF_INET, kind) as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def ways():
    """Every way to attach: the kind, and what the section says; `PORT` stands for a free port."""
    inet = {"addr.type": "inet", "addr.host": "127.0.0.1", "addr.port": "PORT"}
    group = {"remote.type": "inet", "remote.host": "239.192.7.2", "remote.port": "PORT"}
    loopback = {"local.type": "inet", "local.host": "127.0.0.1"}
    yield "stream", {"server": "on", "addr.type": "unix", "addr.path": "a, b.sock"}
    yield "stream", {"server": "on", "addr.type": "unix", "addr.path": "shardnet-test-attach", "addr.abstract": "on"}
    yield "stream", {"server": "on", **inet}
    yield "stream", {"server": "off", "addr.type": "unix", "addr.path": "qemu.sock", "reconnect-ms": "50"}
    yield "stream", {"server": "off", **inet, "reconnect-ms": "50"}
    yield "dgram", {"local.type": "unix", "local.path": "a", "remote.type": "unix", "remote.path": "b"}
    yield "dgram", {"local.type": "unix", "local.path": "a"}
    yield (
        "dgram",
        {**loopback, "local.port": "PORT", "remote.type": "inet", "remote.host": "127.0.0.1", "remote.port": "PORT"},
    )
    yield "dgram", {**group, **loopback}
    yield "socket", {"listen": "127.0.0.1:PORT"}
    yield "socket", {"connect": "127.0.0.1:PORT"}
    yield "socket", {"mcast": "239.192.7.3:PORT", "localaddr": "127.0.0.1"}
    yield "socket", {"udp": "127.0.0.1:PORT", "localaddr": "127.0.0.1:PORT"}


@contextlib.contextmanager
def hub(netdev, tmp_path):
    """A QEMU that joins what `netdev` attaches to, and a stream whose far end this gives."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "far"))
        listener.listen()
        listener.settimeout(20)
        plain = ["-netdev", f"stream,id=net1,server=off,addr.type=unix,addr.path={tmp_path}/far"]
        joined = [word for n in (0, 1) for word in ("-netdev", f"hubport,id=hub{n},hubid=0,netdev=net{n}")]
        process = subprocess.Popen([QEMU, "-M", "none", "-nodefaults", "-display", "none", *netdev, *plain, *joined])
        try:
            far, _ = listener.accept()
            with far:
                yield Far(far)
        finally:
            process.kill()
            process.wait()
            (tmp_path / "far").unlink()


@pytest.mark.needs(QEMU)
@pytest.mark.parametrize(
    ("kind", "given"), list(ways()), ids=lambda value: value if isinstance(value, str) else "-".join(value.values())
)
def test_a_qemu_attaches_and_after_its_end_another_one(desk, wire, tmp_path, kind, given):
    said = subprocess.run([QEMU, "--version"], capture_output=True, text=True, check=True).stdout
    version = tuple(map(int, re.search(r"version (\d+)\.(\d+)", said).groups()))
    module = kinds.module(kind)
    given = {key: re.sub("PORT", lambda _: str(free_port()), text) for key, text in given.items()}
    desk.add(module, **{key.replace("-", "_").replace(".", "__"): text for key, text in given.items()})
    netdev = module.qemu(options.read(module, given), tmp_path, version)
    for life in range(2):
        with hub(netdev, tmp_path) as far:
            out, back = frame(2 * life), frame(2 * life + 1, 1514, source=2)

            def leaves(far=far, out=out):
                wire.send(out)
                return any(got == out for got in iter(far.receive, None))

            def returns(far=far, back=back):
                far.send(back)
                return any(got == back for got in iter(wire.receive, None))

            # Until QEMU is ready what is sent is lost, and where nobody has told the port its far end, that one speaks first.
            if "remote.type" not in given and kind == "dgram":
                desk.until(returns)
            desk.until(leaves)
            desk.until(returns)
