//! Learning, flooding, and who is kept from whom.

use std::sync::atomic::Ordering;

use super::*;

/// Ports 1 and 2 at worker 0, ports 3 and 4 at worker 1.
fn lab() -> Lab {
    let mut lab = Lab::new(2);
    for worker in [0, 0, 1, 1] {
        lab.plug(worker);
    }
    lab
}

#[test]
fn a_frame_to_an_unknown_address_goes_to_every_other_port() {
    let mut lab = lab();
    assert_eq!(lab.reach(1, &frame(1, 9)), [2, 3, 4]);
    assert_eq!((lab.counter(1, Counter::Forwarded), lab.counter(1, Counter::Flooded)), (1, 1));
}

#[test]
fn a_frame_to_an_address_that_was_heard_goes_to_its_port_alone() {
    let mut lab = lab();
    lab.introduce(&[1, 2, 3, 4]);
    for from in 1..=4 {
        for to in (1..=4).filter(|to| *to != from) {
            assert_eq!(lab.reach(from, &frame(from, to)), [to]);
        }
    }
}

#[test]
fn a_broadcast_goes_to_every_other_port_though_all_are_known() {
    let mut lab = lab();
    lab.introduce(&[1, 2, 3, 4]);
    assert_eq!(lab.reach(3, &frame(3, BROADCAST)), [1, 2, 4]);
}

#[test]
fn an_address_that_moves_to_another_port_is_followed() {
    let mut lab = lab();
    lab.introduce(&[1, 4]);
    assert_eq!(lab.reach(1, &frame(1, 4)), [4]);
    lab.reach(2, &frame(4, BROADCAST));
    assert_eq!(lab.reach(1, &frame(1, 4)), [2]);
    assert_eq!(lab.arena.port(4).macs.load(Ordering::Relaxed), 0);
}

#[test]
fn a_frame_to_an_address_on_its_own_port_goes_nowhere() {
    let mut lab = lab();
    lab.introduce(&[1]);
    assert_eq!(lab.reach(1, &frame(9, 1)), []);
    assert_eq!(lab.counter(1, Counter::Filtered), 1);
}

#[test]
fn an_address_that_was_flushed_is_flooded_again() {
    let mut lab = lab();
    lab.introduce(&[1, 2]);
    assert_eq!(repair::forget(lab.arena, 0, 2), 1);
    assert_eq!(lab.reach(1, &frame(1, 2)), [2, 3, 4]);
}

#[test]
fn a_hub_gives_every_frame_to_every_other_port_and_learns_nothing() {
    let mut lab = lab();
    lab.arena.switch(0).hub.store(1, Ordering::Relaxed);
    lab.arena.advance();
    lab.introduce(&[1, 2, 3, 4]);
    assert_eq!(lab.reach(1, &frame(1, 2)), [2, 3, 4]);
    assert_eq!(lab.reach(1, &frame(9, 1)), [2, 3, 4]);
    assert_eq!(lab.arena.table(0).stations(repair::clock(lab.arena, 0)).count(), 0);
}

#[test]
fn two_switches_are_two_worlds() {
    let mut lab = lab();
    for port in [2, 4] {
        lab.change(port, |policy| policy.switch = 1);
    }
    assert_eq!(lab.reach(1, &frame(1, BROADCAST)), [3]);
    assert_eq!(lab.reach(2, &frame(2, BROADCAST)), [4]);
}

#[test]
fn isolated_ports_hear_nothing_of_each_other_and_all_of_the_others() {
    let mut lab = lab();
    for port in [1, 2, 3] {
        lab.change(port, |policy| policy.isolated = true);
    }
    assert_eq!(lab.reach(1, &frame(1, BROADCAST)), [4]);
    assert_eq!(lab.reach(4, &frame(4, BROADCAST)), [1, 2, 3]);
    lab.introduce(&[2, 3]);
    assert_eq!(lab.reach(1, &frame(1, 2)), []);
    assert_eq!(lab.reach(1, &frame(1, 3)), []);
    assert_eq!(lab.reach(1, &frame(1, 4)), [4]);
}

#[test]
fn a_port_teaches_no_more_addresses_than_it_may() {
    let mut lab = lab();
    lab.change(1, |policy| policy.max_macs = 3);
    for source in 101..=103 {
        assert_eq!(lab.reach(1, &frame(source, BROADCAST)), [2, 3, 4]);
    }
    assert_eq!(lab.reach(1, &frame(104, BROADCAST)), []);
    assert_eq!(lab.reach(1, &frame(102, BROADCAST)), [2, 3, 4], "an address that is known goes on");
    assert_eq!(lab.drops(1, Cause::MacLimit), 1);
}

