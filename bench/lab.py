"""A running lab of shardnet: its file, its readiness, its workers."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from bench import corner

NAME = "bench"


def command() -> str | None:
    """The `shardnet` of the Python that runs this, or the first in PATH."""
    beside = Path(sys.executable).with_name("shardnet")
    return str(beside) if beside.exists() else shutil.which("shardnet")


def missing() -> str | None:
    """Say what stands against running shardnet, if anything."""
    return None if command() else "not installed: shardnet (make bench, or pip install .)"


class Lab:
    """`shardnet start -c FILE` in a corner; `shards = 0` leaves the placement to shardnet."""

    def __init__(
        self, place: corner.Corner, sections: list[str], shards: int = 0, name: str = NAME, inside: str = "s"
    ) -> None:
        self.place, self.name, self.inside = place, name, inside
        self.ports = len(sections)
        self.file = place.path / f"{name}.ini"
        head = f"[lab]\nname = {name}\n" + (f"shards = {shards}\n" if shards else "")
        self.file.write_text("\n".join([head, *sections]))
        self.environment = {"SHARDNET_RUN_DIR": str(place.path / "run")}

    def launch(self) -> subprocess.Popen[bytes]:
        """Start it and do not wait."""
        return self.place.daemon(self.inside, command(), "start", "-c", self.file, **self.environment)

    def start(self) -> None:
        """Start it and wait until every port is there."""
        self.launch()
        corner.wait(f"{self.place.name}: all {self.ports} ports", self.ready, 30)

    def ready(self) -> bool:
        self.place.cpu_s()  # which fails when the lab is dead, so that nobody waits for it
        try:
            ports = self.status()["ports"]
        except corner.Failed:
            return False
        # A section may bring companions: a user-mode network its servers.
        return len(ports) >= self.ports and all(port["state"] in ("up", "waiting") for port in ports)

    def status(self) -> dict[str, Any]:
        environment = [f"{key}={value}" for key, value in self.environment.items()]
        status: dict[str, Any] = json.loads(
            corner.run("env", *environment, command(), "status", "-l", self.name, "-o", "json")
        )
        return status

    def worker(self, port: str) -> int:
        """Process id of the worker that carries `port`."""
        return int(next(worker["pid"] for worker in self.status()["workers"] if port in worker["ports"]))
