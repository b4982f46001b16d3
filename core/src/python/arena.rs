//! The shared memory of a lab, for the supervisor.

use std::collections::HashMap;
use std::os::fd::RawFd;
use std::sync::atomic::Ordering;

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use crate::arena::{self, PORTS, SWITCHES, WORKERS};
use crate::impair::Settings;
use crate::ports::{self, CAUSES, COUNTERS, FIRST_EGRESS, NOBODY, Port, Vlan, Worker};
use crate::repair::{self, Policy};

/// An arena lives as long as its process: workers and the supervisor have one, from their start to their end.
#[pyclass(frozen, module = "shardnet._core")]
pub struct Arena {
    pub inner: &'static arena::Arena,
}

/// A copy of the descriptor, so that the caller may close its own.
fn duplicate(fd: RawFd) -> PyResult<RawFd> {
    // SAFETY: no memory is involved.
    let copy = unsafe { libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, 3) };
    if copy < 0 { Err(std::io::Error::last_os_error().into()) } else { Ok(copy) }
}

fn worker_of(worker: usize) -> PyResult<Worker> {
    if worker < WORKERS { Ok(worker as Worker) } else { Err(PyValueError::new_err(format!("worker {worker}: 0 to {}", WORKERS - 1))) }
}

pub fn port_of(port: usize) -> PyResult<Port> {
    if (1..PORTS).contains(&port) { Ok(port as Port) } else { Err(PyValueError::new_err(format!("port {port}: 1 to {}", PORTS - 1))) }
}

fn switch_of(switch: usize) -> PyResult<usize> {
    if switch < SWITCHES { Ok(switch) } else { Err(PyValueError::new_err(format!("switch {switch}: 0 to {}", SWITCHES - 1))) }
}

fn vlan_of(vid: u16, what: &str) -> PyResult<u16> {
    if vid < 4095 { Ok(vid) } else { Err(PyValueError::new_err(format!("{what} {vid}: a VLAN is 1 to 4094"))) }
}

#[pymethods]
impl Arena {
    #[new]
    fn attach(fd: RawFd) -> PyResult<Arena> {
        let arena = arena::Arena::attach(duplicate(fd)?).map_err(|error| PyValueError::new_err(error.to_string()))?;
        Ok(Arena { inner: Box::leak(Box::new(arena)) })
    }

    #[staticmethod]
    #[pyo3(signature = (fd, lane_bytes = 4 << 20))]
    fn create(fd: RawFd, lane_bytes: u64) -> PyResult<Arena> {
        let arena = arena::Arena::create(duplicate(fd)?, lane_bytes)?;
        Ok(Arena { inner: Box::leak(Box::new(arena)) })
    }

    #[pyo3(signature = (switch, *, hub = false, age_s = 300, reserved = 0))]
    fn configure_switch(&self, switch: usize, hub: bool, age_s: u32, reserved: u16) -> PyResult<()> {
        let record = self.inner.switch(switch_of(switch)?);
        record.hub.store(hub.into(), Ordering::Relaxed);
        record.age_s.store(age_s, Ordering::Relaxed);
        record.reserved.store(reserved.into(), Ordering::Relaxed);
        self.inner.advance();
        Ok(())
    }

    #[expect(clippy::too_many_arguments, reason = "they are keywords in Python")]
    #[pyo3(signature = (port, *, worker, switch, up = true, access = 0, trunk = None, native = 0, isolated = false, max_macs = 0, mtu = 0, behind = 0, shards = 0, share = 0, capture = false, out = None, inward = None))]
    fn configure_port(
        &self,
        port: usize,
        worker: usize,
        switch: usize,
        up: bool,
        access: u16,
        trunk: Option<Vec<u16>>,
        native: u16,
        isolated: bool,
        max_macs: u32,
        mtu: u32,
        behind: usize,
        shards: u32,
        share: u32,
        capture: bool,
        out: Option<Line>,
        inward: Option<Line>,
    ) -> PyResult<()> {
        let (access, native) = (vlan_of(access, "access")?, vlan_of(native, "native")?);
        let vlan = match (&trunk, access) {
            (Some(_), 0) => Vlan::Trunk { native },
            (None, 0) if native == 0 => Vlan::Plain,
            (None, vid) if native == 0 => Vlan::Access(vid),
            _ => return Err(PyValueError::new_err("a port is plain, or an access port, or a trunk")),
        };
        let trunk = trunk.unwrap_or_default();
        trunk.iter().try_for_each(|&vid| vlan_of(vid, "trunk").map(drop))?;
        let behind = if behind == 0 { NOBODY } else { port_of(behind)? };
        let [out, inward] = [out, inward].map(|line| line.map_or(Settings::default(), Settings::from));
        let policy = Policy {
            worker: worker_of(worker)?,
            switch: switch_of(switch)?,
            up,
            vlan,
            trunk,
            isolated,
            max_macs,
            mtu,
            behind,
            shards,
            share,
            capture,
            out,
            inward,
        };
        repair::configure_port(self.inner, port_of(port)?, &policy);
        Ok(())
    }

    fn clear_port(&self, port: usize) -> PyResult<()> {
        repair::clear_port(self.inner, port_of(port)?);
        Ok(())
    }

    fn mirror(&self, port: usize, worker: usize, on: bool) -> PyResult<()> {
        repair::mirror(self.inner, port_of(port)?, worker_of(worker)?, on);
        Ok(())
    }

