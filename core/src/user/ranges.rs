//! Parts of a sequence space: what the guest says that it has of what we sent, beyond a hole (RFC 2018).
//!
//! The parts lie within what is in flight, so that each is named by its distance from the oldest byte of that. Bounded: a
//! guest that names more parts than we remember gets some bytes again that it has.

const MOST: usize = 64;

/// Apart from each other, and in order.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Ranges(Vec<(u32, u32)>);

/// Is `a` before `b`?
pub fn before(a: u32, b: u32) -> bool {
    (a.wrapping_sub(b) as i32) < 0
}

/// The later of two.
pub fn later(a: u32, b: u32) -> u32 {
    if before(a, b) { b } else { a }
}

impl Ranges {
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn clear(&mut self) {
        self.0 = Vec::new();
    }

    /// Bytes in all parts.
    pub fn sum(&self) -> u32 {
        self.within(self.0.first().map_or(0, |first| first.0), self.0.last().map_or(0, |last| last.1))
    }

    /// Bytes of the parts between `from` and `to`.
    pub fn within(&self, from: u32, to: u32) -> u32 {
        let overlap = |&(a, b): &(u32, u32)| {
            let (a, b) = (later(a, from), if before(to, b) { to } else { b });
            if before(a, b) { b.wrapping_sub(a) } else { 0 }
        };
        self.0.iter().map(overlap).sum()
    }

    /// Add a part that is not empty; true where that is news.
    pub fn add(&mut self, mut from: u32, mut to: u32) -> bool {
        // Those that end before it, and those from the first that begins behind it.
        let first = self.0.partition_point(|part| before(part.1, from));
        let last = self.0.partition_point(|part| !before(to, part.0));
        if let Some(touched) = self.0.get(first..last).filter(|touched| !touched.is_empty()) {
            let (low, high) = (touched[0].0, touched[touched.len() - 1].1);
            if touched.len() == 1 && !before(from, low) && !before(high, to) {
                return false;
            }
            from = if before(low, from) { low } else { from };
            to = later(high, to);
        } else if self.0.len() >= MOST {
            return false;
        }
        self.0.splice(first..last.max(first), [(from, to)]);
        true
    }

    /// What lies before `seq` is no longer of interest.
    pub fn forget_before(&mut self, seq: u32) {
        self.0.retain(|part| before(seq, part.1));
        if let Some(first) = self.0.first_mut() {
            first.0 = later(first.0, seq);
        }
    }

    /// Where the first part begins.
    pub fn begin(&self) -> Option<u32> {
        self.0.first().map(|part| part.0)
    }

    /// The next gap from `from` on, `to` at most: where it begins and where it ends.
    pub fn gap(&self, mut from: u32, to: u32) -> Option<(u32, u32)> {
        for &(begin, end) in &self.0 {
            if before(from, begin) {
                let end = if before(begin, to) { begin } else { to };
                return before(from, end).then_some((from, end));
            }
            from = later(from, end);
        }
        before(from, to).then_some((from, to))
    }

    /// The beginning of the last part that has at least `bytes` in it and behind it: what is missing before it is lost.
    pub fn lost_before(&self, bytes: u32) -> Option<u32> {
        let mut sum = 0;
        self.0.iter().rev().find_map(|&(begin, end)| {
            sum += end.wrapping_sub(begin);
            (sum >= bytes).then_some(begin)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_that_touch_become_one_across_the_wrap_too() {
        let mut ranges = Ranges::default();
        let at = |offset: u32| 0xffff_fff0u32.wrapping_add(offset);
        assert!(ranges.add(at(10), at(20)));
        assert!(ranges.add(at(30), at(40)));
        assert!(!ranges.add(at(12), at(20)));
        assert_eq!((ranges.sum(), ranges.gap(at(0), at(50))), (20, Some((at(0), at(10)))));
        assert_eq!(ranges.gap(at(10), at(50)), Some((at(20), at(30))));
        assert_eq!(ranges.gap(at(35), at(40)), None);
        assert!(ranges.add(at(20), at(30)));
        assert_eq!(ranges, Ranges(vec![(at(10), at(40))]));
        ranges.forget_before(at(15));
        assert_eq!((ranges.begin(), ranges.sum(), ranges.within(at(0), at(20))), (Some(at(15)), 25, 5));
    }

    #[test]
    fn any_parts_are_a_set_of_bytes() {
        let mut state = 1u64;
        let mut dice = move |sides: u64| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 33) % sides
        };
        for _ in 0..200 {
            let (mut ranges, mut bytes) = (Ranges::default(), [false; 200]);
            let base = (dice(2) as u32).wrapping_sub(100);
            for _ in 0..20 {
                let from = dice(180) as usize;
                let to = from + 1 + dice(20) as usize;
                let is_news = bytes[from..to].iter().any(|is_there| !is_there);
                bytes[from..to].fill(true);
                assert_eq!(ranges.add(base.wrapping_add(from as u32), base.wrapping_add(to as u32)), is_news);
            }
            assert_eq!(ranges.sum() as usize, bytes.iter().filter(|is_there| **is_there).count());
            let (mut at, mut missing) = (base, 0);
            while let Some((from, to)) = ranges.gap(at, base.wrapping_add(200)) {
                (at, missing) = (to, missing + to.wrapping_sub(from));
            }
            assert_eq!(ranges.sum() + missing, 200);
            let half = bytes[100..].iter().filter(|is_there| **is_there).count();
            assert_eq!(ranges.within(base.wrapping_add(100), base.wrapping_add(200)) as usize, half);
        }
    }

    #[test]
    fn what_is_missing_before_enough_that_arrived_is_lost() {
        let mut ranges = Ranges::default();
        ranges.add(100, 200);
        ranges.add(300, 350);
        assert_eq!([50, 51, 150, 151].map(|bytes| ranges.lost_before(bytes)), [Some(300), Some(100), Some(100), None]);
    }
}
