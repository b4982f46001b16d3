//! The loop of a worker, for its process.

use std::collections::HashMap;
use std::os::fd::{BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::time::Duration;

use pyo3::exceptions::{PyInterruptedError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyList};

use super::arena::{Arena, port_of};
use crate::arena::WORKERS;
use crate::port::capture::{Format, Settings};
use crate::port::dgram::{Address, Peer};
use crate::port::tunnel::{Far, L2tpv3, Tunnel, Vxlan};
use crate::port::vhost::{Extent, Places};
use crate::port::{Dgram, Packet, Stream, Vhost};
use crate::ports::{NO_LINK, NOBODY, Worker};
use crate::shard::{self, News};
use crate::user::Way;

#[pyclass(module = "shardnet._core", unsendable)]
pub struct Shard {
    inner: shard::Shard,
}

/// The loop runs without the GIL, in the thread that owns it.
struct Alone<'a>(&'a mut shard::Shard);

// SAFETY: `detach` calls its closure in the calling thread; nothing is sent anywhere.
unsafe impl Send for Alone<'_> {}

impl Alone<'_> {
    fn run(self, timeout: Option<Duration>) -> std::io::Result<Vec<News>> {
        self.0.run(timeout)
    }
}

fn address(bytes: Option<Vec<u8>>, what: &str) -> PyResult<Option<Address>> {
    bytes.map(|bytes| Address::new(&bytes).ok_or_else(|| PyValueError::new_err(format!("{what}: longer than any address")))).transpose()
}

#[pymethods]
impl Shard {
    #[new]
    fn new(arena: &Arena, worker: usize, doorbells: Vec<RawFd>) -> PyResult<Shard> {
        if worker >= WORKERS {
            return Err(PyValueError::new_err(format!("worker {worker}: 0 to {}", WORKERS - 1)));
        }
        Ok(Shard { inner: shard::Shard::new(arena.inner, worker as Worker, doorbells)? })
    }

    fn add_tap(&mut self, port: usize, fds: Vec<RawFd>) -> PyResult<()> {
        if fds.is_empty() {
            return Err(PyValueError::new_err("a TAP has at least one queue"));
        }
        Ok(self.inner.add_tap(port_of(port)?, fds)?)
    }

    fn lend(&mut self, port: usize, fd: RawFd) -> PyResult<()> {
        Ok(self.inner.lend(port_of(port)?, fd)?)
    }

    #[pyo3(signature = (port, read_fd, write_fd, prefix = 4))]
    fn add_stream(&mut self, port: usize, read_fd: RawFd, write_fd: RawFd, prefix: usize) -> PyResult<()> {
        if prefix != 2 && prefix != 4 {
            return Err(PyValueError::new_err(format!("prefix {prefix}: 2 or 4 bytes")));
        }
        Ok(self.inner.add_stream(port_of(port)?, Stream::new(read_fd, write_fd, prefix))?)
    }

    #[pyo3(signature = (port, fd, remote = None, *, send_fd = -1, follow = false, ignore = None))]
    fn add_dgram(
        &mut self,
        port: usize,
        fd: RawFd,
        remote: Option<Vec<u8>>,
        send_fd: RawFd,
        follow: bool,
        ignore: Option<Vec<u8>>,
    ) -> PyResult<()> {
        let peer = Peer { remote: address(remote, "remote")?, follow, ignore: address(ignore, "ignore")? };
        let send_fd = if send_fd < 0 { fd } else { send_fd };
        Ok(self.inner.add_dgram(port_of(port)?, Dgram::new(fd, send_fd, peer))?)
    }

