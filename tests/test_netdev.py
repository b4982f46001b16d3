"""QEMU's -netdev strings, read as the sections that a lab file has for the same."""

import json
import os
import re
import subprocess

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import deadline
from shardnet import lab, netdev

PATIENT = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # the machine may be busy

QEMU = "qemu-system-x86_64"

# A string of QEMU's and the section that says the same.
SAME = [
    (
        "stream,id=vm1,server=on,addr.type=unix,addr.path=vm1.sock",
        "[stream vm1]\nserver = on\naddr.type = unix\naddr.path = vm1.sock\n",
    ),
    (
        "type=stream,server=off,addr.type=inet,addr.host=localhost,addr.port=1234,reconnect-ms=50,id=vm1",
        "[stream vm1]\nserver = off\naddr.type = inet\naddr.host = localhost\naddr.port = 1234\nreconnect-ms = 50\n",
    ),
    (
        '{"type":"stream","id":"vm1","server":true,"addr":{"type":"unix","path":"a,b.sock"}}',
        "[stream vm1]\nserver = on\naddr.type = unix\naddr.path = a,b.sock\n",
    ),
    (
        "stream,id=vm1,server,addr.type=unix,addr.path=a,,b.sock",
        "[stream vm1]\nserver = on\naddr.type = unix\naddr.path = a,b.sock\n",
    ),
    (
        "dgram,id=vm1,local.type=inet,local.host=127.0.0.1,local.port=5000,remote.type=inet,remote.host=127.0.0.1,remote.port=5001",
        "[dgram vm1]\nlocal.type = inet\nlocal.host = 127.0.0.1\nlocal.port = 5000\nremote.type = inet\n"
        "remote.host = 127.0.0.1\nremote.port = 5001\n",
    ),
    ("socket,id=vm1,listen=:1234", "[socket vm1]\nlisten = :1234\n"),
    ("socket,id=vm1,mcast=230.0.0.1:1234", "[socket vm1]\nmcast = 230.0.0.1:1234\n"),
    ("tap,id=t0,ifname=tap0,script=no,downscript=no", "[tap t0]\nifname = tap0\nscript = no\ndownscript = no\n"),
    ("tap,id=t0,noup,isolated", "[tap t0]\nup = off\nisolated = on\n"),
    ("tap,id=t0,mtu=1500,mtu=9000", "[tap t0]\nmtu = 9000\n"),
    ("tap,id=t0,address=10.0.0.1/24,address=fd00::1/64", "[tap t0]\naddress = 10.0.0.1/24\n  fd00::1/64\n"),
    (
        '{"type":"tap","id":"t0","address":["10.0.0.1/24",{"str":"fd00::1/64"}],"mtu":1500}',
        "[tap t0]\naddress = 10.0.0.1/24\n  fd00::1/64\nmtu = 1500\n",
    ),
]


@pytest.mark.parametrize(("spec", "text"), SAME)
def test_a_string_of_qemu_is_the_section_that_says_the_same(spec, text):
    section = netdev.read(spec)
    [port] = lab.read(text).ports
    assert (section.kind, section.name, section.options) == (port.kind, port.name, port.options)
    assert section.given == port.given


@pytest.mark.parametrize("spec", [spec for spec, _ in SAME])
def test_a_section_is_written_as_a_lab_file_has_it(spec):
    section = netdev.read(spec)
    [port] = lab.read(netdev.to_ini(section)).ports
    assert (port.kind, port.name, port.given, port.options) == (
        section.kind,
        section.name,
        section.given,
        section.options,
    )


@pytest.mark.needs(QEMU)
def test_qemu_reads_the_same_names_and_values(tmp_path):
    specs = [
        "stream,id=vm1,server=on,addr.type=unix,addr.path=a,,b.sock",
        "addr.type=unix,addr.path=first.sock,addr.path=last.sock,type=stream,server=off,server=yes,id=vm2",
        '{"type": "stream", "id": "vm3", "server": true, "addr": {"type": "unix", "path": "c,,d.sock"}}',
    ]
    sections = [netdev.read(spec) for spec in specs]
    paths = {section.given["addr.path"] for section in sections}
    command = [QEMU, "-M", "none", "-nodefaults", "-display", "none", "-monitor", "stdio"]
    command += [word for spec in specs for word in ("-netdev", spec)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=tmp_path) as qemu:
        try:
            # QEMU listens in a thread of its own, some time after it has started.
            deadline.until(lambda: set(os.listdir(tmp_path)) == paths, f"QEMU listens at {paths}")
            said, _ = qemu.communicate("info network\nquit\n", timeout=60)
        finally:
            qemu.kill()
    found = re.findall(r"^(vm\d): index=0,type=(\w+)", said, re.MULTILINE)
    assert found == [(section.name, section.kind) for section in sections]


