"""The C programs beside this file, and the core's own example, compiled where they are older than their source."""

import functools
import shutil
from pathlib import Path

from bench import corner

HERE = Path(__file__).parent
TREE = HERE.parent
BUILD = TREE / "build" / "bench"


@functools.cache
def program(name: str) -> Path:
    """Compile bench/NAME.c and return the program."""
    source, built = HERE / f"{name}.c", BUILD / name
    if not built.exists() or built.stat().st_mtime < source.stat().st_mtime:
        BUILD.mkdir(parents=True, exist_ok=True)
        corner.run("cc", "-O2", "-Wall", "-o", built, source)
    return built


@functools.cache
def lane_speed() -> Path:
    """Build core/examples/lane_speed.rs, which takes ring.c's arguments, and return the program."""
    if not (TREE / "core/examples/lane_speed.rs").exists():
        raise corner.Failed("core/examples/lane_speed.rs: not there")
    if not shutil.which("cargo"):
        raise corner.Failed("cargo: not installed (tools/setup bench)")
    target = BUILD / "target"
    corner.run(
        *("cargo", "build", "--quiet", "--release", "--locked", "--no-default-features", "--example", "lane_speed"),
        *("--manifest-path", TREE / "core/Cargo.toml", "--target-dir", target),
    )
    return target / "release/examples/lane_speed"
