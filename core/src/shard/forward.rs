//! Where a frame goes that has come in: admitted, learnt from, looked up, and put into the lane or to the engine of each port that gets it.

use std::ptr;
use std::sync::atomic::Ordering;

use super::carried::{Carried, Engine, Way};
use super::ingress::Arrival;
use super::{Shard, bits};
use crate::frame;
use crate::lane::{FORWARD, FRAME_LEAST, FRAME_MOST, Label, MIRROR_IN, TAGGED};
use crate::offload::{GSO_NONE, VnetHeader};
use crate::port::Piece;
use crate::ports::{self, Cause, Counter, NOBODY, Port, Worker};
use crate::switch::{self, Config, Edit};
use crate::table::{Heard, Key};
use crate::user;

/// New addresses a port may teach in a second.
const NOVELTIES: u32 = 10_000;
/// Bytes put into lanes beyond which they are shown before the burst is over: a super-frame is a batch of its own.
const PUBLISH_BYTES: usize = 64 << 10;
/// Enough of a frame to decide: two addresses and a tag.
const HEAD: usize = 18;

enum Target {
    One(Port),
    All,
    Nobody,
}

impl Shard {
    /// Decide about a frame and carry it on; whatever happens is counted.
    pub(super) fn settle(&mut self, carried: &mut Carried, arrival: Arrival) {
        let cell = self.arena.cell(self.me, carried.port);
        if !matches!(carried.engine, Engine::Dgram(_)) {
            cell.add(Counter::RxTaken, 1); // a datagram was counted with its batch
        }
        if self.delays_in(carried.port, arrival.len) {
            return self.delay(carried.port, ports::Way::In, &Piece { frame: arrival.frame, len: arrival.len, edit: Edit::Keep });
        }
        self.carry(carried, arrival);
    }

    /// Carry a frame on that has come in.
    pub(super) fn carry(&mut self, carried: &mut Carried, arrival: Arrival) {
        let cell = self.arena.cell(self.me, carried.port);
        match self.forward(carried, arrival) {
            Ok(counter) => {
                cell.add(counter, 1);
                cell.add(Counter::RxBytes, arrival.len as u64);
            }
            Err(cause) => cell.drop(cause, 1),
        }
        self.hand_over();
        if self.unpublished_bytes >= PUBLISH_BYTES {
            self.publish();
        }
    }

    fn forward(&mut self, carried: &mut Carried, arrival: Arrival) -> Result<Counter, Cause> {
        let Arrival { frame, len, .. } = arrival;
        if len < FRAME_LEAST {
            return Err(Cause::Runt);
        }
        if len > FRAME_MOST {
            return Err(Cause::Oversize);
        }
        let mut head = [0u8; HEAD];
        let head = &mut head[..len.min(HEAD)];
        // SAFETY: the frame has `len` bytes; what is decided on is this copy.
        unsafe { ptr::copy_nonoverlapping(frame, head.as_mut_ptr(), head.len()) };
        let config = self.view.ports[usize::from(carried.port)];
        let vlan = self.admit(carried, &config, head, &arrival)?;
        let target = self.target(&config, carried.port, head, vlan);
        if config.mirror != 0 {
            self.mirror(config.mirror, carried.port, MIRROR_IN, &Piece { frame, len, edit: Edit::Keep });
        }
        match target {
            Target::Nobody => Ok(Counter::Filtered),
            Target::One(to) => {
                let to = self.view.shard_of(to, || top(&arrival));
                self.unicast(carried, to, vlan, arrival)
            }
            Target::All => self.flood(carried, &config, vlan, arrival),
        }
    }

