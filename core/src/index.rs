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
//! the line above. Nor does a side trust the memory to keep its own words: it lives by its private copies, and writes
//! them again where the far side seems to have read something else, so a lane that was written over by a third party
//! comes back to order by itself, at the price of what was in it.

use crate::sync::{AtomicU32, AtomicU64, Ordering, fence};

/// Positions are multiples of this, so that a record's header is aligned wherever it lies.
pub const GRAIN: u64 = 4;

fn aligned(position: u64) -> u64 {
    position.wrapping_add(GRAIN - 1) & !(GRAIN - 1)
}

/// The least and the most that a lane can hold; a capacity is a power of two between them.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    pub least: u64,
    pub most: u64,
}

impl Bounds {
    pub fn contain(self, capacity: u64) -> bool {
        capacity.is_power_of_two() && (self.least..=self.most).contains(&capacity)
    }
}

/// How many records lie before a position.
///
/// Two entries take turns. The one that belongs to the position which the far side sees is never written, so whoever
/// takes up the lane after a crash finds the number that is true, whichever store was the last.
#[repr(C)]
#[derive(Debug, Default)]
pub struct Ledger([Entry; 2]);

#[repr(C)]
#[derive(Debug, Default)]
struct Entry {
    position: AtomicU64,
    records: AtomicU64,
}

impl Ledger {
    /// Records before `position`; where no entry is of it (its owner is at work), the newest number there is.
    pub fn records(&self, position: u64) -> u64 {
        let read = |entry: &Entry| (entry.position.load(Ordering::Relaxed), entry.records.load(Ordering::Relaxed));
        match (read(&self.0[0]), read(&self.0[1])) {
            ((at, records), _) if at == position => records,
            (_, (at, records)) if at == position => records,
            ((_, one), (_, other)) => one.max(other),
        }
    }

    /// Note that `records` lie before `position`, which is about to take the place of `before`.
    pub fn note(&self, before: u64, position: u64, records: u64) {
        let [one, other] = &self.0;
        let entry = if one.position.load(Ordering::Relaxed) == before { other } else { one };
        entry.position.store(position, Ordering::Relaxed);
        entry.records.store(records, Ordering::Relaxed);
    }
}

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
    /// Records published, ever, by tail.
    pub pushed: Ledger,
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
    /// Records released, ever, by head.
    pub popped: Ledger,
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

impl Control {
    /// Records published, ever.
    pub fn pushed(&self) -> u64 {
        self.producer_notes.pushed.records(self.producer.tail.load(Ordering::Acquire))
    }

    /// Records released, ever.
    pub fn popped(&self) -> u64 {
        self.consumer_notes.popped.records(self.consumer.head.load(Ordering::Acquire))
    }
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
    /// Take up the lane where it was left. A capacity that cannot be counts as none.
    pub fn resume(control: &Control, bounds: Bounds) -> Tail {
        let tail = control.producer.tail.load(Ordering::Relaxed);
        let capacity = control.producer.capacity.load(Ordering::Relaxed);
        Tail {
            next: aligned(tail),
            published: aligned(tail),
            head: control.consumer.head.load(Ordering::Acquire),
            capacity: if bounds.contain(capacity) { capacity } else { 0 },
            pushed: control.producer_notes.pushed.records(tail),
        }
    }

    /// Is there room for `bytes` more? Looks at the far side only where its cached position says "possibly not".
    #[inline]
    pub fn room(&mut self, control: &Control, bytes: u64) -> bool {
        self.free() >= bytes || self.find_room(control, bytes)
    }

    #[cold]
    fn find_room(&mut self, control: &Control, bytes: u64) -> bool {
        self.refresh(control);
        let found = self.free() >= bytes;
        if !found {
            // Perhaps somebody wrote over the tail, and the consumer waits for what it thinks is published.
            control.producer.tail.store(self.published, Ordering::Release);
        }
        found
    }

    /// Has the consumer freed everything that was published, and is nothing unpublished?
    pub fn is_empty(&mut self, control: &Control) -> bool {
        if self.head != self.next {
            self.refresh(control);
        }
        self.head == self.next
    }

