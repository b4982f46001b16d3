//! The engine of datagrams: a frame a datagram, or a record of SOCK_SEQPACKET, in batches both ways.
//!
//! A peer that is not there is no error of ours: what is sent to it is dropped and counted, and the port goes on.

use std::io;
use std::os::fd::RawFd;
use std::{mem, ptr};

use crate::lane::{FRAME_MOST, VNET_LEN};
use crate::ports::{Cause, Cell, Counter};
use crate::sys;

use super::{Bench, Flush, Inbox, Piece, QUEUE_MOST, Refusal, finish};

const BATCH: usize = 32;
/// Frames that wait in front of the socket.
const SPANS_MOST: usize = 256;
const NAME: usize = mem::size_of::<libc::sockaddr_storage>();

/// A socket address as the kernel takes it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Address {
    bytes: [u8; NAME],
    len: usize,
}

impl Address {
    /// None where the bytes are too many for any address.
    pub fn new(bytes: &[u8]) -> Option<Address> {
        let mut address = Address { bytes: [0; NAME], len: bytes.len() };
        address.bytes.get_mut(..bytes.len())?.copy_from_slice(bytes);
        Some(address)
    }

    fn family(&self) -> u16 {
        u16::from_ne_bytes([self.bytes[0], self.bytes[1]])
    }

    fn bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

/// Where datagrams go and which are not ours to hear.
pub struct Peer {
    /// None: the socket is connected, or nobody is known yet.
    pub remote: Option<Address>,
    /// Answer to whoever spoke last.
    pub follow: bool,
    /// Datagrams from here are our own, come back.
    pub ignore: Option<Address>,
}

pub struct Dgram {
    pub fd: RawFd,
    pub send_fd: RawFd,
    connected: bool,
    records: bool,
    peer: Peer,
    inboxes: Vec<Inbox>,
    names: Vec<[u8; NAME]>,
    lens: [usize; BATCH],
    name_lens: [usize; BATCH],
    next: usize,
    filled: usize,
    outbox: Vec<u8>,
    /// Begin and end of the frames in the outbox.
    spans: Vec<(usize, usize)>,
    sent: usize,
}

impl Dgram {
    /// Non-blocking sockets that stay the caller's; `send_fd` may be `fd`.
    pub fn new(fd: RawFd, send_fd: RawFd, peer: Peer) -> Dgram {
        Dgram {
            fd,
            send_fd,
            connected: peer.remote.is_none() && !peer.follow,
            records: sys::socket_type(fd) == Some(libc::SOCK_SEQPACKET),
            peer,
            inboxes: (0..BATCH).map(|_| Inbox::new(FRAME_MOST + 1)).collect(),
            names: vec![[0; NAME]; BATCH],
            lens: [0; BATCH],
            name_lens: [0; BATCH],
            next: 0,
            filled: 0,
            outbox: Vec::new(),
            spans: Vec::new(),
            sent: 0,
        }
    }

    /// Receive a batch; how many datagrams came. Call when `peek` has nothing left.
    pub fn fill(&mut self) -> io::Result<usize> {
        // SAFETY: all-zero is a valid header; what it points to is set below.
        let mut headers: [libc::mmsghdr; BATCH] = unsafe { mem::zeroed() };
        let mut vectors = [libc::iovec { iov_base: ptr::null_mut(), iov_len: FRAME_MOST + 1 }; BATCH];
        for (index, (header, vector)) in headers.iter_mut().zip(&mut vectors).enumerate() {
            vector.iov_base = self.inboxes[index].frame().cast();
            header.msg_hdr.msg_iov = vector;
            header.msg_hdr.msg_iovlen = 1;
            if self.peer.follow || self.peer.ignore.is_some() {
                header.msg_hdr.msg_name = self.names[index].as_mut_ptr().cast();
                header.msg_hdr.msg_namelen = NAME as libc::socklen_t;
            }
        }
        // SAFETY: each header points to an inbox of that length and to a name of its own.
        let count = unsafe { sys::receive_many(self.fd, &mut headers) }?;
        for (index, header) in headers[..count].iter().enumerate() {
            self.lens[index] = header.msg_len as usize;
            self.name_lens[index] = (header.msg_hdr.msg_namelen as usize).min(NAME);
        }
        (self.next, self.filled) = (0, count);
        Ok(count)
    }

    /// The oldest datagram that was not consumed, its virtio-net header zero; its length is 0 at the end of a
    /// connection, and FRAME_MOST + 1 where it was longer than that.
    pub fn peek(&mut self) -> Option<(*mut u8, usize)> {
        while self.next < self.filled {
            if self.is_own(self.next) {
                self.next += 1;
                continue;
            }
            let name = &self.names[self.next][..self.name_lens[self.next]];
            if self.peer.follow && !name.is_empty() && self.peer.remote.as_ref().is_none_or(|known| known.bytes() != name) {
                self.peer.remote = Address::new(name);
            }
            let frame = self.inboxes[self.next].frame();
            // SAFETY: the headroom lies before the frame.
            unsafe { ptr::write_bytes(frame.sub(VNET_LEN), 0, VNET_LEN) };
            return Some((frame, self.lens[self.next]));
        }
        None
    }

