//! A lane: the one-way ring of records from one worker to another.
//!
//! ```text
//!   0                  4               8            18
//!   | len, kind, flags | from, to, vid | virtio-net | frame ...  | to a multiple of 4
//! ```
//!
//! Small frames are carried at the rate at which cache lines go from core to core, so a record is kept short.
//!
//! The data is mapped twice in a row, so a record never wraps. A producer *claims* room, has the kernel read a frame
//! straight into it, and *commits*, or lets the claim go by doing nothing. A consumer *peeks* at a record, *takes*
//! it, has the kernel write it straight out, and *releases* what it took at the end of its batch. One that dies in
//! between may have sent the last that it took, and its successor does not send it again.
//!
//! A lane begins small and grows while it is empty, once it refused a record: what is hot at once stays in a core's
//! caches, and a lab of idle lanes takes no memory. A record's fields are copied once and checked; the bytes of a
//! frame are never seen as a slice, since the far side may change them at any time.

use std::io;
use std::ptr;
use std::sync::atomic::Ordering;

use crate::arena::{Arena, LANE_LEAST, PORTS};
use crate::index::{Bounds, Control, Fault, GRAIN, Head, Tail};
use crate::ports::{Port, Worker};
use crate::sys::{self, Mapping};

/// Bytes of a record before its virtio-net header.
pub const RECORD_HEADER: usize = 8;
/// Bytes of a record before its frame.
pub const HEADROOM: usize = RECORD_HEADER + VNET_LEN;
pub const VNET_LEN: usize = 10;
pub const FRAME_LEAST: usize = 14;
/// A super-frame: 65,535 bytes of IP behind an Ethernet header and two tags, and some air.
pub const FRAME_MOST: usize = 65_562;
/// Room that a frame of any length needs.
pub const CLAIM: u64 = size(FRAME_MOST);

const fn size(frame: usize) -> u64 {
    (HEADROOM as u64 + frame as u64 + GRAIN - 1) & !(GRAIN - 1)
}

fn bounds(arena: &Arena) -> Bounds {
    Bounds { least: LANE_LEAST, most: arena.lane_bytes() }
}

/// What a record says beside its frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Label {
    pub len: u32,
    pub from: Port,
    /// The port it is for, or NOBODY: every port of the switch and VLAN.
    pub to: Port,
    /// The VLAN it is in (12 bits), and TAGGED where the frame carries the tag.
    pub vlan: u16,
    pub kind: u16,
}

const LEN: u32 = (1 << 20) - 1;
const PORT: u32 = PORTS as u32 - 1;
const VID: u32 = 0xfff;

impl Label {
    #[inline]
    fn pack(&self) -> [u32; 2] {
        let (vlan, from, to) = (u32::from(self.vlan), u32::from(self.from), u32::from(self.to));
        [self.len & LEN | u32::from(self.kind & 0xf) << 20 | vlan >> 12 << 24, from & PORT | (to & PORT) << 10 | vlan << 20]
    }

    /// Any words make a label.
    #[inline]
    fn unpack([one, other]: [u32; 2]) -> Label {
        Label {
            len: one & LEN,
            from: (other & PORT) as Port,
            to: (other >> 10 & PORT) as Port,
            vlan: (other >> 20 & VID | one >> 24 << 12) as u16,
            kind: (one >> 20 & 0xf) as u16,
        }
    }
}

const _: () = assert!(FRAME_MOST <= LEN as usize && PORT < 1 << 10);

pub const TAGGED: u16 = 0x8000;

/// `kind` of a record: a frame to forward, or the copy of one that came in or went out.
pub const FORWARD: u16 = 0;
pub const MIRROR_IN: u16 = 1;
pub const MIRROR_OUT: u16 = 2;

/// A lane as one side has it mapped.
struct Window {
    arena: &'static Arena,
    control: &'static Control,
    bounds: Bounds,
    from: Worker,
    to: Worker,
    map: Option<Mapping>,
    /// The mapping's start, and the capacity that it was made for less 1.
    start: *mut u8,
    mask: u64,
}

// SAFETY: the pointer is the mapping's, which may go to another thread.
unsafe impl Send for Window {}

impl Window {
    fn new(arena: &'static Arena, from: Worker, to: Worker) -> Window {
        let control = arena.control(from, to);
        Window { arena, control, bounds: bounds(arena), from, to, map: None, start: ptr::null_mut(), mask: 0 }
    }

