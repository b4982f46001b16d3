//! How much of a network each guest has: one leaves the others a quarter, of the flows and of the descriptors.
//!
//! A guest is a hardware address, since one guest has many addresses of IP; how many hardware addresses there may be is the
//! switch's to say (`max_macs`).

use std::collections::HashMap;

use super::wire::Mac;

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
        self.taken < self.sockets && self.room_of(mac, kind) > 0
    }

    /// How many more this guest may have.
    pub fn room_of(&self, mac: Mac, kind: Kind) -> usize {
        let most = |all: usize| all - all / 4;
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
        assert!(!shares.allow(greedy, Kind::Tcp) && shares.allow(other, Kind::Tcp));
        for _ in 0..3 {
            assert!(shares.allow(greedy, Kind::Udp));
            shares.take(greedy, Kind::Udp);
        }
        assert!(!shares.allow(greedy, Kind::Udp)); // nine of twelve sockets
        for _ in 0..3 {
            assert!(shares.allow(other, Kind::Udp));
            shares.take(other, Kind::Udp);
        }
        assert!(!shares.allow(other, Kind::Udp)); // there are no more
        shares.give_back(greedy, Kind::Tcp);
        assert!(shares.allow(other, Kind::Udp) && shares.allow(greedy, Kind::Tcp) && shares.allow([0; 6], Kind::Ping));
    }
}
