"""What was measured: a value for each measure, subject and round, with medians, spreads and ratios.

A ratio is taken round by round, between two values measured within seconds of each other, and the median of those is the ratio
that counts: the machine drifts by a factor of two within the hour, and both values drift with it.
"""

import contextlib
import dataclasses
import statistics
import sys
from collections.abc import Iterator

from bench import corner


@dataclasses.dataclass(frozen=True)
class Measure:
    title: str
    unit: str
    row: str  # what selects it on the command line
    control: str | None = None  # the subject that ratios refer to
    digits: int = 0


MEASURES = {
    "tcp1": Measure("TCP, 1 stream", "Gbit/s", "tcp1", "forwarder", 1),
    "tcp1 cpu": Measure("CPU, 1 stream", "s/GB", "tcp1", "forwarder", 3),
    "tcp4": Measure("TCP, 4 streams", "Gbit/s", "tcp4", "forwarder", 1),
    "tcp4 cpu": Measure("CPU, 4 streams", "s/GB", "tcp4", "forwarder", 3),
    "udp64": Measure("UDP 64 B delivered", "kframes/s", "udp64", "forwarder"),
    "udp64 cpu": Measure("the same per CPU-second", "kframes", "udp64", "forwarder"),
    "p50": Measure("UDP ping-pong p50", "us", "pingpong", "forwarder", 1),
    "p99": Measure("UDP ping-pong p99", "us", "pingpong", "forwarder", 1),
    "lane 64": Measure("64 B", "Mframes/s", "lane", "ring", 2),
    "lane 1514": Measure("1514 B", "Mframes/s", "lane", "ring", 2),
    "lane 65536": Measure("65,536 B", "Mframes/s", "lane", "ring", 3),
    "stream 64": Measure("64 B", "kframes/s", "stream", "qemu stream"),
    "stream 1514": Measure("1514 B", "kframes/s", "stream", "qemu stream"),
    **{
        f"vhost {size}{what}": Measure(
            f"{size:,} B{title}", unit, "vhost", "testpmd" if size < 65_000 else None, digits
        )
        for size in (64, 1514, 65_000)
        for what, title, unit, digits in (
            ("", "", "kframes/s", 0),
            (" gb", "", "GB/s", 2),
            (" cpu", ", CPU a frame", "ns", 0),
        )
    },
    **{
        f"tunnel {way}{what}": Measure(f"TCP {title}{of}", unit, "tunnel", control, digits)
        for way, title in (("out", "there"), ("in", "back"))
        for what, of, unit, control, digits in (
            ("", "", "Gbit/s", "kernel vxlan", 2),
            (" cpu", ", CPU", "s/GB", "qemu l2tpv3", 2),
        )
    },
    "tunnel udp64": Measure("UDP 64 B delivered", "kframes/s", "tunnel", "kernel vxlan"),
    **{
        f"link {sort}{what}": Measure(f"TCP, {title}{of}", "s/GB" if what else unit, "link", "delayer", 2)
        for sort, title, unit in (
            ("reno", "10 ms each way, 1 % lost, Reno", "Mbit/s"),
            ("bbr", "the same, BBR", "Mbit/s"),
            ("delay", "10 ms each way", "Gbit/s"),
            ("none", "no delay", "Gbit/s"),
        )
        for what, of in (("", ""), (" cpu", ", CPU"))
    },
    **{
        f"packet {what} {way}{cpu}": Measure(
            f"{title}, {way}{of}", unit, "packet", "bridge" if not cpu else None, digits
        )
        for what, title in (("tcp", "TCP"), ("udp64", "UDP 64 B"))
        for way in ("there", "back")
        for cpu, of, unit, digits in (
            ("", "", "Gbit/s" if what == "tcp" else "kframes/s", 1 if what == "tcp" else 0),
            (
                " cpu",
                ", CPU" if what == "tcp" else ", per CPU-second",
                "s/GB" if what == "tcp" else "kframes",
                3 if what == "tcp" else 0,
            ),
        )
    },
    **{
        f"user {way} {mtu}{what}": Measure(f"{title}, mtu {mtu:,}{of}", unit, "user-tcp", "slirp4netns", digits)
        for way, title in (("out", "to the host"), ("in", "to the guest"))
        for mtu in (1500, 65520)
        for what, of, unit, digits in (("", "", "Gbit/s", 2), (" cpu", ", CPU", "s/GB", 2))
    },
    "user crr": Measure("connect, ask, answer, close", "a second", "user-small", "slirp4netns"),
    "user crr cpu": Measure("CPU of that", "us", "user-small", "slirp4netns"),
    "user p50": Measure("TCP ping-pong p50", "us", "user-small", "slirp4netns", 1),
    "user p99": Measure("TCP ping-pong p99", "us", "user-small", "slirp4netns", 1),
    "user udp64": Measure("UDP 64 B delivered", "kframes/s", "user-small", "slirp4netns"),
    "user udp64 cpu": Measure("the same per CPU-second", "kframes", "user-small", "slirp4netns"),
    "user idle": Measure("PSS of all its processes", "MB", "user-flows", None, 1),
    "user few": Measure("with 1,000 TCP flows", "MB", "user-flows", None, 1),
    "user flow": Measure("a flow, of 10,000", "KB", "user-flows", None, 2),
    "user open": Measure("10,000 opened, all answering", "s", "user-flows", "slirp4netns", 2),
    **{
        f"user stream {way}{what}": Measure(f"{title}{of}", unit, "user-stream", "libslirp", 2)
        for way, title in (("out", "to the host"), ("in", "to the guest"))
        for what, of, unit in (("", "", "Gbit/s"), (" cpu", ", CPU", "s/GB"))
    },
    "start": Measure("start to first frame on every port", "ms", "start"),
    "rss": Measure("RSS", "MB", "memory", None, 1),
    "pss": Measure("PSS", "MB", "memory", None, 1),
    "ports": Measure("UDP 64 B delivered", "kframes/s", "ports", "2 ports"),
    "ports cpu": Measure("CPU a frame", "us", "ports", "2 ports", 2),
    "tftp block": Measure("20 MB by curl, a block of 1428 B at a time", "ms", "tftp", "tftpd-hpa"),
    "tftp window": Measure("the same by atftp, windowsize 64 asked for", "ms", "tftp", "tftpd-hpa"),
    "dns kept": Measure("answers that are kept", "thousand/s", "dns", "dnsmasq", 1),
    "dns asked": Measure("answers asked of the next server", "thousand/s", "dns", "libslirp", 1),
    "dns lost": Measure("lost at 5,000 questions a second", "questions", "dns"),
    "kill": Measure("longest silence of its port", "ms", "kill"),
    "kill lost": Measure("frames lost by two others", "at 10,000/s", "kill"),
    "kill unread": Measure("refused by a TAP's queue", "frames", "kill"),
    "capture tcp": Measure("TCP, 1 stream", "Gbit/s", "capture", "no capture", 1),
    "capture tcp kept": Measure("of its frames in the files", "%", "capture", None, 1),
    "capture tcp bytes": Measure("of its bytes", "%", "capture", None, 1),
    "capture udp": Measure("UDP 64 B delivered", "kframes/s", "capture", "no capture"),
    "capture udp kept": Measure("of them in the files", "%", "capture", None, 1),
    "capture uncounted": Measure("neither written nor counted", "frames", "capture"),
}
ROWS = tuple(dict.fromkeys(measure.row for measure in MEASURES.values()))


