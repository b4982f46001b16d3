//! A network spread over several engines, each in a worker of its own: its *shards*.
//!
//! TCP goes to the shard that both ends of a connection hash to, other packets to that of the guest's address (frame.rs,
//! `spread`). The worker where a frame comes in picks the shard, so nothing is passed on but what it could not know: a
//! frame that was flooded, or was put together from fragments. What belongs to no flow (ARP, neighbour discovery, groups)
//! goes to the first shard, which alone announces and advertises the network.
//!
//! The first one tells the others two things, over a connection to each (a unix socket of records, whose listening end
//! outlives the shard, so that calls wait for its successor): a connection that it accepted for a forward, with its
//! descriptor, if its ends hash to that shard; and where a guest is, when that is news or answers somebody's question.
//! A shard that is so far behind that the socket is full has new connections refused; nobody waits for it.

use std::collections::HashMap;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::{io, mem};

use super::flows::Endpoint;
use super::socket::{Name, Socket};
use super::wire::{self, Mac, put16, put32};
use super::{Network, kind};
use crate::frame::{self, be16, be32};
use crate::ports::Port;

const BURST: usize = 64;
/// Connections of predecessors of the first shard that were not read to their end yet, at most.
const LEADERS: usize = 8;

/// The engines that a network is spread over.
#[derive(Debug, Clone, Default)]
pub struct Spread {
    /// The ports of all of them; none: the network has one engine.
    pub ports: Vec<Port>,
    /// Which of them this is.
    pub share: usize,
    /// Of the first: where the others, in their order, take calls.
    pub links: Vec<Name>,
    /// Of the others: the socket that listens there. It stays the caller's, and open.
    pub calls: Option<RawFd>,
}

impl Spread {
    /// The port of another shard whose this frame is.
    pub fn elsewhere(&self, head: &[u8]) -> Option<Port> {
        if self.ports.is_empty() {
            return None;
        }
        let share = frame::spread(head)? as usize % self.ports.len();
        if share == self.share { None } else { self.ports.get(share).copied() }
    }

    /// Which shard has a connection.
    pub fn share_of(&self, guest: Endpoint, far: Endpoint) -> usize {
        match self.ports.len() {
            0 => self.share,
            shards => frame::spread_of_ends((guest.ip, guest.port), (far.ip, far.port)) as usize % shards,
        }
    }
}

/// A connection to a guest that a client of the host's began.
pub struct Call {
    /// The forward by which it came.
    pub id: u32,
    pub guest: Endpoint,
    pub far: Endpoint,
    pub is_tcp: bool,
}

/// What a shard has of the others.
#[derive(Default)]
pub struct Family {
    links: Vec<Option<Socket>>,
    leaders: Vec<Socket>,
    /// Calls that were passed on to us, taken and refused, by forward.
    pub passed: HashMap<u32, (u64, u64)>,
}

const CALL: u8 = 1;
const NEIGHBOUR: u8 = 2;
/// What it is, is it TCP, the guest's MAC, guest and far end (16 + 2 bytes each), the forward's number.
const MESSAGE: usize = 48;
type Message = [u8; MESSAGE];

fn message(what: u8, mac: Option<Mac>, call: &Call) -> Message {
    let mut bytes = [0; MESSAGE];
    (bytes[0], bytes[1]) = (what, call.is_tcp.into());
    bytes[2..8].copy_from_slice(&mac.unwrap_or_default());
    for (at, end) in [(8, call.guest), (26, call.far)] {
        bytes[at..at + 16].copy_from_slice(&end.ip.octets());
        put16(&mut bytes, at + 16, end.port);
    }
    put32(&mut bytes, 44, call.id);
    bytes
}

fn read(bytes: &Message) -> Option<(u8, Option<Mac>, Call)> {
    let end = |at| Some(Endpoint { ip: wire::address_v6(bytes, at)?, port: be16(bytes, at + 16)? });
    let mac = wire::mac(bytes, 2).filter(|mac| *mac != [0; 6]);
    Some((bytes[0], mac, Call { id: be32(bytes, 44)?, guest: end(8)?, far: end(26)?, is_tcp: bytes[1] != 0 }))
}

