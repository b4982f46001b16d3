//! Which hardware address a guest's IP address was last heard from. Bounded: beyond, the one silent for longest goes.

use std::collections::HashMap;
use std::net::Ipv6Addr;

use super::wire::Mac;

const MOST: usize = 4096;

#[derive(Default)]
pub struct Neighbours {
    known: HashMap<Ipv6Addr, (Mac, u64)>,
}

impl Neighbours {
    pub fn find(&self, ip: Ipv6Addr) -> Option<Mac> {
        self.known.get(&ip).map(|(mac, _)| *mac)
    }

    pub fn iter(&self) -> impl Iterator<Item = (Ipv6Addr, Mac)> {
        self.known.iter().map(|(ip, (mac, _))| (*ip, *mac))
    }

    pub fn forget(&mut self, ip: Ipv6Addr) {
        self.known.remove(&ip);
    }

    /// True where this is news.
    pub fn hear(&mut self, ip: Ipv6Addr, mac: Mac, now_ms: u64) -> bool {
        if let Some(known) = self.known.get_mut(&ip) {
            let moved = known.0 != mac;
            *known = (mac, now_ms);
            return moved;
        }
        if self.known.len() >= MOST
            && let Some(&oldest) = self.known.iter().min_by_key(|(_, (_, heard_ms))| *heard_ms).map(|(ip, _)| ip)
        {
            self.known.remove(&oldest);
        }
        self.known.insert(ip, (mac, now_ms));
        true
    }
}
