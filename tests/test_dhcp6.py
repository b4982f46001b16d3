"""The DHCP server for IPv6: requests written by hand from RFC 8415, answers judged by tshark."""

import ipaddress

import pytest

import wirefile
from shardnet.dhcp import boot, leases, message, message6, server, server6

HOST = ipaddress.IPv6Address("fec0::2")
GUEST = ipaddress.IPv6Address("fe80::5054:ff:fe00:1").packed
GROUP = ipaddress.IPv6Address("ff02::1:2").packed
VM1, VM2 = bytes.fromhex("525400000001"), bytes.fromhex("525400000002")
OURS = server6.duid(bytes.fromhex("52550a000202"))
SOLICIT, ADVERTISE, REQUEST, CONFIRM, RENEW, REBIND, REPLY, RELEASE, DECLINE, RECONFIGURE, INFORMATION = range(1, 12)


def ip(text):
    return ipaddress.ip_address(text).packed


def option(code, value=b""):
    return code.to_bytes(2, "big") + len(value).to_bytes(2, "big") + value


def ia(iaid, *addresses, code=3):
    inner = b"".join(option(5, ip(text) + bytes(8)) for text in addresses)
    return option(code, iaid.to_bytes(4, "big") + (b"" if code == 4 else bytes(8)) + inner)


def duid(mac):
    return option(1, b"\0\3\0\1" + mac)


ORO = option(6, b"".join(code.to_bytes(2, "big") for code in (23, 24, 31, 32, 39, 56, 59)))
TO_US = option(2, OURS)


class Bench:
    def __init__(self, pool=True, reservations=(), **config):
        self.now = 1000.0
        self.counts = {}
        self.leases = leases.Leases(ip("fec0::1000"), ip("fec0::1fff"), reservations=reservations, each=8)
        self.config = server6.Config(duid=OURS, address=HOST, network=ipaddress.IPv6Network("fec0::/64"), **config)
        self.server = server6.Server(self.config, self.leases if pool else None, self.count)

    def count(self, name):
        self.counts[name] = self.counts.get(name, 0) + 1

    def say(self, kind, *parts, mac=VM1, local=GROUP, client=True):
        payload = bytes((kind,)) + b"\1\2\3" + (duid(mac) if client else b"") + b"".join(parts)
        datagram = server.Datagram(payload, GUEST, 546, local, 547, mac)
        answers = self.server.receive(datagram, self.now)
        if not answers:
            return None
        (answer,) = answers
        assert answer[1:] == (GUEST, 546, local, 547, mac)
        assert answer.payload[1:4] == b"\1\2\3"
        return message6.Message(answer.payload[0], answer.payload[1:4], message6.options(answer.payload[4:]))

    def get(self, mac=VM1, iaid=1):
        (one,) = self.say(SOLICIT, ia(iaid), mac=mac).associations
        (one,) = self.say(REQUEST, TO_US, ia(iaid, str(ipaddress.ip_address(one.addresses[0]))), mac=mac).associations
        return str(ipaddress.ip_address(one.addresses[0]))


def status(reply):
    value = reply.first(13)
    return None if value is None else int.from_bytes(value[:2], "big")


@pytest.fixture
def bench():
    return Bench()


def test_solicit_and_request_give_a_lease_and_each_client_and_association_its_own(bench):
    assert bench.get() == "fec0::1000"
    assert bench.get() == "fec0::1000"
    assert bench.get(VM2) == "fec0::1001"
    assert bench.get(VM1, iaid=2) == "fec0::1002"
    advertised = bench.say(SOLICIT, ia(7))
    assert (advertised.kind, advertised.first(7)) == (ADVERTISE, b"\xff")  # nobody else is waited for
    assert (advertised.first(2), advertised.first(1)) == (OURS, b"\0\3\0\1" + VM1)


def test_rapid_commit_replies_at_once(bench):
    reply = bench.say(SOLICIT, ia(1), option(14))
    assert (reply.kind, reply.first(14)) == (REPLY, b"")
    assert bench.leases.at(ip("fec0::1000")).state == "bound"


