//! A worker that was taken over writes whatever it likes into the shared memory: the others neither crash nor loop, and go on when it is gone.
//!
//! `SHARDNET_HOSTILE_S=60` makes the random part a minute long; it is two seconds otherwise.

mod scribble;
mod under_attack;

use std::sync::atomic::Ordering;

use _core::arena::{Arena, LANE_LEAST};
use _core::index::{Bounds, Control, Head};
use _core::lane::{self, CLAIM, Consumer, Label, Producer};
use _core::ports::{Cause, Cell, Counter, Port, Worker};
use _core::repair;
use _core::sys::Mapping;
use _core::table::{Clock, Heard, Key, SLOTS};
use _core::testing::{self, Child};

const LANE_MOST: u64 = 1 << 20;

/// Words that something might not expect.
const WORDS: [u64; 14] = [
    0,
    1,
    4,
    7,
    LANE_LEAST - 1,
    LANE_LEAST,
    LANE_LEAST + 2,
    3 * LANE_LEAST,
    LANE_MOST,
    1 << 32,
    1 << 63,
    (1 << 63) + 4,
    u64::MAX - 3,
    u64::MAX,
];

fn push(producer: &mut Producer, len: usize) -> bool {
    let bytes = vec![7; len + 10];
    // SAFETY: a header and a frame.
    let pushed = unsafe { producer.push(Label { len: len as u32, ..Label::default() }, bytes.as_ptr().add(10)) };
    pushed.expect("memory for a lane")
}

/// Take all there is, as often as a worker's turns would; how many records those were.
fn drain(consumer: &mut Consumer) -> usize {
    let mut records = 0;
    for _ in 0..200_000 {
        match consumer.peek() {
            Ok(Some(entry)) => {
                consumer.take(&entry.label);
                records += 1;
            }
            Ok(None) if !consumer.has_more() => break,
            _ => {}
        }
        consumer.release();
    }
    consumer.release();
    assert!(!consumer.has_more(), "a consumer that never comes to rest");
    records
}

/// Both ends carry again: of records sent one by one, the last thousand arrive.
fn assert_carries(producer: &mut Producer, consumer: &mut Consumer) {
    let mut arrived = 0;
    for round in 0..2_000 {
        push(producer, 100);
        producer.publish();
        let records = drain(consumer);
        if round >= 1_000 {
            arrived += records;
        }
    }
    assert_eq!(arrived, 1_000);
}

#[test]
fn a_step_past_either_end_of_a_mapping_is_a_fault() {
    let file = testing::memory();
    file.set_len(1 << 20).unwrap();
    for times in [1, 2] {
        let fd = std::os::fd::AsRawFd::as_raw_fd(&file);
        let mapping = if times == 1 { Mapping::new(fd, 0, 1 << 20) } else { Mapping::twice(fd, 0, 1 << 20) }.unwrap();
        let (start, len) = (mapping.start() as usize, mapping.len());
        assert_eq!(len, times << 20);
        let touch = |at: usize| {
            // SAFETY: none; that it faults is what is asked.
            let child = Child::run(|| assert_eq!(unsafe { (at as *const u8).read_volatile() }, 0));
            child.end()
        };
        assert_eq!((touch(start), touch(start + len - 1)), (Ok(0), Ok(0)));
        for at in [start - 1, start - 4096, start - 65_536, start + len, start + len + 4095, start + len + 65_535] {
            assert_eq!(touch(at), Err(libc::SIGSEGV), "{} bytes from the start", at as i64 - start as i64);
        }
    }
}

/// Every word of a control block in turn, a new lane for each value.
fn words(control: &Control) -> usize {
    size_of_val(control) / 8
}

fn write(control: &Control, word: usize, value: u64) {
    // SAFETY: inside of the block, which is atomics and padding.
    unsafe { (&raw const *control).cast::<u64>().cast_mut().add(word).write_volatile(value) };
}

