//! UDP sockets for one question each: a random port for every use, and nobody is heard but who was asked.
//!
//! A socket is connected, so that the kernel lets only the resolver's datagrams in, and refusals be heard. When its question is
//! over the connection is dissolved (connect(2) to AF_UNSPEC), which gives the port back; the next connect() has the kernel
//! choose another one at random (RFC 6056). That is what a new socket would do, for half its price: 5 us a question, with
//! everything, instead of 10. What was still queued for the old port is read away in between.
//!
//! A port for eight questions would cost 2 us less each, a seventh of what a forwarded question takes in all. It is not done: a
//! port that somebody has found out is worth one question this way, of which the id is still to be guessed (RFC 5452, 9.2).

use std::io;

use crate::sys::{Epoll, Ready};
use crate::user::socket::{Name, Socket};

/// Sockets that are kept for the next question.
const IDLE_MOST: usize = 512;
/// Answers between two looks at what guests ask.
const BATCH: usize = 256;
/// More than an answer to us may be; a longer one is cut, and refused as malformed.
pub const DATAGRAM_MOST: usize = 4096;

/// A socket in one use of it; the number is nobody's when that use is over.
pub type Token = u64;

struct Slot {
    socket: Socket,
    family: libc::c_int,
    uses: u32,
    is_open: bool,
}

pub struct Sockets {
    pub epoll: Epoll,
    slots: Vec<Option<Slot>>,
    /// Places of sockets without a question, and places without a socket.
    idle: Vec<usize>,
    empty: Vec<usize>,
    uses: u32,
    ready: Vec<Ready>,
}

impl Sockets {
    pub fn new() -> io::Result<Sockets> {
        Ok(Sockets {
            epoll: Epoll::new()?,
            slots: Vec::new(),
            idle: Vec::new(),
            empty: Vec::new(),
            uses: 0,
            ready: vec![Ready { events: 0, u64: 0 }; BATCH],
        })
    }

    /// Send from a port that nothing else is sent from.
    pub fn send(&mut self, to: &Name, payload: &[u8]) -> io::Result<Token> {
        let place = self.place(to.family())?;
        let slot = self.slots[place].as_mut().expect("place() has just found it");
        slot.is_open = true;
        // SAFETY: the payload is readable for its length.
        let sent = slot.socket.connect(to).and_then(|()| unsafe { slot.socket.write(payload.as_ptr(), payload.len()) });
        let token = token(place, slot.uses);
        if let Err(error) = sent {
            self.close(token);
            return Err(error);
        }
        Ok(token)
    }

    /// Hear no more of a question; one that is over is no mistake.
    pub fn close(&mut self, token: Token) {
        let place = token as u32 as usize;
        let Some(slot) = self.slots.get_mut(place).and_then(Option::as_mut) else { return };
        if slot.uses != (token >> 32) as u32 || !slot.is_open {
            return;
        }
        slot.is_open = false;
        let nobody = Name::new(&[0; 16]).expect("16 bytes are an address"); // AF_UNSPEC is 0
        // One that cannot be dissolved is not used again.
        if self.idle.len() >= IDLE_MOST || slot.socket.connect(&nobody).is_err() {
            self.slots[place] = None;
            self.empty.push(place);
            return;
        }
        self.uses = self.uses.wrapping_add(1);
        slot.uses = self.uses;
        // Nothing finds the socket any more, so what is there is all; an error that waits is taken by a read as well.
        while !matches!(slot.socket.receive(&mut [0; 1]), Err(error) if error.kind() == io::ErrorKind::WouldBlock) {}
        self.idle.push(place);
    }

    /// See what has come; says how many sockets `receive` is to be asked about.
    pub fn poll(&mut self) -> io::Result<usize> {
        Ok(self.epoll.wait(&mut self.ready, 0)?.len())
    }

    /// The datagram of one of those sockets, or why there will be none; None where its question is over meanwhile.
    pub fn receive(&self, number: usize, buffer: &mut [u8]) -> Option<(Token, io::Result<usize>)> {
        let place = self.ready[number].u64 as usize;
        let slot = self.slots.get(place)?.as_ref().filter(|slot| slot.is_open)?;
        match slot.socket.receive(buffer) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => None,
            received => Some((token(place, slot.uses), received)),
        }
    }

    /// A socket of this family that has no question.
    fn place(&mut self, family: libc::c_int) -> io::Result<usize> {
        let fits = |&place: &usize| self.slots[place].as_ref().is_some_and(|slot| slot.family == family);
        // Nearly always there is one family, and the last one fits.
        if let Some(at) = self.idle.iter().rposition(fits) {
            return Ok(self.idle.swap_remove(at));
        }
        let socket = Socket::new(family, libc::SOCK_DGRAM, 0)?;
        let place = self.empty.last().copied().unwrap_or(self.slots.len());
        self.epoll.add(socket.fd(), libc::EPOLLIN as u32, place as u64)?;
        if self.empty.pop().is_none() {
            self.slots.push(None);
        }
        self.uses = self.uses.wrapping_add(1);
        self.slots[place] = Some(Slot { socket, family, uses: self.uses, is_open: false });
        Ok(place)
    }
}

fn token(place: usize, uses: u32) -> Token {
    u64::from(uses) << 32 | place as u64
}
