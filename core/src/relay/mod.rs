//! The usual way of a DNS question through a forwarder: asked of one resolver, answered by it.
//!
//! ```text
//!   a query ──take──> known elsewhere, or not usual ──> left to Python
//!      │                the same under way ──> waits with it
//!      └── asked: a socket, a port and an id of its own ──ready──> usual ──> all who asked; Python keeps it
//!                                                             ├──> anything else ──> handed to Python, socket and all
//!                                                             └──late──> the same
//! ```
//!
//! Python decides (shardnet/dns/forward.py): whom to ask, what comes after a refusal, silence, a cut answer or a forbidden
//! address, and what is kept. What it has said stands in `Target`, `Limits` and `Inside`; what it knows is asked through `Host`.
//! Here is what every question costs: to be read, to be compared with what is under way, a datagram out and one in, checks.
//!
//! An answer counts when it came to the socket of the question, which is connected, with its id, repeating the question (RFC
//! 5452, 9.1). What one guest may have under way is bounded, and what waits behind that; so is the whole. A question that was
//! handed over counts until Python says that it is done.

mod sockets;
#[cfg(test)]
mod tests;
pub mod wire;

use std::collections::{HashMap, VecDeque};
use std::io;
use std::os::fd::{AsRawFd, RawFd};

use crate::sys;
use crate::user::socket::Name;
use sockets::Sockets;
pub use sockets::Token;
pub use wire::{Inside, Kept};
use wire::{Query, Said};

pub type Mac = [u8; 6];

/// How much of its rate a guest may save up.
const BURST_NS: u64 = 1_000_000_000;
/// Behind the name in a key: type, class, three flags.
pub const KEY_END: usize = 7;

/// What a guest, and all of them, may have.
pub struct Limits {
    /// Under way and waiting, of one guest.
    pub guest: usize,
    pub waiting: usize,
    pub wait_ns: u64,
    pub all: usize,
    pub guests: usize,
    /// Who wait for one question.
    pub askers: usize,
    /// Questions a second of one guest; 0: any number.
    pub rate: f64,
    /// Bytes of an answer.
    pub size: u16,
}

/// Whom to ask for the names of a domain.
pub struct Target {
    /// By which Python knows it.
    pub id: usize,
    /// On the wire, in lower case; the root's for all names.
    pub domain: Vec<u8>,
    pub name: Name,
    /// It knows OPT, as far as is known.
    pub edns: bool,
    /// How long its answer is waited for before somebody else is asked too; it follows what the ones before took.
    pub patience_ns: u64,
    /// How often it has answered since somebody looked.
    pub answers: u64,
}

/// The bounds of a patience, and its share of the next one: four times the usual time, as RFC 6298 has it.
pub struct Patience {
    pub least_ns: u64,
    pub most_ns: u64,
}

pub struct Asker<A> {
    query: Query,
    pub payload: Box<[u8]>,
    /// It gets the message as it came.
    raw: bool,
    pub to: A,
}

/// What became of a question that Python takes over.
pub enum Why<'a> {
    Late,
    Broken,
    Said(&'a [u8]),
}

/// A question under way.
pub struct Flight<A> {
    pub key: Vec<u8>,
    pub guest: Mac,
    pub target: usize,
    pub ident: u16,
    pub edns: bool,
    pub since_ns: u64,
    pub askers: Vec<Asker<A>>,
}

/// Who does the rest.
pub trait Host<A> {
    /// Whether it knows a question, answered, under way or its own.
    fn knows(&mut self, key: &[u8]) -> bool;
    /// Send an answer.
    fn say(&mut self, to: &A, answer: &[u8]);
    /// Give a message to who wanted all of it.
    fn hear(&mut self, to: A, message: &[u8]);
    /// Keep an answer; the records begin at `start`.
    fn keep(&mut self, key: &[u8], kept: &Kept, records: &[u8]);
    /// Answer a query.
    fn leave(&mut self, to: A);
    /// Go on with a question, whose socket is open.
    fn hand(&mut self, token: Token, flight: Flight<A>, why: Why);
    /// Something came, or none will, to a socket that the host sent from.
    fn came(&mut self, token: Token, message: Option<&[u8]>);
}

