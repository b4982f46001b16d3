//! What shards do with frames from end to end: real descriptors, several workers stepped in one process.

mod accounting;
mod capture;
mod handover;
mod impaired;
mod pressure;
mod switching;
mod vlan;

use std::io;
use std::os::fd::RawFd;
use std::time::Duration;

use _core::arena::Arena;
use _core::lane::VNET_LEN;
use _core::port::dgram::Peer;
use _core::port::{Dgram, Stream};
use _core::ports::{CAUSES, Cause, Counter, FIRST_EGRESS, Port, Vlan, Worker};
use _core::repair::{self, Policy};
use _core::shard::{News, Shard};
use _core::testing;

/// What a port is to its guest: a socket that keeps frames apart, a stream with lengths in front, or what stands in for
/// a TAP: frames kept apart, with a virtio-net header each.
#[derive(Clone, Copy, PartialEq)]
enum Wire {
    Packets,
    Stream,
    Tap,
}

struct Plug {
    wire: Wire,
    guest: RawFd,
    port: RawFd,
    worker: Worker,
    policy: Policy,
    /// Of a stream: bytes that came and are no whole frame yet.
    rest: Vec<u8>,
    sent: u64,
    received: u64,
}

/// An arena, the shards on it, and the guests at their ports.
struct Lab {
    arena: &'static Arena,
    bells: Vec<RawFd>,
    shards: Vec<Option<Shard>>,
    plugs: Vec<Plug>,
}

/// As long as a capture rests at once.
const REST_MOST: Duration = Duration::from_millis(100);

impl Lab {
    fn new(workers: usize) -> Lab {
        Lab::with_lanes(workers, 1 << 20)
    }

    fn with_lanes(workers: usize, lane_bytes: u64) -> Lab {
        let arena = testing::arena(lane_bytes);
        arena.switch(0).age_s.store(300, std::sync::atomic::Ordering::Relaxed);
        let bells = testing::bells(workers, libc::EFD_NONBLOCK);
        let shards = (0..workers).map(|worker| Some(Shard::new(arena, worker as Worker, bells.clone()).unwrap())).collect();
        Lab { arena, bells, shards, plugs: Vec::new() }
    }

    /// A new port of a worker, plain and up.
    fn plug(&mut self, worker: Worker) -> Port {
        self.plug_into(worker, Wire::Packets, |_| {})
    }

    fn plug_into(&mut self, worker: Worker, wire: Wire, change: impl FnOnce(&mut Policy)) -> Port {
        let kind = if wire == Wire::Stream { libc::SOCK_STREAM } else { libc::SOCK_SEQPACKET };
        let mut ends = [0; 2];
        // SAFETY: room for two descriptors.
        assert_eq!(unsafe { libc::socketpair(libc::AF_UNIX, kind | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC, 0, ends.as_mut_ptr()) }, 0);
        let policy = testing::plain(worker);
        self.plugs.push(Plug { wire, guest: ends[0], port: ends[1], worker, policy, rest: vec![], sent: 0, received: 0 });
        let port = self.plugs.len() as Port;
        self.change(port, change);
        self.attach(port);
        port
    }

    fn change(&mut self, port: Port, change: impl FnOnce(&mut Policy)) {
        let policy = &mut self.plugs[usize::from(port) - 1].policy;
        change(policy);
        repair::configure_port(self.arena, port, policy);
    }

    /// Give the port's descriptor to the shard of its worker.
    fn attach(&mut self, port: Port) {
        let Plug { wire, port: fd, worker, .. } = self.plugs[usize::from(port) - 1];
        let shard = self.shards[usize::from(worker)].as_mut().expect("a worker that lives");
        match wire {
            Wire::Packets => shard.add_dgram(port, Dgram::new(fd, fd, Peer { remote: None, follow: false, ignore: None })).unwrap(),
            Wire::Stream => shard.add_stream(port, Stream::new(fd, fd, 4)).unwrap(),
            Wire::Tap => shard.add_tap(port, vec![fd]).unwrap(),
        }
    }

    /// The worker is gone at once, with all it held; the supervisor repairs, and a successor takes over its descriptors.
    fn replace(&mut self, worker: Worker) {
        drop(self.shards[usize::from(worker)].take());
        repair::repair(self.arena, worker);
        self.shards[usize::from(worker)] = Some(Shard::new(self.arena, worker, self.bells.clone()).unwrap());
        self.attach_all(worker);
    }

    fn attach_all(&mut self, worker: Worker) {
        for port in 1..=self.plugs.len() as Port {
            if self.plugs[usize::from(port) - 1].worker == worker {
                self.attach(port);
            }
        }
    }

    /// A turn of one worker, or two.
    fn step(&mut self, worker: Worker) -> Vec<News> {
        self.shards[usize::from(worker)].as_mut().expect("a worker that lives").run(Some(Duration::ZERO)).unwrap()
    }

    /// Turns of all workers until nothing moves; a capture that rests, where the machine is busy, is waited for.
    fn settle(&mut self) {
        self.turn(true);
    }

    /// Turns of all workers until nothing moves, for now or with those that rest.
    fn turn(&mut self, with_rests: bool) {
        let mut still = 0;
        while still < 4 {
            let before = self.moved();
            for worker in 0..self.shards.len() {
                assert_eq!(self.step(worker as Worker), []);
            }
            still = if self.moved() == before { still + 1 } else { 0 };
            for shard in self.shards.iter_mut().flatten() {
                if with_rests && shard.is_capture_resting() {
                    still = 0;
                    assert_eq!(shard.run(Some(REST_MOST)).unwrap(), []); // it takes no time from others meanwhile
                }
            }
        }
    }

