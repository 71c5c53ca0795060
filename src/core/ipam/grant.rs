//! Giving away what this peer owns, and asking others for what they own.
//!
//! A gift is one write of the owner: version + 1, another owner. It is on disk before it is told, and needs no answer: a lost reply reaches the new owner
//! by gossip. Who owns the most gives to who owns the least until no share is more than twice another, so that a newcomer has to ask nobody.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use meshnet_proto::ShortId;
use meshnet_proto::wire::ipam::{Ask, Message, Outcome, Span, State};

use super::map::Held;
use super::{Ipam, View};
use crate::time::Time;

/// Asking for more in the background.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub(super) struct Refill {
    asked: Option<(u64, ShortId)>,
    next: Time,
    pause: Duration,
}

impl Ipam {
    /// Own addresses that are neither given out nor in doubt, within a span.
    pub(super) fn free_spans(&self, within: Option<Span>) -> Vec<Span> {
        let within = within.unwrap_or(self.config.range);
        let mut free = Vec::new();
        for span in self.own_spans(within) {
            let mut from = u64::from(span.first);
            for leased in self.leases.within(span) {
                push(&mut free, from, u64::from(leased));
                from = u64::from(leased) + 1;
            }
            push(&mut free, from, span.end());
        }
        free
    }

    /// Own addresses within a span: those of other ballots than the first last, for they were somebody else's not long ago.
    pub(super) fn own_spans(&self, within: Span) -> Vec<Span> {
        let me = self.config.me;
        let mine = |held: &Held| held.owner == me && !held.suspended || !self.rules.own_only();
        let mut own: Vec<(bool, Span)> = self
            .map
            .within(within)
            .filter(|(_, held)| mine(held))
            .map(|(span, held)| (held.ballot.by == me && held.version == 0, span))
            .collect();
        own.sort_unstable();
        own.into_iter().map(|(_, span)| span).collect()
    }

    /// Gives up to `want` free addresses of a span to a peer. Gives what was given.
    fn give(&mut self, to: ShortId, within: Span, want: u32) -> Vec<Span> {
        let mut free = self.free_spans(Some(within));
        // From the end of the longest: shares stay whole.
        free.sort_unstable_by_key(|span| (std::cmp::Reverse(span.len), span.first));
        let mut given = Vec::new();
        let mut left = want;
        for span in free {
            if left == 0 {
                break;
            }
            let len = span.len.min(left);
            let tail = Span { first: span.first + (span.len - len), len };
            left -= len;
            given.push(tail);
        }
        for span in &given {
            self.write_gift(*span, to);
        }
        given
    }

    fn write_gift(&mut self, span: Span, to: ShortId) {
        let pieces: Vec<(Span, Held)> = self.map.within(span).map(|(piece, held)| (piece, *held)).collect();
        for (piece, held) in pieces {
            let version = held.version.saturating_add(1);
            let gift = Held { len: piece.len, version, owner: to, giver: self.config.me, suspended: false, ..held };
            self.map.write(piece, gift);
        }
    }

    fn may_be_given(&self, to: ShortId) -> bool {
        (self.is_admitted(to) || !self.rules.majority() && self.members.standing(to).is_some()) && !self.is_frozen(to)
    }

    /// Somebody asks for addresses.
    pub(super) fn on_ask(&mut self, _now: Time, from: ShortId, ask: Ask) {
        let cluster = self.cluster();
        let Ask { token, within, want } = ask;
        let answer = |ipam: &mut Ipam, outcome, given: &[Span]| {
            let state = ipam.part(given);
            ipam.send(from, Message::Answer { cluster, token, outcome, state });
        };
        if !self.may_be_given(from) {
            return answer(self, Outcome::Stranger, &[]);
        }
        if !self.active() || within.len == 0 {
            return answer(self, Outcome::NotNow, &[]);
        }
        let free = self.free_spans(Some(within));
        // Two that have nothing else would send those to and fro for ever.
        let useful = |span: &Span| span.len > 2 || (0..span.len).any(|at| !self.is_reserved(span.first + at, within));
        let free = if free.iter().any(useful) { free } else { Vec::new() };
        let free: u64 = free.iter().map(|span| u64::from(span.len)).sum();
        // One is asked for by name; of more, half stays here.
        let most = if within.len == 1 { free } else { free.div_ceil(2) };
        let given = self.give(from, within, u32::try_from(most).unwrap_or(u32::MAX).min(want));
        if given.is_empty() {
            // What I own there says who to ask next.
            let theirs = [within];
            return answer(self, Outcome::Nothing, if within.len == 1 { &theirs } else { &[] });
        }
        answer(self, Outcome::Given, &given);
    }

