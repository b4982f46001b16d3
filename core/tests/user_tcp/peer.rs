//! A guest with a TCP of its own, over a wire that loses, repeats, delays and corrupts: whatever its habits and the
//! wire's, every byte arrives once and unchanged both ways, both ends see the end, and nothing is left.
//!
//! A case that fails is printed with its plan, and its seed is kept in peer.regressions.

use std::collections::BTreeMap;
use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::fd::AsRawFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use _core::user::config::{Config, GuestForward, Served, Transport};
use _core::user::{Endpoint, socket};
use proptest::prelude::*;
use proptest::test_runner::FileFailurePersistence;

use crate::{ACK, Exchange, FIN, RST, SYN, Seen, arp_reply, config, exchange_of, forward, v4};

/// How long nothing may move, by the clock that is turned and by the kernel's.
const STUCK_MS: u64 = 600_000;
const STUCK: Duration = Duration::from_secs(10);

#[derive(Debug, Clone)]
struct Plan {
    seed: u64,
    /// Percent of frames that are lost, come twice, are corrupted (to the network only); and how late they may be.
    lost: u64,
    twice: u64,
    corrupt: u64,
    late_ms: u64,
    mss: u16,
    sack: bool,
    scale: Option<u8>,
    /// Bytes that the guest's socket holds, and whether it goes back on what it said it would take.
    buffer: usize,
    fickle: bool,
    /// Who reads rarely.
    lazy_guest: bool,
    lazy_far: bool,
    up: usize,
    down: usize,
    from_host: bool,
    unix: bool,
    /// Without SO_PEEK_OFF.
    old_kernel: bool,
}

prop_compose! {
    fn plans()(
        seed: u64, lost in 0u64..20, twice in 0u64..20, corrupt in 0u64..10, late_ms in 1u64..80,
        mss in prop_oneof![Just(64u16), Just(536), Just(1460), Just(8960), 64u16..9000], sack: bool,
        scale in prop::option::of(0u8..9), buffer in prop_oneof![500usize..5_000, 5_000usize..300_000],
        fickle: bool, lazy_guest: bool, lazy_far: bool, up in sizes(), down in sizes(),
        from_host: bool, unix: bool, old_kernel: bool,
    ) -> Plan {
        let most = usize::from(mss) * 4_000; // no case takes seconds
        let (up, down) = (up.min(most), down.min(most));
        Plan { seed, lost, twice, corrupt, late_ms, mss, sack, scale, buffer, fickle, lazy_guest, lazy_far, up, down, from_host, unix, old_kernel }
    }
}

fn sizes() -> impl Strategy<Value = usize> {
    prop_oneof![Just(0), 1usize..5_000, 5_000usize..700_000]
}

struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % sides
    }

    fn percent(&mut self, of: u64) -> bool {
        self.roll(100) < of
    }
}

/// The host's end of a flow.
trait Far: Read + Write {
    fn shut(&self);
}

impl Far for std::net::TcpStream {
    fn shut(&self) {
        self.shutdown(Shutdown::Write).unwrap();
    }
}

impl Far for UnixStream {
    fn shut(&self) {
        self.shutdown(Shutdown::Write).unwrap();
    }
}

/// Frames under way, by when they arrive.
struct Wire<T>(Vec<(u64, T)>);

impl<T: Clone> Wire<T> {
    fn put(&mut self, dice: &mut Dice, plan: &Plan, now_ms: u64, frame: T) {
        let times = if dice.percent(plan.lost) { 0 } else { 1 + usize::from(dice.percent(plan.twice)) };
        for _ in 0..times {
            // One in four is late, so that most keep their order.
            let late = if dice.percent(25) { dice.roll(plan.late_ms) } else { 0 };
            self.0.push((now_ms + late, frame.clone()));
        }
    }

    fn arrive(&mut self, now_ms: u64) -> Vec<T> {
        let (due, rest): (Vec<_>, Vec<_>) = self.0.drain(..).partition(|(at, _)| *at <= now_ms);
        self.0 = rest;
        due.into_iter().map(|(_, frame)| frame).collect()
    }
}

