//! The per-frame core of shardnet.
//!
//! ```text
//!   python (PyO3, thin) -> shard (a worker's loop), relay -> port/*, user/* (engines), switch -> arena, lane, table, frame, offload -> sys
//! ```
//!
//! Only towards the right. Everything but `python` builds and is tested without Python.

pub mod frame;
pub mod impair;
pub mod offload;

pub mod bell;
pub mod index;
mod sync;

#[cfg(not(loom))]
pub mod arena;
#[cfg(not(loom))]
pub mod lane;
#[cfg(not(loom))]
pub mod port;
#[cfg(not(loom))]
pub mod ports;
#[cfg(not(loom))]
pub mod relay;
#[cfg(not(loom))]
pub mod repair;
#[cfg(not(loom))]
pub mod shard;
#[cfg(not(loom))]
pub mod switch;
#[cfg(not(loom))]
pub mod sys;
#[cfg(not(loom))]
pub mod table;
#[cfg(not(loom))]
#[doc(hidden)]
pub mod testing;
#[cfg(not(loom))]
pub mod user;

#[cfg(all(feature = "python", not(loom)))]
mod python;
