//! Datagrams that a guest sends within one turn of the loop: each arrives as it was, and in its flow's order.

use std::net::UdpSocket;
use std::time::Duration;

use _core::offload::Sum;

use crate::exchange;

#[test]
fn what_is_sent_in_one_turn_arrives_whole_and_in_order() {
    let mut exchange = exchange();
    let fars = [0; 2].map(|_| UdpSocket::bind("127.0.0.1:0").unwrap());
    let to = [0, 1].map(|at| fars[at].local_addr().unwrap().port());
    // Runs of one length, of which the last is shorter, longer, empty or long; more than one message takes.
    let lengths = |port: u16| [[22; 70].as_slice(), &[5, 22, 23, 0, 0, 1400, 1400, 17_000, 1, port.into(), 1400, 1399, 2]].concat();
    let sent = |port: u16, at: usize| vec![(at as u8) ^ port as u8; lengths(port)[at]];
    for at in 0..lengths(0).len() {
        for port in [1000, 1001] {
            // Every third to the other place, from the same port.
            exchange.put(&datagram(15, port, to[usize::from(at % 3 == 0)], &sent(port, at)));
        }
    }
    exchange.network.flush();
    for (place, far) in fars.iter().enumerate() {
        far.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        let mut got: Vec<(u16, Vec<u8>)> = Vec::new();
        let expected = |port| (0..lengths(port).len()).filter(|at| usize::from(at % 3 == 0) == place).map(move |at| sent(port, at));
        let mut room = vec![0; 65_536];
        while got.len() < expected(1000).count() * 2 {
            let (len, from) = far.recv_from(&mut room).unwrap();
            got.push((from.port(), room[..len].to_vec()));
        }
        let mut by = got.iter().map(|(from, _)| *from).collect::<Vec<_>>();
        by.sort_unstable();
        by.dedup();
        let of = |from: u16| got.iter().filter(move |(by, _)| *by == from).map(|(_, data)| data.clone()).collect::<Vec<_>>();
        let mut seen = by.into_iter().map(of).collect::<Vec<_>>();
        let mut wanted = [1000, 1001].map(|port| expected(port).collect::<Vec<_>>()).to_vec();
        seen.sort();
        wanted.sort();
        assert!(seen == wanted, "at {place}");
    }
}

pub fn datagram(guest: u8, from: u16, to: u16, data: &[u8]) -> Vec<u8> {
    let mut frame = vec![0x52, 0x55, 10, 0, 2, 2, 0x52, 0x54, 0, 0, 0, guest - 14, 8, 0];
    let len = (28 + data.len()) as u16;
    let mut ip = vec![0x45, 0, (len >> 8) as u8, len as u8, 0, 0, 0x40, 0, 64, 17, 0, 0, 10, 0, 2, guest, 10, 0, 2, 2];
    let sum = Sum::default().bytes(&ip).checksum();
    ip[10..12].copy_from_slice(&sum.to_be_bytes());
    frame.extend(ip);
    for word in [from, to, len - 20, 0] {
        frame.extend(word.to_be_bytes());
    }
    frame.extend(data);
    frame
}
