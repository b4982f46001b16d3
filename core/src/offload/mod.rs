//! The offloads of a frame: a checksum still to be finished, a super-frame still to be cut.
//!
//! Every frame of a lab travels with a virtio-net header (VIRTIO 1.2, clause 5.1.6), and a TCP super-frame of 64 KiB crosses from one TAP to another
//! uncut and unsummed. Only the egress of a port that cannot take it does the work that the header asks for.
//!
//! Ingress calls [`check`] once, which answers for the frame on all of its way: what it accepts can be completed or cut by anybody. The functions
//! that do the work check again, since the frame may have lain in memory that another process can write; so they are total as well.
//!
//! A partial checksum field holds the sum of the pseudo-header, and we trust it, as the kernel and every network card do: the one who lied gets
//! his own frame back damaged. What cannot be trusted is *where* the field is, else a guest writes its next VLAN tag or the destination of its
//! frame with it: a checksum starts past the Ethernet header and the tags.
//!
//! Not done: UFO (gone from Linux since 4.14), tunnels (inner super-frames), RSC, and a super-frame with three tags, with fragments or with an
//! extension header other than hop-by-hop, routing and destination options.

#![forbid(unsafe_code)]

mod checksum;
mod guess;
mod join;
mod segment;

pub use checksum::{Sum, sum};
pub use guess::guess;
pub use join::Joint;
pub use segment::segment;

use crate::frame::{self, be16};
use segment::Cut;

/// Length of the header on the wire; the `num_buffers` of VIRTIO_NET_F_MRG_RXBUF is the business of who negotiated it.
pub const LEN: usize = 10;

pub const NEEDS_CSUM: u8 = 1;
pub const DATA_VALID: u8 = 2;

pub const GSO_NONE: u8 = 0;
pub const GSO_TCPV4: u8 = 1;
pub const GSO_UDP: u8 = 3;
pub const GSO_TCPV6: u8 = 4;
pub const GSO_UDP_L4: u8 = 5;
/// Beside GSO_TCPV4 or GSO_TCPV6: the TCP header has CWR set.
pub const GSO_ECN: u8 = 0x80;

/// Headers of a frame that asks for work are no longer than this, from the destination address to the last option of TCP.
pub const HEADERS_MAX: usize = 512;
/// Room for the headers of one segment.
pub type Scratch = [u8; HEADERS_MAX];

/// 64 KiB at an MSS of 32; Linux does not go below 48 (net.ipv4.tcp_min_snd_mss, options included). One frame of a guest must not become 65,535.
const TCP_SEGMENTS_MAX: usize = 2048;
const UDP_SEGMENTS_MAX: usize = 128; // UDP_MAX_SEGMENTS of Linux
const TCP_CHECKSUM: u16 = 16; // RFC 9293, section 3.1
const UDP_CHECKSUM: u16 = 6; // RFC 768

/// Why a frame does not fit its header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bad {
    /// A field points past the end of the frame, or the IP header says more than there is.
    Length,
    /// The checksum would lie in the Ethernet header, or elsewhere than the kind of super-frame has it, or a super-frame comes without one.
    Checksum,
    /// UFO, or a `gso_type` nobody knows.
    Kind,
    /// `gso_size` is 0, or makes too many segments, or one longer than an IP packet may be.
    Size,
    /// The headers that `gso_type` says are not there.
    Headers,
}

/// The virtio-net header. The default one asks for nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VnetHeader {
    pub flags: u8,
    pub gso_type: u8,
    /// A hint, and a wrong one often enough: the kernel puts the length of its linear buffer there.
    pub hdr_len: u16,
    pub gso_size: u16,
    pub csum_start: u16,
    pub csum_offset: u16,
}

impl VnetHeader {
    /// Flags that we do not know are left behind, so that they never reach another guest (VIRTIO 1.2, clause 5.1.6.2.2).
    pub fn read(bytes: &[u8; LEN]) -> VnetHeader {
        let word = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        VnetHeader {
            flags: bytes[0] & (NEEDS_CSUM | DATA_VALID),
            gso_type: bytes[1],
            hdr_len: word(2),
            gso_size: word(4),
            csum_start: word(6),
            csum_offset: word(8),
        }
    }

    pub fn write(&self, bytes: &mut [u8; LEN]) {
        bytes[0] = self.flags;
        bytes[1] = self.gso_type;
        for (at, word) in [(2, self.hdr_len), (4, self.gso_size), (6, self.csum_start), (8, self.csum_offset)] {
            bytes[at..at + 2].copy_from_slice(&word.to_le_bytes());
        }
    }

    /// True where a port without offloads has work to do.
    pub fn is_partial(&self) -> bool {
        self.gso_type != GSO_NONE || self.flags & NEEDS_CSUM != 0
    }
}

/// Say whether `header` can be true of `frame`.
pub fn check(header: &VnetHeader, frame: &[u8]) -> Result<(), Bad> {
    check_top(header, &frame[..frame.len().min(HEADERS_MAX)], frame.len())
}

/// The same of a frame of `length` bytes, of which `top` has the first HEADERS_MAX, or all.
pub fn check_top(header: &VnetHeader, top: &[u8], length: usize) -> Result<(), Bad> {
    plan(header, top, length).map(|_| ())
}

