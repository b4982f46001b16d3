"""The completion scripts, loaded by the shells they are for and asked what they offer."""

import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from shardnet.cli import completion, usage

HERE = Path(sys.executable).parent
COMMANDS = set(usage.commands())

# What a shell offers for the words so far, the last of them unfinished: a line each.
ASK_BASH = """
source {script}
COMP_WORDS=(shardnet {words})
COMP_CWORD={last}
_shardnet
printf '%s\\n' "${{COMPREPLY[@]}}"
"""
# zsh completes only in an interactive shell, so zpty plays one: what compadd and _describe are told is what counts here.
ASK_ZSH = """
compdef() {{ :; }}
source {script}
compadd() {{ local -a all=("$@"); while [[ $all[1] == -* && $all[1] != -- ]]; do
    if [[ $all[1] == -a ]]; then all=(-- "${{(@P)all[2]}}"); else shift all; fi; done; print -l -- "${{(@)all:#--}}"; }}
_describe() {{ print -l -- "${{(@)${{(@P)@[-1]}}%%:*}}"; }}
_files() {{ print -l -- *(N); }}
words=(shardnet {words})
CURRENT=$(({last} + 1))
_shardnet
"""


def ask(shell, tmp_path, *words, environment=None):
    """What the shell offers for the last of the words."""
    script = tmp_path / "script"
    script.write_text(completion.SHELLS[shell]())
    quoted = " ".join(shlex.quote(word) for word in words)
    if shell == "fish":
        program = f"source {script}; complete -C {shlex.quote('shardnet ' + ' '.join(words))}"
    else:
        program = (ASK_BASH if shell == "bash" else ASK_ZSH).format(script=script, words=quoted, last=len(words))
    command = {"bash": ["bash", "--norc"], "zsh": ["zsh", "-f"], "fish": ["fish", "--no-config"]}[shell]
    ran = subprocess.run(
        [*command, "-c", program],
        cwd=tmp_path,
        env={"PATH": f"{HERE}:/usr/bin:/bin", "HOME": str(tmp_path), "TERM": "dumb", **(environment or {})},
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert (ran.returncode in (0, 1), ran.stderr) == (True, ""), ran.stderr
    return {line.partition("\t")[0] for line in ran.stdout.splitlines() if line}


SHELLS = [pytest.param(shell, marks=pytest.mark.needs(shell)) for shell in ("bash", "zsh", "fish")]


@pytest.fixture(params=SHELLS)
def offered(request, tmp_path):
    def run(*words, **more):
        found = ask(request.param, tmp_path, *words, **more)
        # zsh narrows the offer itself, by what is typed.
        return {word for word in found if word.startswith(words[-1])}

    run.shell = request.param
    return run


def test_the_script_is_printed(capsys):
    for shell, script in completion.SHELLS.items():
        assert completion.run([shell]) == 0
        assert capsys.readouterr().out == script()
        assert "@" not in script().replace('"$@"', "").replace("[@]", "")


@pytest.mark.parametrize("shell", SHELLS)
def test_the_shell_finds_no_mistake_in_its_script(shell):
    ran = subprocess.run([shell, "-n"], input=completion.SHELLS[shell](), capture_output=True, text=True)
    assert (ran.returncode, ran.stderr) == (0, "")


def test_a_command_is_completed(offered):
    assert offered("st") == {"start", "status", "stop"}
    assert offered("") >= COMMANDS
    assert "_complete" not in offered("")


def test_the_words_of_a_command_are_those_of_its_usage_text(offered):
    assert offered("port", "re") == {"remove", "reset"}
    assert offered("completion", "") == {"bash", "zsh", "fish"}
    assert offered("reload", "--d") == {"--dry-run"}
    assert offered("port", "add", "--net") == {"--netdev"}
    assert offered("status", "--output", "") == {"table", "json"}


def test_a_word_of_another_command_is_not_offered(offered):
    assert "--snaplen" not in offered("port", "list", "--")
    assert "add" not in offered("fdb", "")


def test_files_are_offered_where_a_file_is_meant(offered, tmp_path):
    (tmp_path / "lab.ini").touch()
    assert "lab.ini" in offered("start", "-c", "")
    assert "lab.ini" not in offered("start", "--name", "")


def test_names_are_asked_from_the_running_lab(offered, lab):
    running = lab("[stream vm1]\naddr.type = unix\naddr.path = x\n[stream vm2]\naddr.type = unix\naddr.path = y\n")
    where = {"SHARDNET_RUN_DIR": str(running.directory)}
    assert offered("port", "show", "", environment=where) == {"vm1", "vm2"}
    assert offered("capture", "vm2", environment=where) == {"vm2"}
    assert offered("fdb", "l", environment=where) == {"lan"}
    assert offered("status", "--lab", "", environment=where) == {"lab"}
    assert offered("--lab", "lab", "port", "down", "vm", environment=where) == {"vm1", "vm2"}
    assert offered("--lab", "other", "port", "down", "vm", environment=where) == set()
    assert offered("help", "str", environment=where) == {"stream"}
