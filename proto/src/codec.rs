//! The encoding of control messages and records: bincode 2 with variable-length integers, behind two functions so that it can be swapped.
//!
//! It is positional: a released struct is never edited; new fields travel as extension fields, new messages under new numbers.
//! A length that the bytes cannot hold reserves at most 1 MiB (serde's bound) before it fails; a sequence of a type without bytes must never be decoded,
//! for nothing would bound its length.

use std::fmt;

use serde::de::{DeserializeOwned, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::limits;

/// Why bytes could not be read or written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CodecError {
    /// The bytes are not an encoding of the wanted type.
    #[error("malformed: {0}")]
    Malformed(String),
    /// The value is longer than its limit.
    #[error("a length of {0} is over the limit of {1}")]
    TooLong(usize, usize),
}

fn config() -> impl bincode::config::Config {
    bincode::config::standard().with_limit::<{ limits::MESSAGE_MAX_BYTES }>()
}

/// Decodes a sequence of at most `limit` elements. The count is looked at first: a long message of tiny elements costs no more memory than the limit says.
pub(crate) fn decode_vec<T: DeserializeOwned>(bytes: &[u8], limit: usize) -> Result<Vec<T>, CodecError> {
    let count: u64 = decode(bytes)?;
    let count = usize::try_from(count).unwrap_or(usize::MAX);
    if count > limit { Err(CodecError::TooLong(count, limit)) } else { decode(bytes) }
}

/// Encodes `value`.
pub fn encode<T: Serialize>(value: &T) -> Result<Vec<u8>, CodecError> {
    bincode::serde::encode_to_vec(value, config()).map_err(|error| CodecError::Malformed(error.to_string()))
}

/// Decodes a `T` from the start of `bytes`. Trailing bytes are skipped: they are fields of a newer version.
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, CodecError> {
    if bytes.len() > limits::MESSAGE_MAX_BYTES {
        return Err(CodecError::TooLong(bytes.len(), limits::MESSAGE_MAX_BYTES));
    }
    bincode::serde::decode_from_slice(bytes, config())
        .map(|(value, _)| value)
        .map_err(|error| CodecError::Malformed(error.to_string()))
}

/// Encodes blocks of bytes: as [`encode`] does, but each block in one piece, which a mesh that tells thousands of records at once feels.
pub(crate) fn encode_blocks(blocks: &[Vec<u8>]) -> Result<Vec<u8>, CodecError> {
    struct Borrowed<'a>(&'a [u8]);
    impl Serialize for Borrowed<'_> {
        fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
            serializer.serialize_bytes(self.0)
        }
    }
    encode(&blocks.iter().map(|block| Borrowed(block)).collect::<Vec<_>>())
}

/// Decodes at most `limit` blocks of bytes.
pub(crate) fn decode_blocks(bytes: &[u8], limit: usize) -> Result<Vec<Vec<u8>>, CodecError> {
    struct Block(Vec<u8>);
    struct Bytes;
    impl Visitor<'_> for Bytes {
        type Value = Block;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("bytes")
        }

        fn visit_bytes<E>(self, bytes: &[u8]) -> Result<Block, E> {
            Ok(Block(bytes.to_vec()))
        }

        fn visit_byte_buf<E>(self, bytes: Vec<u8>) -> Result<Block, E> {
            Ok(Block(bytes))
        }
    }
    impl<'de> Deserialize<'de> for Block {
        fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Block, D::Error> {
            deserializer.deserialize_byte_buf(Bytes)
        }
    }
    Ok(decode_vec::<Block>(bytes, limit)?.into_iter().map(|block| block.0).collect())
}
