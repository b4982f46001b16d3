//! How connections begin and end: handshakes, halves that close, resets, and what is forged.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use crate::{ACK, FIN, RST, SYN, URG, exchange, forwarding, read};

#[test]
fn data_is_acknowledged_when_the_host_has_taken_it() {
    let mut exchange = exchange();
    let mut far = exchange.opens();
    exchange.say(ACK, b"hello");
    exchange.seq = exchange.seq.wrapping_add(5);
    let seen = exchange.hears();
    assert_eq!((seen.ack, seen.data.len()), (exchange.seq, 0));
    assert_eq!(read(&mut far, 5), b"hello");
}

#[test]
fn a_syn_that_comes_again_gets_the_same_answer() {
    let mut exchange = exchange();
    exchange.say_at(exchange.seq, SYN, &[]);
    let first = exchange.hears();
    exchange.say_at(exchange.seq, SYN, &[]);
    let second = exchange.hears();
    assert_eq!((first.seq, first.ack, first.flags), (second.seq, second.ack, second.flags));
}

#[test]
fn a_lost_syn_ack_is_said_again_within_half_a_second() {
    let mut exchange = exchange();
    exchange.say_at(exchange.seq, SYN, &[]);
    let first = exchange.hears();
    let (passed, second) = exchange.waits();
    assert!((200..=500).contains(&passed), "{passed} ms");
    assert_eq!((first.seq, first.flags), (second.seq, second.flags));
}

#[test]
fn a_lost_fin_is_said_again() {
    let mut exchange = exchange();
    let far = exchange.opens();
    drop(far);
    let fin = exchange.hears_data();
    assert_eq!(fin.flags & FIN, FIN);
    let (_, again) = exchange.waits();
    assert_eq!((again.seq, again.flags & FIN), (fin.seq, FIN));
}

#[test]
fn the_end_goes_with_the_last_data_and_both_are_said_again_when_lost() {
    let mut exchange = exchange();
    let mut far = exchange.opens();
    far.write_all(b"last words").unwrap();
    drop(far);
    let seen = exchange.hears_data();
    assert_eq!((seen.data.as_slice(), seen.flags & FIN), (&b"last words"[..], FIN));
    let (_, again) = exchange.waits();
    assert_eq!((again.seq, again.data.as_slice(), again.flags & FIN), (seen.seq, &b"last words"[..], FIN));
    exchange.takes(&seen);
    exchange.say(FIN | ACK, &[]);
    assert_eq!(exchange.hears().ack, exchange.seq.wrapping_add(1));
}

#[test]
fn each_half_is_closed_alone() {
    let mut exchange = exchange();
    let mut far = exchange.opens();
    exchange.say(FIN | ACK, b"last");
    exchange.seq = exchange.seq.wrapping_add(5);
    assert_eq!(exchange.hears().ack, exchange.seq);
    let mut got = Vec::new();
    far.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    far.read_to_end(&mut got).unwrap();
    assert_eq!(got, b"last");
    far.write_all(b"still here").unwrap();
    let seen = exchange.hears_data();
    assert_eq!(seen.data, b"still here");
    exchange.takes(&seen);
    exchange.say(ACK, &[]);
    drop(far);
    let fin = exchange.hears_data();
    exchange.takes(&fin);
    exchange.say(ACK, &[]);
    exchange.silence();
    // The port is free for the guest at once.
    exchange.seq = exchange.seq.wrapping_add(100_000);
    exchange.opens();
}

#[test]
fn a_blind_reset_or_syn_is_challenged() {
    let mut exchange = exchange();
    let mut far = exchange.opens();
    for flags in [RST, RST | ACK, SYN] {
        exchange.say_at(exchange.seq.wrapping_add(100), flags, &[]);
        let seen = exchange.hears();
        assert_eq!((seen.flags, seen.ack), (ACK, exchange.seq));
    }
    exchange.say_at(exchange.seq.wrapping_sub(100), RST, &[]);
    exchange.silence();
    exchange.say(ACK, b"alive");
    assert_eq!(read(&mut far, 5), b"alive");
}

#[test]
fn a_reset_where_it_belongs_ends_both_sides() {
    let mut exchange = exchange();
    let mut far = exchange.opens();
    exchange.say(RST, &[]);
    far.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    assert_eq!(far.read(&mut [0; 1]).unwrap_err().kind(), ErrorKind::ConnectionReset);
    exchange.say(ACK, b"stray");
    assert_eq!(exchange.hears().flags & RST, RST);
}

#[test]
fn a_segment_of_no_connection_is_reset() {
    let mut exchange = exchange();
    exchange.ack = 77;
    exchange.say(ACK, b"stray");
    let seen = exchange.hears();
    assert_eq!((seen.flags, seen.seq), (RST, 77));
    exchange.say(RST, &[]);
    exchange.silence();
}

