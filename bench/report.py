"""Tables and goals out of the samples: for the terminal, for JSON, for RESULTS.md."""

import datetime
import json
import os
import platform
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path

from bench import links, packets, peers, tunnels, users, vhosts
from bench.samples import MEASURES, Samples

TABLES = (
    ("Between two network namespaces: bulk", ("tcp1", "tcp1 cpu", "tcp4", "tcp4 cpu")),
    ("Between two network namespaces: small frames", ("udp64", "udp64 cpu", "p50", "p99")),
    ("Lane, two processes", ("lane 64", "lane 1514", "lane 65536")),
    ("Stream ports, QEMU's framing", ("stream 64", "stream 1514")),
    *(
        (
            f"Between two virtio-net cards (vhost-user), {size:,} B",
            (f"vhost {size}", f"vhost {size} gb", f"vhost {size} cpu"),
        )
        for size in vhosts.SIZES
    ),
    (
        "Two hosts and a tunnel between their guests, mtu 1,500",
        ("tunnel out", "tunnel out cpu", "tunnel in", "tunnel in cpu", "tunnel udp64"),
    ),
    (
        "A line that delays and loses, between two network namespaces",
        ("link reno", "link bbr", "link delay", "link delay cpu", "link none", "link none cpu"),
    ),
    *(
        (
            f"Between two namespaces behind veth pairs, or a veth pair and a TAP: {title}",
            tuple(f"packet {what} {way}{cpu}" for way in ("there", "back") for cpu in ("", " cpu")),
        )
        for what, title in (("tcp", "bulk"), ("udp64", "small frames"))
    ),
    *(
        (
            f"User-mode network, a guest with a TAP, TCP at mtu {mtu:,}",
            tuple(f"user {way} {mtu}{what}" for way in ("out", "in") for what in ("", " cpu")),
        )
        for mtu in (users.SMALL, users.LARGE)
    ),
    (
        "User-mode network, a guest with a TAP, small things",
        ("user crr", "user crr cpu", "user p50", "user p99", "user udp64", "user udp64 cpu"),
    ),
    ("User-mode network, TCP flows", ("user idle", "user few", "user flow", "user open")),
    (
        "User-mode network, a guest at a stream port, TCP at mtu 1,500",
        ("user stream out", "user stream out cpu", "user stream in", "user stream in cpu"),
    ),
    ("Start", ("start",)),
    ("Memory after traffic, two ports", ("rss", "pss")),
    ("Ports on two workers, all but two idle", ("ports", "ports cpu")),
    ("TFTP", ("tftp block", "tftp window")),
    ("DNS, questions answered", ("dns kept", "dns asked", "dns lost")),
    ("kill -9 of one worker", ("kill", "kill lost", "kill unread")),
    (
        "A port that is captured",
        (
            "capture tcp",
            "capture tcp kept",
            "capture tcp bytes",
            "capture udp",
            "capture udp kept",
            "capture uncounted",
        ),
    ),
)

LOAD = os.getloadavg()  # of others, before this run adds its own
ORDER = [
    peers.Relay.name,
    *(
        kind.name
        for kind in (
            *peers.TAPS,
            *peers.STREAMS,
            *vhosts.VHOSTS,
            *tunnels.TUNNELS,
            *links.LINES,
            *packets.PACKETS,
            *users.USERS,
            *users.STREAMS,
        )
    ),
]  # whatever else there is stands first

HOW_TO_READ = """\
A cell is the median over the rounds, the lowest and the highest value in brackets, and after × the ratio to the table's control
(forwarder, ring, qemu stream, testpmd, kernel vxlan, delayer, bridge, slirp4netns, libslirp, 2 ports, tftpd-hpa, dnsmasq, no capture): taken round by round, from two values measured within seconds of each other, then the median. **Compare ratios.**
Absolute figures drift by a factor of two within the hour on a virtual machine, and generator, sink and switch share its cores;
two figures whose spreads overlap are equal. Frames are Ethernet frames without their checksum. CPU is user and system time of the
switch's processes (the bridge has none: its work is done in the sender's and the receiver's name), including what the kernel does
for the receiver inside a write to a TAP. "UDP 64 B delivered" is what arrives while the sender sends as fast as it can. "All its processes" are for shardnet its
supervisor, its forkserver and its workers.
"""


