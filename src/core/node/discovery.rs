//! Whom a node wants links to: targets by flag and by command, peers known from before, peers that others tell of. And what is kept of that.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use meshnet_proto::PeerId;
use meshnet_proto::api;
use meshnet_proto::wire::control::CloseReason;
use rand::Rng;

use super::paths::{RELAYED_IDLE, SMALL_MESH};
use super::{Config, LinkId, Node, Output, PORT, Saved};
use crate::peer::link::Phase;
use crate::peer::targets::{Ask, Errand};
use crate::route::select_neighbours;
use crate::time::Time;

/// What is wanted, and known from before.
#[derive(Debug)]
pub(super) struct Discovery {
    /// By flag, environment or file, normal form.
    configured: BTreeSet<String>,
    /// By `connect`.
    connected: BTreeSet<String>,
    /// By [`Node::list`]: as long as whoever lists them does.
    listed: BTreeSet<String>,
    /// Configured ones that `forget` switched off.
    forgotten: BTreeSet<String>,
    /// Peers met, where, and when last.
    known: BTreeMap<PeerId, Known>,
    saved: Saved,
    dirty: bool,
    persisted: Option<Time>,
    next_seek: Time,
    /// The unreachable peer that is tried in a large mesh.
    stray: Option<PeerId>,
    next_stray: Time,
    next_prune: Time,
}

#[derive(Debug, Clone)]
struct Known {
    addresses: Vec<SocketAddr>,
    met: Time,
}

impl Discovery {
    pub fn new(config: &Config) -> Discovery {
        let normal = |targets: &[String]| targets.iter().filter_map(|target| target_address(target).ok()).collect();
        let known = config.saved.known.iter().take(KNOWN_MAX);
        Discovery {
            configured: normal(&config.targets),
            connected: normal(&config.saved.targets),
            listed: BTreeSet::new(),
            forgotten: normal(&config.saved.forgotten),
            known: known
                .map(|(id, addresses)| (*id, Known { addresses: addresses.clone(), met: Time::ZERO }))
                .collect(),
            saved: config.saved.clone(),
            dirty: false,
            persisted: None,
            next_seek: Time::ZERO,
            stray: None,
            next_stray: Time::ZERO,
            next_prune: Time::ZERO + PRUNE_EVERY,
        }
    }

    pub fn deadline(&self) -> Time {
        match (self.dirty, self.persisted) {
            (false, _) => Time::NEVER,
            (true, None) => Time::ZERO,
            (true, Some(at)) => at + PERSIST_EVERY,
        }
    }

    fn targets(&self) -> impl Iterator<Item = &String> {
        let said = self.configured.difference(&self.forgotten).chain(self.connected.difference(&self.configured));
        let more = |target: &&String| !self.configured.contains(*target) && !self.connected.contains(*target);
        said.chain(self.listed.iter().filter(more))
    }
}

/// The normal form `host:port` of a target; the port is 6783 when none is given. The error says what would be right.
pub fn target_address(text: &str) -> Result<String, String> {
    let wrong =
        || format!("'{text}' is not HOST or HOST:PORT, as in 192.0.2.1, [2001:db8::1]:6783 or node1.example:6783");
    if let Ok(address) = text.parse::<SocketAddr>() {
        return if address.port() == 0 { Err(wrong()) } else { Ok(address.to_string()) };
    }
    let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
    if let Ok(ip) = bare.parse::<IpAddr>() {
        return Ok(SocketAddr::new(ip, PORT).to_string());
    }
    let (host, port) = text.rsplit_once(':').unwrap_or((text, ""));
    let port =
        if text.contains(':') { port.parse::<u16>().ok().filter(|port| *port > 0).ok_or_else(wrong)? } else { PORT };
    let label = |c: char| c.is_alphanumeric() || matches!(c, '-' | '.' | '_');
    if host.is_empty() || host.len() > 253 || !host.chars().all(label) {
        return Err(wrong());
    }
    Ok(format!("{}:{port}", host.to_lowercase()))
}

