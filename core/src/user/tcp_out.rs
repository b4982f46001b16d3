//! What a TCP flow says to its guest: at most one frame a call, written into the room that the loop gives.
//!
//! Data goes from the socket straight behind its headers, up to 64 KiB at once: a super-frame, with the guest's MSS as
//! the size of its segments and a partial checksum. What was lost is looked at again in the socket.

use std::io;

use super::Core;
use super::flows::Ends;
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
/// MSS and window scale with its padding.
const OPTIONS: usize = 8;

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
            let seq = self.snd_nxt;
            self.state = State::Gone;
            self.socket = None;
            return Some(self.segment(ends, core, room, &Fields { seq, ack: self.rcv_nxt, flags: RST | ACK, window: 0 }, 0));
        }
        match self.state {
            State::Connecting | State::Gone => None,
            State::Calling | State::Answered => self.is(flag::SAY_SYN).then(|| self.syn(core, ends, room)).flatten(),
            State::Resting => self.is(flag::SAY_ACK).then(|| self.ack(core, ends, room)),
            State::Open => {
                if self.is(flag::RESEND)
                    && let Some(len) = self.resend(core, ends, room)
                {
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
            State::Open => self.is(flag::SAY_ACK | flag::SAY_RST | flag::RESEND) || self.more_acks > 0 || self.may_send(),
            State::Connecting | State::Gone => false,
            State::Answered | State::Calling => self.is(flag::SAY_RST),
            State::Resting => self.is(flag::SAY_ACK | flag::SAY_RST),
        }
    }

    fn may_send(&self) -> bool {
        let ended = self.is(flag::HOST_END) && self.is(flag::FIN_SENT) && self.snd_nxt == self.snd_max;
        self.is(flag::READABLE) && !ended && (self.usable() >= self.mss.into() || (self.flight() == 0 && self.usable() > 0))
    }

    /// What may be sent beyond what is in flight.
    fn usable(&self) -> u32 {
        self.wnd.min(self.cwnd).saturating_sub(self.flight())
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
        let window = self.socket.as_ref().map_or(0, |socket| socket.room().0 * 3 / 4).clamp(1, 65_535);
        if answer {
            self.rcv_edge = self.rcv_nxt.wrapping_add(window as u32);
        }
        let before = self.snd_una;
        let begin = self.snd_una;
        self.snd_nxt = begin.wrapping_add(1);
        self.sent(core, before);
        let options = if self.is(flag::SCALED) { OPTIONS } else { 4 };
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
        frame[at + 4..at + 8].copy_from_slice(&[1, 3, 3, SCALE]); // RFC 7323, 2.2
        Some(self.segment(ends, core, room, &fields, options))
    }

    /// Send the oldest frame's worth of what is in flight again.
    fn resend(&mut self, core: &mut Core, ends: &Ends, room: &mut Room) -> Option<usize> {
        self.flags &= !flag::RESEND;
        let flight = self.flight();
        if flight == 0 {
            return None;
        }
        let data = flight - u32::from(self.is(flag::FIN_SENT) && self.snd_nxt == self.snd_max);
        let at = wire::headers_len(ends.guest.ip) + HEADER;
        let most = self.frame_most(at).min(data as usize).min(self.wnd.max(1) as usize);
        let socket = self.socket.as_ref()?;
        let len = if data == 0 {
            0
        } else {
            if core.peek_off {
                socket.peek_from(0);
            }
            let looked = look(socket, core, 0, &mut room.frame()[at..at + most]);
            if core.peek_off {
                socket.peek_from(data as usize);
            }
            looked.ok()?
        };
        self.resent = self.resent.saturating_add(1);
        self.restart_clock(core.now_ms);
        self.timed_off();
        let fin = if len as u32 == data && data != flight { FIN } else { 0 };
        let fields = Fields { seq: self.snd_una, ack: self.rcv_nxt, flags: ACK | PSH | fin, window: self.window(core) };
        self.flags &= !flag::SAY_ACK;
        Some(self.payload(ends, core, room, &fields, len))
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
        if self.is(flag::PROBE) {
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
        let mss = u32::from(self.mss);
        let want = if usable > mss { usable - usable % mss } else { usable } as usize;
        let want = want.min(self.frame_most(at));
        let socket = self.socket.as_ref()?;
        let len = match look(socket, core, flight as usize, &mut room.frame()[at..at + want]) {
            Ok(0) => return self.fin(core, ends, room),
            Ok(len) => len,
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
        let before = self.snd_nxt;
        if before != self.snd_max {
            self.resent = self.resent.saturating_add(1);
        }
        let fields = Fields { seq: before, ack: self.rcv_nxt, flags: ACK | PSH, window: self.window(core) };
        self.snd_nxt = before.wrapping_add(len as u32);
        self.flags &= !(flag::SAY_ACK | flag::STALLED);
        self.sent(core, before);
        Some(self.payload(ends, core, room, &fields, len))
    }

    /// The socket's data is at its end, and all of it was sent.
    fn fin(&mut self, core: &mut Core, ends: &Ends, room: &mut Room) -> Option<usize> {
        self.flags |= flag::HOST_END;
        if self.is(flag::FIN_SENT) && self.snd_nxt == self.snd_max {
            self.flags &= !flag::READABLE;
            return None;
        }
        self.flags = (self.flags | flag::FIN_SENT) & !(flag::READABLE | flag::SAY_ACK | flag::STALLED);
        let before = self.snd_nxt;
        let fields = Fields { seq: before, ack: self.rcv_nxt, flags: ACK | FIN, window: self.window(core) };
        self.snd_nxt = before.wrapping_add(1);
        self.sent(core, before);
        Some(self.segment(ends, core, room, &fields, 0))
    }

    fn ack(&mut self, core: &mut Core, ends: &Ends, room: &mut Room) -> usize {
        let repeated = !self.is(flag::SAY_ACK) && self.more_acks > 0;
        let window = if repeated {
            self.more_acks -= 1; // the guest counts only what says the very same
            (self.rcv_edge.wrapping_sub(self.rcv_nxt) >> self.scale()).min(65_535) as u16
        } else {
            self.window(core)
        };
        let seq = if self.is(flag::KEEPALIVE) { self.snd_nxt.wrapping_sub(1) } else { self.snd_max };
        self.flags &= !(flag::SAY_ACK | flag::KEEPALIVE);
        self.segment(ends, core, room, &Fields { seq, ack: self.rcv_nxt, flags: ACK, window }, 0)
    }

    /// Is there more room to tell of than was told? An ACK that says nothing new is a sign of loss to the guest.
    fn opens(&mut self, core: &mut Core) -> bool {
        let told = self.rcv_edge;
        if self.is(flag::SAY_WINDOW) {
            self.window(core);
        }
        self.rcv_edge != told
    }

    fn scale(&self) -> u8 {
        if self.is(flag::SCALED) { SCALE } else { 0 }
    }

    /// The window as it is told now: what the socket has room for, and never less than was told before.
    fn window(&mut self, core: &mut Core) -> u16 {
        let scale = self.scale();
        self.flags &= !flag::SAY_WINDOW;
        if let Some(socket) = &self.socket
            && !self.is(flag::GUEST_FIN)
        {
            let (room, size) = socket.room();
            let window = (room / 4 * 3).min(65_535 << scale);
            // A window below a segment is none: RFC 9293, 3.8.6.2.2.
            let window = if window < 2048.min(size / 4) { 0 } else { window as u32 };
            let edge = self.rcv_nxt.wrapping_add(window >> scale << scale);
            if edge.wrapping_sub(self.rcv_edge) as i32 > 0 {
                self.rcv_edge = edge;
            }
            if (window as usize) < (size / 5).min(65_535 << scale) && !self.is(flag::LOW) {
                self.flags |= flag::LOW;
                core.watch_room(socket, self.token);
            }
        }
        // Rounded up, lest the edge move back.
        let window = self.rcv_edge.wrapping_sub(self.rcv_nxt);
        (window.div_ceil(1 << scale)).min(65_535) as u16
    }

    /// Write a segment with the payload that is in the room already.
    fn payload(&mut self, ends: &Ends, core: &Core, room: &mut Room, fields: &Fields, len: usize) -> usize {
        let end = self.segment(ends, core, room, fields, len);
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

    /// Write the headers before `len` bytes (options or payload) that are in the room already.
    fn segment(&self, ends: &Ends, core: &Core, room: &mut Room, fields: &Fields, len: usize) -> usize {
        let way = self.way(core, ends);
        let options = if fields.flags & SYN != 0 { len } else { 0 };
        header(room, &way, (ends.far.port, ends.guest.port), fields, options, len)
    }
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

/// Write a RST that belongs to no flow (RFC 9293, 3.10.7.1).
pub fn reset(room: &mut Room, way: &Way, ports: (u16, u16), segment: &Segment) -> usize {
    let fields = if segment.flags & ACK != 0 {
        Fields { seq: segment.ack, ack: 0, flags: RST, window: 0 }
    } else {
        Fields { seq: 0, ack: segment.seq.wrapping_add(segment.space()), flags: RST | ACK, window: 0 }
    };
    header(room, way, ports, &fields, 0, 0)
}

/// Look at what the socket has behind the first `offset` bytes.
fn look(socket: &Socket, core: &mut Core, offset: usize, out: &mut [u8]) -> io::Result<usize> {
    if core.peek_off { socket.peek(out) } else { socket.peek_behind(offset, &mut core.waste, out) }
}
