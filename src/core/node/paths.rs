//! Paths of a node: ticks, probes and their replies, routes, which way frames take.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use meshnet_proto::PeerId;
use meshnet_proto::wire::data::{
    INNER_BYTES, Inner, InnerKind, OUTER_BYTES, PROBE_BYTES, Probe, Relay, Route, TAG_BYTES,
};

use super::fast::PATH_FAST;
use super::peers::Peer;
use super::{Level, Node, Output, Ping};
use crate::fib::{Path, PeerSlot};
use crate::peer::path::{Action, Answer};
use crate::peer::targets::Errand;
use crate::peer::{from_link, virtual_address};
use crate::route::{self, FloodTrees, PeerRoute, RouteInput, Way};
use crate::session::Marks;
use crate::time::Time;
use crate::topology::own::cost_of;

impl Node {
    pub(super) fn wants_ticks(&self) -> bool {
        !self.peers.active.is_empty() || self.links.iter().next().is_some() || !self.pings.is_empty()
    }

    pub(super) fn paths_deadline(&self) -> Time {
        let earliest =
            self.peers.active.iter().filter_map(|slot| self.peers.get(*slot)).map(|peer| peer.path.deadline()).min();
        match earliest {
            None | Some(Time::NEVER) => Time::NEVER,
            Some(at) => at + self.clock.lost,
        }
    }

    /// Looks after the peers that need it: all of them at a tick, else those with a decision due.
    pub(super) fn tick_paths(&mut self, now: Time, all: bool) {
        let at = self.clock.at(now);
        let slots: Vec<PeerSlot> = self.peers.active.iter().copied().collect();
        let mut actions = Vec::new();
        for slot in slots {
            let Some(peer) = self.peers.get_mut(slot) else { continue };
            if !all && peer.path.deadline() > at {
                continue;
            }
            let sample = peer.sample();
            if sample.tx_relayed != std::mem::replace(&mut peer.relayed_tx, sample.tx_relayed) {
                peer.wanted = Some(now);
            }
            peer.path.on_tick(at, sample, &mut actions);
            if !actions.is_empty() {
                let actions = std::mem::take(&mut actions);
                self.take_actions(now, slot, actions);
            }
            if all {
                self.tick_transport(now, slot);
                self.tick_offload(now, slot);
                self.tick_spread(now, slot);
                self.tick_sizes(now, slot);
                self.tick_fast(now, slot);
            }
        }
        if all {
            self.tell_singly();
        }
    }

    pub(super) fn take_actions(&mut self, now: Time, slot: PeerSlot, actions: Vec<Action>) {
        for action in actions {
            let Some(peer) = self.peers.get(slot) else { return };
            let id = peer.id;
            match action {
                Action::Probe { token, to } => self.send_probe(now, slot, token, to),
                Action::Choose => self.on_usable_changed(id),
                Action::Alive(alive) => self.on_alive(now, id, alive),
                Action::OtherRelay => self.on_relay_silent(now, slot),
                Action::Moved(to) => self.on_moved(now, slot, to),
            }
        }
    }

    pub(super) fn on_usable_changed(&mut self, peer: PeerId) {
        let usable = self.peers.of(&peer).is_some_and(|peer| peer.path.usable().is_some());
        // A path that is lost is gone round at once. A new one makes ways better: links that come up together in a large mesh are reckoned together.
        if usable && self.topology.len() > SMALL_MESH {
            self.pace.changed();
        } else {
            self.paths_changed = true;
        }
        self.publisher.changed();
        self.event(
            Level::Debug,
            if usable { "direct path usable" } else { "direct path not usable" },
            Some(peer),
            String::new(),
        );
    }

    fn on_alive(&mut self, now: Time, peer: PeerId, alive: bool) {
        self.links_changed = true;
        self.publisher.flood_everywhere(now);
        self.notes.on_alive(now, peer, alive);
        if !alive {
            self.event(Level::Info, "link silent", Some(peer), "leaves the topology".into());
        }
    }

