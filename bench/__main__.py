"""Measure shardnet side by side with its peers (as `python -m bench`).

usage: bench [options] [ROW...]

Rows: tcp1 tcp4 udp64 pingpong lane stream vhost tunnel link packet user-tcp user-small user-flows user-stream start memory ports tftp dns kill capture;
user is all four of user's. Without a row, all of them.

options:
  --quick         one round of half a second a measurement
  --rounds N      rounds, each with every row and peer in it [default: 5]
  --seconds S     how long a measurement lasts [default: 1.5]
  --peers LIST    only these, a comma between two: forwarder,shardnet 1,vde_switch
  -o FORMAT       table or json [default: table]
  --write         write bench/RESULTS.md and bench/results.json, or RESULTS-ROW.md where rows are chosen; a run of
                  all rows and peers does so by itself
"""

import sys

import docopt

from bench import (
    captures,
    corner,
    growth,
    kill,
    lanes,
    links,
    names,
    packets,
    pair,
    peers,
    programs,
    report,
    streams,
    tftp,
    tunnels,
    users,
    vhosts,
)
from bench.samples import ROWS, Round, Samples


def main() -> int:
    given = docopt.docopt(__doc__ or "")
    rows = [one for row in given["ROW"] for one in GROUPS.get(row, (row,))] or list(ROWS)
    chosen = [name.strip() for name in given["--peers"].split(",")] if given["--peers"] else []
    known = {
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
    }
    for name, of in [(row, {*ROWS, *GROUPS}) for row in rows] + [(peer, known) for peer in chosen]:
        if name not in of:
            print(f"bench: {name}: not one of {', '.join(sorted(of))}", file=sys.stderr)
            return 2
    seconds, rounds = (0.5, 1) if given["--quick"] else (float(given["--seconds"]), int(given["--rounds"]))
    corner.enter()

    samples = Samples()
    for number in range(1, rounds + 1):
        turn = Round(number, seconds, samples)
        if set(rows) & set(pair.ROWS):
            pair.measure(rows, [kind for kind in peers.TAPS if not chosen or kind.name in chosen], turn)
        if "stream" in rows:
            streams.measure([kind for kind in peers.STREAMS if not chosen or kind.name in chosen], turn)
        if "vhost" in rows:
            vhosts.measure([kind for kind in vhosts.VHOSTS if not chosen or kind.name in chosen], turn)
        if "tunnel" in rows:
            tunnels.measure([kind for kind in tunnels.TUNNELS if not chosen or kind.name in chosen], turn)
        if "link" in rows:
            links.measure([kind for kind in links.LINES if not chosen or kind.name in chosen], turn)
        if "packet" in rows:
            packets.measure([kind for kind in packets.PACKETS if not chosen or kind.name in chosen], turn)
        users.measure(rows, lambda kind: not chosen or kind.name in chosen, turn)
        for row, measure in OWN.items():
            if row in rows:
                measure(turn)

    print(report.as_json(samples) if given["-o"] == "json" else report.text(samples))
    if given["--write"] or not (given["ROW"] or chosen or given["--quick"]):
        how = "python -m bench " + " ".join(sys.argv[1:])
        some = "".join(f"-{row}" for row in given["ROW"])
        (programs.HERE / f"RESULTS{some}.md").write_text(report.markdown(samples, how.strip()))
        (programs.HERE / f"results{some}.json").write_text(report.as_json(samples) + "\n")
    return 0


GROUPS = {"user": tuple(row for row in ROWS if row.startswith("user-"))}
OWN = {
    "lane": lanes.measure,
    "start": growth.start,
    "memory": growth.memory,
    "ports": growth.ports,
    "tftp": tftp.measure,
    "dns": names.measure,
    "kill": kill.measure,
    "capture": captures.measure,
}


if __name__ == "__main__":
    sys.exit(main())
