//! The encoding of control messages and records: bincode 2 with variable-length integers, behind two functions so that it can be swapped.
//!
//! It is positional: a released struct is never edited; new fields travel as extension fields, new messages under new numbers.

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
    #[error("{0} bytes are over the limit of {1}")]
    TooLong(usize, usize),
}

fn config() -> impl bincode::config::Config {
    bincode::config::standard().with_limit::<{ limits::MESSAGE_MAX_BYTES }>()
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
