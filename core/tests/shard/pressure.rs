//! Full lanes and stuck ports: who waits, who loses, and who does not notice.

use std::time::Instant;

use super::*;

const STEADY: usize = 32;

/// Frames from one port to another, until neither its descriptor nor anything behind it takes another.
fn fill(lab: &mut Lab, from: Port, to: Port) {
    let mut refused = 0;
    while refused < 3 {
        refused = if lab.send(from, &frame(from, to)) { 0 } else { refused + 1 };
        if refused != 0 {
            lab.step(0);
        }
    }
}

/// Turns of one worker until it has taken all there is for it.
fn drain(lab: &mut Lab, worker: Worker) {
    let popped = |lab: &Lab| lab.arena.control(0, worker).popped();
    loop {
        let before = popped(lab);
        for _ in 0..4 {
            lab.step(worker);
        }
        if popped(lab) == before {
            return;
        }
    }
}

#[test]
fn a_steady_port_waits_for_a_full_lane_and_loses_nothing() {
    let mut lab = Lab::new(2);
    lab.plug(0);
    lab.plug(1);
    lab.introduce(&[1, 2]);
    for _ in 0..6 {
        fill(&mut lab, 1, 2);
        // The guest reads as its port writes, so nothing waits in front of the descriptor.
        while lab.plugs[1].received < lab.plugs[0].sent {
            drain(&mut lab, 1);
            lab.receive(2);
            lab.step(0);
        }
    }
    assert_eq!((lab.rx_drops(1), lab.tx_drops(2)), (0, 0));
    assert_eq!(lab.arena.control(0, 1).producer.capacity.load(std::sync::atomic::Ordering::Relaxed), 1 << 20, "the lane has grown");
}

#[test]
fn the_lane_is_the_queue_of_a_worker_with_one_port_that_is_stuck() {
    let mut lab = Lab::new(2);
    lab.plug(0);
    lab.plug(1);
    lab.introduce(&[1, 2]);
    for _ in 0..3 {
        while lab.arena.control(0, 1).pushed() - lab.arena.control(0, 1).popped() < 1000 {
            for _ in 0..STEADY {
                lab.send(1, &frame(1, 2));
            }
            lab.step(0);
            lab.step(1);
        }
        while lab.plugs[1].received < lab.plugs[0].sent {
            lab.receive(2);
            lab.settle();
        }
    }
    assert_eq!((lab.rx_drops(1), lab.tx_drops(2)), (0, 0));
}

#[test]
fn one_stuck_port_does_not_hold_up_another_of_its_worker() {
    let mut lab = Lab::new(2);
    for worker in [0, 1, 1] {
        lab.plug(worker);
    }
    lab.introduce(&[1, 2, 3]);
    let before = lab.plugs[2].received;
    for _ in 0..2000 {
        for to in [2, 3] {
            assert!(lab.send(1, &frame(1, to)));
        }
        lab.step(0);
        lab.step(1);
        lab.receive(3);
    }
    lab.settle();
    lab.receive(3);
    assert_eq!(lab.plugs[2].received - before, 2000);
    assert_eq!(lab.rx_drops(1), 0);
    assert!(lab.drops(2, Cause::TxFull) > 1000);
}

#[test]
fn a_worker_that_stands_still_costs_the_frames_for_it_and_no_others() {
    let mut lab = Lab::new(3);
    for worker in 0..3 {
        lab.plug(worker);
    }
    lab.introduce(&[1, 2, 3]);
    let before = [1, 2].map(|port: usize| lab.plugs[port].received);
    let mut sent = 0;
    while lab.drops(1, Cause::LaneFull) < 100 {
        for to in [2, 3] {
            assert!(lab.send(1, &frame_of(1, to, 1514)));
        }
        sent += 1;
        lab.step(0);
        lab.step(2);
        lab.receive(3);
    }
    assert_eq!(lab.plugs[2].received - before[1], sent);
    while lab.plugs[1].received - before[0] + lab.drops(1, Cause::LaneFull) < sent {
        lab.settle();
        assert!(!lab.receive(2).is_empty(), "what was not dropped arrives later");
    }
    assert_eq!(lab.rx_drops(1), lab.drops(1, Cause::LaneFull));
}

