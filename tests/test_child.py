"""Where the processes of a lab come from."""

import os
import subprocess
import sys
from pathlib import Path

SHARDNET = Path(sys.executable).with_name("shardnet")


def test_a_lab_imports_nothing_from_the_directory_it_is_started_in(tmp_path):
    here = tmp_path / "here"
    for package in ("shardnet", "multiprocess", "msgpack"):
        (here / package).mkdir(parents=True)
        (here / package / "__init__.py").write_text(f"open({str(tmp_path / 'imported')!r}, 'w').close()\n")
    environment = {**os.environ, "SHARDNET_RUN_DIR": str(tmp_path / "run")}
    started = subprocess.run(
        [SHARDNET, "start", "--name", "strange", "--detach"],
        cwd=here, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    try:
        assert started.returncode == 0, started.stderr
        assert not (tmp_path / "imported").exists()
    finally:
        subprocess.run([SHARDNET, "stop", "--lab", "strange"], env=environment, check=True, timeout=60)
