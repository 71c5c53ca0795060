//! The control plane of one peer as one machine. It dispatches; the logic is in the rooms.
//!
//! ```text
//! Input ──▶ handle ──▶ links │ paths │ gossip │ dials ──▶ settle: record, deltas, routes, snapshot, what to keep ──▶ Output
//! ```
//! The contract is that of the crate: change it, drain [`Node::poll`] until it gives `None`, then change it again. Outputs are to be done in order:
//! a snapshot comes before the message that lets the other end rely on it.

mod config;
mod discovery;
mod fast;
mod io;
mod ipam;
mod links;
mod mtu;
mod offload;
mod paths;
mod peers;
mod problems;
mod publish;
mod sessions;
mod spread;
mod status;
#[cfg(test)]
mod tests;
mod transport;

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use meshnet_proto::PeerId;
use meshnet_proto::wire::control::{CloseReason, Control};
use rand::rngs::StdRng;
use rand::{RngCore, SeedableRng};

use crate::gossip::Gossip;
use crate::peer::link::Links;
use crate::peer::path::TICK;
use crate::peer::targets::Dials;
use crate::route::{FloodTrees, Pace, Routes};
use crate::time::Time;
#[cfg(any(test, feature = "sim"))]
use crate::topology::Merge;
use crate::topology::own::{Origin, Originator};
use crate::topology::{Graph, Topology};

pub use config::{Config, OVERHEAD_BYTES, PORT};
pub use discovery::target_address;
pub use io::{DialError, DialId, Event, Input, Level, LinkEnd, LinkId, Output, Saved};

use discovery::Discovery;
use peers::Peers;
use problems::Notes;
use publish::Publisher;
use sessions::Sessions;

/// The control plane of one peer.
#[derive(Debug)]
pub struct Node {
    config: Config,
    me: PeerId,
    started: Time,
    rng: StdRng,
    outputs: VecDeque<Output>,
    clock: SteadyClock,
    peers: Peers,
    links: Links,
    sessions: Sessions,
    dials: Dials,
    discovery: Discovery,
    origin: Originator,
    topology: Topology,
    gossip: Gossip,
    graph: Graph,
    /// Of the graph.
    trees: FloodTrees,
    routes: Routes,
    pace: Pace,
    /// Of the topology when the graph was made.
    revision: u64,
    /// Likewise, of costs.
    costs: u64,
    /// Usable direct paths changed: routes are computed at once.
    paths_changed: bool,
    /// Live links changed: the own record may.
    links_changed: bool,
    /// Gossip is not polled before.
    next_spread: Time,
    /// It may have something to say.
    unspread: bool,
    publisher: Publisher,
    addresses: Vec<SocketAddr>,
    /// Where datagrams go one by one, as was said last.
    singly: Arc<[SocketAddr]>,
    pings: BTreeMap<u64, Ping>,
    notes: Notes,
    ipam: Option<ipam::Addresses>,
    stopping: bool,
}

/// An echo under way.
#[derive(Debug)]
struct Ping {
    until: Time,
    way: String,
}

/// A clock that stands still while the node itself is late.
#[derive(Debug)]
struct SteadyClock {
    next_tick: Time,
    lost: Duration,
}

impl SteadyClock {
    fn at(&self, now: Time) -> Time {
        now - self.lost
    }

    /// True when a tick is due; a late one is taken out of the clock.
    fn tick(&mut self, now: Time) -> bool {
        if now < self.next_tick {
            return false;
        }
        let late = now.since(self.next_tick);
        if late > TICK / 5 {
            self.lost += late;
        }
        self.next_tick = now + TICK;
        true
    }
}

