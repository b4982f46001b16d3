//! The description of a service's network, and its datagrams, between Python and the core.

use std::net::Ipv6Addr;

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyList, PyTuple};

use super::user::{Net, To, address, guestfwd, subnet};
use crate::user::config::Loopback;
use crate::user::service::{Inbox, Service};
use crate::user::{Answer, Config, Endpoint};

#[derive(FromPyObject)]
#[pyo3(from_item_all)]
pub struct Given {
    ipv4: Option<Net>,
    ipv6: Option<Net>,
    link_local: Option<String>,
    mtu: u16,
    udp: Vec<(u16, u16)>,
    tcp: Vec<(String, u16, To)>,
    groups: Vec<String>,
    broadcast: bool,
    announce: bool,
    max_flows: usize,
}

pub fn config(given: Given) -> PyResult<Config> {
    let link_local = given.link_local.as_deref().map(address).transpose()?;
    let service = Service {
        udp: given.udp,
        groups: given.groups.iter().map(|group| address(group)).collect::<PyResult<_>>()?,
        broadcast: given.broadcast,
        link_local: link_local.unwrap_or(Ipv6Addr::UNSPECIFIED),
        announce: given.announce,
    };
    Ok(Config {
        v4: given.ipv4.map(subnet).transpose()?,
        v6: given.ipv6.map(subnet).transpose()?,
        mtu: given.mtu,
        restrict: true,
        loopback: Loopback::Only(Vec::new()),
        interface: String::new(),
        max_flows: given.max_flows,
        managed: false,
        sockets: usize::MAX,
        ledger: None,
        peek_offset: true,
        resolvers: Vec::new(),
        search: Vec::new(),
        guestfwd: given.tcp.into_iter().map(guestfwd).collect::<PyResult<_>>()?,
        handed: Vec::new(),
        service: Some(service),
        spread: Default::default(),
    })
}

fn packed<'py>(py: Python<'py>, ip: Ipv6Addr) -> Bound<'py, PyBytes> {
    match ip.to_ipv4_mapped() {
        Some(ip) => PyBytes::new(py, &ip.octets()),
        None => PyBytes::new(py, &ip.octets()),
    }
}

/// What has come, as tuples.
pub fn taken<'py>(py: Python<'py>, inbox: &Inbox) -> PyResult<Bound<'py, PyList>> {
    let list = PyList::empty(py);
    for (one, payload) in inbox.datagrams() {
        let (peer, local) = (packed(py, one.peer.ip), packed(py, one.local.ip));
        let mac = PyBytes::new(py, &one.mac);
        list.append((PyBytes::new(py, payload), peer, one.peer.port, local, one.local.port, mac))?;
    }
    Ok(list)
}

pub fn unpacked(bytes: &[u8]) -> PyResult<Ipv6Addr> {
    if let Ok(four) = <[u8; 4]>::try_from(bytes) {
        return Ok(std::net::Ipv4Addr::from(four).to_ipv6_mapped());
    }
    let sixteen = <[u8; 16]>::try_from(bytes).map_err(|_| PyValueError::new_err("an address of neither 4 nor 16 bytes"))?;
    Ok(sixteen.into())
}

/// Read one tuple and give it to `send`.
pub fn read<R>(datagram: &Bound<'_, PyAny>, send: impl FnOnce(&Answer) -> R) -> PyResult<R> {
    type Fields<'py> = (Bound<'py, PyBytes>, Bound<'py, PyBytes>, u16, Bound<'py, PyBytes>, u16, Bound<'py, PyBytes>);
    let (payload, peer, peer_port, local, local_port, mac): Fields = datagram.cast::<PyTuple>()?.extract()?;
    let mac = match mac.as_bytes() {
        [] => None,
        bytes => Some(bytes.try_into().map_err(|_| PyValueError::new_err("a MAC of neither 0 nor 6 bytes"))?),
    };
    let peer = Endpoint { ip: unpacked(peer.as_bytes())?, port: peer_port };
    let local = Endpoint { ip: unpacked(local.as_bytes())?, port: local_port };
    Ok(send(&Answer { payload: payload.as_bytes(), peer, local, mac }))
}
