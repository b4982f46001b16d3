"""Each kind of port against a program that is not ours: the same five checks for every way there is.

vhost-user has its own file, since its other end is a guest.
"""

import contextlib

import pytest

import exchange
import ways

pytestmark = pytest.mark.needs(
    "root", "/dev/net/tun", "socat", "qemu-system-x86_64", "vde_switch", "vde_plug2tap", "dpipe", "unixterm", "passt",
    ways.HELPER,
)  # fmt: skip


@pytest.fixture(scope="module", params=ways.WAYS)
def joined(request, tmp_path_factory):
    way = ways.WAYS[request.param]
    with contextlib.ExitStack() as stack:
        made = way.join(ways.Site(tmp_path_factory.mktemp("w"), stack, way.mtu))
        exchange.answered(made.here, made.to)
        yield way, made
        for name, port in ((port["name"], port) for port in made.lab.json("status")["ports"]):
            assert port["state"] == "up", (name, port["state"], port["detail"])


def mtu(made, size):
    made.here.run("ip", "link", "set", "g0", "mtu", str(size))
    made.there.run("ip", "link", "set", made.far, "mtu", str(size))


def test_20_mb_cross_each_way_with_one_sha256(joined, tmp_path):
    way, made = joined
    mtu(made, 1500)
    exchange.ping(made.here, made.to)
    exchange.bulk(made.here, made.there, made.to, tmp_path, way.most)


def test_packets_of_9000_bytes_cross_or_it_is_said_why_not(joined, tmp_path):
    way, made = joined
    mtu(made, way.mtu)
    exchange.ping(made.here, made.to, way.mtu - 28)
    if way.mtu < ways.MTU:
        assert way.why
        return
    exchange.bulk(made.here, made.there, made.to, tmp_path, way.most)


def test_a_vlan_crosses_or_it_is_said_why_not(joined):
    way, made = joined
    made.allow()
    with (
        exchange.vlan(made.here, "g0", 7, "10.7.7.1/24"),
        exchange.vlan(made.there, made.far, 7, "10.7.7.2/24"),
    ):
        if not way.tags:
            assert way.why
            with pytest.raises(AssertionError, match="not within"):
                exchange.answered(made.here, "10.7.7.2", within=2)
            return
        exchange.answered(made.here, "10.7.7.2")
        exchange.ping(made.here, "10.7.7.2", 1300)


def test_the_other_end_starts_anew_and_the_port_goes_on(joined):
    _, made = joined
    made.restart()
    exchange.answered(made.here, made.to)
    exchange.ping(made.here, made.to)
