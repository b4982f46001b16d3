//! What was lost, came twice, or came in another order.

use std::io::Write;

use crate::{ACK, Seen, exchange, read};

/// MSS 1460 and SACK.
const SACK: [u8; 8] = [2, 4, 5, 180, 1, 1, 4, 2];

#[test]
fn what_lies_beyond_a_gap_is_kept_and_counts_once_that_is_filled() {
    let mut exchange = exchange();
    let mut far = exchange.opens();
    let begin = exchange.seq;
    exchange.say_at(begin.wrapping_add(4), ACK, b"efgh");
    assert_eq!(exchange.hears().ack, begin);
    exchange.say_at(begin.wrapping_add(2), ACK, b"cd");
    assert_eq!(exchange.hears().ack, begin);
    exchange.say_at(begin, ACK, b"abcdefghij"); // some of it known
    assert_eq!(exchange.hears().ack, begin.wrapping_add(10));
    exchange.say_at(begin, ACK, b"abcd"); // all of it known
    assert_eq!(exchange.hears().ack, begin.wrapping_add(10));
    assert_eq!(read(&mut far, 10), b"abcdefghij");
}

#[test]
fn what_the_guest_lost_is_sent_again_after_its_time() {
    let mut exchange = exchange();
    let mut far = exchange.opens();
    far.write_all(b"first").unwrap();
    let lost = exchange.hears_data();
    assert_eq!(lost.data, b"first");
    let (passed, again) = exchange.waits();
    assert!((200..=500).contains(&passed), "{passed} ms");
    assert_eq!((again.seq, &again.data[..]), (lost.seq, &b"first"[..]));
    exchange.takes(&again);
    exchange.say(ACK, &[]);
    far.write_all(b"second").unwrap();
    let next = exchange.hears_data();
    exchange.takes(&next);
    assert_eq!(next.data, b"second");
}

#[test]
fn three_repeated_acks_bring_back_what_was_lost_at_once() {
    let mut exchange = exchange();
    let mut far = exchange.opens();
    far.write_all(b"lost").unwrap();
    let lost = exchange.hears_data();
    far.write_all(b"behind").unwrap();
    assert_eq!(exchange.hears_data().data, b"behind");
    for _ in 0..3 {
        exchange.say(ACK, &[]);
    }
    let again = exchange.hears_data();
    assert_eq!((again.seq, &again.data[..]), (lost.seq, &b"lostbehind"[..]));
}

fn block(parts: &[(u32, u32)]) -> Vec<u8> {
    let mut option = vec![1, 1, 5, 2 + 8 * parts.len() as u8];
    parts.iter().for_each(|(from, to)| option.extend([from.to_be_bytes(), to.to_be_bytes()].concat()));
    option
}

/// Ten frames of a segment each, from `exchange.ack` on.
fn ten(exchange: &mut crate::Exchange, far: &mut std::net::TcpStream) -> (Vec<u8>, Vec<Seen>) {
    let mut data = Vec::new();
    let mut frames = Vec::new();
    for at in 0..10u8 {
        let piece = vec![at; 1460];
        far.write_all(&piece).unwrap();
        frames.push(exchange.hears_data());
        assert_eq!(frames.last().unwrap().data, piece);
        data.extend(piece);
    }
    (data, frames)
}

#[test]
fn only_what_the_guest_does_not_report_is_sent_again() {
    let mut exchange = exchange();
    let mut far = exchange.opens_with(&SACK);
    let (_, frames) = ten(&mut exchange, &mut far);
    let (una, at) = (exchange.ack, |piece: u32| frames[0].seq.wrapping_add(piece * 1460));
    // The first, the fourth and the fifth are lost.
    for (to, from, other) in [(2, 1, None), (3, 1, None), (6, 5, Some((1, 3))), (7, 5, Some((1, 3))), (8, 5, Some((1, 3)))] {
        let mut parts = vec![(at(from), at(to))];
        parts.extend(other.map(|(from, to)| (at(from), at(to))));
        exchange.say_with(exchange.seq, ACK, &block(&parts), &[]);
    }
    let first = exchange.hears_data();
    assert_eq!((first.seq, first.data.len()), (una, 1460));
    let second = exchange.hears_data();
    assert_eq!((second.seq, second.data.len()), (at(3), 2 * 1460));
    assert!(second.data == [vec![3; 1460], vec![4; 1460]].concat());
    exchange.silence();
    // A report of what it has twice (D-SACK, RFC 2883) is no sign of loss.
    exchange.ack = at(10);
    exchange.say_with(exchange.seq, ACK, &block(&[(at(3), at(5))]), &[]);
    exchange.silence();
    let (passed, _) = {
        far.write_all(b"on").unwrap();
        (0, exchange.hears_data())
    };
    assert_eq!(passed, 0);
}

