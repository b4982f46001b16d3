"""The exercises against libslirp and passt, behind the same TAP as ours: where we answer differently, and why.

QEMU without a machine is libslirp with a hub between it and a stream; passt listens on a unix socket for the same framing. Each answer
of a peer is the right one, which is ours, or stands in its table with the reason. Seen with libslirp 4.7.0 and passt of 2023-03-09.
"""

import contextlib
import os
import re
import subprocess

import pytest

import deadline
import exercises
import labs
import namespaces
from shardnet import options
from shardnet.workers import user

pytestmark = pytest.mark.needs(
    "root", "/dev/net/tun", "qemu-system-x86_64", "passt", "setpriv", "curl", "traceroute", "ping"
)

LAB = """
[tap inside]
ifname = inside
netns = {netns}

[stream peer]
addr.type = unix
addr.path = {socket}
"""
LIBSLIRP = "server = on\n"
PASST = "server = off\nreconnect-ms = 100\n"

SILENCE = "silence"
WHATEVER = "silence|.+"  # as the network of this host has it
LONG = "silence|EMSGSIZE|lost [0-9 ]+"
# What the peer answers where we are right, as a pattern, and why. A key with a family is about that one alone.
DIFFERENCES = {
    "libslirp": {
        "a reset by the guest": (
            "end",
            "closes its socket in order, so the far end takes half of the data for all of it",
        ),
        "a reset by the far end": ("end|ECONNREFUSED", "may lose one that comes as soon as the connection"),
        "udp without a socket": (SILENCE, "does not read the errors of its sockets"),
        ("ping nowhere", "IPv4"): (
            "Destination Net Unreachable, says 10.0.2.2",
            "has one code for whatever sendto() says",
        ),
        **{
            (f"udp of every size at mtu {mtu}", "IPv6"): (LONG, "neither puts fragments of IPv6 together nor cuts")
            for mtu in exercises.MTUS
        },
        ("ping the host with 8000 bytes", "IPv6"): (SILENCE, "no fragments of IPv6"),
        ("ping beyond", "IPv6"): (SILENCE, "external icmpv6 not supported yet, it says"),
        ("ping nowhere", "IPv6"): (SILENCE, "external icmpv6 not supported yet, it says"),
        ("traceroute", "IPv6"): ("fe80::2%inside {beyond}", "answers by its link-local address, as routers may"),
    },
    "passt": {
        "the guest ends first": (SILENCE, "what comes behind a guest's FIN is not acknowledged rightly (podman#27179)"),
        "a reset by the guest": ("end", "closes its socket in order"),
        "a reset by the far end": (SILENCE, "has been seen to keep it to itself on a busy machine"),
        "no listener": (SILENCE, "leaves a connect() that failed to a timer"),
        "nobody": (WHATEVER, "answers ARP and NDP for every address, so the guest asks the host's network"),
        "nowhere": (SILENCE, "leaves a connect() that failed to a timer"),
        **{
            f"udp of every size at mtu {mtu}": (LONG, "no fragments; over IPv6 nothing comes back from the loopback")
            for mtu in exercises.MTUS
        },
        "udp without a socket": (SILENCE, "does not read the errors of its sockets"),
        "ping the host": (WHATEVER, "sends echo to the gateway's address out, where nobody has it"),
        "ping the host with 8000 bytes": (WHATEVER, "as above, and no fragments"),
        "ping nobody": (WHATEVER, "answers ARP and NDP for every address, so the guest asks the host's network"),
        "ping nowhere": (SILENCE, "does not read the errors of its sockets"),
        "traceroute": (r"\* \* \*", "does not look at the hop limit, and reads no errors"),
        **{
            f"bytes both ways at mtu {mtu}": (
                SILENCE,
                "sends whole windows, and what was lost of them again after seconds",
            )
            for mtu in exercises.MTUS
        },
    },
}


