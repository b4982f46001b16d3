//! The relay with sockets at the loopback; the resolver is a socket of the test's. What Python does with it is tested there.

use std::net::UdpSocket;

use super::*;

const GUEST: Mac = [0x52, 0x54, 0, 0, 0, 1];
const QUERY: &[u8] = b"\x12\x34\x01\0\0\x01\0\0\0\0\0\0\x03wWw\x07example\0\0\x01\0\x01";
const RECORD: &[u8] = b"\xc0\x0c\0\x01\0\x01\0\0\x01\x2c\0\x04\xc0\0\x02\x50";

#[derive(Default)]
struct Heard {
    said: Vec<(u32, Vec<u8>)>,
    left: Vec<u32>,
    kept: Vec<(Vec<u8>, u32)>,
    handed: Vec<Token>,
    known: bool,
}

impl Host<u32> for Heard {
    fn knows(&mut self, _key: &[u8]) -> bool {
        self.known
    }
    fn say(&mut self, to: &u32, answer: &[u8]) {
        self.said.push((*to, answer.to_vec()));
    }
    fn hear(&mut self, to: u32, message: &[u8]) {
        self.said.push((to, message.to_vec()));
    }
    fn keep(&mut self, key: &[u8], kept: &Kept, _records: &[u8]) {
        self.kept.push((key.to_vec(), kept.hold_s));
    }
    fn leave(&mut self, to: u32) {
        self.left.push(to);
    }
    fn hand(&mut self, token: Token, _flight: Flight<u32>, _why: Why) {
        self.handed.push(token);
    }
    fn came(&mut self, _token: Token, _message: Option<&[u8]>) {}
}

fn name(socket: &UdpSocket) -> Name {
    let mut bytes = [0u8; 16];
    bytes[..2].copy_from_slice(&(libc::AF_INET as u16).to_ne_bytes());
    bytes[2..4].copy_from_slice(&socket.local_addr().unwrap().port().to_be_bytes());
    bytes[4..8].copy_from_slice(&[127, 0, 0, 1]);
    Name::new(&bytes).unwrap()
}

fn relay(inside: Inside) -> (Relay<u32>, UdpSocket) {
    let resolver = UdpSocket::bind("127.0.0.1:0").unwrap();
    let limits = Limits { guest: 4, waiting: 2, wait_ns: 5_000_000_000, all: 100, guests: 10, askers: 3, rate: 0.0, size: 1232 };
    let mut relay = Relay::new(limits, Patience { least_ns: 100, most_ns: 1000 }, inside).unwrap();
    relay.aim(vec![Target { id: 7, domain: vec![0], name: name(&resolver), edns: true, patience_ns: 500, answers: 0 }]);
    (relay, resolver)
}

fn answer(sent: &[u8], flags: u16, records: &[u8]) -> Vec<u8> {
    let mut message = sent.to_vec();
    message.truncate(QUERY.len());
    message[2..4].copy_from_slice(&flags.to_be_bytes());
    message[4..12].copy_from_slice(&[0, 1, 0, !records.is_empty() as u8, 0, 0, 0, 0]);
    message.extend_from_slice(records);
    message
}

#[test]
fn an_answer_reaches_everybody_in_his_own_spelling() {
    let (mut relay, resolver) = relay(Inside(None));
    let mut host = Heard::default();
    relay.take(QUERY, GUEST, 1, 0, &mut host);
    let mut lower = QUERY.to_ascii_lowercase();
    lower[0] = 9;
    relay.take(&lower, GUEST, 2, 0, &mut host);
    let mut buffer = [0; 600];
    let (len, from) = resolver.recv_from(&mut buffer).unwrap();
    assert_eq!(&buffer[12..QUERY.len()], &QUERY[12..]);
    assert_eq!(&buffer[QUERY.len()..len], b"\0\0\x29\x04\xd0\0\0\0\0\0\0");
    resolver.send_to(&answer(&buffer[..len], 0x8180, RECORD), from).unwrap();
    relay.ready(50, &mut host).unwrap();
    assert_eq!(host.said[0].1, [&QUERY[..2], b"\x81\x80\0\x01\0\x01\0\0\0\0", &QUERY[12..], RECORD].concat());
    assert_eq!(host.said[1].1, [&lower[..2], b"\x81\x80\0\x01\0\x01\0\0\0\0", &lower[12..], RECORD].concat());
    assert_eq!(host.kept, [(b"\x03www\x07example\0\0\x01\0\x01\x01\0\0".to_vec(), 300)]);
    assert!(!relay.is_busy() && relay.targets()[0].answers == 1);
}

#[test]
fn a_socket_in_its_second_use_has_another_port_and_hears_nothing_of_the_first() {
    let (mut relay, resolver) = relay(Inside(None));
    let mut buffer = [0; 600];
    let mut ports = std::collections::HashSet::new();
    for _ in 0..50 {
        let token = relay.send(&name(&resolver), b"x").unwrap();
        let (_, from) = resolver.recv_from(&mut buffer).unwrap();
        resolver.send_to(b"late", from).unwrap(); // is queued before the port is given up
        relay.close(token);
        relay.close(token);
        ports.insert(from.port());
        assert_eq!(relay.sockets.poll().unwrap(), 0);
    }
    assert!(ports.len() > 40, "{ports:?}");
}

#[test]
fn what_is_not_usual_is_left_or_handed_over() {
    let inside = Inside(Some([std::array::from_fn(|byte| byte == 127), [false; 256]]));
    let (mut relay, resolver) = relay(inside);
    let mut host = Heard { known: true, ..Heard::default() };
    relay.take(QUERY, GUEST, 1, 0, &mut host);
    host.known = false;
    for end in 0..QUERY.len() {
        relay.take(&QUERY[..end], GUEST, 2, 0, &mut host);
    }
    assert_eq!(host.left.len(), 1 + QUERY.len());
    let mut buffer = [0; 600];
    let bad = RECORD.iter().map(|&byte| if byte == 0xc0 { 127 } else { byte }).collect::<Vec<_>>();
    let inner = [&RECORD[..12], &[127, 0, 0, 1]].concat();
    for (flags, records) in [(0x8182, &[][..]), (0x8380, RECORD), (0x8180, &bad), (0x8180, &RECORD[..9]), (0x8180, &inner)] {
        relay.take(QUERY, GUEST, 3, 0, &mut host);
        let (len, from) = resolver.recv_from(&mut buffer).unwrap();
        resolver.send_to(&answer(&buffer[..len], flags, records), from).unwrap();
        relay.ready(1, &mut host).unwrap();
        let token = host.handed.pop().expect("handed over");
        relay.close(token);
        relay.done(GUEST);
    }
    assert!(host.said.is_empty() && host.kept.is_empty());
}

#[test]
fn a_question_that_is_late_is_handed_over_and_counts_until_it_is_done() {
    let (mut relay, _resolver) = relay(Inside(None));
    let mut host = Heard::default();
    for number in 0..8u8 {
        let mut query = QUERY.to_vec();
        query[13] = b'a' + number;
        relay.take(&query, GUEST, number.into(), 0, &mut host);
    }
    assert_eq!((relay.counts.forwarded, relay.counts.limited, host.said.len()), (4, 2, 2));
    relay.late(499, &mut host);
    assert!(host.handed.is_empty());
    relay.late(500, &mut host);
    assert_eq!(host.handed.len(), 4);
    assert_eq!(relay.counts.forwarded, 4);
    relay.done(GUEST);
    relay.late(501, &mut host);
    assert_eq!(relay.counts.forwarded, 5);
}
