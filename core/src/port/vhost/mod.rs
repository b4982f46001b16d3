//! The engine of a vhost-user port: the device's side of a virtio-net card whose driver is a guest (VIRTIO 1.2, clause 5.1).
//!
//! ```text
//!   guest's transmit ring -> copied once, into the lane that the frame goes on in       -> receive()
//!   lane's record         -> copied once, into the buffers of a guest's receive ring    -> send(), shown by flush()
//! ```
//!
//! The virtio-net header of a lane's record is the guest's own, so super-frames and partial checksums pass uncut between a guest and whoever
//! takes them; what a guest's driver did not ask for is cut and summed here. A header from a guest is checked before it goes on.
//!
//! A frame that finds no room waits in the outbox, at most one and what it is cut into, and the port is full until the guest adds buffers. With
//! several queues a frame goes to the pair on which its flow was last heard (clause 5.1.6.5.5).
//!
//! What a guest writes can drop its frames, or stop its ring (`Broken`), no more. Work a frame is bounded by CHAIN_MOST and FRAME_MOST.

mod guard;
mod memory;
mod receive;
mod ring;
mod send;

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use crate::lane::VNET_LEN;
use crate::offload::VnetHeader;
use crate::sys;

pub use memory::Extent;
use memory::Memory;
pub use receive::Received;
pub use ring::Places;
use ring::{Ring, SIZE_MOST};
use send::Room;

/// Feature bits (VIRTIO 1.2, clauses 5.1.3 and 6; those of vhost-user in its specification).
pub mod feature {
    pub const GUEST_CSUM: u64 = 1 << 1;
    pub const GUEST_TSO4: u64 = 1 << 7;
    pub const GUEST_TSO6: u64 = 1 << 8;
    pub const GUEST_ECN: u64 = 1 << 9;
    pub const MRG_RXBUF: u64 = 1 << 15;
    pub const LOG_ALL: u64 = 1 << 26;
    pub const INDIRECT_DESC: u64 = 1 << 28;
    pub const EVENT_IDX: u64 = 1 << 29;
    pub const PROTOCOL_FEATURES: u64 = 1 << 30;
    pub const VERSION_1: u64 = 1 << 32;
    pub const GUEST_USO4: u64 = 1 << 54;
    pub const GUEST_USO6: u64 = 1 << 55;
}

pub const PAIRS_MOST: usize = 128;
const HEADER_MOST: usize = 12;
/// Entries of the table that says on which pair a flow was heard.
const FLOWS: usize = 256;
/// Enough of a frame to hash its flow: two tags and an IPv6 header with its ports.
const FLOW_TOP: usize = 128;
const RARP: u16 = 0x8035; // RFC 903
const ANNOUNCEMENTS_MOST: usize = 8;

/// A ring as the front end set it up, and the ring itself while it runs.
#[derive(Default)]
struct Slot {
    size: u32,
    base: u16,
    places: Option<Places>,
    kick: Option<OwnedFd>,
    call: Option<OwnedFd>,
    error: Option<OwnedFd>,
    enabled: bool,
    ring: Option<Ring>,
}

impl Slot {
    fn publish(&mut self, memory: &Memory) {
        if let Some(ring) = &mut self.ring
            && ring.publish(memory)
            && let Some(call) = &self.call
        {
            sys::ring(call.as_raw_fd());
        }
    }

    /// The driver cannot be followed any more.
    fn give_up(&mut self) {
        if let Some(ring) = self.ring.take() {
            self.base = ring.position();
        }
        if let Some(error) = &self.error {
            sys::ring(error.as_raw_fd());
        }
    }
}

pub struct Vhost {
    memory: Memory,
    /// Of the pairs, one after the other: what the guest receives from, what it transmits to.
    slots: Vec<Slot>,
    features: u64,
    /// The pair that is read next.
    turn: usize,
    /// Pairs that receive.
    active: Vec<usize>,
    /// The pair on which a flow was last heard.
    heard: Box<[u8; FLOWS]>,
    rooms: Vec<Room>,
    /// Of the chains that a frame is put into: head and room.
    heads: Vec<(u16, usize)>,
    outbox: VecDeque<(VnetHeader, Box<[u8]>)>,
    /// Frames and bytes in the guest's buffers that it was not shown.
    unshown: (u64, u64),
    announcements: VecDeque<[u8; 60]>,
    /// Rings that stopped and that nobody was told of.
    stopped: Vec<usize>,
}

