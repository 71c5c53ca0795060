//! Sessions: what two peers share to seal datagrams for each other.
//!
//! Keys come from the TLS exporter (RFC 8446, 7.5) of a QUIC connection between the two ends: one key for each direction, epoch and lane, so that
//! threads share neither counters nor windows. A [`Session`] is immutable but for those counters and windows; rekeying makes a new one that shares
//! the live keys.

pub mod keys;
pub mod rekey;
pub mod window;

use std::sync::Arc;

pub use keys::{Cipher, Marks, RxKeys, SessionKeys, SessionSecret, TxKeys};
pub use window::ReplayWindow;

/// Both directions between this peer and another.
#[derive(Debug)]
pub struct Session {
    /// What datagrams to us carry.
    pub local_index: u32,
    /// What datagrams to the other end carry.
    pub remote_index: u32,
    /// The cipher of both directions.
    pub cipher: Cipher,
    /// What we seal with.
    pub tx: Arc<TxKeys>,
    /// What we open with, by epoch modulo 4: old, current and next at most.
    pub rx: [Option<Arc<RxKeys>>; 4],
}
