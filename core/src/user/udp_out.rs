//! What guests send by UDP, gathered while a turn of the loop lasts and then sent by as few calls as the kernel allows.
//!
//! A frame's memory is ours during the call only, so a datagram is copied once: for a small one that costs a fiftieth of a
//! call. At the end of the turn those of one flow stand together, in their order. A run of one length to one destination
//! goes as one message which the kernel cuts (UDP_SEGMENT; the last may be shorter), the messages of a flow by one
//! sendmmsg. Long datagrams and a guest's super-frames are sent at once, behind what was gathered before them.
//!
//! A message that fails meets what each of its datagrams would have met. What is reported may be about an earlier one: that
//! is told, and it is tried once more. A message that the kernel will not cut (datagrams longer than the path's mtu) goes
//! out one by one, as all of that flow do from then on. What finds no room is lost, as datagrams are.

use std::io::{self, IoSlice};
use std::mem;
use std::ops::Range;

use super::config::Target;
use super::datagram::{self, Beside, Message};
use super::flows::{Endpoint, Id};
use super::icmp::{self, Trouble};
use super::lack::Unopened;
use super::udp::{Datagram, HEADER};
use super::wire::{Mac, Packet, UDP};
use super::{Arrival, Fate, Network};

/// Longer ones are not worth a copy.
const LONG: usize = 16 << 10;
/// What is gathered at most.
const DATAGRAMS: usize = 256;
const BYTES: usize = 256 << 10;
/// Datagrams that the kernel makes of one message: UDP_MAX_SEGMENTS of Linux before 6.9. Their bytes fit into one packet.
const RUN: usize = 64;
const RUN_BYTES: usize = 65_000;
/// Messages of one call.
const MESSAGES: usize = 16;
/// The system has no room, now.
const LOST: [i32; 3] = [libc::EAGAIN, libc::ENOBUFS, libc::ENOMEM];
/// What may be about an earlier datagram.
const EARLIER: [i32; 5] = [libc::ECONNREFUSED, libc::EHOSTUNREACH, libc::ENETUNREACH, libc::EMSGSIZE, libc::EPROTO];
/// How Linux refuses to cut: a path of a smaller mtu, one without checksums.
const UNCUT: [i32; 4] = [libc::EINVAL, libc::EMSGSIZE, libc::EIO, libc::EOPNOTSUPP];

/// A datagram on its way out.
struct Outgoing {
    flow: Id,
    to: Endpoint,
    /// Where it goes, as the guest has it.
    seen: Endpoint,
    ttl: u8,
    /// Where its bytes are.
    at: Range<usize>,
}

#[derive(Default)]
pub struct Gathered {
    datagrams: Vec<Outgoing>,
    bytes: Vec<u8>,
}

impl Network {
    /// # Safety
    /// The frame is readable.
    pub(super) unsafe fn take_udp(&mut self, arrival: &Arrival, packet: &Packet) -> Fate {
        // SAFETY: as the caller promises.
        let Some(Datagram { from, to, len, cut }) = (unsafe { Datagram::read(arrival, packet) }) else { return Fate::Taken };
        let guest = Endpoint { ip: packet.source, port: from };
        let far = Endpoint { ip: packet.destination, port: to };
        let told = match self.target_of_datagram(guest, far) {
            Target::Senseless | Target::Forward(_) => return Fate::Taken,
            Target::Refused if self.core.config.restrict => return Fate::Taken,
            Target::Refused => Trouble::NoPort,
            Target::Nobody => Trouble::NoHost,
            Target::Outside(_) if packet.ttl <= 1 && !self.core.config.owns(far.ip) => Trouble::TimeExceeded,
            Target::Outside(to) => match self.flow_of(guest, arrival.mac) {
                Ok(flow) => {
                    let at = arrival.at.wrapping_add(packet.transport + HEADER);
                    let beside = Beside { ttl: packet.ttl.saturating_sub(1).max(1), cut };
                    // SAFETY: the payload is within the packet, and that within the frame.
                    unsafe { self.send_udp(flow, to, far, at, len - HEADER, beside) };
                    return Fate::Taken;
                }
                Err(Unopened::Lack(cause)) => return Fate::Lost(cause),
                Err(Unopened::Failed(error)) => Trouble::of(error.raw_os_error().unwrap_or(0)),
            },
        };
        let Some(by) = self.core.config.subnet(guest.ip).map(|net| net.host) else { return Fate::Taken };
        // SAFETY: as the caller promises.
        let first = unsafe { arrival.copy(packet.transport, packet.end.min(packet.transport + 64)) };
        icmp::error(&mut self.core, by, guest.ip, far.ip, arrival.mac, UDP, &first, told);
        Fate::Taken
    }

