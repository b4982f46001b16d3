//! What the parts of a user-mode network share: its clock, its timers, the list of flows with something to say, and the small
//! frames that are ready to go.

use std::collections::VecDeque;
use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::io;
use std::net::Ipv6Addr;

use super::config::Config;
use super::flows::Ends;
use super::held::Held;
use super::ledger::Orphan;
use super::limits::Limits;
use super::neighbours::Neighbours;
use super::segment::{RST, Segment};
use super::socket::Socket;
use super::timer::Wheel;
use super::wire::{self, Mac, Room, Way};
use super::{arp, icmp, ndp, tcp_out};
use crate::lane::VNET_LEN;
use crate::sys::Timer;
use crate::sys::{self, Epoll};

/// Small frames that wait; beyond, they are lost, as they may be.
const OUTBOX_MOST: usize = 512;
const WASTE: usize = 1 << 20;
/// Memory for what guests sent beyond a hole.
const HELD_MOST: usize = 32 << 20;

pub struct Core {
    pub config: Config,
    pub epoll: Epoll,
    pub wheel: Wheel,
    pub timer: Timer,
    timer_at_ms: u64,
    pub now_ms: u64,
    /// How far a test has turned the clock.
    pub skew_ms: u64,
    /// Tokens of flows with something to say, each once.
    pub due: VecDeque<u64>,
    outbox: VecDeque<Box<[u8]>>,
    /// Sockets of flows that are over, to be closed when nothing is left to be said: nobody waits for that.
    pub finished: Vec<Socket>,
    pub neighbours: Neighbours,
    pub limits: Limits,
    secret: RandomState,
    packet_id: u32,
    /// The kernel has SO_PEEK_OFF for TCP (Linux 6.9).
    pub peek_off: bool,
    /// Memory that is taken by what guests sent beyond a hole.
    pub held: usize,
    /// Where bytes go that nobody wants. Its pages are touched only where a kernel makes us do so.
    pub waste: Box<[u8]>,
}

impl Core {
    pub fn new(config: Config) -> io::Result<Core> {
        let now_ms = sys::now_ns(libc::CLOCK_MONOTONIC) / 1_000_000;
        let peek_off = config.peek_offset && Socket::new(libc::AF_INET, libc::SOCK_STREAM, 0).is_ok_and(|probe| probe.peek_from(0));
        Ok(Core {
            config,
            epoll: Epoll::new()?,
            wheel: Wheel::new(now_ms),
            timer: Timer::new()?,
            timer_at_ms: 0,
            now_ms,
            skew_ms: 0,
            due: VecDeque::new(),
            outbox: VecDeque::new(),
            finished: Vec::new(),
            neighbours: Neighbours::default(),
            limits: Limits::new(now_ms),
            secret: RandomState::new(),
            packet_id: sys::random()? as u32,
            peek_off,
            held: 0,
            waste: vec![0; WASTE].into_boxed_slice(),
        })
    }

    pub fn look_at_clock(&mut self) {
        self.now_ms = sys::now_ns(libc::CLOCK_MONOTONIC) / 1_000_000 + self.skew_ms;
    }

    /// Have the timer's descriptor ring for the next entry of the wheel.
    pub fn set_timer(&mut self) {
        let Some(at_ms) = self.wheel.next_ms() else { return };
        if self.timer_at_ms > self.now_ms && self.timer_at_ms <= at_ms {
            return;
        }
        self.timer_at_ms = at_ms;
        self.timer.set((at_ms - self.skew_ms) * 1_000_000);
    }

    /// RFC 6528: a clock of 4 us and a keyed hash of both ends.
    pub fn first_sequence(&self, ends: &Ends) -> u32 {
        let clock = (sys::now_ns(libc::CLOCK_MONOTONIC) / 4000) as u32;
        clock.wrapping_add(self.secret.hash_one(ends) as u32)
    }

    /// A number for the fragments of a packet.
    pub fn next_packet_id(&mut self) -> u32 {
        self.packet_id = self.packet_id.wrapping_add(1);
        self.packet_id
    }

