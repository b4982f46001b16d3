//! A port as the loop knows it: its engine, and what the loop has noted about it.

use std::os::fd::RawFd;

use crate::port::{Dgram, Flush, Link, Packet, Stream, Tap, Vhost};
use crate::ports::{Cell, Port, Worker};
use crate::user::Network;

pub(super) enum Engine {
    Tap(Tap),
    Stream(Box<Stream>),
    Dgram(Box<Dgram>),
    User(Box<Network>),
    Vhost(Box<Vhost>),
    Link(Link),
    Packet(Packet),
}

/// Where a port's last frame went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    Lane(Worker),
    Port(Port),
}

/// A port as the loop knows it.
pub(super) struct Carried {
    pub(super) port: Port,
    pub(super) engine: Engine,
    /// Somebody else's, to whose descriptor we may write.
    pub(super) lent: bool,
    /// In the list of ports to read.
    pub(super) listed: bool,
    /// In the list of ports to flush.
    pub(super) dirty: bool,
    pub(super) waits_writable: bool,
    pub(super) held_since_ns: Option<u64>,
    pub(super) way: Option<Way>,
    /// A bit a frame: did it go the way of the one before? The newest is the lowest.
    pub(super) history: u64,
    /// The port that the last frame was for, and the same for it.
    pub(super) aim: Port,
    pub(super) aimed: u64,
    /// New addresses that may still be learnt this second.
    pub(super) novelty: Novelty,
}

#[derive(Default)]
pub(super) struct Novelty {
    pub(super) second: u32,
    pub(super) left: u32,
}

impl Carried {
    pub(super) fn readers(&self) -> impl Iterator<Item = RawFd> + '_ {
        let (many, kicks, one) = match &self.engine {
            Engine::Tap(tap) => (tap.queues.as_slice(), None, None),
            Engine::Stream(stream) => (&[][..], None, Some(stream.read_fd)),
            Engine::Dgram(dgram) => (&[][..], None, Some(dgram.fd)),
            Engine::User(network) => (&[][..], None, Some(network.epoll_fd())),
            Engine::Vhost(device) => (&[][..], Some(device.kicks()), None),
            Engine::Link(_) => (&[][..], None, None),
            Engine::Packet(packet) => (&[][..], None, Some(packet.fd)),
        };
        many.iter().copied().chain(kicks.into_iter().flatten()).chain(one)
    }

    /// How the descriptors are waited for: a guest's bells by their edge, so that nobody has to set them back.
    pub(super) fn read_events(&self) -> u32 {
        match self.engine {
            Engine::Vhost(_) => (libc::EPOLLIN | libc::EPOLLET) as u32,
            _ => libc::EPOLLIN as u32,
        }
    }

    /// The descriptor that may have to be waited for before it can be written.
    pub(super) fn writer(&self) -> Option<RawFd> {
        match &self.engine {
            Engine::Tap(_) | Engine::User(_) | Engine::Vhost(_) | Engine::Link(_) | Engine::Packet(_) => None,
            Engine::Stream(stream) => Some(stream.write_fd),
            Engine::Dgram(dgram) => Some(dgram.send_fd()),
        }
    }

    pub(super) fn descriptors(&self) -> impl Iterator<Item = RawFd> + '_ {
        self.readers().chain(self.writer())
    }

    pub(super) fn queued(&self) -> usize {
        match &self.engine {
            Engine::Tap(_) | Engine::User(_) | Engine::Packet(_) => 0,
            Engine::Stream(stream) => stream.queued(),
            Engine::Dgram(dgram) => dgram.queued(),
            Engine::Vhost(device) => device.queued(),
            Engine::Link(link) => link.queued(),
        }
    }

    /// Frames that came in and have met no fate.
    pub(super) fn pending(&self) -> usize {
        match &self.engine {
            Engine::Dgram(dgram) => dgram.pending(),
            Engine::Tap(_) | Engine::Stream(_) | Engine::User(_) | Engine::Vhost(_) | Engine::Link(_) | Engine::Packet(_) => 0,
        }
    }

    pub(super) fn is_full(&self) -> bool {
        match &self.engine {
            Engine::Tap(_) | Engine::User(_) | Engine::Packet(_) => false,
            Engine::Stream(stream) => stream.is_full(),
            Engine::Dgram(dgram) => dgram.is_full(),
            Engine::Vhost(device) => device.is_full(),
            Engine::Link(link) => link.is_full(),
        }
    }

    pub(super) fn flush(&mut self, cell: &Cell) -> Flush {
        match &mut self.engine {
            Engine::Tap(_) | Engine::User(_) | Engine::Link(_) | Engine::Packet(_) => Flush::Idle,
            Engine::Stream(stream) => stream.flush(cell),
            Engine::Dgram(dgram) => dgram.flush(cell),
            Engine::Vhost(device) => device.flush(cell),
        }
    }
}
