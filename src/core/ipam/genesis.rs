//! The first split, and what happens when two address spaces meet.
//!
//! ```text
//! nobody to connect to ─────────────▶ founder: owns all
//! seed=a,b,c: all names are there ──▶ equal shares, computed by each alone
//! peers that list each other,  ─────▶ one of them proposes ─Elect─▶ a majority of the list promises ─Accept─▶ a majority accepts: equal shares
//! or any N (consensus=N)              (single-decree Paxos: L. Lamport, "Paxos Made Simple", 2001)
//! else ─────────────────────────────▶ wait for somebody who knows
//! ```
//! Two spaces that meet: one of a single member yields to one of several, then by kind, then by the lower number. Who yields owns nothing any more; what
//! it gave out is claimed in the other space address by address, and shown as a conflict where that fails.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use meshnet_proto::ShortId;
use meshnet_proto::wire::ipam::{Ballot, Decree, Genesis, GenesisKind, Message, Span, Stand, Standing, State};
use serde::{Deserialize, Serialize};

use super::map::Held;
use super::{Init, Ipam, RETRY_EVERY, View};
use crate::node::{Level, LinkId};
use crate::time::Time;
use crate::topology::digest::mix;

/// What this peer promised and accepted. On disk before it is said.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub(super) struct Vote {
    promised: Ballot,
    accepted: Option<(Ballot, Decree)>,
}

/// An election as this peer sees it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Election {
    stands: BTreeMap<ShortId, Stand>,
    /// Since when a majority is there.
    majority_since: Option<Time>,
    round: u32,
    attempt: Option<Attempt>,
    next: Time,
    /// Somebody near splits another range.
    other_range: Option<(ShortId, Span)>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Attempt {
    ballot: Ballot,
    electors: u16,
    voters: Vec<ShortId>,
    promises: BTreeMap<ShortId, Option<(Ballot, Decree)>>,
    decree: Option<Decree>,
    accepted: BTreeSet<ShortId>,
}

impl Election {
    pub fn new(now: Time) -> Election {
        Election {
            stands: BTreeMap::new(),
            majority_since: None,
            round: 0,
            attempt: None,
            next: now,
            other_range: None,
        }
    }
}

/// Beginning.
impl Ipam {
    pub(super) fn no_genesis(&self) -> Genesis {
        Genesis { uuid: [0; 16], kind: GenesisKind::Founder, range: self.config.range }
    }

    pub(super) fn begin_deadline(&self) -> Time {
        let begins = self.genesis.is_none() && self.doubt.is_none() && !self.members.is_removed(self.config.me);
        if begins { self.election.next } else { Time::NEVER }
    }

    pub(super) fn begin_if_due(&mut self, now: Time, view: &View, at_once: bool) {
        if self.genesis.is_some() || self.doubt.is_some() || self.members.is_removed(self.config.me) {
            return;
        }
        match &self.config.init {
            Init::Observer | Init::Outside => self.election.next = now + RETRY_EVERY,
            Init::Seeds(names) => {
                self.election.next = now + RETRY_EVERY;
                if let Ok(seeds) = self.find_seeds(names, view) {
                    self.begin_with_seeds(&seeds);
                }
            }
            Init::Auto if view.targets == 0 && self.vote.accepted.is_none() => {
                let uuid = self.draw_uuid();
                self.begin(uuid, GenesisKind::Founder, &[self.config.me]);
            }
            Init::Auto | Init::Consensus(_) => {
                if now >= self.election.next || at_once {
                    self.stand_for(now, view);
                }
            }
        }
    }

    fn draw_uuid(&mut self) -> [u8; 16] {
        let (a, b) = (self.draw(), self.draw());
        (u128::from(a) << 64 | u128::from(b)).to_be_bytes()
    }

    /// The ids of these names; or the name that cannot be told.
    fn find_seeds(&self, names: &[String], view: &View) -> Result<Vec<ShortId>, String> {
        let find = |name: &String| {
            let mut found: Vec<ShortId> =
                view.peers.iter().filter(|(_, peer)| peer.name == *name).map(|(id, _)| *id).collect();
            if *name == self.config.name {
                found.push(self.config.me);
            }
            match found.as_slice() {
                [one] => Ok(*one),
                [] => Err(format!("'{name}' of --ipam-init seed= is not there yet")),
                _ => Err(format!("several peers are called '{name}': --ipam-init seed= needs names that differ")),
            }
        };
        names.iter().map(find).collect()
    }