    /// The VLAN of a frame that may come in. Its source is learnt on the way.
    fn admit(&mut self, carried: &mut Carried, config: &Config, head: &[u8], arrival: &Arrival) -> Result<u16, Cause> {
        if !config.up {
            return Err(Cause::Down);
        }
        let source = frame::source(head).unwrap_or(0);
        if source == 0 || frame::is_multicast(source) {
            return Err(Cause::BadSource);
        }
        let vlan = switch::classify(self.arena, carried.port, config.vlan, head)?;
        if vlan & TAGGED != 0 && arrival.len < HEAD {
            return Err(Cause::Runt);
        }
        let vnet = Piece { frame: arrival.frame, len: arrival.len, edit: Edit::Keep }.vnet();
        if vnet.gso_type != GSO_NONE {
            self.arena.cell(self.me, carried.port).add(Counter::RxSuper, 1);
        }
        if config.mtu != 0 && packet_len(&vnet, arrival.len, vlan) > config.mtu {
            return Err(Cause::Oversize);
        }
        let domain = &self.view.domains[config.switch];
        if switch::is_reserved(domain, frame::destination(head).unwrap_or(0)) {
            return Err(Cause::Reserved);
        }
        if config.behind != NOBODY && !user::is_ours(source) {
            return Err(Cause::BadSource);
        }
        if !domain.hub {
            self.learn(carried, config, source, vlan)?;
        }
        Ok(vlan)
    }

    fn learn(&mut self, carried: &mut Carried, config: &Config, source: u64, vlan: u16) -> Result<(), Cause> {
        // What a companion sends, it sends in the name of the port that hands over to it.
        let owner = if config.behind == NOBODY { carried.port } else { config.behind };
        let record = self.arena.port(owner);
        let table = self.arena.table(config.switch);
        let over = |macs: u32| config.max_macs != 0 && macs >= config.max_macs;
        let novelty = &mut carried.novelty;
        if novelty.second != self.now_s {
            (novelty.second, novelty.left) = (self.now_s, NOVELTIES);
        }
        let count = |port: Port, by: i32| {
            if port != NOBODY {
                self.arena.port(port).macs.fetch_add(by as u32, Ordering::Relaxed);
            }
        };
        let heard = table.hear(Key::new(source, vlan & switch::VID), owner, self.clock(config.switch), || {
            if novelty.left == 0 || over(record.macs.load(Ordering::Relaxed)) {
                return false;
            }
            novelty.left -= 1;
            true
        });
        match heard {
            Heard::Known => {}
            Heard::New { gone } => {
                count(gone, -1);
                count(owner, 1);
            }
            Heard::Moved { before } => {
                count(before, -1);
                count(owner, 1);
            }
            Heard::Full if over(record.macs.load(Ordering::Relaxed)) => return Err(Cause::MacLimit),
            Heard::Full => {}
        }
        Ok(())
    }

    fn target(&self, config: &Config, from: Port, head: &[u8], vlan: u16) -> Target {
        let domain = &self.view.domains[config.switch];
        let destination = frame::destination(head).unwrap_or(0);
        if domain.hub || frame::is_multicast(destination) {
            return Target::All;
        }
        let key = Key::new(destination, vlan & switch::VID);
        match self.arena.table(config.switch).find(key, self.clock(config.switch)) {
            None => Target::All,
            Some(to) if to == from => Target::Nobody,
            Some(to) => {
                let other = &self.view.ports[usize::from(to)];
                if !other.used || other.switch != config.switch {
                    Target::All
                } else if other.isolated && config.isolated {
                    Target::Nobody
                } else {
                    Target::One(to)
                }
            }
        }
    }

    fn unicast(&mut self, carried: &mut Carried, to: Port, vlan: u16, arrival: Arrival) -> Result<Counter, Cause> {
        let config = self.view.ports[usize::from(to)];
        let local = config.worker == self.me;
        // A lent descriptor is written from room claimed in the lane, which stays the queue for when it is not empty.
        carried.went(if local { Way::Port(to) } else { Way::Lane(config.worker) }, to);
        if local || self.may_write(to, config.worker) {
            let Some(edit) = switch::leave(self.arena, to, config.vlan, vlan) else { return Ok(Counter::Filtered) };
            let piece = Piece { frame: arrival.frame, len: arrival.len, edit };
            self.deliver(to, &piece);
            return Ok(Counter::Forwarded);
        }
        let label = label(carried.port, to, vlan, arrival.len);
        self.send_to(config.worker, label, arrival).map(|()| Counter::Forwarded)
    }

