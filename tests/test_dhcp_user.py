"""[user NAME]: its guests get their addresses from a DHCP service that stands behind it."""

import os
import signal

import pytest

import deadline
import dhcpclients
import exchange
from shardnet import lab as labs
from shardnet import options
from shardnet.workers import user

LAB = """
[user net0]
hostname = box
domainname = lab.example
dnssearch = lab.example
{more}

[tap one]
ifname = uhone
netns = {netns}
mac = 52:54:00:00:00:01
"""
ROOT = pytest.mark.needs("root", "/dev/net/tun", "dhclient", "dhcpcd")
DHCPCD_LEASES = ("/var/lib/dhcpcd/uhone.lease", "/var/lib/dhcpcd/uhone.lease6")


@pytest.fixture
def start(lab, namespace, tmp_path):
    def make(more=""):
        netns = namespace("one")
        netns.run("sysctl", "-qw", "net.ipv6.conf.default.accept_dad=0")
        running = lab(LAB.format(netns=netns.name, more=more))
        running.until_up("net0", "one")
        return running, dhcpclients.Client(netns, "uhone", tmp_path)

    return make


def section(text):
    (found,) = labs.ports(f"[user net0]\n{text}")
    return found


def test_what_dhcp_says_is_made_of_what_the_network_is():
    given = section(
        "net = 192.168.7.0/24\ndnssearch = a.example\n  b.example\nlease = id:x 192.168.7.9\nlease-time = infinite\nmtu = 1400"
    )
    found = labs.companions(given)["dhcp"]
    assert str(found) == "[dhcp net0.dhcp]"
    assert found.given == {
        "address": "192.168.7.2/24", "address6": "fec0::2/64", "router": "192.168.7.2", "dns": "192.168.7.3, fec0::3", "next-server": "192.168.7.2",
        "except": "192.168.7.3, 192.168.7.4", "dnssearch": "a.example\nb.example", "lease": "id:x 192.168.7.9",
        "lease-time": "infinite", "mtu": "1400",
    }  # fmt: skip
    restricted = labs.companions(section("restrict = on"))["dhcp"].given
    assert not {"router", "dns"} & set(restricted)
    assert "address" not in labs.companions(section("ipv6 = on"))["dhcp"].given
    assert "dhcp" not in labs.companions(section("dhcp = off"))
    assert str(section("dhcpstart = 10.0.2.99").options.lease) == "10.0.2.99"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"dhcpstart": "10.0.3.1"}, "dhcpstart = 10.0.3.1: not in 10.0.2.0/24"),
        ({"dhcpstart": "10.0.2.50", "dhcpend": "10.0.2.40"}, "dhcpstart = 10.0.2.50: behind dhcpend"),
        ({"lease": "52:54:00:00:00:01"}, "lease = 52:54:00:00:00:01: 52:54:00:00:00:01: no hardware address or client identifier, address, and perhaps a name"),
        ({"lease": "52:54 10.0.9.1"}, "lease = 52:54 10.0.9.1: 52:54 10.0.9.1: 10.0.9.1 is in no network of the guests"),
        ({"boot": "efi x"}, "boot = efi x: efi x: efi is none of bios, efi-ia32, efi-x64, efi-arm, efi-arm64, efi-riscv64, http-ia32, http-x64, http-arm, http-arm64, http-riscv64, ipxe, http, arch:NUMBER, user:TEXT, vendor:TEXT"),
        ({"lease-time": "5"}, "lease-time = 5: no time from 10 seconds on, such as 3600, 12h, 7d, or infinite"),
        ({"dhcp": "off", "hostname": "vm"}, "hostname = vm: DHCP is off"),
    ],
)  # fmt: skip
def test_a_mistake_is_named_with_its_reason(given, message):
    with pytest.raises(options.Wrong) as wrong:
        options.read(user, given)
    assert str(wrong.value) == message


@ROOT
def test_a_guest_of_the_user_network_is_told_what_qemu_tells_and_a_killed_service_costs_it_nothing(start):
    running, one = start()
    one.dhclient("-1")
    told = one.told("BOUND")
    expected = {
        "new_ip_address": "10.0.2.15", "new_routers": "10.0.2.2", "new_domain_name_servers": "10.0.2.3",
        "new_host_name": "box", "new_domain_name": "lab.example", "new_domain_search": "lab.example.",
        "new_next_server": "10.0.2.2", "new_dhcp_server_identifier": "10.0.2.2",
    }  # fmt: skip
    assert {key: told.get(key) for key in expected} == expected
    exchange.ping(one.netns, "10.0.2.2")
    pid = running.workers()["net0.dhcp"]
    os.kill(pid, signal.SIGKILL)
    exchange.ping(one.netns, "10.0.2.2")
    deadline.until(lambda: running.workers()["net0.dhcp"] not in (None, pid), "a new worker")
    running.until_up("net0.dhcp")
    assert [lease["address"] for lease in running.json("leases", "net0.dhcp")] == ["10.0.2.15"]
    one.dhclient("-r")
    deadline.until(lambda: not running.json("leases"), "the release")


@ROOT
def test_dhcpcd_gets_both_families_for_the_router_advertisement_says_so(start):
    running, one = start()
    for file in DHCPCD_LEASES:
        one.netns.run("rm", "-f", file)
    with one.running(
        "dhcpcd",
        "-B",
        "-t",
        "30",
        "--noarp",
        "-c",
        str(one.script),
        "-f",
        "/dev/null",
        "-o",
        "domain_name_servers",
        one.interface,
    ):
        assert one.told("BOUND")["new_ip_address"] == "10.0.2.15"
        assert one.told("BOUND6")["new_dhcp6_ia_na1_ia_addr1"] == "fec0::1000"
        found = {lease["address"]: lease["state"] for lease in running.json("leases")}
        assert found == {"10.0.2.15": "bound", "fec0::1000": "bound"}
    for file in DHCPCD_LEASES:
        one.netns.run("rm", "-f", file)


@ROOT
def test_a_restricted_guest_is_told_of_no_router_and_no_resolver(start):
    _, one = start("restrict = on")
    one.dhclient("-1")
    told = one.told("BOUND")
    assert told["new_ip_address"] == "10.0.2.15"
    assert not {"new_routers", "new_domain_name_servers"} & set(told)
    one.dhclient("-r")
