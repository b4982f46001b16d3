//! What a capture file is made of: blocks of pcapng, records of pcap.
//!
//! pcapng (draft-ietf-opsawg-pcapng, sections 4.1 to 4.3 and 4.6) little-endian, times in nanoseconds. pcap
//! (draft-ietf-opsawg-pcap, sections 4 and 5) little-endian, times in microseconds; it knows no interfaces, no directions and no losses.

use crate::sys;

const LINKTYPE_ETHERNET: u16 = 1;
/// What pcap says for "all of a frame" (tcpdump's MAXIMUM_SNAPLEN).
const WHOLE: u32 = 262_144;
const SECTION: u32 = 0x0a0d_0d0a;
const INTERFACE: u32 = 1;
const STATISTICS: u32 = 5;
const PACKET: u32 = 6;
/// Bytes of a packet block beside the frame and what fills it up; of a statistics block as it is written here; of a record of pcap.
const PACKET_HEAD: usize = 28;
const PACKET_TAIL: usize = 16;
const STATISTICS_LEN: usize = 64;
const RECORD: usize = 16;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    Pcapng,
    Pcap,
}

/// A frame as it is written down.
#[derive(Clone, Copy)]
pub struct Packet {
    pub interface: u32,
    pub time_us: u64,
    /// It came in at the port, rather than left by it.
    pub inward: bool,
    /// Of how much there was, how much lies at `frame`, readable.
    pub whole: usize,
    pub kept: usize,
    pub frame: *const u8,
}

impl Format {
    /// What a file, or a section that goes on in one, begins with.
    pub fn begin(self, out: &mut Vec<u8>, snaplen: usize, is_new: bool) {
        match self {
            Format::Pcapng => block(out, SECTION, |out| {
                out.extend(0x1a2b_3c4du32.to_le_bytes());
                out.extend([1, 0, 0, 0]); // version 1.0
                out.extend(u64::MAX.to_le_bytes()); // the section's length is not known
                option(out, 4, b"shardnet");
                option(out, 0, b"");
            }),
            Format::Pcap if is_new => {
                out.extend(0xa1b2_c3d4u32.to_le_bytes());
                out.extend([2, 0, 4, 0]); // version 2.4
                out.extend([0; 8]);
                out.extend(if snaplen == 0 { WHOLE } else { snaplen as u32 }.to_le_bytes());
                out.extend(u32::from(LINKTYPE_ETHERNET).to_le_bytes());
            }
            Format::Pcap => {}
        }
    }

    pub fn interface(self, out: &mut Vec<u8>, name: &str, snaplen: usize) {
        if self == Format::Pcapng {
            block(out, INTERFACE, |out| {
                out.extend(LINKTYPE_ETHERNET.to_le_bytes());
                out.extend([0; 2]);
                out.extend((snaplen as u32).to_le_bytes());
                option(out, 2, name.as_bytes());
                option(out, 9, &[9]); // times are nanoseconds
                option(out, 0, b"");
            });
        }
    }

    /// Since when an interface has been captured, and how many of its frames were lost.
    pub fn statistics(self, out: &mut Vec<u8>, interface: u32, since_us: u64, lost: u64) {
        if self == Format::Pcapng {
            let now = time(sys::now_ns(libc::CLOCK_REALTIME) / 1000);
            block(out, STATISTICS, |out| {
                out.extend(interface.to_le_bytes());
                out.extend(now);
                option(out, 2, &time(since_us));
                option(out, 3, &now);
                option(out, 5, &lost.to_le_bytes());
                option(out, 0, b"");
            });
        }
    }

    /// How long the statistics of so many interfaces are.
    pub fn statistics_len(self, interfaces: usize) -> usize {
        if self == Format::Pcapng { interfaces * STATISTICS_LEN } else { 0 }
    }

    pub fn packet_len(self, kept: usize) -> usize {
        match self {
            Format::Pcapng => PACKET_HEAD + kept.next_multiple_of(4) + PACKET_TAIL,
            Format::Pcap => RECORD + kept,
        }
    }

