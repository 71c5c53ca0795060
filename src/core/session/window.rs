//! The replay window (RFC 6479's purpose, another shape): which counters were seen, without a lock.
//!
//! Each slot is one word: the number of a block of 32 counters in the high half, a bit for each counter of it in the low half. A slot only ever moves to a
//! newer block, so a counter is accepted at most once whatever the threads do; one that is a whole window older than the newest in its slot is refused.
//!
//! ```text
//! counter ─┬─ block = counter / 32 ── slot = block mod SLOTS ──▶ [ block (32 bits) │ seen bits (32) ]
//!          └─ bit   = counter % 32
//! ```

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Counters from this on are refused: the block number would not fit. Rekeying comes long before.
pub const COUNTER_MAX: u64 = 1 << 36;
/// 128 blocks of 32: 4,096 counters. Bursts of 64 segments on several queues reorder by a few hundred.
const SLOTS: usize = 128;

/// Which counters of a lane were seen.
#[derive(Debug)]
pub struct ReplayWindow {
    slots: [AtomicU64; SLOTS],
}

impl Default for ReplayWindow {
    fn default() -> ReplayWindow {
        ReplayWindow { slots: std::array::from_fn(|_| AtomicU64::new(0)) }
    }
}

impl ReplayWindow {
    /// Marks `counter` as seen. False when it was seen before or is too old to tell: the datagram must be dropped.
    /// Call it only after the datagram proved genuine.
    pub fn accept(&self, counter: u64) -> bool {
        if counter >= COUNTER_MAX {
            return false;
        }
        let block = counter / 32;
        let bit = 1u64 << (counter % 32);
        let Some(slot) = self.slots.get(block as usize % SLOTS) else { return false };
        let mut seen = slot.load(Relaxed);
        loop {
            let newest = seen >> 32;
            let next = match block.cmp(&newest) {
                std::cmp::Ordering::Less => return false,
                std::cmp::Ordering::Equal if seen & bit != 0 => return false,
                std::cmp::Ordering::Equal => seen | bit,
                std::cmp::Ordering::Greater => block << 32 | bit,
            };
            match slot.compare_exchange_weak(seen, next, Relaxed, Relaxed) {
                Ok(_) => return true,
                Err(now) => seen = now,
            }
        }
    }
}
