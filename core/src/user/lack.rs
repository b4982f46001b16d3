//! What there was none of when a guest wanted a new flow: each frame that was in vain is counted, and the lab's log has a line a minute.
//!
//! A flow takes a place in a table, a descriptor, and a port of this host; a guest of TCP is told by a reset, one of UDP or echo by
//! nothing, as with any router. So it is for the counters to say which of the three it was: `tx_flows`, `tx_sockets`, `tx_ports`.

use std::io;

use crate::ports::Cause;

const AGAIN_MS: u64 = 60_000;

/// Why a flow was not opened.
#[derive(Debug)]
pub enum Unopened {
    /// One of the causes above, or `TxFull`: the system has no memory.
    Lack(Cause),
    Failed(io::Error),
}

impl From<io::Error> for Unopened {
    fn from(error: io::Error) -> Unopened {
        match error.raw_os_error().unwrap_or(0) {
            libc::EMFILE | libc::ENFILE => Unopened::Lack(Cause::TxSockets),
            libc::EADDRINUSE => Unopened::Lack(Cause::TxPorts), // of bind() to any port
            libc::ENOBUFS | libc::ENOMEM | libc::EAGAIN => Unopened::Lack(Cause::TxFull),
            _ => Unopened::Failed(error),
        }
    }
}

/// When each was told last.
#[derive(Debug, Default)]
pub struct Told([Option<u64>; 3]);

impl Told {
    /// Is it time to tell that this is lacking? Then it counts as told.
    pub fn is_due(&mut self, cause: Cause, now_ms: u64) -> bool {
        let at = match cause {
            Cause::TxFlows => 0,
            Cause::TxSockets => 1,
            Cause::TxPorts => 2,
            _ => return false,
        };
        let is_due = self.0[at].is_none_or(|told_ms| now_ms >= told_ms + AGAIN_MS);
        if is_due {
            self.0[at] = Some(now_ms);
        }
        is_due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_is_told_at_once_and_then_once_a_minute() {
        let mut told = Told::default();
        assert!(told.is_due(Cause::TxFlows, 5) && !told.is_due(Cause::TxFlows, 60_004) && told.is_due(Cause::TxPorts, 60_004));
        assert!(told.is_due(Cause::TxFlows, 60_005) && !told.is_due(Cause::TxFull, 60_005));
    }
}
