//! Several source ports on a node's direct paths: what is told to the machines of [`crate::peer::spread`], and their probes.

use std::net::SocketAddr;
use std::sync::atomic::Ordering::Relaxed;

use meshnet_proto::wire::data::{InnerKind, Probe};

use super::{Node, Output};
use crate::fib::PeerSlot;
use crate::peer::from_link;
use crate::peer::spread::{Ask, Spread};
use crate::time::Time;

/// What is known of source ports to one peer.
#[derive(Debug)]
pub(super) struct Ports {
    spread: Spread,
    /// Where the direct path led when that was found.
    at: Option<SocketAddr>,
    /// Datagrams sent there when last looked at.
    sent: u64,
}

impl Ports {
    pub fn new(ports: u8, seed: u64) -> Ports {
        Ports { spread: Spread::new(ports, seed), at: None, sent: 0 }
    }

    /// Whether datagrams to `address` may leave from all ports.
    pub fn pass(&self, address: Option<SocketAddr>) -> bool {
        self.spread.on() && address.is_some() && self.at == address
    }
}

impl Node {
    /// Looks after the source ports to a peer; to be called at each tick.
    pub(super) fn tick_spread(&mut self, now: Time, slot: PeerSlot) {
        let at = self.clock.at(now);
        let Some(peer) = self.peers.get_mut(slot) else { return };
        let sent = peer.traffic.tx_direct.load(Relaxed);
        let datagrams = sent.wrapping_sub(std::mem::replace(&mut peer.ports.sent, sent));
        let was = peer.ports.spread.on();
        let usable = peer.path.usable().filter(|to| from_link(*to).is_none());
        if peer.ports.at != usable {
            peer.ports.at = usable;
            peer.ports.spread.reset();
        }
        let mut asks = Vec::new();
        if let Some((to, rtt)) = usable.zip(peer.path.rtt()) {
            peer.ports.spread.on_tick(at, datagrams, rtt, &mut asks);
            for Ask { port, token } in asks {
                let probe = Probe { token, sent_us: now.as_us(), path: 0 };
                if let Some(bytes) = self.sealed_probe(slot, InnerKind::Probe, probe, 0, true) {
                    self.outputs.push_back(Output::Aside { port, to, bytes });
                }
            }
        }
        self.note_spread(slot, was);
    }

    /// A reply to a probe that was sent for nothing else; false when it is not to one of these either.
    pub(super) fn on_spread_reply(&mut self, now: Time, slot: PeerSlot, token: u64) -> bool {
        let at = self.clock.at(now);
        let Some(peer) = self.peers.get_mut(slot) else { return false };
        let was = peer.ports.spread.on();
        let known = peer.ports.spread.on_reply(at, token);
        self.note_spread(slot, was);
        known
    }

    fn note_spread(&mut self, slot: PeerSlot, was: bool) {
        if self.peers.get(slot).is_some_and(|peer| peer.ports.spread.on() != was) {
            self.publisher.hurry();
        }
    }
}
