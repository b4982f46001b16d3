//! Datagrams of the host's sockets: sent and received with what goes beside them, and the ICMP errors that come back for them.

use std::io::{self, IoSlice};
use std::{mem, ptr};

use super::flows::Endpoint;
use super::icmp::Trouble;
use super::socket::{Name, Socket};
use crate::sys;

const UDP_SEGMENT: libc::c_int = 103; // linux/udp.h
pub const UDP_GRO: libc::c_int = 104;
/// Room for a hop limit and a size of segments, or for an error with the address of who said it.
const CONTROL: usize = 128;

#[repr(align(8))]
struct Control([u8; CONTROL]);

/// What goes beside a datagram to the outside.
#[derive(Debug, Clone, Copy)]
pub struct Beside {
    pub ttl: u8,
    /// Cut into datagrams of this size, 0: no.
    pub cut: u16,
}

/// What is sent at once: a datagram, or several that the kernel cuts.
pub struct Message<'a> {
    pub to: Endpoint,
    pub beside: Beside,
    /// Its bytes, one piece after the other.
    pub pieces: &'a [IoSlice<'a>],
}

/// Send `len` bytes from memory that another process may be changing.
///
/// # Safety
/// `at` points to `len` readable bytes.
pub unsafe fn send(socket: &Socket, to: Endpoint, at: *const u8, len: usize, beside: &Beside) -> io::Result<usize> {
    let name = Name::of(to);
    let mut control = Control([0; CONTROL]);
    let mut piece = libc::iovec { iov_base: at.cast_mut().cast(), iov_len: len };
    // SAFETY: all-zero is a valid header.
    let mut header: libc::msghdr = unsafe { mem::zeroed() };
    header.msg_iov = &mut piece;
    header.msg_iovlen = 1;
    address(&mut header, &name, &mut control, beside);
    // SAFETY: the header points to what the caller promises and to our own variables.
    let sent = unsafe { libc::sendmsg(socket.fd(), &header, libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL) };
    if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(sent as usize) }
}

/// Send messages in one call: how many went. An error is about the first.
pub fn send_many(socket: &Socket, messages: &[Message]) -> io::Result<usize> {
    let mut besides: Vec<(Name, Control)> = messages.iter().map(|message| (Name::of(message.to), Control([0; CONTROL]))).collect();
    let headers = messages.iter().zip(&mut besides).map(|(message, (name, control))| {
        // SAFETY: all-zero is a valid header.
        let mut header: libc::mmsghdr = unsafe { mem::zeroed() };
        // An IoSlice is an iovec (std); the kernel only reads it.
        header.msg_hdr.msg_iov = message.pieces.as_ptr().cast_mut().cast();
        header.msg_hdr.msg_iovlen = message.pieces.len();
        address(&mut header.msg_hdr, name, control, &message.beside);
        header
    });
    let mut headers: Vec<libc::mmsghdr> = headers.collect();
    // SAFETY: the headers point to slices, and to names and control buffers that live through the call.
    unsafe { sys::send_many(socket.fd(), &mut headers) }
}

/// Have a message say where it goes, and what goes beside it.
fn address(header: &mut libc::msghdr, name: &Name, control: &mut Control, beside: &Beside) {
    header.msg_name = name.pointer().cast_mut().cast();
    header.msg_namelen = name.len() as u32;
    header.msg_control = control.0.as_mut_ptr().cast();
    header.msg_controllen = CONTROL;
    let ttl = libc::c_int::from(beside.ttl).to_ne_bytes();
    let (level, kind) =
        if name.family() == libc::AF_INET { (libc::IPPROTO_IP, libc::IP_TTL) } else { (libc::IPPROTO_IPV6, libc::IPV6_HOPLIMIT) };
    let mut used = 0;
    // SAFETY: the control buffer has room for both messages, aligned, and CMSG_FIRSTHDR and CMSG_NXTHDR stay in it.
    unsafe {
        let first = libc::CMSG_FIRSTHDR(header);
        used += put(first, level, kind, &ttl);
        if beside.cut != 0 {
            used += put(libc::CMSG_NXTHDR(header, first), libc::SOL_UDP, UDP_SEGMENT, &beside.cut.to_ne_bytes());
        }
    }
    header.msg_controllen = used;
}

/// # Safety
/// `at` points to room for the message.
unsafe fn put(at: *mut libc::cmsghdr, level: libc::c_int, kind: libc::c_int, value: &[u8]) -> usize {
    // SAFETY: as the caller promises.
    unsafe {
        (*at).cmsg_level = level;
        (*at).cmsg_type = kind;
        (*at).cmsg_len = libc::CMSG_LEN(value.len() as u32) as _;
        ptr::copy_nonoverlapping(value.as_ptr(), libc::CMSG_DATA(at), value.len());
        libc::CMSG_SPACE(value.len() as u32) as usize
    }
}

