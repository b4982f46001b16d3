//! Access ports, trunks and plain ports, across workers.

use super::*;

fn access(vid: u16) -> impl FnOnce(&mut Policy) {
    move |policy| policy.vlan = Vlan::Access(vid)
}

fn trunk(native: u16, vids: &[u16]) -> impl FnOnce(&mut Policy) {
    let vids = vids.to_vec();
    move |policy| (policy.vlan, policy.trunk) = (Vlan::Trunk { native }, vids)
}

/// 1: access 10 and 2: access 20 at worker 0; 3: access 10, 4: trunk 10 and 20, 5: trunk 20 with native 10 at worker 1.
fn lab() -> Lab {
    let mut lab = Lab::new(2);
    lab.plug_into(0, Wire::Packets, access(10));
    lab.plug_into(0, Wire::Packets, access(20));
    lab.plug_into(1, Wire::Packets, access(10));
    lab.plug_into(1, Wire::Packets, trunk(0, &[10, 20]));
    lab.plug_into(1, Wire::Packets, trunk(10, &[20]));
    lab
}

#[test]
fn an_access_port_reaches_its_vlan_and_no_other() {
    let mut lab = lab();
    let sent = frame(1, BROADCAST);
    assert_eq!(lab.outcome(1, &sent), [(3, sent.clone()), (4, tagged(&sent, 10)), (5, sent.clone())]);
    let sent = frame(2, BROADCAST);
    assert_eq!(lab.outcome(2, &sent), [(4, tagged(&sent, 20)), (5, tagged(&sent, 20))]);
}

#[test]
fn a_trunk_carries_its_vlans_to_their_ports_and_drops_the_others() {
    let mut lab = lab();
    let sent = frame(4, BROADCAST);
    assert_eq!(lab.outcome(4, &tagged(&sent, 10)), [(1, sent.clone()), (3, sent.clone()), (5, sent.clone())]);
    assert_eq!(lab.outcome(4, &tagged(&sent, 20)), [(2, sent.clone()), (5, tagged(&sent, 20))]);
    assert_eq!(lab.outcome(4, &tagged(&sent, 30)), []);
    assert_eq!(lab.outcome(4, &sent), [], "there is no native VLAN");
    assert_eq!(lab.drops(4, Cause::Vlan), 2);
}

#[test]
fn a_native_vlan_is_bare_both_ways() {
    let mut lab = lab();
    let sent = frame(5, BROADCAST);
    assert_eq!(lab.outcome(5, &sent), [(1, sent.clone()), (3, sent.clone()), (4, tagged(&sent, 10))]);
    assert_eq!(lab.outcome(5, &tagged(&sent, 0)), [(1, sent.clone()), (3, sent.clone()), (4, tagged(&sent, 10))]);
}

#[test]
fn an_access_port_takes_its_own_tag_off_and_refuses_another() {
    let mut lab = lab();
    let sent = frame(1, BROADCAST);
    assert_eq!(lab.outcome(1, &tagged(&sent, 10)), [(3, sent.clone()), (4, tagged(&sent, 10)), (5, sent.clone())]);
    assert_eq!(lab.outcome(1, &tagged(&sent, 20)), []);
    assert_eq!(lab.drops(1, Cause::Vlan), 1);
}

#[test]
fn an_address_is_known_in_the_vlan_where_it_was_heard() {
    let mut lab = lab();
    lab.outcome(1, &frame(1, BROADCAST));
    lab.outcome(2, &frame(2, BROADCAST));
    let sent = frame(4, 1);
    assert_eq!(lab.outcome(4, &tagged(&sent, 10)), [(1, sent.clone())]);
    assert_eq!(lab.outcome(4, &tagged(&sent, 20)), [(2, sent.clone()), (5, tagged(&sent, 20))], "unknown in VLAN 20");
}

#[test]
fn plain_ports_pass_tags_of_every_kind_as_they_are() {
    let mut lab = Lab::new(2);
    lab.plug(0);
    lab.plug(1);
    let sent = frame(1, BROADCAST);
    let mut provider = tagged(&sent, 7);
    provider[12..14].copy_from_slice(&[0x88, 0xa8]);
    for sent in [tagged(&sent, 1), tagged(&sent, 4094), tagged(&tagged(&sent, 5), 6), tagged(&sent, 0), provider] {
        assert_eq!(lab.reach(1, &sent), [2]);
    }
}

#[test]
fn the_priority_of_a_tag_crosses_the_switch() {
    let mut lab = lab();
    let sent = frame(4, BROADCAST);
    let urgent = tagged(&sent, 20 | 7 << 13);
    assert_eq!(lab.outcome(4, &urgent), [(2, sent), (5, urgent)]);
}
