//! The way out: from the lanes that come in, or from a port of this worker, to a port's engine.

use std::sync::atomic::Ordering;

use super::carried::Engine;
use super::forward::packet_len;
use super::{BURST, News, Shard, bits};
use crate::lane::{Entry, FORWARD, MIRROR_IN, MIRROR_OUT, TAGGED};
use crate::port::{Piece, Refusal};
use crate::ports::{self, Cause, Cell, Counter, NO_LINK, NOBODY, Port, Worker};
use crate::switch;

/// A tagged frame's Ethernet header.
const TAGGED_LEAST: u32 = 18;

impl Shard {
    /// Take what other workers sent; true where a lane has more.
    pub(super) fn drain_lanes(&mut self) -> bool {
        let senders = self.arena.worker(self.me).senders.0.load(Ordering::Acquire);
        let mut more = false;
        for from in bits(senders) {
            more |= self.drain_lane(from);
        }
        more
    }

    fn drain_lane(&mut self, from: Worker) -> bool {
        if let Some(capture) = &mut self.capture {
            capture.look_at_clock();
        }
        for _ in 0..BURST {
            // A fault has been counted in the lane, where the supervisor finds it; the lane goes on behind it.
            let Ok(Some(entry)) = self.consumer(from).peek() else {
                self.release(from);
                return false;
            };
            if entry.label.kind == FORWARD && self.is_stuck() {
                self.release(from);
                return false;
            }
            if entry.label.kind != FORWARD && self.is_capture_waiting(&entry) {
                self.release(from);
                return self.puzzled != 0;
            }
            // Taken first: should this worker die in a write, the frame may be lost, and is never sent twice.
            self.consumer(from).take(&entry.label);
            self.accept(from, &entry);
            self.hand_over();
        }
        self.release(from);
        true
    }

    pub(super) fn release(&mut self, from: Worker) {
        if self.consumer(from).release() {
            self.ring(from);
        }
    }

    /// Deal with a record. Its room is not freed yet.
    fn accept(&mut self, from: Worker, entry: &Entry) {
        let label = entry.label;
        match label.kind {
            FORWARD => {}
            MIRROR_IN | MIRROR_OUT => return self.add_to_capture(entry),
            _ => return,
        }
        // Which ports a worker may speak for is the arena's word, not the record's.
        let source = usize::from(label.from);
        let Some(&config) = self.view.ports.get(source) else { return };
        if !config.used || config.worker != from || (label.vlan & TAGGED != 0 && label.len < TAGGED_LEAST) {
            return;
        }
        if switch::leave(self.arena, label.from, config.vlan, label.vlan).is_none() {
            return self.refuse_changed(label.to);
        }
        if label.to != NOBODY {
            return self.accept_one(&config, entry);
        }
        for index in 0..self.view.domains[config.switch].members.len() {
            let to = self.view.domains[config.switch].members[index];
            if let Some((worker, edit)) = self.flooded(&config, label.from, to, label.vlan)
                && worker == self.me
            {
                self.deliver(to, &Piece { frame: entry.frame, len: label.len as usize, edit });
            }
        }
    }

    fn accept_one(&mut self, from: &switch::Config, entry: &Entry) {
        let label = entry.label;
        let Some(&config) = self.view.ports.get(usize::from(label.to)) else { return };
        let edit = switch::leave(self.arena, label.to, config.vlan, label.vlan);
        let may_meet = !(config.isolated && from.isolated) || self.view.owner(label.to) == self.view.owner(label.from);
        match edit {
            Some(edit) if config.switch == from.switch && may_meet && config.worker == self.me => {
                self.deliver(label.to, &Piece { frame: entry.frame, len: label.len as usize, edit });
            }
            _ => self.refuse_changed(label.to),
        }
    }

    /// Count a frame for a port of ours that may not have it any more. One for a port that is gone counts nowhere.
    fn refuse_changed(&self, to: Port) {
        if self.own.contains(&to) {
            let cell = self.arena.cell(self.me, to);
            cell.add(Counter::Offered, 1);
            cell.drop(Cause::TxChanged, 1);
        }
    }

