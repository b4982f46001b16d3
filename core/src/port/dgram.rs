//! The engine of datagrams: a frame a datagram, or a record of SOCK_SEQPACKET, in batches both ways.
//!
//! A tunnel has a header before the frame, may send a frame to several far ends, and from several sockets: which one is the flow's, so
//! that a network with several ways spreads flows over them by the source port (RFC 7348, 5).
//!
//! Over UDP the kernel is given datagrams of one length in a row, as the segments of a super-frame are, in one piece, and cuts it
//! (UDP_SEGMENT); what comes in a row comes in one piece too (UDP_GRO), and segments in it are joined again. A way that refuses that, for its packets are shorter, or for a
//! transformation that has to see each of them, is given them one by one for a second.
//!
//! A peer that is not there is no error of ours: what is sent to it is dropped and counted, and the port goes on.

use std::io;
use std::os::fd::RawFd;
use std::{mem, ptr, slice};

use crate::frame;
use crate::lane::{FRAME_MOST, VNET_LEN};
use crate::offload::{self, Joint, VnetHeader};
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
/// Datagrams that the kernel cuts out of one piece: UDP_MAX_SEGMENTS of Linux before 6.9.
const TRAIN_MOST: usize = 64;
/// Bytes of that: a packet's most, less the headers of IPv6 and UDP.
const TRAIN_BYTES: usize = 65_535 - 40 - 8;
/// Of a network that says nothing of its mtu.
const MTU: usize = 1500;
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

/// A datagram that has come in.
struct Slot {
    inbox: usize,
    /// Where its frame begins there, behind a tunnel's header.
    at: usize,
    /// How long the frame is, or why it is none of ours.
    len: Result<usize, Cause>,
    vnet: VnetHeader,
}

pub struct Dgram {
    pub fd: RawFd,
    send_fds: Vec<RawFd>,
    tunnel: Option<Tunnel>,
    connected: bool,
    records: bool,
    peer: Peer,
    inboxes: Vec<Inbox>,
    names: Vec<[u8; NAME]>,
    /// Several datagrams come in one piece.
    joined: bool,
    arrived: Vec<Slot>,
    next: usize,
    /// It is UDP, which cuts pieces into datagrams.
    cuts: bool,
    /// When the way last refused to.
    refused_s: Option<u32>,
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
            joined: sys::is_udp(fd) && sys::join_datagrams(fd),
            cuts: send_fds.iter().all(|&fd| sys::is_udp(fd)),
            refused_s: None,
            send_fds,
            connected: peer.remote.is_none() && !peer.follow,
            records: sys::socket_type(fd) == Some(libc::SOCK_SEQPACKET),
            peer,
            inboxes: (0..BATCH).map(|_| Inbox::new(DATAGRAM_MOST)).collect(),
            names: vec![[0; NAME]; BATCH],
            arrived: Vec::new(),
            next: 0,
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
    ///
    /// `mtu` is the port's, 0 for none.
    pub fn fill(&mut self, mtu: usize) -> io::Result<usize> {
        // SAFETY: all-zero is a valid header; what it points to is set below.
        let mut headers: [libc::mmsghdr; BATCH] = unsafe { mem::zeroed() };
        let mut vectors = [libc::iovec { iov_base: ptr::null_mut(), iov_len: DATAGRAM_MOST }; BATCH];
        let mut controls = [sys::Control::default(); BATCH];
        for (index, ((header, vector), control)) in headers.iter_mut().zip(&mut vectors).zip(&mut controls).enumerate() {
            vector.iov_base = self.inboxes[index].frame().cast();
            header.msg_hdr.msg_iov = vector;
            header.msg_hdr.msg_iovlen = 1;
            if self.peer.follow || self.peer.ignore.is_some() || self.tunnel.is_some() {
                header.msg_hdr.msg_name = self.names[index].as_mut_ptr().cast();
                header.msg_hdr.msg_namelen = NAME as libc::socklen_t;
            }
            if self.joined {
                header.msg_hdr.msg_control = control.as_mut_ptr().cast();
                header.msg_hdr.msg_controllen = mem::size_of::<sys::Control>() as _;
            }
        }
        // SAFETY: each header points to an inbox of that length, to a name and to a control message of its own.
        let count = unsafe { sys::receive_many(self.fd, &mut headers) }?;
        self.arrived.clear();
        self.next = 0;
        let now_s = sys::now_s();
        for (index, header) in headers[..count].iter().enumerate() {
            let len = header.msg_len as usize;
            let cut = sys::cut_of(&header.msg_hdr, &controls[index]).unwrap_or(len);
            let first = self.arrived.len();
            self.take(index, len, cut, (header.msg_hdr.msg_namelen as usize).min(NAME), now_s);
            if cut < len {
                self.join(first);
            } else if self.tunnel.as_ref().is_some_and(Tunnel::is_of_kernels) {
                self.guess(first, mtu);
            }
        }
        Ok(count)
    }

