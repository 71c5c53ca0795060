//! What this peer gave out: address by address, to whom; which of its own addresses is next.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use meshnet_proto::wire::ipam::Span;

use super::LeaseLine;
use crate::time::Time;

/// One address given out.
#[derive(Debug, Clone, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub(super) struct Lease {
    pub owner: String,
    pub subnet: Span,
    pub unconfirmed: bool,
}

/// The table.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub(super) struct Leases {
    by_address: BTreeMap<u32, Lease>,
    by_owner: BTreeMap<String, BTreeSet<u32>>,
    dirty: BTreeSet<u32>,
    /// Freed a moment ago, oldest first: used when there is nothing else.
    resting: VecDeque<(u32, Time)>,
    /// Somebody on the bridge answered for these: until then.
    taken: BTreeMap<u32, Time>,
    /// Nobody answered for these, as of then.
    fresh: BTreeMap<u32, Time>,
    /// Asked on the bridge just now.
    probing: BTreeSet<u32>,
    /// Where the search goes on.
    next: u32,
}

impl Leases {
    /// From what was kept.
    pub fn restore(by_address: BTreeMap<u32, Lease>) -> Leases {
        let mut by_owner: BTreeMap<String, BTreeSet<u32>> = BTreeMap::new();
        for (address, lease) in &by_address {
            by_owner.entry(lease.owner.clone()).or_default().insert(*address);
        }
        Leases { by_address, by_owner, ..Leases::default() }
    }

    pub fn len(&self) -> usize {
        self.by_address.len()
    }

    pub fn get(&self, address: u32) -> Option<&Lease> {
        self.by_address.get(&address)
    }

    /// The address that an owner has out of a subnet.
    pub fn of_owner(&self, owner: &str, within: Span) -> Option<(u32, Span)> {
        let addresses = self.by_owner.get(owner)?;
        let leases = addresses.iter().filter_map(|address| Some((*address, self.get(*address)?.subnet)));
        leases.into_iter().find(|(address, subnet)| *subnet == within || within.contains(*address))
    }

    pub fn addresses_of(&self, owner: &str) -> Vec<u32> {
        self.by_owner.get(owner).into_iter().flatten().copied().collect()
    }

    pub fn iter(&self) -> impl Iterator<Item = (u32, &Lease)> {
        self.by_address.iter().map(|(address, lease)| (*address, lease))
    }

    /// Leases within a span.
    pub fn within(&self, span: Span) -> impl Iterator<Item = u32> {
        let last = u32::try_from(span.end() - 1).unwrap_or(u32::MAX);
        self.by_address.range(span.first..=last).map(|(address, _)| *address)
    }

    pub fn lines(&self, addresses: impl Iterator<Item = u32>) -> Vec<LeaseLine> {
        let line = |address| {
            let Lease { owner, subnet, unconfirmed } = self.get(address)?.clone();
            Some(LeaseLine { owner, address, subnet, unconfirmed })
        };
        addresses.filter_map(line).collect()
    }

    pub fn insert(&mut self, address: u32, lease: Lease) {
        self.by_owner.entry(lease.owner.clone()).or_default().insert(address);
        self.by_address.insert(address, lease);
        self.dirty.insert(address);
        self.fresh.remove(&address);
        self.resting.retain(|(other, _)| *other != address);
        self.next = address.wrapping_add(1);
    }

    pub fn set_unconfirmed(&mut self, address: u32, unconfirmed: bool) {
        if let Some(lease) = self.by_address.get_mut(&address)
            && lease.unconfirmed != unconfirmed
        {
            lease.unconfirmed = unconfirmed;
            self.dirty.insert(address);
        }
    }

    /// Takes an address back; it rests until then.
    pub fn remove(&mut self, address: u32, rest: Option<Time>) -> Option<Lease> {
        let lease = self.by_address.remove(&address)?;
        if let Some(addresses) = self.by_owner.get_mut(&lease.owner) {
            addresses.remove(&address);
            if addresses.is_empty() {
                self.by_owner.remove(&lease.owner);
            }
        }
        self.dirty.insert(address);
        if let Some(until) = rest {
            self.resting.push_back((address, until));
            // The oldest may as well be used.
            self.resting.drain(..self.resting.len().saturating_sub(RESTING_MAX));
        }
        Some(lease)
    }

