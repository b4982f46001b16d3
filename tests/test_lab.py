"""Lab files: what is in them, what is wrong with them, what a reload does."""

import pathlib
import subprocess
import sys

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from shardnet import ini, kinds, lab, manual, options

PATIENT = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # the machine may be busy

STREAM = "server = on\naddr.type = unix\naddr.path = {}.sock\n"


def write(folder, text, name="lab.ini"):
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def mistakes(folder, text, name="lab.ini"):
    """The messages for a file of this text, without the folder it is in."""
    with pytest.raises(lab.Wrong) as wrong:
        lab.read(write(folder, text, name))
    return [mistake.text.removeprefix(f"{folder}/") for mistake in wrong.value.mistakes]


def streams(*names, keys=""):
    return "".join(f"[stream {name}]\n{STREAM.format(name)}{keys}" for name in names)


def test_a_lab_has_its_ports_in_the_order_of_the_file(tmp_path):
    text = "[lab]\nshards = 2\n[switch dmz]\nmode = hub\n[tap host0]\nswitch = dmz\n" + streams("vm1", "vm2")
    found = lab.read(write(tmp_path, text, "demo.ini"))
    assert (found.name, found.file, found.options.shards) == ("demo", tmp_path / "demo.ini", 2)
    assert [str(port) for port in found.ports] == ["[tap host0]", "[stream vm1]", "[stream vm2]"]
    assert found.switch_names == ("dmz", "lan")
    assert found.switches["dmz"].options.mode == "hub"
    assert found.ports[1].given["addr.path"] == "vm1.sock"


def test_the_lab_may_name_itself(tmp_path):
    assert lab.read(write(tmp_path, "[lab]\nname = demo\n", "it is.ini")).name == "demo"


def test_a_lab_is_read_from_text_too():
    assert [port.name for port in lab.read(streams("vm1")).ports] == ["vm1"]


def test_a_switch_forwards_the_link_local_groups_that_its_section_names():
    found = lab.read("[switch a]\nlink-local = lldp, stp,2\n[switch b]\nlink-local = forward\n[switch c]\n")
    assert [found.switches[name].options.link_local for name in "abc"] == [0x4005, 0xFFFF, 0]


