//! Whether a peer is alive on its direct path, and which path its frames take. One [`PeerPath`] for each peer.
//!
//! ```text
//!                    up                    sent, nothing back
//!   Absent ────────────────▶ Good ────────────────────────────▶ Doubted: a probe each 100 ms
//!     ▲                       ▲  ▲        heard                    │  │
//!     │ down                  │  └────────────────────────────────┘  │ three unanswered
//!     │ (from any)            │ 2 s without a gap                     ▼
//!     └─────────────          Returning ◀───────────────────────── Suspect: frames go another way
//!                               │     heard                          ▲
//!                               └────────────────────────────────────┘ a gap
//! ```
//! *Usable* (Good, Doubted) says where frames go. *Alive* says whether the link counts in the topology: it ends when four probes were missed, later than
//! usability, so that a lost second of traffic moves frames and not the mesh. Both ends do the same, and each may be the first.
//!
//! Time here is the node's steady clock, which stands still while the node itself was late (Lifeguard's rule: a starved peer must not declare others dead).
//! Deliberately lacks: routes (the node picks relays), sealing, the choice between direct and relayed by cost.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::Duration;

use crate::time::Time;

/// How fast failures are found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timing {
    /// Between probes of a good path.
    pub probe: Duration,
}

impl Timing {
    /// Down after 4 s.
    pub const DEFAULT: Timing = Timing { probe: Duration::from_secs(1) };
    /// Down after 1 s, for four times the probes.
    pub const FAST: Timing = Timing { probe: Duration::from_millis(250) };
}

/// Marks of traffic, as read from [`crate::fib::Traffic`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Sample {
    /// Datagrams sent on the direct path.
    pub tx_direct: u64,
    /// Datagrams that came on it.
    pub rx_direct: u64,
    /// Datagrams sent through relays.
    pub tx_relayed: u64,
    /// Datagrams that came through relays.
    pub rx_relayed: u64,
    /// Probes of the other end among `rx_direct`: they prove its direction only, not ours.
    pub questions: u64,
}

/// State of the direct path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direct {
    /// No direct link.
    Absent,
    /// Works.
    Good,
    /// Silent though it should not be: being probed quickly.
    Doubted {
        /// Probes sent in this state.
        sent: u8,
        /// The other end has left the path already: decide quickly.
        hinted: bool,
    },
    /// Silent: not used, probed for its return.
    Suspect,
    /// Heard again: not used yet.
    Returning {
        /// Since when without a gap.
        since: Time,
    },
}

/// What the node has to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Seal a probe with this token and send it: to this address when given, else by relays.
    Probe {
        /// Comes back in the reply.
        token: u64,
        /// Where.
        to: Option<SocketAddr>,
    },
    /// Usability or address of the direct path changed: choose again.
    Choose,
    /// The link counts in the topology from now on, or does no longer.
    Alive(bool),
    /// The relayed path is silent: take other relays, another first hop before all.
    OtherRelay,
    /// The peer answers at another address than its link leads to; dial it there if the link is ours.
    Moved(SocketAddr),
}

/// What a reply was to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// Not to a probe of ours.
    Unknown,
    /// To a probe on the direct path.
    Direct(Duration),
    /// To one through relays.
    Relayed(Duration),
}

#[derive(Debug, Clone, Copy)]
struct Sent {
    token: u64,
    at: Time,
    to: Option<SocketAddr>,
}

/// Liveness and paths of one peer.
#[derive(Debug)]
pub struct PeerPath {
    timing: Timing,
    leads: bool,
    direct: Direct,
    address: Option<SocketAddr>,
    alive: bool,
    seen: Sample,
    /// Datagrams on the direct path that may be answers. Never falls: a probe is counted as received before it is counted as a question.
    answers: u64,
    heard: Time,
    /// First datagram on the direct path that had no answer yet.
    unanswered: Option<Time>,
    /// First regular probe that had no reply yet.
    asked: Option<Time>,
    next_probe: Time,
    missed: u8,
    rtt_direct: Option<Duration>,
    /// When the round trip was measured last.
    measured: Time,
    rtt_relayed: Option<Duration>,
    /// Set while frames take relays.
    relayed: Option<Relayed>,
    outstanding: VecDeque<Sent>,
    tokens: u64,
}

