//! Two processes and a lane between them: ten million frames, each byte of which follows from the frame's number.

use _core::lane::{CLAIM, Consumer, FRAME_LEAST, FRAME_MOST, Label, Producer, RECORD_HEADER, VNET_LEN};
use _core::ports::Worker;
use _core::testing::{self, Child, Sleeper};

const FRAMES: u64 = 10_000_000;
const BATCH: u64 = 64;
const FROM: Worker = 0;
const TO: Worker = 1;

fn mix(number: u64) -> u64 {
    let x = (number ^ number >> 31).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    x ^ x >> 29
}

/// Small ones for the most part, and some of every kind.
fn length(number: u64) -> usize {
    let (kind, rest) = (mix(number) % 2000, (mix(number) >> 20) as usize);
    match kind {
        0 => FRAME_LEAST + rest % (FRAME_MOST - FRAME_LEAST + 1),
        1..20 => 1515 + rest % 7500,
        20..200 => 128 + rest % 1387,
        _ => FRAME_LEAST + rest % 115,
    }
}

fn label(number: u64) -> Label {
    let of = mix(!number);
    Label { len: length(number) as u32, from: of as u16 % 1024, to: (of >> 10) as u16 % 1024, vlan: (of >> 20) as u16, kind: 0 }
}

/// A virtio-net header and a frame: any two numbers within 4,096 of each other have others.
fn content(pattern: &[u8], number: u64) -> &[u8] {
    &pattern[mix(number) as usize % 61 * 64 + number as usize % 4096..][..VNET_LEN + length(number)]
}

fn produce(mut lane: Producer, sleeper: &Sleeper, pattern: &[u8]) {
    for number in 0..FRAMES {
        let at = loop {
            match lane.claim(CLAIM).expect("memory for a lane") {
                Some(at) => break at,
                None => {
                    if lane.publish() {
                        sleeper.ring(TO);
                    }
                    sleeper.sleep_unless(|| lane.wait_for_room());
                }
            }
        };
        let content = content(pattern, number);
        // SAFETY: a claim has room for any frame.
        unsafe { std::ptr::copy_nonoverlapping(content.as_ptr(), at.add(RECORD_HEADER), content.len()) };
        lane.commit(label(number));
        if number % BATCH == 0 && lane.publish() {
            sleeper.ring(TO);
        }
    }
    if lane.publish() {
        sleeper.ring(TO);
    }
}

fn consume(mut lane: Consumer, sleeper: &Sleeper, pattern: &[u8]) {
    let mut number = 0;
    while number < FRAMES {
        let mut left = BATCH;
        while left != 0
            && let Some(entry) = lane.peek().expect("an honest producer")
        {
            assert_eq!(entry.label, label(number), "frame {number}");
            // SAFETY: the frame has this length, its header before it, and its producer is done with it.
            let bytes = unsafe { std::slice::from_raw_parts(entry.frame.sub(VNET_LEN), VNET_LEN + entry.label.len as usize) };
            assert!(bytes == content(pattern, number), "frame {number} of {} bytes was changed", entry.label.len);
            lane.take(&entry.label);
            number += 1;
            left -= 1;
        }
        if lane.release() {
            sleeper.ring(FROM);
        }
        if left == BATCH {
            sleeper.sleep_unless(|| lane.has_more());
        }
    }
    assert!(!lane.has_more(), "more came than was sent");
}

#[test]
fn ten_million_frames_reach_another_process_unchanged_and_in_order() {
    let pattern: Vec<u8> = (0..FRAME_MOST as u64 + 10_000).map(|at| (mix(at) >> 40) as u8).collect();
    let arena = testing::arena(4 << 20);
    let bells = testing::bells(2, libc::EFD_NONBLOCK);
    let producer = Child::run(|| produce(Producer::new(arena, FROM, TO), &Sleeper::new(arena, FROM, &bells), &pattern));
    consume(Consumer::new(arena, FROM, TO), &Sleeper::new(arena, TO, &bells), &pattern);
    assert_eq!(producer.end(), Ok(0));
    let control = arena.control(FROM, TO);
    assert_eq!((control.pushed(), control.popped()), (FRAMES, FRAMES));
}
