//! What comes in from the host's side (`hostfwd`), and programs that serve guests (`guestfwd ... cmd:`).
//!
//! The sockets that listen were made by Python, which keeps them when this worker dies; here they are only accepted from.
//! The guest sees the client's own address and port, but for one on the host itself, which is the host address. A guest
//! that refuses makes the client's connection end with a reset: accept() has already told it that somebody is there. So does
//! a forward to a name that nobody has a lease for; datagrams for it are dropped.

use std::collections::HashMap;
use std::io;
use std::net::Ipv6Addr;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};

use super::config::{GuestForward, HostForward, Transport};
use super::datagram;
use super::flows::{Endpoint, Ends, Id};
use super::shares::Kind;
use super::socket::{Name, Socket};
use super::spread::Call;
use super::tcp::{State, Tcp, flag};
use super::{Network, kind};
use crate::sys;

/// Connections accepted at one go.
const BURST: usize = 64;
/// Where ports for clients without one begin (unix sockets): those that IANA leaves to everybody.
pub const EPHEMERAL: u16 = 49_152;

/// A forward, and what has come by it.
pub struct Listener {
    forward: HostForward,
    taken: u64,
    refused: u64,
    /// Of UDP, while there is a guest: the flow that stands for it.
    flow: Option<Id>,
}

/// What a forward has seen: connections, or datagrams of UDP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Count {
    pub id: u32,
    pub taken: u64,
    pub refused: u64,
    /// Connections that there are now.
    pub open: u64,
}

impl Network {
    /// Take what comes in at a socket from now on. Returns the forward's number: this one, or the next that is free.
    pub fn add_forward(&mut self, number: u32, forward: HostForward) -> io::Result<u32> {
        sys::nonblocking(forward.fd)?;
        let mut id = number.max(1);
        while self.listeners.contains_key(&id) {
            id = id.wrapping_add(1).max(1);
        }
        let guest = forward.guest;
        let listener = Listener { forward: HostForward { guest: None, ..forward }, taken: 0, refused: 0, flow: None };
        self.hear_at(forward.fd, id)?;
        self.listeners.insert(id, listener);
        if let Err(error) = self.move_forward(id, guest) {
            self.remove_forward(id);
            return Err(error);
        }
        Ok(id)
    }

    /// Have a forward go to this guest from now on, or to nobody. Connections that there are stay where they are.
    pub fn move_forward(&mut self, id: u32, guest: Option<Ipv6Addr>) -> io::Result<()> {
        let Some(listener) = self.listeners.get_mut(&id) else { return Ok(()) };
        if listener.forward.guest == guest {
            return Ok(());
        }
        listener.forward.guest = guest;
        let forward = listener.forward;
        if forward.transport != Transport::Udp {
            return Ok(());
        }
        self.detach(id);
        let Some(ip) = guest else { return self.hear_at(forward.fd, id) };
        self.core.epoll.remove(forward.fd);
        match self.listen_udp(&forward, Endpoint { ip, port: forward.port }) {
            Ok(flow) => {
                if let Some(listener) = self.listeners.get_mut(&id) {
                    listener.flow = Some(flow);
                }
                Ok(())
            }
            Err(error) => {
                if let Some(listener) = self.listeners.get_mut(&id) {
                    listener.forward.guest = None;
                }
                self.hear_at(forward.fd, id)?;
                Err(error)
            }
        }
    }

    /// Take nothing more at this socket; connections that there are go on.
    pub fn remove_forward(&mut self, id: u32) {
        self.detach(id);
        if let Some(listener) = self.listeners.remove(&id) {
            self.core.epoll.remove(listener.forward.fd);
        }
    }

    /// Look at where clients knock: from now on, or from when the network is frozen no more.
    fn hear_at(&self, fd: i32, id: u32) -> io::Result<()> {
        if self.moving.is_frozen { Ok(()) } else { self.core.epoll.add(fd, libc::EPOLLIN as u32, token_of(id)) }
    }

