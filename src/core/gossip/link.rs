//! One link as gossip sees it: what is still to be said on it, and how much its other end may make us work.

use std::collections::BTreeSet;
use std::time::Duration;

use meshnet_proto::PeerId;
use meshnet_proto::limits;
use meshnet_proto::wire::control::Control;

use super::{RECORDS_BYTES, VERIFY_UNITS};
use crate::time::Time;
use crate::topology::Topology;

/// Each set is bounded by the table or by the number of buckets.
#[derive(Debug)]
pub(super) struct GossipLink {
    pub(super) writable: bool,
    /// Origins whose newest record is to be sent.
    pub(super) records: BTreeSet<PeerId>,
    /// The hash of the table is to be sent.
    pub(super) digest: bool,
    /// The hashes of the buckets are to be sent.
    pub(super) buckets: bool,
    /// Buckets whose keys are to be sent.
    pub(super) keys: BTreeSet<u8>,
    /// Origins whose record is to be asked for.
    pub(super) wants: BTreeSet<PeerId>,
    units: usize,
    refilled: Time,
    exceeded: Option<Time>,
}

impl GossipLink {
    pub(super) fn new(now: Time) -> GossipLink {
        GossipLink {
            writable: true,
            records: BTreeSet::new(),
            digest: false,
            buckets: false,
            keys: BTreeSet::new(),
            wants: BTreeSet::new(),
            units: UNITS_BURST,
            refilled: now,
            exceeded: None,
        }
    }

    pub(super) fn has_work(&self) -> bool {
        self.digest || self.buckets || !(self.records.is_empty() && self.keys.is_empty() && self.wants.is_empty())
    }

    pub(super) fn refill(&mut self, now: Time) {
        let earned = now.since(self.refilled).as_millis().saturating_mul(UNITS_PER_MS);
        if earned > 0 {
            self.units = self.units.saturating_add(usize::try_from(earned).unwrap_or(usize::MAX)).min(UNITS_BURST);
            self.refilled = now;
        }
    }

    /// Takes units of work from the neighbour's share; false when they are used up.
    pub(super) fn spend(&mut self, now: Time, units: usize) -> bool {
        match self.units.checked_sub(units) {
            Some(rest) => {
                self.units = rest;
                true
            }
            None => {
                self.exceeded = Some(now);
                false
            }
        }
    }

    /// Records that the neighbour's share pays for: asking for more would only make it send what is then thrown away.
    pub(super) fn affordable(&self) -> usize {
        self.units / (VERIFY_UNITS + 1)
    }

    pub(super) fn penalised(&self, now: Time) -> bool {
        self.exceeded.is_some_and(|at| now < at + PENALISED)
    }

    /// The next message, made from the table as it is now.
    pub(super) fn next_message(&mut self, topology: &Topology) -> Option<Control> {
        if let Some(message) = self.next_records(topology) {
            return Some(message);
        }
        if std::mem::take(&mut self.digest) {
            return Some(Control::Digest(topology.digest().root()));
        }
        if std::mem::take(&mut self.buckets) {
            return Some(Control::Buckets(topology.digest().buckets().to_vec()));
        }
        if !self.keys.is_empty() {
            return Some(self.next_keys(topology));
        }
        let wants: Vec<PeerId> = std::mem::take(&mut self.wants).into_iter().take(limits::PEERS_MAX).collect();
        (!wants.is_empty()).then_some(Control::Want(wants))
    }

    fn next_records(&mut self, topology: &Topology) -> Option<Control> {
        let mut records = Vec::new();
        let mut bytes = 0;
        while let Some(peer) = self.records.first().copied() {
            if let Some(entry) = topology.entry(&peer) {
                let record = entry.admitted.signed.emit();
                if !records.is_empty()
                    && (bytes + record.len() > RECORDS_BYTES || records.len() >= limits::RECORDS_PER_MESSAGE_MAX)
                {
                    break;
                }
                bytes += record.len();
                records.push(record);
            }
            self.records.remove(&peer);
        }
        (!records.is_empty()).then_some(Control::Records(records))
    }

    fn next_keys(&mut self, topology: &Topology) -> Control {
        let (mut buckets, mut keys) = (Vec::new(), Vec::new());
        while let Some(bucket) = self.keys.pop_first() {
            keys.extend(topology.keys_in(&BTreeSet::from([bucket])));
            buckets.push(bucket);
            if keys.len() >= KEYS_ENOUGH {
                break;
            }
        }
        keys.truncate(KEYS_MAX);
        Control::Keys { buckets, keys }
    }
}

/// Keys after which a message is closed: whole buckets, so that a missing key means a missing record.
const KEYS_ENOUGH: usize = 2_048;
/// Keys of at most 34 bytes that surely fit a message. Only a forger of ids fills a bucket past it, and then some records are sent in vain.
const KEYS_MAX: usize = 7_000;
/// A neighbour's share: a thousand signatures checked a second are 5 % of a core.
const UNITS_PER_MS: u128 = VERIFY_UNITS as u128;
/// And at once: a table of 4,000 peers when it comes up.
const UNITS_BURST: usize = 4_000 * (VERIFY_UNITS + 1);
/// How long an excess is remembered.
const PENALISED: Duration = Duration::from_secs(10);
