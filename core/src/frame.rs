//! What the headers of an Ethernet frame say.
//!
//! Each function reads a slice that a guest may have written and is total: no input makes it panic or loop, and what is not there is None.
//! Nothing is remembered between calls, so a caller pays only for what it asks. A MAC is a u64 of 48 bits in the order of the wire, which makes
//! 01:80:c2:00:00:0e print as 0180c200000e. Fragments of IP count as frames without a transport header, the first one too: a flow's frames
//! must hash alike whether or not they carry their ports.

#![forbid(unsafe_code)]

use std::net::Ipv6Addr;

/// Length of an untagged Ethernet header.
pub const HEADER: usize = 14;
/// What a tag adds to it.
pub const TAG: usize = 4;
/// Ethertype of an 802.1Q tag, the only one that says to which VLAN a frame belongs here.
pub const VLAN: u16 = 0x8100;
/// Ethertype of a provider's tag (802.1ad): payload to the switch, skipped on the way to the IP header.
pub const SERVICE_VLAN: u16 = 0x88a8;
pub const IPV4: u16 = 0x0800;
pub const IPV6: u16 = 0x86dd;
pub const TCP: u8 = 6;
pub const UDP: u8 = 17;
const ICMPV6: u8 = 58;
/// Types of ICMPv6 that are neighbour discovery (RFC 4861, 4).
const NEIGHBOURS: std::ops::RangeInclusive<u8> = 133..=137;

/// Extension headers of IPv6 we are ready to step over; real packets have one or two.
const EXTENSIONS_MAX: usize = 8;

pub fn destination(frame: &[u8]) -> Option<u64> {
    mac(frame, 0)
}

pub fn source(frame: &[u8]) -> Option<u64> {
    mac(frame, 6)
}

/// True for group addresses, broadcast among them.
pub fn is_multicast(mac: u64) -> bool {
    mac & 0x0100_0000_0000 != 0
}

/// The tag control information of IEEE 802.1Q, taken apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tag {
    /// 0 to 4095; 0 is a priority tag, which names no VLAN.
    pub vid: u16,
    /// Priority (3 bits) and drop eligibility (1 bit), 0 to 15.
    pub pcp_dei: u8,
}

impl Tag {
    pub fn from_tci(tci: u16) -> Tag {
        Tag { vid: tci & 0x0fff, pcp_dei: (tci >> 12) as u8 }
    }

    pub fn tci(self) -> u16 {
        u16::from(self.pcp_dei) << 12 | self.vid & 0x0fff
    }
}

/// Read the outer tag of `frame`; None where there is none, or one of another type than 802.1Q.
pub fn tag(frame: &[u8]) -> Option<Tag> {
    match be16(frame, 12)? {
        VLAN => be16(frame, 14).map(Tag::from_tci),
        _ => None,
    }
}

/// Where the payload starts and what it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Payload {
    pub offset: usize,
    pub ethertype: u16,
}

/// Find the payload past at most two tags; a third one is the payload.
pub fn payload(frame: &[u8]) -> Option<Payload> {
    let mut offset = HEADER;
    let mut ethertype = be16(frame, 12)?;
    for _ in 0..2 {
        if ethertype != VLAN && ethertype != SERVICE_VLAN {
            break;
        }
        ethertype = be16(frame, offset + 2)?;
        offset += TAG;
    }
    Some(Payload { offset, ethertype })
}

/// The IP headers of a frame, as far as the transport header. It need not be within the frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Transport {
    /// 4 or 6.
    pub version: u8,
    /// Where the IP header starts.
    pub network: usize,
    /// Where the transport header starts.
    pub offset: usize,
    pub protocol: u8,
}

/// Find the transport header of an IPv4 or IPv6 packet that is no fragment.
pub fn transport(frame: &[u8]) -> Option<Transport> {
    let Payload { offset: network, ethertype } = payload(frame)?;
    let version = frame.get(network)? >> 4;
    let (offset, protocol) = match (ethertype, version) {
        (IPV4, 4) => past_ipv4(frame, network)?,
        (IPV6, 6) => past_ipv6(frame, network)?,
        _ => return None,
    };
    Some(Transport { version, network, offset, protocol })
}

/// RFC 791, section 3.1.
fn past_ipv4(frame: &[u8], network: usize) -> Option<(usize, u8)> {
    let length = usize::from(frame.get(network)? & 0x0f) * 4;
    let is_fragment = be16(frame, network + 6)? & 0x3fff != 0;
    if length < 20 || is_fragment {
        return None;
    }
    Some((network + length, *frame.get(network + 9)?))
}

