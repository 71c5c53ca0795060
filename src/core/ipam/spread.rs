//! Map and members spread like everything else that is gossiped: what changed goes to every neighbour but the one it came from; a comparison of hashes
//! with one neighbour every 10 s repairs the rest. A whole state is sent only to who differs.

use meshnet_proto::ShortId;
use meshnet_proto::wire::ipam::{Genesis, Member, Message, Span, Standing, State};

use super::map::Piece;
use super::{Ipam, Told, View};
use crate::node::LinkId;
use crate::time::Time;
use crate::topology::digest::mix;

impl Ipam {
    /// All that this peer knows.
    pub(super) fn whole(&self) -> State {
        State { members: self.members.wire(), runs: self.map.wire(None) }
    }

    /// What it knows of some addresses.
    pub(super) fn part(&self, spans: &[Span]) -> State {
        State { members: Vec::new(), runs: self.map.wire(Some(spans)) }
    }

    pub(super) fn full_state(&self) -> Message {
        let genesis = self.genesis.unwrap_or(self.no_genesis());
        Message::State { genesis, full: true, state: self.whole() }
    }

    pub(super) fn hash(&self) -> u64 {
        if self.genesis.is_none() {
            return 0;
        }
        let run = |run: &meshnet_proto::wire::ipam::Run| {
            let words =
                [u64::from(run.span.first), u64::from(run.span.len), u64::from(run.ballot.round), run.ballot.by.0];
            let more = [u64::from(run.version), run.owner.0, run.giver.0];
            words.iter().chain(&more).fold(0, |hash, word| mix(hash ^ word))
        };
        let runs = self.map.wire(None).iter().map(run).fold(0, u64::wrapping_add);
        let member = |(id, standing): (ShortId, Standing)| mix(mix(id.0) ^ (standing as u64 + 1));
        self.members.iter().map(member).fold(runs, u64::wrapping_add).max(1)
    }

    pub(super) fn on_link_up(&mut self, link: LinkId, peer: ShortId) {
        self.links.insert(link, peer);
        if self.genesis.is_some() {
            let digest = Message::Digest { cluster: self.cluster(), hash: self.hash() };
            self.keeping.push(super::Output::Tell { link, message: digest });
        } else {
            self.stand_to(peer);
        }
    }

    pub(super) fn compare(&mut self) {
        let drawn = self.draw();
        let at = drawn as usize % self.links.len().max(1);
        let Some(link) = self.links.keys().nth(at).copied() else { return };
        if self.genesis.is_some() {
            let message = Message::Digest { cluster: self.cluster(), hash: self.hash() };
            self.keeping.push(super::Output::Tell { link, message });
        }
    }

    /// Somebody knows something else: it is told what I know, and answers with what that lacks.
    pub(super) fn on_digest(&mut self, from: ShortId, link: Option<LinkId>, cluster: [u8; 16], hash: u64) {
        let message = match self.genesis {
            Some(genesis) if genesis.uuid == cluster && self.hash() == hash => return,
            Some(_) => self.full_state(),
            // Tell me all.
            None => Message::Digest { cluster: [0; 16], hash: 0 },
        };
        if self.genesis.is_none() && cluster == [0; 16] {
            return;
        }
        match link {
            Some(link) => self.keeping.push(super::Output::Tell { link, message }),
            None => self.send(from, message),
        }
    }

    #[allow(clippy::too_many_arguments, reason = "the parts of one message, and where it came from")]
    pub(super) fn on_state(
        &mut self,
        now: Time,
        view: &View,
        from: ShortId,
        link: Option<LinkId>,
        genesis: Genesis,
        full: bool,
        state: &State,
    ) {
        if !self.same_space(now, view, from, link, genesis, full, state) {
            return;
        }
        if self.merge(state, full) {
            // From who knows of a removal comes, in whole, all that the removed one ever gave.
            let message = Message::Digest { cluster: genesis.uuid, hash: 0 };
            match link {
                Some(link) => self.keeping.push(super::Output::Tell { link, message }),
                None => self.send(from, message),
            }
        }
        self.on_sponsor_heard(from);
        self.try_commit(now, view);
        if full {
            self.on_outcome(from, state);
            let difference = self.difference(state);
            if !difference.members.is_empty() || !difference.runs.is_empty() {
                let message = Message::State { genesis, full: false, state: difference };
                match link {
                    Some(link) => self.keeping.push(super::Output::Tell { link, message }),
                    None => self.send(from, message),
                }
            }
        }
        self.serve_waiting(now, view);
    }

