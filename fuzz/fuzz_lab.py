"""Whatever stands in a lab file or a --netdev string, it is a lab or a list of mistakes of one line each."""

from hypothesis import given
from hypothesis import strategies as st

from shardnet import ini, kinds, lab, netdev, options

KEYS = sorted(
    {options.key_of(field) for kind in kinds.names() for field in options.declared(kinds.module(kind).Options)}
    | {"mtuu", "addr", "", "local", "x.y"}
)
WORDS = [
    "on",
    "off",
    "unix",
    "inet",
    "0",
    "-1",
    "65536",
    "127.0.0.1:1",
    "230.0.0.1:1",
    ":",
    ",,",
    "/x",
    "10.0.0.1/24",
    "all",
    "1-4094",
    "é",
    "\x00",
]
value = st.sampled_from(WORDS) | st.text(max_size=20)
title = st.sampled_from([f"{kind} n" for kind in [*kinds.names(), *kinds.OWN]]) | st.text(max_size=12)
section = st.tuples(title, st.dictionaries(st.sampled_from(KEYS) | st.text(max_size=8), value, max_size=6))
noise = st.text(alphabet="[]=;# \n\tabc", max_size=10)


def right(mistakes):
    for mistake in mistakes:
        assert str(mistake).strip()
        assert "\n" not in str(mistake)


@given(st.lists(st.tuples(section, noise), max_size=5))
def test_a_lab_file_is_read_or_refused(sections):
    text = "\n".join(
        f"[{title}]\n" + "\n".join(f"{key} = {value}" for key, value in given.items()) + tail
        for (title, given), tail in sections
    )
    try:
        found = lab.read(text)
    except lab.Wrong as wrong:
        assert wrong.mistakes
        right(wrong.mistakes)
    else:
        assert lab.read(
            "\n".join(ini.write(f"{port.kind} {port.name}", port.given) for port in found.ports) or "[lab]\n"
        )


@given(st.text(max_size=200))
def test_any_text_is_read_or_refused(text):
    try:
        lab.read(text)
    except lab.Wrong as wrong:
        right(wrong.mistakes)


@given(
    st.sampled_from([*kinds.names(), "user", "hubport", "type=tap", '{"type": "tap"', ""]),
    st.lists(st.tuples(st.sampled_from([*KEYS, "id"]), value), max_size=6),
    st.sampled_from([",", ",,", "=", ""]),
)
def test_a_netdev_string_is_a_port_or_refused(kind, pairs, comma):
    spec = kind + "".join(f",{key}={text}" for key, text in pairs) + comma
    try:
        read = netdev.read(spec)
    except lab.Wrong as wrong:
        assert wrong.mistakes
        right(wrong.mistakes)
    else:
        (again,) = lab.ports(netdev.to_ini(read))
        assert again.options == read.options
