"""Programs of this host for a guest, with the shared libraries that they need: entries of an initramfs.

Python is the one that runs the tests, with no more of its library than the modules named here, compiled: the guest's processor is an
emulated one. Everything is in /usr/bin there; Python starts with `-I -S`.
"""

import os
import py_compile
import re
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

Entry = tuple[str, int, bytes]
LIBRARY = re.compile(r"(?:=> )?(/\S+) \(0x", re.ASCII)


def entries(programs: Iterable[str], modules: Iterable[str]) -> list[Entry]:
    """The programs by their names, and Python with these modules, as name, mode and content."""
    python = Path(sys.executable).resolve()
    needed = {Path(shutil.which(name) or name).resolve(): f"usr/bin/{name}" for name in programs}
    needed[python] = str(python)[1:]
    files: dict[str, bytes] = {}
    with tempfile.TemporaryDirectory() as directory:
        compiled = Path(directory) / "compiled"
        for source in _library(python, modules):
            if source.suffix == ".py":
                py_compile.compile(str(source), str(compiled), doraise=True)
                files[str(source.with_suffix(".pyc"))[1:]] = compiled.read_bytes()
            else:
                needed[source] = str(source)[1:]
    for path, name in list(needed.items()):
        files[name] = path.read_bytes()
        for library in _libraries(path):
            files[library[1:]] = Path(library).read_bytes()
    folders = sorted({str(parent) for name in files for parent in Path(name).parents} - {"."})
    return [
        *((folder, 0o755 | stat.S_IFDIR, b"") for folder in folders),
        *((name, 0o755 | stat.S_IFREG, content) for name, content in files.items()),
        ("usr/bin/python3", 0o777 | stat.S_IFLNK, os.fsencode(python)),
    ]


def _library(python: Path, modules: Iterable[str]) -> list[Path]:
    """The files of the modules, and of those that they import or that Python imports to start."""
    told = subprocess.run(
        [python, "-I", "-S", "-c", f"import sys, os, {', '.join(modules)}\n"
         "for one in list(sys.modules.values()): print(getattr(one, '__file__', None) or '')"],
        check=True, stdout=subprocess.PIPE, text=True,
    ).stdout.split()  # fmt: skip
    return [Path(word) for word in told]


def _libraries(path: Path) -> list[str]:
    told = subprocess.run(["ldd", path], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True).stdout
    return LIBRARY.findall(told)
