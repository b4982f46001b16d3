//! The headers of IP and of what it carries: read from a private copy, written into the room of a frame.
//!
//! Reading is total: what is not there is None. Addresses are IPv6 throughout, IPv4 being ::ffff:a.b.c.d; an IPv6
//! packet with such an address is refused. What is written carries a partial checksum where the frame says so
//! in its virtio-net header; the egress of a port that cannot take that completes it.

use std::net::{Ipv4Addr, Ipv6Addr};

use crate::frame::{HEADER, IPV4, IPV6, be16, be32};
use crate::lane::VNET_LEN;
use crate::offload::{NEEDS_CSUM, Sum, VnetHeader};

pub type Mac = [u8; 6];

pub const BROADCAST: Mac = [0xff; 6];
pub const ICMP: u8 = 1;
pub const TCP: u8 = 6;
pub const UDP: u8 = 17;
pub const ICMPV6: u8 = 58;

/// The part of a frame that is copied before it is read: Ethernet, IPv6, extension headers, TCP with all options.
pub const HEAD: usize = 14 + 40 + 256 + 60;
/// Extension headers that are stepped over.
const EXTENSIONS: usize = 8;

/// Is it this host, by an address that means another one elsewhere?
pub fn is_loopback(ip: Ipv6Addr) -> bool {
    v4(ip).map_or(ip.is_loopback(), |ip| ip.is_loopback())
}

pub fn v4(address: Ipv6Addr) -> Option<Ipv4Addr> {
    address.to_ipv4_mapped()
}

/// A fragment's place in its packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fragment {
    pub id: u32,
    pub offset: usize,
    pub more: bool,
}

/// An IP packet in a frame. Offsets count from the beginning of the frame.
#[derive(Debug, Clone, Copy)]
pub struct Packet {
    pub source: Ipv6Addr,
    pub destination: Ipv6Addr,
    pub protocol: u8,
    pub ttl: u8,
    pub transport: usize,
    /// One past the last byte.
    pub end: usize,
    pub fragment: Option<Fragment>,
}

impl Packet {
    pub fn is_v4(&self) -> bool {
        v4(self.source).is_some()
    }

    pub fn payload_len(&self) -> usize {
        self.end - self.transport
    }

    /// Sum of the pseudo-header for what the packet carries.
    pub fn pseudo(&self) -> Sum {
        pseudo(self.source, self.destination, self.protocol, self.payload_len())
    }
}

/// Read the packet of a frame of `len` bytes that begins with `head`.
pub fn packet(head: &[u8], len: usize) -> Option<Packet> {
    match be16(head, 12)? {
        IPV4 => packet_v4(head, len),
        IPV6 => packet_v6(head, len),
        _ => None,
    }
}

fn packet_v4(head: &[u8], len: usize) -> Option<Packet> {
    let ip = head.get(HEADER..)?;
    let first = *ip.first()?;
    let header = usize::from(first & 15) * 4;
    let total = usize::from(be16(ip, 2)?);
    if first >> 4 != 4 || header < 20 || total < header || HEADER + total > len {
        return None;
    }
    if Sum::default().bytes(ip.get(..header)?).checksum() != 0 {
        return None;
    }
    let place = be16(ip, 6)?;
    let fragment = (place & 0x3fff != 0).then_some(Fragment {
        id: be16(ip, 4)?.into(),
        offset: usize::from(place & 0x1fff) * 8,
        more: place & 0x2000 != 0,
    });
    Some(Packet {
        source: address_v4(ip, 12)?,
        destination: address_v4(ip, 16)?,
        protocol: ip[9],
        ttl: ip[8],
        transport: HEADER + header,
        end: HEADER + total,
        fragment,
    })
}

fn packet_v6(head: &[u8], len: usize) -> Option<Packet> {
    let ip = head.get(HEADER..)?;
    let end = HEADER + 40 + usize::from(be16(ip, 4)?);
    if *ip.first()? >> 4 != 6 || end > len {
        return None;
    }
    let (mut protocol, mut at) = (*ip.get(6)?, 40);
    for _ in 0..EXTENSIONS {
        match protocol {
            0 | 43 | 60 => {
                protocol = *ip.get(at)?;
                at += 8 + usize::from(*ip.get(at + 1)?) * 8;
            }
            _ => break,
        }
    }
    let mut fragment = None;
    if protocol == 44 {
        let place = be16(ip, at + 2)?;
        let found = Fragment { id: be32(ip, at + 4)?, offset: usize::from(place & 0xfff8), more: place & 1 != 0 };
        // One that is alone is whole: RFC 6946.
        fragment = (found.offset != 0 || found.more).then_some(found);
        protocol = *ip.get(at)?;
        at += 8;
    }
    if HEADER + at > end {
        return None;
    }
    let (source, destination) = (address_v6(ip, 8)?, address_v6(ip, 24)?);
    if v4(source).is_some() || v4(destination).is_some() {
        return None; // ::ffff:a.b.c.d on the wire would pass for IPv4 here
    }
    Some(Packet { source, destination, protocol, ttl: *ip.get(7)?, transport: HEADER + at, end, fragment })
}

pub fn address_v4(bytes: &[u8], at: usize) -> Option<Ipv6Addr> {
    be32(bytes, at).map(|bits| Ipv4Addr::from(bits).to_ipv6_mapped())
}

pub fn address_v6(bytes: &[u8], at: usize) -> Option<Ipv6Addr> {
    bytes.get(at..)?.first_chunk::<16>().map(|bytes| Ipv6Addr::from(*bytes))
}

pub fn mac(bytes: &[u8], at: usize) -> Option<Mac> {
    bytes.get(at..)?.first_chunk().copied()
}

