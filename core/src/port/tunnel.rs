//! What stands before a frame in a datagram: the headers of VXLAN and of L2TPv3, and where VXLAN sends to.
//!
//! VXLAN (RFC 7348) has many far ends. Behind which of them a station is, is learnt from where its frames come, kept for 300 s, for at
//! most STATIONS_MOST stations; what is not known goes to all (head-end replication) or to a group. Where the far ends are listed,
//! nobody else is heard. L2TPv3 (RFC 3931) has one far end, and who sends is asked for the session and the cookie alone, as QEMU does.

#![forbid(unsafe_code)]

use std::collections::HashMap;

use crate::frame;
use crate::ports::Cause;

/// The longest header: IPv4 with options, version, session, cookie, counter, offset.
pub const HEAD_MOST: usize = 60 + 4 + 4 + 8 + 4 + 256;
const VXLAN_HEAD: usize = 8;
/// The flag that says that there is a VNI (RFC 7348, 5); the other ones are ignored.
const HAS_VNI: u8 = 0x08;
const STATIONS_MOST: usize = 16 << 10;
const STATION_AGE_S: u32 = 300; // as the switch's own table

/// An address of IPv4 or IPv6 with a port, as the kernel takes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Far {
    bytes: [u8; 28],
    len: u8,
}

impl Far {
    /// None where the bytes are no struct sockaddr_in or sockaddr_in6.
    pub fn new(bytes: &[u8]) -> Option<Far> {
        let family = i32::from(u16::from_ne_bytes(*bytes.first_chunk()?));
        if (family, bytes.len()) != (libc::AF_INET, 16) && (family, bytes.len()) != (libc::AF_INET6, 28) {
            return None;
        }
        let mut far = Far { bytes: [0; 28], len: bytes.len() as u8 };
        far.bytes[..bytes.len()].copy_from_slice(bytes);
        Some(far)
    }

    pub fn bytes(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len)]
    }

    /// The address alone.
    fn host(&self) -> &[u8] {
        if self.len == 16 { &self.bytes[4..8] } else { &self.bytes[8..24] }
    }

    fn with_port_of(mut self, other: &Far) -> Far {
        self.bytes[2..4].copy_from_slice(&other.bytes[2..4]);
        self
    }
}

struct Station {
    far: Far,
    heard_s: u32,
}

/// The far ends of a VXLAN segment.
pub struct Vxlan {
    head: [u8; VXLAN_HEAD],
    /// Where goes what is for everybody or for somebody unknown: all far ends, or a group.
    everybody: Vec<Far>,
    /// Are they all there are?
    closed: bool,
    /// Frames with an 802.1Q tag pass.
    tags: bool,
    /// By VLAN (16 bits) and address (48 bits).
    stations: HashMap<u64, Station>,
    swept_s: u32,
}

impl Vxlan {
    /// `everybody` is not empty.
    pub fn new(vni: u32, everybody: Vec<Far>, closed: bool, tags: bool) -> Vxlan {
        let mut head = [HAS_VNI, 0, 0, 0, 0, 0, 0, 0];
        head[4..7].copy_from_slice(&vni.to_be_bytes()[1..]);
        Vxlan { head, everybody, closed, tags, stations: HashMap::new(), swept_s: 0 }
    }

    fn open(&mut self, datagram: &[u8], name: &[u8], now_s: u32) -> Result<usize, Cause> {
        let head: [u8; VXLAN_HEAD] = *datagram.first_chunk().ok_or(Cause::BadHeader)?;
        if head[0] & HAS_VNI == 0 {
            return Err(Cause::BadHeader);
        }
        let from = Far::new(name).ok_or(Cause::Foreign)?;
        if head[4..7] != self.head[4..7] || self.closed && !self.everybody.iter().any(|far| far.host() == from.host()) {
            return Err(Cause::Foreign);
        }
        let frame = &datagram[VXLAN_HEAD..];
        if !self.tags && is_tagged(frame) {
            return Err(Cause::Vlan);
        }
        if let Some(source) = frame::source(frame).filter(|&source| source != 0 && !frame::is_multicast(source)) {
            self.learn(key(source, frame), from.with_port_of(&self.everybody[0]), now_s);
        }
        Ok(VXLAN_HEAD)
    }

    fn learn(&mut self, key: u64, far: Far, now_s: u32) {
        if let Some(known) = self.stations.get_mut(&key) {
            *known = Station { far, heard_s: now_s };
            return;
        }
        if self.stations.len() >= STATIONS_MOST && self.swept_s != now_s {
            self.swept_s = now_s;
            self.stations.retain(|_, station| !station.is_old(now_s));
        }
        if self.stations.len() < STATIONS_MOST {
            self.stations.insert(key, Station { far, heard_s: now_s });
        }
    }

