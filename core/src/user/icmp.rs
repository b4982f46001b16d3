//! ICMP and ICMPv6 (RFC 792, RFC 4443): the host address answers echo itself, and errors are written for guests.
//!
//! An error carries the packet it is about as the guest sent it, not as the host saw it. None is written about an ICMP
//! error, a fragment but the first, or a group address. Echo to the outside is ping.rs, neighbour discovery ndp.rs.

use std::net::Ipv6Addr;

use super::Core;
use super::fragments;
use super::wire::{self, ICMP, ICMPV6, Mac, Packet, Way, put16, put32, v4};
use crate::offload::Sum;

pub const ECHO_REPLY: u8 = 0;
pub const ECHO: u8 = 8;
pub const ECHO_V6: u8 = 128;
pub const ECHO_REPLY_V6: u8 = 129;
const TTL: u8 = 255;
/// Most of a packet that an error quotes: 8 bytes behind the header suffice everywhere.
const QUOTE: usize = 128;

/// What an error is about, in both families' words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trouble {
    NoNetwork,
    NoHost,
    NoPort,
    Forbidden,
    TooBig(u32),
    TimeExceeded,
    /// As another router said it: type, code, and the word behind the checksum.
    Said(u8, u8, u32),
}

impl Trouble {
    pub fn of(errno: i32) -> Trouble {
        match errno {
            libc::ENETUNREACH | libc::EAFNOSUPPORT | libc::EADDRNOTAVAIL => Trouble::NoNetwork,
            libc::ECONNREFUSED => Trouble::NoPort,
            libc::EACCES | libc::EPERM => Trouble::Forbidden,
            _ => Trouble::NoHost,
        }
    }

    /// Type, code, and the word behind the checksum.
    fn written(self, is_v4: bool) -> (u8, u8, u32) {
        match (self, is_v4) {
            (Trouble::NoNetwork, true) => (3, 0, 0),
            (Trouble::NoHost, true) => (3, 1, 0),
            (Trouble::NoPort, true) => (3, 3, 0),
            (Trouble::TooBig(mtu), true) => (3, 4, mtu.min(0xffff)),
            (Trouble::Forbidden, true) => (3, 13, 0),
            (Trouble::TimeExceeded, true) => (11, 0, 0),
            (Trouble::NoNetwork, false) => (1, 0, 0),
            (Trouble::Forbidden, false) => (1, 1, 0),
            (Trouble::NoHost, false) => (1, 3, 0),
            (Trouble::NoPort, false) => (1, 4, 0),
            (Trouble::TooBig(mtu), false) => (2, 0, mtu),
            (Trouble::TimeExceeded, false) => (3, 0, 0),
            (Trouble::Said(kind, code, word), _) => (kind, code, word),
        }
    }
}

/// Answer an echo request to the host address. `message` is ICMP's part of the packet.
pub fn echo(core: &mut Core, packet: &Packet, mac: Mac, message: &[u8]) {
    let mut reply = message.to_vec();
    let protocol = if packet.is_v4() {
        reply[0] = ECHO_REPLY;
        ICMP
    } else {
        reply[0] = ECHO_REPLY_V6;
        ICMPV6
    };
    let way = core.way(packet.destination, packet.source, mac);
    say(core, &way, protocol, TTL, &mut reply);
}

/// Send an ICMP message whose checksum is to be filled in, in fragments where it has to be.
pub fn say(core: &mut Core, way: &Way, protocol: u8, ttl: u8, message: &mut [u8]) {
    put16(message, 2, 0);
    let sum = if protocol == ICMP { Sum::default() } else { wire::pseudo(way.source, way.destination, protocol, message.len()) };
    let sum = sum.bytes(message).checksum();
    put16(message, 2, sum);
    fragments::say(core, way, protocol, ttl, message);
}

/// Tell a guest that what it sent to `far` did not arrive; `first` are the first bytes behind its IP header.
pub fn unreachable(core: &mut Core, guest: Ipv6Addr, far: Ipv6Addr, mac: Mac, protocol: u8, first: &[u8], errno: i32) {
    let Some(from) = core.config.subnet(guest).map(|net| net.host) else { return };
    error(core, from, guest, far, mac, protocol, first, Trouble::of(errno));
}

/// Tell a guest about a packet of its own, in the name of `from`.
#[allow(clippy::too_many_arguments)] // the parts of one packet
pub fn error(core: &mut Core, from: Ipv6Addr, guest: Ipv6Addr, far: Ipv6Addr, mac: Mac, protocol: u8, first: &[u8], trouble: Trouble) {
    if !core.limits.icmp(core.now_ms) {
        return;
    }
    let is_v4 = v4(guest).is_some();
    let (kind, code, word) = trouble.written(is_v4);
    let first = &first[..first.len().min(QUOTE - 40)];
    let mut message = [0u8; 8 + 14 + QUOTE];
    // The quoted header is written with its Ethernet header, which the fields of ICMP then cover.
    let quoted = Way { from_mac: [0; 6], to_mac: [0; 6], source: guest, destination: far };
    let at = wire::headers(&mut message[8..], &quoted, protocol, 1, first.len());
    message[8 + at..8 + at + first.len()].copy_from_slice(first);
    let end = 8 + at + first.len();
    message.copy_within(8 + 14..end, 8);
    message[..8].fill(0);
    (message[0], message[1]) = (kind, code);
    put32(&mut message, 4, word);
    let way = core.way(from, guest, mac);
    say(core, &way, if is_v4 { ICMP } else { ICMPV6 }, TTL, &mut message[..end - 14]);
}
