"""What ps shows of a process that the forkserver has made, in the place of the forkserver's long arguments."""

import contextlib


def write(text: str) -> None:
    """Have ps show this in the place of the forkserver's long arguments."""
    with contextlib.suppress(OSError):  # no /proc, no title
        with open("/proc/self/stat", "rb") as stat, open("/proc/self/mem", "r+b", 0) as memory:
            start, end = map(
                int, stat.read().rpartition(b")")[2].split()[45:47]
            )  # proc_pid_stat(5): arg_start, arg_end
            memory.seek(start)
            memory.write(text.encode()[: end - start - 1].ljust(end - start, b"\0"))