    fn begin_with_seeds(&mut self, seeds: &[ShortId]) {
        let range = self.config.range;
        let words = [u64::from(range.first), u64::from(range.len)];
        let hash = |start| seeds.iter().map(|id| id.0).chain(words).fold(start, |hash, word| mix(hash ^ word));
        let uuid = (u128::from(hash(1)) << 64 | u128::from(hash(2))).to_be_bytes();
        self.begin(uuid, GenesisKind::Seeds, seeds);
    }

    /// Equal shares: they differ by one address at most.
    pub(super) fn begin(&mut self, uuid: [u8; 16], kind: GenesisKind, seeds: &[ShortId]) {
        let range = self.config.range;
        self.genesis = Some(Genesis { uuid, kind, range });
        self.keep_genesis();
        let count = u64::try_from(seeds.len()).unwrap_or(u64::MAX).max(1);
        let bound = |at: usize| (u64::from(range.len) * at as u64 / count) as u32;
        for (at, seed) in seeds.iter().enumerate() {
            let (from, to) = (bound(at), bound(at + 1));
            self.members.raise(*seed, Standing::Admitted);
            if from < to {
                let span = Span { first: range.first + from, len: to - from };
                let ballot = Ballot::default();
                let held = Held { len: span.len, ballot, version: 1, owner: *seed, giver: *seed, suspended: false };
                self.map.write(span, held);
            }
        }
        self.event(Level::Info, "the address range is split", format!("among {} peers", seeds.len()));
    }

    pub(super) fn why_no_genesis(&self, view: &View) -> String {
        if let Some((peer, range)) = self.election.other_range {
            let (theirs, ours) = (super::requests::cidr(range), super::requests::cidr(self.config.range));
            let name = view.peers.get(&peer).map(|peer| peer.name.clone()).unwrap_or_default();
            return format!("{name} splits {theirs}, this peer {ours}: give all peers the same --ipam-range");
        }
        match &self.config.init {
            Init::Seeds(names) => match self.find_seeds(names, view) {
                Err(why) => format!("waiting: {why}"),
                Ok(_) => "about to begin".into(),
            },
            Init::Outside => "waiting for word of who begins with the addresses".into(),
            Init::Consensus(count) => {
                let there = self.electors(view).len() + 1;
                format!("waiting for a majority of {count} peers with --ipam-init consensus={count}: {there} are there")
            }
            _ => {
                let there = self.electors(view).len() + 1;
                format!(
                    "waiting for a peer that knows the split, or for a majority of the {} peers that list each other by --peer: {there} are there \
                     (or begin with one peer without --peer, or with --ipam-init seed=NAME,…)",
                    view.targets + 1
                )
            }
        }
    }
}

/// Electing.
impl Ipam {
    fn my_stand(&self, view: &View) -> Option<Stand> {
        let range = self.config.range;
        match self.config.init {
            Init::Auto if view.targets > 0 => {
                let listed = view.listed.iter().copied().collect();
                Some(Stand { electors: view.targets.saturating_add(1), range, any: false, listed })
            }
            Init::Consensus(electors) => Some(Stand { electors, range, any: true, listed: Vec::new() }),
            _ => None,
        }
    }

    /// Whom to elect with: those there now that want to begin as this peer does.
    fn electors(&self, view: &View) -> Vec<ShortId> {
        let Some(mine) = self.my_stand(view) else { return Vec::new() };
        let agrees = |(id, stand): (&ShortId, &Stand)| {
            let near = view.peers.get(id).is_some_and(|peer| peer.reachable);
            let same = stand.electors == mine.electors && stand.range == mine.range && stand.any == mine.any;
            let listed = mine.any || view.listed.contains(id) && stand.listed.contains(&self.config.me);
            (near && same && listed).then_some(*id)
        };
        self.election.stands.iter().filter_map(agrees).collect()
    }

    /// Tells a peer how this one would like to begin.
    pub(super) fn stand_to(&mut self, _peer: ShortId) {
        // With the next look at the election: the view may be older than the link.
        self.election.next = Time::ZERO;
    }

    fn stand_for(&mut self, now: Time, view: &View) {
        self.election.next = now + STAND_EVERY;
        let Some(mine) = self.my_stand(view) else { return };
        let near = view.peers.iter().filter(|(id, peer)| peer.reachable && (mine.any || view.listed.contains(id)));
        let near: Vec<ShortId> = near.map(|(id, _)| *id).take(ELECTORS_MAX).collect();
        for peer in near {
            self.send(peer, Message::Stand(mine.clone()));
        }
        let mut all = self.electors(view);
        all.push(self.config.me);
        all.sort_unstable();
        if all.len() * 2 <= usize::from(mine.electors) {
            self.election.majority_since = None;
            return;
        }
        let since = *self.election.majority_since.get_or_insert(now);
        // The lowest id proposes; the next one when nothing came of it.
        let rank = all.iter().position(|id| *id == self.config.me).unwrap_or_default();
        let grace = if all.len() >= usize::from(mine.electors) { Duration::ZERO } else { MAJORITY_GRACE };
        let turn = ATTEMPT_TIME * u32::try_from(rank).unwrap_or(u32::MAX).min(30);
        if now >= since + grace + turn {
            self.propose(now, mine.electors, all);
        }
    }

