"""Every option of QEMU's -netdev types, and what becomes of it here: made from the kinds' own words into docs/netdev.md."""

from shardnet import kinds, manual, netdev, options

INET = (
    "host",
    "port",
    "to",
    "ipv4",
    "ipv6",
    "numeric",
    "mptcp",
    "keep-alive",
    "keep-alive-count",
    "keep-alive-idle",
    "keep-alive-interval",
)
# qapi/net.json and qapi/sockets.json, 7.2 to 10.2, as -netdev writes them; of dgram what its manual names.
QEMU = {
    "user": "ipv4 net ip host ipv6 ipv6-net ipv6-host ipv6-prefix ipv6-prefixlen restrict hostname dns ipv6-dns dhcpstart dnssearch"
    " domainname tftp tftp-server-name bootfile smb smbserver hostfwd guestfwd",
    "tap": "ifname fd fds script downscript br helper sndbuf vnet_hdr vhost vhostfd vhostfds vhostforce queues poll-us",
    "bridge": "br helper",
    "socket": "fd listen connect mcast localaddr udp",
    "stream": " ".join(
        [
            "server",
            "reconnect",
            "reconnect-ms",
            *(f"addr.{key}" for key in ("type", "path", "abstract", "tight", "str", *INET)),
        ]
    ),
    "dgram": " ".join(f"{end}.{key}" for end in ("local", "remote") for key in ("type", "host", "port", "path", "str")),
    "vde": "sock port group mode",
    "l2tpv3": "src dst srcport dstport ipv6 udp cookie64 counter pincounter txcookie rxcookie txsession rxsession offset",
    "vhost-user": "chardev vhostforce queues",
    "passt": "path quiet vhost-user mtu address netmask mac gateway interface outbound outbound-if4 outbound-if6 dns search fqdn"
    " dhcp-dns dhcp-search map-host-loopback map-guest-addr dns-forward dns-host tcp udp icmp dhcp ndp dhcpv6 ra freebind ipv4"
    " ipv6 tcp-ports udp-ports param",
    "hubport": "hubid netdev",
    "vhost-vdpa": "vhostdev vhostfd queues x-svq",
    "af-xdp": "ifname mode force-copy queues start-queue inhibit sock-fds map-path map-start-index",
    "netmap": "ifname devname",
    "vmnet-host": "isolated net-uuid start-address end-address subnet-mask",
    "vmnet-shared": "isolated start-address end-address subnet-mask nat66-prefix",
    "vmnet-bridged": "isolated ifname",
}
# qapi/qom.json, NetfilterProperties and FilterDumpProperties.
FILTER_DUMP = "netdev file maxlen queue status position insert"
LATER = {"l2tpv3"} - set(kinds.names())  # types that are to come


def page() -> str:
    """docs/netdev.md."""
    out = [
        "# QEMU's -netdev, option by option",
        "",
        "Made by `docs/manual.py` from the kinds themselves; a test holds it against the options of QEMU 7.2 to 10.2. The same strings work as",
        "`--netdev` of `shardnet start` and `shardnet port add`; a key that is refused is refused with the reason that stands here.",
    ]
    for kind, keys in QEMU.items():
        out += ["", f"## {kind}", ""]
        if kind in netdev.REFUSED:
            out.append(f"Refused: {netdev.REFUSED[kind]}. Its options are {_listed(keys.split())}.")
        elif kind in LATER:
            out.append("Not there yet.")
        else:
            if kind in netdev.OURS:
                out += [f"A `[{netdev.OURS[kind]} NAME]`.", ""]
            out += ["| option | here |", "|---|---|", *(f"| `{key}` | {fate(kind, key)} |" for key in keys.split())]
    out += [
        "",
        "## Objects: filter-dump, filter-replay",
        "",
        "Objects are no strings of `-netdev`. What `-object filter-dump,id=c1,netdev=vm1,file=vm1.pcap` does in QEMU a section `[pcap c1]` with the",
        "same keys does here (`docs/pcap.md`). QEMU's filter-replay is part of its record and replay of a whole machine and has no counterpart;",
        "`replay` of a `[pcap NAME]` puts the frames of a file into a switch.",
        "",
        "| option of filter-dump | here |",
        "|---|---|",
        *(f"| `{key}` | {fate('pcap', key)} |" for key in FILTER_DUMP.split()),
    ]
    return "\n".join(out) + "\n"


def fate(kind: str, key: str) -> str:
    """What becomes of an option: what it does, or why it is refused."""
    module = kinds.module(netdev.OURS.get(kind, kind))
    refused = getattr(module, "REFUSED", {})
    if key in refused:
        return f"refused: {refused[key]}"
    text = {entry.key: entry.help for entry in manual.entries(module)}[key]
    return text.replace("|", "\\|")


def is_known(kind: str, key: str) -> bool:
    """Is the option of a type that is here either read or refused, and not both?"""
    module = kinds.module(netdev.OURS.get(kind, kind))
    read = {options.key_of(field) for field in options.declared(module.Options)}
    return (key in read) != (key in getattr(module, "REFUSED", {}))


def _listed(keys: list[str]) -> str:
    return ", ".join(f"`{key}`" for key in keys)
