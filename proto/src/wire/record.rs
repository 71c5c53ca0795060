//! The record: what a peer floods about itself. Signed by its origin and forwarded byte for byte, so that old peers never strip new fields.

use serde::{Deserialize, Serialize};
use std::net::SocketAddr;

use crate::codec::{self, CodecError};
use crate::id::{PeerId, ShortId};
use crate::limits;

/// The order of two records of one origin: the higher one wins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct Version {
    /// Grows with each start of the peer; persisted before the first send.
    pub incarnation: u64,
    /// Grows with each record of one incarnation.
    pub seq: u64,
}

/// A link as one end sees it. It counts when both ends say it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecordLink {
    /// The other end.
    pub peer: ShortId,
    /// Cost in tens of microseconds of round trip, at least 1; [`COST_LAST_RESORT`] for a flapping link.
    pub cost: u16,
}

/// The cost of a link that flaps: used when nothing else is left, never withdrawn.
pub const COST_LAST_RESORT: u16 = 65_534;

/// What a peer says of itself. Positional: never edit, add extension fields.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Who: ed25519 public key; its hash is the peer's id.
    pub public_key: [u8; 32],
    /// Order among the origin's records.
    pub version: Version,
    /// Drawn at each start: two processes with one identity differ here.
    pub instance: u64,
    /// For people; at most [`limits::NAME_MAX_BYTES`].
    pub name: String,
    /// Version of the program.
    pub software: String,
    /// Underlay addresses to reach it at.
    pub endpoints: Vec<SocketAddr>,
    /// Its links, by ascending peer.
    pub links: Vec<RecordLink>,
    /// Bits: see [`flags`].
    pub flags: u32,
    /// The overlay's MTU at this peer.
    pub mtu: u16,
    /// Fields added later: (number, bytes). Unknown numbers are kept and passed on.
    pub extensions: Vec<(u16, Vec<u8>)>,
}

/// Whether a text of another peer may be shown: short enough, and without control characters, which would command the reader's terminal.
pub(crate) fn is_printable(text: &str, limit: usize) -> bool {
    text.len() <= limit && !text.chars().any(char::is_control)
}

/// Bits of [`Record::flags`].
pub mod flags {
    /// The peer is willing to relay for others.
    pub const RELAY: u32 = 1;
    /// The peer is about to stop.
    pub const DRAINING: u32 = 2;
}

impl Record {
    /// Whether every field is within its limit.
    pub fn within_limits(&self) -> bool {
        is_printable(&self.name, limits::NAME_MAX_BYTES)
            && is_printable(&self.software, limits::SOFTWARE_MAX_BYTES)
            && self.version.incarnation <= limits::VERSION_MAX
            && self.version.seq <= limits::VERSION_MAX
            && self.endpoints.len() <= limits::ENDPOINTS_MAX
            && self.links.len() <= limits::RECORD_LINKS_MAX
            && self.links.is_sorted_by(|a, b| a.peer < b.peer)
            && self.links.iter().all(|link| (1..=COST_LAST_RESORT).contains(&link.cost))
            && self.extensions.len() <= limits::EXTENSIONS_MAX
    }
}

/// A record and its signature, as it travels: `signature (64 bytes) ‖ encoded record`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SignedRecord {
    /// ed25519 over [`SIGNATURE_CONTEXT`] and `body`.
    pub signature: [u8; 64],
    /// The encoded [`Record`], byte for byte as its origin wrote it.
    pub body: Vec<u8>,
}

/// Prefix of what is signed, so that a signature can mean nothing else.
pub const SIGNATURE_CONTEXT: &[u8] = b"meshnet record v1\0";

impl SignedRecord {
    /// Bytes to send.
    pub fn emit(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(64 + self.body.len());
        bytes.extend_from_slice(&self.signature);
        bytes.extend_from_slice(&self.body);
        bytes
    }

    /// Splits bytes into signature and body, and decodes the body. The signature is not checked here.
    pub fn parse(bytes: &[u8]) -> Result<(SignedRecord, Record), CodecError> {
        if bytes.len() > limits::RECORD_MAX_BYTES {
            return Err(CodecError::TooLong(bytes.len(), limits::RECORD_MAX_BYTES));
        }
        let (signature, body) =
            bytes.split_first_chunk::<64>().ok_or_else(|| CodecError::Malformed("record without signature".into()))?;
        let record: Record = codec::decode(body)?;
        if !record.within_limits() {
            return Err(CodecError::Malformed("record over its limits".into()));
        }
        Ok((SignedRecord { signature: *signature, body: body.to_vec() }, record))
    }
}

/// One line of a digest: who, and which version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecordKey {
    /// The origin.
    pub peer: PeerId,
    /// Its version here.
    pub version: Version,
}

#[cfg(test)]
mod tests;
