//! What a guest sends: its headers are copied once and judged, then the part of the network that it is for takes it.

use super::flows::{Endpoint, Ends};
use super::tcp::State;
use super::wire::{self, Mac, Packet};
use super::{Network, arp, icmp, ndp, segment};
use crate::frame;
use crate::offload::{DATA_VALID, GSO_NONE, NEEDS_CSUM, VnetHeader};
use crate::port::{Piece, Refusal};
use crate::ports::{Cause, Cell, Counter, Port};
use crate::switch::Edit;

/// What became of a frame of a guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    Taken,
    /// It wanted a flow, and there was none to be had.
    Lost(Cause),
    HandOver(Port),
    /// The service has not yet taken what came before.
    Full,
}

/// A frame of a guest: its headers in a copy, its bytes where they lie.
pub(super) struct Arrival<'a> {
    pub(super) head: &'a [u8],
    /// The frame in memory that another process may be changing.
    pub(super) at: *const u8,
    pub(super) len: usize,
    pub(super) vnet: VnetHeader,
    pub(super) mac: Mac,
}

impl Arrival<'_> {
    /// Copy a part of the frame.
    ///
    /// # Safety
    /// The frame is readable.
    pub(super) unsafe fn copy(&self, from: usize, to: usize) -> Vec<u8> {
        let mut bytes = vec![0u8; to.min(self.len).saturating_sub(from)];
        // SAFETY: within the frame, as the length is.
        unsafe { std::ptr::copy_nonoverlapping(self.at.add(from), bytes.as_mut_ptr(), bytes.len()) };
        bytes
    }

    /// Is the transport's checksum right, or to be believed?
    ///
    /// # Safety
    /// The frame is readable, and `packet` was read from it.
    pub(super) unsafe fn is_sound(&self, packet: &Packet) -> bool {
        if self.vnet.flags & (NEEDS_CSUM | DATA_VALID) != 0 || self.vnet.gso_type != GSO_NONE {
            return true;
        }
        // SAFETY: the packet ends within the frame.
        let sum = unsafe { wire::sum_at(packet.pseudo(), self.at.add(packet.transport), packet.payload_len()) };
        sum.checksum() == 0
    }
}

impl Network {
    /// Take a frame of a guest.
    ///
    /// # Safety
    /// The piece is readable, with its virtio-net header before it. Its memory may be changed by another process.
    pub unsafe fn send(&mut self, piece: &Piece, cell: &Cell) -> Result<(), Refusal> {
        if self.moving.is_frozen {
            return Err(Refusal::Drop(Cause::TxDown));
        }
        let skip = match piece.edit {
            Edit::Keep => 0,
            Edit::Strip => frame::TAG,
            Edit::Insert(_) | Edit::Name(_) => return Err(Refusal::Drop(Cause::TxError)), // no tags in here
        };
        let mut head = [0u8; wire::HEAD];
        let (top, top_len, rest) = piece.top();
        let len = piece.len - skip;
        let copied = len.min(wire::HEAD);
        head[..top_len].copy_from_slice(&top[..top_len]);
        // SAFETY: `rest + copied - top_len` is at most the frame's length.
        unsafe { std::ptr::copy_nonoverlapping(piece.frame.add(rest), head[top_len..].as_mut_ptr(), copied - top_len) };
        let vnet = piece.vnet_out();
        self.core.look_at_clock();
        // Past the two addresses, which are read from the copy only, the frame lies `skip` bytes further on.
        let at = piece.frame.wrapping_add(skip);
        let mac = wire::mac(&head, 6).unwrap_or_default();
        // SAFETY: as the caller promises.
        match unsafe { self.take(&Arrival { head: &head[..copied], at, len, vnet, mac }) } {
            Fate::Taken => {}
            Fate::HandOver(port) => return Err(Refusal::HandOver(port)),
            Fate::Full => return Err(Refusal::Blocked),
            Fate::Lost(cause) => return Err(Refusal::Drop(cause)),
        }
        cell.add(Counter::TxFrames, 1);
        cell.add(Counter::TxBytes, len as u64);
        if vnet.gso_type != GSO_NONE {
            cell.add(Counter::TxSuper, 1);
        }
        Ok(())
    }

