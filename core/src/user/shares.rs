//! How much of a network each guest has: one leaves the others a quarter, of the flows and of the descriptors.
//!
//! A guest is a hardware address, since one guest has many addresses of IP; how many hardware addresses there may be is the
//! switch's to say (`max_macs`).

use std::collections::HashMap;

use super::wire::Mac;
use crate::ports::Cause;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Tcp,
    Udp,
    Ping,
}

#[derive(Debug)]
pub struct Shares {
    /// Flows of each kind.
    flows: usize,
    /// Sockets of all kinds.
    sockets: usize,
    taken: usize,
    of: HashMap<Mac, [usize; 3]>,
}

impl Shares {
    pub fn new(flows: usize, sockets: usize) -> Shares {
        Shares { flows, sockets, taken: 0, of: HashMap::new() }
    }

    /// May this guest have one more?
    pub fn allow(&self, mac: Mac, kind: Kind) -> bool {
        self.lack(mac, kind).is_none()
    }

    /// What this guest may not have another one of.
    pub fn lack(&self, mac: Mac, kind: Kind) -> Option<Cause> {
        let has = self.of.get(&mac).copied().unwrap_or_default();
        if self.taken >= self.sockets || has.iter().sum::<usize>() >= most(self.sockets) {
            return Some(Cause::TxSockets);
        }
        (has[kind as usize] >= most(self.flows)).then_some(Cause::TxFlows)
    }

    /// How many more this guest may have.
    pub fn room_of(&self, mac: Mac, kind: Kind) -> usize {
        let has = self.of.get(&mac).copied().unwrap_or_default();
        most(self.flows).saturating_sub(has[kind as usize]).min(most(self.sockets).saturating_sub(has.iter().sum()))
    }

    /// Sockets that are left for all guests together.
    pub fn room(&self) -> usize {
        self.sockets - self.taken.min(self.sockets)
    }

    pub fn take(&mut self, mac: Mac, kind: Kind) {
        self.taken += 1;
        self.of.entry(mac).or_default()[kind as usize] += 1;
    }

    pub fn give_back(&mut self, mac: Mac, kind: Kind) {
        let Some(has) = self.of.get_mut(&mac) else { return };
        has[kind as usize] -= 1;
        self.taken -= 1;
        if *has == [0; 3] {
            self.of.remove(&mac);
        }
    }
}

/// What one guest may have.
fn most(all: usize) -> usize {
    all - all / 4
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_guest_leaves_a_quarter_of_each_and_gets_back_what_it_gave() {
        let mut shares = Shares::new(8, 12);
        let (greedy, other) = ([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]);
        for _ in 0..6 {
            assert!(shares.allow(greedy, Kind::Tcp));
            shares.take(greedy, Kind::Tcp);
        }
        assert_eq!((shares.lack(greedy, Kind::Tcp), shares.lack(other, Kind::Tcp)), (Some(Cause::TxFlows), None));
        for _ in 0..3 {
            assert!(shares.allow(greedy, Kind::Udp));
            shares.take(greedy, Kind::Udp);
        }
        assert_eq!(shares.lack(greedy, Kind::Udp), Some(Cause::TxSockets)); // nine of twelve
        for _ in 0..3 {
            assert!(shares.allow(other, Kind::Udp));
            shares.take(other, Kind::Udp);
        }
        assert!(!shares.allow(other, Kind::Udp)); // there are no more
        shares.give_back(greedy, Kind::Tcp);
        assert!(shares.allow(other, Kind::Udp) && shares.allow(greedy, Kind::Tcp) && shares.allow([0; 6], Kind::Ping));
    }
}
