//! How ports come to the loop and go from it.

use std::io;
use std::os::fd::RawFd;

use super::carried::{Carried, Engine, Novelty};
use super::{News, PORT, Shard};
use crate::arena::PORTS;
use crate::port::{Dgram, Link, Packet, Stream, Tap};
use crate::ports::{Cause, NOBODY, Port};
use crate::sys;
use crate::user::Network;

impl Shard {
    pub fn add_tap(&mut self, port: Port, queues: Vec<RawFd>) -> io::Result<()> {
        self.add(port, Engine::Tap(Tap::new(queues)), false)
    }

    /// Write to another worker's TAP or packet socket ourselves, while nothing of ours waits in the lane to that worker.
    pub fn lend(&mut self, port: Port, queue: RawFd) -> io::Result<()> {
        if self.ports.get(usize::from(port)).is_some_and(|there| there.as_ref().is_some_and(|there| there.lent)) {
            self.remove(port);
        }
        let engine = match sys::socket_type(queue) {
            Some(_) => Engine::Packet(Packet::lent(queue)),
            None => Engine::Tap(Tap::new(vec![queue])),
        };
        self.add(port, engine, true)
    }

    pub fn add_stream(&mut self, port: Port, stream: Stream) -> io::Result<()> {
        self.add(port, Engine::Stream(Box::new(stream)), false)
    }

    pub fn add_dgram(&mut self, port: Port, dgram: Dgram) -> io::Result<()> {
        self.add(port, Engine::Dgram(Box::new(dgram)), false)
    }

    pub fn add_user(&mut self, port: Port, network: Network) -> io::Result<()> {
        self.add(port, Engine::User(Box::new(network)), false)?;
        self.list(port);
        Ok(())
    }

    /// One end of a link, whose other end is the port `peer`.
    pub fn add_link(&mut self, port: Port, peer: Port) -> io::Result<()> {
        if port == peer || usize::from(peer) >= PORTS {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "no such port at the other end"));
        }
        self.add(port, Engine::Link(Link::new(peer)), false)?;
        self.list(port); // the other end may have something for it already
        Ok(())
    }

    pub(super) fn add(&mut self, port: Port, engine: Engine, lent: bool) -> io::Result<()> {
        if port == 0 || usize::from(port) >= PORTS {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "no such port"));
        }
        match &self.ports[usize::from(port)] {
            Some(there) if there.lent && !lent => self.remove(port), // it was another worker's, and is ours now
            Some(_) => return Err(io::Error::new(io::ErrorKind::AlreadyExists, "the port is carried already")),
            None => {}
        }
        let carried = Carried {
            port,
            engine,
            lent,
            listed: false,
            dirty: false,
            waits_writable: false,
            held_since_ns: None,
            way: None,
            history: 0,
            aim: NOBODY,
            aimed: 0,
            novelty: Novelty::default(),
        };
        if !lent {
            if !matches!(carried.engine, Engine::User(_) | Engine::Vhost(_)) {
                for fd in carried.descriptors() {
                    sys::nonblocking(fd)?;
                }
            }
            self.listen(&carried)?;
            self.own.push(port);
        }
        self.ports[usize::from(port)] = Some(Box::new(carried));
        Ok(())
    }

    pub(super) fn listen(&self, carried: &Carried) -> io::Result<()> {
        let mut added: Vec<RawFd> = Vec::new();
        for fd in carried.readers() {
            if let Err(error) = self.epoll.add(fd, carried.read_events(), PORT | u64::from(carried.port)) {
                added.into_iter().for_each(|fd| self.epoll.remove(fd));
                return Err(error);
            }
            added.push(fd);
        }
        Ok(())
    }

    /// Let go of a port. Frames that wait in front of its descriptor are dropped.
    pub fn remove(&mut self, port: Port) {
        if let Some(carried) = self.ports.get_mut(usize::from(port)).and_then(Option::take) {
            self.let_go(&carried);
        }
    }

    fn let_go(&mut self, carried: &Carried) {
        if carried.lent {
            return;
        }
        for fd in carried.descriptors() {
            self.epoll.remove(fd);
        }
        let cell = self.arena.cell(self.me, carried.port);
        cell.drop(Cause::Down, carried.pending() as u64);
        cell.drop(Cause::TxDown, carried.queued() as u64);
        self.tell(carried.port, false);
        self.clear_lines(carried);
        let other = |&port: &Port| port != carried.port;
        self.own.retain(other);
        self.readable.retain(other);
        self.unfinished.retain(other);
        self.dirty.retain(other);
        self.held.retain(other);
    }

    /// A port's descriptor is done with.
    pub(super) fn end(&mut self, carried: Box<Carried>, errno: i32) {
        if !carried.lent {
            self.news.push(News::Ended(carried.port, errno));
        }
        self.let_go(&carried);
    }
}
