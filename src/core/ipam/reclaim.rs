//! Taking back what peers that are gone for good own.
//!
//! ```text
//! candidate R, set D:  promise[D] = ballot ─ Prepare ─▶ every member but D ─ Promise(all it knows) ─▶ R
//!                      all have promised, as many as are removed ─▶ every run of D becomes {ballot, 0, R}, D removed
//!                      Refuse(higher ballot, or: one of D is alive) ─▶ Withdraw ─▶ promises are let go
//! ```
//! From its promise on a member gives D nothing, and what D gave late waits until the outcome is known. The promise of every live member tells R of every gift
//! that D made; that no more are removed than promise makes sure that R knows every member there is (see `members`).

use std::collections::{BTreeMap, BTreeSet};

use meshnet_proto::ShortId;
use meshnet_proto::wire::ipam::{Ballot, Message, Span, Standing, State};

use super::map::Held;
use super::{Answer, Ipam, RETRY_EVERY, Refusal, View};
use crate::node::Level;
use crate::time::Time;

/// Promises given, by whom they are about.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub(super) struct Promises {
    all: BTreeMap<ShortId, Ballot>,
    /// The last round that this peer made an attempt in: no ballot is used twice.
    round: u32,
    dirty: BTreeSet<ShortId>,
}

impl Promises {
    pub fn restore(all: BTreeMap<ShortId, Ballot>, round: u32) -> Promises {
        Promises { all, round, ..Promises::default() }
    }

    pub fn get(&self, peer: ShortId) -> Option<Ballot> {
        self.all.get(&peer).copied()
    }

    /// One about a peer that is still a member.
    #[cfg(any(test, feature = "sim"))]
    pub fn open(&self, members: &super::members::Members) -> Option<ShortId> {
        self.all.keys().copied().find(|peer| !members.is_removed(*peer))
    }

    fn set(&mut self, peer: ShortId, ballot: Option<Ballot>) {
        match ballot {
            Some(ballot) => drop(self.all.insert(peer, ballot)),
            None => drop(self.all.remove(&peer)),
        }
        self.dirty.insert(peer);
    }

    pub fn set_round(&mut self, round: u32) {
        self.round = round;
    }

    pub fn clear(&mut self) {
        self.dirty.extend(self.all.keys());
        self.all.clear();
    }

    pub fn take_dirty(&mut self) -> Vec<(ShortId, Option<Ballot>)> {
        let dirty = std::mem::take(&mut self.dirty);
        dirty.into_iter().map(|peer| (peer, self.get(peer))).collect()
    }
}

/// This peer's attempt to take back.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Candidacy {
    pub gone: BTreeSet<ShortId>,
    ballot: Ballot,
    force: bool,
    /// Who has promised, and whether it is admitted.
    promised: BTreeMap<ShortId, bool>,
    pub next: Time,
}

impl Candidacy {
    pub fn kept(&self) -> (BTreeSet<ShortId>, Ballot, bool) {
        (self.gone.clone(), self.ballot, self.force)
    }
}

/// The candidate.
impl Ipam {
    pub(super) fn restore_candidacy(&mut self, kept: (BTreeSet<ShortId>, Ballot, bool)) {
        let (gone, ballot, force) = kept;
        self.candidacy = Some(Candidacy { gone, ballot, force, promised: BTreeMap::new(), next: Time::ZERO });
    }