    /// Is the port's descriptor lent to us, with nothing of ours before it in the lane to `worker`?
    fn may_write(&mut self, to: Port, worker: Worker) -> bool {
        !self.view.ports[usize::from(to)].impaired_out
            && self.ports[usize::from(to)].as_ref().is_some_and(|to| to.lent)
            && self.producers[usize::from(worker)].as_mut().is_none_or(|lane| lane.is_empty())
    }

    fn send_to(&mut self, to: Worker, label: Label, arrival: Arrival) -> Result<(), Cause> {
        let producer = self.producer(to);
        if arrival.claimed == Some(to) {
            producer.commit(label);
        } else {
            // SAFETY: the frame has `len` bytes and its virtio-net header before it, in memory of ours or in a claim
            // in another lane.
            match unsafe { producer.push(label, arrival.frame) } {
                Ok(true) => {}
                Ok(false) => return Err(Cause::LaneFull),
                Err(_) => return Err(Cause::NoMemory),
            }
        }
        self.unpublished |= 1 << to;
        self.unpublished_bytes += label.len as usize;
        Ok(())
    }

    fn flood(&mut self, carried: &Carried, config: &Config, vlan: u16, arrival: Arrival) -> Result<Counter, Cause> {
        let (mut workers, mut copies) = (0u64, 0);
        for index in 0..self.view.domains[config.switch].members.len() {
            let to = self.view.domains[config.switch].members[index];
            let Some((worker, edit)) = self.flooded(config, carried.port, to, vlan) else { continue };
            if worker == self.me {
                self.deliver(to, &Piece { frame: arrival.frame, len: arrival.len, edit });
                copies += 1;
            } else {
                workers |= 1 << worker;
            }
        }
        // The claim that the frame lies in is committed last, since the other copies are made from it.
        let label = label(carried.port, NOBODY, vlan, arrival.len);
        let last = arrival.claimed.filter(|claimed| workers >> claimed & 1 == 1);
        let mut lost = None;
        for to in bits(workers & !last.map_or(0, |last| 1 << last)).chain(last) {
            match self.send_to(to, label, arrival) {
                Ok(()) => copies += 1,
                Err(cause) => {
                    lost = Some(cause);
                    self.arena.cell(self.me, carried.port).add(Counter::CopiesLost, 1);
                }
            }
        }
        match (copies, lost) {
            (0, Some(cause)) => Err(cause),
            (0, None) => Ok(Counter::Filtered),
            _ => {
                self.arena.cell(self.me, carried.port).add(Counter::Flooded, 1);
                Ok(Counter::Forwarded)
            }
        }
    }

    /// Does a flooded frame of `from` go to `to`, and if so by which worker and how changed?
    pub(super) fn flooded(&self, config: &Config, from: Port, to: Port, vlan: u16) -> Option<(Worker, Edit)> {
        let other = &self.view.ports[usize::from(to)];
        if to == from || !other.used || !other.up || (other.isolated && config.isolated) {
            return None;
        }
        Some((other.worker, switch::leave(self.arena, to, other.vlan, vlan)?))
    }
}

fn top(arrival: &Arrival) -> [u8; switch::HEAD] {
    let mut head = [0; switch::HEAD];
    // SAFETY: the frame has `len` bytes; what is decided on is this copy.
    unsafe { ptr::copy_nonoverlapping(arrival.frame, head.as_mut_ptr(), arrival.len.min(switch::HEAD)) };
    head
}

fn label(from: Port, to: Port, vlan: u16, len: usize) -> Label {
    Label { len: len as u32, from, to, vlan, kind: FORWARD }
}

/// Length of the IP packet (of each segment, for a super-frame) that the frame carries.
pub(super) fn packet_len(vnet: &VnetHeader, len: usize, vlan: u16) -> usize {
    let header = if vlan & TAGGED != 0 { frame::HEADER + frame::TAG } else { frame::HEADER };
    if vnet.gso_type == GSO_NONE {
        return len.saturating_sub(header);
    }
    let transport = if vnet.csum_offset == 6 { 8 } else { 20 }; // UDP, or TCP without its options
    (usize::from(vnet.csum_start) + transport + usize::from(vnet.gso_size)).saturating_sub(header)
}
