//! The way in: from a descriptor to a frame whose fate is open; forward.rs decides about it.

use std::io;

use super::carried::{Carried, Engine, Way};
use super::{BURST, Shard};
use crate::lane::{CLAIM, HEADROOM, VNET_LEN};
use crate::port::{Link, stream, tap};
use crate::ports::{Cause, Counter, Worker};

/// A frame that came in and whose fate is open.
#[derive(Clone, Copy)]
pub(super) struct Arrival {
    pub(super) frame: *mut u8,
    pub(super) len: usize,
    /// It lies in room claimed in the lane to this worker.
    pub(super) claimed: Option<Worker>,
}

/// The only place where the frame can go has no room.
struct Full;

/// How a reading turn of a port ended.
pub(super) enum Read {
    /// The descriptor has no more for now.
    Empty,
    /// There may be more.
    More,
    /// The frame at hand has to wait for room.
    Held,
    Ended(i32),
}

impl Shard {
    /// Read the ports that are ready, then those that were given something meanwhile: an answer waits for no descriptor.
    /// True where one has more.
    pub(super) fn read_ports(&mut self) -> bool {
        self.read_listed();
        self.read_listed();
        self.readable.append(&mut self.unfinished);
        !self.readable.is_empty()
    }

    /// Read the ports that are listed now; those that have more are left in `unfinished`.
    fn read_listed(&mut self) {
        for port in std::mem::take(&mut self.readable) {
            let Some(mut carried) = self.ports[usize::from(port)].take() else { continue };
            carried.listed = false;
            let read = self.read_port(&mut carried);
            match read {
                Read::Ended(errno) => {
                    self.end(carried, errno);
                    continue;
                }
                Read::Held => self.hold(&mut carried),
                Read::More => {
                    carried.listed = true;
                    self.unfinished.push(port);
                }
                Read::Empty => {}
            }
            self.ports[usize::from(port)] = Some(carried);
        }
    }

    fn read_port(&mut self, carried: &mut Carried) -> Read {
        match carried.engine {
            Engine::Tap(_) => self.read_tap(carried),
            Engine::Stream(_) => self.read_stream(carried),
            Engine::Dgram(_) => self.read_dgram(carried),
            Engine::User(_) => self.read_user(carried),
            Engine::Vhost(_) => self.read_vhost(carried),
            Engine::Link(_) => self.read_link(carried),
            Engine::Packet(_) => self.read_packet(carried),
        }
    }

    fn read_tap(&mut self, carried: &mut Carried) -> Read {
        let Engine::Tap(tap) = &mut carried.engine else { return Read::Empty };
        let mut queues = tap.queues.len();
        let mut queue = tap.next_queue();
        for _ in 0..BURST {
            let Some((at, claimed)) = self.place(carried) else { return Read::Held };
            let Engine::Tap(tap) = &mut carried.engine else { return Read::Empty };
            // SAFETY: `place` gives room for any frame, with its headroom.
            match unsafe { tap.receive(queue, at) } {
                Ok(len) => self.settle(carried, Arrival { frame: at, len: len.max(0) as usize, claimed }),
                Err(error) if tap::is_gone(&error) => return Read::Ended(error.raw_os_error().unwrap_or(0)),
                Err(_) => {
                    queues -= 1;
                    if queues == 0 {
                        return Read::Empty;
                    }
                    queue = tap.next_queue();
                }
            }
        }
        Read::More
    }

    /// Where the next frame of the port is to be read to; None where the port is to be held.
    pub(super) fn place(&mut self, carried: &Carried) -> Option<(*mut u8, Option<Worker>)> {
        match carried.way {
            Some(Way::Lane(_)) if self.is_pressed(carried) => return None,
            Some(Way::Lane(to)) => match self.producer(to).claim(CLAIM) {
                // The copy for a capture would take the same room. SAFETY: a claim begins with the headroom.
                Ok(Some(at)) if self.view.captors >> to & 1 == 0 => return Some((unsafe { at.add(HEADROOM) }, Some(to))),
                Ok(None) if carried.is_steady() => return None,
                _ => {}
            },
            Some(Way::Port(to)) if carried.is_steady() && self.ports[usize::from(to)].as_ref().is_some_and(|to| to.is_full()) => {
                return None;
            }
            _ => {}
        }
        Some((self.scratch.frame(), None))
    }

