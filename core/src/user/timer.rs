//! Timers of flows: a wheel of milliseconds that costs nothing to push back.
//!
//! A flow has one [`Alarm`]. Moving it to a later time only stores that time: the entry that is already in the wheel
//! comes up early, sees that it is not meant yet, and goes in again. So an alarm that each frame pushes back costs no
//! more than a store a frame. Entries hold a token and never a pointer; one whose flow is gone finds nobody.
//!
//! The wheel has one level. What lies beyond its horizon waits in the last slot and is put in again from there.

/// How finely time is told.
pub const TICK_MS: u64 = 4;
const SLOTS: usize = 1024;

pub struct Wheel {
    slots: Vec<Vec<u64>>,
    /// A bit a slot that is not empty.
    map: [u64; SLOTS / 64],
    /// The last tick that was dealt with.
    tick: u64,
}

impl Wheel {
    pub fn new(now_ms: u64) -> Wheel {
        Wheel { slots: (0..SLOTS).map(|_| Vec::new()).collect(), map: [0; SLOTS / 64], tick: now_ms / TICK_MS }
    }

    /// Put an entry in; returns when it comes up, which is earlier where `due_ms` lies beyond the horizon.
    fn add(&mut self, token: u64, due_ms: u64) -> u64 {
        let tick = due_ms.div_ceil(TICK_MS).clamp(self.tick + 1, self.tick + SLOTS as u64 - 1);
        let slot = (tick % SLOTS as u64) as usize;
        self.slots[slot].push(token);
        self.map[slot / 64] |= 1 << (slot % 64);
        tick * TICK_MS
    }

    /// Append the tokens of all entries that are due to `out`.
    pub fn advance(&mut self, now_ms: u64, out: &mut Vec<u64>) {
        let now = now_ms / TICK_MS;
        // A clock that jumped over the whole wheel finds everything due in one round.
        for tick in (self.tick + 1)..=now.min(self.tick + SLOTS as u64) {
            let slot = (tick % SLOTS as u64) as usize;
            if self.map[slot / 64] >> (slot % 64) & 1 == 0 {
                continue;
            }
            self.map[slot / 64] &= !(1 << (slot % 64));
            out.append(&mut self.slots[slot]);
        }
        self.tick = self.tick.max(now);
    }

    /// When the next entry comes up.
    pub fn next_ms(&self) -> Option<u64> {
        let begin = ((self.tick + 1) % SLOTS as u64) as usize;
        let words = SLOTS / 64;
        for step in 0..=words {
            let word = (begin / 64 + step) % words;
            let mask = match step {
                0 => u64::MAX << (begin % 64),
                _ if step == words => !(u64::MAX << (begin % 64)),
                _ => u64::MAX,
            };
            let found = self.map[word] & mask;
            if found != 0 {
                let slot = word * 64 + found.trailing_zeros() as usize;
                let ahead = (slot + SLOTS - begin) % SLOTS;
                return Some((self.tick + 1 + ahead as u64) * TICK_MS);
            }
        }
        None
    }
}

/// The one timer of a flow.
#[derive(Debug, Clone, Copy, Default)]
pub struct Alarm {
    /// When it is meant, 0: not at all.
    at_ms: u64,
    /// When its earliest entry in the wheel comes up, 0: there is none.
    queued_ms: u64,
}

impl Alarm {
    pub fn set(&mut self, wheel: &mut Wheel, token: u64, at_ms: u64) {
        self.at_ms = at_ms;
        if self.queued_ms == 0 || at_ms < self.queued_ms {
            self.queued_ms = wheel.add(token, at_ms);
        }
    }

    pub fn clear(&mut self) {
        self.at_ms = 0;
    }

    /// An entry came up: is it time? The alarm is off then.
    pub fn rings(&mut self, wheel: &mut Wheel, token: u64, now_ms: u64) -> bool {
        if self.queued_ms <= now_ms {
            self.queued_ms = 0;
        }
        if self.at_ms == 0 {
            return false;
        }
        if self.at_ms <= now_ms {
            self.at_ms = 0;
            return true;
        }
        let later = self.at_ms;
        self.set(wheel, token, later);
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn due(wheel: &mut Wheel, now_ms: u64) -> Vec<u64> {
        let mut out = Vec::new();
        wheel.advance(now_ms, &mut out);
        out
    }

    #[test]
    fn an_alarm_rings_at_its_time_and_not_before() {
        let (mut wheel, mut alarm) = (Wheel::new(1000), Alarm::default());
        alarm.set(&mut wheel, 7, 1200);
        assert_eq!(due(&mut wheel, 1199), []);
        assert_eq!(due(&mut wheel, 1200), [7]);
        assert!(alarm.rings(&mut wheel, 7, 1200));
        assert_eq!(wheel.next_ms(), None);
    }

    #[test]
    fn an_alarm_that_was_pushed_back_goes_in_again() {
        let (mut wheel, mut alarm) = (Wheel::new(1000), Alarm::default());
        alarm.set(&mut wheel, 7, 1200);
        alarm.set(&mut wheel, 7, 9000);
        assert_eq!(due(&mut wheel, 1200), [7]);
        assert!(!alarm.rings(&mut wheel, 7, 1200));
        let mut now = 1200;
        while now < 8996 {
            now += 4;
            for token in due(&mut wheel, now) {
                assert!(!alarm.rings(&mut wheel, token, now), "rang at {now}");
            }
        }
        assert_eq!(due(&mut wheel, 9000), [7]);
        assert!(alarm.rings(&mut wheel, 7, 9000));
    }

    #[test]
    fn the_next_entry_is_found_wherever_the_wheel_stands() {
        for start in (0..10_000).step_by(52) {
            for ahead in [4, 8, 256, 260, 1000, 4088] {
                let mut wheel = Wheel::new(start);
                Alarm::default().set(&mut wheel, 1, start / 4 * 4 + ahead);
                assert_eq!(wheel.next_ms(), Some(start / 4 * 4 + ahead), "start {start}, ahead {ahead}");
            }
        }
    }

    #[test]
    fn a_jump_of_the_clock_finds_everything() {
        let mut wheel = Wheel::new(0);
        for token in 0..100 {
            Alarm::default().set(&mut wheel, token, 10 + token * 37);
        }
        assert_eq!(due(&mut wheel, 1_000_000).len(), 100);
    }
}
