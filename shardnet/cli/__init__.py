"""The command line: `shardnet COMMAND ARGUMENTS`, where a command is a module of this package.

A command's module docstring is its usage text, and its `run(argv)` does the work with the words after the command's
name and returns the exit code. Only that module is imported, so a command that asks a running lab one question stays
quick. A new command is a new file.

Exit codes: 0 done, 1 failed, 2 usage, 3 not found, 4 exists already, 69 not running, 75 try again, 77 not permitted,
130 interrupted.
"""

import contextlib
import errno
import importlib
import os
import signal
import sys
from collections.abc import Callable, Sequence

FAILED, USAGE, NOT_FOUND, EXISTS, NOT_RUNNING, TRY_AGAIN, NOT_PERMITTED = 1, 2, 3, 4, 69, 75, 77
INTERRUPTED = 128 + signal.SIGINT

_CODES = {
    errno.ENOENT: NOT_FOUND,
    errno.EEXIST: EXISTS,
    errno.EAGAIN: TRY_AGAIN,
    errno.EACCES: NOT_PERMITTED,
    errno.EPERM: NOT_PERMITTED,
}


class Failure(Exception):
    """A sentence for the user and the exit code that goes with it."""

    def __init__(self, text: str, code: int = FAILED) -> None:
        super().__init__(text)
        self.code = code


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code."""
    # Not list(...): once the command of that name is imported, the word means its module in here.
    words = [*(sys.argv[1:] if argv is None else argv)]
    try:
        done = _dispatch(words)
        sys.stdout.flush()
        return done
    except BrokenPipeError:
        # The reader has gone (`shardnet events | head`): stop without a word, and let the interpreter find nothing to flush.
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except KeyboardInterrupt:
        return INTERRUPTED
    except SystemExit as error:  # docopt's way to end: after --help, or with what was wrong
        if error.code is None or isinstance(error.code, int):
            return error.code or 0
        print(error.code, file=sys.stderr)
        return USAGE
    except OSError as error:
        print(f"shardnet: {_said(error)}", file=sys.stderr)
        return _CODES.get(error.errno or 0, FAILED)
    except Exception as error:
        # A control error or a Failure carries its exit code; anything else is a mistake of ours and keeps its stack trace.
        code = getattr(error, "code", None)
        if not isinstance(code, int):
            raise
        print(f"shardnet: {error}", file=sys.stderr)
        return code


def _dispatch(words: list[str]) -> int:
    while words and words[0] in ("-l", "--lab"):  # `shardnet -l demo status` is `shardnet status -l demo`
        if len(words) < 2:
            raise SystemExit("shardnet: --lab: needs a value")
        os.environ["SHARDNET_LAB"] = words[1]
        del words[:2]
    if words and words[0] in ("-V", "--version"):
        print(_version())
        return 0
    if not words or words[0] in ("-h", "--help"):
        from shardnet.cli import usage

        print(usage.overview(), file=sys.stdout if words else sys.stderr)
        return 0 if words else USAGE
    name, *rest = words
    run = _command(name)
    if run is None:
        from shardnet.cli import usage

        what = "option" if name.startswith("-") else "command"
        hint = usage.did_you_mean(name, usage.commands())
        raise SystemExit(f"shardnet: {name}: unknown {what}{hint}; shardnet --help lists them")
    return run(rest)


def _command(name: str) -> Callable[[list[str]], int] | None:
    """The function that runs a command, None where there is no such command."""
    path = f"shardnet.cli.{name}"
    try:
        return getattr(importlib.import_module(path), "run", None) if name.isidentifier() else None
    except ModuleNotFoundError as missing:
        if missing.name != path:
            raise
        return None


def _version() -> str:
    import shardnet

    return f"shardnet {shardnet.__version__} (Python {sys.version.split()[0]}, Linux {os.uname().release})"


def _said(error: OSError) -> str:
    if error.filename is None:
        return error.strerror or str(error)
    return f"{error.filename}: {error.strerror}"
