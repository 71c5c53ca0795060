//! What is on disk, and the order of disk and wire.
//!
//! ```text
//! step: changes ──▶ unwritten ──▶ Keep(seq) ──▶ Kept(seq) ──▶ everything said in that step, and in those before
//! ```
//! One write is under way at a time; what changes meanwhile goes into the next one together. A write that fails is repeated with everything since.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use meshnet_proto::wire::ipam::{Ballot, Genesis, Standing};
use meshnet_proto::{ShortId, codec};
use serde::de::DeserializeOwned;

use super::joining::Guests;
use super::lease::{Lease, Leases};
use super::map::{Held, Map};
use super::members::Members;
use super::reclaim::Promises;
use super::{Ipam, Output, Refusal, View, Write};
use crate::node::Level;
use crate::time::Time;

/// What was kept cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the entry '{key}' cannot be read: {why}")]
pub struct KeptError {
    /// Which entry.
    pub key: String,
    /// Why.
    pub why: String,
}

/// Writes and what waits for them.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub(super) struct Keeping {
    /// Not yet in a write under way.
    unwritten: BTreeMap<Vec<u8>, Option<Vec<u8>>>,
    /// The last write given out.
    seq: u64,
    in_flight: Option<Vec<Write>>,
    kept: u64,
    failure: Option<String>,
    retry_at: Option<Time>,
    /// Said in this step.
    said: Vec<Output>,
    /// In order, each with the write that it relies on.
    held: VecDeque<(u64, Output)>,
    /// To be given out at once.
    ready: VecDeque<Output>,
}

impl Keeping {
    pub fn push(&mut self, output: Output) {
        self.said.push(output);
    }

    pub fn poll(&mut self) -> Option<Output> {
        if let Some(output) = self.ready.pop_front() {
            return Some(output);
        }
        let (seq, _) = self.held.front()?;
        if *seq > self.kept { None } else { self.held.pop_front().map(|(_, output)| output) }
    }

    pub fn failure(&self) -> Option<&str> {
        self.failure.as_deref()
    }

    pub fn deadline(&self) -> Time {
        self.retry_at.unwrap_or(Time::NEVER)
    }

    pub fn is_holding(&self) -> bool {
        self.in_flight.is_some() || !self.held.is_empty()
    }

    fn write(&mut self, key: Vec<u8>, value: Option<Vec<u8>>) {
        self.unwritten.insert(key, value);
    }

    /// The end of a step.
    fn seal(&mut self, keep_first: bool) {
        if self.in_flight.is_none() && !self.unwritten.is_empty() && self.retry_at.is_none() {
            self.begin();
        }
        let relies_on = match (&self.in_flight, self.unwritten.is_empty()) {
            _ if !keep_first => 0,
            (_, false) => self.seq + 1,
            (Some(_), true) => self.seq,
            (None, true) => 0,
        };
        let said = std::mem::take(&mut self.said);
        self.held.extend(said.into_iter().map(|output| (relies_on, output)));
    }

    fn begin(&mut self) {
        self.seq += 1;
        let writes = std::mem::take(&mut self.unwritten);
        let writes: Vec<Write> = writes.into_iter().map(|(key, value)| Write { key, value }).collect();
        self.in_flight = Some(writes.clone());
        self.ready.push_back(Output::Keep { seq: self.seq, writes });
    }

    fn on_kept(&mut self, now: Time, seq: u64, result: Result<(), String>) -> bool {
        if seq != self.seq {
            return false;
        }
        let Some(writes) = self.in_flight.take() else { return false };
        match result {
            Ok(()) => {
                self.kept = seq;
                self.failure = None;
            }
            Err(why) => {
                // What was said relies on the next write; the newest value of each key stands.
                for write in writes {
                    self.unwritten.entry(write.key).or_insert(write.value);
                }
                for (relies_on, output) in &mut self.held {
                    *relies_on = seq + 1;
                    // Who asked is told now. What was done stands: asking again gives the same.
                    if let Output::Reply { token, .. } = output {
                        let refusal = Refusal::Later(format!("nothing is given out, for it cannot be written: {why}"));
                        self.ready.push_back(Output::Reply { token: *token, result: Err(refusal) });
                    }
                }
                self.held.retain(|(_, output)| !matches!(output, Output::Reply { .. }));
                self.retry_at = Some(now + AFTER_FAILURE);
                self.failure = Some(why);
            }
        }
        true
    }
}

