//! What the runtime says by environment variables.

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::config::is_word;
use super::error::{CniError, INVALID_ENVIRONMENT};

/// A verb.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "they are those of the specification")]
pub enum Verb {
    Add,
    Del,
    Check,
    Gc,
    Status,
    Version,
}

/// The call; what its verb does not need may be empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Call {
    /// What to do.
    pub verb: Verb,
    /// `CNI_CONTAINERID`.
    pub container: String,
    /// `CNI_NETNS`; empty: the namespace is gone.
    pub netns: String,
    /// `CNI_IFNAME`.
    pub interface: String,
    /// `CNI_ARGS`.
    pub args: BTreeMap<String, String>,
    /// `CNI_PATH`.
    pub path: Vec<PathBuf>,
}

impl Call {
    /// Reads and checks what the verb needs.
    pub fn read(get: impl Fn(&str) -> Option<String>) -> Result<Call, CniError> {
        let wrong = |msg: String| CniError::new(INVALID_ENVIRONMENT, msg);
        let text = |key: &str| get(key).unwrap_or_default();
        let verb = match text("CNI_COMMAND").as_str() {
            "ADD" => Verb::Add,
            "DEL" => Verb::Del,
            "CHECK" => Verb::Check,
            "GC" => Verb::Gc,
            "STATUS" => Verb::Status,
            "VERSION" => Verb::Version,
            "" => return Err(wrong("CNI_COMMAND is missing: a runtime sets it".into())),
            other => {
                let verbs = "one of ADD, DEL, CHECK, GC, STATUS, VERSION";
                return Err(wrong(format!("unknown CNI_COMMAND: {}: {verbs}", other.escape_debug())));
            }
        };
        let needed: &[&str] = match verb {
            Verb::Add | Verb::Check => &["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"],
            Verb::Del => &["CNI_CONTAINERID", "CNI_IFNAME"],
            Verb::Gc | Verb::Status | Verb::Version => &[],
        };
        let missing: Vec<&str> = needed.iter().copied().filter(|key| text(key).is_empty()).collect();
        if !missing.is_empty() {
            return Err(wrong(format!("required environment variables are missing: {}", missing.join(", "))));
        }
        let call = Call {
            verb,
            container: text("CNI_CONTAINERID"),
            netns: text("CNI_NETNS"),
            interface: text("CNI_IFNAME"),
            // DEL must not fail for what only ADD reads.
            args: if verb == Verb::Add { args(&text("CNI_ARGS"))? } else { BTreeMap::new() },
            path: text("CNI_PATH").split(':').filter(|dir| !dir.is_empty()).map(PathBuf::from).collect(),
        };
        if !needed.is_empty() {
            let (container, interface) = (&call.container, &call.interface);
            if !is_word(container) || container.len() > CONTAINER_MAX {
                return Err(wrong(format!(
                    "CNI_CONTAINERID '{}' is wrong: at most {CONTAINER_MAX} letters, digits, '_', '.' and '-' are wanted",
                    container.escape_debug()
                )));
            }
            let odd = |letter: char| letter == '/' || letter == ':' || letter.is_whitespace() || letter.is_control();
            if interface.len() > 15 || interface == "." || interface == ".." || interface.chars().any(odd) {
                return Err(wrong(format!(
                    "CNI_IFNAME '{}' is wrong: at most 15 bytes without '/', ':' and spaces are wanted",
                    interface.escape_debug()
                )));
            }
        }
        Ok(call)
    }

    /// Whose the interface is, in a network of this name.
    pub fn owner(&self, network: &str) -> String {
        format!("{}{}:{}", owners_of(network), self.container, self.interface)
    }

    /// The addresses that `CNI_ARGS` asks for.
    pub fn ips(&self) -> Vec<String> {
        let list = self.args.get("IP").map(String::as_str).unwrap_or_default();
        list.split(',').map(str::trim).filter(|ip| !ip.is_empty()).map(str::to_owned).collect()
    }
}

/// How the owners of a network begin.
pub fn owners_of(network: &str) -> String {
    format!("cni:{network}:")
}

/// `KEY=VALUE;…`. What is not understood is for others: runtimes give all plugins all of it.
fn args(text: &str) -> Result<BTreeMap<String, String>, CniError> {
    let pair = |pair: &str| {
        let (key, value) = pair.split_once('=')?;
        Some((key.trim().to_owned(), value.trim().to_owned()))
    };
    text.split(';')
        .filter(|part| !part.trim().is_empty())
        .map(|part| {
            let wrong = || format!("CNI_ARGS: '{}' is wrong: KEY=VALUE is wanted", part.escape_debug());
            pair(part).ok_or_else(|| CniError::new(INVALID_ENVIRONMENT, wrong()))
        })
        .collect()
}

/// Ids of containers have 64 bytes; podman's and others' with a name in front of them more.
const CONTAINER_MAX: usize = 100;
