//! The shared memory of a lab: one sparse object, laid out once, addressed by offsets.
//!
//! ```text
//!   header            magic, version, size, lane bytes, secret, generation
//!   workers[64]       beat, sleeping, lanes that come in
//!   switches[64]      mode, ageing, group addresses
//!   ports[1024]       policy (ports.rs)
//!   cells[64][1024]   counters by worker and port
//!   losses[64][1024]  frames of a port that were no more copied to the worker that captures it
//!   controls[64][64]  indices of the lane from one worker to another (index.rs)
//!   tables[64]        addresses of a switch (table.rs)
//!   data[64][64]      bytes of the lanes, mapped by those who use them (lane.rs)
//! ```
//!
//! Only what is touched takes memory. Everything up to the lanes' data is mapped by every process of the lab.

use std::io;
use std::os::fd::RawFd;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use crate::bell::Sleeping;
use crate::index::Control;
pub use crate::ports::PORTS;
use crate::ports::{Cell, Port, Record, Worker};
use crate::sys::{self, Mapping};
use crate::table::{SLOTS, Slot, Table};

pub const WORKERS: usize = 64;
pub const SWITCHES: usize = 64;

/// The least a lane can hold; it grows to the arena's `lane_bytes` when it carries bulk.
pub const LANE_LEAST: u64 = 256 << 10;
pub const LANE_MOST: u64 = 64 << 20;

const MAGIC: u64 = 0x74_65_6e_64_72_61_68_73; // "shardnet", little-endian
const VERSION: u64 = 4;

#[repr(C, align(4096))]
struct Header {
    magic: AtomicU64,
    version: AtomicU64,
    size: AtomicU64,
    lane_bytes: AtomicU64,
    /// Keeps guests from choosing addresses that meet in one bucket of a table.
    secret: AtomicU64,
    /// Moves on when a switch or a port was configured anew.
    generation: AtomicU64,
}

/// What a worker says of itself.
#[repr(C, align(128))]
pub struct WorkerRecord {
    /// Changes at every turn of the worker's loop.
    pub beat: Beat,
    pub sleeping: Sleeping,
    /// A bit a worker that has ever sent to this one.
    pub senders: Senders,
    pub snaplen: Snaplen,
}

#[repr(C, align(128))]
pub struct Beat(pub AtomicU64);

#[repr(C, align(128))]
pub struct Senders(pub AtomicU64);

/// Of a worker that captures: how much of a frame it wants to have; 0: all of it.
#[repr(C, align(128))]
pub struct Snaplen(pub AtomicU32);

/// Written by the supervisor.
#[repr(C, align(128))]
pub struct SwitchRecord {
    pub hub: AtomicU32,
    pub age_s: AtomicU32,
    /// A bit a group address 01-80-c2-00-00-0X that is forwarded.
    pub reserved: AtomicU32,
}

const fn after<T>(offset: usize, count: usize) -> usize {
    let end = offset + count * size_of::<T>();
    (end + 4095) & !4095
}

const WORKERS_AT: usize = size_of::<Header>();
const SWITCHES_AT: usize = after::<WorkerRecord>(WORKERS_AT, WORKERS);
const PORTS_AT: usize = after::<SwitchRecord>(SWITCHES_AT, SWITCHES);
const CELLS_AT: usize = after::<Record>(PORTS_AT, PORTS);
const LOSSES_AT: usize = after::<Cell>(CELLS_AT, WORKERS * PORTS);
const CONTROLS_AT: usize = after::<AtomicU64>(LOSSES_AT, WORKERS * PORTS);
const TABLES_AT: usize = after::<Control>(CONTROLS_AT, WORKERS * WORKERS);
const DATA_AT: usize = after::<Slot>(TABLES_AT, SWITCHES * SLOTS);

pub struct Arena {
    fd: RawFd,
    map: Mapping,
    lane_bytes: u64,
    secret: u64,
}

