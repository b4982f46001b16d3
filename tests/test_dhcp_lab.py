"""[dhcp NAME] in a running lab: dhclient, udhcpc and dhcpcd in namespaces, a guest's busybox, and what a killed service costs them."""

import itertools
import json
import os
import re
import signal
import time
from pathlib import Path

import pytest

import deadline
import dhcpclients

LAB = """
[dhcp pool]
address = 10.0.2.2/24
address6 = fec0::2/64
router = 10.0.2.2
dns = 10.0.2.3, fec0::3
domainname = lab.example
dnssearch = lab.example
            eng.lab.example
ntp = 10.0.2.2
route = 10.9.0.0/16 10.0.2.7
bootfile = pxelinux.0
lease = 52:54:00:00:00:63 10.0.2.99 web1

[tap one]
ifname = dhone
netns = {one}
mac = 52:54:00:00:00:01

[tap two]
ifname = dhtwo
netns = {two}
mac = 52:54:00:00:00:02
"""
SHORT = """
[dhcp pool]
address = 10.0.2.2/24
address6 = fec0::2/64
router = 10.0.2.2
dns = 10.0.2.3, fec0::3
lease-time = 16

[tap one]
ifname = dhone
netns = {one}
mac = 52:54:00:00:00:01
"""
NETWORKD = "/lib/systemd/systemd-networkd"
DHCPCD_LEASE = Path("/var/lib/dhcpcd/dhone.lease")
ROOT = pytest.mark.needs("root", "/dev/net/tun", "dhclient", "udhcpc", "dhcpcd")


@pytest.fixture
def two(lab, namespace, tmp_path):
    """The lab, and a client in each of its namespaces."""
    one, other = namespace("one"), namespace("two")
    for netns in (one, other):  # else dhclient -6 meets an address that is not to be used yet
        netns.run("sysctl", "-qw", "net.ipv6.conf.default.accept_dad=0")
    running = lab(LAB.format(one=one.name, two=other.name))
    running.until_up("pool", "one", "two")
    return running, dhcpclients.Client(one, "dhone", tmp_path), dhcpclients.Client(other, "dhtwo", tmp_path)


def leased(running):
    """Address and state of what is lent, as the command says it."""
    return {one["address"]: one["state"] for one in running.json("leases")}


@ROOT
def test_dhclient_gets_releases_and_gets_again_and_a_restart_of_the_lab_keeps_its_lease(two):
    running, one, other = two
    one.dhclient("-1")
    told = one.told("BOUND")
    expected = {
        "new_ip_address": "10.0.2.15", "new_subnet_mask": "255.255.255.0", "new_broadcast_address": "10.0.2.255",
        "new_routers": "10.0.2.2", "new_domain_name_servers": "10.0.2.3", "new_domain_name": "lab.example",
        "new_domain_search": "lab.example. eng.lab.example.", "new_ntp_servers": "10.0.2.2",
        "new_dhcp_lease_time": "86400", "new_dhcp_renewal_time": "43200", "new_dhcp_rebinding_time": "75600",
        "new_dhcp_server_identifier": "10.0.2.2", "new_filename": "pxelinux.0", "new_next_server": "10.0.2.2",
        "new_rfc3442_classless_static_routes": "16 10 9 10 0 2 7 0 10 0 2 2",
    }  # fmt: skip
    assert {key: told.get(key) for key in expected} == expected
    with other.udhcpc():
        assert other.told("bound")["ip"] == "10.0.2.16"
        one.dhclient("-r")
        deadline.until(lambda: "10.0.2.15" not in leased(running), "the release")
        one.dhclient("-1")
        assert one.told("BOUND")["new_ip_address"] == "10.0.2.15"
        running.restart()
        assert leased(running) == {"10.0.2.15": "bound", "10.0.2.16": "bound", "10.0.2.99": "reserved"}
        one.dhclient("-x")
        (one.directory / "leases4").unlink()
        one.dhclient("-1")
        assert one.told("BOUND")["new_ip_address"] == "10.0.2.15"
        one.dhclient("-x")


@ROOT
def test_udhcpc_renews_when_told_to_and_releases_and_each_is_an_event(two):
    running, one, _ = two
    began = time.time()
    with one.udhcpc("-x", "hostname:web", "-O", "search", "-O", "staticroutes") as client:
        told = one.told("bound")
        assert (told["ip"], told["search"], told["staticroutes"]) == (
            "10.0.2.15", "lab.example eng.lab.example", "10.9.0.0/16 10.0.2.7 0.0.0.0/0 10.0.2.2",
        )  # fmt: skip
        dhcpclients.own([signal.SIGUSR1], client)
        assert one.told("renew")["ip"] == "10.0.2.15"
        dhcpclients.own([signal.SIGUSR2], client)
        one.told("deconfig")
        deadline.until(lambda: "10.0.2.15" not in leased(running), "the release")
    with running.client() as client:
        told = []
        for event in client.events(since=began):
            if event["kind"] == "lease":
                told.append(event["text"])
                if len(told) == 2:
                    break
    assert told == ["given 10.0.2.15 to 52:54:00:00:00:01 (web)", "released 10.0.2.15 by 52:54:00:00:00:01 (web)"]


