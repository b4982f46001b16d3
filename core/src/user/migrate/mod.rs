//! The flows of a network move to another one, of another worker, namespace or host, and nobody at their ends sees it.
//!
//! ```text
//!   where they are                                        where they go
//!   freeze      nothing is heard and nothing said         freeze
//!   lock        which sockets can go                      stage     all is checked, sockets are made
//!     (locked and in repair mode, by the helper)            (locked and in repair mode)
//!   export      what we know and what the kernel knows    adopt     the connections are built anew
//!   cut         what cannot go is reset
//!   release     sockets are closed, silently              locked
//!     or: locked, (repair mode off), thaw                   (repair mode off), thaw
//! ```
//!
//! Until `release` the flows are here and only locked: `thaw`, and they go on. Until `thaw` they are not at the
//! other end: `forget` closes what was made for them, which nobody hears. So whoever leads both ends (cli/migrate.py) has the
//! flows at one of them, however the other fails.
//!
//! Between two networks of one namespace the sockets themselves go (`Way::Hand`): both have a descriptor of each until one of them
//! lets go of it, the kernel's connection does not move, and nothing has to be locked, read or built. So no helper is needed, and
//! connections over a loopback go too. Whoever does not go on leaves the sockets as they are, and closes its descriptors.
//!
//! A network that has released its flows stays frozen, for a guest that still reaches it must not hear that it knows nothing
//! of them.
//!
//! What goes: TCP flows with all that is queued, half-closed ones too (kernel.rs), ports of UDP with the port of the host's,
//! where guests are. What does not: connections over a loopback or a unix socket, and those that the helper cannot have (`lost`);
//! datagrams and fragments that wait; connections that the far end has not answered yet, whose guests ask again.
//! Programs of guestfwd end. What both ends have closed is the kernel's, which says the last of it from where it was.

mod check;
mod kernel;
mod record;

use std::io;
use std::os::fd::{OwnedFd, RawFd};

use super::flows::{Endpoint, Ends, Id};
use super::held::Held;
use super::ledger::Orphan;
use super::shares::Kind;
use super::socket::{Name, Socket, bind_interface, bind_outbound};
use super::tcp::{State, Tcp, flag};
use super::wire::v4;
use super::{Network, udp};
pub use record::Mapping;
use record::{Bytes, Connection, Flow, Lost, Neighbour, Net, Part, state};

const RTO_LEAST_MS: u32 = 200;
const RTO_MOST_MS: u32 = 60_000;

/// What a network that is being moved has of it.
#[derive(Default)]
pub struct Move {
    pub is_frozen: bool,
    staged: Vec<Staged>,
    mappings: Vec<(Mapping, Socket)>,
    lost: Vec<Lost>,
    neighbours: Vec<Neighbour>,
}

/// How the sockets go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// Those that are locked are read, to be built anew.
    Read,
    /// As descriptors, which whoever leads passes on.
    Hand,
}

/// A flow that is to be ours.
struct Staged {
    flow: Flow,
    socket: Option<Socket>,
}

/// How many flows of each kind, for who leads.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    pub tcp: usize,
    pub udp: usize,
    /// Connections that are reset.
    pub lost: usize,
}

impl Network {
    /// Hear nothing and say nothing from now on. Clients of forwards wait where they knocked.
    pub fn freeze(&mut self) {
        if !self.moving.is_frozen {
            self.moving.is_frozen = true;
            self.hear_calls(false);
        }
    }

    /// The sockets that can go: they are to be locked and switched to repair mode.
    pub fn lock(&mut self) -> Vec<RawFd> {
        let mut locked = Vec::new();
        for (_, _, tcp) in self.tcp.iter_mut() {
            let is_begun = matches!(tcp.state, State::Answered | State::Calling | State::Open);
            if let Some(socket) = &tcp.socket
                && tcp.is_tcp
                && is_begun
                && kernel::may_go(socket)
            {
                tcp.flags |= flag::LOCKED;
                locked.push(socket.fd());
            }
        }
        locked
    }

