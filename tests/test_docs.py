"""Each kind has a page, each page a lab of conf/, and what a page says to type runs as it stands, in namespaces of its own."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

import labs
import test_conf
from shardnet import kinds

ROOT = Path(__file__).parents[1]
PAGES = {page.name: page.read_text() for page in sorted((ROOT / "docs").glob("*.md"))}
LABS = {file.name: file.read_text() for file in test_conf.FILES}  # each of them is started there
PROMPT = re.compile(r"^(?:By hand, as root|And [^\n]*):\n\n((?:    .*\n)+)", re.M)
BLOCKS = {name: "".join(PROMPT.findall(text)) for name, text in PAGES.items()}
# What a page leaves in /run and /tmp goes with it; the tree stays where it is, though that be below /tmp.
OUTSIDE = """
mount -t tmpfs tmpfs /run
mkdir /run/netns /run/tree
mount --rbind "$1" /run/tree
mount -t tmpfs tmpfs /tmp
mkdir -p "$1"
mount --rbind /run/tree "$1"
cd "$1"
ip link set lo up
exec sh -exc "$0"
"""


def shown(text):
    """The labs that a page names."""
    return set(re.findall(r"conf/([a-z0-9-]+\.ini)", text))


@pytest.mark.parametrize("kind", kinds.names())
def test_each_kind_has_a_page_that_shows_a_lab_with_it(kind):
    pages = [text for text in PAGES.values() if f"`[{kind} NAME]`" in text]
    assert pages, f"no page of docs/ says `[{kind} NAME]`"
    files = set().union(*map(shown, pages))
    assert any(re.search(rf"^\[{kind} ", LABS.get(file, ""), re.M) for file in files), (
        f"none shows a lab with [{kind} ...]"
    )


def test_labs_and_pages_that_are_named_are_there_and_none_is_left_out():
    named = set().union(*map(shown, PAGES.values()))
    assert named == set(LABS)
    assert set(re.findall(r"\]\(([a-z0-9-]+\.md)\)", PAGES["README.md"])) == set(PAGES) - {"README.md"}


@pytest.mark.needs(
    "root", "/dev/net/tun", "qemu-system-x86_64", "iperf3", "socat", "vde_switch", "passt", "dig", "atftp", "smbclient"
)
@pytest.mark.parametrize("page", [name for name, block in BLOCKS.items() if block])
def test_what_a_page_says_to_type_runs_as_it_stands(page):
    path = f"{labs.SHARDNET.parent}:{os.environ['PATH']}"
    assert shutil.which("unshare")
    words = ["unshare", "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
    block = re.sub(r"^    ", "", BLOCKS[page], flags=re.M)
    ran = subprocess.run(
        [*words, "sh", "-ec", OUTSIDE, block, ROOT],
        env={**os.environ, "PATH": path},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=120,
    )
    print(ran.stdout)
    assert ran.returncode == 0, ran.stdout