    pub(super) fn on_answer(
        &mut self,
        now: Time,
        view: &View,
        from: ShortId,
        token: u64,
        outcome: Outcome,
        state: &State,
    ) {
        let _ = self.merge(state, false);
        if self.refill.asked == Some((token, from)) {
            self.refill.asked = None;
            if outcome == Outcome::Given {
                self.refill.pause = Duration::ZERO;
                self.refill.next = now;
            }
        }
        self.on_ask_answered(now, view, from, token, outcome);
    }

    /// The share that each member would have if all were equal, rounded down to a power of two.
    fn fair_share(&self) -> u32 {
        let members = u32::try_from(self.members.admitted().count()).unwrap_or(u32::MAX).max(1);
        let fair = (self.config.range.len / members).max(1);
        1 << fair.ilog2()
    }

    /// Who owns the most gives to who owns the least.
    pub(super) fn share(&mut self, view: &View) {
        if !self.active() {
            return;
        }
        let me = self.config.me;
        let near = |id: &ShortId| view.peers.get(id).is_some_and(|peer| peer.reachable);
        let mut owned: BTreeMap<ShortId, u64> = self.members.admitted().filter(near).map(|id| (id, 0)).collect();
        if owned.is_empty() {
            return;
        }
        let mut mine = 0;
        for (span, held) in self.map.iter() {
            if held.owner == me {
                mine += u64::from(span.len);
            } else if let Some(theirs) = owned.get_mut(&held.owner) {
                *theirs += u64::from(span.len);
            }
        }
        // The lowest id among the richest, so that two do not give to one.
        let richer = |(id, theirs): (&ShortId, &u64)| *theirs > mine || *theirs == mine && *id < me;
        if owned.iter().any(richer) {
            return;
        }
        owned.retain(|id, _| !self.is_frozen(*id));
        let share = u64::from(self.fair_share());
        // What this peer would ask back at once is not given.
        let free: u64 = self.free_spans(None).iter().map(|span| u64::from(span.len)).sum();
        let mut spare = free.saturating_sub(FEW.min(share.div_ceil(2)).max(mine / 4));
        let mut by_wealth: BTreeSet<(u64, ShortId)> = owned.into_iter().map(|(id, theirs)| (theirs, id)).collect();
        for _ in 0..SHARES_AT_ONCE {
            let Some((theirs, poorest)) = by_wealth.first().copied() else { break };
            if mine <= theirs.saturating_mul(2) || mine < 2 {
                break;
            }
            let want = share.min((mine - theirs) / 2).max(1).min(spare);
            let range = self.config.range;
            let given: u64 = self.give(poorest, range, want as u32).iter().map(|span| u64::from(span.len)).sum();
            if given == 0 {
                break;
            }
            mine -= given;
            spare -= given;
            by_wealth.remove(&(theirs, poorest));
            by_wealth.insert((theirs + given, poorest));
        }
    }

