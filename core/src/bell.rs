//! The doorbell of a worker: it is rung only while the worker sleeps.
//!
//! The worker that is about to sleep says so, fences, and looks once more at its lanes; whoever publishes fences and
//! then reads the word. One of the two sees the other, so no wake-up is lost, and a worker that is awake costs its
//! senders a load and no system call.

use crate::sync::{AtomicU32, Ordering, fence};

/// 1 while the worker sleeps or is about to.
#[repr(C, align(128))]
#[derive(Debug, Default)]
pub struct Sleeping(pub AtomicU32);

impl Sleeping {
    /// Say that sleep is near; the caller now looks at everything that rings this bell, and sleeps if it finds nothing.
    pub fn announce(&self) {
        self.0.store(1, Ordering::Relaxed);
        fence(Ordering::SeqCst);
    }

    pub fn awake(&self) {
        self.0.store(0, Ordering::Relaxed);
    }

    /// After publishing: must the bell be rung? True for one caller a sleep.
    pub fn must_ring(&self) -> bool {
        fence(Ordering::SeqCst);
        self.0.load(Ordering::Relaxed) == 1 && self.0.compare_exchange(1, 0, Ordering::AcqRel, Ordering::Relaxed).is_ok()
    }
}
