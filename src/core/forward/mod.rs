//! The frame path, pure: one frame or datagram and one [`Fib`](crate::fib::Fib) give bytes to send, frames to deliver, or a drop with its reason.
//!
//! ```text
//! TAP ──▶ outbound: classify, learn source ──▶ path ──▶ cut and seal into the send batch (Transmit) ──▶ UDP
//!  ▲              ├─ ARP for an address that a peer owns
//!  │              └─ too large for the path: carried in fragments all the same, and its sender is told
//!  └── Answer ◀────────┘
//! UDP ──▶ inbound: open in place ──┬─▶ Deliver: learn source ──▶ Joiner ──▶ TAP
//!                                  ├─▶ a fragment: kept until the frame is whole
//!                                  ├─▶ relay or flood on: back into the send batch
//!                                  └─▶ QUIC, or punt to the node
//! ```
//! Whose a managed address is says the map in the snapshot ([`Owners`](crate::fib::Owners)), not what was heard: where a station with a MAC address
//! `0a:58` and its IPv4 address is, is looked up there and never learned, and who speaks for an address that is another's is not heard.

mod arp;
mod fragments;
pub mod inbound;
pub mod join;
mod mss;
pub mod outbound;
pub mod packet;
pub mod send;
mod sparse;
#[cfg(any(test, feature = "sim"))]
pub mod testbed;
mod too_big;

use std::net::SocketAddr;
use std::ops::Range;
use std::sync::Arc;

use meshnet_proto::wire::data::{Inner, Offload};
use meshnet_proto::{Mac, ShortId};

pub use self::packet::header_len;
pub use self::send::{lane_node, seal_inner, wrap_relayed, wrap_route};

use crate::counters::{Counters, DropReason};
use crate::fdb::{Fdb, FdbCache, Learned, Owner};
use crate::fib::PeerSlot;
use fragments::Fragments;
use sparse::Sparse;
use too_big::Told;

/// A batch of datagrams being filled.
pub trait Transmit {
    /// Room for a datagram of exactly `length` bytes to `to`; `None` when the batch cannot take it. Not sent until [`Transmit::commit`]; a new
    /// `reserve` without it takes the room back.
    fn reserve(&mut self, to: SocketAddr, length: usize) -> Option<&mut [u8]>;
    /// Keeps what was reserved last.
    fn commit(&mut self);
}

/// Where frames for this machine go.
pub trait Deliver {
    /// One frame or super-frame, in parts that follow each other.
    fn deliver(&mut self, offload: &Offload, parts: &[&[u8]]);
}

/// The way to the node for what the snapshot cannot answer: a bounded ring, never waited for.
pub trait Punt {
    /// Hands it over; false when the ring is full (the caller counts).
    fn punt(&mut self, punted: Punted) -> bool;
}

/// What the node has to see.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Punted {
    /// A probe or its reply: see [`crate::node::Input::Probe`].
    Probe {
        /// Of whom.
        slot: PeerSlot,
        /// From where.
        from: SocketAddr,
        /// Through relays.
        relayed: bool,
        /// Inner header and body.
        plaintext: Vec<u8>,
    },
    /// See [`crate::node::Input::Roamed`].
    Roamed {
        /// Who.
        slot: PeerSlot,
        /// The new address.
        from: SocketAddr,
    },
    /// See [`crate::node::Input::SessionWanted`].
    SessionWanted(PeerSlot),
    /// A frame for this MAC address, which is at this peer, took the sealed path though the kernel's fast path is in use.
    Fast {
        /// Who.
        slot: PeerSlot,
        /// Of the destination.
        mac: Mac,
    },
}

/// What to do with a datagram that came in. Ranges are into the buffer that was given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Inbound {
    /// Nothing more: it was passed on, punted, or dropped and counted.
    Done,
    /// A frame or segment for the TAP: give it to the [`join::Joiner`].
    Deliver {
        /// Its inner header.
        inner: Inner,
        /// The frame, or the segment's header template and payload.
        frame: Range<usize>,
        /// Segments of one super-frame have the same, and frames that must keep their order.
        flow: u64,
    },
    /// The same, put together from fragments: give it to [`join::Joiner::push_apart`]. The range is into [`Forwarder::reassembled`], which holds it
    /// until the next datagram is taken in.
    Reassembled {
        /// Its inner header.
        inner: Inner,
        /// The frame, or the segment's header template and payload.
        frame: Range<usize>,
        /// As in [`Inbound::Deliver`].
        flow: u64,
    },
    /// A QUIC datagram.
    Quic {
        /// Who sent it, when it came through relays.
        source: Option<ShortId>,
        /// Its bytes.
        datagram: Range<usize>,
    },
}

