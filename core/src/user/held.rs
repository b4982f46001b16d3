//! What a guest sent that its socket cannot have yet: what lies beyond a hole, and what the kernel had no room for.
//!
//! Kept so that one lost frame costs that frame, and not all behind it. It is reported by SACK and may be thrown away again
//! (RFC 2018, 8); what it takes of memory is counted over all flows of the network, and bounded (core.rs).

use super::ranges::{before, later};

/// Memory that a part takes beside its bytes.
const PART: usize = 64;
/// A part grows by what follows it up to this length.
const PART_MOST: usize = 128 << 10;
const PARTS_MOST: usize = 1024;
/// Memory for one flow.
const MOST: usize = 4 << 20;
/// SACK blocks of an ACK without other options (RFC 2018, 3).
pub const BLOCKS: usize = 4;

#[derive(Debug)]
struct Part {
    seq: u32,
    bytes: Vec<u8>,
}

impl Part {
    fn end(&self) -> u32 {
        self.seq.wrapping_add(self.bytes.len() as u32)
    }
}

#[derive(Debug, Default)]
pub struct Held {
    /// In order, none overlaps another.
    parts: Vec<Part>,
    /// Memory that is taken.
    pub size: usize,
    /// What came last.
    latest: u32,
    /// Where the guest's data ends, if that is known already.
    pub fin: Option<u32>,
}

impl Held {
    /// The parts, in order.
    pub fn parts(&self) -> impl Iterator<Item = (u32, &[u8])> {
        self.parts.iter().map(|part| (part.seq, &part.bytes[..]))
    }

    /// Is there anything beyond `seq`?
    pub fn reaches(&self, seq: u32) -> bool {
        self.parts.last().is_some_and(|last| before(seq, last.end()))
    }

    /// Is there room for `len` bytes more in one part?
    pub fn has_room(&self, len: usize) -> bool {
        self.parts.len() < PARTS_MOST && self.size + len + PART <= MOST
    }

    /// What of `from..to` is not here, as distances from `from`.
    pub fn missing(&self, from: u32, to: u32) -> Vec<(usize, usize)> {
        let (mut at, mut missing) = (from, Vec::new());
        let distance = |seq: u32| seq.wrapping_sub(from) as usize;
        for part in &self.parts {
            if !before(part.seq, to) {
                break;
            }
            if before(at, part.seq) {
                missing.push((distance(at), distance(part.seq)));
            }
            at = later(at, part.end());
        }
        if before(at, to) {
            missing.push((distance(at), distance(to)));
        }
        missing
    }

    /// Keep bytes that are missing here.
    pub fn keep(&mut self, seq: u32, bytes: Vec<u8>) {
        self.latest = seq;
        let len = bytes.len();
        let place = self.parts.partition_point(|part| before(part.seq, seq));
        if let Some(last) = place.checked_sub(1).map(|last| &mut self.parts[last])
            && last.end() == seq
            && last.bytes.len() + len <= PART_MOST
        {
            last.bytes.extend_from_slice(&bytes);
            self.size += len;
            return;
        }
        self.parts.insert(place, Part { seq, bytes });
        self.size += len + PART;
    }

    /// Where the run of parts that begins at `seq` ends: at `seq` where there is none.
    pub fn run(&self, seq: u32) -> u32 {
        self.parts.iter().fold(seq, |end, part| if part.seq == end { part.end() } else { end })
    }

    /// The bytes at `seq`, which is the beginning.
    pub fn first(&self, seq: u32) -> Option<&[u8]> {
        self.parts.first().filter(|part| part.seq == seq).map(|part| &part.bytes[..])
    }

    /// The first `len` bytes of the first part are no longer needed.
    pub fn drop_first(&mut self, len: usize) {
        let Some(first) = self.parts.first_mut() else { return };
        if len < first.bytes.len() {
            first.bytes.drain(..len);
            first.seq = first.seq.wrapping_add(len as u32);
            self.size -= len;
            return;
        }
        self.size -= self.parts.remove(0).bytes.len() + PART;
        if self.parts.is_empty() {
            self.parts = Vec::new();
        }
    }

    /// The runs beyond `seq`, that of what came last first (RFC 2018, 4).
    pub fn blocks(&self, seq: u32) -> Vec<(u32, u32)> {
        let mut runs: Vec<(u32, u32)> = Vec::new();
        for part in self.parts.iter().filter(|part| before(seq, part.seq)) {
            match runs.last_mut() {
                Some(run) if run.1 == part.seq => run.1 = part.end(),
                _ => runs.push((part.seq, part.end())),
            }
        }
        let latest = runs.iter().position(|run| !before(self.latest, run.0) && before(self.latest, run.1));
        if let Some(latest) = latest {
            runs[..=latest].rotate_right(1);
        }
        runs.truncate(BLOCKS);
        runs
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_came_in_pieces_is_one_run_and_only_what_is_missing_is_asked_for() {
        let mut held = Held::default();
        held.keep(20, vec![2; 10]);
        held.keep(40, vec![4; 10]);
        assert_eq!(held.missing(15, 55), [(0, 5), (15, 25), (35, 40)]);
        assert_eq!(held.blocks(0), [(40, 50), (20, 30)]);
        held.keep(30, vec![3; 10]);
        assert_eq!((held.blocks(0), held.run(20), held.run(10)), (vec![(20, 50)], 50, 10));
        let mut bytes = Vec::new();
        let mut seq = 20;
        while let Some(first) = held.first(seq) {
            let some = first.len().min(7);
            bytes.extend_from_slice(&first[..some]);
            held.drop_first(some);
            seq += some as u32;
        }
        assert_eq!((bytes.len(), held.size, held.reaches(20)), (30, 0, false));
        assert!(bytes.is_sorted());
    }
}
