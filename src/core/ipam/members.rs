//! Who belongs to the address space, and how a newcomer comes to.
//!
//! ```text
//! newcomer ─Join─▶ sponsor ─Add(joiners, hash of what I know)─▶ admitted members ─AddYes─▶ sponsor: majority? ─▶ admitted
//!                                                                              └─AddNo(what I know)─▶ sponsor learns, asks again
//! ```
//! A member votes only for a sponsor that knows every member it knows itself, and knows the joiners from then on. So two majorities share a voter, and the
//! one that comes second was asked by somebody who knew of the first: admissions are totally ordered though nobody orders them.
//! That count leaves the joiners out, so each has one sponsor only (`joining`).
//! Members are never forgotten, removed ones least of all.

use std::collections::{BTreeMap, BTreeSet};

use meshnet_proto::wire::ipam::{Member, Message, Standing};
use meshnet_proto::{ShortId, limits};

use super::{Ipam, RETRY_EVERY, View};
use crate::node::Level;
use crate::time::Time;
use crate::topology::digest::mix;

/// All members that this peer knows.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub(super) struct Members {
    all: BTreeMap<ShortId, Standing>,
    dirty: BTreeSet<ShortId>,
    changed: BTreeSet<ShortId>,
}

impl Members {
    pub fn restore(all: BTreeMap<ShortId, Standing>) -> Members {
        Members { all, ..Members::default() }
    }

    pub fn standing(&self, peer: ShortId) -> Option<Standing> {
        self.all.get(&peer).copied()
    }

    pub fn iter(&self) -> impl Iterator<Item = (ShortId, Standing)> {
        self.all.iter().map(|(id, standing)| (*id, *standing))
    }

    /// Those not removed.
    pub fn present(&self) -> impl Iterator<Item = ShortId> {
        self.iter().filter(|(_, standing)| *standing != Standing::Removed).map(|(id, _)| id)
    }

    pub fn admitted(&self) -> impl Iterator<Item = ShortId> {
        self.iter().filter(|(_, standing)| *standing == Standing::Admitted).map(|(id, _)| id)
    }

    pub fn wire(&self) -> Vec<Member> {
        self.iter().map(|(id, standing)| Member { id, standing }).collect()
    }

    pub fn is_removed(&self, peer: ShortId) -> bool {
        self.standing(peer) == Some(Standing::Removed)
    }

    /// Standings only rise. False: nothing new, or no room.
    pub fn raise(&mut self, peer: ShortId, standing: Standing) -> bool {
        let known = self.all.get(&peer);
        if known.is_some_and(|known| *known >= standing)
            || known.is_none() && self.all.len() >= limits::IPAM_MEMBERS_MAX
        {
            return false;
        }
        self.all.insert(peer, standing);
        self.dirty.insert(peer);
        self.changed.insert(peer);
        true
    }

    pub fn clear(&mut self) {
        self.dirty.extend(self.all.keys());
        self.all.clear();
        self.changed.clear();
    }

    /// Of who is known and who was removed. Admission is left out: it is learned at different times.
    pub fn hash(&self) -> u64 {
        let one = |id: ShortId, removed: bool| mix(mix(id.0) ^ u64::from(removed));
        self.iter().map(|(id, standing)| one(id, standing == Standing::Removed)).fold(0, u64::wrapping_add)
    }

    pub fn take_dirty(&mut self) -> Vec<(ShortId, Option<Standing>)> {
        let dirty = std::mem::take(&mut self.dirty);
        dirty.into_iter().map(|id| (id, self.standing(id))).collect()
    }

    pub fn take_changed(&mut self) -> Vec<Member> {
        let changed = std::mem::take(&mut self.changed);
        changed.into_iter().filter_map(|id| Some(Member { id, standing: self.standing(id)? })).collect()
    }
}

/// A vote under way that this peer sponsors.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Adding {
    joiners: BTreeSet<ShortId>,
    hash: u64,
    yes: BTreeSet<ShortId>,
    /// Were sent all that I know, in this attempt.
    explained: BTreeSet<ShortId>,
    pub next: Time,
}

