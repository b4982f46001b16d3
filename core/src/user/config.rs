//! What a user-mode network is told: its addresses, what guests may reach, what comes in from outside.
//!
//! An address that a guest sends to is judged once, here, before any socket is made. What could be another name of the
//! host's loopback, or of nobody in particular, is refused whatever the options say: 0/8, 127/8, groups, ::, ::1,
//! ::ffff:0:0/96, link-local, and 6to4 and NAT64 of those. The host's loopback is reached by the host address of the
//! network and by no other. 169.254.169.254, where clouds keep their keys, is link-local and so among the refused.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::fd::RawFd;

use super::flows::Endpoint;
use super::service::Service;
use super::socket::Name;
use super::spread::Spread;
use super::wire::{Mac, Packet, is_loopback, v4};
use crate::frame::be16;
use crate::ports::Port;

/// One family's network. Addresses of IPv4 are ::ffff:a.b.c.d, and prefixes count from the front of those 128 bits.
#[derive(Debug, Clone, Copy)]
pub struct Subnet {
    pub net: Ipv6Addr,
    pub prefix: u32,
    pub host: Ipv6Addr,
    /// Where outgoing sockets are bound.
    pub outbound: Option<Ipv6Addr>,
}

impl Subnet {
    pub fn contains(&self, address: Ipv6Addr) -> bool {
        let shift = 128 - self.prefix;
        shift == 128 || u128::from(self.net) >> shift == u128::from(address) >> shift
    }
}

/// Ports of the host's loopback that a guest may reach.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Loopback {
    All,
    /// First and last of each range; none at all: off.
    Only(Vec<(u16, u16)>),
}

/// What a connection of the host's becomes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    Tcp,
    Udp,
    Unix,
}

/// `hostfwd`: what arrives at a socket of the host goes to a guest.
#[derive(Debug, Clone, Copy)]
pub struct HostForward {
    /// A bound socket, listening where it has connections; it stays the caller's, and open until the forward is removed.
    pub fd: i32,
    pub transport: Transport,
    /// None while nobody has the name that it goes to: what comes is refused.
    pub guest: Option<Ipv6Addr>,
    pub port: u16,
}

/// `guestfwd`: what a guest sends to an address that the network owns goes elsewhere.
#[derive(Debug, Clone)]
pub struct GuestForward {
    pub at: Endpoint,
    pub to: Served,
}

#[derive(Debug, Clone)]
pub enum Served {
    /// A socket to connect to, TCP or unix.
    Socket(Name),
    /// A program with the connection as its standard input and output.
    Command(String),
}

/// What a service that stands behind the network is to have: its frames are handed over to its port.
#[derive(Debug, Clone)]
pub struct Handed {
    pub what: What,
    /// An address of the network, which it then owns, or that of a group.
    pub at: Ipv6Addr,
    pub to: Port,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum What {
    /// Packets of this protocol, TCP or UDP, for the first to the last of these ports.
    Ports(u8, u16, u16),
    /// Answers to its own questions who has an address.
    Neighbours,
}

#[derive(Debug, Clone)]
pub struct Config {
    pub v4: Option<Subnet>,
    pub v6: Option<Subnet>,
    /// Longest packet to guests, and what router advertisements say; 0: not said, and 1500 where it has to be known.
    pub mtu: u16,
    pub restrict: bool,
    pub loopback: Loopback,
    /// The interface that outgoing sockets are tied to, or nothing.
    pub interface: String,
    pub max_flows: usize,
    /// Router advertisements send guests to a DHCP server, for addresses and for the rest.
    pub managed: bool,
    /// How many sockets flows may take.
    pub sockets: usize,
    /// Memory that outlives the worker, for the list of its flows; the descriptor stays the caller's.
    pub ledger: Option<RawFd>,
    /// Look beyond what is in flight by SO_PEEK_OFF, where the kernel has that.
    pub peek_offset: bool,
    /// Resolvers for router advertisements.
    pub resolvers: Vec<Ipv6Addr>,
    /// Domains to search, for router advertisements.
    pub search: Vec<String>,
    pub guestfwd: Vec<GuestForward>,
    pub handed: Vec<Handed>,
    /// The network is that of a service, and of nothing else.
    pub service: Option<Service>,
    pub spread: Spread,
}

/// What a guest's packet is to reach.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    /// A socket of the host or of beyond, at this address.
    Outside(Endpoint),
    /// An entry of `guestfwd`.
    Forward(usize),
    /// Not allowed: say so.
    Refused,
    /// An address of the guests' own network that is not ours.
    Nobody,
    /// An address that nothing is ever sent to.
    Senseless,
}

impl Config {
    pub fn subnet(&self, address: Ipv6Addr) -> Option<&Subnet> {
        if v4(address).is_some() { self.v4.as_ref() } else { self.v6.as_ref() }
    }

    pub fn is_host(&self, address: Ipv6Addr) -> bool {
        self.subnet(address).is_some_and(|subnet| subnet.host == address) || self.is_router(address)
    }

