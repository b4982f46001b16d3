//! Neighbour discovery (RFC 4861): answers for the addresses that the network owns and for no others, asks for guests, and
//! advertises the network as their router, with prefix, MTU and resolvers (RFC 8106).

use std::net::Ipv6Addr;

use super::Core;
use super::icmp;
use super::wire::{self, ICMPV6, Mac, Packet, Way, put16, put32, v4};

pub const ROUTER_SOLICITATION: u8 = 133;
const ROUTER_ADVERTISEMENT: u8 = 134;
pub const SOLICITATION: u8 = 135;
pub const ADVERTISEMENT: u8 = 136;
/// On-link messages come with this hop limit and with no other.
pub const HOPS: u8 = 255;

const ROUTER_LIFETIME_S: u16 = 1800;
const VALID_S: u32 = 86_400;
const PREFERRED_S: u32 = 14_400;
/// Flags of a router advertisement (RFC 4861, 4.2): addresses, and what else there is to know, come by DHCP too.
const MANAGED: u8 = 0x80;
const OTHER: u8 = 0x40;
/// Of a router advertisement, which is one packet whatever the link: 1,280 bytes.
const SEARCH_MOST: usize = 896;
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);

/// Deal with a message of neighbour discovery; returns whom it introduces.
pub fn input(core: &mut Core, packet: &Packet, mac: Mac, message: &[u8]) -> Option<(Ipv6Addr, Mac)> {
    let net = core.config.v6?;
    if packet.ttl != HOPS || message.get(1) != Some(&0) {
        return None;
    }
    let is_known = |core: &Core| core.config.is_guest(packet.source);
    match message[0] {
        ROUTER_SOLICITATION if message.len() >= 8 && core.config.service.is_none() => {
            let to = if packet.source.is_unspecified() { None } else { Some((packet.source, mac)) };
            advertise_router(core, to);
            is_known(core).then_some((packet.source, mac))
        }
        SOLICITATION => {
            let target = wire::address_v6(message, 8)?;
            if core.config.owns(target) && v4(target).is_none() && core.limits.neighbour(core.now_ms) {
                advertise(core, target, packet.source, mac);
            }
            is_known(core).then_some((packet.source, mac))
        }
        ADVERTISEMENT => {
            let target = wire::address_v6(message, 8)?;
            let ours = core.config.owns(target) || target == net.host;
            (!ours && core.config.is_guest(target)).then_some((target, mac))
        }
        _ => None,
    }
}

pub fn group_mac(group: Ipv6Addr) -> Mac {
    let [.., a, b, c, d] = group.octets();
    [0x33, 0x33, a, b, c, d] // RFC 2464, 7
}

fn advertise(core: &mut Core, target: Ipv6Addr, asker: Ipv6Addr, mac: Mac) {
    let mut message = [0u8; 32];
    message[0] = ADVERTISEMENT;
    // A router, if we are no service; solicited unless it answers a search for duplicates; this is the address to use.
    message[4] = if asker.is_unspecified() { 0x20 } else { 0x60 } | if core.config.service.is_none() { 0x80 } else { 0 };
    message[8..24].copy_from_slice(&target.octets());
    let own = core.config.mac(target);
    (message[24], message[25]) = (2, 1);
    message[26..32].copy_from_slice(&own);
    let (to, to_mac) = if asker.is_unspecified() { (ALL_NODES, group_mac(ALL_NODES)) } else { (asker, mac) };
    let way = Way { from_mac: own, to_mac, source: target, destination: to };
    icmp::say(core, &way, ICMPV6, HOPS, &mut message);
}

/// Ask who has a guest's address.
pub fn ask(core: &mut Core, guest: Ipv6Addr) {
    let Some(net) = core.config.v6 else { return };
    let source = if guest.segments()[0] & 0xffc0 == 0xfe80 { core.config.router() } else { net.host };
    let [.., b, c, d] = guest.octets();
    let group = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff00 | u16::from(b), u16::from_be_bytes([c, d]));
    let own = core.config.mac(net.host);
    let mut message = [0u8; 32];
    message[0] = SOLICITATION;
    message[8..24].copy_from_slice(&guest.octets());
    (message[24], message[25]) = (1, 1);
    message[26..32].copy_from_slice(&own);
    let way = Way { from_mac: own, to_mac: group_mac(group), source, destination: group };
    icmp::say(core, &way, ICMPV6, HOPS, &mut message);
}

