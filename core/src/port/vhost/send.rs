//! What a guest receives: from where a frame is, once, into its buffers.

use std::ptr;

use super::memory::Memory;
use super::ring::{BadChain, Broken, CHAIN_MOST, Chain};
use super::{FLOW_TOP, FLOWS, HEADER_MOST, Vhost, feature};
use crate::frame;
use crate::lane::VNET_LEN;
use crate::offload::{GSO_ECN, GSO_NONE, GSO_TCPV4, GSO_TCPV6, GSO_UDP_L4, VnetHeader};
use crate::port::{Bench, Flush, Piece, Refusal, finish};
use crate::ports::{Cause, Cell, Counter};

/// A place in a guest's memory that a frame goes to.
#[derive(Clone, Copy)]
pub(super) struct Room {
    at: *mut u8,
    len: usize,
    address: u64,
}

/// What became of a frame on its way to a guest.
enum Put {
    Done,
    /// The guest has too few buffers for now.
    NoRoom,
    Drop(Cause),
}

/// A frame in two parts, which may lie in memory that another process can write.
#[derive(Clone, Copy)]
struct Parts {
    header: VnetHeader,
    parts: [(*const u8, usize); 2],
}

impl Parts {
    fn len(&self) -> usize {
        self.parts[0].1 + self.parts[1].1
    }

    /// Copy the first bytes to `out`; returns how many there were.
    fn top(&self, out: &mut [u8]) -> usize {
        let mut filled = 0;
        for (from, len) in self.parts {
            let len = len.min(out.len() - filled);
            // SAFETY: the part is readable, and `out` has room for that much.
            unsafe { ptr::copy_nonoverlapping(from, out[filled..].as_mut_ptr(), len) };
            filled += len;
        }
        filled
    }
}

impl Vhost {
    /// Give a frame to the guest.
    pub fn send(&mut self, piece: &Piece, cell: &Cell, bench: &mut Bench) -> Result<(), Refusal> {
        if self.active.is_empty() {
            return Err(Refusal::Drop(Cause::TxDown));
        }
        if self.is_full() {
            return Err(Refusal::Blocked);
        }
        let header = piece.vnet_out();
        if header.is_partial() && !self.takes(&header) {
            let mut emit = |head: &[u8], tail: &[u8]| {
                let parts = [(head.as_ptr(), head.len()), (tail.as_ptr(), tail.len())];
                if let Err(cause) = self.put_or_keep(Parts { header: VnetHeader::default(), parts }, cell) {
                    cell.drop(cause, 1);
                }
            };
            return finish(piece, cell, bench, &mut emit);
        }
        let header = if self.has(feature::GUEST_CSUM) { header } else { VnetHeader::default() };
        let (top, top_len, rest) = piece.top();
        // SAFETY: `rest` is within the frame.
        let tail = unsafe { (piece.frame.add(rest), piece.len - rest) };
        self.put_or_keep(Parts { header, parts: [(top.as_ptr(), top_len), tail] }, cell).map_err(Refusal::Drop)
    }

    /// Did the guest's driver ask for frames that need this?
    fn takes(&self, header: &VnetHeader) -> bool {
        let ecn = header.gso_type & GSO_ECN == 0 || self.has(feature::GUEST_ECN);
        let kind = match header.gso_type & !GSO_ECN {
            GSO_NONE => true,
            GSO_TCPV4 => self.has(feature::GUEST_TSO4),
            GSO_TCPV6 => self.has(feature::GUEST_TSO6),
            GSO_UDP_L4 => self.has(feature::GUEST_USO4) && self.has(feature::GUEST_USO6),
            _ => false,
        };
        self.has(feature::GUEST_CSUM) && kind && ecn
    }

    /// Put a frame into the guest's buffers, or into the outbox where it has too few.
    fn put_or_keep(&mut self, frame: Parts, cell: &Cell) -> Result<(), Cause> {
        let put = if self.is_full() { Put::NoRoom } else { self.put(frame, cell) };
        match put {
            Put::Done => {}
            Put::Drop(cause) => return Err(cause),
            Put::NoRoom => {
                let mut copy = vec![0; frame.len()].into_boxed_slice();
                frame.top(&mut copy);
                self.outbox.push_back((frame.header, copy));
            }
        }
        Ok(())
    }

    fn put(&mut self, frame: Parts, cell: &Cell) -> Put {
        let pair = match self.active[..] {
            [] => return Put::Drop(Cause::TxDown),
            [only] => only,
            _ => self.pair(&frame),
        };
        match self.make_room(2 * pair, self.header_len() + frame.len()) {
            Ok(None) => {
                self.fill(2 * pair, &frame);
                if frame.header.gso_type != GSO_NONE {
                    cell.add(Counter::TxSuper, 1);
                }
                self.unshown.0 += 1;
                self.unshown.1 += frame.len() as u64;
                Put::Done
            }
            Ok(Some(put)) => put,
            Err(Broken) => {
                self.give_up(2 * pair);
                Put::Drop(Cause::TxBadChain)
            }
        }
    }

    /// The pair that a frame's flow was heard on.
    fn pair(&self, frame: &Parts) -> usize {
        let mut top = [0u8; FLOW_TOP];
        let len = frame.top(&mut top);
        let heard = usize::from(self.heard[frame::flow_hash(&top[..len]) as usize % FLOWS]);
        if self.active.contains(&heard) { heard } else { self.active[heard % self.active.len()] }
    }

