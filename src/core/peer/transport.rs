//! By what frames travel to a neighbour: as sealed UDP datagrams, or as QUIC datagrams on the link. One [`Transport`] for each peer.
//!
//! ```text
//!               UDP is silent and QUIC answers
//!     Udp ──────────────────────────────────────▶ Quic, UDP is asked each 500 ms
//!      ▲                                            │
//!      └────────────────────────────────────────────┘ UDP answered for 2 s without a gap; twice as long after a return that did not last, 64 s at most;
//!                                                     at once when QUIC is silent
//! ```
//! So a firewall that lets QUIC pass and drops what it does not know costs speed, not the path; and one that is mended is noticed. Each end chooses for what it
//! sends. Whether the path works at all, whichever way, is for [`super::path`] to say: this machine only gives it the address to use.
//!
//! Deliberately lacks: sealing (what travels is sealed either way), sizes, the link itself.

use std::net::SocketAddr;
use std::time::Duration;

use super::path::{Direct, next_token};
use crate::time::Time;

/// What the operator chose.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Policy {
    /// UDP, and QUIC while UDP does not pass though QUIC does.
    #[default]
    Auto,
    /// Sealed UDP datagrams only.
    Udp,
    /// QUIC datagrams only.
    Quic,
}

/// How frames travel now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum By {
    /// Sealed UDP datagrams.
    Udp,
    /// The same, as QUIC datagrams.
    Quic,
}

/// What the node has to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Seal a probe with this token and send it there.
    Probe {
        /// Comes back in the reply.
        token: u64,
        /// Where.
        to: SocketAddr,
    },
    /// The direct path leads there from now on.
    Use(SocketAddr),
}

#[derive(Debug, Clone, Copy)]
struct Sent {
    token: u64,
    by: By,
    at: Time,
}

/// UDP while it is not in use and answers.
#[derive(Debug, Clone, Copy)]
struct Good {
    since: Time,
    last: Time,
}

/// The choice for one peer.
#[derive(Debug)]
pub struct Transport {
    policy: Policy,
    by: By,
    udp: Option<SocketAddr>,
    quic: Option<SocketAddr>,
    next: Time,
    outstanding: Vec<Sent>,
    /// QUIC answered last.
    quic_heard: Option<Time>,
    good: Option<Good>,
    /// How long UDP must be good until it is used again.
    patience: Duration,
    /// Nothing comes back by what is in use.
    silent: bool,
    /// When UDP was used again last.
    returned: Option<Time>,
    tokens: u64,
}

impl Transport {
    /// Of a peer without a link. `seed` starts the tokens of its probes.
    pub fn new(policy: Policy, seed: u64) -> Transport {
        Transport {
            policy,
            by: if policy == Policy::Quic { By::Quic } else { By::Udp },
            udp: None,
            quic: None,
            next: Time::ZERO,
            outstanding: Vec::new(),
            quic_heard: None,
            good: None,
            patience: PATIENCE_MIN,
            silent: false,
            returned: None,
            tokens: seed,
        }
    }

    /// How frames travel.
    pub fn by(&self) -> By {
        self.by
    }

    /// QUIC is used because UDP does not pass, not because it was chosen.
    pub fn fell_back(&self) -> bool {
        self.by == By::Quic && self.policy == Policy::Auto
    }

    /// Where the link leads by UDP.
    pub fn udp(&self) -> Option<SocketAddr> {
        self.udp
    }

    /// A link is in use that leads to `udp`, and by QUIC datagrams to `quic`. Gives which of the two frames take.
    pub fn on_link(&mut self, now: Time, udp: SocketAddr, quic: SocketAddr) -> SocketAddr {
        if self.quic.replace(quic) != Some(quic) || self.udp.replace(udp) != Some(udp) {
            self.udp = Some(udp);
            self.outstanding.clear();
            (self.quic_heard, self.good, self.next) = (None, None, now);
        }
        if self.by == By::Quic { quic } else { udp }
    }

