//! The snapshot for the frame path: when it is compiled, and from what.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use super::peers::refill;
use super::{Node, Output};
use crate::fib::{Fib, FibPeer, FibSession, OwnFlood, Owners, PeerSlot, STORM_BURST_FRAMES, STORM_RATE_FRAMES};
use crate::time::Time;

/// When to compile, and what stays from one snapshot to the next.
#[derive(Debug)]
pub(super) struct Publisher {
    epoch: u64,
    due: bool,
    /// It is for frames that go astray until then.
    urgent: bool,
    /// How many peers the last one had: a large one takes long.
    peers: usize,
    last: Option<Time>,
    /// Floods go over every link until then.
    flood_all_until: Option<Time>,
    pub own_flood: Arc<OwnFlood>,
    pub owners: Arc<Owners>,
    owed: Duration,
    /// Addresses in records, ascending, and the state of the table they are of.
    told: (Option<u64>, Vec<IpAddr>),
}

impl Publisher {
    pub fn new() -> Publisher {
        Publisher {
            epoch: 0,
            due: true,
            urgent: false,
            peers: 0,
            last: None,
            flood_all_until: None,
            own_flood: Arc::default(),
            owners: Arc::default(),
            owed: Duration::ZERO,
            told: (None, Vec::new()),
        }
    }

    /// Something in the snapshot changed.
    pub fn changed(&mut self) {
        self.due = true;
    }

    /// The way that frames take changed: what happens in a large mesh all the time waits, this does not.
    pub fn hurry(&mut self) {
        self.due = true;
        self.urgent = true;
    }

    pub fn is_due(&self) -> bool {
        self.due
    }

    /// The trees of peers may differ for a while.
    pub fn flood_everywhere(&mut self, now: Time) {
        self.due |= self.flood_all_until.is_none();
        self.flood_all_until = Some(now + FLOOD_ALL);
    }

    pub fn deadline(&self) -> Time {
        let more = PUBLISH_EVERY_PEER.saturating_mul(u32::try_from(self.peers).unwrap_or(u32::MAX));
        let every = if self.urgent { PUBLISH_EVERY } else { PUBLISH_EVERY.max(more) };
        let paced = self.last.map_or(Time::ZERO, |last| last + every);
        let due = if self.due { paced } else { Time::NEVER };
        due.min(self.flood_all_until.unwrap_or(Time::NEVER))
    }
}

impl Node {
    pub(super) fn publish_if_due(&mut self, now: Time) {
        if self.publisher.flood_all_until.is_some_and(|until| until <= now) {
            self.publisher.flood_all_until = None;
            self.publisher.due = true;
        }
        if self.publisher.due && now >= self.publisher.deadline() {
            self.publish(now);
        }
    }

    pub(super) fn publish(&mut self, now: Time) {
        self.publisher.due = false;
        self.publisher.urgent = false;
        self.publisher.peers = self.peers.len();
        self.publisher.last = Some(now);
        self.publisher.epoch += 1;
        self.compile_owners();
        self.note_told();
        let fib = self.compile();
        self.outputs.push_back(Output::Publish(Arc::new(fib)));
    }

