"""What a process can no longer do after it gave up its privileges, tried by one that did."""

import os
import subprocess
import sys

import pytest

TRIED = """
import ctypes, os, sys
from shardnet import _core
memory = os.memfd_create("arena")
os.ftruncate(memory, 8192)
libc = ctypes.CDLL(None, use_errno=True)
_core.drop_privileges()
calls = {
    "a user namespace": lambda: libc.unshare(0x10000000),
    "a network namespace": lambda: libc.unshare(0x40000000),
    "another's namespace": lambda: libc.setns(os.open("/proc/self/ns/net", 0), 0),
    "a mount": lambda: libc.mount(b"none", b"/mnt", b"tmpfs", 0, None),
    "a look into its parent": lambda: libc.ptrace(16, os.getppid(), 0, 0),
    "a shorter arena": lambda: libc.ftruncate(memory, 0),
    "a hole in the arena": lambda: libc.fallocate(memory, 3, ctypes.c_long(0), ctypes.c_long(4096)),
    "memory for a lane": lambda: libc.fallocate(memory, 0, ctypes.c_long(0), ctypes.c_long(8192)),
}
result = calls[sys.argv[1]]()
print(result, ctypes.get_errno())
"""


def after(what):
    """The result and the errno of a call tried without privileges."""
    run = subprocess.run([sys.executable, "-c", TRIED, what], capture_output=True, text=True, timeout=30)
    assert run.returncode == 0, run.stderr
    return tuple(map(int, run.stdout.split()))


@pytest.mark.parametrize(
    "what",
    [
        "a user namespace",
        "a network namespace",
        "another's namespace",
        "a mount",
        "a look into its parent",
        "a shorter arena",
        "a hole in the arena",
    ],
)
def test_without_privileges_there_is_no(what):
    assert after(what) == (-1, 1), os.strerror(1)


def test_memory_for_a_lane_can_still_be_had():
    assert after("memory for a lane")[0] == 0