# A wrong lab file, and the exact messages it gets.
WRONG = {
    "an option misspelt": (
        "[tap host0]\nmtuu = 1500\n",
        ['lab.ini:2: [tap host0] mtuu: unknown option (did you mean "mtu"?)'],
    ),
    "a switch that is neither on nor off": (
        "[tap up]\nup = maybe\n",
        ["lab.ini:2: [tap up] up = maybe: neither on nor off"],
    ),
    "a kind misspelt": (
        "[stram vm1]\nserver = on\n",
        ['lab.ini:1: [stram vm1] unknown kind (did you mean "stream"?)'],
    ),
    "a kind that leads out of the folder": (
        "[../tap x]\n",
        ['lab.ini:1: [../tap x] unknown kind (did you mean "tap"?)'],
    ),
    "a section without a name": (
        "[tap]\n",
        ["lab.ini:1: [tap] no name ([tap NAME] is meant)"],
    ),
    "a name with a space": (
        "[tap my tap]\n",
        ["lab.ini:1: [tap my tap] no name (letters, digits, . _ - after a letter or digit, at most 32)"],
    ),
    "a name too long": (
        f"[tap {'x' * 33}]\n",
        [f"lab.ini:1: [tap {'x' * 33}] no name (letters, digits, . _ - after a letter or digit, at most 32)"],
    ),
    "two ports of one name": (
        "[tap a]\n" + streams("a"),
        ["lab.ini:2: [stream a] has the name of [tap a] on line 1"],
    ),
    "a section twice": (
        "[tap a]\nmtu = 1500\n[tap b]\n[tap a]\nmtu = 9000\n",
        ["lab.ini:4: [tap a] a second time, after line 1"],
    ),
    "a key twice": (
        "[tap a]\nmtu = 1500\nmtu = 9000\n",
        ["lab.ini:3: [tap a] mtu: a second time, after line 2"],
    ),
    "a required option missing": (
        "[exec vm1]\n",
        ["lab.ini:1: [exec vm1] command: missing"],
    ),
    "an option missing beside another": (
        "[stream vm1]\naddr.type = unix\n",
        ["lab.ini:1: [stream vm1] addr.path: missing, and addr.type = unix needs it"],
    ),
    "a value that is none of its words": (
        "[switch lan]\nmode = lern\n",
        ['lab.ini:2: [switch lan] mode = lern: not one of learn, hub (did you mean "learn"?)'],
    ),
    "a number out of range": (
        "[tap a]\nvlan = 4095\n",
        ["lab.ini:2: [tap a] vlan = 4095: not 1 to 4094"],
    ),
    "an access port that is a trunk": (
        "[tap a]\nvlan = 10\ntrunk = 20\n",
        ["lab.ini:3: [tap a] trunk = 20: vlan = 10 makes an access port, which is no trunk"],
    ),
    "a comment behind a value": (
        "[tap a]\nmtu = 1500 ; as usual\n",
        ["lab.ini:2: [tap a] mtu = 1500 ; as usual: no whole number (a comment stands on a line of its own)"],
    ),
    "a colon for an equals sign": (
        "[tap a]\nmtu: 1500\n",
        ["lab.ini:2: mtu: 1500: neither [KIND NAME] nor KEY = VALUE"],
    ),
    "a second value": (
        "[tap a]\nmtu = 1500\n\n  vlan = 3\n",
        ["lab.ini:4: [tap a] mtu = vlan = 3: a second value, beside 1500"],
    ),
    "a value forgotten": (
        "[tap a]\nifname =\n",
        ["lab.ini:2: [tap a] ifname: no value"],
    ),
    "an option of QEMU's that cannot work": (
        "[tap a]\nfd = 3\n",
        ["lab.ini:2: [tap a] fd: a worker inherits no descriptors; name the interface with ifname"],
    ),
    "a key before the first section": (
        "mtu = 1500\n[tap a]\n",
        ["lab.ini:1: mtu = 1500: before the first [KIND NAME]"],
    ),
    "a bracket forgotten": (
        "[tap a\nmtu = 1500\n",
        ["lab.ini:1: [tap a: no section, which is [KIND NAME] alone on its line"],
    ),
    "a group address that is none": (
        "[switch lan]\nlink-local = lldp,cdp\n",
        [
            "lab.ini:2: [switch lan] link-local = lldp,cdp: cdp is neither of stp, pause, lacp, eapol, lldp "
            "nor the last hex digit of an address"
        ],
    ),
    "a name in the title of the lab": (
        "[lab demo]\n",
        ["lab.ini:1: [lab demo] no name in the title (the key name gives it one)"],
    ),
    "a lane of a size that is none": (
        "[lab]\nlane_bytes = 3M\n",
        ["lab.ini:2: [lab] lane_bytes = 3M: no power of two from 256K to 64M"],
    ),
    "no section": ("; nothing yet\n", ["lab.ini: no section in it"]),
    "nothing": ("", ["lab.ini: no section in it"]),
    "a program": (b"\x7fELF\x02\x01\x01\x00", ["lab.ini:1: no text (it has a character 0x7f)"]),
    "text that is not UTF-8": (b"[tap a]\nifname = \xfcber\n", ["lab.ini:2: no UTF-8 text (byte 0xfc)"]),
    "UTF-16": ("[tap a]".encode("utf-16"), ["lab.ini:1: no UTF-8 text (byte 0xff)"]),
    "a file too large": (b";" * ((1 << 20) + 1), ["lab.ini: larger than 1 MiB, which no lab file is"]),
    "mistakes of every sort": (
        "[lab]\nshards = 0\n[tap a]\nup = 2\nnetnss = left\njunk\n[tap b]\nvlan = x\n[tpa c]\n[tap a]\n",
        [
            "lab.ini:2: [lab] shards = 0: not 1 to 60",
            "lab.ini:4: [tap a] up = 2: neither on nor off",
            'lab.ini:5: [tap a] netnss: unknown option (did you mean "netns"?)',
            "lab.ini:6: junk: neither [KIND NAME] nor KEY = VALUE",
            "lab.ini:8: [tap b] vlan = x: no whole number",
            'lab.ini:9: [tpa c] unknown kind (did you mean "tap"?)',
            "lab.ini:10: [tap a] a second time, after line 3",
        ],
    ),
}


