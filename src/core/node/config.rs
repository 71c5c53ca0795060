//! What a node is made from.

use std::sync::Arc;

use meshnet_proto::wire::fast::Trust;

use crate::identity::{Identity, Verifier, Verify};
use crate::node::Saved;
use crate::peer::path::Timing;
use crate::peer::transport::Policy;
use crate::session::{Cipher, rekey};

/// Settings of a node. They do not change while it lives, but for those that [`crate::node::Input`] names.
#[derive(Debug)]
pub struct Config {
    /// Its key pair.
    pub identity: Identity,
    /// Its name for people.
    pub name: String,
    /// Version of the program.
    pub software: String,
    /// Peers of other clusters part.
    pub cluster: String,
    /// Start counter: higher than at any start before, persisted.
    pub incarnation: u64,
    /// Drawn at this start.
    pub instance: u64,
    /// A cluster secret is in use; without one anybody may join, and the status says so.
    pub secret: bool,
    /// Peers to connect to by flag, environment or file: `host[:port]`.
    pub targets: Vec<String>,
    /// From the start before.
    pub saved: Saved,
    /// Also connect to peers that others tell of.
    pub discovery: bool,
    /// Direct links that are accepted.
    pub max_links: usize,
    /// Lanes of this peer; the last one is the node's own.
    pub lanes: u8,
    /// Source ports besides the main one.
    pub ports_aside: u8,
    /// Best first.
    pub ciphers: Vec<Cipher>,
    /// The overlay's MTU here.
    pub mtu: u16,
    /// The longest packet that a frame of that MTU makes is longer by this: larger ones need not be tried.
    pub overhead: u16,
    /// The UDP port of this peer.
    pub port: u16,
    /// How fast failures are found.
    pub timing: Timing,
    /// By what frames travel to neighbours.
    pub transport: Policy,
    /// When sessions are keyed anew.
    pub rekey: rekey::Limits,
    /// Start of all that is drawn.
    pub seed: [u8; 32],
    /// Willing to relay for others.
    pub relay: bool,
    /// The check of signatures.
    pub verify: Arc<dyn Verify>,
    /// Underlay subnets within which frames may travel in the clear, and where this peer takes them.
    pub trust: Option<Trust>,
    /// Why it takes none although the operator wants it.
    pub fast_refused: Option<String>,
    /// Addresses to manage; none: not at all.
    pub ipam: Option<crate::ipam::Config>,
    /// What [`crate::ipam::Output::Keep`] left on disk, key by key.
    pub ipam_kept: Vec<(Vec<u8>, Vec<u8>)>,
}

impl Config {
    /// Defaults for a peer of this identity.
    pub fn new(identity: Identity, name: impl Into<String>) -> Config {
        Config {
            identity,
            name: name.into(),
            software: env!("CARGO_PKG_VERSION").into(),
            cluster: String::new(),
            incarnation: 1,
            instance: 1,
            secret: true,
            targets: Vec::new(),
            saved: Saved::default(),
            discovery: true,
            max_links: 128,
            lanes: 1,
            ports_aside: 0,
            ciphers: vec![Cipher::Aes256Gcm, Cipher::ChaCha20Poly1305],
            mtu: 1310,
            overhead: OVERHEAD_BYTES,
            port: PORT,
            timing: Timing::DEFAULT,
            transport: Policy::Auto,
            rekey: rekey::Limits::default(),
            seed: [0; 32],
            relay: true,
            verify: Arc::new(Verifier),
            trust: None,
            fast_refused: None,
            ipam: None,
            ipam_kept: Vec::new(),
        }
    }
}

/// The port when none is given.
pub const PORT: u16 = 6783;
/// What sealing, the longest way through relays and the headers of the underlay add to a packet of the overlay: see SPEC.md, "Transport".
pub const OVERHEAD_BYTES: u16 = 190;
