//! The records of all peers: the newest of each origin, whose links make the graph.
//!
//! ```text
//! Admitted ── merge ──▶ New | Updated(what) ──▶ gossip tells the others, routes are computed anew
//!                 ├──▶ Same | Stale           (stop)
//!                 ├──▶ Own                    [`own::Originator`] jumps past it
//!                 └──▶ Refused                (counted)
//! reachable ──lost──▶ unreachable for 10 min ──▶ buried for 20 min: an equal or older copy does not bring it back
//! ```
//! Order of two records of one origin: the version, then (only a cloned identity makes equal ones) the bytes, so that merging is commutative,
//! associative and idempotent, and all peers that saw the same records hold the same table. A link counts when both ends say it (OSPF, RFC 2328 16.1).
//!
//! May use: `proto`, [`crate::identity`]. Deliberately lacks: who is told what ([`crate::gossip`]), paths ([`crate::route`]), checking signatures.

pub mod digest;
pub mod graph;
pub mod own;
#[cfg(test)]
pub(crate) mod tests;

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use meshnet_proto::wire::record::{Record, RecordKey, Version};
use meshnet_proto::{PeerId, ShortId, limits};

use crate::identity::Admitted;
use crate::time::Time;
pub use digest::{Digest, bucket_of};
pub use graph::Graph;

/// What this peer knows of one origin.
#[derive(Debug, Clone)]
pub struct Entry {
    /// Its newest record.
    pub admitted: Arc<Admitted>,
    /// When that came.
    pub since: Time,
    /// When the last path of two-way links to it was lost; none while there is one.
    pub unreachable_since: Option<Time>,
}

impl Entry {
    /// What it says.
    pub fn record(&self) -> &Record {
        &self.admitted.record
    }

    /// Whether two-way links lead to it.
    pub fn reachable(&self) -> bool {
        self.unreachable_since.is_none()
    }
}

/// What a record did to the table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Merge {
    /// An origin not known before.
    New,
    /// Newer than what was held.
    Updated(Changes),
    /// Older than what is held.
    Stale,
    /// What is held.
    Same,
    /// Someone else's copy of this peer's record, above what this peer says: originate past it.
    Own {
        /// Its version.
        version: Version,
        /// The nonce of the process that made it.
        instance: u64,
    },
    /// Not taken.
    Refused(Refused),
}

/// Why a record was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refused {
    /// The table is full.
    Full,
    /// Another peer has the same first 8 bytes of id.
    ShortId,
    /// It was dropped as unreachable and is no newer.
    Buried,
}

/// What differs between an origin's record and the one before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Changes {
    /// The other ends of its links.
    pub links: bool,
    /// Costs of links that stayed.
    pub costs: bool,
    /// Its name.
    pub name: bool,
    /// Its addresses.
    pub endpoints: bool,
    /// Flags or MTU.
    pub settings: bool,
    /// Extension fields.
    pub extensions: bool,
    /// It started anew.
    pub restarted: bool,
}

impl Changes {
    /// Whether the graph changed, so that floods should go over every link for a while.
    pub fn graph(&self) -> bool {
        self.links || self.restarted
    }
}

/// Records refused so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Refusals {
    /// The table was full.
    pub full: u64,
    /// Two peers with one short id.
    pub short_id: u64,
    /// Records of peers dropped before.
    pub buried: u64,
}

/// The table.
#[derive(Debug)]
pub struct Topology {
    me: PeerId,
    entries: BTreeMap<PeerId, Entry>,
    by_short: BTreeMap<ShortId, PeerId>,
    by_name: BTreeMap<String, BTreeSet<PeerId>>,
    /// By the first bytes of the record's signature: a copy of what is held is known by its bytes, without decoding it.
    by_mark: BTreeMap<u64, PeerId>,
    buried: BTreeMap<PeerId, (Version, Time)>,
    digest: Digest,
    revision: u64,
    costs: u64,
    addresses: u64,
    deadline: Time,
    refusals: Refusals,
}

impl Topology {
    /// An empty table of this peer.
    pub fn new(me: PeerId) -> Topology {
        Topology {
            me,
            entries: BTreeMap::new(),
            by_short: BTreeMap::new(),
            by_name: BTreeMap::new(),
            by_mark: BTreeMap::new(),
            buried: BTreeMap::new(),
            digest: Digest::default(),
            revision: 0,
            costs: 0,
            addresses: 0,
            deadline: Time::NEVER,
            refusals: Refusals::default(),
        }
    }

