//! A play: what a guest does to a user-mode network, read from bytes.
//!
//! It is a list of acts, each `kind: u8, length: u16 (little-endian), bytes`:
//!
//! ```text
//!   0 a frame      1 a virtio-net header and a frame      2 so many milliseconds pass (u16)      3 the far end acts
//! ```
//!
//! Acknowledgements of TCP cannot be guessed, so those of a frame are taken as what they are off by: the numbers of
//! the flow, as the guest knows them, are added. After each act the network is heard out, and what it says is judged:
//! a frame that is short, whose lengths or checksums are wrong, or a network that never stops talking, is a finding.

use std::collections::HashMap;
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use _core::arena::Arena;
use _core::lane::{FRAME_MOST, VNET_LEN};
use _core::offload::{self, Sum, VnetHeader};
use _core::port::Piece;
use _core::switch::Edit;
use _core::testing;
use _core::user::config::{Config, GuestForward, Loopback, Served, Subnet};
use _core::user::socket::Name;
use _core::user::{Endpoint, Network};

pub const FRAME: u8 = 0;
pub const OFFLOADED: u8 = 1;
const TIME: u8 = 2;
const FAR: u8 = 3;

/// The port at 10.0.2.100 and fec0::100 (hexadecimal 64) that a listener of the play's is behind.
pub const SERVED: u16 = 7;
const ACTS: usize = 64;
/// Frames that one act may cause: a full window in the smallest segments, and a word more.
const FRAMES: usize = 4096;

thread_local! {
    /// Where it is counted what the network does; one for all plays, as it lasts as long as the process.
    static ARENA: &'static Arena = testing::arena(1 << 20);
}

static ENCLOSED: AtomicBool = AtomicBool::new(false);

/// Go where no packet leaves this process; without the right to do so plays are restricted instead.
pub fn leave_the_world() {
    // SAFETY: no memory is involved. It holds for the calling thread.
    let left = unsafe { libc::unshare(libc::CLONE_NEWNET) == 0 || libc::unshare(libc::CLONE_NEWUSER | libc::CLONE_NEWNET) == 0 };
    ENCLOSED.store(left, Ordering::Relaxed);
}

/// The next act of a play: its kind and where its bytes are.
pub fn next(data: &[u8], at: usize) -> Option<(u8, usize, usize)> {
    let head = data.get(at..at + 3)?;
    let (from, len) = (at + 3, usize::from(u16::from_le_bytes([head[1], head[2]])));
    Some((head[0] & 3, from, (from + len).min(data.len())))
}

struct Stage {
    network: Network,
    arena: &'static Arena,
    room: Vec<u8>,
    listener: UnixListener,
    far: Vec<UnixStream>,
    /// By the guest's port: what the guest sends next, and what it expects.
    flows: HashMap<u16, (u32, u32)>,
}

/// Play it; a panic is a finding.
pub fn play(data: &[u8]) {
    let mut stage = Stage::new();
    stage.hear();
    let mut at = 0;
    for _ in 0..ACTS {
        let Some((kind, from, to)) = next(data, at) else { break };
        stage.act(kind, &data[from..to]);
        stage.hear();
        at = to;
    }
    stage.network.turn_clock(600_000);
    stage.hear();
}

fn v6(text: &str) -> Ipv6Addr {
    text.parse().expect("an address of IPv6")
}

fn v4(last: u8) -> Ipv6Addr {
    Ipv4Addr::new(10, 0, 2, last).to_ipv6_mapped()
}

