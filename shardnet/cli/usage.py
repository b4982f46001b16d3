"""Usage texts of the commands, read without importing a command.

A text is a module's docstring: a first sentence, `Usage:` with a pattern a line, `Options:`, and whatever the user
needs beside them. docopt reads the command line by it; `shardnet --help`, the completions and the manual are made from
the same words.
"""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import docopt

FORMATS = ("table", "json")
_TAIL = " -- COMMAND..."


def parse(text: str, command: str, argv: Sequence[str]) -> dict[str, Any]:
    """Read `argv`, the words after `command`, as the usage text says; a mistake ends the program with code 2."""
    words, pattern, tail = list(argv), text, []
    if _TAIL in text and "--" in words[:-1]:
        # docopt would take the -- itself for an optional word before it.
        at = words.index("--")
        words, tail, pattern = words[:at], words[at + 1 :], text.replace(_TAIL, "")
    try:
        arguments = docopt.docopt(pattern, [command, *words])
    except docopt.DocoptExit as error:
        raise SystemExit(f"shardnet {command}: {_mistake(text, argv, str(error))}\n{_patterns(text)}") from None
    output = arguments.get("--output")
    if output not in (None, *FORMATS):
        raise SystemExit(f"shardnet {command}: --output {output}: neither table nor json")
    return {**arguments, "COMMAND": tail} if tail else dict(arguments)


def number(arguments: dict[str, Any], option: str, least: int, most: int) -> int | None:
    """The value of `option` as a number, None where it was not given; a mistake ends the program with code 2."""
    given = arguments[option]
    if given is None:
        return None
    if not given.isascii() or not given.isdigit() or not least <= int(given) <= most:
        raise SystemExit(f"shardnet: {option} {given}: a number from {least} to {most} is meant")
    return int(given)


def commands() -> dict[str, str]:
    """The commands and their usage texts, by name; hidden ones, which begin with an underscore, are left out."""
    import ast  # 3 ms, and most calls do without

    found = {}
    for path in sorted(Path(__file__).parent.glob("*.py")):
        if not path.stem.startswith("_"):
            text = ast.get_docstring(ast.parse(path.read_text())) or ""
            if "\nUsage:\n" in text:
                found[path.stem] = text
    return found


def overview() -> str:
    """What `shardnet --help` prints."""
    import shardnet

    lines = [
        f"shardnet: {shardnet.__doc__}",
        "",
        "Usage:",
        "  shardnet [--lab NAME] COMMAND [ARGUMENTS...]",
        "  shardnet --help | --version",
        "",
        "Commands:",
    ]
    lines += [f"  {name:<12}{summary(text)}" for name, text in commands().items()]
    lines += [
        "",
        "The lab is named by --lab or SHARDNET_LAB; without either it is the only running one.",
        "shardnet COMMAND --help says more, shardnet help KIND prints the options of a port.",
    ]
    return "\n".join(lines)


def summary(text: str) -> str:
    """The first sentence of a usage text, without its full stop."""
    return text.strip().splitlines()[0].removesuffix(".")


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """A hint to append to "unknown": the known word nearest to `word`, or nothing."""
    import difflib

    near = difflib.get_close_matches(word, list(known), n=1)
    return f' (did you mean "{near[0]}"?)' if near else ""


class Option(NamedTuple):
    """One line of a usage text's `Options:`."""

    names: tuple[str, ...]  # as typed, "-l" and "--lab"
    value: str  # what its value is called, "" where it takes none
    help: str


def options(text: str) -> list[Option]:
    """The options of a usage text, in its order."""
    found = []
    for line in re.split(r"\n(?=  -)", text.partition("\nOptions:\n")[2].partition("\n\n")[0].rstrip()):
        names, _, about = line.strip().partition("  ")
        words = re.split(r"[ ,=]+", names)
        value = next((word for word in words if not word.startswith("-")), "")
        if line:
            found.append(Option(tuple(word for word in words if word.startswith("-")), value, " ".join(about.split())))
    return found


def patterns(text: str) -> list[list[str]]:
    """The words of each usage line after `shardnet COMMAND`, brackets and dots taken off, options left out."""
    found = []
    for line in _patterns(text).splitlines()[1:]:
        bare = re.sub(r"\[options\]|--?[a-z-]+(?:[ =][A-Z]+)?", "", line)
        found.append(re.sub(r"\.\.\.|--|[\[\]()|]", " ", bare).split()[2:])
    return found


def _patterns(text: str) -> str:
    return "Usage:\n" + text.partition("\nUsage:\n")[2].partition("\n\n")[0].rstrip()


def _mistake(text: str, argv: Sequence[str], said: str) -> str:
    known = [name for option in options(text) for name in option.names]
    known += re.findall(r"(?<![\w-])--?[a-z][a-z-]*", _patterns(text))
    before = argv[: argv.index("--")] if "--" in argv else argv
    for word in before:
        name = word.partition("=")[0]
        if name.startswith("--") and name != "--" and not any(one.startswith(name) for one in known):
            return f"{name}: unknown option{did_you_mean(name, known)}"
        if re.match(r"-[A-Za-z]", name) and name[:2] not in known:
            return f"{name[:2]}: unknown option"
    if needs := re.match(r"(--?\S+) requires argument", said):
        return f"{needs[1]}: needs a value"
    return "these words do not fit its usage" if argv else "more words are needed"