#[derive(Debug, Clone, Copy)]
struct Relayed {
    /// First datagram since something was heard.
    asked: Option<Time>,
    next_probe: Time,
    /// When a frame took it last: an idle path is not probed.
    used: Time,
}

impl Relayed {
    fn heard(&mut self, now: Time) {
        if self.asked.take().is_some() {
            self.next_probe = now + RELAY_PROBE;
        }
    }
}

impl PeerPath {
    /// A peer without a link. `seed` starts the tokens of its probes. Of two ends one `leads`: it asks, the other answers.
    pub fn new(timing: Timing, leads: bool, seed: u64) -> PeerPath {
        PeerPath {
            timing,
            leads,
            direct: Direct::Absent,
            address: None,
            alive: false,
            seen: Sample::default(),
            answers: 0,
            heard: Time::ZERO,
            unanswered: None,
            asked: None,
            next_probe: Time::NEVER,
            missed: 0,
            rtt_direct: None,
            measured: Time::ZERO,
            rtt_relayed: None,
            relayed: None,
            outstanding: VecDeque::new(),
            tokens: seed,
        }
    }

    /// The state of the direct path.
    pub fn direct(&self) -> Direct {
        self.direct
    }

    /// Where the direct path leads, whether it works or not.
    pub fn address(&self) -> Option<SocketAddr> {
        self.address
    }

    /// Where frames may be sent directly now.
    pub fn usable(&self) -> Option<SocketAddr> {
        self.address.filter(|_| matches!(self.direct, Direct::Good | Direct::Doubted { .. }))
    }

    /// Whether the link counts in the topology.
    pub fn alive(&self) -> bool {
        self.alive
    }

    /// Smoothed round trip of the direct path.
    pub fn rtt(&self) -> Option<Duration> {
        self.rtt_direct
    }

    /// Smoothed round trip through relays, while they are used.
    pub fn rtt_relayed(&self) -> Option<Duration> {
        self.relayed.and(self.rtt_relayed)
    }

    /// Whether frames take relays.
    pub fn relayed(&self) -> bool {
        self.relayed.is_some()
    }

    /// Whether this peer needs ticks at all.
    pub fn idle(&self) -> bool {
        self.direct == Direct::Absent && self.relayed.is_none()
    }

    /// A direct link is up (or another took its place), to `address`. Its handshake has just passed there, so the path counts as good.
    pub fn on_link_up(&mut self, now: Time, address: SocketAddr, out: &mut Vec<Action>) {
        let moved = self.address.replace(address) != Some(address);
        if moved {
            // A late reply from where it was must not lead back there.
            self.outstanding.retain(|sent| sent.to.is_none_or(|to| to == address));
            // Another address may be of another transport, whose marks are others.
            self.answers = 0;
        }
        if self.direct != Direct::Absent && !moved && self.usable().is_some() {
            return;
        }
        self.direct = Direct::Good;
        self.heard = now;
        self.unanswered = None;
        self.asked = None;
        self.missed = 0;
        self.next_probe = now;
        out.push(Action::Choose);
        if !self.alive {
            self.alive = true;
            out.push(Action::Alive(true));
        }
    }

    /// Of several direct links another is in use now, to `address`.
    pub fn on_link_moved(&mut self, now: Time, address: SocketAddr, out: &mut Vec<Action>) {
        if self.address != Some(address) {
            self.on_link_up(now, address, out);
        }
    }

    /// Probes can be sealed now: the first is due at once.
    pub fn probe_soon(&mut self, now: Time) {
        self.next_probe = self.next_probe.min(now);
    }

