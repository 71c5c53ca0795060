//! The way in of a newcomer, and the newcomers of a sponsor.
//!
//! ```text
//! newcomer ─Digest─▶ one that may let it in ─State─▶ newcomer keeps its choice ─Join(attempt)─▶ sponsor ─▶ a vote (`members`)
//!                                                    chooses anew ◀─Turn(attempt)─ sponsor keeps that it does not let it in by that attempt
//! ```
//! A newcomer has one sponsor until that one is removed or lets it go: two would each leave it out of their count of members, and one of them count too few.

use std::collections::BTreeMap;

use meshnet_proto::ShortId;
use meshnet_proto::wire::ipam::{Message, Standing};
use serde::{Deserialize, Serialize};

use super::{Init, Ipam, RETRY_EVERY, View};
use crate::time::Time;

/// This peer's own way in.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub(super) struct Joining {
    tries: u32,
    next: Time,
    /// Was asked whether it is there.
    knocked: Option<ShortId>,
    pub(super) choice: Choice,
}

/// Whom a newcomer asks. On disk before it is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub(super) struct Choice {
    sponsor: Option<ShortId>,
    /// How often it chose.
    attempt: u32,
}

/// Newcomers that asked this peer.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub(super) struct Guests {
    /// By which attempt, the last time.
    asked: BTreeMap<ShortId, u32>,
    /// Up to which attempt this peer does not let them in. On disk.
    released: BTreeMap<ShortId, u32>,
}

impl Guests {
    pub fn restore(released: BTreeMap<ShortId, u32>) -> Guests {
        Guests { released, ..Guests::default() }
    }

    /// What a restart leaves.
    #[cfg(test)]
    pub fn after_restart(&self) -> Guests {
        Guests::restore(self.released.clone())
    }

    pub fn is_released(&self, joiner: ShortId, attempt: u32) -> bool {
        self.released.get(&joiner).is_some_and(|released| *released >= attempt)
    }

    pub fn asked(&mut self, joiner: ShortId, attempt: u32) {
        self.asked.insert(joiner, attempt);
    }

    /// Lets one go; the attempt that is over.
    pub fn release(&mut self, joiner: ShortId) -> Option<u32> {
        let attempt = self.asked.remove(&joiner)?;
        self.released.insert(joiner, attempt);
        Some(attempt)
    }
}

impl Ipam {
    pub(super) fn wants_in(&self) -> bool {
        self.genesis.is_some()
            && self.config.init != Init::Observer
            && self.may_join()
            && self.doubt.is_none()
            && !matches!(self.members.standing(self.config.me), Some(Standing::Admitted | Standing::Removed))
    }

    pub(super) fn join_deadline(&self) -> Time {
        if self.wants_in() { self.joining.next } else { Time::NEVER }
    }

    pub(super) fn join_if_due(&mut self, now: Time, view: &View, at_once: bool) {
        if !self.wants_in() || now < self.joining.next && !at_once {
            return;
        }
        self.joining.next = now + RETRY_EVERY;
        if let Some(sponsor) = self.sponsor() {
            return self.ask_in(sponsor);
        }
        // All ask the same sponsor, so that one vote is for many; after some tries the next one.
        let near = |id: &ShortId| view.peers.get(id).is_some_and(|peer| peer.reachable);
        let sponsors: Vec<ShortId> = self.members.admitted().filter(near).collect();
        let at = (self.joining.tries / TRIES_EACH) as usize % sponsors.len().max(1);
        let Some(sponsor) = sponsors.get(at).copied() else { return };
        self.joining.tries = self.joining.tries.wrapping_add(1);
        if self.rules.one_sponsor() {
            // One that answers, for it is asked from then on.
            self.joining.knocked = Some(sponsor);
            self.send(sponsor, Message::Digest { cluster: self.cluster(), hash: 0 });
        } else {
            self.ask_in(sponsor);
        }
    }

    fn ask_in(&mut self, sponsor: ShortId) {
        self.send(sponsor, self.join());
    }

    pub(super) fn join(&self) -> Message {
        Message::Join { cluster: self.cluster(), attempt: self.joining.choice.attempt }
    }

    /// Who was knocked at has answered.
    pub(super) fn on_sponsor_heard(&mut self, from: ShortId) {
        if self.joining.knocked == Some(from) && self.wants_in() && self.turn_to(from) {
            self.ask_in(from);
        }
    }

    /// From now on this one is to let this peer in. False when another is.
    pub(super) fn turn_to(&mut self, sponsor: ShortId) -> bool {
        if !self.rules.one_sponsor() {
            return true;
        }
        let now = self.sponsor();
        if now.is_none() {
            let attempt = self.joining.choice.attempt.saturating_add(1);
            self.joining.knocked = None;
            self.joining.choice = Choice { sponsor: Some(sponsor), attempt };
            self.keep_choice();
        }
        now.is_none_or(|now| now == sponsor)
    }

    /// The sponsor lets this peer go.
    pub(super) fn on_turn(&mut self, now: Time, view: &View, from: ShortId, attempt: u32) {
        if self.joining.choice == (Choice { sponsor: Some(from), attempt }) {
            self.joining.choice.sponsor = None;
            self.joining.tries = 0;
            self.keep_choice();
            self.join_if_due(now, view, true);
        }
    }

    fn sponsor(&self) -> Option<ShortId> {
        self.joining.choice.sponsor.filter(|sponsor| !self.members.is_removed(*sponsor))
    }

    /// Of another address space: whom to ask begins anew.
    pub(super) fn forget_joining(&mut self) {
        self.joining = Joining::default();
        self.keep_choice();
        self.adding = None;
        self.wanting.clear();
        for joiner in std::mem::take(&mut self.guests).released.into_keys() {
            self.forget_released(joiner);
        }
    }

    pub(super) fn why_not_admitted(&self, view: &View) -> String {
        let reachable = |id: &ShortId| view.peers.get(id).is_some_and(|peer| peer.reachable);
        if let Some(sponsor) = self.sponsor().filter(|sponsor| !reachable(sponsor)) {
            let name = view.peers.get(&sponsor).map_or_else(|| format!("{sponsor:?}"), |peer| peer.name.clone());
            return format!(
                "waiting for {name}, which was letting this peer in and is away: if it is gone for good, run 'meshctl rmpeer {name}' at another"
            );
        }
        let members = self.members.present().filter(|id| *id != self.config.me).count();
        let near = self.members.admitted().filter(reachable).count();
        format!("waiting for a majority of the {members} members to let this peer in: {near} of them can be reached")
    }
}

/// Tries with one before the next one is asked.
const TRIES_EACH: u32 = 3;
