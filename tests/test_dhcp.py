"""The DHCP server for IPv4: requests written by hand from the RFCs, answers judged by tshark."""

import ipaddress
import struct

import pytest

import wirefile
from shardnet.dhcp import boot, leases, message, server

COOKIE = bytes.fromhex("63825363")
HOST = ipaddress.IPv4Address("10.0.2.2")
NET = ipaddress.IPv4Network("10.0.2.0/24")
VM1, VM2 = bytes.fromhex("525400000001"), bytes.fromhex("525400000002")
NOWHERE, ALL = bytes(4), bytes([255] * 4)
DISCOVER, OFFER, REQUEST, DECLINE, ACK, NAK, RELEASE, INFORM = range(1, 9)


def ip(text):
    return ipaddress.ip_address(text).packed


def request(
    kind, *options, mac=VM1, xid=0x1234, flags=0, ciaddr=NOWHERE, giaddr=NOWHERE, file=b"", sname=b"", end=True
):
    """A message of a client: fields at their offsets, then options as (code, value)."""
    raw = struct.pack(">BBBBIHH", 1, 1, 6, 0, xid, 3, flags) + ciaddr + NOWHERE + NOWHERE + giaddr
    raw += mac.ljust(16, b"\0") + sname.ljust(64, b"\0") + file.ljust(128, b"\0")
    if kind is None:
        return raw.ljust(300, b"\0")
    raw += COOKIE + bytes((53, 1, kind))
    raw += b"".join(bytes((code, len(value))) + value for code, value in options)
    return raw + (b"\xff" if end else b"")


def came(payload, mac=VM1, peer=NOWHERE, local=ALL, port=68):
    return server.Datagram(payload, peer, port, local, 67, mac)


class Bench:
    """A server, and how a client sees it."""

    def __init__(self, each=8, probes=False, reservations=(), last="10.0.2.254", never=(HOST.packed,), **config):
        self.now = 1000.0
        self.counts = {}
        self.leases = leases.Leases(ip("10.0.2.15"), ip(last), never=never, reservations=reservations, each=each)
        self.config = server.Config(address=HOST, network=NET, **config)
        self.server = server.Server(self.config, self.leases, self.count, probes)

    def count(self, name):
        self.counts[name] = self.counts.get(name, 0) + 1

    def say(self, kind, *options, mac=VM1, peer=NOWHERE, local=ALL, frame=None, **fields):
        """Send a message; returns the answer as (datagram, what our own reader makes of it), or None."""
        datagram = came(request(kind, *options, mac=mac, **fields), frame or mac, peer, local)
        answers = self.server.receive(datagram, self.now)
        assert len(answers) <= 1
        return (answers[0], message.read(answers[0].payload)) if answers else None

    def get(self, mac=VM1, *options, wanted=None):
        """DISCOVER, which may say what is wanted, and REQUEST; the address."""
        _, offer = self.say(DISCOVER, *options, *([(50, ip(wanted))] if wanted else []), mac=mac)
        assert offer.kind == OFFER
        _, ack = self.say(REQUEST, (54, HOST.packed), (50, offer.yiaddr), *options, mac=mac)
        assert ack.kind == ACK
        return str(ipaddress.IPv4Address(ack.yiaddr))

    @property
    def news(self):
        found = [f"{what} {ipaddress.ip_address(lease.address)}" for what, lease in self.leases.news]
        self.leases.news.clear()
        return found


@pytest.fixture
def bench():
    return Bench()


def test_guests_get_the_addresses_that_qemu_gives_in_their_order(bench):
    assert [bench.get(bytes([0x52, 0x54, 0, 0, 1, n])) for n in range(3)] == ["10.0.2.15", "10.0.2.16", "10.0.2.17"]


def test_an_offer_is_not_given_to_another_and_lapses_after_ten_seconds(bench):
    _, first = bench.say(DISCOVER)
    _, second = bench.say(DISCOVER, mac=VM2)
    assert first.yiaddr != second.yiaddr
    bench.now += 11
    assert bench.get(bytes([0x52, 0x54, 0, 0, 0, 9])) == "10.0.2.15"


def test_a_client_gets_its_address_again_after_its_lease_has_ended(bench):
    assert bench.get() == "10.0.2.15"
    assert bench.get(VM2) == "10.0.2.16"
    bench.now += 86_401
    assert bench.get(VM2) == "10.0.2.16"
    assert bench.news == [
        "given 10.0.2.15",
        "given 10.0.2.16",
        "expired 10.0.2.15",
        "expired 10.0.2.16",
        "given 10.0.2.16",
    ]


