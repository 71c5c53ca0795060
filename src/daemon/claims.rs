//! Addresses that running containers have from an earlier identity of this machine: claimed one by one with the new one.
//!
//! ```text
//! claims.json ─▶ waiting ─▶ Request::Claim ─▶ done │ refused: a problem for people │ later: waits again     all answered: the file goes
//! ```

use std::collections::VecDeque;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use meshnet_core::ipam::{LeaseLine, Refusal, Request};
use meshnet_proto::api::Problem;
use serde::{Deserialize, Serialize};
use tokio::task::JoinSet;
use tracing::{debug, info, warn};

use super::driver::Driver;
use super::ipam::Outcome;
use super::state::StateDir;

/// One address and whose it is.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Claim {
    /// Container, or whatever got it.
    pub owner: String,
    /// Which.
    pub address: Ipv4Addr,
}

impl From<&LeaseLine> for Claim {
    fn from(lease: &LeaseLine) -> Claim {
        Claim { owner: lease.owner.clone(), address: lease.address.into() }
    }
}

/// Those that are not answered yet, and those that were refused.
pub struct Claims {
    waiting: VecDeque<(Instant, Claim)>,
    /// No answer when the daemon stops.
    pub(super) asked: JoinSet<(Claim, Option<Outcome>)>,
    /// Why they wait.
    later: Option<String>,
    refused: Vec<(Claim, String)>,
    done: usize,
    /// Where the file is; none once it is gone.
    state: Option<Arc<StateDir>>,
}

impl Claims {
    /// Nothing to claim.
    pub fn none() -> Claims {
        let waiting = VecDeque::new();
        Claims { waiting, asked: JoinSet::new(), later: None, refused: Vec::new(), done: 0, state: None }
    }

    /// Those that the state directory has.
    pub fn load(state: &Arc<StateDir>) -> Claims {
        let claims = state.claims();
        if !claims.is_empty() {
            info!(addresses = claims.len(), "claiming the addresses of an earlier identity of this machine");
        }
        let state = (!claims.is_empty()).then(|| Arc::clone(state));
        let waiting = claims.into_iter().map(|claim| (Instant::now(), claim)).collect();
        Claims { waiting, state, ..Claims::none() }
    }

    /// The next one that is due.
    fn next(&mut self) -> Option<Claim> {
        if self.asked.len() >= ASKED_MAX || self.waiting.front()?.0 > Instant::now() {
            return None;
        }
        self.waiting.pop_front().map(|(_, claim)| claim)
    }

    /// What became of one.
    pub(super) fn on_answer(&mut self, claim: Claim, outcome: Option<Outcome>) {
        match outcome {
            Some(Ok(_)) => {
                debug!(owner = claim.owner, address = %claim.address, "claimed");
                self.done += 1;
            }
            Some(Err(Refusal::Later(reason))) => {
                self.later = Some(reason);
                self.waiting.push_back((Instant::now() + RETRY, claim));
            }
            Some(Err(Refusal::No(reason))) => {
                warn!(owner = claim.owner, address = %claim.address, reason, "an address in use here cannot be claimed");
                self.refused.push((claim, reason));
            }
            None => self.waiting.push_back((Instant::now() + RETRY, claim)),
        }
        if self.waiting.is_empty() && self.asked.is_empty() {
            self.later = None;
            if let Some(state) = self.state.take() {
                info!(
                    claimed = self.done,
                    refused = self.refused.len(),
                    "addresses of the earlier identity are claimed"
                );
                state.drop_claims();
            }
        }
    }

    /// For the status.
    pub fn problems(&self) -> Vec<Problem> {
        let shown = self.refused.iter().take(SHOWN_MAX).map(|(claim, reason)| Problem {
            what: format!("{} is in use here by {} and belongs to somebody else: {reason}", claim.address, claim.owner),
            remedy: "start that container again: it gets another address".into(),
        });
        let rest = self.refused.len().saturating_sub(SHOWN_MAX);
        let more = (rest > 0).then(|| Problem {
            what: format!("{rest} more addresses in use here belong to somebody else"),
            remedy: "start their containers again; the log names them".into(),
        });
        let waiting = self.later.as_ref().map(|reason| Problem {
            what: format!("addresses in use here from an earlier identity are not claimed yet: {reason}"),
            remedy: "it is tried again every few seconds".into(),
        });
        shown.chain(more).chain(waiting).collect()
    }
}

impl Driver {
    /// Asks for those that are due.
    pub(super) fn claim(&mut self) {
        while let Some(claim) = self.ipam.claims.next() {
            let request = Request::Claim { owner: claim.owner.clone(), address: claim.address.into() };
            let answered = self.ask_ipam(request);
            self.ipam.claims.asked.spawn(async move { (claim, answered.await.ok()) });
        }
    }
}

/// Each may wait for another peer.
const ASKED_MAX: usize = 16;
/// Between two attempts: a first split or an admission takes seconds.
const RETRY: Duration = Duration::from_secs(2);
/// Lines in the status.
const SHOWN_MAX: usize = 8;

#[cfg(test)]
mod tests {
    use super::*;
    use meshnet_core::ipam::Answer;

    fn claim(last: u8) -> Claim {
        Claim { owner: format!("c{last}"), address: Ipv4Addr::new(10, 32, 0, last) }
    }

    /// Asks for all that are due; gives those.
    async fn ask(claims: &mut Claims, answer: fn(&Claim) -> Outcome) -> Vec<Claim> {
        let mut asked = Vec::new();
        while let Some(claim) = claims.next() {
            asked.push(claim.clone());
            claims.asked.spawn(async move { (claim.clone(), Some(answer(&claim))) });
        }
        while let Some(answered) = claims.asked.join_next().await {
            let (claim, outcome) = answered.unwrap();
            claims.on_answer(claim, outcome);
        }
        asked
    }

    #[tokio::test]
    async fn the_file_goes_when_all_are_answered() {
        let directory = std::env::temp_dir().join(format!("meshnet-claims-{}", std::process::id()));
        let state = Arc::new(StateDir::open(&directory).unwrap());
        state.keep_claims(vec![claim(1), claim(2), claim(3)]).unwrap();
        // A second removal before the first claims were answered.
        state.keep_claims(vec![claim(2), claim(4)]).unwrap();
        let mut claims = Claims::load(&state);
        let asked = ask(&mut claims, |claim| match claim.address.octets()[3] {
            1 => Ok(Answer::Done),
            3 => Err(Refusal::No("b has it".into())),
            _ => Err(Refusal::Later("no split yet".into())),
        })
        .await;
        assert_eq!(asked, [claim(1), claim(2), claim(3), claim(4)]);
        let problems: Vec<String> = claims.problems().into_iter().map(|problem| problem.what).collect();
        assert_eq!(problems.len(), 2);
        assert_eq!(problems[0], "10.32.0.3 is in use here by c3 and belongs to somebody else: b has it");
        assert!(problems[1].ends_with("not claimed yet: no split yet"), "{problems:?}");
        assert_eq!(state.claims().len(), 4, "two are not answered");
        assert_eq!(ask(&mut claims, |_| Ok(Answer::Done)).await, [], "not at once again");

        claims.waiting.iter_mut().for_each(|(due, _)| *due = Instant::now());
        assert_eq!(ask(&mut claims, |_| Ok(Answer::Done)).await.len(), 2);
        assert_eq!(state.claims(), []);
        assert_eq!(claims.problems().len(), 1, "who was refused stays a problem");
        std::fs::remove_dir_all(directory).unwrap();
    }
}
