//! A simulated machine: a node, a forwarder, and the snapshot between the two.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use meshnet_proto::PeerId;
use meshnet_proto::wire::data::Offload;

use crate::fib::{Fib, Path};
use crate::forward::join::Joiner;
use crate::forward::{Forwarder, Inbound, Punt, Punted, Transmit};
use crate::ipam;
use crate::node::{Event, Input, Node, Saved};
use crate::time::Time;

/// One machine.
#[derive(Debug)]
pub struct Host {
    /// Seed of its key.
    pub identity: u32,
    /// Number of its start.
    pub life: u32,
    /// The control plane; none while the process does not run.
    pub node: Option<Node>,
    /// The frame path.
    pub forwarder: Forwarder,
    /// The snapshot in use.
    pub fib: Arc<Fib>,
    /// What it keeps through restarts.
    pub saved: Saved,
    /// What its machine of addresses keeps.
    pub ipam_kept: BTreeMap<Vec<u8>, Vec<u8>>,
    /// Answers about addresses.
    pub replies: BTreeMap<u64, Result<ipam::Answer, ipam::Refusal>>,
    /// Echoes that came back, or did not.
    pub pongs: Vec<(u64, Option<(Duration, String)>)>,
    /// What it told the log.
    pub events: Vec<(Time, Event)>,
    /// It gets no time until then: everything comes late.
    pub frozen_until: Option<Time>,
    /// Bytes of datagrams and messages that it sent.
    pub sent_bytes: u64,
    /// Snapshots published.
    pub published: u64,
    /// The name of its cluster's secret: others refuse another.
    pub secret: u32,
    /// Where it sends datagrams one by one.
    pub(super) singly: Arc<[SocketAddr]>,
    pub(super) timer: Option<Time>,
    pub(super) refilled: Time,
    id: PeerId,
    joiner: Joiner,
}

/// What the frame path wants done.
#[derive(Debug, Default)]
pub(super) struct Done {
    pub out: Vec<(SocketAddr, Vec<u8>)>,
    pub inputs: Vec<Input>,
    reserved: Option<(SocketAddr, Vec<u8>)>,
}

impl Transmit for Done {
    fn reserve(&mut self, to: SocketAddr, length: usize) -> Option<&mut [u8]> {
        Some(self.reserved.insert((to, vec![0; length])).1.as_mut_slice())
    }

    fn commit(&mut self) {
        self.out.extend(self.reserved.take());
    }
}

#[derive(Default)]
struct Punts(Vec<Input>);

impl Punt for Punts {
    fn punt(&mut self, punted: Punted) -> bool {
        self.0.push(match punted {
            Punted::Probe { slot, from, relayed, plaintext } => Input::Probe { slot, from, relayed, plaintext },
            Punted::Roamed { slot, from } => Input::Roamed { slot, from },
            Punted::SessionWanted(slot) => Input::SessionWanted(slot),
            // No kernel here.
            Punted::Fast { .. } => return true,
        });
        self.0.len() < PUNTS_MAX
    }
}

impl Host {
    pub(super) fn new(identity: u32) -> Host {
        Host {
            identity,
            life: 0,
            node: None,
            forwarder: Forwarder::new(0, Arc::default(), Arc::default()),
            fib: Arc::default(),
            saved: Saved::default(),
            ipam_kept: BTreeMap::new(),
            replies: BTreeMap::new(),
            pongs: Vec::new(),
            events: Vec::new(),
            frozen_until: None,
            sent_bytes: 0,
            published: 0,
            secret: 0,
            singly: Arc::default(),
            timer: None,
            refilled: Time::ZERO,
            id: PeerId::default(),
            joiner: Joiner::default(),
        }
    }

    pub(super) fn start(&mut self, node: Node) {
        self.life += 1;
        self.id = node.id();
        self.node = Some(node);
        self.forwarder = Forwarder::new(0, Arc::default(), Arc::default());
        self.fib = Arc::default();
        self.singly = Arc::default();
        self.timer = None;
    }

    pub(super) fn kill(&mut self) {
        self.life += 1;
        self.node = None;
        self.timer = None;
    }

    /// Whether its process runs.
    pub fn alive(&self) -> bool {
        self.node.is_some()
    }

    /// Its peer, since the first start.
    pub fn id(&self) -> PeerId {
        self.id
    }

    pub(super) fn publish(&mut self, fib: Arc<Fib>) {
        assert!(fib.epoch > self.fib.epoch, "snapshots out of order");
        self.published += 1;
        self.fib = fib;
    }

    /// Whether frames to all of `peers` have a session and a path.
    pub(super) fn reaches(&self, peers: &BTreeSet<PeerId>) -> bool {
        let small = self.fib.peers.len() <= 32;
        peers.iter().filter(|id| **id != self.id).all(|id| {
            let peer = self.fib.slot(id.short()).and_then(|slot| self.fib.peer(slot));
            peer.is_some_and(|peer| peer.path != Path::None && (peer.session.is_some() || !small))
        })
    }

    pub(super) fn send(&mut self, tick: u32, frame: &[u8]) -> Done {
        let (mut done, mut punts) = (Done::default(), Punts::default());
        let fib = self.fib.clone();
        self.forwarder.lane = 0;
        self.forwarder.outbound(&fib, tick, &Offload::default(), frame, &mut done, &mut punts);
        done.inputs = punts.0;
        done
    }

    pub(super) fn receive(
        &mut self,
        tick: u32,
        from: SocketAddr,
        mut bytes: Vec<u8>,
        delivered: &mut Vec<Vec<u8>>,
    ) -> Done {
        let (mut done, mut punts) = (Done::default(), Punts::default());
        let fib = self.fib.clone();
        let length = bytes.len();
        match self.forwarder.inbound(&fib, tick, from, &mut bytes, 0..length, &mut done, &mut punts) {
            Inbound::Deliver { inner, frame, flow } => {
                self.joiner.push(&mut bytes, &inner, frame, flow, delivered);
                self.joiner.flush(&mut bytes, delivered);
            }
            Inbound::Reassembled { inner, frame, flow } => {
                let apart = self.forwarder.reassembled();
                self.joiner.push_apart(&mut bytes, apart, &inner, frame, flow, delivered);
            }
            Inbound::Done | Inbound::Quic { .. } => {}
        }
        done.inputs = punts.0;
        done
    }
}

/// What one datagram may punt.
const PUNTS_MAX: usize = 16;
