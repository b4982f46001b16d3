"""Whatever datagrams come, a DHCP server answers within bounds, and its table of leases holds together."""

import ipaddress

from hypothesis import given
from hypothesis import strategies as st

from shardnet.dhcp import leases, message, message6, server, server6

HOST4, HOST6 = ipaddress.IPv4Address("10.0.2.2"), ipaddress.IPv6Address("fec0::2")
MACS = [bytes((0x52, 0x54, 0, 0, 0, number)) for number in range(4)]
GROUP = ipaddress.IPv6Address("ff02::1:2").packed
DUID = server6.duid(MACS[0])
EACH = 3

short = st.binary(max_size=6)
address4 = st.sampled_from([ipaddress.IPv4Address(f"10.0.2.{last}").packed for last in (2, 15, 16, 17, 40)]) | short
address6 = st.sampled_from([ipaddress.IPv6Address(f"fec0::{last}").packed for last in ("2", "1000", "1001", "9999")])


def option4(code, value):
    return bytes((code, min(len(value), 255))) + value[:255]


def option6(code, value):
    return code.to_bytes(2, "big") + len(value).to_bytes(2, "big") + value


some4 = st.one_of(
    st.builds(option4, st.sampled_from([50, 54]), address4),
    st.builds(
        option4, st.sampled_from([12, 51, 52, 55, 57, 60, 61, 66, 77, 80, 81, 82, 93, 97]), st.binary(max_size=30)
    ),
    st.builds(option4, st.integers(0, 255), short),
    short,
)
kind4 = st.builds(lambda kind: bytes((53, 1, kind)), st.integers(1, 8)) | short
message4 = st.builds(
    lambda flags, client, relay, mac, sname, file, kind, options: (
        bytes((1, 1, 6, 0)) + b"\1\2\3\4\0\0" + flags + client.ljust(4, b"\0")[:4] + bytes(8) + relay + mac + bytes(10)
        + sname.ljust(64, b"\0") + file.ljust(128, b"\0") + message.COOKIE + kind + b"".join(options)
    ),
    st.sampled_from([b"\0\0", b"\x80\0"]), st.just(bytes(4)) | address4, st.sampled_from([bytes(4), HOST4.packed]),
    st.sampled_from(MACS), st.binary(max_size=64), st.binary(max_size=128), kind4, st.lists(some4, max_size=8),
)  # fmt: skip

inner6 = st.builds(lambda ip: option6(5, ip + bytes(8)), address6) | st.binary(max_size=8)
association = st.builds(lambda iaid, inner: option6(3, bytes((0, 0, 0, iaid)) + bytes(8) + b"".join(inner)),
                        st.integers(0, 5), st.lists(inner6, max_size=4))  # fmt: skip
some6 = st.one_of(
    association,
    st.builds(lambda mac: option6(1, b"\0\3\0\1" + mac), st.sampled_from(MACS)),
    st.just(option6(2, DUID)),
    st.builds(option6, st.sampled_from([4, 6, 14, 15, 16, 25, 39, 61]), st.binary(max_size=30)),
    st.builds(option6, st.integers(0, 300), short),
)
message6s = st.builds(
    lambda kind, options: bytes((kind,)) + b"\1\2\3" + b"".join(options),
    st.integers(0, 14), st.lists(some6, max_size=8),
)  # fmt: skip
step = st.tuples(st.sampled_from(MACS), st.sampled_from([0.0, 1.0, 11.0, 700.0, 90_000.0]))


def holds_together(table):
    """The table's own books agree with each other."""
    live = [lease for lease in table if lease.state != "free"]
    assert len({lease.address for lease in table}) == len(table)
    for lease in table:
        assert table.at(lease.address) is lease
        assert not lease.key or table.held(lease.key) is lease
    for mac in MACS:
        assert sum(lease.origin == mac for lease in live) <= EACH
    names = [lease.name for lease in live if lease.name]
    assert len(names) == len(set(names))


@given(st.lists(st.tuples(step, message4 | st.binary(max_size=600)), max_size=20), st.booleans())
def test_any_datagrams_of_ipv4(datagrams, probes):
    kept = [leases.Reservation(ipaddress.IPv4Address("10.0.2.17").packed, "web", mac=MACS[1])]
    table = leases.Leases(
        *(ipaddress.IPv4Address(f"10.0.2.{last}").packed for last in (15, 20)), reservations=kept, each=EACH
    )
    config = server.Config(
        address=HOST4, network=ipaddress.IPv4Network("10.0.2.0/24"), routers=(HOST4,), dns=(HOST4,), domain="lab.example",
        search=("a.example", "b.example"), bootfile="boot/" * 30,
    )  # fmt: skip
    one = server.Server(config, table, probes=probes)
    now = 0.0
    for (mac, later), raw in datagrams:
        now += later
        answers = one.receive(server.Datagram(raw, bytes(4), 68, b"\xff" * 4, 67, mac), now)
        for asked in list(one.asking):
            answers += one.probed(asked, MACS[3] if now % 2 else None, now)
        for answer in answers:
            assert 300 <= len(answer.payload) <= 1472
            message.read(answer.payload)
        holds_together(table)


@given(st.lists(st.tuples(step, message6s | st.binary(max_size=600)), max_size=20))
def test_any_datagrams_of_ipv6(datagrams):
    table = leases.Leases(
        *(ipaddress.IPv6Address(f"fec0::{last}").packed for last in (1000, 1005)), reservations=[], each=EACH
    )
    config = server6.Config(
        duid=DUID, address=HOST6, network=ipaddress.IPv6Network("fec0::/64"), dns=(HOST6,), bootfile="b"
    )
    one = server6.Server(config, table)
    now = 0.0
    for (mac, later), raw in datagrams:
        now += later
        for answer in one.receive(server.Datagram(raw, bytes(16), 546, GROUP, 547, mac), now):
            assert len(answer.payload) <= 1232
            message6.read(answer.payload)
        holds_together(table)
