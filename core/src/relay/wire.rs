//! DNS messages, as much of them as is met a thousand times a second (RFC 1035, 4.1; RFC 6891).
//!
//! What is usual is read here, by the rules of shardnet/dns/wire.py and answers.py, and so is all that there is to say about it.
//! None, or `Said::Unusual`, leaves a message to those: errors, refusals, cut or broken messages, addresses that may have to be
//! stripped. Names are stepped over and pointers never followed, so each loop ends with the message.

const HEADER: usize = 12;
const NAME_MOST: usize = 255;
const QUERY_MOST: usize = HEADER + NAME_MOST + 4 + 11 + 1024;
/// Of a UDP answer to a query without OPT (RFC 1035, 4.2.1).
const PLAIN: u16 = 512;

const QR: u16 = 0x8000;
const OPCODE: u16 = 0x7800;
const TC: u16 = 0x0200;
const RD: u16 = 0x0100;
const RA: u16 = 0x0080;
const AD: u16 = 0x0020;
const CD: u16 = 0x0010;
const RCODE: u16 = 0x000f;
const DO: u8 = 0x80;
pub const SERVFAIL: u16 = 2;
const NXDOMAIN: u16 = 3;
pub const REFUSED: u16 = 5;

const A: u16 = 1;
const SOA: u16 = 6;
const AAAA: u16 = 28;
const OPT: u16 = 41;
const SVCB: u16 = 64;
const HTTPS: u16 = 65;
const ANY: u16 = 255;
const IN: u16 = 1;
/// Types that are no question to a forwarder: OPT, TKEY, TSIG, IXFR, AXFR, MAILB, MAILA (RFC 6895, 3.1).
const NEVER_ASKED: [u16; 7] = [OPT, 249, 250, 251, 252, 253, 254];

/// The payload that we say we take, and send with: what passes the Internet without fragments (DNS flag day 2020).
const PAYLOAD: u16 = 1232;
const TTL_MOST_S: u32 = 86_400;
const NEGATIVE_MOST_S: u32 = 10_800; // RFC 2308, 5

fn word(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes([*bytes.get(at)?, *bytes.get(at + 1)?]))
}

