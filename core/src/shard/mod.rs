//! The loop of a worker: it carries the frames of its ports until something needs Python.
//!
//! A turn of the loop goes the way of a frame: drain the lanes that come in (egress.rs), read the descriptors that are
//! ready (ingress.rs) and decide where their frames go (forward.rs), write out what engines have gathered, show other
//! workers what was put into their lanes. A turn takes at most `BURST` frames from each source. Frames that are late on
//! purpose come in between (impaired.rs). With nothing left to do the worker says that it sleeps, looks once more, and
//! blocks in epoll; its doorbell is one of the descriptors there.
//!
//! Where there is no room somebody waits, or loses (pressure.rs). What a capture gets is copied by who has the frame
//! (mirror.rs) and written by the capture's own worker (captured.rs). Ports come and go in roster.rs.

mod captured;
mod carried;
mod egress;
mod forward;
mod handover;
mod impaired;
mod ingress;
mod mirror;
mod packet;
mod pressure;
mod roster;
mod vhost;

use std::io;
use std::os::fd::RawFd;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crate::arena::{Arena, PORTS, SWITCHES, WORKERS};
use crate::lane::{Consumer, Producer};
use crate::port::{Bench, Capture, Flush, Inbox};
use crate::ports::{Cause, Counter, NOBODY, Port, Vlan, Worker};
use crate::switch::View;
use crate::sys::{self, Epoll, Ready};
use crate::table::{Clock, Key};
use crate::user::{Answer, Network};
use carried::{Carried, Engine};
use handover::Handed;
use impaired::Lines;

const BURST: usize = 64;
/// How often a hold, or a descriptor that does not say when it has room, is looked at.
const NAP_MS: i32 = 1;

/// What Python is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum News {
    /// A watched descriptor is readable or has ended.
    Ready(RawFd),
    /// The port's descriptor ended, with an errno or 0; the loop has let go of it.
    Ended(Port, i32),
    /// Datagrams wait for the service that the port is.
    Datagrams(Port),
    /// A ring of a vhost-user port stopped, for its driver could not be followed; the others go on.
    Stopped(Port, i32),
    /// The network that is this port dropped frames, for there was none of something for a new flow.
    Short(Port, Cause),
    /// The file of the capture that is this port has had its end: it waits for the next one.
    Full(Port),
}

const BELL: u64 = 1 << 32;
const WATCH: u64 = 2 << 32;
const PORT: u64 = 3 << 32;
const TIMER: u64 = 4 << 32;

pub struct Shard {
    arena: &'static Arena,
    me: Worker,
    bells: Vec<RawFd>,
    epoll: Epoll,
    view: View,
    now_s: u32,
    ports: Vec<Option<Box<Carried>>>,
    /// Ports that are ours, lent ones not among them.
    own: Vec<Port>,
    producers: Vec<Option<Box<Producer>>>,
    consumers: Vec<Option<Box<Consumer>>>,
    /// A bit a worker: its lane has records that it was not shown.
    unpublished: u64,
    unpublished_bytes: usize,
    readable: Vec<Port>,
    /// Ports that were read in this turn and have more, for the next one.
    unfinished: Vec<Port>,
    dirty: Vec<Port>,
    held: Vec<Port>,
    /// User-mode networks with work that nobody waits for.
    chores: Vec<Port>,
    scratch: Inbox,
    bench: Bench,
    capture: Option<Capture>,
    /// Turns that a captured frame of a port that nobody has named yet has waited for.
    puzzled: u32,
    /// The port that the capture is, also once it has ended, and how it did.
    capture_port: Port,
    capture_ended: (u64, u64, u64, i32),
    nap: bool,
    news: Vec<News>,
    /// Services with datagrams for Python.
    mail: Vec<Port>,
    handed: Handed,
    lines: Lines,
}

