//! What fuzzing has found to be worth a look, played again: fuzz/corpus has a file a layer, made by tools/fuzz.

#![allow(clippy::unwrap_used)] // a test that cannot go on fails

#[path = "../../fuzz/core/src/play.rs"]
mod play;
#[path = "../../fuzz/core/src/repair.rs"]
mod repair;

use std::fs;
use std::path::Path;

/// The plays of a corpus: each with its length before it, four bytes, little-endian.
fn plays(mut bytes: &[u8]) -> Vec<&[u8]> {
    let mut found = Vec::new();
    while let Some((length, rest)) = bytes.split_first_chunk::<4>() {
        let (play, rest) = rest.split_at(u32::from_le_bytes(*length) as usize);
        found.push(play);
        bytes = rest;
    }
    found
}

#[test]
fn plays_of_every_layer_end_well() {
    play::leave_the_world();
    for name in repair::Layer::names() {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("../fuzz/corpus/{name}.plays"));
        let bytes = fs::read(&file).unwrap();
        let plays = plays(&bytes);
        assert!(plays.len() > 10, "{} has {} plays", file.display(), plays.len());
        for one in plays {
            play::play(one);
        }
    }
}

#[test]
fn a_repaired_frame_reaches_its_layer() {
    play::leave_the_world();
    // A frame of nothing but zeros, of 100 bytes.
    let mut bytes = vec![0u8; 3 + 100];
    bytes[1] = 100;
    repair::repair(repair::Layer::named("udp").unwrap(), &mut bytes);
    let packet = &bytes[3 + 14..];
    assert_eq!((packet[0], packet[9]), (0x45, 17));
    assert_eq!(_core::offload::Sum::default().bytes(&packet[..20]).checksum(), 0);
    play::play(&bytes);
}