/// The sponsor.
impl Ipam {
    /// Begins, or prepares, the admission of a peer.
    pub(super) fn on_join(&mut self, now: Time, view: &View, joiner: ShortId, attempt: u32) {
        if !self.active() || self.members.is_removed(joiner) {
            return;
        }
        if self.is_admitted(joiner) {
            // It has not heard.
            return self.send(joiner, self.full_state());
        }
        if self.guests.is_released(joiner, attempt) {
            return self.send(joiner, Message::Turn { cluster: self.cluster(), attempt });
        }
        if self.wanting.len() < limits::IPAM_MEMBERS_MAX {
            self.wanting.insert(joiner);
            self.guests.asked(joiner, attempt);
        }
        self.add_if_due(now, view, false);
    }

    /// Lets all newcomers go that wait here: another sponsor, with a lower id, is letting others in, and each would wait for the votes of the other's.
    fn release(&mut self) {
        let adding = self.adding.take().map(|adding| adding.joiners).unwrap_or_default();
        let wanting = std::mem::take(&mut self.wanting);
        for joiner in adding.union(&wanting) {
            // On disk before it hears of it: from then on it may be another's.
            let Some(attempt) = self.guests.release(*joiner) else { continue };
            self.keep_released(*joiner, attempt);
            self.send(*joiner, Message::Turn { cluster: self.cluster(), attempt });
        }
    }

    pub(super) fn add_if_due(&mut self, now: Time, view: &View, at_once: bool) {
        if !self.active() {
            self.adding = None;
            return;
        }
        match &self.adding {
            None => self.begin_adding(now, view),
            Some(adding) if adding.next <= now || at_once => {
                self.widen();
                self.ask_to_add(now, view, None);
            }
            Some(_) => {}
        }
    }

    /// Who came meanwhile is voted on together with the others: each would wait for the other's vote, which it has not.
    fn widen(&mut self) {
        let new = |id: &ShortId| !self.is_admitted(*id) && !self.members.is_removed(*id);
        let more: Vec<ShortId> = self.wanting.iter().copied().filter(new).collect();
        self.wanting.clear();
        for id in &more {
            self.members.raise(*id, Standing::Known);
        }
        if let Some(adding) = &mut self.adding
            && more.iter().any(|id| !adding.joiners.contains(id))
        {
            adding.joiners.extend(more);
            adding.yes.clear();
        }
    }

    fn begin_adding(&mut self, now: Time, view: &View) {
        let new = |id: &ShortId| !self.is_admitted(*id) && !self.members.is_removed(*id);
        let joiners: BTreeSet<ShortId> = self.wanting.iter().copied().filter(new).collect();
        self.wanting.clear();
        if joiners.is_empty() {
            return;
        }
        joiners.iter().for_each(|id| {
            let _ = self.members.raise(*id, Standing::Known);
        });
        let hash = self.members.hash();
        self.adding = Some(Adding { joiners, hash, yes: BTreeSet::new(), explained: BTreeSet::new(), next: now });
        self.count_yes(now);
        self.ask_to_add(now, view, None);
    }

    /// Asks those that have not agreed; all that I know goes along for one who needs it, and from the second time on for all.
    fn ask_to_add(&mut self, now: Time, _view: &View, only: Option<ShortId>) {
        let hash = self.members.hash();
        let me = self.config.me;
        let Some(adding) = &mut self.adding else { return };
        let again = adding.hash != hash;
        if again {
            // Votes were for what I knew then.
            adding.hash = hash;
            adding.yes.clear();
        }
        if only.is_none() {
            adding.explained.clear();
        }
        let with_members = only.is_some() || adding.next != now && again;
        adding.next = now + RETRY_EVERY;
        let (joiners, yes) = (adding.joiners.clone(), adding.yes.clone());
        let members = if with_members { self.members.wire() } else { Vec::new() };
        let voters = self.members.admitted().filter(|id| *id != me && !joiners.contains(id) && !yes.contains(id));
        let voters: Vec<ShortId> = voters.filter(|id| only.is_none_or(|only| only == *id)).collect();
        if with_members && let Some(adding) = &mut self.adding {
            adding.explained.extend(&voters);
        }
        for voter in voters {
            let joiners = joiners.iter().copied().collect();
            let message = Message::Add { cluster: self.cluster(), joiners, hash, members: members.clone() };
            self.send(voter, message);
        }
    }

