//! Messages on a link: a stream of `length u32 ‖ type u16 ‖ body`, in network byte order; `length` counts type and body.
//!
//! Unknown types are skipped, trailing bytes of a body too. Bodies are encoded by [`crate::codec`]. Positional: never edit a released struct.

use serde::{Deserialize, Serialize};

use crate::codec::{self, CodecError};
use crate::id::{PeerId, ShortId};
use crate::limits;
use crate::wire::record::{RecordKey, is_printable};

/// Version of the protocol; also in the ALPN, so that strangers part in the handshake.
pub const PROTOCOL_VERSION: u16 = 1;
/// ALPN of a link.
pub const ALPN: &[u8] = b"meshnet/1";

/// First message on a link, both ways.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// Newest version spoken.
    pub version: u16,
    /// Name of the cluster: peers of other clusters part.
    pub cluster: String,
    /// Start counter of the sender, as in its record.
    pub incarnation: u64,
    /// Drawn at each start.
    pub instance: u64,
    /// Name for people.
    pub name: String,
    /// Receiver index that datagrams to the sender must carry.
    pub session_index: u32,
    /// Lanes that the sender seals on: numbers below this.
    pub lanes: u8,
    /// False: only data and rekeying travel here; the link is not part of the topology.
    pub control: bool,
    /// The ciphers that the sender has in hardware or software, best first: see [`cipher`].
    pub ciphers: Vec<u8>,
    /// The largest number of control links the sender wants, 0: any.
    pub max_links: u16,
    /// Fields added later.
    pub extensions: Vec<(u16, Vec<u8>)>,
}

/// Number of the hello's extension field that names the kinds of inner headers above 4 that the sender reads, a byte each.
pub const READS: u16 = 1;

impl Hello {
    /// Whether its sender reads inner headers of this kind, one above 4.
    pub fn reads(&self, kind: u8) -> bool {
        let field = self.extensions.iter().find(|(number, _)| *number == READS);
        field.is_some_and(|(_, kinds)| kinds.contains(&kind))
    }
}

/// Numbers of ciphers.
pub mod cipher {
    /// AES-256-GCM (NIST SP 800-38D).
    pub const AES_256_GCM: u8 = 1;
    /// ChaCha20-Poly1305 (RFC 8439).
    pub const CHACHA20_POLY1305: u8 = 2;
}

/// Why a link is closed: the QUIC application error code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[repr(u8)]
pub enum CloseReason {
    /// The peer stops.
    Stopping = 0,
    /// Another link to the same peer stays.
    Duplicate = 1,
    /// I reached myself.
    OwnAddress = 2,
    /// Another process with my identity.
    ClonedIdentity = 3,
    /// The other end broke the protocol.
    Protocol = 4,
    /// The other end speaks no version that I speak.
    Version = 5,
    /// The other end is of another cluster.
    Cluster = 6,
    /// Too many links.
    Full = 7,
    /// Nothing heard for too long.
    Silent = 8,
    /// No longer wanted: the operator, or a better set of neighbours.
    Unwanted = 9,
    /// The other end does not take what I send.
    Slow = 10,
}

impl CloseReason {
    /// The reason of a code from the network.
    pub fn from_code(code: u64) -> Option<CloseReason> {
        use CloseReason::*;
        [Stopping, Duplicate, OwnAddress, ClonedIdentity, Protocol, Version, Cluster, Full, Silent, Unwanted, Slow]
            .into_iter()
            .find(|reason| *reason as u64 == code)
    }
}

/// Start of a rekeying: see SPEC.md, "Rekeying".
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rekey {
    /// The epoch to begin.
    pub epoch: u32,
    /// Fresh X25519 public key of the sender.
    pub public_key: [u8; 32],
}

/// A message for a peer that may be several links away: each peer on the way passes it on along its own route, until `hops` is used up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Routed {
    /// Who is to have it.
    pub to: ShortId,
    /// Who sent it. Not proven: members trust each other here.
    pub from: ShortId,
    /// Links that it may still cross.
    pub hops: u8,
    /// A [`crate::wire::ipam::Message`].
    pub body: Vec<u8>,
}

/// One message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Control {
    /// 1: first, both ways.
    Hello(Hello),
    /// 2: records that the sender thinks are new to the receiver, each as [`crate::wire::record::SignedRecord::emit`] gives it.
    Records(Vec<Vec<u8>>),
    /// 3: hash over all records of the sender; an unequal receiver answers with `Buckets`.
    Digest(u64),
    /// 4: hash of each of [`limits::DIGEST_BUCKETS`] buckets; the receiver answers with the `Keys` of unequal ones.
    Buckets(Vec<u64>),
    /// 5: the sender's keys in the buckets named; the receiver sends newer records and asks for older ones.
    Keys {
        /// Which buckets.
        buckets: Vec<u8>,
        /// All that the sender has in them.
        keys: Vec<RecordKey>,
    },
    /// 6: send me these.
    Want(Vec<PeerId>),
    /// 7: begins a rekeying.
    Rekey(Rekey),
    /// 8: the answer; the sender opens the new epoch from now on.
    RekeyAck(Rekey),
    /// 9: the initiator opens it too: the receiver may seal with it.
    RekeyDone(u32),
    /// 10: the sender stops on purpose.
    Goodbye,
    /// 11: a [`crate::wire::ipam::Message`] for the neighbour itself.
    Ipam(Vec<u8>),
    /// 12: one for somebody else, or for the neighbour from somebody else.
    Routed(Routed),
}