    /// Begins to take back what these own, together with those whose removal is under way here.
    pub(super) fn remove(
        &mut self,
        now: Time,
        view: &View,
        gone: &[ShortId],
        force: bool,
        again: bool,
    ) -> Result<(), Refusal> {
        let present = |id: &ShortId| *id != self.config.me && self.members.present().any(|other| other == *id);
        let mut set: BTreeSet<ShortId> = gone.iter().copied().filter(present).collect();
        if set.is_empty() {
            return Err(Refusal::No("none of these is a member, or all were removed before".into()));
        }
        if let Some(candidacy) = &self.candidacy {
            set.extend(candidacy.gone.iter().filter(|id| !self.members.is_removed(**id)));
        }
        // What they had begun to remove goes with them: nobody knows whether they had finished.
        let silent = |id: &ShortId| !view.peers.get(id).is_some_and(|peer| peer.reachable);
        let theirs = self.promises.all.iter().filter(|(id, ballot)| set.contains(&ballot.by) && silent(id));
        let theirs: Vec<ShortId> = theirs.map(|(id, _)| *id).filter(present).collect();
        set.extend(theirs);
        let of = |id: &ShortId| self.promises.get(*id).filter(|ballot| ballot.by != self.config.me);
        let rival = |id: &ShortId| of(id).filter(|b| !set.contains(&b.by) && !self.members.is_removed(b.by));
        if let Some(rival) = set.iter().filter_map(rival).find(|rival| silent(&rival.by)).filter(|_| !force) {
            let name = view.peers.get(&rival.by).map_or_else(|| format!("{:?}", rival.by), |peer| peer.name.clone());
            return Err(Refusal::Later(format!(
                "{name} is removing it already: look there, or remove {name} too if it is gone"
            )));
        }
        // Another peer is at it, and can be reached: its outcome is waited for.
        let theirs: BTreeSet<ShortId> = set.iter().copied().filter(|id| !force && rival(id).is_some()).collect();
        set.retain(|id| !theirs.contains(id));
        let covers = |candidacy: &Candidacy| set.is_subset(&candidacy.gone) && candidacy.force >= force;
        let under_way = self.candidacy.as_ref().is_some_and(covers);
        if set.is_empty() || under_way && !again {
            self.retry_candidacy(now, view, true);
            return Ok(());
        }
        let promised = self.promises.all.values().copied();
        let highest = promised.chain(self.map.iter().map(|(_, held)| held.ballot)).max().unwrap_or_default();
        let round = highest.round.max(self.promises.round).saturating_add(1);
        let ballot = Ballot { round, by: self.config.me };
        self.keep_round(round);
        set.iter().for_each(|id| self.promises.set(*id, Some(ballot)));
        self.candidacy = Some(Candidacy { gone: set, ballot, force, promised: BTreeMap::new(), next: now });
        self.keep_candidacy();
        self.retry_candidacy(now, view, true);
        self.try_commit(now, view);
        Ok(())
    }

    /// Members whose promise is missing. `view`: only those that can be reached, for a removal by force.
    pub(super) fn missing_promises(&self, view: Option<&View>) -> Vec<ShortId> {
        let Some(candidacy) = &self.candidacy else { return Vec::new() };
        let near = |id: &ShortId| {
            let Some(view) = view.filter(|_| candidacy.force) else { return true };
            view.peers.get(id).is_some_and(|peer| peer.reachable)
        };
        let required = self.members.present().filter(|id| *id != self.config.me && !candidacy.gone.contains(id));
        required.filter(|id| !candidacy.promised.contains_key(id)).filter(near).collect()
    }

    pub(super) fn retry_candidacy(&mut self, now: Time, view: &View, at_once: bool) {
        let Some(candidacy) = &mut self.candidacy else { return };
        if now < candidacy.next && !at_once {
            return;
        }
        candidacy.next = now + RETRY_EVERY;
        self.withdraw_if_alive(view);
        let Some(candidacy) = &self.candidacy else { return };
        let (ballot, gone) = (candidacy.ballot, candidacy.gone.iter().copied().collect::<Vec<_>>());
        for peer in self.missing_promises(None) {
            self.send(peer, Message::Prepare { cluster: self.cluster(), ballot, gone: gone.clone() });
        }
        self.try_commit(now, view);
    }

    /// One of those to be removed is there after all.
    pub(super) fn withdraw_if_alive(&mut self, view: &View) {
        let reachable = |id: &ShortId| view.peers.get(id).is_some_and(|peer| peer.reachable);
        let alive = self.candidacy.as_ref().and_then(|candidacy| candidacy.gone.iter().copied().find(reachable));
        if let Some(alive) = alive.filter(|_| self.candidacy.as_ref().is_some_and(|candidacy| !candidacy.force)) {
            let name = view.peers.get(&alive).map(|peer| peer.name.clone()).unwrap_or_default();
            self.withdraw(Some(&format!("{name} is there: it is not removed")));
        }
    }

