//! The driver's side of the addresses: what the machine of addresses asks for is done here, and its answers go to whoever waits.
//!
//! ```text
//! ask_ipam ─▶ Request ─┐                 ┌─▶ Reply ─▶ whoever asked
//! store ────▶ Kept ────┼─▶ node (ipam) ──┼─▶ Keep ──▶ store
//! bridge ───▶ Probed ──┘                 ├─▶ Probe ─▶ ARP on the bridge
//!                                        └─▶ Removed, Left ─▶ the driver ends; the state directory parts with the identity
//! ```

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use meshnet_core::ipam::{self, Answer, Init, Input, LeaseLine, Output, Refusal, Request};
use meshnet_core::node::{self, Node};
use meshnet_core::time::Time;
use meshnet_proto::ShortId;
use meshnet_proto::wire::ipam::Span;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tracing::{debug, info, warn};

use super::claims::Claims;
use super::config::{IpamInit, Settings};
use super::driver::Driver;
use super::state::StateDir;
use crate::store::{Keeper, Store};

/// What comes back to somebody who asked.
pub type Outcome = Result<Answer, Refusal>;

/// What became of a write: its number, and the words of the system if it failed.
pub type Kept = (u64, Result<(), String>);

/// Addresses that were asked for on the bridge: those taken, or why nobody was asked.
pub type Probed = (Vec<u32>, Result<Vec<u32>, String>);

/// How a driver ends.
#[derive(Debug)]
pub enum End {
    /// Asked to stop.
    Stopped,
    /// Others declared this peer gone. These addresses were given out here.
    Removed(Vec<LeaseLine>),
    /// It left the cluster, as asked.
    Left,
}

/// What the driver has to do with addresses.
pub struct Shell {
    /// None: no addresses are managed.
    keeper: Option<Keeper>,
    /// For writes that the keeper does not take.
    refused: mpsc::Sender<Kept>,
    /// The last write failed.
    failing: bool,
    /// Questions on the bridge under way.
    pub(super) probes: JoinSet<Probed>,
    /// The last one could not be asked.
    unasked: bool,
    /// Addresses of an earlier identity to be claimed.
    pub(super) claims: Claims,
    /// Decided by the machine.
    pub(super) fate: Option<Fate>,
}

/// Why the driver shall end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// [`Output::Removed`].
    Removed,
    /// [`Output::Left`].
    Left,
}

impl Shell {
    /// With a store to write to, if addresses are managed, and what that identity is to claim; gives what is told of writes.
    pub fn start(store: Option<Store>, state: &Arc<StateDir>) -> std::io::Result<(Shell, mpsc::Receiver<Kept>)> {
        let (refused, kept) = mpsc::channel(KEPT_MAX);
        let claims = if store.is_some() { Claims::load(state) } else { Claims::none() };
        let report = refused.clone();
        // The driver may be gone at the end; then nobody waits for it.
        let start =
            |store| Keeper::start(store, Box::new(move |seq, result| drop(report.blocking_send((seq, result)))));
        let keeper = store.map(start).transpose()?;
        let probes = JoinSet::new();
        Ok((Shell { keeper, refused, failing: false, probes, unasked: false, claims, fate: None }, kept))
    }
}

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
        match output {
            Output::Reply { token, result } => {
                // Who asked may be gone already; then nobody minds.
                self.replies.remove(&token).map(|answer| answer.send(result));
            }
            Output::Keep { seq, writes } => {
                let Some(keeper) = &self.ipam.keeper else { return };
                if let Err(error) = keeper.keep(seq, writes) {
                    // There is room: fewer are under way than the channel holds.
                    drop(self.ipam.refused.try_send((seq, Err(error))));
                }
            }
            Output::Probe(addresses) => self.probe(addresses),
            Output::Removed => self.ipam.fate = Some(Fate::Removed),
            Output::Left => self.ipam.fate = Some(Fate::Left),
            // The node does these itself.
            Output::Send { .. } | Output::Tell { .. } | Output::Owners | Output::Told(_) | Output::Event { .. } => {}
        }
    }

    pub(super) fn on_kept(&mut self, (seq, result): Kept) {
        match (&result, self.ipam.failing) {
            (Err(error), false) => warn!(%error, "addresses cannot be written: none is given out until they can"),
            (Ok(()), true) => info!("addresses are written again"),
            _ => {}
        }
        self.ipam.failing = result.is_err();
        self.take(node::Input::Ipam(Input::Kept { seq, result }));
    }

    fn probe(&mut self, addresses: Vec<u32>) {
        let view = self.view();
        let full = self.ipam.probes.len() >= PROBES_MAX;
        self.ipam.probes.spawn(async move {
            if full {
                return (addresses, Err("too many questions wait".into()));
            }
            let asked: Vec<Ipv4Addr> = addresses.iter().map(|address| Ipv4Addr::from(*address)).collect();
            let taken = view.taken(&asked).await.map_err(|error| error.to_string());
            (addresses, taken.map(|taken| taken.into_iter().map(u32::from).collect()))
        });
    }

    pub(super) fn on_probed(&mut self, (addresses, result): Probed) {
        match (&result, self.ipam.unasked) {
            (Err(error), false) => {
                warn!(%error, "addresses are given out without asking on the bridge whether somebody has them");
            }
            (Ok(taken), _) if !taken.is_empty() => {
                let taken: Vec<Ipv4Addr> = taken.iter().map(|address| Ipv4Addr::from(*address)).collect();
                warn!(addresses = ?taken, "addresses are in use on the bridge by somebody that did not get them here");
            }
            (Ok(_), true) => debug!("the bridge can be asked again"),
            _ => {}
        }
        self.ipam.unasked = result.is_err();
        self.take(node::Input::Ipam(Input::Probed { addresses, taken: result.unwrap_or_default() }));
    }

    /// What the machine decided, once it has: with the addresses that were given out here.
    pub(super) async fn end(&mut self, kept: &mut mpsc::Receiver<Kept>) -> End {
        match self.ipam.fate {
            None => End::Stopped,
            Some(Fate::Left) => {
                self.say_left().await;
                End::Left
            }
            Some(Fate::Removed) => {
                warn!("other peers declared this one gone for good: what it owned is theirs, and it stops");
                End::Removed(self.leases(kept).await)
            }
        }
    }

    async fn leases(&mut self, kept: &mut mpsc::Receiver<Kept>) -> Vec<LeaseLine> {
        let mut answered = self.ask_ipam(Request::List);
        let limit = tokio::time::sleep(LIST_TIME);
        tokio::pin!(limit);
        loop {
            tokio::select! {
                answer = &mut answered => match answer {
                    Ok(Ok(Answer::Leases(leases))) => return leases,
                    other => {
                        warn!(answer = ?other, "the addresses given out here are not known: claim those of running containers by hand");
                        return Vec::new();
                    }
                },
                Some(told) = kept.recv() => self.on_kept(told),
                () = &mut limit => {
                    warn!("the addresses given out here are not told in time: claim those of running containers by hand");
                    return Vec::new();
                }
            }
        }
    }
}

