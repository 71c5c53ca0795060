//! Counters of the frame path: plain atomics, one set for each worker thread, summed when read.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Why a frame or datagram was dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum DropReason {
    /// Shorter than its headers, or headers that disagree.
    Malformed,
    /// No session has this index.
    UnknownSession,
    /// The tag is wrong.
    Forged,
    /// The counter was seen before, or is older than the window.
    Replayed,
    /// The key epoch is neither old, current nor next.
    UnknownEpoch,
    /// A flooded frame that came before by another way.
    Duplicate,
    /// A flooded frame of an origin or incarnation that is not known (yet).
    UnknownOrigin,
    /// A flooded frame without hops left.
    HopLimit,
    /// The origin floods more than its budget.
    StormBudget,
    /// No path to the destination peer.
    NoRoute,
    /// A path, but no session yet.
    NoSession,
    /// A relay has no link to the next hop.
    NoNextHop,
    /// Longer than the path takes.
    TooBig,
    /// Spanning tree, pause and their like never cross.
    LinkLocal,
    /// The destination is on this machine: the bridge has delivered it.
    Local,
    /// The sender speaks for an address of the range that another peer owns.
    NotOwner,
    /// ARP for an address of the range that nobody owns.
    Unowned,
    /// The sender's address moves too often: a loop somewhere.
    Damped,
    /// Our own underlay traffic, caught on the bridge.
    Underlay,
    /// A burst between send batch and socket that the kernel did not take.
    SendFull,
    /// The TAP did not take a frame.
    TapFull,
    /// The ring to the node was full.
    PuntFull,
    /// The counter of a session's lane is used up: rekeying is overdue.
    Exhausted,
    /// A frame of which fragments did not come in time, or that had to make room for newer ones.
    Incomplete,
}

impl DropReason {
    /// All of them, in order of number.
    pub const ALL: [DropReason; 24] = {
        use DropReason::*;
        [
            Malformed,
            UnknownSession,
            Forged,
            Replayed,
            UnknownEpoch,
            Duplicate,
            UnknownOrigin,
            HopLimit,
            StormBudget,
            NoRoute,
            NoSession,
            NoNextHop,
            TooBig,
            LinkLocal,
            Local,
            NotOwner,
            Unowned,
            Damped,
            Underlay,
            SendFull,
            TapFull,
            PuntFull,
            Exhausted,
            Incomplete,
        ]
    };

    /// The name in status and metrics.
    pub fn name(self) -> &'static str {
        use DropReason::*;
        match self {
            Malformed => "malformed",
            UnknownSession => "unknown_session",
            Forged => "forged",
            Replayed => "replayed",
            UnknownEpoch => "unknown_epoch",
            Duplicate => "duplicate",
            UnknownOrigin => "unknown_origin",
            HopLimit => "hop_limit",
            StormBudget => "storm_budget",
            NoRoute => "no_route",
            NoSession => "no_session",
            NoNextHop => "no_next_hop",
            TooBig => "too_big",
            LinkLocal => "link_local",
            Local => "local",
            NotOwner => "not_owner",
            Unowned => "unowned",
            Damped => "damped",
            Underlay => "underlay",
            SendFull => "send_full",
            TapFull => "tap_full",
            PuntFull => "punt_full",
            Exhausted => "exhausted",
            Incomplete => "incomplete",
        }
    }
}

/// Counters of one thread. Written by it alone, so a load and a store do instead of a locked addition.
#[derive(Debug, Default)]
pub struct Counters {
    /// Frames from the TAP that were sent (a super-frame counts its segments).
    pub tx_frames: Count,
    /// Bytes of those frames.
    pub tx_bytes: Count,
    /// Frames delivered to the TAP.
    pub rx_frames: Count,
    /// Bytes of those.
    pub rx_bytes: Count,
    /// Datagrams passed on for others.
    pub relayed: Count,
    /// Flooded frames sent or passed on, by copy.
    pub flooded: Count,
    /// Frames sent in fragments, by copy.
    pub fragmented: Count,
    /// Frames put together from fragments.
    pub reassembled: Count,
    /// ARP requests from the TAP that were answered here.
    pub answered: Count,
    /// Openings of TCP connections whose segments were made to fit the path.
    pub clamped: Count,
    /// Senders told that a packet was too large for its path.
    pub told_too_big: Count,
    drops: [Count; DropReason::ALL.len()],
}

impl Counters {
    /// Counts a drop.
    pub fn drop(&self, reason: DropReason) {
        self.drop_many(reason, 1);
    }

    /// Counts `n` drops of one reason.
    pub fn drop_many(&self, reason: DropReason, n: u64) {
        if let Some(count) = self.drops.get(reason as usize) {
            count.add(n);
        }
    }

    /// Drops of one reason so far.
    pub fn drops(&self, reason: DropReason) -> u64 {
        self.drops.get(reason as usize).map_or(0, Count::value)
    }
}

/// A counter with one writer.
#[derive(Debug, Default)]
pub struct Count(AtomicU64);

impl Count {
    /// Adds `n`; only the owning thread may.
    #[inline]
    pub fn add(&self, n: u64) {
        self.0.store(self.0.load(Relaxed).wrapping_add(n), Relaxed);
    }

    /// The value now.
    pub fn value(&self) -> u64 {
        self.0.load(Relaxed)
    }
}
