//! The device's side of a split virtqueue (VIRTIO 1.2, clause 2.7).
//!
//! ```text
//!   available  | flags | idx | ring[size] of heads        | used_event  |   written by the driver
//!   used       | flags | idx | ring[size] of (head, len)  | avail_event |   written here
//!   table      | address, len, flags, next | ...                           written by the driver
//! ```
//!
//! Each word of the driver's is read once and checked. A head beyond the table or an index that jumps by more than the ring is long cannot be
//! mended, for nothing says which buffers are whose: the ring is `Broken`, and stops. A chain that loops, leads nowhere or leaves the guest's
//! memory is a `BadChain`: it is given back, and the ring goes on.
//!
//! Buffers are given back in the order in which they came, and shown to the driver a batch at a time. So the used index alone says where a
//! successor of ours goes on, and a worker that dies has at most a batch done twice.

use std::ptr;
use std::sync::atomic::{AtomicU16, Ordering, fence};

use super::memory::Memory;

pub const SIZE_MOST: u32 = 32_768;
/// Descriptors of one frame, those of an indirect table or of merged buffers among them.
pub const CHAIN_MOST: usize = 1024;

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;
/// Of a descriptor; also of an entry of the used ring, less half.
const DESCRIPTOR: usize = 16;

const NO_INTERRUPT: u16 = 1;
const NO_NOTIFY: u16 = 1;

/// The driver wrote what cannot be; nothing more is to be read from this ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Broken;

/// Descriptors that make no buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BadChain;

/// Where the parts of a ring are, in the front end's addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Places {
    pub table: u64,
    pub available: u64,
    pub used: u64,
    /// The guest's address of the used ring, where writes to it are to be noted in the dirty log.
    pub log: Option<u64>,
}

/// A ring in use.
pub struct Ring {
    table: *const u8,
    available: *mut u8,
    used: *mut u8,
    log: Option<u64>,
    size: u16,
    event_index: bool,
    indirect: bool,
    /// We asked not to be told of new chains.
    deaf: bool,
    /// The next entry of both rings, and the driver's index when it was last read.
    next: u16,
    seen: u16,
    /// Our index as the driver was shown it.
    shown: u16,
}

impl Ring {
    /// Begin where the used ring says that a predecessor ended; None where a part is outside the memory.
    ///
    /// `size` is a power of two up to SIZE_MOST.
    pub fn new(memory: &Memory, size: u32, places: &Places, event_index: bool, indirect: bool) -> Option<Ring> {
        let mut ring = Ring {
            table: ptr::null(),
            available: ptr::null_mut(),
            used: ptr::null_mut(),
            log: None,
            size: size as u16, // 32,768 at most
            event_index,
            indirect,
            deaf: false,
            next: 0,
            seen: 0,
            shown: 0,
        };
        ring.find(memory, places)?;
        // What was given back is done; what was not is looked at again.
        let shown = ring.index(ring.used).load(Ordering::Relaxed);
        (ring.next, ring.seen, ring.shown) = (shown, shown, shown);
        Some(ring)
    }

    /// Look the parts up, anew after a change of the memory; None, and no change, where one is outside.
    pub fn find(&mut self, memory: &Memory, places: &Places) -> Option<()> {
        let size = usize::from(self.size);
        let table = memory.find_user(places.table, DESCRIPTOR * size, 16)?;
        let available = memory.find_user(places.available, 6 + 2 * size, 2)?;
        let used = memory.find_user(places.used, 6 + 8 * size, 4)?;
        (self.table, self.available, self.used, self.log) = (table, available, used, places.log);
        Some(())
    }

    /// Where the next frame would have begun: what a front end is told when the ring stops.
    pub fn position(&self) -> u16 {
        self.next
    }

    fn index(&self, part: *mut u8) -> &AtomicU16 {
        // SAFETY: a ring's part begins with two aligned words, mapped for as long as the ring is.
        unsafe { AtomicU16::from_ptr(part.add(2).cast()) }
    }