    /// Asks who has the most, when little is left: an allocation then needs nobody.
    pub(super) fn refill(&mut self, now: Time, view: &View) {
        if !self.active() || now < self.refill.next {
            return;
        }
        // Gifts of a peer whose removal is decided: who removed it knows whether they are good.
        if let Some(by) = self.undecided() {
            let digest = Message::Digest { cluster: self.cluster(), hash: 0 };
            self.send(by, digest);
        }
        let subnet = self.config.subnet;
        let free: u64 = self.free_spans(Some(subnet)).iter().map(|span| u64::from(span.len)).sum();
        let own: u64 = self.own_spans(subnet).iter().map(|span| u64::from(span.len)).sum();
        let share = u64::from(self.fair_share());
        if free >= FEW.min(share.div_ceil(2)).max(own / 4) && own > 0 {
            self.refill.pause = Duration::ZERO;
            return;
        }
        self.refill.pause = (self.refill.pause * 2).clamp(REFILL_FIRST, REFILL_LAST);
        self.refill.next = now + self.refill.pause;
        let Some(donor) = self.donors(view, &BTreeSet::new()).into_iter().next() else { return };
        // Who has as little would ask it back.
        let told = view.peers.get(&donor).and_then(|peer| peer.told);
        if told.is_some_and(|told| u64::from(told.free) < 2 * free + 2) {
            return;
        }
        let token = self.token();
        self.refill.asked = Some((token, donor));
        let ask = Ask { token, within: subnet, want: share as u32 };
        self.send(donor, Message::Ask { cluster: self.cluster(), ask });
    }

    /// Members that may have something to give, the one with the most first.
    pub(super) fn donors(&self, view: &View, but: &BTreeSet<ShortId>) -> Vec<ShortId> {
        let mut owned: BTreeMap<ShortId, u64> = BTreeMap::new();
        for (span, held) in self.map.iter() {
            *owned.entry(held.owner).or_default() += u64::from(span.len);
        }
        let rank = |id: ShortId| {
            let peer = view.peers.get(&id).filter(|peer| peer.reachable)?;
            let free = peer.told.map(|told| u64::from(told.free));
            let owned = owned.get(&id).copied().unwrap_or_default();
            Some((std::cmp::Reverse(free.unwrap_or(owned).min(owned)), id))
        };
        let mut donors: Vec<_> = self
            .members
            .admitted()
            .filter(|id| *id != self.config.me && !but.contains(id) && owned.contains_key(id))
            .filter_map(rank)
            .collect();
        donors.sort_unstable();
        donors.into_iter().map(|(_, id)| id).collect()
    }

    /// An address that stood alone in somebody else's run goes back there when it is free again.
    pub(super) fn give_back(&mut self, address: u32) {
        let me = self.config.me;
        let Some((span, held)) = self.map.at(address) else { return };
        if span.len != 1 || held.owner != me || held.suspended || !self.active() {
            return;
        }
        let beside = |at: Option<u32>| at.and_then(|at| self.map.at(at)).map(|(_, held)| held.owner);
        let before = beside(address.checked_sub(1));
        let after = beside(address.checked_add(1));
        if let Some(owner) = before.filter(|owner| *owner != me && Some(*owner) == after)
            && self.may_be_given(owner)
        {
            self.write_gift(span, owner);
        }
    }

    /// What was given to a peer in the moment it left is nobody's: that peer writes no more, so who gave it goes on as its owner.
    pub(super) fn take_back(&mut self) {
        if self.active() {
            self.pass_on_lost(self.config.me);
        }
    }

    /// Gives what this peer gave to one that had left to another.
    pub(super) fn pass_on_lost(&mut self, to: ShortId) {
        let me = self.config.me;
        let lost = |held: &Held| {
            held.giver == me && held.owner != me && self.members.is_removed(held.owner) && !self.is_awaited(held.owner)
        };
        let lost: Vec<Span> = self.map.iter().filter(|(_, held)| lost(held)).map(|(span, _)| span).collect();
        for span in lost {
            self.write_gift(span, to);
        }
    }

    /// Gives everything away; gives to whom, if there is somebody.
    pub(super) fn give_all(&mut self, to: ShortId) {
        let range = self.config.range;
        self.give(to, range, u32::MAX);
    }
}

fn push(spans: &mut Vec<Span>, from: u64, end: u64) {
    if from < end {
        spans.push(Span { first: from as u32, len: (end - from) as u32 });
    }
}

/// Below this many free addresses more are asked for: a burst of pods on one node.
const FEW: u64 = 8;
/// Gifts in one step: each is a run in one message.
const SHARES_AT_ONCE: usize = 1024;
/// Between two asks for more, while none has any: doubling from the first to the last.
const REFILL_FIRST: Duration = Duration::from_secs(1);
const REFILL_LAST: Duration = Duration::from_secs(60);
