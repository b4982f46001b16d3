//! The engine of a capture: writes down what arrives by mirroring, an interface a port.
//!
//! The direction of a frame is as the switch sees it: in came from the port. Frames are gathered and written at once, when
//! nothing more has come or there are enough of them, at a pace that leaves a busy machine to others (pace.rs). A frame that
//! found no room on its way here was counted by whoever had it (`Arena::loss`), by its port; those numbers are written at the end of a file.
//!
//! A capture of a client's writes to whatever the client gave, and loses what is not read. One that is a port writes files:
//!
//! - It takes nothing more once the next frame would make its file longer than `limit`, writes the file's end, and waits for the next
//!   file. What has come meanwhile stays in the lanes.
//! - A frame is counted as offered when it is taken, and as sent when it was written. After that the ledger says how long the file is,
//!   which file that is by its inode, so that a successor cuts away what was written in part and goes on behind it.
//! - After an error the ledger says how much of the file is whole, the frames behind it are dropped (`tx_error`), and it is over.

mod format;
mod pace;

use std::io;
use std::os::fd::RawFd;
use std::sync::atomic::Ordering;

pub use format::Format;
use format::Packet;
use pace::Pace;

use crate::arena::Arena;
use crate::lane::{Entry, MIRROR_IN};
use crate::ports::{Cause, Cell, Counter, NOBODY, PORTS, Port, Worker, total};
use crate::sys;

const BUFFER: usize = 256 << 10;
const NONE: u32 = u32::MAX;

/// What a capture is told at its beginning; whatever is 0, or -1 for a descriptor, is not asked for.
#[derive(Debug, Clone, Copy)]
pub struct Settings {
    /// The port that it is, for its counters.
    pub port: Port,
    pub format: Format,
    pub snaplen: usize,
    /// The most bytes of a file.
    pub limit: u64,
    pub ledger: RawFd,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings { port: NOBODY, format: Format::Pcapng, snaplen: 0, limit: 0, ledger: -1 }
    }
}

struct Interface {
    port: Port,
    name: String,
    since_us: u64,
}

/// What is to be done with the next record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    Take,
    /// Nobody has said yet which port that is.
    Unknown,
    /// It goes to the next file.
    Wait,
}

pub struct Capture {
    arena: &'static Arena,
    me: Worker,
    pub settings: Settings,
    fd: RawFd,
    /// Where `fd` is a file that the ledger knows.
    inode: u64,
    interfaces: Vec<Interface>,
    /// The interface of each port.
    numbers: Box<[u32; PORTS]>,
    buffer: Vec<u8>,
    /// How much of the buffer was taken by who reads slowly.
    sent: usize,
    /// Frames in the buffer, and their bytes.
    buffered: (u64, u64),
    /// Length of the file once the buffer is in it, what it was when it was begun here, and how many frames it has got since.
    size: u64,
    begun: u64,
    frames: u64,
    /// The file has its end.
    over: bool,
    /// Frames came since this was last asked for.
    busy: bool,
    pace: Pace,
    now_us: u64,
    pub written: u64,
    unsent: u64,
}

impl Capture {
    /// A capture by worker `me` to `fd`, which stays the caller's and has `size` bytes already.
    pub fn new(arena: &'static Arena, me: Worker, fd: RawFd, size: u64, settings: Settings) -> Capture {
        arena.worker(me).snaplen.0.store(settings.snaplen as u32, Ordering::Relaxed);
        let mut capture = Capture {
            arena,
            me,
            settings,
            fd,
            inode: 0,
            interfaces: Vec::new(),
            numbers: Box::new([NONE; PORTS]),
            buffer: Vec::with_capacity(2 * BUFFER),
            sent: 0,
            buffered: (0, 0),
            size: 0,
            begun: 0,
            frames: 0,
            over: false,
            busy: false,
            pace: Pace::new(),
            now_us: 0,
            written: 0,
            unsent: 0,
        };
        capture.begin(fd, size);
        capture
    }

