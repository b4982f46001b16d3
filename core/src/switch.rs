//! What a switch decides: which VLAN a frame is in, who may have it, and how its tag is changed on the way out.
//!
//! A worker keeps a `View` of the configuration in its own memory and makes it anew when the arena's generation moves.

use crate::arena::{Arena, PORTS, SWITCHES, WORKERS};
use crate::frame;
use crate::lane::TAGGED;
use crate::ports::{CAPTURE, Cause, IMPAIRED_IN, IMPAIRED_OUT, ISOLATED, NOBODY, Port, UP, USED, Vlan, Worker};
use std::sync::atomic::Ordering;

/// In a record's VLAN beside TAGGED: the tag says VID 0 and the VLAN is the port's own.
pub const PRIORITY: u16 = 0x4000;
pub const VID: u16 = 0x0fff;

/// 01-80-c2-00-00-00 to -0f, the addresses that no bridge forwards (IEEE 802.1D-2004, table 7-10).
const RESERVED_FIRST: u64 = 0x0180_c200_0000;

/// As much of a frame as says which shard it goes to, zeros where it is shorter.
pub const HEAD: usize = 128;
/// The most shards of a port.
pub const SHARDS: usize = 16;

/// What is done to a frame's tag as it leaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Edit {
    Keep,
    Strip,
    Insert(u16),
    /// The frame has a tag of VID 0; its VID is set.
    Name(u16),
}

#[derive(Debug, Clone, Copy)]
pub struct Config {
    pub used: bool,
    pub up: bool,
    pub isolated: bool,
    /// Its line out, or its line in, has faults.
    pub impaired_out: bool,
    pub impaired_in: bool,
    pub worker: Worker,
    pub switch: usize,
    pub vlan: Vlan,
    pub mtu: usize,
    pub max_macs: u32,
    pub mirror: u64,
    /// It writes down what passes others.
    pub capture: bool,
    /// The port whose companion this is, or NOBODY.
    pub behind: Port,
    /// The place of its shards in the view's `spreads` and one more; 0: it has its frames for itself.
    spread: u16,
}

const NOT_USED: Config = Config {
    used: false,
    up: false,
    isolated: false,
    impaired_out: false,
    impaired_in: false,
    worker: 0,
    switch: 0,
    vlan: Vlan::Plain,
    mtu: 0,
    max_macs: 0,
    mirror: 0,
    capture: false,
    behind: NOBODY,
    spread: 0,
};

#[derive(Debug, Clone, Default)]
pub struct Domain {
    pub hub: bool,
    pub age_s: u32,
    pub reserved: u16,
    /// The ports to which a frame for everybody goes.
    pub members: Vec<Port>,
}

/// The configuration as one worker sees it.
pub struct View {
    generation: Option<u64>,
    pub ports: Vec<Config>,
    pub domains: Vec<Domain>,
    /// The shards of each port whose frames are spread.
    spreads: Vec<Vec<Port>>,
    /// A bit a worker that captures some port.
    pub captors: u64,
    /// By worker: the port that writes down what is captured there, NOBODY where a client does.
    pub captures: [Port; WORKERS],
}

impl Default for View {
    fn default() -> View {
        let (ports, domains) = (vec![NOT_USED; PORTS], vec![Domain::default(); SWITCHES]);
        View { generation: None, ports, domains, spreads: Vec::new(), captors: 0, captures: [NOBODY; WORKERS] }
    }
}

impl View {
    /// Read the configuration again if it changed; true if it did.
    pub fn refresh(&mut self, arena: &Arena) -> bool {
        let generation = arena.generation();
        if self.generation == Some(generation) {
            return false;
        }
        self.generation = Some(generation);
        for (index, domain) in self.domains.iter_mut().enumerate() {
            let record = arena.switch(index);
            domain.hub = record.hub.load(Ordering::Relaxed) != 0;
            domain.age_s = record.age_s.load(Ordering::Relaxed);
            domain.reserved = record.reserved.load(Ordering::Relaxed) as u16;
            domain.members.clear();
        }
        self.captors = 0;
        self.captures = [NOBODY; WORKERS];
        for (index, config) in self.ports.iter_mut().enumerate() {
            *config = config_of(arena, index as Port);
            self.captors |= config.mirror;
            if config.used && config.capture {
                self.captures[usize::from(config.worker)] = index as Port;
            } else if config.used && config.behind == NOBODY {
                self.domains[config.switch].members.push(index as Port);
            }
        }
        self.refresh_spreads(arena);
        true
    }