    /// Read what is to go, the locked sockets being in repair mode. A connection that cannot be read is lost. Beside it the
    /// descriptors that go along, which stay ours too.
    pub fn export(&mut self, way: Way) -> (Vec<u8>, Counts, Vec<RawFd>) {
        let mut handed = Handed::default();
        let net = |net: &super::config::Subnet| Net { net: net.net, prefix: net.prefix as u8, host: net.host };
        let now_ms = self.core.now_ms;
        let neighbours = self.core.neighbours.iter().map(|(ip, mac)| Neighbour { ip, mac }).collect();
        let config = &self.core.config;
        let (v4, v6) = (config.v4.as_ref().map(net), config.v6.as_ref().map(net));
        let mut found = record::State { v4, v6, tcp: Vec::new(), udp: Vec::new(), lost: Vec::new(), neighbours };
        for (_, ends, tcp) in self.tcp.iter_mut() {
            let socket = match (&tcp.socket, tcp.is(flag::LOCKED)) {
                _ if matches!(tcp.state, State::Connecting | State::Gone) => continue,
                (None, _) if tcp.state == State::Resting => Ok((None, None)),
                (Some(socket), false) if way == Way::Hand && tcp.is_tcp => Ok((None, Some(handed.add(socket)))),
                (Some(socket), true) => kernel::read(socket).map(|found| (Some(found), None)),
                _ => Err(io::ErrorKind::Unsupported.into()),
            };
            match socket {
                Ok((socket, its)) => {
                    if its.is_some() {
                        tcp.flags |= flag::HANDED;
                    }
                    found.tcp.push(Flow { handed: its, ..flow(ends, tcp, socket, now_ms) });
                }
                Err(_) => found.lost.push(Lost {
                    guest: ends.guest,
                    far: ends.far,
                    mac: tcp.mac,
                    snd_nxt: tcp.acceptable(),
                    rcv_nxt: tcp.rcv_nxt,
                }),
            }
        }
        for (_, guest, udp) in self.udp.iter().filter(|(_, _, udp)| !udp.is_fixed()) {
            if let Some(mapping) = udp.mapping(*guest, now_ms) {
                let its = (way == Way::Hand).then(|| handed.add(&udp.socket));
                found.udp.push(Mapping { handed: its, ..mapping });
            }
        }
        let counts = Counts { tcp: found.tcp.len(), udp: found.udp.len(), lost: found.lost.len() };
        (found.written(), counts, handed.0)
    }

    /// Reset the connections that cannot go. From here on they are lost, whatever becomes of the others.
    pub fn cut(&mut self) {
        for (_, _, tcp) in self.tcp.iter_mut() {
            if !tcp.is(flag::LOCKED | flag::HANDED) && !matches!(tcp.state, State::Resting | State::Connecting | State::Gone) {
                tcp.socket = None;
                tcp.flags |= flag::SAY_RST;
            }
        }
    }

    /// Let go of all flows; their sockets, which are locked and in repair mode, end without a word. Of those that were handed on
    /// nothing is heard here any more, which closing them would not do: they are open elsewhere.
    pub fn release(&mut self) {
        let tcp = self.tcp.iter().filter(|(_, _, tcp)| tcp.is(flag::HANDED)).filter_map(|(_, _, tcp)| tcp.socket.as_ref());
        let udp = self.udp.iter().filter(|(_, _, udp)| !udp.is_fixed()).map(|(_, _, udp)| &udp.socket);
        tcp.chain(udp).for_each(|socket| self.core.epoll.remove(socket.fd()));
        let tcp: Vec<Id> = self.tcp.iter().map(|(id, ..)| id).collect();
        tcp.into_iter().for_each(|id| self.forget_tcp(id));
        let udp: Vec<Id> = self.udp.iter().filter(|(_, _, udp)| !udp.is_fixed()).map(|(id, ..)| id).collect();
        udp.into_iter().for_each(|id| self.forget_udp(id));
        self.forget_pings();
        self.core.due.clear();
    }

    /// Check what comes from another network and make sockets for what of it is this shard's. Returns those that are to be
    /// switched to repair mode, with the buffers that they need: to send, to receive. `handed`: for each section the descriptors
    /// that came with it.
    pub fn stage(&mut self, sections: &[Vec<u8>], handed: Vec<Vec<OwnedFd>>) -> Result<Vec<(RawFd, u32, u32)>, String> {
        self.forget();
        let staged = self.check(sections, handed)?;
        let mut wanted = Vec::new();
        for (flow, socket) in staged.tcp {
            let Some(connection) = &flow.socket else {
                self.moving.staged.push(Staged { flow, socket });
                continue;
            };
            let socket = self.socket_for(connection).map_err(|error| format!("{}: {error}", named(&flow)))?;
            let (send, receive) = kernel::buffers(connection);
            wanted.push((socket.fd(), send, receive));
            self.moving.staged.push(Staged { flow, socket: Some(socket) });
        }
        for (mapping, socket) in staged.udp {
            let socket = match socket {
                Some(socket) => socket,
                None => udp_socket(&mapping, &self.core.config.interface).map_err(|error| format!("udp {}: {error}", mapping.guest))?,
            };
            self.moving.mappings.push((mapping, socket));
        }
        self.moving.lost = staged.lost;
        self.moving.neighbours = staged.neighbours;
        Ok(wanted)
    }

