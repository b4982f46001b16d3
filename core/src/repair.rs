//! What the supervisor does in the shared memory: it configures, and it puts in order what a dead worker left behind.

use std::sync::atomic::Ordering;

use crate::arena::{Arena, PORTS, SWITCHES};
use crate::impair;
use crate::lane;
use crate::ports::{self, NOBODY, Port, Vlan, Way, Worker};
use crate::sys;
use crate::table::Clock;

/// The policy of a port.
#[derive(Debug, Clone)]
pub struct Policy {
    pub worker: Worker,
    pub switch: usize,
    pub up: bool,
    pub vlan: Vlan,
    pub trunk: Vec<u16>,
    pub isolated: bool,
    pub max_macs: u32,
    pub mtu: u32,
    /// The port whose companion this one is, or NOBODY.
    pub behind: Port,
    /// Over how many shards its frames are spread, and which of those of `behind` it is.
    pub shards: u32,
    pub share: u32,
    /// Its worker writes down what passes others.
    pub capture: bool,
    /// The line to the guest, and the one from it.
    pub out: impair::Settings,
    pub inward: impair::Settings,
}

/// Put the policy of a port in force. A port that leaves its switch is forgotten by the table.
pub fn configure_port(arena: &Arena, port: Port, policy: &Policy) {
    let record = arena.port(port);
    let flags = record.flags.load(Ordering::Relaxed);
    let before = record.switch.load(Ordering::Relaxed) as usize;
    if flags & ports::USED != 0 && before != policy.switch {
        forget(arena, before, port);
    }
    record.worker.store(policy.worker.into(), Ordering::Relaxed);
    record.switch.store(policy.switch as u32, Ordering::Relaxed);
    record.configure_vlan(policy.vlan, &policy.trunk);
    record.max_macs.store(policy.max_macs, Ordering::Relaxed);
    record.mtu.store(policy.mtu, Ordering::Relaxed);
    record.behind.store(policy.behind.into(), Ordering::Relaxed);
    record.shards.store(policy.shards, Ordering::Relaxed);
    record.share.store(policy.share, Ordering::Relaxed);
    record.configure_line(Way::Out, &policy.out);
    record.configure_line(Way::In, &policy.inward);
    let flag = |bit, is_set| if is_set { bit } else { 0 };
    let flags = ports::USED
        | flag(ports::UP, policy.up)
        | flag(ports::ISOLATED, policy.isolated)
        | flag(ports::IMPAIRED_OUT, !policy.out.is_plain())
        | flag(ports::IMPAIRED_IN, !policy.inward.is_plain())
        | flag(ports::CAPTURE, policy.capture);
    record.flags.store(flags, Ordering::Release);
    arena.advance();
}

/// Copy what passes a port, both ways, to the lane of a worker that captures, or do so no more.
pub fn mirror(arena: &Arena, port: Port, captor: Worker, on: bool) {
    let (mirror, bit) = (&arena.port(port).mirror, 1u64 << captor);
    if !on {
        mirror.fetch_and(!bit, Ordering::Relaxed);
    } else if mirror.load(Ordering::Relaxed) & bit == 0 {
        arena.loss(captor, port).store(0, Ordering::Relaxed);
        mirror.fetch_or(bit, Ordering::Relaxed);
    }
    arena.advance();
}

/// Take the port out of its switch, its addresses out of the table, its counters to zero.
pub fn clear_port(arena: &Arena, port: Port) {
    let record = arena.port(port);
    record.flags.store(0, Ordering::Release);
    arena.advance();
    forget(arena, record.switch.load(Ordering::Relaxed) as usize, port);
    record.macs.store(0, Ordering::Relaxed);
    record.link.store(0, Ordering::Relaxed);
    record.mirror.store(0, Ordering::Relaxed);
    record.pressed.store(0, Ordering::Relaxed);
    for worker in arena.workers() {
        arena.cell(worker, port).clear();
    }
}

/// Forget the addresses of a port, or of all where it is NOBODY; returns how many those were.
pub fn forget(arena: &Arena, switch: usize, port: Port) -> usize {
    if switch >= SWITCHES {
        return 0;
    }
    arena.table(switch).forget(|owner, _| {
        let gone = port == NOBODY || owner == port;
        if gone {
            arena.port(owner & (PORTS as Port - 1)).macs.fetch_sub(1, Ordering::Relaxed);
        }
        gone
    })
}

/// Seconds now and the ageing time of a switch.
pub fn clock(arena: &Arena, switch: usize) -> Clock {
    Clock { now_s: sys::now_s(), age_s: arena.switch(switch).age_s.load(Ordering::Relaxed) }
}

/// After the death of a worker and before its successor: what it wrote whole is published, what it delivered is not
/// delivered again, what it held is booked as lost. Returns how many frames were lost.
pub fn repair(arena: &Arena, worker: Worker) -> u64 {
    for other in arena.workers() {
        lane::mend_producer(arena, worker, other);
        lane::mend_consumer(arena, other, worker);
    }
    arena.worker(worker).sleeping.awake();
    let used = |port: &Port| arena.port(*port).flags.load(Ordering::Acquire) & ports::USED != 0;
    for record in (1..PORTS as Port).filter(used).map(|port| arena.port(port)) {
        if record.worker.load(Ordering::Relaxed) == u32::from(worker) {
            record.pressed.store(0, Ordering::Relaxed);
        }
    }
    ports::total((1..PORTS as Port).filter(used).map(|port| arena.cell(worker, port).bury()))
}

/// Times that `worker` was caught breaking the protocol of a lane it writes, since the arena was made.
pub fn faults(arena: &Arena, worker: Worker) -> u64 {
    ports::total(arena.workers().map(|to| arena.control(worker, to).consumer_notes.faults.load(Ordering::Relaxed)))
}