impl Network {
    /// Listen for calls of the first shard, where this is another.
    pub(super) fn await_calls(&mut self) -> io::Result<()> {
        self.family.links.resize_with(self.core.config.spread.links.len(), || None);
        match self.core.config.spread.calls {
            None => Ok(()),
            Some(fd) => self.core.epoll.add(fd, libc::EPOLLIN as u32, u64::from(kind::CALLS) << 56),
        }
    }

    /// Where the first shard is heard.
    pub(super) fn doors(&self) -> impl Iterator<Item = (RawFd, u64)> {
        let all = self.core.config.spread.calls.into_iter().chain(self.family.leaders.iter().map(Socket::fd));
        all.map(|fd| (fd, u64::from(kind::CALLS) << 56))
    }

    /// Pass a call on to the shard whose it is; false where that takes no more.
    pub(super) fn pass_on(&mut self, share: usize, call: &Call, socket: &Socket) -> bool {
        let mac = self.core.neighbours.find(call.guest.ip);
        self.tell(share, &message(CALL, mac, call), Some(socket.fd()))
    }

    /// Tell the other shards where a guest is.
    pub(super) fn introduce(&mut self, guest: std::net::Ipv6Addr, mac: Mac) {
        if self.family.links.is_empty() || !self.core.limits.neighbour(self.core.now_ms) {
            return;
        }
        let end = Endpoint { ip: guest, port: 0 };
        let news = message(NEIGHBOUR, Some(mac), &Call { id: 0, guest: end, far: end, is_tcp: false });
        for share in 1..=self.family.links.len() {
            self.tell(share, &news, None);
        }
    }

    fn tell(&mut self, share: usize, message: &Message, fd: Option<RawFd>) -> bool {
        let at = share.wrapping_sub(1);
        let (Some(link), Some(name)) = (self.family.links.get_mut(at), self.core.config.spread.links.get(at)) else { return false };
        for _ in 0..2 {
            if link.is_none() {
                *link = connect(name).ok();
            }
            let Some(socket) = link else { return false };
            match send(socket, message, fd) {
                Ok(()) => return true,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return false,
                Err(_) => *link = None, // the shard that had it is dead: its successor listens
            }
        }
        false
    }

    /// The first shard has something to say.
    pub(super) fn take_calls(&mut self) {
        let mut leaders = mem::take(&mut self.family.leaders);
        if let Some(fd) = self.core.config.spread.calls {
            while let Ok((leader, _)) = Socket::accept_from(fd) {
                let is_watched = || self.core.epoll.add(leader.fd(), libc::EPOLLIN as u32, u64::from(kind::CALLS) << 56).is_ok();
                if leaders.len() < LEADERS && is_our_own(&leader) && is_watched() {
                    leaders.push(leader);
                }
            }
        }
        leaders.retain(|leader| self.hear(leader));
        self.family.leaders = leaders;
    }

    /// False at the end of the connection.
    fn hear(&mut self, leader: &Socket) -> bool {
        for _ in 0..BURST {
            let mut bytes = [0; MESSAGE];
            let socket = match receive(leader, &mut bytes) {
                Ok(Some(socket)) => socket,
                Ok(None) => return false,
                Err(error) => return error.kind() == io::ErrorKind::WouldBlock,
            };
            let Some((what, mac, call)) = read(&bytes) else { return false };
            if let Some(mac) = mac {
                self.meet(Some((call.guest.ip, mac)));
            }
            if what == CALL
                && let Some(socket) = socket
            {
                let id = call.id;
                let is_taken = self.take_call(call, socket);
                let (taken, refused) = self.family.passed.entry(id).or_default();
                *(if is_taken { taken } else { refused }) += 1;
            }
        }
        true
    }
}

fn connect(name: &Name) -> io::Result<Socket> {
    let socket = Socket::new(libc::AF_UNIX, libc::SOCK_SEQPACKET, 0)?;
    socket.connect(name)?;
    if is_our_own(&socket) { Ok(socket) } else { Err(io::ErrorKind::PermissionDenied.into()) }
}

