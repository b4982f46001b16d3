//! Tell from a frame what its virtio-net header would have said, where it came without one.
//!
//! A kernel whose tunnel device sends by a virtual network card (veth) takes that card for one that fills in the inner checksums and
//! cuts the inner super-frame. It does neither, and where the packet ends at a socket, nobody does: what a program receives is the
//! super-frame, and in its checksum field the sum of the pseudo-header (Linux up to 6.18). That sum is what it is known by. One
//! frame in 65,536 has it there by right; it loses nothing but the receiver's look at its checksum, which the outer UDP has too.

use super::join::pseudo;
use super::{GSO_ECN, GSO_NONE, GSO_TCPV4, GSO_TCPV6, NEEDS_CSUM, TCP_CHECKSUM, UDP_CHECKSUM, VnetHeader, check};
use crate::frame::{self, be16};

/// Packets are up to `mtu` long where the frame was to go, which nothing in it says.
pub fn guess(found: &[u8], mtu: usize) -> VnetHeader {
    header(found, mtu).filter(|header| check(header, found).is_ok()).unwrap_or_default()
}

fn header(found: &[u8], mtu: usize) -> Option<VnetHeader> {
    let ip = frame::transport(found)?;
    let (offset, length) = match ip.protocol {
        frame::TCP => (TCP_CHECKSUM, usize::from(found.get(ip.offset + 12)? >> 4) * 4),
        frame::UDP => (UDP_CHECKSUM, 8),
        _ => return None,
    };
    let said = match ip.version {
        4 => usize::from(be16(found, ip.network + 2)?),
        _ => 40 + usize::from(be16(found, ip.network + 4)?),
    };
    let end = ip.network + said;
    if end > found.len() || end < ip.offset + length || be16(found, ip.offset + usize::from(offset))? != pseudo(found, &ip, end).fold() {
        return None;
    }
    let mut header = VnetHeader { flags: NEEDS_CSUM, csum_start: ip.offset as u16, csum_offset: offset, ..VnetHeader::default() };
    header.gso_type = match (ip.protocol, ip.version) {
        _ if said <= mtu => GSO_NONE,
        (frame::TCP, 4) => GSO_TCPV4,
        (frame::TCP, _) => GSO_TCPV6,
        _ => GSO_NONE,
    };
    if header.gso_type != GSO_NONE {
        let headers = ip.offset + length;
        header.hdr_len = headers as u16;
        header.gso_size = mtu.saturating_sub(headers - ip.network) as u16;
        if found[ip.offset + 13] & 0x80 != 0 {
            header.gso_type |= GSO_ECN;
        }
    }
    Some(header)
}
