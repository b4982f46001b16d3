//! A guest played by the test against a network and a real socket of the host, on a clock that the test turns: what is
//! lost, repeated, closed or forged on the way, no byte is lost or changed, and no flow is stuck.

#![allow(clippy::unwrap_used)] // a test that cannot go on fails

use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use _core::arena::Arena;
use _core::lane::{FRAME_MOST, VNET_LEN};
use _core::offload::Sum;
use _core::port::Piece;
use _core::switch::Edit;
use _core::testing;
use _core::user::Network;
use _core::user::config::{Config, Loopback, Subnet};

const FIN: u8 = 1;
const SYN: u8 = 2;
const RST: u8 = 4;
const ACK: u8 = 16;
const HEADERS: usize = 14 + 20 + 20;

/// A segment as the guest sees it.
#[derive(Debug, Clone)]
struct Seen {
    /// The guest's port.
    port: u16,
    seq: u32,
    ack: u32,
    flags: u8,
    window: u16,
    data: Vec<u8>,
}

struct Exchange {
    network: Network,
    arena: &'static Arena,
    listener: TcpListener,
    /// The port that the guest speaks to.
    to: u16,
    room: Vec<u8>,
    guest: u8,
    port: u16,
    seq: u32,
    ack: u32,
    window: u16,
}

fn v4(last: u8) -> Ipv6Addr {
    Ipv4Addr::new(10, 0, 2, last).to_ipv6_mapped()
}

fn exchange() -> Exchange {
    exchange_of(1024)
}

fn exchange_of(max_flows: usize) -> Exchange {
    let config = Config {
        v4: Some(Subnet { net: v4(0), prefix: 120, host: v4(2), outbound: None }),
        v6: None,
        mtu: 0,
        restrict: false,
        loopback: Loopback::All,
        interface: String::new(),
        max_flows,
        managed: false,
        resolvers: Vec::new(),
        guestfwd: Vec::new(),
        handed: Vec::new(),
        service: None,
    };
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut exchange = Exchange {
        network: Network::new(config).unwrap(),
        arena: testing::arena(1 << 20),
        to: listener.local_addr().unwrap().port(),
        listener,
        room: vec![0; VNET_LEN + FRAME_MOST],
        guest: 15,
        port: 40_000,
        seq: u32::MAX - 1000, // it wraps on the way
        ack: 0,
        window: 0xffff,
    };
    while exchange.frame().is_some() {} // the announcements of the start
    exchange
}

impl Exchange {
    /// Say a segment with what the guest knows, its payload `data`.
    fn say(&mut self, flags: u8, data: &[u8]) {
        self.say_at(self.seq, flags, data);
    }

    fn say_at(&mut self, seq: u32, flags: u8, data: &[u8]) {
        self.say_with(seq, flags, &[], data);
    }

    fn say_with(&mut self, seq: u32, flags: u8, options: &[u8], data: &[u8]) {
        let mut bytes = vec![0u8; VNET_LEN];
        bytes.extend([0x52, 0x55, 10, 0, 2, 2, 0x52, 0x54, 0, 0, 0, 1, 8, 0]);
        let len = (40 + options.len() + data.len()) as u16;
        let mut ip = vec![0x45, 0, (len >> 8) as u8, len as u8, 0, 0, 0x40, 0, 64, 6, 0, 0, 10, 0, 2, self.guest, 10, 0, 2, 2];
        let sum = Sum::default().bytes(&ip).checksum();
        ip[10..12].copy_from_slice(&sum.to_be_bytes());
        let mut tcp = Vec::new();
        tcp.extend(self.port.to_be_bytes());
        tcp.extend(self.to.to_be_bytes());
        tcp.extend(seq.to_be_bytes());
        tcp.extend(if flags & ACK != 0 { self.ack } else { 0 }.to_be_bytes());
        tcp.extend([((20 + options.len()) / 4 * 16) as u8, flags]);
        tcp.extend(self.window.to_be_bytes());
        tcp.extend([0, 0, 0, 0]);
        tcp.extend(options);
        tcp.extend(data);
        let sum = Sum::default().bytes(&ip[12..20]).word(6).word(tcp.len() as u16).bytes(&tcp).checksum();
        tcp[16..18].copy_from_slice(&sum.to_be_bytes());
        bytes.extend(ip);
        bytes.extend(tcp);
        let piece = Piece { frame: bytes[VNET_LEN..].as_ptr(), len: bytes.len() - VNET_LEN, edit: Edit::Keep };
        // SAFETY: the piece is a frame with its virtio-net header before it.
        unsafe { self.network.send(&piece, self.arena.cell(0, 1)) }.unwrap();
    }