    pub(super) fn withdraw(&mut self, why: Option<&str>) {
        let Some(candidacy) = self.candidacy.take() else { return };
        self.keep_candidacy();
        self.let_go(candidacy.ballot, candidacy.gone.iter().copied());
        let gone: Vec<ShortId> = candidacy.gone.iter().copied().collect();
        let others: Vec<ShortId> = self.members.present().filter(|id| *id != self.config.me).collect();
        for peer in others {
            let message = Message::Withdraw { cluster: self.cluster(), ballot: candidacy.ballot, gone: gone.clone() };
            self.send(peer, message);
        }
        if let Some(why) = why {
            self.event(Level::Info, "a removal was given up", why.to_owned());
            self.answer_removals(|_| Some(Err(Refusal::No(why.to_owned()))));
        }
    }

    pub(super) fn on_promise(
        &mut self,
        now: Time,
        view: &View,
        from: ShortId,
        ballot: Ballot,
        admitted: bool,
        state: &State,
    ) {
        let _ = self.merge(state, true);
        match &mut self.candidacy {
            Some(candidacy) if candidacy.ballot == ballot => {
                candidacy.promised.insert(from, admitted);
                self.try_commit(now, view);
            }
            // A candidacy given up, whose withdrawal was lost. After a success all of them are removed, and no promise is let go.
            _ if ballot.by == self.config.me => {
                let gone = self.promised_by(ballot);
                self.send(from, Message::Withdraw { cluster: self.cluster(), ballot, gone });
            }
            _ => {}
        }
    }

    /// All present members but those with a promise of this peer's: whom a withdrawal may let go.
    fn promised_by(&self, ballot: Ballot) -> Vec<ShortId> {
        self.members.present().filter(|id| self.promises.get(*id) != Some(ballot)).collect()
    }

    pub(super) fn try_commit(&mut self, now: Time, view: &View) {
        let me = self.config.me;
        let missing = self.missing_promises(Some(view));
        let Some(candidacy) = &self.candidacy else { return };
        let gone: BTreeSet<ShortId> =
            candidacy.gone.iter().copied().filter(|id| !self.members.is_removed(*id)).collect();
        if gone.is_empty() {
            // Somebody else did it.
            self.candidacy = None;
            self.keep_candidacy();
            return;
        }
        let required = self.members.present().filter(|id| *id != me && !candidacy.gone.contains(id)).count();
        let all = if self.rules.all_promise() {
            missing.is_empty()
        } else {
            candidacy.promised.len() + 1 > required.div_ceil(2)
        };
        let admitted = candidacy.promised.values().filter(|admitted| **admitted).count() + 1;
        let enough =
            admitted >= gone.len() || candidacy.force || self.is_vouched(now, &gone) || !self.rules.not_fewer();
        if !all || !enough || self.rules.fence() && !self.active() {
            return;
        }
        let (ballot, force) = (candidacy.ballot, candidacy.force);
        let theirs: Vec<(Span, Held)> = self.map.iter().map(|(span, held)| (span, *held)).collect();
        // What one of them gave to a peer that had left would have come back to it.
        let lost = |held: &Held| gone.contains(&held.giver) && self.members.is_removed(held.owner);
        let taken = |held: &Held| gone.contains(&held.owner) || lost(held);
        let theirs: Vec<(Span, Held)> = theirs.into_iter().filter(|(_, held)| taken(held)).collect();
        if theirs.iter().any(|(_, held)| held.ballot >= ballot) {
            let again: Vec<ShortId> = gone.into_iter().collect();
            self.withdraw(None);
            let _ = self.remove(now, view, &again, force, true);
            return;
        }
        self.candidacy = None;
        self.keep_candidacy();
        let mut addresses = 0;
        for (span, _) in theirs {
            addresses += u64::from(span.len);
            let held = Held { len: span.len, ballot, version: 0, owner: me, giver: me, suspended: false };
            self.map.write(span, held);
        }
        for id in &gone {
            self.members.raise(*id, Standing::Removed);
        }
        self.next_share = now;
        self.event(Level::Info, "peers were removed", format!("{} of them, with {addresses} addresses", gone.len()));
        self.answer_removals(|wanted| {
            wanted.iter().any(|id| gone.contains(id)).then_some(Ok(Answer::Removed { addresses }))
        });
    }

