//! The loop's part in a packet socket: frames of its ring go on from where they lie, long ones are read to where they go.

use std::io;
use std::sync::atomic::Ordering;

use super::carried::{Carried, Engine};
use super::ingress::{Arrival, Read};
use super::{BURST, Shard};
use crate::port::Packet;
use crate::port::packet::Next;
use crate::ports::{Cause, Counter, Port};

impl Shard {
    pub fn add_packet(&mut self, port: Port, packet: Packet) -> io::Result<()> {
        self.add(port, Engine::Packet(packet), false)?;
        self.list(port); // frames may wait for a successor
        Ok(())
    }

    /// Say, to all workers, what the port's interface takes: packets of at most so many bytes, 0: any, or `NO_LINK`.
    pub fn set_link(&self, port: Port, link: u32) {
        self.arena.port(port).link.store(link, Ordering::Relaxed);
    }

    pub(super) fn read_packet(&mut self, carried: &mut Carried) -> Read {
        let read = self.read_ring(carried);
        let Engine::Packet(packet) = &mut carried.engine else { return read };
        let lost = packet.lost();
        if lost != 0 {
            let cell = self.arena.cell(self.me, carried.port);
            cell.add(Counter::RxTaken, lost);
            cell.drop(Cause::Overrun, lost);
        }
        read
    }

    fn read_ring(&mut self, carried: &mut Carried) -> Read {
        for turn in 0..BURST {
            let Engine::Packet(packet) = &mut carried.engine else { return Read::Empty };
            match packet.peek() {
                Next::Nothing => {
                    if turn == 0 {
                        packet.hush();
                    }
                    return Read::Empty;
                }
                Next::Short => {
                    if carried.is_steady() && self.place(carried).is_none() {
                        return Read::Held;
                    }
                    let Engine::Packet(packet) = &mut carried.engine else { return Read::Empty };
                    match packet.take() {
                        Ok((frame, len)) => self.settle(carried, Arrival { frame, len, claimed: None }),
                        Err(cause) => self.refuse(carried.port, cause),
                    }
                    let Engine::Packet(packet) = &mut carried.engine else { return Read::Empty };
                    packet.release();
                }
                Next::Long => {
                    let Some((at, claimed)) = self.place(carried) else { return Read::Held };
                    let Engine::Packet(packet) = &mut carried.engine else { return Read::Empty };
                    // SAFETY: `place` gives room for any frame, with its headroom.
                    match unsafe { packet.receive(at) } {
                        Ok(len) => self.settle(carried, Arrival { frame: at, len, claimed }),
                        Err(cause) => self.refuse(carried.port, cause),
                    }
                }
                Next::Lost(cause) => {
                    packet.skip();
                    self.refuse(carried.port, cause);
                }
            }
        }
        Read::More
    }

    /// Count a frame that came in and goes nowhere.
    fn refuse(&self, port: Port, cause: Cause) {
        let cell = self.arena.cell(self.me, port);
        cell.add(Counter::RxTaken, 1);
        cell.drop(cause, 1);
    }
}
