//! The user-mode network: what QEMU's `-netdev user` does for one guest, for every guest of a switch, without privileges.
//!
//! A guest's flow is a socket of the host's kernel and nothing else: no TCP stack of our own and no buffers of payload. The
//! engine joins the worker's loop by two calls and one descriptor. `send` takes a frame of a guest: its headers are
//! copied once and judged, its payload goes from where it lies into the socket. `receive` writes the next frame for the
//! guests: a small one that is ready (outbox), else what the next flow of the list `due` has to say, else what the kernel
//! or the clock bring. The descriptor is an epoll instance with all sockets and one timer in it.
//!
//! ```text
//!   send -> arp, icmp, ndp | fragments | tcp | udp | ping        (judged by config)
//!   receive <- outbox <- due flows (tcp_out, udp, ping) <- epoll, wheel
//! ```
//!
//! The frames of services that stand behind the network are not taken: `send` says whose they are (`Refusal::HandOver`). A
//! service has such a network too, of its own addresses only (service.rs).
//!
//! With `shards` a network is several of these (spread.rs).
//!
//! Caps: `max_flows` TCP flows and as many of UDP; one guest has three quarters of them at most, so that the others always
//! have some. Beyond, the newest is refused. What answers a guest's mistakes is rationed (limits.rs).

mod arp;
pub mod config;
mod core;
mod datagram;
mod flows;
mod forward;
mod fragments;
mod held;
mod icmp;
mod ledger;
mod limits;
pub mod listing;
mod migrate;
mod ndp;
mod neighbours;
mod opening;
mod ping;
mod ranges;
mod segment;
pub mod service;
mod shares;
pub mod socket;
pub mod spread;
mod tcp;
mod tcp_clock;
mod tcp_in;
mod tcp_loss;
mod tcp_out;
mod timer;
mod udp;
mod udp_out;
mod wire;

use std::collections::HashMap;
use std::io;
use std::net::Ipv6Addr;
use std::os::fd::{AsRawFd, RawFd};

use crate::frame;
use crate::lane::{FRAME_MOST, VNET_LEN};
use crate::offload::{DATA_VALID, GSO_NONE, NEEDS_CSUM, VnetHeader};
use crate::port::{Piece, Refusal};
use crate::ports::{Cause, Cell, Counter, Port};
use crate::switch::Edit;
use crate::sys::Ready;

pub use config::{Config, is_ours};
use core::Core;
pub use flows::Endpoint;
use flows::{Ends, Id, Table};
use fragments::Reassembly;
use ledger::{Ledger, Orphan};
pub use migrate::Counts;
pub use service::Answer;
use shares::{Kind, Shares};
use tcp::{State, Tcp, flag};
use wire::{Mac, Packet, Room};

/// What a token of epoll, of the wheel or of the list names.
mod kind {
    pub const TIMER: u8 = 1;
    pub const TCP: u8 = 2;
    pub const UDP: u8 = 3;
    pub const PING: u8 = 4;
    pub const LISTENER: u8 = 5;
    pub const ADVERTISE: u8 = 6;
    pub const ANSWERS: u8 = 7;
    pub const WAITING: u8 = 8;
    pub const CALLS: u8 = 9;
}

/// Edge-triggered: a flow whose guest has no window must not keep the loop awake.
const SOCKET_EVENTS: u32 = (libc::EPOLLIN | libc::EPOLLOUT | libc::EPOLLPRI | libc::EPOLLRDHUP | libc::EPOLLET) as u32;
const EVENTS: usize = 64;
/// How often the network advertises itself as a router unasked.
const ADVERTISE_MS: u64 = 600_000; // RFC 4861, 6.2.1: MaxRtrAdvInterval

