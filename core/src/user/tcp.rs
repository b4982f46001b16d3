//! A TCP flow: the host's kernel is the TCP, and what is here translates between its socket and the guest's segments.
//!
//! There is no send queue. What goes to the guest stays in the receive queue of the host's socket until the guest has
//! acknowledged it: it is looked at (tcp_out.rs) to be sent, looked at again where something of it was lost (tcp_loss.rs),
//! and discarded when it was acknowledged. What comes from the guest is written to the socket at once, from the memory it
//! lies in; a copy is kept only of what lies beyond a hole, or did not fit (tcp_in.rs), within bounds.
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
//! becomes a FIN once all before it was sent, on the last segment where epoll has told of the end before that was looked
//! at. Until both have come the socket has SO_LINGER 0, so that the far end sees a
//! reset when the guest resets the flow, is given up, or our process dies; an error of the socket becomes a RST. Blind RST and SYN are answered as RFC 5961 says.

use super::Core;
use super::flows::Ends;
use super::held::Held;
use super::ranges::Ranges;
use super::segment::{ACK, FIN, RST, SYN, Segment};
use super::socket::Socket;
use super::timer::Alarm;
use super::wire::Mac;

/// What a guest may say at least: net.ipv4.tcp_min_snd_mss of Linux.
pub const MSS_LEAST: u16 = 48;
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
    /// All that the guest sent is in the socket, which was shut for writing.
    pub const SHUT: u32 = 2;
    pub const FIN_SENT: u32 = 4;
    pub const FIN_ACKED: u32 = 8;
    /// The socket may have data behind what was looked at.
    pub const READABLE: u32 = 16;
    /// The window that we told is low.
    pub const LOW: u32 = 32;
    /// The guest reads SACK.
    pub const SACK: u32 = 64;
    /// There is data and nothing in flight, and the guest has no window.
    pub const STALLED: u32 = 128;
    pub const SAY_SYN: u32 = 256;
    pub const SAY_ACK: u32 = 512;
    pub const SAY_RST: u32 = 1024;
    /// The last segment was sent again to see whether it had been lost.
    pub const TAILED: u32 = 2048;
    /// Send a byte whatever the window says.
    pub const PROBE: u32 = 4096;
    pub const KEEPALIVE: u32 = 8192;
    /// In the list of flows with something to say.
    pub const LISTED: u32 = 16384;
    /// The guest scales its window, so we may scale ours.
    pub const SCALED: u32 = 32768;
    /// The window may have opened: say so if it has.
    pub const SAY_WINDOW: u32 = 65536;
    /// Our end said that the guest's had come, so nothing is left to be asked.
    pub const KNOWN: u32 = 262_144;
    /// It has a record that outlives the worker.
    pub const ENTERED: u32 = 131_072;
    /// The far end has said its last, and the socket does not know: it was built anew.
    pub const FAR_ENDED: u32 = 1 << 19;
    /// It is being moved: its socket is locked.
    pub const LOCKED: u32 = 1 << 20;
    /// It is being moved: another network of this host has its socket too.
    pub const HANDED: u32 = 1 << 26;
    /// What is so for whoever has the flow.
    pub const LASTING: u32 = GUEST_FIN | SHUT | FIN_SENT | FIN_ACKED | SACK | SCALED | KNOWN | FAR_ENDED;
    /// The socket was written to, so that the next small write would wait for the far end's ACK if it may.
    pub const WROTE: u32 = 1 << 24;
    /// It does not wait: TCP_NODELAY.
    pub const HURRIES: u32 = 1 << 23;
    /// The kernel looks at the socket where it was told to, and not always at what comes next.
    pub const PEEKS: u32 = 1 << 25;
    /// Behind what was looked at there may be more that epoll has told already: the end, or data behind urgent data.
    pub const BEHIND: u32 = 1 << 21;
    /// The kernel watches whether the far end is still there.
    pub const WATCHED: u32 = 1 << 22;
    /// The far end's FIN came, so that all it will ever send lies in the socket, without urgent data in between.
    pub const COMPLETE: u32 = 1 << 26;
    /// epoll was asked to say when the socket has room.
    pub const ROOMY: u32 = 1 << 27;
}

