"""The tools of bin/: those that a shell can test alone by tools.sh, those that need a lab here."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

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
    assert first == "#!/bin/sh"
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
        pinged = ran(running, "ip", "netns", "exec", left, "ping", "-c", "2", "-i", "0.2", "10.78.0.2")
        assert pinged.returncode == 0, pinged.stdout
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
