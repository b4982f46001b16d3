//! The engine of datagrams: a frame a datagram, or a record of SOCK_SEQPACKET, in batches both ways.
//!
//! A tunnel has a header before the frame, may send a frame to several far ends, and from several sockets: which one is the flow's, so
//! that a network with several ways spreads flows over them by the source port (RFC 7348, 5).
//!
//! A peer that is not there is no error of ours: what is sent to it is dropped and counted, and the port goes on.

use std::io;
use std::os::fd::RawFd;
use std::{mem, ptr, slice};

use crate::frame;
use crate::lane::{FRAME_MOST, VNET_LEN};
use crate::ports::{Cause, Cell, Counter};
use crate::sys;

use super::tunnel::{Far, HEAD_MOST, Tunnel};
use super::{Bench, Flush, Inbox, Piece, QUEUE_MOST, Refusal, finish};

const BATCH: usize = 32;
/// Frames that wait in front of the socket.
const SPANS_MOST: usize = 256;
/// A frame that is one byte too long, so that it shows, and a tunnel's header.
const DATAGRAM_MOST: usize = FRAME_MOST + 1 + HEAD_MOST;
/// Enough of a frame to hash its flow: two tags and an IPv6 header with its ports.
const TOP: usize = 128;
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

/// A datagram on its way out.
struct Span {
    begin: usize,
    end: usize,
    /// None: the port's one far end.
    to: Option<Far>,
    /// Which socket sends it.
    socket: usize,
}

/// What has come in: a frame, and its length.
pub type Arrived = Result<(*mut u8, usize), Cause>;

pub struct Dgram {
    pub fd: RawFd,
    send_fds: Vec<RawFd>,
    tunnel: Option<Tunnel>,
    connected: bool,
    records: bool,
    peer: Peer,
    inboxes: Vec<Inbox>,
    names: Vec<[u8; NAME]>,
    lens: [usize; BATCH],
    /// The length of the tunnel's header of each, or why it is none of ours.
    heads: [Result<usize, Cause>; BATCH],
    name_lens: [usize; BATCH],
    next: usize,
    filled: usize,
    outbox: Vec<u8>,
    spans: Vec<Span>,
    sent: usize,
}

impl Dgram {
    /// Non-blocking sockets that stay the caller's; `send_fd` may be `fd`.
    pub fn new(fd: RawFd, send_fd: RawFd, peer: Peer) -> Dgram {
        Dgram::with(fd, vec![send_fd], peer, None)
    }

    /// With a header before each frame; there is at least one socket to send from.
    pub fn tunnel(fd: RawFd, send_fds: Vec<RawFd>, remote: Option<Address>, tunnel: Tunnel) -> Dgram {
        Dgram::with(fd, send_fds, Peer { remote, follow: false, ignore: None }, Some(tunnel))
    }

    fn with(fd: RawFd, send_fds: Vec<RawFd>, peer: Peer, tunnel: Option<Tunnel>) -> Dgram {
        Dgram {
            fd,
            send_fds,
            connected: peer.remote.is_none() && !peer.follow,
            records: sys::socket_type(fd) == Some(libc::SOCK_SEQPACKET),
            peer,
            inboxes: (0..BATCH).map(|_| Inbox::new(DATAGRAM_MOST)).collect(),
            names: vec![[0; NAME]; BATCH],
            lens: [0; BATCH],
            heads: [Ok(0); BATCH],
            name_lens: [0; BATCH],
            next: 0,
            filled: 0,
            outbox: Vec::new(),
            spans: Vec::new(),
            sent: 0,
            tunnel,
        }
    }

    /// The socket to wait for when it cannot take more.
    pub fn send_fd(&self) -> RawFd {
        self.send_fds[0]
    }

