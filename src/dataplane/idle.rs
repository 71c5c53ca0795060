//! When a thread that found nothing looks again, and when it sleeps.
//!
//! Waking a sleeping thread takes some 6 µs, most of what a frame spends here; so a thread looks a few times more before it sleeps. How often adapts: twice as
//! often after it paid, half after it did not. Now and then all of it is tried, so that a stream of requests with a gap of a few microseconds is found.
//!
//! At rest the price is a few looks for each wake-up: at 100 wakes a second well under a thousandth of a core.

/// The looks of one thread.
#[derive(Debug)]
pub struct Idle {
    /// Looks before it sleeps.
    limit: u32,
    left: u32,
    sleeps: u32,
}

impl Default for Idle {
    fn default() -> Idle {
        Idle { limit: LOOKS_MIN, left: LOOKS_MIN, sleeps: 0 }
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
            // Whoever is to send what we wait for may need this core.
            std::thread::yield_now();
            return true;
        }
        self.sleeps = self.sleeps.wrapping_add(1);
        self.limit =
            if self.sleeps.is_multiple_of(SLEEPS_PER_TRIAL) { LOOKS_MAX } else { (self.limit / 2).max(LOOKS_MIN) };
        self.left = self.limit;
        false
    }
}

/// A look is two system calls, some 0.4 µs: about 25 µs at most, what the other end needs to answer on the same machine or a fast LAN.
const LOOKS_MAX: u32 = 64;
/// Little more than a microsecond.
const LOOKS_MIN: u32 = 2;
/// One sleep in 16 is preceded by all looks.
const SLEEPS_PER_TRIAL: u32 = 16;

#[cfg(test)]
mod tests {
    use super::*;

    fn looks(idle: &mut Idle) -> u32 {
        (0..1000).take_while(|_| idle.look_again()).count() as u32
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
            assert!(idle.look_again());
            idle.found();
        }
        assert_eq!(looks(&mut idle), LOOKS_MAX);
    }
}