    /// Where the frame goes.
    fn route(&self, frame: &[u8], now_s: u32) -> &[Far] {
        let Some(destination) = frame::destination(frame).filter(|&destination| !frame::is_multicast(destination)) else {
            return &self.everybody;
        };
        match self.stations.get(&key(destination, frame)) {
            Some(station) if !station.is_old(now_s) => std::slice::from_ref(&station.far),
            _ => &self.everybody,
        }
    }
}

impl Station {
    fn is_old(&self, now_s: u32) -> bool {
        now_s.wrapping_sub(self.heard_s) > STATION_AGE_S
    }
}

fn key(mac: u64, head: &[u8]) -> u64 {
    u64::from(frame::tag(head).map_or(0, |tag| tag.vid)) << 48 | mac
}

fn is_tagged(frame: &[u8]) -> bool {
    matches!(frame::be16(frame, 12), Some(frame::VLAN | frame::SERVICE_VLAN))
}

/// One L2TPv3 session: the header that goes out, and what one that comes in has to hold.
pub struct L2tpv3 {
    /// As it goes out, the bytes of `offset` zero.
    pub head: Vec<u8>,
    /// Where in it the counter is, which the datagrams count from 1 on.
    pub counter: Option<usize>,
    /// The session and the cookie that are ours to hear.
    pub expected: Vec<u8>,
    /// How much stands between them and the frame.
    pub rest: usize,
    /// Over UDP the word with the version comes first (RFC 3931, 4.1.2.1).
    pub udp: bool,
    /// A raw socket of IPv4 hands over the IP header too.
    pub has_ip_header: bool,
    pub count: u32,
}

impl L2tpv3 {
    fn open(&self, datagram: &[u8]) -> Result<usize, Cause> {
        let mut at = 0;
        if self.has_ip_header {
            at = 4 * usize::from(datagram.first().ok_or(Cause::BadHeader)? & 0x0f);
        }
        if self.udp {
            // A data message (T = 0) of version 3; the other bits are reserved.
            let word: [u8; 4] = *datagram.get(at..).and_then(<[u8]>::first_chunk).ok_or(Cause::BadHeader)?;
            if word[0] & 0x80 != 0 || word[1] & 0x0f != 3 {
                return Err(Cause::BadHeader);
            }
            at += word.len();
        }
        let named = datagram.get(at..at + self.expected.len()).ok_or(Cause::BadHeader)?;
        if named != self.expected {
            return Err(Cause::Foreign);
        }
        at += named.len() + self.rest;
        if at > datagram.len() { Err(Cause::BadHeader) } else { Ok(at) }
    }
}

pub enum Tunnel {
    Vxlan(Vxlan),
    L2tpv3(L2tpv3),
}

impl Tunnel {
    /// How long the header is of what a datagram from `name` holds; the frame is what follows.
    pub fn open(&mut self, datagram: &[u8], name: &[u8], now_s: u32) -> Result<usize, Cause> {
        match self {
            Tunnel::Vxlan(vxlan) => vxlan.open(datagram, name, now_s),
            Tunnel::L2tpv3(session) => session.open(datagram),
        }
    }

    pub fn head_len(&self) -> usize {
        match self {
            Tunnel::Vxlan(_) => VXLAN_HEAD,
            Tunnel::L2tpv3(session) => session.head.len(),
        }
    }

    /// Write the header of the next datagram.
    pub fn write_head(&mut self, out: &mut Vec<u8>) {
        match self {
            Tunnel::Vxlan(vxlan) => out.extend_from_slice(&vxlan.head),
            Tunnel::L2tpv3(session) => {
                let begin = out.len();
                out.extend_from_slice(&session.head);
                if let Some(at) = session.counter {
                    session.count = session.count.wrapping_add(1);
                    out[begin + at..begin + at + 4].copy_from_slice(&session.count.to_be_bytes());
                }
            }
        }
    }

    /// Where the frame goes; None: to the one far end there is.
    pub fn route(&self, frame: &[u8], now_s: u32) -> Option<&[Far]> {
        match self {
            Tunnel::Vxlan(vxlan) => Some(vxlan.route(frame, now_s)),
            Tunnel::L2tpv3(_) => None,
        }
    }

    /// Has the kernel a device that is the other end?
    pub fn is_of_kernels(&self) -> bool {
        matches!(self, Tunnel::Vxlan(_))
    }

    /// Do frames with a tag pass?
    pub fn takes_tags(&self) -> bool {
        !matches!(self, Tunnel::Vxlan(Vxlan { tags: false, .. }))
    }
}