    /// Add a frame.
    ///
    /// # Safety
    /// `packet.kept` bytes are readable at `packet.frame`.
    pub unsafe fn packet(self, out: &mut Vec<u8>, packet: &Packet) {
        let len = self.packet_len(packet.kept);
        let (kept, whole) = ((packet.kept as u32).to_le_bytes(), (packet.whole as u32).to_le_bytes());
        out.reserve(len);
        match self {
            Format::Pcapng => {
                out.extend(PACKET.to_le_bytes());
                out.extend((len as u32).to_le_bytes());
                out.extend(packet.interface.to_le_bytes());
                out.extend(time(packet.time_us));
            }
            Format::Pcap => {
                out.extend(((packet.time_us / 1_000_000) as u32).to_le_bytes());
                out.extend(((packet.time_us % 1_000_000) as u32).to_le_bytes());
            }
        }
        out.extend(kept);
        out.extend(whole);
        // SAFETY: room was reserved; the source is as the caller promises, and ours is not seen before it is written.
        unsafe {
            std::ptr::copy_nonoverlapping(packet.frame, out.as_mut_ptr().add(out.len()), packet.kept);
            out.set_len(out.len() + packet.kept);
        }
        if self == Format::Pcapng {
            pad(out, packet.kept);
            option(out, 2, &(if packet.inward { 1u32 } else { 2 }).to_le_bytes());
            option(out, 0, b"");
            out.extend((len as u32).to_le_bytes());
        }
    }

    /// Of what was buffered and begins with a whole block: how much of the first `done` bytes are whole blocks, the frames in them and
    /// their bytes.
    ///
    /// `is_first`: the bytes are the beginning of a file.
    pub fn whole(self, bytes: &[u8], done: usize, is_first: bool) -> (usize, u64, u64) {
        let (mut at, mut frames, mut kept) = (0, 0, 0u64);
        if self == Format::Pcap && is_first {
            at = 24;
        }
        let word = |at: usize| bytes.get(at..at + 4).map(|word| u32::from_le_bytes([word[0], word[1], word[2], word[3]]));
        loop {
            let next = match self {
                Format::Pcapng => {
                    word(at).zip(word(at + 4)).map(|(kind, len)| (len as usize, if kind == PACKET { word(at + 20) } else { None }))
                }
                Format::Pcap => word(at + 8).map(|kept| (RECORD + kept as usize, Some(kept))),
            };
            match next {
                Some((len, frame)) if len != 0 && at + len <= done => {
                    at += len;
                    frames += u64::from(frame.is_some());
                    kept += u64::from(frame.unwrap_or(0));
                }
                _ => return (if at <= done { at } else { 0 }, frames, kept),
            }
        }
    }
}

/// A time of pcapng: the upper half, then the lower half, of nanoseconds since 1970.
fn time(us: u64) -> [u8; 8] {
    let ns = us * 1000;
    let [high, low] = [(ns >> 32) as u32, ns as u32].map(u32::to_le_bytes);
    [high[0], high[1], high[2], high[3], low[0], low[1], low[2], low[3]]
}

fn block(out: &mut Vec<u8>, kind: u32, body: impl FnOnce(&mut Vec<u8>)) {
    let begin = out.len();
    out.extend(kind.to_le_bytes());
    out.extend([0; 4]);
    body(out);
    let len = (out.len() - begin + 4) as u32;
    out.extend(len.to_le_bytes());
    out[begin + 4..begin + 8].copy_from_slice(&len.to_le_bytes());
}

fn option(out: &mut Vec<u8>, code: u16, value: &[u8]) {
    out.extend(code.to_le_bytes());
    out.extend((value.len() as u16).to_le_bytes());
    out.extend(value);
    pad(out, value.len());
}

fn pad(out: &mut Vec<u8>, len: usize) {
    out.extend(&[0; 3][..len.wrapping_neg() & 3]);
}
