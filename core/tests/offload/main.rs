//! Offloads: checksums finished, super-frames cut, nonsense refused.

mod golden;
mod properties;
mod super_frame;

use _core::offload::{self, Bad, Joint, Sum, VnetHeader};

use super_frame::{Super, cut, plain_sum, tcp};

#[test]
fn the_examples_of_rfc_1071_add_up() {
    let bytes = [0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7];
    assert_eq!(offload::sum(&bytes), 0xddf2);
    assert_eq!(Sum::default().bytes(&bytes).checksum(), 0x220d);
    assert_eq!(offload::sum(&[0xff; 65536]), 0xffff);
    assert_eq!(offload::sum(&[]), 0);
}

#[test]
fn a_header_is_little_endian() {
    let header = VnetHeader::read(&[1, 0x81, 0x42, 0, 0xa8, 0x05, 34, 0, 16, 0]);
    let expected = VnetHeader {
        flags: offload::NEEDS_CSUM,
        gso_type: offload::GSO_TCPV4 | offload::GSO_ECN,
        hdr_len: 66,
        gso_size: 1448,
        csum_start: 34,
        csum_offset: 16,
    };
    assert_eq!(header, expected);
}

#[test]
fn a_whole_frame_passes_as_it_is() {
    let frame = tcp().frame();
    assert_eq!(cut(&VnetHeader::default(), &frame), Ok(vec![frame.clone()]));
    assert_eq!(cut(&VnetHeader::default(), &[]), Ok(vec![vec![]]));
    let valid = VnetHeader { flags: offload::DATA_VALID, ..VnetHeader::default() };
    assert_eq!(offload::check(&valid, &frame), Ok(()));
}

#[test]
fn a_udp_checksum_of_zero_is_sent_as_ffff() {
    let mut sent = Super { udp: true, payload: vec![0, 0], ..tcp() };
    let header = VnetHeader { gso_type: offload::GSO_NONE, ..sent.header() };
    let mut frame = sent.frame();
    let sum = plain_sum(&frame[sent.transport()..]);
    sent.payload = (!sum).to_be_bytes().to_vec();
    frame = sent.frame();
    offload::complete(&header, &mut frame).unwrap();
    assert_eq!(frame[sent.transport() + 6..sent.transport() + 8], [0xff, 0xff]);
    sent.judge(&cut(&sent.header(), &sent.frame()).unwrap());
}

#[test]
fn fin_and_psh_stay_for_the_last_segment_and_cwr_for_the_first() {
    let sent = Super { flags: 0xd9, ..tcp() };
    let header = VnetHeader { gso_type: offload::GSO_TCPV4 | offload::GSO_ECN, ..sent.header() };
    let flags: Vec<u8> = cut(&header, &sent.frame()).unwrap().iter().map(|frame| frame[34 + 13]).collect();
    assert_eq!(flags, [0xd0, 0x50, 0x50, 0x59]);
}

#[test]
fn identification_and_sequence_number_wrap() {
    let sent = Super { id: 0xffff, sequence: 0xffff_ff00, ..tcp() };
    sent.judge(&cut(&sent.header(), &sent.frame()).unwrap());
}

#[test]
fn padding_behind_the_ip_packet_is_no_payload() {
    let sent = Super { payload: vec![1], ..tcp() };
    let mut frame = sent.frame();
    frame.extend([0; 6]);
    sent.judge(&cut(&sent.header(), &frame).unwrap());
}

#[test]
fn headers_of_more_than_512_bytes_are_refused() {
    let sent = Super { ipv6: true, extra: 1, ..tcp() };
    let mut frame = sent.frame();
    let (extension, mut header) = (54, sent.header());
    // One extension header of 8 * 51 bytes: the checksum is within the first 512, the options of TCP are not.
    frame.splice(extension + 8..extension + 8, vec![0; 400]);
    frame[extension + 1] = 50;
    frame[18..20].fill(0);
    header.csum_start += 400;
    header.hdr_len = 0;
    assert_eq!(offload::check(&header, &frame), Ok(()));
    frame.splice(extension + 408..extension + 408, vec![0; 24]);
    frame[extension + 1] = 53;
    header.csum_start += 24;
    assert_eq!(offload::check(&header, &frame), Err(Bad::Headers));
}

#[test]
fn a_checksum_field_ends_within_the_frame() {
    let header = VnetHeader { flags: offload::NEEDS_CSUM, csum_start: 34, csum_offset: 6, ..VnetHeader::default() };
    assert_eq!(offload::check(&header, &[0; 42]), Ok(()));
    assert_eq!(offload::check(&header, &[0; 41]), Err(Bad::Length));
    assert_eq!(offload::check(&header, &[0; 40]), Err(Bad::Length));
}

#[test]
fn an_ip_length_of_zero_means_all_of_the_frame() {
    let sent = tcp();
    let mut frame = sent.frame();
    frame[16..18].fill(0);
    sent.judge(&cut(&sent.header(), &frame).unwrap());
}