    /// Gather chains of a receive ring until `needed` bytes have room, into `rooms` and `heads`; else say what becomes of the frame.
    fn make_room(&mut self, index: usize, needed: usize) -> Result<Option<Put>, Broken> {
        let merges = self.has(feature::MRG_RXBUF);
        let Some(ring) = &mut self.slots[index].ring else { return Ok(Some(Put::Drop(Cause::TxDown))) };
        self.rooms.clear();
        self.heads.clear();
        let (mut position, mut room) = (ring.position(), 0);
        while room < needed {
            if !self.heads.is_empty() && !merges {
                return Ok(Some(Put::Drop(Cause::TxOversize)));
            }
            if ring.waiting(position)? == 0 {
                if ring.is_all_ours() && !self.heads.is_empty() {
                    return Ok(Some(Put::Drop(Cause::TxOversize)));
                }
                if !ring.listen(&self.memory)? {
                    return Ok(Some(Put::NoRoom));
                }
                ring.deafen();
                continue;
            }
            let head = ring.head(position)?;
            position = position.wrapping_add(1);
            let before = room;
            let mut chain = ring.chain(head);
            let gathered = gather_room(&mut chain, &mut self.memory, &mut self.rooms, &mut room);
            self.heads.push((head, room - before));
            if gathered.is_err() {
                // What was gathered goes back empty with the one that is none, or the next frame would meet it again.
                for &(head, _) in &self.heads {
                    ring.complete(head, 0);
                }
                return Ok(Some(Put::Drop(Cause::TxBadChain)));
            }
        }
        Ok(None)
    }

    /// Write a frame to the rooms that were made for it, and give their chains back.
    fn fill(&mut self, index: usize, frame: &Parts) {
        let mut header = [0u8; HEADER_MOST];
        let mut first = [0u8; VNET_LEN];
        frame.header.write(&mut first);
        header[..VNET_LEN].copy_from_slice(&first);
        header[VNET_LEN..].copy_from_slice(&(self.heads.len() as u16).to_le_bytes());
        let sources = [(header.as_ptr(), self.header_len()), frame.parts[0], frame.parts[1]];
        let (mut rooms, mut room) = (self.rooms.iter(), Room { at: ptr::null_mut(), len: 0, address: 0 });
        for (mut from, mut left) in sources {
            while left != 0 {
                if room.len == 0 {
                    let Some(next) = rooms.next() else { return }; // never: there is room for all
                    room = *next;
                    continue;
                }
                let count = left.min(room.len);
                // SAFETY: a room was found in the guest's memory, a source is readable; they are not in one another.
                unsafe {
                    ptr::copy_nonoverlapping(from, room.at, count);
                    from = from.add(count);
                    room.at = room.at.add(count);
                }
                self.memory.wrote(room.address, count);
                room.address += count as u64;
                room.len -= count;
                left -= count;
            }
        }
        let mut left = self.header_len() + frame.len();
        if let Some(ring) = &mut self.slots[index].ring {
            for &(head, room) in &self.heads {
                let written = left.min(room);
                ring.complete(head, written as u32);
                left -= written;
            }
        }
    }

    /// Show the guest what it has received; then what waited for buffers of its own.
    pub fn flush(&mut self, cell: &Cell) -> Flush {
        while let Some((header, bytes)) = self.outbox.pop_front() {
            let frame = Parts { header, parts: [(bytes.as_ptr(), bytes.len()), (ptr::null(), 0)] };
            match self.put(frame, cell) {
                Put::Done => {}
                Put::Drop(cause) => cell.drop(cause, 1),
                Put::NoRoom => {
                    self.outbox.push_front((header, bytes));
                    break;
                }
            }
        }
        for slot in self.slots.iter_mut().step_by(2) {
            slot.publish(&self.memory);
        }
        let (frames, bytes) = std::mem::take(&mut self.unshown);
        cell.add(Counter::TxFrames, frames);
        cell.add(Counter::TxBytes, bytes);
        match self.outbox.is_empty() {
            _ if self.is_broken() => Flush::Ended(libc::EFAULT),
            true => Flush::Idle,
            false => Flush::Writable,
        }
    }
}

/// Look up the buffers of a chain of the receive ring, as long as there are no more than a frame may have.
fn gather_room(chain: &mut Chain, memory: &mut Memory, rooms: &mut Vec<Room>, room: &mut usize) -> Result<(), BadChain> {
    while let Some(buffer) = chain.buffer(memory)? {
        if !buffer.is_writable {
            return Err(BadChain);
        }
        let (mut address, mut left) = (buffer.address, buffer.len as usize);
        loop {
            if rooms.len() == CHAIN_MOST {
                return Err(BadChain);
            }
            // An empty buffer is one too, or there could be any number of them.
            let (at, len) = if left == 0 { (ptr::null_mut(), 0) } else { memory.find(address, left).ok_or(BadChain)? };
            rooms.push(Room { at, len, address });
            *room += len;
            left -= len;
            address = address.wrapping_add(len as u64);
            if left == 0 {
                break;
            }
        }
    }
    Ok(())
}