@ROOT
def test_dhcpcd_gets_a_lease_renews_and_rebinds(two):
    running, one, _ = two
    DHCPCD_LEASE.unlink(missing_ok=True)  # it has one place for what it remembers
    words = ["-4", "-t", "20", "--noarp", "-c", str(one.script), "-f", "/dev/null"]
    with one.running("dhcpcd", "-B", *words, "-h", "box", one.interface):
        assert one.told("BOUND")["new_ip_address"] == "10.0.2.15"
        for word in ("-N", "-n"):
            until = running.json("leases")[0]["until"]
            one.netns.run("dhcpcd", word, "-4", one.interface)
            deadline.until(lambda until=until: running.json("leases")[0]["until"] > until, f"dhcpcd {word}")
        assert running.json("leases")[0]["name"] == "box"
    DHCPCD_LEASE.unlink(missing_ok=True)


@ROOT
def test_dhclient_gets_renews_and_releases_an_address_of_ipv6_and_asks_for_the_rest_alone(two):
    running, one, _ = two
    one.dhclient("-1", family=6)
    told = one.told("BOUND6")
    assert {key: told.get(key) for key in ("new_ip6_address", "new_dhcp6_name_servers", "new_dhcp6_domain_search")} == {
        "new_ip6_address": "fec0::1000", "new_dhcp6_name_servers": "fec0::3",
        "new_dhcp6_domain_search": "lab.example. eng.lab.example.",
    }  # fmt: skip
    assert leased(running)["fec0::1000"] == "bound"
    one.dhclient("-r", family=6)
    deadline.until(lambda: "fec0::1000" not in leased(running), "the release")
    one.dhclient("-1", "-S", family=6)
    assert one.told("RENEW6")["new_dhcp6_name_servers"] == "fec0::3"
    one.dhclient("-x", family=6)


@ROOT
@pytest.mark.parametrize(("age", "word"), [(50_000, "Renew"), (75_000, "Rebind")])
def test_dhclient_renews_and_rebinds_an_address_of_ipv6(two, age, word):
    """Its lease is made older than T1, or T2, in the file that it keeps: what is due, it does when it starts."""
    running, one, _ = two
    one.dhclient("-1", family=6)
    one.told("BOUND6")
    one.dhclient("-x", family=6)
    kept = one.directory / "leases6"
    kept.write_text(re.sub(r"starts (\d+)", lambda found: f"starts {int(found[1]) - age}", kept.read_text()))
    files = ["-sf", one.script, "-lf", kept, "-pf", one.directory / "pid6"]
    began = time.time()
    with one.running("dhclient", "-6", "-d", "-v", *map(str, files), one.interface):
        told = one.told(f"{word.upper()}6")
        assert told["new_ip6_address"] == "fec0::1000" and int(told["new_life_starts"]) >= int(began)
        assert f"XMT: {word} on {one.interface}" in (one.directory / "said").read_text()
        assert leased(running)["fec0::1000"] == "bound"


@pytest.fixture
def short(lab, namespace, tmp_path):
    """A lab with leases so short that T1 is after 8 s, T2 after 12.8 s (IPv6) and 14 s (IPv4), and a client."""
    netns = namespace("one")
    netns.run("sysctl", "-qw", "net.ipv6.conf.default.accept_dad=0")
    running = lab(SHORT.format(one=netns.name))
    running.until_up("pool", "one")
    return running, dhcpclients.Client(netns, "dhone", tmp_path)


def held(running):
    """What is lent, and until when."""
    return {one["address"]: one["until"] for one in running.json("leases") if one["state"] == "bound"}


def nudge(netns):
    """Have networkd look at its timers, which it lets wait for up to 10 s otherwise: by news of an interface."""
    netns.run("ip", "link", "set", "lo", "mtu", str(next(mtus)))
    return True


mtus = itertools.count(1500)


@pytest.mark.needs("root", "/dev/net/tun", NETWORKD)
def test_networkd_gets_renews_releases_and_gets_again_in_both_families(short):
    running, client = short
    netns = client.netns
    with client.networkd():
        deadline.until(lambda: set(held(running)) == {"10.0.2.15", "fec0::1000"}, "both leases", 30)
        deadline.until(lambda: "fec0::1000/128" in netns.run("ip", "address", "show", "dhone"), "the address of IPv6")
        deadline.until(lambda: "inet 10.0.2.15/24" in netns.run("ip", "address", "show", "dhone"), "that of IPv4")
        assert "default via 10.0.2.2 dev dhone proto dhcp" in netns.run("ip", "route")
        assert {one["name"] for one in running.json("leases")} == {"box"}
        first = held(running)
        deadline.until(lambda: nudge(netns) and all(until > first[at] for at, until in held(running).items()), "T1")
    deadline.until(lambda: "10.0.2.15" not in held(running), "the release")
    with client.networkd():
        deadline.until(lambda: set(held(running)) == {"10.0.2.15", "fec0::1000"}, "both leases again", 30)