    fn read_stream(&mut self, carried: &mut Carried) -> Read {
        for _ in 0..4 * BURST {
            let Engine::Stream(stream) = &mut carried.engine else { return Read::Empty };
            match stream.peek() {
                stream::Next::Frame(frame, len) => {
                    if self.settle_or_wait(carried, Arrival { frame, len, claimed: None }).is_err() {
                        return Read::Held;
                    }
                    let Engine::Stream(stream) = &mut carried.engine else { return Read::Empty };
                    stream.consume();
                }
                stream::Next::Runt => {
                    let cell = self.arena.cell(self.me, carried.port);
                    cell.add(Counter::RxTaken, 1);
                    cell.drop(Cause::Runt, 1);
                }
                stream::Next::Bad => return Read::Ended(libc::EPROTO),
                stream::Next::Partial => match stream.fill() {
                    Ok(0) => return Read::Ended(0),
                    Ok(_) => {}
                    Err(error) => return nothing_read(&error),
                },
            }
        }
        Read::More
    }

    fn read_dgram(&mut self, carried: &mut Carried) -> Read {
        for _ in 0..2 * BURST {
            let Engine::Dgram(dgram) = &mut carried.engine else { return Read::Empty };
            match dgram.peek() {
                Some(Ok((_, 0))) if dgram.is_record_socket() => return Read::Ended(0),
                Some(Err(cause)) => {
                    self.arena.cell(self.me, carried.port).drop(cause, 1);
                    dgram.consume();
                }
                Some(Ok((frame, len))) => {
                    if self.settle_or_wait(carried, Arrival { frame, len, claimed: None }).is_err() {
                        return Read::Held;
                    }
                    let Engine::Dgram(dgram) = &mut carried.engine else { return Read::Empty };
                    dgram.consume();
                }
                None => match dgram.fill(self.view.ports[usize::from(carried.port)].mtu) {
                    Ok(0) => return Read::Empty,
                    Ok(_) => self.arena.cell(self.me, carried.port).add(Counter::RxTaken, dgram.pending() as u64),
                    Err(error) => return nothing_read(&error),
                },
            }
        }
        Read::More
    }

    fn read_user(&mut self, carried: &mut Carried) -> Read {
        for _ in 0..BURST {
            let Some((at, claimed)) = self.place(carried) else { return Read::Held };
            let Engine::User(network) = &mut carried.engine else { return Read::Empty };
            // SAFETY: `place` gives room for any frame, with its headroom, which nobody else uses.
            match unsafe { network.receive(at) } {
                Ok(len) => self.settle(carried, Arrival { frame: at, len: len as usize, claimed }),
                Err(_) => {
                    if network.has_chores() {
                        self.chores.push(carried.port);
                    }
                    return Read::Empty;
                }
            }
        }
        Read::More
    }

    /// Take what was sent to the other end.
    fn read_link(&mut self, carried: &mut Carried) -> Read {
        let Engine::Link(Link { peer, .. }) = carried.engine else { return Read::Empty };
        for _ in 0..BURST {
            if carried.is_steady() && self.place(carried).is_none() {
                return Read::Held;
            }
            let Some(Engine::Link(far)) = self.ports[usize::from(peer)].as_mut().map(|far| &mut far.engine) else { return Read::Empty };
            let Some(mut bytes) = far.take() else {
                self.tell(peer, false);
                return Read::Empty;
            };
            let len = bytes.len() - VNET_LEN;
            let cell = self.arena.cell(self.me, peer);
            cell.add(Counter::TxFrames, 1);
            cell.add(Counter::TxBytes, len as u64);
            self.settle(carried, Arrival { frame: bytes.as_mut_ptr().wrapping_add(VNET_LEN), len, claimed: None });
        }
        self.tell(peer, self.is_full(peer));
        Read::More
    }

    /// As `settle`, but a steady port's frame is left where it is while its only way has no room.
    fn settle_or_wait(&mut self, carried: &mut Carried, arrival: Arrival) -> Result<(), Full> {
        if carried.is_steady() && self.place(carried).is_none() {
            return Err(Full);
        }
        self.settle(carried, arrival);
        Ok(())
    }
}

fn nothing_read(error: &io::Error) -> Read {
    match error.raw_os_error().unwrap_or(0) {
        libc::EAGAIN | libc::EINTR => Read::Empty,
        // The far end of a datagram socket answered that nobody is there: the port goes on.
        libc::ECONNREFUSED => Read::More,
        errno => Read::Ended(errno),
    }
}
