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
    #[inline]
    pub fn accept(&self, counter: u64) -> bool {
        if counter >= COUNTER_MAX {
            return false;
        }
        self.mark((counter / 32) as u32, counter % 32, |block, newest| block > newest)
    }

    /// The same for numbers of 32 bits that start anew after the last: newer is what is less than half of all numbers ahead (RFC 1982).
    /// A window is used by this or by [`ReplayWindow::accept`], never by both.
    #[inline]
    pub fn accept_wrapping(&self, number: u32) -> bool {
        let block = number / 32;
        // Block 0 is what an unused slot holds, and must not count as far ahead of the first block seen: used slots carry a mark above the block.
        let newer = |block: u32, newest: u32| newest & USED == 0 || block.wrapping_sub(newest) & (USED - 1) < USED / 2;
        self.mark(block | USED, u64::from(number % 32), newer)
    }

    #[inline]
    fn mark(&self, block: u32, bit: u64, newer: impl Fn(u32, u32) -> bool) -> bool {
        let bit = 1u64 << bit;
        let Some(slot) = self.slots.get(block as usize % SLOTS) else { return false };
        let mut seen = slot.load(Relaxed);
        loop {
            let newest = (seen >> 32) as u32;
            let next = if block == newest {
                if seen & bit != 0 {
                    return false;
                }
                seen | bit
            } else if newer(block, newest) {
                u64::from(block) << 32 | bit
            } else {
                return false;
            };
            match slot.compare_exchange_weak(seen, next, Relaxed, Relaxed) {
                Ok(_) => return true,
                Err(now) => seen = now,
            }
        }
    }
}

/// Above the 27 bits of a block of wrapping numbers.
const USED: u32 = 1 << 27;

#[cfg(test)]
mod tests;
