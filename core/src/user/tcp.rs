//! A TCP flow: the host's kernel is the TCP, and what is here translates between its socket and the guest's segments.
//!
//! There is no send queue and no reassembly. What goes to the guest stays in the receive queue of the host's socket until
//! the guest has acknowledged it: it is looked at (tcp_out.rs) to be sent, looked at again to be sent again, and
//! discarded when it was acknowledged. What comes from the guest is written to the socket at once, from the memory it
//! lies in; only what the kernel took is acknowledged, and what came out of order is not kept. SACK is therefore not
//! offered: there is never anything to report, and a guest that counts on reports no longer counts repeated ACKs.
//!
//! ```text
//!   guest's SYN -> Connecting -> (connected) Answered -> (ACK) Open -> (both FINs acknowledged) Resting -> Gone
//!   accept()    -> Calling    -> (SYN+ACK)                 Open
//! ```
//!
//! *Windows.* The window to the guest is three quarters of what the socket has room for (the kernel counts its own
//! overhead too), and its right edge never moves back. A window that got low is opened when epoll says that there is
//! room again. The window of the guest bounds what is in flight; there is no congestion control on a wire that is memory,
//! until something is lost: then a window of half the flight, which grows by what is acknowledged.
//!
//! *Ends.* A FIN from the guest shuts the socket for writing once all before it was written; the end of the socket's data
//! becomes a FIN once all before it was sent. Until both have come the socket has SO_LINGER 0, so that the far end sees a
//! reset when the guest resets the flow, is given up, or our process dies; an error of the socket becomes a RST. Blind RST and SYN are answered as RFC 5961 says.

use std::io;

use super::Core;
use super::flows::Ends;
use super::segment::{ACK, FIN, RST, SYN, Segment};
use super::socket::Socket;
use super::timer::Alarm;
use super::wire::Mac;

/// What a guest may say at least: net.ipv4.tcp_min_snd_mss of Linux.
const MSS_LEAST: u16 = 48;
const MSS_DEFAULT: u16 = 536; // RFC 9293, 3.7.1
/// Our shift of the window: 65,535 << 8 are 16 MiB.
pub const SCALE: u8 = 8;
const RTO_FIRST_MS: u32 = 300;
pub const CWND_MOST: u32 = 64 << 20;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// The guest's SYN is here, the host's socket is not connected yet.
    Connecting,
    /// SYN+ACK is to go, or went.
    Answered,
    /// The host's socket is connected, our SYN is to go, or went.
    Calling,
    Open,
    /// Over; it answers for lost ACKs.
    Resting,
    Gone,
}

/// What is true of a flow, and what it has to say.
pub mod flag {
    /// The guest's FIN came.
    pub const GUEST_FIN: u32 = 1;
    /// The socket's data has come to its end.
    pub const HOST_END: u32 = 2;
    pub const FIN_SENT: u32 = 4;
    pub const FIN_ACKED: u32 = 8;
    /// The socket may have data behind what was looked at.
    pub const READABLE: u32 = 16;
    /// The window that we told is low.
    pub const LOW: u32 = 32;
    /// The socket did not take all that the guest sent.
    pub const BLOCKED: u32 = 64;
    /// There is data and nothing in flight, and the guest has no window.
    pub const STALLED: u32 = 128;
    pub const SAY_SYN: u32 = 256;
    pub const SAY_ACK: u32 = 512;
    pub const SAY_RST: u32 = 1024;
    /// Send what is oldest again.
    pub const RESEND: u32 = 2048;
    /// Send a byte whatever the window says.
    pub const PROBE: u32 = 4096;
    pub const KEEPALIVE: u32 = 8192;
    /// In the list of flows with something to say.
    pub const LISTED: u32 = 16384;
    /// The guest scales its window, so we may scale ours.
    pub const SCALED: u32 = 32768;
    /// The window may have opened: say so if it has.
    pub const SAY_WINDOW: u32 = 65536;
}

