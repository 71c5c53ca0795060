//! Whether the kernel's fast path to a peer works: VXLAN beside the sealed path, proven by probes of its own. One [`FastPath`] for each peer.
//!
//! ```text
//!              allowed                   answered for a while, and heard
//!   Off ────────────────▶ Trying ──────────────────────────────────────────▶ On: frames go there
//!    ▲                      ▲  a probe each 100 ms, later each second          │ each 100 ms in use, else each second
//!    │ not allowed          └──────────────────────────────────────────────────┘
//!    └── (from any)             three unanswered within 300 ms, or the other end is not heard
//! ```
//! The port of VXLAN may be closed where ours is open, so only an answer to what travelled in VXLAN proves it; the answer itself comes on the sealed path,
//! which is why a sealed path that ends takes this one with it: the node then says that it is not allowed. What was lost once has to be good for longer.
//!
//! Deliberately lacks: who may use it (the node knows what both ends trust), frames, addresses, devices.

use std::collections::VecDeque;
use std::time::Duration;

use crate::time::Time;

/// What the node has to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Send a probe with this token in VXLAN.
    Probe {
        /// The sealed answer repeats it.
        token: u64,
        /// As long as the longest frame: what is shorter says nothing about that.
        full: bool,
    },
    /// [`FastPath::on`] changed.
    Changed,
}

/// Why frames do not go there although both ends would.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wait {
    /// It is being tried, or has to be good for a while first.
    Trying,
    /// What we send does not get there.
    NotAnswered,
    /// What the other end sends does not get here.
    NotHeard,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Off,
    Trying { since: Time },
    On,
}

/// The fast path to one peer.
#[derive(Debug)]
pub struct FastPath {
    state: State,
    /// It was lost since it was allowed.
    lost: bool,
    /// Answered without a gap since then.
    good: Option<Time>,
    /// The first probe since the last answer.
    unanswered: Option<Time>,
    /// Probes since the last answer.
    sent: u32,
    /// When a probe of the other end came last.
    heard: Option<Time>,
    next_probe: Time,
    outstanding: VecDeque<u64>,
    tokens: u64,
    probes: u32,
}

impl FastPath {
    /// One that is not allowed yet. `seed` starts the tokens of its probes: whoever cannot guess it cannot answer for the other end.
    pub fn new(seed: u64) -> FastPath {
        FastPath {
            state: State::Off,
            lost: false,
            good: None,
            unanswered: None,
            sent: 0,
            heard: None,
            next_probe: Time::ZERO,
            outstanding: VecDeque::new(),
            tokens: seed,
            probes: 0,
        }
    }

    /// Whether frames go there.
    pub fn on(&self) -> bool {
        self.state == State::On
    }

    /// Why they do not, when they might.
    pub fn wait(&self, now: Time) -> Option<Wait> {
        let State::Trying { since } = self.state else { return None };
        if now.since(since) < TRY_FAST {
            return Some(Wait::Trying);
        }
        Some(match (self.good, self.hears(now)) {
            (None, _) => Wait::NotAnswered,
            (Some(_), false) => Wait::NotHeard,
            (Some(_), true) => Wait::Trying,
        })
    }

    /// To be called every [`crate::peer::path::TICK`]. `allowed`: both ends trust the network, and the sealed path between them is direct and good. `busy`:
    /// frames use it.
    pub fn on_tick(&mut self, now: Time, allowed: bool, busy: bool, out: &mut Vec<Action>) {
        if !allowed {
            return self.end(out);
        }
        if self.state == State::Off {
            self.state = State::Trying { since: now };
            self.next_probe = now;
        }
        let missed = self.sent >= MISSED_MAX && self.unanswered.is_some_and(|since| now.since(since) >= MISSED_WITHIN);
        if missed {
            self.good = None;
        }
        match self.state {
            State::On if missed || !self.hears(now) => {
                self.state = State::Trying { since: now };
                self.lost = true;
                self.good = None;
                self.next_probe = now;
                out.push(Action::Changed);
            }
            State::On => {
                // The last one had no answer yet: know soon.
                if self.unanswered.is_some_and(|since| now.since(since) >= PROBE_FAST) || busy {
                    self.next_probe = self.next_probe.min(now + PROBE_FAST);
                    if self.unanswered.is_some() {
                        self.next_probe = now;
                    }
                }
            }
            State::Trying { .. } if self.proven(now) => {
                self.state = State::On;
                out.push(Action::Changed);
            }
            State::Trying { .. } | State::Off => {}
        }
        if now >= self.next_probe {
            self.probe(now, busy, out);
        }
    }

