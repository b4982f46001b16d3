//! What a guest transmits: out of its buffers, once, to where the frame goes on.

use std::ptr;

use super::ring::{BadChain, Broken};
use super::{FLOW_TOP, FLOWS, HEADER_MOST, Vhost};
use crate::frame;
use crate::lane::{FRAME_LEAST, FRAME_MOST, VNET_LEN};
use crate::offload::{self, NEEDS_CSUM, VnetHeader};
use crate::ports::Cause;

/// What `Vhost::receive` found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Received {
    /// A frame of this length; FRAME_MOST + 1 for any that is longer.
    Frame(usize),
    Dropped(Cause),
    /// The guest has nothing more; it will ring.
    Nothing,
}

impl Vhost {
    /// Copy the oldest frame that the guest transmits to `at`, its virtio-net header into the bytes before.
    ///
    /// # Safety
    /// `at` has room for a frame of any length, and `VNET_LEN` bytes before it, of which nobody else makes use.
    pub unsafe fn receive(&mut self, at: *mut u8) -> Received {
        if let Some(said) = self.announcements.pop_front() {
            // SAFETY: as the caller promises.
            unsafe {
                ptr::write_bytes(at.sub(VNET_LEN), 0, VNET_LEN);
                ptr::copy_nonoverlapping(said.as_ptr(), at, said.len());
            }
            return Received::Frame(said.len());
        }
        let pairs = self.slots.len() / 2;
        for _ in 0..pairs {
            let index = 2 * self.turn + 1;
            self.turn = (self.turn + 1) % pairs;
            let Some(ring) = &mut self.slots[index].ring else { continue };
            let found = ring.waiting(ring.position()).and_then(|waiting| {
                if waiting == 0 && !ring.listen(&self.memory)? {
                    return Ok(None);
                }
                ring.deafen();
                ring.head(ring.position()).map(Some)
            });
            match found {
                Ok(None) => {}
                // SAFETY: as the caller promises.
                Ok(Some(head)) => return unsafe { self.take(index, head, at) },
                Err(Broken) => {
                    self.give_up(index);
                    return Received::Dropped(Cause::BadChain);
                }
            }
        }
        Received::Nothing
    }

    /// # Safety
    /// As for `receive`.
    unsafe fn take(&mut self, index: usize, head: u16, at: *mut u8) -> Received {
        let mut header = [0u8; HEADER_MOST];
        // SAFETY: as the caller promises.
        let taken = unsafe { self.gather(index, head, &mut header, at) };
        let slot = &mut self.slots[index];
        if let Some(ring) = &mut slot.ring {
            ring.complete(head, 0);
        }
        let len = match taken {
            _ if !slot.enabled => return Received::Dropped(Cause::Down),
            Err(BadChain) => return Received::Dropped(Cause::BadChain),
            Ok(len) if !(FRAME_LEAST..=FRAME_MOST).contains(&len) => return Received::Frame(len),
            Ok(len) => len,
        };
        let mut first = [0u8; VNET_LEN];
        first.copy_from_slice(&header[..VNET_LEN]);
        let mut vnet = VnetHeader::read(&first);
        vnet.flags &= NEEDS_CSUM; // "valid" is not for a driver to say (clause 5.1.6.2.1)
        if vnet.is_partial() {
            let mut top = [0u8; offload::HEADERS_MAX];
            let top = &mut top[..len.min(offload::HEADERS_MAX)];
            // SAFETY: the frame was just copied there; what is checked is this copy.
            unsafe { ptr::copy_nonoverlapping(at, top.as_mut_ptr(), top.len()) };
            if offload::check_top(&vnet, top, len).is_err() {
                return Received::Dropped(Cause::BadOffload);
            }
        } else {
            vnet = VnetHeader::default();
        }
        vnet.write(&mut first);
        // SAFETY: as the caller promises.
        unsafe { ptr::copy_nonoverlapping(first.as_ptr(), at.sub(VNET_LEN), VNET_LEN) };
        if self.active.len() > 1 {
            // SAFETY: the frame was just copied there.
            self.heard[unsafe { flow(at, len) }] = (index / 2) as u8;
        }
        Received::Frame(len)
    }

    /// Copy a chain: the device's header to `header`, the rest to `at`. Returns the length of the frame, one too many where it has no room.
    ///
    /// # Safety
    /// As for `receive`.
    unsafe fn gather(&mut self, index: usize, head: u16, header: &mut [u8; HEADER_MOST], at: *mut u8) -> Result<usize, BadChain> {
        let (header_len, memory) = (self.header_len(), &mut self.memory);
        let mut chain = self.slots[index].ring.as_ref().ok_or(BadChain)?.chain(head);
        let (mut before, mut len) = (0, 0);
        while let Some(buffer) = chain.buffer(memory)? {
            if buffer.is_writable {
                return Err(BadChain);
            }
            let (mut address, mut left) = (buffer.address, buffer.len as usize);
            while left != 0 {
                let (from, mut count) = memory.find(address, left).ok_or(BadChain)?;
                let out = if before < header_len {
                    count = count.min(header_len - before);
                    before += count;
                    header[before - count..].as_mut_ptr()
                } else {
                    if len + count > FRAME_MOST {
                        return Ok(FRAME_MOST + 1);
                    }
                    len += count;
                    // SAFETY: `at` has room for FRAME_MOST.
                    unsafe { at.add(len - count) }
                };
                // SAFETY: `find` has shown `count` bytes; `out` has room for them and is not the guest's.
                unsafe { ptr::copy_nonoverlapping(from, out, count) };
                address = address.wrapping_add(count as u64);
                left -= count;
            }
        }
        if before < header_len { Err(BadChain) } else { Ok(len) }
    }

    /// Show the guest that what it transmitted was taken.
    pub fn end_batch(&mut self) {
        for slot in self.slots.iter_mut().skip(1).step_by(2) {
            slot.publish(&self.memory);
        }
    }
}

/// The entry of a flow in `Vhost::heard`.
///
/// # Safety
/// `at` points to `len` readable bytes.
unsafe fn flow(at: *const u8, len: usize) -> usize {
    let mut top = [0u8; FLOW_TOP];
    let len = len.min(FLOW_TOP);
    // SAFETY: as the caller promises.
    unsafe { ptr::copy_nonoverlapping(at, top.as_mut_ptr(), len) };
    frame::flow_hash(&top[..len]) as usize % FLOWS
}