/// The guest's TCP. Positions count from the first byte of data; -1 is the SYN.
struct Guest {
    iss: u32,
    irs: Option<u32>,
    is_open: bool,
    reset: bool,
    // What it sends.
    una: i64,
    nxt: i64,
    most: i64,
    edge: i64,
    reported: Vec<(i64, i64)>,
    since_ms: u64,
    rto_ms: u64,
    // What it receives.
    got: Vec<u8>,
    early: BTreeMap<i64, Vec<u8>>,
    end: Option<i64>,
    read: usize,
    told: i64,
    owes_ack: bool,
}

impl Guest {
    fn expects(&self) -> i64 {
        self.got.len() as i64 + i64::from(self.has_end())
    }

    fn has_end(&self) -> bool {
        self.end == Some(self.got.len() as i64)
    }

    fn receive(&mut self, plan: &Plan, seen: &Seen, now_ms: u64) {
        if seen.flags & RST != 0 {
            self.reset |= self.irs.is_none() || seen.seq.wrapping_sub(self.irs.unwrap()) as i32 as i64 - 1 == self.expects();
            return;
        }
        if seen.flags & SYN != 0 && self.irs.is_none_or(|irs| irs == seen.seq) {
            self.irs = Some(seen.seq);
            self.owes_ack = true;
        }
        let Some(irs) = self.irs else { return };
        if seen.flags & ACK == 0 {
            return;
        }
        let acked = i64::from(seen.ack.wrapping_sub(self.iss) as i32) - 1;
        self.is_open |= acked >= 0;
        if !self.is_open {
            return;
        }
        let shift = if plan.scale.is_some() && seen.flags & SYN == 0 { 8 } else { 0 };
        self.edge = self.edge.max(acked + (i64::from(seen.window) << shift));
        if acked > self.una {
            (self.una, self.since_ms, self.rto_ms) = (acked, now_ms, 250);
            self.nxt = self.nxt.max(acked);
            self.reported.retain(|part| part.1 > acked);
        }
        let at = |seq: u32| i64::from(seq.wrapping_sub(self.iss) as i32) - 1;
        self.reported.extend(seen.blocks().iter().map(|(from, to)| (at(*from), at(*to))).filter(|part| part.0 > acked));
        // Its data, as far as there is room.
        let begin = i64::from(seen.seq.wrapping_sub(irs) as i32) - 1 + i64::from(seen.flags & SYN != 0);
        if seen.data.is_empty() && seen.flags & FIN == 0 {
            self.owes_ack |= begin < self.expects(); // a keep-alive
            return;
        }
        self.owes_ack = true;
        let room = self.told.max(self.got.len() as i64) - begin;
        let data = &seen.data[..seen.data.len().min(room.max(0) as usize)];
        if data.len() == seen.data.len() && seen.flags & FIN != 0 {
            self.end = Some(begin + data.len() as i64);
        }
        self.early.insert(begin, data.to_vec()).filter(|before| before.len() > data.len()).map(|before| self.early.insert(begin, before));
        while let Some((begin, data)) = self.early.first_key_value().map(|(begin, data)| (*begin, data.clone())) {
            let known = self.got.len() as i64 - begin;
            if known < 0 {
                break;
            }
            self.early.remove(&begin);
            self.got.extend(data.iter().skip(known as usize));
        }
    }

    /// SACK for what came early, in no particular order.
    fn options(&self, plan: &Plan) -> Vec<u8> {
        let parts: Vec<_> = self.early.iter().filter(|(begin, data)| **begin > self.expects() && !data.is_empty()).take(4).collect();
        if !plan.sack || parts.is_empty() {
            return Vec::new();
        }
        let mut option = vec![1, 1, 5, 2 + 8 * parts.len() as u8];
        for (begin, data) in parts {
            let from = self.irs.unwrap().wrapping_add(*begin as u32 + 1);
            option.extend([from.to_be_bytes(), from.wrapping_add(data.len() as u32).to_be_bytes()].concat());
        }
        option
    }
}

