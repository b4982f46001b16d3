//! The table of flows: a slab with a hash over the ends of a flow.
//!
//! A flow is named by an [`Id`], its place and the generation of that place, so that whatever still speaks of a flow
//! that is gone (a timer, an event of the kernel) meets nobody, and never its successor. The hash is keyed, so that no
//! guest can make all of its flows fall on one chain. The table never grows beyond what it was made for.

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::net::Ipv6Addr;

/// An address (IPv4 as ::ffff:a.b.c.d) with a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Endpoint {
    pub ip: Ipv6Addr,
    pub port: u16,
}

/// Both ends of a flow, as the guest sees them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Ends {
    pub guest: Endpoint,
    pub far: Endpoint,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Id {
    index: u32,
    generation: u32,
}

/// Generations that a token has room for.
const GENERATIONS: u32 = 1 << 24;

impl Id {
    /// Where in the table it is.
    pub fn place(self) -> usize {
        self.index as usize
    }

    /// Pack the id with a kind for epoll and the wheel.
    pub fn token(self, kind: u8) -> u64 {
        u64::from(kind) << 56 | u64::from(self.generation) << 32 | u64::from(self.index)
    }

    pub fn of_token(token: u64) -> (u8, Id) {
        ((token >> 56) as u8, Id { index: token as u32, generation: (token >> 32) as u32 & (GENERATIONS - 1) })
    }
}

struct Slot<K, V> {
    generation: u32,
    /// The next of the chain, or of the free list; index + 1, 0: none.
    next: u32,
    entry: Option<(K, V)>,
}

pub struct Table<K, V> {
    slots: Vec<Slot<K, V>>,
    heads: Vec<u32>,
    free: u32,
    count: usize,
    most: usize,
    keyed: RandomState,
}

impl<K: Copy + Eq + std::hash::Hash, V> Table<K, V> {
    /// A table for `most` flows. It takes their memory as they come.
    pub fn new(most: usize) -> Table<K, V> {
        let most = most.clamp(1, 1 << 24);
        Table { slots: Vec::new(), heads: vec![0; most.next_power_of_two()], free: 0, count: 0, most, keyed: RandomState::new() }
    }

    fn head(&self, key: &K) -> usize {
        self.keyed.hash_one(key) as usize & (self.heads.len() - 1)
    }

    pub fn find(&self, key: &K) -> Option<Id> {
        let mut at = self.heads[self.head(key)];
        while at != 0 {
            let slot = &self.slots[at as usize - 1];
            if slot.entry.as_ref().is_some_and(|(found, _)| found == key) {
                return Some(Id { index: at - 1, generation: slot.generation });
            }
            at = slot.next;
        }
        None
    }

    /// Put a flow in; None where the table is full. The key must not be there yet.
    pub fn insert(&mut self, key: K, value: V) -> Option<Id> {
        if self.count == self.most {
            return None;
        }
        let head = self.head(&key);
        let index = if self.free != 0 {
            let index = self.free - 1;
            self.free = self.slots[index as usize].next;
            index
        } else {
            self.slots.push(Slot { generation: 0, next: 0, entry: None });
            self.slots.len() as u32 - 1
        };
        let slot = &mut self.slots[index as usize];
        slot.next = self.heads[head];
        slot.entry = Some((key, value));
        self.heads[head] = index + 1;
        self.count += 1;
        Some(Id { index, generation: slot.generation })
    }

    pub fn get_mut(&mut self, id: Id) -> Option<(&K, &mut V)> {
        let slot = self.slots.get_mut(id.index as usize)?;
        if slot.generation != id.generation {
            return None;
        }
        slot.entry.as_mut().map(|(key, value)| (&*key, value))
    }

    pub fn remove(&mut self, id: Id) -> Option<(K, V)> {
        let slot = self.slots.get_mut(id.index as usize)?;
        if slot.generation != id.generation {
            return None;
        }
        let (key, value) = slot.entry.take()?;
        slot.generation = (slot.generation + 1) % GENERATIONS;
        let after = std::mem::replace(&mut slot.next, self.free);
        self.free = id.index + 1;
        self.count -= 1;
        let head = self.head(&key);
        if self.heads[head] == id.index + 1 {
            self.heads[head] = after;
        } else {
            let mut at = self.heads[head];
            while at != 0 {
                let slot = &mut self.slots[at as usize - 1];
                if slot.next == id.index + 1 {
                    slot.next = after;
                    break;
                }
                at = slot.next;
            }
        }
        Some((key, value))
    }

    /// The flows in the slots `from..to`, each with its slot: whoever walks them in parts meets no flow twice.
    pub fn between(&self, from: usize, to: usize) -> impl Iterator<Item = (usize, &K, &V)> {
        let (from, to) = (from.min(self.slots.len()), to.min(self.slots.len()));
        self.slots[from..to].iter().enumerate().filter_map(move |(at, slot)| {
            let (key, value) = slot.entry.as_ref()?;
            Some((from + at, key, value))
        })
    }

    /// How many more there may be.
    pub fn room(&self) -> usize {
        self.most - self.count
    }

    /// How many slots there are.
    pub fn slots(&self) -> usize {
        self.slots.len()
    }

    pub fn iter_mut(&mut self) -> impl Iterator<Item = (Id, &K, &mut V)> {
        self.slots.iter_mut().enumerate().filter_map(|(index, slot)| {
            let (key, value) = slot.entry.as_mut()?;
            Some((Id { index: index as u32, generation: slot.generation }, &*key, value))
        })
    }

    pub fn iter(&self) -> impl Iterator<Item = (Id, &K, &V)> {
        self.slots.iter().enumerate().filter_map(|(index, slot)| {
            let (key, value) = slot.entry.as_ref()?;
            Some((Id { index: index as u32, generation: slot.generation }, key, value))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_put_in_is_found_until_it_is_taken_out() {
        let mut table = Table::new(1000);
        let ids: Vec<Id> = (0..1000u32).map(|key| table.insert(key, key * 2).expect("there is room")).collect();
        assert_eq!(table.insert(1000, 0), None);
        for key in (0..1000).step_by(3) {
            assert_eq!(table.remove(ids[key as usize]), Some((key, key * 2)));
        }
        for key in 0..1000u32 {
            let found = table.find(&key);
            assert_eq!(found, (key % 3 != 0).then_some(ids[key as usize]), "key {key}");
        }
    }

    #[test]
    fn the_id_of_a_flow_that_is_gone_does_not_name_its_successor() {
        let mut table = Table::new(1);
        let old = table.insert(1u8, "old").expect("there is room");
        table.remove(old);
        let new = table.insert(1, "new").expect("there is room");
        assert!(table.get_mut(old).is_none());
        assert_eq!(table.remove(old), None);
        assert_eq!(table.get_mut(new).map(|(_, value)| *value), Some("new"));
        assert_eq!(Id::of_token(new.token(3)), (3, new));
    }
}
