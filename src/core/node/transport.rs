//! By what frames travel to each neighbour: what is told to the machines of [`crate::peer::transport`], and what they want done.

use std::net::SocketAddr;

use meshnet_proto::PeerId;
use meshnet_proto::wire::data::{InnerKind, Probe};

use super::peers::Peer;
use super::{Level, LinkId, Node};
use crate::fib::PeerSlot;
use crate::peer::transport::{By, Step};
use crate::peer::{from_link, link_address};
use crate::time::Time;

impl Node {
    /// Looks after the transport of a peer; to be called at each tick.
    pub(super) fn tick_transport(&mut self, now: Time, slot: PeerSlot) {
        let at = self.clock.at(now);
        let Some(peer) = self.peers.get_mut(slot) else { return };
        let mut steps = Vec::new();
        peer.transport.on_tick(at, peer.path.direct(), &mut steps);
        self.take_transport_steps(now, slot, steps);
    }

    /// A reply to a probe of neither path nor size; false when it is not to one of these either.
    pub(super) fn on_transport_reply(&mut self, now: Time, slot: PeerSlot, token: u64) -> bool {
        let at = self.clock.at(now);
        let Some(peer) = self.peers.get_mut(slot) else { return false };
        let mut steps = Vec::new();
        let known = peer.transport.on_reply(at, token, &mut steps);
        self.take_transport_steps(now, slot, steps);
        known
    }

    fn take_transport_steps(&mut self, now: Time, slot: PeerSlot, steps: Vec<Step>) {
        for step in steps {
            let Some(peer) = self.peers.get(slot) else { return };
            let (id, by) = (peer.id, peer.transport.by());
            match step {
                Step::Probe { token, to } => {
                    let probe = Probe { token, sent_us: now.as_us(), path: 0 };
                    self.seal_and_send(slot, InnerKind::Probe, probe, Some(to), 0);
                }
                Step::Use(to) => {
                    let what = match by {
                        By::Udp => "frames go by sealed UDP again",
                        By::Quic => "sealed UDP does not pass: frames go by QUIC",
                    };
                    self.event(Level::Info, what, Some(id), String::new());
                    self.with_path(now, id, |path, at, out| path.on_link_moved(at, to, out));
                    self.publisher.hurry();
                }
            }
        }
    }

    /// Where frames to this peer go now that it has this link.
    pub(super) fn led_by(&mut self, now: Time, peer: PeerId, link: LinkId, remote: SocketAddr) -> SocketAddr {
        let at = self.clock.at(now);
        self.peers.of_mut(&peer).map_or(remote, |peer| peer.transport.on_link(at, remote, link_address(link)))
    }

    /// The longest datagram that a link takes changed.
    pub(super) fn on_datagram_max(&mut self, id: LinkId, max: (u16, bool)) {
        if self.links.set_datagram_max(id, max) {
            self.publisher.changed();
        }
    }

    /// The longest datagram on the direct path to `address`.
    pub(super) fn datagram_max(&self, peer: &Peer, address: Option<SocketAddr>) -> usize {
        match address.and_then(from_link) {
            Some(link) => self.links.get(link).map_or(0, |link| usize::from(link.datagram_max.0)),
            None => peer.sizes.datagram(address),
        }
    }

    /// Whether that was found out.
    pub(super) fn size_settled(&self, peer: &Peer, address: Option<SocketAddr>) -> bool {
        match address.and_then(from_link) {
            Some(link) => self.links.get(link).is_some_and(|link| link.datagram_max.1),
            None => peer.sizes.settled(address),
        }
    }

    /// The underlay address of a peer's direct path, whichever way frames go.
    pub(super) fn underlay_of(&self, peer: &Peer) -> Option<SocketAddr> {
        peer.path
            .address()
            .and_then(|address| if from_link(address).is_some() { peer.transport.udp() } else { Some(address) })
    }

    /// A peer speaks from an address that is not its path's. True when that is no move: it only takes, or we do, another transport.
    pub(super) fn is_other_transport(&mut self, slot: PeerSlot, from: SocketAddr) -> bool {
        let Some(peer) = self.peers.get_mut(slot) else { return false };
        if peer.transport.by() == By::Quic && from_link(from).is_none() {
            // Genuine, so that is where it is now.
            peer.transport.on_moved(from);
            return true;
        }
        from_link(from).is_some()
    }
}
