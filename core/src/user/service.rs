//! The network of a service: it owns the service's addresses and nothing beyond them.
//!
//! What the engine does for a user-mode network it does here too: ARP, neighbour discovery, echo, fragments, checksums,
//! and connections to the service's TCP ports (`guestfwd`). Datagrams for its UDP ports wait in the *inbox* until Python
//! takes them, all at once; super-datagrams are cut first. What Python answers waits in the *outbox* until the loop
//! reads the port, and is written straight into a lane: whole, or a fragment at a time. There is no system call and no
//! allocation for a datagram on this side.
//!
//! A datagram to a unicast address whose hardware address is not known waits while the address is asked for, three
//! times; so few may wait that an absent peer costs the others nothing. Both boxes are bounded; a frame that meets a
//! full inbox is refused (`tx_full`), a datagram that meets a full outbox is dropped by the caller.

use std::collections::VecDeque;
use std::net::Ipv6Addr;

use super::config::{Config, is_group};
use super::flows::Endpoint;
use super::icmp::{self, Trouble};
use super::timer::Alarm;
use super::udp::{CHECKSUM, Datagram, HEADER};
use super::wire::{self, BROADCAST, Mac, Packet, Room, UDP, Way, put16, v4};
use super::{Arrival, Fate, Network, kind, ndp};
use crate::offload::VnetHeader;

const DATAGRAMS: usize = 4096;
const BYTES: usize = 4 << 20;
const TTL: u8 = 64;
/// Datagrams that wait until their peer's hardware address is known, how often it is asked for, and after how long.
const WAITING: usize = 64;
const TRIES: u8 = 3;
const ASK_MS: u64 = 1000;
/// The longest payload of a datagram: RFC 768 within RFC 791.
const PAYLOAD_MOST: usize = 65_507;

/// What the engine is told of a service.
#[derive(Debug, Clone)]
pub struct Service {
    /// First and last of each range of ports.
    pub udp: Vec<(u16, u16)>,
    /// Multicast groups whose datagrams are for it.
    pub groups: Vec<Ipv6Addr>,
    /// Broadcasts are for it.
    pub broadcast: bool,
    /// Its address on the link; unspecified where it has no IPv6.
    pub link_local: Ipv6Addr,
    /// It tells everybody where it is, as it starts; a companion does not, whose port does it.
    pub announce: bool,
}

impl Service {
    pub fn serves(&self, port: u16) -> bool {
        self.udp.iter().any(|&(first, last)| (first..=last).contains(&port))
    }
}

/// A datagram that came.
pub struct Incoming {
    pub peer: Endpoint,
    pub local: Endpoint,
    pub mac: Mac,
    start: usize,
    len: usize,
}

/// Datagrams that Python has not taken yet.
#[derive(Default)]
pub struct Inbox {
    datagrams: Vec<Incoming>,
    bytes: Vec<u8>,
}

impl Inbox {
    pub fn datagrams(&self) -> impl Iterator<Item = (&Incoming, &[u8])> {
        self.datagrams.iter().map(|one| (one, &self.bytes[one.start..one.start + one.len]))
    }

    pub fn clear(&mut self) {
        self.datagrams.clear();
        self.bytes.clear();
    }

    fn has_room(&self, count: usize, len: usize) -> bool {
        self.datagrams.len() + count <= DATAGRAMS && self.bytes.len() + len <= BYTES
    }
}

/// A datagram of the service's. Without a hardware address it goes where the peer was last heard.
pub struct Answer<'a> {
    pub payload: &'a [u8],
    pub peer: Endpoint,
    pub local: Endpoint,
    pub mac: Option<Mac>,
}

/// A datagram on its way out.
struct Outgoing {
    way: Way,
    from: u16,
    to: u16,
    /// Where its payload begins in the bytes.
    start: usize,
    len: usize,
    /// Bytes that went as fragments, the header of UDP among them.
    done: usize,
    id: u32,
}