/// Settings of the machine; none: switched off.
pub fn config(settings: &Settings, me: ShortId, seed: u64) -> Option<ipam::Config> {
    let range = span(settings.ipam_range?)?;
    Some(ipam::Config {
        me,
        name: settings.name.clone(),
        range,
        subnet: settings.ipam_subnet.and_then(span).unwrap_or(range),
        init: match &settings.ipam_init {
            IpamInit::Auto if settings.kubernetes.is_some() => Init::Outside,
            IpamInit::Auto => Init::Auto,
            IpamInit::Seed(names) => Init::Seeds(names.clone()),
            IpamInit::Consensus(peers) => Init::Consensus(*peers),
            IpamInit::Observer => Init::Observer,
        },
        probe: true,
        cool_down: COOL_DOWN,
        seed,
    })
}

fn span(net: IpNet) -> Option<Span> {
    let IpNet::V4(net) = net else { return None };
    let bits = u32::from(net.max_prefix_len() - net.prefix_len());
    Some(Span { first: net.network().into(), len: 1u32.checked_shl(bits)? })
}

/// The addresses that a peer had given out, from what it kept: asked of a node that is never connected.
pub fn leases_kept(config: node::Config) -> Vec<LeaseLine> {
    let mut node = Node::new(config, Time::ZERO);
    node.handle(Time::ZERO, node::Input::Ipam(Input::Request { token: 0, request: Request::List }));
    for _ in 0..OUTPUTS_MAX {
        match node.poll() {
            Some(node::Output::Ipam(Output::Reply { token: 0, result: Ok(Answer::Leases(leases)) })) => return leases,
            // It may want to note something first. Nothing of this is for the disk.
            Some(node::Output::Ipam(Output::Keep { seq, .. })) => {
                node.handle(Time::ZERO, node::Input::Ipam(Input::Kept { seq, result: Ok(()) }));
            }
            Some(_) => {}
            None => break,
        }
    }
    Vec::new()
}

/// Several times the connections that the control socket takes, for answers may wait for other peers.
const REPLIES_MAX: usize = 1024;
/// More than the keeper has under way.
const KEPT_MAX: usize = 64;
/// The machine asks for a few at a time and waits for the answer.
const PROBES_MAX: usize = 16;
/// A conntrack entry or ARP cache of the last owner is forgotten by then.
const COOL_DOWN: Duration = Duration::from_secs(60);
/// The list waits for a sync at most.
const LIST_TIME: Duration = Duration::from_secs(2);
/// Far more than a node says before anybody is connected.
const OUTPUTS_MAX: usize = 10_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_become_spans() {
        let span = |text: &str| super::span(text.parse().unwrap());
        assert_eq!(span("10.32.0.0/12"), Some(Span { first: 0x0a20_0000, len: 1 << 20 }));
        assert_eq!(span("10.32.5.0/30"), Some(Span { first: 0x0a20_0500, len: 4 }));
        assert_eq!(span("0.0.0.0/0"), None, "as many do not fit");
        assert_eq!(span("fd00::/64"), None);
    }
}
