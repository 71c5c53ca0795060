//! The forwarding information base: what the frame path needs to know, compiled by the node into an immutable value.
//!
//! A `Fib` never changes after it is published; workers load the current one once per batch. What does change at frame rate
//! (lane counters, replay and flood windows, traffic marks, storm budgets) sits behind the `Arc`s in it, as atomics.

pub mod owners;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU32, AtomicU64, Ordering::Relaxed};

use meshnet_proto::wire::data::Route;
use meshnet_proto::{Mac, PeerId, ShortId};

use crate::session::{ReplayWindow, Session};

/// A peer's place in [`Fib::peers`]: stays with the peer while the process lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct PeerSlot(pub u32);

/// The snapshot.
#[derive(Debug, Default)]
pub struct Fib {
    /// Grows by one with each snapshot.
    pub epoch: u64,
    /// This peer.
    pub me: ShortId,
    /// Low 16 bits of this peer's incarnation.
    pub incarnation: u16,
    /// Peers by slot.
    pub peers: Vec<Option<FibPeer>>,
    /// Slots by short id, ascending: for relays and flood origins.
    pub by_short: Vec<(ShortId, PeerSlot)>,
    /// Sessions by the low 16 bits of their local index; the whole index must match.
    pub sessions: Vec<Option<FibSession>>,
    /// Peers that a frame flooded by this machine goes to.
    pub flood_out: Vec<PeerSlot>,
    /// Set for 2 s after a change of topology: floods go over every link instead of along the tree.
    pub flood_all: bool,
    /// Peers with a live direct link, for `flood_all`.
    pub neighbours: Vec<PeerSlot>,
    /// Underlay addresses of this machine and its peers: packets to or from them on our port never enter the overlay.
    pub underlay: Vec<IpAddr>,
    /// The port of `underlay`.
    pub underlay_port: u16,
    /// Shared state of this machine's own floods.
    pub own_flood: Arc<OwnFlood>,
    /// Who owns which addresses; empty when none are managed.
    pub owners: Arc<Owners>,
    /// Peers that may send in the clear to this machine and it to them, by ascending slot.
    pub fast: Vec<FastPeer>,
}

/// A peer with which this one agrees that the network between them is trusted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FastPeer {
    /// Who.
    pub slot: PeerSlot,
    /// The same.
    pub id: PeerId,
    /// Where it takes VXLAN, and sends it from.
    pub address: Ipv4Addr,
    /// Its UDP port.
    pub port: u16,
    /// The kernel's fast path to it is proven: known unicast goes there.
    pub on: bool,
}

/// Owners of IPv4 addresses, compiled from the map. A station with address `a.b.c.d` of the range has MAC address `0a:58:a:b:c:d`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Owners {
    /// First address of the range.
    pub first: u32,
    /// Last address of the range; with `first` 0 and this 0: no range.
    pub last: u32,
    /// Starts of runs, ascending, each up to the next one's start.
    pub runs: Vec<(u32, Owner)>,
    /// Addresses of this machine itself (exposed) and the MAC address that really has each, by ascending address.
    pub hosts: Vec<(u32, Mac)>,
}

/// Whose an address is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Owner {
    /// Nobody's yet, or of a peer that this one does not know.
    #[default]
    Nobody,
    /// This peer's.
    Me,
    /// Another peer's.
    Peer(PeerSlot),
}

/// A session and whose it is.
#[derive(Debug, Clone)]
pub struct FibSession {
    /// The other end.
    pub slot: PeerSlot,
    /// Keys, counters, windows.
    pub session: Arc<Session>,
}

/// A peer as the frame path sees it.
#[derive(Debug, Clone)]
pub struct FibPeer {
    /// Who.
    pub id: PeerId,
    /// The session to seal with, when there is one.
    pub session: Option<Arc<Session>>,
    /// The way to it.
    pub path: Path,
    /// The direct address, when the direct link is alive: what relays and floods use, never a relay.
    pub direct: Option<SocketAddr>,
    /// Where frames flooded by this peer go on to from here.
    pub flood_on: Vec<PeerSlot>,
    /// Low 16 bits of its incarnation.
    pub incarnation: u16,
    /// Which of its floods came already, by [`ReplayWindow::accept_wrapping`]. A new one with each incarnation.
    pub flood_window: Arc<ReplayWindow>,
    /// What it may flood.
    pub storm: Arc<StormBudget>,
    /// Marks that the node reads to judge the paths.
    pub traffic: Arc<Traffic>,
    /// Largest datagram (UDP payload, relay header included) that its direct path takes.
    pub datagram_max: usize,
    /// The same of `path`: through relays, what all of its hops take.
    pub way_max: usize,
    /// MTU of the overlay there: what is longer, its bridge drops before its containers.
    pub overlay_mtu: u16,
    /// Whether `datagram_max` was found out; else it is what every path takes.
    pub settled: bool,
    /// The same of `way_max`.
    pub way_settled: bool,
    /// It reads fragments.
    pub fragments: bool,
    /// `direct` takes datagrams from all source ports of this machine.
    pub spread: bool,
}

/// The way to a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Path {
    /// No way known.
    #[default]
    None,
    /// Straight to this address.
    Direct(SocketAddr),
    /// Through relays; `first` has a live direct link.
    Relayed {
        /// The first relay.
        first: PeerSlot,
        /// All hops, the destination last.
        route: Route,
    },
}

