//! The state directory: what makes a peer the same peer after a restart.
//!
//! | file | what | when broken |
//! |---|---|---|
//! | `lock` | held while a meshd runs | – |
//! | `identity` | seed of the peer's key, and its id as a check | refused, never overwritten |
//! | `incarnation` | number of the last start | set aside; the clock serves |
//! | `ipam.redb` | addresses: the room `store` | refused; `--restored` makes a new peer |
//! | `ipam.peer` | id of the peer whose `ipam.redb` must be there | a new peer |
//! | `claims.json` | addresses in use from an earlier identity | set aside; claimed by hand |
//! | `saved.json` | targets and known peers ([`Saved`]) | set aside; discovery finds them again |
//! | `kubernetes-secret` | the cluster's secret from the API | refused |
//! | `successor` | there while one waits for the lock | – |
//! | `kubernetes.json` | nodes, and who was seen on them | set aside; the API says it again |
//!
//! Files are replaced whole: written beside, synced, renamed, directory synced. After a kill or a power cut there is the old one or the new one.
//! It deliberately lacks a way to make a second identity in a directory that has one.

use std::fmt::Display;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair};
use aws_lc_rs::{digest, rand};
use meshnet_core::node::Saved;
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use tracing::{info, warn};

use super::secret::unhex;
use crate::ctl::secret::hex;

mod aside;
mod cluster;

/// A state directory that is ours alone for as long as this lives.
#[derive(Debug)]
pub struct StateDir {
    path: PathBuf,
    /// Its lock falls with the process, however that ends.
    _lock: File,
}

/// Why the state directory cannot be used: one line each.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// Another process holds it.
    #[error("state directory {0} is in use by another meshd{1}: stop that one, or give this one another --state-dir")]
    InUse(PathBuf, String),
    /// Something else is there.
    #[error("state directory {0} is not a directory: remove what is there, or give another --state-dir")]
    NotADirectory(PathBuf),
    /// The identity cannot be trusted.
    #[error(
        "identity file {path} {fault}: bring it back from a backup; or, to make this machine a new peer that owns nothing, remove {path}"
    )]
    Identity {
        /// Which.
        path: PathBuf,
        /// What is wrong with it.
        fault: String,
    },
    /// A file system without room.
    #[error("state directory {0}: the disk is full ({1}): free some space")]
    Full(PathBuf, String),
    /// A directory that cannot be written.
    #[error("state directory {0} cannot be written ({1}): give meshd the right to write it, or another --state-dir")]
    ReadOnly(PathBuf, String),
    /// Anything else.
    #[error("state directory {0}: {1}")]
    Io(PathBuf, String),
}

