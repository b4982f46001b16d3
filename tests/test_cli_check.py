"""`shardnet check` and `shardnet help`, as a user runs them."""

import json

import pytest

from shardnet import cli


@pytest.fixture
def shardnet(capsys):
    """Run one command line: its exit code, what it printed, what it complained about."""

    def run(*words):
        code = cli.main([str(word) for word in words])
        out, err = capsys.readouterr()
        return code, out, err

    return run


@pytest.fixture
def good(tmp_path):
    path = tmp_path / "demo.ini"
    path.write_text("[tap a]\n[tap b]\nswitch = dmz\n")
    return path


@pytest.fixture
def bad(tmp_path):
    path = tmp_path / "bad.ini"
    path.write_text("[tap a]\nmtuu = 1\n[tap b]\nup = 2\n")
    return path


def test_check_says_what_is_in_a_lab_that_is_right(shardnet, good):
    assert shardnet("check", good) == (0, "demo: 2 ports on 2 switches\n", "")
    assert shardnet("check", "-c", good, "-q") == (0, "", "")
    assert shardnet("check", "--netdev", "tap,id=c") == (0, "lab: 1 port on 1 switch\n", "")


def test_check_prints_every_mistake_on_a_line_of_its_own(shardnet, bad):
    code, out, err = shardnet("check", bad, "--netdev", "tap,id=c,x=1")
    assert (code, out) == (1, "")
    assert err.splitlines() == [
        '--netdev "tap,id=c,x=1": x: unknown option',
        f'{bad}:2: [tap a] mtuu: unknown option (did you mean "mtu"?)',
        f"{bad}:4: [tap b] up = 2: neither on nor off",
    ]


def test_check_answers_programs_in_json(shardnet, good, bad):
    code, out, _ = shardnet("check", good, "-o", "json")
    assert (code, json.loads(out)["switches"]) == (0, ["lan", "dmz"])
    code, out, _ = shardnet("check", bad, "-o", "json")
    assert (code, [mistake["line"] for mistake in json.loads(out)["mistakes"]]) == (1, [2, 4])


def test_check_needs_a_lab(shardnet, good):
    assert shardnet("check")[0] == 2
    assert shardnet("check", good, "-c", good)[0] == 2


def test_help_lists_the_kinds_and_prints_the_manual_of_one(shardnet):
    code, out, _ = shardnet("help")
    assert code == 0
    assert {"lab", "switch", "tap", "stream"} <= {line.split(" ")[0] for line in out.splitlines()}
    code, out, _ = shardnet("help", "tap")
    assert code == 0
    assert out.startswith("[tap NAME]: ")
    code, out, _ = shardnet("help", "switch", "-o", "json")
    assert [option["key"] for option in json.loads(out)["options"]] == ["mode", "ageing", "link-local"]


def test_help_for_a_kind_that_is_none_says_which_was_meant(shardnet):
    assert shardnet("help", "tapp") == (3, "", 'shardnet help: tapp: unknown kind (did you mean "tap"?)\n')
