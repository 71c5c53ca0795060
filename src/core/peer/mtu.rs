//! How large a packet one path takes, found by probes alone: no ICMP is needed and none believed. One [`PathMtu`] for each path.
//!
//! ```text
//!             ┌──── a reply: confirmed, the next size ────┐
//!   start ──▶ Search: the ceiling, likely sizes, halves ──┘◀──────────┐
//!               │    └── no reply to four: too large, the next size   │ a black hole: what still passed is confirmed
//!               │ nothing left between                                │
//!               ▼                 large datagrams are sent            │
//!             Settled ─ 10 min ─▶ Search       Quiet ───────────────▶ Asked ── no reply ──▶ Doubted: three rounds of probes
//!                                               ▲  ▲── a reply ────────┘                      │     │ only smaller ones passed
//!                                               └────── a reply, or nothing passed at all ────┘     └──▶ Search
//! ```
//! The two halves run side by side: the search finds out what more the path takes, the watch (right) whether it still takes what it did. A path on which no
//! size passes is not judged here but by [`super::path`].
//!
//! Packetization Layer Path MTU Discovery for datagrams (RFC 8899), with these choices: the base size is taken as given (below it QUIC has no links either);
//! the search tries what paths usually take before it halves; the watch probes only while large datagrams are sent, so that an idle path costs nothing.
//!
//! Sizes are those of whole IP packets. Deliberately lacks: sealing, addresses, what a frame does with the size.

use std::collections::VecDeque;
use std::time::Duration;

use super::path::TICK;
use crate::time::Time;

/// A probe to be sealed and sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SizeProbe {
    /// Comes back in the reply.
    pub token: u64,
    /// Length of the IP packet.
    pub bytes: u16,
}

/// The search and the watch of one path.
#[derive(Debug)]
pub struct PathMtu {
    /// The largest size worth trying.
    ceiling: u16,
    /// Passed.
    low: u16,
    /// Did not pass, or is one more than the ceiling.
    high: u16,
    trying: Option<Try>,
    /// A search has ended since the path, or what it takes, became another.
    settled: bool,
    /// When nothing is being tried: when to search again.
    search_at: Time,
    watch: Watch,
    /// When `low`, or more, passed last.
    proven: Time,
    /// By the round trip when last looked at.
    waits: Waits,
    outstanding: VecDeque<Sent>,
    tokens: u64,
}

#[derive(Debug, Clone, Copy)]
struct Try {
    size: u16,
    sent: u8,
    next: Time,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Watch {
    Quiet,
    Asked {
        at: Time,
    },
    Doubted {
        rounds: u8,
        next: Time,
        /// The largest smaller size that passed meanwhile; 0: none.
        passed: u16,
    },
}

#[derive(Debug, Clone, Copy)]
struct Waits {
    /// Between two probes of one size.
    next: Duration,
    /// For a reply to the last of them.
    reply: Duration,
}

impl Waits {
    fn new(rtt: Duration) -> Waits {
        // A little less than a tick, so that a tick that comes early is not waited through.
        Waits { next: (TICK * 9 / 10).max(rtt * 5 / 4), reply: PATIENCE.max(rtt * 2) }
    }
}

#[derive(Debug, Clone, Copy)]
struct Sent {
    token: u64,
    size: u16,
}

impl PathMtu {
    /// A path of which nothing is known, worth trying up to `ceiling`. `seed` starts the tokens of its probes.
    pub fn new(now: Time, ceiling: u16, seed: u64) -> PathMtu {
        let mut mtu = PathMtu {
            ceiling: BASE,
            low: BASE,
            high: BASE + 1,
            trying: None,
            settled: false,
            search_at: now,
            watch: Watch::Quiet,
            proven: now,
            waits: Waits::new(Duration::ZERO),
            outstanding: VecDeque::new(),
            tokens: seed,
        };
        mtu.set_ceiling(now, ceiling);
        mtu
    }

    /// The largest packet that is known to pass.
    pub fn bytes(&self) -> u16 {
        self.low
    }