    pub(super) fn propose(&mut self, now: Time, electors: u16, voters: Vec<ShortId>) {
        let round = self.vote.promised.round.max(self.election.round).saturating_add(1);
        let ballot = Ballot { round, by: self.config.me };
        self.vote.promised = ballot;
        self.keep_vote();
        self.election.next = now + ATTEMPT_TIME + Duration::from_millis(self.draw() % 1000);
        let promises = BTreeMap::from([(self.config.me, self.vote.accepted.clone())]);
        let others: Vec<ShortId> = voters.iter().copied().filter(|id| *id != self.config.me).collect();
        self.election.attempt =
            Some(Attempt { ballot, electors, voters, promises, decree: None, accepted: BTreeSet::new() });
        for peer in others {
            self.send(peer, Message::Elect { ballot, electors });
        }
        self.count_promises();
    }

    pub(super) fn on_stand(&mut self, now: Time, view: &View, from: ShortId, stand: Stand) {
        if self.genesis.is_some() {
            return self.send(from, self.full_state());
        }
        if stand.range != self.config.range {
            self.election.other_range = Some((from, stand.range));
            return;
        }
        if self.election.stands.len() < ELECTORS_MAX || self.election.stands.contains_key(&from) {
            let news = self.election.stands.insert(from, stand.clone()) != Some(stand);
            if news && self.election.attempt.is_none() {
                self.begin_if_due(now, view, true);
            }
        }
    }

    pub(super) fn on_elect(&mut self, view: &View, from: ShortId, ballot: Ballot, electors: u16) {
        if self.genesis.is_some() {
            return self.send(from, self.full_state());
        }
        let Some(mine) = self.my_stand(view) else { return };
        if mine.electors != electors || !(mine.any || view.listed.contains(&from)) || ballot.by != from {
            return self.send(from, Message::Stand(mine));
        }
        if ballot > self.vote.promised {
            self.vote.promised = ballot;
            self.keep_vote();
        }
        // A higher promise than asked for says no, and why.
        let message = Message::Elected { ballot: self.vote.promised, accepted: self.vote.accepted.clone() };
        self.send(from, message);
    }

    pub(super) fn on_elected(&mut self, _now: Time, from: ShortId, ballot: Ballot, accepted: Option<(Ballot, Decree)>) {
        self.election.round = self.election.round.max(ballot.round);
        let Some(attempt) = &mut self.election.attempt else { return };
        if attempt.ballot == ballot && attempt.voters.contains(&from) {
            attempt.promises.insert(from, accepted);
            self.count_promises();
        }
    }

    fn count_promises(&mut self) {
        let uuid = self.draw_uuid();
        let Some(attempt) = &mut self.election.attempt else { return };
        if self.genesis.is_some()
            || attempt.decree.is_some()
            || attempt.promises.len() * 2 <= usize::from(attempt.electors)
            || self.vote.promised != attempt.ballot
        {
            return;
        }
        let earlier = attempt.promises.values().flatten().max_by_key(|(ballot, _)| *ballot);
        let decree = earlier.map_or_else(|| Decree { uuid, seeds: attempt.voters.clone() }, |(_, d)| d.clone());
        attempt.decree = Some(decree.clone());
        attempt.accepted.insert(self.config.me);
        let (ballot, voters) = (attempt.ballot, attempt.voters.clone());
        self.vote.accepted = Some((ballot, decree.clone()));
        self.keep_vote();
        let me = self.config.me;
        for voter in voters.into_iter().filter(|id| *id != me) {
            self.send(voter, Message::Accept { ballot, decree: decree.clone() });
        }
        self.count_accepted();
    }

    pub(super) fn on_accept(&mut self, from: ShortId, ballot: Ballot, decree: Decree) {
        if self.genesis.is_some() {
            return self.send(from, self.full_state());
        }
        let votes = !matches!(self.config.init, Init::Observer | Init::Outside);
        if ballot >= self.vote.promised && ballot.by == from && votes {
            self.vote = Vote { promised: ballot, accepted: Some((ballot, decree)) };
            self.keep_vote();
            self.send(from, Message::Accepted { ballot });
        }
    }