/// Tell everybody where an address of ours is (RFC 4861, 7.2.6).
pub fn announce(core: &mut Core) {
    if let Some(net) = core.config.v6 {
        advertise(core, net.host, Ipv6Addr::UNSPECIFIED, [0; 6]);
    }
}

/// Domains as RFC 8106, 5.2 has them: labels as DNS writes them, zeros up to a multiple of eight. What does not fit, or is no
/// name, is left out.
fn searched(domains: &[String], most: usize) -> Vec<u8> {
    let mut written = Vec::new();
    for domain in domains {
        let labels = || domain.trim_end_matches('.').split('.');
        let len: usize = labels().map(|label| label.len() + 1).sum::<usize>() + 1;
        if labels().any(|label| !(1..=63).contains(&label.len())) || len > 255 || written.len() + len > most {
            continue;
        }
        for label in labels() {
            written.push(label.len() as u8);
            written.extend(label.bytes());
        }
        written.push(0);
    }
    written.resize(written.len().next_multiple_of(8), 0);
    written
}

/// Say that we are the router, to one guest or to all.
pub fn advertise_router(core: &mut Core, to: Option<(Ipv6Addr, Mac)>) {
    let Some(net) = core.config.v6 else { return };
    if !core.limits.neighbour(core.now_ms) {
        return;
    }
    let own = core.config.mac(net.host);
    let mut message = vec![0u8; 16];
    message[0] = ROUTER_ADVERTISEMENT;
    message[4] = 64; // hop limit
    message[5] = if core.config.managed { MANAGED | OTHER } else { 0 };
    // No router where there is nothing behind us.
    put16(&mut message, 6, if core.config.restrict { 0 } else { ROUTER_LIFETIME_S });
    let mut option = |len: usize, write: &dyn Fn(&mut [u8])| {
        let at = message.len();
        message.resize(at + len, 0);
        message[at + 1] = (len / 8) as u8;
        write(&mut message[at..]);
    };
    option(8, &|bytes| {
        bytes[0] = 1;
        bytes[2..8].copy_from_slice(&own);
    });
    option(32, &|bytes| {
        (bytes[0], bytes[2]) = (3, net.prefix as u8);
        bytes[3] = 0x80 | if net.prefix == 64 { 0x40 } else { 0 }; // on link; stateless addresses are of 64 bits
        put32(bytes, 4, VALID_S);
        put32(bytes, 8, PREFERRED_S);
        bytes[16..32].copy_from_slice(&net.net.octets());
    });
    if core.config.mtu >= 1280 {
        let mtu = core.config.mtu.into();
        option(8, &|bytes| {
            bytes[0] = 5;
            put32(bytes, 4, mtu);
        });
    }
    let resolvers: Vec<Ipv6Addr> = core.config.resolvers.iter().copied().filter(|ip| v4(*ip).is_none()).take(8).collect();
    if !resolvers.is_empty() {
        option(8 + 16 * resolvers.len(), &|bytes| {
            bytes[0] = 25;
            put32(bytes, 4, ROUTER_LIFETIME_S.into());
            for (place, resolver) in bytes[8..].chunks_mut(16).zip(&resolvers) {
                place.copy_from_slice(&resolver.octets());
            }
        });
    }
    let search = searched(&core.config.search, SEARCH_MOST);
    if !search.is_empty() {
        option(8 + search.len(), &|bytes| {
            bytes[0] = 31;
            put32(bytes, 4, ROUTER_LIFETIME_S.into());
            bytes[8..8 + search.len()].copy_from_slice(&search);
        });
    }
    let (to, to_mac) = to.unwrap_or((ALL_NODES, group_mac(ALL_NODES)));
    let way = Way { from_mac: own, to_mac, source: core.config.router(), destination: to };
    icmp::say(core, &way, ICMPV6, HOPS, &mut message);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_search_list_is_written_as_dns_writes_names() {
        let domains = ["example.org", "a..b", "lan.", &"x".repeat(64)].map(String::from);
        let mut expected = b"\x07example\x03org\0\x03lan\0".to_vec();
        expected.resize(24, 0);
        assert_eq!(searched(&domains, 896), expected);
        assert_eq!(searched(&domains, 12), b"\x03lan\0\0\0\0");
        assert_eq!(searched(&[], 896), b"");
    }
}
