//! The loop's part in a vhost-user port: its device is changed between turns, and its rings are read as any descriptor is.

use std::io;

use super::carried::{Carried, Engine};
use super::ingress::{Arrival, Read};
use super::{BURST, News, Shard};
use crate::port::Vhost;
use crate::port::vhost::Received;
use crate::ports::{Counter, Port};

impl Shard {
    pub fn add_vhost(&mut self, port: Port, device: Vhost) -> io::Result<()> {
        self.add(port, Engine::Vhost(Box::new(device)), false)
    }

    /// Change the device of a vhost-user port, between turns.
    pub fn vhost<R>(&mut self, port: Port, change: impl FnOnce(&mut Vhost) -> io::Result<R>) -> io::Result<R> {
        let missing = || io::Error::new(io::ErrorKind::InvalidInput, "no vhost-user port");
        let mut carried = self.ports.get_mut(usize::from(port)).and_then(Option::take).ok_or_else(missing)?;
        for fd in carried.readers() {
            self.epoll.remove(fd); // before it may be closed: the front end's copy would keep it in the epoll
        }
        let changed = match &mut carried.engine {
            Engine::Vhost(device) => change(device),
            _ => Err(missing()),
        };
        let listens = self.listen(&carried);
        // Frames may wait for what was changed, on both sides.
        if !carried.dirty {
            carried.dirty = true;
            self.dirty.push(port);
        }
        self.ports[usize::from(port)] = Some(carried);
        self.list(port);
        listens.and(changed)
    }

    pub(super) fn read_vhost(&mut self, carried: &mut Carried) -> Read {
        let read = self.read_rings(carried);
        let Engine::Vhost(device) = &mut carried.engine else { return read };
        device.end_batch();
        self.news.extend(device.take_stopped().map(|ring| News::Stopped(carried.port, ring as i32)));
        if device.is_broken() { Read::Ended(libc::EFAULT) } else { read }
    }

    fn read_rings(&mut self, carried: &mut Carried) -> Read {
        for _ in 0..BURST {
            let Some((at, claimed)) = self.place(carried) else { return Read::Held };
            let Engine::Vhost(device) = &mut carried.engine else { return Read::Empty };
            // SAFETY: `place` gives room for any frame, with its headroom, which nobody else uses.
            match unsafe { device.receive(at) } {
                Received::Frame(len) => self.settle(carried, Arrival { frame: at, len, claimed }),
                Received::Nothing => return Read::Empty,
                Received::Dropped(cause) => {
                    let cell = self.arena.cell(self.me, carried.port);
                    cell.add(Counter::RxTaken, 1);
                    cell.drop(cause, 1);
                }
            }
        }
        Read::More
    }
}
