//! The sizes of a node's paths: what is told to the machines of [`crate::peer::mtu`], their probes, and what the snapshot says.

use std::net::SocketAddr;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use meshnet_proto::wire::data::{InnerKind, Probe, Route};

use super::peers::Peer;
use super::{Level, Node};
use crate::fib::{DATAGRAM_BASE, Path, PeerSlot};
use crate::peer::from_link;
use crate::peer::mtu::{self, PathMtu, SizeProbe};
use crate::time::Time;

/// What is known of the sizes of the paths to one peer.
#[derive(Debug)]
pub(super) struct Sizes {
    pub direct: PathMtu,
    /// Where the direct path led when that was found.
    pub at: Option<SocketAddr>,
    /// Of the way through relays, once something large was to take it.
    pub relayed: Option<RelayedSize>,
    seed: u64,
}

#[derive(Debug)]
pub(super) struct RelayedSize {
    first: PeerSlot,
    route: Route,
    mtu: PathMtu,
}

impl Sizes {
    pub fn new(seed: u64) -> Sizes {
        Sizes { direct: PathMtu::new(Time::ZERO, mtu::BASE, !seed), at: None, relayed: None, seed }
    }

    /// The largest packet of the direct path to `address`.
    pub fn packet(&self, address: Option<SocketAddr>) -> u16 {
        if self.at.is_some() && self.at == address { self.direct.bytes() } else { mtu::BASE }
    }

    /// Whether that was found out.
    pub fn settled(&self, address: Option<SocketAddr>) -> bool {
        self.at.is_some() && self.at == address && self.direct.settled()
    }

    /// The largest datagram of the direct path to `address`.
    pub fn datagram(&self, address: Option<SocketAddr>) -> usize {
        let bytes = usize::from(self.packet(address));
        address.map_or(DATAGRAM_BASE, |address| bytes.saturating_sub(headers(address)))
    }
}

impl Node {
    /// Looks after the sizes of a peer's paths; to be called at each tick.
    pub(super) fn tick_sizes(&mut self, now: Time, slot: PeerSlot) {
        let at = self.clock.at(now);
        let ceiling = self.ceiling();
        let Some(peer) = self.peers.get(slot) else { return };
        let way = if peer.path.relayed() { self.path_to(slot) } else { Path::None };
        let Some(peer) = self.peers.get_mut(slot) else { return };
        let large = peer.traffic.large.load(Relaxed) && peer.traffic.large.swap(false, Relaxed);
        let (mut direct, mut relayed) = (Vec::new(), Vec::new());
        let before = known(&peer.sizes.direct);
        if let Some(to) = peer.path.usable().filter(|to| from_link(*to).is_none()) {
            peer.sizes.direct.set_ceiling(at, ceiling);
            if peer.sizes.at.replace(to) != Some(to) {
                peer.sizes.direct.reset(at);
            }
            // A round trip was measured, so there is a session to seal with.
            if let Some(rtt) = peer.path.rtt() {
                peer.sizes.direct.on_tick(at, large, rtt, &mut direct);
            }
        }
        let after = known(&peer.sizes.direct);
        let relayed_changed = peer.tick_relayed_size(at, way, large, ceiling, &mut relayed);
        self.send_size_probes(now, slot, true, &direct);
        self.send_size_probes(now, slot, false, &relayed);
        self.on_size_changed(slot, before, after);
        if relayed_changed {
            self.publisher.hurry();
        }
    }

    /// A reply to a probe that was not sent for the life of the path.
    pub(super) fn on_size_reply(&mut self, now: Time, slot: PeerSlot, token: u64) {
        let at = self.clock.at(now);
        let Some(peer) = self.peers.get_mut(slot) else { return };
        let mut probes = Vec::new();
        let before = known(&peer.sizes.direct);
        if peer.sizes.direct.on_reply(at, token, &mut probes) {
            let after = known(&peer.sizes.direct);
            self.send_size_probes(now, slot, true, &probes);
            return self.on_size_changed(slot, before, after);
        }
        let Some(relayed) = &mut peer.sizes.relayed else { return };
        let before = known(&relayed.mtu);
        if relayed.mtu.on_reply(at, token, &mut probes) {
            let changed = known(&relayed.mtu) != before;
            self.send_size_probes(now, slot, false, &probes);
            if changed {
                self.publisher.changed();
            }
        }
    }

