"""The tools of bin/: those that a shell can test alone by tools.sh, those that need a lab here."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import deadline
import exchange
import labs
from shardnet.cli import qemu

ROOT = Path(__file__).parent.parent
BIN = ROOT / "bin"
PATH = f"{BIN}:{Path(sys.executable).parent}:/usr/sbin:/usr/bin:/sbin:/bin"
LAB = "[stream vm1]\nserver = on\naddr.type = unix\naddr.path = vm1.sock\n"


def ran(running: labs.Lab | None, *words: str) -> subprocess.CompletedProcess[str]:
    environment = {**(running.environment if running else os.environ), "PATH": PATH}
    return subprocess.run(words, env=environment, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("tool", sorted(BIN.iterdir()), ids=lambda tool: tool.name)
def test_a_tool_says_what_it_is_in_its_first_lines_and_its_usage_with_code_2(tool):
    first, second, *_ = tool.read_text().splitlines()
    assert first in ("#!/bin/sh", "#!/usr/bin/python3 -I")
    assert second.startswith(f"# {tool.name} ")
    wrong = subprocess.run([tool], env={"PATH": PATH}, capture_output=True, text=True)
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert wrong.stderr.startswith(f"usage: {tool.name} ")


@pytest.mark.needs("root", "ip", "unshare")
def test_the_tools_of_tap_sections_do_as_the_shell_script_expects():
    done = ran(None, "unshare", "-n", "-m", "sh", str(ROOT / "tests/tools.sh"))
    assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr


@pytest.mark.parametrize(("lab", "port"), [("demo", "vm1"), ("a b", "x"), ("demo", "vm2")])
def test_an_address_is_the_one_that_shardnet_qemu_gives(lab, port):
    assert ran(None, "shardnet-mac", port, lab).stdout == qemu.mac(lab, port) + "\n"


def test_waiting_ends_when_the_port_is_up_and_with_75_when_it_is_not(lab):
    running = lab(LAB)
    waited = ran(running, "shardnet-wait", "vm1", "0")
    assert (waited.returncode, waited.stdout) == (75, "")
    assert waited.stderr == "shardnet-wait: vm1: waiting, after 0 s\n"
    assert ran(running, "shardnet-wait", "nobody", "0").stderr == "shardnet-wait: nobody: no such port, after 0 s\n"
    waiting = subprocess.Popen(["shardnet-wait", "plugged", "20"], env={**running.environment, "PATH": PATH})
    with subprocess.Popen(
        ["shardnet", "plug", "plugged"],
        env={**running.environment, "PATH": PATH},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as plug:
        assert waiting.wait(30) == 0
        plug.kill()


@pytest.mark.needs("root", "ip", "ping", "/dev/net/tun")
def test_two_namespaces_of_a_lab_reach_each_other_and_go_again(lab):
    running = lab(LAB)
    left, right = (f"bt{os.getpid()}{word}" for word in "lr")
    try:
        assert ran(running, "shardnet-netns", "add", left, "10.78.0.1/24").stderr == ""
        assert ran(running, "shardnet-netns", "add", right, "10.78.0.2/24").stderr == ""
        assert ran(running, "shardnet-netns", "add", right).returncode == 4
        pinged = ran(running, "ip", "netns", "exec", left, *exchange.PING, "10.78.0.2")
        exchange.all_answered(pinged.stdout)
    finally:
        gone = [ran(running, "shardnet-netns", "del", name) for name in (left, right, right)]
    assert [one.returncode for one in gone] == [0, 0, 0]
    assert {port["name"] for port in running.json("port", "list")} == {"vm1"}
    assert not {left, right} & set(os.listdir("/run/netns"))


@pytest.mark.needs("root", "ip")
def test_a_namespace_that_the_lab_refuses_is_not_left_behind(lab):
    running = lab(LAB)
    refused = ran(running, "shardnet-netns", "add", "vm1", "10.78.0.1/24")
    assert refused.returncode == 4
    assert not os.path.exists("/run/netns/vm1")


@pytest.fixture
def sharks(lab, tmp_path):
    """A lab, and how to run tshark with our tool in its personal folder."""
    running = lab("[echo port7]\naddress = 10.78.1.1/24\n")
    folder = tmp_path / "wireshark/extcap"
    folder.mkdir(parents=True)
    (folder / "shardnet-extcap").symlink_to(BIN / "shardnet-extcap")
    # From Wireshark 4.4 on the personal folder is another.
    environment = {
        **running.environment,
        "PATH": PATH,
        "XDG_CONFIG_HOME": str(tmp_path),
        "WIRESHARK_EXTCAP_DIR": str(folder),
    }

    def tshark(*words: object) -> subprocess.Popen[str]:
        return subprocess.Popen(
            ["tshark", *map(str, words)],
            env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip

    return running, tshark


@pytest.mark.needs("tshark")
def test_tshark_lists_the_ports_and_the_switches_of_running_labs(sharks):
    _, tshark = sharks
    listed, _ = tshark("-D").communicate(timeout=60)
    assert "shardnet:lab:port7 (lab lab: [echo port7])" in listed
    assert "shardnet:lab:switch:lan (lab lab: [switch lan])" in listed
    assert "EN10MB" in tshark("-i", "shardnet:lab:port7", "-L").communicate(timeout=60)[0]


@pytest.mark.needs("root", "ip", "ping", "tshark")
@pytest.mark.parametrize("interface", ["shardnet:lab:port7", "shardnet:lab:switch:lan"])
def test_tshark_captures_from_a_port_and_from_a_switch(sharks, tmp_path, interface):
    running, tshark = sharks
    written = tmp_path / "seen.pcapng"
    with tshark("-i", interface, "-c", "2", "-w", written) as capture:
        try:
            deadline.until(lambda: "capture of port7" in running.said() or capture.poll() is not None, "the capture")
            running.shardnet("exec", "--address", "10.78.1.2/24", "--", "ping", "-c", "2", "-i", "0.2", "10.78.1.1")
            said, _ = capture.communicate(timeout=30)
        finally:
            capture.kill()
    assert capture.returncode == 0, said
    shown = tshark("-r", written, "-T", "fields", "-e", "frame.interface_name", "-e", "_ws.col.Protocol")
    lines = shown.communicate(timeout=30)[0].splitlines()
    assert len([line for line in lines if line.startswith("port7\t")]) == 2, said


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--what"], "--what: unknown option"),
        (["--extcap-dlts"], "no interface (shardnet:LAB:PORT or shardnet:LAB:switch:NAME is meant)"),
        (["--capture", "--extcap-interface"], "--extcap-interface: a value is needed"),
        (["--capture", "--extcap-interface", "shardnet:a:b"], "--fifo: where to write is needed"),
        (
            ["--capture", "--extcap-interface=shardnet:a:b", "--fifo=f", "--extcap-capture-filter=arp"],
            "arp: capture filters are not done here, use a display filter",
        ),
        (
            ["--capture", "--extcap-interface=shardnet:a:switch:b", "--fifo=f"],
            "shardnet:a:switch:b: no such switch, or it has no ports",
        ),
    ],
)
def test_the_extcap_says_what_it_cannot_do(words, message):
    refused = ran(None, "shardnet-extcap", *words)
    assert (refused.returncode, refused.stdout, refused.stderr) == (2, "", f"shardnet-extcap: {message}\n")
