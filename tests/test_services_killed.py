"""The services of a user network are killed while each is asked many times a second: who else loses what, and how soon each is back.

One station asks all of them, frame by frame, as no client would: a request every 25 ms whether the last one was answered or not. How
soon a service answers what was asked after its death is printed (pytest -rP) and not judged: that is for a machine with nothing else to do.
"""

import dataclasses
import ipaddress
import os
import select
import signal
import struct
import time

import pytest

import ends
import flow
import wirefile

HOST, DNS, SMB, US = "10.0.2.2", "10.0.2.3", "10.0.2.4", "10.0.2.50"
OURS = ipaddress.ip_address(US).packed
UNKNOWN_TRANSFER = b"\0\5\0\5"  # to who goes on with one of a server that died
SERVICES = ("dhcp", "dns", "tftp", "smb")
EVERY_S = 0.025  # less often than DHCP's bound
CONTENT = b"one block"
LAB = """
[user net0]
lease = {mac} 10.0.2.50 web1
tftp = {files}
smb = {files}
"""


@dataclasses.dataclass
class Asked:
    """What was asked of one service."""

    pending: dict[int, float] = dataclasses.field(default_factory=dict)  # when, by number
    answered: int = 0
    last: float = 0.0
    heard: float = 0.0  # when the newest request that was answered had been sent


class Station:
    """Asks, and takes answers for what they are; a wrong one is a failure."""

    def __init__(self, run_dir):
        self.end = ends.Stream("asker", 0x6101)
        self.end.attach(run_dir)
        self.asked = {service: Asked() for service in SERVICES}
        self.number = 0

    def turn(self, *services):
        """Ask whoever's turn it is of these, then see what has come for 1 ms at most."""
        for service in services:
            asked, now = self.asked[service], time.monotonic()
            if now - asked.last >= EVERY_S:
                self.number += 1
                number = 1024 + self.number % 60_000
                if self.end.send(getattr(self, f"_{service}")(number)):
                    asked.last = asked.pending[number] = now
        self.end.flush()
        select.select([self.end.socket], [], [], 0.001)
        for found in self.end.frames():
            if found[:6] == self.end.mac and found[12:14] == b"\x08\x00":
                self._took(found[14 + 4 * (found[14] & 15) :], found[23])

    def until(self, true, what, *services, within=60):
        end = time.monotonic() + within
        while not true():
            assert time.monotonic() < end, f"not within {within} s: {what}: {self.asked}"
            self.turn(*services)

    def _took(self, packet, protocol):
        source, to = struct.unpack_from(">HH", packet)
        data = packet[8:]
        if protocol == 6:
            if packet[13] == 0x12:  # SYN and ACK
                self._answer("smb", struct.unpack_from(">I", packet, 8)[0] - 1)
                self.end.send(self._tcp(to, struct.unpack_from(">I", packet, 8)[0], 0x04))
        elif source == 67:
            assert data[16:20] == OURS and data[242] == 5, "an ACK for our address"
            self._answer("dhcp", int.from_bytes(data[4:8], "big"))
        elif source == 53:
            assert data[3] & 15 == 0 and data.endswith(OURS), data
            self._answer("dns", int.from_bytes(data[:2], "big"))
        elif source >= 65024 and data[:4] != UNKNOWN_TRANSFER:
            assert data == b"\0\3\0\1" + CONTENT
            self.end.send(self._udp(HOST, to, source, b"\0\4\0\1"))
            self._answer("tftp", to)

    def _answer(self, service, number):
        asked = self.asked[service]
        if number in asked.pending:
            asked.answered += 1
            asked.heard = max(asked.heard, asked.pending.pop(number))

    def _dhcp(self, number):
        """A renewal."""
        head = struct.pack(">BBBBIHH4s12x6s202xI", 1, 1, 6, 0, number, 0, 0, OURS, self.end.mac, 0x63825363)
        return self._udp(HOST, 68, 67, head + b"\x35\1\3\xff")

    def _dns(self, number):
        return self._udp(
            DNS, number, 53, struct.pack(">HHHHHH", number, 0x0100, 1, 0, 0, 0) + b"\4web1\x08internal\0\0\1\0\1"
        )

    def _tftp(self, number):
        return self._udp(HOST, number, 69, b"\0\1file\0octet\0")

    def _smb(self, number):
        return self._tcp(number, number, 0x02)

    def _udp(self, to, source_port, port, payload):
        return self._to(to) + wirefile.frame(US, source_port, to, port, payload)[12:]

    def _tcp(self, port, sequence, flags):
        pair = b"".join(ipaddress.ip_address(one).packed for one in (US, SMB))
        segment = struct.pack(">HHIIBBHHH", port, 445, sequence, 0, 5 << 4, flags, 65535, 0, 0)
        total = wirefile.checksum(pair + struct.pack(">HH", 6, len(segment)) + segment)
        head = struct.pack(">BBHHHBBH", 0x45, 0, 20 + len(segment), 0, 0, 64, 6, 0) + pair
        head = head[:10] + struct.pack(">H", wirefile.checksum(head)) + head[12:]
        return self._to(SMB) + b"\x08\x00" + head + segment[:16] + struct.pack(">H", total) + segment[18:]

    def _to(self, address):
        """The hardware addresses; the network's are made of its addresses."""
        return b"\x52\x55" + ipaddress.ip_address(address).packed + self.end.mac


@pytest.mark.needs("root", "smbd")
def test_a_killed_service_costs_its_own_answers_and_nothing_else(lab, tmp_path):
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "file").write_bytes(CONTENT)
    mac = ends.mac(0x6101).hex(":")
    sections = "".join(ends.Stream(name, 1).section for name in ("left", "right", "asker"))
    running = lab(LAB.format(mac=mac, files=tmp_path / "files") + sections)
    station = Station(running.run_dir)
    back = {}
    with flow.running(running.run_dir, "left", "right") as numbered, running.client() as client:
        station.until(lambda: all(one.answered > 10 for one in station.asked.values()), "the first answers", *SERVICES)
        for service in SERVICES:
            asked = station.asked[service]
            (port,) = client.ports(f"net0.{service}")
            died = time.monotonic()
            os.kill(port["pid"], signal.SIGKILL)
            station.until(lambda asked=asked, died=died: asked.heard > died, f"{service} back", *SERVICES)
            back[service] = time.monotonic() - died
            asked.pending.clear()
            answered = {name: one.answered for name, one in station.asked.items()}
            station.until(
                lambda answered=answered: all(one.answered > answered[name] + 5 for name, one in station.asked.items()),
                "everybody answering", *SERVICES,
            )  # fmt: skip
        station.until(
            lambda: not any(one.pending for one in station.asked.values()), "every answer but those of the dead"
        )
        account = numbered.end()
    station.end.close()
    print(account)
    print("back after", ", ".join(f"{service}: {1000 * took:.0f} ms" for service, took in back.items()))
    assert (account["lost"], account["twice"], account["disordered"]) == (0, 0, 0)
    (lease,) = running.json("leases")
    assert (lease["address"], lease["mac"], lease["name"], lease["state"]) == (US, mac, "web1", "bound")
