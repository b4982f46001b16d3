"""QEMU's machine protocol, as a VMM's management speaks it."""

import json
import socket
from pathlib import Path
from typing import Any

import deadline


class Monitor:
    """A connection to a QEMU that has -qmp unix:PATH,server=on,wait=off."""

    def __init__(self, path: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        deadline.until(lambda: self.socket.connect_ex(str(path)) == 0, "QEMU's monitor")
        self.lines = self.socket.makefile()
        self.lines.readline()
        self.ask("qmp_capabilities")

    def ask(self, command: str, **arguments: Any) -> Any:
        self.socket.sendall(json.dumps({"execute": command, "arguments": arguments}).encode())
        while True:
            said = json.loads(self.lines.readline())
            assert "error" not in said, said
            if "return" in said:
                return said["return"]

    def migration(self) -> str:
        """The state of the migration."""
        return str(self.ask("query-migrate")["status"])
