//! A guest's memory, as its front end shared it: regions of files, found by the guest's addresses or by the front end's.
//!
//! An address of the guest's is never believed further than to the end of its region; what crosses into the next one is looked up anew.
//! Nothing is seen as a slice, since the guest may write to it at any time: words are read once, volatile, and bytes are copied.
//!
//! Where a migration is under way every write is noted in the dirty log, a bit a page of 4 KiB.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicU8, Ordering};

use super::guard::Guarded;
use crate::sys;

const LOG_PAGE: u64 = 4096;
// statfs(2). Their page faults are answered by the kernel alone; those of others may wait for a program or a network.
const TMPFS: i64 = 0x0102_1994;
const HUGETLBFS: i64 = 0x9584_58f6;

/// A region as a front end describes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    pub guest: u64,
    pub size: u64,
    /// Its address in the front end's process, in which the addresses of rings are given.
    pub user: u64,
    /// Where it begins in its file.
    pub offset: u64,
}

struct Region {
    extent: Extent,
    map: Guarded,
    start: *mut u8,
}

#[derive(Default)]
pub struct Memory {
    regions: Vec<Region>,
    /// Where the last address was found.
    hot: usize,
    log: Option<Log>,
}

fn bad(why: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, why)
}

/// Map `len` bytes behind `offset` of a file that the kernel alone answers for, with what lies before them.
fn map(file: &OwnedFd, offset: u64, len: u64) -> io::Result<Guarded> {
    let (system, page) = sys::file_system(file.as_raw_fd())?;
    if system != TMPFS && system != HUGETLBFS {
        return Err(bad("memory is shared by a file of tmpfs or hugetlbfs, such as a memfd"));
    }
    let end = offset.checked_add(len).ok_or(bad("a region that wraps"))?;
    if end > sys::file_size(file.as_raw_fd())? {
        return Err(bad("a region beyond the end of its file"));
    }
    let end = usize::try_from(end).map_err(|_| bad("a region larger than the address space"))?;
    Guarded::new(file.as_raw_fd(), end, page.max(4096).next_power_of_two())
}

impl Memory {
    /// Map a region; refused where it is empty, wraps, is not in its file, or overlaps another one.
    pub fn add(&mut self, extent: Extent, file: &OwnedFd) -> io::Result<()> {
        let Extent { guest, size, user, offset } = extent;
        if size == 0 || guest.checked_add(size).is_none() || user.checked_add(size).is_none() {
            return Err(bad("a region that is empty or wraps"));
        }
        let apart = |one: u64, size: u64, other: u64, other_size: u64| one + size <= other || other + other_size <= one;
        let overlaps = |region: &Region| {
            let there = &region.extent;
            !apart(guest, size, there.guest, there.size) || !apart(user, size, there.user, there.size)
        };
        if self.regions.iter().any(overlaps) {
            return Err(bad("two regions overlap"));
        }
        let map = map(file, offset, size)?;
        // SAFETY: the mapping is longer than the offset.
        let start = unsafe { map.start().add(offset as usize) };
        self.regions.push(Region { extent, map, start });
        Ok(())
    }

    /// Take over the log of a memory that this one replaces.
    pub fn inherit(&mut self, before: &mut Memory) {
        self.log = before.log.take();
    }

    /// Has any of it been taken away by its owner?
    pub fn is_broken(&self) -> bool {
        self.regions.iter().any(|region| region.map.is_broken()) || self.log.as_ref().is_some_and(|log| log.map.is_broken())
    }

    /// Where the guest's `address` is and how many of `len` bytes (not 0) lie there in a row; None where nothing is.
    #[inline]
    pub fn find(&mut self, address: u64, len: usize) -> Option<(*mut u8, usize)> {
        if let Some(region) = self.regions.get(self.hot)
            && let Some(found) = region.find(address, len)
        {
            return Some(found);
        }
        let (at, found) = self.regions.iter().enumerate().find_map(|(at, region)| Some((at, region.find(address, len)?)))?;
        self.hot = at;
        Some(found)
    }

    /// Where `len` bytes at an address of the front end's are, whole, at a multiple of `align`.
    pub fn find_user(&self, address: u64, len: usize, align: usize) -> Option<*mut u8> {
        let inside = |region: &&Region| {
            let Extent { user, size, .. } = region.extent;
            address >= user && (address - user).checked_add(len as u64).is_some_and(|end| end <= size)
        };
        let region = self.regions.iter().find(inside)?;
        // SAFETY: the range was found to lie in the region.
        let at = unsafe { region.start.add((address - region.extent.user) as usize) };
        (at as usize).is_multiple_of(align).then_some(at)
    }

    /// Note writes in a bitmap that lies in a file, from now on; None: no more.
    pub fn set_log(&mut self, log: Option<(u64, u64, &OwnedFd)>) -> io::Result<()> {
        self.log = match log {
            None => None,
            Some((_, 0, _)) => return Err(bad("an empty log")),
            Some((offset, size, file)) => {
                let map = map(file, offset, size)?;
                // SAFETY: the mapping is longer than the offset.
                let start = unsafe { map.start().add(offset as usize) };
                Some(Log { map, start, pages: size.saturating_mul(8), on: false })
            }
        };
        Ok(())
    }

    /// Are writes to be noted (VHOST_F_LOG_ALL)?
    pub fn log_all(&mut self, on: bool) {
        if let Some(log) = &mut self.log {
            log.on = on;
        }
    }

    /// Note that the guest's bytes at `address` were written.
    #[inline]
    pub fn wrote(&self, address: u64, len: usize) {
        if let Some(log) = &self.log
            && log.on
        {
            log.mark(address, len);
        }
    }
}

impl Region {
    #[inline]
    fn find(&self, address: u64, len: usize) -> Option<(*mut u8, usize)> {
        let into = address.wrapping_sub(self.extent.guest);
        if into >= self.extent.size {
            return None;
        }
        // SAFETY: `into` is within the region.
        Some((unsafe { self.start.add(into as usize) }, len.min((self.extent.size - into) as usize)))
    }
}

struct Log {
    map: Guarded,
    start: *mut u8,
    pages: u64,
    on: bool,
}

impl Log {
    fn mark(&self, address: u64, len: usize) {
        let last = address.saturating_add(len.max(1) as u64 - 1) / LOG_PAGE;
        for page in address / LOG_PAGE..=last.min(self.pages.saturating_sub(1)) {
            // SAFETY: the byte of a page below `pages` lies in the mapping; the front end takes bits out of it atomically.
            unsafe { AtomicU8::from_ptr(self.start.add((page / 8) as usize)) }.fetch_or(1 << (page % 8), Ordering::Relaxed);
        }
    }
}
