//! Sockets of the host, one a flow: the system calls that the user-mode network is made of.
//!
//! For seccomp: socket, bind, connect, listen (by Python), accept4, sendmsg, recvmsg, recvfrom, shutdown, getsockopt,
//! setsockopt, getsockname, getpeername, close, and for the network itself epoll_*.

use std::io;
use std::net::Ipv6Addr;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::{mem, ptr};

use super::flows::Endpoint;
use super::wire::v4;

const PEEK_OFF: libc::c_int = 42; // SO_PEEK_OFF, asm-generic/socket.h
const MEMINFO: libc::c_int = 55; // SO_MEMINFO
const MEMINFO_WORDS: usize = 9; // linux/sock_diag.h: SK_MEMINFO_VARS

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn checked_len(result: isize) -> io::Result<usize> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result as usize) }
}

/// The address of a socket as the kernel takes it.
#[derive(Debug, Clone, Copy)]
pub struct Name {
    bytes: [u8; 128],
    len: usize,
}

impl Name {
    pub fn empty() -> Name {
        Name { bytes: [0; 128], len: 128 }
    }

    /// None where the bytes are too many for any address.
    pub fn new(bytes: &[u8]) -> Option<Name> {
        let mut name = Name { bytes: [0; 128], len: bytes.len() };
        name.bytes.get_mut(..bytes.len())?.copy_from_slice(bytes);
        Some(name)
    }

    pub fn of(endpoint: Endpoint) -> Name {
        let mut name = Name { bytes: [0; 128], len: 0 };
        let family = match v4(endpoint.ip) {
            Some(ip) => {
                name.bytes[4..8].copy_from_slice(&ip.octets());
                name.len = 16;
                libc::AF_INET
            }
            None => {
                name.bytes[8..24].copy_from_slice(&endpoint.ip.octets());
                name.len = 28;
                libc::AF_INET6
            }
        };
        name.bytes[..2].copy_from_slice(&(family as u16).to_ne_bytes());
        name.bytes[2..4].copy_from_slice(&endpoint.port.to_be_bytes());
        name
    }

    /// An address of the host's own, of loopback.
    pub fn is_loopback(&self) -> bool {
        self.endpoint().is_some_and(|to| v4(to.ip).map_or(to.ip.is_loopback(), |ip| ip.is_loopback()))
    }

    pub fn family(&self) -> libc::c_int {
        u16::from_ne_bytes([self.bytes[0], self.bytes[1]]).into()
    }

    /// None where it is no address of IP.
    pub fn endpoint(&self) -> Option<Endpoint> {
        let port = u16::from_be_bytes([self.bytes[2], self.bytes[3]]);
        let ip = match self.family() {
            libc::AF_INET => super::wire::address_v4(&self.bytes, 4)?,
            libc::AF_INET6 => super::wire::address_v6(&self.bytes, 8)?,
            _ => return None,
        };
        Some(Endpoint { ip, port })
    }

    pub fn pointer(&self) -> *const u8 {
        self.bytes.as_ptr()
    }

    /// Where the kernel may write a name.
    pub fn place(&mut self) -> *mut u8 {
        self.bytes.as_mut_ptr()
    }

    pub fn set_len(&mut self, len: usize) {
        self.len = len.min(self.bytes.len());
    }

    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

#[derive(Debug)]
pub struct Socket(OwnedFd);

impl Socket {
    /// A non-blocking socket.
    pub fn new(family: libc::c_int, kind: libc::c_int, protocol: libc::c_int) -> io::Result<Socket> {
        // SAFETY: no memory is involved; the new descriptor has one owner.
        unsafe {
            let fd = check(libc::socket(family, kind | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC, protocol))?;
            Ok(Socket(OwnedFd::from_raw_fd(fd)))
        }
    }

    pub fn own(fd: OwnedFd) -> Socket {
        Socket(fd)
    }

    pub fn fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }

    /// Set an option that is a number.
    pub fn set(&self, level: libc::c_int, option: libc::c_int, value: libc::c_int) -> io::Result<()> {
        self.set_bytes(level, option, &value.to_ne_bytes())
    }

    pub fn set_bytes(&self, level: libc::c_int, option: libc::c_int, value: &[u8]) -> io::Result<()> {
        // SAFETY: `value` is readable for its length.
        check(unsafe { libc::setsockopt(self.fd(), level, option, value.as_ptr().cast(), value.len() as u32) }).map(drop)
    }

    /// An option that is a number.
    pub fn get(&self, level: libc::c_int, option: libc::c_int) -> io::Result<libc::c_int> {
        let mut bytes = [0; 4];
        self.get_bytes(level, option, &mut bytes)?;
        Ok(libc::c_int::from_ne_bytes(bytes))
    }

