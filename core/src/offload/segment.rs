//! Cut a super-frame into the frames it stands for.
//!
//! Headers and payload of a segment are handed out apart, so that a writer gathers them (writev) and the payload is read once, by the checksum.
//! What differs from segment to segment is taken out of the headers first, the rest is summed once, and each segment adds its own numbers.

use super::{Bad, HEADERS_MAX, Plan, Scratch, Sum, VnetHeader, never_zero, plan, put};
use crate::frame::{self, Transport, be16, be32};

const FIN: u16 = 0x01;
const PSH: u16 = 0x08;
const CWR: u16 = 0x80;

/// A super-frame taken apart; its headers are within Scratch.
pub(super) struct Cut {
    pub ip: Transport,
    /// Where the payload starts and ends in the frame.
    pub payload: usize,
    pub end: usize,
    /// Payload of each segment but the last, not 0.
    pub size: usize,
}

/// Hand out `frame` as frames that need no offload: headers, then payload; returns how many.
///
/// Takes any frame that `check` accepts: one that is whole already and one that lacks its checksum come out as one. `emit` gets headers that live in
/// `scratch` until it returns, and payload that is a slice of `frame`.
pub fn segment(header: &VnetHeader, frame: &[u8], scratch: &mut Scratch, emit: &mut impl FnMut(&[u8], &[u8])) -> Result<usize, Bad> {
    // The plan is made from the copy: another process may still write the original.
    let top = &mut scratch[..frame.len().min(HEADERS_MAX)];
    top.copy_from_slice(&frame[..top.len()]);
    match plan(header, top, frame.len())? {
        Plan::Nothing => {
            emit(&[], frame);
            Ok(1)
        }
        Plan::Checksum { start, field } => {
            let (headers, payload) = (&mut top[..field + 2], &frame[field + 2..]);
            let checksum = Sum::default().bytes(&headers[start..]).bytes(payload).checksum();
            put(headers, field, never_zero(checksum));
            emit(headers, payload);
            Ok(1)
        }
        Plan::Cut(cut) => {
            let (headers, payload) = (&mut top[..cut.payload], &frame[cut.payload..cut.end]);
            Ok(cut.emit(headers, payload, emit))
        }
    }
}

impl Cut {
    fn emit(&self, headers: &mut [u8], payload: &[u8], emit: &mut impl FnMut(&[u8], &[u8])) -> usize {
        let network = Network::take(headers, &self.ip);
        let transport = Segments::take(headers, &self.ip, payload.len());
        let mut at = 0;
        let mut count = 0;
        loop {
            let chunk = &payload[at..payload.len().min(at + self.size)];
            let is_last = at + chunk.len() == payload.len();
            network.put(headers, count, chunk.len());
            transport.put(headers, at, chunk, is_last);
            emit(headers, chunk);
            at += chunk.len();
            count += 1;
            if is_last {
                return count;
            }
        }
    }
}

/// The fields of the IP header that differ: lengths, and IPv4's identification and checksum.
enum Network {
    V4 { at: usize, id: u16, rest: Sum },
    V6 { at: usize },
}

impl Network {
    fn take(headers: &mut [u8], ip: &Transport) -> Network {
        let at = ip.network;
        if ip.version == 6 {
            return Network::V6 { at };
        }
        let id = be16(headers, at + 4).unwrap_or_default();
        put(headers, at + 2, 0);
        put(headers, at + 4, 0);
        put(headers, at + 10, 0);
        Network::V4 { at, id, rest: Sum::default().bytes(&headers[at..ip.offset]) }
    }

    fn put(&self, headers: &mut [u8], index: usize, payload: usize) {
        match *self {
            Network::V4 { at, id, rest } => {
                let length = (headers.len() - at + payload) as u16;
                let id = id.wrapping_add(index as u16);
                put(headers, at + 2, length);
                put(headers, at + 4, id);
                put(headers, at + 10, rest.word(length).word(id).checksum());
            }
            Network::V6 { at } => put(headers, at + 4, (headers.len() - at - 40 + payload) as u16),
        }
    }
}

/// The fields of the transport header that differ: TCP's sequence number and flags, UDP's length, the checksum of either.
struct Segments {
    at: usize,
    /// Sum of the pseudo-header without its length, and of the header without the fields that differ.
    rest: Sum,
    /// TCP's sequence number, and the word with data offset and flags.
    tcp: Option<(u32, u16)>,
}

impl Segments {
    fn take(headers: &mut [u8], ip: &Transport, payload: usize) -> Segments {
        let at = ip.offset;
        // The pseudo-header of the super-frame came in the checksum field. Its length goes out by adding the complement.
        let length = (headers.len() - at + payload) as u32;
        let without = Sum::default().word(!(length as u16)).word(!((length >> 16) as u16));
        let tcp = if ip.protocol == frame::UDP {
            put(headers, at + 4, 0);
            None
        } else {
            let sequence = be32(headers, at + 4).unwrap_or_default();
            let flags = be16(headers, at + 12).unwrap_or_default();
            headers[at + 4..at + 8].fill(0);
            put(headers, at + 12, 0);
            Some((sequence, flags))
        };
        Segments { at, rest: without.bytes(&headers[at..]), tcp }
    }

    fn put(&self, headers: &mut [u8], offset: usize, payload: &[u8], is_last: bool) {
        let at = self.at;
        let length = (headers.len() - at + payload.len()) as u16;
        // The headers' length is even: TCP's is a multiple of 4, UDP's is 8.
        let sum = self.rest.word(length).bytes(payload);
        let Some((sequence, mut flags)) = self.tcp else {
            put(headers, at + 4, length);
            put(headers, at + 6, never_zero(sum.word(length).checksum()));
            return;
        };
        let sequence = sequence.wrapping_add(offset as u32);
        if offset != 0 {
            flags &= !CWR;
        }
        if !is_last {
            flags &= !(FIN | PSH);
        }
        headers[at + 4..at + 8].copy_from_slice(&sequence.to_be_bytes());
        put(headers, at + 12, flags);
        put(headers, at + 16, never_zero(sum.long(sequence).word(flags).checksum()));
    }
}
