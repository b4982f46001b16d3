//! Engines: what carries frames between a descriptor and the switch.
//!
//! An engine takes a `Piece` (a frame that leaves) and writes it, or says why not; and it brings in frames, each with
//! room before it for a record's header, so that a frame is read where it will travel on from.

pub mod capture;
pub mod dgram;
pub mod link;
pub mod packet;
pub mod stream;
pub mod tap;
pub mod tunnel;
pub mod vhost;

use std::io;
use std::os::fd::RawFd;
use std::ptr;

use crate::frame;
use crate::lane::{FRAME_MOST, HEADROOM, VNET_LEN};
use crate::offload::{self, GSO_NONE, VnetHeader};
use crate::ports::{Cause, Cell, Counter, Port};
use crate::switch::Edit;
use crate::sys;

pub use capture::Capture;
pub use dgram::Dgram;
pub use link::Link;
pub use packet::Packet;
pub use stream::Stream;
pub use tap::Tap;
pub use vhost::Vhost;

/// Bytes waiting in front of a descriptor beyond which an engine takes no more.
pub const QUEUE_MOST: usize = 256 << 10;

/// Why an engine did not send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// Not now; the engine says when.
    Blocked,
    Drop(Cause),
    /// The descriptor is done with: an errno, or 0 at its end.
    Ended(i32),
    /// It is for this port, a companion of the one it was sent to.
    HandOver(Port),
}

/// What is to happen after an engine wrote what it could.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flush {
    Idle,
    /// Wait until the descriptor can be written.
    Writable,
    /// The descriptor does not say when: try again soon.
    Soon,
    Ended(i32),
}

/// A frame on its way out. It may lie in memory that another process can write.
#[derive(Clone, Copy)]
pub struct Piece {
    /// The frame, with its virtio-net header in the ten bytes before.
    pub frame: *const u8,
    pub len: usize,
    pub edit: Edit,
}

impl Piece {
    pub fn vnet(&self) -> VnetHeader {
        let mut bytes = [0u8; VNET_LEN];
        // SAFETY: ten readable bytes lie before every frame.
        unsafe { ptr::copy_nonoverlapping(self.frame.sub(VNET_LEN), bytes.as_mut_ptr(), VNET_LEN) };
        VnetHeader::read(&bytes)
    }

    /// Length as it leaves.
    pub fn wire_len(&self) -> usize {
        match self.edit {
            Edit::Insert(_) => self.len + frame::TAG,
            Edit::Strip => self.len - frame::TAG,
            Edit::Keep | Edit::Name(_) => self.len,
        }
    }

    pub fn leaves_tagged(&self) -> bool {
        match self.edit {
            Edit::Strip => false,
            Edit::Insert(_) | Edit::Name(_) => true,
            Edit::Keep => {
                // SAFETY: a frame has at least 14 bytes.
                let ethertype = unsafe { self.frame.add(12).cast::<[u8; 2]>().read_volatile() };
                ethertype == frame::VLAN.to_be_bytes()
            }
        }
    }

    /// The first sixteen bytes or fewer as they leave, and where the rest begins in the frame as it is.
    pub fn top(&self) -> ([u8; 16], usize, usize) {
        let mut top = [0u8; 16];
        // SAFETY: a frame has at least 14 bytes, and one that is tagged at least 18.
        unsafe { ptr::copy_nonoverlapping(self.frame, top.as_mut_ptr(), 12) };
        match self.edit {
            Edit::Keep => (top, 12, 12),
            Edit::Strip => (top, 12, 16),
            Edit::Insert(vid) => {
                top[12..14].copy_from_slice(&frame::VLAN.to_be_bytes());
                top[14..16].copy_from_slice(&vid.to_be_bytes());
                (top, 16, 12)
            }
            Edit::Name(vid) => {
                // SAFETY: as above; the frame carries a tag.
                unsafe { ptr::copy_nonoverlapping(self.frame.add(12), top[12..].as_mut_ptr(), 4) };
                let tci = u16::from_be_bytes([top[14], top[15]]) & !crate::switch::VID | vid;
                top[14..16].copy_from_slice(&tci.to_be_bytes());
                (top, 16, 16)
            }
        }
    }

    /// Copy the frame as it leaves to `out`, which has room for it; returns its length.
    pub fn copy(&self, out: &mut [u8]) -> usize {
        let (top, top_len, rest) = self.top();
        let len = top_len + self.len - rest;
        out[..top_len].copy_from_slice(&top[..top_len]);
        let tail = &mut out[top_len..len];
        // SAFETY: `rest..len` lies in the frame; `tail` has just this length.
        unsafe { ptr::copy_nonoverlapping(self.frame.add(rest), tail.as_mut_ptr(), tail.len()) };
        len
    }