    #[allow(clippy::too_many_arguments)] // as Python hands them over
    fn add_vxlan(
        &mut self,
        port: usize,
        fd: RawFd,
        send_fds: Vec<RawFd>,
        vni: u32,
        everybody: Vec<Vec<u8>>,
        closed: bool,
        tags: bool,
    ) -> PyResult<()> {
        let refuse = |why| Err(PyValueError::new_err(why));
        let Some(everybody) = everybody.iter().map(|bytes| Far::new(bytes)).collect::<Option<Vec<_>>>() else {
            return refuse("a far end is an address of IPv4 or IPv6");
        };
        if everybody.is_empty() || send_fds.is_empty() {
            return refuse("a far end and a socket to send from are needed");
        }
        let tunnel = Tunnel::Vxlan(Vxlan::new(vni, everybody, closed, tags));
        Ok(self.inner.add_dgram(port_of(port)?, Dgram::tunnel(fd, send_fds, None, tunnel))?)
    }

    #[pyo3(signature = (port, fd, remote, head, expected, rest, *, counter = None, udp = true, has_ip_header = false))]
    #[allow(clippy::too_many_arguments)] // they are keywords in Python
    fn add_l2tpv3(
        &mut self,
        port: usize,
        fd: RawFd,
        remote: Vec<u8>,
        head: Vec<u8>,
        expected: Vec<u8>,
        rest: usize,
        counter: Option<usize>,
        udp: bool,
        has_ip_header: bool,
    ) -> PyResult<()> {
        let longest = crate::port::tunnel::HEAD_MOST;
        if head.len() > longest || expected.len() > longest || rest > longest || counter.is_some_and(|at| at + 4 > head.len()) {
            return Err(PyValueError::new_err("a header of L2TPv3 is not as long"));
        }
        let session = L2tpv3 { head, counter, expected, rest, udp, has_ip_header, count: 0 };
        let remote = address(Some(remote), "remote")?;
        Ok(self.inner.add_dgram(port_of(port)?, Dgram::tunnel(fd, vec![fd], remote, Tunnel::L2tpv3(session)))?)
    }

    fn add_packet(&mut self, port: usize, fd: RawFd) -> PyResult<()> {
        Ok(self.inner.add_packet(port_of(port)?, Packet::new(fd)?)?)
    }

    #[pyo3(signature = (port, mtu))]
    fn set_link(&mut self, port: usize, mtu: Option<u32>) -> PyResult<()> {
        self.inner.set_link(port_of(port)?, mtu.unwrap_or(NO_LINK));
        Ok(())
    }

    fn add_link(&mut self, port: usize, peer: usize) -> PyResult<()> {
        Ok(self.inner.add_link(port_of(port)?, port_of(peer)?)?)
    }

    fn add_user(&mut self, port: usize, given: super::user::Given) -> PyResult<()> {
        let network = crate::user::Network::new(super::user::config(given)?)?;
        Ok(self.inner.add_user(port_of(port)?, network)?)
    }

    fn add_service(&mut self, port: usize, given: super::service::Given) -> PyResult<()> {
        let network = crate::user::Network::new(super::service::config(given)?)?;
        Ok(self.inner.add_user(port_of(port)?, network)?)
    }