fn long(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

/// A question as a client asked it.
#[derive(Debug, Clone, Copy)]
pub struct Query {
    ident: u16,
    flags: u16,
    /// Where the question ends, which begins behind the header.
    end: usize,
    /// The largest answer over UDP.
    size: u16,
    edns: bool,
    dnssec: bool,
}

impl Query {
    /// Read a query whose answer may have `most` bytes; None where it is not a plain question.
    pub fn read(payload: &[u8], most: u16) -> Option<Query> {
        let (ident, flags) = (word(payload, 0)?, word(payload, 2)?);
        let counts = [word(payload, 4)?, word(payload, 6)?, word(payload, 8)?];
        let additional = word(payload, 10)?;
        if flags & (QR | OPCODE | TC) != 0 || counts != [1, 0, 0] || additional > 1 || payload.len() > QUERY_MOST {
            return None;
        }
        let mut at = HEADER;
        loop {
            match *payload.get(at)? {
                0 => break,
                step @ 1..=63 => at += 1 + usize::from(step),
                _ => return None,
            }
        }
        let end = at + 5;
        if at + 1 - HEADER > NAME_MOST || end > payload.len() {
            return None;
        }
        let (kind, class) = (word(payload, at + 1)?, word(payload, at + 3)?);
        if !matches!(class, IN | ANY) || NEVER_ASKED.contains(&kind) {
            return None;
        }
        let mut query = Query { ident, flags, end, size: PLAIN, edns: false, dnssec: false };
        if additional == 0 {
            return (end == payload.len()).then_some(query);
        }
        let options = usize::from(word(payload, end + 9)?);
        let is_opt = payload[end] == 0 && word(payload, end + 1)? == OPT && payload[end + 6] == 0; // a version that is ours
        if !is_opt || end + 11 + options != payload.len() {
            return None;
        }
        let mut at = end + 11;
        while at < payload.len() {
            at += 4 + usize::from(word(payload, at + 2)?);
        }
        if at != payload.len() {
            return None;
        }
        query.edns = true;
        query.dnssec = payload[end + 7] & DO != 0;
        query.size = word(payload, end + 3)?.max(PLAIN).min(most.max(PLAIN));
        Some(query)
    }

    /// Name, type and class, spelled as asked.
    pub fn question<'a>(&self, payload: &'a [u8]) -> &'a [u8] {
        &payload[HEADER..self.end]
    }

    /// Write what is equal for queries with one answer: the question in lower case, and the flags that change the answer.
    ///
    /// The same bytes as `wire.Query.key` in Python, where answers are kept under them.
    pub fn key(&self, payload: &[u8], key: &mut Vec<u8>) {
        key.clear();
        key.extend_from_slice(self.question(payload));
        let name = key.len() - 4;
        key[..name].make_ascii_lowercase();
        key.extend([(self.flags >> 8 & 1) as u8, (self.flags & CD) as u8, self.dnssec.into()]);
    }

    /// Write the query to a resolver.
    pub fn ask(&self, ident: u16, payload: &[u8], edns: bool, out: &mut Vec<u8>) {
        out.clear();
        for number in [ident, self.flags & (RD | CD | AD), 1, 0, 0, edns.into()] {
            out.extend(number.to_be_bytes());
        }
        out.extend_from_slice(self.question(payload));
        if edns {
            write_opt(self.dnssec, out);
        }
    }

    /// Write an answer that says `rcode` and nothing else.
    pub fn error(&self, payload: &[u8], rcode: u16, out: &mut Vec<u8>) {
        self.head(payload, rcode, [0; 3], out);
        if self.edns {
            write_opt(self.dnssec, out);
        }
    }

    /// Write an answer; says whether it had to be cut short.
    ///
    /// Additional records go first, and silently (RFC 2181, 9). Where the others do not fit there are none, and TC says so.
    pub fn answer(&self, payload: &[u8], kept: &Kept, records: &[u8], out: &mut Vec<u8>) -> bool {
        let room = usize::from(self.size).saturating_sub(self.end + if self.edns { 11 } else { 0 });
        let [answers, authority, _] = kept.counts;
        let cut = records.len() > room && kept.additional > room;
        if records.len() <= room {
            self.head(payload, kept.flags, kept.counts, out);
            out.extend_from_slice(records);
        } else if !cut {
            self.head(payload, kept.flags, [answers, authority, 0], out);
            out.extend_from_slice(&records[..kept.additional]);
        } else {
            self.head(payload, kept.flags | TC, [0; 3], out);
        }
        if self.edns {
            write_opt(self.dnssec, out);
        }
        cut
    }

    fn head(&self, payload: &[u8], flags: u16, [answers, authority, additional]: [u16; 3], out: &mut Vec<u8>) {
        let mut flags = flags | QR | RA | self.flags & (RD | CD);
        if !self.dnssec && self.flags & AD == 0 {
            flags &= !AD; // RFC 6840, 5.8
        }
        out.clear();
        for number in [self.ident, flags, 1, answers, authority, additional + u16::from(self.edns)] {
            out.extend(number.to_be_bytes());
        }
        out.extend_from_slice(self.question(payload));
    }
}

fn write_opt(dnssec: bool, out: &mut Vec<u8>) {
    let [high, low] = PAYLOAD.to_be_bytes();
    out.extend([0, 0, OPT as u8, high, low, 0, 0, if dnssec { DO } else { 0 }, 0, 0, 0]);
}

/// An answer as it is kept; its records stand behind the question of the message that it was read from.
#[derive(Debug, PartialEq, Eq)]
pub struct Kept {
    /// The rcode, and AD.
    pub flags: u16,
    pub counts: [u16; 3],
    /// Where each time to live stands among the records, and what it is.
    pub ttls: Vec<(u32, u32)>,
    /// Where among the records the additional ones begin.
    pub additional: usize,
    /// Where the records end in the message, before OPT.
    pub end: usize,
    /// For how long it may be kept.
    pub hold_s: u32,
}

#[derive(Debug, PartialEq, Eq)]
pub enum Said {
    /// No answer to what was asked, whoever sent it.
    Strange,
    /// An answer that takes more thought.
    Unusual,
    Usual(Kept),
}

/// First bytes of addresses that no answer may have, or perhaps may not, of IPv4 and IPv6.
pub struct Inside(pub Option<[[bool; 256]; 2]>);