class Samples:
    """All values of one run."""

    def __init__(self) -> None:
        self.values: dict[str, dict[str, dict[int, list[float]]]] = {}
        self.notes: list[str] = []

    def add(self, measure: str, subject: str, turn: int, *values: float) -> None:
        self.values.setdefault(measure, {}).setdefault(subject, {}).setdefault(turn, []).extend(values)

    def note(self, text: str) -> None:
        """Remember once why something is not among the values."""
        if text not in self.notes:
            self.notes.append(text)

    def subjects(self, *measures: str) -> list[str]:
        return list(dict.fromkeys(subject for measure in measures for subject in self.values.get(measure, {})))

    def all(self, measure: str, subject: str) -> list[float]:
        return [value for values in self.values.get(measure, {}).get(subject, {}).values() for value in values]

    def ratio(self, measure: str, subject: str, control: str) -> float | None:
        """Median over rounds of subject / control, None where they share no round."""
        ours, theirs = (self.values.get(measure, {}).get(name, {}) for name in (subject, control))
        ratios = [
            statistics.median(ours[turn]) / statistics.median(theirs[turn])
            for turn in ours
            if turn in theirs and statistics.median(theirs[turn])
        ]
        return statistics.median(ratios) if ratios else None


@dataclasses.dataclass(frozen=True)
class Round:
    """One turn through the rows: how long a measurement lasts, where its values go."""

    number: int
    seconds: float
    samples: Samples

    def add(self, measure: str, subject: str, *values: float) -> None:
        """Keep values, and show them as they come."""
        self.samples.add(measure, subject, self.number, *values)
        what = MEASURES[measure]
        shown = " ".join(f"{value:.{what.digits}f}" for value in values)
        print(f"round {self.number}  {subject:<14} {measure:<12} {shown} {what.unit}", file=sys.stderr, flush=True)

    @contextlib.contextmanager
    def attempt(self, what: str) -> Iterator[None]:
        """Go on without what fails in here, but say so in the results."""
        try:
            yield
        except corner.Failed as failure:
            self.samples.note(f"{what}: {failure}")
            print(f"round {self.number}  {what}: {failure}", file=sys.stderr, flush=True)