impl Ipam {
    pub(super) fn on_kept(&mut self, now: Time, seq: u64, result: Result<(), String>) {
        if let Err(why) = &result
            && self.keeping.failure.is_none()
        {
            self.event(Level::Warn, "addresses cannot be kept: none is given out until they can", why.clone());
        }
        self.keeping.on_kept(now, seq, result);
    }

    /// Writes anew what could not be written.
    pub(super) fn keep_again(&mut self, now: Time) {
        if self.keeping.retry_at.is_some_and(|at| at <= now) {
            self.keeping.retry_at = None;
        }
    }

    /// The end of a step: what changed is written, told and shown.
    pub(super) fn settle(&mut self, now: Time, view: &View) {
        self.after_members_changed(now);
        let owners = self.collect_writes();
        self.spread();
        if owners {
            self.keeping.push(Output::Owners);
        }
        // After the owners: the frame path answers a probe of what it takes for another's.
        self.probe_ahead(now);
        self.tell(now, view);
        self.keeping.seal(self.rules.keep_first());
    }

    /// Gives whether owners changed.
    fn collect_writes(&mut self) -> bool {
        let runs = self.map.take_dirty();
        let owners = !runs.is_empty();
        for (first, held) in runs {
            self.keeping.write(key(RUN, &first.to_be_bytes()), held.and_then(|held| encode(&held)));
        }
        for (peer, standing) in self.members.take_dirty() {
            self.keeping.write(key(MEMBER, &peer.0.to_be_bytes()), standing.and_then(|standing| encode(&standing)));
        }
        for (peer, ballot) in self.promises.take_dirty() {
            self.keeping.write(key(PROMISE, &peer.0.to_be_bytes()), ballot.and_then(|ballot| encode(&ballot)));
        }
        for (address, lease) in self.leases.take_dirty() {
            self.keeping.write(key(LEASE, &address.to_be_bytes()), lease.and_then(|lease| encode(&lease)));
        }
        owners
    }

    pub(super) fn keep_genesis(&mut self) {
        self.keeping.write(key(GENESIS, &[]), self.genesis.as_ref().and_then(encode));
        self.keeping.write(key(LEFT, &[]), encode(&self.left));
    }

    pub(super) fn keep_round(&mut self, round: u32) {
        self.promises.set_round(round);
        self.keeping.write(key(ROUND, &[]), encode(&round));
    }

    pub(super) fn keep_candidacy(&mut self) {
        let kept = self.candidacy.as_ref().and_then(|candidacy| encode(&candidacy.kept()));
        self.keeping.write(key(CANDIDACY, &[]), kept);
    }

    pub(super) fn keep_choice(&mut self) {
        self.keeping.write(key(CHOICE, &[]), encode(&self.joining.choice));
    }

    pub(super) fn keep_released(&mut self, joiner: ShortId, attempt: u32) {
        self.keeping.write(key(RELEASED, &joiner.0.to_be_bytes()), encode(&attempt));
    }

    pub(super) fn forget_released(&mut self, joiner: ShortId) {
        self.keeping.write(key(RELEASED, &joiner.0.to_be_bytes()), None);
    }

    pub(super) fn keep_vote(&mut self) {
        self.keeping.write(key(VOTE, &[]), encode(&self.vote));
    }

