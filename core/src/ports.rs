//! What the shared memory says of a port: its place in the switch, its policy, its counters.
//!
//! The supervisor writes the policy, workers read it; each worker counts in a cell of its own, so every counter has
//! one writer and survives it. A port's number is the sum over the workers.

use std::ops::Range;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use crate::impair;

/// Port ids are below this; 0 is nobody.
pub const PORTS: usize = 1024;

pub type Port = u16;
pub type Worker = u8;

/// No port: in a record, "to everybody".
pub const NOBODY: Port = 0;

pub const USED: u32 = 1;
pub const UP: u32 = 2;
pub const ISOLATED: u32 = 4;
/// What leaves by the port, or what comes in, goes over a line with faults.
pub const IMPAIRED_OUT: u32 = 8;
pub const IMPAIRED_IN: u32 = 16;
/// The port writes down what passes others, and is no port to flood.
pub const CAPTURE: u32 = 32;

/// How a port treats 802.1Q tags.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Vlan {
    /// Tags pass as they are; untagged frames are in domain 0.
    Plain,
    /// Untagged, all in one VLAN.
    Access(u16),
    /// Tagged with the VLANs of the bitmap; untagged is the native VLAN, or refused where that is 0.
    Trunk { native: u16 },
}

/// A direction of a port: to its guest, or from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    Out,
    In,
}

/// Of `Record::link`: nothing that is sent arrives.
pub const NO_LINK: u32 = u32::MAX;

/// Written by the supervisor, but for `macs`, `pressed` and `link`.
#[repr(C, align(128))]
pub struct Record {
    pub flags: AtomicU32,
    pub worker: AtomicU32,
    pub switch: AtomicU32,
    pub mode: AtomicU32,
    /// The VLAN of an access port, the native VLAN of a trunk.
    pub vlan: AtomicU32,
    pub max_macs: AtomicU32,
    pub mtu: AtomicU32,
    /// Addresses of this port in the table, live or aged; counted by all workers.
    pub macs: AtomicU32,
    /// The port that hands frames over to this one, which then is a companion of that and no port to flood; NOBODY: none.
    pub behind: AtomicU32,
    /// Over how many shards the frames for this port are spread, itself among them; 0 and 1: it has them all.
    pub shards: AtomicU32,
    /// Which of the shards of the port `behind` this is; 0: none of them, but another companion.
    pub share: AtomicU32,
    /// Not 0 while what waits in front of the port's descriptor is enough; its worker says so (shard/pressure.rs).
    pub pressed: AtomicU32,
    /// What the interface behind the port takes now: packets of so many bytes at most, 0: of any length, `NO_LINK`: none, it has no
    /// carrier. Written by the worker that carries it, for those that it is lent to.
    pub link: AtomicU32,
    /// A bit a worker that captures what passes here.
    pub mirror: AtomicU64,
    pub trunk: [AtomicU64; 64],
    /// The faults of the line that leads out, and of the one that leads in (`impair::Settings`).
    pub impair: [[AtomicU64; impair::WORDS]; 2],
}

impl Record {
    pub fn configure_vlan(&self, vlan: Vlan, trunk: &[u16]) {
        let mut map = [0u64; 64];
        for &vid in trunk {
            map[usize::from(vid & 0xfff) / 64] |= 1 << (vid % 64);
        }
        for (word, bits) in self.trunk.iter().zip(map) {
            word.store(bits, Ordering::Relaxed);
        }
        let (mode, vid) = match vlan {
            Vlan::Plain => (0, 0),
            Vlan::Access(vid) => (1, vid),
            Vlan::Trunk { native } => (2, native),
        };
        self.mode.store(mode, Ordering::Relaxed);
        self.vlan.store(u32::from(vid), Ordering::Relaxed);
    }

    pub fn vlan(&self) -> Vlan {
        let vid = self.vlan.load(Ordering::Relaxed) as u16 & 0xfff;
        match self.mode.load(Ordering::Relaxed) {
            0 => Vlan::Plain,
            1 => Vlan::Access(vid),
            _ => Vlan::Trunk { native: vid },
        }
    }

    pub fn configure_line(&self, way: Way, settings: &impair::Settings) {
        for (word, value) in self.impair[way as usize].iter().zip(settings.words()) {
            word.store(value, Ordering::Relaxed);
        }
    }

