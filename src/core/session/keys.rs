//! Keys of a session, and sealing and opening with them. Contract; bodies follow.

use std::sync::atomic::AtomicU64;

use super::ReplayWindow;

/// 64 bytes of TLS exporter: the start of a session's keys.
#[derive(Clone)]
pub struct SessionSecret(pub [u8; 64]);

impl std::fmt::Debug for SessionSecret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SessionSecret(..)")
    }
}

/// Cipher of a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cipher {
    /// AES-256-GCM.
    Aes256Gcm,
    /// ChaCha20-Poly1305.
    ChaCha20Poly1305,
}

/// Keys to seal with, in one epoch.
#[derive(Debug)]
pub struct TxKeys {
    /// The epoch, whole.
    pub epoch: u32,
    /// By lane number.
    pub lanes: Vec<TxLane>,
}

/// One lane's key and counter. Sealed on by one thread.
#[derive(Debug)]
pub struct TxLane {
    /// Next counter.
    pub counter: AtomicU64,
}

/// Keys to open with, in one epoch.
#[derive(Debug)]
pub struct RxKeys {
    /// The epoch, whole.
    pub epoch: u32,
    /// By lane number.
    pub lanes: Vec<RxLane>,
}

/// One lane's key and window.
#[derive(Debug)]
pub struct RxLane {
    /// Counters seen.
    pub window: ReplayWindow,
}
