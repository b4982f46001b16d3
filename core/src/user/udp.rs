//! UDP: one socket of the host a port of a guest, whoever it speaks to (endpoint-independent mapping, RFC 4787, 4.1), and
//! whoever answers is heard.
//!
//! A datagram goes from the guest's frame into the socket (udp_out.rs) and from the socket behind its headers. Where the
//! kernel has put datagrams of one flow together (UDP_GRO), they go to the guest as one super-frame. A datagram longer than the network's mtu goes to the guest in fragments. ICMP errors
//! that come back are told to the guest as they are, in the name of who said them.
//!
//! A mapping is forgotten after 180 seconds of silence, after 30 if nobody ever answered; one made by hostfwd never.

use std::collections::VecDeque;
use std::io;
use std::net::Ipv6Addr;
use std::os::fd::{FromRawFd, OwnedFd};

use super::config::HostForward;
use super::datagram::{self, UDP_GRO};
use super::flows::{Endpoint, Id};
use super::icmp::{self, Trouble};
use super::lack::Unopened;
use super::migrate::Mapping;
use super::shares::Kind;
use super::socket::{Name, Socket, bind_interface};
use super::timer::Alarm;
use super::wire::{self, Mac, Packet, Room, UDP, Way, put16};
use super::{Arrival, Network, fragments, kind};
use crate::frame::be16;
use crate::offload::{GSO_UDP_L4, NEEDS_CSUM, VnetHeader};
use crate::ports::Cause;

pub const HEADER: usize = 8;
pub const CHECKSUM: usize = 6;
const TTL: u8 = 64;
const ANSWERED_MS: u64 = 180_000;
const UNANSWERED_MS: u64 = 30_000;
/// By how much the longest datagram of IPv6 with its headers is longer than a frame.
const OVER: usize = 64;
/// Bytes of a datagram that an error quotes.
const QUOTE: usize = 64;
/// Errors read at one go.
const ERRORS: usize = 16;
/// Clients of a forward that are remembered: a guest may answer these whatever else it may not do.
const CLIENTS: usize = 256;
const EVENTS: u32 = (libc::EPOLLIN | libc::EPOLLET) as u32;

pub struct Udp {
    pub(super) socket: Socket,
    pub mac: Mac,
    /// Whose share it is.
    pub owner: Mac,
    /// The kernel cuts what is sent into datagrams, until it has refused to.
    pub cuts: bool,
    listed: bool,
    answered: bool,
    /// Made by hostfwd: it stays.
    fixed: bool,
    /// Who has spoken to a fixed one, the latest last.
    clients: VecDeque<Client>,
    pub used_ms: u64,
    alarm: Alarm,
    pub traffic: Traffic,
}

struct Client {
    /// As the guest has it, and as the host has it.
    seen: Endpoint,
    at: Endpoint,
    heard_ms: u64,
}

/// What a flow of datagrams has carried, for who lists flows.
pub struct Traffic {
    pub since_ms: u64,
    /// Who was spoken to, or heard from, last; as the host has it.
    pub far: Option<Endpoint>,
    pub from_guest: u64,
    pub to_guest: u64,
    pub datagrams_to_guest: u64,
}

impl Traffic {
    pub fn new(since_ms: u64) -> Traffic {
        Traffic { since_ms, far: None, from_guest: 0, to_guest: 0, datagrams_to_guest: 0 }
    }
}

impl Udp {
    pub fn socket(&self) -> &Socket {
        &self.socket
    }

    pub fn is_fixed(&self) -> bool {
        self.fixed
    }

    /// As another network is told it; None where nothing was sent from the socket yet.
    pub fn mapping(&self, guest: Endpoint, now_ms: u64) -> Option<Mapping> {
        let traffic = &self.traffic;
        Some(Mapping {
            guest,
            mac: self.mac,
            owner: self.owner,
            answered: self.answered,
            age_ms: now_ms.saturating_sub(traffic.since_ms),
            idle_ms: now_ms.saturating_sub(self.used_ms),
            local: self.outside()?,
            far: traffic.far,
            from_guest: traffic.from_guest,
            to_guest: traffic.to_guest,
            datagrams_to_guest: traffic.datagrams_to_guest,
            handed: None,
        })
    }