#[derive(Default)]
struct Outbox {
    datagrams: VecDeque<Outgoing>,
    bytes: Vec<u8>,
    listed: bool,
}

struct Waiting {
    peer: Endpoint,
    local: Endpoint,
    payload: Vec<u8>,
    tries: u8,
}

/// What a service has beside what every network has.
#[derive(Default)]
pub struct Boxes {
    pub inbox: Inbox,
    outbox: Outbox,
    waiting: Vec<Waiting>,
    alarm: Alarm,
    /// Datagrams whose peer did not answer, or is not on the link.
    pub unresolved: u64,
}

impl Network {
    /// Take a datagram for the service.
    ///
    /// # Safety
    /// The frame is readable.
    pub(super) unsafe fn take_datagram(&mut self, arrival: &Arrival, packet: &Packet, is_group: bool) -> Fate {
        // SAFETY: as the caller promises.
        let Some(Datagram { from, to, len, cut }) = (unsafe { Datagram::read(arrival, packet) }) else { return Fate::Taken };
        let Some(service) = &self.core.config.service else { return Fate::Taken };
        if !service.serves(to) {
            if !is_group && let Some(net) = self.core.config.subnet(packet.source).copied() {
                // SAFETY: as the caller promises.
                let first = unsafe { arrival.copy(packet.transport, packet.end.min(packet.transport + 64)) };
                icmp::error(&mut self.core, net.host, packet.source, packet.destination, arrival.mac, UDP, &first, Trouble::NoPort);
            }
            return Fate::Taken;
        }
        let payload = len - HEADER;
        let size = if cut == 0 { payload.max(1) } else { cut.into() };
        let inbox = &mut self.boxes.inbox;
        if !inbox.has_room(payload.div_ceil(size).max(1), payload) {
            return Fate::Full;
        }
        let begin = inbox.bytes.len();
        inbox.bytes.resize(begin + payload, 0);
        let at = arrival.at.wrapping_add(packet.transport + HEADER);
        // SAFETY: the payload is within the packet, and that within the frame; the bytes were just made room for.
        unsafe { std::ptr::copy_nonoverlapping(at, inbox.bytes[begin..].as_mut_ptr(), payload) };
        let mut start = begin;
        loop {
            let len = size.min(begin + payload - start);
            inbox.datagrams.push(Incoming {
                peer: Endpoint { ip: packet.source, port: from },
                local: Endpoint { ip: packet.destination, port: to },
                mac: arrival.mac,
                start,
                len,
            });
            start += len;
            if start == begin + payload {
                return Fate::Taken;
            }
        }
    }

    pub fn has_datagrams(&self) -> bool {
        !self.boxes.inbox.datagrams.is_empty()
    }