/// RFC 8200, section 4: hop-by-hop, routing and destination options say their length in units of 8 bytes past the first.
fn past_ipv6(frame: &[u8], network: usize) -> Option<(usize, u8)> {
    let mut offset = network + 40;
    let mut next = *frame.get(network + 6)?;
    for _ in 0..=EXTENSIONS_MAX {
        match next {
            0 | 43 | 60 => {
                next = *frame.get(offset)?;
                offset += 8 + usize::from(*frame.get(offset + 1)?) * 8;
            }
            44 => return None,
            protocol => return Some((offset, protocol)),
        }
    }
    None
}

/// Hash the flow of `frame` so that both of its directions get the same number.
///
/// Addresses and ports of TCP and UDP; addresses alone for the rest of IP and for fragments; MACs for anything else, runts 0. Not keyed: it
/// spreads a load, and who makes collisions slows his own flows.
pub fn flow_hash(frame: &[u8]) -> u32 {
    let Some((one, other)) = ip_addresses(frame).or_else(|| Some((source(frame)?, destination(frame)?))) else {
        return 0;
    };
    let (one_port, other_port) = ports(frame).unwrap_or_default();
    both((one, one_port), (other, other_port))
}

/// By what the flows of a user-mode network are spread: TCP by both of its ends, other IP by who sent it.
///
/// None for what is of no flow: ARP, neighbour discovery, what is no IP. A fragment has no ports, so TCP in fragments goes as other IP.
pub fn spread(frame: &[u8]) -> Option<u32> {
    let (one, other) = ip_addresses(frame)?;
    match transport(frame) {
        Some(Transport { protocol: TCP, offset, .. }) => Some(both((one, be16(frame, offset)?), (other, be16(frame, offset + 2)?))),
        Some(Transport { protocol: ICMPV6, version: 6, offset, .. }) if NEIGHBOURS.contains(frame.get(offset)?) => None,
        _ => Some(alone(one)),
    }
}

/// `spread` of a TCP connection; an address of IPv4 is ::ffff:a.b.c.d.
pub fn spread_of_ends(one: (Ipv6Addr, u16), other: (Ipv6Addr, u16)) -> u32 {
    both((word(one.0), one.1), (word(other.0), other.1))
}

/// `spread` of whatever else comes from an address.
pub fn spread_of_source(source: Ipv6Addr) -> u32 {
    alone(word(source))
}

/// As `ip_addresses` reads it from a header.
fn word(address: Ipv6Addr) -> u64 {
    match address.to_ipv4_mapped() {
        Some(ip) => u32::from(ip).into(),
        None => {
            let bits = u128::from(address);
            mix((bits >> 64) as u64) ^ bits as u64
        }
    }
}

fn alone(address: u64) -> u32 {
    (mix(address) >> 32) as u32
}

/// The same number for both directions.
fn both((one, one_port): (u64, u16), (other, other_port): (u64, u16)) -> u32 {
    // A sum does not mind the order of its terms.
    let sum = mix(one ^ mix(one_port.into())).wrapping_add(mix(other ^ mix(other_port.into())));
    (mix(sum) >> 32) as u32
}

fn ip_addresses(frame: &[u8]) -> Option<(u64, u64)> {
    let Payload { offset, ethertype } = payload(frame)?;
    let long = |at| Some(mix(be64(frame, at)?) ^ be64(frame, at + 8)?);
    match ethertype {
        IPV4 => Some((be32(frame, offset + 12)?.into(), be32(frame, offset + 16)?.into())),
        IPV6 => Some((long(offset + 8)?, long(offset + 24)?)),
        _ => None,
    }
}

fn ports(frame: &[u8]) -> Option<(u16, u16)> {
    let Transport { offset, protocol, .. } = transport(frame)?;
    if protocol != TCP && protocol != UDP {
        return None;
    }
    Some((be16(frame, offset)?, be16(frame, offset + 2)?))
}

/// The finaliser of splitmix64: each bit of `x` moves each bit of the result.
fn mix(mut x: u64) -> u64 {
    x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    x = (x ^ x >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ x >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ x >> 31
}

fn mac(frame: &[u8], at: usize) -> Option<u64> {
    let bytes = frame.get(at..at + 6)?;
    Some(bytes.iter().fold(0, |mac, &byte| mac << 8 | u64::from(byte)))
}

pub(crate) fn be16(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..)?.first_chunk().map(|word| u16::from_be_bytes(*word))
}

pub(crate) fn be32(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().map(|word| u32::from_be_bytes(*word))
}

fn be64(bytes: &[u8], at: usize) -> Option<u64> {
    bytes.get(at..)?.first_chunk().map(|word| u64::from_be_bytes(*word))
}
