//! The index protocol of a lane: who may write what, and in which order.
//!
//! A lane is a byte ring of records with one producer and one consumer. Positions are free-running counts of bytes;
//! a position's place in the ring is its remainder by the capacity, a power of two. Always
//!
//! ```text
//!   head <= cursor <= tail <= reserved        reserved - head <= capacity
//!   |freed  |taken    |published |written, not yet seen by the consumer
//! ```
//!
//! `tail` and `head` cross between the two processes, each published once a batch (release) and read only when the
//! cached copy says "possibly full" or "possibly empty" (acquire). `reserved` and `cursor` are notes of each side to
//! its own successor: after a crash the supervisor publishes what was written and skips what was delivered.
//!
//! The capacity may change while the lane is empty: the producer stores it before the tail that makes a record
//! visible, so a consumer that sees the record sees the capacity too.
//!
//! Neither side trusts the other: a position read from the far side is taken once, checked, and refused if it breaks
//! the line above.

use crate::sync::{AtomicU32, AtomicU64, Ordering, fence};

/// Written by the producer, read by the consumer.
#[repr(C, align(128))]
#[derive(Debug, Default)]
pub struct ProducerShared {
    pub tail: AtomicU64,
    pub capacity: AtomicU64,
}

/// Written by the producer, read by its successor and by the supervisor.
#[repr(C, align(128))]
#[derive(Debug, Default)]
pub struct ProducerNotes {
    pub reserved: AtomicU64,
    /// Records published, ever.
    pub pushed: AtomicU64,
    /// Records refused for want of room, ever.
    pub refused: AtomicU64,
}

/// Written by the consumer, read by the producer.
#[repr(C, align(128))]
#[derive(Debug, Default)]
pub struct ConsumerShared {
    pub head: AtomicU64,
}

/// Written by the consumer, read by its successor and by the supervisor.
#[repr(C, align(128))]
#[derive(Debug, Default)]
pub struct ConsumerNotes {
    pub cursor: AtomicU64,
    /// Records released, ever.
    pub popped: AtomicU64,
    /// Times the producer was caught breaking the protocol.
    pub faults: AtomicU64,
}

/// 1 while the producer waits for room and wants its doorbell rung. Written by both.
#[repr(C, align(128))]
#[derive(Debug, Default)]
pub struct Waiting(pub AtomicU32);

/// All that the two sides of a lane share beside the data.
#[repr(C, align(128))]
#[derive(Debug, Default)]
pub struct Control {
    pub producer: ProducerShared,
    pub producer_notes: ProducerNotes,
    pub consumer: ConsumerShared,
    pub consumer_notes: ConsumerNotes,
    pub waiting: Waiting,
}

/// The far side wrote a position that cannot be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fault;

/// The producer's own view of the positions.
#[derive(Debug)]
pub struct Tail {
    /// End of what is written; private until `publish`.
    pub next: u64,
    published: u64,
    head: u64,
    pub capacity: u64,
    pushed: u64,
}

impl Tail {
    /// Take up the lane where it was left. The notes are the producer's own, so they are believed.
    pub fn resume(control: &Control) -> Tail {
        let tail = control.producer.tail.load(Ordering::Relaxed);
        Tail {
            next: tail,
            published: tail,
            head: control.consumer.head.load(Ordering::Acquire),
            capacity: control.producer.capacity.load(Ordering::Relaxed),
            pushed: control.producer_notes.pushed.load(Ordering::Relaxed),
        }
    }

    /// Is there room for `bytes` more? Looks at the far side only where its cached position says "possibly not".
    pub fn room(&mut self, control: &Control, bytes: u64) -> bool {
        if self.free() >= bytes {
            return true;
        }
        self.refresh(control);
        self.free() >= bytes
    }

    /// Has the consumer freed everything that was published, and is nothing unpublished?
    pub fn is_empty(&mut self, control: &Control) -> bool {
        if self.head != self.next {
            self.refresh(control);
        }
        self.head == self.next
    }

    fn free(&self) -> u64 {
        self.capacity.saturating_sub(self.next.wrapping_sub(self.head))
    }

