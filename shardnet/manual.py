"""The manual of a kind of section: its module's docstring, then each option with the comment above it."""

import ast
import dataclasses
import inspect
import pathlib
import textwrap
import typing
from collections.abc import Iterable
from types import ModuleType
from typing import Any, Literal, NamedTuple

from shardnet import options

WIDTH = 100
INDENT = " " * 6
WORDS = {bool: "on | off", int: "NUMBER", str: "TEXT", pathlib.Path: "PATH"}


class Entry(NamedTuple):
    """What the manual says of an option: how it is written, its default as a lab file has it ("": none), its help."""

    key: str
    value: str
    default: str
    required: bool
    help: str


def page(kind: ModuleType) -> str:
    """Write the manual of a kind for a terminal."""
    every = options.common(kind.Options)
    found = entries(kind)
    own = [entry for entry in found if entry.key not in every]
    common = [entry for entry in found if entry.key in every]
    refused = [Entry(key, "", "", False, why) for key, why in getattr(kind, "REFUSED", {}).items()]
    parts = [
        inspect.cleandoc(kind.__doc__ or ""),
        *_titled("Options:", own),
        *_titled("Options of every port:", common),
        *_titled("Options of QEMU's that cannot work here:", refused),
    ]
    return "\n\n".join(parts) + "\n"


def summary(kind: ModuleType) -> str:
    """What a kind is, in the words after the colon of its module's first line."""
    first = inspect.cleandoc(kind.__doc__ or "").partition("\n")[0]
    return (first.partition(": ")[2] or first).removesuffix(".")


def entries(kind: ModuleType) -> list[Entry]:
    """Every option of a kind, its own ones first."""
    hints = typing.get_type_hints(kind.Options)
    comments = _comments(kind.Options)
    return [
        Entry(
            options.key_of(field),
            _syntax(field, hints[field.name]),
            _default(field),
            options.required(field),
            comments.get(field.name, ""),
        )
        for field in options.declared(kind.Options)
    ]


def _titled(title: str, found: Iterable[Entry]) -> list[str]:
    rows = [row for entry in found for row in _rows(entry)]
    return ["\n".join([title, *rows])] if rows else []


def _rows(entry: Entry) -> list[str]:
    head = f"  {entry.key} = {entry.value}" if entry.value else f"  {entry.key}"
    if entry.required:
        head += "  (required)"
    elif entry.default:
        head += f"  (default {entry.default})"
    return [head, *textwrap.wrap(entry.help, WIDTH, initial_indent=INDENT, subsequent_indent=INDENT)]


def _syntax(field: dataclasses.Field[Any], hint: Any) -> str:
    if read := field.metadata.get("read"):
        return str(read.__doc__ or "TEXT").strip().partition("\n")[0]
    lines = ", one a line" if options.repeated(field, hint) else ""
    hint = typing.get_args(hint)[0] if lines else options.bare(hint)
    return (" | ".join(typing.get_args(hint)) if typing.get_origin(hint) is Literal else WORDS[hint]) + lines


def _default(field: dataclasses.Field[Any]) -> str:
    default, read = field.default, field.metadata.get("read")
    if isinstance(default, bool):
        return "on" if default else "off"
    if default is options.MISSING or default is None or isinstance(default, tuple):
        return ""
    try:
        return str(default) if read is None or read(str(default)) == default else ""
    except ValueError:  # no text stands for it
        return ""


def _comments(declaration: type) -> dict[str, str]:
    """The comment above each field of a dataclass, and of those that it inherits from."""
    found: dict[str, str] = {}
    for base in reversed(declaration.__mro__[:-1]):
        source = textwrap.dedent(inspect.getsource(base))
        lines = source.splitlines()
        body = ast.parse(source).body[0].body  # type: ignore[attr-defined]  # a class
        for field in body:
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
                above = field.lineno - 1
                while lines[above - 1].lstrip().startswith("#"):
                    above -= 1
                words = [line.strip().removeprefix("#").strip() for line in lines[above : field.lineno - 1]]
                found[field.target.id] = " ".join(words)
    return found
