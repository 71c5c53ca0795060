//! Whether one path takes segmented sends: many datagrams that leave the program as one and are cut by the kernel or a device. One [`Segmentation`] for
//! each direct path by UDP.
//!
//! The kernel takes such a send and says no more of it. A device, its driver, a hypervisor or a middle box below may then lose what comes of it, or spoil its
//! headers, though single datagrams pass. So the path is asked: a *train* of probes of equal length leaves as one segmented send, and the replies say which
//! of them arrived.
//!
//! ```text
//!   New: after the first frame  ──▶ Asked: a train ── all came ──▶ Quiet ── in use, ½ to 3 s ──▶ Asked
//!                                     │ some did not                  ▲
//!                                     ▼                               │ each place of the train came at least once: on
//!          ┌── not clear yet ── Doubted: a train, ────────────────────┤
//!          └─────────────────▶  and as many singly                    │ some place never came, though singly they do: off
//!                                     ▲                               │
//!                                     └── in use, 10 min ── Quiet, off┘
//! ```
//! A place of the train counts as lost only when it is lost in every round, so plain loss, which takes now this one and now that, is never mistaken for a
//! device that loses all but the first, or only the last.
//!
//! Deliberately lacks: sealing, what is sent otherwise, what the kernel refuses at once (the sender of runs sees that by itself).

use std::time::Duration;

use super::path::next_token;
use crate::time::Time;

/// Probes to send, of the same length all.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Burst {
    /// One for each probe, in order.
    pub tokens: Vec<u64>,
    /// As one segmented send; else each by itself.
    pub joined: bool,
}

/// What is known of the path at a tick.
#[derive(Debug, Clone, Copy)]
pub struct Outlook {
    /// Frames took it since the last tick.
    pub busy: bool,
    /// How many datagrams that were.
    pub datagrams: u64,
    /// The longest datagram that it takes.
    pub datagram_bytes: usize,
    /// Whether that was found out.
    pub settled: bool,
    /// The round trip.
    pub rtt: Duration,
}

/// Probes under way, and which of them were answered.
#[derive(Debug, Default)]
struct Sent {
    tokens: Vec<u64>,
    /// A bit for each.
    came: u16,
}

impl Sent {
    fn on_reply(&mut self, token: u64) -> bool {
        let Some(at) = self.tokens.iter().position(|sent| *sent == token) else { return false };
        self.came |= 1 << at;
        true
    }

    fn all(&self) -> u16 {
        (1_u32 << self.tokens.len().min(16)).wrapping_sub(1) as u16
    }

    fn lost(&self) -> u16 {
        self.all() & !self.came
    }
}

#[derive(Debug, Clone, Copy)]
enum State {
    /// Never asked at this address; the first frame took it then.
    New { since: Option<Time> },
    /// Nothing is under way; decided then.
    Quiet {
        since: Time,
        /// Datagrams sent meanwhile.
        datagrams: u64,
    },
    /// A train is under way.
    Asked { at: Time },
    /// A train and single probes are under way.
    Doubted {
        at: Time,
        /// Places that no train brought so far.
        lost: u16,
        /// Rounds in which single probes passed.
        rounds: u8,
        /// Rounds in which they did not.
        void: u8,
    },
}

/// The judgement of one path.
#[derive(Debug)]
pub struct Segmentation {
    on: bool,
    state: State,
    train: Sent,
    singles: Sent,
    patience: Duration,
    tokens: u64,
}

impl Segmentation {
    /// Of a path that nothing is known of: it is used until it fails. `seed` starts the tokens of its probes.
    pub fn new(seed: u64) -> Segmentation {
        Segmentation {
            on: true,
            state: State::New { since: None },
            train: Sent::default(),
            singles: Sent::default(),
            patience: PATIENCE,
            tokens: seed,
        }
    }

    /// Whether segmented sends pass, as far as is known.
    pub fn on(&self) -> bool {
        self.on
    }

    /// The path leads elsewhere now.
    pub fn reset(&mut self) {
        *self = Segmentation::new(self.tokens);
    }

    /// To be called at each tick while the path is usable.
    pub fn on_tick(&mut self, now: Time, outlook: Outlook, out: &mut Vec<Burst>) {
        match self.state {
            // The first frame, be it small, announces others; most paths of a large mesh never see one.
            State::New { since: None } if outlook.datagrams == 0 && !outlook.busy => {}
            State::New { since } => {
                let since = since.unwrap_or(now);
                self.state = State::New { since: Some(since) };
                if outlook.settled || now.since(since) >= UNSETTLED {
                    self.ask(now, outlook, out);
                }
            }
            State::Quiet { since, datagrams } => {
                let datagrams = datagrams.saturating_add(outlook.datagrams);
                let after = match self.on {
                    true if datagrams >= HEAVY_DATAGRAMS => WATCH_HEAVY,
                    true => WATCH,
                    false => RETRY,
                };
                if now.since(since) < after || !outlook.busy {
                    self.state = State::Quiet { since, datagrams };
                } else if self.on {
                    self.ask(now, outlook, out);
                } else {
                    self.ask_both(now, outlook, (u16::MAX, 0, 0), out);
                }
            }
            State::Asked { at } | State::Doubted { at, .. } if now.since(at) < self.patience => {}
            State::Asked { .. } => {
                let lost = self.train.lost();
                self.ask_both(now, outlook, (lost, 0, 0), out);
            }
            State::Doubted { lost, rounds, void, .. } => self.judge(now, outlook, (lost, rounds, void), out),
        }
    }