/// Take a datagram that nobody wants; false where there is none. The descriptor is non-blocking.
pub fn discard(fd: i32) -> bool {
    // SAFETY: no memory is given to write to.
    unsafe { libc::recv(fd, ptr::null_mut(), 0, libc::MSG_DONTWAIT) >= 0 }
}

/// A datagram that came: how long, from whom, and the size of those that it was put together from (0: it is one).
pub struct Received {
    /// Of all of it: the part behind what `out` takes is in `rest`.
    pub len: usize,
    pub from: Endpoint,
    pub cut: u16,
    /// There was more than both buffers took.
    pub truncated: bool,
}

/// Receive into `out`, and into `rest` what does not fit there.
pub fn receive(socket: &Socket, out: &mut [u8], rest: &mut [u8]) -> io::Result<Received> {
    let mut got = Received { len: 0, from: Endpoint { ip: std::net::Ipv6Addr::UNSPECIFIED, port: 0 }, cut: 0, truncated: false };
    let name = message(socket, out, rest, 0, |level, kind, value| {
        if level == libc::SOL_UDP
            && kind == UDP_GRO
            && let Some(size) = value.first_chunk::<4>()
        {
            got.cut = i32::from_ne_bytes(*size) as u16;
        }
    })?;
    (got.len, got.truncated) = (name.1, name.2);
    got.from = name.0.endpoint().unwrap_or(got.from);
    Ok(got)
}

/// An ICMP error about a datagram of ours.
pub struct Failed {
    /// Where the datagram went.
    pub to: Endpoint,
    /// Who says so; None: this host.
    pub by: Option<Endpoint>,
    pub trouble: Trouble,
    /// How much of the datagram came back in the buffer.
    pub len: usize,
}

/// The oldest error that waits at the socket.
pub fn failed(socket: &Socket, out: &mut [u8]) -> Option<Failed> {
    let mut said = None;
    let (name, len, _) = message(socket, out, &mut [], libc::MSG_ERRQUEUE, |level, kind, value| {
        let is_error = (level, kind) == (libc::IPPROTO_IP, libc::IP_RECVERR) || (level, kind) == (libc::IPPROTO_IPV6, libc::IPV6_RECVERR);
        if is_error && value.len() >= 16 {
            said = Some(read_error(value)); // struct sock_extended_err, then the address of who said it
        }
    })
    .ok()?;
    let (trouble, by) = said?;
    Some(Failed { to: name.endpoint()?, by, trouble, len })
}

fn read_error(value: &[u8]) -> (Trouble, Option<Endpoint>) {
    let word = |at: usize| u32::from_ne_bytes([value[at], value[at + 1], value[at + 2], value[at + 3]]);
    let (errno, origin, kind, code, info) = (word(0), value[4], value[5], value[6], word(8));
    if origin == 1 {
        let trouble = if errno as i32 == libc::EMSGSIZE { Trouble::TooBig(info) } else { Trouble::of(errno as i32) };
        return (trouble, None);
    }
    (Trouble::Said(kind, code, info), Name::new(&value[16..]).and_then(|name| name.endpoint()))
}

/// Receive a message with what is beside it; the name, the length, and whether there was more.
fn message(
    socket: &Socket,
    out: &mut [u8],
    rest: &mut [u8],
    flags: libc::c_int,
    mut each: impl FnMut(libc::c_int, libc::c_int, &[u8]),
) -> io::Result<(Name, usize, bool)> {
    let mut name = Name::empty();
    let mut control = Control([0; CONTROL]);
    let mut pieces = [out, rest].map(|piece| libc::iovec { iov_base: piece.as_mut_ptr().cast(), iov_len: piece.len() });
    // SAFETY: all-zero is a valid header.
    let mut header: libc::msghdr = unsafe { mem::zeroed() };
    header.msg_name = name.place().cast();
    header.msg_namelen = name.len() as u32;
    header.msg_iov = pieces.as_mut_ptr();
    header.msg_iovlen = pieces.len();
    header.msg_control = control.0.as_mut_ptr().cast();
    header.msg_controllen = CONTROL;
    // SAFETY: the header points to `out`, to `rest` and to our own variables.
    let got = unsafe { libc::recvmsg(socket.fd(), &mut header, flags | libc::MSG_DONTWAIT) };
    if got < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel wrote whole messages, and CMSG_NXTHDR stays within msg_controllen.
    unsafe {
        let mut at = libc::CMSG_FIRSTHDR(&header);
        while !at.is_null() {
            let len = ((*at).cmsg_len as usize).saturating_sub(libc::CMSG_LEN(0) as usize);
            each((*at).cmsg_level, (*at).cmsg_type, std::slice::from_raw_parts(libc::CMSG_DATA(at), len));
            at = libc::CMSG_NXTHDR(&header, at);
        }
    }
    name.set_len(header.msg_namelen as usize);
    Ok((name, got as usize, header.msg_flags & libc::MSG_TRUNC != 0))
}
