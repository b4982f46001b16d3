//! The per-frame core of shardnet.