    pub fn consume(&mut self) {
        self.next += 1;
    }

    /// Frames that came in and were not consumed.
    pub fn pending(&self) -> usize {
        (self.next..self.filled).filter(|&index| !(self.is_own(index) || self.records && self.lens[index] == 0)).count()
    }

    /// Is it one of ours, come back?
    fn is_own(&self, index: usize) -> bool {
        self.peer.ignore.as_ref().is_some_and(|own| own.bytes() == &self.names[index][..self.name_lens[index]])
    }

    /// Does an empty record mean the end? It does where there are connections (SOCK_SEQPACKET), not on datagrams.
    pub fn is_record_socket(&self) -> bool {
        self.records
    }

    pub fn is_full(&self) -> bool {
        self.queued() >= SPANS_MOST || self.outbox.len() >= QUEUE_MOST
    }

    pub fn queued(&self) -> usize {
        self.spans.len() - self.sent
    }

    pub fn send(&mut self, piece: &Piece, cell: &Cell, bench: &mut Bench) -> Result<(), Refusal> {
        if self.peer.remote.is_none() && !self.connected {
            return Err(Refusal::Drop(Cause::TxDown)); // nobody has spoken yet
        }
        if self.is_full() {
            return Err(Refusal::Blocked);
        }
        let begin = self.outbox.len();
        if piece.vnet().is_partial() {
            let Dgram { outbox, spans, .. } = self;
            return finish(piece, cell, bench, |head, tail| {
                let begin = outbox.len();
                outbox.extend_from_slice(head);
                outbox.extend_from_slice(tail);
                spans.push((begin, outbox.len()));
            });
        }
        self.outbox.resize(begin + piece.wire_len(), 0);
        let len = piece.copy(&mut self.outbox[begin..]);
        self.spans.push((begin, begin + len));
        Ok(())
    }

    /// Send what waits, as far as it goes.
    pub fn flush(&mut self, cell: &Cell) -> Flush {
        while self.sent < self.spans.len() {
            match self.flush_batch() {
                Ok(count) => {
                    let bytes: usize = self.spans[self.sent..self.sent + count].iter().map(|(begin, end)| end - begin).sum();
                    cell.add(Counter::TxFrames, count as u64);
                    cell.add(Counter::TxBytes, bytes as u64);
                    self.sent += count;
                }
                Err(error) => match self.fate(&error) {
                    Err(flush) => return flush,
                    Ok(cause) => {
                        cell.drop(cause, 1);
                        self.sent += 1;
                    }
                },
            }
        }
        self.spans.clear();
        self.outbox.clear();
        self.sent = 0;
        Flush::Idle
    }

    /// What an error of the first datagram in the batch means: it is dropped, or the port waits or ends.
    fn fate(&self, error: &io::Error) -> Result<Cause, Flush> {
        match error.raw_os_error().unwrap_or(0) {
            // A unix socket that is not connected cannot be asked when its peer has room.
            libc::EAGAIN if self.peer.remote.is_some_and(|remote| remote.family() == libc::AF_UNIX as u16) => Err(Flush::Soon),
            libc::EAGAIN => Err(Flush::Writable),
            libc::EINTR => Err(Flush::Soon),
            libc::EMSGSIZE => Ok(Cause::TxOversize),
            libc::ENOBUFS | libc::ENOMEM => Ok(Cause::TxFull),
            libc::ECONNREFUSED | libc::ENOENT | libc::ENOTCONN | libc::EHOSTUNREACH | libc::ENETUNREACH | libc::ENETDOWN
                if self.peer.remote.is_some() =>
            {
                Ok(Cause::TxDown)
            }
            errno @ (libc::EPIPE | libc::ECONNRESET | libc::ENOTCONN | libc::EBADF) => Err(Flush::Ended(errno)),
            libc::ECONNREFUSED => Ok(Cause::TxDown),
            _ => Ok(Cause::TxError),
        }
    }

    fn flush_batch(&mut self) -> io::Result<usize> {
        // SAFETY: all-zero is a valid header; what it points to is set below.
        let mut headers: [libc::mmsghdr; BATCH] = unsafe { mem::zeroed() };
        let mut vectors = [libc::iovec { iov_base: ptr::null_mut(), iov_len: 0 }; BATCH];
        let waiting = &self.spans[self.sent..];
        let count = waiting.len().min(BATCH);
        for ((header, vector), &(begin, end)) in headers.iter_mut().zip(&mut vectors).zip(waiting) {
            *vector = libc::iovec { iov_base: self.outbox[begin..end].as_ptr().cast_mut().cast(), iov_len: end - begin };
            header.msg_hdr.msg_iov = vector;
            header.msg_hdr.msg_iovlen = 1;
            if let Some(remote) = &mut self.peer.remote {
                header.msg_hdr.msg_name = remote.bytes.as_mut_ptr().cast();
                header.msg_hdr.msg_namelen = remote.len as libc::socklen_t;
            }
        }
        // SAFETY: each header points to a span of the outbox and to the peer's address.
        unsafe { sys::send_many(self.send_fd, &mut headers[..count]) }
    }
}