/// RFC 1071 with the addresses, as RFC 9293, 3.1 and RFC 8200, 8.1 have it.
pub fn pseudo(source: Ipv6Addr, destination: Ipv6Addr, protocol: u8, len: usize) -> Sum {
    let sum = match (v4(source), v4(destination)) {
        (Some(source), Some(destination)) => Sum::default().long(source.into()).long(destination.into()),
        _ => Sum::default().bytes(&source.octets()).bytes(&destination.octets()),
    };
    sum.long(len as u32).word(protocol.into())
}

pub fn put16(bytes: &mut [u8], at: usize, word: u16) {
    bytes[at..at + 2].copy_from_slice(&word.to_be_bytes());
}

pub fn put32(bytes: &mut [u8], at: usize, long: u32) {
    bytes[at..at + 4].copy_from_slice(&long.to_be_bytes());
}

/// What goes before a packet to a guest.
#[derive(Debug, Clone, Copy)]
pub struct Way {
    pub from_mac: Mac,
    pub to_mac: Mac,
    pub source: Ipv6Addr,
    pub destination: Ipv6Addr,
}

/// Room for one frame with its virtio-net header before it.
pub struct Room<'a> {
    bytes: &'a mut [u8],
}

impl<'a> Room<'a> {
    /// `bytes` begins with the virtio-net header.
    pub fn new(bytes: &'a mut [u8]) -> Room<'a> {
        bytes[..VNET_LEN].fill(0);
        Room { bytes }
    }

    pub fn frame(&mut self) -> &mut [u8] {
        &mut self.bytes[VNET_LEN..]
    }

    /// The virtio-net header and the frame.
    pub fn whole(&mut self) -> &mut [u8] {
        self.bytes
    }

    pub fn offload(&mut self, header: VnetHeader) {
        if let Some(bytes) = self.bytes.first_chunk_mut() {
            header.write(bytes);
        }
    }

    /// The checksum at `offset` behind `start` is still to be finished; its field gets the pseudo-header's sum.
    pub fn partial(&mut self, start: usize, offset: usize, pseudo: Sum, more: VnetHeader) {
        put16(self.frame(), start + offset, pseudo.fold());
        self.offload(VnetHeader { flags: NEEDS_CSUM, csum_start: start as u16, csum_offset: offset as u16, ..more });
    }
}

/// Length of the headers that [`headers`] writes.
pub fn headers_len(destination: Ipv6Addr) -> usize {
    HEADER + if v4(destination).is_some() { 20 } else { 40 }
}

/// Write Ethernet and IP headers for `len` bytes of `protocol`; returns where those go.
pub fn headers(frame: &mut [u8], way: &Way, protocol: u8, ttl: u8, len: usize) -> usize {
    frame[..6].copy_from_slice(&way.to_mac);
    frame[6..12].copy_from_slice(&way.from_mac);
    match (v4(way.source), v4(way.destination)) {
        (Some(source), Some(destination)) => {
            put16(frame, 12, IPV4);
            let ip = &mut frame[HEADER..HEADER + 20];
            ip.fill(0);
            ip[0] = 0x45;
            put16(ip, 2, (20 + len) as u16);
            put16(ip, 6, 0x4000); // do not fragment
            ip[8] = ttl;
            ip[9] = protocol;
            ip[12..16].copy_from_slice(&source.octets());
            ip[16..20].copy_from_slice(&destination.octets());
            finish_v4(ip);
            HEADER + 20
        }
        _ => {
            put16(frame, 12, IPV6);
            let ip = &mut frame[HEADER..HEADER + 40];
            ip.fill(0);
            ip[0] = 0x60;
            put16(ip, 4, len as u16);
            ip[6] = protocol;
            ip[7] = ttl;
            ip[8..24].copy_from_slice(&way.source.octets());
            ip[24..40].copy_from_slice(&way.destination.octets());
            HEADER + 40
        }
    }
}

/// As [`headers`], for a fragment of `len` bytes at an offset, which begins where this says.
#[allow(clippy::too_many_arguments)] // the fields of one header
pub fn fragment_headers(frame: &mut [u8], way: &Way, protocol: u8, ttl: u8, len: usize, offset: usize, more: bool, id: u32) -> usize {
    if v4(way.destination).is_some() {
        let at = headers(frame, way, protocol, ttl, len);
        let ip = &mut frame[HEADER..];
        put16(ip, 4, id as u16);
        put16(ip, 6, (offset / 8) as u16 | if more { 0x2000 } else { 0 });
        finish_v4(ip);
        return at;
    }
    let at = headers(frame, way, 44, ttl, 8 + len);
    (frame[at], frame[at + 1]) = (protocol, 0); // RFC 8200, 4.5
    put16(frame, at + 2, offset as u16 | u16::from(more));
    put32(frame, at + 4, id);
    at + 8
}

/// Put the checksum into an IPv4 header without options.
pub fn finish_v4(ip: &mut [u8]) {
    put16(ip, 10, 0);
    let sum = Sum::default().bytes(&ip[..20]).checksum();
    put16(ip, 10, sum);
}

/// Sum `len` bytes that another process may be changing.
///
/// # Safety
/// `at` points to `len` readable bytes.
pub unsafe fn sum_at(mut sum: Sum, at: *const u8, len: usize) -> Sum {
    let mut block = [0u8; 2048];
    let mut done = 0;
    while done < len {
        let part = (len - done).min(block.len());
        // SAFETY: `done + part` is within what the caller promises.
        unsafe { std::ptr::copy_nonoverlapping(at.add(done), block.as_mut_ptr(), part) };
        sum = sum.bytes(&block[..part]);
        done += part;
    }
    sum
}