@contextlib.contextmanager
def running(*command):
    process = subprocess.Popen(
        ["setpriv", "--pdeathsig", "KILL", *command], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


@contextlib.contextmanager
def peer_behind_tap(peer, directory):
    """A namespace whose network the peer is."""
    with (
        exercises.world(),
        namespaces.making() as make,
        labs.starting(directory) as start,
        contextlib.ExitStack() as stack,
    ):
        place = exercises.Namespace(make("inside"))
        if peer == "libslirp":
            lab = start(LAB.format(netns=place.netns.name, socket="peer.sock") + LIBSLIRP)
            netdevs = "user,id=u", "stream,id=s,server=off,addr.type=unix,addr.path=" + str(lab.run_dir / "peer.sock")
            netdevs += "hubport,id=h0,hubid=0,netdev=u", "hubport,id=h1,hubid=0,netdev=s"
            words = [word for netdev in netdevs for word in ("-netdev", netdev)]
            stack.enter_context(running("qemu-system-x86_64", "-M", "none", "-display", "none", "-nodefaults", *words))
        else:
            socket = directory / "passt.sock"
            command = ["passt", "-f", "-q", "-s", str(socket), "--runas", "0", "-i", f"u{os.getpid()}", "-n", "24"]
            for family in exercises.FAMILIES.values():
                command += ["-a", family.guest, "-g", family.host]
            stack.enter_context(running(*command))
            deadline.until(socket.exists, "passt listening")
            lab = start(LAB.format(netns=place.netns.name, socket=socket) + PASST)
        lab.until_up("inside", "peer")
        exercises.address(place)
        yield place


@pytest.fixture(scope="module", params=["libslirp", "passt"])
def peer(request, tmp_path_factory):
    """The peer's name and its guest."""
    with peer_behind_tap(request.param, tmp_path_factory.mktemp("peer")) as place:
        yield request.param, place


@pytest.mark.parametrize("exercise", exercises.EXERCISES)
@pytest.mark.parametrize("family", exercises.FAMILIES)
def test_answers_as_we_do_or_as_its_table_says(peer, family, exercise):
    name, place = peer
    addresses = exercises.FAMILIES[family]
    known = DIFFERENCES[name]
    differs, _ = known.get((exercise, family)) or known.get(exercise) or ("", "")
    place.patience = 1.0 if re.search(r"silence|\*", differs) else 10.0
    found = exercises.EXERCISES[exercise].do(place, addresses)
    right = exercises.right(exercise, addresses)
    assert found == right or (differs and re.fullmatch(differs.format(**vars(addresses)), found)), (found, right)


# A key, its text, the words of QEMU 7.2, and ours.
REFUSED = [
    ("hostfwd", "tcp::80", "Bad host port separator", "no - between the host's side and the guest's"),
    ("hostfwd", "sctp::80-:80", "Bad protocol name", "sctp is neither tcp nor udp nor unix"),
    ("hostfwd", "80-80", "No : separators", "80-80 is neither tcp nor udp nor unix"),
    ("hostfwd", "tcp::99999-:80", "Bad host port", "99999 is no port: 0 to 65535"),
    ("hostfwd", "tcp::80-:0", "Bad guest port", "0 is no port: 1 to 65535"),
    ("hostfwd", "tcp::80-10.0.2.999:80", "Bad guest address", "10.0.2.999 is no address"),
    ("hostfwd", "unix:a-:80", "Bad protocol name", "no unix:/PATH-[GUEST]:PORT with an absolute path"),
    ("guestfwd", "tcp:10.0.2.100:80", "Invalid guest forwarding rule", "no [tcp]:ADDRESS:PORT- with"),
    ("guestfwd", "udp:10.0.2.100:80-cmd:cat", "Invalid guest forwarding rule", "only TCP is forwarded to a service"),
    ("guestfwd", "tcp:10.0.2.100:0-cmd:cat", "Invalid guest forwarding rule", "0 is no port: 1 to 65535"),
    ("guestfwd", "tcp:10.0.9.1:80-cmd:cat", "Conflicting/invalid host:port", "10.0.9.1 is in no network of the guests"),
    ("host", "10.0.3.2", "Host doesn't belong to network", "not in 10.0.2.0/24"),
    ("net", "10.0.2.0/33", "Invalid netmask provided (must be in range 4-32)", "a prefix of IPv4 is 0 to 32"),
]


@pytest.mark.parametrize(("key", "text", "theirs", "ours"), REFUSED)
def test_what_qemu_refuses_we_refuse_and_say_why(key, text, theirs, ours):
    command = [
        "qemu-system-x86_64",
        "-M",
        "none",
        "-display",
        "none",
        "-nodefaults",
        "-netdev",
        f"user,id=u,{key}={text}",
    ]
    ran = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=30)
    assert ran.returncode == 1
    assert theirs in ran.stderr
    with pytest.raises(options.Wrong) as wrong:
        options.read(user, {key: text})
    assert str(wrong.value).startswith(f"{key} = {text}: ")
    assert ours in str(wrong.value)
