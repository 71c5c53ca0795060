//! Keeps repeated warnings from filling the log.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// Lets one line for each key through in a period, and tells with the next how many were left out.
#[derive(Debug)]
pub struct Repeat {
    period: Duration,
    seen: BTreeMap<(&'static str, String), Seen>,
}

#[derive(Debug)]
struct Seen {
    since: Instant,
    left_out: u64,
}

impl Repeat {
    /// One line a period for each key.
    pub fn new(period: Duration) -> Repeat {
        Repeat { period, seen: BTreeMap::new() }
    }

    /// Whether to write this line now: the number of its like that were left out before, or none for "be silent".
    ///
    /// `what` is the kind of line, `about` tells apart whom it concerns (may be empty).
    pub fn admit(&mut self, now: Instant, what: &'static str, about: &str) -> Option<u64> {
        let key = (what, about.to_owned());
        if let Some(seen) = self.seen.get_mut(&key) {
            if now.saturating_duration_since(seen.since) < self.period {
                seen.left_out += 1;
                return None;
            }
            let left_out = seen.left_out;
            *seen = Seen { since: now, left_out: 0 };
            return Some(left_out);
        }
        if self.seen.len() >= KEYS_MAX {
            self.forget(now);
        }
        self.seen.insert(key, Seen { since: now, left_out: 0 });
        Some(0)
    }

    /// Forgets what is over; when nothing is, the oldest, so that a stranger who invents keys cannot grow the map.
    fn forget(&mut self, now: Instant) {
        let period = self.period;
        self.seen.retain(|_, seen| now.saturating_duration_since(seen.since) < period);
        if self.seen.len() >= KEYS_MAX {
            let oldest = self.seen.iter().min_by_key(|(_, seen)| seen.since).map(|(key, _)| key.clone());
            oldest.and_then(|key| self.seen.remove(&key));
        }
    }
}

/// Kinds of line times the peers that can be in trouble at once; beyond it lines are merely repeated more often.
pub(super) const KEYS_MAX: usize = 256;
