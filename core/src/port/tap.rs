//! The engine of a TAP: a frame with its virtio-net header a system call, read straight into a lane and written straight out of one.
//!
//! The interface takes super-frames and partial checksums as they come, so nothing is cut here. A TAP never makes its
//! writer wait: what the kernel cannot take is lost, and counted.

use std::io;
use std::os::fd::RawFd;

use crate::lane::{FRAME_MOST, VNET_LEN};
use crate::ports::{Cause, Cell, Counter};
use crate::sys;

use super::{Piece, Refusal};

pub struct Tap {
    pub queues: Vec<RawFd>,
    turn: usize,
}

impl Tap {
    /// Descriptors opened with IFF_VNET_HDR (ten bytes) and O_NONBLOCK; they stay the caller's.
    pub fn new(queues: Vec<RawFd>) -> Tap {
        Tap { queues, turn: 0 }
    }

    /// The queue to read next.
    pub fn next_queue(&mut self) -> RawFd {
        self.turn = (self.turn + 1) % self.queues.len();
        self.queues[self.turn]
    }

    /// Read a frame to `at`, its virtio-net header into the bytes before; the frame's length (a runt may be below 0).
    ///
    /// # Safety
    /// `at` has room for a frame of any length, and `VNET_LEN` bytes before it.
    pub unsafe fn receive(&self, queue: RawFd, at: *mut u8) -> io::Result<isize> {
        // SAFETY: as the caller promises.
        let len = unsafe { sys::read(queue, at.sub(VNET_LEN), VNET_LEN + FRAME_MOST) }?;
        Ok(len as isize - VNET_LEN as isize)
    }

    pub fn send(&mut self, piece: &Piece, cell: &Cell) -> Result<(), Refusal> {
        // SAFETY: a piece is readable, with its virtio-net header before it.
        match unsafe { super::write(self.queues[0], piece) } {
            Ok(is_super) => {
                if is_super {
                    cell.add(Counter::TxSuper, 1);
                }
                Ok(())
            }
            Err(error) => Err(refusal(&error)),
        }
    }
}

fn refusal(error: &io::Error) -> Refusal {
    match error.raw_os_error().unwrap_or(0) {
        libc::EAGAIN | libc::ENOBUFS | libc::ENOMEM => Refusal::Drop(Cause::TxFull),
        libc::EIO => Refusal::Drop(Cause::TxDown), // the interface is down
        libc::EINVAL => Refusal::Drop(Cause::TxOffload),
        gone @ (libc::EBADFD | libc::ENODEV | libc::EBADF) => Refusal::Ended(gone),
        _ => Refusal::Drop(Cause::TxError),
    }
}

/// The descriptor's interface is gone, rather than slow or down.
pub fn is_gone(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EBADFD | libc::ENODEV | libc::EBADF))
}
