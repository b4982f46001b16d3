//! Time in a TCP flow: what is sent again when nobody answered, and when a flow is given up.
//!
//! The retransmission timer follows RFC 6298 in milliseconds, with a floor of 200. When it rings, all that the guest has not
//! reported begins again at its oldest byte, in a small window; before it first does, the last segment is sent again. A closed window is probed with one byte, every five seconds at the
//! latest. A guest silent for ten minutes is asked whether it is still there.

use super::Core;
use super::tcp::{State, Tcp, flag};

const RTO_LEAST_MS: u32 = 200;
const RTO_MOST_MS: u64 = 60_000;
/// How long the guest may take at least to acknowledge several segments.
const TAIL_LEAST_MS: u64 = 20;
const PERSIST_MOST_MS: u64 = 5_000;
/// Times that something unanswered is sent before the flow is given up, and for how long the guest was silent by then.
const TRIES: u8 = 8;
const SILENCE_MS: u64 = 30_000;
const CALLS: u8 = 6;
const KEEPALIVE_MS: u64 = 600_000;
const KEEPALIVE_STEP_MS: u64 = 30_000;
const KEEPALIVES: u8 = 5;
/// How long a flow that has ended answers for a lost ACK (a port may be used again at once): four times that a guest asks.
const REST_MS: u64 = 3_000;

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
            State::Resting => self.since_ms + if self.is(flag::KNOWN) { 0 } else { REST_MS },
            State::Open if self.may_tail() => self.since_ms + self.tail_ms(),
            State::Open if self.snd_una != self.snd_nxt => {
                self.since_ms + backed_off(if self.wnd == 0 { PERSIST_MOST_MS } else { RTO_MOST_MS })
            }
            State::Open if self.is(flag::STALLED) => self.since_ms + backed_off(PERSIST_MOST_MS),
            State::Open => self.heard_ms + KEEPALIVE_MS + u64::from(self.tries) * KEEPALIVE_STEP_MS,
        };
        self.alarm.set(&mut core.wheel, self.token, at);
    }

    /// RFC 8985, 7.2.
    fn tail_ms(&self) -> u64 {
        u64::from(2 * self.srtt_ms).max(TAIL_LEAST_MS).min(self.rto_ms.into())
    }

    /// New data, or an end, was sent from `before` on.
    pub fn sent(&mut self, core: &Core, before: u32) {
        if self.snd_una == before {
            self.since_ms = core.now_ms;
        }
        if self.timed_ms == 0 && self.tries == 0 {
            (self.timed, self.timed_ms) = (self.snd_nxt, core.now_ms);
        }
    }

    pub fn restart_clock(&mut self, now_ms: u64) {
        self.since_ms = now_ms;
    }

    /// What was sent again says nothing about the round trip (Karn).
    pub fn timed_off(&mut self) {
        self.timed_ms = 0;
    }

    /// The flow came up in the wheel, so it has lived for a while: a short one is spared the call.
    pub fn watch(&mut self) {
        if let Some(socket) = &self.socket
            && self.is_tcp
            && !self.is(flag::WATCHED)
        {
            socket.watch_far_end();
            self.flags |= flag::WATCHED;
        }
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
                self.timed_off();
                self.say(core, flag::SAY_SYN);
            }
            State::Open if self.may_tail() && core.now_ms < self.since_ms + u64::from(self.rto_ms) => {
                self.tail();
                self.list(core);
            }
            State::Open if self.snd_una != self.snd_nxt || self.is(flag::STALLED) => {
                self.tries = self.tries.saturating_add(1);
                if self.tries > TRIES && silent {
                    self.say(core, flag::SAY_RST);
                    return;
                }
                if self.snd_una != self.snd_nxt && self.wnd > 0 {
                    self.shrink();
                }
                if self.tries > 1 {
                    self.sacked.clear(); // the guest may have thrown away what it had reported: RFC 2018, 8
                }
                self.lose_all();
                self.flags &= !flag::STALLED;
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
}
