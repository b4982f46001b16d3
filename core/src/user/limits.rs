//! How often a network says what a guest can provoke: buckets of tokens.

struct Bucket {
    per_s: u64,
    /// In thousandths of a token.
    left: u64,
    at_ms: u64,
}

impl Bucket {
    fn new(per_s: u64, now_ms: u64) -> Bucket {
        Bucket { per_s, left: per_s * 1000, at_ms: now_ms }
    }

    /// Take a token; the bucket holds those of one second.
    fn take(&mut self, now_ms: u64) -> bool {
        let gained = now_ms.saturating_sub(self.at_ms).saturating_mul(self.per_s);
        self.left = self.left.saturating_add(gained).min(self.per_s * 1000);
        self.at_ms = now_ms;
        if self.left < 1000 {
            return false;
        }
        self.left -= 1000;
        true
    }
}

pub struct Limits {
    icmp: Bucket,
    reset: Bucket,
    neighbour: Bucket,
    challenge: Bucket,
}

impl Limits {
    pub fn new(now_ms: u64) -> Limits {
        Limits {
            icmp: Bucket::new(100, now_ms),
            reset: Bucket::new(500, now_ms),
            neighbour: Bucket::new(1000, now_ms),
            challenge: Bucket::new(1000, now_ms), // RFC 5961, 7
        }
    }

    /// May an ICMP error go out?
    pub fn icmp(&mut self, now_ms: u64) -> bool {
        self.icmp.take(now_ms)
    }

    /// May a RST without a flow go out?
    pub fn reset(&mut self, now_ms: u64) -> bool {
        self.reset.take(now_ms)
    }

    /// May ARP or NDP go out?
    pub fn neighbour(&mut self, now_ms: u64) -> bool {
        self.neighbour.take(now_ms)
    }

    /// May a segment that fits nowhere be answered?
    pub fn challenge(&mut self, now_ms: u64) -> bool {
        self.challenge.take(now_ms)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_gives_a_second_s_worth_at_once_and_then_what_time_brings() {
        let mut limits = Limits::new(1000);
        assert_eq!((0..1000).filter(|_| limits.icmp(1000)).count(), 100);
        assert_eq!((0..1000).filter(|_| limits.icmp(1100)).count(), 10);
        assert_eq!((0..1000).filter(|_| limits.icmp(1_000_000)).count(), 100);
    }
}