fn each_word(mut attack: impl FnMut(&'static Arena, Worker, Worker, &dyn Fn())) {
    let arena = testing::arena(LANE_MOST);
    let mut lane = 0;
    for word in 0..words(arena.control(0, 0)) {
        for value in WORDS {
            let (from, to) = ((lane / 64 % 64) as Worker, (lane % 64) as Worker);
            lane += 1;
            attack(arena, from, to, &|| write(arena.control(from, to), word, value));
        }
    }
}

#[test]
fn two_sides_at_work_survive_any_word_and_carry_again() {
    each_word(|arena, from, to, attack| {
        let (mut producer, mut consumer) = (Producer::new(arena, from, to), Consumer::new(arena, from, to));
        for _ in 0..3 {
            push(&mut producer, 1000);
            producer.publish();
            drain(&mut consumer);
            push(&mut producer, 1000);
            attack();
            push(&mut producer, 1000);
            producer.publish();
            drain(&mut consumer);
        }
        assert_carries(&mut producer, &mut consumer);
    });
}

#[test]
fn a_full_lane_survives_any_word_and_carries_again() {
    each_word(|arena, from, to, attack| {
        let (mut producer, mut consumer) = (Producer::new(arena, from, to), Consumer::new(arena, from, to));
        while push(&mut producer, 60_000) {}
        producer.publish();
        attack();
        for _ in 0..4 {
            producer.wait_for_room();
            drain(&mut consumer);
        }
        assert_carries(&mut producer, &mut consumer);
    });
}

#[test]
fn successors_survive_any_word_that_they_find_and_carry() {
    each_word(|arena, from, to, attack| {
        let (mut producer, mut consumer) = (Producer::new(arena, from, to), Consumer::new(arena, from, to));
        push(&mut producer, 1000);
        producer.publish();
        drain(&mut consumer);
        push(&mut producer, 1000);
        attack();
        lane::mend_producer(arena, from, to);
        let mut producer = Producer::new(arena, from, to);
        push(&mut producer, 1000);
        producer.publish();
        drain(&mut consumer);
        attack();
        lane::mend_consumer(arena, from, to);
        let mut consumer = Consumer::new(arena, from, to);
        for _ in 0..4 {
            producer.has_room();
            drain(&mut consumer);
        }
        assert_carries(&mut producer, &mut consumer);
    });
}

#[test]
fn repair_does_not_walk_round_a_ring_for_ever() {
    let arena = testing::arena(LANE_MOST);
    let mut producer = Producer::new(arena, 0, 1);
    while push(&mut producer, 1000) {}
    producer.publish();
    let control = arena.control(0, 1);
    // Whatever lies there looks like records, the way round and on.
    control.producer.tail.store(1 << 62, Ordering::Relaxed);
    control.consumer_notes.cursor.store(1 << 61, Ordering::Relaxed);
    control.producer_notes.reserved.store((1 << 62) + (1 << 40), Ordering::Relaxed);
    lane::mend_consumer(arena, 0, 1);
    lane::mend_producer(arena, 0, 1);
    assert_eq!(control.consumer.head.load(Ordering::Relaxed), 0);
}

#[test]
fn a_lie_is_a_fault_once_and_counted() {
    let arena = testing::arena(LANE_MOST);
    let (mut producer, mut consumer) = (Producer::new(arena, 0, 1), Consumer::new(arena, 0, 1));
    push(&mut producer, 100);
    let control = arena.control(0, 1);
    control.producer.tail.store(LANE_MOST * 2, Ordering::Relaxed);
    assert!(consumer.has_more() && consumer.peek().is_err());
    assert!(!consumer.has_more() && matches!(consumer.peek(), Ok(None)));
    assert_eq!(control.consumer_notes.faults.load(Ordering::Relaxed), 1);
}

#[test]
fn a_position_that_is_no_multiple_of_the_grain_is_refused_before_it_is_used() {
    let control = Control::default();
    let bounds = Bounds { least: LANE_LEAST, most: LANE_MOST };
    control.producer.capacity.store(LANE_LEAST, Ordering::Relaxed);
    for tail in 1..4 {
        control.producer.tail.store(tail, Ordering::Relaxed);
        assert!(Head::resume(&control).look(&control, bounds).is_err());
    }
}

#[test]
fn records_of_any_words_are_taken_or_refused() {
    let arena = testing::arena(LANE_MOST);
    let (mut producer, mut consumer) = (Producer::new(arena, 0, 1), Consumer::new(arena, 0, 1));
    for word in WORDS.iter().flat_map(|word| [*word, word ^ 0xfff, word.rotate_left(17)]) {
        push(&mut producer, 1000);
        let at = producer.claim(CLAIM).unwrap().unwrap();
        // SAFETY: a claim has room for a label; the record before it begins where its size says.
        unsafe { at.sub(1020).cast::<u64>().write_unaligned(word) };
        producer.publish();
        drain(&mut consumer);
        assert_carries(&mut producer, &mut consumer);
    }
}

#[test]
fn a_table_that_names_ports_that_cannot_be_is_read_and_flushed() {
    let arena = testing::arena(LANE_MOST);
    let (table, clock) = (arena.table(0), Clock { now_s: 100, age_s: 300 });
    let keys: Vec<Key> = (0..100).map(|mac| Key::new(mac, 0)).collect();
    for key in &keys {
        assert_eq!(table.hear(*key, 5, clock, || true), Heard::New { gone: 0 });
    }
    let slots = region(arena, "tables").cast::<[u64; 2]>();
    for index in 0..SLOTS {
        // SAFETY: the table of switch 0 begins the region, and nobody else uses it.
        let slot = unsafe { &mut *slots.add(index) };
        if slot[0] != 0 {
            slot[1] = 100 << 16 | 1024 << (index % 6) | (index as u64 % 8);
        }
    }
    for key in &keys {
        assert!(table.find(*key, clock).is_none_or(|port| port < 1024));
        let heard = table.hear(*key, 6, clock, || true);
        assert!(!matches!(heard, Heard::Moved { before } | Heard::New { gone: before } if before >= 1024));
    }
    assert!(table.stations(clock).all(|station| station.port < 1024));
    repair::forget(arena, 0, 0);
    assert_eq!(table.stations(clock).count(), 0);
}

#[test]
fn what_a_dead_worker_held_is_booked_whatever_it_says() {
    let arena = testing::arena(LANE_MOST);
    configure(arena, 1, 1);
    let cell: &Cell = arena.cell(1, 1);
    for counter in [Counter::RxTaken, Counter::Forwarded, Counter::Filtered, Counter::Offered, Counter::TxFrames] {
        cell.add(counter, u64::MAX - 1);
    }
    for cause in [Cause::Runt, Cause::LaneFull, Cause::TxFull, Cause::TxDown] {
        cell.drop(cause, u64::MAX - 2);
    }
    arena.worker(1).beat.0.store(1, Ordering::Relaxed);
    arena.control(1, 1).consumer_notes.faults.store(u64::MAX, Ordering::Relaxed);
    repair::repair(arena, 1);
    repair::faults(arena, 1);
}

fn region(arena: &Arena, name: &str) -> *mut u8 {
    arena.regions().into_iter().find(|(other, ..)| *other == name).expect("a region of this name").1
}

fn configure(arena: &Arena, port: Port, worker: Worker) {
    repair::configure_port(arena, port, &testing::plain(worker));
}