    /// Send a datagram, or keep it until its peer's hardware address is known; false where there is no room for it.
    pub fn answer(&mut self, answer: &Answer) -> Result<bool, &'static str> {
        let Some(service) = &self.core.config.service else { return Err("no service") };
        let Answer { payload, peer, local, mac } = *answer;
        if !service.serves(local.port) {
            return Err("a datagram from a port that is not the service's");
        }
        if peer.port == 0 || v4(peer.ip).is_some() != v4(local.ip).is_some() || peer.ip.is_unspecified() {
            return Err("a datagram to nobody");
        }
        if payload.len() > PAYLOAD_MOST {
            return Err("a datagram longer than 65,507 bytes");
        }
        let local = Endpoint { ip: self.sender(local.ip, peer.ip).ok_or("a datagram from an address that is not the service's")?, ..local };
        self.core.look_at_clock();
        match mac.or_else(|| group_mac(peer.ip, &self.core.config)).or_else(|| self.core.neighbours.find(peer.ip)) {
            Some(mac) => Ok(self.put(payload, peer, local, mac)),
            None => Ok(self.keep(payload, peer, local)),
        }
    }

    /// The address of ours that answers what came to `local`, which may be a group's.
    fn sender(&self, local: Ipv6Addr, peer: Ipv6Addr) -> Option<Ipv6Addr> {
        let config = &self.core.config;
        if config.is_host(local) {
            return Some(local);
        }
        let is_link_local = v4(peer).is_none() && peer.segments()[0] & 0xffc0 == 0xfe80;
        if is_group(local) || config.hears(local) {
            return if is_link_local { Some(config.router()) } else { config.subnet(peer).map(|net| net.host) };
        }
        None
    }

    fn put(&mut self, payload: &[u8], peer: Endpoint, local: Endpoint, mac: Mac) -> bool {
        let way = self.core.way(local.ip, peer.ip, mac);
        let id = self.core.next_packet_id();
        let outbox = &mut self.boxes.outbox;
        if outbox.bytes.len() + payload.len() > BYTES {
            outbox.close_up();
        }
        if outbox.datagrams.len() >= DATAGRAMS || outbox.bytes.len() + payload.len() > BYTES {
            return false;
        }
        let start = outbox.bytes.len();
        outbox.bytes.extend_from_slice(payload);
        outbox.datagrams.push_back(Outgoing { way, from: local.port, to: peer.port, start, len: payload.len(), done: 0, id });
        if !outbox.listed {
            outbox.listed = true;
            self.core.due.push_back(u64::from(kind::ANSWERS) << 56);
        }
        true
    }

    /// Ask for a peer, and have the datagram wait for the answer.
    fn keep(&mut self, payload: &[u8], peer: Endpoint, local: Endpoint) -> bool {
        if !self.core.config.is_guest(peer.ip) {
            self.boxes.unresolved += 1; // beyond the link, and there is no router
            return true;
        }
        if self.boxes.waiting.len() >= WAITING {
            return false;
        }
        self.core.ask_for(peer.ip);
        self.boxes.waiting.push(Waiting { peer, local, payload: payload.to_vec(), tries: 1 });
        self.boxes.alarm.set(&mut self.core.wheel, u64::from(kind::WAITING) << 56, self.core.now_ms + ASK_MS);
        true
    }

    /// A peer's hardware address became known.
    pub(super) fn answer_again(&mut self, peer: Ipv6Addr, mac: Mac) {
        if self.boxes.waiting.is_empty() {
            return;
        }
        let (ready, waiting) = std::mem::take(&mut self.boxes.waiting).into_iter().partition(|one| one.peer.ip == peer);
        self.boxes.waiting = waiting;
        let ready: Vec<Waiting> = ready;
        for one in ready {
            self.put(&one.payload, one.peer, one.local, mac);
        }
    }

    pub(super) fn ask_again(&mut self, token: u64) {
        let now_ms = self.core.now_ms;
        if !self.boxes.alarm.rings(&mut self.core.wheel, token, now_ms) {
            return;
        }
        let before = self.boxes.waiting.len();
        self.boxes.waiting.retain(|one| one.tries < TRIES);
        self.boxes.unresolved += (before - self.boxes.waiting.len()) as u64;
        for index in 0..self.boxes.waiting.len() {
            self.boxes.waiting[index].tries += 1;
            self.core.ask_for(self.boxes.waiting[index].peer.ip);
        }
        if !self.boxes.waiting.is_empty() {
            self.boxes.alarm.set(&mut self.core.wheel, token, now_ms + ASK_MS);
        }
    }

    /// Forget where an address was heard, and ask who has it.
    pub fn seek(&mut self, address: Ipv6Addr) {
        self.core.look_at_clock();
        self.core.neighbours.forget(address);
        self.core.ask_for(address);
    }

    /// Who was last heard to have an address?
    pub fn found(&self, address: Ipv6Addr) -> Option<Mac> {
        self.core.neighbours.find(address)
    }

    /// Write the next datagram, or the next fragment of it.
    pub(super) fn say_answer(&mut self, room: &mut Room) -> Option<usize> {
        let mtu = self.core.config.mtu_or_default();
        let outbox = &mut self.boxes.outbox;
        outbox.listed = false;
        let one = outbox.datagrams.front_mut()?;
        let payload = &outbox.bytes[one.start..one.start + one.len];
        let start = wire::headers_len(one.way.destination);
        let whole = start - crate::frame::HEADER + HEADER + payload.len() <= mtu;
        let len = if whole { one.write(payload, start, room) } else { one.write_fragment(payload, start, mtu, room) };
        if whole || one.done == HEADER + one.len {
            outbox.datagrams.pop_front();
        }
        if outbox.datagrams.is_empty() {
            outbox.bytes.clear();
        } else {
            outbox.listed = true;
            self.core.due.push_back(u64::from(kind::ANSWERS) << 56);
        }
        Some(len)
    }
}

