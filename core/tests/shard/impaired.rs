//! Ports whose lines have faults: nothing is lost without being counted, and a change is made while frames wait.

use _core::impair::{ALWAYS, Settings};
use _core::ports::Way;

use super::*;

const MS: u64 = 1_000_000;

fn delayed(delay_ns: u64) -> Settings {
    Settings { delay_ns, ..Settings::default() }
}

impl Lab {
    fn impair(&mut self, port: Port, way: Way, settings: Settings) {
        self.change(port, |policy| match way {
            Way::Out => policy.out = settings,
            Way::In => policy.inward = settings,
        });
    }

    /// Have all workers turn, asleep in between, until a frame comes to a guest.
    fn await_frame(&mut self, port: Port) -> Vec<Vec<u8>> {
        let deadline = std::time::Instant::now() + Duration::from_secs(20);
        loop {
            let came = self.receive(port);
            if !came.is_empty() {
                return came;
            }
            assert!(std::time::Instant::now() < deadline, "nothing came to port {port}");
            for worker in 0..self.shards.len() {
                let shard = self.shards[worker].as_mut().expect("a worker that lives");
                assert_eq!(shard.run(Some(Duration::from_millis(2))).unwrap(), []);
            }
        }
    }

    fn waits(&self, port: Port) -> (u64, u64) {
        let cells = || (0..self.shards.len() as Worker).map(|worker| self.arena.cell(worker, port));
        (cells().map(|cell| cell.in_hand()).sum(), cells().map(|cell| cell.queued()).sum())
    }
}

/// Two ports, of one worker or of two.
fn pair(workers: usize, wire: Wire) -> Lab {
    let mut lab = Lab::new(workers);
    lab.plug_into(0, wire, |_| {});
    lab.plug_into(workers as Worker - 1, wire, |_| {});
    lab.introduce(&[1, 2]);
    lab
}

#[test]
fn a_frame_waits_on_the_line_and_wakes_a_worker_that_sleeps() {
    for (workers, way, at) in [(1, Way::Out, 2), (1, Way::In, 1), (2, Way::Out, 2), (2, Way::In, 1)] {
        let mut lab = pair(workers, Wire::Packets);
        lab.impair(at, way, delayed(60 * MS));
        let began = std::time::Instant::now();
        assert_eq!(lab.reach(1, &frame(1, 2)), []);
        assert_eq!(lab.waits(at), if way == Way::Out { (0, 1) } else { (1, 0) });
        assert_eq!(lab.await_frame(2), [frame(1, 2)]);
        assert!(began.elapsed() >= Duration::from_millis(60));
        assert_eq!((lab.waits(1), lab.waits(2)), ((0, 0), (0, 0)));
        assert_eq!(lab.reach(2, &frame(2, 1)), [1], "the other direction has no faults");
    }
}

#[test]
fn losses_copies_and_a_full_queue_are_counted_in_both_directions() {
    for (way, at, loss, full, all) in [
        (Way::Out, 2, Cause::TxImpairLoss, Cause::TxImpairQueue, Counter::Offered),
        (Way::In, 1, Cause::ImpairLoss, Cause::ImpairQueue, Counter::RxTaken),
    ] {
        let mut lab = pair(1, Wire::Packets);
        let before = lab.counter(at, all);
        lab.impair(at, way, Settings { loss: ALWAYS, ..Settings::default() });
        (0..10).for_each(|_| assert_eq!(lab.reach(1, &frame(1, 2)), []));
        lab.impair(at, way, Settings { duplicate: ALWAYS, ..Settings::default() });
        assert_eq!(lab.reach(1, &frame(1, 2)), [2, 2]);
        lab.impair(at, way, Settings { rate_bps: 1000, queue_frames: 2, ..Settings::default() });
        (0..5).for_each(|_| assert_eq!(lab.reach(1, &frame(1, 2)), []));
        assert_eq!((lab.drops(at, loss), lab.drops(at, full)), (10, 3));
        assert_eq!(lab.counter(at, all) - before, 10 + 2 + 5);
        lab.impair(at, way, Settings::default());
        lab.settle();
        assert_eq!(lab.receive(2).len(), 2, "what waits goes when the faults do");
        assert_eq!((lab.waits(1), lab.waits(2)), ((0, 0), (0, 0)));
    }
}

#[test]
fn what_waits_for_a_port_that_goes_or_a_worker_that_dies_is_booked() {
    let mut lab = pair(2, Wire::Packets);
    lab.impair(1, Way::In, delayed(1000 * MS));
    lab.impair(2, Way::Out, delayed(1000 * MS));
    lab.impair(1, Way::Out, delayed(1000 * MS));
    assert_eq!(lab.reach(1, &frame(1, 2)), []);
    assert_eq!(lab.reach(2, &frame(2, 1)), []);
    lab.shards[0].as_mut().unwrap().remove(1);
    assert_eq!((lab.drops(1, Cause::Down), lab.drops(1, Cause::TxDown)), (1, 1));
    lab.attach(1);
    lab.impair(1, Way::In, Settings::default());
    assert_eq!(lab.reach(1, &frame(1, 2)), []);
    assert_eq!(lab.waits(2), (0, 1));
    lab.replace(1);
    assert_eq!((lab.drops(2, Cause::TxWorkerDied), lab.waits(2)), (1, (0, 0)));
}

#[test]
fn frames_stay_in_order_when_a_delay_is_taken_away() {
    let mut lab = pair(1, Wire::Packets);
    lab.impair(2, Way::Out, delayed(20 * MS));
    let sent: Vec<_> = (0..20).map(|index| frame_of(1, 2, 60 + index)).collect();
    sent.iter().for_each(|frame| assert_eq!(lab.reach(1, frame), []));
    lab.impair(2, Way::Out, delayed(MS));
    assert!(lab.send(1, &frame_of(1, 2, 100)));
    let mut came = Vec::new();
    while came.len() < 21 {
        came.extend(lab.await_frame(2));
    }
    assert_eq!(came.iter().map(Vec::len).collect::<Vec<_>>(), (60..80).chain([100]).collect::<Vec<_>>());
}

#[test]
fn a_lent_tap_is_not_written_past_its_line() {
    let mut lab = pair(2, Wire::Tap);
    let queue = lab.plugs[1].port;
    lab.shards[0].as_mut().unwrap().lend(2, queue).unwrap();
    assert_eq!(lab.reach(1, &frame(1, 2)), [2]);
    lab.impair(2, Way::Out, Settings { loss: ALWAYS, ..Settings::default() });
    assert_eq!(lab.reach(1, &frame(1, 2)), []);
    assert_eq!(lab.drops(2, Cause::TxImpairLoss), 1);
}

#[test]
fn a_slow_guest_behind_a_line_makes_it_wait_and_loses_nothing() {
    let mut lab = pair(1, Wire::Stream);
    lab.impair(2, Way::Out, delayed(MS));
    let (mut sent, mut came) = (0, 0);
    while sent < 3000 {
        sent += u64::from(lab.send(1, &frame_of(1, 2, 1500)));
        lab.step(0);
    }
    while came < sent {
        came += lab.await_frame(2).len() as u64;
    }
    assert_eq!((lab.tx_drops(2), lab.waits(2)), (0, (0, 0)));
}