    pub fn take_dirty(&mut self) -> Vec<(u32, Option<Lease>)> {
        let dirty = std::mem::take(&mut self.dirty);
        dirty.into_iter().map(|address| (address, self.get(address).cloned())).collect()
    }

    fn resting(&self, now: Time) -> BTreeSet<u32> {
        self.resting.iter().filter(|(_, until)| *until > now).map(|(address, _)| *address).collect()
    }

    fn is_taken(&self, address: u32, now: Time) -> bool {
        self.taken.get(&address).is_some_and(|until| *until > now)
    }

    /// The next address to give out among `spans` (own, usable, ascending): from where the last search ended, then from the start; one that rests only when
    /// there is no other. `accept` says which may be.
    pub fn pick(&self, now: Time, spans: &[Span], accept: impl Fn(u32) -> bool) -> Option<u32> {
        let resting = self.resting(now);
        let usable =
            |address: &u32| !self.by_address.contains_key(address) && !self.is_taken(*address, now) && accept(*address);
        let from = |start: u32| {
            spans.iter().flat_map(move |span| {
                let first = u64::from(span.first).max(u64::from(start));
                (first..span.end()).map(|address| address as u32)
            })
        };
        let rested = |address: &u32| usable(address) && !resting.contains(address);
        from(self.next).find(rested).or_else(|| from(0).find(rested)).or_else(|| {
            let in_spans = |address: &u32| spans.iter().any(|span| span.contains(*address));
            self.resting.iter().map(|(address, _)| *address).find(|address| in_spans(address) && usable(address))
        })
    }

    /// Nobody answered for this address lately.
    pub fn is_fresh(&self, address: u32, now: Time) -> bool {
        self.fresh.get(&address).is_some_and(|at| now.since(*at) < FRESH_FOR)
    }

    /// Addresses to ask for on the bridge, so that some are at hand.
    pub fn begin_probe(&mut self, now: Time, spans: &[Span], accept: impl Fn(u32) -> bool) -> Vec<u32> {
        self.fresh.retain(|_, at| now.since(*at) < FRESH_FOR);
        let mut some: BTreeSet<u32> = BTreeSet::new();
        while some.len() < PROBED_AT_ONCE {
            let wanted = |address: u32| {
                accept(address)
                    && !some.contains(&address)
                    && !self.probing.contains(&address)
                    && !self.fresh.contains_key(&address)
            };
            let Some(address) = self.pick(now, spans, wanted) else { break };
            some.insert(address);
        }
        self.probing.extend(some.iter());
        some.into_iter().collect()
    }

    pub fn is_probing(&self) -> bool {
        !self.probing.is_empty()
    }

    /// How many are at hand among these spans.
    pub fn fresh_within(&self, now: Time, spans: &[Span]) -> usize {
        let here = |address: &u32| spans.iter().any(|span| span.contains(*address)) && self.is_fresh(*address, now);
        self.fresh.keys().filter(|address| here(address)).count()
    }

    /// What came of asking. Gives those that turned out to be in use.
    pub fn on_probed(&mut self, now: Time, addresses: &[u32], taken: &[u32]) -> Vec<u32> {
        let mut strangers = Vec::new();
        for address in addresses.iter().filter(|address| self.probing.remove(address)) {
            if taken.contains(address) {
                self.taken.insert(*address, now + TAKEN_FOR);
                strangers.push(*address);
            } else {
                self.fresh.insert(*address, now);
            }
        }
        self.taken.retain(|_, until| *until > now);
        strangers
    }

    /// Addresses that somebody on the bridge has without having been given them.
    pub fn taken(&self) -> Vec<u32> {
        self.taken.keys().copied().collect()
    }

    /// Probes that nobody will answer any more.
    pub fn forget_probes(&mut self) {
        self.probing.clear();
    }
}

/// Addresses asked for at once: a probe takes 0.1 s, and a burst of containers is some dozen.
const PROBED_AT_ONCE: usize = 64;
/// An address that was silent may be used this long without being asked for again.
const FRESH_FOR: Duration = Duration::from_secs(600);
/// An address that somebody answered for is asked for again after this.
const TAKEN_FOR: Duration = Duration::from_secs(600);
/// Freed addresses that rest at once.
const RESTING_MAX: usize = 65_536;
