"""Fixtures that are real things, removed when a test ends however it ends: namespaces, running labs, guests.

A test says what it cannot do without: `@pytest.mark.needs("root", "iperf3")`. Where that lacks the test skips with the reason, and
with CI=true in the environment a skipped test is a failed one.
"""

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import desk as desks
import guest as guests
import labs
import namespaces
import plays

CI = os.environ.get("CI") == "true"


def lacking(need: str) -> str | None:
    """Why this machine cannot give a test what it needs, or None."""
    if need == "root":
        return None if os.geteuid() == 0 else "needs root"
    if need == "guests":
        return guests.lacking()
    if need.startswith("/"):
        return (
            None
            if os.access(need, os.R_OK | (os.W_OK if need.startswith("/dev/") else 0))
            else f"no {need} for this user"
        )
    return None if shutil.which(need) else f"no {need} here"


def pytest_configure(config: pytest.Config) -> None:
    # What labs keep beyond their end is not to meet the next one of the same name, nor what is kept on this machine.
    os.environ["SHARDNET_STATE_DIR"] = tempfile.mkdtemp(prefix="sn")
    config.addinivalue_line(
        "markers", "needs(*what): root, guests, a program by its name, a device or file by its path"
    )


def pytest_unconfigure(config: pytest.Config) -> None:
    shutil.rmtree(os.environ.pop("SHARDNET_STATE_DIR"), ignore_errors=True)


def pytest_runtest_setup(item: pytest.Item) -> None:
    needs = [need for mark in item.iter_markers("needs") for need in mark.args]
    reasons = [reason for reason in map(lacking, needs) if reason]
    if reasons:
        pytest.skip(", ".join(reasons))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    return _forbid_skip((yield))


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector: pytest.Collector) -> Iterator[None]:
    return _forbid_skip((yield))


def _forbid_skip(report):
    if CI and report.skipped and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        report.outcome = "failed"
        report.longrepr = f"skipped, and CI skips nothing: {reason}"
    return report


@pytest.fixture
def namespace() -> Iterator[Callable[..., namespaces.Namespace]]:
    """Make network namespaces: `left = namespace("left")`."""
    if reason := lacking("root"):
        pytest.skip(reason)
    with namespaces.making() as make:
        yield make


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[desks.Desk]:
    """A worker in miniature: `port = desk.add(stream, server="on", ...)`, driven by the test itself."""
    made = desks.Desk(tmp_path)
    yield made
    made.close()


@pytest.fixture
def play() -> Iterator[plays.Play]:
    """A crew of workers that only say what the test has them say."""
    playing = plays.Play()
    yield playing
    playing.close()


@pytest.fixture
def wire(desk: desks.Desk) -> Iterator[desks.Wire]:
    """The far end of a second port on the desk's switch."""
    made = desks.Wire(desk)
    yield made
    made.socket.close()


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Callable[..., labs.Lab]]:
    """Start labs: `running = lab(text)`; each is stopped at the end, and that it leaves nothing behind is part of the test."""
    with labs.starting(tmp_path) as start:
        yield start


@pytest.fixture
def guest(tmp_path: Path) -> Iterator[Callable[..., guests.Guest]]:
    """Boot guests in QEMU: `one = guest(["stream,server=on,addr.type=unix,addr.path=one.sock"])`."""
    if reason := guests.lacking():
        pytest.skip(reason)
    with guests.booting(tmp_path) as boot:
        yield boot