#[derive(Default)]
pub struct Counts {
    pub forwarded: u64,
    pub merged: u64,
    pub limited: u64,
    pub strange: u64,
    pub truncated: u64,
}

struct Waiting<A> {
    key: Vec<u8>,
    asker: Asker<A>,
    since_ns: u64,
}

struct Guest<A> {
    under_way: usize,
    waiting: VecDeque<Waiting<A>>,
    credit: f64,
    since_ns: u64,
}

pub struct Relay<A> {
    sockets: Sockets,
    limits: Limits,
    patience: Patience,
    inside: Inside,
    targets: Vec<Target>,
    flights: HashMap<Token, Flight<A>>,
    by_key: HashMap<Vec<u8>, Token>,
    /// When each is late, in about this order; some are over already.
    due: VecDeque<(u64, Token)>,
    guests: HashMap<Mac, Guest<A>>,
    /// Questions that Python goes on with.
    handed: usize,
    /// Guests that may have another question under way.
    freed: Vec<Mac>,
    random: Vec<u16>,
    key: Vec<u8>,
    out: Vec<u8>,
    buffer: Vec<u8>,
    pub counts: Counts,
}

impl<A> Relay<A> {
    pub fn new(limits: Limits, patience: Patience, inside: Inside) -> io::Result<Relay<A>> {
        Ok(Relay {
            sockets: Sockets::new()?,
            limits,
            patience,
            inside,
            targets: Vec::new(),
            flights: HashMap::new(),
            by_key: HashMap::new(),
            due: VecDeque::new(),
            guests: HashMap::new(),
            handed: 0,
            freed: Vec::new(),
            random: Vec::new(),
            key: Vec::new(),
            out: Vec::new(),
            buffer: vec![0; sockets::DATAGRAM_MOST],
            counts: Counts::default(),
        })
    }

    /// Readable when `ready` has something to do.
    pub fn fd(&self) -> RawFd {
        self.sockets.epoll.as_raw_fd()
    }

    /// Ask these from now on; what is under way goes on.
    pub fn aim(&mut self, targets: Vec<Target>) {
        self.targets = targets;
    }

    pub fn targets(&mut self) -> &mut [Target] {
        &mut self.targets
    }

    /// Whether `late` will have something to do.
    pub fn is_busy(&self) -> bool {
        !self.flights.is_empty() || !self.freed.is_empty()
    }

    /// Take a guest's query: asked, or in the hands of the host.
    pub fn take(&mut self, payload: &[u8], guest: Mac, to: A, now_ns: u64, host: &mut impl Host<A>) {
        let Some(query) = Query::read(payload, self.limits.size) else { return host.leave(to) };
        query.key(payload, &mut self.key);
        let asker = Asker { query, payload: payload.into(), raw: false, to };
        if let Some(token) = self.by_key.get(&self.key) {
            let token = *token;
            return self.merge(token, asker, host);
        }
        if host.knows(&self.key) || self.target(&self.key).is_none() {
            return host.leave(asker.to);
        }
        let (rate, under_way) = (self.limits.rate, self.flights.len() + self.handed);
        let Some(known) = self.guest(guest, now_ns) else { return self.counts.limited += 1 };
        if rate > 0.0 && !known.may(rate, now_ns) {
            return self.counts.limited += 1;
        }
        let known = self.guests.get_mut(&guest).expect("guest() has just found it");
        if known.under_way < self.limits.guest && under_way < self.limits.all {
            let key = self.key.clone();
            return self.start(key, asker, guest, now_ns, host);
        }
        if known.waiting.len() < self.limits.waiting && known.under_way > 0 {
            known.waiting.push_back(Waiting { key: self.key.clone(), asker, since_ns: now_ns });
        } else {
            self.refuse(&asker, host);
        }
    }

    /// Have the host hear the message that answers a question, where it is under way; else `to` comes back.
    pub fn join(&mut self, key: &[u8], to: A) -> Option<A> {
        let Some(flight) = self.by_key.get(key).and_then(|token| self.flights.get_mut(token)) else { return Some(to) };
        if flight.askers.len() >= self.limits.askers {
            return Some(to);
        }
        let first = &flight.askers[0];
        let asker = Asker { query: first.query, payload: first.payload.clone(), raw: true, to };
        flight.askers.push(asker);
        self.counts.merged += 1;
        None
    }

