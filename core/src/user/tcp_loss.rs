//! What of a flow's data the guest has lost, and how that is found out (RFC 6675, RFC 6582 without SACK, RFC 8985 for tails).
//!
//! A mark runs over what is in flight: what lies between `again` and `again_to`, and is not in a part that the guest
//! reported, is lost and is sent again as the window allows. Repeated ACKs let the mark begin at the oldest byte; it goes as
//! far as three segments have arrived from beyond. When it has come to its end and what was sent after that is reported, what
//! is still missing was lost a second time, and the mark begins anew. The retransmission timer declares lost all that is not
//! reported. When the last segments are lost nothing repeats an ACK: so the last one is sent again, early, to provoke one.

use std::io;

use super::Core;
use super::held::BLOCKS;
use super::ranges::{before, later};
use super::tcp::{CWND_MOST, Tcp, flag};

/// Segments beyond a hole that make it a loss.
const REORDERED: u32 = 3; // RFC 6675, DupThresh

impl Tcp {
    pub fn flight(&self) -> u32 {
        self.snd_nxt.wrapping_sub(self.snd_una)
    }

    /// What is lost and was not sent again yet.
    fn lost(&self) -> u32 {
        self.again_to.wrapping_sub(self.again) - self.sacked.within(self.again, self.again_to)
    }

    /// What is on its way, as far as we know (RFC 6675, 4).
    pub fn pipe(&self) -> u32 {
        self.flight() - self.sacked.sum() - self.lost()
    }

    pub fn is_mending(&self) -> bool {
        before(self.snd_una, self.recover)
    }

    /// The next gap to be filled.
    pub fn gap(&self) -> Option<(u32, u32)> {
        self.sacked.gap(self.again, self.again_to)
    }

    /// The guest has `acked` more of what we sent.
    pub fn progress(&mut self, core: &mut Core, acked: u32) {
        self.snd_una = self.snd_una.wrapping_add(acked);
        if self.sacked.begin() == Some(self.snd_una) {
            self.sacked.clear(); // it has thrown away what it had reported: RFC 2018, 8
        }
        self.sacked.forget_before(self.snd_una);
        self.again = later(self.again, self.snd_una);
        self.again_to = later(self.again_to, self.snd_una);
        self.again_ended = later(self.again_ended, self.snd_una);
        self.peeked = later(self.peeked, self.snd_una);
        let mut bytes = acked;
        if self.is(flag::FIN_SENT) && self.snd_una == self.snd_nxt && !self.is(flag::FIN_ACKED) {
            self.flags |= flag::FIN_ACKED;
            bytes -= 1;
        }
        if bytes > 0 && self.discard(core, bytes as usize).is_err() {
            return self.fail(core);
        }
        self.bytes_out += u64::from(bytes);
        if self.timed_ms != 0 && !before(self.snd_una, self.timed) {
            self.measure((core.now_ms - self.timed_ms) as u32);
            self.timed_ms = 0;
        }
        self.tries = 0;
        self.dup_acks = 0;
        self.flags &= !flag::TAILED;
        self.since_ms = core.now_ms;
        self.cwnd = self.cwnd.saturating_add(acked).min(CWND_MOST);
        if self.is_mending() && self.again == self.again_to && self.again == self.snd_una {
            // What fills a hole is acknowledged up to the next: RFC 6582, 3.2.
            self.lose_first();
            if self.is(flag::SACK) && self.sacked.is_empty() {
                self.again_to = self.recover;
            }
        }
        self.list(core);
        self.maybe_over(core);
    }

    fn discard(&mut self, core: &mut Core, len: usize) -> io::Result<()> {
        let Some(socket) = &self.socket else { return Ok(()) };
        let got = if self.is_tcp { socket.discard(len) } else { socket.discard_into(len, &mut core.waste) };
        // What was looked at is there; less can only mean that the kernel lost it with the connection.
        got.and_then(|got| if got == len { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) })
    }

    /// Remember what the guest reports; true where that is news. Blocks that make no sense, and those about what was
    /// acknowledged (D-SACK, RFC 2883), say nothing.
    pub fn note(&mut self, blocks: &[(u32, u32); BLOCKS]) -> bool {
        let is_sane = |&&(from, to): &&(u32, u32)| {
            before(from, to) && before(self.snd_una, from) && !before(self.snd_nxt, to) && to.wrapping_sub(self.snd_una) <= self.flight()
        };
        let sane: Vec<_> = blocks.iter().filter(is_sane).copied().collect();
        sane.into_iter().fold(false, |news, (from, to)| self.sacked.add(from, to) | news)
    }

    /// The guest said again that it misses something.
    pub fn mend(&mut self, core: &mut Core) {
        let mss = u32::from(self.mss);
        let enough = if self.is(flag::TAILED) { 1 } else { REORDERED * mss };
        let lost_to = self.sacked.lost_before(enough);
        if !self.is_mending() {
            if lost_to.is_none() && self.dup_acks < REORDERED as u8 {
                return;
            }
            self.recover = self.snd_nxt;
            self.shrink();
            self.timed_ms = 0;
            self.lose_first();
        } else if let Some(lost_to) = lost_to
            && self.again == self.again_to
            && before(self.again_ended, lost_to)
        {
            self.again = self.snd_una; // what was sent again is lost again
        }
        if let Some(lost_to) = lost_to {
            self.again_to = later(self.again_to, lost_to);
        }
        self.list(core);
    }

    /// The oldest segments are lost: with SACK one, or up to what is known to be there; without, a frame's worth.
    fn lose_first(&mut self) {
        let most = if self.is(flag::SACK) { self.mss.into() } else { 1 << 16 };
        let end = self.snd_una.wrapping_add(self.flight().min(most));
        self.again = self.snd_una;
        self.again_to = match self.sacked.begin() {
            Some(begin) if before(begin, end) => begin,
            _ => end,
        };
    }

    /// Nothing that was not reported has arrived.
    pub fn lose_all(&mut self) {
        self.recover = self.snd_una;
        (self.again, self.again_to) = (self.snd_una, self.snd_nxt);
        self.timed_ms = 0;
        self.dup_acks = 0;
    }

    /// May the last segment be sent again before all is declared lost?
    pub fn may_tail(&self) -> bool {
        !self.is(flag::TAILED)
            && self.tries == 0
            && self.srtt_ms != 0
            && self.wnd > 0
            && self.flight() > self.mss.into()
            && self.again == self.again_to
            && !self.is_mending()
    }

    /// Send the last segment again (RFC 8985, 7.3).
    pub fn tail(&mut self) {
        self.flags |= flag::TAILED;
        self.again = self.snd_nxt.wrapping_sub(self.mss.into());
        self.again_to = self.snd_nxt;
    }

    pub fn shrink(&mut self) {
        self.cwnd = (self.flight() / 2).max(10 * u32::from(self.mss));
    }
}
