//! Fragments of IP: packets of guests put together, packets to guests cut.
//!
//! Putting together is bounded in datagrams, in bytes and in time, and each datagram in its number of pieces. Any piece
//! may come first, last or alone. Pieces that overlap give up their datagram (RFC 5722, which is right for IPv4 too); a
//! piece that repeats another exactly is dropped.

use std::net::Ipv6Addr;

use super::Core;
use super::wire::{self, Fragment, Packet, Way};
use crate::frame::HEADER;

const DATAGRAMS: usize = 64;
const BYTES: usize = 1 << 20;
const PIECES: usize = 64;
const PATIENCE_MS: u64 = 15_000;
const PACKET_MOST: usize = 65_535;

#[derive(Clone, Copy, PartialEq, Eq)]
struct Name {
    source: Ipv6Addr,
    destination: Ipv6Addr,
    id: u32,
    protocol: u8,
}

struct Datagram {
    name: Name,
    begun_ms: u64,
    /// Offset and bytes of each piece, in order.
    pieces: Vec<(usize, Vec<u8>)>,
    /// Length of the whole, once the last piece was seen.
    len: Option<usize>,
    ttl: u8,
}

#[derive(Default)]
pub struct Reassembly {
    open: Vec<Datagram>,
    bytes: usize,
}

impl Reassembly {
    /// Add a fragment; returns the frame of a packet that is whole now.
    pub fn add(&mut self, packet: &Packet, fragment: Fragment, frame: &[u8], now_ms: u64) -> Option<Vec<u8>> {
        self.give_up(|datagram| now_ms.saturating_sub(datagram.begun_ms) > PATIENCE_MS);
        let data = frame.get(packet.transport..packet.end)?;
        let end = fragment.offset + data.len();
        let most = if packet.is_v4() { PACKET_MOST - 20 } else { PACKET_MOST }; // IPv6's length is without the header
        let bad = data.is_empty() || (fragment.more && data.len() % 8 != 0) || end > most;
        let name = Name { source: packet.source, destination: packet.destination, id: fragment.id, protocol: packet.protocol };
        let at = self.open.iter().position(|open| open.name == name);
        if bad || (at.is_none() && self.open.len() >= DATAGRAMS) || self.bytes + data.len() > BYTES {
            return None;
        }
        let at = at.unwrap_or_else(|| {
            self.open.push(Datagram { name, begun_ms: now_ms, pieces: Vec::new(), len: None, ttl: packet.ttl });
            self.open.len() - 1
        });
        let datagram = &mut self.open[at];
        let place = datagram.pieces.partition_point(|(offset, _)| *offset < fragment.offset);
        if datagram.pieces.get(place).is_some_and(|(offset, piece)| *offset == fragment.offset && piece == data) {
            return None;
        }
        let before = place.checked_sub(1).map(|place| &datagram.pieces[place]);
        let overlaps = before.is_some_and(|(offset, piece)| offset + piece.len() > fragment.offset)
            || datagram.pieces.get(place).is_some_and(|(offset, _)| *offset < end);
        let contradicts = match datagram.len {
            Some(len) => end > len || (!fragment.more && end != len),
            None => !fragment.more && datagram.pieces.last().is_some_and(|(offset, piece)| offset + piece.len() > end),
        };
        if overlaps || contradicts || datagram.pieces.len() >= PIECES {
            self.give_up(|datagram| datagram.name == name);
            return None;
        }
        datagram.pieces.insert(place, (fragment.offset, data.to_vec()));
        self.bytes += data.len();
        if !fragment.more {
            datagram.len = Some(end);
        }
        let have: usize = datagram.pieces.iter().map(|(_, piece)| piece.len()).sum();
        if datagram.len != Some(have) {
            return None;
        }
        let whole = datagram.whole(have);
        self.give_up(|datagram| datagram.name == name);
        Some(whole)
    }

    fn give_up(&mut self, is_over: impl Fn(&Datagram) -> bool) {
        self.open.retain(|datagram| !is_over(datagram));
        self.bytes = self.open.iter().flat_map(|open| &open.pieces).map(|(_, piece)| piece.len()).sum();
    }
}

