"""Write the frames that pass some ports, both ways, as pcapng.

Usage:
  shardnet capture [options] PORT...

Options:
  -l LAB, --lab LAB          the lab, where more than one is running
  -w FILE, --write FILE      where to, - is standard output [default: -]
  -s BYTES, --snaplen BYTES  keep at most so much of a frame
  -q, --quiet                say nothing at the end
  -h, --help                 print this

It ends with Ctrl-C, or when the reader goes away, and then tells on standard
error how many frames it wrote and how many it lost; the end of the file tells
the latter by port. When the disk is full it ends too, with exit code 1, and
what was written is whole. A capture never slows a port: what cannot be written
at once is lost. FILE is written anew. For files that change by size or time,
and for as long as the lab runs, there is [pcap NAME]: shardnet help pcap.

  shardnet capture vm1 vm2 | tcpdump -n -r -
  shardnet capture vm1 | wireshark -k -i -
"""

import contextlib
import os
import select
import signal
import stat
import sys
from collections.abc import Iterator, Sequence

from shardnet import control, options
from shardnet.cli import FAILED, Failure, usage


def run(argv: Sequence[str]) -> int:
    """Hand the lab a descriptor to write to, wait for the end of it, tell the counts."""
    arguments = usage.parse(__doc__, "capture", argv)
    snaplen = usage.number(arguments, "--snaplen", 1, 1 << 18) or 0
    with control.Client(arguments["--lab"]) as lab, _opened(arguments["--write"]) as out:
        begin = os.fstat(out).st_size
        with _until_signal() as signalled:
            lab.capture(arguments["PORT"], out, snaplen)
            select.select([lab.fileno(), signalled], [], [])  # the lab speaks up when the reader has gone
        ended = lab.capture_end()
        if ended["error"] and stat.S_ISREG(os.fstat(out).st_mode):
            with contextlib.suppress(OSError):
                os.ftruncate(out, begin + ended["whole"])  # what the disk took of a frame
    if not arguments["--quiet"]:
        print(f"{ended['written']} frames written, {ended['lost']} lost", file=sys.stderr)
    if ended["error"]:
        where = "standard output" if arguments["--write"] == "-" else options.shown(arguments["--write"])
        raise Failure(f"{where}: {ended['error']}", FAILED)
    return 0


@contextlib.contextmanager
def _opened(path: str) -> Iterator[int]:
    if path == "-":
        if sys.stdout.isatty():
            raise Failure("pcapng is not for a terminal (-w FILE, or a pipe: | tcpdump -n -r -)", FAILED)
        yield sys.stdout.fileno()
        return
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
    try:
        yield fd
    finally:
        os.close(fd)


@contextlib.contextmanager
def _until_signal() -> Iterator[int]:
    """A descriptor that becomes readable when this process is asked to end."""
    reader, writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    before = {
        number: signal.signal(number, lambda *_: None) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    }
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    try:
        yield reader
    finally:
        signal.set_wakeup_fd(-1)
        for number, handler in before.items():
            signal.signal(number, handler)
        os.close(reader)
        os.close(writer)
