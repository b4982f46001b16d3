//! What another network says of its flows is judged before anything is made of it: it may be damaged, or a lie.
//!
//! All or nothing: what makes no sense, or does not fit here, refuses the whole, with the reason. A flow that its guest opened
//! goes where a new one could, by the rules of this network and no other's; so a state does not lead around `restrict` or to an address
//! that nobody is let to.

use std::collections::{HashMap, HashSet};
use std::net::Ipv6Addr;
use std::os::fd::OwnedFd;

use super::kernel::QUEUE_MOST;
use super::record::{Connection, Flow, Lost, Mapping, Neighbour, Net, State, end, state};
use super::{lost, named};
use crate::frame;
use crate::user::Network;
use crate::user::config::{Config, Served, Subnet, Target};
use crate::user::flows::{Endpoint, Ends};
use crate::user::shares::Kind;
use crate::user::socket::Socket;
use crate::user::tcp::{MSS_LEAST, SCALE, flag};
use crate::user::wire::{Mac, is_loopback, v4};

/// The widest window, at the largest scale (RFC 7323, 2.3).
const WINDOW_MOST: u32 = 1 << 30;
const SCALE_MOST: u8 = 14;
const PARTS_MOST: usize = 1024;

/// What of several engines' states is for one.
pub(super) struct Wanted {
    /// Each with its socket, where that came along.
    pub tcp: Vec<(Flow, Option<Socket>)>,
    pub udp: Vec<(Mapping, Option<Socket>)>,
    pub lost: Vec<Lost>,
    pub neighbours: Vec<Neighbour>,
}

impl Network {
    pub(super) fn check(&self, sections: &[Vec<u8>], handed: Vec<Vec<OwnedFd>>) -> Result<Wanted, String> {
        let config = &self.core.config;
        let mut wanted = Wanted { tcp: Vec::new(), udp: Vec::new(), lost: Vec::new(), neighbours: Vec::new() };
        let (mut seen, mut ports) = (HashSet::new(), HashSet::new());
        let came = handed.into_iter().chain(std::iter::repeat_with(Vec::new));
        for (section, came) in sections.iter().zip(came) {
            let mut came = Came(came.into_iter().map(Some).collect());
            let state = State::read(section).ok_or("damaged: no state of a network's flows")?;
            same_network("IPv4", state.v4.as_ref(), config.v4.as_ref())?;
            same_network("IPv6", state.v6.as_ref(), config.v6.as_ref())?;
            for flow in state.tcp {
                let wrong = |why: &str| format!("{}: {why}", named(&flow));
                let socket = came.take(flow.handed, libc::IPPROTO_TCP).map_err(wrong)?;
                self.check_flow(&flow, socket.as_ref()).map_err(wrong)?;
                let ends = Ends { guest: flow.guest, far: flow.far };
                if !seen.insert(ends) || self.tcp.find(&ends).is_some() {
                    return Err(format!("{}: is here already", named(&flow)));
                }
                if !self.has(flow.guest, flow.far) {
                    continue;
                }
                match socket {
                    Some(socket) if socket.peer().is_none() => wanted.lost.push(lost(&flow)), // it has ended meanwhile
                    socket => wanted.tcp.push((flow, socket)),
                }
            }
            for mapping in state.udp {
                if !is_guest(config, mapping.guest) || v4(mapping.local.ip).is_some() != v4(mapping.guest.ip).is_some() {
                    return Err(format!("udp {}: no guest of this network", mapping.guest));
                }
                let socket = came.take(mapping.handed, libc::IPPROTO_UDP).map_err(|why| format!("udp {}: {why}", mapping.guest))?;
                let shards = config.spread.ports.len();
                let is_ours = shards == 0 || frame::spread_of_source(mapping.guest.ip) as usize % shards == config.spread.share;
                // A forward of ours, or a flow of the guest's that has been here since, is left as it is.
                if ports.insert(mapping.guest) && is_ours && self.udp.find(&mapping.guest).is_none() {
                    wanted.udp.push((mapping, socket));
                }
            }
            wanted.lost.extend(state.lost.into_iter().filter(|lost| self.has(lost.guest, lost.far)));
            wanted.neighbours.extend(state.neighbours);
        }
        self.check_room(&wanted)?;
        Ok(wanted)
    }

    /// Is a connection this shard's?
    fn has(&self, guest: Endpoint, far: Endpoint) -> bool {
        let spread = &self.core.config.spread;
        spread.share_of(guest, far) == spread.share
    }