    fn frame(&mut self) -> Option<Vec<u8>> {
        // SAFETY: there is room for any frame, and a header before it.
        match unsafe { self.network.receive(self.room[VNET_LEN..].as_mut_ptr()) } {
            Ok(len) => Some(self.room[VNET_LEN..VNET_LEN + len as usize].to_vec()),
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::WouldBlock);
                None
            }
        }
    }

    /// The next segment, if there is one.
    fn heard(&mut self) -> Option<Seen> {
        loop {
            let frame = self.frame()?;
            if frame[12..14] != [8, 0] || frame[23] != 6 {
                continue;
            }
            let long = |at: usize| u32::from_be_bytes(frame[at..at + 4].try_into().unwrap());
            let data = 34 + usize::from(frame[46] >> 4) * 4;
            let end = 14 + usize::from(u16::from_be_bytes([frame[16], frame[17]]));
            assert!(end <= frame.len() && data <= end && end >= HEADERS);
            return Some(Seen {
                port: u16::from_be_bytes([frame[36], frame[37]]),
                seq: long(38),
                ack: long(42),
                flags: frame[47],
                window: u16::from_be_bytes([frame[48], frame[49]]),
                data: frame[data..end].to_vec(),
            });
        }
    }

    /// The next segment, which has to come.
    fn hears(&mut self) -> Seen {
        let deadline = Instant::now() + Duration::from_secs(5);
        loop {
            if let Some(seen) = self.heard() {
                return seen;
            }
            assert!(Instant::now() < deadline, "nothing came");
            std::thread::yield_now();
        }
    }

    /// The next segment with data or a FIN, ACKs passed over.
    fn hears_data(&mut self) -> Seen {
        loop {
            let seen = self.hears();
            if !seen.data.is_empty() || seen.flags & (FIN | RST) != 0 {
                return seen;
            }
        }
    }

    fn silence(&mut self) {
        assert!(self.heard().is_none());
    }

    /// Turn the clock until something comes; how long that took.
    fn waits(&mut self) -> (u64, Seen) {
        for passed in (0..120_000).step_by(20) {
            if let Some(seen) = self.heard() {
                return (passed, seen);
            }
            self.network.turn_clock(20);
        }
        panic!("nothing came in two minutes");
    }

    /// Open a connection; the far end's socket.
    fn opens(&mut self) -> TcpStream {
        self.opens_with(&[2, 4, 5, 180])
    }

    fn opens_with(&mut self, options: &[u8]) -> TcpStream {
        self.shakes_hands(options);
        let (far, _) = self.listener.accept().unwrap();
        self.silence();
        far
    }

    fn shakes_hands(&mut self, options: &[u8]) {
        self.say_with(self.seq, SYN, options, &[]);
        self.seq = self.seq.wrapping_add(1);
        let answer = self.hears();
        assert_eq!((answer.flags, answer.ack), (SYN | ACK, self.seq));
        self.ack = answer.seq.wrapping_add(1);
        self.say(ACK, &[]);
    }

    fn takes(&mut self, seen: &Seen) {
        assert_eq!(seen.seq, self.ack);
        self.ack = self.ack.wrapping_add(seen.data.len() as u32 + u32::from(seen.flags & FIN != 0));
    }
}