impl StateDir {
    /// Makes the directory if there is none, and locks it.
    pub fn open(path: &Path) -> Result<StateDir, StateError> {
        let wrong = |error: io::Error| state_error(path, "cannot be made", &error);
        match fs::metadata(path) {
            Ok(found) if !found.is_dir() => return Err(StateError::NotADirectory(path.to_owned())),
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::NotFound => {
                DirBuilder::new().recursive(true).mode(DIRECTORY_MODE).create(path).map_err(wrong)?;
            }
            Err(error) => return Err(wrong(error)),
        }
        let lock = lock(path)?;
        Ok(StateDir { path: path.to_owned(), _lock: lock })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The seed of this peer's ed25519 key: made at the first start, the same ever after.
    pub fn identity(&self) -> Result<[u8; 32], StateError> {
        let path = self.path.join(IDENTITY);
        let wrong = |fault: &str| StateError::Identity { path: path.clone(), fault: fault.to_owned() };
        match self.read(IDENTITY) {
            Ok(Some(bytes)) => {
                let seed = parse_identity(&bytes).map_err(wrong)?;
                keep_private(&path);
                Ok(seed)
            }
            Ok(None) => self.make_identity(),
            Err(error) => Err(wrong(&format!("cannot be read ({error})"))),
        }
    }

    fn make_identity(&self) -> Result<[u8; 32], StateError> {
        if self.path.join(INCARNATION).exists() {
            warn!(path = %self.path.display(), "the identity of this peer was removed: it is a new peer from now on");
        }
        let mut seed = [0; 32];
        rand::fill(&mut seed).map_err(|_| self.other(&"the kernel gives no random bytes"))?;
        let id = id_of(&seed).ok_or_else(|| self.other(&"a new key is refused"))?;
        self.replace(IDENTITY, format!("{IDENTITY_WORD} {} {id}\n", hex(&seed)).as_bytes())?;
        info!(peer = %id, "made the identity of this peer");
        Ok(seed)
    }

    /// The number of this start, greater than that of every earlier one, and kept before it is used. `unix_seconds` only helps after state was lost.
    pub fn next_incarnation(&self, unix_seconds: u64) -> Result<u64, StateError> {
        let last = match self.read(INCARNATION) {
            Ok(found) => found.and_then(|bytes| match parse_incarnation(&bytes) {
                Some(last) => Some(last),
                None => {
                    self.set_aside(INCARNATION, &"not a number");
                    None
                }
            }),
            Err(error) => {
                self.set_aside(INCARNATION, &error);
                None
            }
        };
        let next = unix_seconds.min(INCARNATION_MAX).max(last.map_or(1, |last| last + 1));
        self.replace(INCARNATION, format!("{next}\n").as_bytes())?;
        Ok(next)
    }

    /// What [`StateDir::save`] kept last. A broken file is set aside, for it holds nothing that cannot be found again.
    pub fn load_saved(&self) -> Saved {
        let parsed = match self.read(SAVED) {
            Ok(None) => return Saved::default(),
            Ok(Some(bytes)) => serde_json::from_slice(&bytes).map_err(io::Error::from),
            Err(error) => Err(error),
        };
        parsed.unwrap_or_else(|error| {
            self.set_aside(SAVED, &error);
            Saved::default()
        })
    }

    /// Keeps this for the next start. Blocks until the disk has it.
    pub fn save(&self, saved: &Saved) -> Result<(), StateError> {
        let mut bytes = serde_json::to_vec_pretty(saved).map_err(|error| self.other(&error))?;
        bytes.push(b'\n');
        self.replace(SAVED, &bytes)
    }

    /// The bytes of a file; nothing when there is none.
    fn read(&self, name: &str) -> io::Result<Option<Vec<u8>>> {
        let file = match File::open(self.path.join(name)) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            other => other?,
        };
        let mut bytes = Vec::new();
        file.take(FILE_MAX_BYTES + 1).read_to_end(&mut bytes)?;
        if bytes.len() as u64 > FILE_MAX_BYTES {
            return Err(io::Error::other(format!("over {FILE_MAX_BYTES} bytes")));
        }
        Ok(Some(bytes))
    }

    /// Replaces a file whole, or leaves the old one.
    fn replace(&self, name: &str, bytes: &[u8]) -> Result<(), StateError> {
        let beside = self.path.join(format!(".{name}.new"));
        let replaced = (|| {
            // What a killed meshd left; nobody else writes here.
            match fs::remove_file(&beside) {
                Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
                _ => {}
            }
            let mut file = OpenOptions::new().write(true).create_new(true).mode(FILE_MODE).open(&beside)?;
            file.write_all(bytes)?;
            file.sync_all()?;
            fs::rename(&beside, self.path.join(name))?;
            File::open(&self.path)?.sync_all()
        })();
        replaced.map_err(|error| {
            // Only tidies up: the next write removes it as well.
            let _ = fs::remove_file(&beside);
            state_error(&self.path, &format!("cannot write {name}"), &error)
        })
    }

    fn set_aside(&self, name: &str, fault: &dyn Display) {
        let (from, to) = (self.path.join(name), self.path.join(format!("{name}.bad")));
        let kept = fs::rename(&from, &to);
        warn!(file = %from.display(), kept_as = %to.display(), renamed = kept.is_ok(), %fault, "state file is broken: starting without it");
    }

    fn other(&self, what: &dyn Display) -> StateError {
        StateError::Io(self.path.clone(), what.to_string())
    }
}

