//! The forwarding database: which MAC address is where. Learned from data: last writer wins (local too), aged, bounded, damped.
//!
//! Shared by all workers (dashmap) behind a cache in each: a hit takes no lock. A generation counter tells caches that some address moved.
//! Time is the driver's tick (seconds), passed in. It lacks configuration, static entries, and any knowledge of paths.
//!
//! ```text
//! frame's source ──▶ learn ──▶ cache: same owner, fresh ──▶ Known
//!                                └─ else the shared map: new │ refreshed │ moved (generation + 1) │ Damped │ Full
//! destination ─────▶ lookup ─▶ cache ─ else the shared map ──▶ Owner, or unknown: flood
//! ```
//! Damping is that of RFC 7432, 15.1: an address that moves more than [`MOVES_MAX`] times within [`DAMPING_S`] stays where it is for as long again.

use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering::Acquire, Ordering::Relaxed, Ordering::Release};

use dashmap::DashMap;
use dashmap::mapref::entry::Entry;
use meshnet_proto::Mac;

use crate::fib::PeerSlot;

/// Where an address is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Owner {
    /// Behind this machine's bridge.
    Local,
    /// Behind this peer.
    Peer(PeerSlot),
}

/// What became of an address that was seen as a source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Learned {
    /// It was there already.
    Known,
    /// It is new, or came from elsewhere.
    Written,
    /// There is no room: it stays unknown, frames to it are flooded.
    Full,
    /// It moves too often and is held where it is; the frame came from another place and is to be dropped.
    Damped,
    /// A group address is nobody's source.
    Group,
}

/// One learned address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FdbEntry {
    /// The address.
    pub mac: Mac,
    /// Where it is.
    pub owner: Owner,
    /// Tick at which it was last known to be used (by tenths of the age).
    pub refreshed: u32,
    /// Held until this tick; 0 when free.
    pub frozen_until: u32,
}

/// Learned addresses.
#[derive(Debug, Default)]
pub struct Fdb {
    macs: DashMap<Mac, Held>,
    /// How many by owner: bounds what one peer can fill.
    counts: DashMap<Owner, usize>,
    total: AtomicUsize,
    /// Grows when what caches hold may be wrong.
    generation: AtomicU32,
    full: AtomicUsize,
}

#[derive(Debug, Clone, Copy)]
struct Held {
    owner: Owner,
    refreshed: u32,
    frozen_until: u32,
    moves_since: u32,
    moves: u32,
}

/// One thread's cache: each address has one place in it.
#[derive(Debug)]
pub struct FdbCache {
    lines: Vec<Line>,
}

#[derive(Debug, Clone, Copy)]
struct Line {
    mac: Mac,
    used: bool,
    /// The map had no room for it.
    full: bool,
    owner: Owner,
    generation: u32,
    /// When the map was asked.
    tick: u32,
    frozen_until: u32,
}

impl Default for FdbCache {
    fn default() -> FdbCache {
        let line = Line {
            mac: Mac([0; 6]),
            used: false,
            full: false,
            owner: Owner::Local,
            generation: 0,
            tick: 0,
            frozen_until: 0,
        };
        FdbCache { lines: vec![line; CACHE_LINES] }
    }
}

impl FdbCache {
    #[inline]
    fn line(&mut self, mac: Mac) -> Option<&mut Line> {
        let [a, b, c, d, e, f] = mac.0;
        let number = u64::from_be_bytes([0, 0, a, b, c, d, e, f]);
        let at = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (64 - CACHE_BITS);
        self.lines.get_mut(at as usize)
    }
}

impl Fdb {
    /// A frame with the source `mac` came from `owner`.
    #[inline]
    pub fn learn(&self, cache: &mut FdbCache, mac: Mac, owner: Owner, tick: u32) -> Learned {
        if mac.is_group() {
            return Learned::Group;
        }
        let generation = self.generation.load(Acquire);
        let Some(line) = cache.line(mac) else { return Learned::Full };
        if line.used && line.mac == mac && line.generation == generation {
            let fresh = tick.wrapping_sub(line.tick) < REFRESH_S;
            if line.full {
                if line.tick == tick && line.owner == owner {
                    return Learned::Full;
                }
            } else if line.owner == owner {
                if fresh {
                    return Learned::Known;
                }
            } else if line.frozen_until > tick && fresh {
                return Learned::Damped;
            }
        }
        self.learn_slow(line, mac, owner, tick)
    }

    /// Where `mac` is, if known.
    #[inline]
    pub fn lookup(&self, cache: &mut FdbCache, mac: Mac, tick: u32) -> Option<Owner> {
        let generation = self.generation.load(Acquire);
        let line = cache.line(mac)?;
        let fresh = tick.wrapping_sub(line.tick) < REFRESH_S;
        if line.used && line.mac == mac && line.generation == generation && fresh && !line.full {
            return Some(line.owner);
        }
        let held = *self.macs.get(&mac)?;
        if tick.wrapping_sub(held.refreshed) >= AGE_S {
            return None;
        }
        // Only what is fresh in the map goes into the cache: a hit in `learn` must not keep an entry from being refreshed.
        if tick.wrapping_sub(held.refreshed) < REFRESH_S {
            *line = Line::of(mac, &held, generation, held.refreshed);
        }
        Some(held.owner)
    }

    /// Forgets what was not used for [`AGE_S`]; once a second or so, not on the frame path.
    pub fn age(&self, tick: u32) {
        self.remove_if(|held| tick.wrapping_sub(held.refreshed) >= AGE_S && held.frozen_until <= tick);
    }