    fn on_moved(&mut self, now: Time, slot: PeerSlot, to: SocketAddr) {
        let Some(peer) = self.peers.get_mut(slot) else { return };
        if from_link(to).is_some() {
            return;
        }
        peer.last_remote = Some(to);
        peer.transport.on_moved(to);
        let id = peer.id;
        self.event(Level::Info, "peer moved", Some(id), to.to_string());
        // A QUIC server does not follow its client's idea of where it is: the client dials again.
        if self.links.current(id, false).is_some_and(|link| link.outbound() && link.remote != to) {
            let errand = Errand::Peer(id);
            self.dials.drop_errand(&errand);
            self.dials.on_unlinked(now, id, false, None);
            // Where it is now first; its other addresses too, for it may move back before this dial is done.
            let addresses = self.addresses_of(id);
            self.dials.want(now, errand, &addresses, Duration::ZERO);
        }
    }

    fn on_relay_silent(&mut self, now: Time, slot: PeerSlot) {
        let Some(peer) = self.peers.get_mut(slot) else { return };
        peer.avoided.retain(|(_, until)| *until > now);
        if let Some(first) = peer.first.take()
            && peer.avoided.len() < AVOIDED_MAX
        {
            peer.avoided.push((first, now + AVOIDED_FOR));
        }
        self.paths_changed = true;
    }

    pub(super) fn on_roamed(&mut self, now: Time, slot: PeerSlot, from: SocketAddr) {
        if self.is_other_transport(slot, from) {
            return;
        }
        if let Some(id) = self.peers.get(slot).map(|peer| peer.id) {
            self.with_path(now, id, |path, at, out| path.on_roamed(at, from, out));
        }
    }

    pub(super) fn on_session_wanted(&mut self, now: Time, slot: PeerSlot) {
        let Some(peer) = self.peers.get_mut(slot) else { return };
        peer.wanted = Some(now);
        let id = peer.id;
        let linked = self.links.current(id, true).is_some() || self.links.current(id, false).is_some();
        if !linked && self.routes.get(&id).is_some_and(|route| route.best.is_some()) {
            self.dials.want(now, Errand::Relayed(id), &[virtual_address(id.short())], Duration::ZERO);
        }
    }

    pub(super) fn on_probe(&mut self, now: Time, slot: PeerSlot, from: SocketAddr, relayed: bool, plaintext: &[u8]) {
        let Some(inner) = Inner::parse(plaintext) else { return };
        let Some(probe) = plaintext.get(INNER_BYTES..).and_then(Probe::parse) else { return };
        let Some(peer) = self.peers.get_mut(slot) else { return };
        let id = peer.id;
        match inner.kind {
            InnerKind::Probe => {
                let by_link = from_link(from).is_some();
                peer.questions_link += u64::from(by_link && !relayed);
                peer.questions += u64::from(!by_link && !relayed);
                let to = (!relayed).then_some(from);
                self.seal_and_send(slot, InnerKind::ProbeReply, probe, to, 0);
            }
            InnerKind::ProbeReply if probe.path == PATH_FAST => self.on_fast_answer(now, slot, probe.token),
            InnerKind::ProbeReply => {
                let mut answer = Answer::Unknown;
                self.with_path(now, id, |path, at, out| answer = path.on_reply(at, probe.token, out));
                let (Answer::Direct(rtt) | Answer::Relayed(rtt)) = answer else {
                    let token = probe.token;
                    let known = self.on_transport_reply(now, slot, token)
                        || self.on_train_reply(now, slot, token)
                        || self.on_spread_reply(now, slot, token);
                    if !known {
                        self.on_size_reply(now, slot, token);
                    }
                    return;
                };
                if let Some(ping) = self.pings.remove(&probe.token) {
                    self.outputs.push_back(Output::Pong { token: probe.token, result: Some((rtt, ping.way)) });
                }
                if matches!(answer, Answer::Direct(_)) {
                    self.links_changed = true;
                }
            }
            InnerKind::Frame | InnerKind::Segment | InnerKind::Fragment => {}
        }
    }

    fn send_probe(&mut self, now: Time, slot: PeerSlot, token: u64, to: Option<SocketAddr>) {
        let probe = Probe { token, sent_us: now.as_us(), path: u8::from(to.is_none()) };
        self.seal_and_send(slot, InnerKind::Probe, probe, to, 0);
    }

