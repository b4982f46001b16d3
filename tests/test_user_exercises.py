"""[user NAME] from inside: the list of exercises from a namespace behind a TAP and from a Linux guest in QEMU behind a stream.

Addresses are static. SHARDNET_TEST_FULL=1 moves 200 MB each way and is idle for ten minutes; without it both are smaller.
"""

import pytest

import exercises
import guest as guests
import labs
import namespaces

pytestmark = [
    pytest.mark.needs("root", "/dev/net/tun", "guests", "curl", "traceroute", "ping"),
    pytest.mark.timeout(1200 if exercises.FULL else 300),
]

LAB = """
[user net0]

[tap inside]
ifname = inside
netns = {netns}

[user net1]
switch = other

[stream vm]
switch = other
server = on
addr.type = unix
addr.path = vm.sock
"""


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """A namespace and a guest, each on a switch with a user-mode network."""
    directory = tmp_path_factory.mktemp("exercises")
    with (
        exercises.world(),
        namespaces.making() as make,
        labs.starting(directory) as start,
        guests.booting(directory) as boot,
    ):
        namespace = exercises.Namespace(make("inside"))
        lab = start(LAB.format(netns=namespace.netns.name))
        guest = boot([f"stream,server=off,addr.type=unix,addr.path={lab.run_dir}/vm.sock"], tools=True, memory=256)
        found = {"namespace": namespace, "guest": exercises.Guest(guest)}
        lab.until_up("net0", "net1", "inside", "vm")
        for place in found.values():
            exercises.address(place)
        yield found


@pytest.mark.parametrize("exercise", exercises.EXERCISES)
@pytest.mark.parametrize("family", exercises.FAMILIES)
@pytest.mark.parametrize("place", ["namespace", "guest"])
def test_from(places, place, family, exercise):
    addresses = exercises.FAMILIES[family]
    assert exercises.EXERCISES[exercise].do(places[place], addresses) == exercises.right(exercise, addresses)
