//! The description of a user-mode network, read from Python's arguments.

use std::net::{IpAddr, Ipv6Addr};

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use super::arena::port_of;
use crate::frame::{TCP, UDP};
use crate::user::config::{GuestForward, Handed, HostForward, Loopback, Served, Subnet, Transport, What};
use crate::user::listing::Flow;
use crate::user::socket::Name;
use crate::user::spread::Spread;
use crate::user::{Config, Endpoint};

/// Network, prefix, the host's address in it, the address that outgoing sockets are bound to.
pub type Net = (String, u32, String, Option<String>);

#[derive(FromPyObject)]
pub enum To {
    Socket(Vec<u8>),
    Command(String),
}

pub fn address(text: &str) -> PyResult<Ipv6Addr> {
    match text.parse() {
        Ok(IpAddr::V4(ip)) => Ok(ip.to_ipv6_mapped()),
        Ok(IpAddr::V6(ip)) => Ok(ip),
        Err(why) => Err(PyValueError::new_err(format!("{text}: {why}"))),
    }
}

pub fn subnet((net, prefix, host, outbound): Net) -> PyResult<Subnet> {
    let net = address(&net)?;
    let before = if net.to_ipv4_mapped().is_some() { 96 } else { 0 };
    if before + prefix > 128 {
        return Err(PyValueError::new_err(format!("{prefix}: no prefix")));
    }
    Ok(Subnet { net, prefix: before + prefix, host: address(&host)?, outbound: outbound.as_deref().map(address).transpose()? })
}

fn transport(text: &str) -> PyResult<Transport> {
    match text {
        "tcp" => Ok(Transport::Tcp),
        "udp" => Ok(Transport::Udp),
        "unix" => Ok(Transport::Unix),
        _ => Err(PyValueError::new_err(format!("{text}: neither tcp nor udp nor unix"))),
    }
}

#[derive(FromPyObject)]
#[pyo3(from_item_all)]
pub struct Given {
    ipv4: Option<Net>,
    ipv6: Option<Net>,
    mtu: u16,
    restrict: bool,
    loopback: Option<Vec<(u16, u16)>>,
    interface: String,
    max_flows: usize,
    managed: bool,
    sockets: usize,
    ledger: i32,
    resolvers: Vec<String>,
    search: Vec<String>,
    guestfwd: Vec<(String, u16, To)>,
    services: Vec<(String, String, u16, u16, usize)>,
    shards: Vec<usize>,
    share: usize,
    links: Vec<Vec<u8>>,
    calls: Option<i32>,
}

fn name(bytes: &[u8]) -> PyResult<Name> {
    Name::new(bytes).ok_or_else(|| PyValueError::new_err("longer than any address"))
}

pub fn guestfwd((ip, port, to): (String, u16, To)) -> PyResult<GuestForward> {
    let to = match to {
        To::Command(command) => Served::Command(command),
        To::Socket(bytes) => Served::Socket(name(&bytes)?),
    };
    Ok(GuestForward { at: Endpoint { ip: address(&ip)?, port }, to })
}

pub fn hostfwd(fd: i32, kind: &str, guest: Option<&str>, port: u16) -> PyResult<HostForward> {
    Ok(HostForward { fd, transport: transport(kind)?, guest: guest.map(address).transpose()?, port })
}

pub fn config(given: Given) -> PyResult<Config> {
    let spread = Spread {
        ports: given.shards.iter().map(|&port| port_of(port)).collect::<PyResult<_>>()?,
        share: given.share,
        links: given.links.iter().map(|bytes| name(bytes)).collect::<PyResult<_>>()?,
        calls: given.calls,
    };
    Ok(Config {
        v4: given.ipv4.map(subnet).transpose()?,
        v6: given.ipv6.map(subnet).transpose()?,
        mtu: given.mtu,
        restrict: given.restrict,
        loopback: given.loopback.map_or(Loopback::All, Loopback::Only),
        interface: given.interface,
        max_flows: given.max_flows,
        managed: given.managed,
        sockets: given.sockets,
        ledger: Some(given.ledger),
        peek_offset: true,
        resolvers: given.resolvers.iter().map(|text| address(text)).collect::<PyResult<_>>()?,
        search: given.search,
        guestfwd: given.guestfwd.into_iter().map(guestfwd).collect::<PyResult<_>>()?,
        handed: given.services.iter().map(handed).collect::<PyResult<_>>()?,
        service: None,
        spread,
    })
}

/// Which of `shards` has what comes from a guest, but for TCP.
#[pyfunction]
pub fn share(guest: &str, shards: u32) -> PyResult<u32> {
    Ok(crate::frame::spread_of_source(address(guest)?) % shards.max(1))
}

fn handed((what, at, first, last, to): &(String, String, u16, u16, usize)) -> PyResult<Handed> {
    let what = match what.as_str() {
        "tcp" => What::Ports(TCP, *first, *last),
        "udp" => What::Ports(UDP, *first, *last),
        "neighbours" => What::Neighbours,
        _ => return Err(PyValueError::new_err(format!("{what}: neither tcp nor udp nor neighbours"))),
    };
    Ok(Handed { what, at: address(at)?, to: port_of(*to)? })
}

/// A flow as Python has it: a dict of these fields.
#[derive(IntoPyObject)]
pub struct Row {
    protocol: &'static str,
    state: &'static str,
    direction: &'static str,
    guest: String,
    guest_port: u16,
    far: Option<String>,
    far_port: Option<u16>,
    host: Option<String>,
    host_port: Option<u16>,
    bytes_from_guest: u64,
    bytes_to_guest: u64,
    age_ms: u64,
    idle_ms: u64,
    retransmits: Option<u32>,
}

pub fn row(flow: Flow) -> Row {
    let ip = |end: Option<Endpoint>| end.map(|end| written(end.ip));
    let port = |end: Option<Endpoint>| end.map(|end| end.port);
    Row {
        protocol: flow.protocol,
        state: flow.state,
        direction: if flow.inward { "in" } else { "out" },
        guest: written(flow.guest.ip),
        guest_port: flow.guest.port,
        far: ip(flow.far),
        far_port: port(flow.far),
        host: ip(flow.local),
        host_port: port(flow.local),
        bytes_from_guest: flow.from_guest,
        bytes_to_guest: flow.to_guest,
        age_ms: flow.age_ms,
        idle_ms: flow.idle_ms,
        retransmits: flow.resent,
    }
}

/// Flows that go, by their kind, and those that are lost.
#[derive(IntoPyObject)]
pub struct Counts {
    tcp: usize,
    udp: usize,
    lost: usize,
}

pub fn counts(found: crate::user::Counts) -> Counts {
    Counts { tcp: found.tcp, udp: found.udp, lost: found.lost }
}

pub fn written(ip: Ipv6Addr) -> String {
    ip.to_ipv4_mapped().map_or_else(|| ip.to_string(), |ip| ip.to_string())
}
