"""DHCP clients that are not ours, each in a network namespace: what they were told is read from what they tell their script.

The script takes no address away: a release that waits for ARP would go with it.
"""

import contextlib
import os
import signal
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

import deadline
import namespaces

SCRIPT = """#!/bin/sh
why=$reason$1
env > {directory}/$why.new
mv {directory}/$why.new {directory}/$why
case $why in
BOUND|REBOOT|bound) ip addr replace ${{new_ip_address:-$ip}}/24 dev $interface ;;
BOUND6) ip addr replace $new_ip6_address/128 dev $interface ;;
esac
exit 0
"""


NETWORKD = """
mount -t tmpfs tmpfs /run
mount -o remount,ro,bind /sys
mkdir -p /run/systemd/network /run/systemd/netif/links /run/systemd/netif/leases /run/systemd/netif/lldp
chown -R systemd-network /run/systemd/netif
cat > /run/systemd/network/one.network << end
[Match]
Name={interface}
[Network]
DHCP=yes
IPv6AcceptRA=no
[DHCPv4]
Hostname=box
[DHCPv6]
WithoutRA=solicit
end
SYSTEMD_LOG_LEVEL=debug SYSTEMD_LOG_TARGET=console exec /lib/systemd/systemd-networkd
"""


class Client:
    """A client program on one interface of a namespace."""

    def __init__(self, netns: namespaces.Namespace, interface: str, directory: Path) -> None:
        self.netns, self.interface = netns, interface
        self.directory = directory / f"{netns.name}-{interface}"
        self.directory.mkdir()
        self.script = self.directory / "script"
        self.script.write_text(SCRIPT.format(directory=self.directory))
        self.script.chmod(0o755)

    def told(self, why: str, within: float = 30) -> dict[str, str]:
        """What the script was told, the first time or since the last call, with this reason."""
        file = self.directory / why
        deadline.until(file.exists, f"{self.netns.name}: {why}", within)
        text = file.read_text()
        file.unlink()
        return dict(line.partition("=")[::2] for line in text.splitlines())

    def dhclient(self, *words: str, family: int = 4) -> None:
        """Run dhclient: -1 gets a lease, -r gives it back, -x ends a client that runs."""
        files = ["-sf", self.script, "-lf", self.directory / f"leases{family}", "-pf", self.directory / f"pid{family}"]
        self.netns.run("timeout", "30", "dhclient", f"-{family}", *words, *map(str, files), self.interface)

    @contextlib.contextmanager
    def running(self, *command: str) -> Iterator[subprocess.Popen[bytes]]:
        """Run a client beside the test; what it prints is in the file `said`."""
        with (self.directory / "said").open("wb") as said:
            process = subprocess.Popen(
                [*self.netns.enter, *command], stdin=subprocess.DEVNULL, stdout=said, stderr=subprocess.STDOUT
            )
            try:
                yield process
            finally:
                with contextlib.suppress(ProcessLookupError):
                    process.send_signal(signal.SIGTERM)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(10)
                process.kill()
                process.wait()

    def networkd(self) -> contextlib.AbstractContextManager[subprocess.Popen[bytes]]:
        """Run systemd-networkd, without the rest of systemd: a /run of its own, and a /sys that says that there is no udev."""
        text = NETWORKD.format(interface=self.interface)
        return self.running("unshare", "--mount", "sh", "-ec", text)

    def udhcpc(self, *words: str) -> contextlib.AbstractContextManager[subprocess.Popen[bytes]]:
        """Run udhcpc in the foreground: SIGUSR1 renews, SIGUSR2 releases."""
        return self.running("udhcpc", "-f", "-i", self.interface, "-s", str(self.script), *words)


def own(signals: Sequence[signal.Signals], process: subprocess.Popen[bytes]) -> None:
    """Send signals to a program that `ip netns exec` has become."""
    for number in signals:
        os.kill(process.pid, number)
