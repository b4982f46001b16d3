//! Frames a second through a lane, from one process to another: `lane_speed BYTES SECONDS`, as bench/ring.c does it.
//!
//! The producer copies each frame in, the consumer copies it out; both publish once in `BATCH`, sleep and ring as a
//! worker does. The lane may take 4 MiB, and begins smaller.

use std::hint::black_box;
use std::time::{Duration, Instant};

use _core::arena::Arena;
use _core::lane::{Consumer, FORWARD, FRAME_LEAST, FRAME_MOST, HEADROOM, Label, Producer};
use _core::ports::Worker;
use _core::{sys, testing};

const BATCH: usize = 32;
const LANE: u64 = 4 << 20;
const FROM: Worker = 0;
const TO: Worker = 1;

fn main() {
    let mut arguments = std::env::args().skip(1);
    let bytes: usize = arguments.next().and_then(|text| text.parse().ok()).unwrap_or(0);
    let seconds: f64 = arguments.next().and_then(|text| text.parse().ok()).unwrap_or(0.0);
    if !(FRAME_LEAST..=FRAME_MOST).contains(&bytes) || seconds <= 0.0 {
        eprintln!("usage: lane_speed BYTES SECONDS ({FRAME_LEAST} to {FRAME_MOST} bytes)");
        std::process::exit(2);
    }
    let arena = testing::arena(LANE);
    let bells = [bell(), bell()];
    // SAFETY: this process has one thread; the child touches nothing but the arena and the bells.
    match unsafe { libc::fork() } {
        -1 => panic!("fork: {}", std::io::Error::last_os_error()),
        0 => produce(arena, bells, bytes),
        child => {
            println!("{:.0}", consume(arena, bells, Duration::from_secs_f64(seconds)));
            // SAFETY: our own child.
            unsafe {
                libc::kill(child, libc::SIGKILL);
                libc::waitpid(child, std::ptr::null_mut(), 0);
            }
        }
    }
}

/// A doorbell; to `hush` it is to wait for it.
fn bell() -> i32 {
    // SAFETY: no memory is passed.
    let fd = unsafe { libc::eventfd(0, 0) };
    assert!(fd >= 0, "eventfd: {}", std::io::Error::last_os_error());
    fd
}

fn produce(arena: &'static Arena, bells: [i32; 2], bytes: usize) -> ! {
    // SAFETY: no memory is passed. A consumer that is killed shall not leave us behind.
    unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
    let frame = vec![0x5au8; HEADROOM + bytes];
    let label = Label { len: bytes as u32, stamp: 0, from: 1, to: 2, vlan: 0, kind: FORWARD };
    let mut lane = Producer::new(arena, FROM, TO);
    loop {
        // SAFETY: `frame` has room for a header before, and `bytes` behind.
        let full = (0..BATCH).any(|_| !unsafe { lane.push(label, frame.as_ptr().add(HEADROOM)) }.expect("memory for the lane"));
        if lane.publish() && arena.worker(TO).sleeping.must_ring() {
            sys::ring(bells[usize::from(TO)]);
        }
        while full && !lane.wait_for_room() {
            sys::hush(bells[usize::from(FROM)]);
        }
    }
}

/// Frames a second, from the first one on.
fn consume(arena: &'static Arena, bells: [i32; 2], span: Duration) -> f64 {
    let mut lane = Consumer::new(arena, FROM, TO);
    let mut frame = vec![0u8; FRAME_MOST];
    let (mut frames, mut began) = (0u64, None);
    loop {
        let mut taken = 0;
        while taken < BATCH
            && let Some(entry) = lane.peek().expect("a producer of our own")
        {
            // SAFETY: `peek` checked that the frame lies in the lane and is no longer than FRAME_MOST.
            unsafe { std::ptr::copy_nonoverlapping(entry.frame, frame.as_mut_ptr(), entry.label.len as usize) };
            black_box(&mut frame);
            lane.take(&entry.label);
            taken += 1;
        }
        if lane.release() {
            sys::ring(bells[usize::from(FROM)]);
        }
        frames += taken as u64;
        if taken == 0 {
            let sleeping = &arena.worker(TO).sleeping;
            sleeping.announce();
            if !lane.has_more() {
                sys::hush(bells[usize::from(TO)]);
            }
            sleeping.awake();
            continue;
        }
        let took = began.get_or_insert_with(Instant::now).elapsed();
        if took >= span {
            return frames as f64 / took.as_secs_f64();
        }
    }
}
