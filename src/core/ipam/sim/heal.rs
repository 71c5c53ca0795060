//! The end of a schedule: everything is healed, and all must come to agree.
#![allow(clippy::indexing_slicing, reason = "as in the room above")]

use std::collections::VecDeque;
use std::time::Duration;

use super::*;

/// The end of a schedule.
impl World {
    /// All is whole again and the dead are removed: everybody must come to agree, and every address have an owner that lives.
    pub(super) fn heal(&mut self) {
        self.side = [0; PEERS];
        self.look();
        for peer in self.live() {
            self.kept(peer);
            for other in self.live() {
                if other != peer {
                    self.handle(peer, Input::LinkUp { link: LinkId(other as u64), peer: id(other) });
                }
            }
        }
        // With every member gone nobody is left to let anybody in.
        let belongs = |peer: &usize| {
            let at = *peer;
            self.counts_for(at) && self.peers[at].machine.is_admitted(id(at))
        };
        if !self.live().iter().any(belongs) {
            return;
        }
        let mut why = String::new();
        for round in 0..HEAL_ROUNDS {
            self.rest();
            match self.unsettled() {
                None => {
                    self.counts.healed += 1;
                    return;
                }
                Some(what) => why = what,
            }
            if round % 12 == 0 {
                let live = self.live();
                // Everybody alive can be reached: force risks nothing, and is what helps when most of a majority is gone.
                self.remove_all(live[round / 12 % live.len()], round >= 48);
            }
            if self.fault.is_some() {
                return;
            }
        }
        let all = self.show();
        self.blame(format!("does not come to rest: {why}{all}"));
    }

    /// Everybody's state, for who looks into a fault.
    pub fn show(&self) -> String {
        let mut all = String::new();
        for (at, peer) in self.peers.iter().enumerate() {
            let machine = &peer.machine;
            let state = if peer.dead {
                "dead"
            } else if peer.left {
                "left"
            } else {
                "up"
            };
            let members: Vec<String> = machine.members.iter().map(|(id, s)| format!("{}:{s:?}", id.0 - 1)).collect();
            all += &format!("\np{at} {state} side {} members {}", self.side[at], members.join(" "));
            all += &format!("\n   {:?}\n   {:?}", machine.promises, machine.candidacy);
            for (span, held) in machine.map.iter() {
                let (owner, giver) = (held.owner.0 - 1, held.giver.0 - 1);
                let waits = if held.suspended { " waits" } else { "" };
                all += &format!(
                    "\n   {:x}+{} {}.{} v{} {giver}→{owner}{waits}",
                    span.first & 0xff,
                    span.len,
                    held.ballot.round,
                    held.ballot.by.0,
                    held.version
                );
            }
        }
        all + &format!("\nlast refusal: {}", self.refused)
    }

    fn remove_all(&mut self, peer: usize, force: bool) {
        let open = |other: &usize| (self.peers[*other].dead || self.peers[*other].left) && !self.removed(peer, *other);
        let known = |other: &usize| self.peers[peer].machine.members.standing(id(*other)).is_some();
        let peers: Vec<ShortId> = (0..self.peers.len()).filter(open).filter(known).map(id).collect();
        if !peers.is_empty() {
            self.ask(peer, Request::Remove { peers, force }, String::new(), None);
        }
    }

    /// Half a second without loss.
    fn rest(&mut self) {
        let until = self.now + Duration::from_millis(500);
        let mut queue: VecDeque<Letter> = VecDeque::new();
        for _ in 0..REST_STEPS {
            queue.extend(self.net.drain(..));
            if let Some(letter) = queue.pop_front() {
                self.arrive(letter);
                continue;
            }
            let live = self.live();
            if let Some(peer) = live.iter().copied().find(|peer| self.peers[*peer].pending.is_some()) {
                self.kept(peer);
                continue;
            }
            let due = |peer: &usize| self.peers[*peer].machine.next_deadline();
            let Some(peer) = live.into_iter().min_by_key(due) else { return };
            let next = due(&peer);
            if next > until {
                self.now = until;
                return;
            }
            self.now = self.now.max(next);
            self.timeout(peer);
        }
        self.blame("messages without end".into());
    }

    fn unsettled(&self) -> Option<String> {
        let live: Vec<usize> = self.live().into_iter().filter(|peer| self.counts_for(*peer)).collect();
        let machine = |peer: usize| &self.peers[peer].machine;
        for peer in &live {
            let machine = machine(*peer);
            if let Err(why) = machine.ready(&self.views[*peer]) {
                return Some(format!("p{peer} is not ready: {why}"));
            }
            if machine.digest() != self.peers[live[0]].machine.digest() {
                return Some(format!("p{peer} knows something else than p{}", live[0]));
            }
            for address in RANGE.first..RANGE.end() as u32 {
                let Some((_, held)) = machine.map.at(address) else { return Some(format!("{address:x} is lost")) };
                if !live.contains(&at(held.owner)) {
                    return Some(format!("{address:x} is of p{}, which is gone", at(held.owner)));
                }
                if held.suspended {
                    return Some(format!("{address:x} waits at p{peer} for ever, given by p{}", at(held.giver)));
                }
            }
            if machine.removal().is_some() {
                return Some(format!("p{peer} still removes: {:?}", machine.removal()));
            }
            if let Some(open) = machine.promises.open(&machine.members) {
                return Some(format!("p{peer} still promises about {open:?}"));
            }
        }
        None
    }
}

/// Half seconds until all must be well.
const HEAL_ROUNDS: usize = 240;
/// Events in one of them.
const REST_STEPS: usize = 20_000;