@pytest.mark.parametrize(("text", "messages"), WRONG.values(), ids=WRONG.keys())
def test_a_mistake_names_the_file_the_line_the_section_and_the_key(tmp_path, text, messages):
    assert mistakes(tmp_path, text) == messages


def test_a_value_of_several_lines_is_wrong_on_its_own_line():
    with pytest.raises(lab.Wrong) as wrong:
        lab.read("[tap a]\ntrunk = 10\n ; and\n  20\n")
    assert wrong.value.mistakes == ((4, "text:4: [tap a] trunk = 20: a second value, beside 10"),)


def test_a_file_that_cannot_be_read_says_why(tmp_path):
    for path, why in ((tmp_path / "none.ini", "No such file or directory"), (tmp_path, "Is a directory")):
        with pytest.raises(lab.Wrong) as wrong:
            lab.read(path)
        assert str(wrong.value) == f"{path}: {why}"


def test_a_file_whose_name_cannot_name_a_lab_needs_a_name_inside(tmp_path):
    why = ["my lab.ini: my lab cannot name a lab ([lab] name = NAME does)"]
    assert mistakes(tmp_path, "[tap a]\n", "my lab.ini") == why


def test_a_lab_has_at_most_1023_ports(tmp_path):
    names = [f"p{number}" for number in range(1024)]
    text = streams(*names)
    assert mistakes(tmp_path, text) == ["lab.ini:4093: [stream p1023] one port too many (a lab has at most 1023)"]
    assert len(lab.read(streams(*names[:-1])).ports) == 1023


def test_a_lab_has_at_most_64_switches(tmp_path):
    text = "[switch lan]\n" + "".join(f"[tap t{number}]\nswitch = s{number}\n" for number in range(65))
    why = ["lab.ini:128: [tap t63] switch = s63: one too many (a lab has at most 64)"]
    assert mistakes(tmp_path, text) == why


def test_switches_with_a_section_count_too(tmp_path):
    text = "".join(f"[switch s{number}]\n" for number in range(65))
    assert mistakes(tmp_path, text) == ["lab.ini:65: [switch s64] one switch too many (a lab has at most 64)"]


def test_ports_for_a_running_lab_are_ports_alone():
    assert [port.name for port in lab.ports(streams("a", "b"))] == ["a", "b"]
    for text, why in (
        ("[switch lan]\n", "text:1: [switch lan] is no port (reload takes it from the lab file)"),
        ("", "text: no section in it"),
        ("[tap a]\nx = 1\n", "text:2: [tap a] x: unknown option"),
    ):
        with pytest.raises(lab.Wrong) as wrong:
            lab.ports(text)
        assert str(wrong.value) == why


def test_a_port_added_to_a_lab_needs_a_name_of_its_own():
    found = lab.read(streams("a"))
    assert [port.name for port in lab.extended(found, lab.ports(streams("b"))).ports] == ["a", "b"]
    with pytest.raises(lab.Wrong) as wrong:
        lab.extended(found, lab.ports("[tap a]\n"))
    assert str(wrong.value) == "text:1: [tap a] has the name of [stream a]"


TOKENS = [
    "[",
    "]",
    "=",
    ";",
    "\n",
    "  ",
    "tap",
    "stream",
    "lab",
    "switch",
    " a",
    "mtu",
    "vlan",
    "up",
    "name",
    "1",
    "é",
    "\ud800",
]


@PATIENT
@given(st.lists(st.sampled_from(TOKENS), max_size=40).map("".join))
@example("[lab]\n[lab]\nname=\n")
@example("[switch]\n[ switch a ]\n[switch  a]")
def test_no_text_raises_anything_but_wrong(text):
    try:
        lab.read(text)
    except lab.Wrong as wrong:
        assert wrong.mistakes
        assert all(mistake.text.isprintable() for mistake in wrong.mistakes)