    /// The sealed answer to a probe came. False when it was to none of ours.
    pub fn on_answer(&mut self, now: Time, token: u64) -> bool {
        let Some(at) = self.outstanding.iter().position(|sent| *sent == token) else { return false };
        // Those before it are lost, or overtaken.
        self.outstanding.drain(..=at);
        self.unanswered = None;
        self.sent = 0;
        if self.state != State::Off {
            self.good.get_or_insert(now);
        }
        true
    }

    /// A probe of the other end came in VXLAN.
    pub fn on_heard(&mut self, now: Time) {
        self.heard = Some(now);
    }

    fn hears(&self, now: Time) -> bool {
        self.heard.is_some_and(|heard| now.since(heard) < HEARD_WITHIN)
    }

    fn proven(&self, now: Time) -> bool {
        let long = if self.lost { RETURN_AFTER } else { BEGIN_AFTER };
        self.hears(now) && self.good.is_some_and(|since| now.since(since) >= long)
    }

    fn end(&mut self, out: &mut Vec<Action>) {
        if self.state == State::Off {
            return;
        }
        if self.on() {
            out.push(Action::Changed);
        }
        let (tokens, probes) = (self.tokens, self.probes);
        // A path that comes and goes with the sealed one is taken up again as fast as that.
        *self = FastPath { probes, ..FastPath::new(tokens) };
    }

    fn probe(&mut self, now: Time, busy: bool, out: &mut Vec<Action>) {
        let trying = matches!(self.state, State::Trying { .. });
        let quick = match self.state {
            State::Trying { since } => self.good.is_some() || now.since(since) < TRY_FAST,
            _ => busy || self.unanswered.is_some(),
        };
        self.tokens = self.tokens.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
        self.probes = self.probes.wrapping_add(1);
        self.unanswered.get_or_insert(now);
        self.sent = self.sent.saturating_add(1);
        if self.outstanding.len() == OUTSTANDING_MAX {
            self.outstanding.pop_front();
        }
        self.outstanding.push_back(self.tokens);
        self.next_probe = now + if quick { PROBE_FAST } else { PROBE_SLOW };
        let full = trying || self.probes.is_multiple_of(FULL_EVERY);
        out.push(Action::Probe { token: self.tokens, full });
    }
}

/// Between probes while it is in use, in doubt, or new.
const PROBE_FAST: Duration = Duration::from_millis(100);
/// Between probes while nothing uses it, or it has not worked for long.
const PROBE_SLOW: Duration = Duration::from_secs(1);
/// For so long it is tried quickly.
const TRY_FAST: Duration = Duration::from_secs(3);
/// Three unanswered in a row, over this time at least, end it: two that are lost by chance do not.
const MISSED_MAX: u32 = 3;
const MISSED_WITHIN: Duration = Duration::from_millis(300);
/// Three slow probes of the other end, and a bit.
const HEARD_WITHIN: Duration = Duration::from_millis(3_500);
/// A path that is new has to be answered for so long.
const BEGIN_AFTER: Duration = Duration::from_millis(200);
/// One that was lost, for so long: a link that flaps shall not move frames to and fro.
const RETURN_AFTER: Duration = Duration::from_secs(3);
/// Probes whose answers are waited for.
const OUTSTANDING_MAX: usize = 16;
/// In use, each such probe is a full one: often enough to see that the network below takes less than before, and few bytes.
const FULL_EVERY: u32 = 16;

#[cfg(test)]
mod tests;