    pub(super) fn on_add_yes(&mut self, from: ShortId, joiners: &[ShortId], hash: u64) {
        let admitted = self.is_admitted(from);
        let Some(adding) = &mut self.adding else { return };
        let same = adding.hash == hash && joiners.iter().copied().eq(adding.joiners.iter().copied());
        if same && admitted {
            adding.yes.insert(from);
        }
    }

    pub(super) fn on_add_no(&mut self, now: Time, view: &View, from: ShortId, theirs: &[Member]) {
        let before = self.members.hash();
        self.learn_members(theirs);
        if theirs.iter().any(|m| m.standing == Standing::Removed && !self.members.is_removed(m.id)) {
            // Asked again when I know of that removal, with all that came of it.
            let digest = Message::Digest { cluster: self.cluster(), hash: 0 };
            return self.send(from, digest);
        }
        let Some(adding) = &self.adding else { return };
        if self.members.hash() != before {
            self.ask_to_add(now, view, None);
        } else if !adding.explained.contains(&from) {
            self.ask_to_add(now, view, Some(from));
        }
    }

    /// Who there is, without who was removed: that is believed only together with the owners that came of it.
    fn learn_members(&mut self, theirs: &[Member]) {
        for member in theirs {
            let _ = self.members.raise(member.id, member.standing.min(Standing::Admitted));
        }
    }

    /// Whether the newcomers have their majority, in what is known now.
    fn count_yes(&mut self, now: Time) {
        let hash = self.members.hash();
        let me = self.config.me;
        let Some(adding) = &mut self.adding else { return };
        adding.joiners.retain(|id| !self.members.is_removed(*id));
        if adding.hash != hash {
            adding.next = adding.next.min(now);
        }
        let joiners: Vec<ShortId> = adding.joiners.iter().copied().collect();
        let base = self.members.present().filter(|id| !adding.joiners.contains(id)).count();
        let yes = adding.yes.iter().filter(|id| **id != me && !self.members.is_removed(**id)).count() + 1;
        let agreed = adding.hash == hash && yes * 2 > base;
        if joiners.is_empty() {
            self.adding = None;
        } else if agreed || !self.rules.majority() {
            self.adding = None;
            joiners.iter().for_each(|id| {
                let _ = self.members.raise(*id, Standing::Admitted);
            });
            self.next_share = now;
            let state = self.full_state();
            for joiner in joiners {
                self.send(joiner, state.clone());
            }
        }
    }

    /// A change may complete a vote or a removal, or end it.
    pub(super) fn after_members_changed(&mut self, now: Time) {
        if self.adding.is_some() {
            self.count_yes(now);
        }
        if self.members.is_removed(self.config.me) && !self.gone && self.leaving.is_none() {
            self.gone = true;
            self.event(Level::Warn, "this peer was declared gone for good", "it gives out no address any more".into());
            self.keeping.push(super::Output::Removed);
        }
    }
}

/// The voter.
impl Ipam {
    pub(super) fn on_add(&mut self, from: ShortId, joiners: Vec<ShortId>, hash: u64, theirs: &[Member]) {
        // Who is frozen lets nobody in: its candidate would not hear of it.
        if !self.active() || self.is_frozen(from) {
            return;
        }
        if from < self.config.me && self.adding.is_some() && self.rules.one_sponsor() {
            self.release();
        }
        let cluster = self.cluster();
        let mut with = self.members.clone();
        joiners.iter().for_each(|id| {
            let _ = with.raise(*id, Standing::Known);
        });
        let removed = joiners.iter().any(|id| self.members.is_removed(*id));
        let knows = |id: ShortId, standing: Standing| {
            let there = theirs.binary_search_by_key(&id, |member| member.id).ok().and_then(|at| theirs.get(at));
            there.is_some_and(|there| standing != Standing::Removed || there.standing == Standing::Removed)
        };
        let contained = !theirs.is_empty() && self.members.iter().all(|(id, standing)| knows(id, standing));
        if removed || !(with.hash() == hash || contained || !self.rules.contained_views()) {
            let message = Message::AddNo { cluster, hash, members: self.members.wire() };
            return self.send(from, message);
        }
        self.learn_members(theirs);
        joiners.iter().for_each(|id| {
            let _ = self.members.raise(*id, Standing::Known);
        });
        self.send(from, Message::AddYes { cluster, joiners, hash });
    }
}