pub struct Network {
    core: Core,
    tcp: Table<Ends, Tcp>,
    udp: Table<Endpoint, udp::Udp>,
    ping: Table<ping::Key, ping::Ping>,
    shares: Shares,
    ledger: Option<Ledger>,
    /// Flows of a predecessor that are to be reset.
    orphans: Vec<Orphan>,
    reassembly: Reassembly,
    gathered: udp_out::Gathered,
    /// By the number that Python calls them by.
    listeners: HashMap<u32, forward::Listener>,
    /// By the address of a guestfwd: connections taken, and refused.
    served: HashMap<Endpoint, (u64, u64)>,
    children: Vec<std::process::Child>,
    advertise: timer::Alarm,
    rung: Vec<u64>,
    /// The kernel may have events for us.
    roused: bool,
    pub boxes: service::Boxes,
    /// What is handed over was put together from fragments.
    whole: Option<Vec<u8>>,
    family: spread::Family,
    moving: migrate::Move,
    /// For clients of forwards that have none (unix sockets).
    next_port: u16,
}

/// What became of a frame of a guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Taken,
    HandOver(Port),
    /// The service has not yet taken what came before.
    Full,
}

/// A frame of a guest: its headers in a copy, its bytes where they lie.
struct Arrival<'a> {
    head: &'a [u8],
    /// The frame in memory that another process may be changing.
    at: *const u8,
    len: usize,
    vnet: VnetHeader,
    mac: Mac,
}

impl Arrival<'_> {
    /// Copy a part of the frame.
    ///
    /// # Safety
    /// The frame is readable.
    unsafe fn copy(&self, from: usize, to: usize) -> Vec<u8> {
        let mut bytes = vec![0u8; to.min(self.len).saturating_sub(from)];
        // SAFETY: within the frame, as the length is.
        unsafe { std::ptr::copy_nonoverlapping(self.at.add(from), bytes.as_mut_ptr(), bytes.len()) };
        bytes
    }

    /// Is the transport's checksum right, or to be believed?
    ///
    /// # Safety
    /// The frame is readable, and `packet` was read from it.
    unsafe fn is_sound(&self, packet: &Packet) -> bool {
        if self.vnet.flags & (NEEDS_CSUM | DATA_VALID) != 0 || self.vnet.gso_type != GSO_NONE {
            return true;
        }
        // SAFETY: the packet ends within the frame.
        let sum = unsafe { wire::sum_at(packet.pseudo(), self.at.add(packet.transport), packet.payload_len()) };
        sum.checksum() == 0
    }
}

impl Network {
    pub fn new(config: Config) -> io::Result<Network> {
        let mut core = Core::new(config)?;
        core.epoll.add(core.timer.fd(), libc::EPOLLIN as u32, u64::from(kind::TIMER) << 56)?;
        let most = core.config.max_flows;
        let sockets = core.config.sockets;
        let (ledger, orphans) = match core.config.ledger {
            Some(fd) => Ledger::new(fd).map(|(ledger, orphans)| (Some(ledger), orphans))?,
            None => (None, Vec::new()),
        };
        match core.config.service.as_ref().map(|service| service.announce) {
            None if core.config.spread.share == 0 => arp::announce(&mut core),
            Some(true) => {
                arp::announce(&mut core);
                ndp::announce(&mut core);
            }
            None | Some(false) => {}
        }
        let mut network = Network {
            core,
            tcp: Table::new(most),
            udp: Table::new(most),
            ping: Table::new(ping::MOST),
            shares: Shares::new(most, sockets),
            ledger,
            orphans,
            reassembly: Reassembly::default(),
            gathered: udp_out::Gathered::default(),
            listeners: HashMap::new(),
            served: HashMap::new(),
            children: Vec::new(),
            advertise: timer::Alarm::default(),
            rung: Vec::new(),
            roused: true,
            boxes: service::Boxes::default(),
            whole: None,
            family: spread::Family::default(),
            moving: migrate::Move::default(),
            next_port: forward::EPHEMERAL,
        };
        if network.core.config.v6.is_some() && network.core.config.service.is_none() && network.core.config.spread.share == 0 {
            network.advertise_router();
        }
        network.await_calls()?;
        network.core.set_timer();
        Ok(network)
    }

    /// The descriptor was readable: there is something to be had from the kernel.
    pub fn rouse(&mut self) {
        self.roused = true;
    }

    /// Readable when `receive` has something.
    pub fn epoll_fd(&self) -> RawFd {
        self.core.epoll.as_raw_fd()
    }

