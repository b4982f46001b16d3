//! Nothing is lost without being counted, to the frame: random traffic, full lanes, workers that die.

use std::time::Instant;

use _core::testing::Child;
use proptest::prelude::*;

use super::*;

/// Ports 1 and 2 at worker 0, 3 at worker 1, 4 at worker 2, each known to the switch, their lanes of the smallest size.
fn lab(wires: [Wire; 4]) -> Lab {
    let mut lab = Lab::with_lanes(3, 256 << 10);
    for (worker, wire) in [0, 0, 1, 2].into_iter().zip(wires) {
        lab.plug_into(worker, wire, |_| {});
    }
    lab.introduce(&[1, 2, 3, 4]);
    lab
}

#[derive(Debug, Clone)]
enum Event {
    /// So many frames of a length, from one port to another or to all.
    Send(Port, Port, usize, usize),
    Step(Worker),
    Receive(Port),
    Kill(Worker),
}

fn events(broadcasts: u32, kills: u32) -> impl Strategy<Value = Vec<Event>> {
    let port = || 1..=4 as Port;
    let length = || prop_oneof![14..100usize, 1000..1515usize, 30_000..65_563usize];
    let event = prop_oneof![
        30 => (port(), port(), length(), 1..150usize).prop_map(|(from, to, len, count)| Event::Send(from, to, len, count)),
        broadcasts => (port(), length(), 1..20usize).prop_map(|(from, len, count)| Event::Send(from, BROADCAST, len, count)),
        30 => (0..3 as Worker).prop_map(Event::Step),
        20 => port().prop_map(Event::Receive),
        kills => (0..3 as Worker).prop_map(Event::Kill),
    ];
    prop::collection::vec(event, 1..400)
}

/// Let it happen, and then let everything arrive.
fn replay(lab: &mut Lab, events: Vec<Event>) {
    for event in events {
        match event {
            Event::Send(from, to, len, count) => drop((0..count).take_while(|_| lab.send(from, &frame_of(from, to, len))).count()),
            Event::Step(worker) => assert_eq!(lab.step(worker), []),
            Event::Receive(port) => drop(lab.receive(port)),
            Event::Kill(worker) => lab.replace(worker),
        }
        assert_lanes_close(lab);
    }
    loop {
        lab.settle();
        if (1..=4).map(|port| lab.receive(port).len()).sum::<usize>() == 0 && !lab.is_holding() {
            return;
        }
    }
}

impl Lab {
    /// Is there a frame that has met no fate?
    fn is_holding(&self) -> bool {
        let cells = (0..3).flat_map(|worker| (1..=4).map(move |port| (worker, port)));
        cells.map(|(worker, port)| self.arena.cell(worker, port)).any(|cell| cell.in_hand() + cell.queued() != 0)
    }
}

/// For every lane, pushed = popped + queued, and nobody was caught at a lie.
fn assert_lanes_close(lab: &Lab) {
    for (from, to) in (0..3).flat_map(|from| (0..3).map(move |to| (from, to))) {
        let control = lab.arena.control(from, to);
        assert!(control.pushed() >= control.popped(), "from worker {from} to {to}");
        assert_eq!(control.consumer_notes.faults.load(std::sync::atomic::Ordering::Relaxed), 0, "from worker {from} to {to}");
    }
}

/// For every port, in = out + drops by cause; `ports` is to how many a broadcast goes.
fn assert_ports_close(lab: &Lab, killed: bool) {
    for (port, plug) in (1..).zip(&lab.plugs) {
        let settled = lab.counter(port, Counter::Forwarded) + lab.counter(port, Counter::Filtered) + lab.rx_drops(port);
        assert_eq!((lab.counter(port, Counter::RxTaken), settled), (plug.sent, plug.sent), "what came in at port {port}");
        let (out, drops) = (lab.counter(port, Counter::TxFrames), lab.tx_drops(port));
        assert_eq!(lab.counter(port, Counter::Offered), out + drops, "what was to go out at port {port}");
        assert_eq!(plug.received, out, "what came out at port {port}");
        assert!(killed || lab.drops(port, Cause::WorkerDied) + lab.drops(port, Cause::TxWorkerDied) == 0);
    }
    for (from, to) in (0..3).flat_map(|from| (0..3).map(move |to| (from, to))) {
        let control = lab.arena.control(from, to);
        assert_eq!(control.pushed(), control.popped(), "from worker {from} to {to}");
    }
}

/// A worker as a process of its own, to be killed wherever it is.
fn work(lab: &mut Lab, worker: Worker) -> Child {
    Child::run(|| {
        lab.shards[usize::from(worker)] = Some(Shard::new(lab.arena, worker, lab.bells.clone()).unwrap());
        lab.attach_all(worker);
        loop {
            assert_eq!(lab.shards[usize::from(worker)].as_mut().unwrap().run(None).unwrap(), []);
        }
    })
}

