"""The command line by itself: finding a command, reading its words, exit codes, tables. No lab is running here."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from shardnet import cli
from shardnet.cli import doctor, port, table, usage

SHARDNET = Path(sys.executable).parent / "shardnet"
LAB_COMMANDS = ["status", "port list", "fdb", "drops", "events", "stop", "restart", "reload", "qemu vm1"]


@pytest.fixture(autouse=True)
def no_lab(tmp_path, monkeypatch):
    monkeypatch.setenv("SHARDNET_RUN_DIR", str(tmp_path))
    monkeypatch.delenv("SHARDNET_LAB", raising=False)


def said(capsys, *words):
    """Run one command line; its exit code, what it printed, what it complained."""
    code = cli.main(words)
    out, err = capsys.readouterr()
    return code, out, err


def test_every_command_has_a_sentence_a_usage_and_a_help(capsys):
    for name, text in usage.commands().items():
        assert usage.summary(text)
        code, out, err = said(capsys, name, "--help")
        assert (code, err) == (0, ""), name
        assert f"shardnet {name}" in out


@pytest.mark.parametrize("text", usage.commands().values(), ids=usage.commands())
def test_a_usage_text_fits_a_terminal_and_names_no_option_where_docopt_would_take_it_for_one(text):
    assert [line for line in text.splitlines() if len(line) > 90] == []
    outside = text.partition("\nOptions:\n")[0] + text.partition("\nOptions:\n")[2].partition("\n\n")[2]
    assert [line for line in outside.splitlines() if line.lstrip().startswith("-")] == []


def test_the_overview_lists_the_commands_and_no_hidden_one(capsys):
    code, out, _ = said(capsys, "--help")
    assert code == 0
    assert all(f"  {name} " in out for name in ("start", "stop", "port", "check", "help"))
    assert "_complete" not in out


def test_no_command_at_all_is_a_usage_error(capsys):
    code, out, err = said(capsys)
    assert (code, out) == (2, "")
    assert "Usage:" in err


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        ("statsu", 'shardnet: statsu: unknown command (did you mean "status"?); shardnet --help lists them'),
        ("table", "shardnet: table: unknown command; shardnet --help lists them"),
        ("cli.status", "shardnet: cli.status: unknown command"),
        ("--verison", "shardnet: --verison: unknown option; shardnet --help lists them"),
        ("--lab", "shardnet: --lab: needs a value"),
        ("status --nam x", "shardnet status: --nam: unknown option"),
        ("status --ouptut json", 'shardnet status: --ouptut: unknown option (did you mean "--output"?)'),
        ("status -x", "shardnet status: -x: unknown option"),
        ("status --lab", "shardnet status: --lab: needs a value"),
        ("status -o yaml", "shardnet status: --output yaml: neither table nor json"),
        ("status demo", "shardnet status: these words do not fit its usage"),
        ("port", "shardnet port: more words are needed"),
        ("port frob", "shardnet port: these words do not fit its usage"),
        ("port remove", "shardnet port: these words do not fit its usage"),
        ("port set vm1 vlan", "shardnet port set: vlan: KEY=VALUE is meant"),
        ("start --name a/b", "shardnet start: --name a/b: no name"),
        ("capture", "shardnet capture: more words are needed"),
        ("capture vm1 -s many", "shardnet: --snaplen many: a number from 1 to 262144 is meant"),
        ("exec ls", "shardnet exec: these words do not fit its usage"),
        ("exec --", "shardnet exec: these words do not fit its usage"),
        ("exec --address 10.0.0.300/8 -- ls", "shardnet exec: '10.0.0.300/8' does not appear to be"),
        ("exec --mac 1 -- ls", "shardnet exec: --mac 1: six bytes such as 52:54:00:12:34:56 are meant"),
        ("exec --mtu 10 -- ls", "shardnet: --mtu 10: a number from 68 to 65521 is meant"),
        ("events --since noon", "shardnet: --since noon: a number"),
        ("qemu vm1 --model a,b", "shardnet qemu: --model a,b: a card's name is meant"),
        ("qemu vm1 --qemu new", "shardnet qemu: --qemu new: a version such as 7.2 is meant"),
        ("completion bahs", 'shardnet completion: bahs: unknown shell (did you mean "bash"?)'),
    ],
)
def test_a_wrong_command_line_is_named_with_code_2(capsys, words, complaint):
    code, out, err = said(capsys, *words.split())
    assert (code, out) == (2, "")
    assert err.startswith(complaint)


@pytest.mark.parametrize("words", [*LAB_COMMANDS, "exec -- true", "capture vm1 -w /dev/null"])
def test_a_lab_that_does_not_run_is_one_line_and_code_69(capsys, words):
    code, out, err = said(capsys, *words.split())
    assert (code, out, err) == (69, "", "shardnet: no lab is running\n")


@pytest.mark.parametrize("before", [True, False])
def test_the_lab_may_be_named_before_or_after_the_command(capsys, monkeypatch, before):
    monkeypatch.setenv("SHARDNET_LAB", "restored after the test")
    words = ["--lab", "demo", "status"] if before else ["status", "--lab", "demo"]
    code, _, err = said(capsys, *words)
    assert (code, err) == (69, "shardnet: lab demo: not running\n")


def test_no_lab_is_an_empty_list_and_no_error(capsys):
    assert said(capsys, "list", "--no-headers") == (0, "", "")
    assert said(capsys, "list", "-o", "json") == (0, "[]\n", "")


def test_completing_without_a_lab_prints_nothing(capsys):
    assert said(capsys, "_complete", "ports") == (0, "", "")
    assert said(capsys, "_complete", "--lab=", "labs") == (0, "", "")


def test_a_wrong_lab_file_is_told_in_full_and_nothing_starts(capsys, tmp_path):
    file = tmp_path / "wrong.ini"
    file.write_text("[tap a]\nmtuu = 1\n[stream b]\nserver = maybe\n")
    code, out, err = said(capsys, "start", "-c", str(file))
    assert (code, out) == (1, "")
    assert f'{file}:2: [tap a] mtuu: unknown option (did you mean "mtu"?)' in err
    assert f"{file}:4: [stream b] server = maybe" in err


def test_the_packaged_lab_is_right(capsys):
    from shardnet.cli import start

    assert said(capsys, "check", str(start.DEFAULT))[:2] == (0, "default: 2 ports on 1 switch\n")


def test_an_interrupt_is_code_130_and_a_gone_reader_is_quiet(monkeypatch):
    def interrupted(_words):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "_dispatch", interrupted)
    assert cli.main(["events"]) == 130
    head = subprocess.Popen(["true"], stdin=subprocess.PIPE)
    head.wait()
    ran = subprocess.run([SHARDNET, "doctor"], stdout=head.stdin, stderr=subprocess.PIPE)
    head.stdin.close()
    assert (ran.returncode, ran.stderr) == (141, b"")


def test_what_the_system_refuses_keeps_its_words_and_gets_a_code(capsys, monkeypatch):
    for number, code in ((2, 3), (17, 4), (13, 77), (5, 1)):

        def refused(_words, number=number):
            raise OSError(number, os.strerror(number), "/some/file")

        monkeypatch.setattr(cli, "_dispatch", refused)
        assert said(capsys, "x") == (code, "", f"shardnet: /some/file: {os.strerror(number)}\n")


def test_a_mistake_of_our_own_is_not_dressed_up(monkeypatch):
    monkeypatch.setattr(cli, "_dispatch", lambda _words: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        cli.main(["status"])


def test_the_version_is_one_line(capsys):
    code, out, _ = said(capsys, "--version")
    assert code == 0
    assert out.startswith("shardnet 0.") and out.count("\n") == 1


def test_a_table_is_aligned_with_numbers_to_the_right_and_a_dash_for_nothing():
    out = io.StringIO()
    table.show(("PORT", "RX", "DETAIL"), [("vm1", 5, "a b"), ("longer", 1234, "")], out=out)
    assert out.getvalue() == "PORT      RX  DETAIL\nvm1        5  a b\nlonger  1234  -\n"


def test_a_table_without_headers_is_its_rows_alone_and_an_empty_one_is_nothing():
    out = io.StringIO()
    table.show(("A", "B"), [("x", "y")], headers=False, out=out)
    table.show(("A", "B"), [], headers=False, out=out)
    assert out.getvalue() == "x  y\n"


def test_what_a_guest_chose_cannot_reach_the_terminal_as_an_escape():
    out = io.StringIO()
    table.show(("A",), [("\x1b[2Jgone\r",)], headers=False, out=out)
    assert out.getvalue() == "?[2Jgone?\n"


@pytest.mark.parametrize(
    ("environment", "coloured"), [({}, True), ({"NO_COLOR": "1"}, False), ({"TERM": "dumb"}, False)]
)
def test_colours_are_for_a_terminal_that_wants_them(monkeypatch, environment, coloured):
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    for key, value in environment.items():
        monkeypatch.setenv(key, value)
    master, slave = os.openpty()
    with open(slave, "w") as terminal:
        table.show(("STATE",), [("up",)], headers=False, out=terminal)
    shown = os.read(master, 100)
    os.close(master)
    assert (b"\x1b[32m" in shown) is coloured


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0s"), (61, "1m 1s"), (3600, "1h"), (90061, "1d 1h")])
def test_a_duration_is_said_in_its_two_largest_units(seconds, text):
    assert table.duration(seconds) == text


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (1023, "1023 B"), (1 << 20, "1.0 MiB"), (1 << 50, "1024.0 TiB")]
)
def test_a_size_is_said_in_the_unit_that_fits(count, text):
    assert table.size(count) == text


@pytest.mark.parametrize(
    ("typed", "text"),
    [
        ("[tap a]", "[tap a]\n"),
        ("[tap a] mtu=1500 up = off", "[tap a]\nmtu=1500\nup = off\n"),
        ("[stream b] addr.type=unix addr.path=x y.sock", "[stream b]\naddr.type=unix\naddr.path=x y.sock\n"),
        ("[tap a]\nmtu = 1", "[tap a]\nmtu = 1"),
        ("[tap a] [tap b] up=off", "[tap a]\n[tap b]\nup=off\n"),
    ],
)
def test_a_section_typed_on_one_line_becomes_lines(typed, text):
    assert port.section(typed) == text


def test_doctor_finds_each_thing_with_a_state_and_something_to_do_about_it(capsys):
    code, out, _ = said(capsys, "doctor", "-o", "json")
    findings = json.loads(out)
    assert {finding["state"] for finding in findings} <= {"ok", "poor", "missing"}
    assert {"kernel", "/dev/net/tun", "/dev/shm", "docopt-ng", "native core", "passt"} <= {
        one["what"] for one in findings
    }
    assert [finding["what"] for finding in findings if finding["state"] != "ok" and not finding["todo"]] == []
    lacking = [finding for finding in findings if finding["essential"] and finding["state"] == "missing"]
    assert code == bool(lacking)


def test_doctor_says_so_where_memory_or_addresses_are_short():
    limited = f"ulimit -v {2 << 20}; ulimit -n 256; exec {SHARDNET} doctor -q"
    ran = subprocess.run(["sh", "-c", limited], capture_output=True, text=True)
    assert ran.returncode == 1, ran.stderr
    assert "address space  missing  at most 2.0 GiB" in ran.stdout
    assert "ulimit -v unlimited" in ran.stdout
    assert "open files     poor     at most 256" in ran.stdout


@pytest.mark.parametrize(("text", "numbers"), [("7.2.22", (7, 2, 22)), ("6.18.44-fc", (6, 18, 44)), ("", ())])
def test_a_version_is_its_leading_numbers(text, numbers):
    assert doctor.version(text) == numbers