/// What passed between this machine and a peer, by path. Written by workers, read by the node.
#[derive(Debug, Default)]
pub struct Traffic {
    /// Datagrams sealed for it and sent on the direct path.
    pub tx_direct: AtomicU64,
    /// Datagrams of it that came on the direct path and proved genuine.
    pub rx_direct: AtomicU64,
    /// The same, as QUIC datagrams on the link.
    pub rx_link: AtomicU64,
    /// Datagrams sent by relays.
    pub tx_relayed: AtomicU64,
    /// Datagrams of it that came by relays and proved genuine.
    pub rx_relayed: AtomicU64,
    /// Datagrams of it handed to the node since that gave it a new share.
    pub punted: AtomicU32,
    /// Some that were sent to it were longer than every path takes: the node watches whether such still pass.
    pub large: AtomicBool,
}

impl Traffic {
    /// Marks what is sent. Fragments of something large are large too: but for the path they would be one.
    #[inline]
    pub fn note_length(&self, datagram_bytes: usize) {
        if datagram_bytes > DATAGRAM_BASE && !self.large.load(Relaxed) {
            self.large.store(true, Relaxed);
        }
    }

    /// Whether one more datagram of this peer may go to the node: none may take the places of all others on that way.
    pub fn may_punt(&self) -> bool {
        self.punted.load(Relaxed) < PUNTS_PER_REFILL && self.punted.fetch_add(1, Relaxed) < PUNTS_PER_REFILL
    }
}

/// Tokens for flooded frames: refilled by the driver's tick, so that the frame path reads no clock.
#[derive(Debug)]
pub struct StormBudget {
    /// Tokens left; drops below zero when exceeded.
    pub tokens: AtomicI64,
}

impl StormBudget {
    /// Takes `frames` tokens. False when none was left; a burst that finds some is let through whole.
    #[inline]
    pub fn take(&self, frames: i64) -> bool {
        self.tokens.load(Relaxed) > 0 && self.tokens.fetch_sub(frames, Relaxed) > 0
    }

    /// Puts `frames` tokens back, up to the burst. What was overdrawn is forgiven, so that a storm that ended is over.
    pub fn refill(&self, frames: i64) {
        let more = |tokens: i64| Some(tokens.max(0).saturating_add(frames).min(STORM_BURST_FRAMES));
        // The closure always gives a value, so this cannot fail.
        let _ = self.tokens.fetch_update(Relaxed, Relaxed, more);
    }
}

impl Default for StormBudget {
    fn default() -> StormBudget {
        StormBudget { tokens: AtomicI64::new(STORM_BURST_FRAMES) }
    }
}

/// State of this machine's own floods.
#[derive(Debug, Default)]
pub struct OwnFlood {
    /// Number of the next flooded datagram.
    pub sequence: AtomicU32,
    /// What this machine may flood.
    pub storm: StormBudget,
    /// Whether the budget was exceeded since the node last looked.
    pub exceeded: AtomicBool,
}

impl Fib {
    /// The peer at `slot`.
    #[inline]
    pub fn peer(&self, slot: PeerSlot) -> Option<&FibPeer> {
        self.peers.get(slot.0 as usize)?.as_ref()
    }

    /// The peer at `slot`, if the kernel's fast path to it is in use.
    #[inline]
    pub fn fast(&self, slot: PeerSlot) -> Option<&FastPeer> {
        let at = self.fast.binary_search_by_key(&slot, |peer| peer.slot).ok()?;
        self.fast.get(at).filter(|peer| peer.on)
    }

    /// The slot of a short id.
    pub fn slot(&self, short: ShortId) -> Option<PeerSlot> {
        let at = self.by_short.binary_search_by_key(&short, |entry| entry.0).ok()?;
        self.by_short.get(at).map(|entry| entry.1)
    }

    /// The session with this local index.
    #[inline]
    pub fn session(&self, index: u32) -> Option<&FibSession> {
        let entry = self.sessions.get((index & 0xffff) as usize)?.as_ref()?;
        (entry.session.local_index == index).then_some(entry)
    }
}

/// Whether this address stands for the QUIC datagrams of a link: see [`crate::peer::link_address`].
#[inline]
pub fn is_link(address: SocketAddr) -> bool {
    let SocketAddr::V6(v6) = address else { return false };
    v6.port() == LINK_PORT && v6.ip().segments().starts_with(&LINK_PREFIX)
}

/// First half of the addresses that stand for links: "meshn" behind the prefix for unique local addresses (RFC 4193), and a one.
pub const LINK_PREFIX: [u16; 4] = [0xfd6d, 0x6573, 0x686e, 1];
/// The port of every such address.
pub const LINK_PORT: u16 = 2;
/// UDP payload that every path takes: a packet of 1,280 bytes over IPv6.
pub const DATAGRAM_BASE: usize = 1_232;
/// Flooded frames that one origin may send in a burst: a few seconds of ARP and discovery on a busy bridge.
pub const STORM_BURST_FRAMES: i64 = 8_000;
/// Flooded frames per second that one origin may sustain: a multicast stream of 40 Mbit/s in full frames passes, a loop does not.
pub const STORM_RATE_FRAMES: i64 = 4_000;
/// Probes and changes of address of one peer that the node looks at between two refills: several times what the busiest honest peer sends.
pub const PUNTS_PER_REFILL: u32 = 64;