    fn moved(&self) -> u64 {
        (1..=self.plugs.len() as Port)
            .map(|port| self.counter(port, Counter::RxTaken) + self.counter(port, Counter::Offered) + self.counter(port, Counter::TxFrames))
            .sum()
    }

    /// Send from a guest; false where the port's descriptor is full.
    fn send(&mut self, port: Port, frame: &[u8]) -> bool {
        let plug = &mut self.plugs[usize::from(port) - 1];
        let mut bytes = match plug.wire {
            Wire::Packets => vec![],
            Wire::Stream => (frame.len() as u32).to_be_bytes().to_vec(),
            Wire::Tap => vec![0; VNET_LEN],
        };
        bytes.extend(frame);
        // SAFETY: the slice is readable.
        let sent = unsafe { libc::send(plug.guest, bytes.as_ptr().cast(), bytes.len(), libc::MSG_NOSIGNAL) };
        if sent < 0 {
            let error = io::Error::last_os_error();
            assert_eq!(error.kind(), io::ErrorKind::WouldBlock, "port {port}: {error}");
            return false;
        }
        assert_eq!(sent as usize, bytes.len(), "a part of a frame went");
        plug.sent += 1;
        true
    }

    /// All frames that have come to a guest.
    fn receive(&mut self, port: Port) -> Vec<Vec<u8>> {
        let plug = &mut self.plugs[usize::from(port) - 1];
        let (mut frames, mut bytes) = (Vec::new(), vec![0; 256 << 10]);
        loop {
            // SAFETY: the buffer is writable.
            let got = unsafe { libc::recv(plug.guest, bytes.as_mut_ptr().cast(), bytes.len(), 0) };
            if got < 0 {
                break;
            }
            if plug.wire != Wire::Stream {
                let begin = if plug.wire == Wire::Tap { VNET_LEN } else { 0 };
                frames.push(bytes[begin..got as usize].to_vec());
                continue;
            }
            plug.rest.extend(&bytes[..got as usize]);
            while let Some((len, rest)) = plug.rest.split_first_chunk()
                && let Some(frame) = rest.get(..u32::from_be_bytes(*len) as usize)
            {
                frames.push(frame.to_vec());
                plug.rest.drain(..4 + frames[frames.len() - 1].len());
            }
        }
        plug.received += frames.len() as u64;
        frames
    }

    /// Send a frame, let it settle, and say at which ports it came out, as it was sent.
    fn reach(&mut self, from: Port, frame: &[u8]) -> Vec<Port> {
        self.outcome(from, frame)
            .into_iter()
            .map(|(port, out)| {
                assert_eq!(out, frame, "at port {port}");
                port
            })
            .collect()
    }

    /// Send a frame, let it settle, and say at which ports what came out.
    fn outcome(&mut self, from: Port, frame: &[u8]) -> Vec<(Port, Vec<u8>)> {
        assert!(self.send(from, frame));
        self.settle();
        (1..=self.plugs.len() as Port).flat_map(|port| self.receive(port).into_iter().map(move |frame| (port, frame))).collect()
    }

    /// Make the switch learn a guest's address at each of the ports.
    fn introduce(&mut self, ports: &[Port]) {
        for &port in ports {
            self.reach(port, &frame(port, BROADCAST));
        }
    }

    fn counter(&self, port: Port, counter: Counter) -> u64 {
        (0..self.shards.len() as Worker).map(|worker| self.arena.cell(worker, port).counter(counter as usize)).sum()
    }

    fn drops(&self, port: Port, cause: Cause) -> u64 {
        self.dropped(port, cause as usize..cause as usize + 1)
    }

    fn dropped(&self, port: Port, causes: std::ops::Range<usize>) -> u64 {
        let of = |worker| causes.clone().map(|cause| self.arena.cell(worker, port).dropped(cause)).sum::<u64>();
        (0..self.shards.len() as Worker).map(of).sum()
    }

    fn rx_drops(&self, port: Port) -> u64 {
        self.dropped(port, 0..FIRST_EGRESS)
    }

    fn tx_drops(&self, port: Port) -> u64 {
        self.dropped(port, FIRST_EGRESS..CAUSES.len())
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        for fd in self.plugs.iter().flat_map(|plug| [plug.guest, plug.port]).chain(self.bells.iter().copied()) {
            // SAFETY: the descriptors are ours; the shards use them no more when this test is over.
            unsafe { libc::close(fd) };
        }
    }
}

const BROADCAST: Port = 0xffff;

/// The address of the guest at a port.
fn mac(port: Port) -> [u8; 6] {
    let [high, low] = port.to_be_bytes();
    if port == BROADCAST { [0xff; 6] } else { [0x52, 0x54, 0, 0, high, low] }
}

/// A frame from the guest at one port to the guest at another, the least that Ethernet has.
fn frame(from: Port, to: Port) -> Vec<u8> {
    frame_of(from, to, 60)
}

fn frame_of(from: Port, to: Port, len: usize) -> Vec<u8> {
    let mut frame = [mac(to), mac(from)].concat();
    frame.extend([0x88, 0xb5]); // for local experiments (IEEE 802, 9.2.3)
    frame.extend((14..len).map(|at| at as u8));
    frame
}

/// The frame with an 802.1Q tag.
fn tagged(frame: &[u8], vid: u16) -> Vec<u8> {
    [&frame[..12], &[0x81, 0], &vid.to_be_bytes(), &frame[12..]].concat()
}