    fn datagrams<'py>(&mut self, py: Python<'py>, port: usize) -> PyResult<Bound<'py, PyList>> {
        let Some(network) = self.inner.network(port_of(port)?) else { return Ok(PyList::empty(py)) };
        let taken = super::service::taken(py, &network.boxes.inbox);
        network.boxes.inbox.clear();
        taken
    }

    fn answer(&mut self, port: usize, datagrams: &Bound<'_, PyAny>) -> PyResult<usize> {
        let (port, mut sent) = (port_of(port)?, 0);
        for datagram in datagrams.try_iter()? {
            let taken = super::service::read(&datagram?, |answer| self.inner.answer(port, answer))?;
            sent += usize::from(taken.map_err(PyValueError::new_err)?);
        }
        Ok(sent)
    }

    fn seek(&mut self, port: usize, address: &[u8]) -> PyResult<()> {
        let (port, address) = (port_of(port)?, super::service::unpacked(address)?);
        self.inner.seek(port, address);
        Ok(())
    }

    fn found(&mut self, port: usize, address: &[u8]) -> PyResult<Option<Vec<u8>>> {
        let (port, address) = (port_of(port)?, super::service::unpacked(address)?);
        Ok(self.inner.network(port).and_then(|network| network.found(address)).map(Vec::from))
    }

    fn heard(&self, port: usize, mac: [u8; 6]) -> PyResult<Option<usize>> {
        let mac = mac.iter().fold(0, |number, byte| number << 8 | u64::from(*byte));
        Ok(self.inner.heard(port_of(port)?, mac).map(usize::from))
    }

    fn unresolved(&mut self, port: usize) -> PyResult<u64> {
        Ok(self.inner.network(port_of(port)?).map_or(0, |network| network.boxes.unresolved))
    }

    fn add_vhost(&mut self, port: usize, pairs: usize) -> PyResult<()> {
        Ok(self.inner.add_vhost(port_of(port)?, Vhost::new(pairs))?)
    }

    fn vhost_features(&mut self, port: usize, features: u64) -> PyResult<()> {
        self.vhost(port, |device| {
            device.set_features(features);
            Ok(())
        })
    }

    fn vhost_memory(&mut self, port: usize, regions: Vec<(Region, RawFd)>) -> PyResult<()> {
        let regions = regions.into_iter().map(|(region, fd)| Ok((extent(region), own(fd)?))).collect::<PyResult<Vec<_>>>()?;
        self.vhost(port, |device| device.set_memory(regions))
    }

    fn vhost_log(&mut self, port: usize, offset: u64, size: u64, fd: RawFd) -> PyResult<()> {
        let file = own(fd)?;
        self.vhost(port, |device| device.set_log(offset, size, file))
    }

    fn vhost_size(&mut self, port: usize, ring: usize, size: u32) -> PyResult<()> {
        self.vhost(port, |device| device.set_size(ring, size))
    }

    #[pyo3(signature = (port, ring, table, available, used, log = None))]
    fn vhost_places(&mut self, port: usize, ring: usize, table: u64, available: u64, used: u64, log: Option<u64>) -> PyResult<()> {
        self.vhost(port, |device| device.set_places(ring, Places { table, available, used, log }))
    }

    fn vhost_base(&mut self, port: usize, ring: usize, base: u16) -> PyResult<()> {
        self.vhost(port, |device| device.set_base(ring, base))
    }

    fn vhost_kick(&mut self, port: usize, ring: usize, fd: RawFd) -> PyResult<()> {
        let kick = own(fd)?;
        self.vhost(port, |device| device.set_kick(ring, kick))
    }

    fn vhost_call(&mut self, port: usize, ring: usize, fd: Option<RawFd>) -> PyResult<()> {
        let call = fd.map(own).transpose()?;
        self.vhost(port, |device| device.set_call(ring, call))
    }

    fn vhost_error(&mut self, port: usize, ring: usize, fd: Option<RawFd>) -> PyResult<()> {
        let error = fd.map(own).transpose()?;
        self.vhost(port, |device| device.set_error(ring, error))
    }

    fn vhost_enable(&mut self, port: usize, ring: usize, on: bool) -> PyResult<()> {
        self.vhost(port, |device| device.enable(ring, on))
    }

    fn vhost_stop(&mut self, port: usize, ring: usize) -> PyResult<u16> {
        self.vhost(port, |device| device.stop(ring))
    }

    fn vhost_announce(&mut self, port: usize, mac: [u8; 6]) -> PyResult<()> {
        self.vhost(port, |device| {
            device.announce(mac);
            Ok(())
        })
    }

    fn add_forward(&mut self, port: usize, number: u32, fd: RawFd, kind: &str, guest: Option<&str>, guest_port: u16) -> PyResult<u32> {
        let forward = super::user::hostfwd(fd, kind, guest, guest_port)?;
        Ok(self.network(port)?.add_forward(number, forward)?)
    }

    fn move_forward(&mut self, port: usize, forward: u32, guest: Option<&str>) -> PyResult<()> {
        let guest = guest.map(super::user::address).transpose()?;
        Ok(self.network(port)?.move_forward(forward, guest)?)
    }

    fn remove_forward(&mut self, port: usize, forward: u32) -> PyResult<()> {
        self.network(port)?.remove_forward(forward);
        Ok(())
    }

    fn serve_at(&mut self, port: usize, guestfwd: Vec<(String, u16, super::user::To)>) -> PyResult<()> {
        let forwards = guestfwd.into_iter().map(super::user::guestfwd).collect::<PyResult<_>>()?;
        self.network(port)?.serve_at(forwards);
        Ok(())
    }

    fn forwards(&mut self, port: usize) -> PyResult<HashMap<u32, (u64, u64, u64)>> {
        let counts = self.network(port)?.forwards();
        Ok(counts.into_iter().map(|count| (count.id, (count.taken, count.refused, count.open))).collect())
    }

    fn served(&mut self, port: usize) -> PyResult<Vec<(u64, u64, u64)>> {
        Ok(self.network(port)?.served().into_iter().map(|(_, taken, refused, open)| (taken, refused, open)).collect())
    }

    fn flows(&mut self, port: usize, cursor: u64, most: usize) -> PyResult<(Vec<super::user::Row>, Option<u64>)> {
        let (flows, next) = self.network(port)?.flows(cursor, most);
        Ok((flows.into_iter().map(super::user::row).collect(), next))
    }

    fn freeze(&mut self, port: usize) -> PyResult<()> {
        self.network(port)?.freeze();
        Ok(())
    }

    fn lock(&mut self, port: usize) -> PyResult<Vec<RawFd>> {
        Ok(self.network(port)?.lock())
    }

    #[pyo3(signature = (port, hand = false))]
    fn export<'py>(
        &mut self,
        py: Python<'py>,
        port: usize,
        hand: bool,
    ) -> PyResult<(Bound<'py, PyBytes>, super::user::Counts, Vec<RawFd>)> {
        let way = if hand { Way::Hand } else { Way::Read };
        let (state, counts, fds) = self.network(port)?.export(way);
        Ok((PyBytes::new(py, &state), super::user::counts(counts), fds))
    }

    fn cut(&mut self, port: usize) -> PyResult<()> {
        self.network(port)?.cut();
        Ok(())
    }

    fn release(&mut self, port: usize) -> PyResult<()> {
        self.network(port)?.release();
        Ok(())
    }

    #[pyo3(signature = (port, sections, handed = Vec::new()))]
    fn stage(&mut self, port: usize, sections: Vec<Vec<u8>>, handed: Vec<Vec<RawFd>>) -> PyResult<Vec<(RawFd, u32, u32)>> {
        // SAFETY: whoever calls has just received these descriptors, and leaves them to us.
        let own = |fd: RawFd| unsafe { OwnedFd::from_raw_fd(fd) };
        let handed = handed.into_iter().map(|fds| fds.into_iter().map(own).collect()).collect();
        self.network(port)?.stage(&sections, handed).map_err(PyValueError::new_err)
    }

    fn adopt(&mut self, port: usize) -> PyResult<super::user::Counts> {
        self.network(port)?.adopt().map(super::user::counts).map_err(PyValueError::new_err)
    }

    fn forget(&mut self, port: usize) -> PyResult<()> {
        self.network(port)?.forget();
        Ok(())
    }

    fn locked(&mut self, port: usize) -> PyResult<Vec<RawFd>> {
        Ok(self.network(port)?.locked())
    }

    fn thaw(&mut self, port: usize, repaired: bool) -> PyResult<()> {
        self.network(port)?.thaw(repaired);
        self.inner.list(port_of(port)?);
        Ok(())
    }

    #[pyo3(signature = (fd, ports, snaplen = 0, *, port = None, pcapng = true, size = 0, limit = 0, ledger = -1, anew = true))]
    #[allow(clippy::too_many_arguments)] // they are keywords in Python
    fn add_capture(
        &mut self,
        fd: RawFd,
        ports: Vec<(usize, String)>,
        snaplen: usize,
        port: Option<usize>,
        pcapng: bool,
        size: u64,
        limit: u64,
        ledger: RawFd,
        anew: bool,
    ) -> PyResult<()> {
        let format = if pcapng { Format::Pcapng } else { Format::Pcap };
        let port = port.map_or(Ok(NOBODY), port_of)?;
        self.inner.add_capture(fd, size, Settings { port, format, snaplen, limit, ledger }, anew);
        ports.into_iter().try_for_each(|(port, name)| self.capture_port(port, &name))
    }

    fn capture_port(&mut self, port: usize, name: &str) -> PyResult<()> {
        self.inner.capture_port(port_of(port)?, name);
        Ok(())
    }

    fn capture_file(&mut self, fd: RawFd, size: u64) {
        self.inner.capture_file(fd, size);
    }

    fn turn_capture(&mut self) -> bool {
        self.inner.turn_capture()
    }

    fn end_capture(&mut self) -> (u64, u64, u64, i32) {
        self.inner.end_capture()
    }

    fn remove(&mut self, port: usize) -> PyResult<()> {
        self.inner.remove(port_of(port)?);
        Ok(())
    }

    fn watch(&mut self, fd: RawFd) -> PyResult<()> {
        Ok(self.inner.watch(fd)?)
    }

    fn unwatch(&mut self, fd: RawFd) {
        self.inner.unwatch(fd);
    }

    #[pyo3(signature = (timeout_s = None))]
    fn run(&mut self, py: Python<'_>, timeout_s: Option<f64>) -> PyResult<Vec<(&'static str, i64, i64)>> {
        let timeout = timeout_s
            .map(|seconds| Duration::try_from_secs_f64(seconds).map_err(|error| PyValueError::new_err(error.to_string())))
            .transpose()?;
        let alone = Alone(&mut self.inner);
        match py.detach(move || alone.run(timeout)) {
            Ok(news) => Ok(news.into_iter().map(row).collect()),
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {
                py.check_signals()?;
                Err(PyInterruptedError::new_err("a signal came"))
            }
            Err(error) => Err(error.into()),
        }
    }
}