    /// Where it is heard from: with the address that goes to the last far end, where the socket has none of its own.
    fn outside(&self) -> Option<Endpoint> {
        let local = self.socket.local()?;
        let far = self.traffic.far.filter(|far| is_unspecified(local.ip) && !wire::is_loopback(far.ip));
        let source = far.and_then(|far| source_for(far).ok().flatten());
        Some(Endpoint { ip: source.map_or(local.ip, |source| source.ip), port: local.port })
    }

    fn remember(&mut self, seen: Endpoint, at: Endpoint, heard_ms: u64) {
        if self.clients.back().is_none_or(|last| last.at != at) {
            self.clients.retain(|client| client.at != at);
            if self.clients.len() >= CLIENTS {
                self.clients.pop_front();
            }
            self.clients.push_back(Client { seen, at, heard_ms });
        } else if let Some(last) = self.clients.back_mut() {
            last.heard_ms = heard_ms;
        }
    }

    /// Where a client is who was let in by the forward not long ago, and whom the guest sees there.
    pub fn client(&self, seen: Endpoint, now_ms: u64) -> Option<Endpoint> {
        let since_ms = now_ms.saturating_sub(ANSWERED_MS);
        self.clients.iter().rev().find(|client| client.seen == seen && client.heard_ms >= since_ms).map(|client| client.at)
    }

    pub fn state(&self) -> &'static str {
        if self.fixed {
            "forwarded"
        } else if self.answered {
            "answered"
        } else {
            "unanswered"
        }
    }
}

/// A socket for a guest's port: of its family and no other, so that each family has all ports of this host.
pub fn udp_socket(guest: Ipv6Addr) -> io::Result<Socket> {
    if wire::v4(guest).is_some() {
        return Socket::new(libc::AF_INET, libc::SOCK_DGRAM, 0);
    }
    let socket = Socket::new(libc::AF_INET6, libc::SOCK_DGRAM, 0)?;
    socket.set(libc::IPPROTO_IPV6, libc::IPV6_V6ONLY, 1)?;
    Ok(socket)
}

/// All addresses of the guest's family.
pub fn anywhere(guest: Ipv6Addr) -> Ipv6Addr {
    if wire::v4(guest).is_some() { std::net::Ipv4Addr::UNSPECIFIED.to_ipv6_mapped() } else { Ipv6Addr::UNSPECIFIED }
}

fn is_unspecified(ip: Ipv6Addr) -> bool {
    wire::v4(ip).map_or(ip.is_unspecified(), |ip| ip.is_unspecified())
}

/// The address of ours that the kernel speaks from to this one.
fn source_for(far: Endpoint) -> io::Result<Option<Endpoint>> {
    let name = Name::of(far);
    let probe = Socket::new(name.family(), libc::SOCK_DGRAM, 0)?;
    probe.connect(&name)?;
    Ok(probe.local())
}

/// The header of a datagram as a guest sent it (RFC 768).
pub struct Datagram {
    pub from: u16,
    pub to: u16,
    /// Of the header and the payload.
    pub len: usize,
    /// It is to be sent as datagrams with so much payload each; 0: as it is.
    pub cut: u16,
}

impl Datagram {
    /// Read it, where it is whole and its checksum is right.
    ///
    /// # Safety
    /// The frame is readable, and `packet` was read from it.
    pub unsafe fn read(arrival: &Arrival, packet: &Packet) -> Option<Datagram> {
        let udp = arrival.head.get(packet.transport..packet.transport + HEADER)?;
        let (from, to, len) = (be16(udp, 0)?, be16(udp, 2)?, be16(udp, 4)?);
        let cut = if arrival.vnet.gso_type == GSO_UDP_L4 { arrival.vnet.gso_size } else { 0 };
        let len = if cut == 0 { usize::from(len) } else { packet.payload_len() };
        if from == 0 || len < HEADER || len > packet.payload_len() {
            return None;
        }
        let unsummed = udp[6..8] == [0, 0] && packet.is_v4();
        // SAFETY: as the caller promises.
        (unsummed || unsafe { arrival.is_sound(packet) }).then_some(Datagram { from, to, len, cut })
    }
}

