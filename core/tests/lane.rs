//! What a lane does with records of every size, round its end, full, empty, growing, and when either side dies at any step.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};

use _core::arena::{Arena, LANE_LEAST};
use _core::index::Control;
use _core::lane::{self, CLAIM, Consumer, FRAME_LEAST, FRAME_MOST, HEADROOM, Label, Producer, RECORD_HEADER, VNET_LEN};
use _core::ports::Worker;
use _core::testing;
use proptest::prelude::*;

const LANE_MOST: u64 = 1 << 20;

/// What a record of this length takes in a lane.
fn size(len: usize) -> u64 {
    (HEADROOM + len).next_multiple_of(4) as u64
}

/// Bytes of which each record carries a different part.
fn pattern() -> &'static [u8] {
    static PATTERN: std::sync::LazyLock<Vec<u8>> =
        std::sync::LazyLock::new(|| (0..FRAME_MOST as u32 + 8192).map(|at| (at.wrapping_mul(0x9e37_79b1) >> 23) as u8).collect());
    &PATTERN
}

/// The virtio-net header and the frame of record `number`.
fn content(number: usize, len: usize) -> &'static [u8] {
    &pattern()[number % 8000..][..VNET_LEN + len]
}

fn label(number: usize, len: usize) -> Label {
    Label { len: len as u32, from: number as u16 % 1024, to: 1023, vlan: 0xc000 | (number as u16 % 4096), kind: number as u16 % 3 }
}

/// Both ends of a lane in one process, and what should be in it.
struct Lane {
    arena: &'static Arena,
    from: Worker,
    to: Worker,
    producer: Producer,
    consumer: Consumer,
    /// Number and length of the records that were written and not yet taken.
    inside: VecDeque<(usize, usize)>,
    /// How many of them, from the back, are not published.
    unpublished: usize,
    /// Bytes written and not freed.
    used: u64,
    /// Bytes taken and not freed.
    taken: u64,
    next: usize,
    pushed: u64,
    popped: u64,
    taken_records: u64,
    refused: u64,
}

impl Lane {
    /// A lane that nobody used before.
    fn new() -> Lane {
        static ARENA: std::sync::LazyLock<&Arena> = std::sync::LazyLock::new(|| testing::arena(LANE_MOST));
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let lane = NEXT.fetch_add(1, Ordering::Relaxed);
        let (from, to) = ((lane / 64) as Worker, (lane % 64) as Worker);
        let arena = *ARENA;
        let (producer, consumer) = (Producer::new(arena, from, to), Consumer::new(arena, from, to));
        let inside = VecDeque::new();
        Lane {
            arena,
            from,
            to,
            producer,
            consumer,
            inside,
            unpublished: 0,
            used: 0,
            taken: 0,
            next: 0,
            pushed: 0,
            popped: 0,
            taken_records: 0,
            refused: 0,
        }
    }

