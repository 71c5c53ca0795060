//! The first split where somebody outside decides who begins: the API of Kubernetes, by compare-and-set on one object.
//!
//! ```text
//! no address space ──Space(U, begin)──▶ begins U alone, owns all
//!        │ └──Space(U)──▶ takes U from whoever tells of it, and joins by votes (`joining`)
//!        └ before that: takes no address space from anybody, only remembers that there is one
//! ```
//! What is said here counts only until this peer is admitted: from then on it needs nobody outside. Nothing of it is on disk, so a peer that restarts before
//! it was admitted asks outside again. Why this is safe together with the object outside: `src/kube/genesis.rs`.

use std::collections::BTreeSet;
use std::time::Duration;

use meshnet_proto::ShortId;
use meshnet_proto::wire::ipam::{Genesis, GenesisKind, Message};

use super::{HEARD_LATELY, Init, Ipam, View};
use crate::time::Time;

/// What was said from outside, and what was heard of.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub(super) struct Outside {
    /// The address space to belong to.
    space: Option<[u8; 16]>,
    /// One that another peer told of and this one may not take yet, and when.
    heard: Option<([u8; 16], Time)>,
    /// All that may live, and when that was known.
    pub alive: Option<(BTreeSet<ShortId>, Time)>,
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
            Some(_) if self.genesis.is_none() => self.ask_around(),
            _ => self.join_if_due(now, view, true),
        }
    }

    /// What the neighbours told before was not to be taken: they shall tell it again.
    fn ask_around(&mut self) {
        for link in self.links.keys().copied().collect::<Vec<_>>() {
            let message = Message::Digest { cluster: [0; 16], hash: 1 };
            self.keeping.push(super::Output::Tell { link, message });
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

    /// Whether all members that are left without `gone` are known to be all there are, so that more may be removed than promise.
    ///
    /// Why a removal wants as many promises as it removes: a member that only those to be removed know, and to whom they gave, must not be missed. Who joins by
    /// leave from outside was known there before it asked to be let in, and so before any of `gone` gave it something or died. So a list that is younger than
    /// all these deaths holds it, and it must be among those that promise. What is asked here is known for less time than those to be removed are silent.
    pub(super) fn is_vouched(&self, now: Time, gone: &BTreeSet<ShortId>) -> bool {
        let Some((alive, at)) = &self.outside.alive else { return false };
        let left: BTreeSet<ShortId> = self.members.present().filter(|id| !gone.contains(id)).collect();
        self.config.init == Init::Outside && now.since(*at) < HEARD_LATELY && left == *alive
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