impl Node {
    /// A node that knows its settings and nothing else. Poll it at once: it may want to dial.
    pub fn new(mut config: Config, now: Time) -> Node {
        let kept = std::mem::take(&mut config.ipam_kept);
        let (ipam, unreadable) = match config.ipam.clone().map(|ipam| ipam::Addresses::new(now, ipam, &kept)) {
            Some(Ok(addresses)) => (Some(addresses), None),
            Some(Err(error)) => (None, Some(error)),
            None => (None, None),
        };
        let mut rng = StdRng::from_seed(config.seed);
        let me = config.identity.id();
        let origin = Originator::new(
            now,
            Origin {
                public_key: config.identity.public_key(),
                incarnation: config.incarnation,
                instance: config.instance,
                name: config.name.clone(),
                software: config.software.clone(),
                flags: if config.relay { meshnet_proto::wire::record::flags::RELAY } else { 0 },
                mtu: config.mtu,
            },
        );
        let dials = Dials::new(StdRng::from_rng(&mut rng));
        let topology = Topology::new(me);
        let mut node = Node {
            me,
            started: now,
            outputs: VecDeque::new(),
            clock: SteadyClock { next_tick: now + TICK, lost: Duration::ZERO },
            peers: Peers::new(me, config.timing, config.transport, config.ports_aside, rng.next_u64()),
            links: Links::default(),
            sessions: Sessions::default(),
            dials,
            discovery: Discovery::new(&config),
            origin,
            graph: topology.graph(),
            topology,
            gossip: Gossip::new(now, me, rng.next_u64()),
            routes: Routes::default(),
            pace: Pace::default(),
            trees: FloodTrees::default(),
            revision: 0,
            costs: 0,
            paths_changed: false,
            links_changed: false,
            next_spread: Time::ZERO,
            unspread: false,
            publisher: Publisher::new(),
            addresses: Vec::new(),
            singly: Arc::default(),
            pings: BTreeMap::new(),
            notes: Notes::default(),
            ipam,
            stopping: false,
            rng,
            config,
        };
        if let Some(error) = unreadable {
            node.event(Level::Warn, "addresses are off: what was kept of them is damaged", None, error.to_string());
        }
        node.begin_discovery(now);
        node.tick_ipam(now);
        node.settle(now);
        node
    }

    /// This peer.
    pub fn id(&self) -> PeerId {
        self.me
    }

    /// Takes in what happened.
    pub fn handle(&mut self, now: Time, input: Input) {
        match input {
            Input::LinkOpened { link, dial, peer, remote, secret } => {
                self.on_link_opened(now, link, dial, peer, remote, secret)
            }
            Input::LinkClosed { link, why } => self.on_link_closed(now, link, why),
            Input::DialFailed { dial, why } => self.on_dial_failed(now, dial, why),
            Input::Message { link, bytes } => self.on_message(now, link, &bytes),
            Input::Writable { link, writable } => {
                self.gossip.set_writable(link, writable);
                self.set_ipam_writable(link, writable);
            }
            Input::Resolved { target, result } => self.dials.on_resolved(now, &target, result),
            Input::Probe { slot, from, relayed, plaintext } => self.on_probe(now, slot, from, relayed, &plaintext),
            Input::Roamed { slot, from } => self.on_roamed(now, slot, from),
            Input::FastProbe(probe) => self.on_fast_probe(now, probe),
            Input::FastUsed { slot, used } => self.on_fast_used(slot, used),
            Input::SessionWanted(slot) => self.on_session_wanted(now, slot),
            Input::Addresses(addresses) => self.on_addresses(addresses),
            Input::Mtu(mtu) => self.on_mtu(mtu),
            Input::DatagramMax { link, bytes, settled } => self.on_datagram_max(link, (bytes, settled)),
            Input::Ipam(input) => self.on_ipam(now, input),
            Input::HostAddresses(hosts) => self.on_host_addresses(hosts),
        }
        self.settle(now);
    }

    /// Does what is due.
    pub fn handle_timeout(&mut self, now: Time) {
        let tick = self.clock.tick(now);
        if tick {
            self.on_tick(now);
        }
        self.tick_paths(now, tick);
        self.origin.handle_timeout(now);
        self.gossip.handle_timeout(now);
        for peer in self.topology.handle_timeout(now) {
            self.on_peer_dropped(peer);
        }
        self.tick_ipam(now);
        self.settle(now);
    }

    /// When [`Node::handle_timeout`] has something to do.
    pub fn next_deadline(&self) -> Time {
        let tick = if self.wants_ticks() { self.clock.next_tick } else { self.clock.next_tick + IDLE_TICK };
        let pace =
            if self.pace.next_deadline() == Time::ZERO { self.clock.next_tick } else { self.pace.next_deadline() };
        [
            tick,
            self.paths_deadline(),
            self.dials.deadline(),
            self.origin.next_deadline(),
            self.gossip.next_deadline(),
            if self.unspread { self.next_spread } else { Time::NEVER },
            self.topology.next_deadline(),
            pace,
            self.publisher.deadline(),
            self.discovery.deadline(),
            self.ipam.as_ref().map_or(Time::NEVER, ipam::Addresses::deadline),
        ]
        .into_iter()
        .min()
        .unwrap_or(tick)
    }