fn read(far: &mut TcpStream, len: usize) -> Vec<u8> {
    let mut got = vec![0; len];
    far.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    far.read_exact(&mut got).unwrap();
    got
}

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
fn a_gap_is_asked_for_and_nothing_behind_it_is_acknowledged() {
    let mut exchange = exchange();
    let mut far = exchange.opens();
    let begin = exchange.seq;
    exchange.say_at(begin.wrapping_add(4), ACK, b"efgh");
    assert_eq!(exchange.hears().ack, begin);
    exchange.say_at(begin, ACK, b"abcd");
    assert_eq!(exchange.hears().ack, begin.wrapping_add(4));
    exchange.say_at(begin.wrapping_add(2), ACK, b"cdefgh"); // half of it known
    assert_eq!(exchange.hears().ack, begin.wrapping_add(8));
    exchange.say_at(begin, ACK, b"abcd"); // all of it known
    assert_eq!(exchange.hears().ack, begin.wrapping_add(8));
    assert_eq!(read(&mut far, 8), b"abcdefgh");
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
fn a_guest_over_its_cap_is_refused_and_another_is_not() {
    let mut exchange = exchange_of(64);
    let mut held = Vec::new();
    for port in 0..48 {
        exchange.port = 42_000 + port;
        held.push(exchange.opens());
    }
    exchange.port = 43_000;
    exchange.say(SYN, &[]);
    assert_eq!(exchange.hears().flags & RST, RST);
    exchange.guest = 16;
    held.push(exchange.opens());
    assert_eq!(held.len(), 49);
}

/// An echo server in a process of its own, which has its own descriptors.
const ECHO: &str = "
import resource, selectors, socket
resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
ready = selectors.EpollSelector()
listeners = [socket.create_server(('127.0.0.1', 0), backlog=4096) for _ in range(4)]
print(*(listener.getsockname()[1] for listener in listeners), flush=True)
for listener in listeners:
    ready.register(listener, selectors.EVENT_READ)
while True:
    for key, _ in ready.select():
        if key.fileobj in listeners:
            ready.register(key.fileobj.accept()[0], selectors.EVENT_READ)
        else:
            key.fileobj.send(key.fileobj.recv(100))
";

#[test]
fn ten_thousand_flows_are_held_with_data_on_all_of_them() {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the limit is readable and writable.
    unsafe {
        libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit);
        limit.rlim_cur = limit.rlim_max;
        libc::setrlimit(libc::RLIMIT_NOFILE, &limit);
    }
    assert!(limit.rlim_cur >= 11_000, "10,000 flows are as many descriptors (ulimit -n)");
    let mut server = Server(Command::new("python3").args(["-c", ECHO]).stdout(Stdio::piped()).spawn().unwrap());
    let mut line = String::new();
    BufReader::new(server.0.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let mut exchange = exchange_of(65_536);
    let listeners: Vec<u16> = line.split_whitespace().map(|word| word.parse().unwrap()).collect();
    let (memory, begun) = (resident(), Instant::now());
    let flows: Vec<(u32, u32)> = (20_000..30_000)
        .map(|port| {
            (exchange.port, exchange.to) = (port, listeners[usize::from(port) % 4]);
            exchange.shakes_hands(&[2, 4, 5, 180]);
            (exchange.seq, exchange.ack)
        })
        .collect();
    eprintln!("10,000 flows: opened in {} ms, {} bytes each", begun.elapsed().as_millis(), (resident() - memory) / 10_000);
    for (port, (seq, ack)) in (20_000..).zip(&flows) {
        (exchange.port, exchange.to) = (port, listeners[usize::from(port) % 4]);
        (exchange.seq, exchange.ack) = (*seq, *ack);
        exchange.say(ACK, &port.to_be_bytes());
    }
    let mut answered = 0;
    while answered < flows.len() {
        let seen = exchange.hears_data();
        let (seq, ack) = flows[usize::from(seen.port) - 20_000];
        assert_eq!((seen.seq, seen.ack, &seen.data[..]), (ack, seq.wrapping_add(2), &seen.port.to_be_bytes()[..]));
        exchange.port = seen.port;
        exchange.to = listeners[usize::from(seen.port) % 4];
        (exchange.seq, exchange.ack) = (seq.wrapping_add(2), ack.wrapping_add(2));
        exchange.say(ACK, &[]);
        answered += 1;
    }
    eprintln!("all answered after {} ms", begun.elapsed().as_millis());
}

/// A process that goes with its test, however that ends.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Bytes of this process in memory.
fn resident() -> usize {
    let pages = std::fs::read_to_string("/proc/self/statm").unwrap();
    pages.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
}