def test_a_boot_rom_and_its_system_share_a_lease_where_the_identifier_says_the_hardware_address(bench):
    assert bench.get(VM1) == bench.get(VM1, (61, b"\1" + VM1))
    assert bench.get(VM1, (61, b"\xff" + b"iaid" + b"\0\2" + b"duid")) == "10.0.2.16"  # RFC 4361: a client of its own


def test_selecting_another_servers_offer_frees_ours(bench):
    bench.say(DISCOVER)
    assert bench.say(REQUEST, (54, ip("10.0.2.7")), (50, ip("10.0.2.15"))) is None
    assert bench.get(VM2) == "10.0.2.15"


def test_a_request_for_an_address_of_another_or_of_another_network_is_refused_to_everybody(bench):
    bench.get(VM2)
    for wanted in ("10.0.2.15", "192.168.1.5", "10.0.2.2"):
        datagram, nak = bench.say(REQUEST, (50, ip(wanted)))
        assert (nak.kind, nak.yiaddr, nak.ciaddr, nak.siaddr) == (NAK, NOWHERE, NOWHERE, NOWHERE)
        assert set(nak.options) == {53, 54, 56}
        assert (datagram.peer, datagram.mac) == (ALL, b"\xff" * 6)


def test_a_client_that_reboots_gets_what_it_remembers_even_from_a_server_that_forgot(bench):
    _, ack = bench.say(REQUEST, (50, ip("10.0.2.77")))
    assert (ack.kind, ack.yiaddr) == (ACK, ip("10.0.2.77"))
    cautious = Bench(authoritative=False)
    assert cautious.say(REQUEST, (50, ip("10.0.2.77"))) is None
    assert cautious.counts["unknown_client"] == 1
    assert cautious.say(REQUEST, (50, ip("192.168.1.5")))[1].kind == NAK


def test_renewing_is_answered_to_the_client_alone_and_rebinding_too(bench):
    bench.get()
    for local in (HOST.packed, ALL):
        bench.now += 40_000
        datagram, ack = bench.say(REQUEST, ciaddr=ip("10.0.2.15"), peer=ip("10.0.2.15"), local=local)
        assert (ack.kind, ack.ciaddr, ack.yiaddr) == (ACK, ip("10.0.2.15"), ip("10.0.2.15"))
        assert (datagram.peer, datagram.peer_port, datagram.mac) == (ip("10.0.2.15"), 68, VM1)
    assert bench.news == ["given 10.0.2.15", "renewed 10.0.2.15", "renewed 10.0.2.15"]


def test_a_released_address_goes_back_to_its_client_while_there_are_fresh_ones(bench):
    bench.get()
    assert bench.say(RELEASE, (54, HOST.packed), ciaddr=ip("10.0.2.15"), peer=ip("10.0.2.15")) is None
    assert bench.get(VM2) == "10.0.2.16"
    assert bench.get() == "10.0.2.15"
    assert bench.news == ["given 10.0.2.15", "released 10.0.2.15", "given 10.0.2.16", "given 10.0.2.15"]


def test_nobody_releases_or_declines_the_lease_of_another(bench):
    bench.get()
    bench.say(RELEASE, ciaddr=ip("10.0.2.15"), mac=VM2)
    bench.say(DECLINE, (50, ip("10.0.2.15")), (54, HOST.packed), mac=VM2)
    assert bench.leases.at(ip("10.0.2.15")).state == "bound"
    assert bench.counts["senseless"] == 2


def test_a_declined_address_is_lent_to_nobody_for_ten_minutes(bench):
    bench.get()
    bench.say(DECLINE, (50, ip("10.0.2.15")), (54, HOST.packed))
    assert bench.get() == "10.0.2.16"
    assert bench.get(VM2, wanted="10.0.2.15") == "10.0.2.17"
    bench.now += 601
    assert bench.get(bytes([0x52, 0x54, 0, 0, 0, 9])) == "10.0.2.15"


def test_inform_is_answered_without_an_address_or_a_lease(bench):
    datagram, ack = bench.say(INFORM, (55, b"\1\3"), ciaddr=ip("10.0.2.200"), peer=ip("10.0.2.200"))
    assert (ack.kind, ack.yiaddr, datagram.peer) == (ACK, NOWHERE, ip("10.0.2.200"))
    assert not {51, 58, 59} & set(ack.options)
    assert not len(bench.leases)


