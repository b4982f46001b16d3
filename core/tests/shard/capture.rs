//! What a capture writes, and that nobody waits for it.

use std::io::{Read, Seek};
use std::os::fd::AsRawFd;
use std::time::{SystemTime, UNIX_EPOCH};

use _core::port::Capture;

use super::*;

/// A packet block of a pcapng file.
struct Captured {
    interface: String,
    nanoseconds: u64,
    len: usize,
    frame: Vec<u8>,
    inbound: bool,
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
}

fn option(mut bytes: &[u8], code: u16) -> Option<&[u8]> {
    while bytes.len() >= 4 {
        let [found, len] = [0, 2].map(|at| u16::from_le_bytes([bytes[at], bytes[at + 1]]));
        if found == code {
            return Some(&bytes[4..4 + usize::from(len)]);
        }
        bytes = &bytes[4 + usize::from(len).next_multiple_of(4)..];
    }
    None
}

/// Read a file as draft-ietf-opsawg-pcapng says.
fn parse(mut bytes: &[u8]) -> Vec<Captured> {
    assert_eq!((u32_at(bytes, 0), u32_at(bytes, 8)), (0x0a0d_0d0a, 0x1a2b_3c4d));
    let (mut interfaces, mut packets) = (Vec::new(), Vec::new());
    while !bytes.is_empty() {
        let len = u32_at(bytes, 4) as usize;
        assert_eq!((len % 4, u32_at(bytes, len - 4) as usize), (0, len));
        let body = &bytes[8..len - 4];
        match u32_at(bytes, 0) {
            1 => {
                assert_eq!((u32_at(body, 0), option(&body[8..], 9)), (1, Some(&[9][..])), "Ethernet, in nanoseconds");
                interfaces.push(String::from_utf8(option(&body[8..], 2).unwrap().to_vec()).unwrap());
            }
            6 => {
                let kept = u32_at(body, 12) as usize;
                packets.push(Captured {
                    interface: interfaces[u32_at(body, 0) as usize].clone(),
                    nanoseconds: u64::from(u32_at(body, 4)) << 32 | u64::from(u32_at(body, 8)),
                    len: u32_at(body, 16) as usize,
                    frame: body[20..20 + kept].to_vec(),
                    inbound: u32_at(option(&body[20 + kept.next_multiple_of(4)..], 2).unwrap(), 0) & 3 == 1,
                });
            }
            _ => {}
        }
        bytes = &bytes[len..];
    }
    packets
}

/// Capture the ports by a worker, to a file in memory.
fn start(lab: &mut Lab, worker: Worker, ports: &[Port], snaplen: usize) -> std::fs::File {
    let file = testing::memory();
    start_to(lab, worker, ports, snaplen, file.as_raw_fd());
    file
}

fn start_to(lab: &mut Lab, worker: Worker, ports: &[Port], snaplen: usize, fd: RawFd) {
    let names: Vec<_> = ports.iter().map(|port| (*port, format!("port {port}"))).collect();
    lab.shards[usize::from(worker)].as_mut().unwrap().add_capture(Capture::new(fd, &names, snaplen));
    for port in ports {
        lab.arena.port(*port).mirror.fetch_or(1 << worker, std::sync::atomic::Ordering::Relaxed);
    }
    lab.arena.advance();
}

fn read(mut file: std::fs::File) -> Vec<Captured> {
    let mut bytes = Vec::new();
    file.rewind().unwrap();
    file.read_to_end(&mut bytes).unwrap();
    parse(&bytes)
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos() as u64
}

#[test]
fn a_capture_has_every_frame_of_its_ports_with_direction_length_and_time() {
    let mut lab = Lab::new(3);
    for worker in [0, 1, 1] {
        lab.plug(worker);
    }
    lab.introduce(&[1, 2, 3]);
    let begin = now() - 1_000_000;
    let file = start(&mut lab, 2, &[1, 2], 0);
    for (from, to, len) in [(1, 2, 60), (2, 1, 1514), (1, 3, 65_562), (3, 2, 61)] {
        assert_eq!(lab.reach(from, &frame_of(from, to, len)), [to]);
    }
    let packets = read(file);
    let expected = [(1, 1, 2, 60, true), (2, 1, 2, 60, false), (2, 2, 1, 1514, true), (1, 2, 1, 1514, false)];
    let expected = [&expected[..], &[(1, 1, 3, 65_562, true), (2, 3, 2, 61, false)]].concat();
    assert_eq!(packets.len(), expected.len());
    for (packet, (at, from, to, len, inbound)) in packets.iter().zip(expected) {
        assert_eq!((packet.interface.clone(), packet.inbound), (format!("port {at}"), inbound));
        assert!(packet.len == len && packet.frame == frame_of(from, to, len), "the frame from {from} to {to} at {at}");
        assert!((begin..=now()).contains(&packet.nanoseconds), "{} ns of {begin}", packet.nanoseconds);
    }
    assert_eq!(lab.shards[2].as_ref().unwrap().capture_counts(), (6, 0));
}

#[test]
fn a_snap_length_cuts_what_is_kept_and_not_what_is_said() {
    let mut lab = Lab::new(2);
    lab.plug(0);
    let file = start(&mut lab, 1, &[1], 100);
    lab.reach(1, &frame_of(1, BROADCAST, 1000));
    let packets = read(file);
    assert_eq!(packets.len(), 1);
    assert_eq!((packets[0].len, &packets[0].frame[..]), (1000, &frame_of(1, BROADCAST, 1000)[..100]));
}

#[test]
fn a_capture_by_the_worker_that_a_port_sends_to_changes_no_frame() {
    let mut lab = Lab::new(2);
    lab.plug_into(0, Wire::Tap, |_| {});
    lab.plug_into(1, Wire::Tap, |_| {});
    lab.introduce(&[1, 2]);
    let file = start(&mut lab, 1, &[1, 2], 0);
    for len in 60..400 {
        assert_eq!(lab.reach(1, &frame_of(1, 2, len)), [2]);
        assert_eq!(lab.reach(2, &frame_of(2, 1, len)), [1]);
    }
    let packets = read(file);
    assert_eq!(packets.len(), 4 * 340);
    assert!(packets.iter().all(|packet| packet.frame == frame_of(1, 2, packet.len) || packet.frame == frame_of(2, 1, packet.len)));
}

#[test]
fn a_capture_that_is_behind_loses_frames_and_the_ports_do_not() {
    let mut lab = Lab::new(3);
    lab.plug(0);
    lab.plug(1);
    lab.introduce(&[1, 2]);
    let (mut reader, writer) = std::io::pipe().unwrap();
    // SAFETY: no memory is involved.
    assert_eq!(unsafe { libc::fcntl(writer.as_raw_fd(), libc::F_SETFL, libc::O_NONBLOCK) }, 0);
    start_to(&mut lab, 2, &[1], 0, writer.as_raw_fd());
    let mut sent = 0;
    while lab.shards[2].as_ref().unwrap().capture_counts().1 < 100 {
        assert_eq!(lab.reach(1, &frame_of(1, 2, 20_000)), [2]);
        sent += 1;
    }
    let (written, lost) = lab.shards[2].as_ref().unwrap().capture_counts();
    let waiting = lab.arena.control(0, 2).pushed() - lab.arena.control(0, 2).popped();
    assert_eq!(written + lost + waiting, sent);
    assert_eq!((lab.rx_drops(1), lab.tx_drops(2)), (0, 0));
    let mut bytes = vec![0; 4096];
    reader.read_exact(&mut bytes).unwrap();
    assert_eq!(u32_at(&bytes, 0), 0x0a0d_0d0a);
}