/// Finish the checksum of a frame that is no super-frame, where `header` asks for it; the header is done with then.
pub fn complete(header: &VnetHeader, frame: &mut [u8]) -> Result<(), Bad> {
    match plan(header, &frame[..frame.len().min(HEADERS_MAX)], frame.len())? {
        Plan::Nothing => Ok(()),
        Plan::Checksum { start, field } => {
            let checksum = Sum::default().bytes(&frame[start..]).checksum();
            put(frame, field, never_zero(checksum));
            Ok(())
        }
        Plan::Cut(_) => Err(Bad::Kind),
    }
}

/// Move the offsets of `header` with its frame's payload: 4 where a tag was put in, -4 where one was taken out.
pub fn shift(header: &mut VnetHeader, by: i32) {
    let moved = |at: u16| (i32::from(at).saturating_add(by)).clamp(0, u16::MAX.into()) as u16;
    if header.flags & NEEDS_CSUM != 0 {
        header.csum_start = moved(header.csum_start);
    }
    if header.hdr_len != 0 {
        header.hdr_len = moved(header.hdr_len);
    }
}

/// The work that a header asks for, its offsets checked.
enum Plan {
    Nothing,
    /// Sum from `start` to the end into the two bytes at `field`.
    Checksum {
        start: usize,
        field: usize,
    },
    Cut(Cut),
}

/// Check `header` against `top`, the first HEADERS_MAX bytes of a frame of `length` bytes.
fn plan(header: &VnetHeader, top: &[u8], length: usize) -> Result<Plan, Bad> {
    // A TAP refuses such a frame with EINVAL, whatever else the header says.
    if usize::from(header.hdr_len) > length {
        return Err(Bad::Length);
    }
    if !header.is_partial() {
        return Ok(Plan::Nothing);
    }
    if header.flags & NEEDS_CSUM == 0 {
        return Err(Bad::Checksum);
    }
    let start = usize::from(header.csum_start);
    let field = start + usize::from(header.csum_offset);
    if field + 2 > top.len() {
        return Err(Bad::Length);
    }
    if start < frame::payload(top).ok_or(Bad::Headers)?.offset {
        return Err(Bad::Checksum);
    }
    if header.gso_type == GSO_NONE {
        return Ok(Plan::Checksum { start, field });
    }
    cut(header, top, length).map(Plan::Cut)
}

/// Find the headers and the payload of a super-frame.
fn cut(header: &VnetHeader, top: &[u8], length: usize) -> Result<Cut, Bad> {
    let (version, protocol, checksum, segments_max) = match (header.gso_type & !GSO_ECN, header.gso_type & GSO_ECN) {
        (GSO_TCPV4, _) => (Some(4), frame::TCP, TCP_CHECKSUM, TCP_SEGMENTS_MAX),
        (GSO_TCPV6, _) => (Some(6), frame::TCP, TCP_CHECKSUM, TCP_SEGMENTS_MAX),
        (GSO_UDP_L4, 0) => (None, frame::UDP, UDP_CHECKSUM, UDP_SEGMENTS_MAX),
        _ => return Err(Bad::Kind),
    };
    let ip = frame::transport(top).ok_or(Bad::Headers)?;
    if ip.protocol != protocol || version.is_some_and(|version| version != ip.version) {
        return Err(Bad::Headers);
    }
    if usize::from(header.csum_start) != ip.offset || header.csum_offset != checksum {
        return Err(Bad::Checksum);
    }
    let transport_length = match protocol {
        frame::TCP => usize::from(top.get(ip.offset + 12).ok_or(Bad::Headers)? >> 4) * 4,
        _ => 8,
    };
    let payload = ip.offset + transport_length;
    let end = end(top, &ip, length)?;
    if (protocol == frame::TCP && transport_length < 20) || payload > top.len() || payload > end {
        return Err(Bad::Headers);
    }
    let size = usize::from(header.gso_size);
    let packet_max = payload - ip.network + size.min(end - payload);
    if size == 0 || (end - payload).div_ceil(size) > segments_max || packet_max > usize::from(u16::MAX) {
        return Err(Bad::Size);
    }
    Ok(Cut { ip, payload, end, size })
}

/// Where the IP packet of a super-frame ends; what follows is padding.
///
/// A length of 0 stands for one that its 16 bits cannot say (and for a driver that left it to the card): the packet ends with the frame.
fn end(top: &[u8], ip: &frame::Transport, length: usize) -> Result<usize, Bad> {
    let (at, uncounted) = if ip.version == 4 { (2, 0) } else { (4, 40) };
    match be16(top, ip.network + at).ok_or(Bad::Headers)? {
        0 => Ok(length),
        said if ip.network + uncounted + usize::from(said) > length => Err(Bad::Length),
        said => Ok(ip.network + uncounted + usize::from(said)),
    }
}

/// 0xffff for 0, the same number in ones' complement: a UDP checksum of 0 would say that there is none (RFC 768). TCP does not mind.
fn never_zero(checksum: u16) -> u16 {
    if checksum == 0 { 0xffff } else { checksum }
}

fn put(bytes: &mut [u8], at: usize, word: u16) {
    bytes[at..at + 2].copy_from_slice(&word.to_be_bytes());
}