    /// Note the datagrams in an inbox: each but the last is `cut` bytes long. A tunnel's headers are read now.
    fn take(&mut self, inbox: usize, len: usize, cut: usize, name_len: usize, now_s: u32) {
        let name = &self.names[inbox][..name_len];
        if self.peer.ignore.as_ref().is_some_and(|own| own.bytes() == name) {
            return; // one of ours, come back
        }
        if self.peer.follow && !name.is_empty() && self.peer.remote.as_ref().is_none_or(|known| known.bytes() != name) {
            self.peer.remote = Address::new(name);
        }
        // SAFETY: the inbox is longer than what was received into it, and nobody else's.
        let piece = unsafe { slice::from_raw_parts(self.inboxes[inbox].frame(), len) };
        let mut at = 0;
        loop {
            let datagram = &piece[at..len.min(at + cut.max(1))];
            let head = self.tunnel.as_mut().map_or(Ok(0), |tunnel| tunnel.open(datagram, name, now_s));
            let begin = at + head.unwrap_or(0);
            let len = head.map(|head| datagram.len() - head);
            self.arrived.push(Slot { inbox, at: begin, len, vnet: VnetHeader::default() });
            at += datagram.len();
            if at >= piece.len() {
                return;
            }
        }
    }

    /// Join what came in one piece, from the slot `first` on, to super-frames where it can be.
    fn join(&mut self, first: usize) {
        let mut kept = first;
        let mut next = first;
        while next < self.arrived.len() {
            let Slot { inbox, at, len, .. } = self.arrived[next];
            next += 1;
            let end = self.arrived[next - 1..].last().map_or(0, |last| last.at + last.len.unwrap_or(0));
            // SAFETY: the inbox is longer than what was received into it, and nobody else's.
            let buffer = unsafe { slice::from_raw_parts_mut(self.inboxes[inbox].frame(), end) };
            let mut slot = Slot { inbox, at, len, vnet: VnetHeader::default() };
            if let Ok(len) = len
                && let Some(mut joint) = Joint::begin(&buffer[at..at + len])
            {
                let buffer = &mut buffer[at..];
                while let Some(Slot { at: there, len: Ok(more), .. }) = self.arrived.get(next)
                    && joint.append(buffer, there - at..there - at + more)
                {
                    next += 1;
                }
                slot.len = Ok(joint.frame_len());
                slot.vnet = joint.finish(buffer);
            }
            self.arrived[kept] = slot;
            kept += 1;
        }
        self.arrived.truncate(kept);
    }

    /// Tell what the kernel at the other end left to be done of the frame in slot `first`.
    fn guess(&mut self, first: usize, mtu: usize) {
        if let Some(Slot { inbox, at, len: Ok(len), vnet }) = self.arrived.get_mut(first) {
            // SAFETY: as above.
            let found = unsafe { slice::from_raw_parts(self.inboxes[*inbox].frame().add(*at), *len) };
            *vnet = offload::guess(found, if mtu == 0 { MTU } else { mtu });
        }
    }