    fn check_room(&self, wanted: &Wanted) -> Result<(), String> {
        let refuse = |what: &str, count: usize, room: usize| Err(format!("{count} {what}, and there is room for {room}"));
        if wanted.tcp.len() > self.tcp.room() {
            return refuse("TCP flows (max-flows)", wanted.tcp.len(), self.tcp.room());
        }
        if wanted.udp.len() > self.udp.room() {
            return refuse("flows of UDP (max-flows)", wanted.udp.len(), self.udp.room());
        }
        if wanted.tcp.len() + wanted.udp.len() > self.shares.room() {
            return refuse("flows (descriptors: ulimit -Hn)", wanted.tcp.len() + wanted.udp.len(), self.shares.room());
        }
        let mut each: HashMap<(Mac, bool), usize> = HashMap::new();
        let owners = wanted.tcp.iter().map(|(flow, _)| (flow.owner, true));
        let owners = owners.chain(wanted.udp.iter().map(|(mapping, _)| (mapping.owner, false)));
        owners.for_each(|owner| *each.entry(owner).or_default() += 1);
        for ((owner, is_tcp), count) in each {
            let room = self.shares.room_of(owner, if is_tcp { Kind::Tcp } else { Kind::Udp });
            if count > room {
                return refuse("flows of one guest (three quarters of max-flows)", count, room);
            }
        }
        Ok(())
    }

    fn check_flow(&self, flow: &Flow, handed: Option<&Socket>) -> Result<(), &'static str> {
        let config = &self.core.config;
        if !is_guest(config, flow.guest) {
            return Err("no guest of this network");
        }
        if flow.far.port == 0 || v4(flow.far.ip).is_some() != v4(flow.guest.ip).is_some() {
            return Err("a far end that is none");
        }
        check_numbers(flow)?;
        match (&flow.socket, handed) {
            (None, None) if flow.state == state::RESTING => Ok(()),
            _ if flow.state == state::RESTING => Err("over, and connected"),
            (None, None) => Err("not over, and not connected"),
            (Some(_), Some(_)) => Err("connected twice"),
            (Some(connection), None) => {
                check_connection(flow, connection)?;
                check_way(config, flow, connection.peer)
            }
            (None, Some(socket)) => {
                let Some(peer) = socket.peer() else { return Ok(()) }; // it has ended, and nobody is spoken to
                let waits = socket.count(libc::FIONREAD).unwrap_or(0);
                if unacknowledged(flow) > waits {
                    return Err(NOT_THERE);
                }
                check_way(config, flow, peer)
            }
        }
    }
}

/// The descriptors that came with a section; each is one flow's.
struct Came(Vec<Option<OwnedFd>>);

impl Came {
    /// The socket that a flow says is its, which has to be of this protocol.
    fn take(&mut self, which: Option<u32>, protocol: libc::c_int) -> Result<Option<Socket>, &'static str> {
        let Some(which) = which else { return Ok(None) };
        let fd = self.0.get_mut(which as usize).and_then(Option::take).ok_or("a socket that did not come along")?;
        let socket = Socket::own(fd);
        let family = socket.get(libc::SOL_SOCKET, libc::SO_DOMAIN).unwrap_or(0);
        let is_right = socket.get(libc::SOL_SOCKET, libc::SO_PROTOCOL).is_ok_and(|its| its == protocol);
        if !is_right || !matches!(family, libc::AF_INET | libc::AF_INET6) || crate::sys::nonblocking(socket.fd()).is_err() {
            return Err("a socket of another kind");
        }
        Ok(Some(socket))
    }
}

fn is_guest(config: &Config, guest: Endpoint) -> bool {
    guest.port != 0 && config.is_guest(guest.ip)
}

fn same_network(family: &str, there: Option<&Net>, here: Option<&Subnet>) -> Result<(), String> {
    let told = |net: Option<(Ipv6Addr, u32)>| match net {
        None => "none".to_owned(),
        Some((host, prefix)) => match v4(host) {
            Some(host) => format!("{host}/{}", prefix.saturating_sub(96)),
            None => format!("{host}/{prefix}"),
        },
    };
    let is_same = match (there, here) {
        (None, None) => true,
        (Some(there), Some(here)) => there.net == here.net && u32::from(there.prefix) == here.prefix && there.host == here.host,
        _ => false,
    };
    if is_same {
        return Ok(());
    }
    let there = told(there.map(|net| (net.host, net.prefix.into())));
    let here = told(here.map(|net| (net.host, net.prefix)));
    Err(format!("the network of the guests is {there} for {family} there, and {here} here"))
}