    /// Go on in another file, which has `size` bytes already. The one before has had its end.
    pub fn begin(&mut self, fd: RawFd, size: u64) {
        let Settings { format, snaplen, .. } = self.settings;
        (self.fd, self.size, self.begun, self.frames, self.over) = (fd, size, size, 0, false);
        self.inode = sys::inode(fd).unwrap_or(0);
        self.buffer.clear();
        self.sent = 0;
        self.note();
        format.begin(&mut self.buffer, snaplen, size == 0);
        for interface in &self.interfaces {
            format.interface(&mut self.buffer, &interface.name, snaplen);
        }
        self.size += self.buffer.len() as u64;
    }

    /// Capture a port, as an interface of this name.
    pub fn add_interface(&mut self, port: Port, name: &str) {
        self.numbers[usize::from(port)] = self.interfaces.len() as u32;
        let since_us = sys::now_ns(libc::CLOCK_REALTIME) / 1000;
        self.interfaces.push(Interface { port, name: name.into(), since_us });
        if !self.over {
            let before = self.buffer.len();
            self.settings.format.interface(&mut self.buffer, name, self.settings.snaplen);
            self.size += (self.buffer.len() - before) as u64;
        }
    }

    /// What is to be done with a mirrored frame.
    pub fn next(&self, entry: &Entry) -> Next {
        let Settings { format, limit, .. } = self.settings;
        let Some(&number) = self.numbers.get(usize::from(entry.label.from)).filter(|&&number| number != NONE) else {
            return Next::Unknown;
        };
        debug_assert!((number as usize) < self.interfaces.len());
        let with_it = self.size + (format.packet_len(self.kept(entry)) + format.statistics_len(self.interfaces.len())) as u64;
        if self.over || (limit != 0 && with_it > limit && self.has_frames()) { Next::Wait } else { Next::Take }
    }

    fn kept(&self, entry: &Entry) -> usize {
        let len = entry.label.len as usize;
        if self.settings.snaplen == 0 { len } else { len.min(self.settings.snaplen) }
    }

    /// Read the clock for the frames that are added next.
    pub fn look_at_clock(&mut self) {
        self.now_us = sys::now_ns(libc::CLOCK_REALTIME) / 1000;
    }

    /// Add a mirrored frame of a port that is captured.
    pub fn add(&mut self, entry: &Entry) {
        let kept = self.kept(entry);
        let packet = Packet {
            interface: self.numbers[usize::from(entry.label.from)],
            time_us: self.time_us(entry.stamp()),
            inward: entry.label.kind == MIRROR_IN,
            whole: entry.whole().max(kept),
            kept,
            frame: entry.frame.cast_const(),
        };
        let before = self.buffer.len();
        // SAFETY: the entry's frame has `label.len` readable bytes, and `kept` are not more.
        unsafe { self.settings.format.packet(&mut self.buffer, &packet) };
        self.size += (self.buffer.len() - before) as u64;
        self.frames += 1;
        self.buffered.0 += 1;
        self.buffered.1 += kept as u64;
        self.busy = true;
    }

    /// Count a frame that was taken from its lane, before anything is done with it.
    pub fn offer(&self) {
        self.count(|cell| cell.add(Counter::Offered, 1));
    }

    /// Count a frame that nobody could write down.
    pub fn miss(&mut self, entry: &Entry) {
        self.arena.loss(self.me, entry.label.from).fetch_add(1, Ordering::Relaxed);
        self.count(|cell| cell.drop(Cause::TxFull, 1));
    }

    fn count(&self, counted: impl FnOnce(&Cell)) {
        if self.settings.port != NOBODY {
            counted(self.arena.cell(self.me, self.settings.port));
        }
    }

    /// Microseconds since 1970 of a stamp, which are their low 32 bits.
    fn time_us(&self, stamp: u32) -> u64 {
        self.now_us.wrapping_add_signed(stamp.wrapping_sub(self.now_us as u32).cast_signed().into())
    }

    pub fn is_full(&self) -> bool {
        self.buffer.len() >= BUFFER
    }

    /// After work: how much of it may this process do?
    pub fn look_at_pace(&mut self) {
        self.pace.look();
    }

    /// Milliseconds for which nothing is to be done, as it rests or as more will come; 0 where it is to be woken.
    pub fn rest_ms(&mut self) -> i32 {
        match (self.pace.rest_ms(), std::mem::take(&mut self.busy)) {
            (0, true) => self.pace.doze_ms(),
            (rest, _) => rest,
        }
    }