    /// What is to be done next; none when all is done.
    pub fn poll(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// Says goodbye on every link and closes it. Nothing is dialled afterwards.
    pub fn stop(&mut self, _now: Time) {
        self.stopping = true;
        let links: Vec<LinkId> = self.links.iter().map(|link| link.id).collect();
        for link in links {
            self.send(link, &Control::Goodbye);
            self.outputs.push_back(Output::Close { link, reason: CloseReason::Stopping });
            self.links.remove(link);
        }
    }

    /// Fills the storm budgets for the time that passed since the last call: the driver's tick, so that the frame path reads no clock.
    pub fn refill(&mut self, elapsed: Duration) {
        self.refill_budgets(elapsed);
    }

    /// Hands over records all at once, as if gossip had brought them: simulations of large meshes begin there.
    #[cfg(any(test, feature = "sim"))]
    pub fn preload(&mut self, now: Time, records: &[std::sync::Arc<crate::identity::Admitted>]) {
        for admitted in records {
            if let Merge::New | Merge::Updated(_) = self.topology.merge(now, admitted.clone()) {
                self.on_record(now, admitted.id, true, true);
            }
        }
        self.settle(now);
    }

    fn on_tick(&mut self, now: Time) {
        for link in self.links.overdue(now) {
            self.close(now, link, CloseReason::Silent);
        }
        self.rekey_due(now);
        if self.sessions.expire(now) {
            self.publisher.changed();
        }
        self.end_pings(now);
        self.tick_discovery(now);
        self.notes.on_tick(now);
    }

    /// Everything that follows from a change, in the order in which it follows.
    fn settle(&mut self, now: Time) {
        if self.stopping {
            return;
        }
        self.start_dials(now);
        self.originate(now);
        self.spread(now);
        self.reroute(now);
        self.publish_if_due(now);
        self.persist_if_due(now);
    }

    /// The own record, when it is to be told anew.
    fn originate(&mut self, now: Time) {
        if std::mem::take(&mut self.links_changed) {
            let links = self.live_links();
            self.origin.set_links(now, &links);
        }
        let before = self.origin.version().incarnation;
        self.origin.set_mesh_size(self.topology.len());
        if let Some(record) = self.origin.poll(now) {
            match self.config.identity.sign_record(&record) {
                Ok(admitted) => {
                    let told = self.topology.entry(&self.me).map(|entry| &entry.record().links);
                    if told != Some(&record.links) {
                        self.publisher.flood_everywhere(now);
                    }
                    self.topology.merge_own(now, admitted);
                    self.gossip.on_merged(None, self.me);
                }
                Err(error) => self.event(Level::Warn, "own record over its limits", None, error.to_string()),
            }
        }
        if before != self.origin.version().incarnation {
            self.publisher.changed();
        }
    }

    /// The first news travels at once; what comes right behind it travels together. Each link is told so much in one go that its queue never overflows
    /// before it can say that it is full; the rest follows.
    fn spread(&mut self, now: Time) {
        if now < self.next_spread {
            self.unspread = true;
            return;
        }
        let mut told: BTreeMap<LinkId, usize> = BTreeMap::new();
        let mut enough = Vec::new();
        while let Some((link, message)) = self.gossip.poll(&self.topology) {
            self.next_spread = now + SPREAD_EVERY;
            let bytes = told.entry(link).or_default();
            *bytes = bytes.saturating_add(self.send(link, &message));
            if *bytes >= SPREAD_BYTES {
                self.gossip.set_writable(link, false);
                enough.push(link);
            }
        }
        self.unspread = !enough.is_empty();
        for link in enough {
            self.gossip.set_writable(link, true);
        }
    }

    /// Sends a message; gives its bytes.
    fn send(&mut self, link: LinkId, message: &Control) -> usize {
        match message.emit() {
            Ok(bytes) => {
                let length = bytes.len();
                self.outputs.push_back(Output::Send { link, bytes: bytes.into() });
                length
            }
            Err(error) => {
                self.event(Level::Warn, "message over its limits", None, error.to_string());
                0
            }
        }
    }

    fn event(&mut self, level: Level, what: &'static str, peer: Option<PeerId>, detail: String) {
        self.outputs.push_back(Output::Event(Event { level, what, peer, detail }));
    }
}

/// In a burst, a thousand records then travel in tens of messages; a mesh of four hops is told 15 ms later at worst.
const SPREAD_EVERY: Duration = Duration::from_millis(5);
/// Longest time without a tick when there is nobody to watch.
const IDLE_TICK: Duration = Duration::from_secs(1);
/// Gossip for one link in one go: a quarter of what a link's queue holds, which says that it is full at the half.
const SPREAD_BYTES: usize = 1024 * 1024;