def test_renew_and_rebind_lengthen_a_lease_and_take_in_who_was_forgotten(bench):
    address = bench.get()
    for kind, to in ((RENEW, TO_US), (REBIND, b"")):
        bench.now += 50_000
        (one,) = bench.say(kind, to, ia(1, address)).associations
        assert one.addresses == [ip(address)]
    (one,) = bench.say(RENEW, TO_US, ia(1, "fec0::1abc"), mac=VM2).associations
    assert one.addresses == [ip("fec0::1abc")]
    reply = bench.say(REBIND, ia(5, "2001:db8::1"), mac=VM2)
    inner = message6.options(reply.first(3)[12:])
    assert inner == [(5, ip("2001:db8::1") + bytes(8))]  # to be used no more


def test_confirm_says_whether_the_addresses_are_of_this_link(bench):
    assert status(bench.say(CONFIRM, ia(1, "fec0::77"))) == 0
    assert status(bench.say(CONFIRM, ia(1, "2001:db8::1"))) == 4
    assert bench.say(CONFIRM, ia(1)) is None


def test_release_and_decline_end_a_lease(bench):
    address = bench.get()
    assert status(bench.say(RELEASE, TO_US, ia(1, address))) == 0
    assert bench.leases.at(ip(address)).state == "free"
    assert bench.get() == address
    assert status(bench.say(DECLINE, TO_US, ia(1, address))) == 0
    assert bench.leases.at(ip(address)).state == "declined"
    assert bench.get() == "fec0::1001"
    assert [what for what, _ in bench.leases.news] == ["given", "released", "given", "declined", "given"]


def test_nobody_ends_the_lease_of_another(bench):
    address = bench.get()
    bench.say(RELEASE, TO_US, ia(1, address), mac=VM2)
    bench.say(DECLINE, TO_US, ia(1, address), mac=VM2)
    assert bench.leases.at(ip(address)).state == "bound"


def test_what_is_not_for_us_is_not_answered(bench):
    other = option(2, b"\0\3\0\1another")
    for kind, *parts in (
        [SOLICIT, TO_US, ia(1)], [REQUEST, other, ia(1)], [REQUEST, ia(1)], [REBIND, TO_US, ia(1)], [ADVERTISE], [REPLY],
        [RECONFIGURE], [INFORMATION, other], [INFORMATION, ia(1)],
    ):  # fmt: skip
        assert bench.say(kind, *parts) is None
    assert bench.say(SOLICIT, ia(1), client=False) is None
    assert bench.say(SOLICIT, ia(1), local=HOST.packed) is None
    assert status(bench.say(REQUEST, TO_US, ia(1), local=HOST.packed)) == 5  # use the group
    assert not len(bench.leases)


def test_prefixes_and_temporary_addresses_are_refused_by_their_status(bench):
    reply = bench.say(SOLICIT, ia(1), ia(2, code=25), ia(3, code=4))
    assert message6.options(reply.first(25)[12:]) == [(13, b"\0\6")]
    assert message6.options(reply.first(4)[4:]) == [(13, b"\0\2")]
    assert reply.associations[0].addresses


def test_a_server_without_a_pool_says_the_rest():
    bench = Bench(pool=False, dns=(HOST,))
    reply = bench.say(SOLICIT, ia(1), ORO)
    assert message6.options(reply.first(3)[12:])[0][0] == 13
    assert bench.say(INFORMATION, ORO).first(23) == HOST.packed


def test_a_reservation_by_duid_and_by_hardware_address():
    kept = [
        leases.Reservation(ip("fec0::50"), "web1", mac=VM1),
        leases.Reservation(ip("fec0::51"), "db", client=b"\0\3\0\1" + VM2),
    ]
    bench = Bench(reservations=kept)
    assert bench.get() == "fec0::50"
    assert bench.get(VM2) == "fec0::51"
    assert [lease.name for lease in bench.leases] == ["web1", "db"]