    /// Has what comes to stay in its lane for now, where others want the machine?
    pub fn is_resting(&mut self) -> bool {
        self.pace.is_resting()
    }

    /// Frames lost on the way to this worker, of all ports that are captured, and at the end.
    pub fn lost(&self) -> u64 {
        let on_the_way = self.interfaces.iter().filter(|one| self.is_current(one)).map(|one| self.lost_of(one.port));
        total(on_the_way.chain([self.unsent]))
    }

    fn lost_of(&self, port: Port) -> u64 {
        self.arena.loss(self.me, port).load(Ordering::Relaxed)
    }

    /// A port that is gone may have left its number to another one.
    fn is_current(&self, interface: &Interface) -> bool {
        let number = self.numbers[usize::from(interface.port)];
        self.interfaces.get(number as usize).is_some_and(|current| std::ptr::eq(current, interface))
    }

    /// Write the end of the file; true when all of it went.
    pub fn end(&mut self) -> io::Result<bool> {
        if !self.over {
            self.over = true;
            let before = self.buffer.len();
            let mut end = Vec::new();
            for (number, one) in self.interfaces.iter().enumerate().filter(|(_, one)| self.is_current(one)) {
                self.settings.format.statistics(&mut end, number as u32, one.since_us, self.lost_of(one.port));
            }
            self.buffer.extend(end);
            self.size += (self.buffer.len() - before) as u64;
        }
        self.flush()
    }

    pub fn is_over(&self) -> bool {
        self.over
    }

    /// Has the file got frames and not its end?
    pub fn has_frames(&self) -> bool {
        (self.frames != 0 || self.begun != 0) && !self.over
    }

    /// Write what is buffered; true when it all went. After an error there is nothing more to write.
    pub fn flush(&mut self) -> io::Result<bool> {
        if self.buffer.is_empty() {
            return Ok(true);
        }
        let result = loop {
            let rest = &self.buffer[self.sent..];
            if rest.is_empty() {
                break Ok(true);
            }
            // SAFETY: a slice is readable.
            match unsafe { sys::write(self.fd, rest.as_ptr(), rest.len()) } {
                Ok(count) => self.sent += count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break Ok(false),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => break Err(error),
            }
        };
        match result {
            Ok(true) => {
                let (frames, bytes) = std::mem::take(&mut self.buffered);
                self.settle(frames, bytes);
                self.buffer.clear();
                self.sent = 0;
                self.note();
            }
            Ok(false) => {}
            Err(_) => self.cut(),
        }
        result
    }

    fn settle(&mut self, frames: u64, bytes: u64) {
        self.written += frames;
        self.count(|cell| {
            cell.add(Counter::TxFrames, frames);
            cell.add(Counter::TxBytes, bytes);
        });
    }

    /// What was taken of the buffer is all that will be.
    pub fn cut(&mut self) {
        let before = self.size - self.buffer.len() as u64;
        let (whole, frames, bytes) = self.settings.format.whole(&self.buffer, self.sent, before == 0);
        self.size = before + whole as u64;
        let (buffered, _) = std::mem::take(&mut self.buffered);
        self.settle(frames.min(buffered), bytes);
        self.unsent = buffered.saturating_sub(frames);
        self.count(|cell| cell.drop(Cause::TxError, self.unsent));
        self.over = true;
        self.buffer.clear();
        self.sent = 0;
        self.note();
    }

    /// Bytes of the file that are whole blocks; all of it but for an error.
    pub fn size(&self) -> u64 {
        self.size - self.buffer.len() as u64
    }

    /// Say in the ledger how long the file is.
    fn note(&self) {
        if self.settings.ledger >= 0 {
            let words = [self.inode, self.size - self.buffer.len() as u64].map(u64::to_le_bytes).concat();
            sys::write_at(self.settings.ledger, 0, &words);
        }
    }
}

/// The stamp of a frame that passes now.
pub fn stamp() -> u32 {
    (sys::now_ns(libc::CLOCK_REALTIME) / 1000) as u32
}