#[test]
fn first_sequence_numbers_have_no_pattern() {
    let mut exchange = exchange();
    let mut firsts = Vec::new();
    for port in 41_000..41_024 {
        exchange.port = port;
        exchange.say_at(1, SYN, &[]);
        firsts.push(exchange.hears().seq);
    }
    let mut steps: Vec<u32> = firsts.windows(2).map(|pair| pair[1].wrapping_sub(pair[0])).collect();
    steps.sort_unstable();
    steps.dedup();
    assert_eq!(steps.len(), 23);
}

#[test]
fn a_peer_that_is_not_there_any_more_is_given_up() {
    let mut exchange = exchange();
    let mut far = exchange.opens();
    far.write_all(b"anybody?").unwrap();
    let mut times = 0;
    loop {
        let (_, seen) = exchange.waits();
        times += 1;
        if seen.flags & RST != 0 {
            break;
        }
        assert!(times < 40);
    }
    assert!(times > 5);
}

#[test]
fn the_host_s_half_may_close_first_too() {
    let mut exchange = exchange();
    let mut far = exchange.opens();
    far.shutdown(std::net::Shutdown::Write).unwrap();
    let fin = exchange.hears_data();
    assert_eq!((fin.flags & FIN, fin.data.len()), (FIN, 0));
    exchange.takes(&fin);
    exchange.say(ACK, &[]);
    for piece in [&b"more "[..], b"to come"] {
        exchange.say(ACK, piece);
        exchange.seq = exchange.seq.wrapping_add(piece.len() as u32);
        assert_eq!(exchange.hears().ack, exchange.seq);
    }
    assert_eq!(read(&mut far, 12), b"more to come");
    exchange.say(FIN | ACK, &[]);
    assert_eq!(exchange.hears().ack, exchange.seq.wrapping_add(1));
    assert_eq!(far.read(&mut [0; 1]).unwrap(), 0);
}

#[test]
fn both_may_close_at_once() {
    let mut exchange = exchange();
    let mut far = exchange.opens();
    far.shutdown(std::net::Shutdown::Write).unwrap();
    let fin = exchange.hears_data();
    exchange.say(FIN | ACK, &[]); // it has not seen ours yet
    exchange.seq = exchange.seq.wrapping_add(1);
    assert_eq!(exchange.hears().ack, exchange.seq);
    exchange.takes(&fin);
    exchange.say(ACK, &[]);
    far.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    assert_eq!(far.read(&mut [0; 1]).unwrap(), 0);
    exchange.network.turn_clock(4_000);
    exchange.silence();
    exchange.say(ACK, &[]);
    assert_eq!(exchange.hears().flags, RST); // nobody knows it any more
}

#[test]
fn a_fin_that_overtakes_the_data_before_it_ends_nothing() {
    let mut exchange = exchange();
    let mut far = exchange.opens();
    exchange.say_at(exchange.seq.wrapping_add(4), FIN | ACK, b"last");
    assert_eq!(exchange.hears().ack, exchange.seq);
    exchange.say(ACK, b"not ");
    assert_eq!(exchange.hears().ack, exchange.seq.wrapping_add(9));
    let mut got = String::new();
    far.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    far.read_to_string(&mut got).unwrap();
    assert_eq!(got, "not last");
}

#[test]
fn both_may_open_at_once() {
    let (mut exchange, outside) = forwarding();
    let mut far = TcpStream::connect(outside.local_addr().unwrap()).unwrap();
    exchange.send(&crate::arp_reply());
    let syn = exchange.hears();
    assert_eq!(syn.flags, SYN);
    exchange.to = syn.from;
    exchange.say_with(exchange.seq, SYN, &[2, 4, 5, 180], &[]); // RFC 9293, 3.5, figure 7
    exchange.seq = exchange.seq.wrapping_add(1);
    let answer = exchange.hears();
    assert_eq!((answer.flags, answer.seq, answer.ack), (SYN | ACK, syn.seq, exchange.seq));
    exchange.ack = syn.seq.wrapping_add(1);
    exchange.say_with(exchange.seq.wrapping_sub(1), SYN | ACK, &[2, 4, 5, 180], &[]);
    exchange.say(ACK, b"hello");
    assert_eq!(read(&mut far, 5), b"hello");
    far.write_all(b"and you").unwrap();
    assert_eq!(exchange.hears_data().data, b"and you");
}

#[test]
fn a_client_of_the_host_s_reaches_the_guest_and_a_lost_syn_is_said_again() {
    let (mut exchange, outside) = forwarding();
    let mut far = TcpStream::connect(outside.local_addr().unwrap()).unwrap();
    exchange.send(&crate::arp_reply());
    let lost = exchange.hears();
    let (passed, again) = exchange.waits();
    assert!((200..=500).contains(&passed), "{passed} ms");
    assert_eq!((again.flags, again.seq), (SYN, lost.seq));
    (exchange.to, exchange.ack) = (again.from, again.seq.wrapping_add(1));
    exchange.say_with(exchange.seq, SYN | ACK, &[2, 4, 5, 180], &[]);
    exchange.seq = exchange.seq.wrapping_add(1);
    assert_eq!(exchange.hears().flags, ACK);
    exchange.say(ACK, b"hello");
    assert_eq!(read(&mut far, 5), b"hello");
}

