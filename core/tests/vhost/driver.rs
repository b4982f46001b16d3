//! A driver of the rings of one device, in the memory that both share: the guest's side, honest or not.

use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};

use _core::port::vhost::{Extent, Places, Vhost, feature};
use _core::sys::{self, Mapping};
use _core::testing;

pub const BYTES: usize = 8 << 20;
/// The memory is two regions, one behind the other in the guest and far apart in the front end.
const HALF: u64 = BYTES as u64 / 2;
pub const GUEST: u64 = 0x4000_0000;
const USER: [u64; 2] = [0x7f00_0000_0000, 0x7e00_0000_0000];

pub const RECEIVE: usize = 0;
pub const TRANSMIT: usize = 1;
pub const SIZE: u16 = 64;
/// Of ring n, at n * RING: its table, what is available, what is used, tables for its descriptors.
const RING: usize = 0x4_0000;
const AVAILABLE: usize = 0x1000;
const USED: usize = 0x2000;
const INDIRECT: usize = 0x4000;
/// All that is not for frames.
pub const CONTROL: usize = 2 * RING;

pub const NEXT: u16 = 1;
pub const WRITE: u16 = 2;
pub const TABLE: u16 = 4;

pub struct Driver {
    pub file: File,
    map: Mapping,
    pub device: Vhost,
    /// The next free byte for buffers.
    free: usize,
    /// Per ring: entries made available, entries seen back.
    posted: [u16; 2],
    taken: [u16; 2],
}

pub fn bell() -> OwnedFd {
    use std::os::fd::FromRawFd;
    let bell = testing::bells(1, 0)[0];
    // SAFETY: it was just made, and nobody else owns it.
    unsafe { OwnedFd::from_raw_fd(bell) }
}

impl Driver {
    pub fn new(features: u64) -> Driver {
        let file = testing::memory();
        sys::truncate(file.as_raw_fd(), BYTES as u64).expect("room in memory");
        let map = Mapping::new(file.as_raw_fd(), 0, BYTES).expect("a mapping");
        let mut driver = Driver { file, map, device: Vhost::new(1), free: CONTROL, posted: [0; 2], taken: [0; 2] };
        driver.device.set_features(features | feature::VERSION_1);
        driver.share().expect("memory that fits");
        for ring in [RECEIVE, TRANSMIT] {
            driver.start(ring).expect("a ring that fits");
        }
        driver
    }

    /// Tell the device of the memory.
    pub fn share(&mut self) -> std::io::Result<()> {
        let region = |half: u64| {
            let extent = Extent { guest: GUEST + half * HALF, size: HALF, user: USER[half as usize], offset: half * HALF };
            (extent, OwnedFd::from(self.file.try_clone().expect("a descriptor")))
        };
        let regions = vec![region(0), region(1)];
        self.device.set_memory(regions)
    }

    /// Set a ring up that does not run.
    pub fn start(&mut self, ring: usize) -> std::io::Result<()> {
        let at = USER[0] + (ring * RING) as u64;
        let places = Places { table: at, available: at + AVAILABLE as u64, used: at + USED as u64, log: None };
        self.device.set_size(ring, SIZE.into())?;
        self.device.set_places(ring, places)?;
        self.device.set_kick(ring, bell())?;
        self.device.enable(ring, true)
    }

    pub fn poke(&self, at: usize, bytes: &[u8]) {
        assert!(at + bytes.len() <= BYTES);
        // SAFETY: the range is in the mapping; the device runs in this thread.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), self.map.start().add(at), bytes.len()) };
    }

    pub fn peek(&self, at: usize, len: usize) -> Vec<u8> {
        assert!(at + len <= BYTES);
        let mut bytes = vec![0; len];
        // SAFETY: as above.
        unsafe { std::ptr::copy_nonoverlapping(self.map.start().add(at), bytes.as_mut_ptr(), len) };
        bytes
    }

    fn word(&self, at: usize) -> u16 {
        u16::from_le_bytes([self.peek(at, 1)[0], self.peek(at + 1, 1)[0]])
    }

    /// Room for a buffer; `skip` bytes are left before it.
    pub fn room(&mut self, len: usize, skip: usize) -> usize {
        let at = self.free + skip;
        self.free = at + len;
        assert!(self.free <= BYTES, "the driver has no memory left");
        at
    }

    /// Begin the buffers at this byte: to have one cross from region to region.
    pub fn from(&mut self, at: usize) {
        self.free = at;
    }

    pub fn middle() -> usize {
        HALF as usize
    }

    fn descriptor(&self, at: usize, address: usize, len: usize, flags: u16, next: u16) {
        let mut bytes = (GUEST + address as u64).to_le_bytes().to_vec();
        bytes.extend((len as u32).to_le_bytes());
        bytes.extend(flags.to_le_bytes());
        bytes.extend(next.to_le_bytes());
        self.poke(at, &bytes);
    }

    /// Make a chain available: its buffers as (place, length), in a table of its own where `indirect`.
    ///
    /// Direct descriptors are numbered from `first` on; returns the next free number.
    pub fn post(&mut self, ring: usize, buffers: &[(usize, usize)], first: u16, indirect: bool) -> u16 {
        let writes = if ring == RECEIVE { WRITE } else { 0 };
        let base = ring * RING;
        let (table, start) = if indirect {
            let table = base + INDIRECT + usize::from(first) * 16 * 64;
            self.descriptor(base + 16 * usize::from(first), table, 16 * buffers.len(), TABLE, 0);
            (table, 0)
        } else {
            (base, first)
        };
        for (number, &(at, len)) in buffers.iter().enumerate() {
            let index = start + number as u16;
            let more = if number + 1 < buffers.len() { NEXT } else { 0 };
            self.descriptor(table + 16 * usize::from(index), at, len, writes | more, index + 1);
        }
        let slot = base + AVAILABLE + 4 + 2 * usize::from(self.posted[ring] % SIZE);
        self.poke(slot, &first.to_le_bytes());
        self.posted[ring] = self.posted[ring].wrapping_add(1);
        self.poke(base + AVAILABLE + 2, &self.posted[ring].to_le_bytes());
        first + if indirect { 1 } else { buffers.len() as u16 }
    }

    /// The chains that came back since the last call: head and length.
    pub fn used(&mut self, ring: usize) -> Vec<(u16, usize)> {
        let base = ring * RING + USED;
        let index = self.word(base + 2);
        let mut back = Vec::new();
        while self.taken[ring] != index {
            let entry = self.peek(base + 4 + 8 * usize::from(self.taken[ring] % SIZE), 8);
            let word = |at: usize| u32::from_le_bytes([entry[at], entry[at + 1], entry[at + 2], entry[at + 3]]);
            back.push((word(0) as u16, word(4) as usize));
            self.taken[ring] = self.taken[ring].wrapping_add(1);
        }
        back
    }
}