@PATIENT
@given(content=st.binary(max_size=200))
def test_no_bytes_raise_anything_but_wrong(content, tmp_path_factory):
    path = write(tmp_path_factory.getbasetemp(), content, "junk.ini")
    try:
        lab.read(path)
    except lab.Wrong as wrong:
        assert all(str(mistake.text).startswith(str(path)) for mistake in wrong.mistakes)


VALUES = [
    "on",
    "unix",
    "inet",
    "seqpacket",
    "fd",
    "a.sock",
    "127.0.0.1",
    "::1",
    "[::1]:0",
    ":1",
    "224.0.0.1:1",
    "x\n y",
    "'",
]


@PATIENT
@given(st.data())
def test_no_value_of_any_kind_raises_anything_but_wrong(data):
    kind = data.draw(st.sampled_from(kinds.names()))
    keys = st.sampled_from([options.key_of(field) for field in options.declared(kinds.module(kind).Options)])
    values = st.sampled_from(VALUES) | st.text(max_size=6) | st.integers(-1, 70_000).map(str)
    text = ini.write(f"{kind} a", data.draw(st.dictionaries(keys, values, max_size=8)))
    try:
        lab.read(text)
    except lab.Wrong as wrong:
        assert all(mistake.text.isprintable() for mistake in wrong.mistakes)


def steps(old, new):
    return [(step.action, str(step.section), step.why) for step in lab.plan(lab.read(old), lab.read(new))]


def test_a_lab_that_did_not_change_has_nothing_to_reload():
    assert steps(streams("a"), "; the same in other words\n[switch lan]\n" + streams("a").replace("on", "yes")) == []


def test_a_reload_touches_what_changed_and_nothing_else():
    old = "[switch lan]\nageing = 10\n" + streams("a", "b", "c") + "[tap t]\nifname = sn0\nmtu = 1500\n[tap u]\n"
    new = (
        "[switch lan]\nmode = hub\n"
        + streams("a")
        + streams("b", keys="vlan = 10\nup = off\n")
        + "[tap t]\nifname = sn1\nvlan = 3\n[stream u]\n"
        + STREAM.format("u")
        + streams("d")
    )
    assert steps(old, new) == [
        ("remove", "[stream c]", "no longer in the lab"),
        ("remove", "[tap u]", "is [stream u] now"),
        ("change", "[switch lan]", "mode = hub (was not set); ageing = not set (was 10)"),
        ("change", "[stream b]", "vlan = 10 (was not set); up = off (was not set)"),
        (
            "restart",
            "[tap t]",
            "ifname = sn1 (was sn0); vlan = 3 (was not set); mtu = not set (was 1500)",
        ),
        ("add", "[stream u]", "was [tap u]"),
        ("add", "[stream d]", "new in the lab"),
    ]


def test_a_switch_whose_section_goes_is_as_usual_again():
    change = ("change", "[switch lan]", "mode = not set (was hub)")
    assert steps("[switch lan]\nmode = hub\n[tap a]\n", "[tap a]\n") == [change]


def test_what_holds_for_the_whole_lab_needs_a_restart_of_it():
    assert steps("[lab]\nshards = 2\n", "[lab]\nshards = 3\n") == [("restart", "[lab]", "shards = 3 (was 2)")]
    assert steps("[lab]\nname = a\n", "[lab]\nname = b\n") == [("restart", "[lab]", "name = b (was a)")]


def test_every_kind_has_a_manual():
    assert {"tap", "stream", "dgram", "socket", "exec"} <= set(kinds.names())
    for kind in [*kinds.OWN, *kinds.names()]:
        page = manual.page(kinds.module(kind))
        assert page.startswith(f"[{kind}"), kind
        assert all(entry.help for entry in manual.entries(kinds.module(kind))), kind


def test_reading_a_lab_imports_nothing_heavy():
    heavy = {"multiprocess", "pyroute2", "posix_ipc", "msgpack", "shardnet._core"}
    code = f"import sys\nfrom shardnet import netdev\nnetdev.read('tap,id=a')\nprint({heavy} & set(sys.modules))"
    here = pathlib.Path(lab.__file__).parents[1]
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=here).stdout == "set()\n"