    fn refresh(&mut self, control: &Control) {
        let head = control.consumer.head.load(Ordering::Acquire);
        // A head outside of [what we knew, what we published] is a lie; the old one stays true.
        if head.wrapping_sub(self.head) <= self.published.wrapping_sub(self.head) {
            self.head = head;
        }
    }

    /// Only while the lane is empty.
    pub fn resize(&mut self, control: &Control, capacity: u64) {
        debug_assert_eq!(self.head, self.next);
        self.capacity = capacity;
        control.producer.capacity.store(capacity, Ordering::Relaxed);
    }

    /// `bytes` more are written; leave a note of them.
    pub fn reserve(&mut self, control: &Control, bytes: u64) {
        self.next = self.next.wrapping_add(bytes);
        self.pushed += 1;
        control.producer_notes.reserved.store(self.next, Ordering::Release);
    }

    /// Show the consumer all that is written; false where there was nothing new.
    pub fn publish(&mut self, control: &Control) -> bool {
        if self.published == self.next {
            return false;
        }
        control.producer.tail.store(self.next, Ordering::Release);
        control.producer_notes.pushed.store(self.pushed, Ordering::Relaxed);
        self.published = self.next;
        true
    }

    /// Ask for a ring of the doorbell when there is room, then look once more: true if there is room now.
    pub fn wait_for_room(&mut self, control: &Control, bytes: u64) -> bool {
        control.waiting.0.store(1, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        self.room(control, bytes)
    }
}

/// The consumer's own view of the positions.
#[derive(Debug)]
pub struct Head {
    /// Begin of the next record to take.
    pub cursor: u64,
    released: u64,
    tail: u64,
    pub capacity: u64,
    taken: u64,
}

impl Head {
    /// Take up the lane where it was left.
    pub fn resume(control: &Control) -> Head {
        let head = control.consumer.head.load(Ordering::Relaxed);
        Head { cursor: head, released: head, tail: head, capacity: 0, taken: control.consumer_notes.popped.load(Ordering::Relaxed) }
    }

    /// Bytes published and not yet taken. Looks at the far side only where nothing is known to be left.
    ///
    /// `most` is the largest capacity the lane can have. After a `Fault` nothing of what the producer wrote is to be
    /// believed, and `skip` goes past it.
    pub fn available(&mut self, control: &Control, least: u64, most: u64) -> Result<u64, Fault> {
        if self.cursor == self.tail {
            let tail = control.producer.tail.load(Ordering::Acquire);
            if tail != self.tail {
                let capacity = control.producer.capacity.load(Ordering::Relaxed);
                if !capacity.is_power_of_two() || capacity < least || capacity > most || tail.wrapping_sub(self.released) > capacity {
                    return Err(Fault);
                }
                // A capacity that changes under records we have not freed is a lie too.
                if capacity != self.capacity && self.released != self.cursor {
                    return Err(Fault);
                }
                self.capacity = capacity;
                self.tail = tail;
            }
        }
        Ok(self.tail.wrapping_sub(self.cursor))
    }

    /// The record at the cursor, `bytes` long, has met its fate.
    pub fn take(&mut self, control: &Control, bytes: u64) {
        self.cursor = self.cursor.wrapping_add(bytes);
        self.taken += 1;
        control.consumer_notes.cursor.store(self.cursor, Ordering::Release);
    }

    /// Free what was taken; true where the producer waits for room and its doorbell is to be rung.
    pub fn release(&mut self, control: &Control) -> bool {
        if self.released == self.cursor {
            return false;
        }
        control.consumer.head.store(self.cursor, Ordering::Release);
        control.consumer_notes.popped.store(self.taken, Ordering::Relaxed);
        self.released = self.cursor;
        fence(Ordering::SeqCst);
        control.waiting.0.load(Ordering::Relaxed) == 1 && control.waiting.0.swap(0, Ordering::Relaxed) == 1
    }

    /// After a fault: go to where the producer says it is, whatever lies between.
    pub fn skip(&mut self, control: &Control) {
        let tail = control.producer.tail.load(Ordering::Acquire);
        self.cursor = tail;
        self.tail = tail;
        self.released = tail;
        control.consumer_notes.cursor.store(tail, Ordering::Relaxed);
        control.consumer_notes.faults.fetch_add(1, Ordering::Relaxed);
        control.consumer.head.store(tail, Ordering::Release);
    }
}
