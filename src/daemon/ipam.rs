//! The driver's side of the addresses: questions to the machine and their answers.
//!
//! ```text
//! ask_ipam ─▶ Input::Ipam(Request) ─▶ node … ─▶ Output::Ipam(Reply) ─▶ whoever asked
//! ```

use meshnet_core::ipam::{Answer, Input, Output, Refusal, Request};
use meshnet_core::node;
use tokio::sync::oneshot;

use super::driver::Driver;

/// What comes back to somebody who asked.
pub type Outcome = Result<Answer, Refusal>;

impl Driver {
    /// Asks the machine of addresses. The answer comes when it is on disk, or when other peers have answered; never, when the daemon stops before.
    pub(super) fn ask_ipam(&mut self, request: Request) -> oneshot::Receiver<Outcome> {
        let (answer, answered) = oneshot::channel();
        if self.replies.len() >= REPLIES_MAX {
            // Those who hung up need no answer any more.
            self.replies.retain(|_, answer| !answer.is_closed());
        }
        if self.replies.len() >= REPLIES_MAX {
            drop(answer.send(Err(Refusal::Later("too many questions about addresses wait: try again soon".into()))));
            return answered;
        }
        let token = self.next_token;
        self.next_token += 1;
        self.replies.insert(token, answer);
        self.take(node::Input::Ipam(Input::Request { token, request }));
        answered
    }

    pub(super) fn do_ipam(&mut self, output: Output) {
        // The rest is for the node itself.
        if let Output::Reply { token, result } = output {
            // Who asked may be gone already; then nobody minds.
            self.replies.remove(&token).map(|answer| answer.send(result));
        }
    }
}

/// Several times the connections that the control socket takes, for answers may wait for other peers.
const REPLIES_MAX: usize = 1024;