    /// Receive a batch; how many datagrams came. Call when `peek` has nothing left.
    pub fn fill(&mut self) -> io::Result<usize> {
        // SAFETY: all-zero is a valid header; what it points to is set below.
        let mut headers: [libc::mmsghdr; BATCH] = unsafe { mem::zeroed() };
        let mut vectors = [libc::iovec { iov_base: ptr::null_mut(), iov_len: DATAGRAM_MOST }; BATCH];
        for (index, (header, vector)) in headers.iter_mut().zip(&mut vectors).enumerate() {
            vector.iov_base = self.inboxes[index].frame().cast();
            header.msg_hdr.msg_iov = vector;
            header.msg_hdr.msg_iovlen = 1;
            if self.peer.follow || self.peer.ignore.is_some() || self.tunnel.is_some() {
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
        self.open(count);
        Ok(count)
    }

    /// Read the tunnel's headers.
    fn open(&mut self, count: usize) {
        let Some(tunnel) = &mut self.tunnel else { return };
        let now_s = sys::now_s();
        for index in 0..count {
            // SAFETY: the inbox is longer than what was received into it, and nobody else's.
            let datagram = unsafe { slice::from_raw_parts(self.inboxes[index].frame(), self.lens[index]) };
            self.heads[index] = tunnel.open(datagram, &self.names[index][..self.name_lens[index]], now_s);
        }
    }

    /// The oldest datagram that was not consumed, its virtio-net header zero; its length is 0 at the end of a
    /// connection, and more than FRAME_MOST where it was longer than that.
    pub fn peek(&mut self) -> Option<Arrived> {
        while self.next < self.filled {
            if self.is_own(self.next) {
                self.next += 1;
                continue;
            }
            let name = &self.names[self.next][..self.name_lens[self.next]];
            if self.peer.follow && !name.is_empty() && self.peer.remote.as_ref().is_none_or(|known| known.bytes() != name) {
                self.peer.remote = Address::new(name);
            }
            let head = match self.heads[self.next] {
                Ok(head) => head,
                Err(cause) => return Some(Err(cause)),
            };
            // SAFETY: a header is no longer than its datagram, and the headroom lies before both.
            let frame = unsafe {
                let frame = self.inboxes[self.next].frame().add(head);
                ptr::write_bytes(frame.sub(VNET_LEN), 0, VNET_LEN);
                frame
            };
            return Some(Ok((frame, self.lens[self.next] - head)));
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
        if self.tunnel.as_ref().is_some_and(|tunnel| !tunnel.takes_tags()) && piece.leaves_tagged() {
            return Err(Refusal::Drop(Cause::TxVlan));
        }
        if self.is_full() {
            return Err(Refusal::Blocked);
        }
        let mut copies = 0;
        if piece.vnet().is_partial() {
            finish(piece, cell, bench, |head, tail| {
                let begin = self.begin();
                self.outbox.extend_from_slice(head);
                self.outbox.extend_from_slice(tail);
                copies += self.queue(begin) - 1;
            })?;
        } else {
            let begin = self.begin();
            let at = self.outbox.len();
            self.outbox.resize(at + piece.wire_len(), 0);
            let len = piece.copy(&mut self.outbox[at..]);
            self.outbox.truncate(at + len);
            copies = self.queue(begin) - 1;
        }
        cell.add(Counter::Offered, copies as u64);
        Ok(())
    }

    /// Begin a datagram in the outbox.
    fn begin(&mut self) -> usize {
        let begin = self.outbox.len();
        if let Some(tunnel) = &mut self.tunnel {
            tunnel.write_head(&mut self.outbox);
        }
        begin
    }

    /// Queue the datagram at the end of the outbox for each of those that are to have it; how many they are.
    fn queue(&mut self, begin: usize) -> usize {
        let end = self.outbox.len();
        let Some(tunnel) = &self.tunnel else {
            self.spans.push(Span { begin, end, to: None, socket: 0 });
            return 1;
        };
        let frame = &self.outbox[begin + tunnel.head_len()..];
        let Some(route) = tunnel.route(frame, sys::now_s()) else {
            self.spans.push(Span { begin, end, to: None, socket: 0 });
            return 1;
        };
        let socket = match self.send_fds.len() {
            1 => 0,
            many => frame::flow_hash(&frame[..frame.len().min(TOP)]) as usize % many,
        };
        self.spans.extend(route.iter().map(|&far| Span { begin, end, to: Some(far), socket }));
        route.len()
    }

    /// Send what waits, as far as it goes.
    pub fn flush(&mut self, cell: &Cell) -> Flush {
        while self.sent < self.spans.len() {
            match self.flush_batch() {
                Ok(count) => {
                    let head = self.tunnel.as_ref().map_or(0, Tunnel::head_len);
                    let bytes: usize = self.spans[self.sent..self.sent + count].iter().map(|span| span.end - span.begin - head).sum();
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
            libc::EAGAIN if self.send_fds.len() == 1 => Err(Flush::Writable),
            libc::EAGAIN => Err(Flush::Soon),
            libc::EINTR => Err(Flush::Soon),
            libc::EMSGSIZE => Ok(Cause::TxOversize),
            libc::ENOBUFS | libc::ENOMEM => Ok(Cause::TxFull),
            libc::ECONNREFUSED | libc::ENOENT | libc::ENOTCONN | libc::EHOSTUNREACH | libc::ENETUNREACH | libc::ENETDOWN
                if self.peer.remote.is_some() || self.tunnel.is_some() =>
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
        let socket = waiting[0].socket;
        let count = waiting.iter().take(BATCH).take_while(|span| span.socket == socket).count();
        for ((header, vector), span) in headers.iter_mut().zip(&mut vectors).zip(waiting) {
            let bytes = &self.outbox[span.begin..span.end];
            *vector = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
            header.msg_hdr.msg_iov = vector;
            header.msg_hdr.msg_iovlen = 1;
            if let Some(far) = &span.to {
                header.msg_hdr.msg_name = far.bytes().as_ptr().cast_mut().cast();
                header.msg_hdr.msg_namelen = far.bytes().len() as libc::socklen_t;
            } else if let Some(remote) = &mut self.peer.remote {
                header.msg_hdr.msg_name = remote.bytes.as_mut_ptr().cast();
                header.msg_hdr.msg_namelen = remote.len as libc::socklen_t;
            }
        }
        // SAFETY: each header points to a span of the outbox and to the address of a far end.
        unsafe { sys::send_many(self.send_fds[socket], &mut headers[..count]) }
    }
}