    /// Reads what was kept.
    pub(super) fn restore(&mut self, kept: &[(Vec<u8>, Vec<u8>)]) -> Result<(), KeptError> {
        let mut runs: BTreeMap<u32, Held> = BTreeMap::new();
        let mut members: BTreeMap<ShortId, Standing> = BTreeMap::new();
        let mut promises: BTreeMap<ShortId, Ballot> = BTreeMap::new();
        let mut leases: BTreeMap<u32, Lease> = BTreeMap::new();
        let mut released: BTreeMap<ShortId, u32> = BTreeMap::new();
        let mut round = 0;
        for (key, value) in kept {
            let Some((kind, rest)) = key.split_first() else { continue };
            match *kind {
                GENESIS => self.genesis = Some(decode::<Genesis>(key, value)?),
                LEFT => self.left = decode::<BTreeSet<[u8; 16]>>(key, value)?,
                RUN => drop(runs.insert(address(key, rest)?, decode(key, value)?)),
                MEMBER => drop(members.insert(peer(key, rest)?, decode(key, value)?)),
                PROMISE => drop(promises.insert(peer(key, rest)?, decode(key, value)?)),
                LEASE => drop(leases.insert(address(key, rest)?, decode(key, value)?)),
                CANDIDACY => self.restore_candidacy(decode(key, value)?),
                ROUND => round = decode(key, value)?,
                VOTE => self.vote = decode(key, value)?,
                CHOICE => self.joining.choice = decode(key, value)?,
                RELEASED => drop(released.insert(peer(key, rest)?, decode(key, value)?)),
                // Of a newer version, which had its reasons.
                _ => return Err(KeptError { key: show(key), why: "a newer version wrote it".into() }),
            }
        }
        let mut end = 0;
        for (first, held) in &runs {
            if held.len == 0 || u64::from(*first) < end {
                return Err(KeptError { key: format!("r {first}"), why: "runs of addresses overlap".into() });
            }
            end = u64::from(*first) + u64::from(held.len);
        }
        if let Some(genesis) = self.genesis
            && genesis.range != self.config.range
        {
            return Err(KeptError {
                key: "g".into(),
                why: format!(
                    "the address space was begun with another --ipam-range ({}): give that one",
                    super::requests::cidr(genesis.range)
                ),
            });
        }
        self.map = Map::restore(runs);
        self.members = Members::restore(members);
        self.promises = Promises::restore(promises, round);
        self.leases = Leases::restore(leases);
        self.guests = Guests::restore(released);
        Ok(())
    }
}

fn key(kind: u8, rest: &[u8]) -> Vec<u8> {
    [&[kind], rest].concat()
}

fn encode<T: serde::Serialize>(value: &T) -> Option<Vec<u8>> {
    codec::encode(value).ok()
}

fn decode<T: DeserializeOwned>(key: &[u8], value: &[u8]) -> Result<T, KeptError> {
    codec::decode(value).map_err(|error| KeptError { key: show(key), why: error.to_string() })
}

fn address(key: &[u8], rest: &[u8]) -> Result<u32, KeptError> {
    let wrong = || KeptError { key: show(key), why: "not an address".into() };
    rest.try_into().map(u32::from_be_bytes).map_err(|_| wrong())
}

fn peer(key: &[u8], rest: &[u8]) -> Result<ShortId, KeptError> {
    let wrong = || KeptError { key: show(key), why: "not a peer".into() };
    rest.try_into().map(|bytes| ShortId(u64::from_be_bytes(bytes))).map_err(|_| wrong())
}

fn show(key: &[u8]) -> String {
    String::from_utf8_lossy(key).escape_debug().to_string()
}

const GENESIS: u8 = b'g';
const LEFT: u8 = b'o';
const RUN: u8 = b'r';
const MEMBER: u8 = b'm';
const PROMISE: u8 = b'p';
const CANDIDACY: u8 = b'c';
const ROUND: u8 = b'b';
const VOTE: u8 = b'v';
const LEASE: u8 = b'l';
const CHOICE: u8 = b's';
const RELEASED: u8 = b't';
/// A full disk may have room again.
const AFTER_FAILURE: Duration = Duration::from_secs(1);