/// Whether a peer is the next or the one before in order of id.
fn in_order(me: PeerId, others: &BTreeSet<PeerId>, peer: &PeerId) -> bool {
    let next = others.range(me..).next().or_else(|| others.first());
    let before = others.range(..me).next_back().or_else(|| others.last());
    next == Some(peer) || before == Some(peer)
}

impl Node {
    pub(super) fn begin_discovery(&mut self, now: Time) {
        let targets: Vec<String> = self.discovery.targets().cloned().collect();
        for target in targets {
            self.dials.want(now, Errand::Target(target), &[], Duration::ZERO);
        }
        self.seek_neighbours(now);
    }

    /// Connects to this address now and after restarts.
    pub fn connect(&mut self, now: Time, target: &str) -> Result<(), String> {
        let target = target_address(target)?;
        if self.discovery.connected.len() >= TARGETS_MAX {
            return Err(format!("{TARGETS_MAX} addresses are remembered already: forget some first"));
        }
        self.discovery.forgotten.remove(&target);
        if !self.discovery.configured.contains(&target) {
            self.discovery.connected.insert(target.clone());
        }
        self.discovery.dirty = true;
        let errand = Errand::Target(target);
        self.dials.want(now, errand.clone(), &[], Duration::ZERO);
        self.dials.hurry(now, &errand);
        self.settle(now);
        Ok(())
    }

    /// Forgets this address, now and after restarts, and closes the link to it if nothing else wants that.
    pub fn forget(&mut self, now: Time, target: &str) -> Result<(), String> {
        let target = target_address(target)?;
        let was_connected = self.discovery.connected.remove(&target);
        let configured = self.discovery.configured.contains(&target) && self.discovery.forgotten.insert(target.clone());
        if !was_connected && !configured && self.discovery.listed.contains(&target) {
            return Err(format!(
                "{target} is a node of the Kubernetes cluster: it is forgotten when the node is deleted"
            ));
        }
        if !was_connected && !configured {
            return Err(format!("{target} is not among the addresses to connect to: see meshctl status targets"));
        }
        self.discovery.dirty = true;
        let errand = Errand::Target(target);
        self.dials.drop_errand(&errand);
        if !self.config.discovery {
            let links: Vec<LinkId> =
                self.links.iter().filter(|link| link.errand.as_ref() == Some(&errand)).map(|link| link.id).collect();
            for link in links {
                self.close(now, link, CloseReason::Unwanted);
            }
        }
        self.settle(now);
        Ok(())
    }

    /// Replaces the addresses that something outside lists, such as the nodes of a cluster. They are not kept.
    pub fn list(&mut self, now: Time, targets: &[String]) {
        let targets: BTreeSet<String> =
            targets.iter().filter_map(|target| target_address(target).ok()).take(TARGETS_MAX).collect();
        let before = std::mem::replace(&mut self.discovery.listed, targets.clone());
        for gone in before.difference(&targets) {
            if !self.discovery.targets().any(|target| target == gone) {
                self.dials.drop_errand(&Errand::Target(gone.clone()));
            }
        }
        for target in targets.difference(&before) {
            if !self.discovery.forgotten.contains(target) {
                self.dials.want(now, Errand::Target(target.clone()), &[], Duration::ZERO);
            }
        }
        self.settle(now);
    }

    /// The addresses to connect to, and where they come from.
    pub fn targets(&self) -> Vec<api::Target> {
        let source = |target: &String| match target {
            _ if self.discovery.configured.contains(target) => "flag",
            _ if self.discovery.connected.contains(target) => "connect",
            _ => "kubernetes",
        };
        let target = |target: &String| api::Target { address: target.clone(), source: source(target).into() };
        self.discovery.targets().map(target).collect()
    }

    pub(super) fn start_dials(&mut self, now: Time) {
        // An address is its own answer: the second round dials it.
        for _ in 0..2 {
            let mut asks = Vec::new();
            self.dials.on_tick(now, &mut asks);
            for ask in asks {
                match ask {
                    Ask::Dial { dial, remote, expect } => self.outputs.push_back(Output::Dial { dial, remote, expect }),
                    Ask::Resolve(target) => match target.parse::<SocketAddr>() {
                        Ok(address) => self.dials.on_resolved(now, &target, Ok(vec![address])),
                        Err(_) => self.outputs.push_back(Output::Resolve { target }),
                    },
                }
            }
        }
    }

