//! A TCP segment as a guest sent it (RFC 9293, 3.1).

use super::held::BLOCKS;
use super::wire::Packet;
use crate::frame::{be16, be32};

pub const FIN: u8 = 1;
pub const SYN: u8 = 2;
pub const RST: u8 = 4;
pub const PSH: u8 = 8;
pub const ACK: u8 = 16;

const HEADER: usize = 20;

/// The payload lies in memory that another process may be changing. Urgent data is data like any other (RFC 6093, 4).
#[derive(Debug, Clone, Copy)]
pub struct Segment {
    pub from: u16,
    pub to: u16,
    pub seq: u32,
    pub ack: u32,
    pub flags: u8,
    pub window: u16,
    pub mss: Option<u16>,
    pub scale: Option<u8>,
    /// Of a SYN: SACK is understood. Else: there is SACK in it.
    pub sack: bool,
    /// What the sender has beyond a hole: where each part begins and ends.
    pub blocks: [(u32, u32); BLOCKS],
    pub payload: *const u8,
    pub len: usize,
}

impl Segment {
    /// Read the segment of `packet`, whose frame begins with `head`; the payload is where `at` says that the frame is.
    pub fn read(head: &[u8], packet: &Packet, at: *const u8) -> Option<Segment> {
        let tcp = head.get(packet.transport..)?;
        let header = usize::from(*tcp.get(12)? >> 4) * 4;
        if header < HEADER || header > packet.payload_len() {
            return None;
        }
        let flags = tcp[13];
        let (from, to) = (be16(tcp, 0)?, be16(tcp, 2)?);
        if from == 0 || to == 0 || (flags & SYN != 0 && flags & (FIN | RST) != 0) {
            return None;
        }
        let said = if header > HEADER { options(tcp.get(HEADER..header)?) } else { Options::default() };
        Some(Segment {
            from,
            to,
            seq: be32(tcp, 4)?,
            ack: be32(tcp, 8)?,
            flags,
            window: be16(tcp, 14)?,
            mss: said.mss,
            scale: said.scale,
            sack: said.sack,
            blocks: said.blocks,
            // A pointer into the frame or one past it, as the header is not longer than the payload of the packet.
            payload: at.wrapping_add(packet.transport + header),
            len: packet.payload_len() - header,
        })
    }

    /// What the segment takes of the sequence space.
    pub fn space(&self) -> u32 {
        self.len as u32 + u32::from(self.flags & SYN != 0) + u32::from(self.flags & FIN != 0)
    }
}

#[derive(Debug, Default, PartialEq, Eq)]
struct Options {
    mss: Option<u16>,
    scale: Option<u8>,
    sack: bool,
    blocks: [(u32, u32); BLOCKS],
}

/// MSS, window scale and SACK (RFC 2018, 2 and 3); at most 40 bytes of options, each at least one long.
fn options(mut bytes: &[u8]) -> Options {
    let mut said = Options::default();
    while let Some((&kind, rest)) = bytes.split_first() {
        match kind {
            0 => break,
            1 => bytes = rest,
            _ => {
                let len = usize::from(rest.first().copied().unwrap_or(0));
                let Some(option) = bytes.get(2..len) else { break };
                match (kind, option) {
                    (2, [high, low]) => said.mss = Some(u16::from_be_bytes([*high, *low])),
                    (3, [shift]) => said.scale = Some(*shift),
                    (4, []) => said.sack = true,
                    (5, blocks) => {
                        said.sack = true;
                        for (place, block) in said.blocks.iter_mut().zip(blocks.chunks_exact(8)) {
                            *place = (be32(block, 0).unwrap_or(0), be32(block, 4).unwrap_or(0));
                        }
                    }
                    _ => {}
                }
                bytes = &bytes[len..];
            }
        }
    }
    said
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_read_as_far_as_they_make_sense() {
        let said = Options { mss: Some(1460), scale: Some(7), sack: true, ..Options::default() };
        assert_eq!(options(&[2, 4, 5, 180, 4, 2, 1, 3, 3, 7]), said);
        assert_eq!(options(&[3, 3, 9, 0, 2, 4, 1, 1]), Options { scale: Some(9), ..Options::default() });
        let blocks = [(1, 2), (3, 4), (0, 0), (0, 0)];
        let two = [1, 1, 5, 18, 0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0, 3, 0, 0, 0, 4];
        assert_eq!(options(&two), Options { sack: true, blocks, ..Options::default() });
        for cut in [&[2][..], &[2, 0], &[2, 1, 5], &[2, 4, 5], &[2, 40, 5, 180], &[9, 255]] {
            assert_eq!(options(cut), Options::default(), "{cut:?}");
        }
    }
}