impl Shard {
    /// The loop of worker `me`; `bells` are the doorbells of all workers, and stay the caller's.
    pub fn new(arena: &'static Arena, me: Worker, bells: Vec<RawFd>) -> io::Result<Shard> {
        if usize::from(me) >= bells.len() || bells.len() > WORKERS {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "a doorbell for each worker, this one among them"));
        }
        let epoll = Epoll::new()?;
        // By its edge: each ring is told once, and nobody has to set the bell back.
        epoll.add(bells[usize::from(me)], (libc::EPOLLIN | libc::EPOLLET) as u32, BELL)?;
        Ok(Shard {
            arena,
            me,
            epoll,
            view: View::default(),
            now_s: sys::now_s(),
            ports: (0..PORTS).map(|_| None).collect(),
            own: Vec::new(),
            producers: (0..WORKERS).map(|_| None).collect(),
            consumers: (0..WORKERS).map(|_| None).collect(),
            unpublished: 0,
            unpublished_bytes: 0,
            readable: Vec::new(),
            unfinished: Vec::new(),
            dirty: Vec::new(),
            held: Vec::new(),
            chores: Vec::new(),
            scratch: Inbox::new(crate::lane::FRAME_MOST + 8),
            bench: Bench::default(),
            capture: None,
            puzzled: 0,
            capture_port: NOBODY,
            capture_ended: (0, 0, 0, 0),
            nap: false,
            news: Vec::new(),
            mail: Vec::new(),
            handed: Handed::default(),
            lines: Lines::default(),
            bells,
        })
    }

    /// The port behind which a station was last heard that speaks to `port`: on its switch, in its VLAN.
    pub fn heard(&self, port: Port, mac: u64) -> Option<Port> {
        let record = self.arena.port(port);
        let vlan = match record.vlan() {
            Vlan::Plain => 0,
            Vlan::Access(vid) | Vlan::Trunk { native: vid } => vid,
        };
        let switch = record.switch.load(Ordering::Relaxed) as usize & (SWITCHES - 1);
        self.arena.table(switch).find(Key::new(mac, vlan), self.clock(switch))
    }

    /// The network that the port is, for a service to take datagrams from it.
    pub fn network(&mut self, port: Port) -> Option<&mut Network> {
        match &mut self.ports.get_mut(usize::from(port))?.as_mut()?.engine {
            Engine::User(network) => Some(network),
            _ => None,
        }
    }

    /// Give the service's port datagrams to send; false where it has no room for this one.
    pub fn answer(&mut self, port: Port, answer: &Answer) -> Result<bool, &'static str> {
        let taken = self.network(port).ok_or("no service")?.answer(answer)?;
        if taken {
            self.list(port);
        } else {
            // It is one that came in and met a full way, like any other.
            let cell = self.arena.cell(self.me, port);
            cell.add(Counter::RxTaken, 1);
            cell.drop(Cause::LaneFull, 1);
        }
        Ok(taken)
    }

    /// Have a service ask who has an address.
    pub fn seek(&mut self, port: Port, address: std::net::Ipv6Addr) {
        if let Some(network) = self.network(port) {
            network.seek(address);
            self.list(port);
        }
    }

    /// Have the port read in the next turn: it may have something to say to what it was just given.
    pub fn list(&mut self, port: Port) {
        if let Some(carried) = &mut self.ports[usize::from(port)]
            && !carried.listed
            && carried.held_since_ns.is_none()
        {
            carried.listed = true;
            self.readable.push(port);
        }
    }

    pub fn watch(&mut self, fd: RawFd) -> io::Result<()> {
        self.epoll.add(fd, libc::EPOLLIN as u32, WATCH | fd as u64)
    }

    pub fn unwatch(&mut self, fd: RawFd) {
        self.epoll.remove(fd);
    }

    /// Carry frames until there is news or `timeout` has passed, what is ready now in any case; EINTR comes back as an error.
    pub fn run(&mut self, timeout: Option<Duration>) -> io::Result<Vec<News>> {
        let deadline = timeout.map(|timeout| Instant::now() + timeout);
        let mut looked = false;
        loop {
            let busy = self.turn();
            if !self.mail.is_empty() {
                self.wait(true, None)?; // what else is ready is told with them
                self.news.extend(self.mail.drain(..).map(News::Datagrams));
            }
            if !self.news.is_empty() {
                return Ok(std::mem::take(&mut self.news));
            }
            let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            let over = left.is_some_and(|left| left.is_zero());
            if over && looked {
                return Ok(Vec::new());
            }
            self.wait(busy || over, left)?;
            looked = true;
        }
    }

    /// One turn; true where a source still has more.
    fn turn(&mut self) -> bool {
        let beat = &self.arena.worker(self.me).beat.0;
        beat.store(beat.load(Ordering::Relaxed).wrapping_add(1), Ordering::Relaxed);
        self.now_s = sys::now_s();
        self.nap = false;
        if self.view.refresh(self.arena) {
            self.change_lines();
        }
        self.review_held();
        let mut busy = self.drain_lanes();
        busy |= self.read_ports();
        busy |= self.release_due();
        self.flush();
        self.flush_capture(busy);
        while let Some(port) = self.chores.pop() {
            self.network(port).into_iter().for_each(Network::do_chores);
        }
        // What was written out has made room: a port that waited for it is read at once, and not after a nap.
        self.review_held();
        busy | !self.readable.is_empty()
    }

    fn wait(&mut self, busy: bool, left: Option<Duration>) -> io::Result<()> {
        let mut ready = [Ready { events: 0, u64: 0 }; 64];
        if !busy {
            self.lines.set_timer(&self.epoll)?;
        }
        let sleeping = &self.arena.worker(self.me).sleeping;
        let mut timeout_ms = 0;
        let rest_ms = self.capture.as_mut().filter(|_| !busy).map_or(0, Capture::rest_ms);
        if rest_ms != 0 {
            // It rests, or dozes while frames come: nobody shall have to ring for each of them.
            timeout_ms = left.map_or(rest_ms, |left| left.as_millis().min(rest_ms as u128) as i32);
        } else if !busy {
            sleeping.announce();
            if !self.has_mail() && !self.has_room() {
                timeout_ms = left.map_or(-1, |left| left.as_millis().min(i32::MAX as u128) as i32 + 1);
                if self.nap || !self.held.is_empty() {
                    timeout_ms = if timeout_ms < 0 { NAP_MS } else { timeout_ms.min(NAP_MS) };
                }
            }
        }
        let result = self.epoll.wait(&mut ready, timeout_ms);
        sleeping.awake();
        for event in result? {
            let (kind, id) = (event.u64 & !0xffff_ffff, event.u64 as u32);
            match kind {
                BELL => {}
                TIMER => self.lines.hush_timer(),
                WATCH => self.news.push(News::Ready(id as RawFd)),
                _ => self.wake(id as Port, event.events),
            }
        }
        Ok(())
    }

    /// Did anything come into our lanes since we looked?
    fn has_mail(&mut self) -> bool {
        let senders = self.arena.worker(self.me).senders.0.load(Ordering::Acquire);
        !self.is_stuck() && bits(senders).any(|from| self.consumer(from).has_more())
    }

    fn wake(&mut self, port: Port, events: u32) {
        let Some(carried) = &mut self.ports[usize::from(port)] else { return };
        let writable = match carried.engine {
            Engine::Vhost(_) => libc::EPOLLIN, // the guest has added buffers
            _ => libc::EPOLLOUT,
        };
        if carried.waits_writable && events & (writable | libc::EPOLLHUP | libc::EPOLLERR) as u32 != 0 && !carried.dirty {
            carried.dirty = true;
            self.dirty.push(port);
        }
        if let Engine::User(network) = &mut carried.engine {
            network.rouse();
        }
        let read = events & (libc::EPOLLIN | libc::EPOLLHUP | libc::EPOLLERR) as u32 != 0;
        if read && !carried.listed && carried.held_since_ns.is_none() {
            carried.listed = true;
            self.readable.push(port);
        }
    }

    /// Write out what engines have gathered, then show the other workers what lies in their lanes.
    fn flush(&mut self) {
        for port in std::mem::take(&mut self.dirty) {
            let Some(mut carried) = self.ports[usize::from(port)].take() else { continue };
            carried.dirty = false;
            let cell = self.arena.cell(self.me, port);
            let flushed = carried.flush(cell);
            if let Engine::Vhost(device) = &mut carried.engine {
                self.news.extend(device.take_stopped().map(|ring| News::Stopped(port, ring as i32)));
            }
            match flushed {
                Flush::Ended(errno) => {
                    self.end(carried, errno);
                    continue;
                }
                Flush::Soon => {
                    self.nap = true;
                    carried.dirty = true;
                    self.dirty.push(port);
                }
                Flush::Idle | Flush::Writable => {}
            }
            self.want_writable(&mut carried, flushed == Flush::Writable);
            self.tell(port, carried.is_full());
            self.ports[usize::from(port)] = Some(carried);
        }
        self.publish();
    }

    fn want_writable(&mut self, carried: &mut Carried, wanted: bool) {
        if carried.waits_writable == wanted {
            return;
        }
        carried.waits_writable = wanted;
        self.arm(carried);
    }

    /// Tell epoll what we want of the port now.
    fn arm(&self, carried: &Carried) {
        let token = PORT | u64::from(carried.port);
        // What a guest rings says of its buffers too, so it is listened to even where nothing is to be read.
        let deaf = carried.held_since_ns.is_some() && !matches!(carried.engine, Engine::Vhost(_));
        let read = if deaf { 0 } else { carried.read_events() };
        let write = if carried.waits_writable { libc::EPOLLOUT as u32 } else { 0 };
        let writer = carried.writer();
        for fd in carried.readers() {
            // A descriptor that epoll no longer knows is one that has ended; its end is told by the next read.
            let _ = self.epoll.change(fd, read | if Some(fd) == writer { write } else { 0 }, token);
        }
        if let Some(writer) = writer.filter(|writer| !carried.readers().any(|fd| fd == *writer)) {
            if carried.waits_writable {
                let _ = self.epoll.add(writer, write, token);
            } else {
                self.epoll.remove(writer);
            }
        }
    }

    /// Show each worker what was put into its lane, and ring where it sleeps.
    fn publish(&mut self) {
        for to in bits(std::mem::take(&mut self.unpublished)) {
            let Some(producer) = &mut self.producers[usize::from(to)] else { continue };
            if producer.publish() {
                self.ring(to);
            }
        }
        self.unpublished_bytes = 0;
    }

    fn ring(&self, worker: Worker) {
        if self.arena.worker(worker).sleeping.must_ring()
            && let Some(&bell) = self.bells.get(usize::from(worker))
        {
            sys::ring(bell);
        }
    }

    fn producer(&mut self, to: Worker) -> &mut Producer {
        let (arena, me) = (self.arena, self.me);
        self.producers[usize::from(to)].get_or_insert_with(|| Box::new(Producer::new(arena, me, to)))
    }

    fn consumer(&mut self, from: Worker) -> &mut Consumer {
        let (arena, me) = (self.arena, self.me);
        self.consumers[usize::from(from)].get_or_insert_with(|| Box::new(Consumer::new(arena, from, me)))
    }

    fn clock(&self, switch: usize) -> Clock {
        Clock { now_s: self.now_s, age_s: self.view.domains[switch].age_s }
    }
}

/// The workers of a bitmap.
fn bits(mut map: u64) -> impl Iterator<Item = Worker> {
    std::iter::from_fn(move || {
        let next = map.trailing_zeros();
        map &= map.wrapping_sub(1);
        (next < 64).then_some(next as Worker)
    })
}