impl Inside {
    /// Whether the data of a record need a closer look.
    fn may_hold(&self, kind: u16, data: &[u8]) -> bool {
        let Some([v4, v6]) = &self.0 else { return false };
        match (kind, data.first()) {
            (A, Some(&first)) => v4[usize::from(first)],
            (AAAA, Some(&first)) => v6[usize::from(first)],
            (SVCB | HTTPS, _) => true,
            _ => false,
        }
    }
}

/// Read what came for a question; `question` is name, type and class as they were sent (RFC 5452, 9.1).
pub fn read(message: &[u8], ident: u16, question: &[u8], inside: &Inside) -> Said {
    let (Some(is), Some(flags), Some(questions)) = (word(message, 0), word(message, 2), word(message, 4)) else { return Said::Strange };
    let start = HEADER + question.len();
    let rcode = flags & RCODE;
    let bare = questions == 0 && message.len() == HEADER && rcode != 0; // who could not read it repeats nothing
    let repeated = questions == 1 && message.get(HEADER..start).is_some_and(|same| same.eq_ignore_ascii_case(question));
    if is != ident || flags & QR == 0 || flags & OPCODE != 0 || !(bare || repeated) {
        return Said::Strange;
    }
    if bare || flags & TC != 0 || !matches!(rcode, 0 | NXDOMAIN) {
        return Said::Unusual;
    }
    walk(message, start, flags & (AD | RCODE), question, inside).map_or(Said::Unusual, Said::Usual)
}

fn walk(message: &[u8], start: usize, flags: u16, question: &[u8], inside: &Inside) -> Option<Kept> {
    let asked = word(question, question.len() - 4)?;
    let mut counts = [word(message, 6)?, word(message, 8)?, word(message, 10)?];
    let mut kept = Kept { flags, counts, ttls: Vec::new(), additional: 0, end: message.len(), hold_s: 0 };
    let (mut least, mut there, mut minimum, mut at) = (u32::MAX, false, None, start);
    for (section, count) in counts.iter().enumerate() {
        if section == 2 {
            kept.additional = at - start;
        }
        for _ in 0..*count {
            if kept.end < message.len() {
                return None; // something behind OPT
            }
            let first = at;
            at = skip(message, at)?;
            let (kind, ttl, size) = (word(message, at)?, long(message, at + 4)?, usize::from(word(message, at + 8)?));
            let data = at + 10;
            let bytes = message.get(data..data + size)?;
            at = data + size;
            if kind == OPT {
                if section != 2 || ttl >> 24 != 0 || at != message.len() {
                    return None;
                }
                kept.end = first;
                continue;
            }
            if inside.may_hold(kind, bytes) {
                return None;
            }
            let ttl = if ttl >> 31 == 0 { ttl } else { 0 }; // RFC 2181, 8
            least = least.min(ttl);
            there |= section == 0 && (kind == asked || asked == ANY);
            if section == 1 && kind == SOA && size >= 22 && minimum.is_none() {
                minimum = Some(long(bytes, size - 4)?);
            }
            kept.ttls.push(((data - 6 - start) as u32, ttl));
        }
    }
    if at != message.len() {
        return None;
    }
    if kept.end < message.len() {
        counts[2] -= 1;
    }
    kept.counts = counts;
    kept.hold_s = match minimum {
        _ if there && flags & RCODE == 0 => least.min(TTL_MOST_S),
        Some(minimum) => least.min(minimum).min(NEGATIVE_MOST_S), // RFC 2308, 5
        None => 0,                                                // a referral, or a "no" that does not say for how long
    };
    Some(kept)
}

/// Where a name ends that begins at `at`; None where it is none.
fn skip(message: &[u8], mut at: usize) -> Option<usize> {
    let first = at;
    loop {
        match *message.get(at)? {
            0 => return Some(at + 1),
            step @ 1..=63 => at += 1 + usize::from(step),
            step if step >= 0xc0 => {
                let to = usize::from(step & 0x3f) << 8 | usize::from(*message.get(at + 1)?);
                return (to < first).then_some(at + 2);
            }
            _ => return None,
        }
        if at - first >= NAME_MOST {
            return None;
        }
    }
}