    pub(super) fn on_refuse(&mut self, _from: ShortId, ballot: Ballot, higher: Ballot, alive: bool) {
        if self.candidacy.as_ref().is_none_or(|candidacy| candidacy.ballot != ballot) {
            return;
        }
        let force = self.candidacy.as_ref().is_some_and(|candidacy| candidacy.force);
        if alive && !force {
            self.withdraw(Some("one of them is alive: another peer hears it"));
        } else if higher > ballot {
            self.withdraw(None);
        }
    }
}

/// Everybody else.
impl Ipam {
    /// Nothing may be given to this peer, and what it gives waits.
    pub(super) fn is_frozen(&self, peer: ShortId) -> bool {
        self.rules.freeze() && (self.promises.get(peer).is_some() || self.members.is_removed(peer))
    }

    /// What this peer gives waits for the outcome of a promise. Without a promise nothing is to come: who left, or was removed before, was believed
    /// together with the owners that came of it.
    pub(super) fn is_awaited(&self, giver: ShortId) -> bool {
        self.rules.freeze() && self.promises.get(giver).is_some()
    }

    pub(super) fn on_prepare(&mut self, now: Time, view: &View, from: ShortId, ballot: Ballot, gone: &[ShortId]) {
        let me = self.config.me;
        if ballot.by != from {
            return;
        }
        if self.members.is_removed(me) || self.members.is_removed(from) {
            // It has not heard.
            let state = self.full_state();
            return self.send(from, state);
        }
        let cluster = self.cluster();
        let heard = |id: &ShortId| *id == me || view.peers.get(id).is_some_and(|peer| peer.reachable);
        if gone.iter().any(heard) {
            let message = Message::Refuse { cluster, ballot, higher: Ballot::default(), alive: true };
            return self.send(from, message);
        }
        // The higher one goes on, though the other may have its promise already.
        let lower = |mine: &Candidacy| mine.ballot < ballot && gone.iter().any(|id| mine.gone.contains(id));
        if self.candidacy.as_ref().is_some_and(lower) {
            self.withdraw(None);
        }
        self.adopt(now, view, from, gone);
        let open = |id: &&ShortId| !self.members.is_removed(**id);
        let stands = |promised: &Ballot| {
            let superseded = gone.contains(&promised.by) || self.members.is_removed(promised.by);
            !(promised.by == from && *promised <= ballot || superseded && *promised < ballot)
        };
        let higher = gone.iter().filter(open).filter_map(|id| self.promises.get(*id)).filter(stands).max();
        if let Some(higher) = higher {
            return self.send(from, Message::Refuse { cluster, ballot, higher, alive: false });
        }
        let open: Vec<ShortId> = gone.iter().filter(open).copied().collect();
        open.iter().for_each(|id| self.promises.set(*id, Some(ballot)));
        let overlaps = |candidacy: &Candidacy| open.iter().any(|id| candidacy.gone.contains(id));
        if self.candidacy.as_ref().is_some_and(overlaps) {
            self.candidacy = None;
            self.keep_candidacy();
        }
        let admitted = self.is_admitted(me);
        let state = self.whole();
        self.send(from, Message::Promise { cluster, ballot, admitted, state });
    }

    /// Another one's candidacy waits for whom mine removes, and mine for whom it removes: mine takes on both.
    fn adopt(&mut self, now: Time, view: &View, from: ShortId, gone: &[ShortId]) {
        let Some(candidacy) = &self.candidacy else { return };
        let missing = self.missing_promises(None);
        let apart = !gone.iter().any(|id| candidacy.gone.contains(id)) && !candidacy.gone.contains(&from);
        let free = gone.iter().all(|id| self.promises.get(*id).is_none() || self.members.is_removed(*id));
        if apart && free && gone.iter().any(|id| missing.contains(id)) {
            let force = candidacy.force;
            let _ = self.remove(now, view, gone, force, true);
        }
    }