    /// Map the lane at another size; where that cannot be, what was mapped stays.
    ///
    /// The memory is asked for by name, on the receiving side too: a lane whose producer lied about its size, met with
    /// no memory left, would be SIGBUS.
    #[cold]
    fn open(&mut self, capacity: u64) -> io::Result<()> {
        let (fd, offset) = (self.arena.fd(), self.arena.data_offset(self.from, self.to));
        sys::allocate(fd, offset, capacity)?;
        let map = Mapping::twice(fd, offset, capacity as usize)?;
        map.populate();
        (self.start, self.mask) = (map.start(), capacity - 1);
        self.map = Some(map);
        Ok(())
    }

    fn is_open(&self) -> bool {
        self.map.is_some()
    }

    fn fits(&self, capacity: u64) -> bool {
        self.is_open() && self.mask == capacity - 1
    }

    /// Where `position` lies, in a window that is open. The record behind it lies there as a whole, for no record is
    /// longer than the ring.
    #[inline]
    fn at(&self, position: u64) -> *mut u8 {
        debug_assert!(self.is_open());
        // SAFETY: the remainder is below the capacity, and the mapping is twice as long.
        unsafe { self.start.add((position & self.mask) as usize) }
    }
}

pub struct Producer {
    window: Window,
    tail: Tail,
    /// The lane is to be mapped, or to grow, before it is written to.
    resize: bool,
    /// It has all its room at once: there is no back pressure on what is copied for a capture.
    roomy: bool,
    refused: u64,
}

impl Producer {
    /// The lane's sending end; one process at a time. Takes no memory before the first claim.
    pub fn new(arena: &'static Arena, from: Worker, to: Worker) -> Producer {
        let window = Window::new(arena, from, to);
        let tail = Tail::resume(window.control, window.bounds);
        let refused = window.control.producer_notes.refused.load(Ordering::Relaxed);
        Producer { window, tail, resize: true, roomy: false, refused }
    }

    /// Give the lane all of its room at once.
    pub fn ample(&mut self) {
        self.resize |= !self.roomy && self.tail.capacity < self.window.bounds.most;
        self.roomy = true;
    }

    /// Claim room for a frame of this length.
    #[inline]
    pub fn claim_for(&mut self, frame: usize) -> io::Result<Option<*mut u8>> {
        self.claim(size(frame))
    }

    /// Room for any frame; the frame goes to `HEADROOM` behind the pointer, the virtio-net header to `RECORD_HEADER`.
    ///
    /// None where the lane is full, or where there is no memory for it (`Err`). A claim that is not committed is
    /// forgotten. The pointer is good until the next call.
    #[inline]
    pub fn claim(&mut self, bytes: u64) -> io::Result<Option<*mut u8>> {
        if self.resize {
            self.size_up()?;
        }
        // A lane that is not open has no capacity, thus no room.
        if self.tail.room(self.window.control, bytes) {
            return Ok(Some(self.window.at(self.tail.next)));
        }
        self.resize = self.tail.capacity < self.window.bounds.most;
        Ok(None)
    }

    /// May a port that was held go on? There is room for any frame, or the lane that is to grow has run empty.
    pub fn has_room(&mut self) -> bool {
        if self.resize && self.window.is_open() && !self.is_empty() {
            return false;
        }
        !matches!(self.claim(CLAIM), Ok(None))
    }

    /// Count a frame that found no room.
    pub fn refuse(&mut self) {
        self.refused = self.refused.wrapping_add(1);
        self.window.control.producer_notes.refused.store(self.refused, Ordering::Relaxed);
    }

    /// The claim at the pointer holds a frame of `label.len` bytes: make it the next record.
    #[inline]
    pub fn commit(&mut self, label: Label) {
        let at = self.window.at(self.tail.next);
        // SAFETY: `claim` found room for this record at this place, aligned as every position is, and only this process
        // writes there until the record is published.
        unsafe { at.cast::<[u32; 2]>().write(label.pack()) };
        self.tail.reserve(self.window.control, size(label.len as usize));
    }

