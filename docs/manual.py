#!/usr/bin/env python3
"""Write the manual pages and the completion scripts into docs/man/ and install/, from the words that the program itself uses.

shardnet(1) is made of the commands' usage texts and of the comments on top of the tools in bin/, shardnet.ini(5) of the
modules that sections name: their docstrings and the comments on their options. `docs/manual.py` writes the files,
`docs/manual.py --check` only compares and exits with 1 where one is out of date. The files are kept in the repository,
for a build runs no program of ours. netdev.md, the options of QEMU's -netdev, is made beside them.
"""

import inspect
import re
import sys
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parent.parent
SHARE = ROOT / "install/data/share"
sys.path[:0] = [str(ROOT), str(ROOT / "docs")]

import netdev as qemu_netdev  # noqa: E402

import shardnet  # noqa: E402
from shardnet import cli, kinds, lab, manual, options  # noqa: E402
from shardnet.cli import completion, usage  # noqa: E402


def pages() -> dict[Path, str]:
    """Every file that is made, by its place."""
    return {
        ROOT / "docs/netdev.md": qemu_netdev.page(),
        ROOT / "docs/man/shardnet.1": commands_page(),
        ROOT / "docs/man/shardnet.ini.5": lab_page(),
        SHARE / "bash-completion/completions/shardnet": completion.bash(),
        SHARE / "zsh/site-functions/_shardnet": completion.zsh(),
        SHARE / "fish/vendor_completions.d/shardnet.fish": completion.fish(),
    }


def commands_page() -> str:
    """shardnet(1): each command, then each tool."""
    out = [
        _title("SHARDNET", 1),
        ".SH NAME",
        f"shardnet \\- {_roff(shardnet.__doc__.strip().rstrip('.'))}",
        ".SH SYNOPSIS",
    ]
    out += [".B shardnet", "[--lab NAME] COMMAND [ARGUMENTS...]", ".SH COMMANDS"]
    for name, text in usage.commands().items():
        out += [f".SS shardnet {name}", *_usage_text(text)]
    out.append(".SH TOOLS")
    for path in sorted((ROOT / "bin").iterdir()):
        out += [f".SS {path.name}", *_tool(path.read_text())]
    out.append(".SH EXIT STATUS")
    for code, meaning in re.findall(r"(\d+) ([a-z ]+)", cli.__doc__.partition("Exit codes: ")[2]):
        out += _entry(code, meaning)
    out += [
        ".SH ENVIRONMENT",
        *_entry("SHARDNET_LAB", "The lab that a command means where --lab does not say."),
        *_entry(
            "SHARDNET_RUN_DIR",
            "Where labs keep their run directories, instead of /run/shardnet (root) or $XDG_RUNTIME_DIR/shardnet.",
        ),
        *_entry(
            "SHARDNET_STATE_DIR",
            "Where labs keep what outlives them (leases), instead of /var/lib/shardnet (root), $XDG_STATE_HOME/shardnet or "
            "~/.local/state/shardnet.",
        ),
        *_entry("NO_COLOR", "No colours on a terminal either."),
        ".SH SEE ALSO",
        ".BR shardnet.ini (5)",
    ]
    return "\n".join(out) + "\n"


def lab_page() -> str:
    """shardnet.ini(5): the file, the keys of every port, then each kind of section."""
    out = [
        _title("SHARDNET.INI", 5),
        ".SH NAME",
        "shardnet.ini \\- a lab of shardnet",
        ".SH DESCRIPTION",
        *_paragraphs(_without_title(lab)),
        *_keys(manual.entries(lab)),
    ]
    every = options.common(options.PortOptions)
    common = [entry for entry in manual.entries(kinds.module("stream")) if entry.key in every]
    out += [".SH KEYS OF EVERY PORT", *_keys(common), ".SH SECTIONS"]
    for kind in ("switch", *kinds.names()):
        module = kinds.module(kind)
        own = [entry for entry in manual.entries(module) if kind == "switch" or entry.key not in every]
        out += [f".SS [{kind} NAME]", *_paragraphs(_without_title(module)), *_keys(own)]
    out += [".SH SEE ALSO", ".BR shardnet (1)"]
    return "\n".join(out) + "\n"


def _without_title(module: ModuleType) -> str:
    """The docstring of a kind, whose first line is `[KIND NAME]: what it is`."""
    text = inspect.cleandoc(module.__doc__ or "")
    what = manual.summary(module)
    return f"{what[:1].upper()}{what[1:]}.{text.partition(chr(10))[2] and chr(10) + text.partition(chr(10))[2]}"


def _keys(entries: list[manual.Entry]) -> list[str]:
    out = []
    for entry in entries:
        note = "required" if entry.required else f"default {entry.default}" if entry.default else ""
        out += [".TP", f"\\fB{_roff(entry.key)}\\fR = {_roff(entry.value)}" + (f" ({_roff(note)})" if note else "")]
        out.append(_roff(entry.help))
    return out


def _usage_text(text: str) -> list[str]:
    about, _, rest = text.partition("\nUsage:\n")
    patterns, _, rest = rest.partition("\n\n")
    after = rest.partition("\n\n")[2] if rest.startswith("Options:") else rest
    out = [*_paragraphs(about), *_verbatim(patterns)]
    for option in usage.options(text):
        names = ", ".join(option.names) + (f" {option.value}" if option.value else "")
        if option.names[-1] != "--help":
            out += _entry(names, option.help)
    return out + _paragraphs(after)


def _tool(script: str) -> list[str]:
    """The comment on top of a script."""
    lines = re.findall(r"^# ?(?!!)(.*)$", script.partition("\nset ")[0], re.MULTILINE)
    return _paragraphs("\n".join(lines))


def _paragraphs(text: str) -> list[str]:
    """Text as it stands in a docstring: paragraphs are filled, indented blocks stay as they are."""
    out = []
    for block in re.split(r"\n\s*\n", text.strip("\n")):
        lines = block.splitlines()
        if all(line.startswith("  ") for line in lines):
            out += _verbatim(block)
        elif block.strip():
            out += [".PP", *(_roff(line.strip()) for line in lines)]
    return out


def _verbatim(block: str) -> list[str]:
    return [".PP", ".nf", ".RS 4", *(_roff(re.sub(r"^ {2,4}", "", line)) for line in block.splitlines()), ".RE", ".fi"]


def _entry(name: str, text: str) -> list[str]:
    return [".TP", f".B {_roff(name)}", _roff(text)]


def _title(name: str, section: int) -> str:
    return (
        f'.\\" made by docs/manual.py\n.TH {name} {section} "" "shardnet {shardnet.__version__}" "shardnet"\n.nh\n.ad l'
    )


def _roff(text: str) -> str:
    """Text that roff prints as it is: a hyphen stays one, a leading dot is no request; `words` are bold."""
    text = re.sub(r"`([^`]+)`", r"\\fB\1\\fR", text.replace("\\", "\\e").replace("-", "\\-"))
    return "\\&" + text if text[:1] in (".", "'") else text


def main() -> int:
    """Write or compare."""
    check = sys.argv[1:] == ["--check"]
    stale = [path for path, text in pages().items() if not path.exists() or path.read_text() != text]
    for path in stale:
        print(path.relative_to(ROOT))
        if not check:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(pages()[path])
    return int(check and bool(stale))


if __name__ == "__main__":
    sys.exit(main())