    /// Judge where a datagram goes; who was let in by hostfwd may be answered.
    fn target_of_datagram(&mut self, guest: Endpoint, far: Endpoint) -> Target {
        let target = self.core.config.target(far, false);
        if !matches!(target, Target::Refused) {
            return target;
        }
        let Some((_, udp)) = self.udp.find(&guest).and_then(|id| self.udp.get_mut(id)) else { return target };
        udp.client(far, self.core.now_ms).map_or(target, Target::Outside)
    }

    fn flow_of(&mut self, guest: Endpoint, mac: Mac) -> Result<Id, Unopened> {
        let id = match self.udp.find(&guest) {
            Some(id) => id,
            None => self.open_udp(guest, mac)?,
        };
        if let Some((_, udp)) = self.udp.get_mut(id) {
            udp.mac = mac;
        }
        Ok(id)
    }

    /// # Safety
    /// `at` points to `len` readable bytes.
    unsafe fn send_udp(&mut self, flow: Id, to: Endpoint, seen: Endpoint, at: *const u8, len: usize, beside: Beside) {
        let now_ms = self.core.now_ms;
        let Some((_, udp)) = self.udp.get_mut(flow) else { return };
        udp.used_ms = now_ms;
        udp.traffic.far = Some(to);
        udp.traffic.from_guest += len as u64;
        if beside.cut != 0 || len > LONG {
            self.flush();
            let Some((_, udp)) = self.udp.get_mut(flow) else { return };
            // SAFETY: as the caller promises.
            match unsafe { datagram::send(udp.socket(), to, at, len, &beside) } {
                Err(error) if !LOST.contains(&error.raw_os_error().unwrap_or(0)) => {} // once more, as any other, for what is to be said about it
                _ => return,
            }
        }
        let each = if beside.cut == 0 { len } else { beside.cut.into() };
        let mut done = 0;
        loop {
            let part = each.min(len - done);
            // SAFETY: within what the caller promises.
            unsafe { self.gather(Outgoing { flow, to, seen, ttl: beside.ttl, at: 0..part }, at.add(done)) };
            done += part;
            if done == len {
                break;
            }
        }
        if beside.cut != 0 || len > LONG {
            self.flush();
        }
    }

    /// Keep a datagram until the turn ends.
    ///
    /// # Safety
    /// `from` points to as many readable bytes as the datagram has.
    unsafe fn gather(&mut self, mut one: Outgoing, from: *const u8) {
        let len = one.at.len();
        if self.gathered.datagrams.len() == DATAGRAMS || self.gathered.bytes.len() + len > BYTES {
            self.flush();
        }
        let Gathered { datagrams, bytes } = &mut self.gathered;
        one.at = bytes.len()..bytes.len() + len;
        bytes.reserve(len);
        // SAFETY: as the caller promises; there is room behind the bytes, which become longer by what is written.
        unsafe {
            std::ptr::copy_nonoverlapping(from, bytes.as_mut_ptr().add(bytes.len()), len);
            bytes.set_len(one.at.end);
        }
        datagrams.push(one);
    }

    /// Send what was gathered.
    #[inline]
    pub fn flush(&mut self) {
        if !self.gathered.datagrams.is_empty() {
            self.flush_all();
        }
    }

    fn flush_all(&mut self) {
        let mut gathered = mem::take(&mut self.gathered);
        gathered.datagrams.sort_by_key(|one| one.flow.place()); // stable: each flow's stay in their order
        for of_flow in gathered.datagrams.chunk_by(|one, next| one.flow == next.flow) {
            self.send_flow(of_flow, &gathered.bytes);
        }
        gathered.datagrams.clear();
        gathered.bytes.clear();
        self.gathered = gathered;
    }

    fn send_flow(&mut self, mut left: &[Outgoing], bytes: &[u8]) {
        let flow = left[0].flow;
        while !left.is_empty() {
            let Some((_, udp)) = self.udp.get_mut(flow) else { return };
            let pieces: Vec<IoSlice> = left.iter().map(|one| IoSlice::new(&bytes[one.at.clone()])).collect();
            let (mut messages, mut ends) = (Vec::new(), Vec::new());
            let mut end = 0;
            while end < left.len() && messages.len() < MESSAGES {
                let run = run(&left[end..], udp.cuts);
                messages.push(message(&left[end..end + run], &pieces[end..end + run]));
                end += run;
                ends.push(end);
            }
            let went = match datagram::send_many(udp.socket(), &messages) {
                Ok(count) => ends[count.clamp(1, ends.len()) - 1],
                Err(error) => {
                    self.mend(&left[..ends[0]], bytes, &error);
                    ends[0]
                }
            };
            left = &left[went..];
        }
    }

