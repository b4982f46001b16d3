"""INI text, split into sections that remember their lines.

configparser reads the values, strictly, and it stops at the first mistake; a lab wants all of them, with lines. So a
first pass goes over the lines by configparser's own rules (a line further to the right than its key goes on with the
value, a comment stands on a line of its own), notes where each value stands, and hands on only what is right.
"""

import configparser
import dataclasses
import re
from collections.abc import Mapping

from shardnet import options

COMMENT = (";", "#")
HEADER = re.compile(r"\[([^\[\]]*)\]")
BINARY = re.compile(r"[\x00-\x08\x0b-\x1f\x7f\ud800-\udfff]")


@dataclasses.dataclass
class Raw:
    """A section as it stands in the text: what is between the brackets, its values, the lines of each value."""

    title: str
    line: int
    given: dict[str, str] = dataclasses.field(default_factory=dict)
    lines: dict[str, list[tuple[int, str]]] = dataclasses.field(default_factory=dict)


def read(text: str) -> tuple[list[Raw], list[tuple[int, str]]]:
    """Split a text into sections; the second list has each mistake with its line. Never raises."""
    text = text.removeprefix("\ufeff").replace("\r\n", "\n")
    if found := BINARY.search(text):
        return [], [(text.count("\n", 0, found.start()) + 1, f"no text (it has a character 0x{ord(found[0]):02x})")]
    sections: dict[str, Raw] = {}
    mistakes: list[tuple[int, str]] = []
    right: list[str] = []  # the lines that are for configparser
    section: Raw | None = None
    value: list[tuple[int, str]] | None = None  # the lines of the value that the next line may go on with
    indent, good = 0, False
    for number, line in enumerate(text.split("\n"), 1):
        body = line.strip()
        if not body or body.startswith(COMMENT):
            continue
        depth = len(line) - len(line.lstrip())
        if value is not None and depth > indent:
            value.append((number, body))
            if good:
                right.append(line)
            continue
        indent, value, good = depth, None, False
        key, equals, first = (part.strip() for part in body.partition("="))
        if body.startswith("["):
            # A section that is wrong still takes the keys below it, so that they are not mistakes too.
            section = Raw(_title(body), number)
            twin = sections.get(section.title)
            if not section.title:
                mistakes.append((number, f"{options.shown(body)}: no section, which is [KIND NAME] alone on its line"))
            elif twin:
                mistakes.append((number, f"[{options.shown(section.title)}] a second time, after line {twin.line}"))
            else:
                sections[section.title] = section
                right.append(f"[{section.title}]")
        elif not equals or not key:
            mistakes.append((number, f"{options.shown(body)}: neither [KIND NAME] nor KEY = VALUE"))
        elif section is None:
            mistakes.append((number, f"{options.shown(body)}: before the first [KIND NAME]"))
        else:
            value = [(number, first)]
            if key in section.lines:
                where = f"[{options.shown(section.title)}] {options.shown(key)}"
                mistakes.append((number, f"{where}: a second time, after line {section.lines[key][0][0]}"))
            else:
                section.lines[key] = value
                good = sections.get(section.title) is section
                if good:
                    right.append(line)
    parser = configparser.RawConfigParser(
        delimiters=("=",), comment_prefixes=COMMENT, strict=True, interpolation=None, default_section=""
    )
    parser.optionxform = str  # type: ignore[assignment,method-assign]  # keys keep their case
    parser.read_string("\n".join(right))
    for title, section in sections.items():
        section.given = dict(parser[title])
    return list(sections.values()), mistakes


def write(title: str, given: Mapping[str, str]) -> str:
    """Write a section as `read` reads it, further lines of a value below its first."""
    rows = [f"{key} = " + value.replace("\n", "\n" + " " * (len(key) + 3)) for key, value in given.items()]
    return "\n".join([f"[{title}]", *rows, ""])


def _title(header: str) -> str:
    found = HEADER.fullmatch(header)
    return " ".join(found[1].split()) if found else ""
