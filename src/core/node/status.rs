//! What a node says of itself: the parts of `meshnet_proto::api` that it knows. The shells add devices and counters of frames.

use meshnet_proto::PeerId;
use meshnet_proto::api::{self, LinkState};
use meshnet_proto::wire::record::Record;

use super::peers::Peer;
use super::{Node, offload};
use crate::fib::{Path, PeerSlot};
use crate::gossip::GossipCounters;
use crate::peer::from_link;
use crate::peer::link::{Link, Phase};
use crate::peer::targets::Errand;
use crate::peer::transport::By;
use crate::session::Cipher;
use crate::time::Time;
use crate::topology::Topology;

impl Node {
    /// This peer.
    pub fn status_me(&self, now: Time) -> api::Me {
        api::Me {
            id: self.me,
            name: self.config.name.clone(),
            software: self.config.software.clone(),
            uptime_s: now.since(self.started).as_secs(),
        }
    }

    /// Links that are up, and attempts at links.
    pub fn status_links(&self, now: Time) -> Vec<api::Link> {
        // Of two that crossed, the one in use: the other is about to be closed.
        let in_use = |link: &&Link| self.links.current(link.peer, false).is_some_and(|current| current.id == link.id);
        let up = self.links.iter().filter(|link| link.phase == Phase::Up && !link.relayed()).filter(in_use);
        let mut links: Vec<api::Link> = up.map(|link| self.status_link(now, link)).collect();
        for standing in self.dials.standings(now) {
            let shown = match standing.errand {
                Errand::Target(_) => true,
                Errand::Peer(_) => standing.failures > 0 || standing.state == LinkState::Connecting,
                Errand::Relayed(_) => false,
            };
            let linked = standing.peer.is_some_and(|peer| self.links.current(peer, false).is_some());
            if !shown || linked || standing.state == LinkState::Established {
                continue;
            }
            links.push(api::Link {
                peer: standing.peer,
                name: standing.peer.map(|peer| self.topology.display_name(&peer)).unwrap_or_default(),
                address: standing.address,
                state: standing.state,
                transport: "udp".into(),
                encrypted: false,
                mtu: 0,
                rtt_ms: 0.0,
                outbound: true,
                reason: standing.reason,
                retry_s: standing.retry.map(|retry| retry.as_secs()),
                cipher: String::new(),
                ports: 0,
            });
        }
        links
    }

    fn status_link(&self, now: Time, link: &Link) -> api::Link {
        let peer = self.peers.of(&link.peer);
        let slot = self.peers.slot(&link.peer);
        let session = slot.and_then(|slot| self.sessions.of(slot));
        let fast = slot.zip(peer).is_some_and(|(slot, peer)| self.is_fast(slot, peer));
        let sealed = slot.zip(peer).and_then(|(slot, peer)| self.fast_reason(now, slot, peer));
        let silent = peer.is_some_and(|peer| peer.path.usable().is_none());
        api::Link {
            peer: Some(link.peer),
            name: self.name_of(link),
            address: peer.and_then(|peer| self.underlay_of(peer)).unwrap_or(link.remote).to_string(),
            state: LinkState::Established,
            transport: self.transport_to(link.peer).into(),
            encrypted: !fast,
            mtu: peer.map_or(0, |peer| self.packet_max(peer)),
            rtt_ms: peer.map_or(0.0, rtt_ms),
            outbound: link.outbound(),
            reason: if silent {
                Some("nothing comes back on the direct path: frames take another".to_owned())
            } else {
                let slower = peer.filter(|peer| peer.transport.fell_back()).map(|_| FELL_BACK.to_owned());
                let slower = slower.or_else(|| peer.filter(|_| !fast).and_then(offload::reason));
                let reasons: Vec<String> = slower.into_iter().chain(sealed).collect();
                (!reasons.is_empty()).then(|| reasons.join("; "))
            },
            retry_s: None,
            cipher: session
                .filter(|_| !fast)
                .map(|held| cipher_name(held.session.cipher))
                .unwrap_or_default()
                .to_owned(),
            ports: peer.filter(|_| !fast).map_or(0, |peer| self.ports_to(peer)),
        }
    }