    fn control(&self) -> &'static Control {
        self.arena.control(self.from, self.to)
    }

    fn capacity(&self) -> u64 {
        self.control().producer.capacity.load(Ordering::Relaxed)
    }

    /// Write a record by copying; true where there was room.
    fn push(&mut self, len: usize) -> bool {
        let content = content(self.next, len);
        // SAFETY: `content` has the header before the frame.
        let pushed = unsafe { self.producer.push(label(self.next, len), content.as_ptr().add(VNET_LEN)) }.unwrap();
        if pushed {
            self.written(len);
        } else {
            self.refused += 1;
        }
        pushed
    }

    /// Write a record in place, as a read from a descriptor does.
    fn claim_and_commit(&mut self, len: usize) -> bool {
        let Some(at) = self.producer.claim(CLAIM).unwrap() else { return false };
        let content = content(self.next, len);
        // SAFETY: a claim has room for any frame.
        unsafe { std::ptr::copy_nonoverlapping(content.as_ptr(), at.add(RECORD_HEADER), content.len()) };
        self.producer.commit(label(self.next, len));
        self.written(len);
        true
    }

    fn written(&mut self, len: usize) {
        self.inside.push_back((self.next, len));
        self.next += 1;
        self.unpublished += 1;
        self.used += size(len);
    }

    fn publish(&mut self) {
        assert_eq!(self.producer.publish(), self.unpublished != 0);
        self.pushed += std::mem::take(&mut self.unpublished) as u64;
    }

    /// Look at the oldest record and compare all of it; None where there is none to be seen.
    fn peek(&mut self) -> Option<Label> {
        let entry = self.consumer.peek().expect("an honest producer");
        let expected = self.inside.front().filter(|_| self.inside.len() > self.unpublished);
        let Some(entry) = entry else {
            assert_eq!(expected, None, "a published record is not seen");
            return None;
        };
        let &(number, len) = expected.expect("a record that nobody wrote");
        assert_eq!(entry.label, label(number, len));
        // SAFETY: the frame and its header lie in the lane, and this process alone writes there.
        let bytes = unsafe { std::slice::from_raw_parts(entry.frame.sub(VNET_LEN), VNET_LEN + len) };
        assert!(bytes == content(number, len), "record {number} of {len} bytes was changed");
        Some(entry.label)
    }

    fn take(&mut self) -> bool {
        let Some(label) = self.peek() else { return false };
        self.consumer.take(&label);
        self.inside.pop_front();
        self.taken += size(label.len as usize);
        self.taken_records += 1;
        true
    }

    fn release(&mut self) {
        self.consumer.release();
        self.used -= std::mem::take(&mut self.taken);
        self.popped += std::mem::take(&mut self.taken_records);
    }

    fn drain(&mut self) {
        while self.take() {}
        self.release();
    }

    /// The producer dies, the supervisor repairs, a successor starts.
    fn replace_producer(&mut self) {
        lane::mend_producer(self.arena, self.from, self.to);
        self.pushed += std::mem::take(&mut self.unpublished) as u64;
        self.producer = Producer::new(self.arena, self.from, self.to);
    }

    fn replace_consumer(&mut self) {
        lane::mend_consumer(self.arena, self.from, self.to);
        self.used -= std::mem::take(&mut self.taken);
        self.popped += std::mem::take(&mut self.taken_records);
        self.consumer = Consumer::new(self.arena, self.from, self.to);
    }

    fn assert_counted(&self) {
        let control = self.control();
        let queued = self.inside.len() - self.unpublished + self.taken_records as usize;
        assert_eq!((control.pushed(), control.popped()), (self.pushed, self.popped));
        assert_eq!(control.pushed(), control.popped() + queued as u64);
        assert_eq!(control.producer_notes.refused.load(Ordering::Relaxed), self.refused);
        assert_eq!(control.consumer_notes.faults.load(Ordering::Relaxed), 0);
    }
}

#[test]
fn a_record_of_every_size_passes_unchanged() {
    let mut lane = Lane::new();
    for len in FRAME_LEAST..=FRAME_MOST {
        assert!(lane.push(len));
        lane.publish();
        assert!(lane.take());
        lane.release();
    }
    lane.assert_counted();
}

#[test]
fn a_record_of_every_size_passes_unchanged_when_it_is_read_in_place() {
    let mut lane = Lane::new();
    for len in (FRAME_LEAST..=FRAME_MOST).rev() {
        assert!(lane.claim_and_commit(len));
        lane.publish();
        assert!(lane.take());
        lane.release();
    }
    lane.assert_counted();
}

#[test]
fn a_full_lane_refuses_the_record_and_counts_it_and_grows_once_it_has_run_empty() {
    let mut lane = Lane::new();
    for expected in [LANE_LEAST, 4 * LANE_LEAST, LANE_MOST, LANE_MOST] {
        let mut records = 0;
        while lane.push(1514) {
            records += 1;
        }
        assert_eq!(lane.capacity(), expected);
        assert_eq!(records, expected / size(1514));
        lane.publish();
        lane.drain();
        lane.assert_counted();
    }
}

