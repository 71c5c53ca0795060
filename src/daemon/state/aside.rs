//! Parting with an identity: what it kept is moved aside, and the addresses that it had given out are noted for the next one.
//!
//! Order: claims are written, then the file of addresses goes, then the identity. A start in between finds that an identity lost its addresses
//! ([`StateDir::has_lost_addresses`]) and finishes it.

use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::path::PathBuf;

use rustix::fs::statfs;
use tracing::info;

use super::{IDENTITY, StateDir, StateError, state_error};
use crate::daemon::claims::Claim;

impl StateDir {
    /// The file of the machine of addresses.
    pub fn addresses_file(&self) -> PathBuf {
        self.path.join(ADDRESSES)
    }

    /// Whether there was an earlier start.
    pub fn has_identity(&self) -> bool {
        self.path.join(IDENTITY).exists()
    }

    /// Notes that this peer has a file of addresses from now on. Before it is made: one that vanishes is missed.
    pub fn mark_addresses(&self, peer: &str) -> Result<(), StateError> {
        if self.marked().as_deref() == Some(peer) { Ok(()) } else { self.replace(MARK, format!("{peer}\n").as_bytes()) }
    }

    /// This peer had a file of addresses and has none: it does not know what it gave out, and must not go on under the same name.
    pub fn has_lost_addresses(&self, peer: &str) -> bool {
        self.marked().as_deref() == Some(peer)
            && matches!(fs::symlink_metadata(self.addresses_file()), Err(error) if error.kind() == ErrorKind::NotFound)
    }

    fn marked(&self) -> Option<String> {
        let bytes = self.read(MARK).ok()??;
        Some(String::from_utf8_lossy(&bytes).trim().to_owned())
    }

    /// Moves addresses and identity aside. The next start makes a new peer.
    pub fn part(&self, suffix: &str) -> Result<(), StateError> {
        let moved = (|| {
            for name in [ADDRESSES, IDENTITY] {
                let to = self.path.join(format!("{name}.{suffix}"));
                match fs::rename(self.path.join(name), &to) {
                    Ok(()) => info!(kept_as = %to.display(), "moved aside"),
                    Err(error) if error.kind() == ErrorKind::NotFound => {}
                    Err(error) => return Err(error),
                }
                File::open(&self.path)?.sync_all()?;
            }
            Ok(())
        })();
        moved.map_err(|error| state_error(&self.path, "cannot move the identity aside", &error))
    }

    /// What is to be claimed. A broken file is set aside.
    pub fn claims(&self) -> Vec<Claim> {
        let parsed = match self.read(CLAIMS) {
            Ok(None) => return Vec::new(),
            Ok(Some(bytes)) => serde_json::from_slice(&bytes).map_err(io::Error::from),
            Err(error) => Err(error),
        };
        parsed.unwrap_or_else(|error| {
            self.set_aside(CLAIMS, &error);
            Vec::new()
        })
    }

    /// Notes these for the next start, with those noted before.
    pub fn keep_claims(&self, claims: Vec<Claim>) -> Result<(), StateError> {
        let mut all = self.claims();
        all.extend(claims);
        all.sort_unstable();
        all.dedup();
        if all.is_empty() {
            return Ok(());
        }
        let mut bytes = serde_json::to_vec_pretty(&all).map_err(|error| self.other(&error))?;
        bytes.push(b'\n');
        self.replace(CLAIMS, &bytes)
    }

    /// All were answered.
    pub fn drop_claims(&self) {
        if let Err(error) = fs::remove_file(self.path.join(CLAIMS)).and_then(|()| File::open(&self.path)?.sync_all()) {
            // They would be claimed again, which changes nothing.
            info!(%error, "claims are answered and their file stays");
        }
    }

    /// The name of its file system, if that is one that forgets.
    pub fn forgetful(&self) -> Option<&'static str> {
        let kind = statfs(&self.path).ok()?.f_type as u32;
        FORGETFUL.iter().find(|(magic, _)| *magic == kind).map(|(_, name)| *name)
    }
}

/// Name of the file of addresses.
const ADDRESSES: &str = "ipam.redb";
/// Name of the file with the id of the peer that has one.
const MARK: &str = "ipam.peer";
/// Name of the file of addresses to claim.
const CLAIMS: &str = "claims.json";
/// Numbers of file systems (statfs(2)) that are empty after a boot, or after the container's end.
const FORGETFUL: [(u32, &str); 3] = [(0x0102_1994, "tmpfs"), (0x8584_58f6, "ramfs"), (0x794c_7630, "overlay")];