def cell(samples: Samples, name: str, subject: str) -> str:
    """Median, spread and ratio of one measure of one subject."""
    values, measure = samples.all(name, subject), MEASURES[name]
    if not values:
        return "–"
    number = f"{{:,.{measure.digits}f}}".format
    text = number(statistics.median(values))
    if len(values) > 1:
        text += f" [{number(min(values))}–{number(max(values))}]"
    ratio = samples.ratio(name, subject, measure.control) if measure.control else None
    return text + (f" ×{ratio:.2f}" if ratio is not None else "")


def table(rows: Sequence[Sequence[str]]) -> list[str]:
    """A table of Markdown, padded so that it reads on a terminal too; the first row is the heading."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [" | ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)) for row in rows]
    lines.insert(1, " | ".join("-" * width for width in widths))
    return [f"| {line} |" for line in lines]


def measured(samples: Samples, names: Iterable[str]) -> list[str]:
    """The table of these measures, a row a subject, in a fixed order."""
    names = [name for name in names if name in samples.values]
    subjects = sorted(samples.subjects(*names), key=lambda name: ORDER.index(name) if name in ORDER else -1)
    rows = [["", *(f"{MEASURES[name].title}, {MEASURES[name].unit}" for name in names)]]
    return table(rows + [[subject, *(cell(samples, name, subject) for name in names)] for subject in subjects])


def tables(samples: Samples) -> list[str]:
    """All tables that have something in them."""
    lines: list[str] = []
    for title, names in TABLES:
        if any(name in samples.values for name in names):
            lines += [f"## {title}", "", *measured(samples, names), ""]
    return lines


def best(samples: Samples, measure: str, subject: str, others: Iterable[str], *, less: bool = False) -> float | None:
    """Ratio to the best of the others, where more is better, or less."""
    ratios = [ratio for other in others if (ratio := samples.ratio(measure, subject, other)) is not None]
    return max(ratios, default=None) if less else min(ratios, default=None)


TCP_GOALS = {"forwarder": 0.9, "vde_switch": 8, "qemu hub": 8, "ovs tso": 1.4, "ovs tso veth": 1.4}
USER_SPACE = ("vde_switch", "qemu hub", "ovs", "ovs tso", "ovs tso veth")
QEMU = ("qemu stream", "qemu socket")
USER_PEERS = ("slirp4netns", "pasta", "libslirp")
USER_GOALS = {
    **{f"user {way} {mtu}": least for mtu, least in ((1500, 6), (65520, 1.5)) for way in ("out", "in")},
    "user crr": 1.5,
    "user udp64": 1.2,
}


def goals(samples: Samples) -> list[tuple[str, str, float | None, bool | None]]:
    """The figures to reach: what, the bound, what was measured, reached or not; None where nothing was measured."""
    ratio = samples.ratio

    def median(measure: str, subject: str) -> float | None:
        values = samples.all(measure, subject)
        return statistics.median(values) if values else None

    def worst(measure: str, subject: str) -> float | None:
        return max(samples.all(measure, subject), default=None)

    wanted: list[tuple[str, str, float, float | None]] = [
        ("lane, 64 B : bare ring", ">=", 0.85, ratio("lane 64", "lane", "ring")),
    ]
    for streams in "tcp1", "tcp4":
        title = MEASURES[streams].title
        wanted.append((f"{title}, 1 worker : forwarder", ">=", 0.95, ratio(streams, "shardnet 1", "forwarder")))
        for peer, least in TCP_GOALS.items():
            wanted.append((f"{title}, 2 workers : {peer}", ">=", least, ratio(streams, "shardnet 2", peer)))
    for measure, least in ("udp64", 1.2), ("udp64 cpu", 1.5):
        title = "UDP 64 B" + (" per CPU-second" if measure != "udp64" else "")
        for workers, bound in ("1 worker", 1.0), ("2 workers", 1.2):
            subject = f"shardnet {workers[0]}"
            wanted.append((f"{title}, {workers} : forwarder", ">=", bound, ratio(measure, subject, "forwarder")))
            found = best(samples, measure, subject, USER_SPACE)
            wanted.append((f"{title}, {workers} : best user-space switch", ">=", least, found))
    for workers in "1 worker", "2 workers":
        subject = f"shardnet {workers[0]}"
        for measure in "p50", "p99":
            for peer, most in ("forwarder", 1.2), ("vde_switch", 1.0):
                wanted.append((f"ping-pong {measure}, {workers} : {peer}", "<=", most, ratio(measure, subject, peer)))
        for bytes_ in 64, 1514:
            found = best(samples, f"stream {bytes_}", subject, QEMU)
            wanted.append((f"stream ports, {bytes_} B, {workers} : the better of QEMU's", ">=", 5, found))
        name = f"user network, {workers}"
        for measure, least in USER_GOALS.items():
            found = best(samples, measure, subject, USER_PEERS)
            wanted.append((f"{name}, {MEASURES[measure].title} : best peer", ">=", least, found))
        for measure in "user p50", "user p99":
            found = best(samples, measure, subject, USER_PEERS, less=True)
            wanted.append((f"{name}, {MEASURES[measure].title} : best peer", "<=", 1, found))
        for measure in "user stream out", "user stream in":
            title = f"{name}, stream port, {MEASURES[measure].title} : libslirp"
            wanted.append((title, ">=", 2, ratio(measure, subject, "libslirp")))
        wanted.append((f"{name}, a TCP flow, KB", "<=", 1, median("user flow", subject)))
        wanted.append((f"{name}, 10,000 TCP flows opened, all answering, s", "<=", 1, median("user open", subject)))
    wanted += [
        ("start to first frame, 2 ports, ms", "<=", 300, median("start", "2 ports")),
        ("start to first frame, 100 ports, ms", "<=", 2000, median("start", "100 ports")),
        ("memory a worker, RSS, MB", "<=", 20, median("rss", "a worker")),
        ("CPU a frame, 200 ports : 2 ports", "<=", 1.1, ratio("ports cpu", "200 ports", "2 ports")),
        ("killed port carries again, median, ms", "<=", 100, median("kill", "a worker killed")),
        ("killed port carries again, worst, ms", "<=", 1000, worst("kill", "a worker killed")),
        ("frames others lose, worst", "<=", 0, worst("kill lost", "a worker killed")),
    ]
    return [
        (
            what,
            f"{sense} {bound:g}",
            value,
            None if value is None else value >= bound if sense == ">=" else value <= bound,
        )
        for what, sense, bound, value in wanted
    ]


def goal_table(samples: Samples) -> list[str]:
    """The figures to reach that this run says something about."""
    rows = [
        (what, bound, f"{value:.3g}" if value < 1000 else f"{value:.0f}", "yes" if reached else "**no**")
        for what, bound, value, reached in goals(samples)
        if value is not None
    ]
    if not rows:
        return []
    rows.insert(0, ("figure", "wanted", "measured", "reached"))
    return ["## Figures to reach", "", *table(rows), ""]


def machine() -> dict[str, str]:
    """What the figures belong to."""
    models = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    model = models[0].split(":")[1].strip() if models else platform.machine()
    memory = int(Path("/proc/meminfo").read_text().split()[1]) / 2**20
    return {
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "kernel": f"{platform.system()} {platform.release()} {platform.machine()}",
        "CPU": f"{model}, {len(os.sched_getaffinity(0))} cores",
        "memory": f"{memory:.0f} GiB",
        "load before": "{:.1f} {:.1f} {:.1f} (1, 5, 15 minutes)".format(*LOAD),
        **peers.versions(),
    }


def text(samples: Samples) -> str:
    """For the terminal."""
    lines = tables(samples) + goal_table(samples)
    if samples.notes:
        lines += ["Not measured:", *(f"- {note}" for note in samples.notes), ""]
    return "\n".join(lines)


def markdown(samples: Samples, how: str) -> str:
    """RESULTS.md."""
    kinds = {
        kind.name: (kind.__doc__ or "").strip()
        for kind in (*users.STREAMS, *users.USERS, *vhosts.VHOSTS, *peers.STREAMS, *peers.TAPS)
    }
    streams = {kind.name for kind in peers.STREAMS} - {kind.name for kind in peers.TAPS}
    lines = ["# Results", "", f"Written by `{how}`; do not edit.", ""]
    lines += [f"- {key}: {value}" for key, value in machine().items()]
    lines += ["", HOW_TO_READ, text(samples), "## Who is who", ""]
    lines += [f"- {name}: {what}" for name, what in sorted(kinds.items(), key=lambda item: item[0] in streams)]
    return "\n".join(lines) + "\n"


def as_json(samples: Samples) -> str:
    """Every single value, for programs."""
    values = {
        measure: {subject: list(rounds.values()) for subject, rounds in subjects.items()}
        for measure, subjects in samples.values.items()
    }
    reached = [
        {"figure": what, "wanted": bound, "measured": value, "reached": ok} for what, bound, value, ok in goals(samples)
    ]
    return json.dumps({"machine": machine(), "values": values, "goals": reached, "notes": samples.notes}, indent=1)
