//! Who is told what, when: floods of deltas, and repair by digests.
//!
//! ```text
//! Records ─▶ verify (bounded rate) ─▶ merge ─▶ delta ─▶ pending of every other link ─▶ poll: Records
//!
//! repair, on connect and every 10 s with one random neighbour:
//!   Digest ─unequal─▶ Buckets ─unequal ones─▶ Keys ─▶ Records (newer here) + Want (newer there) ─▶ Records
//! ```
//! What waits for a link is a set of names, not of messages: a slow link gets the newest record of each origin once, and the set is bounded by the
//! table. Messages are made when the link takes them.
//!
//! May use: `proto`, [`crate::topology`], [`crate::identity`], the number of a link. Deliberately lacks: links, sessions, clocks, routes.

mod link;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use meshnet_proto::PeerId;
use meshnet_proto::limits;
use meshnet_proto::wire::control::Control;
use meshnet_proto::wire::record::{RecordKey, SignedRecord};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::identity::{Verify, peer_id};
use crate::node::LinkId;
use crate::time::Time;
use crate::topology::{Merge, Topology};
use link::GossipLink;

/// The machine.
#[derive(Debug)]
pub struct Gossip {
    me: PeerId,
    links: BTreeMap<LinkId, GossipLink>,
    /// Links with something to send that take it.
    ready: BTreeSet<LinkId>,
    next_repair: Time,
    rng: StdRng,
    /// The link that was served last, so that all have their turn.
    served: LinkId,
    counters: GossipCounters,
}

/// What one message of a neighbour did.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Heard {
    /// Every record that changed something or asks for something: [`Merge::New`], [`Merge::Updated`], [`Merge::Own`].
    pub merged: Vec<(PeerId, Merge)>,
    /// Records that no honest neighbour passes on: malformed, or with a wrong signature.
    pub bad: u32,
    /// Records and questions not looked at, because the neighbour sends more than its share.
    pub excess: u32,
}

/// Counted since the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct GossipCounters {
    /// Records received.
    pub records_received: u64,
    /// Those among them that were known.
    pub records_redundant: u64,
    /// Those with a wrong signature, or malformed.
    pub records_bad: u64,
    /// Records and questions over the sender's rate.
    pub records_excess: u64,
    /// Records sent, by copy.
    pub records_sent: u64,
    /// Bytes of those.
    pub record_bytes_sent: u64,
    /// Signatures checked.
    pub verified: u64,
    /// Messages of repair sent.
    pub repair_messages_sent: u64,
}

impl Gossip {
    /// A machine without links. The seed draws whom to compare tables with.
    pub fn new(now: Time, me: PeerId, seed: u64) -> Gossip {
        Gossip {
            me,
            links: BTreeMap::new(),
            ready: BTreeSet::new(),
            next_repair: now + REPAIR_EVERY,
            rng: StdRng::seed_from_u64(seed),
            served: LinkId(0),
            counters: GossipCounters::default(),
        }
    }

    /// Counted since the start.
    pub fn counters(&self) -> GossipCounters {
        self.counters
    }

    /// A link to `peer` is up, hellos exchanged.
    pub fn on_link_up(&mut self, now: Time, link: LinkId, peer: PeerId, topology: &Topology) {
        let mut state = GossipLink::new(now);
        if topology.entry(&self.me).is_some() {
            state.records.insert(self.me);
        }
        // One side begins, or every difference would be sent twice. A small table goes without the round trips of comparing hashes.
        if self.me < peer {
            if topology.len() <= SMALL_TABLE {
                state.keys.extend(0..=u8::MAX);
            } else {
                state.digest = true;
            }
        }
        self.links.insert(link, state);
        self.touch(link);
    }

    /// The link is gone.
    pub fn on_link_down(&mut self, link: LinkId) {
        self.links.remove(&link);
        self.ready.remove(&link);
    }

    /// The link takes messages, or does not for now. While it does not, what it is to be told merges.
    pub fn set_writable(&mut self, link: LinkId, writable: bool) {
        if let Some(state) = self.links.get_mut(&link) {
            state.writable = writable;
        }
        self.touch(link);
    }

    /// The record of `peer` changed here: every link but the one it came from is to be told. [`Gossip::handle_message`] does it for what it merges;
    /// call it for this peer's own record.
    pub fn on_merged(&mut self, from: Option<LinkId>, peer: PeerId) {
        for (link, state) in &mut self.links {
            if Some(*link) != from {
                state.records.insert(peer);
                if state.writable {
                    self.ready.insert(*link);
                }
            }
        }
    }

    /// Links whose neighbour sent more records than its share within the last 10 s.
    pub fn penalised(&self, now: Time) -> impl Iterator<Item = LinkId> {
        self.links.iter().filter(move |(_, state)| state.penalised(now)).map(|(link, _)| *link)
    }

    fn touch(&mut self, link: LinkId) {
        if self.links.get(&link).is_some_and(|state| state.writable && state.has_work()) {
            self.ready.insert(link);
        } else {
            self.ready.remove(&link);
        }
    }
}