    /// Sums over workers; rx_frames, rx_drops and tx_drops are sums over fates and causes, in_hand and queued what is without one.
    fn counters(&self, port: usize) -> PyResult<HashMap<&'static str, u64>> {
        let port = port_of(port)?;
        let sum = |index: usize| ports::total(self.inner.workers().map(|worker| self.inner.cell(worker, port).counter(index)));
        let mut counters: HashMap<&'static str, u64> = COUNTERS.iter().enumerate().map(|(index, name)| (*name, sum(index))).collect();
        let drops = self.sums_of_drops(port);
        let rx_drops = ports::total(drops[..FIRST_EGRESS].iter().copied());
        let tx_drops = ports::total(drops[FIRST_EGRESS..].iter().copied());
        counters.insert("rx_drops", rx_drops);
        counters.insert("tx_drops", tx_drops);
        counters.insert("in_hand", ports::total(self.inner.workers().map(|worker| self.inner.cell(worker, port).in_hand())));
        counters.insert("queued", ports::total(self.inner.workers().map(|worker| self.inner.cell(worker, port).queued())));
        counters.insert("rx_frames", ports::total([counters["forwarded"], counters["filtered"], rx_drops]));
        Ok(counters)
    }

    fn drops(&self, port: usize) -> PyResult<HashMap<&'static str, u64>> {
        let sums = self.sums_of_drops(port_of(port)?);
        Ok(CAUSES.iter().copied().zip(sums).filter(|(_, frames)| *frames != 0).collect())
    }

    fn macs(&self, port: usize) -> PyResult<u32> {
        let port = port_of(port)?;
        let switch = self.inner.port(port).switch.load(Ordering::Relaxed) as usize & (SWITCHES - 1);
        let clock = repair::clock(self.inner, switch);
        Ok(self.inner.table(switch).stations(clock).filter(|station| station.port == port).count() as u32)
    }

    fn port_worker(&self, port: usize) -> PyResult<Option<u32>> {
        let record = self.inner.port(port_of(port)?);
        let used = record.flags.load(Ordering::Acquire) & ports::USED != 0;
        Ok(used.then(|| record.worker.load(Ordering::Relaxed)))
    }

    fn beat(&self, worker: usize) -> PyResult<u64> {
        Ok(self.inner.worker(worker_of(worker)?).beat.0.load(Ordering::Relaxed))
    }

    fn asleep(&self, worker: usize) -> PyResult<bool> {
        Ok(self.inner.worker(worker_of(worker)?).sleeping.0.load(Ordering::Relaxed) == 1)
    }

    fn faults(&self, worker: usize) -> PyResult<u64> {
        Ok(repair::faults(self.inner, worker_of(worker)?))
    }

    fn repair(&self, worker: usize) -> PyResult<u64> {
        Ok(repair::repair(self.inner, worker_of(worker)?))
    }

    fn fdb(&self, switch: usize) -> PyResult<Vec<(String, u16, Port, u32)>> {
        let switch = switch_of(switch)?;
        let clock = repair::clock(self.inner, switch);
        let stations = self.inner.table(switch).stations(clock);
        Ok(stations.map(|station| (mac_text(station.mac), station.vlan, station.port, station.age_s)).collect())
    }

    #[pyo3(signature = (switch, port = 0))]
    fn fdb_flush(&self, switch: usize, port: usize) -> PyResult<usize> {
        let port = if port == 0 { NOBODY } else { port_of(port)? };
        Ok(repair::forget(self.inner, switch_of(switch)?, port))
    }

    fn lanes(&self) -> Vec<(Worker, Worker, u64, u64)> {
        let mut lanes = Vec::new();
        for from in self.inner.workers() {
            for to in self.inner.workers() {
                let control = self.inner.control(from, to);
                if control.producer.capacity.load(Ordering::Relaxed) != 0 {
                    let popped = control.popped();
                    let queued = control.pushed().saturating_sub(popped);
                    lanes.push((from, to, queued, control.producer_notes.refused.load(Ordering::Relaxed)));
                }
            }
        }
        lanes
    }
}

impl Arena {
    fn sums_of_drops(&self, port: Port) -> Vec<u64> {
        let sum = |index: usize| ports::total(self.inner.workers().map(|worker| self.inner.cell(worker, port).dropped(index)));
        (0..CAUSES.len()).map(sum).collect()
    }
}

/// The faults of a line, as Python says them.
#[derive(FromPyObject)]
#[pyo3(from_item_all)]
struct Line {
    delay_ns: u64,
    jitter_ns: u64,
    distribution: u64,
    loss: u64,
    loss_burst: u64,
    duplicate: u64,
    reorder: u64,
    corrupt: u64,
    rate_bps: u64,
    rate_burst: u64,
    queue_frames: u64,
    queue_bytes: u64,
    seed: Option<u64>,
}

impl From<Line> for Settings {
    fn from(line: Line) -> Settings {
        Settings::read(&[
            line.delay_ns,
            line.jitter_ns,
            line.distribution,
            line.loss,
            line.loss_burst,
            line.duplicate,
            line.reorder,
            line.corrupt,
            line.rate_bps,
            line.rate_burst,
            line.queue_frames,
            line.queue_bytes,
            line.seed.is_some().into(),
            line.seed.unwrap_or(0),
        ])
    }
}

fn mac_text(mac: u64) -> String {
    let bytes = mac.to_be_bytes();
    bytes[2..].iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(":")
}