    /// The last direct link is gone.
    pub fn on_link_down(&mut self, out: &mut Vec<Action>) {
        if self.direct == Direct::Absent {
            return;
        }
        self.direct = Direct::Absent;
        self.address = None;
        self.rtt_direct = None;
        self.next_probe = Time::NEVER;
        self.unanswered = None;
        self.outstanding.retain(|sent| sent.to.is_none());
        out.push(Action::Choose);
        if std::mem::take(&mut self.alive) {
            out.push(Action::Alive(false));
        }
    }

    /// Frames take relays from now on (again, when they took others before), or no longer.
    pub fn on_relayed(&mut self, now: Time, used: bool) {
        self.relayed = used.then_some(Relayed { asked: None, next_probe: now, used: now });
        if !used {
            self.rtt_relayed = None;
            self.outstanding.retain(|sent| sent.to.is_some());
        }
    }

    /// A genuine datagram came from an address that is not the path's: see whether it answers there.
    pub fn on_roamed(&mut self, now: Time, from: SocketAddr, out: &mut Vec<Action>) {
        let asked = self.outstanding.iter().any(|sent| sent.to == Some(from) && now.since(sent.at) < ROAM_PROBE);
        if self.direct != Direct::Absent && self.address != Some(from) && !asked {
            self.probe(now, Some(from), out);
        }
    }

    /// A probe's reply came.
    pub fn on_reply(&mut self, now: Time, token: u64, out: &mut Vec<Action>) -> Answer {
        let Some(at) = self.outstanding.iter().position(|sent| sent.token == token) else { return Answer::Unknown };
        let Some(sent) = self.outstanding.remove(at) else { return Answer::Unknown };
        let rtt = now.since(sent.at);
        let Some(to) = sent.to else {
            smooth(&mut self.rtt_relayed, rtt);
            if let Some(relayed) = &mut self.relayed {
                relayed.heard(now);
            }
            return Answer::Relayed(rtt);
        };
        if self.direct == Direct::Absent {
            return Answer::Unknown;
        }
        if self.address != Some(to) {
            self.address = Some(to);
            out.extend([Action::Moved(to), Action::Choose]);
        }
        smooth(&mut self.rtt_direct, rtt);
        self.measured = now;
        self.unanswered = None;
        self.asked = None;
        match self.direct {
            Direct::Doubted { .. } => self.direct = Direct::Good,
            Direct::Suspect => self.direct = Direct::Returning { since: now },
            Direct::Absent | Direct::Good | Direct::Returning { .. } => {}
        }
        self.on_heard(now);
        Answer::Direct(rtt)
    }

    /// Something genuine came on the direct path: the other end's direction works.
    fn on_heard(&mut self, now: Time) {
        self.heard = now;
        self.missed = 0;
        // One question each second is enough for both ends: who was asked does not ask, but for the round trip now and then.
        if self.direct == Direct::Good && self.asked.is_none() && self.rtt_direct.is_some() {
            let fresh = (self.measured + MEASURE_AFTER).max(now);
            let patience = if self.leads { self.timing.probe } else { self.timing.probe * 5 / 4 };
            self.next_probe = self.next_probe.max((now + patience).min(fresh));
        }
    }

    /// Looks at the marks of traffic and the time; to be called every [`TICK`], and at [`PeerPath::deadline`].
    pub fn on_tick(&mut self, now: Time, sample: Sample, out: &mut Vec<Action>) {
        let before = std::mem::replace(&mut self.seen, sample);
        if self.direct != Direct::Absent {
            let answers = self.answers.max(sample.rx_direct.saturating_sub(sample.questions));
            let answered = answers != std::mem::replace(&mut self.answers, answers);
            if answered {
                self.unanswered = None;
            }
            if sample.tx_direct != before.tx_direct {
                // When an answer came in the same tick, the order is unknown: it may have been the last that ever comes.
                self.unanswered.get_or_insert(now);
                if self.direct == Direct::Good && now.since(self.measured) >= self.timing.probe {
                    self.next_probe = self.next_probe.min(now);
                }
            }
            if sample.rx_direct != before.rx_direct {
                self.on_heard(now);
            }
            let hint = sample.rx_relayed != before.rx_relayed && !answered && now.since(self.measured) >= HINT_AFTER;
            self.tick_direct(now, hint, out);
        }
        let (sent, heard) = (sample.tx_relayed != before.tx_relayed, sample.rx_relayed != before.rx_relayed);
        self.tick_relayed(now, sent, heard, out);
    }

