//! The per-frame core of shardnet.

pub mod frame;
pub mod offload;
