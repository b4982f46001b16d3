"""Row capture: what a [pcap NAME] costs the port that it captures, between two TAPs at full load.

In each round everything is measured in turn in one lab, with no capture first and again last: bulk by iperf3, whose frames are
super-frames, and as many small frames as can be sent. The files are on a tmpfs and change at 64 MB, two of them kept. Beside the speed:
how much of what passed is in the files, and how many frames are neither there nor counted as lost, of which there may be none.
"""

import json
import time
from typing import Any

from bench import corner, lab, pair, peers
from bench.samples import Round

CAPTURES = {
    "no capture": None,
    "whole frames": "",
    "maxlen 128": "maxlen = 128\n",
    "whole, pcap": "format = pcap\n",
}
SETTLE_S = 5.0
STILL_S = 0.3  # a capture that kept its share of a busy machine rests for less


def measure(turn: Round) -> None:
    """One round: each capture comes, has its turn with both loads, and goes."""
    with turn.attempt("capture"), corner.Corner("capture") as place:
        running = lab.Lab(place, peers.taps(place))
        running.start()
        pair.answering(place)
        names = list(CAPTURES)
        first = turn.number % len(names)
        for name in [*names[first:], *names[:first]]:
            load(place, running, name, turn)


def load(place: corner.Corner, running: lab.Lab, name: str, turn: Round) -> None:
    """Both loads, captured or not."""
    given = CAPTURES[name]
    for row, what in (("capture tcp", pair.tcp), ("capture udp", pair.udp64)):
        if given is not None:
            section = f"[pcap cap]\nfile = {place.path}/cap.pcapng\nfilesize = 64M\nfiles = 2\nnetdev = left\n{given}"
            shardnet(running, "port", "add", section)
        before = counters(running)
        if what is pair.tcp:
            turn.add(row, name, tcp(place, turn.seconds))
        else:
            delivered, _, seconds = pair.flood(place, "a", "b", peers.RIGHT, turn.seconds)
            turn.add(row, name, delivered / seconds / 1e3)
        if given is not None:
            ended = settled(running)
            frames, captured = passed(ended) - passed(before), ended["cap"]
            turn.add(f"{row} kept", name, 100 * captured["tx_frames"] / frames)
            if what is pair.tcp and "maxlen" not in given:
                turn.add("capture tcp bytes", name, 100 * captured["tx_bytes"] / (octets(ended) - octets(before)))
            turn.add("capture uncounted", name, frames - captured["tx_frames"] - captured["tx_drops"])
            shardnet(running, "port", "remove", "cap")


def tcp(place: corner.Corner, seconds: float) -> float:
    server = place.client("b", "iperf3", "--server", "--one-off", "--forceflush")
    corner.said(server, "listening")
    report = place.run("a", "iperf3", "--client", peers.RIGHT, "--time", max(1, round(seconds)), "--json")
    server.communicate()
    return float(json.loads(report)["end"]["sum_received"]["bits_per_second"]) / 1e9


def shardnet(running: lab.Lab, *words: str) -> None:
    environment = [f"{key}={value}" for key, value in running.environment.items()]
    corner.run("env", *environment, lab.command(), *words)


def counters(running: lab.Lab) -> dict[str, dict[str, Any]]:
    """Those of all ports, read at once."""
    return {one["name"]: one["counters"] for one in running.status()["ports"]}


def passed(found: dict[str, dict[str, Any]]) -> int:
    """Frames that have passed the port that is captured, both ways."""
    left = found["left"]
    return int(left["forwarded"] + left["filtered"] + left["tx_frames"])


def octets(found: dict[str, dict[str, Any]]) -> int:
    """Bytes that have passed it, both ways."""
    left = found["left"]
    return int(left["rx_bytes"] + left["tx_bytes"])


def settled(running: lab.Lab) -> dict[str, dict[str, Any]]:
    """The counters once nothing passes any more and everything is written: they stand still."""
    until, last = time.monotonic() + SETTLE_S, None
    while True:
        now = counters(running)
        if now == last and not now["cap"]["queued"]:
            return now
        if time.monotonic() > until:
            raise corner.Failed("the capture does not settle")
        last = now
        time.sleep(STILL_S)
