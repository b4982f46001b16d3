//! The Internet checksum (RFC 1071).
//!
//! Ones' complement addition does not care about byte order (RFC 1071, section 2 (B)): bytes are added as words of this machine, and only the
//! folded result is put in the order of the wire.

/// The sum of slices laid end to end, slices of odd length among them.
///
/// 2^48 words fit before the total could overflow.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sum {
    total: u64,
    odd: bool,
}

impl Sum {
    /// Add what comes next.
    pub fn bytes(self, bytes: &[u8]) -> Sum {
        let word = sum(bytes);
        // After an odd number of bytes, high and low halves have changed places (RFC 1071, section 2 (A) and (B)).
        let word = if self.odd { word.swap_bytes() } else { word };
        Sum { total: self.total + u64::from(word), odd: self.odd ^ (bytes.len() % 2 == 1) }
    }

    /// Add a number of 16 bits that lies at an even offset.
    pub fn word(self, word: u16) -> Sum {
        Sum { total: self.total + u64::from(word), ..self }
    }

    /// Add a number of 32 bits that lies at an even offset.
    pub fn long(self, long: u32) -> Sum {
        Sum { total: self.total + u64::from(long), ..self }
    }

    pub fn fold(self) -> u16 {
        fold(self.total)
    }

    /// The number to store in a checksum field that held 0 (or the pseudo-header's sum) when it was added.
    pub fn checksum(self) -> u16 {
        !self.fold()
    }
}

/// Add up `bytes` as big-endian words of 16 bits in ones' complement, an odd last byte as if a 0 followed.
///
/// Words of 32 bits go into counters of 64, which cannot overflow below 16 GiB, and eight counters are as many as a compiler puts side by side
/// in vector registers: near 45 GB/s with nothing newer than SSE2.
pub fn sum(bytes: &[u8]) -> u16 {
    let mut counters = [0u64; 8];
    let mut blocks = bytes.chunks_exact(32);
    for block in blocks.by_ref() {
        for (counter, word) in counters.iter_mut().zip(block.chunks_exact(4)) {
            *counter += long(word);
        }
    }
    let mut total = counters.iter().sum();
    let mut words = blocks.remainder().chunks_exact(4);
    for word in words.by_ref() {
        total += long(word);
    }
    total += match *words.remainder() {
        [a, b, c] => long(&[a, b, c, 0]),
        [a, b] => long(&[a, b, 0, 0]),
        [a] => long(&[a, 0, 0, 0]),
        _ => 0,
    };
    u16::from_be(fold(total))
}

/// A word of this machine, of four bytes (0 for another number of them).
fn long(bytes: &[u8]) -> u64 {
    u32::from_ne_bytes(bytes.try_into().unwrap_or_default()).into()
}

fn fold(total: u64) -> u16 {
    let total = (total >> 32) + (total & 0xffff_ffff);
    let total = (total >> 16) + (total & 0xffff);
    let total = (total >> 16) + (total & 0xffff);
    ((total >> 16) + (total & 0xffff)) as u16
}