    pub(super) fn on_addresses(&mut self, addresses: Vec<SocketAddr>) {
        self.origin.set_endpoints(&addresses);
        self.addresses = addresses;
        self.publisher.changed();
    }

    pub(super) fn on_mtu(&mut self, mtu: u16) {
        self.config.mtu = mtu;
        self.origin.set_mtu(mtu);
        self.publisher.changed();
    }

    /// A record is new or newer here.
    pub(super) fn on_record(&mut self, now: Time, peer: PeerId, addresses: bool, graph: bool) {
        let Some(entry) = self.topology.entry(&peer) else { return };
        let incarnation = entry.record().version.incarnation;
        if let Some(slot) = self.peers.slot_or_new(peer)
            && let Some(state) = self.peers.get_mut(slot)
            && state.set_incarnation(incarnation)
        {
            self.sessions.forget(peer);
            self.publisher.changed();
        }
        if graph {
            self.publisher.flood_everywhere(now);
        }
        if addresses {
            self.publisher.changed();
            self.note_known(peer);
            if self.dials.has(&Errand::Peer(peer)) {
                let addresses = self.addresses_of(peer);
                self.dials.want(now, Errand::Peer(peer), &addresses, Duration::ZERO);
            }
        }
    }

    pub(super) fn on_appeared(&mut self, now: Time, peer: PeerId) {
        if let Some(state) = self.peers.of_mut(&peer) {
            state.seen = Some(now);
        }
        // It is there again: no reason to wait out a back-off.
        self.dials.hurry(now, &Errand::Peer(peer));
    }

    pub(super) fn on_vanished(&mut self, now: Time, peer: PeerId) {
        if let Some(slot) = self.peers.slot(&peer) {
            if let Some(state) = self.peers.get_mut(slot) {
                state.seen = Some(now);
            }
            self.outputs.push_back(Output::FlushMacs(slot));
        }
    }

    pub(super) fn on_peer_dropped(&mut self, peer: PeerId) {
        self.dials.drop_errand(&Errand::Relayed(peer));
        self.publisher.changed();
    }

    /// Remembers a peer for the next start. When there are too many, the one not met for longest goes.
    pub(super) fn note_known(&mut self, peer: PeerId) {
        let addresses = self.addresses_of(peer);
        let met = self.peers.of(&peer).and_then(|peer| peer.seen).unwrap_or_default();
        let known = &mut self.discovery.known;
        if known.get(&peer).is_some_and(|known| known.addresses == addresses) || addresses.is_empty() {
            return;
        }
        if known.len() >= KNOWN_MAX && !known.contains_key(&peer) {
            let oldest = known.iter().min_by_key(|(_, known)| known.met).map(|(id, _)| *id);
            oldest.map(|oldest| known.remove(&oldest));
        }
        known.insert(peer, Known { addresses, met });
        self.discovery.dirty = true;
    }

    /// Where to dial a peer: where it was met last, then what its record says, then what was known at the start. Never this peer's own addresses.
    pub(super) fn addresses_of(&self, peer: PeerId) -> Vec<SocketAddr> {
        let last = self.peers.of(&peer).and_then(|peer| peer.last_remote);
        let record = self.topology.entry(&peer).map(|entry| entry.record().endpoints.clone()).unwrap_or_default();
        let known = self.discovery.known.get(&peer).filter(|_| record.is_empty());
        let mut addresses: Vec<SocketAddr> = Vec::new();
        for address in
            last.into_iter().chain(record).chain(known.map(|known| known.addresses.clone()).unwrap_or_default())
        {
            if !addresses.contains(&address) && !self.addresses.contains(&address) {
                addresses.push(address);
            }
        }
        addresses
    }

    pub(super) fn tick_discovery(&mut self, now: Time) {
        if now >= self.discovery.next_seek {
            // Only here: changes of topology seek too, and would put off what follows for as long as they come.
            self.discovery.next_seek = now + SEEK_EVERY;
            self.seek_neighbours(now);
            self.close_spare_links(now);
            self.release_peers();
        }
    }

