"""DHCP without sockets and clocks: messages, leases, and what a server answers, for IPv4 and for IPv6."""
