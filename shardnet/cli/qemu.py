"""Print the QEMU options that attach a guest to a port.

Usage:
  shardnet qemu [options] PORT

Options:
  -l LAB, --lab LAB           the lab, where more than one is running
  -m MODEL, --model MODEL     the guest's network card [default: virtio-net-pci]
  --memory SIZE               the guest's memory, where the port shares it (vhost-user);
                              it takes the place of QEMU's -m [default: 512M]
  --qemu VERSION              QEMU's version, instead of asking qemu-system-x86_64
  -o FORMAT, --output FORMAT  table or json [default: table]
  -h, --help                  print this

One line, quoted for a shell; json is a list of words. The card's address depends
on the lab's and the port's name alone, so a guest keeps it.

  eval qemu-system-x86_64 -m 512 disk.img $(shardnet qemu vm1)
"""

import hashlib
import re
import shlex
from collections.abc import Sequence
from pathlib import Path

from shardnet import control, kinds, options
from shardnet.cli import Failure, table, usage

OLDEST = (7, 2)  # has -netdev stream and dgram
ID = "net0"  # what a port's qemu() calls its netdev


def run(argv: Sequence[str]) -> int:
    """Ask the lab for the port, and its kind for the words."""
    arguments = usage.parse(__doc__, "qemu", argv)
    name, model = arguments["PORT"], arguments["--model"]
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", model):
        raise SystemExit(f"shardnet qemu: --model {model}: a card's name is meant, such as virtio-net-pci or e1000")
    memory = arguments["--memory"]
    if not re.fullmatch(r"[1-9][0-9]*[kKMGT]?", memory):
        raise SystemExit(f"shardnet qemu: --memory {memory}: a size such as 512M is meant")
    version = _version(arguments["--qemu"])
    with control.Client(arguments["--lab"]) as lab:
        (port,) = lab.ports(name)
        run_dir = Path(lab.status()["run_dir"])
    kind = kinds.module(port["kind"])
    try:
        given = options.read(kind, port["options"])
    except options.Wrong:
        raise Failure(f"{name}: made of a client's descriptors, QEMU has no way to attach to it") from None
    words = kind.qemu(given, run_dir, version) if hasattr(kind, "qemu") else None
    if not model.startswith(wanted := getattr(kind, "QEMU_MODEL", "")):
        raise Failure(f"{port['kind']} {name}: a card of {wanted} is meant, and {model} is another")
    if words is None:
        raise Failure(f"{port['kind']} {name}: {getattr(kind, 'NO_QEMU', 'QEMU has no way to attach to it')}")
    netdev = "sn-" + name
    words = [re.sub(f",(id|chardev)={ID}", rf",\1={netdev}", word) for word in words]
    card = f"{model},netdev={netdev},mac={mac(lab.lab, name)}"
    words += ["-device", card + (kind.qemu_device(given) if hasattr(kind, "qemu_device") else "")]
    if getattr(kind, "QEMU_SHARES_MEMORY", False):
        words += ["-object", f"memory-backend-memfd,id=sn-memory,size={memory},share=on"]
        words += ["-machine", "memory-backend=sn-memory"]
    if arguments["--output"] == "json":
        table.json(words)
    else:
        print(shlex.join(words))
    return 0


def mac(lab: str, port: str) -> str:
    """The Ethernet address of the guest on a port: QEMU's prefix and what depends on the two names alone."""
    digest = hashlib.sha256(f"{lab}/{port}".encode()).hexdigest()
    return f"52:54:00:{digest[0:2]}:{digest[2:4]}:{digest[4:6]}"


def _version(given: str | None) -> tuple[int, int]:
    from shardnet.cli import doctor

    said = given or doctor.program_version("qemu-system-x86_64")
    match = re.match(r"(\d+)\.(\d+)", said)
    if match is None:
        if given:
            raise SystemExit(f"shardnet qemu: --qemu {given}: a version such as 7.2 is meant")
        return OLDEST  # QEMU runs elsewhere, then: what the oldest one takes, the newer ones take too
    version = int(match[1]), int(match[2])
    if version < OLDEST:
        raise Failure(f"QEMU {said}: 7.2 or newer is needed, older ones have neither stream nor dgram")
    return version