impl Network {
    pub(super) fn open_udp(&mut self, guest: Endpoint, mac: Mac) -> Result<Id, Unopened> {
        let lack = self.shares.lack(mac, Kind::Udp).or((self.udp.room() == 0).then_some(Cause::TxFlows));
        if let Some(lack) = lack {
            return Err(Unopened::Lack(lack));
        }
        let socket = udp_socket(guest.ip)?;
        let config = &self.core.config;
        bind_interface(&socket, &config.interface)?;
        // Now and not with the first datagram, which would be lost and nobody would know why.
        let from = config.subnet(guest.ip).and_then(|net| net.outbound).unwrap_or(anywhere(guest.ip));
        socket.bind(&Name::of(Endpoint { ip: from, port: 0 }))?;
        Ok(self.add_udp(guest, socket, mac, false)?)
    }

    /// A socket of hostfwd's: what arrives there goes to the guest, what the guest sends from that port goes out there.
    pub(super) fn listen_udp(&mut self, forward: &HostForward, guest: Endpoint) -> io::Result<Id> {
        if let Some(id) = self.udp.find(&guest) {
            if self.udp.get_mut(id).is_some_and(|(_, udp)| udp.fixed) {
                return Err(io::Error::new(io::ErrorKind::AlreadyExists, "two UDP forwards to one port of a guest"));
            }
            self.forget_udp(id); // from here on the guest speaks from there as the forward says
        }
        // SAFETY: the new descriptor has one owner.
        let socket = unsafe {
            let fd = libc::fcntl(forward.fd, libc::F_DUPFD_CLOEXEC, 0);
            if fd < 0 {
                return Err(io::Error::last_os_error());
            }
            Socket::own(OwnedFd::from_raw_fd(fd))
        };
        crate::sys::nonblocking(socket.fd())?;
        self.add_udp(guest, socket, [0; 6], true)
    }

    pub(super) fn add_udp(&mut self, guest: Endpoint, socket: Socket, mac: Mac, fixed: bool) -> io::Result<Id> {
        let option =
            if wire::v4(guest.ip).is_some() { (libc::IPPROTO_IP, libc::IP_RECVERR) } else { (libc::IPPROTO_IPV6, libc::IPV6_RECVERR) };
        socket.set(option.0, option.1, 1)?;
        let _ = socket.set(libc::SOL_UDP, UDP_GRO, 1); // Linux 5.0
        let used_ms = self.core.now_ms;
        let traffic = Traffic::new(used_ms);
        let clients = VecDeque::new();
        let udp = Udp {
            socket,
            mac,
            owner: mac,
            cuts: true,
            listed: false,
            answered: false,
            fixed,
            clients,
            used_ms,
            alarm: Alarm::default(),
            traffic,
        };
        if !fixed && !self.shares.allow(mac, Kind::Udp) {
            return Err(io::Error::from_raw_os_error(libc::ENOBUFS));
        }
        let Some(id) = self.udp.insert(guest, udp) else { return Err(io::Error::from_raw_os_error(libc::ENOBUFS)) };
        self.shares.take(mac, Kind::Udp);
        let token = id.token(kind::UDP);
        if let Some((_, udp)) = self.udp.get_mut(id) {
            self.core.epoll.add(udp.socket.fd(), EVENTS, token)?;
            if !fixed {
                udp.alarm.set(&mut self.core.wheel, token, used_ms + UNANSWERED_MS);
            }
        }
        Ok(id)
    }