/// Both ways between worker 0, which lives here, and worker 1, which is killed time and again.
#[test]
fn a_worker_killed_at_any_instant_sends_nothing_twice_and_leaves_at_most_a_frame_in_doubt() {
    const KILLS: u64 = 200;
    let (mut lab, mut random) = (Lab::with_lanes(2, 256 << 10), 88_172_645_463_325_252u64);
    for (worker, wire) in [(0, Wire::Packets), (0, Wire::Tap), (1, Wire::Packets), (1, Wire::Tap)] {
        lab.plug_into(worker, wire, |_| {});
    }
    lab.introduce(&[1, 2, 3, 4]);
    lab.shards[1] = None;
    let mut newest = [0; 5];
    for _ in 0..KILLS {
        let worker = work(&mut lab, 1);
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let deadline = Instant::now() + Duration::from_micros(200 + (random >> 33) % 6_000);
        while Instant::now() < deadline {
            exchange(&mut lab, &mut newest, true);
        }
        worker.kill();
        repair::repair(lab.arena, 1);
    }
    let worker = work(&mut lab, 1);
    let deadline = Instant::now() + Duration::from_secs(20);
    while exchange(&mut lab, &mut newest, false) || is_under_way(&lab) {
        assert!(Instant::now() < deadline, "frames that never arrive");
    }
    worker.kill();

    assert_lanes_close(&lab);
    for (port, plug) in (1..).zip(&lab.plugs) {
        let settled = lab.counter(port, Counter::Forwarded) + lab.counter(port, Counter::Filtered) + lab.rx_drops(port);
        let (taken, out) = (lab.counter(port, Counter::RxTaken), lab.counter(port, Counter::TxFrames));
        assert_eq!(taken, settled, "what came in at port {port}");
        assert_eq!(lab.counter(port, Counter::Offered), out + lab.tx_drops(port), "what was to go out at port {port}");
        // What the kernel had done for the dying worker, a batch at most, and it could not count any more.
        let unseen = if plug.worker == 1 { 32 * KILLS } else { 0 };
        assert!((taken..=taken + unseen).contains(&plug.sent), "port {port}: {} sent, {taken} taken", plug.sent);
        assert!((out..=out + unseen).contains(&plug.received), "port {port}: {out} went, {} came", plug.received);
    }
    let (forwarded, offered) = (sum(&lab, Counter::Forwarded) - 4, sum(&lab, Counter::Offered) - 12);
    assert!(forwarded.abs_diff(offered) <= KILLS, "{forwarded} forwarded, {offered} offered");
    assert!(offered > 500, "there was hardly any traffic");
}

/// Numbered frames each way where `send`, turns of worker 0, and all that has come; false where nothing did.
///
/// Behind a frame comes none that was sent before it, nor itself again.
fn exchange(lab: &mut Lab, newest: &mut [u64; 5], send: bool) -> bool {
    for (from, to) in [(1, 3), (3, 1), (2, 4), (4, 2)].into_iter().filter(|_| send) {
        for _ in 0..20 {
            let mut frame = frame_of(from, to, 600);
            frame[14..22].copy_from_slice(&(lab.plugs[usize::from(from) - 1].sent + 1).to_be_bytes());
            if !lab.send(from, &frame) {
                break;
            }
        }
    }
    lab.step(0);
    let mut came = false;
    for port in 1..=4 {
        for frame in lab.receive(port) {
            let number = u64::from_be_bytes(frame[14..22].try_into().unwrap());
            assert!(number > newest[usize::from(port)], "frame {number} at port {port} behind {}", newest[usize::from(port)]);
            newest[usize::from(port)] = number;
            came = true;
        }
    }
    came
}

/// Does a lane hold a frame, or a port of worker 0 or 1?
fn is_under_way(lab: &Lab) -> bool {
    let lanes = [(0, 1), (1, 0)].map(|(from, to)| lab.arena.control(from, to));
    lab.is_holding() || lanes.iter().any(|control| control.pushed() != control.popped())
}

fn sum(lab: &Lab, counter: Counter) -> u64 {
    (1..=4).map(|port| lab.counter(port, counter)).sum()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn frames_between_two_ports_all_arrive_or_are_counted(events in events(0, 0)) {
        let mut lab = lab([Wire::Packets, Wire::Tap, Wire::Tap, Wire::Packets]);
        replay(&mut lab, events);
        assert_ports_close(&lab, false);
        // Each of the four introductions went to three ports.
        prop_assert_eq!(sum(&lab, Counter::Forwarded) - 4, sum(&lab, Counter::Offered) - 12);
    }

    #[test]
    fn frames_to_all_ports_all_arrive_or_are_counted(events in events(30, 0)) {
        let mut lab = lab([Wire::Packets, Wire::Packets, Wire::Tap, Wire::Packets]);
        replay(&mut lab, events);
        assert_ports_close(&lab, false);
        // A copy that is lost is lost for all ports of a worker: one, but for those that come from 3 and 4 to worker 0.
        let lost = |ports: [Port; 2]| ports.map(|port| lab.counter(port, Counter::CopiesLost)).iter().sum::<u64>();
        let copies = sum(&lab, Counter::Forwarded) + 2 * sum(&lab, Counter::Flooded);
        let missing = copies - sum(&lab, Counter::Offered);
        prop_assert!((lost([1, 2])..=lost([1, 2]) + 2 * lost([3, 4])).contains(&missing), "{missing} copies are missing");
    }

    #[test]
    fn whoever_dies_frames_arrive_or_are_counted(events in events(0, 6)) {
        let mut lab = lab([Wire::Packets, Wire::Tap, Wire::Tap, Wire::Packets]);
        replay(&mut lab, events);
        assert_ports_close(&lab, true);
        prop_assert_eq!(sum(&lab, Counter::Forwarded) - 4, sum(&lab, Counter::Offered) - 12);
    }
}