    /// The link-local address that router advertisements come from.
    pub fn is_router(&self, address: Ipv6Addr) -> bool {
        self.v6.is_some() && address == self.router()
    }

    /// Our address on the link: fe80::2, as QEMU's, unless we are a service.
    pub fn router(&self) -> Ipv6Addr {
        self.service.as_ref().map_or(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 2), |service| service.link_local)
    }

    /// Is the address one that the network answers for?
    pub fn owns(&self, address: Ipv6Addr) -> bool {
        self.is_host(address)
            || self.guestfwd.iter().any(|forward| forward.at.ip == address)
            || self.handed.iter().any(|handed| handed.at == address && !is_group(address))
    }

    /// Everybody on the guests' network.
    pub fn is_broadcast(&self, address: Ipv6Addr) -> bool {
        let all = |net: Subnet| net.prefix < 128 && u128::from(address) == u128::from(net.net) | (u128::MAX >> net.prefix);
        v4(address) == Some(Ipv4Addr::BROADCAST) || (v4(address).is_some() && self.v4.is_some_and(all))
    }

    /// Is what is sent to this group, or to everybody, for a service of ours?
    pub fn hears(&self, group: Ipv6Addr) -> bool {
        match &self.service {
            Some(service) => (service.broadcast && self.is_broadcast(group)) || service.groups.contains(&group),
            None => is_group(group) && self.handed.iter().any(|handed| handed.at == group),
        }
    }

    /// May a packet from this address be for us? DHCP's clients have none yet.
    pub fn may_speak(&self, source: Ipv6Addr, is_group: bool) -> bool {
        self.is_guest(source)
            || (is_group && v4(source) == Some(Ipv4Addr::UNSPECIFIED))
            || (self.service.is_some() && !self.owns(source) && !is_senseless(source, true))
    }

    /// The port of the service that a packet is for; `head` is the beginning of its frame.
    pub fn handed_to(&self, head: &[u8], packet: &Packet) -> Option<Port> {
        if self.handed.is_empty() || packet.fragment.is_some() {
            return None;
        }
        let port = be16(head, packet.transport + 2)?;
        let is_for = |handed: &&Handed| match handed.what {
            What::Ports(protocol, first, last) => {
                handed.at == packet.destination && protocol == packet.protocol && (first..=last).contains(&port)
            }
            What::Neighbours => false,
        };
        self.handed.iter().find(is_for).map(|handed| handed.to)
    }

    /// The port of the service that asked for a neighbour from this address of ours.
    pub fn asked_by(&self, asker: Ipv6Addr) -> Option<Port> {
        self.handed.iter().find(|handed| handed.what == What::Neighbours && handed.at == asker).map(|handed| handed.to)
    }

    /// May a guest have this address?
    pub fn is_guest(&self, address: Ipv6Addr) -> bool {
        let local = self.v6.is_some() && address.segments()[0] & 0xffc0 == 0xfe80;
        !self.owns(address) && !is_senseless(address, true) && (local || self.subnet(address).is_some_and(|net| net.contains(address)))
    }

    /// The hardware address of an address of ours, `52:55:` with IPv4's four bytes as QEMU's; others are behind the host's.
    pub fn mac(&self, address: Ipv6Addr) -> Mac {
        let own = if self.owns(address) { Some(address) } else { self.subnet(address).map(|subnet| subnet.host) };
        let address = own.unwrap_or(address);
        match v4(address) {
            Some(ip) => {
                let [a, b, c, d] = ip.octets();
                [0x52, 0x55, a, b, c, d]
            }
            None => [0x52, 0x56, 0, 0, 0, address.octets()[15]],
        }
    }

    /// Is a frame to this hardware address for us?
    pub fn takes(&self, mac: Mac) -> bool {
        if mac[0] & 1 == 1 {
            return true;
        }
        match mac {
            [0x52, 0x55, a, b, c, d] => self.owns(Ipv4Addr::new(a, b, c, d).to_ipv6_mapped()),
            [0x52, 0x56, 0, 0, 0, last] => {
                let forwards = self.guestfwd.iter().map(|forward| forward.at.ip);
                let mut ours = forwards.chain(self.handed.iter().map(|handed| handed.at).filter(|at| !is_group(*at)));
                self.v6.is_some_and(|net| self.router().octets()[15] == last || net.host.octets()[15] == last)
                    || ours.any(|ip| v4(ip).is_none() && ip.octets()[15] == last)
            }
            _ => false,
        }
    }

    /// Judge where a guest wants to go.
    pub fn target(&self, far: Endpoint, is_tcp: bool) -> Target {
        if is_tcp && let Some(index) = self.guestfwd.iter().position(|forward| forward.at == far) {
            return Target::Forward(index);
        }
        if self.is_host(far.ip) {
            let allowed = match &self.loopback {
                Loopback::All => true,
                Loopback::Only(ranges) => ranges.iter().any(|&(first, last)| (first..=last).contains(&far.port)),
            };
            if self.restrict || !allowed {
                return Target::Refused;
            }
            let ip = if v4(far.ip).is_some() { Ipv4Addr::LOCALHOST.to_ipv6_mapped() } else { Ipv6Addr::LOCALHOST };
            return Target::Outside(Endpoint { ip, port: far.port });
        }
        if is_senseless(far.ip, false) || far.port == 0 {
            return Target::Senseless;
        }
        let Some(subnet) = self.subnet(far.ip) else { return Target::Nobody };
        if subnet.contains(far.ip) {
            return if self.owns(far.ip) { Target::Refused } else { Target::Nobody };
        }
        if self.restrict { Target::Refused } else { Target::Outside(far) }
    }

    /// How a guest is to see an address of the outside: the host's loopback is the host.
    pub fn seen(&self, ip: Ipv6Addr) -> Ipv6Addr {
        let loopback = is_loopback(ip);
        match self.subnet(ip) {
            Some(subnet) if loopback || ip.is_unspecified() => subnet.host,
            _ => ip,
        }
    }

    pub fn mtu_or_default(&self) -> usize {
        if self.mtu == 0 { 1500 } else { self.mtu.into() }
    }
}