// SAFETY: the pointers lead into the mappings that `memory` owns, which may go to another thread with it.
unsafe impl Send for Vhost {}

fn no_ring() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, "no such ring")
}

impl Vhost {
    /// A device of so many pairs of rings, none of which runs.
    pub fn new(pairs: usize) -> Vhost {
        Vhost {
            memory: Memory::default(),
            slots: (0..2 * pairs.clamp(1, PAIRS_MOST)).map(|_| Slot::default()).collect(),
            features: 0,
            turn: 0,
            active: Vec::new(),
            heard: Box::new([0; FLOWS]),
            rooms: Vec::new(),
            heads: Vec::new(),
            outbox: VecDeque::new(),
            unshown: (0, 0),
            announcements: VecDeque::new(),
            stopped: Vec::new(),
        }
    }

    fn has(&self, feature: u64) -> bool {
        self.features & feature != 0
    }

    fn slot(&mut self, index: usize) -> io::Result<&mut Slot> {
        self.slots.get_mut(index).ok_or_else(no_ring)
    }

    /// What driver and device agreed on. Rings that run keep to what they began with, but for the dirty log.
    pub fn set_features(&mut self, features: u64) {
        self.features = features;
        self.memory.log_all(features & feature::LOG_ALL != 0);
    }

    /// The guest's memory, all of it; rings that run go on in it.
    pub fn set_memory(&mut self, regions: Vec<(Extent, OwnedFd)>) -> io::Result<()> {
        let mut memory = Memory::default();
        for (extent, file) in &regions {
            memory.add(*extent, file)?;
        }
        memory.inherit(&mut self.memory);
        self.memory = memory;
        self.find_rings();
        Ok(())
    }

    /// Look up the rings that run; those that are no longer in the memory stop.
    fn find_rings(&mut self) {
        for slot in &mut self.slots {
            if let (Some(ring), Some(places)) = (&mut slot.ring, &slot.places)
                && ring.find(&self.memory, places).is_none()
            {
                slot.give_up();
            }
        }
        self.review();
    }

    /// Where writes are noted from now on: place and size of the log in its file.
    pub fn set_log(&mut self, offset: u64, size: u64, file: OwnedFd) -> io::Result<()> {
        self.memory.set_log(Some((offset, size, &file)))?;
        self.memory.log_all(self.has(feature::LOG_ALL));
        Ok(())
    }

