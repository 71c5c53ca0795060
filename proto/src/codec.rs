//! The encoding of control messages and records: bincode 2 with variable-length integers, behind two functions so that it can be swapped.
//!
//! It is positional: a released struct is never edited; new fields travel as extension fields, new messages under new numbers.
//! A length that the bytes cannot hold reserves at most 1 MiB (serde's bound) before it fails; a sequence of a type without bytes must never be decoded,
//! for nothing would bound its length.

use serde::Serialize;
use serde::de::DeserializeOwned;

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
