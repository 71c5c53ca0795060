//! What went wrong, in the words of the node.

use meshnet_core::node::{DialError, LinkEnd};
use meshnet_proto::wire::control::CloseReason;
use quinn::{ConnectError, ConnectionError};

/// Why the room could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum QuicError {
    /// The certificates could not be made.
    #[error("cannot make the certificate of this peer: {0}")]
    Certificate(String),
    /// rustls refuses our own settings.
    #[error("cannot set up TLS: {0}")]
    Tls(String),
    /// quinn refuses the socket.
    #[error("cannot set up QUIC: {0}")]
    Endpoint(#[from] std::io::Error),
}

impl QuicError {
    pub(super) fn certificate(error: impl ToString) -> QuicError {
        QuicError::Certificate(error.to_string())
    }

    pub(super) fn tls(error: impl ToString) -> QuicError {
        QuicError::Tls(error.to_string())
    }
}

/// What an error in the handshake or after it means.
enum Meaning {
    Secret,
    Version,
    WrongPeer,
    Timeout,
    Closed(Option<CloseReason>),
    Other(String),
}

fn meaning(error: &ConnectionError) -> Meaning {
    match error {
        ConnectionError::VersionMismatch => Meaning::Version,
        ConnectionError::TimedOut => Meaning::Timeout,
        ConnectionError::ApplicationClosed(close) => {
            Meaning::Closed(CloseReason::from_code(close.error_code.into_inner()))
        }
        ConnectionError::TransportError(ours) => {
            // The alert is the same for every fault of a certificate; only the text tells the wrong name from the wrong signature.
            let wrong_name = ours.reason.contains("not valid for name");
            if wrong_name { Meaning::WrongPeer } else { of_code(ours.code.into(), error) }
        }
        ConnectionError::ConnectionClosed(theirs) => of_code(theirs.error_code.into(), error),
        ConnectionError::Reset => Meaning::Other("the other end has restarted".into()),
        ConnectionError::LocallyClosed | ConnectionError::CidsExhausted => Meaning::Other(error.to_string()),
    }
}

/// By the code of RFC 9000, 20.1: TLS alerts (RFC 8446, 6) from 0x100.
fn of_code(code: u64, error: &ConnectionError) -> Meaning {
    match code {
        CONNECTION_REFUSED => Meaning::Other("the other end refuses new links: too many at once".into()),
        _ => match code.checked_sub(CRYPTO_ERROR) {
            // bad, unsupported, revoked, expired, unknown certificate; unknown authority; access denied; decrypt error; certificate required
            Some(42..=46 | 48 | 49 | 51 | 116) => Meaning::Secret,
            // protocol version; no application protocol
            Some(70 | 120) => Meaning::Version,
            _ => Meaning::Other(error.to_string()),
        },
    }
}

/// Why a dial failed.
pub(super) fn dial_error(error: &ConnectionError) -> DialError {
    match meaning(error) {
        Meaning::Secret => DialError::Secret,
        Meaning::Version => DialError::Version,
        Meaning::WrongPeer => DialError::WrongPeer,
        Meaning::Timeout => DialError::Timeout,
        Meaning::Closed(Some(reason)) => DialError::Closed(reason),
        Meaning::Closed(None) => DialError::Other("closed with a reason of a newer version".into()),
        Meaning::Other(text) => DialError::Other(text),
    }
}

/// Why a dial did not even start.
pub(super) fn connect_error(error: &ConnectError) -> DialError {
    match error {
        ConnectError::InvalidRemoteAddress(address) => DialError::Unreachable(format!("{address} cannot be dialled")),
        other => DialError::Other(other.to_string()),
    }
}

/// Why a link ended that we did not close.
pub(super) fn link_end(error: &ConnectionError) -> LinkEnd {
    match meaning(error) {
        Meaning::Secret => LinkEnd::Secret,
        Meaning::Timeout => LinkEnd::Timeout,
        Meaning::Closed(reason) => LinkEnd::Remote(reason),
        Meaning::Version => LinkEnd::Remote(Some(CloseReason::Version)),
        Meaning::WrongPeer => LinkEnd::Other(error.to_string()),
        Meaning::Other(text) => LinkEnd::Other(text),
    }
}

/// RFC 9000, 20.1.
const CONNECTION_REFUSED: u64 = 2;
/// RFC 9000, 20.1: the first of 256 codes for TLS alerts.
const CRYPTO_ERROR: u64 = 0x100;
