"""DHCP under malformed messages: a corpus, saved as a pcap, sent to both servers; a guest in between is served as ever."""

import badmessages
import test_dhcp
import test_dhcp6
import wirefile
from shardnet.dhcp import server

CORPUS_MIN = 500


def corpus4():
    options = [(50, test_dhcp.ip("10.0.2.20")), (55, bytes((1, 3, 6, 15, 119))), (57, b"\5\xdc"), (12, b"guest")]
    options += [
        (61, b"\xff" + bytes(14)),
        (77, b"\4iPXE"),
        (81, b"\4\0\0\3vm1\0"),
        (82, b"\1\2ab"),
        (93, b"\0\7"),
        (52, b"\3"),
    ]
    goods = [test_dhcp.request(kind, *options) for kind in (1, 3, 4, 7, 8)] + [test_dhcp.request(None)]
    return [bad for number, good in enumerate(goods) for bad in badmessages.broken(good, 240, number)]


def corpus6():
    say = test_dhcp6
    parts = say.duid(say.VM1) + say.TO_US + say.ia(1, "fec0::1000", "fec0::1001") + say.ORO + say.option(39, b"\0\3vm1")
    parts += say.ia(2, code=25) + say.option(15, b"\0\4iPXE") + say.option(16, bytes(4) + b"\0\4HTTP")
    goods = [bytes((kind,)) + b"\1\2\3" + parts for kind in (1, 3, 5, 8, 9)]
    goods.append(b"\x0b\1\2\3" + say.duid(say.VM1) + say.ORO)
    return [bad for number, good in enumerate(goods) for bad in badmessages.broken(good, 4, number)]


def replayed(name, frames, head):
    """What a pcap of these frames holds, without their `head` bytes."""
    return [frame[head:] for frame in wirefile.read(wirefile.corpus(name, frames))]


def test_malformed_messages_of_ipv4_are_counted_or_answered_within_bounds():
    frames = [wirefile.frame("0.0.0.0", 68, "255.255.255.255", 67, raw) for raw in corpus4()]
    assert len(frames) >= CORPUS_MIN
    bench = test_dhcp.Bench(dns=(test_dhcp.HOST,), bootfile="boot.img", search=("lab.example",))
    address = bench.get(test_dhcp.VM2)
    for number, raw in enumerate(replayed("dhcp", frames, 42)):
        bench.now += 0.1
        for answer in bench.server.receive(test_dhcp.came(raw), bench.now):
            assert 300 <= len(answer.payload) <= 1472, number
            assert answer.local == test_dhcp.HOST.packed
    assert bench.counts["malformed"] > 300
    assert len([lease for lease in bench.leases if lease.origin == test_dhcp.VM1]) <= 8
    assert bench.get(test_dhcp.VM2) == address


def test_malformed_messages_of_ipv6_are_counted_or_answered_within_bounds():
    frames = [wirefile.frame("fe80::1", 546, "ff02::1:2", 547, raw) for raw in corpus6()]
    assert len(frames) >= CORPUS_MIN
    bench = test_dhcp6.Bench(dns=(test_dhcp6.HOST,), bootfile="boot.img", search=("lab.example",))
    address = bench.get(test_dhcp6.VM2)
    for number, raw in enumerate(replayed("dhcp6", frames, 62)):
        bench.now += 0.1
        came = server.Datagram(raw, test_dhcp6.GUEST, 546, test_dhcp6.GROUP, 547, test_dhcp6.VM1)
        for answer in bench.server.receive(came, bench.now):
            assert len(answer.payload) <= 1232, number
            assert answer.local == test_dhcp6.GROUP
    assert bench.counts["malformed"] > 300
    assert len([lease for lease in bench.leases if lease.origin == test_dhcp6.VM1]) <= 8
    assert bench.get(test_dhcp6.VM2) == address