    /// Look at the sockets where clients knock, or do not.
    pub(super) fn hear_calls(&mut self, on: bool) {
        let waiting = self.listeners.iter().filter(|(_, listener)| listener.flow.is_none());
        let doors: Vec<(i32, u64)> = waiting.map(|(&id, listener)| (listener.forward.fd, token_of(id))).chain(self.doors()).collect();
        for (fd, token) in doors {
            if !on {
                self.core.epoll.remove(fd);
            } else {
                let _ = self.core.epoll.add(fd, libc::EPOLLIN as u32, token); // there was room for it before
            }
        }
    }

    /// Take the flow of a UDP forward away; its count is the forward's.
    fn detach(&mut self, id: u32) {
        let Some(listener) = self.listeners.get_mut(&id) else { return };
        if let Some(flow) = listener.flow.take()
            && let Some((_, udp)) = self.udp.remove(flow)
        {
            listener.taken += udp.traffic.datagrams_to_guest;
            self.core.epoll.remove(udp.socket.fd()); // the socket may be another network's by now, and stay open
            self.shares.give_back(udp.owner, Kind::Udp);
        }
    }

    /// What every forward has seen.
    pub fn forwards(&mut self) -> Vec<Count> {
        let mut open: HashMap<u32, u64> = HashMap::new();
        for (_, _, tcp) in self.tcp.iter().filter(|(_, _, tcp)| tcp.inward != 0 && tcp.socket.is_some()) {
            *open.entry(tcp.inward).or_default() += 1;
        }
        let udp = &mut self.udp;
        let count = |(&id, listener): (&u32, &Listener)| {
            let by_flow = listener.flow.and_then(|flow| udp.get_mut(flow)).map_or(0, |(_, udp)| udp.traffic.datagrams_to_guest);
            let open = open.get(&id).copied().unwrap_or_default();
            Count { id, taken: listener.taken + by_flow, refused: listener.refused, open }
        };
        let mut counts: HashMap<u32, Count> = self.listeners.iter().map(count).map(|count| (count.id, count)).collect();
        // What other shards have accepted is counted where it went, and so is what of a forward that is gone is open.
        for (&id, &(taken, refused)) in &self.family.passed {
            counts.insert(id, Count { id, taken, refused, open: open.get(&id).copied().unwrap_or_default() });
        }
        counts.into_values().collect()
    }

    /// Serve these addresses from now on, and no others; connections that there are go on.
    pub fn serve_at(&mut self, forwards: Vec<GuestForward>) {
        self.served.retain(|at, _| forwards.iter().any(|forward| forward.at == *at));
        self.core.config.guestfwd = forwards;
    }

    /// What has come for each guestfwd: connections taken, refused, and open now.
    pub fn served(&self) -> Vec<(Endpoint, u64, u64, u64)> {
        let count = |at: Endpoint| {
            let (taken, refused) = self.served.get(&at).copied().unwrap_or_default();
            let open = self.tcp.iter().filter(|(_, ends, tcp)| ends.far == at && tcp.socket.is_some()).count();
            (at, taken, refused, open as u64)
        };
        self.core.config.guestfwd.iter().map(|forward| count(forward.at)).collect()
    }

    /// Clients knock, or send datagrams for nobody.
    pub(super) fn accept(&mut self, id: u32) {
        for _ in 0..BURST {
            let Some(listener) = self.listeners.get_mut(&id) else { return };
            let forward = listener.forward;
            if forward.transport == Transport::Udp {
                if listener.flow.is_some() || !datagram::discard(forward.fd) {
                    return;
                }
                listener.refused += 1;
                continue;
            }
            let Ok((socket, name)) = Socket::accept_from(forward.fd) else { return };
            if let Some(called) = self.call(id, &forward, socket, &name)
                && let Some(listener) = self.listeners.get_mut(&id)
            {
                *(if called { &mut listener.taken } else { &mut listener.refused }) += 1;
            }
        }
    }