    fn socket_for(&self, connection: &Connection) -> io::Result<Socket> {
        let socket = Socket::new(Name::of(connection.peer).family(), libc::SOCK_STREAM, 0)?;
        socket.set(libc::IPPROTO_TCP, libc::TCP_NODELAY, 1)?;
        socket.set(libc::SOL_SOCKET, libc::SO_KEEPALIVE, 1)?;
        Ok(socket)
    }

    /// Build the staged connections anew; their sockets are in repair mode. One that may not be bound here is lost.
    pub fn adopt(&mut self) -> Result<Counts, String> {
        for Staged { flow, socket } in std::mem::take(&mut self.moving.staged) {
            if let (Some(socket), Some(connection)) = (&socket, &flow.socket) {
                if flow.inward == 0 {
                    bind_outbound(socket, None, &self.core.config.interface).map_err(|error| format!("{}: {error}", named(&flow)))?;
                }
                if let Err((what, error)) = kernel::build(socket, connection) {
                    if error.raw_os_error() == Some(libc::EACCES) {
                        self.moving.lost.push(lost(&flow)); // a port that only root may have
                        continue;
                    }
                    return Err(format!("{}: {what}: {error}{}", named(&flow), advice(&error, connection)));
                }
            }
            self.moving.staged.push(Staged { flow, socket });
        }
        let Move { staged, mappings, lost, .. } = &self.moving;
        Ok(Counts { tcp: staged.len(), udp: mappings.len(), lost: lost.len() })
    }

    /// The sockets that are to leave repair mode, and to hear again.
    pub fn locked(&self) -> Vec<RawFd> {
        let ours = self.tcp.iter().filter(|(_, _, tcp)| tcp.is(flag::LOCKED)).filter_map(|(_, _, tcp)| tcp.socket.as_ref());
        let staged = self.moving.staged.iter().filter(|staged| staged.flow.handed.is_none()).filter_map(|staged| staged.socket.as_ref());
        ours.chain(staged).map(Socket::fd).collect()
    }

    /// Go on, with what was staged and what was here. `repaired`: the locked sockets have left repair mode; those that have not
    /// are no use, and their flows are reset.
    pub fn thaw(&mut self, repaired: bool) {
        let ids: Vec<Id> = self.tcp.iter().map(|(id, ..)| id).collect();
        for id in ids {
            self.go_on(id, repaired);
        }
        for Staged { flow, socket } in std::mem::take(&mut self.moving.staged) {
            self.join(flow, socket, repaired);
        }
        for (mapping, socket) in std::mem::take(&mut self.moving.mappings) {
            self.join_udp(mapping, socket);
        }
        for Lost { guest, far, mac, snd_nxt, rcv_nxt } in std::mem::take(&mut self.moving.lost) {
            self.orphans.push(Orphan { ends: Ends { guest, far }, mac, snd_nxt, rcv_nxt });
        }
        for Neighbour { ip, mac } in std::mem::take(&mut self.moving.neighbours) {
            if self.core.config.is_guest(ip) {
                self.meet(Some((ip, mac)));
            }
        }
        self.list_datagrams();
        if std::mem::take(&mut self.moving.is_frozen) {
            self.hear_calls(true);
        }
    }

    /// Have nothing of what was staged; nobody hears of it.
    pub fn forget(&mut self) {
        let is_frozen = self.moving.is_frozen;
        self.moving = Move { is_frozen, ..Move::default() };
    }

    /// A flow of our own goes on after a while of silence.
    fn go_on(&mut self, id: Id, repaired: bool) {
        let Some((_, tcp)) = self.tcp.get_mut(id) else { return };
        let was_locked = tcp.is(flag::LOCKED);
        tcp.flags &= !(flag::LOCKED | flag::HANDED);
        if was_locked && !repaired {
            tcp.socket = None;
            tcp.flags |= flag::SAY_RST;
        }
        self.wake(id);
    }