    fn refresh_spreads(&mut self, arena: &Arena) {
        self.spreads.clear();
        for port in 0..self.ports.len() {
            let shards = arena.port(port as Port).shards.load(Ordering::Relaxed) as usize;
            if self.ports[port].used && (2..=SHARDS).contains(&shards) {
                self.spreads.push(vec![port as Port; shards]);
                self.ports[port].spread = self.spreads.len() as u16;
            }
        }
        for port in 0..self.ports.len() {
            let (config, share) = (self.ports[port], arena.port(port as Port).share.load(Ordering::Relaxed) as usize);
            if config.used
                && config.behind != NOBODY
                && let Some(spread) = usize::from(self.ports[usize::from(config.behind)].spread).checked_sub(1)
                && let Some(place) = self.spreads[spread].get_mut(share).filter(|_| share != 0)
            {
                *place = port as Port;
            }
        }
    }

    /// Which port a frame for `to` goes to: one of its shards, where it has any. The first has what belongs to no flow.
    pub fn shard_of(&self, to: Port, head: impl FnOnce() -> [u8; HEAD]) -> Port {
        match usize::from(self.ports[usize::from(to)].spread).checked_sub(1) {
            None => to,
            Some(spread) => {
                let shards = &self.spreads[spread];
                frame::spread(&head()).map_or(to, |hash| shards[hash as usize % shards.len()])
            }
        }
    }

    /// The port that a companion stands behind; any other port itself.
    pub fn owner(&self, port: Port) -> Port {
        match self.ports[usize::from(port)].behind {
            NOBODY => port,
            behind => behind,
        }
    }
}

fn config_of(arena: &Arena, port: Port) -> Config {
    let record = arena.port(port);
    let flags = record.flags.load(Ordering::Acquire);
    if flags & USED == 0 {
        return NOT_USED;
    }
    Config {
        used: true,
        up: flags & UP != 0,
        isolated: flags & ISOLATED != 0,
        impaired_out: flags & IMPAIRED_OUT != 0,
        impaired_in: flags & IMPAIRED_IN != 0,
        worker: record.worker.load(Ordering::Relaxed) as Worker & 63,
        switch: record.switch.load(Ordering::Relaxed) as usize & (SWITCHES - 1),
        vlan: record.vlan(),
        mtu: record.mtu.load(Ordering::Relaxed) as usize,
        max_macs: record.max_macs.load(Ordering::Relaxed),
        mirror: record.mirror.load(Ordering::Relaxed),
        capture: flags & CAPTURE != 0,
        behind: record.behind.load(Ordering::Relaxed) as Port & (PORTS as Port - 1),
        spread: 0,
    }
}

/// The VLAN, with TAGGED and PRIORITY, of a frame whose first bytes are `head` and that comes in at a port.
pub fn classify(arena: &Arena, port: Port, vlan: Vlan, head: &[u8]) -> Result<u16, Cause> {
    let tag = frame::tag(head);
    let flags = match tag {
        None => 0,
        Some(tag) if tag.vid == 0 => TAGGED | PRIORITY,
        Some(_) => TAGGED,
    };
    let named = tag.map_or(0, |tag| tag.vid);
    match vlan {
        Vlan::Plain => Ok(named | if named == 0 { flags & TAGGED } else { flags }),
        Vlan::Access(vid) if named == 0 || named == vid => Ok(vid | flags),
        Vlan::Trunk { native } if named == 0 && native != 0 => Ok(native | flags),
        Vlan::Trunk { .. } if named != 0 && arena.port(port).trunks(named) => Ok(named | flags),
        _ => Err(Cause::Vlan),
    }
}

/// How a frame of `vlan` (as `classify` says it) leaves a port; None where the port does not carry that VLAN.
pub fn leave(arena: &Arena, port: Port, rule: Vlan, vlan: u16) -> Option<Edit> {
    let vid = vlan & VID;
    let bare = if vlan & TAGGED != 0 { Edit::Strip } else { Edit::Keep };
    let tagged = match (vlan & TAGGED != 0, vlan & PRIORITY != 0) {
        (true, false) => Edit::Keep,
        (true, true) => Edit::Name(vid),
        (false, _) => Edit::Insert(vid),
    };
    match rule {
        Vlan::Plain => Some(if vid == 0 { Edit::Keep } else { tagged }),
        Vlan::Access(own) => (own == vid).then_some(bare),
        Vlan::Trunk { native } if native == vid && vid != 0 => Some(bare),
        Vlan::Trunk { .. } => (vid != 0 && arena.port(port).trunks(vid)).then_some(tagged),
    }
}