fn lock(path: &Path) -> Result<File, StateError> {
    let name = path.join(LOCK);
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(FILE_MODE)
        .open(name)
        .map_err(|error| state_error(path, "cannot be locked", &error))?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(Errno::WOULDBLOCK) => {
            let mut holder = String::new();
            // The number only helps to find it.
            let _ = file.take(32).read_to_string(&mut holder);
            let holder = holder.trim().parse::<u32>().map_or(String::new(), |pid| format!(" (process {pid})"));
            return Err(StateError::InUse(path.to_owned(), holder));
        }
        Err(error) => return Err(state_error(path, "cannot be locked", &error.into())),
    }
    // As above: on a full disk the lock itself still holds.
    let _ = file.set_len(0).and_then(|()| writeln!(file, "{}", std::process::id()));
    Ok(file)
}

fn state_error(path: &Path, what: &str, error: &io::Error) -> StateError {
    let text = format!("{what}: {error}");
    match error.kind() {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => StateError::Full(path.to_owned(), text),
        ErrorKind::ReadOnlyFilesystem | ErrorKind::PermissionDenied => StateError::ReadOnly(path.to_owned(), text),
        ErrorKind::NotADirectory | ErrorKind::AlreadyExists if what == "cannot be made" => {
            StateError::NotADirectory(path.to_owned())
        }
        _ => StateError::Io(path.to_owned(), text),
    }
}

fn parse_identity(bytes: &[u8]) -> Result<[u8; 32], &'static str> {
    if bytes.is_empty() {
        return Err("is empty");
    }
    let text = std::str::from_utf8(bytes).map_err(|_| "is not an identity")?;
    let mut words = text.split_ascii_whitespace();
    if words.next() != Some(IDENTITY_WORD) {
        return Err("is not an identity");
    }
    let torn = "is damaged";
    let seed = words.next().and_then(unhex).and_then(|bytes| <[u8; 32]>::try_from(bytes).ok()).ok_or(torn)?;
    let check = words.next().ok_or(torn)?;
    let whole = words.next().is_none() && id_of(&seed).is_some_and(|id| id == check);
    if whole { Ok(seed) } else { Err(torn) }
}

/// The peer id of a seed's key, as text.
fn id_of(seed: &[u8; 32]) -> Option<String> {
    let key = Ed25519KeyPair::from_seed_unchecked(seed).ok()?;
    let hash = digest::digest(&digest::SHA256, key.public_key().as_ref());
    hash.as_ref().get(..16).map(hex)
}

fn parse_incarnation(bytes: &[u8]) -> Option<u64> {
    let last = std::str::from_utf8(bytes).ok()?.trim().parse().ok()?;
    (last < INCARNATION_MAX).then_some(last)
}

/// A copy or an unpacked backup may have opened it to others.
fn keep_private(path: &Path) {
    let Ok(found) = fs::metadata(path) else { return };
    if found.permissions().mode() & 0o077 != 0 {
        let closed = fs::set_permissions(path, fs::Permissions::from_mode(FILE_MODE)).is_ok();
        warn!(path = %path.display(), closed, "the identity was readable by others");
    }
}

/// Name of the lock file.
const LOCK: &str = "lock";
/// Name of the file of the peer's key.
const IDENTITY: &str = "identity";
/// How its text begins; the digit is the version of its form.
const IDENTITY_WORD: &str = "meshnet-identity-1";
/// Name of the file of the start counter.
const INCARNATION: &str = "incarnation";
/// Larger ones are damage, and other peers would refuse them: the clock passes it in 9 million years.
const INCARNATION_MAX: u64 = meshnet_proto::limits::VERSION_MAX;
/// Name of the file of targets and known peers.
const SAVED: &str = "saved.json";
/// The key of the cluster is at stake.
const DIRECTORY_MODE: u32 = 0o700;
/// The same.
const FILE_MODE: u32 = 0o600;
/// The longest file: 10,000 peers with 16 addresses each, as JSON.
const FILE_MAX_BYTES: u64 = 16 * 1024 * 1024;

#[cfg(test)]
pub(super) mod tests;