#[test]
fn a_lane_does_not_grow_while_a_record_is_in_it() {
    let mut lane = Lane::new();
    while lane.push(60_000) {}
    lane.publish();
    while lane.inside.len() > 1 {
        assert!(lane.take());
    }
    lane.release();
    assert!(!lane.producer.has_room(), "a lane that is to grow waits until it is empty");
    assert!(lane.push(14) && lane.capacity() == LANE_LEAST);
    lane.publish();
    lane.drain();
    assert!(lane.producer.has_room());
    assert_eq!(lane.capacity(), 4 * LANE_LEAST);
}

#[test]
fn a_claim_that_is_not_committed_leaves_nothing() {
    let mut lane = Lane::new();
    for _ in 0..100_000 {
        assert!(lane.producer.claim(CLAIM).unwrap().is_some());
    }
    assert!(!lane.producer.publish());
    assert!(!lane.take());
    lane.assert_counted();
}

#[test]
fn a_consumer_rings_for_the_producer_that_waits_once_half_of_the_lane_is_free() {
    let mut lane = Lane::new();
    while lane.push(1514) {}
    lane.publish();
    assert!(!lane.producer.wait_for_room());
    let mut bells = Vec::new();
    while lane.take() {
        let free = lane.taken + LANE_LEAST - lane.used;
        if lane.consumer.release() {
            bells.push(free);
        }
        lane.release();
    }
    let half = LANE_LEAST / 2;
    assert!(bells.len() == 1 && (half..half + 2 * size(1514)).contains(&bells[0]), "rung with {bells:?} bytes free");
}

#[test]
fn a_lane_has_news_from_the_publishing_of_a_record_until_it_is_taken() {
    let mut lane = Lane::new();
    assert!(!lane.consumer.has_more());
    lane.push(64);
    assert!(!lane.consumer.has_more());
    lane.publish();
    assert!(lane.consumer.has_more());
    lane.take();
    assert!(!lane.consumer.has_more());
}

#[test]
fn the_death_of_a_producer_at_any_step_loses_nothing_that_was_written() {
    let steps: [fn(&mut Lane); 5] = [
        |lane| drop(lane.producer.claim(CLAIM)),
        |lane| assert!(lane.claim_and_commit(1000)),
        |lane| assert!(lane.push(14) && lane.push(65_562) && lane.push(777)),
        |lane| {
            // In the midst of `publish`: the number is noted, the tail is as it was.
            assert!(lane.push(500) && lane.push(600));
            let control = lane.control();
            let (tail, reserved) = (&control.producer.tail, &control.producer_notes.reserved);
            control.producer_notes.pushed.note(tail.load(Ordering::Relaxed), reserved.load(Ordering::Relaxed), lane.pushed + 2);
        },
        |lane| {
            assert!(lane.push(700));
            lane.publish();
        },
    ];
    for step in steps {
        let mut lane = Lane::new();
        for round in 0..3_000 {
            assert!(lane.push(20 + round % 300));
            if round % 3 == 0 {
                lane.publish();
            }
            if round % 7 == 0 {
                step(&mut lane);
                lane.replace_producer();
            }
            lane.assert_counted();
            if round % 5 == 0 {
                lane.drain();
            }
        }
        lane.publish();
        lane.drain();
        assert!(lane.inside.is_empty());
    }
}