    /// This peer.
    pub fn me(&self) -> PeerId {
        self.me
    }

    /// What is known of `peer`.
    pub fn entry(&self, peer: &PeerId) -> Option<&Entry> {
        self.entries.get(peer)
    }

    /// All origins, this peer included once it has originated, by id.
    pub fn entries(&self) -> impl ExactSizeIterator<Item = (&PeerId, &Entry)> {
        self.entries.iter()
    }

    /// Number of origins.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether nothing is known.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The peer with this short id.
    pub fn by_short(&self, short: ShortId) -> Option<PeerId> {
        self.by_short.get(&short).copied()
    }

    /// Grows with each change of who links to whom, and of who relays.
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// Grows with each change of costs alone: routes still lead somewhere, and wait longer for being computed anew.
    pub fn costs(&self) -> u64 {
        self.costs
    }

    /// Grows with each change of who is to be reached where.
    pub fn addresses(&self) -> u64 {
        self.addresses
    }

    /// Records refused so far.
    pub fn refusals(&self) -> Refusals {
        self.refusals
    }

    /// Hashes over the table.
    pub fn digest(&self) -> &Digest {
        &self.digest
    }

    /// The version held of `peer`.
    pub fn version(&self, peer: &PeerId) -> Option<Version> {
        self.entries.get(peer).map(|entry| entry.record().version)
    }

    /// Whether a record of this version would surely be redundant: asked before its signature is checked, which costs a hundred times more.
    pub fn has(&self, key: &RecordKey) -> bool {
        self.version(&key.peer).is_some_and(|held| held > key.version) || self.is_buried(key)
    }

    /// The origin of a record that is held byte for byte, asked before it is decoded: of ten copies that reach a peer nine are.
    pub fn holds(&self, bytes: &[u8]) -> Option<PeerId> {
        let (signature, body) = bytes.split_first_chunk::<64>()?;
        let peer = self.by_mark.get(&mark(signature))?;
        let signed = &self.entries.get(peer)?.admitted.signed;
        (signed.signature == *signature && signed.body == body).then_some(*peer)
    }

    /// Takes in a record of another peer, or a copy of this peer's own that came from outside.
    pub fn merge(&mut self, now: Time, admitted: Arc<Admitted>) -> Merge {
        let held = self.entries.get(&admitted.id);
        if let Some(entry) = held {
            match order(&entry.admitted).cmp(&order(&admitted)) {
                Ordering::Equal => return Merge::Same,
                Ordering::Greater => return Merge::Stale,
                Ordering::Less => {}
            }
        }
        if admitted.id == self.me {
            return Merge::Own { version: admitted.record.version, instance: admitted.record.instance };
        }
        if held.is_none()
            && let Some(refused) = self.refuses(&admitted)
        {
            return Merge::Refused(refused);
        }
        self.put(now, admitted)
    }

    /// Puts in the record that this peer has just made.
    pub fn merge_own(&mut self, now: Time, admitted: Arc<Admitted>) -> Merge {
        debug_assert_eq!(admitted.id, self.me);
        self.put(now, admitted)
    }

    fn refuses(&mut self, admitted: &Admitted) -> Option<Refused> {
        if self.is_buried(&RecordKey { peer: admitted.id, version: admitted.record.version }) {
            self.refusals.buried += 1;
            return Some(Refused::Buried);
        }
        if self.entries.len() >= limits::PEERS_MAX {
            self.refusals.full += 1;
            return Some(Refused::Full);
        }
        let short = admitted.id.short();
        if short == self.me.short() || self.by_short.contains_key(&short) {
            self.refusals.short_id += 1;
            return Some(Refused::ShortId);
        }
        None
    }