impl Datagram {
    /// The packet as it was before it was cut, without options. The pieces do not overlap and add up to the whole, so
    /// nothing is missing.
    fn whole(&self, len: usize) -> Vec<u8> {
        let Name { source, destination, protocol, .. } = self.name;
        let way = Way { from_mac: [0; 6], to_mac: [0; 6], source, destination };
        let mut frame = vec![0u8; wire::headers_len(destination)];
        wire::headers(&mut frame, &way, protocol, self.ttl, len);
        for (_, piece) in &self.pieces {
            frame.extend_from_slice(piece);
        }
        frame
    }
}

/// Send `payload` to a guest, in fragments where its packet would be longer than the network's mtu.
pub fn say(core: &mut Core, way: &Way, protocol: u8, ttl: u8, payload: &[u8]) {
    let mtu = core.config.mtu_or_default();
    let is_v4 = wire::v4(way.destination).is_some();
    let header = wire::headers_len(way.destination) - HEADER;
    if header + payload.len() <= mtu {
        core.reply_sized(HEADER + header + payload.len().max(46), |room| {
            let at = wire::headers(room.frame(), way, protocol, ttl, payload.len());
            room.frame()[at..at + payload.len()].copy_from_slice(payload);
            at + payload.len()
        });
        return;
    }
    let extra = if is_v4 { 0 } else { 8 };
    let most = (mtu - header - extra) / 8 * 8;
    let id = core.next_packet_id();
    let mut offset = 0;
    for piece in payload.chunks(most) {
        let more = offset + piece.len() < payload.len();
        core.reply_sized(HEADER + header + extra + piece.len(), |room| {
            let frame = room.frame();
            let at = wire::fragment_headers(frame, way, protocol, ttl, piece.len(), offset, more, id);
            frame[at..at + piece.len()].copy_from_slice(piece);
            at + piece.len()
        });
        offset += piece.len();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn add(reassembly: &mut Reassembly, offset: usize, data: &[u8], more: bool) -> Option<Vec<u8>> {
        let mut frame = vec![0u8; HEADER + 20];
        let way = Way {
            from_mac: [2; 6],
            to_mac: [4; 6],
            source: std::net::Ipv4Addr::new(10, 0, 2, 15).to_ipv6_mapped(),
            destination: std::net::Ipv4Addr::new(10, 0, 2, 2).to_ipv6_mapped(),
        };
        wire::headers(&mut frame, &way, 17, 64, data.len());
        frame.extend_from_slice(data);
        let fragment = Fragment { id: 7, offset, more };
        let packet = wire::packet(&frame, frame.len()).expect("a packet");
        reassembly.add(&packet, fragment, &frame, 0)
    }

    #[test]
    fn pieces_in_any_order_make_the_whole() {
        let whole: Vec<u8> = (0..100).collect();
        for order in [[0, 1, 2], [2, 1, 0], [1, 2, 0], [2, 0, 1]] {
            let mut reassembly = Reassembly::default();
            let mut got = None;
            for piece in order {
                let (begin, end) = ([0, 40, 80][piece], [40, 80, 100][piece]);
                got = got.or(add(&mut reassembly, begin, &whole[begin..end], piece != 2));
            }
            let got = got.expect("whole");
            assert_eq!(&got[HEADER + 20..], &whole[..], "{order:?}");
            let packet = wire::packet(&got, got.len()).expect("a packet");
            assert_eq!((packet.payload_len(), packet.fragment), (100, None));
            assert_eq!(reassembly.bytes, 0);
        }
    }

    #[test]
    fn pieces_that_overlap_give_up_their_datagram() {
        let mut reassembly = Reassembly::default();
        add(&mut reassembly, 0, &[1; 40], true);
        add(&mut reassembly, 32, &[2; 40], true);
        assert_eq!(reassembly.open.len(), 0);
    }

    #[test]
    fn a_last_piece_alone_waits_and_is_forgotten() {
        let mut reassembly = Reassembly::default();
        assert_eq!(add(&mut reassembly, 64, &[1; 3], false), None);
        assert_eq!(reassembly.bytes, 3);
        reassembly.give_up(|datagram| 15_001 - datagram.begun_ms > PATIENCE_MS);
        assert_eq!(reassembly.bytes, 0);
    }

    #[test]
    fn a_flood_of_pieces_is_bounded() {
        let mut reassembly = Reassembly::default();
        for offset in (0..60_000).step_by(16) {
            add(&mut reassembly, offset, &[1; 8], true);
        }
        assert!(reassembly.open.len() <= DATAGRAMS && reassembly.bytes <= BYTES);
    }
}