    /// The beginning of an option, as much of it as there is room for.
    pub fn get_bytes(&self, level: libc::c_int, option: libc::c_int, value: &mut [u8]) -> io::Result<()> {
        let mut len = value.len() as u32;
        // SAFETY: `value` is writable for its length.
        check(unsafe { libc::getsockopt(self.fd(), level, option, value.as_mut_ptr().cast(), &mut len) }).map(drop)
    }

    /// What an ioctl counts in a queue of the socket's.
    pub fn count(&self, what: libc::c_ulong) -> io::Result<usize> {
        let mut value: libc::c_int = 0;
        // SAFETY: the ioctls that count write an int.
        check(unsafe { libc::ioctl(self.fd(), what as _, &mut value) })?;
        usize::try_from(value).map_err(|_| io::ErrorKind::InvalidData.into())
    }

    pub fn bind(&self, name: &Name) -> io::Result<()> {
        // SAFETY: the name is readable for its length.
        check(unsafe { libc::bind(self.fd(), name.pointer().cast(), name.len as u32) }).map(drop)
    }

    pub fn connect(&self, name: &Name) -> io::Result<()> {
        // SAFETY: the name is readable for its length.
        check(unsafe { libc::connect(self.fd(), name.pointer().cast(), name.len as u32) }).map(drop)
    }

    /// The next connection of a listening socket, and whose it is.
    pub fn accept_from(listener: RawFd) -> io::Result<(Socket, Name)> {
        let mut name = Name::empty();
        let mut len = name.len as u32;
        // SAFETY: the name is writable for its length; the new descriptor has one owner.
        unsafe {
            let flags = libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
            let fd = check(libc::accept4(listener, name.bytes.as_mut_ptr().cast(), &mut len, flags))?;
            name.len = (len as usize).min(128);
            Ok((Socket(OwnedFd::from_raw_fd(fd)), name))
        }
    }

    /// Its own address, None where it is no socket of the Internet.
    pub fn local(&self) -> Option<Endpoint> {
        self.name(libc::getsockname)
    }

    /// Whom it is connected to, None where that is nobody of the Internet.
    pub fn peer(&self) -> Option<Endpoint> {
        self.name(libc::getpeername)
    }

    fn name(&self, ask: unsafe extern "C" fn(libc::c_int, *mut libc::sockaddr, *mut libc::socklen_t) -> libc::c_int) -> Option<Endpoint> {
        let mut name = Name::empty();
        let mut len = name.len as u32;
        // SAFETY: the name is writable for its length.
        check(unsafe { ask(self.fd(), name.bytes.as_mut_ptr().cast(), &mut len) }).ok()?;
        name.len = (len as usize).min(128);
        name.endpoint()
    }

    /// The error that waits at the socket, 0 where there is none; it is gone then.
    pub fn error(&self) -> i32 {
        let (mut value, mut len): (libc::c_int, _) = (0, 4);
        // SAFETY: `value` has room for the answer.
        unsafe { libc::getsockopt(self.fd(), libc::SOL_SOCKET, libc::SO_ERROR, (&raw mut value).cast(), &mut len) };
        value
    }

    /// Bytes that the kernel may still take from us, and the size of the buffer.
    pub fn room(&self) -> (usize, usize) {
        let mut words = [0u32; MEMINFO_WORDS];
        let mut len = mem::size_of_val(&words) as u32;
        // SAFETY: `words` has room for the answer.
        let result = unsafe { libc::getsockopt(self.fd(), libc::SOL_SOCKET, MEMINFO, words.as_mut_ptr().cast(), &mut len) };
        if result < 0 {
            return (64 << 10, 64 << 10);
        }
        // linux/sock_diag.h: 2 is WMEM_ALLOC (all that unix sockets count), 3 SNDBUF, 5 WMEM_QUEUED.
        let size = words[3] as usize;
        (size.saturating_sub(words[5].max(if words[5] == 0 { words[2] } else { 0 }) as usize), size)
    }

    /// Write `len` bytes from memory that another process may be changing.
    ///
    /// # Safety
    /// `at` points to `len` readable bytes.
    pub unsafe fn write(&self, at: *const u8, len: usize) -> io::Result<usize> {
        // SAFETY: as the caller promises.
        checked_len(unsafe { libc::send(self.fd(), at.cast(), len, libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT) })
    }

    /// Take the next datagram; what is longer than `out` is cut.
    pub fn receive(&self, out: &mut [u8]) -> io::Result<usize> {
        // SAFETY: `out` is writable for its length.
        checked_len(unsafe { libc::recv(self.fd(), out.as_mut_ptr().cast(), out.len(), libc::MSG_DONTWAIT) })
    }

    /// Have the next look begin `offset` bytes behind what was discarded; false where the kernel cannot do so.
    pub fn peek_from(&self, offset: usize) -> bool {
        self.set(libc::SOL_SOCKET, PEEK_OFF, offset as libc::c_int).is_ok()
    }