    fn ports_to(&self, peer: &Peer) -> u32 {
        match peer.transport.by() {
            By::Quic => 0,
            By::Udp => 1 + if peer.ports.pass(peer.path.usable()) { u32::from(self.config.ports_aside) } else { 0 },
        }
    }

    /// How frames travel on the direct path to a peer.
    fn transport_to(&self, id: PeerId) -> &'static str {
        let Some((slot, peer)) = self.peers.slot(&id).zip(self.peers.of(&id)) else { return "udp" };
        match peer.transport.by() {
            _ if self.is_fast(slot, peer) => "vxlan",
            By::Udp => "udp",
            By::Quic => "quic",
        }
    }

    /// The largest packet on the direct path; with QUIC, the largest of what it carries.
    fn packet_max(&self, peer: &Peer) -> u32 {
        let address = peer.path.address();
        match address.and_then(from_link) {
            Some(_) => self.datagram_max(peer, address) as u32,
            None => peer.sizes.packet(address).into(),
        }
    }

    fn name_of(&self, link: &Link) -> String {
        match (&link.hello, self.topology.entry(&link.peer)) {
            (Some(hello), None) => hello.name.chars().map(|c| if c.is_control() { '?' } else { c }).collect(),
            _ => self.topology.display_name(&link.peer),
        }
    }

    /// All peers, this one included.
    pub fn status_peers(&self, now: Time) -> Vec<api::Peer> {
        let peer = |(id, entry): (&PeerId, &crate::topology::Entry)| {
            let record = entry.record();
            let route = self.routes.get(id);
            let via = route.and_then(|route| route.best).filter(|way| !way.is_direct()).map(|way| way.first());
            api::Peer {
                id: *id,
                name: self.topology.display_name(id),
                reachable: *id == self.me || entry.reachable(),
                hops: route.and_then(|route| route.hops).unwrap_or(0).into(),
                via,
                links: record.links.iter().filter_map(|link| self.topology.by_short(link.peer)).collect(),
                software: clean(&record.software),
                addresses: record.endpoints.clone(),
                changed_s: now.since(entry.since).as_secs(),
            }
        };
        self.topology.entries().map(peer).collect()
    }

    /// How frames travel to each peer.
    pub fn status_routes(&self) -> Vec<api::Route> {
        let known = self.peers.iter().filter(|(_, peer)| self.topology.entry(&peer.id).is_some() || !peer.path.idle());
        let route = |(slot, peer): (PeerSlot, &Peer)| {
            let (kind, address, relays) = match self.path_to(slot) {
                Path::None => ("none", None, Vec::new()),
                Path::Direct(_) => ("direct", self.underlay_of(peer), Vec::new()),
                Path::Relayed { route, .. } => {
                    let relays = route.hops().split_last().map(|(_, relays)| relays).unwrap_or_default();
                    ("relayed", None, relays.iter().filter_map(|short| self.topology.by_short(*short)).collect())
                }
            };
            api::Route {
                peer: peer.id,
                name: self.topology.display_name(&peer.id),
                kind: kind.to_owned(),
                address,
                rtt_ms: if relays.is_empty() { rtt_ms(peer) } else { self.relayed_rtt_ms(peer, &relays) },
                flood_to: self.routes.get(&peer.id).map(|route| route.flood_on.clone()).unwrap_or_default(),
                relays,
            }
        };
        known.map(route).collect()
    }

    /// Measured when frames used the way, else what the links on it say.
    fn relayed_rtt_ms(&self, peer: &Peer, relays: &[PeerId]) -> f64 {
        if let Some(rtt) = peer.path.rtt_relayed() {
            return rtt.as_secs_f64() * 1e3;
        }
        let way: Vec<PeerId> = [&[self.me], relays, &[peer.id]].concat();
        way.iter().zip(way.iter().skip(1)).map(|(from, to)| link_rtt_ms(&self.topology, from, to)).sum()
    }

    /// The whole cluster as this peer sees it.
    pub fn topology(&self) -> api::Topology {
        let peer = |(id, entry): (&PeerId, &crate::topology::Entry)| api::TopologyPeer {
            id: *id,
            name: self.topology.display_name(id),
            addresses: entry.record().endpoints.clone(),
        };
        let mut links = Vec::new();
        for (from, id) in self.graph.ids.iter().enumerate() {
            for edge in self.graph.edges(from as u32) {
                let Some(other) = self.graph.id(edge.to).filter(|other| id < other) else { continue };
                let rtt_ms = f64::from(edge.cost) / 100.0;
                // How others' frames travel they do not tell.
                let far = if *id == self.me { Some(other) } else { (other == self.me).then_some(*id) };
                let transport = far.map_or("udp", |far| self.transport_to(far)).into();
                links.push(api::TopologyLink { a: *id, b: other, rtt_ms, transport });
            }
        }
        api::Topology { peers: self.topology.entries().map(peer).collect(), links }
    }

    /// The path of a frame to a peer, given by name or id. The shells turn addresses into peers before.
    pub fn trace(&self, who: &str) -> Result<api::Trace, String> {
        let id = self.find(who)?;
        let name = |id: &PeerId| self.topology.display_name(id);
        let mut trace = api::Trace {
            to: who.to_owned(),
            mac: None,
            peer: id,
            name: name(&id),
            local: id == self.me,
            hops: Vec::new(),
            mtu: u32::from(self.config.mtu),
            cipher: String::new(),
            fast: false,
        };
        if trace.local {
            return Ok(trace);
        }
        let slot = self.peers.slot(&id).ok_or_else(|| format!("{who} is not known yet"))?;
        trace.fast = self.peers.get(slot).is_some_and(|peer| self.is_fast(slot, peer));
        trace.cipher = self
            .sessions
            .of(slot)
            .filter(|_| !trace.fast)
            .map(|held| cipher_name(held.session.cipher))
            .unwrap_or_default()
            .to_owned();
        let hops: Vec<PeerId> = match self.path_to(slot) {
            Path::None => return Err(format!("{who} cannot be reached")),
            Path::Direct(_) => vec![id],
            Path::Relayed { route, .. } => {
                route.hops().iter().filter_map(|short| self.topology.by_short(*short)).collect()
            }
        };
        let mut before = self.me;
        for hop in hops {
            let address = if before == self.me {
                self.peers.of(&hop).and_then(|peer| self.underlay_of(peer))
            } else {
                self.topology.entry(&hop).and_then(|entry| entry.record().endpoints.first().copied())
            };
            let rtt_ms = link_rtt_ms(&self.topology, &before, &hop);
            trace.hops.push(api::TraceHop { peer: hop, name: name(&hop), address, rtt_ms });
            before = hop;
        }
        Ok(trace)
    }

    /// Of gossip, since the start.
    pub fn gossip_counters(&self) -> GossipCounters {
        self.gossip.counters()
    }

    /// The record that this peer tells.
    pub fn record(&self) -> &Record {
        self.origin.record()
    }

    /// All records, for names and addresses of peers.
    pub fn records(&self) -> &Topology {
        &self.topology
    }

    /// The peer that a slot of the snapshot stands for.
    pub fn peer_at(&self, slot: PeerSlot) -> Option<PeerId> {
        self.peers.get(slot).map(|peer| peer.id)
    }

    /// Direct links that are up.
    pub fn link_count(&self) -> usize {
        self.links.direct_count()
    }
}

fn rtt_ms(peer: &Peer) -> f64 {
    let direct = peer.path.usable().and(peer.path.rtt());
    let rtt = direct.or(peer.path.rtt_relayed()).or(peer.path.rtt()).unwrap_or_default();
    (rtt.as_secs_f64() * 1e6).round() / 1e3
}

fn link_rtt_ms(topology: &Topology, from: &PeerId, to: &PeerId) -> f64 {
    let links = topology.entry(from).map(|entry| entry.record().links.as_slice()).unwrap_or_default();
    links.iter().find(|link| link.peer == to.short()).map_or(0.0, |link| f64::from(link.cost) / 100.0)
}

fn cipher_name(cipher: Cipher) -> &'static str {
    match cipher {
        Cipher::Aes256Gcm => "AES-256-GCM",
        Cipher::ChaCha20Poly1305 => "ChaCha20-Poly1305",
    }
}

fn clean(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}

/// Why QUIC is in use though nobody chose it.
const FELL_BACK: &str = "sealed UDP does not pass though QUIC does: frames go by QUIC, which is slower";
