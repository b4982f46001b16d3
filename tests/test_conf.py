"""The labs of conf/ run as they stand, and so does the one in the README."""

import re
import subprocess
from pathlib import Path

import pytest

import labs
import namespaces

ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / "conf").glob("*.ini"))


@pytest.mark.needs("root", "/dev/net/tun")
@pytest.mark.parametrize("file", FILES, ids=[file.stem for file in FILES])
def test_a_lab_of_conf_runs_as_it_stands(file, namespace):
    text = file.read_text()
    for name in dict.fromkeys(re.findall(r"(?:^netns =|ip netns add) ([\w.-]+)", text, re.M)):
        namespace("", name)
    for commands in re.findall(r"^; and so has the interface: +(.*(?:\n;  +.*)*)", text, re.M):
        subprocess.run(["sh", "-ec", commands.replace("\n;", "\n")], check=True)
    lab = labs.Lab(file)
    try:
        states = {port["name"]: port["state"] for port in lab.json("status")["ports"]}
        assert states
        assert set(states.values()) <= {"up", "waiting"}, lab.said()
        lab.stop()
    finally:
        lab.close()
        for left in Path("/tmp").glob("sncapture*_*.pcap*"):
            left.unlink()


def test_the_lab_of_the_readme_has_no_mistake(tmp_path):
    blocks = re.findall(r"(?:^    .*\n|^\n)+", (ROOT / "README.md").read_text(), re.M)
    (text,) = [block for block in blocks if "; lab.ini" in block]
    file = tmp_path / "lab.ini"
    file.write_text(re.sub(r"^    ", "", text, flags=re.M))
    subprocess.run([labs.SHARDNET, "check", file], check=True)


@pytest.mark.needs("root", "/dev/net/tun", "iperf3")
def test_the_demo_shows_what_it_promises_and_leaves_nothing():
    shown = subprocess.run(
        [ROOT / "tools" / "demo"], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120
    )
    assert shown.returncode == 0, shown.stdout + shown.stderr
    assert shown.stdout.count(" 0% packet loss") == 2
    assert "receiver" in shown.stdout
    left = [
        name
        for name in (*namespaces.names(), *labs.left_behind())
        if "demo" in name or "snleft" in name or "snright" in name
    ]
    assert not left