    /// Seals on the node's own lane, padded so that the whole datagram has this length at least. A probe that cannot be sealed or sent now counts as lost.
    pub(super) fn seal_and_send(
        &mut self,
        slot: PeerSlot,
        kind: InnerKind,
        probe: Probe,
        to: Option<SocketAddr>,
        length: usize,
    ) {
        let relayed =
            if to.is_none() { self.relays_to(slot).map_or(0, |(_, route)| route.overhead_bytes()) } else { 0 };
        let Some(datagram) = self.sealed_probe(slot, kind, probe, length.saturating_sub(relayed), false) else {
            return;
        };
        match to {
            Some(to) => self.outputs.push_back(Output::Datagram { to, bytes: datagram }),
            None => {
                if let Some((to, bytes)) = self.wrap(slot, &datagram) {
                    self.outputs.push_back(Output::Datagram { to, bytes });
                }
            }
        }
    }

    /// A probe of this length at least, to leave from the main port or `aside`. `None` when it cannot be sealed now.
    pub(super) fn sealed_probe(
        &self,
        slot: PeerSlot,
        kind: InnerKind,
        probe: Probe,
        length: usize,
        aside: bool,
    ) -> Option<Vec<u8>> {
        let lane = self.config.lanes.saturating_sub(1);
        let mut datagram =
            [&[0; OUTER_BYTES], Inner::plain(kind).emit().as_slice(), &probe.emit(), &[0; TAG_BYTES]].concat();
        debug_assert_eq!(datagram.len(), OUTER_BYTES + INNER_BYTES + PROBE_BYTES + TAG_BYTES);
        datagram.resize(length.max(datagram.len()), 0);
        self.sessions.of(slot)?.session.seal_as(lane, Marks { urgent: false, aside }, &mut datagram).ok()?;
        Some(datagram)
    }

    /// Puts a sealed datagram on its way through relays.
    fn wrap(&self, slot: PeerSlot, datagram: &[u8]) -> Option<(SocketAddr, Vec<u8>)> {
        let (first, route) = self.relays_to(slot)?;
        let relay = Relay { source: self.me.short(), route, position: 0 };
        let mut bytes = vec![0; route.overhead_bytes()];
        let relay_bytes = relay.emit(bytes.get_mut(OUTER_BYTES..)?)?;
        bytes.extend_from_slice(datagram);
        let lane = self.config.lanes.saturating_sub(1);
        self.sessions.of(first)?.session.seal_hop(lane, false, &mut bytes, relay_bytes).ok()?;
        Some((self.peers.get(first)?.path.usable()?, bytes))
    }

    pub(super) fn relays_to(&self, slot: PeerSlot) -> Option<(PeerSlot, Route)> {
        let peer = self.peers.get(slot)?;
        let route = self.routes.get(&peer.id)?;
        let way = [route.best, route.alternate].into_iter().flatten().find(|way| !way.is_direct())?;
        Some((self.peers.slot(&way.first())?, way.route()?))
    }

    /// The way that frames to this peer take.
    pub(super) fn path_to(&self, slot: PeerSlot) -> Path {
        self.peers.get(slot).map_or(Path::None, |peer| self.path_of(peer, self.routes.get(&peer.id)))
    }

    pub(super) fn path_of(&self, peer: &Peer, route: Option<&PeerRoute>) -> Path {
        let best = route.and_then(|route| route.best);
        let relayed = best
            .filter(|way| !way.is_direct())
            .and_then(|way| Some(Path::Relayed { first: self.peers.slot(&way.first())?, route: way.route()? }));
        // With no other way, a direct path that seems dead costs nothing to try.
        relayed.or(peer.path.usable().map(Path::Direct)).or(peer.path.address().map(Path::Direct)).unwrap_or_default()
    }