    /// Whether it is known that hardly more passes. Stays so while a settled search is tried again.
    pub fn settled(&self) -> bool {
        self.settled
    }

    /// The path leads elsewhere: nothing is known of it any more, and replies of the old one count no longer.
    pub fn reset(&mut self, now: Time) {
        self.low = BASE;
        self.restart(now);
    }

    /// The device below takes packets up to this size now.
    pub fn set_ceiling(&mut self, now: Time, ceiling: u16) {
        let ceiling = ceiling.clamp(BASE, MOST);
        if ceiling != self.ceiling {
            self.ceiling = ceiling;
            self.low = self.low.min(ceiling);
            self.restart(now);
        }
    }

    fn restart(&mut self, now: Time) {
        self.high = self.ceiling + 1;
        self.trying = None;
        self.settled = false;
        self.search_at = now;
        self.watch = Watch::Quiet;
        self.proven = now;
        self.outstanding.clear();
    }

    /// Looks at the time; to be called every [`TICK`] while the path is usable. `large`: datagrams above the base size were sent on it since the last time.
    pub fn on_tick(&mut self, now: Time, large: bool, rtt: Duration, out: &mut Vec<SizeProbe>) {
        self.waits = Waits::new(rtt);
        self.tick_search(now, out);
        self.tick_watch(now, large, out);
    }

    /// A probe's reply came; false when this was none of ours.
    pub fn on_reply(&mut self, now: Time, token: u64, out: &mut Vec<SizeProbe>) -> bool {
        let Some(at) = self.outstanding.iter().position(|sent| sent.token == token) else { return false };
        let Some(Sent { size, .. }) = self.outstanding.remove(at) else { return false };
        if size < self.low {
            if let Watch::Doubted { passed, .. } = &mut self.watch {
                *passed = size.max(*passed);
            }
            return true;
        }
        self.watch = Watch::Quiet;
        self.proven = now;
        if size > self.low {
            self.low = size;
            if self.high <= size {
                // It came later than it was waited for, so what was thought of larger ones is worth nothing either.
                self.high = self.ceiling + 1;
            }
            self.try_next(now, out);
        }
        true
    }

    fn tick_search(&mut self, now: Time, out: &mut Vec<SizeProbe>) {
        match self.trying {
            Some(Try { next, .. }) if now < next => {}
            Some(Try { size, sent, .. }) if sent < TRIES => {
                let wait = if sent + 1 == TRIES { self.waits.reply } else { self.waits.next };
                self.trying = Some(Try { size, sent: sent + 1, next: now + wait });
                self.send(size, out);
            }
            Some(Try { size, .. }) => {
                self.high = size;
                self.try_next(now, out);
            }
            None if now >= self.search_at => {
                self.high = self.ceiling + 1;
                self.try_next(now, out);
            }
            None => {}
        }
    }

    fn try_next(&mut self, now: Time, out: &mut Vec<SizeProbe>) {
        self.trying = self.candidate().map(|size| Try { size, sent: 1, next: now + self.waits.next });
        self.settled |= self.trying.is_none();
        self.search_at = match self.trying {
            Some(Try { size, .. }) => {
                self.send(size, out);
                now
            }
            None if self.low < self.ceiling => now + RAISE,
            None => Time::NEVER,
        };
    }

    /// The next size to try.
    fn candidate(&self) -> Option<u16> {
        let (low, high) = (self.low, self.high);
        if low >= self.ceiling {
            return None;
        }
        if high > self.ceiling {
            return Some(self.ceiling);
        }
        if high - low <= GRAIN {
            return None;
        }
        // A size that many paths have is most likely exactly that of this path.
        if LIKELY.contains(&low) {
            return Some(low + GRAIN);
        }
        let first = LIKELY.partition_point(|size| *size <= low);
        let end = LIKELY.partition_point(|size| *size < high);
        let likely = LIKELY.get(first..end).unwrap_or_default();
        if likely.contains(&ETHERNET) {
            return Some(ETHERNET);
        }
        let halfway = low + (high - low) / 2;
        Some(likely.get(likely.len() / 2).copied().unwrap_or(halfway))
    }

