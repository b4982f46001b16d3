//! The copies of a frame that captures get, from whoever takes it in or gives it out.

use std::sync::atomic::Ordering;

use super::{Shard, bits};
use crate::lane::{FRAME_LEAST, FRAME_MOST, HEADROOM, Label, RECORD_HEADER};
use crate::port::{Piece, capture};
use crate::ports::{Cause, Counter, NOBODY, Port, Worker};

impl Shard {
    /// Give a copy to the workers that capture this port. A capture that is behind loses it, and nobody waits.
    pub(super) fn mirror(&mut self, workers: u64, port: Port, kind: u16, piece: &Piece) {
        let whole = piece.wire_len();
        for to in bits(workers) {
            let wanted = match self.arena.worker(to).snaplen.0.load(Ordering::Relaxed) {
                0 => whole,
                snaplen => whole.min(snaplen as usize),
            };
            let len = wanted.clamp(FRAME_LEAST, FRAME_MOST);
            let producer = self.producer(to);
            producer.ample();
            let Ok(Some(at)) = producer.claim_for(len) else {
                self.miss(to, port);
                continue;
            };
            // SAFETY: a claim has room for the frame behind its headroom, and is ours alone.
            let out = unsafe {
                at.add(RECORD_HEADER).cast::<[u32; 2]>().write_unaligned([capture::stamp(), whole as u32]);
                std::slice::from_raw_parts_mut(at.add(HEADROOM), len)
            };
            piece.copy_first(out);
            producer.commit(Label { len: len as u32, from: port, to: NOBODY, vlan: 0, kind });
            self.unpublished |= 1 << to;
        }
    }

    /// Count a frame that a capture did not get: by port, for the end of its file, and where the capture is a port, there.
    #[cold]
    fn miss(&mut self, captor: Worker, port: Port) {
        self.producer(captor).refuse();
        self.arena.loss(captor, port).fetch_add(1, Ordering::Relaxed);
        let capture = self.view.captures[usize::from(captor)];
        if capture != NOBODY {
            let cell = self.arena.cell(self.me, capture);
            cell.add(Counter::Offered, 1);
            cell.drop(Cause::TxFull, 1);
        }
    }
}