    /// What I know and this state lacks.
    fn difference(&self, theirs: &State) -> State {
        let there = |id: ShortId| {
            let at = theirs.members.binary_search_by_key(&id, |member| member.id).ok()?;
            theirs.members.get(at).map(|member| member.standing)
        };
        let mut members = self.members.wire();
        members.retain(|member| there(member.id).is_none_or(|standing| standing < member.standing));
        let spans = self.map.newer_than(&theirs.runs);
        let runs = if spans.is_empty() { Vec::new() } else { self.map.wire(Some(&spans)) };
        State { members, runs }
    }

    /// Takes in what another member knows. A removal is believed only with all that its sender knows, so that who knows of it knows everything that the removed
    /// one gave away: true when there is one that was not believed.
    pub(super) fn merge(&mut self, state: &State, whole: bool) -> bool {
        let (mut unbelieved, whole) = (false, whole || !self.rules.whole_removals());
        for Member { id, standing } in state.members.iter().copied() {
            let news = standing == Standing::Removed && !self.members.is_removed(id) && !whole;
            unbelieved |= news;
            self.members.raise(id, if news { Standing::Admitted } else { standing });
        }
        let me = self.config.me;
        let room = meshnet_proto::limits::IPAM_RUNS_MAX;
        let mut doubts = Vec::new();
        let mut alarms = Vec::new();
        for run in &state.runs {
            let within = super::map::overlap(run.span, self.config.range) == Some(run.span);
            if !within || self.map.len() + 2 >= room {
                continue;
            }
            let suspend = run.owner == me && run.giver != me && self.is_awaited(run.giver);
            let removed = self.members.is_removed(me);
            let leases = &self.leases;
            self.map.merge(run, suspend, |piece| match piece {
                Piece::Taken { span, before: Some(before) } if before.owner == me && !removed => {
                    if run.giver == me {
                        doubts.push(span);
                    } else if run.owner != me && leases.within(span).next().is_some() && !before.suspended {
                        alarms.push((span, run.owner));
                    }
                }
                Piece::Taken { span, before: None } if run.giver == me && !removed && run.version > 1 => {
                    doubts.push(span)
                }
                Piece::Contradiction { span, .. } => alarms.push((span, run.owner)),
                Piece::Taken { .. } => {}
            });
        }
        if let Some(span) = doubts.first() {
            let what = super::requests::cidr(*span);
            self.doubt(format!(
                "others saw this peer give away {what}, which it does not remember: its state is an old copy (start meshd with --restored)"
            ));
        }
        for (span, owner) in alarms {
            self.alarm(format!("{} is used here, and {owner:?} is said to own it", super::requests::cidr(span)));
        }
        unbelieved
    }

    /// Tells every neighbour what changed in this step.
    pub(super) fn spread(&mut self) {
        let members = self.members.take_changed();
        let spans = self.map.take_changed();
        let Some(genesis) = self.genesis else { return };
        if members.is_empty() && spans.is_empty() {
            return;
        }
        let state = State { members, runs: if spans.is_empty() { Vec::new() } else { self.map.wire(Some(&spans)) } };
        let links: Vec<LinkId> = self.links.keys().copied().collect();
        for link in links {
            let message = Message::State { genesis, full: false, state: state.clone() };
            self.keeping.push(super::Output::Tell { link, message });
        }
    }

    /// What this peer says of itself in its record: not more often than needed, for a record is told to everybody.
    pub(super) fn tell(&mut self, now: Time, _view: &View) {
        if self.genesis.is_none() || now < self.next_told {
            return;
        }
        let told = Told { digest: self.hash(), free: u32::try_from(self.free()).unwrap_or(u32::MAX) };
        let stale = self.told.is_none_or(|before| {
            let quarter = before.free / 4;
            before.digest != told.digest
                || before.free.abs_diff(told.free) > quarter
                || (before.free == 0) != (told.free == 0)
        });
        if stale {
            self.told = Some(told);
            self.next_told = now + TOLD_EVERY;
            self.keeping.push(super::Output::Told(told));
        } else {
            self.next_told = now + TOLD_CHECK;
        }
    }
}

/// Between two records that say something new about addresses.
const TOLD_EVERY: std::time::Duration = std::time::Duration::from_secs(5);
/// Between two looks whether there is something to say.
const TOLD_CHECK: std::time::Duration = std::time::Duration::from_millis(500);
