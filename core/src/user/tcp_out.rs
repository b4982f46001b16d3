//! What a TCP flow says to its guest: at most one frame a call, written into the room that the loop gives.
//!
//! Data goes from the socket straight behind its headers, up to 64 KiB at once: a super-frame, with the guest's MSS as
//! the size of its segments and a partial checksum. What was lost is looked at again in the socket.

use std::io;

use super::Core;
use super::flows::Ends;
use super::ranges::{before, later};
use super::segment::{ACK, FIN, PSH, RST, SYN, Segment};
use super::socket::Socket;
use super::tcp::{SCALE, State, Tcp, flag};
use super::wire::{self, Room, TCP, Way, put16, put32};
use crate::offload::{GSO_NONE, GSO_TCPV4, GSO_TCPV6, VnetHeader};

const TTL: u8 = 64;
const HEADER: usize = 20;
const CHECKSUM: usize = 16;
/// The longest IP packet.
const PACKET_MOST: usize = 65_535;

/// The fields of a segment that differ from one to the next.
struct Fields {
    seq: u32,
    ack: u32,
    flags: u8,
    window: u16,
}

impl Tcp {
    /// Write the next frame; None where there is nothing to say now.
    pub fn output(&mut self, core: &mut Core, ends: &Ends, room: &mut Room) -> Option<usize> {
        self.flags &= !flag::LISTED;
        if self.is(flag::SAY_RST) {
            let seq = self.acceptable();
            self.state = State::Gone;
            self.socket = None;
            return Some(self.segment(ends, core, room, &Fields { seq, ack: self.rcv_nxt, flags: RST | ACK, window: 0 }, 0, 0));
        }
        match self.state {
            State::Connecting | State::Gone => None,
            State::Calling | State::Answered => self.is(flag::SAY_SYN).then(|| self.syn(core, ends, room)).flatten(),
            State::Resting => self.is(flag::SAY_ACK).then(|| self.ack(core, ends, room)),
            State::Open => {
                if self.is(flag::SAY_ACK) && self.has_hole() {
                    return Some(self.ack(core, ends, room)); // data does not carry SACK
                }
                if let Some(len) = self.resend(core, ends, room) {
                    return Some(len);
                }
                if let Some(len) = self.data(core, ends, room) {
                    return Some(len);
                }
                if self.state == State::Gone || self.is(flag::SAY_RST) {
                    return self.is(flag::SAY_RST).then(|| self.output(core, ends, room)).flatten();
                }
                (self.is(flag::SAY_ACK) || self.more_acks > 0 || self.opens(core)).then(|| self.ack(core, ends, room))
            }
        }
    }

    /// Is there more to say at once?
    pub fn has_more(&self) -> bool {
        match self.state {
            State::Open => {
                self.is(flag::SAY_ACK | flag::SAY_RST | flag::SAY_WINDOW)
                    || self.more_acks > 0
                    || self.again != self.again_to
                    || self.may_send()
            }
            State::Connecting | State::Gone => false,
            State::Answered | State::Calling => self.is(flag::SAY_RST),
            State::Resting => self.is(flag::SAY_ACK | flag::SAY_RST),
        }
    }

    fn may_send(&self) -> bool {
        self.is(flag::READABLE) && (self.usable() >= self.mss.into() || (self.flight() == 0 && self.usable() > 0))
    }

    /// What may be sent beyond what is in flight.
    fn usable(&self) -> u32 {
        self.wnd.saturating_sub(self.flight()).min(self.cwnd.saturating_sub(self.pipe()))
    }

    /// Did the guest send something beyond a hole?
    fn has_hole(&self) -> bool {
        self.is(flag::SACK) && self.held.size > 0 && self.held.reaches(self.rcv_nxt)
    }

    fn way(&self, core: &Core, ends: &Ends) -> Way {
        Way { from_mac: core.config.mac(ends.far.ip), to_mac: self.mac, source: ends.far.ip, destination: ends.guest.ip }
    }