    fn tick_watch(&mut self, now: Time, large: bool, out: &mut Vec<SizeProbe>) {
        match self.watch {
            Watch::Quiet if large && self.low > BASE && now.since(self.proven) >= VERIFY => {
                self.watch = Watch::Asked { at: now };
                self.send(self.low, out);
            }
            Watch::Quiet => {}
            Watch::Asked { at } if now.since(at) < self.waits.reply => {}
            Watch::Asked { .. } => self.ask_round(now, 1, 0, out),
            Watch::Doubted { next, .. } if now < next => {}
            Watch::Doubted { rounds, passed, .. } if rounds < ROUNDS => {
                self.ask_round(now, rounds + 1, passed, out);
            }
            Watch::Doubted { passed: 0, .. } => {
                // The path, not the size: asked again while it is in use.
                self.watch = Watch::Quiet;
                self.proven = now;
            }
            Watch::Doubted { passed, .. } => {
                // The size that failed is among those tried again: four losses in a row do happen.
                let failed = self.low;
                self.low = passed;
                self.restart(now);
                self.high = failed + 1;
                self.try_next(now, out);
            }
        }
    }

    /// Asks for this size and smaller ones at once, so that what passes is known when it turns out that this one does not.
    fn ask_round(&mut self, now: Time, rounds: u8, passed: u16, out: &mut Vec<SizeProbe>) {
        let wait = if rounds == ROUNDS { self.waits.reply } else { self.waits.next };
        self.watch = Watch::Doubted { rounds, next: now + wait, passed };
        let low = self.low;
        self.send(low, out);
        for smaller in [ETHERNET, BASE].into_iter().filter(|size| *size < low) {
            self.send(smaller, out);
        }
    }

    fn send(&mut self, bytes: u16, out: &mut Vec<SizeProbe>) {
        let token = super::path::next_token(&mut self.tokens);
        if self.outstanding.len() >= OUTSTANDING_MAX {
            self.outstanding.pop_front();
        }
        self.outstanding.push_back(Sent { token, size: bytes });
        out.push(SizeProbe { token, bytes });
    }
}

/// Every path takes this: the least MTU of IPv6 (RFC 8200, 5), and near what QUIC demands (RFC 9000, 14).
pub const BASE: u16 = 1_280;
/// No Ethernet in use takes more.
pub const MOST: u16 = 9_216;
/// Most paths of all.
const ETHERNET: u16 = 1_500;
/// What paths usually take: tunnels (WireGuard 1,420, VXLAN 1,450, IPsec about 1,400), a cloud (1,460), 6in4 (1,480), PPPoE (1,492), Ethernet, jumbo frames
/// and tunnels on them. Ascending.
const LIKELY: [u16; 12] = [1_400, 1_420, 1_440, 1_450, 1_460, 1_472, 1_480, 1_492, ETHERNET, 8_896, 8_950, 9_000];
/// The search ends when it is this near: less than half a percent of a packet.
const GRAIN: u16 = 8;
/// Probes of one size before it is taken as too large: at 5 % loss either way, one wrong answer in 10,000.
const TRIES: u8 = 4;
/// For a reply, at least; twice the round trip when that is longer.
const PATIENCE: Duration = Duration::from_millis(200);
/// While large datagrams are sent, their size is proven this often: 5 KB/s at 1,500 bytes. With what follows, a black hole is found in about a second.
const VERIFY: Duration = Duration::from_millis(300);
/// Rounds of probes before a size in use is given up, after the first that had no reply.
const ROUNDS: u8 = 3;
/// A settled search begins anew after this long: RFC 8899's PMTU_RAISE_TIMER.
const RAISE: Duration = Duration::from_secs(600);
/// Probes remembered: four tries, three rounds of three, and what came late.
const OUTSTANDING_MAX: usize = 24;

#[cfg(test)]
mod tests;