    /// Is the log to have it that a frame was dropped for this? Guests of a service are told nothing of it, and nor is anybody else.
    pub fn is_news(&mut self, cause: Cause) -> bool {
        self.core.config.service.is_none() && self.told.is_due(cause, self.core.now_ms)
    }

    /// The frame to hand over, where it is not the one that came.
    pub fn take_whole(&mut self) -> Option<Vec<u8>> {
        self.whole.take()
    }

    /// # Safety
    /// The frame is readable.
    unsafe fn take(&mut self, arrival: &Arrival) -> Fate {
        let Some(to) = wire::mac(arrival.head, 0) else { return Fate::Taken };
        if !self.core.config.takes(to) {
            return Fate::Taken;
        }
        match frame::be16(arrival.head, 12) {
            Some(arp::ETHERTYPE) => {
                let introduced = arp::input(&mut self.core, arrival.head);
                let answered = arp::answered(arrival.head);
                self.meet_and_tell(introduced, answered.is_some());
                let asker = answered.and_then(|asker| self.core.config.asked_by(asker));
                asker.map_or(Fate::Taken, Fate::HandOver)
            }
            Some(frame::IPV4 | frame::IPV6) => {
                let Some(packet) = wire::packet(arrival.head, arrival.len) else { return Fate::Taken };
                // SAFETY: as the caller promises.
                unsafe { self.take_packet(arrival, &packet, to[0] & 1 == 1) }
            }
            _ => Fate::Taken,
        }
    }

    /// # Safety
    /// The frame is readable.
    unsafe fn take_packet(&mut self, arrival: &Arrival, packet: &Packet, is_group: bool) -> Fate {
        if packet.protocol == wire::ICMPV6 && !packet.is_v4() && packet.fragment.is_none() {
            // SAFETY: as the caller promises. Neighbour discovery comes before the source has an address.
            return unsafe { self.take_icmp(arrival, packet) };
        }
        let config = &self.core.config;
        let is_for_us =
            if is_group { config.hears(packet.destination) } else { config.service.is_none() || config.owns(packet.destination) };
        if !is_for_us || !config.may_speak(packet.source, is_group) {
            return Fate::Taken;
        }
        if config.is_guest(packet.source) {
            self.meet(Some((packet.source, arrival.mac)));
        }
        if let Some(fragment) = packet.fragment {
            // SAFETY: as the caller promises.
            let frame = unsafe { arrival.copy(0, packet.end) };
            let Some(mut whole) = self.reassembly.add(packet, fragment, &frame, self.core.now_ms) else { return Fate::Taken };
            whole[..12].copy_from_slice(&arrival.head[..12]);
            let Some(packet) = wire::packet(&whole, whole.len()) else { return Fate::Taken };
            let head = &whole[..whole.len().min(wire::HEAD)];
            let arrival = Arrival { head, at: whole.as_ptr(), len: whole.len(), vnet: VnetHeader::default(), mac: arrival.mac };
            // SAFETY: `whole` lives through the call.
            let fate = unsafe { self.take_transport(&arrival, &packet, is_group) };
            if matches!(fate, Fate::HandOver(_)) {
                self.whole = Some(whole);
            }
            return fate;
        }
        // SAFETY: as the caller promises.
        unsafe { self.take_transport(arrival, packet, is_group) }
    }