def test_rapid_commit_gives_the_lease_in_one_exchange(bench):
    _, ack = bench.say(DISCOVER, (80, b""))
    assert (ack.kind, ack.options[80], ack.yiaddr) == (ACK, b"", ip("10.0.2.15"))
    assert bench.news == ["given 10.0.2.15"]


def test_a_bootp_client_gets_300_bytes_without_a_word_of_dhcp():
    bench = Bench(bootfile="boot.img", routers=(HOST,), dns=(HOST,), search=("a.example", "b.example"), ntp=(HOST,))
    datagram, reply = bench.say(None)
    assert len(datagram.payload) == 300
    assert (reply.yiaddr, reply.siaddr, reply.file) == (ip("10.0.2.15"), HOST.packed, b"boot.img")
    assert not {51, 53, 54} & set(reply.options)
    assert {1, 3, 6} <= set(reply.options)
    assert bench.say(None, sname=b"another") is None


def test_the_broadcast_flag_a_relay_and_a_client_that_hears_unicasts_are_each_answered_where_they_listen(bench):
    assert bench.say(DISCOVER, flags=0x8000)[0][1:] == (ALL, 68, HOST.packed, 67, b"\xff" * 6)
    assert bench.say(DISCOVER)[0][1:] == (ip("10.0.2.15"), 68, HOST.packed, 67, VM1)
    relay = bytes.fromhex("525400aaaaaa")
    circuit = b"\1\4vlan"
    datagram, offer = bench.say(DISCOVER, (82, circuit), giaddr=ip("10.0.2.9"), frame=relay, peer=ip("10.0.2.9"))
    assert datagram[1:] == (ip("10.0.2.9"), 67, HOST.packed, 67, relay)
    assert (offer.giaddr, offer.options[82]) == (ip("10.0.2.9"), circuit)
    assert datagram.payload.rstrip(b"\0").endswith(b"\x52\6" + circuit + b"\xff")  # the last of all, RFC 3046
    _, nak = bench.say(REQUEST, (50, ip("1.2.3.4")), giaddr=ip("10.0.2.9"), frame=relay)
    assert (nak.kind, nak.flags) == (NAK, 0x8000)
    assert bench.say(DISCOVER, giaddr=ip("192.168.7.1")) is None


def test_the_parameter_request_list_is_answered_in_its_order_and_with_nothing_else():
    bench = Bench(routers=(HOST,), dns=(HOST,), domain="lab.example", mtu=1400, ntp=(HOST,), hostname="box")
    _, offer = bench.say(DISCOVER, (55, bytes((26, 3, 15, 1, 99))))
    assert list(offer.options) == [53, 54, 51, 58, 59, 26, 1, 3, 15]  # the mask before the router, RFC 2132, 3.3
    _, offer = bench.say(DISCOVER)
    assert {1, 3, 6, 12, 15, 26, 28, 42} <= set(offer.options)


def test_a_long_reply_overloads_file_and_sname_and_a_client_with_room_gets_it_plain():
    domains = tuple(f"{'x' * 20}{number}.{'y' * 30}{number}.example" for number in range(8))
    bench = Bench(routers=(HOST,), search=domains, bootfile="a/long/path/" * 8 + "file", tftp_name="tftp.example")
    wanted = (55, bytes((119, 1, 3, 6, 15, 28, 67, 66, 12)))
    short, offer = bench.say(DISCOVER, wanted, (12, b"guest"))
    assert len(short.payload) <= 548
    assert offer.options[67] == b"a/long/path/" * 8 + b"file"
    assert offer.options[66] == b"tftp.example"
    long, offer = bench.say(DISCOVER, wanted, (57, (1500).to_bytes(2, "big")), (12, b"guest"))
    assert 548 < len(long.payload) <= 1472
    assert 119 in offer.options
    assert long.payload[108:236].rstrip(b"\0") == b"a/long/path/" * 8 + b"file"
    assert long.payload[44:108].rstrip(b"\0") == b"tftp.example"


