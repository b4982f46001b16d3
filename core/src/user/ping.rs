//! Echo to the outside by the kernel's ping sockets (net.ipv4.ping_group_range), one an identifier of a guest.
//!
//! The kernel gives the request an identifier of its own and hands over only what answers it; the guest's is put back. An
//! error on the way (time exceeded, unreachable) is told to the guest in the name of the router that said it, and so
//! traceroute works. Where this process may not ping, the guest is told that it is forbidden.

use std::net::Ipv6Addr;

use super::config::Target;
use super::datagram::{self, Beside};
use super::flows::{Endpoint, Id};
use super::icmp::{self, Trouble};
use super::lack::Unopened;
use super::shares::Kind;
use super::socket::{Socket, bind_outbound};
use super::timer::Alarm;
use super::udp::Traffic;
use super::wire::{self, ICMP, ICMPV6, Mac, Packet, Room, put16};
use super::{Arrival, Fate, Network, kind};
use crate::frame::be16;
use crate::ports::Cause;

pub const MOST: usize = 1024;
const IDLE_MS: u64 = 60_000;
const TTL: u8 = 64;
const MESSAGE_MOST: usize = 65_515;
const ERRORS: usize = 16;
const SUMS: usize = 16;

/// A guest's identifier.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Key {
    pub guest: Ipv6Addr,
    pub id: u16,
}

pub struct Ping {
    socket: Socket,
    mac: Mac,
    /// Whose share it is.
    owner: Mac,
    listed: bool,
    used_ms: u64,
    alarm: Alarm,
    pub traffic: Traffic,
    /// Sequence numbers and checksums of the last requests, for errors to quote.
    sums: [([u8; 2], [u8; 2]); SUMS],
    next_sum: u8,
}

impl Ping {
    pub fn socket(&self) -> &Socket {
        &self.socket
    }

    pub fn used_ms(&self) -> u64 {
        self.used_ms
    }
}

impl Network {
    /// An echo request to the outside.
    pub(super) fn take_ping(&mut self, arrival: &Arrival, packet: &Packet, message: &[u8]) -> Fate {
        let to = match self.core.config.target(Endpoint { ip: packet.destination, port: 1 }, false) {
            Target::Outside(to) if packet.ttl > 1 => to.ip,
            Target::Outside(_) => return self.tell_ping(packet, arrival.mac, message, Trouble::TimeExceeded),
            Target::Nobody => return self.tell_ping(packet, arrival.mac, message, Trouble::NoHost),
            Target::Refused | Target::Forward(_) | Target::Senseless => return Fate::Taken,
        };
        let Some(id) = be16(message, 4) else { return Fate::Taken };
        let key = Key { guest: packet.source, id };
        let ttl = packet.ttl - 1;
        match self.send_ping(key, arrival.mac, to, message, ttl) {
            Ok(()) => Fate::Taken,
            Err(Unopened::Lack(cause)) => Fate::Lost(cause),
            Err(Unopened::Failed(error)) => {
                let trouble = Trouble::of(error.raw_os_error().unwrap_or(0));
                self.tell_ping(packet, arrival.mac, message, trouble)
            }
        }
    }

    fn tell_ping(&mut self, packet: &Packet, mac: Mac, message: &[u8], trouble: Trouble) -> Fate {
        if let Some(by) = self.core.config.subnet(packet.source).map(|net| net.host) {
            icmp::error(&mut self.core, by, packet.source, packet.destination, mac, packet.protocol, message, trouble);
        }
        Fate::Taken
    }