    /// Copy the first bytes of the frame as it leaves, as many as `out` has room for and no more than there are.
    pub fn copy_first(&self, out: &mut [u8]) {
        let (top, top_len, rest) = self.top();
        let (head, tail) = out.split_at_mut(top_len.min(out.len()));
        head.copy_from_slice(&top[..head.len()]);
        debug_assert!(rest + tail.len() <= self.len);
        // SAFETY: `out` is no longer than the frame as it leaves, so `tail` is no longer than what lies behind `rest`.
        unsafe { ptr::copy_nonoverlapping(self.frame.add(rest), tail.as_mut_ptr(), tail.len()) };
    }

    /// The virtio-net header as it leaves: its offsets move with the tag.
    pub fn vnet_out(&self) -> VnetHeader {
        let mut header = self.vnet();
        match self.edit {
            Edit::Insert(_) => offload::shift(&mut header, frame::TAG as i32),
            Edit::Strip => offload::shift(&mut header, -(frame::TAG as i32)),
            Edit::Keep | Edit::Name(_) => {}
        }
        header
    }
}

/// Write a frame as it leaves, its virtio-net header before it, in one call; true for a super-frame.
///
/// # Safety
/// The piece is readable, with its virtio-net header before it.
unsafe fn write(fd: RawFd, piece: &Piece) -> io::Result<bool> {
    // SAFETY: as the caller promises.
    unsafe {
        let is_super = piece.frame.sub(VNET_LEN).add(1).read_volatile() != GSO_NONE;
        match piece.edit {
            Edit::Keep => sys::write(fd, piece.frame.sub(VNET_LEN), VNET_LEN + piece.len)?,
            _ => write_edited(fd, piece)?,
        };
        Ok(is_super)
    }
}

/// # Safety
/// `piece` is readable.
unsafe fn write_edited(fd: RawFd, piece: &Piece) -> io::Result<usize> {
    let (mut top, top_len, rest) = piece.top();
    let mut header = [0u8; VNET_LEN];
    piece.vnet_out().write(&mut header);
    let pieces = [
        libc::iovec { iov_base: header.as_mut_ptr().cast(), iov_len: VNET_LEN },
        libc::iovec { iov_base: top.as_mut_ptr().cast(), iov_len: top_len },
        // SAFETY: `rest` is within the frame.
        libc::iovec { iov_base: unsafe { piece.frame.add(rest) }.cast_mut().cast(), iov_len: piece.len - rest },
    ];
    // SAFETY: three readable pieces.
    unsafe { sys::write_pieces(fd, &pieces) }
}

/// Private memory of a worker in which a frame is worked on.
pub struct Bench {
    frame: Box<[u8]>,
    scratch: Box<offload::Scratch>,
}

impl Bench {
    /// A copy of the frame as it leaves.
    pub fn copied(&mut self, piece: &Piece) -> &[u8] {
        let len = piece.copy(&mut self.frame);
        &self.frame[..len]
    }
}

impl Default for Bench {
    fn default() -> Bench {
        Bench { frame: vec![0; FRAME_MOST + 2 * frame::TAG].into_boxed_slice(), scratch: Box::new([0; offload::HEADERS_MAX]) }
    }
}

/// Hand out `piece` as frames that ask for nothing: whole, or cut and summed in private memory.
///
/// `emit` gets a frame in two parts. Counts what had to be done.
pub fn finish(piece: &Piece, cell: &Cell, bench: &mut Bench, emit: impl FnMut(&[u8], &[u8])) -> Result<(), Refusal> {
    finish_as(Counter::Offered, piece, cell, bench, emit)
}

/// The same for a frame that was counted there, as each of those it stands for is.
pub fn finish_as(
    counted: Counter,
    piece: &Piece,
    cell: &Cell,
    bench: &mut Bench,
    mut emit: impl FnMut(&[u8], &[u8]),
) -> Result<(), Refusal> {
    let header = piece.vnet_out();
    let len = piece.copy(&mut bench.frame);
    let frames =
        offload::segment(&header, &bench.frame[..len], &mut bench.scratch, &mut emit).map_err(|_| Refusal::Drop(Cause::TxOffload))?;
    if frames > 1 {
        cell.add(Counter::Segmented, 1);
    } else {
        cell.add(Counter::Checksummed, 1);
    }
    cell.add(counted, frames.saturating_sub(1) as u64);
    Ok(())
}

/// A buffer in which frames come in, each with room before it for a record's header.
pub struct Inbox {
    words: Box<[u64]>,
}

impl Inbox {
    /// `bytes` of frames behind the headroom.
    pub fn new(bytes: usize) -> Inbox {
        Inbox { words: vec![0u64; (HEADROOM + bytes).div_ceil(8)].into_boxed_slice() }
    }

    /// The place behind the headroom.
    pub fn frame(&mut self) -> *mut u8 {
        // SAFETY: the buffer is longer than its headroom.
        unsafe { self.words.as_mut_ptr().cast::<u8>().add(HEADROOM) }
    }
}