#[test]
fn the_largest_super_frame_is_cut_into_46_segments() {
    let sent = Super { payload: vec![0x5a; 65535 - 52], ..tcp() };
    let segments = cut(&sent.header(), &sent.frame()).unwrap();
    assert_eq!(segments.len(), 46);
    sent.judge(&segments);
}

#[test]
fn shifting_follows_a_tag_in_and_out() {
    let (plain, tagged) = (tcp(), Super { tags: 1, ..tcp() });
    let mut header = plain.header();
    offload::shift(&mut header, 4);
    assert_eq!(header, tagged.header());
    tagged.judge(&cut(&header, &tagged.frame()).unwrap());
    offload::shift(&mut header, -4);
    assert_eq!(header, plain.header());
    let mut nothing = VnetHeader::default();
    offload::shift(&mut nothing, 4);
    assert_eq!(nothing, VnetHeader::default());
    let mut edges = VnetHeader { flags: offload::NEEDS_CSUM, hdr_len: u16::MAX, csum_start: 2, ..nothing };
    offload::shift(&mut edges, 4);
    assert_eq!((edges.hdr_len, edges.csum_start), (u16::MAX, 6));
    offload::shift(&mut edges, i32::MIN);
    assert_eq!((edges.hdr_len, edges.csum_start), (0, 0));
}

#[test]
fn each_mistake_is_named() {
    let (good, frame) = (tcp().header(), tcp().frame());
    let long = frame.len() as u16;
    let sum_only = VnetHeader { gso_type: offload::GSO_NONE, ..good };
    let table = [
        (VnetHeader { hdr_len: long + 1, ..VnetHeader::default() }, Bad::Length),
        (VnetHeader { csum_start: long - 17, ..sum_only }, Bad::Length),
        (VnetHeader { csum_start: 65535, csum_offset: 65535, ..sum_only }, Bad::Length),
        (VnetHeader { csum_start: 0, csum_offset: 0, ..sum_only }, Bad::Checksum),
        (VnetHeader { csum_start: 12, csum_offset: 0, ..sum_only }, Bad::Checksum),
        (VnetHeader { flags: 0, ..good }, Bad::Checksum),
        (VnetHeader { csum_offset: 6, ..good }, Bad::Checksum),
        (VnetHeader { csum_start: 38, ..good }, Bad::Checksum),
        (VnetHeader { gso_type: offload::GSO_UDP, ..good }, Bad::Kind),
        (VnetHeader { gso_type: 2, ..good }, Bad::Kind),
        (VnetHeader { gso_type: offload::GSO_ECN, ..good }, Bad::Kind),
        (VnetHeader { gso_type: offload::GSO_UDP_L4 | offload::GSO_ECN, ..good }, Bad::Kind),
        (VnetHeader { gso_type: offload::GSO_TCPV6, ..good }, Bad::Headers),
        (VnetHeader { gso_type: offload::GSO_UDP_L4, ..good }, Bad::Headers),
        (VnetHeader { gso_size: 0, ..good }, Bad::Size),
        (VnetHeader { gso_size: 2, ..good }, Bad::Size),
    ];
    for (header, bad) in table {
        assert_eq!(offload::check(&header, &frame), Err(bad), "{header:?}");
    }
    assert_eq!(offload::complete(&good, &mut frame.clone()), Err(Bad::Kind));
}

#[test]
fn a_frame_that_is_not_what_its_kind_says_is_refused() {
    let sent = tcp();
    let refused = |sent: &Super, at: usize, byte: u8| {
        let mut frame = sent.frame();
        frame[at] = byte;
        offload::check(&sent.header(), &frame).unwrap_err()
    };
    assert_eq!(refused(&sent, 20, 0x20), Bad::Headers, "a fragment");
    assert_eq!(refused(&sent, 14, 0x44), Bad::Headers, "an IPv4 header of 16 bytes");
    assert_eq!(refused(&sent, 34 + 12, 0x40), Bad::Headers, "a TCP header of 16 bytes");
    assert_eq!(refused(&sent, 16, 0xff), Bad::Length, "a packet longer than its frame");
    assert_eq!(refused(&Super { payload: vec![], ..sent.clone() }, 17, 40), Bad::Headers, "a packet shorter than its headers");
    let mut tagged = Super { tags: 3, ..sent.clone() };
    assert_eq!(offload::check(&tagged.header(), &tagged.frame()), Err(Bad::Headers), "three tags");
    tagged = Super { ipv6: true, extra: 9, ..sent.clone() };
    assert_eq!(offload::check(&tagged.header(), &tagged.frame()), Err(Bad::Headers), "nine extension headers");
    let many = Super { udp: true, payload: vec![0; 129], gso_size: 1, ..sent.clone() };
    assert_eq!(offload::check(&many.header(), &many.frame()), Err(Bad::Size), "129 datagrams");
    let long = Super { payload: vec![0; 100], gso_size: 65500, ..sent.clone() };
    let mut frame = long.frame();
    frame.resize(65562, 0);
    frame[16..18].fill(0);
    assert_eq!(offload::check(&long.header(), &frame), Err(Bad::Size), "a segment longer than an IP packet");
    let frame = sent.frame();
    for end in 0..sent.headers() {
        let header = VnetHeader { hdr_len: 0, ..sent.header() };
        assert!(offload::check(&header, &frame[..end]).is_err(), "cut off at {end}");
    }
}