    /// Gives the dials an errand for each peer that is worth a link, and takes it from the others.
    pub(super) fn seek_neighbours(&mut self, now: Time) {
        if !self.config.discovery {
            return;
        }
        let wanted = self.wanted(now);
        let stale: Vec<Errand> = self
            .dials
            .errands()
            .filter(|errand| matches!(errand, Errand::Peer(peer) if !wanted.contains(peer)))
            .cloned()
            .collect();
        for errand in stale {
            self.dials.drop_errand(&errand);
        }
        for peer in wanted {
            let errand = Errand::Peer(peer);
            if self.dials.has(&errand) {
                continue;
            }
            let addresses = self.addresses_of(peer);
            // The lower id dials first, so that the two seldom cross.
            let patience = if self.me < peer { Duration::ZERO } else { HIGHER_WAITS };
            let drawn = Duration::from_millis(self.rng.random_range(0..100));
            self.dials.want(now, errand, &addresses, patience + drawn);
            if self.links.current(peer, false).is_some() {
                self.dials.on_linked(now, peer, false);
            }
        }
    }

    fn wanted(&mut self, now: Time) -> BTreeSet<PeerId> {
        let mut all: BTreeSet<PeerId> = self.topology.entries().map(|(id, _)| *id).collect();
        all.extend(self.discovery.known.keys());
        all.remove(&self.me);
        if all.len() < SMALL_MESH {
            return all;
        }
        let mut live: BTreeSet<PeerId> =
            self.topology.entries().filter(|(_, entry)| entry.reachable()).map(|(id, _)| *id).collect();
        live.remove(&self.me);
        let current: BTreeSet<PeerId> =
            self.peers.active.iter().filter_map(|slot| self.peers.get(*slot)).map(|p| p.id).collect();
        let rtts = self
            .peers
            .active
            .iter()
            .filter_map(|slot| self.peers.get(*slot))
            .filter_map(|peer| Some((peer.id, peer.path.rtt()?)))
            .collect();
        // Almost alone: whoever is known from before may help.
        let roster = if live.len() < DEGREE { &all } else { &live };
        let mut wanted = select_neighbours(self.me, roster, &rtts, &current);
        // A link counts for both ends: who has enough by the choice of others dials only its neighbours in order, which hold the mesh together.
        let linked = |peer: &PeerId| self.links.current(*peer, false).is_some();
        let mut room = DEGREE.saturating_sub(self.links.direct_count()).min(DIALS_AT_ONCE);
        wanted.retain(|peer| {
            let keep = linked(peer) || in_order(self.me, roster, peer) || room > 0;
            room = room.saturating_sub(usize::from(!linked(peer)));
            keep
        });
        // One of those that cannot be reached at a time: so a healed partition finds itself, without a storm of dials.
        if now >= self.discovery.next_stray {
            let lost: Vec<PeerId> = all.difference(&live).copied().collect();
            self.discovery.stray =
                if lost.is_empty() { None } else { lost.get(self.rng.random_range(0..lost.len())).copied() };
            self.discovery.next_stray = now + STRAY_EVERY.mul_f64(self.rng.random_range(0.5..1.5));
        }
        wanted.extend(self.discovery.stray);
        wanted
    }

    /// Closes relayed links that a direct one replaced or that nobody uses, and in a large mesh links that both ends can spare.
    fn close_spare_links(&mut self, now: Time) {
        let mut spare = Vec::new();
        let large = self.topology.len() > SMALL_MESH * 2;
        for link in self.links.iter().filter(|link| link.phase == Phase::Up) {
            let Some(peer) = self.peers.of(&link.peer) else { continue };
            if link.relayed() {
                let direct =
                    self.links.current(link.peer, false).filter(|_| peer.path.alive() && peer.path.usable().is_some());
                if direct.is_some_and(|direct| now.since(direct.since) >= SPARE_AFTER)
                    && now.since(link.since) >= SPARE_AFTER
                {
                    spare.push((link.id, CloseReason::Duplicate));
                } else if large
                    && peer.wanted.is_none_or(|at| now.since(at) >= RELAYED_IDLE)
                    && now.since(link.since) >= RELAYED_IDLE
                {
                    spare.push((link.id, CloseReason::Unwanted));
                }
            }
        }
        if large && now >= self.discovery.next_prune {
            self.discovery.next_prune = now + PRUNE_EVERY.mul_f64(self.rng.random_range(0.5..1.5));
            spare.extend(self.one_too_many().map(|link| (link, CloseReason::Unwanted)));
        }
        for (link, reason) in spare {
            // Not to be dialled again at once.
            if let Some(peer) = self.links.get(link).filter(|link| link.relayed()).map(|link| link.peer) {
                self.dials.drop_errand(&Errand::Relayed(peer));
            }
            self.close(now, link, reason);
        }
    }

