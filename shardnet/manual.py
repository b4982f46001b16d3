"""The manual of a kind of section: its module's docstring, then each option with the comment above it."""

import ast
import dataclasses
import inspect
import pathlib
import textwrap
import typing
from collections.abc import Iterator
from types import ModuleType
from typing import Any, Literal

from shardnet import options

WIDTH = 80
INDENT = " " * 6
WORDS = {bool: "on | off", int: "NUMBER", str: "TEXT", pathlib.Path: "PATH"}


def page(kind: ModuleType) -> str:
    """Write the manual of a kind for a terminal."""
    common = options.common(kind.Options)
    entries = dict(_entries(kind.Options))
    refused = [_entry(key, why) for key, why in getattr(kind, "REFUSED", {}).items()]
    parts = [inspect.cleandoc(kind.__doc__ or "")]
    for title, found in (
        ("Options:", [entry for name, entry in entries.items() if name not in common]),
        ("Options of every port:", [entry for name, entry in entries.items() if name in common]),
        ("Options of QEMU's that cannot work here:", refused),
    ):
        if found:
            parts.append("\n".join([title, *found]))
    return "\n\n".join(parts) + "\n"


def _entries(declaration: type) -> Iterator[tuple[str, str]]:
    hints = typing.get_type_hints(declaration)
    comments = _comments(declaration)
    for field in options.declared(declaration):
        note = "required" if options.required(field) else _default(field)
        head = f"{options.key_of(field)} = {_syntax(field, hints[field.name])}"
        yield field.name, _entry(head + (f"  ({note})" if note else ""), comments.get(field.name, ""))


def _entry(head: str, text: str) -> str:
    return "\n".join(["  " + head, *textwrap.wrap(text, WIDTH, initial_indent=INDENT, subsequent_indent=INDENT)])


def _syntax(field: dataclasses.Field[Any], hint: Any) -> str:
    hint, lines = options.bare(hint), ""
    if options.repeated(hint):
        hint, lines = typing.get_args(hint)[0], ", one a line"
    if read := field.metadata.get("read"):
        return (read.__doc__ or "TEXT").strip().splitlines()[0] + lines
    if typing.get_origin(hint) is Literal:
        return " | ".join(typing.get_args(hint)) + lines
    return WORDS[hint] + lines


def _default(field: dataclasses.Field[Any]) -> str:
    """The default as a lab file would have it, nothing where it cannot be written there."""
    default, read = field.default, field.metadata.get("read")
    if isinstance(default, bool):
        return "default on" if default else "default off"
    if default is None or isinstance(default, tuple) or default == "":
        return ""
    try:
        return f"default {default}" if read is None or read(str(default)) == default else ""
    except ValueError:
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
