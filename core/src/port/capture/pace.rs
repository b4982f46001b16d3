//! How much of a busy machine a capture takes: what nobody else wants, and a small share of its cores.
//!
//! Being the last in line for a core is not enough: a port that is carried at full speed waits now and then for whoever is at the
//! other end of it, a capture that uses these moments is in the way when the port goes on, and what it writes pushes the
//! port's frames out of the caches. So a capture that ran for more than its share, and had to wait for a core meanwhile, rests until it
//! has kept its share. Where cores are idle nobody waits, and there is no limit.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::thread::available_parallelism;

use crate::sys;

/// Of the time of all cores that this process may use.
const SHARE: f64 = 0.01;
/// What may be used at once by who has used little before, in nanoseconds.
const SAVED_MOST: f64 = 10e6;
/// What a capture begins with.
const SAVED_FIRST: f64 = 2e6;
/// What a rest is to save up.
const SAVED_LEAST: f64 = 0.5e6;
/// The longest rest: what is still owed then is owed after the next look, if others still want the machine.
const REST_MOST: f64 = 100e6;
/// How long to look at together, at least, in nanoseconds.
const WINDOW_NS: u64 = 2_000_000;
/// How long to doze while frames come, in milliseconds, and on a busy machine: each time somebody gives a core up.
const DOZE_MS: i32 = 1;
const DOZE_BUSY_MS: i32 = 8;
/// A machine is busy where a thread waits for a core for more than a quarter of the time that it runs.
const BUSY: u64 = 4;

/// What the kernel says of a thread (Documentation/scheduler/sched-stats.rst, /proc/<pid>/schedstat), in nanoseconds.
#[derive(Debug, Clone, Copy, Default)]
struct Times {
    at: u64,
    ran: u64,
    waited: u64,
}

impl Times {
    fn ran(&self, since: Times) -> u64 {
        self.ran.saturating_sub(since.ran)
    }

    fn is_busy(&self, since: Times) -> bool {
        self.waited.saturating_sub(since.waited) > self.ran(since) / BUSY
    }
}

pub struct Pace {
    /// None where the kernel does not say: there is no limit then.
    says: Option<File>,
    budget: Budget,
    since: Times,
    is_busy: bool,
    /// When the rest is over, or 0.
    until: u64,
}

impl Pace {
    /// The pace of this thread.
    pub fn new() -> Pace {
        let cores = available_parallelism().map_or(1, usize::from) as f64;
        let budget = Budget { share: SHARE * cores, saved: SAVED_FIRST };
        Pace { says: File::open("/proc/thread-self/schedstat").ok(), budget, since: Times::default(), is_busy: false, until: 0 }
    }

    /// After work: is a rest due?
    pub fn look(&mut self) {
        let at = sys::now_ns(libc::CLOCK_MONOTONIC);
        if self.until != 0 || at - self.since.at < WINDOW_NS {
            return;
        }
        let Some(now) = self.says.as_ref().and_then(|says| times(says, at)) else { return };
        if self.since.at != 0 {
            self.is_busy = now.is_busy(self.since);
            self.until = self.budget.rest_after(self.since, now).map_or(0, |rest| at + rest);
        }
        self.since = now;
    }

    /// Milliseconds to doze where there is nothing to do and more is on its way.
    pub fn doze_ms(&self) -> i32 {
        if self.is_busy { DOZE_BUSY_MS } else { DOZE_MS }
    }

    pub fn is_resting(&mut self) -> bool {
        self.rest_ms() != 0
    }

    /// Milliseconds that are left of a rest; it is over when there are none.
    pub fn rest_ms(&mut self) -> i32 {
        if self.until == 0 {
            return 0;
        }
        let left = self.until.saturating_sub(sys::now_ns(libc::CLOCK_MONOTONIC));
        if left == 0 {
            self.until = 0;
        }
        left.div_ceil(1_000_000) as i32
    }
}

fn times(says: &File, at: u64) -> Option<Times> {
    let mut text = [0; 64];
    let len = says.read_at(&mut text, 0).ok()?;
    let mut words = std::str::from_utf8(&text[..len]).ok()?.split_ascii_whitespace().map(str::parse);
    Some(Times { at, ran: words.next()?.ok()?, waited: words.next()?.ok()? })
}

/// What may be used: nanoseconds saved up, which grow by a share of the time that passes.
struct Budget {
    share: f64,
    saved: f64,
}

impl Budget {
    /// Nanoseconds to rest after what was used between two looks; what was used while nobody else wanted it is not counted.
    fn rest_after(&mut self, since: Times, now: Times) -> Option<u64> {
        let more = self.share * now.at.saturating_sub(since.at) as f64;
        let left = if now.is_busy(since) { self.saved - now.ran(since) as f64 } else { self.saved.max(0.0) };
        self.saved = (left + more).min(SAVED_MOST);
        (self.saved < 0.0).then(|| ((SAVED_LEAST - self.saved) / self.share).min(REST_MOST) as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    /// What a rest is like, in milliseconds, after each of these: so long looked at, so long run, so long waited for a core.
    fn rests(looks: &[(u64, u64, u64)]) -> Vec<u64> {
        let mut budget = Budget { share: 0.05, saved: 5e6 };
        let mut since = Times { at: 7 * MS, ran: 5 * MS, waited: 3 * MS };
        let rest = |&(lasted, ran, waited): &(u64, u64, u64)| {
            let now = Times { at: since.at + lasted * MS, ran: since.ran + ran * MS, waited: since.waited + waited * MS };
            let rest = budget.rest_after(since, now);
            since = now;
            rest.map_or(0, |rest| rest / MS)
        };
        looks.iter().map(rest).collect()
    }

    #[test]
    fn who_ran_more_than_its_share_while_others_wanted_to_rests_until_it_has_saved_some() {
        assert_eq!(rests(&[(20, 5, 5), (20, 2, 10), (20, 2, 10), (50, 1, 2)]), [0, 0, 30, 0]);
        assert_eq!(rests(&[(20, 1, 19); 9]), [0; 9]);
        assert_eq!(rests(&[(900, 6, 50), (100, 16, 50)]), [0, 30]);
    }

    #[test]
    fn a_rest_has_an_end_and_what_is_owed_is_remembered() {
        assert_eq!(rests(&[(100, 20, 20), (200, 1, 1), (200, 1, 1)]), [100, 30, 0]);
    }

    #[test]
    fn where_cores_are_idle_there_is_no_rest_and_nothing_is_owed() {
        assert_eq!(rests(&[(20, 20, 0), (20, 20, 5), (20, 16, 4)]), [0; 3]);
        assert_eq!(rests(&[(20, 20, 20), (100, 20, 0), (100, 5, 5), (100, 6, 2)]), [100, 0, 0, 0]);
    }

    #[test]
    fn the_kernel_says_how_long_a_thread_ran() {
        let mut pace = Pace::new();
        let says = pace.says.take().expect("CONFIG_SCHED_INFO");
        let before = times(&says, 1).expect("two numbers");
        let ran = || times(&says, 2).expect("two numbers").ran - before.ran;
        while ran() < MS {
            std::hint::black_box(sys::now_ns(libc::CLOCK_MONOTONIC));
        }
    }
}