    pub(super) fn compile(&self) -> Fib {
        let chosen = self.sessions.chosen();
        let to_slots = |peers: &[meshnet_proto::PeerId]| -> Vec<PeerSlot> {
            peers.iter().filter_map(|peer| self.peers.slot(peer)).collect()
        };
        let mut by_short = Vec::with_capacity(self.peers.len());
        let mut peers: Vec<Option<FibPeer>> = vec![None; self.peers.len()];
        // Peers and routes are both in order of id, which is that of short ids.
        let mut routes = self.routes.peers.iter().peekable();
        for (id, slot, peer) in self.peers.by_id() {
            by_short.push((id.short(), slot));
            while routes.next_if(|route| route.id < id).is_some() {}
            let route = routes.next_if(|route| route.id == id);
            let held = chosen.get(&slot);
            let session = held.map(|held| held.session.clone());
            let path = self.path_of(peer, route);
            let Some(place) = peers.get_mut(slot.0 as usize) else { continue };
            *place = Some(FibPeer {
                id,
                direct: peer.path.usable().filter(|_| session.is_some()),
                session,
                path,
                flood_on: route.map(|route| to_slots(&route.flood_on)).unwrap_or_default(),
                incarnation: peer.incarnation as u16,
                flood_window: peer.flood_window.clone(),
                storm: peer.storm.clone(),
                traffic: peer.traffic.clone(),
                datagram_max: self.datagram_max(peer, peer.path.address()),
                way_max: self.way_max(peer, &path),
                // As it is known when a snapshot is made: it seldom changes, and others are made all the time.
                overlay_mtu: self.topology.entry(&id).map_or(u16::MAX, |entry| entry.record().mtu),
                settled: self.size_settled(peer, peer.path.address()),
                way_settled: self.way_settled(peer, &path),
                fragments: held.is_some_and(|held| held.fragments),
                spread: peer.ports.pass(peer.path.usable()),
            });
        }
        let is_neighbour = |peer: &Option<FibPeer>| peer.as_ref().is_some_and(|peer| peer.direct.is_some());
        let neighbours: Vec<PeerSlot> =
            self.peers.iter().zip(&peers).filter(|(_, peer)| is_neighbour(peer)).map(|((slot, _), _)| slot).collect();
        let mut sessions: Vec<Option<FibSession>> = Vec::new();
        for held in self.sessions.iter() {
            let at = (held.session.local_index & 0xffff) as usize;
            sessions.resize_with(sessions.len().max(at + 1), || None);
            if let Some(place) = sessions.get_mut(at) {
                *place = Some(FibSession { slot: held.slot, session: held.session.clone() });
            }
        }
        Fib {
            epoch: self.publisher.epoch,
            me: self.me.short(),
            incarnation: self.origin.version().incarnation as u16,
            peers,
            by_short,
            sessions,
            flood_out: to_slots(&self.routes.flood_out),
            // Between two peers there is one way.
            flood_all: self.publisher.flood_all_until.is_some() && self.peers.len() > 1,
            neighbours,
            underlay: self.underlay(),
            underlay_port: self.config.port,
            own_flood: self.publisher.own_flood.clone(),
            owners: self.publisher.owners.clone(),
            fast: self.fast_peers(),
        }
    }

    /// By records, which are many and seldom change, and by what is known here.
    fn underlay(&self) -> Vec<IpAddr> {
        let mut all = self.publisher.told.1.clone();
        let paths = self.peers.active.iter().filter_map(|slot| self.underlay_of(self.peers.get(*slot)?));
        for address in self.addresses.iter().copied().chain(paths).map(|address| address.ip()) {
            if let Err(at) = all.binary_search(&address) {
                all.insert(at, address);
            }
        }
        all
    }

    fn note_told(&mut self) {
        let revision = Some(self.topology.addresses());
        if self.publisher.told.0 != revision {
            let told = self.topology.entries().flat_map(|(_, entry)| &entry.record().endpoints);
            let told: BTreeSet<IpAddr> = told.map(|address| address.ip()).collect();
            self.publisher.told = (revision, told.into_iter().collect());
        }
    }

    pub(super) fn refill_budgets(&mut self, elapsed: Duration) {
        self.publisher.owed = (self.publisher.owed + elapsed).min(REFILL_MOST);
        let tokens = self.publisher.owed.as_millis() as i64 * STORM_RATE_FRAMES / 1000;
        if tokens == 0 {
            return;
        }
        self.publisher.owed = Duration::ZERO;
        refill(&self.publisher.own_flood.storm, tokens, STORM_BURST_FRAMES);
        self.peers.refill_storm(tokens, STORM_BURST_FRAMES);
        if self.publisher.own_flood.exceeded.swap(false, Relaxed) {
            self.notes.on_storm();
        }
    }
}

/// How long trees may differ: a record crosses any mesh in less than a second, and routes follow within another.
const FLOOD_ALL: Duration = Duration::from_secs(2);
/// Snapshots are at most this frequent, but for those that a message waits for.
const PUBLISH_EVERY: Duration = Duration::from_millis(20);
/// For each peer, while nothing is urgent: compiling a thousand peers takes a good part of a millisecond, and stays under 1 % of a core.
const PUBLISH_EVERY_PEER: Duration = Duration::from_micros(200);
/// Time that a late tick may make good.
const REFILL_MOST: Duration = Duration::from_secs(2);