    /// A frame is handed to a port that this worker can write to; what becomes of it is counted there.
    pub(super) fn deliver(&mut self, to: Port, piece: &Piece) {
        self.arena.cell(self.me, to).add(Counter::Offered, 1);
        if self.view.ports[usize::from(to)].impaired_out {
            return self.delay(to, ports::Way::Out, piece);
        }
        self.give(to, piece);
    }

    /// Give a frame that was counted as offered to the port's engine.
    pub(super) fn give(&mut self, to: Port, piece: &Piece) {
        if let Err(refusal) = self.egress(to, piece) {
            let cause = match refusal {
                Refusal::Drop(cause) => cause,
                Refusal::Blocked => Cause::TxFull,
                Refusal::Ended(_) => Cause::TxDown,
                Refusal::HandOver(companion) => return self.gather(to, companion, piece),
            };
            self.arena.cell(self.me, to).drop(cause, 1);
        }
    }

    fn egress(&mut self, to: Port, piece: &Piece) -> Result<(), Refusal> {
        let config = self.view.ports[usize::from(to)];
        if !config.up {
            return Err(Refusal::Drop(Cause::TxDown));
        }
        let link = self.arena.port(to).link.load(Ordering::Relaxed);
        if link == NO_LINK {
            return Err(Refusal::Drop(Cause::TxDown));
        }
        let mtu = [config.mtu, link as usize].into_iter().filter(|&mtu| mtu != 0).min();
        if let Some(mtu) = mtu {
            let vlan = if piece.leaves_tagged() { TAGGED } else { 0 };
            if packet_len(&piece.vnet_out(), piece.wire_len(), vlan) > mtu {
                return Err(Refusal::Drop(Cause::TxOversize));
            }
        }
        let Some(mut carried) = self.ports[usize::from(to)].take() else { return Err(Refusal::Drop(Cause::TxDown)) };
        let cell = self.arena.cell(self.me, to);
        let sent = match &mut carried.engine {
            Engine::Tap(tap) => tap.send(piece, cell).inspect(|()| count_sent(cell, piece)),
            Engine::Packet(packet) => packet.send(piece, cell).inspect(|()| count_sent(cell, piece)),
            Engine::Stream(stream) => stream.send(piece, cell, &mut self.bench),
            Engine::Dgram(dgram) => dgram.send(piece, cell, &mut self.bench),
            Engine::Vhost(device) => device.send(piece, cell, &mut self.bench),
            Engine::Link(link) => link.send(piece),
            // SAFETY: a piece is readable, with its virtio-net header before it.
            Engine::User(network) => unsafe { network.send(piece, cell) },
        };
        let reader = match &carried.engine {
            Engine::User(_) => Some(to), // it may have an answer
            Engine::Link(link) => Some(link.peer),
            _ => None,
        };
        if let Engine::User(network) = &carried.engine
            && network.has_datagrams()
            && !self.mail.contains(&to)
        {
            self.mail.push(to);
        }
        if let Engine::User(network) = &mut carried.engine
            && carried.held_since_ns.is_some()
        {
            network.flush(); // as the next read would have done
        }
        match sent {
            Err(Refusal::Ended(errno)) => {
                self.end(carried, errno);
                return sent;
            }
            Err(Refusal::Drop(cause)) => {
                if let Engine::User(network) = &mut carried.engine
                    && network.is_news(cause)
                {
                    self.news.push(News::Short(to, cause));
                }
            }
            Ok(())
                if !matches!(carried.engine, Engine::Tap(_) | Engine::User(_) | Engine::Link(_) | Engine::Packet(_))
                    && !carried.dirty
                    && !carried.waits_writable =>
            {
                carried.dirty = true;
                self.dirty.push(to);
            }
            _ => {}
        }
        if carried.is_full() {
            self.tell(to, true);
        }
        self.ports[usize::from(to)] = Some(carried);
        if let Some(reader) = reader {
            self.list(reader);
        }
        if sent.is_ok() && config.mirror != 0 {
            self.mirror(config.mirror, to, MIRROR_OUT, piece);
        }
        sent
    }
}

/// Count a frame that its descriptor has taken.
fn count_sent(cell: &Cell, piece: &Piece) {
    cell.add(Counter::TxFrames, 1);
    cell.add(Counter::TxBytes, piece.wire_len() as u64);
}