    fn flags(&self, part: *mut u8) -> &AtomicU16 {
        // SAFETY: as above.
        unsafe { AtomicU16::from_ptr(part.cast()) }
    }

    /// The word behind the available ring (the driver's) or the used one (ours).
    fn event(&self, part: *mut u8, entry: usize) -> &AtomicU16 {
        // SAFETY: `find` looked up room for the entries and this word.
        unsafe { AtomicU16::from_ptr(part.add(4 + entry * usize::from(self.size)).cast()) }
    }

    /// How many chains wait behind `from`, which is between `next` and the last known index.
    #[inline]
    pub fn waiting(&mut self, from: u16) -> Result<u16, Broken> {
        if self.seen != from {
            return Ok(self.seen.wrapping_sub(from));
        }
        self.look()?;
        Ok(self.seen.wrapping_sub(from))
    }

    /// Read the driver's index, which goes forward, and no further than the ring is long.
    fn look(&mut self) -> Result<(), Broken> {
        let index = self.index(self.available).load(Ordering::Acquire);
        let ahead = index.wrapping_sub(self.next);
        if ahead > self.size || ahead < self.seen.wrapping_sub(self.next) {
            return Err(Broken);
        }
        self.seen = index;
        Ok(())
    }

    /// Are all buffers that the ring can hold in our hands?
    pub fn is_all_ours(&self) -> bool {
        self.seen.wrapping_sub(self.next) == self.size
    }

    /// The head of the chain at a position that `waiting` has shown.
    #[inline]
    pub fn head(&self, position: u16) -> Result<u16, Broken> {
        let entry = usize::from(position & (self.size - 1));
        // SAFETY: the entry is below the size; the word is aligned.
        let head = unsafe { self.available.add(4 + 2 * entry).cast::<u16>().read_volatile() };
        if head < self.size { Ok(head) } else { Err(Broken) }
    }

    #[inline]
    pub fn chain(&self, head: u16) -> Chain {
        Chain { table: self.table, size: self.size.into(), next: Some(head), left: self.size.into(), indirect: self.indirect }
    }

    /// Give the chain at `next` back, with `len` bytes written; the driver is shown it by `publish`.
    #[inline]
    pub fn complete(&mut self, head: u16, len: u32) {
        let entry = 4 + 8 * usize::from(self.next & (self.size - 1));
        // SAFETY: the entry lies in the used ring; its words are aligned to 4.
        unsafe {
            let at = self.used.add(entry).cast::<u32>();
            at.write_volatile(head.into());
            at.add(1).write_volatile(len);
        }
        self.next = self.next.wrapping_add(1);
    }

    /// Show the driver what was given back; true where it asked to be told.
    pub fn publish(&mut self, memory: &Memory) -> bool {
        if self.next == self.shown {
            return false;
        }
        self.index(self.used).store(self.next, Ordering::Release);
        if let Some(log) = self.log {
            memory.wrote(log, 6 + 8 * usize::from(self.size)); // a page or two; more is looked at only in large rings
        }
        let before = std::mem::replace(&mut self.shown, self.next);
        fence(Ordering::SeqCst); // the index, then the driver's wish: it writes the wish and then looks at the index
        if !self.event_index {
            return self.flags(self.available).load(Ordering::Relaxed) & NO_INTERRUPT == 0;
        }
        let wish = self.event(self.available, 2).load(Ordering::Relaxed);
        self.next.wrapping_sub(wish).wrapping_sub(1) < self.next.wrapping_sub(before)
    }

    /// Ask to be told of the next chain; true where one has come meanwhile.
    pub fn listen(&mut self, memory: &Memory) -> Result<bool, Broken> {
        if self.event_index {
            self.event(self.used, 8).store(self.seen, Ordering::Relaxed);
        } else {
            self.flags(self.used).store(0, Ordering::Relaxed);
            self.deaf = false;
        }
        if let Some(log) = self.log {
            memory.wrote(log, 6 + 8 * usize::from(self.size));
        }
        fence(Ordering::SeqCst);
        let before = self.seen;
        self.look()?;
        Ok(self.seen != before)
    }