#[test]
fn a_segment_that_is_lost_twice_is_sent_a_third_time_without_the_timer() {
    let mut exchange = exchange();
    let mut far = exchange.opens_with(&SACK);
    let (_, frames) = ten(&mut exchange, &mut far);
    let at = |piece: u32| frames[0].seq.wrapping_add(piece * 1460);
    for to in 2..=10 {
        exchange.say_with(exchange.seq, ACK, &block(&[(at(1), at(to))]), &[]);
    }
    assert_eq!(exchange.hears_data().seq, at(0));
    exchange.silence();
    for next in 10..14 {
        far.write_all(&[9; 1460]).unwrap();
        assert_eq!(exchange.hears_data().seq, at(next));
        exchange.say_with(exchange.seq, ACK, &block(&[(at(1), at(next + 1))]), &[]);
    }
    assert_eq!(exchange.hears_data().seq, at(0));
}

#[test]
fn a_guest_that_threw_away_what_it_had_reported_gets_it_again() {
    let mut exchange = exchange();
    let mut far = exchange.opens_with(&SACK);
    let (_, frames) = ten(&mut exchange, &mut far);
    let at = |piece: u32| frames[0].seq.wrapping_add(piece * 1460);
    for to in 2..=10 {
        exchange.say_with(exchange.seq, ACK, &block(&[(at(1), at(to))]), &[]);
    }
    let first = exchange.hears_data();
    exchange.takes(&first);
    exchange.say(ACK, &[]);
    let mut got = 1460;
    while got < 10 * 1460 {
        let (_, seen) = exchange.waits();
        if seen.seq == exchange.ack {
            got += seen.data.len();
            exchange.takes(&seen);
            exchange.say(ACK, &[]);
        }
    }
}

#[test]
fn when_the_last_segments_are_lost_nobody_waits_for_the_timer() {
    let mut exchange = exchange();
    let mut far = exchange.opens_with(&SACK);
    let (_, frames) = ten(&mut exchange, &mut far);
    let at = |piece: u32| frames[0].seq.wrapping_add(piece * 1460);
    exchange.ack = at(7);
    exchange.say(ACK, &[]);
    let (passed, probe) = exchange.waits();
    assert!(passed < 100, "{passed} ms");
    assert_eq!((probe.seq, probe.data.len()), (at(9), 1460));
    exchange.say_with(exchange.seq, ACK, &block(&[(at(9), at(10))]), &[]);
    let again = exchange.hears_data();
    assert_eq!((again.seq, again.data.len()), (at(7), 2 * 1460));
}

#[test]
fn what_came_beyond_a_hole_is_reported_the_latest_first() {
    let mut exchange = exchange();
    let mut far = exchange.opens_with(&SACK);
    let begin = exchange.seq;
    let at = |offset: u32| begin.wrapping_add(offset);
    exchange.say_at(at(10), ACK, &[1; 10]);
    let seen = exchange.hears();
    assert_eq!((seen.ack, seen.blocks()), (begin, vec![(at(10), at(20))]));
    exchange.say_at(at(30), ACK, &[3; 10]);
    assert_eq!(exchange.hears().blocks(), [(at(30), at(40)), (at(10), at(20))]);
    exchange.say_at(at(15), ACK, &[2; 10]); // half of it known
    assert_eq!(exchange.hears().blocks(), [(at(10), at(25)), (at(30), at(40))]);
    exchange.say_at(at(0), ACK, &[0; 10]);
    let seen = exchange.hears();
    assert_eq!((seen.ack, seen.blocks()), (at(25), vec![(at(30), at(40))]));
    assert_eq!(read(&mut far, 25)[..16], [[0; 10].as_slice(), &[1; 6]].concat());
}

#[test]
fn a_connection_that_began_idle_has_no_timeout_of_its_idleness() {
    let mut exchange = exchange();
    let mut far = exchange.opens();
    exchange.network.turn_clock(30_000);
    for _ in 0..2 {
        far.write_all(b"hello").unwrap();
        let seen = exchange.hears_data();
        exchange.takes(&seen);
        exchange.say(ACK, &[]);
    }
    far.write_all(b"lost").unwrap();
    exchange.hears_data();
    let (passed, _) = exchange.waits();
    assert!(passed <= 500, "{passed} ms");
}

#[test]
fn segments_of_the_guest_in_any_order_and_twice_arrive_once_and_in_order() {
    let mut exchange = exchange();
    let mut far = exchange.opens_with(&SACK);
    let begin = exchange.seq;
    let data: Vec<u8> = (0..30_000u32).map(|at| (at % 247) as u8).collect();
    let pieces: Vec<(u32, &[u8])> = (0..).zip(data.chunks(1000)).map(|(at, piece)| (begin.wrapping_add(at * 1000), piece)).collect();
    for turn in [7, 11, 13] {
        for at in 0..pieces.len() {
            let (seq, piece) = pieces[at * turn % pieces.len()];
            exchange.say_at(seq, ACK, piece);
        }
    }
    while exchange.hears().ack != begin.wrapping_add(30_000) {}
    assert_eq!(read(&mut far, 30_000), data);
}