    /// Computes routes when the graph changed (paced) or a direct path of mine did (at once).
    pub(super) fn reroute(&mut self, now: Time) {
        if self.topology.revision() != self.revision {
            self.pace.changed();
        } else if self.topology.costs() != self.costs {
            self.pace.changed_costs();
        }
        let due = self.pace.due(now, self.topology.len());
        if !due && !std::mem::take(&mut self.paths_changed) {
            return;
        }
        self.paths_changed = false;
        let held = (self.revision, self.costs);
        let newest = (self.topology.revision(), self.topology.costs());
        if held != newest && (due || self.topology.len() <= SMALL_MESH) {
            (self.revision, self.costs) = newest;
            self.graph = self.topology.graph();
            self.trees = FloodTrees::compute(&self.graph, self.me);
            let reckoned = self.topology.reckon(now, &self.graph);
            for peer in &reckoned.appeared {
                self.on_appeared(now, *peer);
            }
            for peer in &reckoned.vanished {
                self.on_vanished(now, *peer);
            }
        }
        let direct = self.direct_costs();
        let routes = route::compute(&RouteInput { me: self.me, graph: &self.graph, direct: &direct }, &self.trees);
        self.routes = routes;
        self.avoid_silent_relays(now, &direct);
        for route in &self.routes.peers {
            if route.id != self.me {
                let _ = self.peers.slot_or_new(route.id);
            }
        }
        self.use_relays(now);
        self.seek_neighbours(now);
        self.publisher.hurry();
    }

    fn direct_costs(&self) -> BTreeMap<PeerId, u16> {
        let ready = |slot: PeerSlot| self.sessions.of(slot).is_some();
        let usable =
            |slot: &PeerSlot| self.peers.get(*slot).filter(|peer| peer.path.usable().is_some() && ready(*slot));
        let cost = |peer: &Peer| cost_of(peer.path.rtt().unwrap_or(RTT_GUESS));
        self.peers.active.iter().filter_map(usable).map(|peer| (peer.id, cost(peer))).collect()
    }

    /// Gives peers whose first relay was silent a way through another one, when there is one.
    fn avoid_silent_relays(&mut self, now: Time, direct: &BTreeMap<PeerId, u16>) {
        let avoided = |peer: &Peer| peer.avoided.iter().any(|(_, until)| *until > now);
        let slots: Vec<PeerSlot> = self.peers.active.iter().copied().collect();
        let silent = slots
            .into_iter()
            .filter_map(|slot| self.peers.get(slot))
            .filter(|peer| avoided(peer))
            .take(AVOIDED_PEERS_MAX);
        let mut better: Vec<(PeerId, Way)> = Vec::new();
        for peer in silent {
            let mut fewer = direct.clone();
            fewer.retain(|id, _| !peer.avoided.iter().any(|(first, until)| first == id && *until > now));
            let input = RouteInput { me: self.me, graph: &self.graph, direct: &fewer };
            let way = route::compute(&input, &self.trees).get(&peer.id).and_then(|route| route.best);
            better.extend(way.map(|way| (peer.id, way)));
        }
        for (id, way) in better {
            if let Some(route) = self.routes.peers.iter_mut().find(|route| route.id == id)
                && route.best.is_some_and(|best| !best.is_direct())
            {
                route.best = Some(way);
            }
        }
    }

    /// Tells the path machines which peers are reached by relays, and asks for sessions with those that have no link.
    fn use_relays(&mut self, now: Time) {
        let small = self.topology.len() <= SMALL_MESH;
        let at = self.clock.at(now);
        let mut wants = Vec::new();
        for route in &self.routes.peers {
            let Some(slot) = self.peers.slot(&route.id) else { continue };
            let Some(peer) = self.peers.get_mut(slot) else { continue };
            let relay = route.best.filter(|way| !way.is_direct());
            let first = relay.map(|way| way.first());
            let errand = Errand::Relayed(route.id);
            let wanted = small || peer.wanted.is_some_and(|at| now.since(at) < RELAYED_IDLE);
            if relay.is_some() && !peer.path.alive() && wanted {
                wants.push((route.id, errand));
            } else if self.dials.has(&errand) {
                self.dials.drop_errand(&errand);
            }
            let session = self.sessions.of(slot).is_some();
            if peer.first != first || (first.is_some() && session) != peer.path.relayed() {
                peer.first = first;
                peer.path.on_relayed(at, first.is_some() && session);
                self.peers.note_active(slot);
            }
        }
        for (id, errand) in wants {
            let delay = if self.me < id { RELAYED_AFTER } else { RELAYED_AFTER_HIGHER };
            if !self.dials.has(&errand) {
                self.dials.want(now, errand, &[virtual_address(id.short())], delay);
                if self.links.current(id, true).is_some() {
                    self.dials.on_linked(now, id, true);
                }
            }
        }
    }