@pytest.mark.parametrize(
    ("spec", "messages"),
    [
        ("", ["type: missing", "id: missing"]),
        ("tap", ["id: missing"]),
        ("id=a", ["type: missing"]),
        ("tap,id=a b", ["id = a b: no name (letters, digits, . _ - after a letter or digit, at most 32)"]),
        ("tpa,id=a", ['type = tpa: unknown kind (did you mean "tap"?)']),
        ("switch,id=a", ["type = switch: no port"]),
        (
            "hubport,id=a,hubid=0",
            [
                "type = hubport: a port of a hub is any port of a [switch NAME] with mode = hub "
                "(switch = NAME puts it there)"
            ],
        ),
        (
            "tap,id=a,mtuu=1500,up=maybe",
            ['mtuu: unknown option (did you mean "mtu"?)', "up = maybe: neither on nor off"],
        ),
        ("tap,id=a,fd=3", ["fd: a worker inherits no descriptors; name the interface with ifname"]),
        ("tap,id=a,,,mtu=1500", ["id = a,: no name (letters, digits, . _ - after a letter or digit, at most 32)"]),
        ("tap,id=a,=b", ["a value without a key (two commas are one comma of a value)"]),
        ("tap,id=a,ifname=", ["ifname: no value"]),
        ("tap,id=a,ifname=x\ny", ["ifname = x\\ny: a control character"]),
        ('{"type":"tap"', ["no JSON: Expecting ',' delimiter (character 14)"]),
        ('{"type":"tap","id":null}', ["id: no value"]),
        ('{"a":' * 100_000, ["no JSON of QEMU's: nested too deep"]),
    ],
)
def test_a_mistake_in_a_string_says_which_string_and_which_key(spec, messages):
    with pytest.raises(lab.Wrong) as wrong:
        netdev.read(spec)
    shown = spec if len(spec) <= 100 else spec[:99] + "…"
    shown = shown.replace("\n", "\\n")
    assert [mistake.text for mistake in wrong.value.mistakes] == [f'--netdev "{shown}": {text}' for text in messages]


def test_a_lab_is_a_file_and_strings_together(tmp_path):
    file = tmp_path / "demo.ini"
    file.write_text("[tap a]\n")
    found = netdev.assemble(file, ["socket,id=b,listen=:1", "tap,id=c"])
    assert (found.name, [port.name for port in found.ports]) == ("demo", ["a", "b", "c"])
    assert [port.name for port in netdev.assemble(None, ["tap,id=c"]).ports] == ["c"]


def test_the_mistakes_of_the_file_and_of_the_strings_come_at_once(tmp_path):
    file = tmp_path / "demo.ini"
    file.write_text("[tap a]\nup = 2\n")
    with pytest.raises(lab.Wrong) as wrong:
        netdev.assemble(file, ["tap,id=a", "tap,id=b,x=1"])
    assert sorted(str(wrong.value).replace(f"{tmp_path}/", "").splitlines()) == [
        '--netdev "tap,id=b,x=1": x: unknown option',
        "demo.ini: [tap a] has the name of [tap a] on line 1",
        "demo.ini:2: [tap a] up = 2: neither on nor off",
    ]


@pytest.mark.parametrize("specs", [["tap,id=a,x=1"], ["tap,id=a,x=1", "tap,id=b"]])
def test_strings_alone_need_no_file_to_be_wrong(specs):
    with pytest.raises(lab.Wrong) as wrong:
        netdev.assemble(None, specs)
    assert str(wrong.value) == '--netdev "tap,id=a,x=1": x: unknown option'


TOKENS = [
    ",",
    "=",
    "{",
    "}",
    "[",
    "]",
    '"',
    ":",
    "type",
    "id",
    "tap",
    "stream",
    "addr.",
    "no",
    "up",
    "on",
    "1",
    "null",
    " ",
    "\n",
    "\udc80",
]


@PATIENT
@given(st.lists(st.sampled_from(TOKENS), max_size=30).map("".join) | st.text(max_size=30))
def test_no_string_raises_anything_but_wrong(spec):
    try:
        netdev.read(spec)
    except lab.Wrong as wrong:
        assert all(mistake.text.isprintable() for mistake in wrong.mistakes)


@PATIENT
@given(
    st.dictionaries(
        st.sampled_from(["type", "id", "addr", "mtu", "x", ""]),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.just("tap"),
            lambda inner: (
                st.lists(inner, max_size=2)
                | st.dictionaries(st.sampled_from(["type", "str", "path"]), inner, max_size=2)
            ),
        ),
    )
)
def test_no_json_raises_anything_but_wrong(value):
    try:
        netdev.read(json.dumps(value))
    except lab.Wrong as wrong:
        assert wrong.mistakes