    /// A flow of another network becomes ours; without room for it the guest makes another one.
    pub(super) fn join_udp(&mut self, mapping: Mapping, socket: Socket) {
        let Ok(id) = self.add_udp(mapping.guest, socket, mapping.mac, false) else { return };
        let Some((_, udp)) = self.udp.get_mut(id) else { return };
        let now_ms = self.core.now_ms;
        (udp.answered, udp.used_ms) = (mapping.answered, now_ms.saturating_sub(mapping.idle_ms));
        udp.traffic = Traffic {
            since_ms: now_ms.saturating_sub(mapping.age_ms),
            far: mapping.far,
            from_guest: mapping.from_guest,
            to_guest: mapping.to_guest,
            datagrams_to_guest: mapping.datagrams_to_guest,
        };
    }

    pub(super) fn udp_event(&mut self, id: Id, events: u32) {
        if events & libc::EPOLLERR as u32 != 0 {
            self.tell_udp_errors(id);
        }
        self.list_udp(id);
    }

    /// Look at every socket anew: what happened there was told to nobody.
    pub(super) fn list_datagrams(&mut self) {
        let udp: Vec<Id> = self.udp.iter().map(|(id, ..)| id).collect();
        udp.into_iter().for_each(|id| self.udp_event(id, libc::EPOLLERR as u32));
        let pings: Vec<Id> = self.ping.iter().map(|(id, ..)| id).collect();
        pings.into_iter().for_each(|id| self.ping_event(id, libc::EPOLLERR as u32));
    }

    fn list_udp(&mut self, id: Id) {
        if let Some((_, udp)) = self.udp.get_mut(id)
            && !udp.listed
        {
            udp.listed = true;
            self.core.due.push_back(id.token(kind::UDP));
        }
    }

    /// A guest's address became known: hand out what waits for it.
    pub(super) fn deliver_again(&mut self, guest: Ipv6Addr) {
        let waiting: Vec<Id> = self.udp.iter().filter(|(_, end, udp)| udp.fixed && end.ip == guest).map(|(id, ..)| id).collect();
        waiting.into_iter().for_each(|id| self.list_udp(id));
    }

    /// Write the next datagram for the guest.
    pub(super) fn say_udp(&mut self, id: Id, room: &mut Room) -> Option<usize> {
        let (guest, udp) = self.udp.get_mut(id)?;
        udp.listed = false;
        let guest = *guest;
        if udp.fixed {
            match self.core.neighbours.find(guest.ip) {
                Some(mac) => udp.mac = mac,
                None => {
                    self.core.ask_for(guest.ip);
                    return None;
                }
            }
        }
        let start = wire::headers_len(guest.ip);
        let at = start + HEADER;
        let mut rest = [0u8; OVER];
        let got = datagram::receive(&udp.socket, &mut room.frame()[at..], &mut rest).ok()?;
        (udp.used_ms, udp.answered) = (self.core.now_ms, true);
        udp.traffic.far = Some(got.from);
        udp.traffic.to_guest += got.len as u64;
        udp.traffic.datagrams_to_guest += if got.cut == 0 { 1 } else { got.len.div_ceil(got.cut.into()) as u64 };
        let mac = udp.mac;
        let far = Endpoint { ip: self.core.config.seen(got.from.ip), port: got.from.port };
        if udp.fixed {
            udp.remember(far, got.from, self.core.now_ms);
        }
        self.list_udp(id);
        if got.truncated {
            return None; // a jumbogram
        }
        let way = self.core.way(far.ip, guest.ip, mac);
        let each = if got.cut == 0 { got.len } else { got.len.min(got.cut.into()) };
        if start - crate::frame::HEADER + HEADER + each > self.core.config.mtu_or_default() {
            // Longer than the guest's wire: in fragments, from the outbox.
            let front = &mut room.frame()[at..];
            let over = got.len.saturating_sub(front.len());
            let data = [&front[..got.len - over], &rest[..over]].concat();
            for piece in if each == 0 { data.chunks(1) } else { data.chunks(each) } {
                self.say_fragments(&way, far.port, guest.port, piece);
            }
            return self.core.next_reply(room.whole());
        }
        let len = HEADER + got.len;
        wire::headers(room.frame(), &way, UDP, TTL, len);
        let udp = &mut room.frame()[start..at];
        put16(udp, 0, far.port);
        put16(udp, 2, guest.port);
        put16(udp, 4, len as u16);
        let pseudo = wire::pseudo(way.source, way.destination, UDP, len);
        let header = if each < got.len {
            VnetHeader { flags: NEEDS_CSUM, gso_type: GSO_UDP_L4, hdr_len: at as u16, gso_size: got.cut, ..VnetHeader::default() }
        } else {
            VnetHeader::default()
        };
        room.partial(start, CHECKSUM, pseudo, header);
        Some(at + got.len)
    }

