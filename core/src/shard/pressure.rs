//! Who waits when there is no room, and for how long.
//!
//! A port whose recent frames all went one way is *held*, that is not read, while that way has no room, so that the kernel or the
//! guest behind it waits. A way has no room when
//!
//! - the lane to the other worker is full. It is, soon, when that worker carries one port only, or the two of one link, and that takes
//!   no more: such a worker leaves its lanes as they are, and they are its queue;
//! - the port at its end, one among several of its worker, is *pressed*: its worker drains its lanes all the same, for the others' sake,
//!   and says in the port's record that enough waits in front of its descriptor. What is under way then still finds room there
//!   (`stream.rs`);
//! - the port at its end is one of this worker, and full.
//!
//! A hold lasts `HOLD_MOST_NS` at most; then frames for that place are dropped and counted, and the port's other destinations go on. So one stuck
//! port holds up nobody but those who speak to it, and those not for long.
//!
//! Whoever makes room rings: the lane does (`Producer::wait_for_room`), and who is no longer pressed rings all who have a lane to it. A
//! sleeper says so first and then looks again (bell.rs), so no ring is missed.

use std::sync::atomic::Ordering;

use super::carried::{Carried, Engine, Way};
use super::{Shard, bits};
use crate::ports::{NOBODY, Port};
use crate::sys;

const HOLD_MOST_NS: u64 = 100_000_000;
/// Frames in a row that went one way make a port steady.
const STEADY: u64 = 0xffff;

impl Shard {
    /// Stop reading the port until its way has room.
    pub(super) fn hold(&mut self, carried: &mut Carried) {
        carried.held_since_ns = Some(sys::now_ns(libc::CLOCK_MONOTONIC));
        self.held.push(carried.port);
        self.arm(carried);
    }

    /// Read held ports again where there is room, or where they have been held for long enough.
    pub(super) fn review_held(&mut self) {
        if self.held.is_empty() {
            return;
        }
        let now_ns = sys::now_ns(libc::CLOCK_MONOTONIC);
        for port in std::mem::take(&mut self.held) {
            let Some(mut carried) = self.ports[usize::from(port)].take() else { continue };
            let free = self.has_way(&carried);
            let tired = carried.held_since_ns.is_none_or(|since| now_ns.saturating_sub(since) > HOLD_MOST_NS);
            if tired && !free {
                (carried.history, carried.aimed) = (0, 0);
            }
            if free || tired {
                carried.held_since_ns = None;
                carried.listed = true;
                self.readable.push(port);
                self.arm(&carried);
            } else {
                self.held.push(port);
            }
            self.ports[usize::from(port)] = Some(carried);
        }
    }

    /// Did the way of a held port get room since we looked? Nobody rang for it while we were awake.
    pub(super) fn has_room(&mut self) -> bool {
        (0..self.held.len()).any(|index| {
            let port = usize::from(self.held[index]);
            let Some(carried) = self.ports[port].take() else { return false };
            let free = self.has_way(&carried);
            self.ports[port] = Some(carried);
            free
        })
    }

    /// Has the port's way room? Where it has not, whoever makes some rings.
    fn has_way(&mut self, carried: &Carried) -> bool {
        match carried.way {
            Some(Way::Lane(to)) => self.producer(to).wait_for_room() && !self.is_pressed(carried),
            Some(Way::Port(to)) => !self.is_full(to),
            None => true,
        }
    }

    /// Were the port's recent frames all for one of another worker that takes no more?
    pub(super) fn is_pressed(&self, carried: &Carried) -> bool {
        carried.is_aimed() && self.arena.port(carried.aim).pressed.load(Ordering::Relaxed) != 0
    }

    /// Tell those who send to a port of ours whether it takes more.
    pub(super) fn tell(&self, port: Port, is_full: bool) {
        let pressed = &self.arena.port(port).pressed;
        let is_pressed = is_full && !self.is_alone();
        if (pressed.load(Ordering::Relaxed) != 0) == is_pressed {
            return;
        }
        pressed.store(is_pressed.into(), Ordering::Relaxed);
        if !is_pressed {
            bits(self.arena.worker(self.me).senders.0.load(Ordering::Relaxed)).for_each(|from| self.ring(from));
        }
    }

    /// Is there one port only, or one link, and does it take no more? Then its lanes are its queue. With several ports, one that is
    /// stuck must not hold up the others.
    pub(super) fn is_stuck(&self) -> bool {
        self.is_alone() && self.own.iter().any(|&port| self.is_full(port))
    }

    fn is_alone(&self) -> bool {
        match self.own[..] {
            [_] => true,
            [one, other] => self.is_link(one, other),
            _ => false,
        }
    }

    pub(super) fn is_full(&self, port: Port) -> bool {
        self.ports[usize::from(port)].as_ref().is_some_and(|carried| carried.is_full())
    }

    fn is_link(&self, one: Port, other: Port) -> bool {
        self.ports[usize::from(one)].as_ref().is_some_and(|one| matches!(&one.engine, Engine::Link(link) if link.peer == other))
    }
}

impl Carried {
    /// Did all recent frames go one way?
    pub(super) fn is_steady(&self) -> bool {
        self.history & STEADY == STEADY
    }

    /// Were they all for one port?
    fn is_aimed(&self) -> bool {
        self.aimed & STEADY == STEADY && self.aim != NOBODY
    }

    pub(super) fn went(&mut self, way: Way, to: Port) {
        self.history = self.history << 1 | u64::from(self.way == Some(way));
        self.aimed = self.aimed << 1 | u64::from(self.aim == to);
        (self.way, self.aim) = (Some(way), to);
    }
}
