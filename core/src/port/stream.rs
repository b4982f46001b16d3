//! The engine of a byte stream: a big-endian length of two or four bytes, then the frame (QEMU's stream and socket; VDE's plug).
//!
//! Both ways go through a buffer of our own, so that a system call carries many frames. A frame too short to be one is counted and
//! skipped; a length that no frame can have ends the connection, for nothing behind it can be believed. A frame that was begun is always
//! written to its end.

use std::collections::VecDeque;
use std::io;
use std::os::fd::RawFd;

use crate::frame;
use crate::lane::{FRAME_LEAST, FRAME_MOST, HEADROOM};
use crate::ports::{Cause, Cell, Counter};
use crate::sys;

use super::{Bench, Flush, Inbox, Piece, QUEUE_MOST, Refusal, finish};

const INBOX: usize = 256 << 10;
/// How many times as much as makes it full an outbox has at most.
const UNDER_WAY: usize = 4;

pub struct Stream {
    pub read_fd: RawFd,
    pub write_fd: RawFd,
    prefix: usize,
    inbox: Inbox,
    /// What of the inbox is filled and not yet handed out.
    begin: usize,
    end: usize,
    /// Length of the frame at `begin`, once its prefix was read.
    frame: Option<usize>,
    outbox: Vec<u8>,
    written: usize,
    /// Where the frames in the outbox end, and where the last that went ended.
    ends: VecDeque<usize>,
    gone: usize,
}

/// What the inbox holds.
pub enum Next {
    /// A frame of this length at this place, until `consume`.
    Frame(*mut u8, usize),
    /// Shorter than an Ethernet header; it has been skipped.
    Runt,
    /// Not a whole frame yet.
    Partial,
    /// A length that cannot be.
    Bad,
}

impl Stream {
    /// `prefix`: 2 or 4. The descriptors are non-blocking and stay the caller's.
    pub fn new(read_fd: RawFd, write_fd: RawFd, prefix: usize) -> Stream {
        Stream {
            read_fd,
            write_fd,
            prefix,
            inbox: Inbox::new(INBOX),
            begin: 0,
            end: 0,
            frame: None,
            outbox: Vec::new(),
            written: 0,
            ends: VecDeque::new(),
            gone: 0,
        }
    }

    /// Read once; the number of bytes, 0 at the end of the stream.
    pub fn fill(&mut self) -> io::Result<usize> {
        let start = self.inbox.frame();
        // What is left goes to the front: at most a frame that is not whole.
        if self.begin != 0 {
            // SAFETY: both ranges lie in the inbox.
            unsafe { std::ptr::copy(start.add(self.begin), start, self.end - self.begin) };
            self.end -= self.begin;
            self.begin = 0;
        }
        // SAFETY: the inbox has INBOX bytes behind its headroom.
        let got = unsafe { sys::read(self.read_fd, start.add(self.end), INBOX - self.end) }?;
        self.end += got;
        Ok(got)
    }

    /// Look at what is at the front of the inbox. A frame lies with `HEADROOM` bytes before it, its virtio-net header zero.
    pub fn peek(&mut self) -> Next {
        let start = self.inbox.frame();
        let len = match self.frame {
            Some(len) => len,
            None => {
                if self.end - self.begin < self.prefix {
                    return Next::Partial;
                }
                let mut len = 0;
                for at in 0..self.prefix {
                    // SAFETY: the prefix lies in the filled part.
                    len = len << 8 | usize::from(unsafe { *start.add(self.begin + at) });
                }
                if len > FRAME_MOST {
                    return Next::Bad;
                }
                self.begin += self.prefix;
                self.frame = Some(len);
                len
            }
        };
        if self.end - self.begin < len {
            return Next::Partial;
        }
        if len < FRAME_LEAST {
            self.consume();
            return Next::Runt;
        }
        // SAFETY: the frame lies in the filled part, with the headroom or a consumed frame before it; its prefix was
        // read and is no longer needed, so the virtio-net header may take its place.
        unsafe {
            let frame = start.add(self.begin);
            std::ptr::write_bytes(frame.sub(crate::lane::VNET_LEN), 0, crate::lane::VNET_LEN);
            Next::Frame(frame, len)
        }
    }