    /// Have a flow look at everything anew: what happened at its socket meanwhile was told to nobody, and what its guest said is lost.
    fn wake(&mut self, id: Id) {
        let Some((_, tcp)) = self.tcp.get_mut(id) else { return };
        if let Some(socket) = &tcp.socket {
            if self.core.peek_off {
                socket.peek_from(0);
                tcp.flags |= flag::PEEKS;
            }
            tcp.flags |= flag::ROOMY;
            self.core.watch_room(socket, tcp.token);
        }
        if tcp.is(flag::FAR_ENDED) {
            tcp.flags |= flag::BEHIND; // no event tells of that end
        }
        tcp.peeked = tcp.snd_una;
        tcp.restart_clock(self.core.now_ms);
        tcp.timed_off();
        match tcp.state {
            State::Open => {
                tcp.drain(&mut self.core);
                // One byte before what it has: the guest answers with where it is.
                tcp.say(&mut self.core, flag::READABLE | flag::SAY_ACK | flag::KEEPALIVE);
            }
            State::Answered | State::Calling => tcp.say(&mut self.core, flag::SAY_SYN),
            State::Connecting | State::Resting | State::Gone => {
                if tcp.is(flag::SAY_RST) {
                    tcp.list(&mut self.core);
                }
            }
        }
        self.settle_tcp(id);
    }

    /// A flow of another network becomes ours.
    fn join(&mut self, flow: Flow, socket: Option<Socket>, repaired: bool) {
        let ends = Ends { guest: flow.guest, far: flow.far };
        let mut connection = flow.socket.clone();
        let left = match (&socket, &mut connection) {
            (Some(socket), Some(connection)) if repaired => kernel::finish(socket, connection),
            _ => Vec::new(),
        };
        let is_lost = socket.is_some() && flow.handed.is_none() && !repaired;
        let mut tcp = self.tcp_of(&flow, socket);
        let first = tcp.rcv_nxt.wrapping_sub(tcp.pending).wrapping_sub(u32::from(tcp.is(flag::GUEST_FIN)));
        let parts = flow.held.into_iter().map(|part| (part.seq, part.bytes.0));
        // What was in the far socket's queue and has no room in this one's goes in front of what waits already.
        let count = left.len() as u32;
        if count > 0 {
            tcp.flags &= !flag::SHUT;
            tcp.pending += count;
        }
        let again = (count > 0).then(|| (first.wrapping_sub(count), left));
        let mut fits = true;
        for (seq, bytes) in again.into_iter().chain(parts) {
            fits &= self.core.hold(&mut tcp.held, seq, bytes);
        }
        tcp.held.fin = flow.fin;
        if is_lost || !fits {
            tcp.socket = None;
            tcp.flags |= flag::SAY_RST;
        }
        self.enter(ends, tcp);
    }

    /// Put a flow into the table; where it is over it has no socket to be watched.
    fn enter(&mut self, ends: Ends, tcp: Tcp) {
        let guest_and_numbers = (tcp.mac, tcp.snd_nxt, tcp.rcv_nxt);
        let has_socket = tcp.socket.is_some();
        let held = tcp.held.size;
        let id = if has_socket { self.add_tcp(ends, tcp) } else { self.add_over(ends, tcp) };
        match id {
            Some(id) => self.wake(id),
            None => {
                let (mac, snd_nxt, rcv_nxt) = guest_and_numbers;
                self.core.held -= held;
                self.orphans.push(Orphan { ends, mac, snd_nxt, rcv_nxt });
            }
        }
    }

    fn add_over(&mut self, ends: Ends, tcp: Tcp) -> Option<Id> {
        let owner = tcp.owner;
        let id = self.tcp.insert(ends, tcp)?;
        self.shares.take(owner, Kind::Tcp);
        if let Some((_, tcp)) = self.tcp.get_mut(id) {
            tcp.token = id.token(super::kind::TCP);
        }
        Some(id)
    }

