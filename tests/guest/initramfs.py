"""The initramfs of a test guest: Debian's busybox, a few modules of its kernel, and a shell on the second serial port."""

import stat
from collections.abc import Iterable
from pathlib import Path

# In the order in which they need each other.
MODULES = [
    *("virtio_ring", "virtio", "virtio_pci_legacy_dev", "virtio_pci_modern_dev", "virtio_pci"),
    *("failover", "net_failover", "virtio_net"),
    *("llc", "stp", "garp", "mrp", "8021q"),
]

# The kernel's messages stay on ttyS0. No interactive shell: that would echo, and prompt, and answer to control characters.
INIT = f"""#!/bin/busybox sh
/bin/busybox mkdir -p /dev /proc /sys /tmp /srv
/bin/busybox --install -s /bin
mount -t devtmpfs dev /dev
mount -t proc proc /proc
mount -t sysfs sys /sys
for module in {" ".join(MODULES)}; do insmod /modules/$module.ko; done
ip link set lo up
httpd -h /srv
stty -F /dev/ttyS1 raw -echo
exec </dev/ttyS1 >/dev/ttyS1 2>&1
echo READY
while read -r line; do eval "$line"; done
"""


def build(busybox: Path, modules: Path, more: Iterable[tuple[str, int, bytes]] = ()) -> bytes:
    """Return the archive, not compressed: the guest's processor is an emulated one. `more`: names, modes and contents."""
    entries = [("bin", 0o755 | stat.S_IFDIR, b""), ("modules", 0o755 | stat.S_IFDIR, b"")]
    entries.append(("bin/busybox", 0o755 | stat.S_IFREG, busybox.read_bytes()))
    entries += [(f"modules/{name}.ko", 0o644 | stat.S_IFREG, (modules / f"{name}.ko").read_bytes()) for name in MODULES]
    entries += more
    entries.append(("init", 0o755 | stat.S_IFREG, INIT.encode()))
    entries.append(("TRAILER!!!", 0, b""))
    return b"".join(_newc(inode, *entry) for inode, entry in enumerate(entries, 1))


def _newc(inode: int, name: str, mode: int, content: bytes) -> bytes:
    """One entry of the "new ASCII" cpio format: 13 fields of 8 hex digits, the name, the content, each padded to 4."""
    fields = [inode, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(name) + 1, 0]
    head = b"070701" + b"".join(b"%08X" % field for field in fields) + name.encode() + b"\0"
    return _padded(head) + _padded(content)


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)