    pub fn set_size(&mut self, index: usize, size: u32) -> io::Result<()> {
        if !size.is_power_of_two() || size > SIZE_MOST {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "the size of a ring is a power of two up to 32768"));
        }
        let slot = self.slot(index)?;
        if slot.ring.is_some() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "a ring that runs keeps its size"));
        }
        slot.size = size;
        Ok(())
    }

    /// Where the ring is; one that runs goes on there, for that is how the dirty log is switched on.
    pub fn set_places(&mut self, index: usize, places: Places) -> io::Result<()> {
        let outside = || io::Error::new(io::ErrorKind::InvalidInput, "a ring outside the guest's memory");
        let slot = self.slots.get_mut(index).ok_or_else(no_ring)?;
        if let Some(ring) = &mut slot.ring {
            ring.find(&self.memory, &places).ok_or_else(outside)?;
        }
        slot.places = Some(places);
        Ok(())
    }

    /// Told to us when it differs from the used ring's index, which is what we go by: nothing is in flight here.
    pub fn set_base(&mut self, index: usize, base: u16) -> io::Result<()> {
        self.slot(index)?.base = base;
        Ok(())
    }

    /// What the driver rings; the ring runs from here on.
    pub fn set_kick(&mut self, index: usize, kick: OwnedFd) -> io::Result<()> {
        let (event_index, indirect) = (self.has(feature::EVENT_IDX), self.has(feature::INDIRECT_DESC));
        let at_once = !self.has(feature::PROTOCOL_FEATURES);
        let slot = self.slots.get_mut(index).ok_or_else(no_ring)?;
        slot.kick = Some(kick);
        if slot.ring.is_none() {
            let unset = || io::Error::new(io::ErrorKind::InvalidInput, "a ring is started before its size and its addresses are known");
            let places = slot.places.as_ref().filter(|_| slot.size != 0).ok_or_else(unset)?;
            let outside = || io::Error::new(io::ErrorKind::InvalidInput, "a ring outside the guest's memory");
            slot.ring = Some(Ring::new(&self.memory, slot.size, places, event_index, indirect).ok_or_else(outside)?);
            slot.enabled |= at_once;
        }
        self.review();
        Ok(())
    }

    /// What the driver is told by; None: it polls.
    pub fn set_call(&mut self, index: usize, call: Option<OwnedFd>) -> io::Result<()> {
        self.slot(index)?.call = call;
        Ok(())
    }

    /// What the front end is told by that a ring stopped.
    pub fn set_error(&mut self, index: usize, error: Option<OwnedFd>) -> io::Result<()> {
        self.slot(index)?.error = error;
        Ok(())
    }

    /// Frames pass from here on, or no more; what the guest transmits meanwhile is discarded.
    pub fn enable(&mut self, index: usize, on: bool) -> io::Result<()> {
        self.slot(index)?.enabled = on;
        self.review();
        Ok(())
    }

    /// Stop a ring; returns where it would have gone on.
    pub fn stop(&mut self, index: usize) -> io::Result<u16> {
        let slot = self.slots.get_mut(index).ok_or_else(no_ring)?;
        slot.publish(&self.memory);
        if let Some(ring) = slot.ring.take() {
            slot.base = ring.position();
        }
        slot.kick = None;
        let base = slot.base;
        self.review();
        Ok(base)
    }

    /// Say in the guest's place that it is here: a RARP request from its address, as QEMU's announce-self.
    pub fn announce(&mut self, mac: [u8; 6]) {
        let mut said = [0u8; 60];
        said[..6].fill(0xff);
        said[6..12].copy_from_slice(&mac);
        said[12..14].copy_from_slice(&RARP.to_be_bytes());
        said[14..22].copy_from_slice(&[0, 1, 8, 0, 6, 4, 0, 3]); // Ethernet, IPv4, their lengths, "reverse request"
        said[22..28].copy_from_slice(&mac);
        said[32..38].copy_from_slice(&mac);
        if self.announcements.len() < ANNOUNCEMENTS_MOST {
            self.announcements.push_back(said);
        }
    }

    /// Which pairs receive now.
    fn review(&mut self) {
        let receives = |pair: &usize| self.slots[2 * pair].enabled && self.slots[2 * pair].ring.is_some();
        self.active = (0..self.slots.len() / 2).filter(receives).collect();
    }

    /// Rings that stopped since the last call, since their driver could not be followed.
    pub fn take_stopped(&mut self) -> impl Iterator<Item = usize> + use<> {
        std::mem::take(&mut self.stopped).into_iter()
    }

    /// What the loop waits for.
    pub fn kicks(&self) -> impl Iterator<Item = RawFd> + '_ {
        self.slots.iter().filter_map(|slot| Some(slot.kick.as_ref()?.as_raw_fd()))
    }

    /// Has the front end taken memory away under us?
    pub fn is_broken(&self) -> bool {
        self.memory.is_broken()
    }

    pub fn is_full(&self) -> bool {
        !self.outbox.is_empty()
    }

    pub fn queued(&self) -> usize {
        self.outbox.len() + self.unshown.0 as usize
    }

    fn header_len(&self) -> usize {
        if self.features & (feature::VERSION_1 | feature::MRG_RXBUF) != 0 { HEADER_MOST } else { VNET_LEN }
    }

    fn give_up(&mut self, index: usize) {
        self.slots[index].publish(&self.memory);
        self.slots[index].give_up();
        self.stopped.push(index);
        self.review();
    }
}