pub struct Tcp {
    pub socket: Option<Socket>,
    /// How epoll, the wheel and the list of the loop call this flow.
    pub token: u64,
    pub state: State,
    pub flags: u32,
    pub mac: Mac,
    /// What the socket is: TCP, or a unix socket, which cannot discard.
    pub is_tcp: bool,
    /// The guest's first sequence number.
    pub irs: u32,
    pub rcv_nxt: u32,
    /// The right edge of the window that we told.
    pub rcv_edge: u32,
    pub snd_una: u32,
    pub snd_nxt: u32,
    /// The highest that `snd_nxt` ever was.
    pub snd_max: u32,
    pub wnd: u32,
    pub wnd_most: u32,
    wnd_seq: u32,
    wnd_ack: u32,
    pub shift: u8,
    pub mss: u16,
    pub cwnd: u32,
    /// Until this is acknowledged, the loss at hand is being mended.
    pub recover: u32,
    pub dup_acks: u8,
    /// ACKs to say beside the next one, for the guest to count.
    pub more_acks: u8,
    pub tries: u8,
    pub srtt_ms: u32,
    pub rttvar_ms: u32,
    pub rto_ms: u32,
    /// The byte whose round trip is being timed, and since when (0: none).
    pub timed: u32,
    pub timed_ms: u64,
    /// When the oldest byte in flight was sent, or progress was made.
    pub since_ms: u64,
    pub heard_ms: u64,
    pub alarm: Alarm,
    pub bytes_in: u64,
    pub bytes_out: u64,
    pub opened_ms: u64,
    /// Segments and super-frames that were sent again.
    pub resent: u32,
    /// The forward that a client of the host's came by; 0: the guest opened the flow.
    pub inward: u32,
}

impl Tcp {
    fn new(socket: Socket, is_tcp: bool, state: State, mac: Mac, iss: u32, now_ms: u64) -> Tcp {
        Tcp {
            socket: Some(socket),
            token: 0,
            state,
            flags: 0,
            mac,
            is_tcp,
            irs: 0,
            rcv_nxt: 0,
            rcv_edge: 0,
            snd_una: iss,
            snd_nxt: iss,
            snd_max: iss,
            wnd: 0,
            wnd_most: 0,
            wnd_seq: 0,
            wnd_ack: 0,
            shift: 0,
            mss: MSS_DEFAULT,
            cwnd: CWND_MOST,
            recover: iss,
            dup_acks: 0,
            more_acks: 0,
            tries: 0,
            srtt_ms: 0,
            rttvar_ms: 0,
            rto_ms: RTO_FIRST_MS,
            timed: 0,
            timed_ms: 0,
            since_ms: now_ms,
            heard_ms: now_ms,
            alarm: Alarm::default(),
            bytes_in: 0,
            bytes_out: 0,
            opened_ms: now_ms,
            resent: 0,
            inward: 0,
        }
    }

    /// A flow that the guest opens; the socket's connect() was begun.
    pub fn from_guest(core: &Core, ends: &Ends, socket: Socket, is_tcp: bool, mac: Mac, syn: &Segment) -> Tcp {
        let mut tcp = Tcp::new(socket, is_tcp, State::Connecting, mac, core.first_sequence(ends), core.now_ms);
        tcp.meet(core, ends, syn);
        tcp
    }

    /// A flow that a client of the host's opened.
    pub fn from_host(core: &Core, ends: &Ends, socket: Socket, is_tcp: bool, inward: u32) -> Tcp {
        let mut tcp = Tcp::new(socket, is_tcp, State::Calling, [0; 6], core.first_sequence(ends), core.now_ms);
        tcp.inward = inward;
        tcp.flags |= flag::SAY_SYN | flag::SCALED;
        tcp
    }

    /// Take what the guest's SYN says.
    fn meet(&mut self, core: &Core, ends: &Ends, syn: &Segment) {
        self.irs = syn.seq;
        self.rcv_nxt = syn.seq.wrapping_add(1);
        self.rcv_edge = self.rcv_nxt;
        self.wnd = syn.window.into();
        self.wnd_most = self.wnd;
        (self.wnd_seq, self.wnd_ack) = (syn.seq, syn.ack);
        self.mss = syn.mss.unwrap_or(MSS_DEFAULT).clamp(MSS_LEAST, core.mss(ends.far.ip));
        match syn.scale {
            Some(shift) => {
                self.shift = shift.min(14); // RFC 7323, 2.3
                self.flags |= flag::SCALED;
            }
            None => self.flags &= !flag::SCALED,
        }
    }

    pub fn is(&self, flags: u32) -> bool {
        self.flags & flags != 0
    }