    /// The largest segment to a guest that the network's mtu allows.
    pub fn mss(&self, far: Ipv6Addr) -> u16 {
        let headers = if wire::v4(far).is_some() { 40 } else { 60 };
        let mtu = if self.config.mtu == 0 { u16::MAX } else { self.config.mtu };
        mtu.saturating_sub(headers).max(48)
    }

    /// Keep what a guest sent for later; false where there is no room for it.
    pub fn hold(&mut self, held: &mut Held, seq: u32, bytes: Vec<u8>) -> bool {
        if self.held + bytes.len() > HELD_MOST || !held.has_room(bytes.len()) {
            return false;
        }
        let before = held.size;
        held.keep(seq, bytes);
        self.held += held.size - before;
        true
    }

    /// Have epoll say when the socket has room, now if it has.
    pub fn watch_room(&self, socket: &Socket, token: u64) {
        let _ = self.epoll.change(socket.fd(), super::SOCKET_EVENTS | libc::EPOLLOUT as u32, token);
    }

    /// Write a small frame that goes before all else; `write` gets room for the longest one and returns its length.
    pub fn reply(&mut self, write: impl FnOnce(&mut Room) -> usize) {
        self.reply_sized(2048, write);
    }

    pub fn reply_sized(&mut self, most: usize, write: impl FnOnce(&mut Room) -> usize) {
        if self.outbox.len() >= OUTBOX_MOST {
            return;
        }
        let mut bytes = vec![0u8; VNET_LEN + most];
        let len = write(&mut Room::new(&mut bytes));
        bytes.truncate(VNET_LEN + len);
        self.outbox.push_back(bytes.into_boxed_slice());
    }

    /// The oldest of the small frames, copied to `room`.
    pub fn next_reply(&mut self, room: &mut [u8]) -> Option<usize> {
        let bytes = self.outbox.pop_front()?;
        room[..bytes.len()].copy_from_slice(&bytes);
        Some(bytes.len() - VNET_LEN)
    }

    /// From one of our addresses, or from behind us, to a guest.
    pub fn way(&self, source: Ipv6Addr, destination: Ipv6Addr, to_mac: Mac) -> Way {
        Way { from_mac: self.config.mac(source), to_mac, source, destination }
    }

    /// Ask who has a guest's address.
    pub fn ask_for(&mut self, guest: Ipv6Addr) {
        if !self.limits.neighbour(self.now_ms) {
            return;
        }
        if wire::v4(guest).is_some() {
            arp::ask(self, guest);
        } else {
            ndp::ask(self, guest);
        }
    }

    /// Answer a segment that belongs to no flow.
    pub fn reset_stray(&mut self, ends: &Ends, mac: Mac, segment: &Segment) {
        if segment.flags & RST != 0 || !self.limits.reset(self.now_ms) {
            return;
        }
        let way = self.way(ends.far.ip, ends.guest.ip, mac);
        self.reply(|room| tcp_out::reset(room, &way, (ends.far.port, ends.guest.port), segment));
    }

    /// End a flow of a worker that is dead; None where it makes no sense here.
    pub fn reset_orphan(&self, orphan: &Orphan, room: &mut Room) -> Option<usize> {
        let Ends { guest, far } = orphan.ends;
        let is_one_family = wire::v4(guest.ip).is_some() == wire::v4(far.ip).is_some();
        if !is_one_family || !self.config.is_guest(guest.ip) || guest.port == 0 {
            return None;
        }
        let way = self.way(far.ip, guest.ip, orphan.mac);
        Some(tcp_out::end(room, &way, (far.port, guest.port), orphan.snd_nxt, orphan.rcv_nxt))
    }

    /// Tell a guest that its SYN found no way.
    pub fn tell_unreachable(&mut self, ends: &Ends, mac: Mac, seq: u32, errno: i32) {
        let mut tcp = [0u8; 8];
        wire::put16(&mut tcp, 0, ends.guest.port);
        wire::put16(&mut tcp, 2, ends.far.port);
        wire::put32(&mut tcp, 4, seq);
        icmp::unreachable(self, ends.guest.ip, ends.far.ip, mac, wire::TCP, &tcp, errno);
    }
}