    fn syn(&mut self, core: &mut Core, ends: &Ends, room: &mut Room) -> Option<usize> {
        if self.state == State::Calling {
            match core.neighbours.find(ends.guest.ip) {
                Some(mac) => self.mac = mac,
                None => {
                    core.ask_for(ends.guest.ip); // the flow is called again when the guest is known, or by its alarm
                    return None;
                }
            }
        }
        self.flags &= !flag::SAY_SYN;
        let answer = self.state == State::Answered;
        // A TCP socket that was just made has room for what an unscaled window can say, or we have.
        let most = |socket: &Socket| if self.is_tcp { usize::MAX } else { socket.room().0 / 4 * 3 };
        let window = self.socket.as_ref().map_or(0, most).clamp(1, 65_535);
        if answer {
            self.rcv_edge = self.rcv_nxt.wrapping_add(window as u32);
            self.ample = window as u32 / 4 * 3;
        }
        let before = self.snd_una;
        let begin = self.snd_una;
        self.snd_nxt = begin.wrapping_add(1);
        self.sent(core, before);
        let fields = Fields {
            seq: begin,
            ack: if answer { self.rcv_nxt } else { 0 },
            flags: if answer { SYN | ACK } else { SYN },
            window: window as u16,
        };
        let at = wire::headers_len(ends.guest.ip) + HEADER;
        let mss = core.mss(ends.far.ip);
        let frame = room.frame();
        frame[at..at + 4].copy_from_slice(&[2, 4, (mss >> 8) as u8, mss as u8]); // RFC 9293, 3.2
        let mut options = 4;
        let mut add = |option: [u8; 4]| {
            frame[at + options..at + options + 4].copy_from_slice(&option);
            options += 4;
        };
        if !answer || self.is(flag::SACK) {
            add([1, 1, 4, 2]); // RFC 2018, 2
        }
        if self.is(flag::SCALED) {
            add([1, 3, 3, SCALE]); // RFC 7323, 2.2
        }
        Some(self.segment(ends, core, room, &fields, options, 0))
    }

    /// Send the next of what was lost again.
    fn resend(&mut self, core: &mut Core, ends: &Ends, room: &mut Room) -> Option<usize> {
        let Some((from, to)) = self.gap() else {
            if self.again != self.again_to {
                (self.again, self.again_ended) = (self.again_to, self.snd_nxt);
            }
            return None;
        };
        let (offset, missing) = (from.wrapping_sub(self.snd_una), to.wrapping_sub(from));
        let allowed = if self.is(flag::PROBE) && self.wnd == 0 {
            1
        } else {
            let paced = if self.pipe() == 0 { self.cwnd } else { self.cwnd.saturating_sub(self.pipe()) };
            self.wnd.saturating_sub(offset).min(paced)
        };
        if allowed == 0 || (offset > 0 && allowed < missing.min(self.mss.into())) {
            return None;
        }
        // The end of the data has a place of its own; while there is none, new data follows in the same frame.
        let fin = u32::from(self.is(flag::FIN_SENT) && to == self.snd_nxt);
        let at = wire::headers_len(ends.guest.ip) + HEADER;
        let is_open = to == self.snd_nxt && !self.is(flag::FIN_SENT);
        let data = if is_open { missing.max(allowed) } else { missing - fin } as usize;
        let most = data.min(self.frame_most(at)).min(allowed as usize);
        let most = if most < data { whole(most, self.mss) } else { most };
        let len = if most == 0 { 0 } else { self.look(core, from, &mut room.frame()[at..at + most]).ok()? };
        if most > 0 && len == 0 {
            return None;
        }
        self.flags &= !flag::PROBE;
        self.resent = self.resent.saturating_add(1);
        self.restart_clock(core.now_ms);
        self.timed_off();
        let ends_here = fin == 1 && len as u32 == missing - 1;
        self.again = from.wrapping_add(len as u32 + u32::from(ends_here));
        self.again_to = later(self.again_to, self.again);
        self.snd_nxt = later(self.snd_nxt, self.again);
        if self.again == self.again_to {
            self.again_ended = self.snd_nxt;
        }
        let flags = ACK | if len > 0 { PSH } else { 0 } | if ends_here { FIN } else { 0 };
        let fields = Fields { seq: from, ack: self.rcv_nxt, flags, window: self.window(core) };
        self.said_ack();
        Some(self.payload(ends, core, room, &fields, len))
    }