    /// A message failed.
    fn mend(&mut self, run: &[Outgoing], bytes: &[u8], error: &io::Error) {
        let first = &run[0];
        let mut errno = error.raw_os_error().unwrap_or(0);
        if EARLIER.contains(&errno) && self.tell_udp_errors(first.flow) {
            match self.try_once(run, bytes) {
                Ok(()) => return,
                Err(again) if run.len() > 1 => errno = again.raw_os_error().unwrap_or(0),
                Err(_) => {
                    self.tell_udp_errors(first.flow);
                    return;
                }
            }
        }
        if LOST.contains(&errno) || (run.len() == 1 && errno == libc::EMSGSIZE) {
            return; // the error queue says how much would have been right
        }
        let Some((guest, udp)) = self.udp.get_mut(first.flow) else { return };
        if run.len() > 1 {
            udp.cuts &= !UNCUT.contains(&errno);
            for one in run.chunks(1) {
                if let Err(error) = self.try_once(one, bytes) {
                    self.mend(one, bytes, &error);
                }
            }
            return;
        }
        let (guest, mac) = (*guest, udp.mac);
        let Some(by) = self.core.config.subnet(guest.ip).map(|net| net.host) else { return };
        let data = &bytes[first.at.clone()];
        self.tell_udp(guest, mac, first.seen, (data, data.len()), by, Trouble::of(errno));
    }

    fn try_once(&mut self, run: &[Outgoing], bytes: &[u8]) -> io::Result<()> {
        let Some((_, udp)) = self.udp.get_mut(run[0].flow) else { return Ok(()) };
        let pieces: Vec<IoSlice> = run.iter().map(|one| IoSlice::new(&bytes[one.at.clone()])).collect();
        datagram::send_many(udp.socket(), &[message(run, &pieces)]).map(drop)
    }
}

/// How many datagrams the first message takes: of one length, but for the last.
fn run(left: &[Outgoing], cuts: bool) -> usize {
    let first = &left[0];
    let (each, mut bytes, mut count) = (first.at.len(), first.at.len(), 1);
    if !cuts || each == 0 {
        return 1;
    }
    for one in &left[1..left.len().min(RUN)] {
        let len = one.at.len();
        bytes += len;
        if (one.to, one.ttl) != (first.to, first.ttl) || len > each || len == 0 || bytes > RUN_BYTES {
            break;
        }
        count += 1;
        if len < each {
            break;
        }
    }
    count
}

fn message<'a>(run: &[Outgoing], pieces: &'a [IoSlice<'a>]) -> Message<'a> {
    let first = &run[0];
    let cut = if run.len() == 1 { 0 } else { first.at.len() as u16 };
    Message { to: first.to, beside: Beside { ttl: first.ttl, cut }, pieces }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::user::flows::Table;

    #[test]
    fn a_message_takes_datagrams_of_one_length_to_one_place_and_a_shorter_one_at_its_end() {
        let mut table = Table::new(1);
        let flow = table.insert(0, ()).expect("there is room");
        let outgoing = |port: u16, ttl: u8, len: usize| {
            let to = Endpoint { ip: std::net::Ipv6Addr::LOCALHOST, port };
            Outgoing { flow, to, seen: to, ttl, at: 0..len }
        };
        let all = |of: &[(u16, u8, usize)]| of.iter().map(|&(port, ttl, len)| outgoing(port, ttl, len)).collect::<Vec<_>>();
        assert_eq!(run(&all(&[(1, 64, 22); 100]), true), RUN);
        assert_eq!(run(&all(&[(1, 64, 22); 100]), false), 1);
        assert_eq!(run(&all(&[(1, 64, 22), (1, 64, 22), (1, 64, 21), (1, 64, 21)]), true), 3);
        assert_eq!(run(&all(&[(1, 64, 22), (1, 64, 23)]), true), 1);
        assert_eq!(run(&all(&[(1, 64, 22), (2, 64, 22)]), true), 1);
        assert_eq!(run(&all(&[(1, 64, 22), (1, 63, 22)]), true), 1);
        assert_eq!(run(&all(&[(1, 64, 0), (1, 64, 0)]), true), 1);
        assert_eq!(run(&all(&[(1, 64, 22), (1, 64, 0)]), true), 1);
        assert_eq!(run(&all(&[(1, 64, 16_000); 100]), true), 4);
    }
}
