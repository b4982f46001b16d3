//! A super-frame to be cut, and the judge of its segments: a checksum of 16-bit words that shares no code with ours.

use _core::offload::{self, Bad, HEADERS_MAX, VnetHeader};

/// RFC 1071 as its section 4.1 writes it.
pub fn plain_sum(bytes: &[u8]) -> u16 {
    let mut sum = 0u32;
    for pair in bytes.chunks(2) {
        sum += u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0));
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

/// What a super-frame is made of, and where its parts are.
#[derive(Clone, Debug)]
pub struct Super {
    pub tags: usize,
    pub ipv6: bool,
    pub udp: bool,
    /// Words of 4 bytes of IPv4 options, or extension headers of 8 bytes.
    pub extra: usize,
    pub tcp_options: usize,
    pub flags: u16,
    pub id: u16,
    pub sequence: u32,
    pub payload: Vec<u8>,
    pub gso_size: u16,
}

impl Super {
    pub fn network(&self) -> usize {
        14 + 4 * self.tags
    }

    pub fn transport(&self) -> usize {
        self.network() + if self.ipv6 { 40 + 8 * self.extra } else { 20 + 4 * self.extra }
    }

    pub fn headers(&self) -> usize {
        self.transport() + if self.udp { 8 } else { 20 + 4 * self.tcp_options }
    }

    fn protocol(&self) -> u8 {
        if self.udp { 17 } else { 6 }
    }

    pub fn pseudo_header(&self, frame: &[u8]) -> Vec<u8> {
        let ip = &frame[self.network()..];
        let mut pseudo = if self.ipv6 { ip[8..40].to_vec() } else { ip[12..20].to_vec() };
        pseudo.extend(((frame.len() - self.transport()) as u32).to_be_bytes());
        pseudo.extend([0, 0, 0, self.protocol()]);
        pseudo
    }

    pub fn frame(&self) -> Vec<u8> {
        let mut frame = vec![0x52, 0x55, 0, 0, 0, 1, 0x52, 0x55, 0, 0, 0, 2];
        for tag in 0..self.tags {
            frame.extend([0x81, 0x00, 0x20, 100 + tag as u8]);
        }
        let transport_length = self.headers() - self.transport() + self.payload.len();
        if self.ipv6 {
            frame.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
            frame.extend(((8 * self.extra + transport_length) as u16).to_be_bytes());
            frame.extend([if self.extra > 0 { 60 } else { self.protocol() }, 64]);
            frame.extend((0..32).map(|byte| byte * 7 + 1));
            for left in (0..self.extra).rev() {
                frame.extend([if left > 0 { 60 } else { self.protocol() }, 0, 1, 4, 0, 0, 0, 0]);
            }
        } else {
            frame.extend([0x08, 0x00, 0x45 + self.extra as u8, 0]);
            frame.extend(((20 + 4 * self.extra + transport_length) as u16).to_be_bytes());
            frame.extend(self.id.to_be_bytes());
            frame.extend([0x40, 0, 64, self.protocol(), 0, 0, 10, 0, 2, 2, 10, 0, 2, 15]);
            frame.extend(vec![1; 4 * self.extra]);
        }
        frame.extend([0x13, 0x88, 0xc0, 0x01]);
        if self.udp {
            frame.extend((transport_length as u16).to_be_bytes());
            frame.extend([0, 0]);
        } else {
            frame.extend(self.sequence.to_be_bytes());
            frame.extend([9, 8, 7, 6]);
            frame.extend(((5 + self.tcp_options as u16) << 12 | self.flags).to_be_bytes());
            frame.extend([0xff, 0xff, 0, 0, 0, 0]);
            frame.extend(vec![1; 4 * self.tcp_options]);
        }
        frame.extend(&self.payload);
        let partial = plain_sum(&self.pseudo_header(&frame));
        let field = self.transport() + usize::from(self.header().csum_offset);
        frame[field..field + 2].copy_from_slice(&partial.to_be_bytes());
        frame
    }