/// Receiving.
impl Gossip {
    /// Takes in a message of [`Control`]'s kinds 2 to 6; others do nothing here.
    pub fn handle_message(
        &mut self,
        now: Time,
        link: LinkId,
        message: &Control,
        topology: &mut Topology,
        verify: &dyn Verify,
    ) -> Heard {
        let mut heard = Heard::default();
        let Some(state) = self.links.get_mut(&link) else { return heard };
        state.refill(now);
        // An answer may be far longer than the question: both come out of the neighbour's share.
        let units = match message {
            Control::Digest(_) | Control::Buckets(_) => limits::DIGEST_BUCKETS,
            Control::Keys { buckets, keys } => keys.len() + buckets.len(),
            Control::Want(peers) => peers.len(),
            _ => 0,
        };
        if !state.spend(now, units) {
            self.counters.records_excess += 1;
            return Heard { excess: 1, ..heard };
        }
        match message {
            Control::Records(records) => {
                for bytes in records {
                    self.on_record(now, link, bytes, topology, verify, &mut heard);
                }
            }
            Control::Digest(root) => state.buckets |= *root != topology.digest().root(),
            Control::Buckets(hashes) => state.keys.extend(topology.digest().unequal(hashes)),
            Control::Keys { buckets, keys } => {
                let difference = topology.newer_than(&buckets.iter().copied().collect(), keys);
                state.records.extend(difference.send);
                state.wants.extend(difference.want.into_iter().take(state.affordable()));
            }
            Control::Want(peers) => {
                state.records.extend(peers.iter().filter(|peer| topology.entry(peer).is_some()));
            }
            _ => {}
        }
        self.counters.records_bad += u64::from(heard.bad);
        self.counters.records_excess += u64::from(heard.excess);
        self.touch(link);
        heard
    }

    fn on_record(
        &mut self,
        now: Time,
        link: LinkId,
        bytes: &[u8],
        topology: &mut Topology,
        verify: &dyn Verify,
        heard: &mut Heard,
    ) {
        let Some(state) = self.links.get_mut(&link) else { return };
        self.counters.records_received += 1;
        if !state.spend(now, 1) {
            heard.excess = heard.excess.saturating_add(1);
            return;
        }
        if let Some(peer) = topology.holds(bytes) {
            state.records.remove(&peer);
            self.counters.records_redundant += 1;
            return;
        }
        let Ok((signed, record)) = SignedRecord::parse(bytes) else {
            heard.bad = heard.bad.saturating_add(1);
            return;
        };
        let key = RecordKey { peer: peer_id(&record.public_key), version: record.version };
        let same = topology.entry(&key.peer).is_some_and(|entry| entry.admitted.signed.body == signed.body);
        if same || topology.has(&key) {
            if same {
                state.records.remove(&key.peer);
            }
            self.counters.records_redundant += 1;
            return;
        }
        if !state.spend(now, VERIFY_UNITS) {
            heard.excess = heard.excess.saturating_add(1);
            return;
        }
        self.counters.verified += 1;
        let Some(admitted) = verify.admit(signed, record) else {
            heard.bad = heard.bad.saturating_add(1);
            return;
        };
        state.records.remove(&key.peer);
        let merge = topology.merge(now, admitted);
        match merge {
            Merge::New | Merge::Updated(_) => {
                self.on_merged(Some(link), key.peer);
                heard.merged.push((key.peer, merge));
            }
            Merge::Own { .. } => heard.merged.push((key.peer, merge)),
            Merge::Same | Merge::Stale | Merge::Refused(_) => self.counters.records_redundant += 1,
        }
    }
}

/// Sending.
impl Gossip {
    /// When [`Gossip::handle_timeout`] has something to do.
    pub fn next_deadline(&self) -> Time {
        if self.links.is_empty() { Time::NEVER } else { self.next_repair }
    }

    /// Begins the comparison with a neighbour when it is time.
    pub fn handle_timeout(&mut self, now: Time) {
        if now < self.next_repair {
            return;
        }
        // Drawn, so that peers started together do not stay in step.
        let late = self.rng.random_range(0..REPAIR_EVERY.as_millis() as u64 / 5);
        self.next_repair = now + REPAIR_EVERY.mul_f64(0.9) + Duration::from_millis(late);
        if self.links.is_empty() {
            return;
        }
        let drawn = self.rng.random_range(0..self.links.len());
        if let Some((link, state)) = self.links.iter_mut().nth(drawn) {
            state.digest = true;
            let link = *link;
            self.touch(link);
        }
    }

    /// The next message to send, and on which link. `None`: nothing to say, or no link takes it.
    pub fn poll(&mut self, topology: &Topology) -> Option<(LinkId, Control)> {
        loop {
            let after = self.ready.range(LinkId(self.served.0.saturating_add(1))..).next();
            let link = *after.or_else(|| self.ready.first())?;
            self.served = link;
            let message = self.links.get_mut(&link).and_then(|state| state.next_message(topology));
            self.touch(link);
            match message {
                Some(message) => {
                    self.count_sent(&message);
                    return Some((link, message));
                }
                None => {
                    self.ready.remove(&link);
                }
            }
        }
    }

    fn count_sent(&mut self, message: &Control) {
        if let Control::Records(records) = message {
            self.counters.records_sent += records.len() as u64;
            self.counters.record_bytes_sent += records.iter().map(|record| record.len() as u64).sum::<u64>();
        } else {
            self.counters.repair_messages_sent += 1;
        }
    }
}

/// Between two comparisons with a neighbour.
const REPAIR_EVERY: Duration = Duration::from_secs(10);
/// Origins whose keys are sent outright when a link comes up: 64 keys are shorter than the hashes of 256 buckets.
const SMALL_TABLE: usize = 64;
/// Checking a signature costs about this many times what decoding a known record costs.
const VERIFY_UNITS: usize = 32;
/// Bytes of records in one message: small enough that urgent ones do not wait behind a table.
const RECORDS_BYTES: usize = limits::MESSAGE_MAX_BYTES / 4;