    fn tick_direct(&mut self, now: Time, hinted: bool, out: &mut Vec<Action>) {
        match self.direct {
            Direct::Absent => return,
            Direct::Good => {
                let silence = |since: Option<Time>| since.is_some_and(|since| now.since(since) >= self.silence());
                // Frames go out, and the question that went with them had no reply: the other end may be heard and yet hear nothing.
                // Without frames of its own a path may be a hop for those of others: a whole interval decides there.
                let missed = self.asked.is_some_and(|asked| now.since(asked) >= self.timing.probe);
                let unheard = (self.unanswered.is_some() || missed) && silence(self.asked);
                if hinted || silence(self.unanswered) || unheard {
                    self.direct = Direct::Doubted { sent: 0, hinted };
                    self.next_probe = now;
                }
            }
            Direct::Doubted { .. } | Direct::Suspect => {}
            Direct::Returning { .. } if now.since(self.measured) > RETURN_PROBE * 2 + self.rtt_or_zero() => {
                self.direct = Direct::Suspect;
            }
            Direct::Returning { since } if now.since(since) >= RETURN_AFTER => self.on_returned(now, out),
            Direct::Returning { .. } => {}
        }
        if now >= self.next_probe {
            self.on_probe_due(now, out);
        }
        if self.alive && self.missed >= MISSED_MAX {
            self.alive = false;
            if self.usable().is_some() {
                self.direct = Direct::Suspect;
                out.push(Action::Choose);
            }
            out.push(Action::Alive(false));
        }
    }

    fn on_returned(&mut self, now: Time, out: &mut Vec<Action>) {
        self.direct = Direct::Good;
        self.unanswered = None;
        self.asked = None;
        self.next_probe = now + self.timing.probe;
        out.push(Action::Choose);
        if !self.alive {
            self.alive = true;
            out.push(Action::Alive(true));
        }
    }

    fn on_probe_due(&mut self, now: Time, out: &mut Vec<Action>) {
        let interval = match self.direct {
            Direct::Absent => return,
            Direct::Good => {
                self.asked.get_or_insert(now);
                self.timing.probe
            }
            Direct::Doubted { sent, .. } if sent >= DOUBT_PROBES => {
                self.direct = Direct::Suspect;
                out.push(Action::Choose);
                RETURN_PROBE
            }
            Direct::Doubted { sent, hinted } => {
                self.direct = Direct::Doubted { sent: sent + 1, hinted };
                let interval = if hinted { DOUBT_PROBE_HINTED } else { DOUBT_PROBE };
                // The last one gets a whole round trip before it counts as unanswered.
                if sent + 1 == DOUBT_PROBES { interval.max(self.rtt_or_zero() * 3 / 2) } else { interval }
            }
            Direct::Suspect | Direct::Returning { .. } => RETURN_PROBE,
        };
        // Missed means: a whole interval of the regular probe passed and nothing at all was heard in it.
        let quiet = now.since(self.heard).as_micros() / self.timing.probe.as_micros().max(1);
        self.missed = u8::try_from(quiet).unwrap_or(u8::MAX);
        self.next_probe = now + interval;
        self.probe(now, self.address, out);
    }

    fn tick_relayed(&mut self, now: Time, sent: bool, heard: bool, out: &mut Vec<Action>) {
        let patience = RELAY_SILENCE + self.rtt_relayed.unwrap_or_default();
        let Some(relayed) = &mut self.relayed else { return };
        if heard {
            relayed.heard(now);
        }
        if sent {
            relayed.used = now;
        } else if now.since(relayed.used) >= RELAY_IDLE {
            relayed.asked = None;
            return;
        }
        if relayed.asked.is_some_and(|asked| now.since(asked) >= patience) {
            relayed.asked = None;
            relayed.next_probe = now;
            out.push(Action::OtherRelay);
            return;
        }
        if now >= relayed.next_probe {
            // Asked again soon, so that one loss decides nothing; an answer puts it off.
            relayed.next_probe = now + RELAY_PROBE / 4 + self.rtt_relayed.unwrap_or_default();
            relayed.asked.get_or_insert(now);
            self.probe(now, None, out);
        }
    }