@pytest.mark.parametrize(
    ("parts", "url"),
    [
        ([option(61, b"\0\7")], "tftp://[fec0::2]/snponly.efi"),
        ([option(61, b"\0\7"), option(15, b"\0\4iPXE")], "http://[fec0::2]/boot.ipxe"),
        ([option(61, b"\0\x10"), option(16, bytes(4) + b"\0\x1dHTTPClient:Arch:00016")], "http://[fec0::2]/x64.efi"),
        ([], "tftp://[fec0::2]/default"),
    ],
)
def test_the_boot_url_follows_architecture_user_class_and_vendor_class(parts, url):
    lines = ["ipxe http://[fec0::2]/boot.ipxe", "http http://[fec0::2]/x64.efi", "efi-x64 snponly.efi"]
    bench = Bench(bootfile="default", rules=tuple(map(boot.rule, lines)))
    reply = bench.say(INFORMATION, ORO, *parts)
    assert reply.first(59) == url.encode()
    assert (reply.first(16) is not None) == url.endswith("x64.efi")


@pytest.mark.needs("tshark")
def test_tshark_sees_every_option_as_it_should_be(tmp_path):
    bench = Bench(
        dns=(ipaddress.IPv6Address("fec0::3"), HOST), ntp=(HOST,), domain="lab.example",
        search=("lab.example", "eng.lab.example"), bootfile="boot.efi", lease_s=7200,
    )  # fmt: skip
    fqdn = option(39, b"\0\3vm1")
    kinds = [(SOLICIT, ia(1)), (REQUEST, TO_US + ia(1, "fec0::1000")), (INFORMATION, b"")]
    frames = []
    for kind, parts in kinds:
        payload = bytes((kind,)) + b"\1\2\3" + duid(VM1) + parts + ORO + fqdn
        (answer,) = bench.server.receive(server.Datagram(payload, GUEST, 546, GROUP, 547, VM1), 1000.0)
        frames.append(wirefile.frame("fec0::2", 547, "fe80::5054:ff:fe00:1", 546, answer.payload))
    found = wirefile.dissected(wirefile.write(tmp_path / "dhcp6.pcap", frames), "dhcpv6")
    common = {
        "dhcpv6.dns_server": ["fec0::3", "fec0::2"],
        "dhcpv6.search_list_entry": ["lab.example.", "eng.lab.example."],
        "dhcpv6.ntpserver.addr": ["fec0::2"],
        "dhcpv6.sntp_server": ["fec0::2"],
    }
    for number, tree in enumerate(found):
        seen = {field: wirefile.values(tree, field) for field in common}
        assert seen == common, f"frame {number}"
        assert "Boot File URL" in wirefile.values(tree, "dhcpv6.option.type_str")  # this tshark does not say which
    leased = {
        "dhcpv6.iaaddr.ip": ["fec0::1000"], "dhcpv6.iaaddr.pref_lifetime": ["7200"], "dhcpv6.iaaddr.valid_lifetime": ["7200"],
        "dhcpv6.iaid.t1": ["3600"], "dhcpv6.iaid.t2": ["5760"], "dhcpv6.client_domain": ["vm1.lab.example."],
    }  # fmt: skip
    assert {field: wirefile.values(found[1], field) for field in leased} == leased


@pytest.mark.parametrize("raw", [
    b"", b"\1\0\0", b"\0\0\0\0", b"\x0c" + bytes(33), b"\1\0\0\0\0", b"\1\0\0\0\0\1\0\x09", b"\1\0\0\0" + option(1, b""),
    b"\1\0\0\0" + option(1, bytes(131)), b"\1\0\0\0" + duid(VM1) * 2, b"\1\0\0\0" + option(6, b"\0"),
    b"\1\0\0\0" + option(3, bytes(11)), b"\1\0\0\0" + option(3, bytes(12) + b"\0\5\0"),
    b"\1\0\0\0" + option(3, bytes(12) + option(5, bytes(23))), b"\1\0\0\0" + option(9) * 65, b"\1\0\0\0" + bytes(4096),
])  # fmt: skip
def test_a_malformed_message_is_refused_as_a_whole(raw, bench):
    with pytest.raises(message.Malformed):
        message6.read(raw)
    assert bench.server.receive(server.Datagram(raw, GUEST, 546, GROUP, 547, VM1), bench.now) == []
    assert bench.counts == {"malformed": 1}
