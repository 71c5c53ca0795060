//! What is wrong, and what to do about it.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use meshnet_proto::PeerId;
use meshnet_proto::api::{LinkState, Problem};
use meshnet_proto::wire::control::CloseReason;
use meshnet_proto::wire::record::COST_LAST_RESORT;

use super::Node;
use crate::peer::targets::{Errand, Standing};
use crate::time::Time;

/// What was noticed and is not to be read from the state of things.
#[derive(Debug, Default)]
pub(super) struct Notes {
    clone: Option<(Time, SocketAddr)>,
    storms: u64,
    storms_told: u64,
    stormed: Option<Time>,
    excess: Option<Time>,
    downs: BTreeMap<PeerId, Time>,
}

impl Notes {
    pub fn on_refused(&mut self, now: Time, _peer: PeerId, remote: SocketAddr, reason: CloseReason) {
        if reason == CloseReason::ClonedIdentity {
            self.clone = Some((now, remote));
        }
    }

    pub fn on_storm(&mut self) {
        self.storms += 1;
    }

    pub fn on_excess(&mut self, now: Time) {
        self.excess = Some(now);
    }

    pub fn on_alive(&mut self, now: Time, peer: PeerId, alive: bool) {
        if alive {
            self.downs.remove(&peer);
        } else if self.downs.len() < DOWNS_MAX {
            self.downs.insert(peer, now);
        }
    }

    /// Turns counts into times: the frame path's marks carry none.
    pub fn on_tick(&mut self, now: Time) {
        if self.storms != std::mem::replace(&mut self.storms_told, self.storms) {
            self.stormed = Some(now);
        }
    }
}

impl Node {
    /// What is wrong, the worst first, each with what to do.
    pub fn problems(&self, now: Time) -> Vec<Problem> {
        let mut problems = Vec::new();
        let mut add = |what: String, remedy: &str| {
            if problems.len() < PROBLEMS_MAX {
                problems.push(Problem { what, remedy: remedy.to_owned() });
            }
        };
        let recent = |at: Option<Time>| at.is_some_and(|at| now.since(at) < NOTED_FOR);
        if !self.config.secret {
            add(
                "no cluster secret: anyone who reaches the port may join".into(),
                "make one with meshctl secret and give it to every peer with --secret-file",
            );
        }
        let clone = self.origin.clone_seen(now).is_some() || recent(self.notes.clone.map(|(at, _)| at));
        if clone {
            let place = self.notes.clone.map(|(_, remote)| format!(", seen at {remote}")).unwrap_or_default();
            add(
                format!("another meshd runs with this peer's identity{place}"),
                "on the machine that was copied, stop meshd, delete its state directory and start it again",
            );
        }
        let standings = self.dials.standings(now);
        self.add_targets(&standings, &mut add);
        self.add_peers(now, &mut add);
        if recent(self.notes.stormed) {
            add(
                "this machine floods more frames than its budget; the excess is dropped".into(),
                "look for a loop on the bridge, or a program that sends broadcasts or multicasts without end",
            );
        }
        if recent(self.notes.excess) {
            add(
                "a neighbour sends more records than its share; the excess is dropped".into(),
                "compare the versions of the peers; restart the one that sends",
            );
        }
        problems.extend(self.ipam_problems(now));
        problems.truncate(PROBLEMS_MAX);
        problems
    }

    fn add_targets(&self, standings: &[Standing], add: &mut impl FnMut(String, &str)) {
        let lonely = self.links.direct_count() == 0;
        let targets: Vec<&Standing> =
            standings.iter().filter(|standing| matches!(standing.errand, Errand::Target(_))).collect();
        let tried = |standing: &&&Standing| standing.failures > 0 && standing.state != LinkState::Established;
        if lonely && targets.iter().any(|standing| standing.failures > 0) {
            add(
                "no peer is connected, though there are addresses to connect to".into(),
                "see the reasons below and in meshctl status links",
            );
        }
        for standing in targets.iter().filter(tried) {
            let Errand::Target(target) = &standing.errand else { continue };
            let reason = standing.reason.clone().unwrap_or_default();
            let (why, remedy) = reason.split_once(": ").unwrap_or((reason.as_str(), "check the address"));
            add(format!("{target}: {why}"), remedy);
        }
        for standing in standings.iter().filter(|standing| standing.state == LinkState::Failed) {
            if matches!(standing.errand, Errand::Target(_)) {
                continue;
            }
            let reason = standing.reason.clone().unwrap_or_default();
            let (why, remedy) = reason.split_once(": ").unwrap_or((reason.as_str(), "check that peer"));
            let name = standing.peer.map(|peer| self.topology.display_name(&peer)).unwrap_or_default();
            add(format!("{name} at {}: {why}", standing.address), remedy);
        }
    }

    fn add_peers(&self, now: Time, add: &mut impl FnMut(String, &str)) {
        for (id, entry) in self.topology.entries().filter(|(id, _)| **id != self.me) {
            let name = self.topology.display_name(id);
            let record = entry.record();
            if let Some(since) = entry.unreachable_since
                && now.since(since) > UNREACHABLE_AFTER
            {
                let ago = now.since(since).as_secs();
                add(
                    format!("{name} cannot be reached, for {ago} s"),
                    "if it is gone for good, nothing; else check that meshd runs there and the network between",
                );
                continue;
            }
            if record.mtu != self.config.mtu && entry.reachable() {
                add(
                    format!(
                        "{name} has an overlay MTU of {}, this peer {}: longer packets that do not forbid fragments are lost",
                        record.mtu, self.config.mtu
                    ),
                    "give both the same --mtu, the lower of the two",
                );
            }
            if self.peers.of(id).is_some_and(|peer| peer.transport.fell_back() && peer.path.usable().is_some()) {
                add(
                    format!("frames to {name} go by QUIC, since sealed UDP does not pass"),
                    "nothing must be done; to make it faster, let all UDP to its port pass, not only what looks like QUIC",
                );
            }
            let Some(route) = self.routes.get(id) else { continue };
            let direct_wanted = self.dials.has(&Errand::Peer(*id)) && self.links.current(*id, false).is_none();
            if direct_wanted && route.best.is_some_and(|way| !way.is_direct()) {
                add(
                    format!("{name} is reached only through others"),
                    "nothing must be done; to make it faster, let UDP to its port pass between the two machines",
                );
            }
        }
        for link in self.origin.record().links.iter().filter(|link| link.cost == COST_LAST_RESORT) {
            let name = self.topology.by_short(link.peer).map(|id| self.topology.display_name(&id)).unwrap_or_default();
            add(
                format!("the link to {name} goes up and down"),
                "check cables, load and the firewall's time limits between the two machines",
            );
        }
    }
}

/// How long something noticed stays a problem.
const NOTED_FOR: Duration = Duration::from_secs(300);
/// A restart takes less.
const UNREACHABLE_AFTER: Duration = Duration::from_secs(10);
/// Problems shown: the worst come first, and nobody reads more.
const PROBLEMS_MAX: usize = 64;
/// Silent peers remembered.
const DOWNS_MAX: usize = 1024;