    /// Draws a token and remembers it. Also for probes that the operator asked for.
    pub fn probe(&mut self, now: Time, to: Option<SocketAddr>, out: &mut Vec<Action>) -> u64 {
        let token = next_token(&mut self.tokens);
        if self.outstanding.len() >= OUTSTANDING_MAX {
            self.outstanding.pop_front();
        }
        self.outstanding.push_back(Sent { token, at: now, to });
        out.push(Action::Probe { token, to });
        token
    }

    /// When [`PeerPath::on_tick`] must run even between ticks: only while a decision is near.
    pub fn deadline(&self) -> Time {
        match self.direct {
            Direct::Doubted { .. } => self.next_probe,
            Direct::Good => {
                self.unanswered.map_or(Time::NEVER, |since| self.asked.unwrap_or(since).min(since) + self.silence())
            }
            Direct::Absent | Direct::Suspect | Direct::Returning { .. } => Time::NEVER,
        }
    }

    fn rtt_or_zero(&self) -> Duration {
        self.rtt_direct.unwrap_or_default()
    }

    fn silence(&self) -> Duration {
        SILENCE.max(self.rtt_or_zero() * 2)
    }
}

/// SplitMix64: tokens that do not repeat; the seal is what makes them unforgeable.
pub(super) fn next_token(tokens: &mut u64) -> u64 {
    *tokens = tokens.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut token = *tokens;
    token = (token ^ (token >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    token = (token ^ (token >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    token ^ (token >> 31)
}

fn smooth(rtt: &mut Option<Duration>, sample: Duration) {
    // RFC 6298's gain of 1/8.
    *rtt = Some(rtt.map_or(sample, |old| (old * 7 + sample) / 8));
}

/// How often the node looks at the marks: a quarter of the silence that matters would cost more wake-ups than it saves time.
pub const TICK: Duration = Duration::from_millis(100);
/// Sent on the direct path and nothing back: longer than any round trip on earth with little queueing.
const SILENCE: Duration = Duration::from_millis(250);
/// Between the quick probes of a doubted path.
const DOUBT_PROBE: Duration = Duration::from_millis(100);
/// The same when frames of the other end come by relays all at once: it has asked and had no answer.
const DOUBT_PROBE_HINTED: Duration = Duration::from_millis(30);
/// A path that answered so lately is not doubted because the other end uses relays: it may find them shorter.
const HINT_AFTER: Duration = Duration::from_millis(500);
/// Quick probes before a path is left: at 5 % loss one false alarm in 10,000 doubts.
const DOUBT_PROBES: u8 = 3;
/// Between probes of a path that is left or comes back.
const RETURN_PROBE: Duration = Duration::from_millis(250);
/// A path comes back into use after this long without a gap.
const RETURN_AFTER: Duration = Duration::from_secs(2);
/// Regular probes in a row without anything heard, until the link leaves the topology.
const MISSED_MAX: u8 = 4;
/// Between probes through relays while frames take them.
const RELAY_PROBE: Duration = Duration::from_secs(1);
/// Relays that no frame took for so long are not probed.
const RELAY_IDLE: Duration = Duration::from_secs(5);
/// A question through the relays unanswered for so long, and a round trip: other relays.
const RELAY_SILENCE: Duration = Duration::from_secs(1);
/// Between probes of one new address.
const ROAM_PROBE: Duration = Duration::from_millis(200);
/// A round trip older than this is measured anew even when the other end's probes prove the path.
const MEASURE_AFTER: Duration = Duration::from_secs(8);
/// Probes remembered: those of 1 s in the busiest state.
const OUTSTANDING_MAX: usize = 16;

#[cfg(test)]
mod tests;