/// Is `destination` an address that bridges keep to themselves, and not one of those that this switch forwards?
pub fn is_reserved(domain: &Domain, destination: u64) -> bool {
    !domain.hub && destination & !0xf == RESERVED_FIRST && domain.reserved >> (destination & 0xf) & 1 == 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsRawFd;

    fn arena() -> (std::fs::File, Arena) {
        let file = crate::testing::memory();
        let arena = Arena::create(file.as_raw_fd(), 1 << 20).unwrap();
        (file, arena)
    }

    fn tagged(vid: u16) -> Vec<u8> {
        let mut frame = vec![2; 12];
        frame.extend([0x81, 0]);
        frame.extend(vid.to_be_bytes());
        frame.extend([8, 0]);
        frame
    }

    fn untagged() -> Vec<u8> {
        let mut frame = vec![2; 12];
        frame.extend([8, 0, 1, 2, 3, 4]);
        frame
    }

    #[test]
    fn an_access_port_takes_untagged_frames_and_its_own_tag_and_gives_out_bare_ones() {
        let (_file, arena) = arena();
        let port = Vlan::Access(10);
        assert_eq!(classify(&arena, 1, port, &untagged()), Ok(10));
        assert_eq!(classify(&arena, 1, port, &tagged(10)), Ok(10 | TAGGED));
        assert_eq!(classify(&arena, 1, port, &tagged(0)), Ok(10 | TAGGED | PRIORITY));
        assert_eq!(classify(&arena, 1, port, &tagged(11)), Err(Cause::Vlan));
        assert_eq!(leave(&arena, 1, port, 10), Some(Edit::Keep));
        assert_eq!(leave(&arena, 1, port, 10 | TAGGED), Some(Edit::Strip));
        assert_eq!(leave(&arena, 1, port, 11), None);
        assert_eq!(leave(&arena, 1, port, 0), None);
    }

    #[test]
    fn a_trunk_carries_its_list_tagged_and_its_native_vlan_bare() {
        let (_file, arena) = arena();
        arena.port(1).configure_vlan(Vlan::Trunk { native: 5 }, &[10, 20]);
        let port = arena.port(1).vlan();
        assert_eq!(classify(&arena, 1, port, &tagged(20)), Ok(20 | TAGGED));
        assert_eq!(classify(&arena, 1, port, &tagged(30)), Err(Cause::Vlan));
        assert_eq!(classify(&arena, 1, port, &untagged()), Ok(5));
        assert_eq!(leave(&arena, 1, port, 10), Some(Edit::Insert(10)));
        assert_eq!(leave(&arena, 1, port, 10 | TAGGED), Some(Edit::Keep));
        assert_eq!(leave(&arena, 1, port, 10 | TAGGED | PRIORITY), Some(Edit::Name(10)));
        assert_eq!(leave(&arena, 1, port, 5), Some(Edit::Keep));
        assert_eq!(leave(&arena, 1, port, 30 | TAGGED), None);
    }

    #[test]
    fn a_trunk_without_a_native_vlan_refuses_untagged_frames() {
        let (_file, arena) = arena();
        arena.port(1).configure_vlan(Vlan::Trunk { native: 0 }, &[10]);
        assert_eq!(classify(&arena, 1, arena.port(1).vlan(), &untagged()), Err(Cause::Vlan));
        assert_eq!(leave(&arena, 1, arena.port(1).vlan(), 0), None);
    }

    #[test]
    fn a_plain_port_passes_tags_as_they_are_and_names_the_vlan_of_an_access_port() {
        let (_file, arena) = arena();
        assert_eq!(classify(&arena, 1, Vlan::Plain, &tagged(7)), Ok(7 | TAGGED));
        assert_eq!(classify(&arena, 1, Vlan::Plain, &tagged(0)), Ok(TAGGED));
        assert_eq!(classify(&arena, 1, Vlan::Plain, &untagged()), Ok(0));
        assert_eq!(leave(&arena, 1, Vlan::Plain, 7 | TAGGED), Some(Edit::Keep));
        assert_eq!(leave(&arena, 1, Vlan::Plain, TAGGED), Some(Edit::Keep));
        assert_eq!(leave(&arena, 1, Vlan::Plain, 10), Some(Edit::Insert(10)));
    }

    #[test]
    fn a_learning_switch_keeps_spanning_tree_to_itself_and_a_hub_does_not() {
        let stp = RESERVED_FIRST;
        let mut domain = Domain::default();
        assert!(is_reserved(&domain, stp));
        assert!(!is_reserved(&domain, RESERVED_FIRST + 0x10));
        domain.reserved = 1 << 0xe;
        assert!(is_reserved(&domain, stp) && !is_reserved(&domain, RESERVED_FIRST + 0xe));
        domain.hub = true;
        assert!(!is_reserved(&domain, stp));
    }
}
