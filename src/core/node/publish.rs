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
    last: Option<Time>,
    /// Floods go over every link until then.
    flood_all_until: Option<Time>,
    pub own_flood: Arc<OwnFlood>,
    pub owners: Arc<Owners>,
    owed: Duration,
}

impl Publisher {
    pub fn new() -> Publisher {
        Publisher {
            epoch: 0,
            due: true,
            last: None,
            flood_all_until: None,
            own_flood: Arc::default(),
            owners: Arc::default(),
            owed: Duration::ZERO,
        }
    }

    /// Something in the snapshot changed.
    pub fn changed(&mut self) {
        self.due = true;
    }

    pub fn is_due(&self) -> bool {
        self.due
    }

    /// The trees of peers may differ for a while.
    pub fn flood_everywhere(&mut self, now: Time) {
        self.flood_all_until = Some(now + FLOOD_ALL);
        self.due = true;
    }

    pub fn deadline(&self) -> Time {
        let paced = self.last.map_or(Time::ZERO, |last| last + PUBLISH_EVERY);
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
        self.publisher.last = Some(now);
        self.publisher.epoch += 1;
        self.compile_owners();
        let fib = self.compile();
        self.outputs.push_back(Output::Publish(Arc::new(fib)));
    }

    pub(super) fn compile(&self) -> Fib {
        let chosen = self.sessions.chosen();
        let to_slots = |peers: &[meshnet_proto::PeerId]| -> Vec<PeerSlot> {
            peers.iter().filter_map(|peer| self.peers.slot(peer)).collect()
        };
        let mut by_short: Vec<_> =
            self.peers.iter().filter(|(_, peer)| !peer.released).map(|(slot, peer)| (peer.id.short(), slot)).collect();
        by_short.sort_unstable();
        let peers: Vec<Option<FibPeer>> = self
            .peers
            .iter()
            .map(|(slot, peer)| {
                if peer.released {
                    return None;
                }
                let session = chosen.get(&slot).map(|held| held.session.clone());
                let flood_on = self.routes.get(&peer.id).map(|route| to_slots(&route.flood_on)).unwrap_or_default();
                Some(FibPeer {
                    id: peer.id,
                    direct: peer.path.usable().filter(|_| session.is_some()),
                    session,
                    path: self.path_to(slot),
                    flood_on,
                    incarnation: peer.incarnation as u16,
                    flood_window: peer.flood_window.clone(),
                    storm: peer.storm.clone(),
                    traffic: peer.traffic.clone(),
                    datagram_max: usize::from(self.config.mtu) + DATAGRAM_OVER_MTU,
                })
            })
            .collect();
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
        }
    }

    fn underlay(&self) -> Vec<IpAddr> {
        let mut all: BTreeSet<IpAddr> = self.addresses.iter().map(|address| address.ip()).collect();
        all.extend(self.topology.entries().flat_map(|(_, entry)| entry.record().endpoints.iter().map(|e| e.ip())));
        all.extend(self.peers.iter().filter_map(|(_, peer)| peer.path.address()).map(|address| address.ip()));
        all.into_iter().collect()
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
/// A sealed datagram on the direct path may be longer than the overlay's MTU by this: 190 bytes of all headers, less IPv6 and UDP.
const DATAGRAM_OVER_MTU: usize = 142;
/// Time that a late tick may make good.
const REFILL_MOST: Duration = Duration::from_secs(2);