    /// Let time pass, for tests.
    #[doc(hidden)]
    pub fn turn_clock(&mut self, ms: u64) {
        self.core.skew_ms += ms;
    }

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
        }
        cell.add(Counter::TxFrames, 1);
        cell.add(Counter::TxBytes, len as u64);
        if vnet.gso_type != GSO_NONE {
            cell.add(Counter::TxSuper, 1);
        }
        Ok(())
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
                wire::TCP => self.take_tcp(arrival, packet),
                wire::UDP => self.take_udp(arrival, packet),
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
            self.take_ping(arrival, packet, &message);
        }
        Fate::Taken
    }

    /// # Safety
    /// The frame is readable.
    unsafe fn take_tcp(&mut self, arrival: &Arrival, packet: &Packet) {
        let Some(segment) = segment::Segment::read(arrival.head, packet, arrival.at) else { return };
        // SAFETY: as the caller promises.
        if !unsafe { arrival.is_sound(packet) } {
            return;
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
                let Some((ends, tcp)) = self.tcp.get_mut(id) else { return };
                tcp.mac = arrival.mac;
                // SAFETY: the payload is within the frame, which is readable.
                unsafe { tcp.input(&mut self.core, ends, &segment) };
                self.settle_tcp(id);
            }
            None if segment.flags & (segment::SYN | segment::ACK) == segment::SYN => self.open(ends, packet, arrival.mac, &segment),
            None => self.core.reset_stray(&ends, arrival.mac, &segment),
        }
    }

    /// After something happened to a flow: set its alarm, or let go of it.
    fn settle_tcp(&mut self, id: Id) {
        let Some((ends, tcp)) = self.tcp.get_mut(id) else { return };
        if tcp.state == State::Gone {
            return self.forget_tcp(id);
        }
        tcp.arm(&mut self.core);
        // A guest whose SYN was not answered tries again of its own accord.
        if let Some(ledger) = &self.ledger
            && tcp.state != State::Connecting
        {
            if !tcp.is(flag::ENTERED) {
                tcp.flags |= flag::ENTERED;
                ledger.enter(id.place(), ends, tcp.mac);
            }
            ledger.note(id.place(), tcp.snd_nxt, tcp.rcv_nxt);
        }
    }

    fn forget_tcp(&mut self, id: Id) {
        let Some((_, tcp)) = self.tcp.remove(id) else { return };
        self.core.held -= tcp.held.size;
        self.shares.give_back(tcp.owner, Kind::Tcp);
        if let Some(ledger) = &self.ledger {
            ledger.strike(id.place());
        }
    }

    /// Somebody's address became known: connections that waited for it go on. True where it is news.
    fn meet(&mut self, introduced: Option<(Ipv6Addr, Mac)>) -> bool {
        let Some((ip, mac)) = introduced else { return false };
        let is_news = self.core.neighbours.hear(ip, mac, self.core.now_ms);
        if is_news {
            self.call_again(ip);
            self.answer_again(ip, mac);
        }
        is_news
    }

    /// The same, for other shards too: one that was just made anew asks for what is no news to us.
    fn meet_and_tell(&mut self, introduced: Option<(Ipv6Addr, Mac)>, is_answer: bool) {
        let is_news = self.meet(introduced);
        if (is_news || is_answer)
            && let Some((ip, mac)) = introduced
        {
            self.introduce(ip, mac);
        }
    }

    /// Write the next frame for the guests to `at`, its virtio-net header before it; WouldBlock where there is none.
    ///
    /// # Safety
    /// `at` has room for FRAME_MOST bytes and VNET_LEN bytes before it, and nobody else uses them meanwhile.
    pub unsafe fn receive(&mut self, at: *mut u8) -> io::Result<isize> {
        // SAFETY: as the caller promises.
        let bytes = unsafe { std::slice::from_raw_parts_mut(at.sub(VNET_LEN), VNET_LEN + FRAME_MOST) };
        self.core.look_at_clock();
        self.flush(); // what guests sent goes before we look for what comes
        if self.moving.is_frozen {
            self.be_deaf();
            return Err(io::ErrorKind::WouldBlock.into());
        }
        loop {
            if let Some(len) = self.core.next_reply(bytes) {
                return Ok(len as isize);
            }
            if let Some(orphan) = self.orphans.pop() {
                if let Some(len) = self.core.reset_orphan(&orphan, &mut Room::new(bytes)) {
                    return Ok(len as isize);
                }
                continue;
            }
            if let Some(token) = self.core.due.pop_front() {
                if let Some(len) = self.say(token, &mut Room::new(bytes)) {
                    return Ok(len as isize);
                }
                continue;
            }
            if !self.look_around() {
                self.core.set_timer();
                return Err(io::ErrorKind::WouldBlock.into());
            }
        }
    }

    /// Have a flow write its next frame.
    fn say(&mut self, token: u64, room: &mut Room) -> Option<usize> {
        let (kind, id) = Id::of_token(token);
        match kind {
            kind::TCP => {
                let (ends, tcp) = self.tcp.get_mut(id)?;
                let len = tcp.output(&mut self.core, ends, room);
                if len.is_some() && tcp.has_more() {
                    tcp.list(&mut self.core);
                }
                self.settle_tcp(id);
                len
            }
            kind::UDP => self.say_udp(id, room),
            kind::PING => self.say_ping(id, room),
            kind::ANSWERS => self.say_answer(room),
            _ => None,
        }
    }

    /// See what the kernel and the clock have for us; false where that is nothing.
    fn look_around(&mut self) -> bool {
        let mut ready = [Ready { events: 0, u64: 0 }; EVENTS];
        let mut found = false;
        if self.roused
            && let Ok(ready) = self.core.epoll.wait(&mut ready, 0)
        {
            found = !ready.is_empty();
            self.roused = ready.len() == EVENTS;
            for event in ready.iter() {
                self.event(event.u64, event.events);
            }
        }
        let mut rung = std::mem::take(&mut self.rung);
        self.core.wheel.advance(self.core.now_ms, &mut rung);
        found |= !rung.is_empty();
        for token in rung.drain(..) {
            self.rang(token);
        }
        self.rung = rung;
        found
    }

    /// Leave what the kernel says; it is all looked at when the network goes on.
    fn be_deaf(&mut self) {
        let mut ready = [Ready { events: 0, u64: 0 }; EVENTS];
        while self.core.epoll.wait(&mut ready, 0).is_ok_and(|ready| ready.len() == EVENTS) {}
        self.core.timer.hush();
    }

    fn event(&mut self, token: u64, events: u32) {
        let (kind, id) = Id::of_token(token);
        match kind {
            kind::TCP => {
                let Some((ends, tcp)) = self.tcp.get_mut(id) else { return };
                tcp.event(&mut self.core, ends, events);
                self.settle_tcp(id);
            }
            kind::UDP => self.udp_event(id, events),
            kind::PING => self.ping_event(id, events),
            kind::LISTENER => self.accept(token as u32),
            kind::CALLS => self.take_calls(),
            _ => self.core.timer.hush(),
        }
    }

    fn rang(&mut self, token: u64) {
        let (kind, id) = Id::of_token(token);
        let now_ms = self.core.now_ms;
        match kind {
            kind::TCP => {
                let Some((_, tcp)) = self.tcp.get_mut(id) else { return };
                tcp.watch();
                if tcp.alarm.rings(&mut self.core.wheel, token, now_ms) {
                    tcp.rang(&mut self.core);
                    self.settle_tcp(id);
                }
            }
            kind::UDP => self.udp_rang(id, token),
            kind::PING => self.ping_rang(id, token),
            kind::WAITING => self.ask_again(token),
            kind::ADVERTISE if self.advertise.rings(&mut self.core.wheel, token, now_ms) => self.advertise_router(),
            _ => {}
        }
    }

    fn advertise_router(&mut self) {
        ndp::advertise_router(&mut self.core, None);
        let at = self.core.now_ms + ADVERTISE_MS;
        self.advertise.set(&mut self.core.wheel, u64::from(kind::ADVERTISE) << 56, at);
    }
}
