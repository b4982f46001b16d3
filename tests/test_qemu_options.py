"""Every option of QEMU's -netdev is read, or refused with a reason, and docs/netdev.md says so."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[1] / "docs"))
import netdev as page  # noqa: E402  docs/netdev.py

from shardnet import kinds, lab, netdev  # noqa: E402

HERE = [kind for kind in page.QEMU if netdev.OURS.get(kind, kind) in kinds.names()]


@pytest.mark.parametrize(("kind", "key"), [(kind, key) for kind in HERE for key in page.QEMU[kind].split()])
def test_an_option_of_qemus_is_known(kind, key):
    assert page.is_known(kind, key)
    assert page.fate(kind, key)


@pytest.mark.parametrize("kind", sorted(set(page.QEMU) - set(HERE) - page.LATER))
def test_a_type_that_is_not_here_is_refused_with_the_reason(kind):
    with pytest.raises(lab.Wrong) as wrong:
        netdev.read(f"{kind},id=n0")
    assert str(wrong.value) == f'--netdev "{kind},id=n0": type = {kind}: {netdev.REFUSED[kind]}'


@pytest.mark.needs("qemu-system-x86_64")
def test_every_type_of_this_qemu_is_in_the_table():
    said = subprocess.run(
        ["qemu-system-x86_64", "-netdev", "help"], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=True
    ).stdout
    types = re.findall(r"^[a-z][a-z0-9-]+$", said, re.M)
    assert len(types) > 5
    assert set(types) <= page.QEMU.keys()


@pytest.mark.needs("qemu-system-x86_64")
def test_the_table_has_every_type_and_option_that_this_qemu_prints():
    def printed(*words):
        return subprocess.run(["qemu-system-x86_64", *words], capture_output=True, text=True, check=True).stdout

    table = {kind: set(keys.split()) for kind, keys in page.QEMU.items()}
    syntax = re.findall(r"^-netdev ([a-z0-9-]+),id=str(.*(?:\n +\[,.*)*)", printed("-help"), re.M)
    assert len({kind for kind, _ in syntax}) > 8
    for kind, text in syntax:
        short = {key.rpartition(".")[2] for key in table[kind]}  # [,to=maxport] is addr.to
        unknown = set(re.findall(r",([a-z][\w.-]*)(?=[=\]])", text)) - table[kind] - short
        assert not unknown, kind
    assert set(printed("-netdev", "help").splitlines()[1:]) <= set(table)
