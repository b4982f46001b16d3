//! ARP (RFC 826): answers for the addresses that the network owns and for no others, and asks for guests.

use std::net::Ipv6Addr;

use super::Core;
use super::wire::{self, BROADCAST, Mac, put16, v4};
use crate::frame::{HEADER, be16};

const ARP: u16 = 0x0806;
const LEN: usize = HEADER + 28;
/// The shortest frame of Ethernet, without its checksum.
const FRAME_LEAST: usize = 60;
const REQUEST: u16 = 1;
const REPLY: u16 = 2;

pub const ETHERTYPE: u16 = ARP;

/// Deal with an ARP packet; returns whom it introduces.
pub fn input(core: &mut Core, frame: &[u8]) -> Option<(Ipv6Addr, Mac)> {
    let arp = frame.get(HEADER..LEN)?;
    if be16(arp, 0)? != 1 || be16(arp, 2)? != crate::frame::IPV4 || arp[4] != 6 || arp[5] != 4 {
        return None;
    }
    let (operation, sender_mac) = (be16(arp, 6)?, wire::mac(arp, 8)?);
    let (sender, target) = (wire::address_v4(arp, 14)?, wire::address_v4(arp, 24)?);
    if sender_mac[0] & 1 == 1 || core.config.owns(sender) {
        return None; // who says that he is us is not believed
    }
    if operation == REQUEST && core.config.v4.is_some() && core.config.owns(target) && core.limits.neighbour(core.now_ms) {
        say(core, REPLY, target, sender_mac, sender, sender_mac);
    }
    core.config.is_guest(sender).then_some((sender, sender_mac))
}

/// The address for which an answer is meant, if this is one.
pub fn answered(frame: &[u8]) -> Option<Ipv6Addr> {
    let arp = frame.get(HEADER..LEN)?;
    if be16(arp, 6)? == REPLY { wire::address_v4(arp, 24) } else { None }
}

/// Ask who has a guest's address.
pub fn ask(core: &mut Core, guest: Ipv6Addr) {
    let Some(net) = core.config.v4 else { return };
    say(core, REQUEST, net.host, BROADCAST, guest, [0; 6]);
}

/// Tell everybody where the host's address is.
pub fn announce(core: &mut Core) {
    let Some(net) = core.config.v4 else { return };
    say(core, REQUEST, net.host, BROADCAST, net.host, [0; 6]); // RFC 5227, 3
}

fn say(core: &mut Core, operation: u16, from: Ipv6Addr, to_mac: Mac, target: Ipv6Addr, target_mac: Mac) {
    let from_mac = core.config.mac(from);
    let (Some(from), Some(target)) = (v4(from), v4(target)) else { return };
    core.reply(|room| {
        let frame = room.frame();
        frame[..6].copy_from_slice(&to_mac);
        frame[6..12].copy_from_slice(&from_mac);
        put16(frame, 12, ARP);
        let arp = &mut frame[HEADER..LEN];
        put16(arp, 0, 1);
        put16(arp, 2, crate::frame::IPV4);
        (arp[4], arp[5]) = (6, 4);
        put16(arp, 6, operation);
        arp[8..14].copy_from_slice(&from_mac);
        arp[14..18].copy_from_slice(&from.octets());
        arp[18..24].copy_from_slice(&target_mac);
        arp[24..28].copy_from_slice(&target.octets());
        frame[LEN..FRAME_LEAST].fill(0);
        FRAME_LEAST
    });
}