    /// Put the flow in the list of those that have something to say.
    pub fn list(&mut self, core: &mut Core) {
        if !self.is(flag::LISTED) {
            self.flags |= flag::LISTED;
            core.due.push_back(self.token);
        }
    }

    pub fn say(&mut self, core: &mut Core, flags: u32) {
        self.flags |= flags;
        self.list(core);
    }

    pub fn flight(&self) -> u32 {
        self.snd_nxt.wrapping_sub(self.snd_una)
    }

    /// The kernel says something about the socket.
    pub fn event(&mut self, core: &mut Core, ends: &Ends, events: u32) {
        let (failed, writable) = (events & libc::EPOLLERR as u32 != 0, events & libc::EPOLLOUT as u32 != 0);
        if self.state == State::Connecting {
            let errno = self.socket.as_ref().map_or(0, Socket::error);
            if errno == libc::ECONNRESET {
                self.socket = None; // it was connected, and reset before we looked: so the guest shall see it
                return self.connected(core);
            }
            if errno != 0 {
                return self.refuse(core, ends, errno);
            }
            if !writable {
                return;
            }
            self.connected(core);
        }
        if events & (libc::EPOLLIN | libc::EPOLLRDHUP | libc::EPOLLHUP) as u32 != 0 || failed {
            self.say(core, flag::READABLE);
        }
        if writable && self.is(flag::LOW | flag::BLOCKED) {
            let what = if self.is(flag::BLOCKED) {
                self.more_acks = 3; // the guest has to send again what we did not take: RFC 5681, 3.2
                flag::SAY_ACK
            } else {
                flag::SAY_WINDOW
            };
            self.flags &= !(flag::LOW | flag::BLOCKED);
            self.say(core, what);
        }
    }

    /// The far end is there: the guest may have its SYN+ACK.
    pub fn connected(&mut self, core: &mut Core) {
        self.state = State::Answered;
        self.since_ms = core.now_ms;
        self.say(core, flag::SAY_SYN);
    }

    /// connect() came to nothing.
    pub fn refuse(&mut self, core: &mut Core, ends: &Ends, errno: i32) {
        self.socket = None;
        match errno {
            libc::ECONNREFUSED => self.say(core, flag::SAY_RST),
            libc::ETIMEDOUT => self.state = State::Gone, // the guest has met silence all along
            _ => {
                core.tell_unreachable(ends, self.mac, self.irs, errno);
                self.say(core, flag::SAY_RST);
            }
        }
    }

    /// The socket failed: the guest is told by a RST.
    pub fn fail(&mut self, core: &mut Core) {
        self.socket = None;
        self.say(core, flag::SAY_RST);
    }

    /// The guest reset the flow, or is no more: so does the far end see it.
    pub fn abort(&mut self) {
        self.socket = None;
        self.state = State::Gone;
    }

    /// Take a segment of the guest.
    ///
    /// # Safety
    /// The payload is readable for its length.
    pub unsafe fn input(&mut self, core: &mut Core, ends: &Ends, segment: &Segment) {
        self.heard_ms = core.now_ms;
        if self.snd_una == self.snd_max && !self.is(flag::STALLED) {
            self.tries = 0;
        }
        match self.state {
            State::Connecting => {
                if segment.flags & RST != 0 && segment.seq == self.rcv_nxt {
                    self.abort();
                }
            }
            State::Calling => self.answered(core, ends, segment),
            State::Resting => {
                if segment.flags & RST == 0 && segment.space() > 0 {
                    self.say(core, flag::SAY_ACK);
                }
            }
            State::Gone => {}
            // SAFETY: as the caller promises.
            State::Answered | State::Open => unsafe { self.open(core, ends, segment) },
        }
    }

    /// The guest answers our SYN (RFC 9293, 3.10.7.3).
    fn answered(&mut self, core: &mut Core, ends: &Ends, segment: &Segment) {
        let is_ours = segment.ack == self.snd_max && self.snd_max != self.snd_una;
        if segment.flags & RST != 0 {
            if segment.flags & ACK != 0 && is_ours {
                self.abort();
            }
            return;
        }
        if segment.flags & ACK != 0 && !is_ours {
            return core.reset_stray(ends, self.mac, segment);
        }
        if segment.flags & SYN == 0 {
            return;
        }
        self.meet(core, ends, segment);
        if segment.flags & ACK != 0 {
            self.snd_una = segment.ack;
            self.snd_nxt = segment.ack;
            self.set_open(core);
            self.say(core, flag::SAY_ACK | flag::READABLE);
        } else {
            self.state = State::Answered; // simultaneous open
            self.say(core, flag::SAY_SYN);
        }
    }

