//! When to compute routes anew: at once after quiet, and ever more seldom in a burst (RFC 8405's back-off in small).

use std::time::Duration;

use crate::time::Time;

/// The machine: tell it of changes, ask it whether it is time.
#[derive(Debug, Clone, Copy, Default)]
pub struct Pace {
    waiting: bool,
    last: Option<Time>,
    interval: Duration,
}

impl Pace {
    /// Something changed.
    pub fn changed(&mut self) {
        self.waiting = true;
    }

    /// When to compute.
    pub fn next_deadline(&self) -> Time {
        match (self.waiting, self.last) {
            (false, _) => Time::NEVER,
            (true, None) => Time::ZERO,
            (true, Some(last)) => last + self.interval,
        }
    }

    /// Whether to compute now; the caller does it then. The number of peers tells how dear that is.
    pub fn due(&mut self, now: Time, peers: usize) -> bool {
        if now < self.next_deadline() {
            return false;
        }
        let longest = if peers <= FEW_PEERS { SHORTEST } else { LONGEST };
        let quiet = self.last.is_none_or(|last| now >= last + QUIET);
        self.interval = if quiet { SHORTEST } else { (self.interval * 2).clamp(SHORTEST, longest) };
        self.waiting = false;
        self.last = Some(now);
        true
    }
}

/// Between two computations: a burst of records arrives within it on a LAN.
const SHORTEST: Duration = Duration::from_millis(50);
/// In a long burst: a thousand peers restarting cost one computation a second.
const LONGEST: Duration = Duration::from_secs(1);
/// After this long without a computation, the next change is computed at once again.
const QUIET: Duration = Duration::from_secs(5);
/// Up to this many peers a computation takes less than a tenth of a millisecond.
const FEW_PEERS: usize = 64;