    pub fn header(&self) -> VnetHeader {
        VnetHeader {
            flags: offload::NEEDS_CSUM,
            gso_type: match (self.udp, self.ipv6) {
                (true, _) => offload::GSO_UDP_L4,
                (false, false) => offload::GSO_TCPV4,
                (false, true) => offload::GSO_TCPV6,
            },
            hdr_len: self.headers() as u16,
            gso_size: self.gso_size,
            csum_start: self.transport() as u16,
            csum_offset: if self.udp { 6 } else { 16 },
        }
    }

    /// Check the segments against what a receiver expects.
    pub fn judge(&self, segments: &[Vec<u8>]) {
        let (network, transport, headers) = (self.network(), self.transport(), self.headers());
        let original = self.frame();
        let mut payload: Vec<u8> = Vec::new();
        for (index, segment) in segments.iter().enumerate() {
            let word = |at: usize| u16::from_be_bytes([segment[at], segment[at + 1]]);
            let is_last = index + 1 == segments.len();
            if self.ipv6 {
                assert_eq!(usize::from(word(network + 4)), segment.len() - network - 40);
            } else {
                assert_eq!(usize::from(word(network + 2)), segment.len() - network);
                assert_eq!(word(network + 4), self.id.wrapping_add(index as u16));
                let ip_end = network + 20 + 4 * self.extra;
                assert_eq!(plain_sum(&segment[network..ip_end]), 0xffff, "IPv4 header checksum");
            }
            let mut summed = self.pseudo_header(segment);
            summed.extend(&segment[transport..]);
            assert_eq!(plain_sum(&summed), 0xffff, "transport checksum of segment {index}");
            let mut expected = original[..headers].to_vec();
            let mut same = |at: usize, length: usize| expected[at..at + length].copy_from_slice(&segment[at..at + length]);
            if self.ipv6 {
                same(network + 4, 2);
            } else {
                same(network + 2, 4);
                same(network + 10, 2);
            }
            if self.udp {
                assert_eq!(usize::from(word(transport + 4)), segment.len() - transport);
                assert_ne!(word(transport + 6), 0, "a UDP checksum of 0 says there is none");
                same(transport + 4, 4);
            } else {
                let sequence = u32::from_be_bytes(segment[transport + 4..transport + 8].try_into().unwrap());
                assert_eq!(sequence, self.sequence.wrapping_add(payload.len() as u32));
                let mut flags = self.flags;
                flags &= if index == 0 { 0xffff } else { !0x80 };
                flags &= if is_last { 0xffff } else { !0x09 };
                assert_eq!(word(transport + 12) & 0x0fff, flags, "flags of segment {index}");
                same(transport + 4, 4);
                same(transport + 12, 2);
                same(transport + 16, 2);
            }
            assert_eq!(segment[..headers], expected, "what is not rewritten stays");
            let size = segment.len() - headers;
            assert!(is_last && size <= usize::from(self.gso_size) || size == usize::from(self.gso_size));
            payload.extend(&segment[headers..]);
        }
        assert_eq!(payload, self.payload);
    }
}

pub fn cut(header: &VnetHeader, frame: &[u8]) -> Result<Vec<Vec<u8>>, Bad> {
    let mut segments = Vec::new();
    let count = offload::segment(header, frame, &mut [0xaa; HEADERS_MAX], &mut |headers, payload| {
        segments.push([headers, payload].concat());
    })?;
    assert_eq!(count, segments.len());
    Ok(segments)
}

pub fn tcp() -> Super {
    Super {
        tags: 0,
        ipv6: false,
        udp: false,
        extra: 0,
        tcp_options: 3,
        flags: 0x10,
        id: 7,
        sequence: 1,
        payload: (0..5000u32).map(|at| ((at * 31) >> 3) as u8).collect(),
        gso_size: 1448,
    }
}