    #[inline]
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
    #[inline]
    pub fn reserve(&mut self, control: &Control, bytes: u64) {
        self.next = self.next.wrapping_add(bytes);
        self.pushed = self.pushed.wrapping_add(1);
        control.producer_notes.reserved.store(self.next, Ordering::Release);
    }

    /// Show the consumer all that is written; false where there was nothing new.
    pub fn publish(&mut self, control: &Control) -> bool {
        if self.published == self.next {
            return false;
        }
        control.producer_notes.pushed.note(self.published, self.next, self.pushed);
        control.producer.capacity.store(self.capacity, Ordering::Relaxed);
        control.producer.tail.store(self.next, Ordering::Release);
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
    /// The tail as it was last read, true or not: a lie is a fault once.
    seen: u64,
    pub capacity: u64,
    taken: u64,
}

impl Head {
    /// Take up the lane where it was left.
    pub fn resume(control: &Control) -> Head {
        let head = control.consumer.head.load(Ordering::Relaxed);
        let at = aligned(head);
        Head { cursor: at, released: at, tail: at, seen: at, capacity: 0, taken: control.consumer_notes.popped.records(head) }
    }

    /// Bytes known to be published and not yet taken.
    #[inline]
    pub fn known(&self) -> u64 {
        self.tail.wrapping_sub(self.cursor)
    }

    /// Look at the far side's tail, where nothing is known to be left, and believe it if it can be.
    ///
    /// After a `Fault` nothing of what the producer wrote is to be believed, and `skip` goes past it.
    pub fn look(&mut self, control: &Control, bounds: Bounds) -> Result<(), Fault> {
        let tail = control.producer.tail.load(Ordering::Acquire);
        if tail == self.seen {
            if self.cursor == self.released && control.consumer.head.load(Ordering::Relaxed) != self.released {
                control.consumer.head.store(self.released, Ordering::Release); // somebody wrote over it
            }
            return Ok(());
        }
        self.seen = tail;
        let capacity = control.producer.capacity.load(Ordering::Relaxed);
        if !bounds.contain(capacity) || tail != aligned(tail) || tail.wrapping_sub(self.released) > capacity {
            return Err(Fault);
        }
        // A capacity that changes under records we have not freed is a lie too.
        if capacity != self.capacity && self.released != self.cursor {
            return Err(Fault);
        }
        self.capacity = capacity;
        self.tail = tail;
        Ok(())
    }

    /// Is there anything that was not taken, or not looked at? It may turn out to be a fault.
    pub fn has_news(&self, control: &Control) -> bool {
        self.cursor != self.tail || control.producer.tail.load(Ordering::Acquire) != self.seen
    }

    /// The record at the cursor, `bytes` long, is the consumer's: a successor goes on behind it.
    #[inline]
    pub fn take(&mut self, control: &Control, bytes: u64) {
        self.cursor = self.cursor.wrapping_add(bytes);
        self.taken = self.taken.wrapping_add(1);
        control.consumer_notes.cursor.store(self.cursor, Ordering::Release);
    }

    /// Free what was taken; true where the producer waits for room and its doorbell is to be rung.
    ///
    /// It is rung once half of the lane is free, lest it sleeps and wakes for every batch.
    pub fn release(&mut self, control: &Control) -> bool {
        if self.released == self.cursor {
            return false;
        }
        control.consumer_notes.popped.note(self.released, self.cursor, self.taken);
        control.consumer.head.store(self.cursor, Ordering::Release);
        self.released = self.cursor;
        fence(Ordering::SeqCst);
        if self.known() > self.capacity / 2 {
            return false;
        }
        let waiting = &control.waiting.0;
        waiting.load(Ordering::Relaxed) == 1 && waiting.compare_exchange(1, 0, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }

    /// After a fault: go to where the producer says it is, whatever lies between.
    pub fn skip(&mut self, control: &Control) {
        self.seen = control.producer.tail.load(Ordering::Acquire);
        let (before, at) = (self.released, aligned(self.seen));
        (self.cursor, self.tail, self.released) = (at, at, at);
        control.consumer_notes.cursor.store(at, Ordering::Relaxed);
        control.consumer_notes.faults.fetch_add(1, Ordering::Relaxed);
        control.consumer_notes.popped.note(before, at, self.taken);
        control.consumer.head.store(at, Ordering::Release);
    }
}