    /// # Safety
    /// The frame is readable.
    unsafe fn take_transport(&mut self, arrival: &Arrival, packet: &Packet, is_group: bool) -> Fate {
        if let Some(port) = self.core.config.handed_to(arrival.head, packet) {
            return Fate::HandOver(port);
        }
        if !is_group && let Some(port) = self.core.config.spread.elsewhere(arrival.head) {
            return Fate::HandOver(port);
        }
        let is_service = self.core.config.service.is_some();
        // SAFETY: as the caller promises.
        unsafe {
            match packet.protocol {
                wire::UDP if is_service => return self.take_datagram(arrival, packet, is_group),
                _ if is_group => {}
                wire::TCP => return self.take_tcp(arrival, packet),
                wire::UDP => return self.take_udp(arrival, packet),
                wire::ICMP if packet.is_v4() => return self.take_icmp(arrival, packet),
                wire::ICMPV6 if !packet.is_v4() => return self.take_icmp(arrival, packet),
                _ => {}
            }
        }
        Fate::Taken
    }

    /// # Safety
    /// The frame is readable.
    unsafe fn take_icmp(&mut self, arrival: &Arrival, packet: &Packet) -> Fate {
        let is_v4 = packet.is_v4();
        // SAFETY: as the caller promises.
        let message = unsafe { arrival.copy(packet.transport, packet.end) };
        let sum = if is_v4 { crate::offload::Sum::default() } else { packet.pseudo() };
        if message.len() < 8 || sum.bytes(&message).checksum() != 0 {
            return Fate::Taken;
        }
        if !is_v4 && (ndp::ROUTER_SOLICITATION..=ndp::ADVERTISEMENT).contains(&message[0]) {
            let introduced = ndp::input(&mut self.core, packet, arrival.mac, &message);
            let is_answer = message[0] == ndp::ADVERTISEMENT;
            self.meet_and_tell(introduced, is_answer);
            let asker = is_answer.then(|| self.core.config.asked_by(packet.destination)).flatten();
            return asker.map_or(Fate::Taken, Fate::HandOver);
        }
        if message[0] != if is_v4 { icmp::ECHO } else { icmp::ECHO_V6 } || !self.core.config.may_speak(packet.source, false) {
            return Fate::Taken;
        }
        if self.core.config.is_guest(packet.source) {
            self.meet(Some((packet.source, arrival.mac)));
        }
        if self.core.config.owns(packet.destination) {
            icmp::echo(&mut self.core, packet, arrival.mac, &message);
        } else if self.core.config.service.is_none() {
            return self.take_ping(arrival, packet, &message);
        }
        Fate::Taken
    }

    /// # Safety
    /// The frame is readable.
    unsafe fn take_tcp(&mut self, arrival: &Arrival, packet: &Packet) -> Fate {
        let Some(segment) = segment::Segment::read(arrival.head, packet, arrival.at) else { return Fate::Taken };
        // SAFETY: as the caller promises.
        if !unsafe { arrival.is_sound(packet) } {
            return Fate::Taken;
        }
        let ends =
            Ends { guest: Endpoint { ip: packet.source, port: segment.from }, far: Endpoint { ip: packet.destination, port: segment.to } };
        let mut found = self.tcp.find(&ends);
        if let Some(id) = found
            && segment.flags & (segment::SYN | segment::ACK) == segment::SYN
            && self.tcp.get_mut(id).is_some_and(|(_, tcp)| tcp.state == State::Resting)
        {
            self.forget_tcp(id); // the port is used again: RFC 6191
            found = None;
        }
        match found {
            Some(id) => {
                let Some((ends, tcp)) = self.tcp.get_mut(id) else { return Fate::Taken };
                tcp.mac = arrival.mac;
                // SAFETY: the payload is within the frame, which is readable.
                unsafe { tcp.input(&mut self.core, ends, &segment) };
                self.settle_tcp(id);
            }
            None if segment.flags & (segment::SYN | segment::ACK) == segment::SYN => {
                if let Some(lack) = self.open(ends, packet, arrival.mac, &segment) {
                    return Fate::Lost(lack);
                }
            }
            None => self.core.reset_stray(&ends, arrival.mac, &segment),
        }
        Fate::Taken
    }
}
