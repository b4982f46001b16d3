//! What holds for any super-frame, honest or hostile.

use _core::offload::{self, Bad, Sum, VnetHeader};
use proptest::prelude::*;

use crate::super_frame::{Super, cut, plain_sum};

prop_compose! {
    fn supers()(
        tags in 0usize..=2, ipv6: bool, udp: bool, extra in 0usize..=8, tcp_options in 0usize..=10,
        flags in 0u16..0x200, id: u16, sequence: u32,
        payload in prop::collection::vec(any::<u8>(), 0..4000), segments in 1usize..100,
    ) -> Super {
        let gso_size = payload.len().div_ceil(segments).max(1) as u16;
        Super { tags, ipv6, udp, extra, tcp_options, flags, id, sequence, payload, gso_size }
    }
}

proptest! {
    #[test]
    fn segments_are_what_the_sender_meant(sent in supers()) {
        let (header, frame) = (sent.header(), sent.frame());
        prop_assert_eq!(offload::check(&header, &frame), Ok(()));
        sent.judge(&cut(&header, &frame).unwrap());
    }

    #[test]
    fn what_is_cut_is_joined_again(sent in supers()) {
        // No padding, no flag that ends a flow but at its end: what a kernel sends.
        let flags = sent.flags & 0x58 | 0x10;
        let sent = Super { udp: false, flags, ..sent };
        let (header, mut frame) = (sent.header(), sent.frame());
        if !sent.ipv6 {
            let sum = !plain_sum(&frame[sent.network()..sent.transport()]);
            frame[sent.network() + 10..sent.network() + 12].copy_from_slice(&sum.to_be_bytes());
        }
        let segments = cut(&header, &frame).unwrap();
        let joined = crate::joined(&segments);
        if segments.len() > 1 {
            prop_assert_eq!(joined, [(header, frame)]);
        } else {
            prop_assert_eq!(joined, [(VnetHeader::default(), segments[0].clone())]);
        }
    }

    #[test]
    fn joining_takes_any_bytes(segments in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..200), 0..4)) {
        prop_assert_eq!(crate::joined(&segments).len(), segments.len());
        for segment in &segments {
            offload::guess(segment, 1500);
        }
    }

    #[test]
    fn a_partial_checksum_is_finished_in_place_and_apart_alike(sent in supers()) {
        let header = VnetHeader { gso_type: offload::GSO_NONE, gso_size: 0, ..sent.header() };
        let mut frame = sent.frame();
        prop_assert_eq!(offload::check(&header, &frame), Ok(()));
        let apart = cut(&header, &frame).unwrap();
        offload::complete(&header, &mut frame).unwrap();
        let mut summed = sent.pseudo_header(&frame);
        summed.extend(&frame[sent.transport()..]);
        prop_assert_eq!(plain_sum(&summed), 0xffff);
        prop_assert_eq!(apart, [frame]);
    }

    #[test]
    fn sums_agree_with_plain_arithmetic_however_the_bytes_are_parted(
        bytes in prop::collection::vec(any::<u8>(), 0..300), cuts in prop::collection::vec(0usize..300, 0..5),
    ) {
        let mut cuts: Vec<usize> = cuts.into_iter().map(|at| at.min(bytes.len())).collect();
        cuts.extend([0, bytes.len()]);
        cuts.sort();
        let sum = cuts.windows(2).fold(Sum::default(), |sum, part| sum.bytes(&bytes[part[0]..part[1]]));
        prop_assert_eq!(sum.fold(), plain_sum(&bytes));
        prop_assert_eq!(offload::sum(&bytes), plain_sum(&bytes));
    }

    #[test]
    fn a_header_survives_writing_and_reading(bytes: [u8; 10]) {
        let header = VnetHeader::read(&bytes);
        let mut written = [0; 10];
        header.write(&mut written);
        prop_assert_eq!(written[0], bytes[0] & 3);
        prop_assert_eq!(&written[1..], &bytes[1..]);
        prop_assert_eq!(VnetHeader::read(&written), header);
    }

    #[test]
    fn hostile_headers_are_refused_or_harmless(
        header: [u8; 10], frame in prop::collection::vec(any::<u8>(), 0..700), kind in 0u8..7,
    ) {
        harmless(&VnetHeader { gso_type: kind, ..VnetHeader::read(&header) }, &frame);
        harmless(&VnetHeader::read(&header), &frame);
    }

    #[test]
    fn damaged_super_frames_are_refused_or_harmless(
        sent in supers(), pokes in prop::collection::vec((0usize..160, any::<u8>()), 0..4),
        words in prop::collection::vec((0usize..10, any::<u8>()), 0..3), end in 0usize..5000,
    ) {
        let mut frame = sent.frame();
        for (at, byte) in pokes {
            if let Some(target) = frame.get_mut(at) {
                *target = byte;
            }
        }
        frame.truncate(end);
        let mut header = [0; 10];
        sent.header().write(&mut header);
        for (at, byte) in words {
            header[at] = byte;
        }
        harmless(&VnetHeader::read(&header), &frame);
    }
}

/// What `check` accepts is cut into a bounded number of frames that keep their Ethernet header; what it refuses, nobody works on.
fn harmless(header: &VnetHeader, frame: &[u8]) {
    let verdict = offload::check(header, frame);
    let mut completed = frame.to_vec();
    let complete = offload::complete(header, &mut completed);
    let segments = cut(header, frame);
    assert_eq!(segments.as_ref().map(|_| ()).map_err(|bad| *bad), verdict);
    match &segments {
        Ok(segments) if header.gso_type == offload::GSO_NONE => {
            assert_eq!(complete, Ok(()));
            assert_eq!(segments[0], completed);
        }
        Ok(_) => assert_eq!(complete, Err(Bad::Kind)),
        Err(bad) => assert_eq!(complete, Err(*bad)),
    }
    if complete.is_err() {
        assert_eq!(completed, frame, "a refused frame is left alone");
    }
    for segment in segments.iter().flatten() {
        assert_eq!(segment[..14.min(segment.len())], frame[..14.min(frame.len())]);
    }
    assert!(segments.map_or(0, |segments| segments.len()) <= 2048);
}
