//! A guest's SYN becomes a flow: judged, given a socket, connected. The guest hears of it when the far end has answered.

use std::io;

use super::config::{Served, Target};
use super::flows::{Endpoint, Ends, Id};
use super::icmp;
use super::lack::Unopened;
use super::segment::Segment;
use super::shares::Kind;
use super::socket::{Name, Socket, bind_outbound};
use super::tcp::{Tcp, flag};
use super::wire::{Mac, Packet};
use super::{Network, SOCKET_EVENTS, kind};
use crate::ports::Cause;

impl Network {
    /// A SYN that belongs to no flow; what there was none of for it, which the guest has been told by a reset.
    pub(super) fn open(&mut self, ends: Ends, packet: &Packet, mac: Mac, syn: &Segment) -> Option<Cause> {
        let lack = self.shares.lack(mac, Kind::Tcp).or((self.tcp.room() == 0).then_some(Cause::TxFlows));
        let made = match self.core.config.target(ends.far, true) {
            Target::Senseless => return None,
            Target::Refused => {
                self.core.reset_stray(&ends, mac, syn);
                return None;
            }
            Target::Nobody => {
                self.core.tell_unreachable(&ends, mac, syn.seq, libc::EHOSTUNREACH);
                return None;
            }
            _ if lack.is_some() => {
                self.core.reset_stray(&ends, mac, syn);
                return lack;
            }
            Target::Outside(_) if packet.ttl <= 1 => {
                self.too_far(&ends, mac, syn);
                return None;
            }
            Target::Outside(to) => self.dial(to),
            Target::Forward(index) => {
                let served = self.serve(index);
                let (taken, refused) = self.served.entry(ends.far).or_default();
                *(if served.is_ok() { taken } else { refused }) += 1;
                served
            }
        };
        match made {
            Ok((socket, is_tcp, connected)) => {
                let mut tcp = Tcp::from_guest(&self.core, &ends, socket, is_tcp, mac, syn);
                tcp.flags |= if connected { 0 } else { flag::ROOMY };
                if let Some(id) = self.add_tcp(ends, tcp)
                    && connected
                    && let Some((_, tcp)) = self.tcp.get_mut(id)
                {
                    tcp.connected(&mut self.core);
                    self.settle_tcp(id);
                }
            }
            Err(Unopened::Lack(cause)) => {
                self.core.reset_stray(&ends, mac, syn);
                return Some(cause);
            }
            Err(Unopened::Failed(error)) => match error.raw_os_error().unwrap_or(0) {
                errno @ (libc::ENETUNREACH | libc::EHOSTUNREACH | libc::EACCES | libc::EPERM) => {
                    self.core.tell_unreachable(&ends, mac, syn.seq, errno);
                }
                _ => self.core.reset_stray(&ends, mac, syn),
            },
        }
        None
    }

    /// Put a flow into the table and its socket into epoll.
    pub(super) fn add_tcp(&mut self, ends: Ends, tcp: Tcp) -> Option<Id> {
        let id = self.tcp.insert(ends, tcp)?;
        let (_, tcp) = self.tcp.get_mut(id)?;
        self.shares.take(tcp.owner, Kind::Tcp);
        tcp.token = id.token(kind::TCP);
        let socket = tcp.socket.as_ref()?;
        socket.end_by_reset();
        // A connected socket has room at first, which is no news.
        let room = if tcp.is(flag::ROOMY) { libc::EPOLLOUT as u32 } else { 0 };
        self.roused |= room != 0; // a connection within this host was refused by now
        if self.core.epoll.add(socket.fd(), SOCKET_EVENTS | room, tcp.token).is_err() {
            tcp.fail(&mut self.core);
        }
        Some(id)
    }

    fn too_far(&mut self, ends: &Ends, mac: Mac, syn: &Segment) {
        let Some(from) = self.core.config.subnet(ends.guest.ip).map(|net| net.host) else { return };
        let mut first = [0u8; 8];
        super::wire::put16(&mut first, 0, syn.from);
        super::wire::put16(&mut first, 2, syn.to);
        super::wire::put32(&mut first, 4, syn.seq);
        let trouble = icmp::Trouble::TimeExceeded;
        icmp::error(&mut self.core, from, ends.guest.ip, ends.far.ip, mac, super::wire::TCP, &first, trouble);
    }

    /// Begin a connection to the outside; is it there at once?
    fn dial(&self, to: Endpoint) -> Result<(Socket, bool, bool), Unopened> {
        let name = Name::of(to);
        let socket = Socket::new(name.family(), libc::SOCK_STREAM, 0)?;
        let config = &self.core.config;
        if config.seen(to.ip) == to.ip {
            bind_outbound(&socket, config.subnet(to.ip).and_then(|net| net.outbound), &config.interface)?;
        }
        match connect(&socket, &name) {
            Err(error) if error.raw_os_error() == Some(libc::EADDRNOTAVAIL) => Err(Unopened::Lack(Cause::TxPorts)), // all in use to there
            connected => Ok((socket, true, connected?)),
        }
    }

    /// Begin a connection to what an entry of guestfwd says.
    fn serve(&mut self, index: usize) -> Result<(Socket, bool, bool), Unopened> {
        match self.core.config.guestfwd[index].to.clone() {
            Served::Socket(name) => {
                let socket = Socket::new(name.family(), libc::SOCK_STREAM, 0)?;
                let is_tcp = name.family() != libc::AF_UNIX;
                // A unix socket says ENOENT for a file that is not there, and EAGAIN for a full backlog: refused, both.
                let connected = connect(&socket, &name).map_err(Unopened::Failed)?;
                Ok((socket, is_tcp, connected))
            }
            Served::Command(command) => Ok((self.spawn(&command)?, false, true)),
        }
    }
}

/// Begin a connection; is it there at once? The kernel says that it is under way even where both ends are on this host,
/// and the other one has answered by then: so it is asked for the other end's name, which only a connected socket has.
fn connect(socket: &Socket, name: &Name) -> io::Result<bool> {
    match socket.connect(name) {
        Ok(()) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::EINPROGRESS) => Ok(name.is_loopback() && socket.peer().is_some()),
        Err(error) => Err(error),
    }
}