/// Is it the address of several machines?
pub fn is_group(address: Ipv6Addr) -> bool {
    v4(address).map_or(address.is_multicast(), |ip| ip.is_multicast() || ip.is_broadcast())
}

/// Is it a hardware address of a network or a service?
pub fn is_ours(mac: u64) -> bool {
    matches!(mac >> 32, 0x5255 | 0x5256)
}

/// No address of one machine that could be reached from here; link-local ones are where `on_link`.
fn is_senseless(address: Ipv6Addr, on_link: bool) -> bool {
    if let Some(ip) = v4(address) {
        return is_senseless_v4(ip);
    }
    let segments = address.segments();
    let inner = |high: u16, low: u16| is_senseless_v4(Ipv4Addr::from(u32::from(high) << 16 | u32::from(low)));
    address.is_unspecified()
        || address.is_loopback()
        || address.is_multicast()
        || (segments[..5] == [0; 5] && segments[5] == 0xffff)
        || segments[..6] == [0; 6]
        || (!on_link && segments[0] & 0xffc0 == 0xfe80)
        || (segments[0] == 0x2002 && inner(segments[1], segments[2]))
        || (segments[..6] == [0x64, 0xff9b, 0, 0, 0, 0] && inner(segments[6], segments[7]))
}

fn is_senseless_v4(ip: Ipv4Addr) -> bool {
    ip.octets()[0] == 0 || ip.is_loopback() || ip.is_link_local() || ip.octets()[0] >= 224
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::user_config as config;

    fn at(text: &str, port: u16) -> Endpoint {
        let ip = match text.parse::<std::net::IpAddr>().expect("an address") {
            std::net::IpAddr::V4(ip) => ip.to_ipv6_mapped(),
            std::net::IpAddr::V6(ip) => ip,
        };
        Endpoint { ip, port }
    }

    #[test]
    fn the_host_address_is_the_only_name_of_the_loopback() {
        let config = config();
        assert_eq!(config.target(at("10.0.2.2", 80), true), Target::Outside(at("127.0.0.1", 80)));
        assert_eq!(config.target(at("fec0::2", 80), true), Target::Outside(at("::1", 80)));
        for name in ["127.0.0.1", "127.9.9.9", "0.0.0.0", "::1", "::", "::127.0.0.1", "2002:7f00:1::", "64:ff9b::7f00:1", "169.254.169.254"]
        {
            assert_eq!(config.target(at(name, 80), true), Target::Senseless, "{name}");
        }
        assert_eq!(config.target(at("10.0.2.99", 80), true), Target::Nobody);
        assert_eq!(config.target(at("192.0.2.1", 80), true), Target::Outside(at("192.0.2.1", 80)));
    }

    #[test]
    fn only_the_listed_ports_of_the_loopback_are_reached() {
        let config = Config { loopback: Loopback::Only(vec![(80, 81)]), ..config() };
        assert_eq!(config.target(at("10.0.2.2", 81), true), Target::Outside(at("127.0.0.1", 81)));
        assert_eq!(config.target(at("10.0.2.2", 82), true), Target::Refused);
    }

    #[test]
    fn a_restricted_guest_reaches_what_is_forwarded_and_nothing_else() {
        let forward = GuestForward { at: at("10.0.2.100", 7), to: Served::Command("cat".into()) };
        let config = Config { restrict: true, guestfwd: vec![forward], ..config() };
        assert_eq!(config.target(at("10.0.2.100", 7), true), Target::Forward(0));
        for name in ["10.0.2.2", "192.0.2.1", "fec0::2", "2001:db8::1"] {
            assert_eq!(config.target(at(name, 7), true), Target::Refused, "{name}");
        }
    }
}
