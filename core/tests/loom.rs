//! The protocols between two workers in every order that the memory model allows: `RUSTFLAGS="--cfg loom" cargo test --release
//! --no-default-features --test loom`.
//!
//! The bytes of a ring are cells of loom's, one for each GRAIN, so that a byte which both sides may touch at once is found. An eventfd is a
//! `Notify`: where a wake-up is lost, no thread can go on, and loom says so.

#![cfg(loom)]

use _core::bell::Sleeping;
use _core::index::{Bounds, Control, GRAIN, Head, Tail};
use loom::cell::UnsafeCell;
use loom::sync::atomic::AtomicU64;
use loom::sync::{Arc, Notify};
use loom::thread;
use std::sync::atomic::Ordering;

const BOUNDS: Bounds = Bounds { least: GRAIN, most: 4 * GRAIN };

/// All orders with at most three preemptions, where all orders at all would be minutes.
fn model_bounded(model: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(3);
    builder.check(model);
}

struct Ring {
    control: Control,
    cells: Vec<UnsafeCell<u64>>,
    /// Rung for the producer when there is room.
    room: Notify,
    /// Rung for the consumer when there are records.
    mail: Notify,
    sleeping: Sleeping,
}

// SAFETY: what keeps the two sides apart in the cells is what is tested here.
unsafe impl Sync for Ring {}
// SAFETY: as above.
unsafe impl Send for Ring {}

impl Ring {
    fn new(capacity: u64) -> (Arc<Ring>, Tail) {
        let cells = (0..BOUNDS.most / GRAIN).map(|_| UnsafeCell::new(0)).collect();
        let ring = Ring { control: Control::default(), cells, room: Notify::new(), mail: Notify::new(), sleeping: Sleeping::default() };
        let mut tail = Tail::resume(&ring.control, BOUNDS);
        tail.resize(&ring.control, capacity);
        (Arc::new(ring), tail)
    }

    fn cell(&self, position: u64, capacity: u64) -> &UnsafeCell<u64> {
        &self.cells[(position % capacity / GRAIN) as usize]
    }

    fn write(&self, tail: &mut Tail, value: u64) {
        // SAFETY: loom checks it.
        self.cell(tail.next, tail.capacity).with_mut(|cell| unsafe { *cell = value });
        tail.reserve(&self.control, GRAIN);
    }

    /// The value at the head, if there is one.
    fn read(&self, head: &mut Head) -> Option<u64> {
        if head.known() == 0 {
            head.look(&self.control, BOUNDS).expect("an honest producer");
        }
        if head.known() == 0 {
            return None;
        }
        // SAFETY: loom checks it.
        let value = self.cell(head.cursor, head.capacity).with(|cell| unsafe { *cell });
        head.take(&self.control, GRAIN);
        Some(value)
    }

    fn write_when_there_is_room(&self, tail: &mut Tail, value: u64) {
        while !tail.room(&self.control, GRAIN) {
            thread::yield_now();
        }
        self.write(tail, value);
    }

    /// Read until `last` came, checking that the values come in order; `batch` are released at once.
    fn read_up_to(&self, last: u64, batch: u64) {
        let mut head = Head::resume(&self.control);
        let mut expected = 1;
        while expected <= last {
            match self.read(&mut head) {
                Some(value) => {
                    assert_eq!(value, expected);
                    expected += 1;
                    if value % batch == 0 {
                        head.release(&self.control);
                    }
                }
                None => {
                    head.release(&self.control);
                    thread::yield_now();
                }
            }
        }
        head.release(&self.control);
    }

    fn assert_all_is_counted(&self, records: u64) {
        assert_eq!((self.control.pushed(), self.control.popped()), (records, records));
        assert_eq!(self.control.consumer_notes.faults.load(Ordering::Relaxed), 0);
    }
}

#[test]
fn records_arrive_whole_and_in_order_round_the_end_of_the_ring() {
    loom::model(|| {
        let (ring, mut tail) = Ring::new(2 * GRAIN);
        let producer = thread::spawn({
            let ring = ring.clone();
            move || {
                for value in 1..=3 {
                    ring.write_when_there_is_room(&mut tail, value);
                    tail.publish(&ring.control);
                }
            }
        });
        ring.read_up_to(3, 1);
        producer.join().unwrap();
        ring.assert_all_is_counted(3);
    });
}

#[test]
fn records_published_and_released_in_batches_arrive_too() {
    loom::model(|| {
        let (ring, mut tail) = Ring::new(2 * GRAIN);
        let producer = thread::spawn({
            let ring = ring.clone();
            move || {
                for pair in 0..2 {
                    for value in 1..=2 {
                        ring.write_when_there_is_room(&mut tail, 2 * pair + value);
                    }
                    tail.publish(&ring.control);
                }
            }
        });
        ring.read_up_to(4, 2);
        producer.join().unwrap();
        ring.assert_all_is_counted(4);
    });
}