    fn on_size_changed(&mut self, slot: PeerSlot, before: (u16, bool), after: (u16, bool)) {
        let Some(peer) = self.peers.get(slot).filter(|_| before != after) else { return };
        let (id, before, after) = (peer.id, before.0, after.0);
        if after == before {
            self.publisher.changed();
        } else if after < before {
            // Until then frames go out that do not arrive.
            self.publisher.hurry();
            self.event(Level::Info, "path takes less", Some(id), format!("packets of {after} bytes, {before} before"));
        } else {
            self.publisher.changed();
            self.event(Level::Debug, "path takes more", Some(id), format!("packets of {after} bytes"));
        }
    }

    fn send_size_probes(&mut self, now: Time, slot: PeerSlot, direct: bool, probes: &[SizeProbe]) {
        for SizeProbe { token, bytes } in probes {
            let Some(peer) = self.peers.get(slot) else { return };
            let (to, next) = if direct {
                (peer.path.address(), peer.path.address())
            } else {
                let first = self.relays_to(slot).and_then(|(first, _)| self.peers.get(first));
                (None, first.and_then(|first| first.path.usable()))
            };
            let Some(next) = next else { return };
            let probe = Probe { token: *token, sent_us: now.as_us(), path: u8::from(!direct) };
            let length = usize::from(*bytes).saturating_sub(headers(next));
            self.seal_and_send(slot, InnerKind::Probe, probe, to, length);
        }
    }

    /// The largest packet that is worth to be tried.
    fn ceiling(&self) -> u16 {
        self.config.mtu.saturating_add(self.config.overhead)
    }

    /// Whether [`Node::way_max`] was found out.
    pub(super) fn way_settled(&self, peer: &Peer, path: &Path) -> bool {
        match path {
            Path::None => false,
            Path::Direct(to) => self.size_settled(peer, Some(*to)),
            Path::Relayed { first, route } => {
                peer.sizes.relayed.as_ref().is_some_and(|known| known.is(*first, route) && known.mtu.settled())
            }
        }
    }

    /// The largest datagram on the way that frames to this peer take.
    pub(super) fn way_max(&self, peer: &Peer, path: &Path) -> usize {
        match path {
            Path::None => DATAGRAM_BASE,
            Path::Direct(to) => self.datagram_max(peer, Some(*to)),
            Path::Relayed { first, route } => {
                let Some(first_hop) = self.peers.get(*first) else { return DATAGRAM_BASE };
                let address = first_hop.path.address();
                let found = peer.sizes.relayed.as_ref().filter(|found| found.is(*first, route));
                let bytes = found.map_or(mtu::BASE, |found| found.mtu.bytes());
                let hop = self.datagram_max(first_hop, address);
                // The base size is one of packets: over IPv6, further on, a datagram of it is the shorter.
                if bytes <= mtu::BASE {
                    return DATAGRAM_BASE.min(hop);
                }
                let known =
                    address.map_or(DATAGRAM_BASE, |address| usize::from(bytes).saturating_sub(headers(address)));
                known.min(hop)
            }
        }
    }
}

impl RelayedSize {
    fn is(&self, first: PeerSlot, route: &Route) -> bool {
        self.first == first && self.route == *route
    }
}

impl Peer {
    /// The way through relays is searched from the first large frame on, as long as it stays the same. True when the size changed.
    fn tick_relayed_size(&mut self, at: Time, way: Path, large: bool, ceiling: u16, out: &mut Vec<SizeProbe>) -> bool {
        let Path::Relayed { first, route } = way else { return self.sizes.relayed.take().is_some() };
        if self.sizes.relayed.as_ref().is_some_and(|known| !known.is(first, &route)) {
            self.sizes.relayed = None;
        }
        if self.sizes.relayed.is_none() && large {
            self.sizes.seed = self.sizes.seed.wrapping_add(1);
            let mtu = PathMtu::new(at, ceiling, self.sizes.seed);
            self.sizes.relayed = Some(RelayedSize { first, route, mtu });
        }
        let rtt: Option<Duration> = self.path.rtt_relayed();
        let (Some(relayed), Some(rtt)) = (&mut self.sizes.relayed, rtt) else { return false };
        let before = known(&relayed.mtu);
        relayed.mtu.set_ceiling(at, ceiling);
        relayed.mtu.on_tick(at, large, rtt, out);
        known(&relayed.mtu) != before
    }
}

/// What a snapshot says of it.
fn known(mtu: &PathMtu) -> (u16, bool) {
    (mtu.bytes(), mtu.settled())
}

/// Bytes of a packet before the datagram.
fn headers(to: SocketAddr) -> usize {
    if to.ip().to_canonical().is_ipv4() { 28 } else { 48 }
}

const _: () =
    assert!(DATAGRAM_BASE + 48 == mtu::BASE as usize, "the frame path and the search mean the same base size");