@pytest.mark.needs("root", "/dev/net/tun", NETWORKD)
def test_networkd_rebinds_in_both_families_what_it_could_not_renew(short):
    running, client = short
    netns = client.netns

    def said(*words):
        nudge(netns)
        text = (client.directory / "said").read_text()
        return all(word in text for word in words)

    with client.networkd():
        deadline.until(lambda: set(held(running)) == {"10.0.2.15", "fec0::1000"}, "both leases", 30)
        first = held(running)
        deadline.until(lambda: "inet 10.0.2.15/24" in netns.run("ip", "address", "show", "dhone"), "the address")
        netns.run("ping", "-c", "1", "10.0.2.2")
        (neighbour,) = json.loads(netns.run("ip", "-j", "neighbour", "show", "10.0.2.2"))
        # The kernel shall not keep the renewal until the server says again where it is.
        netns.run("ip", "neighbour", "replace", "10.0.2.2", "lladdr", neighbour["lladdr"], "dev", "dhone")
        running.shardnet("port", "down", "pool")
        deadline.until(lambda: said("REQUEST (renewing)", "Sent Renew"), "renewals that nobody hears", 20)
        assert held(running) == first
        running.shardnet("port", "up", "pool")
        deadline.until(lambda: said("REQUEST (rebinding)", "rebind -> bound"), "T2", 20)
        deadline.until(lambda: all(until > first[at] for at, until in held(running).items()), "both leases anew")
        assert set(held(running)) == set(first) and not said("EXPIRED")


@ROOT
def test_an_address_that_somebody_has_by_hand_is_not_lent(two):
    running, one, other = two
    other.netns.run("ip", "addr", "add", "10.0.2.15/24", "dev", "dhtwo")
    one.dhclient("-1")
    assert one.told("BOUND")["new_ip_address"] == "10.0.2.16"
    assert {one["address"]: one["state"] for one in running.json("leases", "--all")}["10.0.2.15"] == "declined"
    one.dhclient("-x")


@ROOT
def test_a_killed_service_is_back_at_once_with_the_leases_it_had(two):
    running, one, other = two
    one.dhclient("-1")
    other.netns.run("ip", "addr", "add", "10.0.2.200/24", "dev", "dhtwo")
    address = one.told("BOUND")["new_ip_address"]
    before = leased(running)
    with other.netns.running("ping", "-n", "-i", "0.02", "-c", "200", "-W", "20", address) as ping:
        for _ in range(3):
            pid = running.workers()["pool"]
            os.kill(pid, signal.SIGKILL)
            deadline.until(lambda pid=pid: running.workers()["pool"] not in (None, pid), "a new worker")
            running.until_up("pool")
            deadline.until(lambda: leased(running) == before, "the leases")
        said, _ = ping.communicate(timeout=60)
    assert " 0% packet loss" in said
    one.dhclient("-x")
    (one.directory / "leases4").unlink()
    one.dhclient("-1")
    assert one.told("BOUND")["new_ip_address"] == address
    one.dhclient("-x")


@ROOT
def test_a_lease_is_ended_by_command_and_a_wrong_address_is_named(two):
    running, one, _ = two
    one.dhclient("-1")
    one.told("BOUND")
    assert "10.0.2.15" in running.shardnet("leases")
    running.shardnet("leases", "--forget", "10.0.2.15")
    assert leased(running) == {"10.0.2.99": "reserved"}
    running.shardnet("leases", "--forget", "10.0.2.15", status=3)
    running.shardnet("leases", "--forget", "10.0.2", "pool", status=2)
    one.dhclient("-x")


GUESTS = """
[dhcp pool]
address = 10.0.2.2/24

[stream one]
server = on
addr.type = unix
addr.path = one.sock

[stream two]
server = on
addr.type = unix
addr.path = two.sock
"""


@pytest.mark.needs("root", "guests")
def test_two_guests_of_qemu_get_their_addresses_and_reach_each_other(lab, guest):
    running = lab(GUESTS)
    made = [
        guest([f"stream,server=off,addr.type=unix,addr.path={running.run_dir}/{name}.sock"]) for name in ("one", "two")
    ]
    script = r"printf '#!/bin/sh\n[ $1 != bound ] || ip addr add $ip/$mask dev $interface\n' >/s; chmod +x /s"
    for one in made:
        one.run(f"ip link set eth0 up; {script}; busybox udhcpc -i eth0 -n -q -s /s", within=60)
    found = {lease["mac"]: lease["address"] for lease in running.json("leases")}
    assert found == {made[0].mac(0): "10.0.2.15", made[1].mac(0): "10.0.2.16"}
    assert " 0% packet loss" in made[0].run("ping -c 2 10.0.2.16")