/// Where a datagram to a group goes.
fn group_mac(peer: Ipv6Addr, config: &Config) -> Option<Mac> {
    match v4(peer) {
        Some(ip) if ip.is_multicast() => {
            let [_, b, c, d] = ip.octets();
            Some([1, 0, 0x5e, b & 0x7f, c, d]) // RFC 1112, 6.4
        }
        Some(_) => config.is_broadcast(peer).then_some(BROADCAST),
        None => is_group(peer).then(|| ndp::group_mac(peer)),
    }
}

impl Outbox {
    /// Free the room of what has gone; at least half of the bytes, so that it does not happen often.
    fn close_up(&mut self) {
        let gone = self.datagrams.front().map_or(0, |front| front.start);
        if gone >= BYTES / 2 {
            self.bytes.drain(..gone);
            self.datagrams.iter_mut().for_each(|one| one.start -= gone);
        }
    }
}

impl Outgoing {
    fn header(&self, header: &mut [u8]) {
        put16(header, 0, self.from);
        put16(header, 2, self.to);
        put16(header, 4, (HEADER + self.len) as u16);
        put16(header, CHECKSUM, 0);
    }

    fn write(&self, payload: &[u8], start: usize, room: &mut Room) -> usize {
        let len = HEADER + payload.len();
        wire::headers(room.frame(), &self.way, UDP, TTL, len);
        self.header(&mut room.frame()[start..start + HEADER]);
        room.frame()[start + HEADER..start + len].copy_from_slice(payload);
        room.partial(start, CHECKSUM, wire::pseudo(self.way.source, self.way.destination, UDP, len), VnetHeader::default());
        start + len
    }

    /// Each fragment but the last carries a multiple of eight bytes.
    fn write_fragment(&mut self, payload: &[u8], start: usize, mtu: usize, room: &mut Room) -> usize {
        let is_v4 = v4(self.way.destination).is_some();
        let extra = if is_v4 { 0 } else { 8 };
        let most = (mtu - (start - crate::frame::HEADER) - extra) / 8 * 8;
        let whole = HEADER + payload.len();
        let (done, part) = (self.done, most.min(whole - self.done));
        let more = done + part < whole;
        let frame = room.frame();
        let at = wire::fragment_headers(frame, &self.way, UDP, TTL, part, done, more, self.id);
        let mut out = &mut frame[at..at + part];
        if done == 0 {
            // An mtu has room for IP's header and eight bytes at least.
            let (header, rest) = out.split_at_mut(HEADER);
            self.header(header);
            let sum = wire::pseudo(self.way.source, self.way.destination, UDP, whole).bytes(header).bytes(payload).checksum();
            put16(header, CHECKSUM, if sum == 0 { 0xffff } else { sum });
            out = rest;
        }
        let from = done.max(HEADER) - HEADER;
        out.copy_from_slice(&payload[from..from + out.len()]);
        self.done += part;
        at + part
    }
}
