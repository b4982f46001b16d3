//! A connection of the kernel's, read and built anew by TCP_REPAIR.
//!
//! That takes a socket in repair mode, which only a process with CAP_NET_ADMIN can switch on and off (bin/shardnet-repair); all
//! else here takes no privilege. A socket in repair mode still hears and answers the far end. So the helper *locks* it first: a
//! filter throws away whatever comes for it, and the far end sends it again. (Some kernels let nobody else set a filter.) What
//! the kernel repeats of its own accord it has said before. Closing a socket in repair mode says nothing to anybody.
//!
//! Two things the kernel does not let us build, and they are not needed. A FIN that came: the number behind it is set, and the flow
//! knows that the data has an end (flag::FAR_ENDED). A FIN of ours that was acknowledged: it counts as one that was not, and
//! the far end acknowledges it again.
//!
//! For seccomp: getsockopt, setsockopt, getpeername, ioctl, recvfrom, sendto, bind, connect, shutdown.

use std::io;

use super::record::{Bytes, Connection, Window, end};
use crate::user::flows::Endpoint;
use crate::user::socket::{Name, Socket};
use crate::user::wire::is_loopback;

// linux/tcp.h
const TCP_REPAIR_QUEUE: libc::c_int = 20;
const TCP_QUEUE_SEQ: libc::c_int = 21;
const TCP_REPAIR_OPTIONS: libc::c_int = 22;
const TCP_TIMESTAMP: libc::c_int = 24;
const TCP_REPAIR_WINDOW: libc::c_int = 29;
const RECEIVE_QUEUE: libc::c_int = 1;
const SEND_QUEUE: libc::c_int = 2;
const OPTION_TIMESTAMPS: u8 = 1; // TCPI_OPT_*
const OPTION_SACK: u8 = 2;
const OPTION_SCALE: u8 = 4;
const MSS: u32 = 2; // TCPOPT_*
const SCALE: u32 = 3;
const SACK: u32 = 4;
const TIMESTAMPS: u32 = 8;
// linux/sockios.h, asm-generic/socket.h
const SIOCOUTQNSD: libc::c_ulong = 0x894b;
const SO_BUF_LOCK: libc::c_int = 72; // Linux 5.14
// net/tcp_states.h
const ESTABLISHED: u8 = 1;
const FIN_WAIT1: u8 = 4;
const FIN_WAIT2: u8 = 5;
const CLOSE_WAIT: u8 = 8;
const LAST_ACK: u8 = 9;
const CLOSING: u8 = 11;
/// What a queue may hold; more than the kernel lets one grow to.
pub const QUEUE_MOST: usize = 64 << 20;
/// A segment in the send queue may begin before what is not acknowledged.
const SPARE: usize = 1 << 17;
/// Bytes put into a queue at one go.
const PIECE: usize = 32 << 10;
/// Readings of a connection until nothing comes between.
const READINGS: usize = 16;

/// Where a connection is, as far as it matters here: None where it stands no more, or not yet.
fn state(socket: &Socket) -> Option<(u8, [u8; 8])> {
    let mut info = [0u8; 8]; // tcpi_state ca_state retransmits probes | backoff options snd_wscale:4 rcv_wscale:4 ...
    socket.get_bytes(libc::IPPROTO_TCP, libc::TCP_INFO, &mut info).ok()?;
    let known = [ESTABLISHED, FIN_WAIT1, FIN_WAIT2, CLOSE_WAIT, LAST_ACK, CLOSING];
    known.contains(&info[0]).then_some((info[0], info))
}

/// Can the connection be built anew elsewhere? Not on a loopback or by a link-local address, which are not the same there.
pub fn may_go(socket: &Socket) -> bool {
    let is_local = |end: Endpoint| is_loopback(end.ip) || end.ip.is_unicast_link_local();
    let is_far = |end: Option<Endpoint>| end.is_some_and(|end| !is_local(end));
    state(socket).is_some() && is_far(socket.local()) && is_far(socket.peer())
}

