//! Handing over: a port gives a frame that came for it to a companion, a service that answers in its name or a shard of it.
//!
//! The user-mode network owns its services' addresses and knows which frames are theirs (user/config.rs), and which are
//! its other shards' (a frame that was flooded, or is put together from fragments). Such a
//! frame goes on, uncut, into the lane of the companion's worker, or to its engine where this worker carries it too. It
//! is copied first: where it lies may be room claimed in that very lane, and copies of a flooded frame are made from it
//! yet. Until it is in the lane it counts as queued at the port; then as handed over. A full lane, the companion's
//! worker being dead or late, is a drop at the port, and nobody waits.

use std::mem;

use super::Shard;
use crate::lane::{FORWARD, Label, VNET_LEN};
use crate::port::Piece;
use crate::ports::{Cause, Counter, Port};
use crate::switch::{self, Edit};

/// Bytes gathered in one turn beyond which frames are dropped.
const MOST: usize = 8 << 20;

/// Frames on their way to companions, each with its virtio-net header before it.
#[derive(Default)]
pub(super) struct Handed {
    frames: Vec<Frame>,
    bytes: Vec<u8>,
}

struct Frame {
    from: Port,
    to: Port,
    /// Where it begins in the bytes, behind its virtio-net header.
    at: usize,
    len: usize,
}

impl Shard {
    /// Keep a frame that came for `from` and is for its companion `to`.
    pub(super) fn gather(&mut self, from: Port, to: Port, piece: &Piece) {
        let whole = self.network(from).and_then(|network| network.take_whole());
        let len = whole.as_ref().map_or(piece.wire_len(), Vec::len);
        let Handed { frames, bytes } = &mut self.handed;
        if bytes.len() + VNET_LEN + len > MOST {
            return self.arena.cell(self.me, from).drop(Cause::TxFull, 1);
        }
        let at = bytes.len() + VNET_LEN;
        bytes.resize(at + len, 0);
        match whole {
            Some(whole) => bytes[at..].copy_from_slice(&whole),
            None => {
                if let Some(header) = bytes[at - VNET_LEN..].first_chunk_mut() {
                    piece.vnet_out().write(header);
                }
                piece.copy(&mut bytes[at..]);
            }
        }
        frames.push(Frame { from, to, at, len });
    }

    /// Send on what was gathered: nothing, mostly.
    #[inline]
    pub(super) fn hand_over(&mut self) {
        if !self.handed.frames.is_empty() {
            self.hand_over_all();
        }
    }

    #[cold]
    fn hand_over_all(&mut self) {
        let mut handed = mem::take(&mut self.handed);
        for frame in handed.frames.drain(..) {
            let sent = self.hand_over_one(&frame, &handed.bytes);
            let cell = self.arena.cell(self.me, frame.from);
            match sent {
                Ok(()) => cell.add(Counter::HandedOver, 1),
                Err(cause) => cell.drop(cause, 1),
            }
        }
        handed.bytes.clear();
        // Two shards that are just being made anew might disagree about whose a frame is: it is handed over once.
        for again in mem::replace(&mut self.handed, handed).frames {
            self.arena.cell(self.me, again.from).drop(Cause::TxChanged, 1);
        }
    }

    fn hand_over_one(&mut self, frame: &Frame, bytes: &[u8]) -> Result<(), Cause> {
        let &Frame { from, to, at, len } = frame;
        let (source, config) = (self.view.ports[usize::from(from)], self.view.ports[usize::from(to)]);
        if !config.used || self.view.owner(from) != self.view.owner(to) {
            return Err(Cause::TxChanged);
        }
        let frame = bytes[at - VNET_LEN..].as_ptr().wrapping_add(VNET_LEN);
        if config.worker == self.me {
            self.deliver(to, &Piece { frame, len, edit: Edit::Keep });
            return Ok(());
        }
        // It left `from` as it lies here, so it is in the VLAN that a frame like it has there.
        let vlan = switch::classify(self.arena, from, source.vlan, &bytes[at..at + len]).map_err(|_| Cause::TxChanged)?;
        let label = Label { len: len as u32, from, to, vlan, kind: FORWARD };
        let producer = self.producer(config.worker);
        // SAFETY: the frame and its header lie in memory of ours, in which nothing else points.
        match unsafe { producer.push(label, frame) } {
            Ok(true) => {}
            Ok(false) | Err(_) => return Err(Cause::TxFull),
        }
        self.unpublished |= 1 << config.worker;
        self.unpublished_bytes += len;
        Ok(())
    }
}