    /// Sends one echo over the path that frames take.
    pub fn ping(&mut self, now: Time, who: &str) -> Result<u64, String> {
        let id = self.find(who)?;
        let slot = self.peers.slot(&id).ok_or_else(|| format!("{who} is not known yet"))?;
        if self.sessions.of(slot).is_none() {
            self.on_session_wanted(now, slot);
            return Err(format!("there is no session with {who} yet: try again in a second"));
        }
        let (to, way) = match self.path_to(slot) {
            Path::None => return Err(format!("{who} cannot be reached")),
            Path::Direct(to) if from_link(to).is_some() => (Some(to), "direct by QUIC".to_owned()),
            Path::Direct(to) => (Some(to), format!("direct to {to}")),
            Path::Relayed { first, .. } => {
                let name = self.peers.get(first).map(|peer| self.topology.display_name(&peer.id)).unwrap_or_default();
                (None, format!("relayed by {name}"))
            }
        };
        let mut token = 0;
        self.with_path(now, id, |path, at, out| token = path.probe(at, to, out));
        while self.pings.len() >= PINGS_MAX {
            self.pings.pop_first();
        }
        self.pings.insert(token, Ping { until: now + PING_WITHIN, way });
        Ok(token)
    }

    pub(super) fn end_pings(&mut self, now: Time) {
        let over: Vec<u64> = self.pings.iter().filter(|(_, ping)| ping.until <= now).map(|(token, _)| *token).collect();
        for token in over {
            self.pings.remove(&token);
            self.outputs.push_back(Output::Pong { token, result: None });
        }
    }

    /// The peer of a name, an id, or the start of an id.
    pub fn find(&self, who: &str) -> Result<PeerId, String> {
        let named = |id: &PeerId| {
            self.topology.display_name(id) == who || self.topology.entry(id).is_some_and(|e| e.record().name == who)
        };
        let ids = || self.topology.entries().map(|(id, _)| *id);
        let by_name: Vec<PeerId> = ids().filter(named).collect();
        let by_id: Vec<PeerId> = ids().filter(|id| who.len() >= 4 && id.to_string().starts_with(who)).collect();
        match (by_name.as_slice(), by_id.as_slice()) {
            ([one], _) | ([], [one]) => Ok(*one),
            ([], []) => Err(format!("no peer is called {who}: see meshctl status peers")),
            _ => Err(format!("{who} means several peers: give more digits of the id")),
        }
    }
}

/// Up to this many peers everyone has a session with everyone.
pub(super) const SMALL_MESH: usize = 32;
/// A direct link that is about to come needs no relayed one.
const RELAYED_AFTER: Duration = Duration::from_millis(500);
/// The higher id waits longer, so that the two do not cross.
const RELAYED_AFTER_HIGHER: Duration = Duration::from_millis(1_500);
/// A relayed link that nothing used for so long is closed in a large mesh.
pub(super) const RELAYED_IDLE: Duration = Duration::from_secs(600);
/// A first relay that was silent is left out for so long.
const AVOIDED_FOR: Duration = Duration::from_secs(10);
/// First relays left out at once, for one peer.
const AVOIDED_MAX: usize = 4;
/// Peers for which ways round a silent relay are computed at once.
const AVOIDED_PEERS_MAX: usize = 8;
/// Before the first probe is back.
const RTT_GUESS: Duration = Duration::from_millis(1);
/// As `ping` does.
const PING_WITHIN: Duration = Duration::from_secs(2);
/// Echoes under way.
const PINGS_MAX: usize = 64;