def test_reservations_hold_for_a_hardware_address_and_for_a_client_identifier():
    kept = [
        leases.Reservation(ip("10.0.2.50"), "web1", mac=VM1),
        leases.Reservation(ip("10.0.2.15"), "db", client=b"\0db"),
    ]
    bench = Bench(reservations=kept)
    _, offer = bench.say(DISCOVER, (55, b"\x0c"))
    assert (offer.yiaddr, offer.options[12]) == (ip("10.0.2.50"), b"web1")
    assert bench.get(VM1, (61, b"another identifier of this machine")) == "10.0.2.50"
    assert bench.get(VM2, (61, b"\0db")) == "10.0.2.15"
    assert bench.get(bytes([0x52, 0x54, 0, 0, 0, 9]), wanted="10.0.2.50") == "10.0.2.16"
    assert bench.say(REQUEST, (50, ip("10.0.2.77")))[1].kind == NAK


def test_one_origin_holds_eight_addresses_and_its_flood_takes_nobody_elses():
    bench = Bench()
    flood = [bytes([2, 0, 0, 0, 1, n]) for n in range(20)]
    origin = "port 7"

    def say(kind, mac, *options):
        answers = bench.server.receive(came(request(kind, *options, mac=mac), mac), bench.now, origin)
        return message.read(answers[0].payload) if answers else None

    for mac in flood:
        assert say(DISCOVER, mac) is not None
    assert len([lease for lease in bench.leases if lease.state == "offered"]) == 8
    for mac in flood:
        if (offer := say(DISCOVER, mac)) is not None:
            say(REQUEST, mac, (54, HOST.packed), (50, offer.yiaddr))
    assert len([lease for lease in bench.leases if lease.state == "bound"]) == 8
    assert bench.counts["too_many"] > 0
    assert bench.get(VM1)
    for lease in list(bench.leases):
        if lease.origin == origin:
            say(DECLINE, lease.mac, (50, lease.address), (54, HOST.packed))
    assert len([lease for lease in bench.leases if lease.origin == origin]) == 8


def test_a_flood_is_answered_fifty_times_a_second(bench):
    answered = 0
    for tenth in range(1000):
        bench.now = 1000 + tenth / 1000
        answered += bench.say(DISCOVER) is not None
    assert answered <= 100 + 50
    assert bench.counts["too_fast"] == 1000 - answered
    assert bench.say(DISCOVER, mac=VM2) is not None


def test_who_writes_another_hardware_address_than_its_frame_has_is_not_answered(bench):
    assert bench.say(DISCOVER, mac=VM1, frame=VM2) is None
    assert bench.say(DISCOVER, mac=bytes.fromhex("010000000001")) is None
    assert bench.counts == {"spoofed": 1, "senseless": 1}


def test_an_address_that_answers_a_probe_is_not_offered():
    bench = Bench(probes=True)
    assert bench.say(DISCOVER) is None
    assert list(bench.server.asking) == [ip("10.0.2.15")]
    assert bench.server.probed(ip("10.0.2.15"), VM2, bench.now) == []
    (offer,) = bench.server.probed(ip("10.0.2.16"), None, bench.now)
    assert message.read(offer.payload).yiaddr == ip("10.0.2.16")
    _, ack = bench.say(REQUEST, (54, HOST.packed), (50, ip("10.0.2.16")))
    assert ack.kind == ACK
    bench.now += 100_000
    assert bench.say(DISCOVER)[1].yiaddr == ip("10.0.2.16")  # its own of old is not asked for
    for _ in range(20):  # whoever claims every address is believed eight times
        bench.say(DISCOVER, mac=bytes.fromhex("525400000009"))
        for address in list(bench.server.asking):
            bench.server.probed(address, VM2, bench.now)
    assert sum(lease.state == "declined" for lease in bench.leases) == 8


def test_a_full_pool_gives_what_was_free_for_longest_and_then_nothing():
    bench = Bench(last="10.0.2.16")
    macs = [bytes([0x52, 0x54, 0, 0, 0, n]) for n in range(4)]
    assert [bench.get(mac) for mac in macs[:2]] == ["10.0.2.15", "10.0.2.16"]
    assert bench.say(DISCOVER, mac=macs[2]) is None
    assert bench.counts["no_address"] == 1
    bench.say(RELEASE, ciaddr=ip("10.0.2.16"), mac=macs[1])
    bench.now += 1
    bench.say(RELEASE, ciaddr=ip("10.0.2.15"), mac=macs[0])
    assert bench.get(macs[3]) == "10.0.2.16"


