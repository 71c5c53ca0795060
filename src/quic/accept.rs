//! Who may begin a handshake. A handshake costs about 1 ms of processor and a stranger's first datagram costs him nothing, so under load strangers first prove
//! their address (stateless retry: RFC 9000, 8.1.2), and above a bound they are refused.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::socket::virtual_peer;

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

/// Handshakes under way, by where they come from. Bounded by [`PENDING_MAX`], for nothing is kept of those that ended.
#[derive(Debug, Default)]
pub(super) struct Pending {
    by_source: Mutex<BTreeMap<IpAddr, usize>>,
}

/// One handshake under way, for as long as it lives.
#[derive(Debug)]
pub(super) struct Handshaking {
    pending: Arc<Pending>,
    source: IpAddr,
}

impl Pending {
    /// How many there are, and how many of them from the network of `remote`.
    pub(super) fn count(&self, remote: SocketAddr) -> (usize, usize) {
        let by_source = self.lock();
        (by_source.values().sum(), by_source.get(&source(remote)).copied().unwrap_or(0))
    }

    /// Counts one more.
    pub(super) fn begin(self: &Arc<Self>, remote: SocketAddr) -> Handshaking {
        let source = source(remote);
        *self.lock().entry(source).or_default() += 1;
        Handshaking { pending: self.clone(), source }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<IpAddr, usize>> {
        self.by_source.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Handshaking {
    fn drop(&mut self) {
        let mut by_source = self.pending.lock();
        if let Some(count) = by_source.get_mut(&self.source) {
            *count -= 1;
            if *count == 0 {
                by_source.remove(&self.source);
            }
        }
    }
}

/// Whoever has one IPv6 address has its /64. Peers behind relays are told apart by the rest.
fn source(remote: SocketAddr) -> IpAddr {
    match remote.ip().to_canonical() {
        IpAddr::V6(ip) if virtual_peer(remote).is_none() => IpAddr::V6(Ipv6Addr::from(u128::from(ip) >> 64 << 64)),
        ip => ip,
    }
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

    /// Judges one, with `pending` handshakes under way, `of_source` of them from the same network.
    pub(super) fn judge(&mut self, now: Instant, proven: bool, (pending, of_source): (usize, usize)) -> Verdict {
        if pending >= PENDING_MAX || proven && of_source >= PENDING_OF_SOURCE {
            return Verdict::Refuse;
        }
        if proven {
            return Verdict::Accept;
        }
        if now.saturating_duration_since(self.second) >= Duration::from_secs(1) {
            *self = Admission::new(now);
        }
        self.unproven = self.unproven.saturating_add(1);
        let busy = pending >= PENDING_UNPROVEN || of_source >= PENDING_OF_SOURCE;
        if busy || self.unproven > UNPROVEN_PER_SECOND { Verdict::Retry } else { Verdict::Accept }
    }
}

/// Handshakes a second without proof of address: a tenth of a core.
pub(super) const UNPROVEN_PER_SECOND: u32 = 100;
/// Handshakes under way above which addresses must be proven.
const PENDING_UNPROVEN: usize = 256;
/// Handshakes under way at most: half a second of a core, and 15 MB.
pub(super) const PENDING_MAX: usize = 512;
/// Of one network at most, so that one stranger leaves room for all others; above what a site behind one address starts at once.
const PENDING_OF_SOURCE: usize = 128;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quic::virtual_address;
    use meshnet_proto::ShortId;

    #[test]
    fn strangers_prove_their_address_under_load_and_are_refused_above() {
        let start = Instant::now();
        let mut admission = Admission::new(start);
        for _ in 0..UNPROVEN_PER_SECOND {
            assert_eq!(admission.judge(start, false, (0, 0)), Verdict::Accept);
        }
        assert_eq!(admission.judge(start, false, (0, 0)), Verdict::Retry);
        assert_eq!(admission.judge(start, true, (0, 0)), Verdict::Accept, "proven addresses do not count");
        let later = start + Duration::from_secs(1);
        assert_eq!(admission.judge(later, false, (0, 0)), Verdict::Accept, "each second is a new one");
        assert_eq!(admission.judge(later, false, (PENDING_UNPROVEN, 0)), Verdict::Retry);
        assert_eq!(admission.judge(later, true, (PENDING_UNPROVEN, 0)), Verdict::Accept);
        assert_eq!(admission.judge(later, true, (PENDING_MAX, 0)), Verdict::Refuse);
        assert_eq!(admission.judge(later, false, (PENDING_MAX, 0)), Verdict::Refuse);
    }
    #[test]
    fn one_network_leaves_room_for_others() {
        let start = Instant::now();
        let mut admission = Admission::new(start);
        let pending = Arc::new(Pending::default());
        let address = |text: &str| text.parse::<SocketAddr>().unwrap();
        let held: Vec<_> = (0..PENDING_OF_SOURCE).map(|_| pending.begin(address("[2001:db8::1]:5"))).collect();
        for (from, full) in [
            ("[2001:db8::2]:6", true),
            ("[2001:db8:0:1::1]:5", false),
            ("192.0.2.1:5", false),
            ("[::ffff:192.0.2.1]:5", false),
        ] {
            let counts = pending.count(address(from));
            assert_eq!(counts, (PENDING_OF_SOURCE, if full { PENDING_OF_SOURCE } else { 0 }), "{from}");
            let wanted = if full { [Verdict::Retry, Verdict::Refuse] } else { [Verdict::Accept; 2] };
            assert_eq!([false, true].map(|proven| admission.judge(start, proven, counts)), wanted, "{from}");
        }
        drop(held);
        assert_eq!(pending.count(address("[2001:db8::1]:5")), (0, 0));
        let _relayed = pending.begin(virtual_address(ShortId(1)));
        assert_eq!(pending.count(virtual_address(ShortId(2))), (1, 0));
    }
}
