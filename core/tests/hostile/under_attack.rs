//! Honest workers beside a process that scribbles: lanes, two whole shards with three ports, a supervisor that repairs.
//!
//! Nothing is asked of them meanwhile but that each comes to the end of every call. Then the scribbler is killed, the supervisor writes the
//! configuration again, and the same objects have to carry every frame.

use std::io::{Read, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use _core::arena::Arena;
use _core::lane::{self, CLAIM, Consumer, Label, Producer};
use _core::port::Stream;
use _core::ports::{NOBODY, Port, Worker};
use _core::repair;
use _core::shard::{News, Shard};
use _core::testing::{self, Child};

use super::scribble::{Random, Targets, scribble};
use super::{assert_carries, configure, drain};

const WORKERS: Worker = 5;
/// Workers 0 and 1 are the ends of bare lanes, 2 and 3 are shards, 4 is dead and repaired.
const LANES: [(Worker, Worker); 7] = [(0, 1), (0, 1), (2, 3), (3, 2), (2, 2), (4, 2), (3, 4)];
const STUCK: Duration = Duration::from_secs(20);

/// Ports, and the workers that carry them.
const PORTS: [(Port, Worker); 3] = [(1, 2), (2, 2), (3, 3)];

struct Watched {
    stop: AtomicBool,
    /// Calls that came to their end, by party.
    turns: [AtomicU64; 6],
    faults: AtomicU64,
}

impl Watched {
    fn goes_on(&self, party: usize) -> bool {
        self.turns[party].fetch_add(1, Ordering::Relaxed);
        !self.stop.load(Ordering::Relaxed)
    }

    /// Wait for the end of the attack, and for each party to get on until then.
    fn watch(&self, time: Duration) {
        let (begin, mut seen) = (Instant::now(), self.turns.each_ref().map(|_| (0, Instant::now())));
        while begin.elapsed() < time {
            thread::sleep(Duration::from_millis(20));
            for (party, (turns, since)) in seen.iter_mut().enumerate() {
                let now = self.turns[party].load(Ordering::Relaxed);
                if now != *turns {
                    (*turns, *since) = (now, Instant::now());
                }
                assert!(since.elapsed() < STUCK, "party {party} is in a call that does not end");
            }
        }
        self.stop.store(true, Ordering::Relaxed);
    }
}

fn produce(arena: &'static Arena, watched: &Watched) -> Producer {
    let (mut random, mut producer) = (Random::new(11), Producer::new(arena, 0, 1));
    let bytes = vec![9; 70_000];
    while watched.goes_on(0) {
        let most = if random.below(8) == 0 { 65_549 } else { 1_500 };
        let len = 14 + random.below(most) as usize;
        match random.below(1_000) {
            0 => {
                lane::mend_producer(arena, 0, 1);
                producer = Producer::new(arena, 0, 1);
            }
            1..100 => drop(producer.publish()),
            100..150 => drop(producer.wait_for_room()),
            150..200 => drop(producer.has_room() || producer.is_empty()),
            200..400 => {
                if let Ok(Some(at)) = producer.claim(CLAIM) {
                    // SAFETY: a claim has room for any frame.
                    unsafe { at.write_bytes(1, CLAIM as usize) };
                    producer.commit(Label { len: len as u32, ..Label::default() });
                }
            }
            // SAFETY: a header and a frame of any length.
            _ => drop(unsafe { producer.push(Label { len: len as u32, ..Label::default() }, bytes.as_ptr().add(10)) }),
        }
    }
    producer
}

fn consume(arena: &'static Arena, watched: &Watched) -> Consumer {
    let (mut random, mut consumer) = (Random::new(12), Consumer::new(arena, 0, 1));
    while watched.goes_on(1) {
        match consumer.peek() {
            Ok(Some(entry)) => {
                for at in -10..entry.label.len as isize {
                    // SAFETY: the record lies in the lane, its header before it; this is where a step too far would be met.
                    let byte = unsafe { entry.frame.offset(at) };
                    unsafe { byte.write_volatile(byte.read_volatile()) };
                }
                consumer.take(&entry.label);
            }
            Ok(None) => thread::yield_now(),
            Err(_) => drop(watched.faults.fetch_add(1, Ordering::Relaxed)),
        }
        match random.below(1_000) {
            0 => {
                lane::mend_consumer(arena, 0, 1);
                consumer = Consumer::new(arena, 0, 1);
            }
            1..200 => {
                let _ = consumer.release() || consumer.has_more();
            }
            _ => {}
        }
    }
    consumer
}

/// The loop of a worker with stream ports.
fn carry(arena: &'static Arena, me: Worker, bells: &[RawFd], ports: &[(Port, RawFd)], watched: &Watched) -> Shard {
    let mut shard = Shard::new(arena, me, bells.to_vec()).unwrap();
    for &(port, fd) in ports {
        shard.add_stream(port, Stream::new(fd, fd, 4)).unwrap();
    }
    while watched.goes_on(usize::from(me)) {
        assert_eq!(shard.run(Some(Duration::from_millis(2))).unwrap(), [], "worker {me}");
    }
    shard
}

/// The far ends of the ports: they send to each other and to nobody, and read what comes.
struct Guest {
    socket: UnixStream,
    unsent: Vec<u8>,
}

impl Guest {
    fn frame(from: Port, to: Port, number: u32, len: usize) -> Vec<u8> {
        let mut frame = vec![0; len.max(18)];
        frame[..6].copy_from_slice(&mac(to));
        frame[6..12].copy_from_slice(&mac(from));
        frame[12..14].copy_from_slice(&[0x88, 0xb5]);
        frame[14..18].copy_from_slice(&number.to_be_bytes());
        frame
    }

    fn send(&mut self, frame: &[u8]) {
        if self.unsent.len() < 100_000 {
            self.unsent.extend((frame.len() as u32).to_be_bytes());
            self.unsent.extend(frame);
        }
        if let Ok(sent) = self.socket.write(&self.unsent) {
            self.unsent.drain(..sent);
        }
    }

    /// All bytes that are there.
    fn receive(&mut self) -> Vec<u8> {
        let mut bytes = vec![0; 300_000];
        let count = self.socket.read(&mut bytes).unwrap_or(0);
        bytes.truncate(count);
        bytes
    }
}

fn mac(port: Port) -> [u8; 6] {
    if port == NOBODY { [0xff; 6] } else { [2, 0, 0, 0, 0, port as u8] }
}

fn talk(guests: &mut [Guest], watched: &Watched) {
    let mut random = Random::new(13);
    while watched.goes_on(4) {
        let from = random.below(3) as usize;
        let mut frame = Guest::frame(from as Port + 1, random.below(5) as Port, 0, 14 + random.below(2_000) as usize);
        if random.below(4) == 0 {
            frame[12..16].copy_from_slice(&[0x81, 0, 0, random.below(4) as u8]);
        }
        guests[from].send(&frame);
        guests.iter_mut().for_each(|guest| drop(guest.receive()));
        thread::sleep(Duration::from_micros(20));
    }
}

fn supervise(arena: &'static Arena, watched: &Watched) {
    let mut random = Random::new(14);
    while watched.goes_on(5) {
        match random.below(6) {
            0 => drop(repair::repair(arena, 4)),
            1 => drop(repair::forget(arena, 0, random.below(4) as Port)),
            2 => drop(arena.table(0).stations(repair::clock(arena, 0)).count()),
            3 => repair::clear_port(arena, 4),
            4 => drop(repair::faults(arena, 2)),
            _ => configure_all(arena),
        }
        thread::sleep(Duration::from_millis(1));
    }
}

fn configure_all(arena: &Arena) {
    for (port, worker) in PORTS {
        configure(arena, port, worker);
    }
}

/// The supervisor's word on everything, as at the start.
fn put_right(arena: &Arena) {
    for port in 0..1024 {
        repair::clear_port(arena, port);
    }
    let switch = arena.switch(0);
    switch.hub.store(0, Ordering::Relaxed);
    switch.age_s.store(300, Ordering::Relaxed);
    switch.reserved.store(0, Ordering::Relaxed);
    repair::forget(arena, 0, NOBODY);
    configure_all(arena);
}

/// Send a frame, let everybody work, and say which numbers have arrived at `to` since the last time.
fn pass(shards: &mut [Shard], guests: &mut [Guest], from: Port, to: Port, number: u32) -> Vec<u32> {
    guests[usize::from(from) - 1].send(&Guest::frame(from, to, number, 60));
    for _ in 0..4 {
        for shard in &mut *shards {
            assert_eq!(shard.run(Some(Duration::ZERO)).unwrap(), Vec::<News>::new());
        }
    }
    let mut arrived = Vec::new();
    for (port, guest) in (1..).zip(guests) {
        let bytes = guest.receive();
        let mut rest = if port == to { &bytes[..] } else { &[] };
        while let Some((len, stream)) = rest.split_first_chunk::<4>() {
            let (frame, next) = stream.split_at(u32::from_be_bytes(*len) as usize);
            if frame[6..14] == Guest::frame(from, to, 0, 18)[6..14] {
                arrived.push(u32::from_be_bytes([frame[14], frame[15], frame[16], frame[17]]));
            }
            rest = next;
        }
    }
    arrived
}

/// Every one of a thousand frames from `from` to `to` arrives, once one has.
fn assert_ports_carry(shards: &mut [Shard], guests: &mut [Guest], from: Port, to: Port) {
    let deadline = Instant::now() + STUCK;
    let marks = [(to, from, 1), (from, to, 2)];
    while !marks.iter().all(|&(from, to, mark)| pass(shards, guests, from, to, mark) == [mark]) {
        assert!(Instant::now() < deadline, "nothing gets from port {from} to port {to}");
    }
    for number in 3..1_000 {
        assert_eq!(pass(shards, guests, from, to, number), [number], "from port {from} to port {to}");
    }
}

#[test]
fn random_words_in_all_of_the_arena_stop_nobody() {
    let time = std::env::var("SHARDNET_HOSTILE_S").ok().and_then(|text| text.parse().ok()).unwrap_or(2.0);
    let seed = std::env::var("SHARDNET_HOSTILE_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or(0x5eed);
    let arena = testing::arena(super::LANE_MOST);
    let bells = testing::bells(WORKERS.into(), libc::EFD_NONBLOCK);
    put_right(arena);
    let sockets = [(); 3].map(|()| UnixStream::pair().unwrap());
    let fds = sockets.each_ref().map(|(_, port)| port.as_raw_fd());
    sockets.iter().for_each(|(guest, _)| guest.set_nonblocking(true).unwrap());
    let mut guests: Vec<Guest> = sockets.iter().map(|(guest, _)| Guest { socket: guest.try_clone().unwrap(), unsent: vec![] }).collect();
    let watched = Watched { stop: false.into(), turns: Default::default(), faults: 0.into() };

    let attacker = Child::run(|| scribble(arena, Targets { lanes: &LANES, workers: WORKERS, ports: 6 }, seed));
    let (mut producer, mut consumer, mut shards) = thread::scope(|scope| {
        let producer = scope.spawn(|| produce(arena, &watched));
        let consumer = scope.spawn(|| consume(arena, &watched));
        let one = scope.spawn(|| carry(arena, 2, &bells, &[(1, fds[0]), (2, fds[1])], &watched));
        let other = scope.spawn(|| carry(arena, 3, &bells, &[(3, fds[2])], &watched));
        scope.spawn(|| talk(&mut guests, &watched));
        scope.spawn(|| supervise(arena, &watched));
        watched.watch(Duration::from_secs_f64(time));
        (producer.join().unwrap(), consumer.join().unwrap(), [one.join().unwrap(), other.join().unwrap()])
    });
    attacker.kill();

    let (turns, faults) = (watched.turns.each_ref().map(|turns| turns.load(Ordering::Relaxed)), watched.faults.into_inner());
    println!("calls {turns:?}, faults {faults}");
    assert!(faults > 0, "nobody noticed");
    put_right(arena);
    for _ in 0..4 {
        producer.publish();
        producer.wait_for_room();
        drain(&mut consumer);
    }
    assert_carries(&mut producer, &mut consumer);
    for (from, to) in [(1, 2), (1, 3), (3, 1), (2, 3)] {
        assert_ports_carry(&mut shards, &mut guests, from, to);
    }
}
