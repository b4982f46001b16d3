//! A wire that loses, repeats and swaps, to a guest of a few lines that knows neither SACK nor scaled windows.

use std::io::{Read, Write};
use std::time::{Duration, Instant};

use crate::{ACK, RST, exchange};

/// A wire that loses, repeats and swaps segments of both directions, as its seed says.
fn storm(seed: u64) {
    let mut state = seed;
    let mut dice = move |sides: u64| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % sides
    };
    let mut exchange = exchange();
    let mut far = exchange.opens();
    far.set_nonblocking(true).unwrap();
    let data: Vec<u8> = (0..300_000u64).map(|at| (at.wrapping_mul(seed | 1) >> 7) as u8).collect();
    let begin = exchange.seq;
    let (mut written, mut got, mut sent, mut acked, mut echoed) = (0, Vec::new(), 0usize, 0usize, Vec::new());
    let mut idle = 0;
    let deadline = Instant::now() + Duration::from_secs(60);
    while got.len() < data.len() || echoed.len() < data.len() {
        assert!(Instant::now() < deadline, "seed {seed}: {} and {} of {}", got.len(), echoed.len(), data.len());
        if let Ok(count) = far.write(&data[written..]) {
            written += count;
        }
        let mut piece = [0; 65_536];
        while let Ok(count @ 1..) = far.read(&mut piece) {
            echoed.extend_from_slice(&piece[..count]);
        }
        // The guest: at most eight segments out, and back to the oldest where nothing moves.
        if idle > 3 {
            sent = acked;
        }
        while sent < data.len() && sent < acked + 8 * 1460 {
            let end = (sent + 1460).min(data.len());
            let seq = begin.wrapping_add(sent as u32);
            for _ in 0..[0, 1, 1, 1, 1, 1, 1, 2][dice(8) as usize] {
                exchange.say_at(seq, ACK, &data[sent..end]);
            }
            sent = end;
        }
        let before = (acked, got.len());
        while let Some(seen) = exchange.heard() {
            if dice(8) == 0 {
                continue;
            }
            assert_eq!(seen.flags & RST, 0, "seed {seed}");
            let now = seen.ack.wrapping_sub(begin) as usize;
            if now <= data.len() {
                acked = acked.max(now);
                sent = sent.max(acked);
            }
            let offset = exchange.ack.wrapping_sub(seen.seq) as usize;
            if offset < seen.data.len() {
                got.extend_from_slice(&seen.data[offset..]);
                exchange.ack = exchange.ack.wrapping_add((seen.data.len() - offset) as u32);
            }
            exchange.seq = begin.wrapping_add(acked as u32);
            exchange.window = [0xffff, 0xffff, 3000, 0][dice(4) as usize];
            if !seen.data.is_empty() && dice(8) != 0 {
                exchange.say(ACK, &[]);
            }
        }
        exchange.seq = begin.wrapping_add(acked as u32);
        exchange.window = 0xffff;
        exchange.say(ACK, &[]);
        idle = if before == (acked, got.len()) { idle + 1 } else { 0 };
        exchange.network.turn_clock(20);
    }
    assert!(got == data && echoed == data, "seed {seed}: bytes changed");
}

#[test]
fn no_byte_is_lost_or_changed_whatever_happens_to_segments() {
    for seed in 1..=40 {
        storm(seed);
    }
}
