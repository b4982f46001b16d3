//! What a lane carries between two processes: `cargo run --release --no-default-features --example lane_speed BYTES SECONDS`.
//!
//! Prints frames a second and GB a second. Batches of 32, a copy in and a copy out, sleep in a read of the doorbell, a lane of 4 MiB: what
//! `bench/ring.c` does without a lane, to stand beside it. It is filled before the clock starts, as a lane begins smaller.

use std::hint::black_box;
use std::os::fd::RawFd;
use std::time::{Duration, Instant};

use _core::arena::Arena;
use _core::lane::{Consumer, FRAME_LEAST, FRAME_MOST, Label, Producer};
use _core::ports::Worker;
use _core::sys;
use _core::testing::{self, Child};

const BATCH: usize = 32;
const LANE: u64 = 4 << 20;
const FROM: Worker = 0;
const TO: Worker = 1;

/// A frame on a cache line's begin, as ring.c has it, with room before it for a virtio-net header.
#[repr(align(64))]
struct Frame([u8; ROOM + FRAME_MOST]);

const ROOM: usize = 64;

impl Frame {
    fn new() -> Box<Frame> {
        Box::new(Frame([0; ROOM + FRAME_MOST]))
    }

    fn start(&mut self) -> *mut u8 {
        self.0[ROOM..].as_mut_ptr()
    }
}

/// The doorbells of both workers.
struct Bells {
    arena: &'static Arena,
    fds: Vec<RawFd>,
}

impl Bells {
    fn sleep_unless(&self, me: Worker, ready: impl FnOnce() -> bool) {
        let sleeping = &self.arena.worker(me).sleeping;
        sleeping.announce();
        if !ready() {
            let mut count = 0u64;
            // SAFETY: eight writable bytes.
            unsafe { sys::read(self.fds[usize::from(me)], (&raw mut count).cast(), 8) }.expect("an eventfd can be read");
        }
        sleeping.awake();
    }

    fn ring(&self, worker: Worker) {
        if self.arena.worker(worker).sleeping.must_ring() {
            sys::ring(self.fds[usize::from(worker)]);
        }
    }
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (Some(bytes), Some(seconds)) = (argument(&arguments, 0), argument(&arguments, 1)) else {
        eprintln!("usage: lane_speed BYTES SECONDS");
        std::process::exit(2);
    };
    let len = bytes as usize;
    if !(FRAME_LEAST..=FRAME_MOST).contains(&len) {
        eprintln!("lane_speed: {len} bytes: {FRAME_LEAST} to {FRAME_MOST}");
        std::process::exit(2);
    }
    let arena = testing::arena(LANE);
    let bells = Bells { arena, fds: testing::bells(2, 0) };
    let producer = Child::run(|| produce(Producer::new(arena, FROM, TO), &bells, len));
    let rate = consume(Consumer::new(arena, FROM, TO), &bells, len, Duration::from_secs_f64(seconds));
    producer.kill();
    println!("{rate:.0} frames/s {:.2} GB/s", rate * bytes / 1e9);
}

fn argument(arguments: &[String], index: usize) -> Option<f64> {
    arguments.get(index)?.parse().ok()
}

fn produce(mut lane: Producer, bells: &Bells, len: usize) {
    let mut frame = Frame::new();
    let label = Label { len: len as u32, ..Label::default() };
    loop {
        let mut room = true;
        for _ in 0..BATCH {
            // SAFETY: `frame` has a header's room before the frame.
            room = unsafe { lane.push(label, frame.start()) }.expect("memory for a lane");
            if !room {
                break;
            }
        }
        if lane.publish() {
            bells.ring(TO);
        }
        if !room {
            bells.sleep_unless(FROM, || lane.wait_for_room());
        }
    }
}

fn consume(mut lane: Consumer, bells: &Bells, len: usize, time: Duration) -> f64 {
    let mut frame = Frame::new();
    let mut frames = 0u64;
    let mut begin = None;
    loop {
        let mut got = 0;
        while got < BATCH
            && let Some(entry) = lane.peek().expect("an honest producer")
        {
            let len = entry.label.len as usize;
            // SAFETY: the frame has `len` bytes, and so much room is here.
            unsafe { std::ptr::copy_nonoverlapping(entry.frame, frame.start(), len) };
            black_box(&frame);
            lane.take(&entry.label);
            got += 1;
        }
        if lane.release() {
            bells.ring(FROM);
        }
        if got == 0 {
            bells.sleep_unless(TO, || lane.has_more());
        }
        frames += got as u64;
        let Some(begin) = begin else {
            // Four times what the lane holds went by: it is as large as it will be.
            if frames > 4 * LANE / len as u64 {
                (begin, frames) = (Some(Instant::now()), 0);
            }
            continue;
        };
        let elapsed = Instant::now() - begin;
        if elapsed >= time {
            return frames as f64 / elapsed.as_secs_f64();
        }
    }
}
