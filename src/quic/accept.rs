//! Who may begin a handshake. A handshake costs about 1 ms of processor and a stranger's first datagram costs him nothing, so under load strangers first prove
//! their address (stateless retry: RFC 9000, 8.1.2), and above a bound they are refused.

use std::time::{Duration, Instant};

/// What to do with a stranger's first datagram.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Begin the handshake.
    Accept,
    /// Let the stranger prove his address first.
    Retry,
    /// Say no.
    Refuse,
}

/// Counts handshakes of unproven addresses by the second.
#[derive(Debug)]
pub(super) struct Admission {
    second: Instant,
    unproven: u32,
}

impl Admission {
    pub(super) fn new(now: Instant) -> Admission {
        Admission { second: now, unproven: 0 }
    }

    /// Judges one, with `pending` handshakes under way.
    pub(super) fn judge(&mut self, now: Instant, proven: bool, pending: usize) -> Verdict {
        if pending >= PENDING_MAX {
            return Verdict::Refuse;
        }
        if proven {
            return Verdict::Accept;
        }
        if now.saturating_duration_since(self.second) >= Duration::from_secs(1) {
            *self = Admission::new(now);
        }
        self.unproven = self.unproven.saturating_add(1);
        if self.unproven > UNPROVEN_PER_SECOND || pending >= PENDING_UNPROVEN {
            Verdict::Retry
        } else {
            Verdict::Accept
        }
    }
}

/// Handshakes a second without proof of address: a tenth of a core.
pub(super) const UNPROVEN_PER_SECOND: u32 = 100;
/// Handshakes under way above which addresses must be proven.
const PENDING_UNPROVEN: usize = 256;
/// Handshakes under way at most: half a second of a core, and 15 MB.
pub(super) const PENDING_MAX: usize = 512;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strangers_prove_their_address_under_load_and_are_refused_above() {
        let start = Instant::now();
        let mut admission = Admission::new(start);
        for _ in 0..UNPROVEN_PER_SECOND {
            assert_eq!(admission.judge(start, false, 0), Verdict::Accept);
        }
        assert_eq!(admission.judge(start, false, 0), Verdict::Retry);
        assert_eq!(admission.judge(start, true, 0), Verdict::Accept, "proven addresses do not count");
        let later = start + Duration::from_secs(1);
        assert_eq!(admission.judge(later, false, 0), Verdict::Accept, "each second is a new one");
        assert_eq!(admission.judge(later, false, PENDING_UNPROVEN), Verdict::Retry);
        assert_eq!(admission.judge(later, true, PENDING_UNPROVEN), Verdict::Accept);
        assert_eq!(admission.judge(later, true, PENDING_MAX), Verdict::Refuse);
        assert_eq!(admission.judge(later, false, PENDING_MAX), Verdict::Refuse);
    }
}