    fn set_open(&mut self, core: &Core) {
        self.state = State::Open;
        self.flags &= !flag::SAY_SYN;
        if self.socket.is_none() {
            self.flags |= flag::SAY_RST;
        }
        self.tries = 0;
        self.recover = self.snd_una;
        self.since_ms = core.now_ms;
    }

    /// # Safety
    /// The payload is readable for its length.
    unsafe fn open(&mut self, core: &mut Core, ends: &Ends, segment: &Segment) {
        let offset = segment.seq.wrapping_sub(self.rcv_nxt) as i32;
        let window = self.rcv_edge.wrapping_sub(self.rcv_nxt) as i32;
        if segment.flags & RST != 0 {
            if offset == 0 {
                self.abort();
            } else if offset > 0 && offset <= window {
                self.challenge(core); // RFC 5961, 3.2
            }
            return;
        }
        if segment.flags & SYN != 0 {
            if self.state == State::Answered && segment.seq == self.irs {
                if segment.flags & ACK == 0 {
                    return self.say(core, flag::SAY_SYN); // ours was lost
                }
            } else {
                return self.challenge(core); // RFC 5961, 4.2
            }
        }
        if segment.flags & ACK == 0 {
            return;
        }
        let end = offset.wrapping_add(segment.space() as i32);
        if offset > window || (offset < 0 && end <= 0 && segment.flags & SYN == 0) {
            return self.challenge(core); // old, or beyond the window; a keep-alive is among these
        }
        if !self.acknowledged(core, ends, segment) {
            return;
        }
        if segment.len == 0 && segment.flags & FIN == 0 {
            return;
        }
        if offset > 0 || self.is(flag::GUEST_FIN) {
            self.more_acks = self.more_acks.saturating_add(u8::from(self.is(flag::SAY_ACK))).min(8);
            return self.say(core, flag::SAY_ACK);
        }
        // SAFETY: as the caller promises.
        unsafe { self.take(core, segment, offset.unsigned_abs() as usize) };
    }

    /// Say again where we are; a flood of what provokes that is not answered one by one.
    fn challenge(&mut self, core: &mut Core) {
        if core.limits.challenge(core.now_ms) {
            self.say(core, flag::SAY_ACK);
        }
    }

    /// Deal with the ACK of a segment; false where the segment is not to be taken.
    fn acknowledged(&mut self, core: &mut Core, ends: &Ends, segment: &Segment) -> bool {
        let mut acked = segment.ack.wrapping_sub(self.snd_una);
        let sent = self.snd_max.wrapping_sub(self.snd_una);
        if self.state == State::Answered {
            if acked == 0 || acked > sent {
                core.reset_stray(ends, self.mac, segment);
                return false;
            }
            self.snd_una = self.snd_una.wrapping_add(1);
            self.snd_nxt = self.snd_max;
            (acked, self.wnd) = (acked - 1, 0);
            self.set_open(core);
            self.say(core, flag::READABLE);
        }
        let sent = sent.min(self.snd_max.wrapping_sub(self.snd_una));
        if acked > sent {
            if (acked as i32) > 0 || acked.wrapping_neg() > self.wnd_most.max(65_535) {
                self.challenge(core); // RFC 5961, 5.2
                return false;
            }
            return true; // an old one, overtaken
        }
        let window = u32::from(segment.window) << self.shift;
        let is_repeated = acked == 0 && sent > 0 && segment.space() == 0 && window == self.wnd;
        let newer = segment.seq.wrapping_sub(self.wnd_seq) as i32;
        if newer > 0 || (newer == 0 && segment.ack.wrapping_sub(self.wnd_ack) as i32 >= 0) {
            (self.wnd_seq, self.wnd_ack) = (segment.seq, segment.ack);
            if window != self.wnd {
                if self.wnd == 0 && acked == 0 && sent > 0 {
                    self.rewind(core); // what went into the closed window was not kept
                    self.tries = 0;
                }
                self.wnd = window;
                self.wnd_most = self.wnd_most.max(window);
                self.flags &= !flag::STALLED;
                self.list(core);
            }
        }
        if acked > 0 {
            self.progress(core, acked);
        } else if is_repeated {
            self.repeated(core);
        }
        true
    }