#[test]
fn a_port_is_held_for_a_tenth_of_a_second_and_then_goes_on_to_others() {
    let mut lab = Lab::new(3);
    for worker in 0..3 {
        lab.plug(worker);
    }
    lab.introduce(&[1, 2, 3]);
    let begin = Instant::now();
    while lab.drops(1, Cause::LaneFull) == 0 {
        lab.send(1, &frame_of(1, 2, 1514));
        lab.step(0);
        assert!(begin.elapsed() < Duration::from_secs(20), "the port is held for ever");
    }
    assert!(begin.elapsed() >= Duration::from_millis(100));
    while !lab.send(1, &frame(1, 3)) {
        lab.step(0);
    }
    while lab.receive(3).last() != Some(&frame(1, 3)) {
        lab.step(0);
        lab.step(2);
        assert!(begin.elapsed() < Duration::from_secs(20), "the frame behind is held for ever");
    }
}

#[test]
fn a_port_waits_for_a_stuck_one_of_its_own_worker_and_loses_nothing() {
    let mut lab = Lab::new(1);
    lab.plug(0);
    lab.plug_into(0, Wire::Stream, |_| {});
    lab.introduce(&[1, 2]);
    let mut refused = 0;
    while refused < 3 {
        refused = if lab.send(1, &frame_of(1, 2, 1514)) { 0 } else { refused + 1 };
        lab.step(0);
    }
    while lab.plugs[1].received < lab.plugs[0].sent {
        lab.receive(2);
        lab.step(0);
    }
    assert_eq!((lab.rx_drops(1), lab.tx_drops(2)), (0, 0));
}

#[test]
fn a_port_waits_for_a_stuck_one_among_several_of_another_worker_and_neither_loses_nor_holds_up_those() {
    let mut lab = Lab::new(2);
    lab.plug(0);
    lab.plug_into(1, Wire::Stream, |_| {});
    for worker in [1, 0] {
        lab.plug(worker);
    }
    lab.introduce(&[1, 2, 3, 4]);
    let before = lab.plugs[2].received;
    for round in 1..=3 {
        let (mut refused, begin) = (0, Instant::now());
        while refused < 3 && begin.elapsed() < Duration::from_millis(80) {
            refused = if lab.send(1, &frame_of(1, 2, 1514)) { 0 } else { refused + 1 };
            assert!(lab.send(4, &frame(4, 3)), "the port beside the one that waits is read");
            lab.step(0);
            lab.step(1);
            lab.receive(3);
        }
        assert_eq!(refused, 3, "the port is held, its descriptor full");
        assert_eq!(lab.arena.port(2).pressed.load(std::sync::atomic::Ordering::Relaxed), 1);
        while lab.plugs[1].received < lab.plugs[0].sent {
            lab.receive(2);
            lab.settle();
        }
        assert_eq!(lab.arena.port(2).pressed.load(std::sync::atomic::Ordering::Relaxed), 0, "round {round}");
    }
    lab.settle();
    lab.receive(3);
    assert_eq!(lab.plugs[2].received - before, lab.plugs[3].sent - 1); // its introduction was for all
    assert_eq!((lab.rx_drops(1), lab.tx_drops(2), lab.rx_drops(4), lab.tx_drops(3)), (0, 0, 0, 0));
}

#[test]
fn a_worker_that_dies_pressed_leaves_nobody_waiting() {
    let mut lab = Lab::new(2);
    lab.plug(0);
    lab.plug_into(1, Wire::Stream, |_| {});
    lab.plug(1);
    lab.introduce(&[1, 2, 3]);
    let pressed = |lab: &Lab| lab.arena.port(2).pressed.load(std::sync::atomic::Ordering::Relaxed);
    while pressed(&lab) == 0 {
        lab.send(1, &frame_of(1, 2, 1514));
        lab.step(0);
        lab.step(1);
    }
    lab.replace(1);
    assert_eq!(pressed(&lab), 0);
}
