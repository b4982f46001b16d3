//! Windows: closed for long, shrinking, small, and those that the host's side closes.

use std::io::Write;

use crate::{ACK, RST, exchange, read};

#[test]
fn a_closed_window_is_probed_and_what_it_held_back_arrives_when_it_opens() {
    let mut exchange = exchange();
    let mut far = exchange.opens();
    exchange.window = 0;
    exchange.say(ACK, &[]);
    far.write_all(b"held back").unwrap();
    exchange.silence();
    for _ in 0..10 {
        let (passed, probe) = exchange.waits();
        assert!(passed <= 5_100, "{passed} ms");
        assert_eq!(probe.data, b"h");
        exchange.say(ACK, &[]);
    }
    exchange.window = 1000;
    exchange.say(ACK, &[]);
    let seen = exchange.hears_data();
    assert_eq!(seen.data, b"held back");
    exchange.takes(&seen);
}

#[test]
fn a_guest_whose_window_is_closed_hears_that_what_it_sends_has_come() {
    let mut exchange = exchange();
    let mut far = exchange.opens();
    exchange.window = 0;
    exchange.say(ACK, &[]);
    far.write_all(b"held back").unwrap();
    exchange.silence();
    let (_, probe) = exchange.waits();
    assert_eq!((probe.seq, probe.data.len()), (exchange.ack, 1)); // it has no room for that
    exchange.say(ACK, b"sent meanwhile");
    let (_, seen) = exchange.waits();
    assert_eq!((seen.seq, seen.ack, seen.data.len()), (exchange.ack, exchange.seq.wrapping_add(14), 0));
}

#[test]
fn a_window_that_shrinks_loses_nothing() {
    let mut exchange = exchange();
    let mut far = exchange.opens();
    let data: Vec<u8> = (0..20_000u32).map(|at| (at % 251) as u8).collect();
    far.write_all(&data).unwrap();
    let first = exchange.hears_data();
    assert!(first.data.len() >= 1000);
    exchange.window = 0; // all of that was thrown away
    exchange.say(ACK, &[]);
    let (_, probe) = exchange.waits();
    assert_eq!((probe.seq, probe.data.len()), (exchange.ack, 1));
    exchange.window = 1000;
    let mut got = Vec::new();
    while got.len() < data.len() {
        exchange.say(ACK, &[]);
        let (_, seen) = exchange.waits();
        if seen.seq == exchange.ack && !seen.data.is_empty() {
            assert!(seen.data.len() <= 1000);
            exchange.takes(&seen);
            got.extend(seen.data);
        }
    }
    assert_eq!(got, data);
}

#[test]
fn a_far_end_that_does_not_read_closes_the_window_and_opens_it_again() {
    let mut exchange = exchange();
    let mut far = exchange.opens_with(&[2, 4, 5, 180, 1, 3, 3, 7]);
    let data = vec![7u8; 1460];
    let (mut sent, mut edge) = (0, exchange.seq);
    loop {
        exchange.say(ACK, &data);
        let seen = exchange.hears();
        assert_eq!(seen.ack, exchange.seq.wrapping_add(1460), "the window told {} bytes too many", edge.wrapping_sub(seen.ack));
        exchange.seq = seen.ack;
        sent += 1460;
        let now = seen.ack.wrapping_add(u32::from(seen.window) << 8);
        assert!(now.wrapping_sub(edge) as i32 >= -256, "the right edge moved back");
        edge = now;
        if (edge.wrapping_sub(exchange.seq) as i32) < 1460 {
            break;
        }
    }
    assert!(sent > 100_000, "{sent}");
    read(&mut far, sent);
    let open = exchange.hears();
    assert!(u32::from(open.window) << 8 > 1460, "{}", open.window);
}

#[test]
fn a_window_that_opened_is_told_once() {
    let mut exchange = exchange();
    let mut far = exchange.opens_with(&[2, 4, 5, 180, 1, 3, 3, 7]);
    let data = vec![7u8; 1460];
    let mut sent = 0;
    loop {
        exchange.say(ACK, &data);
        let seen = exchange.hears();
        exchange.seq = seen.ack;
        sent += 1460;
        if u32::from(seen.window) << 8 < 2 * 1460 {
            break;
        }
    }
    read(&mut far, sent);
    exchange.say(ACK, &data); // its ACK tells of the room before the kernel does
    let told = exchange.hears();
    assert!(u32::from(told.window) << 8 > 2 * 1460, "{}", told.window);
    exchange.silence();
}

#[test]
fn an_mss_of_64_carries_everything() {
    let mut exchange = exchange();
    let mut far = exchange.opens_with(&[2, 4, 0, 64]);
    let data: Vec<u8> = (0..50_000u32).map(|at| (at % 253) as u8).collect();
    far.write_all(&data).unwrap();
    let mut got = Vec::new();
    while got.len() < data.len() {
        let seen = exchange.hears_data();
        exchange.takes(&seen);
        got.extend(seen.data);
        exchange.say(ACK, &[]);
    }
    assert_eq!(got, data);
}

#[test]
fn a_window_closed_for_a_minute_ends_nothing() {
    let mut exchange = exchange();
    let mut far = exchange.opens();
    exchange.window = 0;
    exchange.say(ACK, &[]);
    let data: Vec<u8> = (0..100_000u32).map(|at| (at % 249) as u8).collect();
    far.write_all(&data).unwrap();
    let (mut passed, mut probes) = (0, 0);
    while passed < 60_000 {
        if let Some(seen) = exchange.heard() {
            assert_eq!((seen.seq, seen.data.len(), seen.flags & RST), (exchange.ack, 1, 0));
            exchange.say(ACK, &[]);
            probes += 1;
        }
        exchange.network.turn_clock(20);
        passed += 20;
    }
    assert!((12..40).contains(&probes), "{probes}");
    exchange.window = 0xffff;
    exchange.say(ACK, &[]);
    let mut got = Vec::new();
    while got.len() < data.len() {
        let seen = exchange.hears_data();
        exchange.takes(&seen);
        got.extend(seen.data);
        exchange.say(ACK, &[]);
    }
    assert_eq!(got, data);
}

#[test]
fn what_the_far_end_has_no_room_for_is_not_sent_twice() {
    let mut exchange = exchange();
    let mut far = exchange.opens_with(&[2, 4, 5, 180, 1, 1, 4, 2, 1, 3, 3, 7]);
    // Small segments take more of the kernel's memory than their bytes: it has no room before the window is closed.
    let (mut edge, mut sent, begin) = (exchange.seq.wrapping_add(65_535), 0u32, exchange.seq);
    while (edge.wrapping_sub(begin.wrapping_add(sent)) as i32) >= 100 {
        exchange.say_at(begin.wrapping_add(sent), ACK, &[sent as u8; 100]);
        sent += 100;
        let seen = exchange.hears();
        assert_eq!(seen.ack, begin.wrapping_add(sent));
        edge = seen.ack.wrapping_add(u32::from(seen.window) << 8);
    }
    let got = read(&mut far, sent as usize);
    assert!(got.chunks(100).enumerate().all(|(at, piece)| piece.iter().all(|byte| *byte == (at * 100) as u8)));
}
