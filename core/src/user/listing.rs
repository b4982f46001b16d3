//! The flows of a network as they are told to who asks: in parts, so that no frame waits for the whole list.
//!
//! A part begins where the one before it ended, by table and slot. A flow stays in its slot, so it is told once, with what
//! is true of it then; one that comes or goes between two parts may be told or not.

use super::flows::Endpoint;
use super::tcp::{State, Tcp, flag};
use super::udp::Traffic;
use super::{Network, kind};

/// Slots looked at for one part, whether there are flows in them or not.
const LOOK_MOST: usize = 16_384;

/// One flow. Times are milliseconds, bytes are payload.
pub struct Flow {
    pub protocol: &'static str,
    pub state: &'static str,
    /// A client of the host's opened it, by hostfwd.
    pub inward: bool,
    pub guest: Endpoint,
    /// As the guest sees it. Of UDP and echo, who was heard or spoken to last.
    pub far: Option<Endpoint>,
    /// The host's socket; None for unix sockets and one that is gone.
    pub local: Option<Endpoint>,
    pub from_guest: u64,
    pub to_guest: u64,
    pub age_ms: u64,
    pub idle_ms: u64,
    /// What was sent to the guest again; only TCP does.
    pub resent: Option<u32>,
}

impl Network {
    /// At most `most` flows from `cursor` on, which is 0 for the first; and where to go on, None at the end.
    pub fn flows(&self, cursor: u64, most: usize) -> (Vec<Flow>, Option<u64>) {
        let (table, from) = ((cursor >> 32) as u8, cursor as u32 as usize);
        let table = table.max(kind::TCP);
        let mut found = Vec::new();
        let (slots, next) = match table {
            kind::TCP => {
                let slots = self.tcp.slots();
                let to = from.saturating_add(LOOK_MOST);
                let next = collect(&mut found, most, self.tcp.between(from, to), to, |ends, tcp| {
                    let local = tcp.socket.as_ref().and_then(|socket| socket.local());
                    self.flow("tcp", state(tcp), ends.guest, Some(ends.far), local, &Seen::of_tcp(tcp))
                });
                (slots, next)
            }
            kind::UDP => {
                let to = from.saturating_add(LOOK_MOST);
                let next = collect(&mut found, most, self.udp.between(from, to), to, |guest, udp| {
                    let seen = Seen::of(&udp.traffic, udp.used_ms, udp.is_fixed());
                    self.flow("udp", udp.state(), *guest, self.far(&udp.traffic), udp.socket().local(), &seen)
                });
                (self.udp.slots(), next)
            }
            kind::PING => {
                let to = from.saturating_add(LOOK_MOST);
                let next = collect(&mut found, most, self.ping.between(from, to), to, |key, ping| {
                    let guest = Endpoint { ip: key.guest, port: key.id };
                    let seen = Seen::of(&ping.traffic, ping.used_ms(), false);
                    self.flow("icmp", "echo", guest, self.far(&ping.traffic), ping.socket().local(), &seen)
                });
                (self.ping.slots(), next)
            }
            _ => return (found, None),
        };
        let (table, next) = if next < slots { (table, next) } else { (table + 1, 0) };
        (found, (table <= kind::PING).then_some(u64::from(table) << 32 | next as u64))
    }

    fn far(&self, traffic: &Traffic) -> Option<Endpoint> {
        traffic.far.map(|far| Endpoint { ip: self.core.config.seen(far.ip), port: far.port })
    }

    fn flow(
        &self,
        protocol: &'static str,
        state: &'static str,
        guest: Endpoint,
        far: Option<Endpoint>,
        local: Option<Endpoint>,
        seen: &Seen,
    ) -> Flow {
        let since = |ms: u64| self.core.now_ms.saturating_sub(ms);
        Flow {
            protocol,
            state,
            inward: seen.inward,
            guest,
            far,
            local,
            from_guest: seen.from_guest,
            to_guest: seen.to_guest,
            age_ms: since(seen.since_ms),
            idle_ms: since(seen.used_ms),
            resent: seen.resent,
        }
    }
}

/// What is counted of any flow.
struct Seen {
    inward: bool,
    from_guest: u64,
    to_guest: u64,
    since_ms: u64,
    used_ms: u64,
    resent: Option<u32>,
}

impl Seen {
    fn of(traffic: &Traffic, used_ms: u64, inward: bool) -> Seen {
        let &Traffic { from_guest, to_guest, since_ms, .. } = traffic;
        Seen { inward, from_guest, to_guest, since_ms, used_ms, resent: None }
    }

    fn of_tcp(tcp: &Tcp) -> Seen {
        Seen {
            inward: tcp.inward != 0,
            from_guest: tcp.bytes_in,
            to_guest: tcp.bytes_out,
            since_ms: tcp.opened_ms,
            used_ms: tcp.heard_ms.max(tcp.since_ms),
            resent: Some(tcp.resent),
        }
    }
}

/// Tell flows until there are `most`; the slot to go on at, `to` where all of them were told.
fn collect<'a, K: 'a, V: 'a>(
    found: &mut Vec<Flow>,
    most: usize,
    flows: impl Iterator<Item = (usize, &'a K, &'a V)>,
    to: usize,
    tell: impl Fn(&K, &V) -> Flow,
) -> usize {
    for (slot, key, value) in flows {
        if found.len() >= most {
            return slot;
        }
        found.push(tell(key, value));
    }
    to
}

/// RFC 9293's word for the state that our end is in towards the guest.
fn state(tcp: &Tcp) -> &'static str {
    match tcp.state {
        State::Connecting => "connecting",
        State::Answered => "syn-received",
        State::Calling => "syn-sent",
        State::Resting => "time-wait",
        State::Gone => "closed",
        State::Open => match (tcp.is(flag::GUEST_FIN), tcp.is(flag::FIN_SENT), tcp.is(flag::FIN_ACKED)) {
            (false, false, _) => "established",
            (false, true, false) => "fin-wait-1",
            (false, true, true) => "fin-wait-2",
            (true, false, _) => "close-wait",
            (true, true, _) => "last-ack",
        },
    }
}
