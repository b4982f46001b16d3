//! Make a mutated play's frames right up to a layer: what lies before it, and the checksums of all.

use _core::offload::Sum;

use crate::play::{self, FRAME, OFFLOADED};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layer {
    Ethernet,
    Arp,
    Ipv4,
    Fragments,
    Icmp,
    Udp,
    Tcp,
    Ipv6,
    Ndp,
    Tcp6,
}

use Layer::*;

impl Layer {
    pub const ALL: [(Layer, &str); 10] = [
        (Ethernet, "ethernet"),
        (Arp, "arp"),
        (Ipv4, "ipv4"),
        (Fragments, "fragments"),
        (Icmp, "icmp"),
        (Udp, "udp"),
        (Tcp, "tcp"),
        (Ipv6, "ipv6"),
        (Ndp, "ndp"),
        (Tcp6, "tcp6"),
    ];

    pub fn named(name: &str) -> Option<Layer> {
        Layer::ALL.iter().find(|(_, its)| *its == name).map(|(layer, _)| *layer)
    }

    pub fn names() -> Vec<&'static str> {
        Layer::ALL.iter().map(|(_, name)| *name).collect()
    }
}

const ETHERNET: usize = 14;
const ICMP: u8 = 1;
const TCP: u8 = 6;
const UDP: u8 = 17;
const ICMPV6: u8 = 58;

/// Repair every frame of a play, in place.
pub fn repair(layer: Layer, data: &mut [u8]) {
    let mut at = 0;
    while let Some((kind, from, to)) = play::next(data, at) {
        match kind {
            FRAME => frame(layer, &mut data[from..to]),
            OFFLOADED if to - from > 10 => frame(layer, &mut data[from + 10..to]),
            _ => {}
        }
        at = to;
    }
}

fn frame(layer: Layer, frame: &mut [u8]) {
    if layer == Ethernet || frame.len() < ETHERNET {
        return;
    }
    match frame[0] & 3 {
        0 => put(frame, 0, [0xff; 6]),
        1 => put(frame, 0, [0x33, 0x33, 0, 0, 0, 1]),
        _ => put(frame, 0, [0x52, 0x55, 10, 0, 2, 2]),
    }
    put(frame, 6, [0x52, 0x54, 0, 0, 0, 1 + (frame[11] & 1)]);
    let ethertype: u16 = match layer {
        Arp => 0x0806,
        Ipv6 | Ndp | Tcp6 => 0x86dd,
        _ => 0x0800,
    };
    frame[12..14].copy_from_slice(&ethertype.to_be_bytes());
    let packet = &mut frame[ETHERNET..];
    match layer {
        Arp => arp(packet),
        Ipv6 | Ndp | Tcp6 => ipv6(layer, packet),
        _ => ipv4(layer, packet),
    }
}

fn put<const N: usize>(bytes: &mut [u8], at: usize, value: [u8; N]) {
    bytes[at..at + N].copy_from_slice(&value);
}

fn arp(packet: &mut [u8]) {
    if packet.len() < 28 {
        return;
    }
    put(packet, 0, [0, 1, 8, 0, 6, 4]);
    put(packet, 14, [10, 0, 2]);
    put(packet, 24, [10, 0, 2]);
}