/// Bytes of `length`.
pub const LENGTH_BYTES: usize = 4;

impl Control {
    /// Type number.
    pub fn kind(&self) -> u16 {
        match self {
            Control::Hello(_) => 1,
            Control::Records(_) => 2,
            Control::Digest(_) => 3,
            Control::Buckets(_) => 4,
            Control::Keys { .. } => 5,
            Control::Want(_) => 6,
            Control::Rekey(_) => 7,
            Control::RekeyAck(_) => 8,
            Control::RekeyDone(_) => 9,
            Control::Goodbye => 10,
            Control::Ipam(_) => 11,
            Control::Routed(_) => 12,
        }
    }

    /// The message as `length ‖ type ‖ body`.
    pub fn emit(&self) -> Result<Vec<u8>, CodecError> {
        let body = match self {
            Control::Hello(hello) => codec::encode(hello)?,
            Control::Records(records) => codec::encode_blocks(records)?,
            Control::Digest(hash) => codec::encode(hash)?,
            Control::Buckets(hashes) => codec::encode(hashes)?,
            Control::Keys { buckets, keys } => codec::encode(&(buckets, keys))?,
            Control::Want(peers) => codec::encode(peers)?,
            Control::Rekey(rekey) | Control::RekeyAck(rekey) => codec::encode(rekey)?,
            Control::RekeyDone(epoch) => codec::encode(epoch)?,
            Control::Goodbye => Vec::new(),
            Control::Ipam(body) => body.clone(),
            Control::Routed(routed) => codec::encode(routed)?,
        };
        let length = body.len() + 2;
        if length + LENGTH_BYTES > limits::MESSAGE_MAX_BYTES {
            return Err(CodecError::TooLong(length, limits::MESSAGE_MAX_BYTES));
        }
        let mut bytes = Vec::with_capacity(length + LENGTH_BYTES);
        bytes.extend_from_slice(&(length as u32).to_be_bytes());
        bytes.extend_from_slice(&self.kind().to_be_bytes());
        bytes.extend_from_slice(&body);
        Ok(bytes)
    }

    /// Reads `type ‖ body` (without the length). `None`: a type of a newer version, to be skipped.
    pub fn parse(bytes: &[u8]) -> Result<Option<Control>, CodecError> {
        let (kind, body) =
            bytes.split_first_chunk::<2>().ok_or_else(|| CodecError::Malformed("message without type".into()))?;
        let message = match u16::from_be_bytes(*kind) {
            1 => Control::Hello(parse_hello(body)?),
            2 => {
                let records = codec::decode_blocks(body, limits::RECORDS_PER_MESSAGE_MAX)?;
                records.iter().try_for_each(|record| bounded(record.len(), limits::RECORD_MAX_BYTES))?;
                Control::Records(records)
            }
            3 => Control::Digest(codec::decode(body)?),
            4 => {
                let hashes: Vec<u64> = codec::decode_vec(body, limits::DIGEST_BUCKETS)?;
                if hashes.len() != limits::DIGEST_BUCKETS {
                    return Err(CodecError::Malformed(format!("{} buckets", hashes.len())));
                }
                Control::Buckets(hashes)
            }
            5 => {
                let (buckets, keys): (Vec<u8>, Vec<RecordKey>) = codec::decode(body)?;
                bounded(buckets.len(), limits::DIGEST_BUCKETS)?;
                bounded(keys.len(), limits::PEERS_MAX)?;
                Control::Keys { buckets, keys }
            }
            6 => Control::Want(codec::decode_vec(body, limits::PEERS_MAX)?),
            7 => Control::Rekey(codec::decode(body)?),
            8 => Control::RekeyAck(codec::decode(body)?),
            9 => Control::RekeyDone(codec::decode(body)?),
            10 => Control::Goodbye,
            11 => Control::Ipam(body.to_vec()),
            12 => Control::Routed(codec::decode(body)?),
            _ => return Ok(None),
        };
        Ok(Some(message))
    }
}

fn parse_hello(body: &[u8]) -> Result<Hello, CodecError> {
    let hello: Hello = codec::decode(body)?;
    if !is_printable(&hello.name, limits::NAME_MAX_BYTES) || !is_printable(&hello.cluster, limits::NAME_MAX_BYTES) {
        return Err(CodecError::Malformed("name too long, or with control characters".into()));
    }
    if hello.lanes == 0 {
        return Err(CodecError::Malformed("no lanes".into()));
    }
    if hello.incarnation > limits::VERSION_MAX {
        return Err(CodecError::Malformed("incarnation over its limit".into()));
    }
    bounded(usize::from(hello.lanes), limits::LANES_MAX)?;
    bounded(hello.ciphers.len(), limits::EXTENSIONS_MAX)?;
    bounded(hello.extensions.len(), limits::EXTENSIONS_MAX)?;
    Ok(hello)
}

fn bounded(length: usize, limit: usize) -> Result<(), CodecError> {
    if length > limit { Err(CodecError::TooLong(length, limit)) } else { Ok(()) }
}

#[cfg(test)]
mod tests;
