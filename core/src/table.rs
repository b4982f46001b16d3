//! The table of a switch: which port an address was last heard on.
//!
//! Open addressing over buckets of a cache line; an entry is two words, so a worker that dies between any two
//! instructions leaves a table that is true. All workers write it, none waits for another. An address that was not
//! heard for the switch's ageing time is as good as absent, and its slot may be taken; a table without such a slot
//! floods the new address, it never forgets somebody else's.
//!
//! A slot whose key changes is read in three steps (key, value, key again). While it changes hands its value is still
//! the aged one, so a reader between the two stores sees a stranger that is absent.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::ports::{NOBODY, PORTS, Port};

/// Room for 100,000 addresses at a load at which a look-up still meets one cache line, mostly.
pub const SLOTS: usize = 1 << 18;
const BUCKET: usize = 4;
const PROBES: usize = 16;

#[repr(C)]
pub struct Slot {
    key: AtomicU64,
    value: AtomicU64,
}

/// An address in a VLAN.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Key(u64);

impl Key {
    const USED: u64 = 1 << 63;

    pub fn new(mac: u64, vlan: u16) -> Key {
        Key(Key::USED | u64::from(vlan & 0xfff) << 48 | mac & 0xffff_ffff_ffff)
    }

    fn mac(self) -> u64 {
        self.0 & 0xffff_ffff_ffff
    }

    fn vlan(self) -> u16 {
        (self.0 >> 48) as u16 & 0xfff
    }
}

fn pack(port: Port, seen_s: u32) -> u64 {
    u64::from(seen_s) << 16 | u64::from(port)
}

/// Any value names a port that can be.
fn unpack(value: u64) -> (Port, u32) {
    (value as Port & (PORTS as Port - 1), (value >> 16) as u32)
}

/// Seconds now, and after how many an address is forgotten.
#[derive(Debug, Clone, Copy)]
pub struct Clock {
    pub now_s: u32,
    pub age_s: u32,
}

impl Clock {
    fn lives(self, port: Port, seen_s: u32) -> bool {
        // An address heard by a worker whose clock is a tick ahead is heard now.
        port != NOBODY && (self.now_s.saturating_sub(seen_s)) < self.age_s
    }
}

/// What became of an address that was heard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Heard {
    /// On the port where it was.
    Known,
    /// For the first time; the slot's former port lost an entry, if it had one.
    New { gone: Port },
    /// On another port than before.
    Moved { before: Port },
    /// It is new, and there is no room for it.
    Full,
}

pub struct Table<'a> {
    slots: &'a [Slot],
    secret: u64,
}

/// A live entry, as the supervisor lists it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Station {
    pub mac: u64,
    pub vlan: u16,
    pub port: Port,
    pub age_s: u32,
}

impl<'a> Table<'a> {
    /// `slots`: a power of two of them.
    pub fn new(slots: &'a [Slot], secret: u64) -> Table<'a> {
        debug_assert!(slots.len().is_power_of_two());
        Table { slots, secret }
    }

    fn probe(&self, key: Key) -> impl Iterator<Item = &'a Slot> + use<'a> {
        // Folded multiplication: every bit of the key and of the secret reaches the upper half.
        let wide = u128::from(key.0 ^ self.secret) * 0x9e37_79b9_7f4a_7c15;
        let hash = (wide >> 64) as u64 ^ wide as u64;
        let mask = self.slots.len() - 1;
        let first = (hash as usize & mask) & !(BUCKET - 1);
        let slots = self.slots;
        (0..BUCKET * PROBES).map(move |step| &slots[(first + step) & mask])
    }

    /// The port that `key` was last heard on, if that is not too long ago.
    pub fn find(&self, key: Key, clock: Clock) -> Option<Port> {
        for slot in self.probe(key) {
            match slot.key.load(Ordering::Acquire) {
                0 => return None,
                found if found == key.0 => {
                    let (port, seen_s) = unpack(slot.value.load(Ordering::Acquire));
                    let still = slot.key.load(Ordering::Relaxed) == key.0;
                    return (still && clock.lives(port, seen_s)).then_some(port);
                }
                _ => {}
            }
        }
        None
    }

    /// `key` was heard on `port`. `admit` is asked before a new entry is made; false leaves the table as it is (`Full`).
    pub fn hear(&self, key: Key, port: Port, clock: Clock, admit: impl FnOnce() -> bool) -> Heard {
        let mut spare: Option<(&Slot, u64)> = None;
        for slot in self.probe(key) {
            let found = slot.key.load(Ordering::Acquire);
            if found == key.0 {
                return Table::renew(slot, port, clock);
            }
            if spare.is_none() {
                let (owner, seen_s) = unpack(slot.value.load(Ordering::Acquire));
                if found == 0 || !clock.lives(owner, seen_s) {
                    spare = Some((slot, found));
                }
            }
            if found == 0 {
                break;
            }
        }
        let Some((slot, found)) = spare else { return Heard::Full };
        if !admit() {
            return Heard::Full;
        }
        let before = slot.value.load(Ordering::Acquire);
        if slot.key.compare_exchange(found, key.0, Ordering::AcqRel, Ordering::Relaxed).is_err() {
            return Heard::Full; // another worker was quicker: the next frame tries again
        }
        slot.value.store(pack(port, clock.now_s), Ordering::Release);
        Heard::New { gone: if found == 0 { NOBODY } else { unpack(before).0 } }
    }

    fn renew(slot: &Slot, port: Port, clock: Clock) -> Heard {
        let value = slot.value.load(Ordering::Relaxed);
        let (before, seen_s) = unpack(value);
        if before == port {
            if seen_s != clock.now_s {
                slot.value.store(pack(port, clock.now_s), Ordering::Release);
            }
            return Heard::Known;
        }
        slot.value.store(pack(port, clock.now_s), Ordering::Release);
        if before == NOBODY { Heard::New { gone: NOBODY } } else { Heard::Moved { before } }
    }

    /// All live entries.
    pub fn stations(&self, clock: Clock) -> impl Iterator<Item = Station> + use<'a> {
        self.slots.iter().filter_map(move |slot| {
            let key = Key(slot.key.load(Ordering::Acquire));
            let (port, seen_s) = unpack(slot.value.load(Ordering::Acquire));
            (key.0 != 0 && clock.lives(port, seen_s)).then(|| Station {
                mac: key.mac(),
                vlan: key.vlan(),
                port,
                age_s: clock.now_s.saturating_sub(seen_s),
            })
        })
    }

