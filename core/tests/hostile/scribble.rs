//! The worker that was taken over: a process that writes words into the arena, bursts of them, at places and of values that may hurt.

use std::os::fd::AsRawFd;
use std::time::Duration;

use _core::arena::Arena;
use _core::ports::{Port, Worker};
use _core::sys::Mapping;

/// A generator that anybody can repeat (xorshift64*).
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Random {
        Random(seed | 1)
    }

    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    pub fn below(&mut self, bound: u64) -> u64 {
        (self.next() >> 8) % bound
    }
}

/// What the honest workers use, where most of the words go.
pub struct Targets<'a> {
    pub lanes: &'a [(Worker, Worker)],
    pub workers: Worker,
    pub ports: Port,
}

struct Scribbler<'a> {
    arena: &'a Arena,
    targets: Targets<'a>,
    data: Vec<Mapping>,
    random: Random,
}

/// Write until the process is killed.
pub fn scribble(arena: &Arena, targets: Targets<'_>, seed: u64) {
    let lane_bytes = arena.lane_bytes() as usize;
    let data = |&(from, to): &(Worker, Worker)| Mapping::new(arena.fd().as_raw_fd(), arena.data_offset(from, to), lane_bytes);
    let data = targets.lanes.iter().map(data).collect::<Result<_, _>>().expect("addresses for the lanes");
    let mut scribbler = Scribbler { arena, targets, data, random: Random::new(seed) };
    loop {
        // Now a storm, now a word here and there, between which the others get somewhere.
        for _ in 0..1 << scribbler.random.below(9) {
            scribbler.write();
        }
        std::thread::sleep(Duration::from_micros(scribbler.random.below(300)));
    }
}

impl Scribbler<'_> {
    fn write(&mut self) {
        let (at, other) = (self.place(), self.place());
        // SAFETY: both places are words of mappings of ours.
        unsafe {
            let value = match self.random.below(8) {
                0 => self.random.next(),
                1 => self.random.below(16),
                2 => 1 << self.random.below(64),
                3 => (1 << self.random.below(64)) - 1,
                4 => u64::MAX - self.random.below(16),
                5 => other.read_volatile(),
                _ => at.read_volatile().wrapping_add((self.random.below(64) * 4).wrapping_sub(128)),
            };
            match self.random.below(4) {
                0 => at.cast::<u32>().write_volatile(value as u32),
                1 => at.cast::<u8>().add(self.random.below(8) as usize).write_volatile(value as u8),
                _ => at.write_volatile(value),
            }
        }
    }

    fn place(&mut self) -> *mut u64 {
        let Scribbler { arena, targets, data, random } = self;
        let lane = random.below(targets.lanes.len() as u64) as usize;
        let (from, to) = targets.lanes[lane];
        let worker = random.below(targets.workers.into()) as Worker;
        let port = random.below(targets.ports.into()) as Port;
        let (start, len) = match random.below(16) {
            0..5 => bytes(arena.control(from, to)),
            5..8 => (data[lane].start(), if random.below(2) == 0 { 4096 } else { data[lane].len() }),
            8 => bytes(arena.worker(worker)),
            9 | 10 => bytes(arena.port(port)),
            11 => bytes(arena.switch(random.below(2) as usize)),
            12 => bytes(arena.cell(worker, port)),
            13 => (self.region("tables"), 4 << 20),
            14 => (self.region("header"), 48),
            _ => {
                let regions = arena.regions();
                let (_, start, len) = regions[random.below(regions.len() as u64) as usize];
                (start, len)
            }
        };
        // SAFETY: a word inside of the range.
        unsafe { start.cast::<u64>().add(self.random.below(len as u64 / 8) as usize) }
    }

    fn region(&self, name: &str) -> *mut u8 {
        super::region(self.arena, name)
    }
}

fn bytes<T>(item: &T) -> (*mut u8, usize) {
    ((&raw const *item).cast_mut().cast(), size_of::<T>())
}