#[test]
fn the_death_of_a_consumer_at_any_step_delivers_nothing_twice_and_loses_nothing() {
    let steps: [fn(&mut Lane); 5] = [
        |lane| assert!(lane.peek().is_some()),
        |lane| assert!(lane.take()),
        |lane| assert!(lane.take() && lane.take() && lane.take()),
        |lane| {
            // In the midst of `release`: the number is noted, the head is as it was.
            assert!(lane.take() && lane.take());
            let control = lane.control();
            let (head, cursor) = (&control.consumer.head, &control.consumer_notes.cursor);
            let popped = lane.popped + lane.taken_records;
            control.consumer_notes.popped.note(head.load(Ordering::Relaxed), cursor.load(Ordering::Relaxed), popped);
        },
        |lane| {
            assert!(lane.take());
            lane.release();
        },
    ];
    for step in steps {
        let mut lane = Lane::new();
        for round in 0..3_000 {
            for len in [14, 20 + round % 300, 1514, 65] {
                assert!(lane.push(len));
            }
            lane.publish();
            step(&mut lane);
            lane.replace_consumer();
            lane.assert_counted();
            lane.drain();
            lane.assert_counted();
        }
        assert!(lane.inside.is_empty());
    }
}

#[test]
fn a_producer_that_dies_between_growing_a_lane_and_writing_to_it_leaves_a_lane_that_works() {
    let mut lane = Lane::new();
    while lane.push(60_000) {}
    lane.publish();
    lane.drain();
    assert!(lane.producer.claim(CLAIM).unwrap().is_some());
    assert_eq!(lane.capacity(), 4 * LANE_LEAST);
    lane.replace_producer();
    for _ in 0..1000 {
        assert!(lane.push(60_000));
        lane.publish();
        lane.drain();
    }
    lane.assert_counted();
}

#[test]
fn a_worker_that_sends_is_in_the_bitmap_of_its_receiver_though_another_took_it_out() {
    let mut lane = Lane::new();
    let senders = &lane.arena.worker(lane.to).senders.0;
    assert!(lane.push(64));
    senders.fetch_and(!(1 << lane.from), Ordering::Relaxed);
    lane.publish();
    assert_eq!(senders.load(Ordering::Relaxed) >> lane.from & 1, 1);
}

#[derive(Debug, Clone)]
enum Step {
    Push(usize),
    Commit(usize),
    Claim,
    Publish,
    Peek,
    Take(usize),
    Release,
    ReplaceProducer,
    ReplaceConsumer,
}

fn length() -> impl Strategy<Value = usize> {
    prop_oneof![FRAME_LEAST..100usize, 1000..1600usize, 30_000..=FRAME_MOST, Just(FRAME_LEAST), Just(FRAME_MOST)]
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => length().prop_map(Step::Push),
        8 => length().prop_map(Step::Commit),
        1 => Just(Step::Claim),
        4 => Just(Step::Publish),
        1 => Just(Step::Peek),
        8 => (1usize..8).prop_map(Step::Take),
        4 => Just(Step::Release),
        1 => Just(Step::ReplaceProducer),
        1 => Just(Step::ReplaceConsumer),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn whatever_both_sides_do_records_come_out_as_they_went_in(steps in prop::collection::vec(step(), 1..600)) {
        let mut lane = Lane::new();
        for step in steps {
            match step {
                Step::Push(len) => {
                    let had_room = lane.used + size(len) <= lane.capacity().max(LANE_LEAST);
                    let empty = lane.used == 0;
                    let pushed = lane.push(len);
                    prop_assert!(pushed == had_room || (pushed && empty), "a record is refused where there is no room, and only there");
                }
                Step::Commit(len) => drop(lane.claim_and_commit(len)),
                Step::Claim => drop(lane.producer.claim(CLAIM)),
                Step::Publish => lane.publish(),
                Step::Peek => drop(lane.peek()),
                Step::Take(count) => drop((0..count).take_while(|_| lane.take()).count()),
                Step::Release => lane.release(),
                Step::ReplaceProducer => lane.replace_producer(),
                Step::ReplaceConsumer => lane.replace_consumer(),
            }
            lane.assert_counted();
        }
        lane.publish();
        lane.drain();
        lane.assert_counted();
        prop_assert!(lane.inside.is_empty());
    }
}
