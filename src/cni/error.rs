//! What a verb answers when it fails: the specification's JSON, one clear line in it.

use serde_json::{Value, json};

use crate::ctl::Failure;
use crate::netlink;

/// A refusal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CniError {
    /// Below 100: of the specification.
    pub code: u32,
    /// One line.
    pub msg: String,
    /// More of it; may be empty.
    pub details: String,
}

impl CniError {
    /// With a code and its words.
    pub fn new(code: u32, msg: impl Into<String>) -> CniError {
        CniError { code, msg: msg.into(), details: String::new() }
    }

    /// Of a configuration that cannot be right.
    pub fn config(msg: impl Into<String>) -> CniError {
        CniError::new(INVALID_CONFIG, msg)
    }

    /// For standard output.
    pub fn json(&self, version: &str) -> Value {
        json!({ "cniVersion": version, "code": self.code, "msg": self.msg, "details": self.details })
    }

    /// What another plugin said; its words are its own.
    pub fn of_plugin(name: &str, value: &Value) -> Option<CniError> {
        let code = u32::try_from(value.get("code")?.as_u64()?).ok()?;
        let text = |key: &str| value.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
        Some(CniError { code, msg: format!("{name}: {}", text("msg")), details: text("details") })
    }
}

impl From<Failure> for CniError {
    fn from(failure: Failure) -> CniError {
        let msg = match &failure {
            Failure::NoPeer { socket, why } => {
                format!("no meshd at {} ({why}): it is started or restarted; the runtime tries again", socket.display())
            }
            Failure::Forbidden(socket) => format!("may not use {}: the runtime runs plugins as root", socket.display()),
            other => other.to_string(),
        };
        CniError::new(TRY_LATER, msg)
    }
}

impl From<netlink::Error> for CniError {
    fn from(error: netlink::Error) -> CniError {
        use netlink::Error::{NoBridge, NoNamespace, NotANamespace, OwnNamespace};
        let code = match &error {
            NoNamespace(_) => NO_CONTAINER,
            NotANamespace(_) | OwnNamespace(_) => INVALID_ENVIRONMENT,
            NoBridge(_) => TRY_LATER,
            _ => KERNEL,
        };
        let msg = match &error {
            OwnNamespace(name) => format!("CNI_NETNS '{name}' is the host's own namespace: a container's is wanted"),
            other => other.to_string(),
        };
        CniError::new(code, msg)
    }
}

/// Of the specification.
pub const INCOMPATIBLE_VERSION: u32 = 1;
/// A key asks for what this plugin does not do.
pub const UNSUPPORTED_FIELD: u32 = 2;
/// The container is not there; nothing has to be cleaned up.
pub const NO_CONTAINER: u32 = 3;
/// An environment variable is missing or wrong.
pub const INVALID_ENVIRONMENT: u32 = 4;
/// Standard input cannot be read.
pub const IO: u32 = 5;
/// It is not JSON.
pub const NOT_DECODED: u32 = 6;
/// It is not a configuration.
pub const INVALID_CONFIG: u32 = 7;
/// The same call may succeed soon.
pub const TRY_LATER: u32 = 11;
/// ADD would fail.
pub const UNAVAILABLE: u32 = 50;
/// And containers that are there may not reach others.
pub const LIMITED: u32 = 51;
/// Of our own: the kernel refused.
pub const KERNEL: u32 = 100;
/// The address that was asked for is somebody else's.
pub const ADDRESS_TAKEN: u32 = 101;
/// CHECK found a difference.
pub const CHECK_FAILED: u32 = 102;
/// A plugin that this one calls is missing or broken.
pub const DELEGATE: u32 = 103;
/// A file of the plugin's own cannot be written.
pub const FILE: u32 = 104;