    /// The oldest datagram that was not consumed, its virtio-net header before it; its length is 0 at the end of a
    /// connection, and more than FRAME_MOST where it was longer than that.
    ///
    /// What lies before it in its inbox, a tunnel's header and datagrams that were consumed, is gone then.
    pub fn peek(&mut self) -> Option<Arrived> {
        let slot = self.arrived.get(self.next)?;
        let len = match slot.len {
            Ok(len) => len,
            Err(cause) => return Some(Err(cause)),
        };
        let mut header = [0; VNET_LEN];
        slot.vnet.write(&mut header);
        // SAFETY: a datagram lies in its inbox, and the headroom before that.
        let frame = unsafe {
            let frame = self.inboxes[slot.inbox].frame().add(slot.at);
            ptr::copy_nonoverlapping(header.as_ptr(), frame.sub(VNET_LEN), VNET_LEN);
            frame
        };
        Some(Ok((frame, len)))
    }

    pub fn consume(&mut self) {
        self.next += 1;
    }

    /// Frames that came in and were not consumed.
    pub fn pending(&self) -> usize {
        self.arrived[self.next.min(self.arrived.len())..].iter().filter(|slot| !(self.records && slot.len == Ok(0))).count()
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
                    Ok(_) if self.refuses(&error) => {}
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

    /// Was it a train that was refused, and not the datagrams in it? They go one by one from now on.
    fn refuses(&mut self, error: &io::Error) -> bool {
        let told = matches!(error.raw_os_error(), Some(libc::EINVAL | libc::EIO | libc::EMSGSIZE | libc::EOPNOTSUPP));
        if !told || self.train(&self.spans[self.sent..]) == 1 {
            return false;
        }
        self.refused_s = Some(sys::now_s());
        true
    }

    /// How many of the first datagrams can go in one piece: they follow each other in the outbox, are for one far end, and
    /// are equally long, but for the last, which may be shorter.
    fn train(&self, spans: &[Span]) -> usize {
        let Some(first) = spans.first().filter(|_| self.cuts && self.refused_s.is_none()) else { return spans.len().min(1) };
        let size = first.end - first.begin;
        let mut count = 1;
        for pair in spans.windows(2).take(TRAIN_MOST - 1) {
            let (before, next) = (&pair[0], &pair[1]);
            let fits = next.begin == before.end && next.end - first.begin <= TRAIN_BYTES && next.end - next.begin <= size;
            if !fits || before.end - before.begin < size || (next.to, next.socket) != (first.to, first.socket) {
                break;
            }
            count += 1;
        }
        count
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

    /// Send a batch by one socket; how many datagrams went.
    fn flush_batch(&mut self) -> io::Result<usize> {
        if self.refused_s.is_some_and(|second| second != sys::now_s()) {
            self.refused_s = None;
        }
        // SAFETY: all-zero is a valid header; what it points to is set below.
        let mut headers: [libc::mmsghdr; BATCH] = unsafe { mem::zeroed() };
        let mut vectors = [libc::iovec { iov_base: ptr::null_mut(), iov_len: 0 }; BATCH];
        let mut controls = [sys::Control::default(); BATCH];
        let mut trains = [0; BATCH];
        let mut waiting = &self.spans[self.sent..];
        let socket = waiting[0].socket;
        let mut count = 0;
        while let Some(first) = waiting.first().filter(|first| first.socket == socket && count < BATCH) {
            let train = self.train(waiting);
            let (header, vector) = (&mut headers[count].msg_hdr, &mut vectors[count]);
            let bytes = &self.outbox[first.begin..waiting[train - 1].end];
            *vector = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
            header.msg_iov = vector;
            header.msg_iovlen = 1;
            if let Some(far) = &first.to {
                header.msg_name = far.bytes().as_ptr().cast_mut().cast();
                header.msg_namelen = far.bytes().len() as libc::socklen_t;
            } else if let Some(remote) = &self.peer.remote {
                header.msg_name = remote.bytes.as_ptr().cast_mut().cast();
                header.msg_namelen = remote.len as libc::socklen_t;
            }
            if train > 1 {
                // A train's datagrams are shorter than TRAIN_BYTES.
                sys::cut_to(header, &mut controls[count], (first.end - first.begin) as u16);
            }
            trains[count] = train;
            waiting = &waiting[train..];
            count += 1;
        }
        // SAFETY: each header points to spans of the outbox, to the address of a far end and to a control message.
        let sent = unsafe { sys::send_many(self.send_fds[socket], &mut headers[..count]) }?;
        Ok(trains[..sent].iter().sum())
    }
}