    /// A link between two peers that both have more than enough. The lower id decides; what is near, in order, or a target stays.
    fn one_too_many(&mut self) -> Option<LinkId> {
        if self.links.direct_count() <= DEGREE_MOST {
            return None;
        }
        let live: BTreeSet<PeerId> = self
            .topology
            .entries()
            .filter(|(id, entry)| entry.reachable() && **id != self.me)
            .map(|(id, _)| *id)
            .collect();
        let rtt = |peer: &PeerId| self.peers.of(peer).and_then(|peer| peer.path.rtt()).unwrap_or_default();
        let mut links: Vec<(Duration, LinkId, PeerId)> = self
            .links
            .iter()
            .filter(|link| link.phase == Phase::Up && !link.relayed())
            .map(|link| (rtt(&link.peer), link.id, link.peer))
            .collect();
        links.sort_unstable();
        let many = |peer: &PeerId| self.topology.entry(peer).is_some_and(|e| e.record().links.len() > DEGREE_MOST);
        let target =
            |link: LinkId| self.links.get(link).is_some_and(|link| matches!(link.errand, Some(Errand::Target(_))));
        let spare: Vec<LinkId> = links
            .into_iter()
            .skip(NEAR_KEPT)
            .filter(|(_, link, peer)| {
                self.me < *peer && many(peer) && !target(*link) && !in_order(self.me, &live, peer)
            })
            .map(|(_, link, _)| link)
            .collect();
        if spare.is_empty() { None } else { spare.get(self.rng.random_range(0..spare.len())).copied() }
    }

    pub(super) fn persist_if_due(&mut self, now: Time) {
        if now < self.discovery.deadline() {
            return;
        }
        self.discovery.dirty = false;
        self.discovery.persisted = Some(now);
        let saved = Saved {
            targets: self.discovery.connected.iter().cloned().collect(),
            forgotten: self.discovery.forgotten.iter().cloned().collect(),
            known: self.discovery.known.iter().map(|(id, known)| (*id, known.addresses.clone())).collect(),
        };
        if saved != self.discovery.saved {
            self.discovery.saved = saved.clone();
            self.outputs.push_back(Output::Persist(saved));
        }
    }
}

/// Peers kept for the next start: enough to find a mesh of any size again.
const KNOWN_MAX: usize = 256;
/// Targets by `connect`.
const TARGETS_MAX: usize = 256;
/// Between two writes.
const PERSIST_EVERY: Duration = Duration::from_secs(5);
/// How often the set of neighbours is looked at without a change of topology.
const SEEK_EVERY: Duration = Duration::from_secs(5);
/// How often, on average, another unreachable peer is tried in a large mesh.
const STRAY_EVERY: Duration = Duration::from_secs(10);
/// The higher id gives the lower one this long.
const HIGHER_WAITS: Duration = Duration::from_secs(1);
/// New neighbours dialled at a time in a large mesh: meanwhile others dial us, and those count too.
const DIALS_AT_ONCE: usize = 2;
/// A relayed link stays this long beside a direct one that proved itself.
const SPARE_AFTER: Duration = Duration::from_secs(10);
/// Direct links that a peer of a large mesh makes, those that others made to it counted.
const DEGREE: usize = 8;
/// Links above which two peers part.
const DEGREE_MOST: usize = 10;
/// Nearest links that stay.
const NEAR_KEPT: usize = 3;
/// Between two links given up: each is told to the whole mesh.
const PRUNE_EVERY: Duration = Duration::from_secs(20);