/// Read a connection whose socket is locked and in repair mode; `true` beside it: the far end has said its last.
///
/// What it has to send is read last, and that queue stays the chosen one: from then on the kernel's timers mark data as sent
/// and send none. Otherwise the far end could acknowledge what the one who builds this anew has not sent, and would not be heard.
pub fn read(socket: &Socket) -> io::Result<(Connection, bool)> {
    socket.peek_from(0);
    for _ in 0..READINGS {
        let rcv_nxt = sequence(socket, RECEIVE_QUEUE)?;
        let received = queue(socket, socket.count(libc::FIONREAD)?)?;
        let known = state(socket).ok_or(io::ErrorKind::NotConnected)?;
        // A packet may have passed the filter just before that was there.
        if sequence(socket, RECEIVE_QUEUE)? == rcv_nxt {
            return read_sending(socket, rcv_nxt, received, known);
        }
    }
    Err(io::ErrorKind::TimedOut.into())
}

fn read_sending(socket: &Socket, rcv_nxt: u32, received: Vec<u8>, (state, info): (u8, [u8; 8])) -> io::Result<(Connection, bool)> {
    let (local, peer) = socket.local().zip(socket.peer()).ok_or(io::ErrorKind::NotConnected)?;
    let has_ended = matches!(state, CLOSE_WAIT | LAST_ACK | CLOSING);
    let own_end = matches!(state, FIN_WAIT1 | FIN_WAIT2 | LAST_ACK | CLOSING);
    let end_waits = own_end && state != FIN_WAIT2;
    let write_seq = sequence(socket, SEND_QUEUE)?;
    let waits = socket.count(libc::TIOCOUTQ)? - usize::from(end_waits);
    let mut sent = queue(socket, waits)?;
    let unsent = socket.count(SIOCOUTQNSD)?;
    let end = match (own_end, unsent > 0) {
        (false, _) => end::NONE,
        (true, false) => end::SENT,
        (true, true) => end::UNSENT,
    };
    let unsent = sent.split_off(waits - unsent.saturating_sub(usize::from(end == end::UNSENT)).min(waits));
    let mut window = [0u8; 20];
    socket.get_bytes(libc::IPPROTO_TCP, TCP_REPAIR_WINDOW, &mut window)?;
    let word = |at: usize| u32::from_ne_bytes([window[4 * at], window[4 * at + 1], window[4 * at + 2], window[4 * at + 3]]);
    let window = Window { snd_wl1: word(0), snd_wnd: word(1), max_window: word(2), rcv_wnd: word(3), rcv_wup: word(4) };
    let connection = Connection {
        local,
        peer,
        snd_seq: write_seq.wrapping_sub(u32::from(own_end)).wrapping_sub(waits as u32),
        rcv_seq: rcv_nxt.wrapping_sub(received.len() as u32),
        sent: Bytes(sent),
        unsent: Bytes(unsent),
        received: Bytes(received),
        end,
        window,
        mss: socket.get(libc::IPPROTO_TCP, libc::TCP_MAXSEG)? as u32,
        snd_scale: info[6] & 15,
        rcv_scale: info[6] >> 4,
        options: info[5],
        timestamp: socket.get(libc::IPPROTO_TCP, TCP_TIMESTAMP)? as u32,
        send_buffer: socket.get(libc::SOL_SOCKET, libc::SO_SNDBUF)? as u32,
        receive_buffer: socket.get(libc::SOL_SOCKET, libc::SO_RCVBUF)? as u32,
    };
    Ok((connection, has_ended))
}

fn sequence(socket: &Socket, queue: libc::c_int) -> io::Result<u32> {
    socket.set(libc::IPPROTO_TCP, TCP_REPAIR_QUEUE, queue)?;
    socket.get(libc::IPPROTO_TCP, TCP_QUEUE_SEQ).map(|seq| seq as u32)
}

/// The last `len` bytes of the queue that was chosen.
fn queue(socket: &Socket, len: usize) -> io::Result<Vec<u8>> {
    if len == 0 {
        return Ok(Vec::new());
    }
    if len > QUEUE_MOST {
        return Err(io::Error::from_raw_os_error(libc::EMSGSIZE));
    }
    let mut bytes = vec![0; len + SPARE];
    let got = socket.peek(&mut bytes)?;
    bytes.truncate(got);
    let spare = got.checked_sub(len).ok_or(io::ErrorKind::UnexpectedEof)?;
    bytes.drain(..spare);
    Ok(bytes)
}

