//! The way in: from a descriptor to the decision where a frame goes, and on to there.

use std::io;
use std::ptr;
use std::sync::atomic::Ordering;

use super::{BURST, Carried, Engine, Shard, Way, bits};
use crate::frame;
use crate::lane::{CLAIM, FORWARD, FRAME_LEAST, FRAME_MOST, HEADROOM, Label, MIRROR_IN, RECORD_HEADER, TAGGED, VNET_LEN};
use crate::offload::{GSO_NONE, VnetHeader};
use crate::port::{Link, Piece, Refusal, capture, stream, tap};
use crate::ports::{self, Cause, Counter, NOBODY, Port, Worker};
use crate::switch::{self, Config, Edit};
use crate::table::{Heard, Key};
use crate::user;

/// New addresses a port may teach in a second.
const NOVELTIES: u32 = 10_000;
/// Bytes put into lanes beyond which they are shown before the burst is over: a super-frame is a batch of its own.
const PUBLISH_BYTES: usize = 64 << 10;
/// Enough of a frame to decide: two addresses and a tag.
const HEAD: usize = 18;

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

enum Target {
    One(Port),
    All,
    Nobody,
}

impl Shard {
    /// Read the ports that are ready; true where one has more.
    pub(super) fn read_ports(&mut self) -> bool {
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
                    self.readable.push(port);
                }
                Read::Empty => {}
            }
            self.ports[usize::from(port)] = Some(carried);
        }
        !self.readable.is_empty()
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
                Err(_) => return Read::Empty,
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

    /// Decide about a frame and carry it on; whatever happens is counted.
    pub(super) fn settle(&mut self, carried: &mut Carried, arrival: Arrival) {
        let cell = self.arena.cell(self.me, carried.port);
        if !matches!(carried.engine, Engine::Dgram(_)) {
            cell.add(Counter::RxTaken, 1); // a datagram was counted with its batch
        }
        if self.delays_in(carried.port, arrival.len) {
            return self.delay(carried.port, ports::Way::In, &Piece { frame: arrival.frame, len: arrival.len, edit: Edit::Keep });
        }
        self.carry(carried, arrival);
    }

    /// Carry a frame on that has come in.
    pub(super) fn carry(&mut self, carried: &mut Carried, arrival: Arrival) {
        let cell = self.arena.cell(self.me, carried.port);
        match self.forward(carried, arrival) {
            Ok(counter) => {
                cell.add(counter, 1);
                cell.add(Counter::RxBytes, arrival.len as u64);
            }
            Err(cause) => cell.drop(cause, 1),
        }
        self.hand_over();
        if self.unpublished_bytes >= PUBLISH_BYTES {
            self.publish();
        }
    }

    fn forward(&mut self, carried: &mut Carried, arrival: Arrival) -> Result<Counter, Cause> {
        let Arrival { frame, len, .. } = arrival;
        if len < FRAME_LEAST {
            return Err(Cause::Runt);
        }
        if len > FRAME_MOST {
            return Err(Cause::Oversize);
        }
        let mut head = [0u8; HEAD];
        let head = &mut head[..len.min(HEAD)];
        // SAFETY: the frame has `len` bytes; what is decided on is this copy.
        unsafe { ptr::copy_nonoverlapping(frame, head.as_mut_ptr(), head.len()) };
        let config = self.view.ports[usize::from(carried.port)];
        let vlan = self.admit(carried, &config, head, &arrival)?;
        let target = self.target(&config, carried.port, head, vlan);
        if config.mirror != 0 {
            self.mirror(config.mirror, carried.port, MIRROR_IN, &Piece { frame, len, edit: Edit::Keep });
        }
        match target {
            Target::Nobody => Ok(Counter::Filtered),
            Target::One(to) => {
                let to = self.view.shard_of(to, || top(&arrival));
                self.unicast(carried, to, vlan, arrival)
            }
            Target::All => self.flood(carried, &config, vlan, arrival),
        }
    }

    /// The VLAN of a frame that may come in. Its source is learnt on the way.
    fn admit(&mut self, carried: &mut Carried, config: &Config, head: &[u8], arrival: &Arrival) -> Result<u16, Cause> {
        if !config.up {
            return Err(Cause::Down);
        }
        let source = frame::source(head).unwrap_or(0);
        if source == 0 || frame::is_multicast(source) {
            return Err(Cause::BadSource);
        }
        let vlan = switch::classify(self.arena, carried.port, config.vlan, head)?;
        if vlan & TAGGED != 0 && arrival.len < HEAD {
            return Err(Cause::Runt);
        }
        let vnet = Piece { frame: arrival.frame, len: arrival.len, edit: Edit::Keep }.vnet();
        if vnet.gso_type != GSO_NONE {
            self.arena.cell(self.me, carried.port).add(Counter::RxSuper, 1);
        }
        if config.mtu != 0 && packet_len(&vnet, arrival.len, vlan) > config.mtu {
            return Err(Cause::Oversize);
        }
        let domain = &self.view.domains[config.switch];
        if switch::is_reserved(domain, frame::destination(head).unwrap_or(0)) {
            return Err(Cause::Reserved);
        }
        if config.behind != NOBODY && !user::is_ours(source) {
            return Err(Cause::BadSource);
        }
        if !domain.hub {
            self.learn(carried, config, source, vlan)?;
        }
        Ok(vlan)
    }

    fn learn(&mut self, carried: &mut Carried, config: &Config, source: u64, vlan: u16) -> Result<(), Cause> {
        // What a companion sends, it sends in the name of the port that hands over to it.
        let owner = if config.behind == NOBODY { carried.port } else { config.behind };
        let record = self.arena.port(owner);
        let table = self.arena.table(config.switch);
        let over = |macs: u32| config.max_macs != 0 && macs >= config.max_macs;
        let novelty = &mut carried.novelty;
        if novelty.second != self.now_s {
            (novelty.second, novelty.left) = (self.now_s, NOVELTIES);
        }
        let count = |port: Port, by: i32| {
            if port != NOBODY {
                self.arena.port(port).macs.fetch_add(by as u32, std::sync::atomic::Ordering::Relaxed);
            }
        };
        let heard = table.hear(Key::new(source, vlan & switch::VID), owner, self.clock(config.switch), || {
            if novelty.left == 0 || over(record.macs.load(std::sync::atomic::Ordering::Relaxed)) {
                return false;
            }
            novelty.left -= 1;
            true
        });
        match heard {
            Heard::Known => {}
            Heard::New { gone } => {
                count(gone, -1);
                count(owner, 1);
            }
            Heard::Moved { before } => {
                count(before, -1);
                count(owner, 1);
            }
            Heard::Full if over(record.macs.load(std::sync::atomic::Ordering::Relaxed)) => return Err(Cause::MacLimit),
            Heard::Full => {}
        }
        Ok(())
    }

    fn target(&self, config: &Config, from: Port, head: &[u8], vlan: u16) -> Target {
        let domain = &self.view.domains[config.switch];
        let destination = frame::destination(head).unwrap_or(0);
        if domain.hub || frame::is_multicast(destination) {
            return Target::All;
        }
        let key = Key::new(destination, vlan & switch::VID);
        match self.arena.table(config.switch).find(key, self.clock(config.switch)) {
            None => Target::All,
            Some(to) if to == from => Target::Nobody,
            Some(to) => {
                let other = &self.view.ports[usize::from(to)];
                if !other.used || other.switch != config.switch {
                    Target::All
                } else if other.isolated && config.isolated {
                    Target::Nobody
                } else {
                    Target::One(to)
                }
            }
        }
    }

    fn unicast(&mut self, carried: &mut Carried, to: Port, vlan: u16, arrival: Arrival) -> Result<Counter, Cause> {
        let config = self.view.ports[usize::from(to)];
        let local = config.worker == self.me;
        // A lent descriptor is written from room claimed in the lane, which stays the queue for when it is not empty.
        carried.went(if local { Way::Port(to) } else { Way::Lane(config.worker) }, to);
        if local || self.may_write(to, config.worker) {
            let Some(edit) = switch::leave(self.arena, to, config.vlan, vlan) else { return Ok(Counter::Filtered) };
            let piece = Piece { frame: arrival.frame, len: arrival.len, edit };
            self.deliver(to, &piece);
            return Ok(Counter::Forwarded);
        }
        let label = label(carried.port, to, vlan, arrival.len);
        self.send_to(config.worker, label, arrival).map(|()| Counter::Forwarded)
    }

    /// Is the port's descriptor lent to us, with nothing of ours before it in the lane to `worker`?
    fn may_write(&mut self, to: Port, worker: Worker) -> bool {
        !self.view.ports[usize::from(to)].impaired_out
            && self.ports[usize::from(to)].as_ref().is_some_and(|to| to.lent)
            && self.producers[usize::from(worker)].as_mut().is_none_or(|lane| lane.is_empty())
    }

    fn send_to(&mut self, to: Worker, label: Label, arrival: Arrival) -> Result<(), Cause> {
        let producer = self.producer(to);
        if arrival.claimed == Some(to) {
            producer.commit(label);
        } else {
            // SAFETY: the frame has `len` bytes and its virtio-net header before it, in memory of ours or in a claim
            // in another lane.
            match unsafe { producer.push(label, arrival.frame) } {
                Ok(true) => {}
                Ok(false) => return Err(Cause::LaneFull),
                Err(_) => return Err(Cause::NoMemory),
            }
        }
        self.unpublished |= 1 << to;
        self.unpublished_bytes += label.len as usize;
        Ok(())
    }

    fn flood(&mut self, carried: &Carried, config: &Config, vlan: u16, arrival: Arrival) -> Result<Counter, Cause> {
        let (mut workers, mut copies) = (0u64, 0);
        for index in 0..self.view.domains[config.switch].members.len() {
            let to = self.view.domains[config.switch].members[index];
            let Some((worker, edit)) = self.flooded(config, carried.port, to, vlan) else { continue };
            if worker == self.me {
                self.deliver(to, &Piece { frame: arrival.frame, len: arrival.len, edit });
                copies += 1;
            } else {
                workers |= 1 << worker;
            }
        }
        // The claim that the frame lies in is committed last, since the other copies are made from it.
        let label = label(carried.port, NOBODY, vlan, arrival.len);
        let last = arrival.claimed.filter(|claimed| workers >> claimed & 1 == 1);
        let mut lost = None;
        for to in bits(workers & !last.map_or(0, |last| 1 << last)).chain(last) {
            match self.send_to(to, label, arrival) {
                Ok(()) => copies += 1,
                Err(cause) => {
                    lost = Some(cause);
                    self.arena.cell(self.me, carried.port).add(Counter::CopiesLost, 1);
                }
            }
        }
        match (copies, lost) {
            (0, Some(cause)) => Err(cause),
            (0, None) => Ok(Counter::Filtered),
            _ => {
                self.arena.cell(self.me, carried.port).add(Counter::Flooded, 1);
                Ok(Counter::Forwarded)
            }
        }
    }

    /// Does a flooded frame of `from` go to `to`, and if so by which worker and how changed?
    pub(super) fn flooded(&self, config: &Config, from: Port, to: Port, vlan: u16) -> Option<(Worker, Edit)> {
        let other = &self.view.ports[usize::from(to)];
        if to == from || !other.used || !other.up || (other.isolated && config.isolated) {
            return None;
        }
        Some((other.worker, switch::leave(self.arena, to, other.vlan, vlan)?))
    }

    /// Give a copy to the workers that capture this port. A capture that is behind loses it, and nobody waits.
    pub(super) fn mirror(&mut self, workers: u64, port: Port, kind: u16, piece: &Piece) {
        let whole = piece.wire_len();
        for to in bits(workers) {
            let wanted = match self.arena.worker(to).snaplen.0.load(Ordering::Relaxed) {
                0 => whole,
                snaplen => whole.min(snaplen as usize),
            };
            let len = wanted.clamp(FRAME_LEAST, FRAME_MOST);
            let producer = self.producer(to);
            producer.ample();
            let Ok(Some(at)) = producer.claim_for(len) else {
                self.miss(to, port);
                continue;
            };
            // SAFETY: a claim has room for the frame behind its headroom, and is ours alone.
            let out = unsafe {
                at.add(RECORD_HEADER).cast::<[u32; 2]>().write_unaligned([capture::stamp(), whole as u32]);
                std::slice::from_raw_parts_mut(at.add(HEADROOM), len)
            };
            piece.copy_first(out);
            producer.commit(Label { len: len as u32, from: port, to: NOBODY, vlan: 0, kind });
            self.unpublished |= 1 << to;
        }
    }

    /// Count a frame that a capture did not get: by port, for the end of its file, and where the capture is a port, there.
    #[cold]
    fn miss(&mut self, captor: Worker, port: Port) {
        self.producer(captor).refuse();
        self.arena.loss(captor, port).fetch_add(1, Ordering::Relaxed);
        let capture = self.view.captures[usize::from(captor)];
        if capture != NOBODY {
            let cell = self.arena.cell(self.me, capture);
            cell.add(Counter::Offered, 1);
            cell.drop(Cause::TxFull, 1);
        }
    }

    /// A frame is handed to a port that this worker can write to; what becomes of it is counted there.
    pub(super) fn deliver(&mut self, to: Port, piece: &Piece) {
        self.arena.cell(self.me, to).add(Counter::Offered, 1);
        if self.view.ports[usize::from(to)].impaired_out {
            return self.delay(to, ports::Way::Out, piece);
        }
        self.give(to, piece);
    }

    /// Give a frame that was counted as offered to the port's engine.
    pub(super) fn give(&mut self, to: Port, piece: &Piece) {
        if let Err(refusal) = self.egress(to, piece) {
            let cause = match refusal {
                Refusal::Drop(cause) => cause,
                Refusal::Blocked => Cause::TxFull,
                Refusal::Ended(_) => Cause::TxDown,
                Refusal::HandOver(companion) => return self.gather(to, companion, piece),
            };
            self.arena.cell(self.me, to).drop(cause, 1);
        }
    }
}