/// Is the other end of a unix socket a process of our own user? The name is one that others could take.
fn is_our_own(socket: &Socket) -> bool {
    let mut peer = libc::ucred { pid: 0, uid: libc::uid_t::MAX, gid: 0 };
    let mut len = mem::size_of_val(&peer) as u32;
    // SAFETY: `peer` has room for the answer.
    unsafe {
        libc::getsockopt(socket.fd(), libc::SOL_SOCKET, libc::SO_PEERCRED, (&raw mut peer).cast(), &mut len);
        peer.uid == libc::geteuid()
    }
}

/// Room for one descriptor beside a message, and for more than one to be noticed.
#[repr(align(8))]
struct Control([u8; 64]);

fn header(piece: &mut libc::iovec, control: &mut Control) -> libc::msghdr {
    // SAFETY: all-zero is a valid header.
    let mut header: libc::msghdr = unsafe { mem::zeroed() };
    header.msg_iov = piece;
    header.msg_iovlen = 1;
    header.msg_control = control.0.as_mut_ptr().cast();
    header.msg_controllen = control.0.len();
    header
}

fn send(socket: &Socket, message: &Message, fd: Option<RawFd>) -> io::Result<()> {
    let mut control = Control([0; 64]);
    let mut piece = libc::iovec { iov_base: message.as_ptr().cast_mut().cast(), iov_len: MESSAGE };
    let mut header = header(&mut piece, &mut control);
    header.msg_controllen = 0;
    if let Some(fd) = fd {
        // SAFETY: the control buffer is aligned and has room for one descriptor.
        unsafe {
            header.msg_controllen = libc::CMSG_SPACE(4) as _;
            let first = libc::CMSG_FIRSTHDR(&header);
            (*first).cmsg_level = libc::SOL_SOCKET;
            (*first).cmsg_type = libc::SCM_RIGHTS;
            (*first).cmsg_len = libc::CMSG_LEN(4) as _;
            libc::CMSG_DATA(first).cast::<RawFd>().write_unaligned(fd);
        }
    }
    // SAFETY: the header points to our own variables; the kernel reads them.
    let sent = unsafe { libc::sendmsg(socket.fd(), &header, libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL) };
    if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// The next message with what was passed beside it; None at the end.
fn receive(socket: &Socket, message: &mut Message) -> io::Result<Option<Option<Socket>>> {
    let mut control = Control([0; 64]);
    let mut piece = libc::iovec { iov_base: message.as_mut_ptr().cast(), iov_len: MESSAGE };
    let mut header = header(&mut piece, &mut control);
    // SAFETY: the header points to our own variables, writable for their lengths.
    let got = unsafe { libc::recvmsg(socket.fd(), &mut header, libc::MSG_DONTWAIT | libc::MSG_CMSG_CLOEXEC) };
    if got < 0 {
        return Err(io::Error::last_os_error());
    }
    let mut passed: Vec<OwnedFd> = Vec::new();
    // SAFETY: the kernel wrote the control messages, and each descriptor among them is new and ours.
    unsafe {
        let mut at = libc::CMSG_FIRSTHDR(&header);
        while !at.is_null() {
            if (*at).cmsg_level == libc::SOL_SOCKET && (*at).cmsg_type == libc::SCM_RIGHTS {
                let count = ((*at).cmsg_len as usize - libc::CMSG_LEN(0) as usize) / 4;
                let first = libc::CMSG_DATA(at).cast::<RawFd>();
                passed.extend((0..count).map(|index| OwnedFd::from_raw_fd(first.add(index).read_unaligned())));
            }
            at = libc::CMSG_NXTHDR(&header, at);
        }
    }
    if got as usize != MESSAGE || passed.len() > 1 {
        return Ok(None);
    }
    let socket = passed.pop();
    if let Some(fd) = &socket {
        crate::sys::nonblocking(fd.as_raw_fd())?;
    }
    Ok(Some(socket.map(Socket::own)))
}
