//! The frame path, pure: one frame or datagram and one [`Fib`] give bytes to send, frames to deliver, or a drop with its reason.
//!
//! ```text
//! TAP ──▶ outbound: classify, learn source ──▶ path ──▶ cut and seal into the send batch (Transmit) ──▶ UDP
//! UDP ──▶ inbound: open in place ──┬─▶ Deliver: learn source ──▶ Joiner ──▶ TAP
//!                                  ├─▶ relay or flood on: back into the send batch
//!                                  └─▶ QUIC, or punt to the node
//! ```

pub mod inbound;
pub mod join;
pub mod outbound;

use std::net::SocketAddr;
use std::ops::Range;
use std::sync::Arc;

use meshnet_proto::ShortId;
use meshnet_proto::wire::data::{Inner, Offload};

use crate::counters::Counters;
use crate::fdb::{Fdb, FdbCache};
use crate::fib::PeerSlot;

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
}
