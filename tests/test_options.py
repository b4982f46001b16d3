"""Options of a section, declared by kinds made here."""

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shardnet import manual, options

PATIENT = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # the machine may be busy


def double(text: str) -> int:
    """a number, taken twice"""
    return 2 * int(text)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(options.PortOptions):
    # What sort of address it is.
    # There are two.
    type: Literal["inet", "unix"] = options.option(key="addr.type")
    path: Path | None = options.option(None, key="addr.path")
    tries: int = 3
    # Forwardings.
    hostfwd: tuple[str, ...] = ()
    ports: tuple[int, ...] = ()
    twice: int = options.option(0, read=double)
    note: str = ""


def check(given: Options) -> Any:
    if given.type == "unix" and given.path is None:
        yield "addr.path", "missing, and addr.type = unix needs it"
    if given.tries == 13:
        yield "tries", "no luck"


KIND: Any = SimpleNamespace(
    __doc__="[made NAME]: made for a test.\n\nNothing else.\n",
    Options=Options,
    check=check,
    REFUSED={"fd": "a worker inherits no descriptors"},
)


def read(**given: str) -> Options:
    return options.read(KIND, {"addr.type": "inet"} | {key.replace("__", "."): text for key, text in given.items()})


def mistakes(given: dict[str, str]) -> list[str]:
    with pytest.raises(options.Wrong) as wrong:
        options.read(KIND, given)
    return [str(mistake) for mistake in wrong.value.mistakes]


def test_the_type_of_a_field_reads_its_text():
    found = read(
        addr__path="/run/x", tries="0x10", hostfwd="tcp::1-:2\n\n udp::3-:4", ports="1\n2", twice="4", up="off"
    )
    assert found.path == Path("/run/x")
    assert found.tries == 16
    assert found.hostfwd == ("tcp::1-:2", "udp::3-:4")
    assert found.ports == (1, 2)
    assert found.twice == 8
    assert found.up is False


@pytest.mark.parametrize(
    ("word", "value"), [("on", True), ("yes", True), ("true", True), ("off", False), ("no", False)]
)
def test_a_switch_is_written_as_qemu_writes_it(word, value):
    assert read(isolated=word).isolated is value


@pytest.mark.parametrize(
    ("key", "text", "message"),
    [
        ("mtuu", "1500", 'mtuu: unknown option (did you mean "mtu"?)'),
        ("addr_type", "unix", 'addr_type: unknown option (did you mean "addr.type"?)'),
        ("zzzzz", "1", "zzzzz: unknown option"),
        ("up", "maybe", "up = maybe: neither on nor off"),
        ("up", "On", "up = On: neither on nor off"),
        ("tries", "three", "tries = three: no whole number"),
        ("tries", "1_000", "tries = 1_000: no whole number"),
        ("tries", "010", "tries = 010: no whole number"),
        ("tries", "9" * 50, f"tries = {'9' * 50}: no whole number"),
        ("tries", "1\n2", "tries = 2: a second value, beside 1"),
        ("tries", "", "tries: no value"),
        ("tries", "13", "tries = 13: no luck"),
        ("ports", "1\nx\n2", "ports = x: no whole number"),
        ("addr.type", "unx", 'addr.type = unx: not one of inet, unix (did you mean "unix"?)'),
        ("addr.type", "unix", "addr.path: missing, and addr.type = unix needs it"),
        ("fd", "3", "fd: a worker inherits no descriptors"),
        ("mtu", "67", "mtu = 67: neither 0 nor 68 to 65521"),
        ("vlan", "4095", "vlan = 4095: not 1 to 4094"),
        ("trunk", "20-10", "trunk = 20-10: a VLAN is 1 to 4094, the lower one first"),
        ("trunk", "1,x", "trunk = 1,x: neither all nor a list such as 10,20-29"),
        ("switch", "a b", "switch = a b: no name (letters, digits, . _ - after a letter or digit, at most 32)"),
        ("note\x1b[2J", "x", 'note\\x1b[2J: unknown option (did you mean "note"?)'),
    ],
)
def test_a_mistake_says_what_was_given_what_is_wrong_and_what_was_meant(key, text, message):
    assert mistakes({"addr.type": "inet"} | {key: text}) == [message]


def test_all_mistakes_of_a_section_come_at_once():
    assert mistakes({"up": "maybe", "vlan": "0", "fd": "3"}) == [
        "up = maybe: neither on nor off",
        "vlan = 0: not 1 to 4094",
        "fd: a worker inherits no descriptors",
        "addr.type: missing",
    ]


def test_an_access_port_is_no_trunk():
    assert mistakes({"addr.type": "inet", "vlan": "5", "native": "6", "trunk": "7"}) == [
        "trunk = 7: vlan = 5 makes an access port, which is no trunk",
        "native = 6: vlan = 5 makes an access port, which is no trunk",
    ]


@pytest.mark.parametrize(
    ("given", "mode"),
    [
        ({}, "plain"),
        ({"vlan": "10"}, "access 10"),
        ({"trunk": "29,10,20-28"}, "trunk 10,20-29"),
        ({"trunk": "all"}, "trunk all"),
        ({"native": "5"}, "trunk all native 5"),
        ({"trunk": "1-4094", "native": "1"}, "trunk all native 1"),
    ],
)
def test_the_mode_of_a_port_follows_from_its_vlans(given, mode):
    assert read(**given).mode == mode


def test_a_native_vlan_alone_makes_a_trunk_of_all():
    assert list(read(native="5").tagged or ()) == list(range(1, 4095))


@PATIENT
@given(st.sets(st.integers(1, 4094), min_size=1, max_size=60))
def test_ranges_are_read_as_they_are_written(numbers):
    assert set(options.vlans(options.ranges(sorted(numbers)))) == numbers


@PATIENT
@given(
    st.dictionaries(st.sampled_from(["addr.type", "tries", "ports", "trunk", "up", "mtu", "x"]), st.text(max_size=20))
)
def test_no_text_raises_anything_but_wrong(given):
    try:
        options.read(KIND, {key: text for key, text in given.items() if key != "twice"})
    except options.Wrong as wrong:
        assert all("\n" not in str(mistake) for mistake in wrong.mistakes)


def test_the_manual_has_the_docstring_then_each_option_with_the_comment_above_it():
    page = manual.page(KIND)
    assert page.startswith("[made NAME]: made for a test.\n\nNothing else.\n\nOptions:\n")
    assert "  addr.type = inet | unix  (required)\n      What sort of address it is. There are two.\n" in page
    assert "  tries = NUMBER  (default 3)\n" in page
    assert "  hostfwd = TEXT, one a line\n      Forwardings.\n" in page
    assert "  twice = a number, taken twice  (default 0)\n" in page
    assert "\n\nOptions of every port:\n  switch = NAME  (default lan)\n" in page
    assert "  up = on | off  (default on)\n      Off: the port drops" in page
    assert page.endswith("that cannot work here:\n  fd\n      a worker inherits no descriptors\n")


def test_the_summary_of_a_kind_is_its_first_line():
    assert manual.summary(KIND) == "made for a test"