    /// Ask not to be told for a while. An event index that lies behind says so by itself.
    pub fn deafen(&mut self) {
        if !self.event_index && !self.deaf {
            self.flags(self.used).store(NO_NOTIFY, Ordering::Relaxed);
            self.deaf = true;
        }
    }
}

/// A part of a chain.
#[derive(Debug, Clone, Copy)]
pub struct Buffer {
    pub address: u64,
    pub len: u32,
    /// It is there for the device to write to.
    pub is_writable: bool,
}

/// A chain, descriptor by descriptor; it ends whatever the driver wrote.
pub struct Chain {
    table: *const u8,
    size: u32,
    next: Option<u16>,
    left: u32,
    indirect: bool,
}

impl Chain {
    #[inline]
    pub fn buffer(&mut self, memory: &mut Memory) -> Result<Option<Buffer>, BadChain> {
        let Some(next) = self.next else { return Ok(None) };
        let (address, len, flags, following) = self.descriptor(next)?;
        if flags & INDIRECT != 0 {
            self.enter(memory, address, len, flags)?;
            let (address, len, flags, following) = self.descriptor(0)?;
            if flags & INDIRECT != 0 {
                return Err(BadChain); // a table in a table
            }
            return Ok(Some(self.step(address, len, flags, following)));
        }
        Ok(Some(self.step(address, len, flags, following)))
    }

    #[inline]
    fn step(&mut self, address: u64, len: u32, flags: u16, following: u16) -> Buffer {
        self.next = (flags & NEXT != 0).then_some(following);
        Buffer { address, len, is_writable: flags & WRITE != 0 }
    }

    /// Go on in the table that a descriptor names (VIRTIO 1.2, clause 2.7.5.3).
    fn enter(&mut self, memory: &mut Memory, address: u64, len: u32, flags: u16) -> Result<(), BadChain> {
        let bytes = len as usize;
        if !self.indirect || flags & NEXT != 0 || bytes == 0 || !bytes.is_multiple_of(DESCRIPTOR) {
            return Err(BadChain);
        }
        let (table, found) = memory.find(address, bytes).ok_or(BadChain)?;
        if found < bytes {
            return Err(BadChain); // in two regions: no driver's allocator makes that
        }
        self.table = table;
        self.size = len / DESCRIPTOR as u32;
        self.left = self.size.min(CHAIN_MOST as u32);
        self.indirect = false; // no second one
        Ok(())
    }

    /// Read a descriptor, once; the number of those that a chain may have runs out.
    #[inline]
    fn descriptor(&mut self, index: u16) -> Result<(u64, u32, u16, u16), BadChain> {
        if u32::from(index) >= self.size || self.left == 0 {
            return Err(BadChain);
        }
        self.left -= 1;
        // SAFETY: the table has `size` descriptors, and `index` is below that.
        let at = unsafe { self.table.add(DESCRIPTOR * usize::from(index)) };
        let [address, rest] = words(at);
        Ok((address, rest as u32, (rest >> 32) as u16, (rest >> 48) as u16))
    }
}

/// Two words of memory that another may write, each byte read once. A table of the driver's may lie anywhere.
#[inline]
fn words(at: *const u8) -> [u64; 2] {
    if (at as usize).is_multiple_of(8) {
        let at = at.cast::<u64>();
        // SAFETY: the caller has sixteen bytes there, aligned as just seen.
        return unsafe { [at.read_volatile(), at.add(1).read_volatile()] };
    }
    // SAFETY: the caller has sixteen bytes there.
    let byte = |index: usize| u64::from(unsafe { at.add(index).read_volatile() });
    let word = |first: usize| (0..8).fold(0, |word, index| word | byte(first + index) << (8 * index));
    [word(0), word(8)]
}
