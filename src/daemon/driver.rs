//! The driver: one task that owns the node, feeds it everything that happens and does everything that it says.
//!
//! ```text
//! links ──────┐                              ┌─▶ links (dial, send, close)
//! punts ──────┤                              ├─▶ data plane (snapshot, MAC flush), socket (probes)
//! requests ───┼─▶ select ─▶ Node ─▶ poll … ──┼─▶ keeper (what outlives a restart)
//! resolver ───┤      ▲                       ├─▶ resolver
//! devices ────┤      └─ deadline, tick       ├─▶ log
//! store ──────┘                              └─▶ store, bridge (addresses: `ipam`)
//! ```
//! Every channel in is bounded and read in turn; at most [`BURST`] inputs are taken before outputs are done, so that none starves the others.

use std::collections::{BTreeMap, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use meshnet_core::forward::Punted;
use meshnet_core::node::{Input, Level, Node, Output, target_address};
use meshnet_core::time::Time;
use meshnet_proto::api::{Command, Reply, Trace};
use meshnet_proto::{Mac, PeerId};
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tracing::{debug, info, warn};

use super::addresses::{Addresses, Ask, choose};
use super::backend::Request;
use super::devices::{Devices, Notice};
use super::fast::FastPath;
use super::ipam::{End, Kept, Outcome, Shell};
use super::kubernetes;
use super::report::Facts;
use crate::dataplane::{Dataplane, PuntRing};
use crate::kube::agent::Order;
use crate::quic::{Quic, Sent};
use crate::udp::UdpSockets;

/// What the driver is made of. Field by field: who it owns.
pub struct Driver {
    /// The control plane.
    pub node: Node,
    /// Its clock's zero.
    pub started: Instant,
    /// Links.
    pub quic: Quic,
    /// Worker threads.
    pub plane: Dataplane,
    /// The port, for probes.
    pub sockets: Arc<UdpSockets>,
    /// The snapshot as QUIC's way out sees it.
    pub fib: Arc<arc_swap::ArcSwap<meshnet_core::fib::Fib>>,
    /// What workers hand over.
    pub punts: Arc<PuntRing>,
    /// Rung when something was handed over.
    pub punted: Arc<Notify>,
    /// Seconds, for the workers.
    pub tick: Arc<AtomicU32>,
    /// Bridge, TAP, addresses.
    pub devices: Devices,
    /// The kernel's fast path.
    pub fast: FastPath,
    /// What is to be kept: the keeper task writes the newest.
    pub keep: watch::Sender<Option<meshnet_core::node::Saved>>,
    /// What never changes, for status and report.
    pub facts: Facts,
    /// Look-ups under way.
    pub lookups: JoinSet<(String, Result<Vec<SocketAddr>, String>)>,
    /// Questions to the neighbour table under way: bounded by the connections of the API.
    pub neighbours: JoinSet<(String, Option<Mac>, oneshot::Sender<Reply>)>,
    /// Targets that wait for a look-up.
    pub waiting: VecDeque<String>,
    /// Who waits for an echo.
    pub pings: BTreeMap<u64, (oneshot::Sender<Reply>, PeerId, String)>,
    /// Writing and probing addresses, and what came of it.
    pub ipam: Shell,
    /// Who waits for an answer about addresses, by token; bounded by [`Driver::ask_ipam`].
    pub replies: BTreeMap<u64, oneshot::Sender<Outcome>>,
    /// The token of the next question about addresses.
    pub next_token: u64,
    /// When the storm budgets were filled last.
    pub refilled: Instant,
    /// For commands about addresses.
    pub addresses: Addresses,
    /// Commands about addresses under way: bounded by the connections of the API.
    pub errands: JoinSet<()>,
    /// The API of Kubernetes.
    pub kubernetes: Option<kubernetes::Link>,
}

/// The channels that the driver reads.
pub struct Sources {
    /// Of the links.
    pub links: mpsc::Receiver<Input>,
    /// Of the API.
    pub requests: mpsc::Receiver<Request>,
    /// Of the devices.
    pub notices: mpsc::Receiver<Notice>,
    /// Of the kernel's fast path.
    pub fast: mpsc::Receiver<Input>,
    /// Of commands about addresses.
    pub asks: mpsc::Receiver<Ask>,
    /// Of the store.
    pub kept: mpsc::Receiver<Kept>,
    /// Of Kubernetes.
    pub orders: mpsc::Receiver<Order>,
}

impl Driver {
    /// Runs until `stop` is rung, or the machine of addresses says that this peer is one no more.
    pub async fn run(mut self, mut from: Sources, stop: Arc<Notify>) -> End {
        let mut beat = tokio::time::interval(BEAT);
        beat.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        self.do_outputs();
        self.take(Input::Addresses(self.devices.addresses()));
        self.take(Input::HostAddresses(self.devices.hosts()));
        loop {
            self.do_outputs();
            if self.ipam.fate.is_some() {
                break;
            }
            let deadline = self.deadline();
            tokio::select! {
                () = stop.notified() => break,
                Some(input) = from.links.recv() => {
                    self.take(input);
                    for _ in 1..BURST {
                        let Ok(input) = from.links.try_recv() else { break };
                        self.take(input);
                    }
                }
                () = self.punted.notified() => self.take_punts(),
                Some(request) = from.requests.recv() => self.answer(request),
                Some(input) = from.fast.recv() => self.take(input),
                Some(notice) = from.notices.recv() => self.on_notice(notice),
                Some(ask) = from.asks.recv() => self.on_ask(ask),
                Some(order) = from.orders.recv() => self.on_order(order),
                Some(_) = self.errands.join_next() => {}
                Some(told) = from.kept.recv() => self.on_kept(told),
                Some(probed) = self.ipam.probes.join_next() => {
                    if let Ok(probed) = probed {
                        self.on_probed(probed);
                    }
                }
                Some(answered) = self.ipam.claims.asked.join_next() => {
                    if let Ok((claim, outcome)) = answered {
                        self.ipam.claims.on_answer(claim, outcome);
                    }
                }
                Some(found) = self.lookups.join_next() => self.on_lookup(found),
                Some(found) = self.neighbours.join_next() => {
                    if let Ok((to, mac, answer)) = found {
                        drop(answer.send(traced(self.trace_ip(&to, mac))));
                    }
                }
                links = self.quic.writable() => {
                    for link in links {
                        self.take(Input::Writable { link, writable: true });
                    }
                }
                _ = beat.tick() => self.on_beat(),
                () = tokio::time::sleep_until(deadline) => {
                    let now = self.now();
                    self.node.handle_timeout(now);
                }
            }
        }
        let end = self.end(&mut from.kept).await;
        self.stop().await;
        end
    }

    pub(super) fn now(&self) -> Time {
        Time::from_us(u64::try_from(self.started.elapsed().as_micros()).unwrap_or(u64::MAX))
    }

    fn deadline(&self) -> tokio::time::Instant {
        let due = self.node.next_deadline().as_us();
        // A deadline that has passed is done at once; one that is far is looked at again by then.
        let due = Duration::from_micros(due).min(self.started.elapsed() + Duration::from_secs(1));
        tokio::time::Instant::from_std(self.started + due)
    }

    /// Gives one input to the node and does what it says: the core is drained before it is changed again.
    pub(super) fn take(&mut self, input: Input) {
        let now = self.now();
        self.node.handle(now, input);
        self.do_outputs();
    }

    fn take_punts(&mut self) {
        for _ in 0..BURST {
            let Some(punted) = self.punts.take() else { return };
            self.take(match punted {
                Punted::Fast { slot, mac } => {
                    self.fast.offer(slot, mac);
                    continue;
                }
                Punted::Probe { slot, from, relayed, plaintext } => Input::Probe { slot, from, relayed, plaintext },
                Punted::Roamed { slot, from } => Input::Roamed { slot, from },
                Punted::SessionWanted(slot) => Input::SessionWanted(slot),
            });
        }
        // More than a burst waits: come back after the others had their turn.
        self.punted.notify_one();
    }

    fn do_outputs(&mut self) {
        while let Some(output) = self.node.poll() {
            self.do_output(output);
        }
    }

    fn do_output(&mut self, output: Output) {
        match output {
            Output::Dial { dial, remote, expect } => self.quic.dial(dial, remote, expect),
            Output::Resolve { target } => self.resolve(target),
            Output::Send { link, bytes } => {
                if self.quic.send(link, bytes) == Sent::Pressed {
                    let now = self.now();
                    self.node.handle(now, Input::Writable { link, writable: false });
                }
            }
            Output::Close { link, reason } => self.quic.close(link, reason),
            Output::Datagram { to, bytes } => {
                // A probe that is not sent is a probe that is not answered: the node judges by that.
                if let Err(error) = self.sockets.send(to, &bytes, None) {
                    debug!(%to, %error, "probe not sent");
                }
            }
            Output::Train { to, bytes, segment_bytes } => {
                if let Err(error) = self.sockets.send_train(to, &bytes, segment_bytes) {
                    debug!(%to, %error, "probes not sent");
                }
            }
            Output::Aside { port, to, bytes } => {
                if let Err(error) = self.sockets.send_aside(usize::from(port), to, &bytes) {
                    debug!(%to, %error, "probe not sent");
                }
            }
            Output::Singly(addresses) => self.sockets.go_singly(&addresses),
            Output::FastProbe { slot, frame } => self.fast.probe(slot, frame),
            Output::Publish(fib) => {
                self.fast.publish(&fib);
                self.fib.store(Arc::clone(&fib));
                self.plane.publish(fib);
            }
            Output::FlushMacs(slot) => self.plane.fdb().flush(slot),
            Output::Persist(saved) => drop(self.keep.send_replace(Some(saved))),
            Output::Pong { token, result } => self.on_pong(token, result),
            Output::Ipam(output) => self.do_ipam(output),
            Output::Event(event) => {
                let (what, peer, detail) = (event.what, event.peer.map(|peer| peer.brief()), event.detail);
                match event.level {
                    Level::Warn => warn!(peer, detail, "{what}"),
                    Level::Info => info!(peer, detail, "{what}"),
                    Level::Debug => debug!(peer, detail, "{what}"),
                }
            }
        }
    }

    fn resolve(&mut self, target: String) {
        if self.lookups.len() >= LOOKUPS_MAX {
            // The node asks for a target once at a time, so this is bounded by its targets.
            self.waiting.push_back(target);
            return;
        }
        self.lookups.spawn(async move {
            let found = look_up(&target).await;
            (target, found)
        });
    }

    fn on_lookup(&mut self, found: Result<(String, Result<Vec<SocketAddr>, String>), tokio::task::JoinError>) {
        if let Ok((target, result)) = found {
            self.take(Input::Resolved { target, result });
        }
        if let Some(next) = self.waiting.pop_front() {
            self.resolve(next);
        }
    }

    fn on_beat(&mut self) {
        let elapsed = self.refilled.elapsed();
        self.refilled = Instant::now();
        self.node.refill(elapsed);
        self.claim();
        let second = u32::try_from(self.started.elapsed().as_secs()).unwrap_or(u32::MAX);
        if self.tick.swap(second, Ordering::Relaxed) != second {
            self.show_cluster(self.now());
            if second.is_multiple_of(AGE_EVERY_S) {
                self.plane.fdb().age(second);
            }
        }
    }

    fn on_notice(&mut self, notice: Notice) {
        match notice {
            Notice::Addresses(addresses) => self.take(Input::Addresses(addresses)),
            Notice::Mtu(mtu) => {
                self.fast.set_mtu(mtu);
                self.take(Input::Mtu(mtu));
            }
            Notice::Tap(tap) => self.plane.replace_tap(tap),
            Notice::Hosts(hosts) => self.take(Input::HostAddresses(hosts)),
        }
    }

    fn answer(&mut self, request: Request) {
        let now = self.now();
        // Who asked may be gone already; then nobody minds.
        match request {
            Request::Status(answer) => drop(answer.send(self.status(now))),
            Request::Topology(answer) => drop(answer.send(self.node.topology())),
            Request::Macs(answer) => drop(answer.send(self.macs())),
            Request::Report(answer) => drop(answer.send(self.report(now))),
            Request::Metrics(answer) => drop(answer.send(self.metrics(now))),
            Request::Ready(answer) => drop(answer.send(self.ready())),
            Request::Command(command, answer) => self.command(command, answer),
        }
    }

    fn command(&mut self, command: Command, answer: oneshot::Sender<Reply>) {
        let now = self.now();
        let each = |result: Result<(), String>| match result {
            Ok(()) => Reply::Done,
            Err(reason) => Reply::Refused { reason },
        };
        match command {
            Command::Connect { addresses } => {
                let done = addresses.iter().try_for_each(|address| self.node.connect(now, address));
                drop(answer.send(each(done)));
            }
            Command::Forget { addresses } => {
                let done = addresses.iter().try_for_each(|address| self.node.forget(now, address));
                drop(answer.send(each(done)));
            }
            Command::Ping { peer } => match self.ping(now, &peer) {
                Ok((token, id)) => {
                    let name = self.node.records().display_name(&id);
                    self.pings.insert(token, (answer, id, name));
                }
                Err(reason) => drop(answer.send(Reply::Refused { reason })),
            },
            Command::Trace { to } => match to.parse::<IpAddr>() {
                Ok(ip) => {
                    let view = self.view();
                    self.neighbours.spawn(async move { (to, view.neighbour(ip).await, answer) });
                }
                Err(_) => drop(answer.send(traced(self.trace(&to)))),
            },
            Command::Network => drop(answer.send(Reply::Network(self.network()))),
            Command::Rmpeer { peers, force } => match choose(&self.candidates(now), &peers, force) {
                Ok(chosen) => {
                    let errand = self.addresses.clone().remove(chosen, force);
                    self.errands.spawn(async move { drop(answer.send(errand.await)) });
                }
                Err(reason) => drop(answer.send(Reply::Refused { reason })),
            },
            about_addresses => {
                let errand = self.addresses.clone().command(about_addresses);
                self.errands.spawn(async move { drop(answer.send(errand.await)) });
            }
        }
        self.do_outputs();
    }

    fn ping(&mut self, now: Time, who: &str) -> Result<(u64, PeerId), String> {
        let id = self.node.find(who)?;
        Ok((self.node.ping(now, who)?, id))
    }

    fn on_pong(&mut self, token: u64, result: Option<(Duration, String)>) {
        let Some((answer, peer, name)) = self.pings.remove(&token) else { return };
        let reply = match result {
            Some((rtt, path)) => Reply::Pong { peer, name, rtt_ms: rtt.as_secs_f64() * 1e3, path },
            None => Reply::Lost { peer, name },
        };
        drop(answer.send(reply));
    }

    async fn stop(mut self) {
        info!("stopping");
        let now = self.now();
        self.node.stop(now);
        self.do_outputs();
        self.fast.stop().await;
        self.quic.shutdown().await;
        self.plane.stop();
    }
}

fn traced(result: Result<Trace, String>) -> Reply {
    match result {
        Ok(trace) => Reply::Trace(trace),
        Err(reason) => Reply::Refused { reason },
    }
}

async fn look_up(target: &str) -> Result<Vec<SocketAddr>, String> {
    let address = target_address(target)?;
    match tokio::time::timeout(LOOKUP_TIME, tokio::net::lookup_host(address)).await {
        Ok(Ok(addresses)) => Ok(addresses.collect()),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err("the resolver does not answer".into()),
    }
}

/// Inputs of one source in a row: enough that a burst costs one round, few enough that a round ends within milliseconds.
const BURST: usize = 64;
/// Refill of storm budgets, and the workers' clock: fine enough for a budget by the second.
const BEAT: Duration = Duration::from_millis(200);
/// Between two looks for aged MAC addresses, whose age is counted in minutes.
const AGE_EVERY_S: u32 = 10;
/// Look-ups at once: each may hold a thread of the resolver for its time limit.
const LOOKUPS_MAX: usize = 8;
/// Longest wait for a resolver.
const LOOKUP_TIME: Duration = Duration::from_secs(5);
