//! The forwarding database: which MAC address is where. Learned from data: last writer wins (local too), aged, bounded, damped.
//!
//! Shared by all workers (dashmap) behind a cache in each: a hit takes no lock. A generation counter tells caches that some address moved.
//! Time is the driver's tick (seconds), passed in.

/// Learned addresses.
#[derive(Debug, Default)]
pub struct Fdb {}

/// One thread's cache.
#[derive(Debug, Default)]
pub struct FdbCache {}
