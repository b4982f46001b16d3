//! One end of a link: what is sent here comes in at the other end, a port of the same worker on another switch.
//!
//! Frames wait at the end that they were sent to until the other one reads them, super-frames uncut. An end that holds
//! `MOST` bytes takes no more, so that whoever sends waits for whoever is behind the other end.

use std::collections::VecDeque;

use super::{Piece, Refusal};
use crate::lane::VNET_LEN;
use crate::ports::Port;

/// Twice what a turn of the loop brings from one source at most.
const MOST: usize = 8 << 20;

pub struct Link {
    pub peer: Port,
    /// Frames, each with its virtio-net header before it.
    sent: VecDeque<Box<[u8]>>,
    bytes: usize,
}

impl Link {
    pub fn new(peer: Port) -> Link {
        Link { peer, sent: VecDeque::new(), bytes: 0 }
    }

    pub fn send(&mut self, piece: &Piece) -> Result<(), Refusal> {
        if self.is_full() {
            return Err(Refusal::Blocked);
        }
        let mut bytes = vec![0; VNET_LEN + piece.wire_len()];
        if let Some(header) = bytes.first_chunk_mut() {
            piece.vnet_out().write(header);
        }
        piece.copy(&mut bytes[VNET_LEN..]);
        self.bytes += bytes.len();
        self.sent.push_back(bytes.into_boxed_slice());
        Ok(())
    }

    /// The oldest frame, behind its virtio-net header.
    pub fn take(&mut self) -> Option<Box<[u8]>> {
        let bytes = self.sent.pop_front()?;
        self.bytes -= bytes.len();
        Some(bytes)
    }

    pub fn is_full(&self) -> bool {
        self.bytes >= MOST
    }

    pub fn queued(&self) -> usize {
        self.sent.len()
    }
}