    /// Open a flow to the guest for a client, here or at another shard; None where that one counts what becomes of it.
    fn call(&mut self, id: u32, forward: &HostForward, socket: Socket, name: &Name) -> Option<bool> {
        socket.end_by_reset(); // it was told that somebody is there, so a refusal is a reset
        let Some((ip, net)) = forward.guest.and_then(|ip| Some((ip, *self.core.config.subnet(ip)?))) else { return Some(false) };
        let guest = Endpoint { ip, port: forward.port };
        let far = name.endpoint().filter(|client| super::wire::v4(client.ip).is_some() == super::wire::v4(net.host).is_some());
        let far = far.map(|client| Endpoint { ip: self.core.config.seen(client.ip), port: client.port });
        let far = match far {
            Some(far) if !net.contains(far.ip) | (far.ip == net.host) => far,
            _ => Endpoint { ip: net.host, port: self.port() },
        };
        let call = Call { id, guest, far, is_tcp: forward.transport == Transport::Tcp };
        let share = self.core.config.spread.share_of(guest, far);
        if share == self.core.config.spread.share {
            return Some(self.take_call(call, socket));
        }
        if self.pass_on(share, &call, &socket) { None } else { Some(false) }
    }

    /// Open a flow of this shard's to the guest; false where the client is refused.
    pub(super) fn take_call(&mut self, call: Call, socket: Socket) -> bool {
        let Call { id, guest, is_tcp, .. } = call;
        let Some(far) = self.free(guest, call.far) else { return false };
        let ends = Ends { guest, far };
        let owner = self.core.neighbours.find(guest.ip).unwrap_or_default();
        if !self.shares.allow(owner, Kind::Tcp) {
            return false;
        }
        let tcp = Tcp::from_host(&self.core, &ends, socket, is_tcp, owner, id);
        let Some(flow) = self.add_tcp(ends, tcp) else { return false };
        if let Some((_, tcp)) = self.tcp.get_mut(flow) {
            tcp.list(&mut self.core);
        }
        self.settle_tcp(flow);
        true
    }

    /// The far end, if no flow to the guest has it, else a port of the host address that none has and whose flow is ours.
    fn free(&mut self, guest: Endpoint, far: Endpoint) -> Option<Endpoint> {
        if self.tcp.find(&Ends { guest, far }).is_none() {
            return Some(far);
        }
        let host = self.core.config.subnet(guest.ip)?.host;
        for _ in 0..1024 {
            let far = Endpoint { ip: host, port: self.port() };
            let spread = &self.core.config.spread;
            if spread.share_of(guest, far) == spread.share && self.tcp.find(&Ends { guest, far }).is_none() {
                return Some(far);
            }
        }
        None
    }

    fn port(&mut self) -> u16 {
        let port = self.next_port;
        self.next_port = port.checked_add(1).unwrap_or(EPHEMERAL);
        port
    }

    /// A guest's address became known: have the flows that wait for it say their SYN.
    pub(super) fn call_again(&mut self, guest: Ipv6Addr) {
        if self.listeners.is_empty() && self.core.config.spread.calls.is_none() {
            return;
        }
        self.deliver_again(guest);
        let waiting: Vec<Id> = self
            .tcp
            .iter()
            .filter(|(_, ends, tcp)| ends.guest.ip == guest && tcp.state == State::Calling && tcp.is(flag::SAY_SYN))
            .map(|(id, ..)| id)
            .collect();
        for id in waiting {
            if let Some((_, tcp)) = self.tcp.get_mut(id) {
                tcp.list(&mut self.core);
            }
        }
    }

    /// Start a program with a connection as its standard input and output.
    pub(super) fn spawn(&mut self, command: &str) -> io::Result<Socket> {
        self.children.retain_mut(|child| matches!(child.try_wait(), Ok(None)));
        let (ours, theirs) = UnixStream::pair()?;
        ours.set_nonblocking(true)?;
        let output: OwnedFd = theirs.try_clone()?.into();
        let input: OwnedFd = theirs.into();
        let child = Command::new("/bin/sh").arg("-c").arg(command).stdin(Stdio::from(input)).stdout(Stdio::from(output)).spawn()?;
        self.children.push(child);
        Ok(Socket::own(ours.into()))
    }
}

fn token_of(id: u32) -> u64 {
    u64::from(kind::LISTENER) << 56 | u64::from(id)
}