    /// A reply came; false when it is to none of these probes.
    pub fn on_reply(&mut self, now: Time, token: u64) -> bool {
        if self.singles.on_reply(token) {
            return true;
        }
        if !self.train.on_reply(token) {
            return false;
        }
        let left = match self.state {
            State::Asked { .. } => self.train.lost(),
            State::Doubted { lost, .. } => lost & self.train.lost(),
            State::New { .. } | State::Quiet { .. } => return true,
        };
        if left == 0 {
            self.on = true;
            self.rest(now);
        }
        true
    }

    /// The end of a round that brought no proof.
    fn judge(&mut self, now: Time, outlook: Outlook, known: (u16, u8, u8), out: &mut Vec<Burst>) {
        let (lost, rounds, void) = known;
        let lost = lost & self.train.lost();
        let (passed, of) = (self.singles.came.count_ones(), self.singles.tokens.len() as u32);
        // Where single ones are lost too, nothing is learned of trains.
        let (rounds, void) = if passed * 4 >= of * 3 { (rounds + 1, void) } else { (rounds, void + 1) };
        let enough = if lost.count_ones() * 2 >= of { ROUNDS_MOST } else { ROUNDS_FEW };
        if rounds >= enough {
            self.on = false;
            self.rest(now);
        } else if void >= VOID_MAX {
            self.rest(now);
        } else {
            self.ask_both(now, outlook, (lost, rounds, void), out);
        }
    }

    fn rest(&mut self, now: Time) {
        self.state = State::Quiet { since: now, datagrams: 0 };
        (self.train, self.singles) = (Sent::default(), Sent::default());
    }

    fn ask(&mut self, now: Time, outlook: Outlook, out: &mut Vec<Burst>) {
        self.state = State::Asked { at: now };
        self.send_train(outlook, out);
    }

    fn ask_both(&mut self, now: Time, outlook: Outlook, known: (u16, u8, u8), out: &mut Vec<Burst>) {
        let (lost, rounds, void) = known;
        // The train first: what a full queue or a policer takes from the second burst must not speak against trains.
        self.send_train(outlook, out);
        let tokens = self.draw(self.train.tokens.len());
        self.singles = Sent { tokens: tokens.clone(), came: 0 };
        out.push(Burst { tokens, joined: false });
        self.state = State::Doubted { at: now, lost: lost & self.train.all(), rounds, void };
    }

    fn send_train(&mut self, outlook: Outlook, out: &mut Vec<Burst>) {
        self.patience = PATIENCE.max(outlook.rtt * 2);
        let tokens = self.draw((TRAIN_BYTES_MAX / outlook.datagram_bytes.max(1)).clamp(2, TRAIN));
        self.train = Sent { tokens: tokens.clone(), came: 0 };
        self.singles = Sent::default();
        out.push(Burst { tokens, joined: true });
    }

    fn draw(&mut self, count: usize) -> Vec<u64> {
        (0..count).map(|_| next_token(&mut self.tokens)).collect()
    }
}

/// Probes of a train: enough that each round says which places are lost, few enough for any queue. 12 KB.
const TRAIN: usize = 8;
/// What the kernel takes as one send, with room for headers: jumbo datagrams make shorter trains.
const TRAIN_BYTES_MAX: usize = 60_000;
/// For replies, at least; twice the round trip when that is longer.
const PATIENCE: Duration = Duration::from_millis(200);
/// The first train waits so long for the path's size: small datagrams prove less.
const UNSETTLED: Duration = Duration::from_secs(2);
/// While frames use the path, a train goes out this often: 4 KB/s.
const WATCH: Duration = Duration::from_secs(3);
/// And so often when many do: streams that stand still for seconds take long to recover. 24 KB/s beside a megabyte and more.
const WATCH_HEAVY: Duration = Duration::from_millis(500);
/// As many, since the last train.
const HEAVY_DATAGRAMS: u64 = 500;
/// A path that is off is asked again after so long, when frames use it: devices change with migrations, drivers and firmware.
const RETRY: Duration = Duration::from_secs(600);
/// Rounds until a path is off that loses half of each train or more, the same half. With the train before them, a second.
const ROUNDS_MOST: u8 = 4;
/// The same when it is a few places. At 5 % loss either way, a place is lost so often once in 10^8.
const ROUNDS_FEW: u8 = 8;
/// Rounds on a path too bad to judge until it is left alone.
const VOID_MAX: u8 = 12;

#[cfg(test)]
mod tests;
