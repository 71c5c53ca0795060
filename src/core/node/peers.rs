//! The peers of a node by slot, with what the frame path shares with it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;

use meshnet_proto::wire::fast::Trust;
use meshnet_proto::{PeerId, limits};

use super::mtu::Sizes;
use super::offload::Trains;
use super::spread::Ports;
use super::{Node, Output};
use crate::fib::{PeerSlot, StormBudget, Traffic};
use crate::peer::fast::FastPath;
use crate::peer::path::{PeerPath, Sample, Timing};
use crate::peer::transport::{By, Policy, Transport};
use crate::session::ReplayWindow;
use crate::time::Time;

/// One peer.
#[derive(Debug)]
pub(super) struct Peer {
    pub id: PeerId,
    pub path: PeerPath,
    pub transport: Transport,
    pub sizes: Sizes,
    pub trains: Trains,
    pub ports: Ports,
    /// VXLAN to it, when both ends trust the network.
    pub fast: FastPath,
    /// What its hello said of that.
    pub trust: Option<Trust>,
    /// Both ends trust the network.
    pub fast_agreed: bool,
    /// Frames take it.
    pub fast_used: bool,
    /// Probes in VXLAN that were answered since the last tick.
    pub fast_answers: u8,
    pub traffic: Arc<Traffic>,
    pub flood_window: Arc<ReplayWindow>,
    pub storm: Arc<StormBudget>,
    /// Its probes that came on the direct path, by UDP.
    pub questions: u64,
    /// The same, by QUIC.
    pub questions_link: u64,
    /// Of its hello or record, the higher.
    pub incarnation: u64,
    /// First relays that were silent, and until when they are left out.
    pub avoided: Vec<(PeerId, Time)>,
    /// The first relay in use.
    pub first: Option<PeerId>,
    /// A frame for it waited for a session, or took relays, at this time.
    pub wanted: Option<Time>,
    /// Relayed datagrams sent when last looked at.
    pub relayed_tx: u64,
    /// Where its direct link led last: worth a dial when its record's addresses are not.
    pub last_remote: Option<SocketAddr>,
    /// When it was last reachable, for people.
    pub seen: Option<Time>,
    /// Nothing is known of it any more: its slot waits for another peer.
    pub released: bool,
}

impl Peer {
    /// While frames go by UDP, what comes by QUIC came another way: the other end may have left UDP because it hears nothing there.
    pub fn sample(&self) -> Sample {
        let load = |mark: &AtomicU64| mark.load(Relaxed);
        let (udp, link) = (load(&self.traffic.rx_direct), load(&self.traffic.rx_link));
        let by_quic = self.transport.by() == By::Quic;
        Sample {
            tx_direct: load(&self.traffic.tx_direct),
            rx_direct: if by_quic { udp + link } else { udp },
            tx_relayed: load(&self.traffic.tx_relayed),
            rx_relayed: load(&self.traffic.rx_relayed) + if by_quic { 0 } else { link },
            questions: if by_quic { self.questions + self.questions_link } else { self.questions },
        }
    }

    fn new(me: PeerId, id: PeerId, timing: Timing, transport: Policy, ports: u8, seed: u64) -> Peer {
        Peer {
            id,
            path: PeerPath::new(timing, me < id, seed ^ id.short().0),
            transport: Transport::new(transport, seed.rotate_left(16) ^ id.short().0),
            sizes: Sizes::new(seed.rotate_left(32) ^ id.short().0),
            trains: Trains::new(seed.rotate_left(48) ^ id.short().0),
            ports: Ports::new(ports, seed.rotate_left(8) ^ id.short().0),
            fast: FastPath::new(seed.rotate_left(16) ^ id.short().0),
            trust: None,
            fast_agreed: false,
            fast_used: false,
            fast_answers: 0,
            traffic: Arc::default(),
            flood_window: Arc::default(),
            storm: Arc::default(),
            questions: 0,
            questions_link: 0,
            incarnation: 0,
            avoided: Vec::new(),
            first: None,
            wanted: None,
            relayed_tx: 0,
            last_remote: None,
            seen: None,
            released: false,
        }
    }

    /// It started anew: its floods count from zero again.
    pub fn set_incarnation(&mut self, incarnation: u64) -> bool {
        if incarnation <= self.incarnation {
            return false;
        }
        self.incarnation = incarnation;
        self.flood_window = Arc::default();
        true
    }
}

/// All peers. A slot stays with its peer until nothing is known of that any more, and then waits as long as it can for another.
#[derive(Debug)]
pub(super) struct Peers {
    slots: Vec<Peer>,
    by_id: BTreeMap<PeerId, PeerSlot>,
    /// Released slots, the oldest first.
    free: VecDeque<PeerSlot>,
    /// Those that need ticks.
    pub active: BTreeSet<PeerSlot>,
    me: PeerId,
    timing: Timing,
    transport: Policy,
    ports_aside: u8,
    seed: u64,
}