    /// Look at the socket's data from `from` on.
    fn look(&mut self, core: &mut Core, from: u32, out: &mut [u8]) -> io::Result<usize> {
        let Some(socket) = &self.socket else { return Err(io::ErrorKind::WouldBlock.into()) };
        let offset = from.wrapping_sub(self.snd_una) as usize;
        if !core.peek_off {
            return self.or_the_end(socket.peek_behind(offset, &mut core.waste, out));
        }
        if offset != 0 && !self.is(flag::PEEKS) {
            self.flags |= flag::PEEKS;
            self.peeked = from.wrapping_add(1); // whatever it is now
        }
        if self.is(flag::PEEKS) && self.peeked != from {
            socket.peek_from(offset);
            self.peeked = from;
        }
        let len = self.or_the_end(socket.peek(out))?;
        self.peeked = from.wrapping_add(len as u32);
        Ok(len)
    }

    /// Nothing more will come where the far end has said its last, whatever the socket says.
    fn or_the_end(&self, looked: io::Result<usize>) -> io::Result<usize> {
        match looked {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock && self.is(flag::FAR_ENDED) => Ok(0),
            other => other,
        }
    }

    /// The number for a segment without data. Beyond its window, where a probe has gone, the guest would not even read the ACK.
    pub fn acceptable(&self) -> u32 {
        let end = self.snd_una.wrapping_add(self.wnd);
        if self.state == State::Open && before(end, self.snd_nxt) { end } else { self.snd_nxt }
    }

    /// A segment that goes out acknowledges as well; but what lies beyond a hole is said by an ACK alone.
    fn said_ack(&mut self) {
        if !self.has_hole() {
            self.flags &= !flag::SAY_ACK;
        }
    }

    /// The most bytes of payload for one frame: whole segments of the guest's, but for its last.
    fn frame_most(&self, at: usize) -> usize {
        let most = PACKET_MOST - (at - crate::frame::HEADER);
        let mss = usize::from(self.mss);
        (most / mss).min(2000) * mss
    }

    fn data(&mut self, core: &mut Core, ends: &Ends, room: &mut Room) -> Option<usize> {
        if !self.is(flag::READABLE) {
            return None;
        }
        let (flight, mut usable) = (self.flight(), self.usable());
        if self.is(flag::PROBE) && flight == 0 {
            self.flags &= !flag::PROBE;
            usable = usable.max(1);
        }
        if usable == 0 && flight == 0 {
            if !self.is(flag::STALLED) {
                self.flags |= flag::STALLED;
                self.restart_clock(core.now_ms);
            }
            return None;
        }
        if usable < self.mss.into() && flight > 0 {
            return None; // no silly windows: RFC 9293, 3.8.6.2.1
        }
        let at = wire::headers_len(ends.guest.ip) + HEADER;
        let want = whole(usable as usize, self.mss).min(self.frame_most(at));
        let before = self.snd_nxt;
        let len = match self.look(core, before, &mut room.frame()[at..at + want]) {
            Ok(0) if self.is(flag::FIN_SENT) => {
                self.flags &= !flag::READABLE;
                return None;
            }
            Ok(0) => return Some(self.fin(core, ends, room)),
            Ok(len) => {
                if len < want && self.is_tcp && !self.is(flag::BEHIND) {
                    self.flags &= !flag::READABLE; // that was all: what comes is told anew (epoll(7))
                }
                len
            }
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {
                self.flags &= !flag::READABLE;
                return None;
            }
            Err(_) => {
                self.socket = None;
                self.flags |= flag::SAY_RST;
                return None;
            }
        };
        // What was complete before it was looked at, and was less than there was room for, is the last: its end goes with it.
        let is_last = self.is(flag::COMPLETE) && len < want && len <= self.mss.into();
        if is_last {
            self.ended();
        }
        let end = if is_last { FIN } else { 0 };
        let fields = Fields { seq: before, ack: self.rcv_nxt, flags: ACK | PSH | end, window: self.window(core) };
        self.snd_nxt = before.wrapping_add(len as u32 + u32::from(is_last));
        self.flags &= !flag::STALLED;
        self.said_ack();
        self.sent(core, before);
        Some(self.payload(ends, core, room, &fields, len))
    }