#[test]
fn a_record_is_not_seen_before_it_is_published() {
    loom::model(|| {
        let (ring, mut tail) = Ring::new(2 * GRAIN);
        let consumer = thread::spawn({
            let ring = ring.clone();
            move || Ring::read(&ring, &mut Head::resume(&ring.control))
        });
        ring.write(&mut tail, 1);
        assert_eq!(consumer.join().unwrap(), None);
    });
}

#[test]
fn the_capacity_changes_while_the_lane_is_empty_and_no_byte_is_met_by_both() {
    loom::model(|| {
        let (ring, mut tail) = Ring::new(GRAIN);
        let producer = thread::spawn({
            let ring = ring.clone();
            move || {
                ring.write_when_there_is_room(&mut tail, 1);
                tail.publish(&ring.control);
                while !tail.is_empty(&ring.control) {
                    thread::yield_now();
                }
                tail.resize(&ring.control, 2 * GRAIN);
                for value in 2..=3 {
                    ring.write_when_there_is_room(&mut tail, value);
                    tail.publish(&ring.control);
                }
            }
        });
        ring.read_up_to(3, 1);
        producer.join().unwrap();
        ring.assert_all_is_counted(3);
    });
}

#[test]
fn a_producer_that_waits_for_room_is_woken() {
    loom::model(|| {
        let (ring, mut tail) = Ring::new(GRAIN);
        let producer = thread::spawn({
            let ring = ring.clone();
            move || {
                for value in 1..=2 {
                    while !tail.room(&ring.control, GRAIN) && !tail.wait_for_room(&ring.control, GRAIN) {
                        ring.room.wait();
                    }
                    ring.write(&mut tail, value);
                    tail.publish(&ring.control);
                }
            }
        });
        let mut head = Head::resume(&ring.control);
        let mut read = 0;
        while read < 2 {
            match ring.read(&mut head) {
                Some(_) => read += 1,
                None => thread::yield_now(),
            }
            if head.release(&ring.control) {
                ring.room.notify();
            }
        }
        producer.join().unwrap();
    });
}

#[test]
fn a_consumer_that_sleeps_is_woken_by_the_record_that_came_meanwhile() {
    model_bounded(|| {
        let (ring, mut tail) = Ring::new(2 * GRAIN);
        let producer = thread::spawn({
            let ring = ring.clone();
            move || {
                for value in 1..=2 {
                    ring.write(&mut tail, value);
                    if tail.publish(&ring.control) && ring.sleeping.must_ring() {
                        ring.mail.notify();
                    }
                }
            }
        });
        let mut head = Head::resume(&ring.control);
        let mut read = 0;
        while read < 2 {
            if ring.read(&mut head).is_some() {
                read += 1;
                continue;
            }
            ring.sleeping.announce();
            if !head.has_news(&ring.control) {
                ring.mail.wait();
            }
            ring.sleeping.awake();
        }
        producer.join().unwrap();
    });
}

#[test]
fn one_bell_serves_two_producers_and_no_wake_up_is_lost() {
    struct Worker {
        lanes: [AtomicU64; 2],
        sleeping: Sleeping,
        bell: Notify,
        /// Outside of the model.
        rings: std::sync::atomic::AtomicU64,
    }

    model_bounded(|| {
        let worker = Arc::new(Worker {
            lanes: [AtomicU64::new(0), AtomicU64::new(0)],
            sleeping: Sleeping::default(),
            bell: Notify::new(),
            rings: 0.into(),
        });
        let producers = [0, 1].map(|lane| {
            let worker = worker.clone();
            thread::spawn(move || {
                worker.lanes[lane].store(1, Ordering::Release);
                if worker.sleeping.must_ring() {
                    worker.rings.fetch_add(1, Ordering::Relaxed);
                    worker.bell.notify();
                }
            })
        });
        let published = || worker.lanes.iter().map(|lane| lane.load(Ordering::Acquire)).sum::<u64>();
        let (mut seen, mut sleeps) = (0, 0);
        while seen < 2 {
            seen = published();
            if seen == 2 {
                break;
            }
            worker.sleeping.announce();
            sleeps += 1;
            if published() == seen {
                worker.bell.wait();
            }
            worker.sleeping.awake();
        }
        for producer in producers {
            producer.join().unwrap();
        }
        assert!(worker.rings.load(Ordering::Relaxed) <= sleeps, "a bell is rung once a sleep");
    });
}