    /// The frame that `peek` showed has been dealt with.
    pub fn consume(&mut self) {
        self.begin += self.frame.take().unwrap_or(0);
        if self.begin == self.end {
            (self.begin, self.end) = (0, 0);
        }
    }

    pub fn is_full(&self) -> bool {
        self.waiting() >= QUEUE_MOST
    }

    fn waiting(&self) -> usize {
        self.outbox.len() - self.written
    }

    pub fn queued(&self) -> usize {
        self.ends.len()
    }

    /// Put a frame into the outbox. One that is full has room for what was under way when those who send heard of it.
    pub fn send(&mut self, piece: &Piece, cell: &Cell, bench: &mut Bench) -> Result<(), Refusal> {
        if self.waiting() >= UNDER_WAY * QUEUE_MOST {
            return Err(Refusal::Blocked);
        }
        let longest = if self.prefix == 2 { usize::from(u16::MAX) } else { FRAME_MOST + frame::TAG };
        if piece.vnet().is_partial() {
            let Stream { outbox, ends, prefix, .. } = self;
            return finish(piece, cell, bench, |head, tail| {
                let len = head.len() + tail.len();
                if len > longest {
                    return cell.drop(Cause::TxOversize, 1);
                }
                put_prefix(outbox, *prefix, len);
                outbox.extend_from_slice(head);
                outbox.extend_from_slice(tail);
                ends.push_back(outbox.len());
            });
        }
        let len = piece.wire_len();
        if len > longest {
            return Err(Refusal::Drop(Cause::TxOversize));
        }
        put_prefix(&mut self.outbox, self.prefix, len);
        let at = self.outbox.len();
        self.outbox.resize(at + len, 0);
        piece.copy(&mut self.outbox[at..]);
        self.ends.push_back(at + len);
        Ok(())
    }

    /// Write what is in the outbox, as far as it goes.
    pub fn flush(&mut self, cell: &Cell) -> Flush {
        while self.written < self.outbox.len() {
            let rest = &self.outbox[self.written..];
            // SAFETY: a slice is readable.
            match unsafe { sys::write(self.write_fd, rest.as_ptr(), rest.len()) } {
                Ok(count) => self.account(cell, count),
                Err(error) => {
                    return match error.raw_os_error().unwrap_or(0) {
                        libc::EAGAIN => {
                            self.compact();
                            Flush::Writable
                        }
                        libc::EINTR => continue,
                        errno => Flush::Ended(errno),
                    };
                }
            }
        }
        self.outbox.clear();
        (self.written, self.gone) = (0, 0);
        Flush::Idle
    }

    fn account(&mut self, cell: &Cell, count: usize) {
        self.written += count;
        while let Some(&end) = self.ends.front()
            && end <= self.written
        {
            self.ends.pop_front();
            cell.add(Counter::TxFrames, 1);
            cell.add(Counter::TxBytes, (end - self.gone - self.prefix) as u64);
            self.gone = end;
        }
    }

    /// Keep the outbox from creeping through memory when it never runs dry.
    fn compact(&mut self) {
        if self.gone >= QUEUE_MOST {
            self.outbox.drain(..self.gone);
            for end in &mut self.ends {
                *end -= self.gone;
            }
            self.written -= self.gone;
            self.gone = 0;
        }
    }
}

fn put_prefix(out: &mut Vec<u8>, prefix: usize, len: usize) {
    out.extend_from_slice(&(len as u32).to_be_bytes()[4 - prefix..]);
}

const _: () = assert!(INBOX >= FRAME_MOST + 4 && HEADROOM >= 4);