    /// The socket's data is at its end, and the guest is told so now.
    fn ended(&mut self) {
        self.flags = (self.flags | flag::FIN_SENT) & !(flag::READABLE | flag::STALLED);
        if self.is(flag::GUEST_FIN) {
            self.flags |= flag::KNOWN;
        }
    }

    /// All of the socket's data was sent: what remains is its end.
    fn fin(&mut self, core: &mut Core, ends: &Ends, room: &mut Room) -> usize {
        self.ended();
        let before = self.snd_nxt;
        let fields = Fields { seq: before, ack: self.rcv_nxt, flags: ACK | FIN, window: self.window(core) };
        self.snd_nxt = before.wrapping_add(1);
        self.said_ack();
        self.sent(core, before);
        self.segment(ends, core, room, &fields, 0, 0)
    }

    fn ack(&mut self, core: &mut Core, ends: &Ends, room: &mut Room) -> usize {
        let repeated = !self.is(flag::SAY_ACK) && self.more_acks > 0;
        let window = if repeated {
            self.more_acks -= 1; // the guest counts only what says the very same
            self.told()
        } else {
            self.window(core)
        };
        let seq = if self.is(flag::KEEPALIVE) { self.snd_una.wrapping_sub(1) } else { self.acceptable() };
        let mut options = 0;
        if self.has_hole() {
            let at = wire::headers_len(ends.guest.ip) + HEADER;
            let blocks = self.held.blocks(self.rcv_nxt);
            let frame = room.frame();
            frame[at..at + 4].copy_from_slice(&[1, 1, 5, 2 + 8 * blocks.len() as u8]); // RFC 2018, 3
            options = 4;
            for (from, to) in blocks {
                put32(frame, at + options, from);
                put32(frame, at + options + 4, to);
                options += 8;
            }
        }
        self.flags &= !(flag::SAY_ACK | flag::KEEPALIVE);
        self.segment(ends, core, room, &Fields { seq, ack: self.rcv_nxt, flags: ACK, window }, options, 0)
    }

    /// Is there more room to tell of than was told? An ACK that says nothing new is a sign of loss to the guest.
    fn opens(&mut self, core: &mut Core) -> bool {
        let told = self.rcv_edge;
        if self.is(flag::SAY_WINDOW) {
            self.window(core);
        }
        self.rcv_edge != told
    }

    /// The window as it is told now: what the socket has room for, and never less than was told before. It is reckoned
    /// anew once a quarter of it is used up, and each time where the socket is not nearly empty.
    fn window(&mut self, core: &mut Core) -> u16 {
        let scale = self.scale();
        self.flags &= !flag::SAY_WINDOW;
        let left = self.rcv_edge.wrapping_sub(self.rcv_nxt);
        if let Some(socket) = &self.socket
            && !self.is(flag::GUEST_FIN)
            && left <= self.ample
        {
            let (room, size) = socket.room();
            let window = (room / 4 * 3).saturating_sub(self.pending as usize).min(65_535 << scale);
            // A window below a segment is none: RFC 9293, 3.8.6.2.2.
            let window = if window < 2048.min(size / 4) { 0 } else { window as u32 };
            let edge = self.rcv_nxt.wrapping_add(window >> scale << scale);
            if edge.wrapping_sub(self.rcv_edge) as i32 > 0 {
                self.rcv_edge = edge;
            }
            let left = self.rcv_edge.wrapping_sub(self.rcv_nxt);
            self.ample = if (window as usize) < size / 2 { u32::MAX } else { left / 4 * 3 };
            if (window as usize) < (size / 5).min(65_535 << scale) && !self.is(flag::LOW) {
                self.flags |= flag::LOW | flag::ROOMY;
                core.watch_room(socket, self.token);
            }
        }
        self.told()
    }