    /// Hand out what has come.
    pub fn ready(&mut self, now_ns: u64, host: &mut impl Host<A>) -> io::Result<()> {
        let mut buffer = std::mem::take(&mut self.buffer);
        for number in 0..self.sockets.poll()? {
            let Some((token, received)) = self.sockets.receive(number, &mut buffer) else { continue };
            let message = received.ok().map(|len| &buffer[..len]);
            let Some(flight) = self.flights.get(&token) else {
                host.came(token, message);
                continue;
            };
            let Some(message) = message else {
                self.hand(token, Why::Broken, host);
                continue;
            };
            let first = &flight.askers[0];
            let question = first.query.question(&first.payload);
            match wire::read(message, flight.ident, question, &self.inside) {
                Said::Strange => self.counts.strange += 1,
                Said::Unusual => self.hand(token, Why::Said(message), host),
                Said::Usual(kept) => {
                    let start = 12 + question.len();
                    self.finish(token, &kept, message, start, now_ns, host);
                }
            }
        }
        self.buffer = buffer;
        self.settle(now_ns, host);
        Ok(())
    }

    /// Hand over what was waited for long enough.
    pub fn late(&mut self, now_ns: u64, host: &mut impl Host<A>) {
        while let Some(&(due_ns, token)) = self.due.front() {
            if due_ns > now_ns && self.flights.contains_key(&token) {
                break;
            }
            self.due.pop_front();
            self.hand(token, Why::Late, host); // nothing where it is over
        }
        self.settle(now_ns, host);
    }

    /// Send for the host, which hears what `came`.
    pub fn send(&mut self, to: &Name, payload: &[u8]) -> io::Result<Token> {
        self.sockets.send(to, payload)
    }

    /// Close a socket of the host's, or of a question that was handed over.
    pub fn close(&mut self, token: Token) {
        self.sockets.close(token);
    }

    /// A question that was handed over is over.
    pub fn done(&mut self, guest: Mac) {
        self.handed = self.handed.saturating_sub(1);
        self.land(guest);
    }

    fn target(&self, key: &[u8]) -> Option<usize> {
        let mut name = &key[..key.len() - KEY_END];
        loop {
            if let Some(at) = self.targets.iter().position(|target| target.domain == name) {
                return Some(at);
            }
            match *name.first()? {
                0 => return None,
                step => name = &name[1 + usize::from(step)..],
            }
        }
    }

    fn guest(&mut self, mac: Mac, now_ns: u64) -> Option<&mut Guest<A>> {
        if self.guests.len() >= self.limits.guests && !self.guests.contains_key(&mac) {
            self.guests.retain(|_, guest| guest.under_way > 0 || now_ns.saturating_sub(guest.since_ns) < BURST_NS);
            if self.guests.len() >= self.limits.guests {
                return None;
            }
        }
        let credit = self.limits.rate;
        Some(self.guests.entry(mac).or_insert_with(|| Guest { under_way: 0, waiting: VecDeque::new(), credit, since_ns: now_ns }))
    }

    fn refuse(&mut self, asker: &Asker<A>, host: &mut impl Host<A>) {
        self.counts.limited += 1;
        asker.query.error(&asker.payload, wire::REFUSED, &mut self.out);
        host.say(&asker.to, &self.out);
    }

    fn merge(&mut self, token: Token, asker: Asker<A>, host: &mut impl Host<A>) {
        match self.flights.get_mut(&token) {
            Some(flight) if flight.askers.len() < self.limits.askers => {
                flight.askers.push(asker);
                self.counts.merged += 1;
            }
            _ => self.refuse(&asker, host),
        }
    }