impl Peers {
    pub fn new(me: PeerId, timing: Timing, transport: Policy, ports_aside: u8, seed: u64) -> Peers {
        Peers {
            slots: Vec::new(),
            by_id: BTreeMap::new(),
            free: VecDeque::new(),
            active: BTreeSet::new(),
            me,
            timing,
            transport,
            ports_aside,
            seed,
        }
    }

    /// The slot of a peer, made when there is none; none when the mesh is too large.
    pub fn slot_or_new(&mut self, id: PeerId) -> Option<PeerSlot> {
        if let Some(slot) = self.by_id.get(&id) {
            return Some(*slot);
        }
        let peer = Peer::new(self.me, id, self.timing, self.transport, self.ports_aside, self.seed);
        if self.slots.len() < SLOTS_FRESH || self.free.is_empty() && self.slots.len() < limits::PEERS_MAX {
            let slot = PeerSlot(self.slots.len() as u32);
            self.by_id.insert(id, slot);
            self.slots.push(peer);
            return Some(slot);
        }
        let slot = self.free.pop_front()?;
        *self.get_mut(slot)? = peer;
        self.by_id.insert(id, slot);
        Some(slot)
    }

    /// Takes a peer's slot from it.
    fn release(&mut self, slot: PeerSlot) {
        let Some(peer) = self.slots.get_mut(slot.0 as usize).filter(|peer| !peer.released) else { return };
        peer.released = true;
        self.by_id.remove(&peer.id);
        self.active.remove(&slot);
        self.free.push_back(slot);
    }

    pub fn slot(&self, id: &PeerId) -> Option<PeerSlot> {
        self.by_id.get(id).copied()
    }

    pub fn get(&self, slot: PeerSlot) -> Option<&Peer> {
        self.slots.get(slot.0 as usize)
    }

    pub fn get_mut(&mut self, slot: PeerSlot) -> Option<&mut Peer> {
        self.slots.get_mut(slot.0 as usize)
    }

    pub fn of(&self, id: &PeerId) -> Option<&Peer> {
        self.slot(id).and_then(|slot| self.get(slot))
    }

    pub fn of_mut(&mut self, id: &PeerId) -> Option<&mut Peer> {
        self.slot(id).and_then(|slot| self.get_mut(slot))
    }

    pub fn iter(&self) -> impl Iterator<Item = (PeerSlot, &Peer)> {
        self.slots.iter().enumerate().map(|(at, peer)| (PeerSlot(at as u32), peer))
    }

    /// All that have a slot, by ascending id.
    pub fn by_id(&self) -> impl Iterator<Item = (PeerId, PeerSlot, &Peer)> {
        self.by_id.iter().filter_map(|(id, slot)| Some((*id, *slot, self.get(*slot)?)))
    }

    pub fn len(&self) -> usize {
        self.slots.len()
    }

    /// Keeps the list of those that need ticks.
    pub fn note_active(&mut self, slot: PeerSlot) {
        let idle = self.get(slot).is_none_or(|peer| peer.path.idle());
        if idle {
            self.active.remove(&slot);
        } else {
            self.active.insert(slot);
        }
    }

    pub fn refill_storm(&self, tokens: i64, most: i64) {
        for peer in &self.slots {
            refill(&peer.storm, tokens, most);
            if peer.traffic.punted.load(Relaxed) != 0 {
                peer.traffic.punted.store(0, Relaxed);
            }
        }
    }
}

impl Node {
    /// Takes their slots from peers of whom no record, link or session is left, or a mesh whose machines come and go would run out of slots.
    pub(super) fn release_peers(&mut self) {
        let keyed: BTreeSet<PeerSlot> = self.sessions.iter().map(|held| held.slot).collect();
        let linked: BTreeSet<PeerId> = self.links.iter().map(|link| link.peer).collect();
        let left = |(slot, peer): &(PeerSlot, &Peer)| {
            !(peer.released
                || keyed.contains(slot)
                || linked.contains(&peer.id)
                || self.topology.entry(&peer.id).is_some())
        };
        let left: Vec<PeerSlot> = self.peers.iter().filter(left).map(|(slot, _)| slot).collect();
        for slot in left {
            self.peers.release(slot);
            self.publisher.changed();
            self.outputs.push_back(Output::FlushMacs(slot));
        }
    }
}

/// Adds tokens up to the burst. Workers take some meanwhile; what is lost by that is a frame or two.
pub(super) fn refill(budget: &StormBudget, tokens: i64, most: i64) {
    let held = budget.tokens.load(Relaxed);
    if held < most {
        budget.tokens.fetch_add(tokens.min(most - held), Relaxed);
    }
}

/// Slots given before a released one is given again, so that what is on its way to the old peer does not meet the new one.
const SLOTS_FRESH: usize = 256;
