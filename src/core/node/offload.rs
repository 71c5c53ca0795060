//! Segmented sends on a node's direct paths: what is told to the machines of [`crate::peer::offload`], their probes, and where datagrams go one by one.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use meshnet_proto::wire::data::{InnerKind, Probe};

use super::peers::Peer;
use super::{Level, Node, Output};
use crate::fib::PeerSlot;
use crate::peer::from_link;
use crate::peer::offload::{Burst, Outlook, Segmentation};
use crate::time::Time;

/// What is known of segmented sends to one peer.
#[derive(Debug)]
pub(super) struct Trains {
    segmentation: Segmentation,
    /// Where the direct path led when that was found.
    at: Option<SocketAddr>,
    /// Datagrams sent there when last looked at.
    sent: u64,
}

impl Trains {
    pub fn new(seed: u64) -> Trains {
        Trains { segmentation: Segmentation::new(seed), at: None, sent: 0 }
    }

    /// The address that takes no segmented sends, if it is one of those.
    pub fn singly(&self) -> Option<SocketAddr> {
        self.at.filter(|_| !self.segmentation.on())
    }
}

impl Node {
    /// Looks after segmented sends to a peer; to be called at each tick, before the sizes.
    pub(super) fn tick_offload(&mut self, now: Time, slot: PeerSlot) {
        let at = self.clock.at(now);
        let Some(peer) = self.peers.get_mut(slot) else { return };
        let sent = peer.traffic.tx_direct.load(Relaxed);
        let before = std::mem::replace(&mut peer.trains.sent, sent);
        let datagrams = sent.wrapping_sub(before);
        let busy = datagrams >= BUSY_DATAGRAMS || peer.traffic.large.load(Relaxed);
        let Some(to) = peer.path.usable().filter(|to| from_link(*to).is_none()) else { return };
        let (was, id) = (peer.trains.singly(), peer.id);
        if peer.trains.at.replace(to) != Some(to) {
            peer.trains.segmentation.reset();
        }
        let mut bursts = Vec::new();
        let (datagram_bytes, settled) = (peer.sizes.datagram(Some(to)), peer.sizes.settled(Some(to)));
        // A round trip was measured, so there is a session to seal with.
        if let Some(rtt) = peer.path.rtt() {
            peer.trains.segmentation.on_tick(
                at,
                Outlook { busy, datagrams, datagram_bytes, settled, rtt },
                &mut bursts,
            );
        }
        let singly = peer.trains.singly();
        for burst in bursts {
            self.send_burst(now, slot, to, datagram_bytes, &burst);
        }
        if singly.is_some() && was.is_none() {
            let detail = format!("{to}: datagrams go one by one");
            self.event(Level::Info, "segmented sends do not arrive", Some(id), detail);
        }
    }

    /// A reply to a probe that was sent for neither path, transport nor size; false when it is not to one of these either.
    pub(super) fn on_train_reply(&mut self, now: Time, slot: PeerSlot, token: u64) -> bool {
        let at = self.clock.at(now);
        let Some(peer) = self.peers.get_mut(slot) else { return false };
        let was = peer.trains.singly();
        let known = peer.trains.segmentation.on_reply(at, token);
        let (id, singly) = (peer.id, peer.trains.singly());
        if was.is_some() && singly.is_none() {
            self.event(Level::Info, "segmented sends arrive again", Some(id), String::new());
        }
        known
    }

    fn send_burst(&mut self, now: Time, slot: PeerSlot, to: SocketAddr, length: usize, burst: &Burst) {
        let mut train = Vec::new();
        for token in &burst.tokens {
            let probe = Probe { token: *token, sent_us: now.as_us(), path: 0 };
            let Some(bytes) = self.sealed_probe(slot, InnerKind::Probe, probe, length, false) else { return };
            if burst.joined {
                train.extend_from_slice(&bytes);
            } else {
                self.outputs.push_back(Output::Datagram { to, bytes });
            }
        }
        if let Some(segment_bytes) = train.len().checked_div(burst.tokens.len()).filter(|bytes| *bytes > 0) {
            self.outputs.push_back(Output::Train { to, bytes: train, segment_bytes });
        }
    }

    /// Says where datagrams go one by one, when that changed; to be called after each tick.
    pub(super) fn tell_singly(&mut self) {
        let active = self.peers.active.iter().filter_map(|slot| self.peers.get(*slot));
        let singly = active.filter_map(|peer| peer.trains.singly());
        if singly.clone().eq(self.singly.iter().copied()) {
            return;
        }
        self.singly = singly.collect();
        self.outputs.push_back(Output::Singly(Arc::clone(&self.singly)));
    }
}

/// Why datagrams to this peer go one by one, if they do.
pub(super) fn reason(peer: &Peer) -> Option<String> {
    let singly = peer.trains.singly().filter(|to| peer.path.usable() == Some(*to));
    singly.map(|_| SINGLY.to_owned())
}

/// Datagrams in one tick that make a path busy: such runs are joined, a keep-alive here and there is not.
const BUSY_DATAGRAMS: u64 = 8;
const SINGLY: &str =
    "segmented sends (UDP GSO) do not arrive though single datagrams do: they go one by one, which is slower";