    fn send_ping(&mut self, key: Key, mac: Mac, to: Ipv6Addr, message: &[u8], ttl: u8) -> Result<(), Unopened> {
        let id = match self.ping.find(&key) {
            Some(id) => id,
            None => self.open_ping(key, mac)?,
        };
        for attempt in 0..2 {
            let Some((_, ping)) = self.ping.get_mut(id) else { return Ok(()) };
            (ping.used_ms, ping.mac) = (self.core.now_ms, mac);
            let to = Endpoint { ip: to, port: 0 };
            ping.traffic.far = Some(to);
            if attempt == 0 {
                if let [_, _, sum, sum_low, _, _, seq, seq_low, ..] = *message {
                    ping.sums[usize::from(ping.next_sum) % SUMS] = ([seq, seq_low], [sum, sum_low]);
                    ping.next_sum = ping.next_sum.wrapping_add(1);
                }
                ping.traffic.from_guest += message.len() as u64;
            }
            // SAFETY: the message is a slice.
            match unsafe { datagram::send(&ping.socket, to, message.as_ptr(), message.len(), &Beside { ttl, cut: 0 }) } {
                Ok(_) => return Ok(()),
                // What is reported may be about an earlier request.
                Err(_) if attempt == 0 && self.tell_ping_errors(id) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    fn open_ping(&mut self, key: Key, mac: Mac) -> Result<Id, Unopened> {
        if let Some(lack) = self.shares.lack(mac, Kind::Ping) {
            return Err(Unopened::Lack(lack));
        }
        let is_v4 = wire::v4(key.guest).is_some();
        let (family, protocol) = if is_v4 { (libc::AF_INET, libc::IPPROTO_ICMP) } else { (libc::AF_INET6, libc::IPPROTO_ICMPV6) };
        let socket = Socket::new(family, libc::SOCK_DGRAM, protocol)?;
        let config = &self.core.config;
        bind_outbound(&socket, config.subnet(key.guest).and_then(|net| net.outbound), &config.interface)?;
        let option = if is_v4 { (libc::IPPROTO_IP, libc::IP_RECVERR) } else { (libc::IPPROTO_IPV6, libc::IPV6_RECVERR) };
        socket.set(option.0, option.1, 1)?;
        let used_ms = self.core.now_ms;
        let traffic = Traffic::new(used_ms);
        let ping = Ping {
            socket,
            mac,
            owner: mac,
            listed: false,
            used_ms,
            alarm: Alarm::default(),
            traffic,
            sums: [([0; 2], [0; 2]); SUMS],
            next_sum: 0,
        };
        let Some(id) = self.ping.insert(key, ping) else { return Err(Unopened::Lack(Cause::TxFlows)) };
        self.shares.take(mac, Kind::Ping);
        let token = id.token(kind::PING);
        if let Some((_, ping)) = self.ping.get_mut(id) {
            self.core.epoll.add(ping.socket.fd(), (libc::EPOLLIN | libc::EPOLLET) as u32, token)?;
            ping.alarm.set(&mut self.core.wheel, token, used_ms + IDLE_MS);
        }
        Ok(id)
    }

    pub(super) fn ping_event(&mut self, id: Id, events: u32) {
        if events & libc::EPOLLERR as u32 != 0 {
            self.tell_ping_errors(id);
        }
        self.list_ping(id);
    }

    /// A guest that asks again gets a socket anew.
    pub(super) fn forget_pings(&mut self) {
        let pings: Vec<Id> = self.ping.iter().map(|(id, ..)| id).collect();
        for id in pings {
            if let Some((_, ping)) = self.ping.remove(id) {
                self.shares.give_back(ping.owner, Kind::Ping);
            }
        }
    }

    fn list_ping(&mut self, id: Id) {
        if let Some((_, ping)) = self.ping.get_mut(id)
            && !ping.listed
        {
            ping.listed = true;
            self.core.due.push_back(id.token(kind::PING));
        }
    }

    /// Write the next answer for the guest.
    pub(super) fn say_ping(&mut self, id: Id, room: &mut Room) -> Option<usize> {
        let (key, ping) = self.ping.get_mut(id)?;
        let (key, mac) = (*key, ping.mac);
        ping.listed = false;
        let got = datagram::receive(&ping.socket, &mut room.frame()[..MESSAGE_MOST], &mut []).ok()?;
        ping.traffic.to_guest += got.len as u64;
        self.list_ping(id);
        let is_v4 = wire::v4(key.guest).is_some();
        if got.len < 8 {
            return None;
        }
        let mut message = room.frame()[..got.len].to_vec();
        put16(&mut message, 4, key.id);
        let way = self.core.way(self.core.config.seen(got.from.ip), key.guest, mac);
        icmp::say(&mut self.core, &way, if is_v4 { ICMP } else { ICMPV6 }, TTL, &mut message);
        self.core.next_reply(room.whole())
    }

    fn tell_ping_errors(&mut self, id: Id) -> bool {
        let mut found = false;
        for _ in 0..ERRORS {
            let Some((key, ping)) = self.ping.get_mut(id) else { return found };
            let (key, mac) = (*key, ping.mac);
            let mut data = [0u8; 64];
            let Some(failed) = datagram::failed(&ping.socket, &mut data) else { return found };
            found = true;
            let len = failed.len.min(data.len());
            if len < 8 {
                continue;
            }
            put16(&mut data, 4, key.id);
            let seq = [data[6], data[7]];
            if let Some((_, sum)) = ping.sums.iter().find(|(of, _)| *of == seq) {
                data[2..4].copy_from_slice(sum); // as the guest sent it, not as the kernel
            }
            let config = &self.core.config;
            let Some(host) = config.subnet(key.guest).map(|net| net.host) else { return found };
            let by = failed.by.map_or(host, |by| config.seen(by.ip));
            let protocol = if wire::v4(key.guest).is_some() { ICMP } else { ICMPV6 };
            icmp::error(&mut self.core, by, key.guest, failed.to.ip, mac, protocol, &data[..len], failed.trouble);
        }
        found
    }

    pub(super) fn ping_rang(&mut self, id: Id, token: u64) {
        let now_ms = self.core.now_ms;
        let Some((_, ping)) = self.ping.get_mut(id) else { return };
        if !ping.alarm.rings(&mut self.core.wheel, token, now_ms) {
            return;
        }
        if ping.used_ms + IDLE_MS <= now_ms {
            let owner = ping.owner;
            self.ping.remove(id);
            self.shares.give_back(owner, Kind::Ping);
        } else {
            let at = ping.used_ms + IDLE_MS;
            ping.alarm.set(&mut self.core.wheel, token, at);
        }
    }
}