    fn put(&mut self, now: Time, admitted: Arc<Admitted>) -> Merge {
        let id = admitted.id;
        let before = self.entries.get(&id).map(|entry| (entry.admitted.clone(), entry.unreachable_since));
        if let Some((old, _)) = &before {
            self.digest.toggle(RecordKey { peer: id, version: old.record.version });
            self.unname(&id, &old.record.name);
            self.by_mark.remove(&mark(&old.signed.signature));
        }
        self.by_mark.insert(mark(&admitted.signed.signature), id);
        self.digest.toggle(RecordKey { peer: id, version: admitted.record.version });
        self.by_name.entry(admitted.record.name.clone()).or_default().insert(id);
        self.by_short.insert(id.short(), id);
        if let Some((_, since)) = self.buried.remove(&id) {
            // One that was dropped lives: a partition healed. Those dropped with it live too, though their records need not be newer.
            self.buried.retain(|_, (_, other)| since.since(*other).max(other.since(since)) > SAME_PARTITION);
        }
        let merge = match &before {
            None => Merge::New,
            Some((old, _)) => Merge::Updated(changes(&old.record, &admitted.record)),
        };
        if !matches!(merge, Merge::Updated(Changes { endpoints: false, .. })) {
            self.addresses += 1;
        }
        match merge {
            Merge::Updated(changes) if !(changes.graph() || changes.settings) => self.costs += u64::from(changes.costs),
            _ => self.revision += 1,
        }
        // A new origin counts as unreachable until the graph is walked again.
        let unreachable_since = before.map_or((id != self.me).then_some(now), |(_, since)| since);
        if unreachable_since.is_some() {
            self.deadline = self.deadline.min(now + UNREACHABLE_KEPT);
        }
        self.entries.insert(id, Entry { admitted, since: now, unreachable_since });
        merge
    }

    fn unname(&mut self, id: &PeerId, name: &str) {
        if let Some(sharers) = self.by_name.get_mut(name) {
            sharers.remove(id);
            if sharers.is_empty() {
                self.by_name.remove(name);
            }
        }
    }

    /// Marks who is reachable in `graph`, which is this table's. To be called after each change of [`Topology::revision`], paced by [`crate::route::Pace`].
    pub fn reckon(&mut self, now: Time, graph: &Graph) -> Reckoned {
        let mut reckoned = Reckoned::default();
        let reachable = graph.component(&self.me);
        for (id, entry) in &mut self.entries {
            match (reachable.contains(id), entry.unreachable_since) {
                (true, Some(_)) => {
                    entry.unreachable_since = None;
                    reckoned.appeared.push(*id);
                }
                (false, None) if *id != self.me => {
                    entry.unreachable_since = Some(now);
                    self.deadline = self.deadline.min(now + UNREACHABLE_KEPT);
                    reckoned.vanished.push(*id);
                }
                _ => {}
            }
        }
        reckoned
    }

    /// Drops peers that were unreachable for 10 minutes, and forgets those dropped long ago. Gives the dropped.
    pub fn handle_timeout(&mut self, now: Time) -> Vec<PeerId> {
        if now < self.deadline {
            return Vec::new();
        }
        let expired = |entry: &Entry| entry.unreachable_since.is_some_and(|since| now >= since + UNREACHABLE_KEPT);
        let dropped: Vec<_> = self.entries.iter().filter(|(_, entry)| expired(entry)).map(|(id, _)| *id).collect();
        for id in &dropped {
            self.bury(now, id);
        }
        if !dropped.is_empty() {
            self.addresses += 1;
            self.revision += 1;
        }
        self.buried.retain(|_, (_, since)| now < *since + BURIED_KEPT);
        let expiries =
            self.entries.values().filter_map(|entry| entry.unreachable_since).map(|at| at + UNREACHABLE_KEPT);
        let forgotten = self.buried.values().map(|(_, since)| *since + BURIED_KEPT);
        self.deadline = expiries.chain(forgotten).min().unwrap_or(Time::NEVER);
        dropped
    }

    /// When [`Topology::handle_timeout`] may have something to do.
    pub fn next_deadline(&self) -> Time {
        self.deadline
    }

    fn bury(&mut self, now: Time, id: &PeerId) {
        let Some(entry) = self.entries.remove(id) else { return };
        let version = entry.record().version;
        self.digest.toggle(RecordKey { peer: *id, version });
        self.unname(id, &entry.record().name);
        self.by_mark.remove(&mark(&entry.admitted.signed.signature));
        self.by_short.remove(&id.short());
        if self.buried.len() >= limits::PEERS_MAX {
            self.buried.pop_first();
        }
        self.buried.insert(*id, (version, now));
    }

    fn is_buried(&self, key: &RecordKey) -> bool {
        self.buried.get(&key.peer).is_some_and(|(version, _)| *version >= key.version)
    }

    /// The graph of links that both ends say.
    pub fn graph(&self) -> Graph {
        Graph::of(self)
    }