/// Could a flow of this network's be so?
fn check_numbers(flow: &Flow) -> Result<(), &'static str> {
    let is = |flags: u32| flow.flags & flags != 0;
    if flow.flags & !flag::LASTING != 0 || flow.state > state::RESTING {
        return Err("a state that there is not");
    }
    if flow.mss < MSS_LEAST || flow.shift > SCALE_MOST {
        return Err("an MSS or a scale that no guest has");
    }
    let flight = flow.snd_nxt.wrapping_sub(flow.snd_una);
    let told = flow.rcv_edge.wrapping_sub(flow.rcv_nxt);
    let told_most = (65_535u32 << if is(flag::SCALED) { SCALE } else { 0 }) + (1 << SCALE);
    if flight > QUEUE_MOST as u32 || flow.wnd > WINDOW_MOST || flow.wnd_most > WINDOW_MOST || told > told_most {
        return Err("a window that there is not");
    }
    let is_new = matches!(flow.state, state::ANSWERED | state::CALLING);
    if is_new && (flight > 1 || is(flag::GUEST_FIN | flag::SHUT | flag::FIN_SENT | flag::FIN_ACKED)) {
        return Err("at its beginning and beyond it");
    }
    if (is(flag::SHUT) && (!is(flag::GUEST_FIN) || flow.pending > 0)) || (is(flag::FIN_ACKED) && (!is(flag::FIN_SENT) || flight > 0)) {
        return Err("ends that came before their time");
    }
    if is(flag::FIN_SENT) && !is(flag::FIN_ACKED) && flight == 0 {
        return Err("an end on its way, and nothing on its way");
    }
    check_held(flow, is(flag::GUEST_FIN))
}

/// What waits for the socket is there, in order, and then what lies beyond holes.
fn check_held(flow: &Flow, has_ended: bool) -> Result<(), &'static str> {
    const WRONG: Result<(), &str> = Err("data of the guest's that is not in order");
    let first = flow.rcv_nxt.wrapping_sub(flow.pending).wrapping_sub(u32::from(has_ended));
    if flow.held.len() > PARTS_MOST {
        return WRONG;
    }
    let (mut end, mut run) = (0u64, 0u64); // distances from the first
    for part in &flow.held {
        let (at, len) = (u64::from(part.seq.wrapping_sub(first)), part.bytes.0.len() as u64);
        if len == 0 || at < end || at + len > 1 << 30 {
            return WRONG;
        }
        run += if at == run { len } else { 0 };
        end = at + len;
    }
    if run != u64::from(flow.pending) {
        return WRONG;
    }
    let fin_at = flow.fin.map(|fin| fin.wrapping_sub(first));
    let is_right = match (fin_at, has_ended) {
        (None, ended) => !ended || flow.held.is_empty(),
        (Some(at), true) => at == flow.pending,
        (Some(at), false) => at > flow.pending && at < 1 << 30,
    };
    if is_right { Ok(()) } else { WRONG }
}

fn check_connection(flow: &Flow, connection: &Connection) -> Result<(), &'static str> {
    let Connection { local, peer, .. } = connection;
    if local.port == 0 || peer.port == 0 || v4(local.ip).is_some() != v4(peer.ip).is_some() {
        return Err("a connection that has no ends");
    }
    if [local, peer].iter().any(|end| is_loopback(end.ip) || end.ip.is_unspecified() || end.ip.is_multicast()) {
        return Err("a connection that cannot go");
    }
    if connection.snd_scale > SCALE_MOST || connection.rcv_scale > SCALE_MOST || connection.end > end::UNSENT {
        return Err("a connection that there is not");
    }
    if [&connection.sent, &connection.unsent, &connection.received].iter().any(|bytes| bytes.0.len() > QUEUE_MOST) {
        return Err("a queue that there is not");
    }
    let is_shut = flow.flags & flag::SHUT != 0;
    if is_shut != (connection.end != end::NONE) {
        return Err("an end that one of both has said");
    }
    let data = unacknowledged(flow);
    let has_ended = flow.flags & flag::FIN_SENT != 0;
    if data > connection.received.0.len() || (has_ended && (data < connection.received.0.len() || flow.flags & flag::FAR_ENDED == 0)) {
        return Err(NOT_THERE);
    }
    Ok(())
}