    fn tcp_of(&self, flow: &Flow, socket: Option<Socket>) -> Tcp {
        let now_ms = self.core.now_ms;
        let state = match flow.state {
            state::ANSWERED => State::Answered,
            state::CALLING => State::Calling,
            state::OPEN => State::Open,
            _ => State::Resting,
        };
        let new = Tcp::new(socket, true, state, flow.mac, flow.snd_una, now_ms);
        Tcp {
            flags: flow.flags,
            owner: flow.owner,
            irs: flow.irs,
            rcv_nxt: flow.rcv_nxt,
            pending: flow.pending,
            held: Held::default(),
            rcv_edge: flow.rcv_edge,
            snd_nxt: flow.snd_nxt,
            wnd: flow.wnd,
            wnd_most: flow.wnd_most,
            wnd_seq: flow.wnd_seq,
            wnd_ack: flow.wnd_ack,
            shift: flow.shift,
            mss: flow.mss.min(self.core.mss(flow.far.ip)),
            srtt_ms: flow.srtt_ms.min(RTO_MOST_MS),
            rttvar_ms: flow.rttvar_ms.min(RTO_MOST_MS),
            rto_ms: flow.rto_ms.clamp(RTO_LEAST_MS, RTO_MOST_MS),
            heard_ms: now_ms.saturating_sub(flow.idle_ms),
            bytes_in: flow.bytes_in,
            bytes_out: flow.bytes_out,
            opened_ms: now_ms.saturating_sub(flow.age_ms),
            resent: flow.resent,
            inward: flow.inward,
            ..new
        }
    }
}

fn flow(ends: &Ends, tcp: &Tcp, socket: Option<(Connection, bool)>, now_ms: u64) -> Flow {
    let state = match tcp.state {
        State::Answered => state::ANSWERED,
        State::Calling => state::CALLING,
        State::Open => state::OPEN,
        _ => state::RESTING,
    };
    let ended = if socket.as_ref().is_some_and(|(_, ended)| *ended) { flag::FAR_ENDED } else { 0 };
    Flow {
        guest: ends.guest,
        far: ends.far,
        mac: tcp.mac,
        owner: tcp.owner,
        state,
        flags: tcp.flags & flag::LASTING | ended,
        irs: tcp.irs,
        rcv_nxt: tcp.rcv_nxt,
        pending: tcp.pending,
        rcv_edge: tcp.rcv_edge,
        snd_una: tcp.snd_una,
        snd_nxt: tcp.snd_nxt,
        wnd: tcp.wnd,
        wnd_most: tcp.wnd_most,
        wnd_seq: tcp.wnd_seq,
        wnd_ack: tcp.wnd_ack,
        shift: tcp.shift,
        mss: tcp.mss,
        srtt_ms: tcp.srtt_ms,
        rttvar_ms: tcp.rttvar_ms,
        rto_ms: tcp.rto_ms,
        bytes_in: tcp.bytes_in,
        bytes_out: tcp.bytes_out,
        age_ms: now_ms.saturating_sub(tcp.opened_ms),
        idle_ms: now_ms.saturating_sub(tcp.heard_ms),
        resent: tcp.resent,
        inward: tcp.inward,
        held: tcp.held.parts().map(|(seq, bytes)| Part { seq, bytes: Bytes(bytes.to_vec()) }).collect(),
        fin: tcp.held.fin,
        socket: socket.map(|(connection, _)| connection),
        handed: None,
    }
}

/// Descriptors that go along, known by their place.
#[derive(Default)]
struct Handed(Vec<RawFd>);

impl Handed {
    fn add(&mut self, socket: &Socket) -> u32 {
        self.0.push(socket.fd());
        self.0.len() as u32 - 1
    }
}

fn lost(flow: &Flow) -> Lost {
    Lost { guest: flow.guest, far: flow.far, mac: flow.mac, snd_nxt: flow.snd_nxt, rcv_nxt: flow.rcv_nxt }
}

/// How messages call a flow.
fn named(flow: &Flow) -> String {
    format!("tcp {} to {}", flow.guest, flow.far)
}

/// The port that stood for the guest's elsewhere, or another where that is taken.
fn udp_socket(mapping: &Mapping, interface: &str) -> io::Result<Socket> {
    let socket = udp::udp_socket(mapping.guest.ip)?;
    bind_interface(&socket, interface)?;
    if mapping.local.port != 0 && socket.bind(&Name::of(mapping.local)).is_err() {
        let _ = socket.bind(&Name::of(Endpoint { ip: udp::anywhere(mapping.guest.ip), port: mapping.local.port }));
    }
    Ok(socket)
}

fn advice(error: &io::Error, connection: &Connection) -> String {
    match error.raw_os_error() {
        Some(libc::EADDRNOTAVAIL | libc::EINVAL) => {
            format!(" (is {} an address of this host, and does no other have the connection?)", connection.local)
        }
        _ => String::new(),
    }
}

impl std::fmt::Display for Endpoint {
    fn fmt(&self, out: &mut std::fmt::Formatter) -> std::fmt::Result {
        match v4(self.ip) {
            Some(ip) => write!(out, "{ip}:{}", self.port),
            None => write!(out, "[{}]:{}", self.ip, self.port),
        }
    }
}
