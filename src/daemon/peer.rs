//! Which peer this is: its identity and what it kept, from the start to the end.
//!
//! One identity must never run with addresses that it does not remember: then it could give one out twice. So it becomes a new peer when its file of addresses
//! is gone, when an operator says that the state is an old copy, and when the others have declared it gone.

use anyhow::{Result, anyhow};
use meshnet_core::identity::Identity;
use meshnet_core::ipam::LeaseLine;
use meshnet_core::node;
use meshnet_proto::PeerId;
use tracing::{info, warn};

use super::config::Settings;
use super::ipam::{self, End};
use super::state::StateDir;
use crate::store::{Pairs, Store};

/// This peer, at its start.
pub struct Peer {
    /// Of its key.
    pub seed: [u8; 32],
    /// Its id.
    pub id: PeerId,
    /// Where the machine of addresses writes; none: switched off.
    pub store: Option<Store>,
    /// What it wrote.
    pub kept: Pairs,
}

/// The peer that the state directory holds, or a new one.
pub fn begin(settings: &Settings, state: &StateDir) -> Result<Peer> {
    if settings.restored && state.has_identity() {
        retire(settings, state)?;
    }
    let (mut seed, mut id) = identity(state)?;
    if settings.ipam_range.is_none() {
        return Ok(Peer { seed, id, store: None, kept: Vec::new() });
    }
    if let Some(kind) = state.forgetful() {
        warn!(
            directory = %state.path().display(),
            "the state directory is on {kind}, which forgets: each boot makes a new peer, and what the old one owned stays lost until 'meshctl rmpeer': \
             use a --state-dir on a disk"
        );
    }
    if state.has_lost_addresses(&id.to_string()) {
        warn!(
            peer = %id,
            "the file of addresses is gone, so this peer cannot know what it gave out: it is a new peer from now on. 'meshctl rmpeer' on another peer brings \
             its addresses back"
        );
        state.part(&format!("lost-{}", id.brief()))?;
        (seed, id) = identity(state)?;
    }
    state.mark_addresses(&id.to_string())?;
    let (store, kept) = Store::open(&state.addresses_file(), &id.to_string())?;
    Ok(Peer { seed, id, store: Some(store), kept })
}

fn identity(state: &StateDir) -> Result<([u8; 32], PeerId)> {
    let seed = state.identity()?;
    Ok((seed, Identity::from_seed(seed).id()))
}

/// The state is an old copy: sets its peer aside and notes its addresses.
fn retire(settings: &Settings, state: &StateDir) -> Result<()> {
    let (seed, id) = identity(state)?;
    let leases = match Store::open(&state.addresses_file(), &id.to_string()) {
        // Not yet there, and so empty: it is moved aside with the rest.
        Ok((_, kept)) => {
            let mut config = node::Config::new(Identity::from_seed(seed), settings.name.clone());
            config.ipam = ipam::config(settings, id.short(), 0);
            config.ipam_kept = kept;
            ipam::leases_kept(config)
        }
        Err(error) => {
            warn!(%error, "the addresses given out here are not known: claim those of running containers by hand");
            Vec::new()
        }
    };
    warn!(peer = %id, addresses = leases.len(), "--restored: this machine becomes a new peer; the old one's addresses are claimed one by one");
    note(state, &leases)?;
    state.part(&format!("restored-{}", id.brief()))?;
    Ok(())
}

fn note(state: &StateDir, leases: &[LeaseLine]) -> Result<()> {
    Ok(state.keep_claims(leases.iter().map(Into::into).collect())?)
}

/// What is left to do after the driver's end. An error, with what happened, when this was not a plain stop.
pub fn finish(end: End, state: &StateDir, id: PeerId) -> Result<()> {
    match end {
        End::Stopped => Ok(()),
        End::Left => {
            state.part("left")?;
            info!(peer = %id, "left: this machine is no peer any more");
            Ok(())
        }
        End::Removed(leases) => {
            note(state, &leases)?;
            state.part(&format!("removed-{}", id.brief()))?;
            Err(anyhow!(
                "other peers declared this one ({id}) gone for good and own its addresses now: its state is set aside; the next start makes a new identity \
                 and claims the addresses of {} running containers one by one",
                leases.len()
            ))
        }
    }
}

#[cfg(test)]
mod tests;