    /// Copy a record whole: `from` points to a frame with its virtio-net header before it.
    ///
    /// # Safety
    /// `frame` points to `label.len` readable bytes, and `VNET_LEN` readable bytes lie before it.
    #[inline]
    pub unsafe fn push(&mut self, label: Label, frame: *const u8) -> io::Result<bool> {
        debug_assert!((FRAME_LEAST..=FRAME_MOST).contains(&(label.len as usize)));
        let Some(at) = self.claim(size(label.len as usize))? else {
            self.refuse();
            return Ok(false);
        };
        // SAFETY: the claim is long enough; the source is as the caller promises.
        unsafe { ptr::copy_nonoverlapping(frame.sub(VNET_LEN), at.add(RECORD_HEADER), VNET_LEN + label.len as usize) };
        self.commit(label);
        Ok(true)
    }

    /// Show the consumer what was committed; true where there was something new.
    pub fn publish(&mut self) -> bool {
        let senders = &self.window.arena.worker(self.window.to).senders.0;
        let bit = 1 << self.window.from;
        if senders.load(Ordering::Relaxed) & bit == 0 {
            senders.fetch_or(bit, Ordering::Relaxed);
        }
        self.tail.publish(self.window.control)
    }

    /// Has the consumer freed everything?
    pub fn is_empty(&mut self) -> bool {
        self.tail.is_empty(self.window.control)
    }

    /// Have the doorbell rung when there is room; true if there is room already.
    pub fn wait_for_room(&mut self) -> bool {
        self.tail.wait_for_room(self.window.control, CLAIM);
        self.has_room()
    }

    /// Give the lane its first memory, or more of it; only an empty lane can change its size.
    #[cold]
    fn size_up(&mut self) -> io::Result<()> {
        let Bounds { least, most } = self.window.bounds;
        let (known, first) = (self.tail.capacity, !self.window.is_open());
        if first && known != 0 {
            self.window.open(known)?; // our predecessor's
            self.resize = false;
            return Ok(());
        }
        let wanted = match known {
            _ if self.roomy => most,
            0 => least,
            _ => (known * 4).min(most),
        };
        if !self.tail.is_empty(self.window.control) {
            return Ok(());
        }
        match self.window.open(wanted) {
            Ok(()) => self.tail.resize(self.window.control, wanted),
            Err(error) if first => return Err(error),
            Err(_) => {} // it stays as it is
        }
        self.resize = false;
        Ok(())
    }
}

/// A record at the head of a lane. The frame lies in memory that the producer may still change.
#[derive(Debug, Clone, Copy)]
pub struct Entry {
    pub label: Label,
    /// The frame; its virtio-net header lies in the `VNET_LEN` bytes before, of which the consumer may make use.
    pub frame: *mut u8,
}

impl Entry {
    /// Of a mirrored frame, in the place of a virtio-net header: the low 32 bits of its time in microseconds.
    pub fn stamp(&self) -> u32 {
        self.noted()[0]
    }

    /// And how long it was, where only its beginning was copied.
    pub fn whole(&self) -> usize {
        (self.noted()[1] as usize).min(FRAME_MOST)
    }

    fn noted(&self) -> [u32; 2] {
        // SAFETY: a header's room lies before every frame.
        unsafe { self.frame.sub(VNET_LEN).cast::<[u32; 2]>().read_unaligned() }
    }
}

pub struct Consumer {
    window: Window,
    head: Head,
}

impl Consumer {
    /// The lane's receiving end; one process at a time.
    pub fn new(arena: &'static Arena, from: Worker, to: Worker) -> Consumer {
        let window = Window::new(arena, from, to);
        let head = Head::resume(window.control);
        Consumer { window, head }
    }

    /// The oldest record that was not taken; None where the lane is empty.
    ///
    /// A record that cannot be is a `Fault` of the producer: what is in the lane is given up and counted.
    #[inline]
    pub fn peek(&mut self) -> Result<Option<Entry>, Fault> {
        self.checked().inspect_err(|_| self.head.skip(self.window.control))
    }

    #[inline]
    fn checked(&mut self) -> Result<Option<Entry>, Fault> {
        if self.head.known() == 0 && !self.look()? {
            return Ok(None);
        }
        let at = self.window.at(self.head.cursor);
        // SAFETY: `at` lies in the window with more than a label behind it (the window is twice the ring), aligned
        // since every position is; it is copied once and only the copy is used.
        let label = Label::unpack(unsafe { at.cast::<[u32; 2]>().read_volatile() });
        let len = label.len as usize;
        if !(FRAME_LEAST..=FRAME_MOST).contains(&len) || size(len) > self.head.known() {
            return Err(Fault);
        }
        // SAFETY: the record is inside the window, as its length was checked against what is known.
        Ok(Some(Entry { label, frame: unsafe { at.add(HEADROOM) } }))
    }