    /// Forget all entries for which `gone` says so, calling it with the port of each that any port still owns.
    pub fn forget(&self, mut gone: impl FnMut(Port, u32) -> bool) -> usize {
        let mut count = 0;
        for slot in self.slots {
            let value = slot.value.load(Ordering::Relaxed);
            let (port, seen_s) = unpack(value);
            if port != NOBODY && gone(port, seen_s) && slot.value.compare_exchange(value, 0, Ordering::AcqRel, Ordering::Relaxed).is_ok() {
                count += 1;
            }
        }
        count
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slots(count: usize) -> Vec<Slot> {
        (0..count).map(|_| Slot { key: AtomicU64::new(0), value: AtomicU64::new(0) }).collect()
    }

    fn at(now_s: u32) -> Clock {
        Clock { now_s, age_s: 300 }
    }

    #[test]
    fn an_address_is_found_on_the_port_where_it_was_last_heard() {
        let slots = slots(64);
        let table = Table::new(&slots, 7);
        let key = Key::new(0x5254_0012_3456, 0);
        assert_eq!(table.find(key, at(1000)), None);
        assert_eq!(table.hear(key, 3, at(1000), || true), Heard::New { gone: NOBODY });
        assert_eq!(table.hear(key, 3, at(1001), || true), Heard::Known);
        assert_eq!(table.find(key, at(1001)), Some(3));
        assert_eq!(table.hear(key, 4, at(1001), || true), Heard::Moved { before: 3 });
        assert_eq!(table.find(key, at(1002)), Some(4));
    }

    #[test]
    fn one_address_in_two_vlans_is_two_stations() {
        let slots = slots(64);
        let table = Table::new(&slots, 7);
        table.hear(Key::new(1, 10), 3, at(0), || true);
        table.hear(Key::new(1, 20), 4, at(0), || true);
        assert_eq!(table.find(Key::new(1, 10), at(0)), Some(3));
        assert_eq!(table.find(Key::new(1, 20), at(0)), Some(4));
        assert_eq!(table.find(Key::new(1, 0), at(0)), None);
    }

    #[test]
    fn an_address_silent_for_300_seconds_is_absent_and_its_slot_may_be_taken() {
        let slots = slots(4);
        let table = Table::new(&slots, 7);
        for mac in 0..4 {
            assert_eq!(table.hear(Key::new(mac, 0), 3, at(1000), || true), Heard::New { gone: NOBODY });
        }
        assert_eq!(table.hear(Key::new(9, 0), 5, at(1299), || true), Heard::Full);
        assert_eq!(table.find(Key::new(0, 0), at(1299)), Some(3));
        assert_eq!(table.find(Key::new(0, 0), at(1300)), None);
        assert_eq!(table.hear(Key::new(9, 0), 5, at(1300), || true), Heard::New { gone: 3 });
        assert_eq!(table.find(Key::new(9, 0), at(1300)), Some(5));
    }

    #[test]
    fn an_entry_that_is_not_admitted_is_not_made() {
        let slots = slots(4);
        let table = Table::new(&slots, 7);
        assert_eq!(table.hear(Key::new(1, 0), 3, at(0), || false), Heard::Full);
        assert_eq!(table.stations(at(0)).count(), 0);
    }

    #[test]
    fn forgetting_a_port_leaves_the_others() {
        let slots = slots(256);
        let table = Table::new(&slots, 7);
        for mac in 0..40 {
            table.hear(Key::new(mac, 0), 1 + (mac % 2) as Port, at(0), || true);
        }
        assert_eq!(table.forget(|port, _| port == 1), 20);
        assert!(table.stations(at(0)).all(|station| station.port == 2));
        assert_eq!(table.stations(at(0)).count(), 20);
    }

    #[test]
    fn a_hundred_thousand_addresses_all_find_room() {
        let slots = slots(SLOTS);
        let table = Table::new(&slots, 0x1234_5678_9abc_def0);
        for mac in 0..100_000u64 {
            let key = Key::new(0x5254_0000_0000 | mac, (mac % 7) as u16);
            assert_eq!(table.hear(key, (1 + mac % 1000) as Port, at(0), || true), Heard::New { gone: NOBODY });
        }
        for mac in 0..100_000u64 {
            let key = Key::new(0x5254_0000_0000 | mac, (mac % 7) as u16);
            assert_eq!(table.find(key, at(10)), Some((1 + mac % 1000) as Port));
        }
    }
}
