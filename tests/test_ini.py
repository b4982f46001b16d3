"""INI text, split into sections that remember their lines."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shardnet import ini

PATIENT = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # the machine may be busy

WORD = st.text("abc.-_XYZ019", min_size=1, max_size=8)
VALUE = st.text("abc =[];#,:é/", min_size=1, max_size=12).map(str.strip).filter(bool)
LINES = st.lists(VALUE.filter(lambda line: line[0] not in ";#"), min_size=1, max_size=3).map("\n".join)
JUNK = st.text(st.sampled_from("[]=;# \t\r\nab\ufeff\u2028\x85é\x00\udc80"), max_size=60)


def test_a_section_has_its_values_and_their_lines():
    text = "; a lab\n[tap  host0]\nifname = sn0\n\n# its addresses\naddress = 10.0.0.1/24\n          fd00::1/64\n"
    [section], mistakes = ini.read(text)
    assert not mistakes
    assert (section.title, section.line) == ("tap host0", 2)
    assert section.given == {"ifname": "sn0", "address": "10.0.0.1/24\nfd00::1/64"}
    assert section.lines["address"] == [(6, "10.0.0.1/24"), (7, "fd00::1/64")]


def test_keys_may_be_indented_below_their_section():
    [section], mistakes = ini.read("[tap host0]\n  ifname = sn0\n  netns = left\n")
    assert not mistakes
    assert section.given == {"ifname": "sn0", "netns": "left"}


def test_only_the_first_equals_sign_divides():
    [section], mistakes = ini.read("[exec vm1]\ncommand = ssh host:22 a=b\nupper.Case = %(x)s\n")
    assert not mistakes
    assert section.given == {"command": "ssh host:22 a=b", "upper.Case": "%(x)s"}


@pytest.mark.parametrize("text", ["\ufeff[tap a]\nmtu = 1500\n", "[tap a]\r\nmtu = 1500\r\n", "[tap a]\nmtu=1500"])
def test_a_byte_order_mark_and_the_line_ends_of_dos_are_no_mistakes(text):
    [section], mistakes = ini.read(text)
    assert not mistakes
    assert section.given == {"mtu": "1500"}


@pytest.mark.parametrize(
    ("text", "mistakes"),
    [
        ("a = 1\n[b c]\n", [(1, "a = 1: before the first [KIND NAME]")]),
        ("[b c\na = 1\n", [(1, "[b c: no section, which is [KIND NAME] alone on its line")]),
        ("[b c] ; d\na = 1\n", [(1, "[b c] ; d: no section, which is [KIND NAME] alone on its line")]),
        ("[]\n", [(1, "[]: no section, which is [KIND NAME] alone on its line")]),
        ("[b c]\nd\n= e\n", [(n, f"{t}: neither [KIND NAME] nor KEY = VALUE") for n, t in ((2, "d"), (3, "= e"))]),
        ("[b c]\nd = 1\n\nd = 2\n  3\n", [(4, "[b c] d: a second time, after line 2")]),
        ("[b c]\nd = 1\n[b  c]\nd = 2\n", [(3, "[b c] a second time, after line 1")]),
        ("[b c]\n\x7fELF\x00\n\x01\n", [(2, "no text (it has a character 0x7f)")]),
        ("[b c]\rd = 1\r", [(1, "no text (it has a character 0x0d)")]),
    ],
)
def test_every_mistake_of_the_form_is_found_with_its_line(text, mistakes):
    assert ini.read(text)[1] == mistakes


@PATIENT
@given(JUNK)
def test_no_text_whatever_raises(text):
    sections, _ = ini.read(text)
    for section in sections:
        # What configparser read is what the first pass saw, so that no value goes without its line.
        assert section.given.keys() == section.lines.keys()
        for key, value in section.given.items():
            assert [line for line in value.split("\n") if line] == [line for _, line in section.lines[key] if line]


@PATIENT
@given(st.dictionaries(WORD, LINES, max_size=5))
def test_what_is_written_is_read_again(values):
    [section], mistakes = ini.read(ini.write("tap a", values))
    assert not mistakes
    assert section.given == values