    /// The guest has `acked` more of what we sent.
    fn progress(&mut self, core: &mut Core, acked: u32) {
        self.snd_una = self.snd_una.wrapping_add(acked);
        if (self.snd_nxt.wrapping_sub(self.snd_una) as i32) < 0 {
            self.snd_nxt = self.snd_una;
        }
        let mut bytes = acked;
        if self.is(flag::FIN_SENT) && self.snd_una == self.snd_max && !self.is(flag::FIN_ACKED) {
            self.flags |= flag::FIN_ACKED;
            bytes -= 1;
        }
        if bytes > 0 && self.discard(core, bytes as usize).is_err() {
            return self.fail(core);
        }
        self.bytes_out += u64::from(bytes);
        if self.timed_ms != 0 && self.snd_una.wrapping_sub(self.timed) as i32 >= 0 {
            self.measure((core.now_ms - self.timed_ms) as u32);
            self.timed_ms = 0;
        }
        self.tries = 0;
        self.dup_acks = 0;
        self.since_ms = core.now_ms;
        self.cwnd = self.cwnd.saturating_add(acked).min(CWND_MOST);
        if (self.recover.wrapping_sub(self.snd_una) as i32) > 0 && self.snd_nxt == self.snd_max {
            self.flags |= flag::RESEND; // RFC 6582, 3.2: a partial ACK shows the next hole
        }
        self.list(core);
        self.maybe_over(core);
    }

    /// The guest said the same again: something before what it got is missing.
    fn repeated(&mut self, core: &mut Core) {
        self.dup_acks = self.dup_acks.saturating_add(1);
        let is_mending = (self.recover.wrapping_sub(self.snd_una) as i32) > 0;
        if self.dup_acks == 3 && !is_mending {
            self.recover = self.snd_max;
            self.shrink();
            self.timed_ms = 0;
            self.say(core, flag::RESEND);
        }
    }

    pub fn shrink(&mut self) {
        let flight = self.snd_max.wrapping_sub(self.snd_una);
        self.cwnd = (flight / 2).max(10 * u32::from(self.mss));
    }

    fn discard(&mut self, core: &mut Core, len: usize) -> io::Result<()> {
        let Some(socket) = &self.socket else { return Ok(()) };
        let got = if self.is_tcp { socket.discard(len) } else { socket.discard_into(len, &mut core.waste) };
        // What was looked at is there; less can only mean that the kernel lost it with the connection.
        got.and_then(|got| if got == len { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) })
    }

    /// Write the payload, from `skip` on, to the socket.
    ///
    /// # Safety
    /// The payload is readable for its length.
    unsafe fn take(&mut self, core: &mut Core, segment: &Segment, skip: usize) {
        let skip = skip.min(segment.len);
        let len = segment.len - skip;
        let Some(socket) = &self.socket else { return };
        let mut taken = 0;
        if len > 0 {
            // SAFETY: `skip + len` is the payload's length.
            match unsafe { socket.write(segment.payload.add(skip), len) } {
                Ok(count) => taken = count,
                Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
                Err(_) => return self.fail(core),
            }
        }
        self.rcv_nxt = self.rcv_nxt.wrapping_add(taken as u32);
        self.bytes_in += taken as u64;
        if (self.rcv_edge.wrapping_sub(self.rcv_nxt) as i32) < 0 {
            self.rcv_edge = self.rcv_nxt;
        }
        if taken < len {
            self.flags |= flag::BLOCKED;
        } else if segment.flags & FIN != 0 {
            self.rcv_nxt = self.rcv_nxt.wrapping_add(1);
            self.flags |= flag::GUEST_FIN;
            socket.shut_writing();
        }
        self.say(core, flag::SAY_ACK);
        self.maybe_over(core);
    }

    fn maybe_over(&mut self, core: &Core) {
        if self.state == State::Open && self.is(flag::GUEST_FIN) && self.is(flag::FIN_ACKED) {
            if let Some(socket) = self.socket.take() {
                socket.finish();
            }
            self.state = State::Resting;
            self.since_ms = core.now_ms;
        }
    }
}