    fn start(&mut self, key: Vec<u8>, asker: Asker<A>, guest: Mac, now_ns: u64, host: &mut impl Host<A>) {
        let Some(target) = self.target(&key) else { return host.leave(asker.to) };
        let Some(ident) = self.ident() else { return host.leave(asker.to) };
        let Target { id, name, edns, patience_ns, .. } = &self.targets[target];
        let (target, edns, due_ns) = (*id, *edns, now_ns + patience_ns);
        asker.query.ask(ident, &asker.payload, edns, &mut self.out);
        let Ok(token) = self.sockets.send(name, &self.out) else { return host.leave(asker.to) };
        if let Some(known) = self.guests.get_mut(&guest) {
            known.under_way += 1;
        }
        self.counts.forwarded += 1;
        self.due.push_back((due_ns, token));
        self.by_key.insert(key.clone(), token);
        self.flights.insert(token, Flight { key, guest, target, ident, edns, since_ns: now_ns, askers: vec![asker] });
    }

    fn finish(&mut self, token: Token, kept: &Kept, message: &[u8], start: usize, now_ns: u64, host: &mut impl Host<A>) {
        let Some(flight) = self.remove(token) else { return };
        self.sockets.close(token);
        if let Some(target) = self.targets.iter_mut().find(|target| target.id == flight.target) {
            let took_ns = now_ns.saturating_sub(flight.since_ns);
            let wait_ns = target.patience_ns / 8 * 7 + took_ns / 2;
            target.answers += 1;
            target.patience_ns = wait_ns.clamp(self.patience.least_ns, self.patience.most_ns);
        }
        let records = &message[start..kept.end];
        host.keep(&flight.key, kept, records);
        for asker in flight.askers {
            if asker.raw {
                host.hear(asker.to, message);
                continue;
            }
            self.counts.truncated += u64::from(asker.query.answer(&asker.payload, kept, records, &mut self.out));
            host.say(&asker.to, &self.out);
        }
        self.land(flight.guest);
    }

    fn hand(&mut self, token: Token, why: Why, host: &mut impl Host<A>) {
        if let Some(flight) = self.remove(token) {
            self.handed += 1;
            host.hand(token, flight, why);
        }
    }

    fn remove(&mut self, token: Token) -> Option<Flight<A>> {
        let flight = self.flights.remove(&token)?;
        self.by_key.remove(&flight.key);
        // Those in front that are over are forgotten here, so that the queue is as long as what is under way.
        while self.due.front().is_some_and(|(_, token)| !self.flights.contains_key(token)) {
            self.due.pop_front();
        }
        Some(flight)
    }

    /// A guest has one question less under way.
    fn land(&mut self, guest: Mac) {
        if let Some(known) = self.guests.get_mut(&guest) {
            known.under_way -= 1;
            if !known.waiting.is_empty() {
                self.freed.push(guest);
            }
        }
    }

    /// Start what has waited for a place.
    fn settle(&mut self, now_ns: u64, host: &mut impl Host<A>) {
        while let Some(mac) = self.freed.pop() {
            while let Some(guest) = self.guests.get_mut(&mac).filter(|guest| guest.under_way < self.limits.guest) {
                let Some(Waiting { key, asker, since_ns }) = guest.waiting.pop_front() else { break };
                if now_ns.saturating_sub(since_ns) > self.limits.wait_ns {
                    asker.query.error(&asker.payload, wire::SERVFAIL, &mut self.out);
                    host.say(&asker.to, &self.out);
                } else if let Some(token) = self.by_key.get(&key) {
                    let token = *token;
                    self.merge(token, asker, host);
                } else if host.knows(&key) {
                    host.leave(asker.to);
                } else {
                    self.start(key, asker, mac, now_ns, host);
                }
            }
        }
    }

    fn ident(&mut self) -> Option<u16> {
        if self.random.is_empty() {
            for _ in 0..64 {
                let bits = sys::random().ok()?;
                self.random.extend((0..4).map(|part| (bits >> (16 * part)) as u16));
            }
        }
        self.random.pop()
    }
}

impl<A> Guest<A> {
    fn may(&mut self, rate: f64, now_ns: u64) -> bool {
        let elapsed_s = now_ns.saturating_sub(self.since_ns) as f64 / 1e9;
        self.credit = (self.credit + elapsed_s * rate).min(rate * BURST_NS as f64 / 1e9);
        self.since_ns = now_ns;
        if self.credit < 1.0 {
            return false;
        }
        self.credit -= 1.0;
        true
    }
}
