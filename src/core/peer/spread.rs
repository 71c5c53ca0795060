//! Whether one path takes datagrams from several source ports: what several threads send to one peer then spreads over queues of network cards, and over
//! sockets and cores of the receiver, all of which choose by addresses and ports. One [`Spread`] for each direct path by UDP.
//!
//! A firewall or a translator on the way may let pass only the port that it knows. So each port is asked by a probe of its own, before it is used and as long
//! as it is; the answers come to the main port.
//!
//! ```text
//!   Off ── many datagrams ──▶ Asked ── all ports answered ──▶ On: asked again and again ── one is silent four times ──▶ Off, for a minute
//!    ▲                          │ one did not, three times                 │ not used for 5 s
//!    └──────── a minute ────────┘                                          └──▶ Off
//! ```
//! Deliberately lacks: sealing; the choice of a port for a frame, which is that of the thread that sends it.

use std::time::Duration;

use super::path::next_token;
use crate::time::Time;

/// A probe to send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ask {
    /// From which port besides the main one: from 1.
    pub port: u8,
    /// Its token.
    pub token: u64,
}

/// One port.
#[derive(Debug, Clone, Copy, Default)]
struct Port {
    /// The probes under way since it answered last, newest first; 0 is none.
    asked: [u64; SILENT_MAX],
    silent: u8,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Off { until: Time },
    Asked { at: Time },
    On { asked: Time, used: Time },
}

/// The judgement of one path.
#[derive(Debug)]
pub struct Spread {
    state: State,
    ports: Vec<Port>,
    tokens: u64,
}

impl Spread {
    /// For so many ports besides the main one. `seed` starts the tokens of probes.
    pub fn new(ports: u8, seed: u64) -> Spread {
        let ports = vec![Port::default(); usize::from(ports.min(PORTS_MAX))];
        Spread { state: State::Off { until: Time::ZERO }, ports, tokens: seed }
    }

    /// Whether all ports pass.
    pub fn on(&self) -> bool {
        matches!(self.state, State::On { .. })
    }

    /// The path leads elsewhere now.
    pub fn reset(&mut self) {
        self.turn_off(Time::ZERO);
    }

    /// To be called at each tick while the path is usable: `datagrams` were sent on it since the last.
    pub fn on_tick(&mut self, now: Time, datagrams: u64, rtt: Duration, out: &mut Vec<Ask>) {
        if self.ports.is_empty() {
            return;
        }
        let patience = PATIENCE.max(rtt * 2);
        match self.state {
            State::Off { until } if now >= until && datagrams >= BUSY_DATAGRAMS => {
                self.state = State::Asked { at: now };
                self.ask(out);
            }
            State::Off { .. } => {}
            State::Asked { at } if now.since(at) < patience => {}
            State::Asked { .. } => {
                let most = self.ports.iter().map(|port| port.silent).max().unwrap_or(0);
                if most >= TRIES {
                    return self.turn_off(now + RETRY);
                }
                self.state = State::Asked { at: now };
                self.ask(out);
            }
            State::On { asked, used } => {
                let used = if datagrams > 0 { now } else { used };
                self.state = State::On { asked, used };
                if now.since(used) >= IDLE {
                    return self.turn_off(now);
                }
                if now.since(asked) < patience {
                    return;
                }
                if self.ports.iter().any(|port| usize::from(port.silent) >= SILENT_MAX) {
                    return self.turn_off(now + RETRY);
                }
                self.state = State::On { asked: now, used };
                self.ask(out);
            }
        }
    }

    /// A reply came; false when it is to none of these probes.
    pub fn on_reply(&mut self, now: Time, token: u64) -> bool {
        let Some(port) = self.ports.iter_mut().find(|port| token != 0 && port.asked.contains(&token)) else {
            return false;
        };
        *port = Port::default();
        if let State::Asked { .. } = self.state
            && self.ports.iter().all(|port| port.silent == 0)
        {
            self.state = State::On { asked: now, used: now };
        }
        true
    }

    fn turn_off(&mut self, until: Time) {
        self.state = State::Off { until };
        self.ports.fill(Port::default());
    }

    /// Asks all ports that are in use, or have not answered yet.
    fn ask(&mut self, out: &mut Vec<Ask>) {
        let (first, on) = (self.ports.iter().all(|port| port.silent == 0), self.on());
        for (port, number) in self.ports.iter_mut().zip(1..) {
            // Of those asked before, who answered has.
            if !on && !first && port.silent == 0 {
                continue;
            }
            let token = next_token(&mut self.tokens);
            port.asked.rotate_right(1);
            port.asked[0] = token;
            port.silent = port.silent.saturating_add(1);
            out.push(Ask { port: number, token });
        }
    }
}

/// Ports besides the main one: more threads than that share them.
pub const PORTS_MAX: u8 = 15;
/// Datagrams in one tick that make it worth while: some megabytes a second.
const BUSY_DATAGRAMS: u64 = 100;
/// For replies, at least; twice the round trip when that is longer.
const PATIENCE: Duration = Duration::from_millis(150);
/// Probes of a port that must be lost in a row until it is not used any more: what it carried meanwhile is lost, so no more than a silent path takes.
const SILENT_MAX: usize = 4;
/// Probes until a port counts as not passing.
const TRIES: u8 = 3;
/// Without frames for so long, ports are proven anew before they are used: what a firewall remembers of them fades.
const IDLE: Duration = Duration::from_secs(5);
/// Until ports that did not pass are asked again.
const RETRY: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests;