    /// There is no link any more.
    pub fn on_link_down(&mut self) {
        (self.udp, self.quic, self.quic_heard, self.good) = (None, None, None, None);
        self.outstanding.clear();
    }

    /// The peer was found at another UDP address.
    pub fn on_moved(&mut self, udp: SocketAddr) {
        if self.udp.is_some() {
            self.udp = Some(udp);
        }
    }

    /// To be called with each tick of the path, whose state is `direct`.
    pub fn on_tick(&mut self, now: Time, direct: Direct, out: &mut Vec<Step>) {
        let (Some(udp), Some(quic), Policy::Auto) = (self.udp, self.quic, self.policy) else { return };
        self.outstanding.retain(|sent| now.since(sent.at) < FORGOTTEN);
        self.silent = direct == Direct::Suspect;
        let (every, to) = match (self.by, direct) {
            (By::Udp, Direct::Doubted { .. }) => (ASK_IN_DOUBT, quic),
            (By::Udp, Direct::Suspect) => (ASK, quic),
            (By::Udp, _) => {
                self.quic_heard = None;
                self.next = now;
                return;
            }
            (By::Quic, _) => (ASK, udp),
        };
        if self.good.is_some_and(|good| now.since(good.last) > ASK * 3) {
            self.good = None;
        }
        if self.by == By::Udp && self.silent && self.quic_heard.is_some_and(|at| now.since(at) < FORGOTTEN) {
            let lasted = self.returned.is_none_or(|at| now.since(at) >= LASTED);
            self.patience = if lasted { PATIENCE_MIN } else { (self.patience * 2).min(PATIENCE_MAX) };
            (self.by, self.good, self.quic_heard, self.next) = (By::Quic, None, None, now);
            self.outstanding.clear();
            return out.push(Step::Use(quic));
        }
        if now >= self.next {
            self.next = now + every;
            let token = next_token(&mut self.tokens);
            if self.outstanding.len() >= OUTSTANDING_MAX {
                self.outstanding.remove(0);
            }
            let by = if to == quic { By::Quic } else { By::Udp };
            self.outstanding.push(Sent { token, by, at: now });
            out.push(Step::Probe { token, to });
        }
    }

    /// A reply came; false when it is to none of these probes.
    pub fn on_reply(&mut self, now: Time, token: u64, out: &mut Vec<Step>) -> bool {
        let Some(at) = self.outstanding.iter().position(|sent| sent.token == token) else { return false };
        let sent = self.outstanding.swap_remove(at);
        match (self.by, sent.by) {
            (By::Udp, By::Quic) => self.quic_heard = Some(now),
            (By::Quic, By::Udp) => {
                let since = self.good.map_or(now, |good| good.since);
                self.good = Some(Good { since, last: now });
                if (self.silent || now.since(since) >= self.patience)
                    && let Some(udp) = self.udp
                {
                    (self.by, self.good, self.returned) = (By::Udp, None, Some(now));
                    self.outstanding.clear();
                    out.push(Step::Use(udp));
                }
            }
            (By::Udp, By::Udp) | (By::Quic, By::Quic) => {}
        }
        true
    }
}

/// Between questions on the transport that is not used: two in a second show a gap soon, and weigh nothing.
const ASK: Duration = Duration::from_millis(500);
/// The same while UDP is doubted: so that QUIC has answered by the time that UDP is given up.
const ASK_IN_DOUBT: Duration = Duration::from_millis(100);
/// A question without reply, and an answer, are worth nothing after this.
const FORGOTTEN: Duration = Duration::from_secs(2);
/// UDP is used again after so long without a gap: as long as any direct path waits for its return.
const PATIENCE_MIN: Duration = Duration::from_secs(2);
/// Never stuck: a minute of slower frames is the most that a path that comes and goes costs.
const PATIENCE_MAX: Duration = Duration::from_secs(64);
/// A return that ends sooner counts as none.
const LASTED: Duration = Duration::from_secs(120);
/// Questions remembered: those of [`FORGOTTEN`] while UDP is doubted.
const OUTSTANDING_MAX: usize = 20;

#[cfg(test)]
mod tests;