    pub fn line(&self, way: Way) -> impair::Settings {
        let words = &self.impair[way as usize];
        impair::Settings::read(&std::array::from_fn(|index| words[index].load(Ordering::Relaxed)))
    }

    pub fn trunks(&self, vid: u16) -> bool {
        self.trunk[usize::from(vid & 0xfff) / 64].load(Ordering::Relaxed) >> (vid % 64) & 1 == 1
    }
}

macro_rules! named {
    ($(#[$meta:meta])* $kind:ident, $names:ident: $($(#[$doc:meta])* $variant:ident = $name:literal),+ $(,)?) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        #[repr(usize)]
        pub enum $kind { $($(#[$doc])* $variant),+ }
        pub const $names: &[&str] = &[$($name),+];
    };
}

named! {
    /// A number that a worker counts for a port.
    Counter, COUNTERS:
    RxBytes = "rx_bytes",
    /// Frames that went to at least one other port's worker.
    Forwarded = "forwarded",
    /// Frames that no other port was to have.
    Filtered = "filtered",
    TxFrames = "tx_frames",
    TxBytes = "tx_bytes",
    /// Super-frames taken in.
    RxSuper = "rx_super",
    /// Super-frames given out uncut.
    TxSuper = "tx_super",
    /// Super-frames cut at this port's egress, or on its line in.
    Segmented = "segmented",
    /// Partial checksums completed at this port's egress, or on its line in.
    Checksummed = "checksummed",
    /// Flooded frames among those forwarded.
    Flooded = "flooded",
    /// Copies of flooded frames for which a lane had no room.
    CopiesLost = "copies_lost",
    /// Frames taken from the descriptor. Those among them that have met no fate yet are in hand.
    RxTaken = "rx_taken",
    /// Frames offered to the descriptor. Those among them that neither went nor were dropped are queued.
    Offered = "offered",
    /// Frames offered that went on to a companion of the port: a service that answers in its name.
    HandedOver = "handed_over",
}

named! {
    /// Why a frame was dropped.
    Cause, CAUSES:
    /// Shorter than an Ethernet header.
    Runt = "runt",
    /// Longer than the port's mtu, or than any frame can be.
    Oversize = "oversize",
    /// A group address, or zero, as the source.
    BadSource = "bad_source",
    /// A virtio-net header that does not fit its frame.
    BadOffload = "bad_offload",
    /// Descriptors of a guest's that make no frame.
    BadChain = "bad_chain",
    /// A tunnel's header that makes no sense.
    BadHeader = "bad_header",
    /// Of a VNI, a session or a far end that is not the port's, or with another cookie.
    Foreign = "foreign",
    /// A tag that the port does not carry.
    Vlan = "vlan",
    /// A new source address over the port's max_macs.
    MacLimit = "mac_limit",
    /// A group address that bridges keep to themselves (IEEE 802.1D-2004, 7.12.6).
    Reserved = "reserved",
    /// The port is administratively down.
    Down = "down",
    /// The receiving worker is not keeping up.
    LaneFull = "lane_full",
    /// No memory for a lane (/dev/shm is full).
    NoMemory = "no_memory",
    /// Lost on purpose, by the port's line in.
    ImpairLoss = "impair_loss",
    /// More than the port's line in holds.
    ImpairQueue = "impair_queue",
    /// The port's queue in the kernel was full, or it was a super-frame of a kind that has no virtio-net header.
    Overrun = "overrun",
    /// Taken from the descriptor by a worker that died before it went on.
    WorkerDied = "worker_died",
    TxOversize = "tx_oversize",
    TxFull = "tx_full",
    /// A new flow of a user-mode network: all of max-flows, or this guest's part of them, is in use.
    TxFlows = "tx_flows",
    /// The same: its worker may have no more descriptors, or this guest no more of them.
    TxSockets = "tx_sockets",
    /// The same: no port of this host is free.
    TxPorts = "tx_ports",
    TxError = "tx_error",
    TxDown = "tx_down",
    /// A virtio-net header that does not fit its frame, met where it had to be obeyed.
    TxOffload = "tx_offload",
    /// Descriptors of a guest's that make no buffer.
    TxBadChain = "tx_bad_chain",
    /// A tag that may not leave through the port.
    TxVlan = "tx_vlan",
    /// The port changed its switch, its VLANs or its isolation while the frame was under way.
    TxChanged = "tx_changed",
    /// Lost on purpose, by the port's line out.
    TxImpairLoss = "tx_impair_loss",
    /// More than the port's line out holds.
    TxImpairQueue = "tx_impair_queue",
    /// In front of the descriptor of a worker that died. Some of them may have gone.
    TxWorkerDied = "tx_worker_died",
}

pub const FIRST_EGRESS: usize = Cause::TxOversize as usize;

/// A sum of counters. They are what their writers say, so it may wrap.
pub fn total(counters: impl IntoIterator<Item = u64>) -> u64 {
    counters.into_iter().fold(0, u64::wrapping_add)
}

/// What one worker counts for one port: one writer, plain words.
///
/// A frame is counted once when it is taken over and once with its fate, each by the store of one word, so that the
/// death of the worker at any instruction leaves it in one place.
#[repr(C, align(128))]
pub struct Cell {
    counters: [AtomicU64; 24],
    drops: [AtomicU64; 40],
}

const _: () = assert!(COUNTERS.len() <= 24 && CAUSES.len() <= 40);

impl Cell {
    fn bump(word: &AtomicU64, by: u64) {
        word.store(word.load(Ordering::Relaxed).wrapping_add(by), Ordering::Relaxed);
    }

    pub fn add(&self, counter: Counter, by: u64) {
        Cell::bump(&self.counters[counter as usize], by);
    }

    pub fn drop(&self, cause: Cause, frames: u64) {
        Cell::bump(&self.drops[cause as usize], frames);
    }

    pub fn counter(&self, index: usize) -> u64 {
        self.counters[index].load(Ordering::Relaxed)
    }

    pub fn dropped(&self, index: usize) -> u64 {
        self.drops[index].load(Ordering::Relaxed)
    }

    pub fn clear(&self) {
        for word in self.counters.iter().chain(&self.drops) {
            word.store(0, Ordering::Relaxed);
        }
    }

    /// Frames taken from the descriptor that have met no fate.
    pub fn in_hand(&self) -> u64 {
        let settled = total([self.count(Counter::Forwarded), self.count(Counter::Filtered), self.sum(0..FIRST_EGRESS)]);
        self.count(Counter::RxTaken).saturating_sub(settled)
    }

    /// Frames that wait in front of the descriptor.
    pub fn queued(&self) -> u64 {
        let gone = total([self.count(Counter::TxFrames), self.count(Counter::HandedOver)]);
        let settled = total([gone, self.sum(FIRST_EGRESS..CAUSES.len())]);
        self.count(Counter::Offered).saturating_sub(settled)
    }

    /// The worker that counted here is dead: what it held is lost. Returns how many frames that were.
    pub fn bury(&self) -> u64 {
        let (in_hand, queued) = (self.in_hand(), self.queued());
        self.drop(Cause::WorkerDied, in_hand);
        self.drop(Cause::TxWorkerDied, queued);
        total([in_hand, queued])
    }

    fn count(&self, counter: Counter) -> u64 {
        self.counter(counter as usize)
    }

    fn sum(&self, causes: Range<usize>) -> u64 {
        total(causes.map(|cause| self.dropped(cause)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cell() -> Cell {
        Cell { counters: std::array::from_fn(|_| AtomicU64::new(0)), drops: std::array::from_fn(|_| AtomicU64::new(0)) }
    }

    #[test]
    fn what_a_dead_worker_had_taken_and_not_settled_is_lost_once() {
        let cell = cell();
        cell.add(Counter::RxTaken, 32);
        cell.add(Counter::Forwarded, 20);
        cell.drop(Cause::Runt, 2);
        assert_eq!((cell.in_hand(), cell.bury()), (10, 10));
        assert_eq!((cell.dropped(Cause::WorkerDied as usize), cell.in_hand(), cell.bury()), (10, 0, 0));
    }

    #[test]
    fn what_waited_in_front_of_its_descriptor_is_lost_once() {
        let cell = cell();
        cell.add(Counter::Offered, 9);
        cell.add(Counter::TxFrames, 4);
        cell.drop(Cause::TxFull, 1);
        assert_eq!((cell.queued(), cell.bury()), (4, 4));
        assert_eq!((cell.dropped(Cause::TxWorkerDied as usize), cell.queued(), cell.bury()), (4, 0, 0));
    }

    #[test]
    fn counters_cleared_under_a_worker_that_still_counts_are_not_negative() {
        let cell = cell();
        cell.add(Counter::TxFrames, 1);
        assert_eq!((cell.queued(), cell.bury()), (0, 0));
    }
}