    /// Forgets all that was learned from a peer, held or not.
    pub fn flush(&self, slot: PeerSlot) {
        // Half a mesh may vanish at once, and most peers own nothing here: no walk through the table for them.
        if !self.counts.contains_key(&Owner::Peer(slot)) {
            return;
        }
        self.remove_if(|held| held.owner == Owner::Peer(slot));
    }

    /// All addresses, ascending.
    pub fn entries(&self) -> Vec<FdbEntry> {
        let mut entries: Vec<FdbEntry> = self
            .macs
            .iter()
            .map(|entry| FdbEntry {
                mac: *entry.key(),
                owner: entry.owner,
                refreshed: entry.refreshed,
                frozen_until: entry.frozen_until,
            })
            .collect();
        entries.sort_unstable_by_key(|entry| entry.mac);
        entries
    }

    /// How many addresses are known.
    pub fn len(&self) -> usize {
        self.total.load(Relaxed)
    }

    /// Whether none is known.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How often there was no room for an address.
    pub fn full_count(&self) -> usize {
        self.full.load(Relaxed)
    }

    #[cold]
    fn learn_slow(&self, line: &mut Line, mac: Mac, owner: Owner, tick: u32) -> Learned {
        // Read before the map: a move in between makes the line stale at once instead of wrong for long.
        let generation = self.generation.load(Acquire);
        let (learned, held) = match self.macs.entry(mac) {
            Entry::Occupied(mut entry) => {
                let held = entry.get_mut();
                if held.owner == owner {
                    held.refreshed = tick;
                    (Learned::Known, *held)
                } else {
                    (self.move_to(held, owner, tick), *held)
                }
            }
            Entry::Vacant(entry) => {
                let held = Held { owner, refreshed: tick, frozen_until: 0, moves_since: tick, moves: 0 };
                if self.take_room(owner) {
                    self.total.fetch_add(1, Relaxed);
                    entry.insert(held);
                    (Learned::Written, held)
                } else {
                    self.full.fetch_add(1, Relaxed);
                    (Learned::Full, held)
                }
            }
        };
        *line = Line::of(mac, &held, generation, tick);
        line.full = learned == Learned::Full;
        learned
    }

    /// Moves an address, unless it does so too often or its new owner has no room.
    fn move_to(&self, held: &mut Held, owner: Owner, tick: u32) -> Learned {
        if held.frozen_until > tick {
            return Learned::Damped;
        }
        if tick.wrapping_sub(held.moves_since) >= DAMPING_S {
            held.moves_since = tick;
            held.moves = 0;
        }
        held.moves += 1;
        if held.moves > MOVES_MAX {
            held.frozen_until = tick.saturating_add(DAMPING_S);
            held.moves = 0;
            return Learned::Damped;
        }
        if !self.take_room(owner) {
            self.full.fetch_add(1, Relaxed);
            return Learned::Full;
        }
        self.give_room(held.owner);
        held.owner = owner;
        held.refreshed = tick;
        self.generation.fetch_add(1, Release);
        Learned::Written
    }

    fn take_room(&self, owner: Owner) -> bool {
        let limit = match owner {
            Owner::Local => ENTRIES_MAX,
            Owner::Peer(_) => ENTRIES_PER_PEER_MAX,
        };
        let mut count = self.counts.entry(owner).or_insert(0);
        // Threads that come here together may pass the total by one each.
        if *count >= limit || self.total.load(Relaxed) >= ENTRIES_MAX {
            return false;
        }
        *count += 1;
        true
    }

    fn give_room(&self, owner: Owner) {
        if let Entry::Occupied(mut entry) = self.counts.entry(owner) {
            *entry.get_mut() = entry.get().saturating_sub(1);
            if *entry.get() == 0 {
                entry.remove();
            }
        }
    }

    fn remove_if(&self, gone: impl Fn(&Held) -> bool) {
        let mut removed = 0;
        self.macs.retain(|_, held| {
            let keep = !gone(held);
            if !keep {
                self.give_room(held.owner);
                removed += 1;
            }
            keep
        });
        if removed > 0 {
            self.total.fetch_sub(removed, Relaxed);
            self.generation.fetch_add(1, Release);
        }
    }
}

impl Line {
    fn of(mac: Mac, held: &Held, generation: u32, tick: u32) -> Line {
        Line { mac, used: true, full: false, owner: held.owner, generation, tick, frozen_until: held.frozen_until }
    }
}

/// Addresses in all: 1,000 peers with 64 each, and 5 MB of memory.
pub const ENTRIES_MAX: usize = 65_536;
/// Addresses of one remote peer, so that none can push out the others: above the containers of any one machine.
pub const ENTRIES_PER_PEER_MAX: usize = 4_096;
/// Seconds without a frame after which an address is forgotten: the default of Linux bridges.
pub const AGE_S: u32 = 300;
/// Seconds for which a cache answers alone: a tenth of the age, so that an address in use never ages out.
const REFRESH_S: u32 = AGE_S / 10;
/// Moves within [`DAMPING_S`] that are believed (RFC 7432, 15.1: N = 5).
pub const MOVES_MAX: u32 = 5;
/// Seconds over which moves are counted, and for which an address is then held (RFC 7432, 15.1: M = 180).
pub const DAMPING_S: u32 = 180;
/// 1,024 lines of 28 bytes stay within the first two levels of cache.
const CACHE_BITS: u32 = 10;
const CACHE_LINES: usize = 1 << CACHE_BITS;

#[cfg(test)]
mod tests;
