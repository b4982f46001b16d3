//! Time in a TCP flow: what is sent again when nobody answered, and when a flow is given up.
//!
//! The retransmission timer follows RFC 6298 in milliseconds, with a floor of 200. When it rings, all that is in flight
//! begins again at its oldest byte, in a small window. A closed window is probed with one byte, every five seconds at the
//! latest. A guest silent for ten minutes is asked whether it is still there.

use super::Core;
use super::tcp::{State, Tcp, flag};

const RTO_LEAST_MS: u32 = 200;
const RTO_MOST_MS: u64 = 60_000;
const PERSIST_MOST_MS: u64 = 5_000;
/// Times that something unanswered is sent before the flow is given up, and for how long the guest was silent by then.
const TRIES: u8 = 8;
const SILENCE_MS: u64 = 30_000;
const CALLS: u8 = 6;
const KEEPALIVE_MS: u64 = 600_000;
const KEEPALIVE_STEP_MS: u64 = 30_000;
const KEEPALIVES: u8 = 5;
/// How long a flow that has ended answers for a lost ACK (a port may be used again at once).
const REST_MS: u64 = 1_000;

impl Tcp {
    /// RFC 6298, section 2.
    pub fn measure(&mut self, rtt_ms: u32) {
        let rtt = rtt_ms.max(1);
        if self.srtt_ms == 0 {
            (self.srtt_ms, self.rttvar_ms) = (rtt, rtt / 2);
        } else {
            self.rttvar_ms = (3 * self.rttvar_ms + self.srtt_ms.abs_diff(rtt)) / 4;
            self.srtt_ms = (7 * self.srtt_ms + rtt) / 8;
        }
        self.rto_ms = (self.srtt_ms + 4 * self.rttvar_ms).max(RTO_LEAST_MS);
    }

    /// Have the alarm ring when the flow next needs it.
    pub fn arm(&mut self, core: &mut Core) {
        let backed_off = |most: u64| (u64::from(self.rto_ms) << self.tries.min(10)).min(most);
        let at = match self.state {
            State::Connecting | State::Gone => return self.alarm.clear(),
            State::Calling | State::Answered => self.since_ms + backed_off(RTO_MOST_MS),
            State::Resting => self.since_ms + REST_MS,
            State::Open if self.snd_una != self.snd_max => {
                self.since_ms + backed_off(if self.wnd == 0 { PERSIST_MOST_MS } else { RTO_MOST_MS })
            }
            State::Open if self.is(flag::STALLED) => self.since_ms + backed_off(PERSIST_MOST_MS),
            State::Open => self.heard_ms + KEEPALIVE_MS + u64::from(self.tries) * KEEPALIVE_STEP_MS,
        };
        self.alarm.set(&mut core.wheel, self.token, at);
    }

    /// Something was sent that the guest is to acknowledge.
    pub fn sent(&mut self, core: &Core, before: u32) {
        let is_new = (self.snd_nxt.wrapping_sub(self.snd_max) as i32) > 0;
        if self.snd_una == before {
            self.since_ms = core.now_ms;
        }
        if is_new {
            self.snd_max = self.snd_nxt;
            if self.timed_ms == 0 && self.tries == 0 {
                (self.timed, self.timed_ms) = (self.snd_nxt, core.now_ms);
            }
        }
    }

    pub fn restart_clock(&mut self, now_ms: u64) {
        self.since_ms = now_ms;
    }

    /// What was sent again says nothing about the round trip (Karn).
    pub fn timed_off(&mut self) {
        self.timed_ms = 0;
    }

    /// The alarm rang.
    pub fn rang(&mut self, core: &mut Core) {
        let silent = core.now_ms.saturating_sub(self.heard_ms) >= SILENCE_MS;
        match self.state {
            State::Connecting | State::Gone => {}
            State::Resting => self.state = State::Gone,
            State::Calling | State::Answered => {
                self.tries += 1;
                if self.tries > CALLS {
                    return self.abort();
                }
                self.since_ms = core.now_ms;
                self.say(core, flag::SAY_SYN);
            }
            State::Open if self.snd_una != self.snd_max || self.is(flag::STALLED) => {
                self.tries = self.tries.saturating_add(1);
                if self.tries > TRIES && silent {
                    self.say(core, flag::SAY_RST);
                    return;
                }
                if self.snd_una != self.snd_max && self.wnd > 0 {
                    self.shrink();
                }
                self.rewind(core);
                self.since_ms = core.now_ms;
                let probe = if self.wnd == 0 { flag::PROBE } else { 0 };
                self.say(core, flag::READABLE | probe);
            }
            State::Open => {
                self.tries += 1;
                if self.tries > KEEPALIVES {
                    self.say(core, flag::SAY_RST);
                    return;
                }
                self.say(core, flag::KEEPALIVE | flag::SAY_ACK);
            }
        }
    }

    /// Begin again at the oldest byte that was not acknowledged.
    pub fn rewind(&mut self, core: &Core) {
        self.recover = self.snd_una;
        self.snd_nxt = self.snd_una;
        self.timed_ms = 0;
        self.dup_acks = 0;
        self.flags &= !(flag::HOST_END | flag::RESEND | flag::STALLED);
        self.flags |= flag::READABLE;
        if let Some(socket) = &self.socket
            && core.peek_off
        {
            socket.peek_from(0);
        }
    }
}