#[test]
fn a_guest_that_refuses_resets_the_client() {
    let (mut exchange, outside) = forwarding();
    let mut far = TcpStream::connect(outside.local_addr().unwrap()).unwrap();
    exchange.send(&crate::arp_reply());
    let syn = exchange.hears();
    exchange.to = syn.from;
    exchange.ack = syn.seq.wrapping_add(7);
    exchange.say_at(0, RST | ACK, &[]); // not for this SYN
    exchange.ack = syn.seq.wrapping_add(1);
    far.set_nonblocking(true).unwrap();
    assert_eq!(far.read(&mut [0; 1]).unwrap_err().kind(), ErrorKind::WouldBlock);
    exchange.say_at(0, RST | ACK, &[]);
    far.set_nonblocking(false).unwrap();
    far.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    assert_eq!(far.read(&mut [0; 1]).unwrap_err().kind(), ErrorKind::ConnectionReset);
}

#[test]
fn a_port_is_used_again_while_its_last_connection_rests() {
    let mut exchange = exchange();
    for round in 0..3u8 {
        let mut far = exchange.opens();
        exchange.say(FIN | ACK, &[round]);
        exchange.seq = exchange.seq.wrapping_add(2);
        assert_eq!(exchange.hears().ack, exchange.seq);
        assert_eq!(read(&mut far, 1), [round]);
        drop(far);
        let fin = exchange.hears_data();
        exchange.takes(&fin);
        exchange.say(ACK, &[]);
        // A last ACK that was lost is said again, as often as the guest asks for it.
        exchange.say_at(exchange.seq.wrapping_sub(1), FIN | ACK, &[]);
        assert_eq!((exchange.hears().flags, exchange.ack), (ACK, fin.seq.wrapping_add(1)));
        exchange.seq = exchange.seq.wrapping_add(50_000);
    }
}

#[test]
fn an_idle_guest_is_asked_whether_it_is_there_and_one_that_is_not_loses_its_connection() {
    let mut exchange = exchange();
    let mut far = exchange.opens();
    for _ in 0..3 {
        let mut passed = 0;
        let asked = loop {
            match exchange.heard() {
                Some(seen) => break seen,
                None => exchange.network.turn_clock(1_000),
            }
            passed += 1;
            assert!(passed < 1_000);
        };
        assert!(passed >= 590, "{passed} s");
        assert_eq!((asked.seq, asked.flags, asked.data.len()), (exchange.ack.wrapping_sub(1), ACK, 0));
        exchange.say(ACK, &[]);
        exchange.silence();
    }
    far.write_all(b"still there").unwrap();
    let seen = exchange.hears_data();
    assert_eq!(seen.data, b"still there");
    exchange.takes(&seen);
    exchange.say(ACK, &[]);
    let mut asked = 0;
    for _ in 0..2_000 {
        match exchange.heard() {
            Some(seen) if seen.flags & RST != 0 => break,
            Some(_) => asked += 1,
            None => exchange.network.turn_clock(1_000),
        }
    }
    assert_eq!(asked, 5);
    assert_eq!(far.read(&mut [0; 1]).unwrap_err().kind(), ErrorKind::ConnectionReset);
}

#[test]
fn urgent_data_stays_in_its_place() {
    let mut exchange = exchange();
    let mut far = exchange.opens();
    let mut frame = exchange.written(exchange.seq, URG | ACK, &[], b"abcdef");
    let before = u16::from_be_bytes([frame[50], frame[51]]);
    frame[52..54].copy_from_slice(&3u16.to_be_bytes()); // the urgent pointer, behind the c
    let sum = _core::offload::Sum::default().word(!before).word(3).checksum();
    frame[50..52].copy_from_slice(&sum.to_be_bytes());
    exchange.send(&frame);
    assert_eq!(exchange.hears().ack, exchange.seq.wrapping_add(6));
    assert_eq!(read(&mut far, 6), b"abcdef");
}

#[test]
fn a_segment_with_a_wrong_checksum_is_none() {
    let mut exchange = exchange();
    let mut far = exchange.opens();
    let mut frame = exchange.written(exchange.seq, ACK, &[], b"abcdef");
    frame[57] ^= 1;
    exchange.send(&frame);
    exchange.silence();
    exchange.say(ACK, b"ABCDEF");
    assert_eq!(exchange.hears().ack, exchange.seq.wrapping_add(6));
    assert_eq!(read(&mut far, 6), b"ABCDEF");
}
