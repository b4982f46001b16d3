//! Memory that somebody else can take away: a mapping whose loss ends a port, and not the worker.
//!
//! A front end hands us the file that its guest's memory is, and keeps it. When it cuts the file, or the host has no page left for it, the
//! next access to our mapping is SIGBUS, in the middle of a copy. Seals would forbid the cut, but only a memfd has them, and only where its
//! owner asked for it when it was made; and they do nothing about the host's memory. So SIGBUS is handled: where the address is in a
//! guarded mapping, the whole of it is replaced by pages of zeros of our own, and marked as broken. The copy goes on, with zeros; who works
//! with the mapping asks `is_broken` at the end of each batch and lets go of it. Any other SIGBUS ends the process as before.
//!
//! Why this is sound: the signal is synchronous, so the handler runs in the place of the instruction that faulted, in the thread that owns
//! the mapping; it calls mmap(2) and signal(2), touches atomics, and nothing else.

use std::io;
use std::os::fd::RawFd;
use std::ptr;
use std::sync::Once;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use crate::sys::Mapping;

/// Guarded mappings of a process: 8 regions, their successors and a log for each of 60 ports.
const SLOTS: usize = 1024;

struct Slot {
    used: AtomicBool,
    /// 0: of no mapping.
    start: AtomicUsize,
    len: AtomicUsize,
    broken: AtomicBool,
}

static GUARDED: [Slot; SLOTS] =
    [const { Slot { used: AtomicBool::new(false), start: AtomicUsize::new(0), len: AtomicUsize::new(0), broken: AtomicBool::new(false) } };
        SLOTS];
static HANDLED: Once = Once::new();

/// A shared mapping whose bytes may turn into zeros at any time.
pub struct Guarded {
    map: Mapping,
    slot: &'static Slot,
}

impl Guarded {
    /// Map the first `len` bytes of a file whose pages have `page` bytes.
    pub fn new(fd: RawFd, len: usize, page: usize) -> io::Result<Guarded> {
        HANDLED.call_once(handle);
        let len = len.checked_next_multiple_of(page).ok_or(io::ErrorKind::InvalidInput)?;
        let map = Mapping::aligned(fd, len, page)?;
        let free = |slot: &&Slot| !slot.used.swap(true, Ordering::Acquire);
        let slot = GUARDED.iter().find(free).ok_or_else(|| io::Error::from_raw_os_error(libc::ENOSPC))?;
        slot.broken.store(false, Ordering::Relaxed);
        slot.len.store(len, Ordering::Relaxed);
        slot.start.store(map.start() as usize, Ordering::Release);
        Ok(Guarded { map, slot })
    }

    pub fn start(&self) -> *mut u8 {
        self.map.start()
    }

    /// Has it been taken away? Then it holds what was written since, and zeros.
    pub fn is_broken(&self) -> bool {
        self.slot.broken.load(Ordering::Relaxed)
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        self.slot.start.store(0, Ordering::Release); // before the mapping goes, since another may get its addresses
        self.slot.used.store(false, Ordering::Release);
    }
}

fn handle() {
    // SAFETY: all-zero is a valid `sigaction`; its handler is a function of the right type that keeps to what a handler may do.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = fault as extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void) as libc::sighandler_t;
        action.sa_flags = libc::SA_SIGINFO;
        libc::sigaction(libc::SIGBUS, &action, ptr::null_mut());
    }
}

extern "C" fn fault(signal: libc::c_int, about: *mut libc::siginfo_t, _: *mut libc::c_void) {
    // SAFETY: the kernel gives a valid record, and SIGBUS has an address in it.
    let address = unsafe { (*about).si_addr() } as usize;
    for slot in &GUARDED {
        let (start, len) = (slot.start.load(Ordering::Acquire), slot.len.load(Ordering::Relaxed));
        if start == 0 || address.wrapping_sub(start) >= len {
            continue;
        }
        let (allowed, how) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE);
        // SAFETY: the range is that of a mapping of ours, whose bytes nobody takes for granted.
        let at = unsafe { libc::mmap(start as *mut libc::c_void, len, allowed, how | libc::MAP_FIXED, -1, 0) };
        if at != libc::MAP_FAILED {
            slot.broken.store(true, Ordering::Relaxed);
            return;
        }
    }
    // SAFETY: numbers only. The instruction is run again, and its fault ends the process.
    unsafe { libc::signal(signal, libc::SIG_DFL) };
}