def test_two_machines_do_not_share_a_name_and_one_keeps_it_under_two_identifiers(bench):
    bench.get(VM1, (12, b"Web.lab.example"))
    bench.get(VM2, (12, b"web"))
    bench.get(VM1, (12, b"web"), (61, b"another"))
    assert [lease.name for lease in bench.leases] == ["", "", "web"]
    bench.get(bytes([0x52, 0x54, 0, 0, 0, 9]), (12, b"-bad\n"))
    assert [lease.name for lease in bench.leases][-1] == ""


ROM = b"PXEClient:Arch:00007:UNDI:003016"


@pytest.mark.parametrize(
    ("options", "file"),
    [
        (((93, b"\0\0"),), b"undionly.kpxe"),
        (((93, b"\0\7"), (60, ROM)), b"snponly.efi"),
        (((93, b"\0\x09"),), b"snponly.efi"),
        (((93, b"\0\0"), (77, b"iPXE")), b"http://10.0.2.2/boot.ipxe"),
        (((77, b"\4iPXE\3abc"),), b"http://10.0.2.2/boot.ipxe"),
        (((60, b"HTTPClient:Arch:00016:UNDI:003001"), (93, b"\0\x10")), b"http://10.0.2.2/x64.efi"),
        (((93, b"\0\x0b"),), b"default"),
        ((), b"default"),
    ],
)  # fmt: skip
def test_the_boot_file_follows_architecture_user_class_and_vendor_class(options, file):
    lines = [
        "ipxe http://10.0.2.2/boot.ipxe", "http http://10.0.2.2/x64.efi", "bios undionly.kpxe", "efi-x64 snponly.efi",
    ]  # fmt: skip
    bench = Bench(bootfile="default", rules=tuple(map(boot.rule, lines)))
    _, offer = bench.say(DISCOVER, *options)
    assert (offer.file, offer.siaddr) == (file, HOST.packed)
    assert offer.options.get(60) == (b"HTTPClient" if file.endswith(b"x64.efi") else None)


@pytest.mark.needs("tshark")
def test_tshark_sees_every_option_as_it_should_be(tmp_path):
    bench = Bench(
        routers=(HOST,), dns=(ipaddress.IPv4Address("10.0.2.3"), ipaddress.IPv4Address("10.0.2.9")), ntp=(HOST,),
        domain="lab.example", search=("lab.example", "eng.lab.example", "example"), mtu=1400, lease_s=7200,
        routes=((ipaddress.IPv4Network("10.9.0.0/17"), ipaddress.IPv4Address("10.0.2.7")),),
        next_server=ipaddress.IPv4Address("10.0.2.2"), tftp_name="tftp.example", bootfile="pxelinux.0",
    )  # fmt: skip
    every = bytes((1, 3, 6, 12, 15, 26, 28, 42, 51, 54, 58, 59, 66, 67, 119, 121, 150, 249))
    fqdn = (81, b"\0\0\0vm1.")
    asked = [
        [(55, every), fqdn, (57, b"\x05\xdc"), (61, b"\1" + VM1), (97, b"\0" + bytes(range(16)))],
        [(55, every), (81, b"\4\0\0\3vm1\0"), (80, b"")],
        [(55, every), (57, b"\2\x40")],
    ]
    frames = []
    for options in asked:
        datagram, _ = bench.say(DISCOVER, *options)
        frames.append(wirefile.frame("10.0.2.2", 67, "10.0.2.15", 68, datagram.payload))
    found = wirefile.dissected(wirefile.write(tmp_path / "dhcp.pcap", frames), "dhcp")
    expected = {
        "dhcp.ip.your": ["10.0.2.15"], "dhcp.ip.server": ["10.0.2.2"], "dhcp.file": ["pxelinux.0"],
        "dhcp.server": ["tftp.example"], "dhcp.cookie": ["99.130.83.99"], "dhcp.option.subnet_mask": ["255.255.255.0"],
        "dhcp.option.router": ["10.0.2.2"], "dhcp.option.domain_name_server": ["10.0.2.3", "10.0.2.9"],
        "dhcp.option.hostname": ["vm1"], "dhcp.option.domain_name": ["lab.example"], "dhcp.option.interface_mtu": ["1400"],
        "dhcp.option.broadcast_address": ["10.0.2.255"], "dhcp.option.ntp_server": ["10.0.2.2"],
        "dhcp.option.ip_address_lease_time": ["7200"], "dhcp.option.dhcp": ["2"],
        "dhcp.option.dhcp_server_id": ["10.0.2.2"], "dhcp.option.renewal_time_value": ["3600"],
        "dhcp.option.rebinding_time_value": ["6300"], "dhcp.option.tftp_server_name": ["tftp.example"],
        "dhcp.option.bootfile_name": ["pxelinux.0"], "dhcp.option.tftp_server_address": ["10.0.2.2"],
        "dhcp.option.dhcp_dns_domain_search_list_fqdn": ["lab.example", "eng.lab.example", "example"],
    }  # fmt: skip
    for number, tree in enumerate(found):
        seen = {field: wirefile.values(tree, field) for field in expected}
        if number == 1:
            assert seen["dhcp.option.dhcp"] == ["5"]
            seen["dhcp.option.dhcp"] = ["2"]
            assert "80" in wirefile.values(tree, "dhcp.option.type")
            assert wirefile.values(tree, "dhcp.fqdn.name") == ["vm1.lab.example"]
        if number == 2:  # no name was said in this one
            seen["dhcp.option.hostname"] = ["vm1"]
        assert seen == expected, f"frame {number}"
    routes = wirefile.values(found[0], "dhcp.option.classless_static_route")
    assert routes == ["11:0a:09:00:0a:00:02:07", "00:0a:00:02:02"] * 2  # options 121 and 249


