//! When to compute routes anew: at once after quiet, and ever more seldom in a burst (RFC 8405's back-off in small).

use std::time::Duration;

use crate::time::Time;

/// What changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum What {
    Costs,
    Links,
}

/// The machine: tell it of changes, ask it whether it is time.
#[derive(Debug, Clone, Copy, Default)]
pub struct Pace {
    waiting: Option<What>,
    last: Option<Time>,
    interval: Duration,
    few: bool,
}

impl Pace {
    /// Links changed.
    pub fn changed(&mut self) {
        self.waiting = Some(What::Links);
    }

    /// Costs changed, and nothing else: the routes there are still lead to everyone.
    pub fn changed_costs(&mut self) {
        self.waiting = self.waiting.max(Some(What::Costs));
    }

    /// When to compute.
    pub fn next_deadline(&self) -> Time {
        match (self.waiting, self.last) {
            (None, _) => Time::NEVER,
            (Some(_), None) => Time::ZERO,
            (Some(What::Links), Some(last)) => last + self.interval,
            (Some(What::Costs), Some(last)) => last + if self.few { self.interval } else { QUIET },
        }
    }

    /// Whether to compute now; the caller does it then. The number of peers tells how dear that is.
    pub fn due(&mut self, now: Time, peers: usize) -> bool {
        self.few = peers <= FEW_PEERS;
        if now < self.next_deadline() {
            return false;
        }
        let longest = if self.few { SHORTEST } else { LONGEST };
        let quiet = self.last.is_none_or(|last| now >= last + QUIET);
        self.interval = if quiet { SHORTEST } else { (self.interval * 2).clamp(SHORTEST, longest) };
        self.waiting = None;
        self.last = Some(now);
        true
    }
}

/// Between two computations: a burst of records arrives within it on a LAN.
const SHORTEST: Duration = Duration::from_millis(50);
/// In a long burst: a thousand peers restarting cost one computation a second.
const LONGEST: Duration = Duration::from_secs(1);
/// After this long without a computation, the next change is computed at once again. Costs alone never hurry more than this in a large mesh, where
/// they trickle in for ever.
const QUIET: Duration = Duration::from_secs(5);
/// Up to this many peers a computation takes less than a tenth of a millisecond.
const FEW_PEERS: usize = 64;