/// The machine of one thread: its lane, its cache of MAC addresses, its counters.
#[derive(Debug)]
pub struct Forwarder {
    /// The lane that this thread seals on.
    pub lane: u8,
    /// Learned addresses, shared.
    pub fdb: Arc<Fdb>,
    /// This thread's cache of them.
    pub cache: FdbCache,
    /// This thread's counters.
    pub counters: Arc<Counters>,
    /// Number of the next super-frame.
    pub superframe: u16,
    /// Frames of which fragments are missing.
    fragments: Fragments,
    /// Flows that may go first.
    sparse: Sparse,
    /// What is being sent is of one.
    urgent: bool,
    /// What is to be written back into the TAP.
    answer: Box<[u8; too_big::ANSWER_MAX_BYTES]>,
    /// Who was told that its packets are too large.
    told: Told,
    /// The last peer that a session was wanted with, and when: asked once a tick.
    wanted: Option<(PeerSlot, u32)>,
    /// Addresses that the kernel's fast path was to be told of lately, and when: each once a tick.
    fast: [(Mac, u32); FAST_TOLD],
    /// The last peer seen at another address, and when: told once a tick.
    roamed: Option<(PeerSlot, SocketAddr, u32)>,
}

impl Forwarder {
    /// A forwarder for the thread that seals on `lane`.
    pub fn new(lane: u8, fdb: Arc<Fdb>, counters: Arc<Counters>) -> Forwarder {
        Forwarder {
            lane,
            fdb,
            cache: FdbCache::default(),
            counters,
            superframe: 0,
            fragments: Fragments::default(),
            sparse: Sparse::default(),
            urgent: false,
            answer: Box::new([0; too_big::ANSWER_MAX_BYTES]),
            told: Told::default(),
            wanted: None,
            fast: [(Mac([0; 6]), u32::MAX); FAST_TOLD],
            roamed: None,
        }
    }

    /// What [`Inbound::Reassembled`] refers to.
    pub fn reassembled(&mut self) -> &mut [u8] {
        self.fragments.whole()
    }

    fn drop(&self, reason: DropReason) {
        Counters::drop(&self.counters, reason);
    }

    /// Learns a frame's source; says why the frame must go no further.
    #[inline]
    fn learn(&mut self, source: Mac, owner: Owner, tick: u32) -> Result<(), DropReason> {
        match self.fdb.learn(&mut self.cache, source, owner, tick) {
            Learned::Known | Learned::Written | Learned::Full => Ok(()),
            Learned::Damped => Err(DropReason::Damped),
            Learned::Group => Err(DropReason::Malformed),
        }
    }

    fn punt(&self, punt: &mut impl Punt, punted: Punted) {
        if !punt.punt(punted) {
            self.drop(DropReason::PuntFull);
        }
    }

    /// Has the kernel take over the frames to an address, once a tick for each: should the ring be full, the next tick will do.
    #[cold]
    fn offer_fast(&mut self, slot: PeerSlot, mac: Mac, tick: u32, punt: &mut impl Punt) {
        let [.., low] = mac.0;
        let Some(told) = self.fast.get_mut(usize::from(low) % FAST_TOLD) else { return };
        if *told != (mac, tick) {
            *told = (mac, tick);
            punt.punt(Punted::Fast { slot, mac });
        }
    }

    /// Asks for a session; at most once a tick for the same peer in turn.
    fn want_session(&mut self, slot: PeerSlot, tick: u32, punt: &mut impl Punt) {
        if self.wanted != Some((slot, tick)) {
            self.wanted = Some((slot, tick));
            self.punt(punt, Punted::SessionWanted(slot));
        }
    }
}

/// Destination and source of a frame; `None` when it is shorter than an Ethernet header.
#[inline]
fn addresses(frame: &[u8]) -> Option<(Mac, Mac)> {
    let &[d0, d1, d2, d3, d4, d5, s0, s1, s2, s3, s4, s5, _, _] = frame.first_chunk::<ETHERNET_BYTES>()?;
    Some((Mac([d0, d1, d2, d3, d4, d5]), Mac([s0, s1, s2, s3, s4, s5])))
}

const ETHERNET_BYTES: usize = 14;
/// More than the busy addresses of most machines; two that share a place are told of a little more often.
const FAST_TOLD: usize = 64;
