//! What a capture writes, and that nobody waits for it.

use std::io::{Read, Seek};
use std::os::fd::{AsRawFd, FromRawFd};
use std::time::{SystemTime, UNIX_EPOCH};

use _core::port::capture::{Format, Settings};

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
    let (mut interfaces, mut packets) = (Vec::<String>::new(), Vec::new());
    while !bytes.is_empty() {
        let len = u32_at(bytes, 4) as usize;
        assert_eq!((len % 4, u32_at(bytes, len - 4) as usize), (0, len));
        let body = &bytes[8..len - 4];
        match u32_at(bytes, 0) {
            0x0a0d_0d0a => interfaces.clear(),
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
    start_as(lab, worker, &names, fd, Settings { snaplen, ..Settings::default() });
}

fn start_as(lab: &mut Lab, worker: Worker, names: &[(Port, String)], fd: RawFd, settings: Settings) {
    let shard = lab.shards[usize::from(worker)].as_mut().unwrap();
    shard.add_capture(fd, 0, settings, true);
    for (port, name) in names {
        shard.capture_port(*port, name);
    }
    for (port, _) in names {
        repair::mirror(lab.arena, *port, worker, true);
    }
}

/// End it; frames written and lost.
fn end(lab: &mut Lab, worker: Worker) -> (u64, u64) {
    let (written, lost, ..) = lab.shards[usize::from(worker)].as_mut().unwrap().end_capture();
    (written, lost)
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
    let packets = read(file.try_clone().unwrap()); // the end is written to it as well
    let expected = [(1, 1, 2, 60, true), (2, 1, 2, 60, false), (2, 2, 1, 1514, true), (1, 2, 1, 1514, false)];
    let expected = [&expected[..], &[(1, 1, 3, 65_562, true), (2, 3, 2, 61, false)]].concat();
    assert_eq!(packets.len(), expected.len());
    for (packet, (at, from, to, len, inbound)) in packets.iter().zip(expected) {
        assert_eq!((packet.interface.clone(), packet.inbound), (format!("port {at}"), inbound));
        assert!(packet.len == len && packet.frame == frame_of(from, to, len), "the frame from {from} to {to} at {at}");
        assert!((begin..=now()).contains(&packet.nanoseconds), "{} ns of {begin}", packet.nanoseconds);
    }
    assert_eq!(end(&mut lab, 2), (6, 0));
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
    while lab.arena.loss(2, 1).load(std::sync::atomic::Ordering::Relaxed) < 100 {
        assert!(lab.send(1, &frame_of(1, 2, 20_000)));
        lab.turn(false);
        assert_eq!(lab.receive(2), [frame_of(1, 2, 20_000)]);
        sent += 1;
    }
    let waiting = lab.arena.control(0, 2).pushed() - lab.arena.control(0, 2).popped();
    let (written, lost) = end(&mut lab, 2);
    assert!(written + lost == sent && lost >= 100, "{written} written, {lost} lost, {waiting} waited, {sent} sent");
    assert_eq!((lab.rx_drops(1), lab.tx_drops(2)), (0, 0));
    let mut bytes = vec![0; 4096];
    reader.read_exact(&mut bytes).unwrap();
    assert_eq!(u32_at(&bytes, 0), 0x0a0d_0d0a);
}

/// The capture as a port of its own, of worker 2, with a ledger.
fn start_port(lab: &mut Lab, captured: &[Port], fd: RawFd, settings: Settings) -> (Port, std::fs::File) {
    let port = lab.plugs.len() as Port + 1;
    let mut policy = lab.plugs[0].policy.clone();
    (policy.worker, policy.capture) = (2, true);
    repair::configure_port(lab.arena, port, &policy);
    let ledger = testing::memory();
    let names: Vec<_> = captured.iter().map(|port| (*port, format!("port {port}"))).collect();
    start_as(lab, 2, &names, fd, Settings { port, ledger: ledger.as_raw_fd(), ..settings });
    (port, ledger)
}

/// The length that the ledger says.
fn whole(mut ledger: &std::fs::File) -> u64 {
    let mut bytes = [0; 16];
    ledger.rewind().unwrap();
    ledger.read_exact(&mut bytes).unwrap();
    u64::from_le_bytes(bytes[8..].try_into().unwrap())
}

#[test]
fn a_capture_that_is_a_port_is_flooded_nothing_and_counts_what_it_writes() {
    let mut lab = Lab::new(3);
    lab.plug(0);
    lab.plug(1);
    let file = testing::memory();
    let (port, ledger) = start_port(&mut lab, &[1, 2], file.as_raw_fd(), Settings::default());
    assert_eq!(lab.reach(1, &frame_of(1, BROADCAST, 100)), [2]);
    assert_eq!(
        (lab.counter(port, Counter::Offered), lab.counter(port, Counter::TxFrames), lab.counter(port, Counter::TxBytes)),
        (2, 2, 200)
    );
    assert_eq!(whole(&ledger), file.metadata().unwrap().len());
    assert_eq!(read(file).len(), 2);
}

#[test]
fn a_frame_of_a_port_that_has_no_name_yet_waits_for_it_and_not_for_ever() {
    let mut lab = Lab::new(3);
    lab.plug(0);
    lab.plug(1);
    let file = testing::memory();
    let (port, _ledger) = start_port(&mut lab, &[1], file.as_raw_fd(), Settings::default());
    repair::mirror(lab.arena, 2, 2, true);
    assert!(lab.send(2, &frame(2, BROADCAST)));
    lab.step(1);
    lab.step(2);
    assert_eq!(lab.counter(port, Counter::Offered), 0);
    lab.shards[2].as_mut().unwrap().capture_port(2, "late");
    lab.settle();
    repair::mirror(lab.arena, 2, 2, false);
    repair::mirror(lab.arena, 1, 2, false);
    assert_eq!(lab.counter(port, Counter::TxFrames), 2, "it came in at 2 and left by 1");
    lab.plug(0);
    repair::mirror(lab.arena, 4, 2, true); // 3 is the capture
    repair::mirror(lab.arena, 3, 2, true);
    let _ = lab.send(3, &frame(3, BROADCAST));
    lab.settle();
    end(&mut lab, 2);
    assert!(read(file).iter().any(|packet| packet.interface == "late"));
}

#[test]
fn a_file_ends_before_it_is_longer_than_it_may_be_and_the_next_one_goes_on() {
    let mut lab = Lab::new(3);
    lab.plug(0);
    lab.plug(1);
    for format in [Format::Pcapng, Format::Pcap] {
        let (limit, mut files) = (4096, vec![testing::memory()]);
        let (port, _ledger) = start_port(&mut lab, &[1], files[0].as_raw_fd(), Settings { limit, format, ..Settings::default() });
        let before = lab.counter(port, Counter::TxFrames);
        for _ in 0..40 {
            assert!(lab.send(1, &frame_of(1, BROADCAST, 500)));
        }
        while lab.counter(port, Counter::TxFrames) < before + 40 {
            lab.step(0);
            lab.step(1);
            lab.receive(2);
            for news in lab.step(2) {
                assert_eq!(news, News::Full(port));
                files.push(testing::memory());
                lab.shards[2].as_mut().unwrap().capture_file(files[files.len() - 1].as_raw_fd(), 0);
            }
        }
        end(&mut lab, 2);
        assert!(files.len() > 5);
        assert!(files.iter().all(|file| (2000..=limit).contains(&file.metadata().unwrap().len())), "{format:?}");
        if format == Format::Pcapng {
            assert_eq!(files.into_iter().map(|file| read(file).len()).sum::<usize>(), 40);
        }
    }
}

#[test]
fn a_disk_that_is_full_ends_the_capture_and_the_ledger_says_what_is_whole() {
    for format in [Format::Pcapng, Format::Pcap] {
        let mut lab = Lab::new(3);
        lab.plug(0);
        lab.plug(1);
        // SAFETY: a name; the descriptor is ours.
        let mut file = unsafe { std::fs::File::from_raw_fd(libc::memfd_create(c"full".as_ptr(), libc::MFD_ALLOW_SEALING)) };
        // A file that cannot grow is as good as a disk that is full. SAFETY: numbers only.
        assert_eq!(unsafe { libc::ftruncate(file.as_raw_fd(), 10_000) }, 0);
        assert_eq!(unsafe { libc::fcntl(file.as_raw_fd(), libc::F_ADD_SEALS, libc::F_SEAL_GROW) }, 0);
        let (port, ledger) = start_port(&mut lab, &[1], file.as_raw_fd(), Settings { format, ..Settings::default() });
        for _ in 0..30 {
            assert!(lab.send(1, &frame_of(1, BROADCAST, 1000)));
        }
        let mut news = Vec::new();
        while news.is_empty() {
            lab.step(0);
            lab.step(1);
            news = lab.step(2);
        }
        assert!(matches!(news[..], [News::Ended(of, errno)] if of == port && errno != 0), "{news:?}");
        lab.receive(2);
        assert_eq!(lab.reach(1, &frame_of(1, BROADCAST, 1000)), [2]);
        assert_eq!((lab.counter(port, Counter::Offered), lab.drops(port, Cause::TxDown)), (31, 1));
        let written = lab.counter(port, Counter::TxFrames);
        assert_eq!(lab.drops(port, Cause::TxError), 30 - written);
        file.rewind().unwrap();
        let mut bytes = vec![0; whole(&ledger) as usize];
        file.read_exact(&mut bytes).unwrap();
        if format == Format::Pcapng {
            assert_eq!(parse(&bytes).len() as u64, written);
        } else {
            assert_eq!(bytes.len() as u64, 24 + written * 1016);
        }
        assert!(written <= 9, "{written} frames of 1000 bytes in 10,000");
    }
}

#[test]
fn a_successor_writes_what_waited_for_it_in_the_lanes() {
    let mut lab = Lab::new(3);
    lab.plug(0);
    lab.plug(1);
    let file = testing::memory();
    let (port, ledger) = start_port(&mut lab, &[1], file.as_raw_fd(), Settings::default());
    assert_eq!(lab.reach(1, &frame(1, BROADCAST)), [2]);
    assert!(lab.send(1, &frame(1, BROADCAST)));
    lab.step(0);
    drop(lab.shards[2].take());
    repair::repair(lab.arena, 2);
    lab.shards[2] = Some(Shard::new(lab.arena, 2, lab.bells.clone()).unwrap());
    let shard = lab.shards[2].as_mut().unwrap();
    let settings = Settings { port, ledger: ledger.as_raw_fd(), ..Settings::default() };
    shard.add_capture(file.as_raw_fd(), whole(&ledger), settings, false);
    shard.capture_port(1, "port 1");
    lab.settle();
    assert_eq!((lab.counter(port, Counter::TxFrames), lab.tx_drops(port)), (2, 0));
    assert_eq!(read(file).len(), 2);
}