    /// Look for what the producer has published; true where there is something, and the window is as large as its ring.
    fn look(&mut self) -> Result<bool, Fault> {
        self.head.look(self.window.control, self.window.bounds)?;
        if self.head.known() != 0 && !self.window.fits(self.head.capacity) {
            self.window.open(self.head.capacity).map_err(|_| Fault)?; // an honest producer has had memory for it
        }
        Ok(self.head.known() != 0)
    }

    /// The record that `peek` returned is ours, and not a successor's. Its room is not free yet.
    #[inline]
    pub fn take(&mut self, label: &Label) {
        self.head.take(self.window.control, size(label.len as usize));
    }

    /// Free the room of all that was taken; true where the producer's doorbell is to be rung.
    pub fn release(&mut self) -> bool {
        self.head.release(self.window.control)
    }

    /// Is there something new? For the look before sleep.
    pub fn has_more(&self) -> bool {
        self.head.has_news(self.window.control)
    }
}

/// Make the lane from `from` to `to` consistent after the death of its producer: publish what was written whole.
pub fn mend_producer(arena: &Arena, from: Worker, to: Worker) {
    let control = arena.control(from, to);
    let (tail, head) = (control.producer.tail.load(Ordering::Relaxed), control.consumer.head.load(Ordering::Acquire));
    let reserved = control.producer_notes.reserved.load(Ordering::Acquire);
    let capacity = control.producer.capacity.load(Ordering::Relaxed);
    if reserved == tail {
        return;
    }
    let sane = reserved.wrapping_sub(head) <= capacity && tail.wrapping_sub(head) <= reserved.wrapping_sub(head);
    match records(arena, from, to, tail, reserved).filter(|_| sane) {
        Some(records) => {
            let pushed = &control.producer_notes.pushed;
            pushed.note(tail, reserved, pushed.records(tail).wrapping_add(records));
            control.producer.tail.store(reserved, Ordering::Release);
        }
        None => control.producer_notes.reserved.store(tail, Ordering::Relaxed),
    }
}

/// Make the lane consistent after the death of its consumer: what was delivered is not delivered again.
pub fn mend_consumer(arena: &Arena, from: Worker, to: Worker) {
    let control = arena.control(from, to);
    let (head, tail) = (control.consumer.head.load(Ordering::Relaxed), control.producer.tail.load(Ordering::Acquire));
    let cursor = control.consumer_notes.cursor.load(Ordering::Acquire);
    if cursor == head || cursor.wrapping_sub(head) > tail.wrapping_sub(head) {
        return;
    }
    if let Some(records) = records(arena, from, to, head, cursor) {
        let popped = &control.consumer_notes.popped;
        popped.note(head, cursor, popped.records(head).wrapping_add(records));
        control.consumer.head.store(cursor, Ordering::Release);
    }
}

/// How many records lie between two positions; None where what lies there is no row of records.
///
/// Reads through the descriptor and not through a mapping: the dead worker's word on what has memory is not taken.
fn records(arena: &Arena, from: Worker, to: Worker, begin: u64, end: u64) -> Option<u64> {
    let capacity = arena.control(from, to).producer.capacity.load(Ordering::Relaxed);
    let span = end.wrapping_sub(begin);
    if !bounds(arena).contain(capacity) || span > capacity || !(begin | end).is_multiple_of(GRAIN) {
        return None;
    }
    let (offset, first) = (arena.data_offset(from, to), begin & (capacity - 1));
    let mut bytes = vec![0; span as usize];
    let (front, back) = bytes.split_at_mut(span.min(capacity - first) as usize);
    sys::read_at(arena.fd(), offset + first, front).ok()?;
    sys::read_at(arena.fd(), offset, back).ok()?;
    let (mut rest, mut records) = (bytes.as_slice(), 0);
    while let Some((len, _)) = rest.split_first_chunk() {
        let len = (u32::from_ne_bytes(*len) & LEN) as usize;
        if !(FRAME_LEAST..=FRAME_MOST).contains(&len) {
            return None;
        }
        rest = rest.get(size(len) as usize..)?;
        records += 1;
    }
    Some(records)
}