const NOT_THERE: &str = "data for the guest that is not there";

/// Bytes that the guest was sent and has not acknowledged: they are in the socket still.
fn unacknowledged(flow: &Flow) -> usize {
    let is_new = flow.state != state::OPEN;
    let has_ended = flow.flags & flag::FIN_SENT != 0;
    let control = u32::from(is_new || (has_ended && flow.flags & flag::FIN_ACKED == 0));
    flow.snd_nxt.wrapping_sub(flow.snd_una).saturating_sub(control) as usize
}

/// May the guest speak to whom it does?
fn check_way(config: &Config, flow: &Flow, peer: Endpoint) -> Result<(), &'static str> {
    if flow.inward != 0 {
        let is_seen = peer == flow.far || config.is_host(flow.far.ip);
        return if is_seen { Ok(()) } else { Err("a client that is another one") };
    }
    match config.target(flow.far, true) {
        Target::Outside(to) if to == peer => Ok(()),
        Target::Outside(_) => Err("a far end that is another one"),
        Target::Forward(index) if serves(&config.guestfwd[index].to, peer) => Ok(()),
        _ => Err("this network does not let guests there (restrict, or an address that nobody is let to)"),
    }
}

fn serves(to: &Served, peer: Endpoint) -> bool {
    matches!(to, Served::Socket(name) if name.endpoint() == Some(peer))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lane::{FRAME_MOST, VNET_LEN};
    use crate::testing::user_config;
    use crate::user::migrate::record::{Bytes, Part, Window};

    fn end(text: &str, port: u16) -> Endpoint {
        let ip: std::net::IpAddr = text.parse().expect("an address");
        let ip = match ip {
            std::net::IpAddr::V4(ip) => ip.to_ipv6_mapped(),
            std::net::IpAddr::V6(ip) => ip,
        };
        Endpoint { ip, port }
    }

    /// A flow with something of everything: in flight, beyond a hole, in each queue.
    fn flow() -> Flow {
        let mac = [0x52, 0x54, 0, 0, 0, 0x15];
        let bytes = |len: usize| Bytes(vec![7; len]);
        let window = Window { snd_wl1: 5, snd_wnd: 65_000, max_window: 65_000, rcv_wnd: 65_000, rcv_wup: 1000 };
        Flow {
            guest: end("10.0.2.15", 40_000),
            far: end("192.0.2.1", 80),
            mac,
            owner: mac,
            state: state::OPEN,
            flags: flag::SACK | flag::SCALED,
            irs: u32::MAX - 500,
            rcv_nxt: 200,
            pending: 100,
            rcv_edge: 10_000,
            snd_una: u32::MAX - 50,
            snd_nxt: 100,
            wnd: 60_000,
            wnd_most: 60_000,
            wnd_seq: 200,
            wnd_ack: u32::MAX - 50,
            shift: 7,
            mss: 1460,
            srtt_ms: 3,
            rttvar_ms: 1,
            rto_ms: 200,
            bytes_in: 600,
            bytes_out: 50,
            age_ms: 5000,
            idle_ms: 10,
            resent: 1,
            inward: 0,
            held: vec![Part { seq: 100, bytes: bytes(100) }, Part { seq: 300, bytes: bytes(50) }],
            fin: Some(500),
            handed: None,
            socket: Some(Connection {
                local: end("192.0.2.10", 40_001),
                peer: end("192.0.2.1", 80),
                snd_seq: 10,
                rcv_seq: 1000,
                sent: bytes(20),
                unsent: bytes(30),
                received: bytes(160),
                end: end::NONE,
                window,
                mss: 1460,
                snd_scale: 7,
                rcv_scale: 7,
                options: 7,
                timestamp: 99,
                send_buffer: 87_040,
                receive_buffer: 131_072,
            }),
        }
    }

    fn state(flow: Flow) -> State {
        let config = user_config();
        let net = |net: Option<Subnet>| net.map(|net| Net { net: net.net, prefix: net.prefix as u8, host: net.host });
        let guest = flow.guest;
        let mapping = Mapping {
            guest,
            mac: flow.mac,
            owner: flow.mac,
            answered: true,
            age_ms: 1,
            idle_ms: 1,
            local: end("0.0.0.0", 40_002),
            far: Some(end("192.0.2.1", 53)),
            from_guest: 1,
            to_guest: 1,
            datagrams_to_guest: 1,
            handed: None,
        };
        let lost = Lost { guest, far: end("192.0.2.2", 80), mac: flow.mac, snd_nxt: 1, rcv_nxt: 2 };
        let neighbours = vec![Neighbour { ip: guest.ip, mac: flow.mac }];
        State { v4: net(config.v4), v6: net(config.v6), tcp: vec![flow], udp: vec![mapping], lost: vec![lost], neighbours }
    }

    /// Have a network take a state and go on with it, and read what it says to its guests.
    fn take(bytes: Vec<u8>, change: impl FnOnce(&mut Config)) -> Result<(), String> {
        let mut config = Config { max_flows: 16, ..user_config() };
        change(&mut config);
        let mut network = Network::new(config).expect("a network");
        network.freeze();
        let wanted = network.stage(&[bytes], Vec::new())?;
        assert!(wanted.len() <= 1);
        network.thaw(true);
        let mut room = vec![0u8; VNET_LEN + FRAME_MOST];
        for _ in 0..20 {
            network.turn_clock(100);
            // SAFETY: the room is long enough, behind a header.
            while unsafe { network.receive(room.as_mut_ptr().add(VNET_LEN)) }.is_ok() {}
        }
        Ok(())
    }

    #[test]
    fn a_sound_state_is_taken() {
        assert_eq!(take(state(flow()).written(), |_| {}), Ok(()));
    }

    #[test]
    fn a_state_that_is_cut_is_refused_wherever_it_is_cut() {
        let whole = state(flow()).written();
        for len in 0..whole.len() {
            assert!(take(whole[..len].to_vec(), |_| {}).is_err(), "{len} bytes of {}", whole.len());
        }
        assert!(take([whole, vec![0]].concat(), |_| {}).is_err());
    }

    #[test]
    fn a_state_with_any_byte_changed_is_refused_or_does_no_harm() {
        let whole = state(flow()).written();
        let mut refused = 0;
        for at in 0..whole.len() {
            for change in [1, 0x40, 0x80, 0xff] {
                let mut bytes = whole.clone();
                bytes[at] ^= change;
                refused += usize::from(take(bytes, |_| {}).is_err());
            }
        }
        assert!(refused > whole.len() / 2, "{refused} of {} refused", 4 * whole.len());
    }

    #[test]
    fn what_this_network_does_not_allow_is_refused_whatever_the_state_says() {
        let said = |change: fn(&mut Flow), of: fn(&mut Config)| {
            let mut flow = flow();
            change(&mut flow);
            take(state(flow).written(), of).expect_err("refused")
        };
        let metadata = |flow: &mut Flow| {
            flow.far = end("169.254.169.254", 80);
            flow.socket.as_mut().expect("connected").peer = flow.far;
        };
        assert!(said(metadata, |_| {}).contains("does not let guests there"));
        assert!(said(|_| {}, |config| config.restrict = true).contains("does not let guests there"));
        assert!(said(|flow| flow.far.port = 81, |_| {}).contains("a far end that is another one"));
        assert!(said(|flow| flow.guest = end("10.0.2.2", 1), |_| {}).contains("no guest of this network"));
        assert!(said(|flow| flow.guest = end("10.0.9.9", 1), |_| {}).contains("no guest of this network"));
        let loopback = |flow: &mut Flow| flow.socket.as_mut().expect("connected").local = end("127.0.0.1", 9);
        assert!(said(loopback, |_| {}).contains("a connection that cannot go"));
        assert!(said(|flow| flow.snd_nxt = 5000, |_| {}).contains("data for the guest that is not there"));
        assert!(said(|flow| flow.pending = 99, |_| {}).contains("not in order"));
    }

    #[test]
    fn what_does_not_fit_is_refused_with_how_much_would() {
        let mut many = state(flow());
        many.tcp = (0..13).map(|step| Flow { guest: end("10.0.2.15", 1000 + step), ..flow() }).collect();
        let why = take(many.written(), |_| {}).expect_err("refused");
        assert_eq!(why, "13 flows of one guest (three quarters of max-flows), and there is room for 12");
        many.tcp = (0..17).map(|step| Flow { guest: end("10.0.2.15", 1000 + step), ..flow() }).collect();
        let why = take(many.written(), |_| {}).expect_err("refused");
        assert_eq!(why, "17 TCP flows (max-flows), and there is room for 16");
    }
}
