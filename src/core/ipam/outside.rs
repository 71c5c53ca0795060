//! The first split where somebody outside decides who begins: the API of Kubernetes, by compare-and-set on one object.
//!
//! ```text
//! no address space ──Space(U, begin)──▶ begins U alone, owns all
//!        │ └──Space(U)──▶ takes U from whoever tells of it, and joins by votes (`joining`)
//!        └ before that: takes no address space from anybody, only remembers that there is one
//! ```
//! What is said here counts only until this peer is admitted: from then on it needs nobody outside. Nothing of it is on disk, so a peer that restarts before
//! it was admitted asks outside again. Why this is safe together with the object outside: `src/kube/genesis.rs`.

use std::time::Duration;

use meshnet_proto::wire::ipam::{Genesis, GenesisKind};

use super::{Init, Ipam, View};
use crate::time::Time;

/// What was said from outside, and what was heard of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub(super) struct Outside {
    /// The address space to belong to.
    space: Option<[u8; 16]>,
    /// One that another peer told of and this one may not take yet, and when.
    heard: Option<([u8; 16], Time)>,
}

impl Ipam {
    /// Somebody outside says which address space this peer is to belong to, and whether it begins it. None: to none for now.
    pub(super) fn on_space(&mut self, now: Time, view: &View, space: Option<[u8; 16]>, begin: bool) {
        if self.config.init != Init::Outside || self.belongs() || self.members.is_removed(self.config.me) {
            return;
        }
        self.outside.space = space;
        if let Some(ours) = self.genesis.filter(|ours| Some(ours.uuid) != space) {
            // It was never let in there, so nobody counts on it; and it asks no more, so nobody will.
            self.give_up(ours);
            self.left.remove(&ours.uuid);
            self.genesis = None;
            self.keep_genesis();
        }
        match space {
            Some(uuid) if begin && self.genesis.is_none() && self.doubt.is_none() => {
                self.begin(uuid, GenesisKind::Api, &[self.config.me]);
            }
            _ => self.join_if_due(now, view, true),
        }
    }

    /// Whether this peer may take an address space that it does not have yet.
    pub(super) fn may_take(&mut self, now: Time, theirs: Genesis) -> bool {
        if self.config.init != Init::Outside || self.genesis.is_some() || self.outside.space == Some(theirs.uuid) {
            return true;
        }
        self.outside.heard = Some((theirs.uuid, now));
        false
    }

    /// Whether this peer may ask to be let in.
    pub(super) fn may_join(&self) -> bool {
        let chosen = || self.genesis.is_some_and(|ours| Some(ours.uuid) == self.outside.space);
        self.config.init != Init::Outside || chosen()
    }

    /// The address space that this peer has, and whether it belongs to it.
    pub fn space(&self) -> Option<([u8; 16], bool)> {
        self.genesis.map(|genesis| (genesis.uuid, self.belongs()))
    }

    /// An address space that another peer told of lately and that this peer waits for leave to take.
    pub fn space_heard(&self, now: Time) -> Option<[u8; 16]> {
        let lately = |(uuid, at): ([u8; 16], Time)| (now.since(at) < HEARD_FOR).then_some(uuid);
        self.outside.heard.and_then(lately).filter(|_| self.genesis.is_none())
    }
}

/// Neighbours compare what they know every [`super::DIGEST_EVERY`], one at a time: each is heard several times meanwhile.
const HEARD_FOR: Duration = Duration::from_secs(60);