    /// A withdrawal may have been lost: who withdrew says so again.
    pub(super) fn repeat_promises(&mut self, view: &View) {
        let me = self.config.me;
        let near = |id: &ShortId| view.peers.get(id).is_some_and(|peer| peer.reachable);
        let open: Vec<(ShortId, Ballot)> = self.promises.all.iter().map(|(id, ballot)| (*id, *ballot)).collect();
        let open = open.into_iter().filter(|(id, ballot)| ballot.by != me && !self.members.is_removed(*id));
        let (void, open): (Vec<_>, Vec<_>) = open.partition(|(_, ballot)| self.members.is_removed(ballot.by));
        // Who removed it is gone itself, and it is there.
        for (id, ballot) in void.into_iter().filter(|(id, _)| near(id)) {
            self.let_go(ballot, [id].into_iter());
        }
        let ballots: BTreeSet<Ballot> = open.into_iter().map(|(_, ballot)| ballot).filter(|b| near(&b.by)).collect();
        for ballot in ballots {
            let (cluster, admitted) = (self.cluster(), self.is_admitted(me));
            let message = Message::Promise { cluster, ballot, admitted, state: self.whole() };
            self.send(ballot.by, message);
        }
    }

    pub(super) fn on_withdraw(&mut self, ballot: Ballot, gone: &[ShortId]) {
        self.let_go(ballot, gone.iter().copied());
    }

    fn let_go(&mut self, ballot: Ballot, gone: impl Iterator<Item = ShortId>) {
        for id in gone {
            if self.promises.get(id) == Some(ballot) && !self.members.is_removed(id) {
                self.promises.set(id, None);
                let me = self.config.me;
                self.map.unsuspend(|_, held| held.owner == me && held.giver == id);
            }
        }
    }

    /// All that a candidate knows after its success: what it did not take of my late gifts is mine for good.
    pub(super) fn on_outcome(&mut self, from: ShortId, state: &State) {
        let me = self.config.me;
        let shown = |id: ShortId| {
            let at = state.members.binary_search_by_key(&id, |member| member.id).ok();
            at.and_then(|at| state.members.get(at)).is_some_and(|member| member.standing == Standing::Removed)
        };
        let decided: BTreeSet<ShortId> = self
            .promises
            .all
            .iter()
            .filter(|(id, ballot)| ballot.by == from && shown(**id) || self.members.is_removed(ballot.by))
            .filter(|(id, _)| self.members.is_removed(**id))
            .map(|(id, _)| *id)
            .collect();
        if !decided.is_empty() {
            self.map.unsuspend(|_, held| held.owner == me && decided.contains(&held.giver));
            // Nothing is to come any more that the outcome, which is known now, does not outdo.
            decided.iter().for_each(|id| self.promises.set(*id, None));
        }
    }

    /// Gifts of who left while this peer was about to remove it: its own attempt is over, so nobody takes them.
    pub(super) fn use_own_outcome(&mut self) {
        let me = self.config.me;
        let open = |id: ShortId| self.candidacy.as_ref().is_some_and(|candidacy| candidacy.gone.contains(&id));
        let mine = |id: ShortId| self.promises.get(id).is_some_and(|ballot| ballot.by == me);
        let (members, map) = (&self.members, &mut self.map);
        map.unsuspend(|_, held| {
            held.owner == me && members.is_removed(held.giver) && mine(held.giver) && !open(held.giver)
        });
    }

    /// Whom to ask whether gifts that wait are good.
    pub(super) fn undecided(&self) -> Option<ShortId> {
        let me = self.config.me;
        let waits = self.map.iter().filter(|(_, held)| held.owner == me && held.suspended);
        let givers = waits.map(|(_, held)| held.giver).filter(|giver| self.members.is_removed(*giver));
        givers.filter_map(|giver| self.promises.get(giver)).map(|ballot| ballot.by).find(|by| *by != me)
    }
}