#[test]
fn what_bridges_keep_to_themselves_is_not_forwarded_unless_the_switch_says_so() {
    let mut lab = lab();
    let mut lldp = frame(1, BROADCAST);
    lldp[..6].copy_from_slice(&[1, 0x80, 0xc2, 0, 0, 0xe]);
    assert_eq!(lab.reach(1, &lldp), []);
    assert_eq!(lab.drops(1, Cause::Reserved), 1);
    lab.arena.switch(0).reserved.store(1 << 0xe, Ordering::Relaxed);
    lab.arena.advance();
    assert_eq!(lab.reach(1, &lldp), [2, 3, 4]);
}

#[test]
fn a_group_address_or_zero_is_no_source() {
    let mut lab = lab();
    let mut group = frame(1, 2);
    group[6] |= 1;
    let mut zero = frame(1, 2);
    zero[6..12].fill(0);
    assert_eq!((lab.reach(1, &group), lab.reach(1, &zero)), (vec![], vec![]));
    assert_eq!(lab.drops(1, Cause::BadSource), 2);
}

#[test]
fn a_runt_is_dropped_and_the_frame_behind_it_is_not() {
    for wire in [Wire::Packets, Wire::Stream] {
        let mut lab = Lab::new(2);
        lab.plug_into(0, wire, |_| {});
        lab.plug(1);
        for len in 1..14 {
            assert!(lab.send(1, &frame(1, BROADCAST)[..len]));
        }
        assert_eq!(lab.reach(1, &frame_of(1, BROADCAST, 14)), [2]);
        assert_eq!(lab.drops(1, Cause::Runt), 13);
    }
}

#[test]
fn a_frame_over_the_mtu_neither_comes_in_nor_goes_out() {
    let mut lab = lab();
    lab.change(1, |policy| policy.mtu = 1000);
    lab.change(3, |policy| policy.mtu = 500);
    assert_eq!(lab.reach(1, &frame_of(1, BROADCAST, 1014)), [2, 4]);
    assert_eq!(lab.reach(1, &frame_of(1, BROADCAST, 1015)), []);
    assert_eq!(lab.reach(1, &frame_of(1, BROADCAST, 514)), [2, 3, 4]);
    assert_eq!((lab.drops(1, Cause::Oversize), lab.drops(3, Cause::TxOversize)), (1, 1));
}

#[test]
fn a_tag_does_not_count_towards_the_mtu() {
    let mut lab = lab();
    lab.change(1, |policy| policy.mtu = 1000);
    assert_eq!(lab.reach(1, &tagged(&frame_of(1, BROADCAST, 1014), 5)), [2, 3, 4]);
    assert_eq!(lab.reach(2, &tagged(&frame_of(2, BROADCAST, 1014), 5)), [1, 3, 4]);
}

#[test]
fn a_port_that_is_down_takes_nothing_and_gives_nothing() {
    let mut lab = lab();
    lab.introduce(&[1, 2, 3, 4]);
    lab.change(3, |policy| policy.up = false);
    assert_eq!(lab.reach(3, &frame(3, 1)), []);
    assert_eq!(lab.reach(1, &frame(1, 3)), []);
    assert_eq!(lab.reach(1, &frame(1, BROADCAST)), [2, 4]);
    assert_eq!((lab.drops(3, Cause::Down), lab.drops(3, Cause::TxDown)), (1, 1));
    lab.change(3, |policy| policy.up = true);
    assert_eq!(lab.reach(3, &frame(3, 1)), [1]);
}

#[test]
fn frames_of_every_length_cross_between_workers_and_kinds_of_ports() {
    let mut lab = Lab::new(2);
    lab.plug_into(0, Wire::Stream, |_| {});
    lab.plug_into(1, Wire::Stream, |_| {});
    lab.plug(1);
    for len in (14..2000).chain([4096, 9014, 32_768, 65_535, 65_536, 65_561, 65_562]) {
        assert_eq!(lab.reach(1, &frame_of(1, BROADCAST, len)), [2, 3]);
        assert_eq!(lab.reach(3, &frame_of(3, BROADCAST, len)), [1, 2]);
    }
}

#[test]
fn an_address_silent_for_its_ageing_time_is_flooded_again() {
    let mut lab = lab();
    lab.introduce(&[1, 2]);
    assert_eq!(lab.reach(1, &frame(1, 2)), [2]);
    lab.arena.switch(0).age_s.store(0, Ordering::Relaxed);
    lab.arena.advance();
    assert_eq!(lab.reach(1, &frame(1, 2)), [2, 3, 4]);
}
