//! Join TCP segments that follow each other into the super-frame that they were cut from: `segment` backwards.
//!
//! For what comes out of a tunnel in one piece: a TAP takes it by one write, and the receiver's stack looks at one header. Joined is what
//! segmentation would cut to the same frames again: one flow, one length but for the last, the same headers but for what numbers
//! them, and checksums that are right, since nobody looks at them any more afterwards. A frame that is not so stays as it is.

use std::ops::Range;

use super::{GSO_ECN, GSO_TCPV4, GSO_TCPV6, NEEDS_CSUM, Sum, TCP_CHECKSUM, VnetHeader, put};
use crate::frame::{self, Transport, be16, be32};

const FIN: u8 = 0x01;
const PSH: u8 = 0x08;
const ACK: u8 = 0x10;
const ECE: u8 = 0x40;
const CWR: u8 = 0x80;
const DONT_FRAGMENT: u16 = 0x4000;
/// What the length of an IP packet can say.
const PACKET_MOST: usize = 65_535;

/// A super-frame in the making.
pub struct Joint {
    ip: Transport,
    /// Where the payload starts.
    payload: usize,
    /// Payload of each segment but the last.
    size: usize,
    len: usize,
    segments: usize,
    /// The flags of the last segment.
    flags: u8,
}

impl Joint {
    /// Begin with a segment; None where no other one could be joined to it.
    pub fn begin(first: &[u8]) -> Option<Joint> {
        let (ip, payload) = parse(first)?;
        let flags = first[ip.offset + 13];
        let joint = Joint { ip, payload, size: first.len() - payload, len: first.len(), segments: 1, flags };
        (flags & ACK != 0 && flags & !(ACK | ECE | CWR) == 0 && is_right(first, &ip)).then_some(joint)
    }

    /// How long the frame is that lies at the start of the buffer.
    pub fn frame_len(&self) -> usize {
        self.len
    }

    /// Join the segment that lies at `next`, behind the frame; false where it is none that continues it.
    pub fn append(&mut self, buffer: &mut [u8], next: Range<usize>) -> bool {
        if !self.continues(buffer, &buffer[next.clone()]) {
            return false;
        }
        self.flags = buffer[next.start + self.ip.offset + 13];
        buffer.copy_within(next.start + self.payload..next.end, self.len);
        self.len += next.len() - self.payload;
        self.segments += 1;
        true
    }

    fn continues(&self, first: &[u8], next: &[u8]) -> bool {
        let Some((ip, payload)) = parse(next) else { return false };
        let (network, transport) = (ip.network, ip.offset);
        let sent = self.len - self.payload;
        let more = next.len() - payload;
        let same = |range: Range<usize>| first[range.clone()] == next[range];
        let number = |frame: &[u8]| be32(frame, transport + 4).unwrap_or_default();
        let flags = next[transport + 13];
        (ip, payload) == (self.ip, self.payload)
            && sent == self.segments * self.size
            && self.flags & (PSH | FIN) == 0
            && (1..=self.size).contains(&more)
            && self.len + more - network <= PACKET_MOST
            && same(0..network)
            && match ip.version {
                4 => {
                    same(network..network + 2)
                        && same(network + 6..network + 10)
                        && same(network + 12..transport)
                        && self.is_next(first, next)
                }
                _ => same(network..network + 4) && same(network + 6..transport),
            }
            && same(transport..transport + 4)
            && number(next) == number(first).wrapping_add(sent as u32)
            && same(transport + 8..transport + 13)
            && flags & !(PSH | FIN) == first[transport + 13] & !CWR
            && same(transport + 14..transport + 16)
            && same(transport + 18..payload)
            && is_right(next, &ip)
    }

    /// Does the identification count on, or mean nothing (RFC 6864)?
    fn is_next(&self, first: &[u8], next: &[u8]) -> bool {
        let id = |frame: &[u8]| be16(frame, self.ip.network + 4).unwrap_or_default();
        let atomic = be16(first, self.ip.network + 6).unwrap_or_default() & DONT_FRAGMENT != 0;
        atomic || id(next) == id(first).wrapping_add(self.segments as u16)
    }

    /// Give the frame the headers of the whole; returns its virtio-net header.
    pub fn finish(self, frame: &mut [u8]) -> VnetHeader {
        if self.segments == 1 {
            return VnetHeader::default();
        }
        let Transport { network, offset: transport, version, .. } = self.ip;
        let length = self.len - network;
        let gso_type = if version == 4 {
            put(frame, network + 2, length as u16);
            put(frame, network + 10, 0);
            let checksum = Sum::default().bytes(&frame[network..transport]).checksum();
            put(frame, network + 10, checksum);
            GSO_TCPV4
        } else {
            put(frame, network + 4, (length - 40) as u16);
            GSO_TCPV6
        };
        let ecn = if frame[transport + 13] & CWR != 0 { GSO_ECN } else { 0 };
        frame[transport + 13] |= self.flags & (PSH | FIN);
        let pseudo = pseudo(frame, &self.ip, self.len).fold();
        put(frame, transport + usize::from(TCP_CHECKSUM), pseudo);
        VnetHeader {
            flags: NEEDS_CSUM,
            gso_type: gso_type | ecn,
            hdr_len: self.payload as u16,
            gso_size: self.size as u16,
            csum_start: transport as u16,
            csum_offset: TCP_CHECKSUM,
        }
    }
}

/// Where the headers of a TCP segment are that has a payload and nothing behind it.
fn parse(frame: &[u8]) -> Option<(Transport, usize)> {
    let ip = frame::transport(frame).filter(|ip| ip.protocol == frame::TCP)?;
    let header = usize::from(frame.get(ip.offset + 12)? >> 4) * 4;
    let payload = ip.offset + header;
    let said = match ip.version {
        4 => usize::from(be16(frame, ip.network + 2)?),
        _ => 40 + usize::from(be16(frame, ip.network + 4)?),
    };
    (header >= 20 && payload < frame.len() && ip.network + said == frame.len()).then_some((ip, payload))
}

/// Are the checksums right?
fn is_right(frame: &[u8], ip: &Transport) -> bool {
    let header = ip.version == 6 || Sum::default().bytes(&frame[ip.network..ip.offset]).fold() == 0xffff;
    header && pseudo(frame, ip, frame.len()).bytes(&frame[ip.offset..]).fold() == 0xffff
}

/// The sum of the pseudo-header of a frame that is `len` bytes long (RFC 9293, 3.1; RFC 8200, 8.1).
pub(super) fn pseudo(frame: &[u8], ip: &Transport, len: usize) -> Sum {
    let addresses = if ip.version == 4 { ip.network + 12..ip.network + 20 } else { ip.network + 8..ip.network + 40 };
    Sum::default().bytes(&frame[addresses]).word(ip.protocol.into()).long((len - ip.offset) as u32)
}