fn ipv4(layer: Layer, packet: &mut [u8]) {
    if packet.len() < 20 {
        return;
    }
    let most = (packet.len() / 4).min(15);
    let words = if layer == Ipv4 { 5 + usize::from(packet[0] & 15) % (most - 4) } else { 5 };
    packet[0] = 0x40 | words as u8;
    let len = packet.len() as u16;
    packet[2..4].copy_from_slice(&len.to_be_bytes());
    match layer {
        Ipv4 => {}
        Fragments => put(packet, 4, [0, packet[5] & 1]),
        _ => put(packet, 6, [packet[6] & 0x40, 0]),
    }
    packet[9] = match layer {
        Ipv4 | Fragments => [ICMP, TCP, UDP, packet[9]][usize::from(packet[9] & 3)],
        Icmp => ICMP,
        Udp => UDP,
        _ => TCP,
    };
    let far = [[10, 0, 2, 2], [10, 0, 2, 3], [10, 0, 2, 100], [198, 51, 100, 1]];
    put(packet, 12, [10, 0, 2, 15 + (packet[15] & 1)]);
    let chosen = if layer == Tcp { 2 } else { usize::from(packet[19] & 3) };
    packet[16..20].copy_from_slice(&far[chosen]);
    packet[10..12].fill(0);
    let header = 4 * words;
    let sum = Sum::default().bytes(&packet[..header]).checksum();
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
    let is_fragment = u16::from_be_bytes([packet[6], packet[7]]) & 0x3fff != 0;
    if is_fragment {
        return;
    }
    let (protocol, pseudo) = (packet[9], Sum::default().bytes(&packet[12..20]));
    transport(protocol, pseudo, &mut packet[header..]);
}

fn ipv6(layer: Layer, packet: &mut [u8]) {
    if packet.len() < 40 {
        return;
    }
    packet[0] = 0x60;
    let len = (packet.len() - 40) as u16;
    packet[4..6].copy_from_slice(&len.to_be_bytes());
    let guest = 0x15 + (packet[23] & 1);
    let source = if packet[22] & 1 == 1 { [0xfe, 0x80] } else { [0xfe, 0xc0] };
    let far: [[u8; 3]; 5] = [[0xfe, 0xc0, 2], [0xff, 2, 1], [0xff, 2, 2], [0xfe, 0x80, 2], [0x20, 1, 1]];
    let [high, low, last] = if layer == Tcp6 { [0xfe, 0xc0, 100] } else { far[usize::from(packet[39]) % 5] };
    packet[8..40].fill(0);
    packet[8..10].copy_from_slice(&source);
    packet[23] = guest;
    put(packet, 24, [high, low]);
    packet[39] = last;
    match layer {
        Ndp => {
            packet[6] = ICMPV6;
            packet[7] = 255;
            if let Some(kind) = packet.get_mut(40) {
                *kind = 133 + *kind % 5;
            }
        }
        Tcp6 => packet[6] = TCP,
        _ => packet[6] = [0, 43, 44, 60, ICMPV6, TCP, UDP, packet[6]][usize::from(packet[6] & 7)],
    }
    // Through the extension headers (RFC 8200, 4.1) to what is summed.
    let (mut next, mut at) = (packet[6], 40);
    for _ in 0..8 {
        match next {
            0 | 43 | 60 if packet.len() >= at + 8 => {
                next = packet[at];
                at += 8 * (1 + usize::from(packet[at + 1] & 3));
            }
            44 => return,
            _ => break,
        }
    }
    if at < packet.len() {
        let pseudo = Sum::default().bytes(&packet[8..40]);
        transport(next, pseudo, &mut packet[at..]);
    }
}

/// Complete the checksum of a transport's packet; `pseudo` has both addresses.
pub fn transport(protocol: u8, pseudo: Sum, bytes: &mut [u8]) {
    let at = match protocol {
        ICMP | ICMPV6 => 2,
        UDP => 6,
        TCP => 16,
        _ => return,
    };
    if bytes.len() < at + 2 {
        return;
    }
    if protocol == UDP {
        let len = (bytes.len() as u16).to_be_bytes();
        bytes[4..6].copy_from_slice(&len);
    }
    if protocol == TCP {
        // To the end that answers, with a header that fits.
        bytes[2..4].copy_from_slice(&play::SERVED.to_be_bytes());
        if bytes.len() >= 20 {
            let most = (bytes.len() / 4).min(15);
            let words = 5 + usize::from(bytes[12] >> 4) % (most - 4);
            bytes[12] = (words as u8) << 4;
        }
    }
    bytes[at..at + 2].fill(0);
    let base = if protocol == ICMP { Sum::default() } else { pseudo.word(protocol.into()).word(bytes.len() as u16) };
    let sum = base.bytes(bytes).checksum();
    bytes[at..at + 2].copy_from_slice(&sum.to_be_bytes());
}
