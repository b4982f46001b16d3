//! The TCP flows in memory that outlives the worker, so that its successor can reset them.
//!
//! When a worker dies the kernel resets the host's half of its flows, and nobody the guest's: one that only receives would wait
//! for ever. So the supervisor keeps a memfd in which each flow has a record, at its place in the table: both ends, the
//! guest's hardware address, and the sequence numbers, which are brought up to date with every frame by one store. The
//! successor reads the records, forgets them, and sends a RST for each. Where frames were lost with the worker the RST does
//! not fit exactly; then the guest challenges it (RFC 5961, 3.2), and the answer to that fits.
//!
//! ```text
//!   0 used | 4 guest's port | 6 far port | 8 snd_nxt, rcv_nxt | 16 guest | 32 far end | 48 hardware address
//! ```

use std::io;
use std::net::Ipv6Addr;
use std::os::fd::RawFd;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use super::flows::{Endpoint, Ends};
use super::wire::Mac;
use crate::sys::{self, Mapping};

const RECORD: usize = 64; // user.py makes room for so many bytes a flow
const PAGE: usize = 4096;

/// A flow whose worker is dead.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Orphan {
    pub ends: Ends,
    pub mac: Mac,
    pub snd_nxt: u32,
    pub rcv_nxt: u32,
}

pub struct Ledger {
    mapping: Mapping,
}

impl Ledger {
    /// What a predecessor left is returned and forgotten. `fd` stays the caller's; its size says how many flows have a record.
    pub fn new(fd: RawFd) -> io::Result<(Ledger, Vec<Orphan>)> {
        let size = sys::file_size(fd)? as usize / PAGE * PAGE;
        let ledger = Ledger { mapping: Mapping::new(fd, 0, size)? };
        let mut orphans = Vec::new();
        let mut page = [0u8; PAGE];
        for offset in (0..size).step_by(PAGE) {
            sys::read_at(fd, offset as u64, &mut page)?; // to touch a page by the mapping would give it memory
            for (step, bytes) in page.chunks_exact(RECORD).enumerate() {
                if let Some(orphan) = read(bytes) {
                    orphans.push(orphan);
                    ledger.strike(offset / RECORD + step);
                }
            }
        }
        Ok((ledger, orphans))
    }

    /// Where the record of the flow at this place is, and whether there is one.
    fn record(&self, place: usize) -> Option<*mut u8> {
        // SAFETY: the record ends within the mapping.
        ((place + 1) * RECORD <= self.mapping.len()).then(|| unsafe { self.mapping.start().add(place * RECORD) })
    }

    pub fn enter(&self, place: usize, ends: &Ends, mac: Mac) {
        let Some(at) = self.record(place) else { return };
        let mut bytes = [0u8; RECORD];
        bytes[4..6].copy_from_slice(&ends.guest.port.to_ne_bytes());
        bytes[6..8].copy_from_slice(&ends.far.port.to_ne_bytes());
        bytes[16..32].copy_from_slice(&ends.guest.ip.octets());
        bytes[32..48].copy_from_slice(&ends.far.ip.octets());
        bytes[48..54].copy_from_slice(&mac);
        // SAFETY: the record is ours alone; whoever reads it does so after our death.
        unsafe {
            std::ptr::copy_nonoverlapping(bytes.as_ptr(), at, RECORD);
            AtomicU32::from_ptr(at.cast()).store(1, Ordering::Release);
        }
    }

    pub fn note(&self, place: usize, snd_nxt: u32, rcv_nxt: u32) {
        let Some(at) = self.record(place) else { return };
        // SAFETY: the record is aligned to 64 bytes, and ours.
        unsafe { AtomicU64::from_ptr(at.add(8).cast()) }.store(u64::from(snd_nxt) << 32 | u64::from(rcv_nxt), Ordering::Relaxed);
    }

    pub fn strike(&self, place: usize) {
        let Some(at) = self.record(place) else { return };
        // SAFETY: the record is aligned to 64 bytes, and ours.
        unsafe { AtomicU32::from_ptr(at.cast()) }.store(0, Ordering::Release);
    }
}

fn read(bytes: &[u8]) -> Option<Orphan> {
    let bytes: &[u8; RECORD] = bytes.try_into().ok()?;
    if bytes[0] != 1 {
        return None;
    }
    let port = |at: usize| u16::from_ne_bytes([bytes[at], bytes[at + 1]]);
    let ip = |at: usize| bytes[at..].first_chunk::<16>().map(|ip| Ipv6Addr::from(*ip));
    let both = u64::from_ne_bytes(*bytes[8..].first_chunk()?);
    Some(Orphan {
        ends: Ends { guest: Endpoint { ip: ip(16)?, port: port(4) }, far: Endpoint { ip: ip(32)?, port: port(6) } },
        mac: *bytes[48..].first_chunk()?,
        snd_nxt: (both >> 32) as u32,
        rcv_nxt: both as u32,
    })
}

#[cfg(test)]
mod tests {
    use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

    use super::*;

    #[test]
    fn a_successor_finds_the_flows_that_were_open_and_those_once() {
        // SAFETY: the name ends with a zero; the new descriptor has one owner.
        let memory = unsafe { OwnedFd::from_raw_fd(libc::memfd_create(c"ledger".as_ptr(), libc::MFD_CLOEXEC)) };
        let ends = |port| {
            let end = |ip: u16, port| Endpoint { ip: Ipv6Addr::new(0xfec0, 0, 0, 0, 0, 0, 0, ip), port };
            Ends { guest: end(15, port), far: end(2, 80) }
        };
        sys::truncate(memory.as_raw_fd(), 1024 * RECORD as u64).expect("room");
        let (ledger, orphans) = Ledger::new(memory.as_raw_fd()).expect("a ledger");
        assert_eq!(orphans, []);
        for place in [0, 5, 1023] {
            ledger.enter(place, &ends(place as u16), [2, 0, 0, 0, 0, 1]);
            ledger.note(place, 7, u32::MAX);
        }
        ledger.enter(1024, &ends(1024), [0; 6]); // beyond its end
        ledger.strike(5);
        drop(ledger);
        let (_, orphans) = Ledger::new(memory.as_raw_fd()).expect("a ledger");
        let orphan = |port| Orphan { ends: ends(port), mac: [2, 0, 0, 0, 0, 1], snd_nxt: 7, rcv_nxt: u32::MAX };
        assert_eq!(orphans, [orphan(0), orphan(1023)]);
        assert_eq!(Ledger::new(memory.as_raw_fd()).expect("a ledger").1, []);
    }
}
