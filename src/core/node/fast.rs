//! The kernel's fast path of a node: with whom it is agreed, its probes and their sealed answers, what the snapshot and the status say of it.

use std::net::{IpAddr, Ipv4Addr};

use meshnet_proto::PeerId;
use meshnet_proto::wire::control::READS;
use meshnet_proto::wire::data::{FRAGMENT, InnerKind, Probe};
use meshnet_proto::wire::fast::{FastProbe, TRUST, Trust};

use super::peers::Peer;
use super::{Level, LinkId, Node, Output};
use crate::fib::{FastPeer, Path, PeerSlot};
use crate::peer::fast::{Action, Wait};
use crate::time::Time;

/// What keeps two peers from the fast path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Bar {
    /// Neither wants it, or there is no direct path for it: nothing to say.
    Unwanted,
    /// We want it and cannot.
    Refused,
    /// The other end does not name the subnet, or does not know the fast path.
    OtherEnd,
    /// The other end names the subnet, this one does not.
    ThisEnd,
    /// The direct path is over IPv6.
    Family,
    /// It has another name of cluster, and so another network.
    Network,
}

impl Node {
    /// Extension fields of the hello.
    pub(super) fn extensions(&self) -> Vec<(u16, Vec<u8>)> {
        let mut extensions = vec![(READS, vec![FRAGMENT])];
        extensions.extend(self.config.trust.as_ref().map(|trust| (TRUST, trust.emit())));
        extensions
    }

    /// Keeps what the hello of a link that is up said of trust.
    pub(super) fn note_trust(&mut self, link: LinkId, peer: PeerId) {
        let Some(hello) = self.links.get(link).and_then(|link| link.hello.as_ref()) else { return };
        let field = hello.extensions.iter().find(|(number, _)| *number == TRUST);
        let trust = field.and_then(|(_, bytes)| Trust::parse(bytes));
        if let Some(state) = self.peers.of_mut(&peer) {
            state.trust = trust;
            self.publisher.changed();
        }
    }

    /// With whom: both ends name the subnets of both underlay addresses, and frames go straight there.
    fn agreed(&self, slot: PeerSlot, peer: &Peer) -> Result<(Ipv4Addr, u16), Bar> {
        let address = peer.path.usable().and(self.underlay_of(peer)).ok_or(Bar::Unwanted)?.ip().to_canonical();
        if self.sessions.of(slot).is_none() || !matches!(self.path_to(slot), Path::Direct(_)) {
            return Err(Bar::Unwanted);
        }
        // Of the own addresses one will do: which of them the other end sees is its to check.
        let both = |trust: &Trust| {
            trust.names(address) && self.addresses.iter().any(|own| trust.names(own.ip().to_canonical()))
        };
        let (mine, theirs) = (self.config.trust.as_ref(), peer.trust.as_ref());
        let (mine, theirs) = match (mine.filter(|mine| both(mine)), theirs.filter(|theirs| both(theirs))) {
            (Some(mine), Some(theirs)) => (mine, theirs),
            (Some(_), None) => return Err(Bar::OtherEnd),
            (None, Some(_)) if self.config.fast_refused.is_some() => return Err(Bar::Refused),
            (None, Some(_)) => return Err(Bar::ThisEnd),
            (None, None) => return Err(Bar::Unwanted),
        };
        match address {
            _ if mine.network != theirs.network => Err(Bar::Network),
            IpAddr::V4(address) => Ok((address, theirs.port)),
            IpAddr::V6(_) => Err(Bar::Family),
        }
    }

    pub(super) fn tick_fast(&mut self, now: Time, slot: PeerSlot) {
        let at = self.clock.at(now);
        let Some(peer) = self.peers.get(slot) else { return };
        let allowed = self.agreed(slot, peer).is_ok();
        let Some(peer) = self.peers.get_mut(slot) else { return };
        let (id, busy) = (peer.id, peer.fast_used);
        peer.fast_answers = 0;
        let mut actions = Vec::new();
        peer.fast.on_tick(at, allowed, busy, &mut actions);
        if std::mem::replace(&mut peer.fast_agreed, allowed) != allowed {
            // The guard at the other end's door opens before anything is sent.
            self.publisher.hurry();
        }
        for action in actions {
            match action {
                Action::Probe { token, full } => {
                    let length = if full { usize::from(self.config.mtu) + ETHERNET_BYTES } else { 0 };
                    let frame = FastProbe { from: self.me.short(), token }.emit(id.short(), length);
                    self.outputs.push_back(Output::FastProbe { slot, frame });
                }
                Action::Changed => self.on_fast_changed(slot, id),
            }
        }
    }