struct Run {
    plan: Plan,
    dice: Dice,
    exchange: Exchange,
    guest: Guest,
    up: Vec<u8>,
    down: Vec<u8>,
    out: Wire<Vec<u8>>,
    back: Wire<Seen>,
    now_ms: u64,
    /// The furthest that the network may know of, and what it said.
    edge_most: i64,
    said_ack: i64,
    reborn: bool,
    said_edge: i64,
}

fn pattern(seed: u64, len: usize) -> Vec<u8> {
    (0..len as u64).map(|at| ((at ^ seed).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8).collect()
}

impl Run {
    /// What the network says goes onto the wire, and is judged before.
    fn hear(&mut self) {
        for _ in 0..200 {
            let Some(seen) = self.exchange.heard() else { return };
            if seen.flags & RST == 0 {
                self.judge(&seen);
            }
            self.back.put(&mut self.dice, &self.plan, self.now_ms, seen);
        }
    }

    fn judge(&mut self, seen: &Seen) {
        let plan = &self.plan;
        if self.guest.has_end() && self.guest.una > self.up.len() as i64 {
            self.reborn |= seen.flags & SYN != 0; // a SYN that was late has begun another
            return;
        }
        if seen.flags & SYN != 0 {
            let is_same = self.guest.irs.is_none_or(|irs| irs == seen.seq);
            assert!(is_same && (plan.from_host || seen.flags & ACK != 0), "{plan:?}: another SYN");
        }
        if seen.flags & ACK == 0 {
            return;
        }
        let ack = i64::from(seen.ack.wrapping_sub(self.guest.iss) as i32) - 1;
        assert!(ack <= self.guest.most, "{plan:?}: acknowledges {ack}, which was never sent");
        assert!(ack >= self.said_ack, "{plan:?}: acknowledges {ack} after {}", self.said_ack);
        self.said_ack = ack;
        let shift = if plan.scale.is_some() && seen.flags & SYN == 0 { 8 } else { 0 };
        let edge = ack + (i64::from(seen.window) << shift);
        assert!(edge >= self.said_edge - (1 << shift), "{plan:?}: the window's edge went back from {} to {edge}", self.said_edge);
        self.said_edge = self.said_edge.max(edge);
        for (from, to) in seen.blocks() {
            let part = [from, to].map(|seq| i64::from(seq.wrapping_sub(self.guest.iss) as i32) - 1);
            assert!(ack < part[0] && part[0] < part[1] && part[1] <= self.guest.most, "{plan:?}: reports {part:?}");
        }
        let Some(irs) = self.guest.irs else { return };
        let begin = i64::from(seen.seq.wrapping_sub(irs) as i32) - 1;
        if !seen.data.is_empty() {
            let range = begin as usize..begin as usize + seen.data.len();
            assert!(self.down.get(range) == Some(&seen.data[..]), "{plan:?}: other bytes at {begin}");
            let end = begin + seen.data.len() as i64;
            assert!(end <= self.edge_most + 1, "{plan:?}: {end} is beyond the window, {}", self.edge_most);
        }
    }

    /// The guest's application reads, and its TCP says what it has to say.
    fn speak(&mut self) {
        let guest = &mut self.guest;
        let unread = guest.got.len() - guest.read;
        if unread > 0 && !(self.plan.lazy_guest && self.dice.percent(95)) {
            guest.read += 1 + self.dice.roll(unread as u64) as usize;
            guest.owes_ack = true;
        }
        if self.plan.fickle && self.dice.percent(3) {
            guest.early.clear();
            guest.told = guest.got.len() as i64;
            guest.owes_ack = true;
        }
        if guest.irs.is_none() || (!guest.is_open && !self.plan.from_host) {
            if !self.plan.from_host && (guest.since_ms == 0 || self.now_ms > guest.since_ms + 500) {
                guest.since_ms = self.now_ms;
                self.say(SYN, -1, &[]);
            }
            return;
        }
        if !guest.is_open {
            if guest.owes_ack || self.now_ms > guest.since_ms + 500 {
                guest.since_ms = self.now_ms;
                guest.owes_ack = false;
                self.say(SYN | ACK, -1, &[]);
            }
            return;
        }
        let total = self.up.len() as i64;
        if guest.una <= total && self.now_ms > guest.since_ms + guest.rto_ms && guest.una < guest.most {
            (guest.nxt, guest.since_ms, guest.rto_ms) = (guest.una, self.now_ms, (2 * guest.rto_ms).min(4_000));
            if self.dice.percent(50) {
                guest.reported.clear();
            }
        }
        if guest.una == guest.most {
            guest.since_ms = self.now_ms;
        }
        let mut sent = 0;
        // A byte beyond a closed window now and then, as the persist timer has it.
        let may_probe = guest.edge <= guest.nxt && self.dice.percent(2);
        while sent < 20 && self.guest.nxt <= total {
            let guest = &mut self.guest;
            if let Some(part) = guest.reported.iter().find(|part| part.0 <= guest.nxt && guest.nxt < part.1) {
                guest.nxt = part.1;
                continue;
            }
            let limit = (guest.edge + i64::from(may_probe && sent == 0)).min(guest.una + 40 * i64::from(self.plan.mss)).min(total);
            let most = 1 + self.dice.roll(u64::from(self.plan.mss).min(1460)) as i64;
            let end = limit.min(guest.nxt + if self.dice.percent(80) { i64::from(self.plan.mss.min(1460)) } else { most });
            let fin = end >= total && guest.nxt <= total && guest.edge > total - 1;
            if end <= guest.nxt && !(fin && guest.nxt == total) {
                break;
            }
            let from = guest.nxt;
            let end = end.max(from);
            guest.nxt = end + i64::from(fin);
            guest.most = guest.most.max(guest.nxt);
            guest.owes_ack = false;
            let data = self.up[from as usize..end as usize].to_vec();
            self.say(ACK | if fin { FIN } else { 0 }, from, &data);
            sent += 1;
        }
        if self.guest.owes_ack {
            self.guest.owes_ack = false;
            let at = self.guest.nxt;
            self.say(ACK, at, &[]);
        }
    }

    fn say(&mut self, flags: u8, at: i64, data: &[u8]) {
        let guest = &mut self.guest;
        let unread = guest.got.len() - guest.read;
        let shift = if flags & SYN != 0 { 0 } else { self.plan.scale.unwrap_or(0) };
        let window = (self.plan.buffer.saturating_sub(unread) >> shift).min(65_535);
        let window = if self.plan.fickle && guest.told == guest.got.len() as i64 && self.dice.percent(50) { 0 } else { window };
        guest.told = guest.told.max(guest.got.len() as i64 + ((window as i64) << shift));
        if flags & ACK != 0 {
            self.edge_most = self.edge_most.max(guest.told);
        }
        let options = if flags & SYN != 0 {
            let mut options = vec![2, 4, (self.plan.mss >> 8) as u8, self.plan.mss as u8];
            options.extend(self.plan.sack.then_some([1, 1, 4, 2]).into_iter().flatten());
            options.extend(self.plan.scale.map(|scale| [1, 3, 3, scale]).into_iter().flatten());
            options
        } else {
            guest.options(&self.plan)
        };
        self.exchange.window = window as u16;
        self.exchange.ack = guest.irs.map_or(0, |irs| irs.wrapping_add(1 + guest.expects() as u32));
        let seq = guest.iss.wrapping_add(1).wrapping_add(at as u32);
        let mut frame = self.exchange.written(seq, flags, &options, data);
        if self.dice.percent(self.plan.corrupt) {
            let at = 14 + self.dice.roll(frame.len() as u64 - 14) as usize;
            frame[at] ^= 1 << self.dice.roll(8);
        }
        self.out.put(&mut self.dice, &self.plan, self.now_ms, frame);
    }
}

/// Gives the host's end once there is one.
type Accept = Box<dyn FnMut() -> Option<Box<dyn Far>>>;

fn begin(plan: &Plan) -> (Exchange, Accept) {
    static NAMES: AtomicU32 = AtomicU32::new(0);
    let name = format!("shardnet-test-{}-{}", std::process::id(), NAMES.fetch_add(1, Ordering::Relaxed));
    let base = Config { peek_offset: !plan.old_kernel, ..config() };
    let address = SocketAddr::from_abstract_name(&name).unwrap();
    let mut exchange;
    let far: Accept = if plan.unix {
        let listener = UnixListener::bind_addr(&address).unwrap();
        listener.set_nonblocking(true).unwrap();
        if plan.from_host {
            exchange = exchange_of(base);
            exchange.network.add_forward(1, forward(listener.as_raw_fd(), Transport::Unix)).unwrap();
            let mut made = Some((UnixStream::connect_addr(&address).unwrap(), listener));
            Box::new(move || {
                made.take().map(|(stream, listener)| {
                    std::mem::forget(listener);
                    stream.set_nonblocking(true).unwrap();
                    Box::new(stream) as _
                })
            })
        } else {
            let bytes = [&(libc::AF_UNIX as u16).to_ne_bytes()[..], &[0], name.as_bytes()].concat();
            let served = Served::Socket(socket::Name::new(&bytes).unwrap());
            let forward = GuestForward { at: Endpoint { ip: v4(2), port: 7 }, to: served };
            exchange = exchange_of(Config { guestfwd: vec![forward], ..base });
            exchange.to = 7;
            Box::new(move || {
                listener.accept().ok().map(|(stream, _)| {
                    stream.set_nonblocking(true).unwrap();
                    Box::new(stream) as _
                })
            })
        }
    } else if plan.from_host {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        exchange = exchange_of(base);
        exchange.network.add_forward(1, forward(listener.as_raw_fd(), Transport::Tcp)).unwrap();
        let mut made = Some((std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap(), listener));
        Box::new(move || {
            made.take().map(|(stream, listener)| {
                std::mem::forget(listener);
                stream.set_nonblocking(true).unwrap();
                Box::new(stream) as _
            })
        })
    } else {
        exchange = exchange_of(base);
        let listener = exchange.listener.try_clone().unwrap();
        listener.set_nonblocking(true).unwrap();
        Box::new(move || {
            listener.accept().ok().map(|(stream, _)| {
                stream.set_nonblocking(true).unwrap();
                Box::new(stream) as _
            })
        })
    };
    if plan.from_host {
        exchange.port = 80;
        exchange.send(&arp_reply());
    }
    (exchange, far)
}

/// False where the connection was never made, as can be on a wire that loses.
fn run(plan: &Plan) -> bool {
    let (exchange, mut accept) = begin(plan);
    let guest = Guest {
        iss: (plan.seed >> 16) as u32,
        irs: None,
        is_open: false,
        reset: false,
        una: -1,
        nxt: 0,
        most: 0,
        edge: 0,
        reported: Vec::new(),
        since_ms: 0,
        rto_ms: 250,
        got: Vec::new(),
        early: BTreeMap::new(),
        end: None,
        read: 0,
        told: 0,
        owes_ack: false,
    };
    let mut run = Run {
        plan: plan.clone(),
        dice: Dice(plan.seed),
        exchange,
        guest,
        up: pattern(plan.seed, plan.up),
        down: pattern(!plan.seed, plan.down),
        out: Wire(Vec::new()),
        back: Wire(Vec::new()),
        now_ms: 1,
        edge_most: 0,
        said_ack: -1,
        reborn: false,
        said_edge: -1,
    };
    let mut far: Option<Box<dyn Far>> = None;
    let (mut written, mut shut, mut taken, mut far_end) = (0, false, Vec::new(), false);
    let (mut moved, mut moved_ms, mut moved_at) = (0, 0, Instant::now());
    let deadline = Instant::now() + Duration::from_secs(60);
    let is_done = |run: &Run, taken: &Vec<u8>, far_end: bool| {
        run.guest.has_end() && far_end && taken.len() == plan.up && (run.guest.una == plan.up as i64 + 1 || run.guest.reset)
    };
    while !is_done(&run, &taken, far_end) {
        if far.is_none() {
            far = accept();
        }
        if let Some(far) = &mut far {
            if written < plan.down {
                let end = plan.down.min(written + 1 + run.dice.roll(20_000) as usize);
                written += far.write(&run.down[written..end]).unwrap_or(0);
            } else if !shut {
                shut = true;
                far.shut();
            }
            if !(plan.lazy_far && run.dice.percent(95)) {
                let mut piece = vec![0; 1 + run.dice.roll(60_000) as usize];
                match far.read(&mut piece) {
                    Ok(0) => far_end = true,
                    Ok(count) => taken.extend_from_slice(&piece[..count]),
                    Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock, "{plan:?}"),
                }
            }
        }
        run.hear();
        for seen in run.back.arrive(run.now_ms) {
            if run.guest.irs.is_none() && seen.flags & SYN != 0 {
                run.exchange.to = seen.from;
            }
            run.guest.receive(plan, &seen, run.now_ms);
        }
        if run.guest.reset && !is_done(&run, &taken, far_end) {
            if !run.guest.is_open {
                return false;
            }
            // The last ACKs were lost for so long that the network no longer waits for the guest to ask again.
            assert!(run.guest.has_end() && run.said_ack == plan.up as i64 + 1, "{plan:?}: reset: {}", state(&run, &taken, written));
        }
        run.speak();
        for frame in run.out.arrive(run.now_ms) {
            run.exchange.send(&frame);
        }
        let step = 1 + run.dice.roll(20);
        run.now_ms += step;
        run.exchange.network.turn_clock(step);
        let now = run.guest.got.len() + (run.guest.una + 1) as usize + taken.len() + written + run.guest.read + usize::from(far_end);
        if now != moved {
            (moved, moved_ms, moved_at) = (now, run.now_ms, Instant::now());
        }
        if !run.guest.is_open && run.now_ms > 120_000 {
            return false;
        }
        // The kernel between the network and the far end has timers too, and its own clock.
        let is_stuck = run.now_ms - moved_ms > STUCK_MS && moved_at.elapsed() > STUCK;
        assert!(!is_stuck, "{plan:?}: stuck: {}", state(&run, &taken, written));
        assert!(Instant::now() < deadline, "{plan:?}: slow: {}", state(&run, &taken, written));
    }
    assert!(run.guest.got == run.down && taken == run.up, "{plan:?}: bytes changed");
    // Its last ACK may have been lost; it says it again. A while later nobody knows of it.
    run.exchange.ack = run.guest.irs.unwrap().wrapping_add(1 + run.guest.expects() as u32);
    run.exchange.seq = run.guest.iss.wrapping_add(1 + run.guest.most as u32);
    run.exchange.say(ACK, &[]);
    run.exchange.network.turn_clock(4_000);
    while let Some(seen) = run.exchange.heard() {
        run.reborn |= seen.flags & SYN != 0;
    }
    (run.exchange.ack, run.exchange.seq) = (1, 1);
    run.exchange.say(ACK, &[]);
    assert!(run.exchange.hears().flags == RST || run.reborn, "{plan:?}: it lives on");
    true
}

fn state(run: &Run, taken: &[u8], written: usize) -> String {
    let guest = &run.guest;
    format!(
        "sent {} of {} ({} unacknowledged, edge {}), arrived {}; host wrote {written} of {}, guest has {} (end {:?}), told {}",
        guest.most,
        run.up.len(),
        guest.nxt - guest.una,
        guest.edge,
        taken.len(),
        run.down.len(),
        guest.got.len(),
        guest.end,
        guest.told
    )
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 96,
        failure_persistence: Some(Box::new(FileFailurePersistence::Direct("tests/user_tcp/peer.regressions"))),
        ..ProptestConfig::default()
    })]
    #[test]
    fn every_byte_arrives_and_no_flow_is_stuck(plan in plans()) {
        run(&plan);
    }
}