/// A listener with a name of its own in the abstract space, and the name as a sockaddr_un.
fn served() -> (UnixListener, Name) {
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    let name = format!("shardnet-fuzz-{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
    let address = SocketAddr::from_abstract_name(&name).expect("a short name");
    let listener = UnixListener::bind_addr(&address).expect("a free name");
    listener.set_nonblocking(true).expect("a socket");
    let mut bytes = (libc::AF_UNIX as u16).to_ne_bytes().to_vec();
    bytes.push(0);
    bytes.extend(name.as_bytes());
    (listener, Name::new(&bytes).expect("a short name"))
}

impl Stage {
    fn new() -> Stage {
        let (listener, name) = served();
        let forward = |ip| GuestForward { at: Endpoint { ip, port: SERVED }, to: Served::Socket(name) };
        let config = Config {
            v4: Some(Subnet { net: v4(0), prefix: 120, host: v4(2), outbound: None }),
            v6: Some(Subnet { net: v6("fec0::"), prefix: 64, host: v6("fec0::2"), outbound: None }),
            restrict: !ENCLOSED.load(Ordering::Relaxed),
            loopback: Loopback::All,
            max_flows: 64,
            resolvers: vec![v6("fec0::3")],
            guestfwd: vec![forward(v4(100)), forward(v6("fec0::64"))],
            ..testing::user_config()
        };
        let network = Network::new(config).expect("descriptors for a network");
        let arena = ARENA.with(|arena| *arena);
        Stage { network, arena, room: vec![0; VNET_LEN + FRAME_MOST], listener, far: Vec::new(), flows: HashMap::new() }
    }

    fn act(&mut self, kind: u8, bytes: &[u8]) {
        match kind {
            FRAME => self.send(&[0; VNET_LEN], bytes),
            OFFLOADED if bytes.len() > VNET_LEN => self.send(&bytes[..VNET_LEN], &bytes[VNET_LEN..]),
            TIME => self.network.turn_clock(bytes.iter().take(2).fold(0, |ms, byte| ms << 8 | u64::from(*byte))),
            FAR => self.far_acts(bytes),
            _ => {}
        }
    }

    fn send(&mut self, header: &[u8], frame: &[u8]) {
        // What carries a frame to the network has looked at these.
        if frame.len() < 14 || frame.len() > FRAME_MOST {
            return;
        }
        let mut bytes = [header, frame].concat();
        self.know(&mut bytes[VNET_LEN..]);
        let piece = Piece { frame: bytes[VNET_LEN..].as_ptr(), len: frame.len(), edit: Edit::Keep };
        // SAFETY: the piece is a frame with its virtio-net header before it.
        let _ = unsafe { self.network.send(&piece, self.arena.cell(0, 1)) };
    }

    /// Add what the guest knows of its flow to a segment's numbers.
    fn know(&mut self, frame: &mut [u8]) {
        let Some((at, pseudo)) = segment(frame) else { return };
        let port = u16::from_be_bytes([frame[at], frame[at + 1]]);
        let (seq, ack) = (long(frame, at + 4), long(frame, at + 8));
        let (len, flags) = (frame.len() - at - 20, frame[at + 13]);
        let (sent, expected) = self.flows.get(&port).copied().unwrap_or((seq, 0));
        let is_first = flags & 2 != 0;
        let (seq, ack) = if is_first { (seq, ack) } else { (sent.wrapping_add(near(seq)), expected.wrapping_add(near(ack))) };
        frame[at + 4..at + 8].copy_from_slice(&seq.to_be_bytes());
        frame[at + 8..at + 12].copy_from_slice(&ack.to_be_bytes());
        crate::repair::transport(6, pseudo, &mut frame[at..]);
        let next = seq.wrapping_add(len as u32).wrapping_add((flags & 3 != 0).into());
        self.flows.insert(port, (next, expected));
    }

    /// The far ends of connections take what is there, say something or leave.
    fn far_acts(&mut self, bytes: &[u8]) {
        while let Ok((stream, _)) = self.listener.accept() {
            let _ = stream.set_nonblocking(true);
            self.far.push(stream);
        }
        let Some((&what, said)) = bytes.split_first() else { return };
        if self.far.is_empty() {
            return;
        }
        let which = usize::from(what >> 3) % self.far.len();
        match what & 7 {
            0 => drop(self.far.swap_remove(which)),
            1 => drop(self.far[which].shutdown(std::net::Shutdown::Write)),
            2 => drop(self.far[which].shutdown(std::net::Shutdown::Read)),
            3 => drop(self.far[which].write(&vec![7; 60_000])),
            4 => drop(self.far[which].read(&mut vec![0; 100_000])),
            _ => drop(self.far[which].write(said)),
        }
    }

    fn hear(&mut self) {
        self.network.rouse();
        for _ in 0..FRAMES {
            // SAFETY: there is room for any frame, and a header before it.
            match unsafe { self.network.receive(self.room[VNET_LEN..].as_mut_ptr()) } {
                Ok(len) => {
                    let whole = self.room[..VNET_LEN + len as usize].to_vec();
                    self.judge(&whole);
                }
                Err(error) => {
                    assert_eq!(error.kind(), ErrorKind::WouldBlock);
                    return;
                }
            }
        }
        panic!("the network does not stop talking");
    }

    fn judge(&mut self, whole: &[u8]) {
        let (head, frame) = whole.split_at(VNET_LEN);
        assert!(frame.len() >= 14, "a runt");
        assert_eq!(frame[6] & 1, 0, "a group's address as the source");
        let header = VnetHeader::read(head.try_into().expect("ten bytes"));
        let mut scratch: Box<offload::Scratch> = Box::new([0; offload::HEADERS_MAX]);
        let cut = offload::segment(&header, frame, &mut scratch, &mut |first, rest| check(&[first, rest].concat()));
        assert!(cut.is_ok(), "a virtio-net header that does not fit: {header:?}");
        if let Some((at, _)) = segment(frame) {
            let port = u16::from_be_bytes([frame[at + 2], frame[at + 3]]);
            let data = frame.len() - at - 4 * usize::from(frame[at + 12] >> 4);
            let next = long(frame, at + 4).wrapping_add(data as u32).wrapping_add((frame[at + 13] & 3 != 0).into());
            let sent = self.flows.get(&port).map_or(0, |(sent, _)| *sent);
            self.flows.insert(port, (sent, next));
        }
    }
}

/// A small number, either way, from any.
fn near(number: u32) -> u32 {
    if number >> 24 == 0xff {
        number
    } else {
        (number as i8 as i32 as u32).wrapping_mul(1 << (number >> 8 & 15)) & if number >> 16 & 3 == 0 { u32::MAX } else { 0 }
    }
}

fn long(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

/// Where the TCP header of a plain packet begins, and the sum of its addresses.
fn segment(frame: &[u8]) -> Option<(usize, Sum)> {
    let (at, protocol, addresses) = match frame.get(12..15)? {
        [0x08, 0x00, first] if first >> 4 == 4 => (14 + 4 * usize::from(first & 15), *frame.get(23)?, 26..34),
        [0x86, 0xdd, _] => (54, *frame.get(20)?, 22..54),
        _ => return None,
    };
    (protocol == 6 && frame.len() >= at + 20).then(|| (at, Sum::default().bytes(&frame[addresses])))
}

/// Is a frame for guests right in itself?
fn check(frame: &[u8]) {
    match [frame[12], frame[13]] {
        [0x08, 0x06] => assert!(frame.len() >= 42, "a short ARP packet"),
        [0x08, 0x00] => {
            let len = usize::from(u16::from_be_bytes([frame[16], frame[17]]));
            assert!(14 + len <= frame.len(), "an IPv4 packet longer than its frame");
            assert_eq!(Sum::default().bytes(&frame[14..34]).checksum(), 0, "a header's checksum");
            let is_fragment = u16::from_be_bytes([frame[20], frame[21]]) & 0x3fff != 0;
            if !is_fragment {
                summed(frame[23], Sum::default().bytes(&frame[26..34]), &frame[34..14 + len]);
            }
        }
        [0x86, 0xdd] => {
            let len = usize::from(u16::from_be_bytes([frame[18], frame[19]]));
            assert!(54 + len <= frame.len(), "an IPv6 packet longer than its frame");
            summed(frame[20], Sum::default().bytes(&frame[22..54]), &frame[54..54 + len]);
        }
        other => panic!("an ethertype of its own: {other:x?}"),
    }
}

fn summed(protocol: u8, pseudo: Sum, bytes: &[u8]) {
    let sum = match protocol {
        1 => Sum::default(),
        6 | 17 | 58 => pseudo.word(protocol.into()).word(bytes.len() as u16),
        _ => return,
    };
    if protocol == 17 && bytes[6..8] == [0, 0] {
        return; // IPv4 allows none
    }
    assert_eq!(sum.bytes(bytes).checksum(), 0, "a checksum of protocol {protocol}");
}