    fn on_fast_changed(&mut self, slot: PeerSlot, id: PeerId) {
        let on = self.peers.get(slot).is_some_and(|peer| peer.fast.on());
        let what = if on { "kernel's fast path in use" } else { "kernel's fast path not in use" };
        self.event(Level::Info, what, Some(id), String::new());
        self.publisher.hurry();
    }

    pub(super) fn on_fast_answer(&mut self, now: Time, slot: PeerSlot, token: u64) {
        let at = self.clock.at(now);
        if let Some(peer) = self.peers.get_mut(slot) {
            peer.fast.on_answer(at, token);
        }
    }

    /// Answers on the sealed path, to the peer that it says it is from: should it lie, that peer knows no such token.
    pub(super) fn on_fast_probe(&mut self, now: Time, probe: FastProbe) {
        let at = self.clock.at(now);
        let Some(slot) = self.topology.by_short(probe.from).and_then(|id| self.peers.slot(&id)) else { return };
        let Some(peer) = self.peers.get(slot) else { return };
        if self.agreed(slot, peer).is_err() || peer.fast_answers >= ANSWERS_MAX {
            return;
        }
        let to = peer.path.usable();
        if let Some(peer) = self.peers.get_mut(slot) {
            peer.fast_answers += 1;
            peer.fast.on_heard(at);
        }
        let answer = Probe { token: probe.token, sent_us: now.as_us(), path: PATH_FAST };
        self.seal_and_send(slot, InnerKind::ProbeReply, answer, to, 0);
    }

    pub(super) fn on_fast_used(&mut self, slot: PeerSlot, used: bool) {
        if let Some(peer) = self.peers.get_mut(slot) {
            peer.fast_used = used;
        }
    }

    /// For the snapshot, by ascending slot.
    pub(super) fn fast_peers(&self) -> Vec<FastPeer> {
        if self.config.trust.is_none() {
            return Vec::new();
        }
        let fast = |slot: &PeerSlot| {
            let peer = self.peers.get(*slot)?;
            let (address, port) = self.agreed(*slot, peer).ok()?;
            Some(FastPeer { slot: *slot, id: peer.id, address, port, on: peer.fast.on() })
        };
        self.peers.active.iter().filter_map(fast).collect()
    }

    /// Whether frames to this peer take the kernel's fast path.
    pub(super) fn is_fast(&self, slot: PeerSlot, peer: &Peer) -> bool {
        peer.fast.on() && self.agreed(slot, peer).is_ok()
    }

    /// Why they do not, when somebody wants it.
    pub(super) fn fast_reason(&self, now: Time, slot: PeerSlot, peer: &Peer) -> Option<String> {
        let name = self.topology.display_name(&peer.id);
        let sealed = |why: String| Some(format!("{why}: frames travel sealed"));
        let port = peer.trust.as_ref().map_or(0, |trust| trust.port);
        match self.agreed(slot, peer) {
            Err(Bar::Unwanted) => None,
            Err(Bar::Refused) => sealed(format!("no fast path: {}", self.config.fast_refused.as_deref()?)),
            Err(Bar::OtherEnd) => sealed(format!("{name} does not name this subnet in --trusted-subnet")),
            Err(Bar::ThisEnd) => sealed(format!("{name} trusts this subnet, this peer does not: --trusted-subnet")),
            Err(Bar::Family) => sealed("the fast path goes over IPv4 only".into()),
            Err(Bar::Network) => sealed(format!("{name} has another VXLAN network")),
            Ok((address, _)) => match peer.fast.wait(self.clock.at(now))? {
                Wait::Trying => sealed("the fast path is being tried".into()),
                Wait::NotAnswered => sealed(format!("VXLAN (UDP port {port}) does not pass to {address}")),
                Wait::NotHeard => {
                    let port = self.config.trust.as_ref().map_or(0, |trust| trust.port);
                    sealed(format!("VXLAN (UDP port {port}) from {address} does not pass to here"))
                }
            },
        }
    }
}

/// The path of a sealed reply to what came in VXLAN.
pub(super) const PATH_FAST: u8 = 2;
/// Probes of one peer that are answered between two ticks: it sends one.
const ANSWERS_MAX: u8 = 4;
/// Before the packet in a frame.
const ETHERNET_BYTES: usize = 14;