    /// Look at what comes next without taking it.
    pub fn peek(&self, out: &mut [u8]) -> io::Result<usize> {
        let flags = libc::MSG_PEEK | libc::MSG_DONTWAIT;
        // SAFETY: `out` is writable for its length.
        checked_len(unsafe { libc::recv(self.fd(), out.as_mut_ptr().cast(), out.len(), flags) })
    }

    /// Look behind the first `skip` bytes, for a kernel without SO_PEEK_OFF; `waste` takes what is skipped.
    pub fn peek_behind(&self, skip: usize, waste: &mut [u8], out: &mut [u8]) -> io::Result<usize> {
        let mut pieces = Vec::with_capacity(skip / waste.len() + 2);
        let mut left = skip;
        while left > 0 {
            let part = left.min(waste.len());
            pieces.push(libc::iovec { iov_base: waste.as_mut_ptr().cast(), iov_len: part });
            left -= part;
        }
        pieces.push(libc::iovec { iov_base: out.as_mut_ptr().cast(), iov_len: out.len() });
        // SAFETY: all-zero is a valid header.
        let mut header: libc::msghdr = unsafe { mem::zeroed() };
        header.msg_iov = pieces.as_mut_ptr();
        header.msg_iovlen = pieces.len();
        // SAFETY: each piece is writable for its length.
        let got = checked_len(unsafe { libc::recvmsg(self.fd(), &mut header, libc::MSG_PEEK | libc::MSG_DONTWAIT) })?;
        if got < skip || (got == skip && !self.is_at_end(skip)) {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        Ok(got - skip)
    }

    /// Nothing will come behind the `queued` bytes that are there: the far end has shut down.
    fn is_at_end(&self, queued: usize) -> bool {
        let mut waiting: libc::c_int = 0;
        let mut poll = libc::pollfd { fd: self.fd(), events: libc::POLLRDHUP, revents: 0 };
        // SAFETY: both answers have room.
        unsafe {
            libc::poll(&mut poll, 1, 0);
            libc::ioctl(self.fd(), libc::FIONREAD, &mut waiting);
        }
        poll.revents & (libc::POLLRDHUP | libc::POLLHUP) != 0 && waiting as usize <= queued
    }

    /// Take `len` bytes that were looked at and are no longer needed.
    pub fn discard(&self, len: usize) -> io::Result<usize> {
        let flags = libc::MSG_TRUNC | libc::MSG_DONTWAIT;
        // SAFETY: with MSG_TRUNC the kernel of a TCP socket writes nothing (tcp(7)).
        checked_len(unsafe { libc::recv(self.fd(), ptr::null_mut(), len, flags) })
    }

    /// The same where MSG_TRUNC means something else (unix sockets).
    pub fn discard_into(&self, mut len: usize, waste: &mut [u8]) -> io::Result<usize> {
        let mut done = 0;
        while len > 0 {
            let part = len.min(waste.len());
            // SAFETY: `waste` is writable for its length.
            let got = checked_len(unsafe { libc::recv(self.fd(), waste.as_mut_ptr().cast(), part, libc::MSG_DONTWAIT) })?;
            if got == 0 {
                break;
            }
            (done, len) = (done + got, len - got);
        }
        Ok(done)
    }

    /// No more comes from us.
    pub fn shut_writing(&self) {
        // SAFETY: no memory is involved.
        unsafe { libc::shutdown(self.fd(), libc::SHUT_WR) };
    }

    /// From now on the far end sees a reset when the socket is closed, be it by the death of this process.
    pub fn end_by_reset(&self) {
        self.linger(1);
    }

    /// Close in order: the far end gets what was written, then the end.
    pub fn finish(self) {
        self.linger(0);
    }

    /// Have the kernel ask, after hours of silence, whether the far end is still there.
    pub fn watch_far_end(&self) {
        let _ = self.set(libc::SOL_SOCKET, libc::SO_KEEPALIVE, 1);
    }

    fn linger(&self, on: i32) {
        let mut bytes = [0u8; 8]; // struct linger: on or off, and for how many seconds
        bytes[..4].copy_from_slice(&on.to_ne_bytes());
        let _ = self.set_bytes(libc::SOL_SOCKET, libc::SO_LINGER, &bytes);
    }
}

/// Bind a new socket to where the network's own traffic is to come from.
pub fn bind_outbound(socket: &Socket, from: Option<Ipv6Addr>, interface: &str) -> io::Result<()> {
    bind_interface(socket, interface)?;
    if let Some(ip) = from {
        let _ = socket.set(libc::IPPROTO_IP, libc::IP_BIND_ADDRESS_NO_PORT, 1);
        socket.bind(&Name::of(Endpoint { ip, port: 0 }))?;
    }
    Ok(())
}

/// Have it use an interface of this host; "": any.
pub fn bind_interface(socket: &Socket, interface: &str) -> io::Result<()> {
    if interface.is_empty() { Ok(()) } else { socket.set_bytes(libc::SOL_SOCKET, libc::SO_BINDTODEVICE, interface.as_bytes()) }
}
