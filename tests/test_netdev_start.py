"""A lab of QEMU's own strings and the same lab as a file: nothing that runs tells them apart."""

import json

import pytest

import deadline
import ends
import flow
import labs

SPECS = (
    "stream,id=vm1,server=on,addr.type=unix,addr.path=vm1.sock",
    '{"type": "stream", "id": "vm2", "server": true, "addr": {"type": "unix", "path": "vm2.sock"}}',
    "type=dgram,id=vm3,local.type=unix,local.path=vm3.sock,remote.type=unix,remote.path=vm3.far.sock",
    "stream,id=vm4,server=off,addr.type=inet,addr.host=127.0.0.1,addr.port=1,noaddr.ipv6,reconnect-ms=86400000",
    "socket,id=vm5,listen=127.0.0.1:{port}",
    "dgram,id=vm6,remote.type=inet,remote.host=230.0.0.1,remote.port={port},local.type=inet,local.host=127.0.0.1",
)
FILE = """
[stream vm1]
server = on
addr.type = unix
addr.path = vm1.sock

[stream vm2]
server = on
addr.type = unix
addr.path = vm2.sock

[dgram vm3]
local.type = unix
local.path = vm3.sock
remote.type = unix
remote.path = vm3.far.sock

[stream vm4]
server = off
addr.type = inet
addr.host = 127.0.0.1
addr.port = 1
addr.ipv6 = off
reconnect-ms = 86400000

[socket vm5]
listen = 127.0.0.1:{port}

[dgram vm6]
remote.type = inet
remote.host = 230.0.0.1
remote.port = {port}
local.type = inet
local.host = 127.0.0.1
"""
TAP = ("tap,id=up,ifname=qemustring,script=no,downscript=no,sndbuf=1M",)
FILE_TAP = """
[tap up]
ifname = qemustring
script = no
downscript = no
sndbuf = 1M
"""
OF_ONE_RUN = {"pid", "file", "uptime_s", "rss_bytes", "beat"}
OF_THE_HOST = {"counters", "macs"}  # what its own IPv6 says on a new interface


def told(lab: labs.Lab, besides: set[str]) -> object:
    """What `shardnet status` says, once every port has said how it is, without what differs between two runs of one file."""

    def settled() -> dict | None:
        status = lab.json("status")
        return (
            status if all(port["state"] in ("up", "waiting") and port["detail"] for port in status["ports"]) else None
        )

    status = deadline.until(settled, "every port up or waiting")
    text = json.dumps(status).replace(str(lab.directory), "DIRECTORY")
    return json.loads(text, object_hook=lambda found: {k: v for k, v in found.items() if k not in besides})


def frames_pass(lab: labs.Lab) -> None:
    """Attach to three of the ports and have every pair of ends hear each other."""
    attached = [ends.Stream("vm1", 1), ends.Stream("vm2", 2), ends.Dgram("vm3", 3)]
    for end in attached:
        end.attach(lab.run_dir)
    for one, other in zip(attached, attached[1:] + attached[:1], strict=True):
        flow.meet(one, other)
    for end in attached:
        end.close()


@pytest.mark.parametrize("with_tap", [False, pytest.param(True, marks=pytest.mark.needs("root", "/dev/net/tun"))])
def test_qemus_strings_give_the_same_lab_as_the_file(lab, with_tap):
    port = labs.free_port()
    text = FILE.format(port=port) + (FILE_TAP if with_tap else "")
    specs = [spec.replace("{port}", str(port)) for spec in SPECS + (TAP if with_tap else ())]
    besides = OF_ONE_RUN | (OF_THE_HOST if with_tap else set())
    of_file = lab(text)
    expected = told(of_file, besides)
    frames_pass(of_file)
    of_file.stop()
    of_strings = lab(None, *(word for spec in specs for word in ("--netdev", spec)))
    assert told(of_strings, besides) == expected
    assert of_strings.json("status")["file"] is None
    frames_pass(of_strings)


def test_strings_come_beside_the_ports_of_a_file_and_outlive_its_reload(lab):
    first, _, third, *_ = SPECS
    running = lab(FILE.split("[stream vm2]")[0], "--netdev", SPECS[1], "--netdev", third)
    before = running.workers()
    assert list(before) == ["vm1", "vm2", "vm3"]
    frames_pass(running)
    running.file.write_text(FILE.split("[stream vm2]")[0] + "vlan = 5\n")
    assert [step["section"] for step in running.json("reload")["plan"]] == ["[stream vm1]"]
    assert running.workers() == before


def test_a_wrong_string_starts_nothing(tmp_path):
    before = labs.left_behind()
    with pytest.raises(AssertionError, match="ended with status 1") as caught:
        labs.Lab(None, "--netdev", SPECS[0], "--netdev", "stream,id=vm2,server=maybe,addr.type=unix,addr.path=b.sock")
    assert "server = maybe: neither on nor off" in str(caught.value)
    assert labs.left_behind() == before