    fn say_fragments(&mut self, way: &Way, from: u16, to: u16, data: &[u8]) {
        let len = HEADER + data.len();
        let mut datagram = vec![0u8; HEADER];
        put16(&mut datagram, 0, from);
        put16(&mut datagram, 2, to);
        put16(&mut datagram, 4, len as u16);
        datagram.extend_from_slice(data);
        let sum = wire::pseudo(way.source, way.destination, UDP, len).bytes(&datagram).checksum();
        put16(&mut datagram, CHECKSUM, if sum == 0 { 0xffff } else { sum });
        fragments::say(&mut self.core, way, UDP, TTL, &datagram);
    }

    /// Tell the guest what ICMP said about its datagrams; true where there was something.
    pub(super) fn tell_udp_errors(&mut self, id: Id) -> bool {
        let mut found = false;
        for _ in 0..ERRORS {
            let Some((guest, udp)) = self.udp.get_mut(id) else { return found };
            let (guest, mac) = (*guest, udp.mac);
            let mut data = [0u8; QUOTE];
            let Some(failed) = datagram::failed(&udp.socket, &mut data) else { return found };
            found = true;
            if mac == [0; 6] {
                continue; // nobody has spoken from there
            }
            let config = &self.core.config;
            let Some(host) = config.subnet(guest.ip).map(|net| net.host) else { return found };
            let by = failed.by.map_or(host, |by| config.seen(by.ip));
            let far = Endpoint { ip: config.seen(failed.to.ip), port: failed.to.port };
            let quoted = &data[..failed.len.min(data.len())];
            self.tell_udp(guest, mac, far, (quoted, failed.len), by, failed.trouble);
        }
        found
    }

    /// Tell a guest about a datagram of its own to `far`: its first bytes, and how many there were.
    pub(super) fn tell_udp(&mut self, guest: Endpoint, mac: Mac, far: Endpoint, data: (&[u8], usize), by: Ipv6Addr, trouble: Trouble) {
        let (quoted, len) = (&data.0[..data.0.len().min(QUOTE)], data.1);
        let mut first = [0u8; HEADER + QUOTE];
        put16(&mut first, 0, guest.port);
        put16(&mut first, 2, far.port);
        put16(&mut first, 4, (HEADER + len) as u16);
        first[HEADER..HEADER + quoted.len()].copy_from_slice(quoted);
        icmp::error(&mut self.core, by, guest.ip, far.ip, mac, UDP, &first[..HEADER + quoted.len()], trouble);
    }

    pub(super) fn forget_udp(&mut self, id: Id) {
        if let Some((_, udp)) = self.udp.remove(id) {
            self.shares.give_back(udp.owner, Kind::Udp);
        }
    }

    pub(super) fn udp_rang(&mut self, id: Id, token: u64) {
        let now_ms = self.core.now_ms;
        let Some((_, udp)) = self.udp.get_mut(id) else { return };
        if !udp.alarm.rings(&mut self.core.wheel, token, now_ms) {
            return;
        }
        let over_ms = udp.used_ms + if udp.answered { ANSWERED_MS } else { UNANSWERED_MS };
        if over_ms <= now_ms {
            self.forget_udp(id);
        } else {
            udp.alarm.set(&mut self.core.wheel, token, over_ms);
        }
    }
}