@pytest.mark.needs("tshark")
def test_tshark_finds_what_is_in_file_and_sname(tmp_path):
    domains = tuple(f"{'x' * 20}{number}.{'y' * 30}{number}.example" for number in range(4))
    bench = Bench(routers=(HOST,), search=domains, bootfile="a/long/path/" * 8 + "file", tftp_name="tftp.example")
    datagram, _ = bench.say(DISCOVER, (55, bytes((119, 1, 3, 66, 67, 28))))
    overloaded = wirefile.frame("10.0.2.2", 67, "10.0.2.15", 68, datagram.payload)
    (tree,) = wirefile.dissected(wirefile.write(tmp_path / "dhcp.pcap", [overloaded]), "dhcp")
    assert wirefile.values(tree, "dhcp.option.option_overload")
    assert wirefile.values(tree, "dhcp.option.dhcp_dns_domain_search_list_fqdn") == list(domains)
    assert wirefile.values(tree, "dhcp.option.bootfile_name") == ["a/long/path/" * 8 + "file"]
    assert wirefile.values(tree, "dhcp.option.tftp_server_name") == ["tftp.example"]


def test_routes_are_written_as_rfc_3442_has_them():
    written = message.routes([
        (ip("0.0.0.0"), 0, ip("10.0.2.2")), (ip("10.17.0.0"), 16, ip("1.2.3.4")), (ip("10.27.129.0"), 24, ip("1.2.3.4")),
        (ip("10.229.0.128"), 25, ip("1.2.3.4")), (ip("10.198.122.47"), 32, ip("1.2.3.4")),
    ])  # fmt: skip
    assert written == bytes.fromhex(
        "000a000202" "100a1101020304" "180a1b8101020304" "190ae5008001020304" "200ac67a2f01020304"
    )  # fmt: skip


def test_a_search_list_is_compressed_as_in_the_example_of_rfc_3397():
    found = message.search(["eng.apple.com", "marketing.apple.com"])
    assert found == b"\3eng\5apple\3com\0\x09marketing\xc0\x04"


def test_options_that_go_on_in_file_and_sname_are_read_as_one():
    raw = request(DISCOVER, (52, b"\3"), (12, b"gu"), file=b"\x0c\2es\xff\x0c\1X", sname=b"\x0c\1t")
    assert message.read(raw).options == {53: b"\1", 12: b"guest"}


@pytest.mark.parametrize("raw", [
    b"", b"\1" * 235, b"\3" + request(DISCOVER)[1:], request(DISCOVER)[:2] + b"\x11" + request(DISCOVER)[3:],
    request(DISCOVER, end=False) + b"\x0c", request(DISCOVER, end=False) + b"\x0c\xff", request(0), request(9),
    request(DISCOVER, (52, b"\4")), request(DISCOVER, *[(12, b"")] * 64), request(DISCOVER).ljust(5000, b"\0"),
])  # fmt: skip
def test_a_malformed_message_is_refused_as_a_whole(raw, bench):
    with pytest.raises(message.Malformed):
        message.read(raw)
    assert bench.server.receive(came(raw), bench.now) == []
    assert bench.counts == {"malformed": 1}