pub struct Tcp {
    pub socket: Option<Socket>,
    /// How epoll, the wheel and the list of the loop call this flow.
    pub token: u64,
    pub state: State,
    pub flags: u32,
    pub mac: Mac,
    /// Whose share it is.
    pub owner: Mac,
    /// What the socket is: TCP, or a unix socket, which cannot discard.
    pub is_tcp: bool,
    /// The guest's first sequence number.
    pub irs: u32,
    /// One past what we have of the guest's without a hole.
    pub rcv_nxt: u32,
    /// Of that, what the socket has not taken yet.
    pub pending: u32,
    pub held: Held,
    /// The right edge of the window that we told.
    pub rcv_edge: u32,
    /// While the guest has more of its window left than this, it is not reckoned anew.
    pub ample: u32,
    pub snd_una: u32,
    /// One past the last that was ever sent.
    pub snd_nxt: u32,
    /// Between these two, what the guest does not say that it has is lost, and is to be sent again.
    pub again: u32,
    pub again_to: u32,
    /// What was `snd_nxt` when all that was lost had been sent again.
    pub again_ended: u32,
    /// What the guest says that it has, beyond a hole.
    pub sacked: Ranges,
    /// Where the kernel looks at the socket next.
    pub peeked: u32,
    pub wnd: u32,
    pub wnd_most: u32,
    pub wnd_seq: u32,
    pub wnd_ack: u32,
    pub shift: u8,
    pub mss: u16,
    pub cwnd: u32,
    /// Until this is acknowledged, the loss at hand is being mended.
    pub recover: u32,
    pub dup_acks: u8,
    /// ACKs to say beside the next one, for a guest without SACK to count.
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
    pub fn new(socket: Option<Socket>, is_tcp: bool, state: State, mac: Mac, iss: u32, now_ms: u64) -> Tcp {
        Tcp {
            socket,
            token: 0,
            state,
            flags: 0,
            mac,
            owner: mac,
            is_tcp,
            irs: 0,
            rcv_nxt: 0,
            pending: 0,
            held: Held::default(),
            rcv_edge: 0,
            ample: u32::MAX,
            snd_una: iss,
            snd_nxt: iss,
            again: iss,
            again_to: iss,
            again_ended: iss,
            sacked: Ranges::default(),
            peeked: iss,
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
        let mut tcp = Tcp::new(Some(socket), is_tcp, State::Connecting, mac, core.first_sequence(ends), core.now_ms);
        tcp.meet(core, ends, syn);
        tcp
    }

    /// A flow that a client of the host's opened.
    pub fn from_host(core: &Core, ends: &Ends, socket: Socket, is_tcp: bool, guest: Mac, inward: u32) -> Tcp {
        let mut tcp = Tcp::new(Some(socket), is_tcp, State::Calling, guest, core.first_sequence(ends), core.now_ms);
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
        if syn.sack {
            self.flags |= flag::SACK;
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

    /// The kernel says something about the socket.
    pub fn event(&mut self, core: &mut Core, ends: &Ends, events: u32) {
        let (failed, writable) = (events & libc::EPOLLERR as u32 != 0, events & libc::EPOLLOUT as u32 != 0);
        if self.state == State::Connecting {
            let errno = if failed { self.socket.as_ref().map_or(0, Socket::error) } else { 0 };
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
        if failed && self.is(flag::FIN_SENT) && self.socket.as_ref().is_some_and(|socket| socket.error() != 0) {
            return self.fail(core); // the data has had its end, and shows no error any more
        }
        let ends = events & (libc::EPOLLPRI | libc::EPOLLRDHUP | libc::EPOLLHUP) as u32;
        if ends != 0 || failed {
            self.flags |= flag::BEHIND;
        }
        if ends == libc::EPOLLRDHUP as u32 && !failed && self.is_tcp {
            self.flags |= flag::COMPLETE;
        }
        if events & libc::EPOLLIN as u32 != 0 || self.is(flag::BEHIND) {
            self.say(core, flag::READABLE);
        }
        if writable && (self.pending > 0 || self.is(flag::LOW)) {
            self.drain(core);
            self.flags &= !flag::LOW;
            self.say(core, flag::SAY_WINDOW);
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
        if self.snd_una == self.snd_nxt && !self.is(flag::STALLED) {
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
        let is_ours = segment.ack == self.snd_nxt && self.snd_nxt != self.snd_una;
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
            self.set_open(core);
            self.say(core, flag::SAY_ACK);
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
        if self.timed_ms != 0 {
            self.measure((core.now_ms - self.timed_ms) as u32);
            self.timed_ms = 0;
        }
        self.tries = 0;
        self.recover = self.snd_una;
        (self.again, self.again_to, self.peeked) = (self.snd_una, self.snd_una, self.snd_una);
        self.since_ms = core.now_ms;
    }

    /// # Safety
    /// The payload is readable for its length.
    unsafe fn open(&mut self, core: &mut Core, ends: &Ends, segment: &Segment) {
        let offset = segment.seq.wrapping_sub(self.rcv_nxt) as i32;
        let window = self.edge().wrapping_sub(self.rcv_nxt) as i32;
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
        // SAFETY: as the caller promises.
        unsafe { self.take(core, segment) };
    }

    /// The right edge as the guest has read it: the window is told in steps, rounded up.
    pub fn edge(&self) -> u32 {
        self.rcv_edge.wrapping_add((1 << self.scale()) - 1)
    }

    pub fn scale(&self) -> u8 {
        if self.is(flag::SCALED) { SCALE } else { 0 }
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
        let sent = self.flight();
        if self.state == State::Answered {
            if acked == 0 || acked > sent {
                core.reset_stray(ends, self.mac, segment);
                return false;
            }
            self.snd_una = self.snd_una.wrapping_add(1);
            (acked, self.wnd) = (acked - 1, 0);
            self.set_open(core);
            self.list(core);
        }
        let sent = self.flight();
        if acked > sent {
            if (acked as i32) > 0 || acked.wrapping_neg() > self.wnd_most.max(65_535) {
                self.challenge(core); // RFC 5961, 5.2
                return false;
            }
            return true; // an old one, overtaken
        }
        let window = u32::from(segment.window) << self.shift;
        let is_repeated = acked == 0 && sent > 0 && segment.space() == 0 && window == self.wnd && !self.is(flag::SACK);
        let newer = segment.seq.wrapping_sub(self.wnd_seq) as i32;
        if newer > 0 || (newer == 0 && segment.ack.wrapping_sub(self.wnd_ack) as i32 >= 0) {
            (self.wnd_seq, self.wnd_ack) = (segment.seq, segment.ack);
            if window != self.wnd {
                if self.wnd == 0 && acked == 0 && sent > 0 {
                    self.lose_all(); // what went into the closed window was not kept
                    self.tries = 0;
                }
                self.wnd = window;
                self.wnd_most = self.wnd_most.max(window);
                self.flags &= !flag::STALLED;
                self.list(core);
            }
        } else {
            self.wnd = self.wnd.saturating_sub(acked); // overtaken: the edge is what it was
        }
        if acked > 0 {
            self.progress(core, acked);
        }
        if segment.sack && sent > 0 && self.note(&segment.blocks) {
            self.dup_acks = self.dup_acks.saturating_add(u8::from(acked == 0));
            self.mend(core);
        } else if is_repeated {
            self.dup_acks = self.dup_acks.saturating_add(1);
            self.mend(core);
        }
        true
    }

    /// Both ends are done?
    pub fn maybe_over(&mut self, core: &mut Core) {
        if self.state == State::Open && self.is(flag::SHUT) && self.is(flag::FIN_ACKED) {
            core.finished.extend(self.socket.take());
            self.state = State::Resting;
            self.since_ms = core.now_ms;
        }
    }
}