fn top(arrival: &Arrival) -> [u8; switch::HEAD] {
    let mut head = [0; switch::HEAD];
    // SAFETY: the frame has `len` bytes; what is decided on is this copy.
    unsafe { ptr::copy_nonoverlapping(arrival.frame, head.as_mut_ptr(), arrival.len.min(switch::HEAD)) };
    head
}

fn label(from: Port, to: Port, vlan: u16, len: usize) -> Label {
    Label { len: len as u32, from, to, vlan, kind: FORWARD }
}

fn nothing_read(error: &io::Error) -> Read {
    match error.raw_os_error().unwrap_or(0) {
        libc::EAGAIN | libc::EINTR => Read::Empty,
        // The far end of a datagram socket answered that nobody is there: the port goes on.
        libc::ECONNREFUSED => Read::More,
        errno => Read::Ended(errno),
    }
}

/// Length of the IP packet (of each segment, for a super-frame) that the frame carries.
pub(super) fn packet_len(vnet: &VnetHeader, len: usize, vlan: u16) -> usize {
    let header = if vlan & TAGGED != 0 { frame::HEADER + frame::TAG } else { frame::HEADER };
    if vnet.gso_type == GSO_NONE {
        return len.saturating_sub(header);
    }
    let transport = if vnet.csum_offset == 6 { 8 } else { 20 }; // UDP, or TCP without its options
    (usize::from(vnet.csum_start) + transport + usize::from(vnet.gso_size)).saturating_sub(header)
}
