//! What comes in from the host's side (`hostfwd`), and programs that serve guests (`guestfwd ... cmd:`).
//!
//! The sockets that listen were made by Python, which keeps them when this worker dies; here they are only accepted from.
//! The guest sees the client's own address and port, but for one on the host itself, which is the host address. A guest
//! that refuses makes the client's connection end with a reset: accept() has already told it that somebody is there.

use std::io;
use std::net::Ipv6Addr;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};

use super::config::{HostForward, Transport};
use super::flows::{Endpoint, Ends, Id};
use super::socket::{Name, Socket};
use super::tcp::{State, Tcp, flag};
use super::{Network, kind};
use crate::sys;

/// Connections accepted at one go.
const BURST: usize = 64;
/// Where ports for clients without one begin (unix sockets): those that IANA leaves to everybody.
const EPHEMERAL: u16 = 49_152;

pub struct Listener {
    forward: HostForward,
    next_port: u16,
}

impl Network {
    pub(super) fn listen(&mut self, forward: HostForward) -> io::Result<()> {
        if forward.transport == Transport::Udp {
            return self.listen_udp(&forward);
        }
        sys::nonblocking(forward.fd)?;
        let token = u64::from(kind::LISTENER) << 56 | self.listeners.len() as u64;
        self.core.epoll.add(forward.fd, libc::EPOLLIN as u32, token)?;
        self.listeners.push(Listener { forward, next_port: EPHEMERAL });
        Ok(())
    }

    /// Clients knock.
    pub(super) fn accept(&mut self, index: usize) {
        for _ in 0..BURST {
            let Some(listener) = self.listeners.get(index) else { return };
            let forward = listener.forward.clone();
            let (socket, name) = match Socket::accept_from(forward.fd) {
                Ok(accepted) => accepted,
                Err(_) => return,
            };
            self.call(index, &forward, socket, &name);
        }
    }

    /// Open a flow to the guest for a client.
    fn call(&mut self, index: usize, forward: &HostForward, socket: Socket, name: &Name) {
        let Some(net) = self.core.config.subnet(forward.guest.ip).copied() else { return refuse(&socket) };
        let far = name.endpoint().filter(|client| super::wire::v4(client.ip).is_some() == super::wire::v4(net.host).is_some());
        let far = far.map(|client| Endpoint { ip: self.core.config.seen(client.ip), port: client.port });
        let far = match far {
            Some(far) if self.tcp.find(&Ends { guest: forward.guest, far }).is_none() && !net.contains(far.ip) | (far.ip == net.host) => {
                Some(far)
            }
            _ => self.free_port(index, forward.guest, net.host),
        };
        let Some(far) = far else { return refuse(&socket) };
        let ends = Ends { guest: forward.guest, far };
        if self.is_over_cap(&ends) {
            return refuse(&socket);
        }
        let is_tcp = forward.transport == Transport::Tcp;
        if is_tcp {
            let _ = socket.set(libc::IPPROTO_TCP, libc::TCP_NODELAY, 1);
            let _ = socket.set(libc::SOL_SOCKET, libc::SO_KEEPALIVE, 1);
        }
        let tcp = Tcp::from_host(&self.core, &ends, socket, is_tcp);
        let Some(id) = self.add_tcp(ends, tcp) else { return };
        if let Some((_, tcp)) = self.tcp.get_mut(id) {
            tcp.list(&mut self.core);
        }
        self.settle_tcp(id);
    }

    /// A port of the host address that no flow to the guest has.
    fn free_port(&mut self, index: usize, guest: Endpoint, host: Ipv6Addr) -> Option<Endpoint> {
        for _ in 0..1024 {
            let listener = &mut self.listeners[index];
            let far = Endpoint { ip: host, port: listener.next_port };
            listener.next_port = listener.next_port.checked_add(1).unwrap_or(EPHEMERAL);
            if self.tcp.find(&Ends { guest, far }).is_none() {
                return Some(far);
            }
        }
        None
    }

    /// A guest's address became known: have the flows that wait for it say their SYN.
    pub(super) fn call_again(&mut self, guest: Ipv6Addr) {
        if self.core.config.hostfwd.is_empty() {
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

/// The client is to see a reset, since it was told that somebody is there.
fn refuse(socket: &Socket) {
    socket.end_by_reset();
}
