//! When a thread that found nothing looks again, and when it sleeps.
//!
//! Waking a sleeping thread takes some 6 µs, most of what a frame spends here; so a thread looks a few times more before it sleeps. How often adapts: twice as
//! often after it paid, half after it did not. Now and then all of it is tried, so that a stream of requests with a gap of a few microseconds is found.
//!
//! Between looks others may have the core: what we wait for may come from them. Should one of them keep it for long, the cores are crowded, and then a sleeper
//! is better off: who is woken comes before who works, and who merely looks waits for the end of somebody's slice, a millisecond or more. So looks stop for a
//! while.
//!
//! At rest the price is a few looks for each wake-up: at 100 wakes a second well under a thousandth of a core.

use std::time::{Duration, Instant};

/// The looks of one thread.
#[derive(Debug)]
pub struct Idle {
    /// Looks before it sleeps.
    limit: u32,
    left: u32,
    sleeps: u32,
    /// Sleeps until looks are tried again.
    crowded: u32,
}

impl Default for Idle {
    fn default() -> Idle {
        Idle { limit: LOOKS_MIN, left: LOOKS_MIN, sleeps: 0, crowded: 0 }
    }
}

impl Idle {
    /// Something was found.
    pub fn found(&mut self) {
        if self.left < self.limit {
            self.limit = (self.limit * 2).min(LOOKS_MAX);
        }
        self.left = self.limit;
    }

    /// Nothing was found: true to look again, false to sleep.
    pub fn look_again(&mut self) -> bool {
        if self.left > 0 {
            self.left -= 1;
            let before = Instant::now();
            std::thread::yield_now();
            self.was_away(before.elapsed());
            return true;
        }
        self.sleeps = self.sleeps.wrapping_add(1);
        self.crowded = self.crowded.saturating_sub(1);
        self.limit = if self.crowded > 0 {
            0
        } else if self.sleeps.is_multiple_of(SLEEPS_PER_TRIAL) {
            LOOKS_MAX
        } else {
            (self.limit / 2).max(LOOKS_MIN)
        };
        self.left = self.limit;
        false
    }

    /// How long others had the core between two looks.
    fn was_away(&mut self, time: Duration) {
        if time > AWAY_MAX {
            self.crowded = SLEEPS_WHILE_CROWDED;
            (self.limit, self.left) = (0, 0);
        }
    }
}

/// A look is two system calls, some 0.4 µs: about 25 µs at most, what the other end needs to answer on the same machine or a fast LAN.
const LOOKS_MAX: u32 = 64;
/// Little more than a microsecond.
const LOOKS_MIN: u32 = 2;
/// One sleep in 16 is preceded by all looks.
const SLEEPS_PER_TRIAL: u32 = 16;
/// Several times what those that answer us take; a tenth of the scheduler's slice.
const AWAY_MAX: Duration = Duration::from_micros(100);
/// Some milliseconds of a stream of requests: one slice lost in that time costs less than looking gains.
const SLEEPS_WHILE_CROWDED: u32 = 256;

#[cfg(test)]
mod tests {
    use super::*;

    /// Looks until sleep, on a machine where nobody else has the core for long.
    fn looks(idle: &mut Idle) -> u32 {
        let mut count = 0;
        while idle.left > 0 {
            idle.left -= 1;
            count += 1;
        }
        assert!(!idle.look_again());
        count
    }

    #[test]
    fn looks_shrink_when_they_do_not_pay_but_are_tried_now_and_then() {
        let mut idle = Idle::default();
        let counts: Vec<u32> = (0..64)
            .map(|_| {
                let count = looks(&mut idle);
                idle.found();
                count
            })
            .collect();
        assert!(counts.iter().all(|count| (LOOKS_MIN..=LOOKS_MAX).contains(count)));
        assert_eq!(counts.iter().filter(|count| **count == LOOKS_MAX).count(), 3);
        assert!(counts.iter().sum::<u32>() < 64 * 12, "{counts:?}");
    }

    #[test]
    fn looks_grow_while_they_pay() {
        let mut idle = Idle::default();
        for _ in 0..10 {
            idle.left -= 1;
            idle.found();
        }
        assert_eq!(looks(&mut idle), LOOKS_MAX);
    }

    #[test]
    fn nobody_looks_while_the_cores_are_crowded() {
        let mut idle = Idle::default();
        idle.was_away(AWAY_MAX);
        assert_eq!(looks(&mut idle), LOOKS_MIN, "not longer than allowed");
        idle.was_away(AWAY_MAX * 2);
        let counts: Vec<u32> = (0..SLEEPS_WHILE_CROWDED + 16)
            .map(|_| {
                idle.found();
                looks(&mut idle)
            })
            .collect();
        assert!(counts.iter().take(SLEEPS_WHILE_CROWDED as usize).all(|count| *count == 0), "{counts:?}");
        assert!(counts.contains(&LOOKS_MAX), "they are tried again: {counts:?}");
    }
}