impl Shard {
    fn vhost<R>(&mut self, port: usize, change: impl FnOnce(&mut Vhost) -> std::io::Result<R>) -> PyResult<R> {
        Ok(self.inner.vhost(port_of(port)?, change)?)
    }

    fn network(&mut self, port: usize) -> PyResult<&mut crate::user::Network> {
        self.inner.network(port_of(port)?).ok_or_else(|| PyValueError::new_err(format!("port {port} is no network here")))
    }
}

/// Of a guest's memory: its address in the guest, its size, its address in the front end, its place in the file.
type Region = (u64, u64, u64, u64);

fn extent((guest, size, user, offset): Region) -> Extent {
    Extent { guest, size, user, offset }
}

/// A descriptor of our own for one that stays the caller's.
fn own(fd: RawFd) -> PyResult<OwnedFd> {
    if fd < 0 {
        return Err(PyValueError::new_err(format!("descriptor {fd}")));
    }
    // SAFETY: the caller's descriptor is open through the call.
    Ok(unsafe { BorrowedFd::borrow_raw(fd) }.try_clone_to_owned()?)
}

fn row(news: News) -> (&'static str, i64, i64) {
    match news {
        News::Ready(fd) => ("ready", fd.into(), 0),
        News::Datagrams(port) => ("datagrams", port.into(), 0),
        News::Ended(port, errno) => ("ended", port.into(), errno.into()),
        News::Stopped(port, ring) => ("stopped", port.into(), ring.into()),
        News::Short(port, cause) => ("short", port.into(), cause as i64),
        News::Full(port) => ("full", port.into(), 0),
    }
}
