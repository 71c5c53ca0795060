//! Frames put together from fragments.
//!
//! ```text
//! fragment ──▶ its frame is open? ─ no ─▶ room? ─ no ─▶ the oldest goes (of the same peer, when that has its share)
//!                 │ yes                    │ yes
//!                 ▼                        ▼
//!              its place in the frame ◀── open it ────▶ all there: the frame, as if it had come in one datagram
//! ```
//! Fragments come in any order. Which belong together says the counter of the first, which no two frames of a session's lane and epoch share: so what one
//! frame lost is never filled from another, however late. What stays incomplete goes after two ticks, and is counted.
//!
//! One for each thread, as all that one peer sends from one port comes to the same socket. Rooms are kept and used again, so that nothing is allocated once
//! as many were open at a time as ever are.

use meshnet_proto::limits::{FRAGMENTED_MAX_BYTES, FRAGMENTS_MAX};
use meshnet_proto::wire::data::Inner;

use crate::counters::{Counters, DropReason};
use crate::fib::PeerSlot;

/// Which frame a fragment is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Key {
    pub session: u32,
    pub lane: u8,
    pub epoch: u8,
    /// Counter of its first fragment.
    pub first: u64,
}

/// A frame of which some fragments are here.
#[derive(Debug)]
struct Open {
    key: Key,
    peer: PeerSlot,
    size: u16,
    count: u16,
    /// When the first came.
    tick: u32,
    /// Grows with each frame: tells the oldest.
    number: u64,
    /// Bit by index.
    missing: u64,
    /// Known when the last fragment is here.
    bytes: usize,
    room: Vec<u8>,
}

/// All open frames of a thread, and the one that was made whole last.
#[derive(Debug, Default)]
pub(super) struct Fragments {
    open: Vec<Open>,
    spare: Vec<Vec<u8>>,
    whole: Vec<u8>,
    whole_bytes: usize,
    next: u64,
    tick: u32,
}

impl Fragments {
    /// Takes a fragment in; true when its frame is whole.
    pub fn add(
        &mut self,
        key: Key,
        peer: PeerSlot,
        inner: &Inner,
        piece: &[u8],
        tick: u32,
        counters: &Counters,
    ) -> Result<bool, DropReason> {
        let (size, count, index) = (inner.offload.gso_size, inner.count, inner.index);
        let start = usize::from(index) * usize::from(size);
        let last = index + 1 == count;
        let fits = if last { (1..=usize::from(size)).contains(&piece.len()) } else { piece.len() == usize::from(size) };
        if !fits || start + piece.len() > FRAGMENTED_MAX_BYTES {
            return Err(DropReason::Malformed);
        }
        let at = match self.open.iter().position(|open| open.key == key) {
            Some(at) => at,
            None => self.begin(key, peer, size, count, tick, counters),
        };
        let open = self.open.get_mut(at).ok_or(DropReason::Malformed)?;
        let bit = 1u64 << (index % 64);
        if open.size != size || open.count != count || open.missing & bit == 0 {
            return Err(DropReason::Malformed);
        }
        open.room.get_mut(start..start + piece.len()).ok_or(DropReason::Malformed)?.copy_from_slice(piece);
        open.missing &= !bit;
        if last {
            open.bytes = start + piece.len();
        }
        if open.missing != 0 {
            return Ok(false);
        }
        let open = self.open.swap_remove(at);
        self.whole_bytes = open.bytes;
        self.spare.push(std::mem::replace(&mut self.whole, open.room));
        Ok(true)
    }

    fn begin(&mut self, key: Key, peer: PeerSlot, size: u16, count: u16, tick: u32, counters: &Counters) -> usize {
        let of_peer = self.open.iter().filter(|open| open.peer == peer).count();
        if of_peer >= OPEN_OF_PEER_MAX {
            self.drop_oldest(|open| open.peer == peer, counters);
        } else if self.open.len() >= OPEN_MAX {
            self.drop_oldest(|_| true, counters);
        }
        if self.open.capacity() == 0 {
            self.open.reserve_exact(OPEN_MAX);
            // One is in hand, or was just made whole.
            self.spare.reserve_exact(OPEN_MAX + 1);
            self.tick = tick;
        }
        let mut room = self.spare.pop().unwrap_or_default();
        let bytes = (usize::from(size) * usize::from(count)).min(FRAGMENTED_MAX_BYTES);
        if room.len() < bytes {
            room.resize(bytes.max(ROOM_MIN_BYTES), 0);
        }
        let missing = u64::MAX >> (FRAGMENTS_MAX - usize::from(count).min(FRAGMENTS_MAX));
        self.next += 1;
        self.open.push(Open { key, peer, size, count, tick, number: self.next, missing, bytes: 0, room });
        self.open.len() - 1
    }

    fn drop_oldest(&mut self, of: impl Fn(&Open) -> bool, counters: &Counters) {
        let oldest = self.open.iter().enumerate().filter(|(_, open)| of(open)).min_by_key(|(_, open)| open.number);
        if let Some(at) = oldest.map(|(at, _)| at) {
            self.spare.push(self.open.swap_remove(at).room);
            counters.drop(DropReason::Incomplete);
        }
    }

    /// Drops what waited too long; to be called with each datagram. Costs a look at a length while no frame is open.
    #[inline]
    pub fn expire(&mut self, tick: u32, counters: &Counters) {
        if !self.open.is_empty() && self.tick != tick {
            self.tick = tick;
            self.drop_overdue(tick, counters);
        }
    }

    #[cold]
    fn drop_overdue(&mut self, tick: u32, counters: &Counters) {
        while let Some(at) = self.open.iter().position(|open| tick.wrapping_sub(open.tick) >= TICKS_MAX) {
            self.spare.push(self.open.swap_remove(at).room);
            counters.drop(DropReason::Incomplete);
        }
    }

    /// The room of the frame that [`Fragments::add`] made whole, and how much of it that is; to be given back.
    pub fn take_whole(&mut self) -> (Vec<u8>, usize) {
        (std::mem::take(&mut self.whole), self.whole_bytes)
    }

    /// Takes that room back.
    pub fn give_back(&mut self, room: Vec<u8>) {
        self.whole = room;
    }

    /// The frame that was made whole last.
    pub fn whole(&mut self) -> &mut [u8] {
        self.whole.get_mut(..self.whole_bytes).unwrap_or_default()
    }
}

/// Frames open at a time: what is on its way between two threads of a few peers, and the frames of a second that lost a fragment. With the longest frames
/// they hold 4 MiB, with usual ones 128 KiB.
const OPEN_MAX: usize = 64;
/// Of these, of one peer: none takes the places of all others. Twice the lanes that a busy peer seals on.
const OPEN_OF_PEER_MAX: usize = 32;
/// Fragments of one frame follow each other; a tick is a second, the first of them may be short.
const TICKS_MAX: u32 = 2;
/// A room that holds the frames of an Ethernet underlay is not made anew for a slightly longer one.
const ROOM_MIN_BYTES: usize = 2_048;

#[cfg(test)]
mod tests;
