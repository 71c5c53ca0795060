//! Whose addresses are to come back, and whose turn it is to ask for that.

use std::time::{Duration, Instant};

use tracing::info;

use super::{Agent, BEAT, Order};
use crate::kube::nodes::Dead;

impl Agent {
    /// Has those removed that are gone for good, when it is this peer's turn.
    pub(super) async fn remove_dead(&mut self) -> Option<()> {
        self.removal.done(BEAT);
        let (view, now, me) = (self.view.borrow().clone(), Instant::now(), self.config.me.short());
        let belongs = view.space.is_some_and(|(_, belongs)| belongs);
        let dead = match self.sees && belongs {
            true => self.nodes.dead(self.started.elapsed(), self.config.node_gone, me, &view.members),
            false => Vec::new(),
        };
        self.dead_since.retain(|(was, _)| dead.contains(was));
        for one in &dead {
            if !self.dead_since.iter().any(|(was, _)| was == one) {
                self.dead_since.push((one.clone(), now));
            }
        }
        let names = |dead: &[Dead]| dead.iter().map(|dead| dead.node.clone()).collect::<Vec<_>>();
        self.shown.set_removing(names(&dead));
        let rank = u32::try_from(self.nodes.rank(me, &view.members, &dead)).unwrap_or(u32::MAX);
        let wait = TURN * rank.min(TURNS_MAX);
        if !self.dead_since.iter().any(|(_, since)| now.duration_since(*since) >= wait) {
            return Some(());
        }
        // The watch may be behind: only what a new list says too.
        if !self.list_anew().await {
            self.removal.failed();
            return Some(());
        }
        let sure = self.nodes.dead(self.started.elapsed(), self.config.node_gone, me, &view.members);
        if !sure.is_empty() {
            info!(nodes = names(&sure).join(", "), "nodes are gone for good: their addresses are taken back");
            let gone = sure.iter().map(|dead| dead.id).collect();
            let alive = self.nodes.iter().filter_map(|node| node.mark.short()).collect();
            self.orders.send(Order::Remove { gone, alive }).await.ok()?;
        }
        self.removal.done(REMOVE_EVERY);
        Some(())
    }
}

/// A removal takes a second or two; who is next begins after that.
const TURN: Duration = Duration::from_secs(10);
/// However many there are: after so many turns anybody.
const TURNS_MAX: u32 = 12;
/// A removal goes on by itself; it is begun anew in case it was withdrawn.
const REMOVE_EVERY: Duration = Duration::from_secs(30);
