"""The manual pages and what pip installs beside the package."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from shardnet import kinds
from shardnet.cli import usage

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "docs/man/shardnet.1", ROOT / "docs/man/shardnet.ini.5"]


def shown(page):
    ran = subprocess.run(
        ["man", "-l", page], env={**os.environ, "MANWIDTH": "100", "LC_ALL": "C.UTF-8"}, capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def test_the_pages_and_the_completions_are_up_to_date():
    ran = subprocess.run([sys.executable, ROOT / "docs/manual.py", "--check"], capture_output=True, text=True)
    assert (ran.returncode, ran.stdout) == (0, ""), f"run docs/manual.py: {ran.stdout}{ran.stderr}"


@pytest.mark.needs("man", "groff")
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_groff_has_nothing_against_a_page(page):
    ran = subprocess.run(["groff", "-man", "-ww", "-z", "-Tutf8", page], capture_output=True, text=True)
    assert (ran.returncode, ran.stderr) == (0, "")


@pytest.mark.needs("man")
def test_the_first_page_has_every_command_and_every_tool():
    page = shown(PAGES[0])
    for name in usage.commands():
        assert f"   shardnet {name}\n" in page
    for tool in (ROOT / "bin").iterdir():
        assert f"   {tool.name}\n" in page


@pytest.mark.needs("man")
def test_the_second_page_has_every_kind_with_its_options():
    page = shown(PAGES[1])
    for kind in kinds.names():
        assert f"   [{kind} NAME]\n" in page
    for key in ("switch", "max_macs", "addr.path", "reconnect-ms", "ifname", "lane_bytes"):
        assert f"       {key} = " in page


def test_what_is_installed_leads_to_the_files_of_the_repository():
    installed = [path for path in (ROOT / "install").rglob("*") if path.is_symlink()]
    assert {path.name for path in installed} == {page.name for page in PAGES} | {
        tool.name for tool in (ROOT / "bin").iterdir()
    }
    assert all(path.resolve().is_file() for path in installed)
    assert all(os.access(tool, os.X_OK) for tool in (ROOT / "bin").iterdir())
