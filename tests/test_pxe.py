"""Machines without a disk boot from a lab: BIOS by iPXE in the cards' ROMs, UEFI by itself; and a guest that is told nothing but its port.

Only real firmware: SeaBIOS, Debian's iPXE (ipxe-qemu, ipxe) and OVMF. What has booted is the guest of the other tests, by its shell.
"""

import hashlib
import http.server
import shutil
import threading
from pathlib import Path

import pytest

import deadline
import guest as guests

CONF = Path(__file__).parents[1] / "conf"
IPXE = "/usr/lib/ipxe/snponly.efi"
ROMS = "/usr/lib/ipxe/qemu"
SCRIPT = f"""#!ipxe
echo The script has come to ${{net0/chip}}
iseq ${{net0/chip}} 82540em && poweroff ||
iseq ${{net0/chip}} rtl8139 && poweroff ||
kernel vmlinuz initrd=initramfs {guests.COMMAND_LINE}
initrd initramfs
boot
"""
STREAM = "[stream {0}]\nserver = on\naddr.type = unix\naddr.path = {0}.sock\n"


@pytest.fixture
def files(tmp_path):
    """A folder with what boots."""
    folder = tmp_path / "files"
    folder.mkdir()
    shutil.copy(guests.KERNEL / "vmlinuz", folder)
    shutil.copy(guests.archive(), folder / "initramfs")
    (folder / "boot.ipxe").write_text(SCRIPT)
    return folder


@pytest.fixture
def web(files):
    """A web server on this host's loopback, for that folder: its port, and what was asked of it."""
    asked = []

    class Answers(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=files)

        def log_message(self, _format, *args):
            asked.append(args[0])

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answers) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.server_address[1], asked
        server.shutdown()
        thread.join()


def on(running, name="vm1"):
    """QEMU's words for a port of a lab."""
    return [f"stream,server=off,addr.type=unix,addr.path={running.run_dir}/{name}.sock"]


@pytest.mark.needs("guests", f"{ROMS}/pxe-virtio.rom")
def test_seabios_boots_a_kernel_by_tftp_and_every_card_has_its_script(lab, guest, files):
    models = {"virtio-net-pci": "virtio-net", "e1000": "82540em", "rtl8139": "rtl8139"}
    user = f"[user net0]\ntftp = {files}\nboot = ipxe boot.ipxe\n       bios undionly.kpxe\n"
    running = lab(user + "".join(map(STREAM.format, models)))
    made = {model: guest(on(running, model), firmware="bios", model=model, memory=256) for model in models}
    assert "eth0" in made["virtio-net-pci"].run("uname -a; ip link")
    deadline.until(
        lambda: all(f"has come to {chip}" in console(made[model]) for model, chip in models.items()),
        "the script in every card",
        within=120,
    )
    assert {lease["mac"] for lease in running.json("leases")} == {one.mac(0) for one in made.values()}


@pytest.mark.needs("guests", IPXE, "/usr/share/OVMF/OVMF_CODE_4M.fd")
def test_uefi_boots_the_lab_of_conf_by_tftp_then_ipxe_by_http(lab, guest, files, web):
    port, asked = web
    running = lab((CONF / "pxe.ini").read_text().replace(":8000/", f":{port}/"))
    one = guest(on(running), firmware="uefi", memory=512)
    assert "eth0" in one.run("uname -a; ip link")
    said = console(one)
    assert "NBP file downloaded successfully" in said and "has come to SNP" in said
    assert [line.split()[1] for line in asked] == ["/boot.ipxe", "/vmlinuz", "/initramfs"]


@pytest.mark.needs("guests", f"{ROMS}/efi-e1000.rom", "/usr/share/OVMF/OVMF_CODE_4M.fd")
def test_uefi_boots_a_kernel_by_tftp_by_the_rom_of_a_card_that_it_has_no_driver_for(lab, guest, files):
    models = {"e1000": "82540em", "rtl8139": "rtl8139"}
    running = lab(f"[user net0]\ntftp = {files}\nboot = ipxe boot.ipxe\n" + "".join(map(STREAM.format, models)))
    made = {
        model: guest(on(running, model), firmware="uefi", model=model, rom=f"{ROMS}/efi-{model}.rom", memory=256)
        for model in models
    }
    deadline.until(
        lambda: all(f"has come to {chip}" in console(made[model]) for model, chip in models.items()),
        "the script in both cards",
        within=120,
    )
    for one in made.values():
        assert "Linux" in one.run("uname -a")
    assert {lease["mac"] for lease in running.json("leases")} == {one.mac(0) for one in made.values()}


@pytest.mark.needs("root", "/dev/net/tun", "guests")
def test_a_guest_without_configuration_has_address_names_and_files(lab, guest, namespace, tmp_path, web, monkeypatch):
    port, _ = web
    namespace("", "demo-nat")
    (tmp_path / "README.md").write_bytes(content := b"from where the lab was started" * 5000)
    monkeypatch.chdir(tmp_path)
    running = lab((CONF / "nat.ini").read_text())
    one = guest(on(running), tools=True, memory=256)
    one.run("mkdir -p /etc; ip link set eth0 up")
    one.run(
        r"""printf '#!/bin/sh\n[ $1 = bound ] || exit 0\nip addr add $ip/$mask dev $interface; ip route add default via $router\n"""
        r"""echo search $domain >/etc/resolv.conf; for n in $dns; do echo nameserver $n >>/etc/resolv.conf; done\n' >/s; chmod +x /s"""
    )
    one.run("busybox udhcpc -i eth0 -n -q -s /s -x hostname:box", within=60)
    assert "10.0.2.15/24" in one.run("ip address show eth0")
    assert "10.0.2.2" in one.run("nslookup host.lab.example")
    assert "10.0.2.15" in one.run("nslookup box.lab.example")
    assert "box.lab.example" in one.run("nslookup 10.0.2.15")
    assert one.run(f"curl -s http://host:{port}/boot.ipxe", within=60) == SCRIPT
    said = one.run("tftp -g -r README.md -l /tmp/r host && sha256sum </tmp/r", within=60)
    assert said.split()[0] == hashlib.sha256(content).hexdigest()
    (lease,) = running.json("leases")
    assert (lease["address"], lease["mac"], lease["name"]) == ("10.0.2.15", one.mac(0), "box")


def console(one):
    """What firmware and kernel of a guest have said."""
    return one.console.read_text(errors="replace") if one.console.exists() else ""