    /// The name for people: with the start of the id when another live peer has the same one, and free of what could upset a terminal.
    pub fn display_name(&self, peer: &PeerId) -> String {
        let Some(entry) = self.entries.get(peer) else { return peer.brief() };
        let name = &entry.record().name;
        let live = |id: &&PeerId| *id != peer && self.entries.get(id).is_some_and(Entry::reachable);
        let shared = self.by_name.get(name).is_some_and(|sharers| sharers.iter().any(|id| live(&id)));
        let clean: String = name.chars().map(|c| if upsets(c) { '?' } else { c }).collect();
        match (clean.is_empty(), shared) {
            (true, _) => peer.brief(),
            (false, true) => format!("{clean}~{}", peer.to_string().get(..4).unwrap_or_default()),
            (false, false) => clean,
        }
    }

    /// All keys in these buckets, by id.
    pub fn keys_in(&self, buckets: &BTreeSet<u8>) -> Vec<RecordKey> {
        buckets.iter().flat_map(|bucket| self.bucket(*bucket)).map(|(peer, entry)| key(peer, entry)).collect()
    }

    fn bucket(&self, bucket: u8) -> impl Iterator<Item = (&PeerId, &Entry)> {
        let (low, high) = (u128::from(bucket) << 120, u128::from(bucket) << 120 | u128::MAX >> 8);
        self.entries.range(PeerId(low.to_be_bytes())..=PeerId(high.to_be_bytes()))
    }

    /// Compares the table with another's keys in `buckets`: whose records to send, and whose to ask for.
    pub fn newer_than(&self, buckets: &BTreeSet<u8>, keys: &[RecordKey]) -> Difference {
        let theirs: BTreeMap<PeerId, Version> = keys.iter().map(|key| (key.peer, key.version)).collect();
        let mut difference = Difference::default();
        for (peer, entry) in buckets.iter().flat_map(|bucket| self.bucket(*bucket)) {
            if theirs.get(peer).is_none_or(|version| *version < entry.record().version) {
                difference.send.push(*peer);
            }
        }
        for (peer, version) in &theirs {
            let key = RecordKey { peer: *peer, version: *version };
            if self.version(peer).is_none_or(|held| held < *version) && !self.is_buried(&key) {
                difference.want.push(*peer);
            }
        }
        difference
    }
}

/// What [`Topology::reckon`] found.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Reckoned {
    /// Peers that two-way links lead to now, and did not.
    pub appeared: Vec<PeerId>,
    /// Peers that they led to, and do not now.
    pub vanished: Vec<PeerId>,
}

/// What two tables lack of each other.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Difference {
    /// Held newer here.
    pub send: Vec<PeerId>,
    /// Held newer there.
    pub want: Vec<PeerId>,
}

/// Control characters, and those that are unseen or turn the direction of what follows: with them one peer could pass for another, or garble a table.
fn upsets(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{ad}' | '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
}

fn mark(signature: &[u8; 64]) -> u64 {
    signature.first_chunk().map(|bytes| u64::from_be_bytes(*bytes)).unwrap_or_default()
}

fn key(peer: &PeerId, entry: &Entry) -> RecordKey {
    RecordKey { peer: *peer, version: entry.record().version }
}

fn order(admitted: &Admitted) -> (Version, &[u8]) {
    (admitted.record.version, &admitted.signed.body)
}

fn changes(old: &Record, new: &Record) -> Changes {
    let ends = |record: &Record| record.links.iter().map(|link| link.peer).collect::<Vec<_>>();
    let links = old.links != new.links && ends(old) != ends(new);
    Changes {
        links,
        costs: old.links != new.links && !links,
        name: old.name != new.name,
        endpoints: old.endpoints != new.endpoints,
        settings: old.flags != new.flags || old.mtu != new.mtu,
        extensions: old.extensions != new.extensions,
        restarted: old.version.incarnation != new.version.incarnation || old.instance != new.instance,
    }
}

/// How long a peer that nothing leads to is remembered: a reboot or a switch replaced. Its addresses live on in IPAM, whatever happens here.
pub const UNREACHABLE_KEPT: Duration = Duration::from_secs(600);
/// Peers dropped within this time of each other were lost by the same cut.
const SAME_PARTITION: Duration = Duration::from_secs(60);
/// How long a dropped peer's old record is kept out: until all others have surely dropped it too, or it would be handed round for ever.
pub const BURIED_KEPT: Duration = Duration::from_secs(1200);
