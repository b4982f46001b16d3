"""Network namespaces for a test, each with a name of its own, gone at its end with everything in them."""

import contextlib
import itertools
import os
import signal
import subprocess
from collections.abc import Callable, Iterator

numbers = itertools.count(1)


class Namespace:
    """A network namespace; its loopback is up."""

    def __init__(self, word: str, name: str | None = None) -> None:
        self.name = name or f"t{os.getpid()}-{next(numbers)}-{word}"
        _ip("netns", "add", self.name)
        self.run("ip", "link", "set", "lo", "up")

    def run(self, *command: str, within: float = 60) -> str:
        """Run a command in the namespace and return what it printed; a status other than 0 is a failure that quotes it."""
        ran = subprocess.run(
            [*self.enter, *command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=within,
        )
        assert ran.returncode == 0, f"{self.name}: {' '.join(command)}: status {ran.returncode}: {ran.stdout}"
        return ran.stdout

    @contextlib.contextmanager
    def running(self, *command: str) -> Iterator[subprocess.Popen[str]]:
        """Run a command beside the test for as long as the block; its output is a pipe."""
        process = subprocess.Popen(
            [*self.enter, *command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        try:
            yield process
        finally:
            process.kill()
            process.wait()
            process.stdout.close()

    @property
    def enter(self) -> list[str]:
        """The words before a command that runs it in here."""
        return ["ip", "netns", "exec", self.name]

    def links(self) -> set[str]:
        """Names of the network interfaces in the namespace."""
        return {line.split(":")[1].strip().partition("@")[0] for line in self.run("ip", "-o", "link").splitlines()}

    def close(self) -> None:
        for pid in _ip("netns", "pids", self.name).split():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
        _ip("netns", "delete", self.name)


def names() -> set[str]:
    """Names of all network namespaces of this host that have one."""
    return {line.split()[0] for line in _ip("netns").splitlines()}


@contextlib.contextmanager
def making() -> Iterator[Callable[..., Namespace]]:
    """Make namespaces by calling what this gives; they are gone after the block."""
    with contextlib.ExitStack() as stack:

        def make(word: str, name: str | None = None) -> Namespace:
            made = Namespace(word, name)
            stack.callback(made.close)
            return made

        yield make


def _ip(*words: str) -> str:
    return subprocess.run(["ip", *words], check=True, stdout=subprocess.PIPE, text=True).stdout