    pub(super) fn on_accepted(&mut self, _now: Time, from: ShortId, ballot: Ballot) {
        let Some(attempt) = &mut self.election.attempt else { return };
        if attempt.ballot == ballot && attempt.decree.is_some() && attempt.voters.contains(&from) {
            attempt.accepted.insert(from);
            self.count_accepted();
        }
    }

    fn count_accepted(&mut self) {
        let Some(attempt) = &self.election.attempt else { return };
        if self.genesis.is_some() || attempt.accepted.len() * 2 <= usize::from(attempt.electors) {
            return;
        }
        let Some(decree) = attempt.decree.clone() else { return };
        self.election.attempt = None;
        self.begin(decree.uuid, GenesisKind::Election, &decree.seeds);
        let state = self.full_state();
        let me = self.config.me;
        for seed in decree.seeds.into_iter().filter(|id| *id != me) {
            self.send(seed, state.clone());
        }
    }
}

/// Meeting.
impl Ipam {
    /// Whether a state is about this peer's address space; adopts that space first, when it has none or a lesser one.
    #[allow(clippy::too_many_arguments, reason = "the parts of one message, and where it came from")]
    pub(super) fn same_space(
        &mut self,
        now: Time,
        view: &View,
        from: ShortId,
        link: Option<LinkId>,
        theirs: Genesis,
        full: bool,
        state: &State,
    ) -> bool {
        let ours = self.genesis;
        if ours.is_some_and(|ours| ours.uuid == theirs.uuid) {
            return true;
        }
        if theirs.uuid == [0; 16] || !self.may_take(now, theirs) {
            return false;
        }
        if theirs.range != self.config.range {
            if self.election.other_range.is_none() {
                let (theirs, ours) = (super::requests::cidr(theirs.range), super::requests::cidr(self.config.range));
                self.event(Level::Warn, "another peer splits another range", format!("{theirs}, here it is {ours}"));
            }
            self.election.other_range = Some((from, theirs.range));
            return false;
        }
        if !full {
            // Tell me all.
            let ask = Message::Digest { cluster: self.cluster(), hash: if ours.is_some() { self.hash() } else { 1 } };
            match link {
                Some(link) => self.keeping.push(super::Output::Tell { link, message: ask }),
                None => self.send(from, ask),
            }
            return false;
        }
        if let Some(ours) = ours {
            let several = |admitted: usize| admitted > 1;
            let admitted = state.members.iter().filter(|member| member.standing == Standing::Admitted).count();
            let rank = |several: bool, genesis: Genesis| (several, genesis.kind, std::cmp::Reverse(genesis.uuid));
            let mine = rank(several(self.members.admitted().count()), ours);
            if self.left.contains(&theirs.uuid) || rank(several(admitted), theirs) < mine {
                // It thinks the same of this one, perhaps: no endless dispute.
                if now >= self.next_dispute {
                    self.next_dispute = now + STAND_EVERY;
                    self.send(from, self.full_state());
                }
                return false;
            }
            self.yield_to(ours, theirs);
        }
        self.genesis = Some(theirs);
        self.keep_genesis();
        self.election.attempt = None;
        self.election.other_range = None;
        let _ = self.merge(state, true);
        self.join_if_due(now, view, true);
        true
    }

    /// Gives up the own address space for another.
    fn yield_to(&mut self, ours: Genesis, theirs: Genesis) {
        let words = format!(
            "{:?} yields to {:?}: {} addresses given out here are claimed there one by one",
            ours.kind,
            theirs.kind,
            self.leases.len()
        );
        self.event(Level::Warn, "two address spaces met", words);
        self.give_up(ours);
    }

    /// Belongs to this address space no more. What was given out is to be claimed in another.
    pub(super) fn give_up(&mut self, ours: Genesis) {
        self.left.insert(ours.uuid);
        self.map.clear();
        self.members.clear();
        self.promises.clear();
        self.candidacy = None;
        self.keep_candidacy();
        self.forget_joining();
        self.conflicts.clear();
        let leased: Vec<u32> = self.leases.iter().map(|(address, _)| address).collect();
        leased.into_iter().for_each(|address| self.leases.set_unconfirmed(address, true));
    }
}

/// Peers that an election may be among: a first split is for some machines that are started together.
const ELECTORS_MAX: usize = 256;
/// Between two stands while nothing is decided.
const STAND_EVERY: Duration = Duration::from_millis(500);
/// Those that are missing may be starting.
const MAJORITY_GRACE: Duration = Duration::from_secs(3);
/// One attempt: four messages, and a disk at each end.
const ATTEMPT_TIME: Duration = Duration::from_secs(1);
