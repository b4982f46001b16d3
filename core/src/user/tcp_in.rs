//! What a guest sends goes into its socket.
//!
//! What is in order and fits is written from the memory it lies in. What the kernel has no room for, and what lies beyond a
//! hole, is copied once and kept (held.rs); it goes to the socket when there is room, or when the hole is filled. What is not
//! kept is not acknowledged either, and the guest sends it again.

use std::io;

use super::Core;
use super::ranges::{before, later};
use super::segment::{FIN, SYN, Segment};
use super::tcp::{Tcp, flag};

impl Tcp {
    /// Take the payload and the FIN of a segment, as far as they lie in the window.
    ///
    /// # Safety
    /// The payload is readable for its length.
    pub unsafe fn take(&mut self, core: &mut Core, segment: &Segment) {
        let begin = segment.seq.wrapping_add(u32::from(segment.flags & SYN != 0));
        let mut end = begin.wrapping_add(segment.len as u32);
        if !self.is(flag::GUEST_FIN) {
            if segment.flags & FIN != 0 && !before(end, self.rcv_nxt) {
                self.held.fin.get_or_insert(end);
            }
            for limit in [Some(self.edge()), self.held.fin].into_iter().flatten() {
                end = if before(limit, end) { limit } else { end };
            }
            let from = later(begin, self.rcv_nxt);
            // SAFETY: `from..end` lies within the payload.
            if before(from, end) && !unsafe { self.place(core, segment.payload.wrapping_add(from.wrapping_sub(begin) as usize), from, end) }
            {
                return;
            }
            let run = self.held.run(self.rcv_nxt.wrapping_sub(self.pending));
            self.pending = self.pending.wrapping_add(run.wrapping_sub(self.rcv_nxt));
            self.rcv_nxt = run;
            if self.held.fin == Some(run) {
                self.rcv_nxt = run.wrapping_add(1);
                self.flags |= flag::GUEST_FIN;
            }
        }
        self.rcv_edge = later(self.rcv_edge, self.rcv_nxt);
        if !self.is(flag::SACK) && before(self.rcv_nxt, begin) {
            // A guest without SACK counts how many came too early.
            self.more_acks = self.more_acks.saturating_add(u8::from(self.is(flag::SAY_ACK))).min(8);
        }
        self.say(core, flag::SAY_ACK);
        self.drain(core);
    }

    /// Put what came where it belongs; false where the socket has failed.
    ///
    /// # Safety
    /// `at` points to the bytes of `from..end`, of which none is in the socket.
    unsafe fn place(&mut self, core: &mut Core, at: *const u8, from: u32, end: u32) -> bool {
        let mut done = 0;
        for (begin, stop) in self.held.missing(from, end) {
            if from == self.rcv_nxt && begin == done && begin == 0 && self.pending == 0 {
                self.hurry();
                let Some(socket) = &self.socket else { return false };
                // SAFETY: as the caller promises.
                match unsafe { socket.write(at, stop) } {
                    Ok(count) => done = count,
                    Err(error) if is_full(&error) => {}
                    Err(_) => {
                        self.fail(core);
                        return false;
                    }
                }
                self.rcv_nxt = self.rcv_nxt.wrapping_add(done as u32);
                self.bytes_in += done as u64;
            }
            let begin = begin.max(done);
            if begin == stop {
                continue;
            }
            let mut bytes = vec![0; stop - begin];
            // SAFETY: as the caller promises.
            unsafe { std::ptr::copy_nonoverlapping(at.add(begin), bytes.as_mut_ptr(), bytes.len()) };
            if !core.hold(&mut self.held, from.wrapping_add(begin as u32), bytes) {
                break;
            }
        }
        true
    }

    /// Before a write: from the second on, none waits for the far end's ACK (Nagle). Those with one are spared the call.
    fn hurry(&mut self) {
        if let Some(socket) = &self.socket
            && self.is_tcp
            && self.flags & (flag::WROTE | flag::HURRIES) == flag::WROTE
        {
            let _ = socket.set(libc::IPPROTO_TCP, libc::TCP_NODELAY, 1);
            self.flags |= flag::HURRIES;
        }
        self.flags |= flag::WROTE;
    }

    /// Have epoll say from now on when the socket has room: few flows ever fill theirs.
    fn ask_for_room(&mut self, core: &Core) {
        if let Some(socket) = &self.socket
            && !self.is(flag::ROOMY)
        {
            self.flags |= flag::ROOMY;
            core.watch_room(socket, self.token);
        }
    }

    /// Write what is in order and waits; then the guest's end.
    pub fn drain(&mut self, core: &mut Core) {
        while self.pending > 0 {
            self.ask_for_room(core);
            self.hurry();
            let oldest = self.rcv_nxt.wrapping_sub(self.pending).wrapping_sub(u32::from(self.is(flag::GUEST_FIN)));
            let (Some(socket), Some(bytes)) = (&self.socket, self.held.first(oldest)) else { return };
            // SAFETY: the bytes are a slice.
            match unsafe { socket.write(bytes.as_ptr(), bytes.len()) } {
                Ok(count) => {
                    let size = self.held.size;
                    self.held.drop_first(count);
                    core.held -= size - self.held.size;
                    self.pending -= count as u32;
                    self.bytes_in += count as u64;
                }
                Err(error) if is_full(&error) => return, // epoll says when there is room
                Err(_) => return self.fail(core),
            }
        }
        if self.is(flag::GUEST_FIN) && !self.is(flag::SHUT) {
            self.flags |= flag::SHUT;
            if let Some(socket) = &self.socket
                && !self.is(flag::FIN_ACKED)
            {
                socket.shut_writing(); // else it is closed now, which does the same
            }
            self.maybe_over(core);
        }
    }
}

fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}