impl Arena {
    /// Lay out a new arena in an empty object. The descriptor stays the caller's and open as long as the arena.
    pub fn create(fd: RawFd, lane_bytes: u64) -> io::Result<Arena> {
        if !lane_bytes.is_power_of_two() || !(LANE_LEAST..=LANE_MOST).contains(&lane_bytes) {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "a lane holds 256 KiB to 64 MiB, a power of two"));
        }
        if sys::file_size(fd)? != 0 {
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, "the object is not empty"));
        }
        let size = DATA_AT as u64 + (WORKERS * WORKERS) as u64 * lane_bytes;
        sys::truncate(fd, size)?;
        sys::allocate(fd, 0, CELLS_AT as u64)?;
        let map = Mapping::new(fd, 0, DATA_AT)?;
        let arena = Arena { fd, map, lane_bytes, secret: sys::random()? };
        let header = arena.header();
        header.version.store(VERSION, Ordering::Relaxed);
        header.size.store(size, Ordering::Relaxed);
        header.lane_bytes.store(lane_bytes, Ordering::Relaxed);
        header.secret.store(arena.secret, Ordering::Relaxed);
        header.magic.store(MAGIC, Ordering::Release);
        Ok(arena)
    }

    /// Map an arena that another process laid out.
    pub fn attach(fd: RawFd) -> io::Result<Arena> {
        let wrong = |why| io::Error::new(io::ErrorKind::InvalidData, why);
        let size = sys::file_size(fd)?;
        if size < DATA_AT as u64 {
            return Err(wrong("no arena: too small"));
        }
        let mut arena = Arena { fd, map: Mapping::new(fd, 0, DATA_AT)?, lane_bytes: 0, secret: 0 };
        let header = arena.header();
        if header.magic.load(Ordering::Acquire) != MAGIC {
            return Err(wrong("no arena: wrong magic"));
        }
        if header.version.load(Ordering::Relaxed) != VERSION {
            return Err(wrong("an arena of another version"));
        }
        let lane_bytes = header.lane_bytes.load(Ordering::Relaxed);
        let fits = lane_bytes.is_power_of_two()
            && (LANE_LEAST..=LANE_MOST).contains(&lane_bytes)
            && size == DATA_AT as u64 + (WORKERS * WORKERS) as u64 * lane_bytes;
        if !fits {
            return Err(wrong("an arena of another size"));
        }
        let secret = header.secret.load(Ordering::Relaxed);
        arena.lane_bytes = lane_bytes;
        arena.secret = secret;
        Ok(arena)
    }

    pub fn fd(&self) -> RawFd {
        self.fd
    }

    pub fn lane_bytes(&self) -> u64 {
        self.lane_bytes
    }

    /// Item `index` of a region. Every caller has checked `index` against the region's count.
    fn item<T>(&self, offset: usize, index: usize) -> &T {
        let at = offset + index * size_of::<T>();
        assert!(at + size_of::<T>() <= self.map.len());
        // SAFETY: inside the mapping (asserted), aligned (regions begin on pages), all of it atomics, for which any
        // bytes are a value and which other processes may change; it lives as long as the mapping.
        unsafe { &*self.map.start().add(at).cast::<T>() }
    }

    fn header(&self) -> &Header {
        self.item(0, 0)
    }

    pub fn generation(&self) -> u64 {
        self.header().generation.load(Ordering::Acquire)
    }

    /// Tell all workers to read the configuration again.
    pub fn advance(&self) {
        self.header().generation.fetch_add(1, Ordering::Release);
    }

    pub fn worker(&self, worker: Worker) -> &WorkerRecord {
        assert!(usize::from(worker) < WORKERS);
        self.item(WORKERS_AT, worker.into())
    }

    /// The workers that ever ran. What belongs to the others was never touched and takes no memory.
    pub fn workers(&self) -> impl Iterator<Item = Worker> + '_ {
        (0..WORKERS as Worker).filter(|&worker| self.worker(worker).beat.0.load(Ordering::Relaxed) != 0)
    }

    pub fn switch(&self, switch: usize) -> &SwitchRecord {
        assert!(switch < SWITCHES);
        self.item(SWITCHES_AT, switch)
    }

    pub fn port(&self, port: Port) -> &Record {
        assert!(usize::from(port) < PORTS);
        self.item(PORTS_AT, port.into())
    }

    pub fn cell(&self, worker: Worker, port: Port) -> &Cell {
        assert!(usize::from(worker) < WORKERS && usize::from(port) < PORTS);
        self.item(CELLS_AT, usize::from(worker) * PORTS + usize::from(port))
    }

    /// Frames of a port that a worker which captures it did not get. Several workers may count here.
    pub fn loss(&self, captor: Worker, port: Port) -> &AtomicU64 {
        assert!(usize::from(captor) < WORKERS && usize::from(port) < PORTS);
        self.item(LOSSES_AT, usize::from(captor) * PORTS + usize::from(port))
    }

    pub fn control(&self, from: Worker, to: Worker) -> &Control {
        self.item(CONTROLS_AT, Arena::lane(from, to))
    }

    pub fn table(&self, switch: usize) -> Table<'_> {
        assert!(switch < SWITCHES);
        let at = TABLES_AT + switch * SLOTS * size_of::<Slot>();
        assert!(at + SLOTS * size_of::<Slot>() <= self.map.len());
        // SAFETY: as in `item`; a slot is two atomics.
        let slots = unsafe { std::slice::from_raw_parts(self.map.start().add(at).cast::<Slot>(), SLOTS) };
        Table::new(slots, self.secret)
    }

    /// The regions by name, for tests that write where nobody should.
    #[doc(hidden)]
    pub fn regions(&self) -> Vec<(&'static str, *mut u8, usize)> {
        let begins = [
            ("header", 0),
            ("workers", WORKERS_AT),
            ("switches", SWITCHES_AT),
            ("ports", PORTS_AT),
            ("cells", CELLS_AT),
            ("losses", LOSSES_AT),
            ("controls", CONTROLS_AT),
            ("tables", TABLES_AT),
        ];
        let ends = begins.iter().skip(1).map(|(_, begin)| *begin).chain([DATA_AT]);
        let region = |((name, begin), end): (&(_, usize), usize)| (*name, self.map.start().wrapping_add(*begin), end - begin);
        begins.iter().zip(ends).map(region).collect()
    }

    /// Where the bytes of a lane begin in the object.
    pub fn data_offset(&self, from: Worker, to: Worker) -> u64 {
        DATA_AT as u64 + Arena::lane(from, to) as u64 * self.lane_bytes
    }

    fn lane(from: Worker, to: Worker) -> usize {
        assert!(usize::from(from) < WORKERS && usize::from(to) < WORKERS);
        usize::from(from) * WORKERS + usize::from(to)
    }
}
