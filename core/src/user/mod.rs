//! The user-mode network: what QEMU's `-netdev user` does for one guest, for every guest of a switch, without privileges.
//!
//! A guest's flow is a socket of the host's kernel and nothing else: no TCP stack of our own and no buffers of payload. The
//! engine joins the worker's loop by two calls and one descriptor. `send` takes a frame of a guest: its headers are
//! copied once and judged, its payload goes from where it lies into the socket. `receive` writes the next frame for the
//! guests: a small one that is ready (outbox), else what the next flow of the list `due` has to say, else what the kernel
//! or the clock bring. The descriptor is an epoll instance with all sockets and one timer in it.
//!
//! ```text
//!   send -> intake -> arp, icmp, ndp | fragments | tcp | udp | ping        (judged by config)
//!   receive <- outbox <- due flows (tcp_out, udp, ping) <- epoll, wheel
//! ```
//!
//! The frames of services that stand behind the network are not taken: `send` says whose they are (`Refusal::HandOver`). A
//! service has such a network too, of its own addresses only (service.rs).
//!
//! With `shards` a network is several of these (spread.rs).
//!
//! Caps: `max_flows` TCP flows and as many of UDP; one guest has three quarters of them at most, so that the others always
//! have some. Beyond, the newest is refused and counted (lack.rs). What answers a guest's mistakes is rationed (limits.rs).

mod arp;
pub mod config;
mod core;
mod datagram;
mod flows;
mod forward;
mod fragments;
mod held;
mod icmp;
mod intake;
mod lack;
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

use crate::lane::{FRAME_MOST, VNET_LEN};
use crate::sys::Ready;

pub use config::{Config, is_ours};
use core::Core;
pub use flows::Endpoint;
use flows::{Ends, Id, Table};
use fragments::Reassembly;
use intake::{Arrival, Fate};
use ledger::{Ledger, Orphan};
pub use migrate::{Counts, Way};
pub use service::Answer;
use shares::{Kind, Shares};
use socket::Socket;
use tcp::{State, Tcp, flag};
use wire::{Mac, Room};

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
const SOCKET_EVENTS: u32 = (libc::EPOLLIN | libc::EPOLLPRI | libc::EPOLLRDHUP | libc::EPOLLET) as u32;
const EVENTS: usize = 64;
/// How often the network advertises itself as a router unasked.
const ADVERTISE_MS: u64 = 600_000; // RFC 4861, 6.2.1: MaxRtrAdvInterval

pub struct Network {
    core: Core,
    tcp: Table<Ends, Tcp>,
    udp: Table<Endpoint, udp::Udp>,
    ping: Table<ping::Key, ping::Ping>,
    shares: Shares,
    told: lack::Told,
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
            told: lack::Told::default(),
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

    /// Is there work that nobody waits for?
    pub fn has_chores(&self) -> bool {
        !self.core.finished.is_empty()
    }

    /// At the end of a turn: close the sockets of flows that are over.
    pub fn do_chores(&mut self) {
        self.core.finished.drain(..).for_each(Socket::finish);
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