/// What the buffers of a connection are to be set to, for its queues to have room in them; the kernel doubles it.
pub fn buffers(connection: &Connection) -> (u32, u32) {
    let queued = connection.sent.0.len() + connection.unsent.0.len();
    let size = |buffer: u32, queued: usize| (buffer / 2).max(queued as u32).min(QUEUE_MOST as u32);
    (size(connection.send_buffer, queued), size(connection.receive_buffer, connection.received.0.len()))
}

/// Have a new socket, locked and in repair mode, be this connection. What failed is said beside why.
pub fn build(socket: &Socket, connection: &Connection) -> Result<(), (&'static str, io::Error)> {
    let tcp = libc::IPPROTO_TCP;
    let set = |what: &'static str, option, value| socket.set(tcp, option, value).map_err(|error| (what, error));
    for (queue, seq) in [(SEND_QUEUE, connection.snd_seq), (RECEIVE_QUEUE, connection.rcv_seq)] {
        set("TCP_REPAIR_QUEUE", TCP_REPAIR_QUEUE, queue)?;
        set("TCP_QUEUE_SEQ", TCP_QUEUE_SEQ, seq as libc::c_int)?;
    }
    socket.bind(&Name::of(connection.local)).map_err(|error| ("bind", error))?;
    socket.connect(&Name::of(connection.peer)).map_err(|error| ("connect", error))?;
    let has = |option: u8| connection.options & option != 0;
    let mut options = vec![(MSS, connection.mss)];
    if has(OPTION_SCALE) {
        options.push((SCALE, u32::from(connection.snd_scale) | u32::from(connection.rcv_scale) << 16));
    }
    if has(OPTION_SACK) {
        options.push((SACK, 0));
    }
    if has(OPTION_TIMESTAMPS) {
        options.push((TIMESTAMPS, 0));
    }
    let bytes: Vec<u8> = options.iter().flat_map(|(code, value)| [code.to_ne_bytes(), value.to_ne_bytes()].concat()).collect();
    socket.set_bytes(tcp, TCP_REPAIR_OPTIONS, &bytes).map_err(|error| ("TCP_REPAIR_OPTIONS", error))?;
    if has(OPTION_TIMESTAMPS) {
        set("TCP_TIMESTAMP", TCP_TIMESTAMP, connection.timestamp as libc::c_int)?;
    }
    for (what, queue, bytes) in [("receive queue", RECEIVE_QUEUE, &connection.received), ("send queue", SEND_QUEUE, &connection.sent)] {
        set("TCP_REPAIR_QUEUE", TCP_REPAIR_QUEUE, queue)?;
        fill(socket, &bytes.0).map_err(|error| (what, error))?;
    }
    if connection.end == end::SENT {
        socket.shut_writing(); // into the queue, as everything now
    }
    let window = &connection.window;
    let words = [window.snd_wl1, window.snd_wnd, window.max_window, window.rcv_wnd, window.rcv_wup];
    let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
    socket.set_bytes(tcp, TCP_REPAIR_WINDOW, &bytes).map_err(|error| ("TCP_REPAIR_WINDOW", error))
}

fn fill(socket: &Socket, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        // SAFETY: the bytes are a slice.
        let done = unsafe { socket.write(bytes.as_ptr(), bytes.len().min(PIECE)) }?;
        if done == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        bytes = &bytes[done.min(bytes.len())..];
    }
    Ok(())
}

/// Its socket has left repair mode: send what was not, and let the kernel fit the buffers again. Returns what had no room.
pub fn finish(socket: &Socket, connection: &mut Connection) -> Vec<u8> {
    let mut left = std::mem::take(&mut connection.unsent.0);
    // SAFETY: the bytes are a slice.
    while let Ok(done) = unsafe { socket.write(left.as_ptr(), left.len()) }
        && done > 0
    {
        left.drain(..done.min(left.len()));
    }
    let _ = socket.set(libc::SOL_SOCKET, SO_BUF_LOCK, 0);
    if connection.end == end::UNSENT && left.is_empty() {
        socket.shut_writing();
    }
    left
}