/// The frames that segments are joined to, one after the other, with a tunnel's header before each.
fn joined(segments: &[Vec<u8>]) -> Vec<(VnetHeader, Vec<u8>)> {
    let mut buffer: Vec<u8> = Vec::new();
    let mut places = Vec::new();
    for segment in segments {
        buffer.extend([0xee; 8]);
        places.push(buffer.len()..buffer.len() + segment.len());
        buffer.extend(segment);
    }
    let mut places = places.into_iter().peekable();
    let mut frames = Vec::new();
    while let Some(first) = places.next() {
        let Some(mut joint) = Joint::begin(&buffer[first.clone()]) else {
            frames.push((VnetHeader::default(), buffer[first].to_vec()));
            continue;
        };
        let rest = &mut buffer[first.start..];
        while let Some(next) = places.peek()
            && joint.append(rest, next.start - first.start..next.end - first.start)
        {
            places.next();
        }
        let len = joint.frame_len();
        let header = joint.finish(rest);
        frames.push((header, rest[..len].to_vec()));
    }
    frames
}

/// Change one segment of three; how many frames come out.
fn spoilt(spoil: impl Fn(&mut Vec<u8>)) -> usize {
    let sent = Super { flags: 0x10, payload: vec![7; 300], gso_size: 100, ..tcp() };
    let mut segments = cut(&sent.header(), &sent.frame()).unwrap();
    assert_eq!(segments.len(), 3);
    spoil(&mut segments[1]);
    joined(&segments).len()
}

/// Make the checksums right again.
fn resum(frame: &mut [u8]) {
    frame[24..26].fill(0);
    let sum = !plain_sum(&frame[14..34]);
    frame[24..26].copy_from_slice(&sum.to_be_bytes());
    frame[50..52].fill(0);
    let mut summed = [&frame[26..34], &[0, 6], &(frame.len() as u16 - 34).to_be_bytes()].concat();
    summed.extend(&frame[34..]);
    let sum = !plain_sum(&summed);
    frame[50..52].copy_from_slice(&sum.to_be_bytes());
}

#[test]
fn what_was_not_cut_from_one_frame_is_not_joined() {
    assert_eq!(spoilt(|_| {}), 1);
    assert_eq!(spoilt(|frame| resum(frame)), 1);
    // A damaged payload, a damaged header: each stays as it is, and the third begins anew.
    assert_eq!(spoilt(|frame| frame[60] ^= 1), 3);
    assert_eq!(spoilt(|frame| frame[24] ^= 1), 3);
    for at in [0, 6, 15, 22, 26, 30, 34, 36, 38, 41, 45, 47, 49] {
        // Of another station, service, time to live, address, port, number, window: right in itself.
        let count = spoilt(|frame| {
            frame[at] ^= 2;
            resum(frame);
        });
        assert!(count > 1, "byte {at}");
    }
    // Shorter than the first, it is the last.
    let short = spoilt(|frame| {
        frame.truncate(frame.len() - 10);
        let length = frame.len() as u16 - 14;
        frame[16..18].copy_from_slice(&length.to_be_bytes());
        resum(frame);
    });
    assert_eq!(short, 2);
}

#[test]
fn joined_frames_are_no_longer_than_a_packet_may_be() {
    let sent = Super { flags: 0x10, payload: vec![1; 65_000], gso_size: 1000, ..tcp() };
    let mut segments = cut(&sent.header(), &sent.frame()).unwrap();
    let more = Super { sequence: sent.sequence.wrapping_add(65_000), id: sent.id.wrapping_add(65), payload: vec![1; 3000], ..sent.clone() };
    segments.extend(cut(&more.header(), &more.frame()).unwrap());
    let lengths: Vec<usize> = joined(&segments).iter().map(|(_, frame)| frame.len()).collect();
    assert_eq!(lengths, [sent.headers() + 65_000, sent.headers() + 3000]);
}

#[test]
fn a_frame_that_lost_its_header_is_known_by_its_checksum() {
    for ipv6 in [false, true] {
        let sent = Super { ipv6, gso_size: 1400 - if ipv6 { 60 } else { 40 }, payload: vec![3; 9000], tcp_options: 0, ..tcp() };
        assert_eq!(offload::guess(&sent.frame(), 1400), sent.header());
        let short = Super { payload: vec![3; 100], ..sent };
        let header = VnetHeader { gso_type: offload::GSO_NONE, gso_size: 0, hdr_len: 0, ..short.header() };
        assert_eq!(offload::guess(&short.frame(), 1400), header);
        let mut whole = short.frame();
        offload::complete(&header, &mut whole).unwrap();
        assert_eq!(offload::guess(&whole, 1400), VnetHeader::default());
    }
    for len in 0..60 {
        assert_eq!(offload::guess(&tcp().frame()[..len], 1400), VnetHeader::default());
    }
}
