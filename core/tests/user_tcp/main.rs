//! A guest played by the test against a network and a real socket of the host, on a clock that the test turns: whatever is
//! lost, repeated, closed or forged on the way, no byte is lost or changed, and no flow is stuck.

#![allow(clippy::unwrap_used)] // a test that cannot go on fails

mod crowd;
mod datagrams;
mod ends;
mod loss;
mod peer;
mod storm;
mod windows;

use std::io::{ErrorKind, Read};
use std::net::{Ipv4Addr, Ipv6Addr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use _core::arena::Arena;
use _core::lane::{FRAME_MOST, VNET_LEN};
use _core::offload::Sum;
use _core::port::{Piece, Refusal};
use _core::ports::Cause;
use _core::switch::Edit;
use _core::testing;

use _core::user::Network;
use _core::user::config::{Config, HostForward, Transport};

const FIN: u8 = 1;
const SYN: u8 = 2;
const RST: u8 = 4;
const ACK: u8 = 16;
const URG: u8 = 32;
const HEADERS: usize = 14 + 20 + 20;

/// A segment as the guest sees it.
#[derive(Debug, Clone)]
struct Seen {
    /// The far end's port.
    from: u16,
    /// The guest's port.
    port: u16,
    seq: u32,
    ack: u32,
    flags: u8,
    window: u16,
    options: Vec<u8>,
    data: Vec<u8>,
}

impl Seen {
    /// What the option of this kind says.
    fn option(&self, kind: u8) -> Option<&[u8]> {
        let mut rest = &self.options[..];
        while let [found, more @ ..] = rest {
            match found {
                0 => return None,
                1 => rest = more,
                _ if *found == kind => return Some(&rest[2..usize::from(rest[1])]),
                _ => rest = &rest[usize::from(rest[1])..],
            }
        }
        None
    }

    /// The blocks of SACK.
    fn blocks(&self) -> Vec<(u32, u32)> {
        let long = |bytes: &[u8]| u32::from_be_bytes(bytes.try_into().unwrap());
        self.option(5).map_or(Vec::new(), |bytes| bytes.chunks(8).map(|block| (long(&block[..4]), long(&block[4..]))).collect())
    }
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

fn config() -> Config {
    Config { v6: None, max_flows: 1024, ..testing::user_config() }
}

fn exchange() -> Exchange {
    exchange_of(config())
}

fn exchange_of(config: Config) -> Exchange {
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

/// A network that forwards its listener's connections to port 80 of the guest.
fn forwarding() -> (Exchange, TcpListener) {
    let outside = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut exchange = exchange();
    exchange.network.add_forward(1, forward(outside.as_raw_fd(), Transport::Tcp)).unwrap();
    exchange.port = 80;
    (exchange, outside)
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
        let frame = self.written(seq, flags, options, data);
        self.send(&frame);
    }

    /// A frame with a segment of the guest's.
    fn written(&self, seq: u32, flags: u8, options: &[u8], data: &[u8]) -> Vec<u8> {
        let mut frame = vec![0x52, 0x55, 10, 0, 2, 2, 0x52, 0x54, 0, 0, 0, self.guest - 14, 8, 0];
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
        frame.extend(ip);
        frame.extend(tcp);
        frame
    }

    /// Send a frame, and end the turn.
    fn send(&mut self, frame: &[u8]) {
        self.put(frame);
        self.network.flush();
        self.network.do_chores();
    }

    fn put(&mut self, frame: &[u8]) {
        let mut bytes = vec![0u8; VNET_LEN];
        bytes.extend(frame);
        let piece = Piece { frame: bytes[VNET_LEN..].as_ptr(), len: frame.len(), edit: Edit::Keep };
        // SAFETY: the piece is a frame with its virtio-net header before it.
        let sent = unsafe { self.network.send(&piece, self.arena.cell(0, 1)) };
        // A flow that there is no room for is a drop with its cause.
        assert!(matches!(sent, Ok(()) | Err(Refusal::Drop(Cause::TxFlows | Cause::TxSockets))), "{sent:?}");
    }

    fn frame(&mut self) -> Option<Vec<u8>> {
        self.network.rouse();
        // SAFETY: there is room for any frame, and a header before it.
        match unsafe { self.network.receive(self.room[VNET_LEN..].as_mut_ptr()) } {
            Ok(len) => Some(self.room[VNET_LEN..VNET_LEN + len as usize].to_vec()),
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::WouldBlock);
                self.network.do_chores();
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
                from: u16::from_be_bytes([frame[34], frame[35]]),
                port: u16::from_be_bytes([frame[36], frame[37]]),
                seq: long(38),
                ack: long(42),
                flags: frame[47],
                window: u16::from_be_bytes([frame[48], frame[49]]),
                options: frame[54..data].to_vec(),
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

/// To port 80 of the guest.
fn forward(fd: i32, transport: Transport) -> HostForward {
    HostForward { fd, transport, guest: Some(v4(15)), port: 80 }
}

/// The guest says where it is.
fn arp_reply() -> Vec<u8> {
    let mut frame = vec![0x52, 0x55, 10, 0, 2, 2, 0x52, 0x54, 0, 0, 0, 1, 8, 6, 0, 1, 8, 0, 6, 4, 0, 2];
    frame.extend([0x52, 0x54, 0, 0, 0, 1, 10, 0, 2, 15, 0x52, 0x55, 10, 0, 2, 2, 10, 0, 2, 2]);
    frame
}
