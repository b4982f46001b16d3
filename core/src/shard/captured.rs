//! The turns of a worker that captures: from the lanes that come in to the engine, and from the engine to its file.

use std::io;
use std::os::fd::RawFd;

use super::{News, Shard, bits};
use crate::lane::{Entry, MIRROR_IN, MIRROR_OUT};
use crate::port::Capture;
use crate::port::capture::{Next, Settings};
use crate::ports::{Cause, Counter, NOBODY, Port};

/// Turns in which Python is asked what port a frame is of: its name was on the way before the frame was, so one would do.
const PUZZLED_MOST: u32 = 3;
/// Records that are still taken from a lane at the end, should they not end.
const LAST_MOST: usize = 1 << 17;

impl Shard {
    /// Write down what is mirrored to this worker. `anew`: what lies in the lanes is of another capture.
    pub fn add_capture(&mut self, fd: RawFd, size: u64, settings: Settings, anew: bool) {
        if anew {
            self.drain_captured(|_, _| {});
        }
        self.capture_port = settings.port;
        self.capture = Some(Capture::new(self.arena, self.me, fd, size, settings));
    }

    /// The port that frames are of from now on is called so.
    pub fn capture_port(&mut self, port: Port, name: &str) {
        if let Some(capture) = &mut self.capture {
            capture.add_interface(port, name);
        }
    }

    /// Go on in the next file.
    pub fn capture_file(&mut self, fd: RawFd, size: u64) {
        if let Some(capture) = &mut self.capture {
            capture.begin(fd, size);
        }
    }

    /// End the file, so that another one can follow; false where it has no frames yet and goes on.
    pub fn turn_capture(&mut self) -> bool {
        match &mut self.capture {
            Some(capture) if capture.has_frames() => {
                let ended = capture.end();
                let is_over = matches!(ended, Ok(true));
                self.capture_result(ended);
                is_over
            }
            _ => false,
        }
    }

    /// Does what is to be captured stay in the lanes for a while? For tests, which wait for that.
    #[doc(hidden)]
    pub fn is_capture_resting(&mut self) -> bool {
        self.capture.as_mut().is_some_and(Capture::is_resting)
    }

    /// Write what is still in the lanes, and the end of the file. Returns the frames written, the frames lost, the length of the file,
    /// and an errno or 0.
    pub fn end_capture(&mut self) -> (u64, u64, u64, i32) {
        let mut result = Ok(true);
        if let Some(capture) = &mut self.capture {
            capture.settings.limit = 0; // there will be no next file
        }
        self.drain_captured(|shard, entry| {
            shard.add_to_capture(entry);
        });
        let Some(mut capture) = self.capture.take() else { return self.capture_ended };
        if !capture.is_over() {
            result = capture.end();
        }
        if matches!(result, Ok(false)) {
            capture.cut();
        }
        let errno = result.err().and_then(|error| error.raw_os_error()).unwrap_or(0);
        (capture.written, capture.lost(), capture.size(), errno)
    }

    /// Take the mirrored frames that lie in the lanes.
    fn drain_captured(&mut self, mut taken: impl FnMut(&mut Shard, &Entry)) {
        let senders = self.arena.worker(self.me).senders.0.load(std::sync::atomic::Ordering::Acquire);
        for from in bits(senders) {
            if let Some(capture) = &mut self.capture {
                capture.look_at_clock();
            }
            for _ in 0..LAST_MOST {
                let Ok(Some(entry)) = self.consumer(from).peek() else { break };
                if !matches!(entry.label.kind, MIRROR_IN | MIRROR_OUT) {
                    break;
                }
                self.consumer(from).take(&entry.label);
                taken(self, &entry);
            }
            self.release(from);
        }
    }

    /// Has the frame to stay in its lane, for the next file, until somebody says what port it is of, or while the capture rests?
    pub(super) fn is_capture_waiting(&mut self, entry: &Entry) -> bool {
        let Some(capture) = &mut self.capture else { return false };
        if capture.is_resting() {
            return true;
        }
        match capture.next(entry) {
            Next::Take => {
                self.puzzled = 0;
                false
            }
            Next::Unknown => {
                self.puzzled += 1;
                let waits = self.puzzled <= PUZZLED_MOST;
                if !waits {
                    self.puzzled = 0;
                }
                waits
            }
            Next::Wait => {
                if !capture.is_over() {
                    let ended = capture.end();
                    self.news.push(News::Full(capture.settings.port));
                    self.capture_result(ended);
                }
                true
            }
        }
    }

    /// Take a mirrored frame over.
    pub(super) fn add_to_capture(&mut self, entry: &Entry) {
        let Some(capture) = &mut self.capture else {
            // It has ended, and whoever mirrors does not know yet.
            if self.capture_port != NOBODY {
                let cell = self.arena.cell(self.me, self.capture_port);
                cell.add(Counter::Offered, 1);
                cell.drop(Cause::TxDown, 1);
            }
            return;
        };
        capture.offer();
        if capture.next(entry) != Next::Take {
            return capture.miss(entry);
        }
        if capture.is_full() {
            let flushed = capture.flush();
            if !matches!(flushed, Ok(true)) {
                capture.miss(entry);
                return self.capture_result(flushed);
            }
        }
        capture.add(entry);
    }

    /// Write what was gathered, once there is enough of it or nothing more to gather.
    pub(super) fn flush_capture(&mut self, busy: bool) {
        let Some(capture) = &mut self.capture else { return };
        if !busy || capture.is_full() {
            let flushed = capture.flush();
            capture.look_at_pace();
            self.capture_result(flushed);
        }
    }

    fn capture_result(&mut self, result: io::Result<bool>) {
        match result {
            Ok(true) => {}
            Ok(false) => self.nap = true,
            Err(error) => {
                let Some(capture) = self.capture.take() else { return };
                let errno = error.raw_os_error().unwrap_or(libc::EIO);
                self.capture_ended = (capture.written, capture.lost(), capture.size(), errno);
                self.news.retain(|news| !matches!(news, News::Full(_)));
                self.news.push(News::Ended(capture.settings.port, errno));
            }
        }
    }
}