    /// The window up to the edge that was told, rounded up lest that move back.
    fn told(&self) -> u16 {
        self.rcv_edge.wrapping_sub(self.rcv_nxt).div_ceil(1 << self.scale()).min(65_535) as u16
    }

    /// Write a segment with the payload that is in the room already.
    fn payload(&mut self, ends: &Ends, core: &Core, room: &mut Room, fields: &Fields, len: usize) -> usize {
        let end = self.segment(ends, core, room, fields, 0, len);
        if len > self.mss.into() {
            let start = wire::headers_len(ends.guest.ip);
            let is_v4 = wire::v4(ends.guest.ip).is_some();
            room.offload(VnetHeader {
                flags: crate::offload::NEEDS_CSUM,
                gso_type: if is_v4 { GSO_TCPV4 } else { GSO_TCPV6 },
                hdr_len: (start + HEADER) as u16,
                gso_size: self.mss,
                csum_start: start as u16,
                csum_offset: CHECKSUM as u16,
            });
        }
        end
    }

    /// Write the headers before options, or before `len` bytes of payload, that are in the room already.
    fn segment(&self, ends: &Ends, core: &Core, room: &mut Room, fields: &Fields, options: usize, len: usize) -> usize {
        let way = self.way(core, ends);
        header(room, &way, (ends.far.port, ends.guest.port), fields, options, options + len)
    }
}

/// As much of `len` as is whole segments, if it is more than one.
fn whole(len: usize, mss: u16) -> usize {
    let mss = usize::from(mss);
    if len > mss { len - len % mss } else { len }
}

fn header(room: &mut Room, way: &Way, ports: (u16, u16), fields: &Fields, options: usize, len: usize) -> usize {
    let start = wire::headers(room.frame(), way, TCP, TTL, HEADER + len);
    let tcp = &mut room.frame()[start..start + HEADER];
    put16(tcp, 0, ports.0);
    put16(tcp, 2, ports.1);
    put32(tcp, 4, fields.seq);
    put32(tcp, 8, fields.ack);
    tcp[12] = (((HEADER + options) / 4) << 4) as u8;
    tcp[13] = fields.flags;
    put16(tcp, 14, fields.window);
    put32(tcp, 16, 0);
    let pseudo = wire::pseudo(way.source, way.destination, TCP, HEADER + len);
    room.partial(start, CHECKSUM, pseudo, VnetHeader { gso_type: GSO_NONE, ..VnetHeader::default() });
    start + HEADER + len
}

/// Write a RST of a flow that was at these numbers.
pub fn end(room: &mut Room, way: &Way, ports: (u16, u16), seq: u32, ack: u32) -> usize {
    header(room, way, ports, &Fields { seq, ack, flags: RST | ACK, window: 0 }, 0, 0)
}

/// Write a RST that belongs to no flow (RFC 9293, 3.10.7.1).
pub fn reset(room: &mut Room, way: &Way, ports: (u16, u16), segment: &Segment) -> usize {
    let fields = if segment.flags & ACK != 0 {
        Fields { seq: segment.ack, ack: 0, flags: RST, window: 0 }
    } else {
        Fields { seq: 0, ack: segment.seq.wrapping_add(segment.space()), flags: RST | ACK, window: 0 }
    };
    header(room, way, ports, &fields, 0, 0)
}
