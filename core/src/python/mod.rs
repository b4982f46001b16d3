//! `shardnet._core`: the shared memory as the supervisor sees it (`Arena`), the loop as a worker sees it (`Shard`).
//!
//! Thin on purpose: arguments are read and checked here, everything else happens in the modules beside.

mod arena;
mod process;
mod relay;
mod service;
mod shard;
mod user;

use pyo3::prelude::*;

use crate::arena::{PORTS, SWITCHES, WORKERS};
use crate::port::packet::{BLOCK, SLOT, SLOTS};
use crate::ports::{CAUSES, COUNTERS};

#[pymodule]
fn _core(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add("WORKERS", WORKERS)?;
    module.add("PORTS", PORTS)?;
    module.add("SWITCHES", SWITCHES)?;
    module.add("COUNTERS", pyo3::types::PyTuple::new(module.py(), COUNTERS)?)?;
    module.add("DROP_CAUSES", pyo3::types::PyTuple::new(module.py(), CAUSES)?)?;
    module.add("PACKET_RING", (BLOCK, SLOT * SLOTS / BLOCK, SLOT, SLOTS))?;
    module.add_class::<arena::Arena>()?;
    module.add_class::<shard::Shard>()?;
    module.add_class::<relay::Relay>()?;
    module.add_function(wrap_pyfunction!(process::drop_privileges, module)?)?;
    module.add_function(wrap_pyfunction!(process::process_title, module)?)?;
    module.add_function(wrap_pyfunction!(user::share, module)?)?;
    Ok(())
}
