//! A simulated network of real [`Node`]s and [`Forwarder`](crate::forward::Forwarder)s: one queue of events, one seed, no threads.
//! Equal seeds give equal runs, event for event.
//!
//! ```text
//! Node ── Output ──▶ Sim ── after delay, loss, cuts, translation ──▶ Input ──▶ Node
//! inject(frame) ──▶ Forwarder ── datagrams ──▶ Net ──▶ Forwarder ──▶ delivered(frame)
//! ```
//! Links (QUIC connections) are modelled: reliable, in order, delayed; lost datagrams cost a retransmission; after 10 s without a way they end. Those to
//! virtual addresses follow the routes of the nodes, hop by hop. Sealed datagrams are real. After every event the invariants are checked: no frame reaches a
//! host twice, nor one that it was not for; no queue grows without bound.
//!
//! For tests and benchmarks only. Lacks: bytes of QUIC, congestion, CPU time.
#![allow(
    clippy::indexing_slicing,
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a simulation that goes wrong must say so by a panic"
)]

mod conn;
pub mod figures;
mod host;
mod net;
#[cfg(test)]
mod tests;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use meshnet_proto::PeerId;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::forward::Deliver;
use crate::identity::{Identity, SharedVerifier};
use crate::node::{Config, DialError, DialId, Input, LinkId, Node, Output, Saved};
use crate::peer::from_link;
use crate::time::Time;
use conn::Conns;
pub use host::Host;
pub use net::{Conditions, HostId, Net};

/// The simulation.
#[derive(Debug)]
pub struct Sim {
    /// Now.
    pub now: Time,
    /// The underlay.
    pub net: Net,
    /// The machines.
    pub hosts: Vec<Host>,
    /// What all draws come from.
    pub rng: StdRng,
    /// What happened so far.
    pub metrics: Metrics,
    /// Messages of gossip are lost, so that a mesh can link without telling.
    pub mute: bool,
    /// Frames that were injected: number to (source, destination; none: everybody).
    frames: BTreeMap<u64, Injected>,
    conns: Conns,
    queue: BinaryHeap<Reverse<Entry>>,
    sequence: u64,
    hash: u64,
    verifier: Arc<SharedVerifier>,
    names: BTreeMap<String, Vec<SocketAddr>>,
}

/// Counted over all hosts.
#[derive(Debug, Clone, Copy, Default)]
pub struct Metrics {
    /// Control messages sent.
    pub messages: u64,
    /// Bytes of those.
    pub message_bytes: u64,
    /// Datagrams sent.
    pub datagrams: u64,
    /// Bytes of those, without IP and UDP.
    pub datagram_bytes: u64,
    /// Dials.
    pub dials: u64,
    /// Links that opened, both ends counted once.
    pub links: u64,
    /// Frames delivered to hosts.
    pub delivered: u64,
}

#[derive(Debug, Clone)]
struct Injected {
    from: HostId,
    to: Option<HostId>,
    sum: u64,
    reached: Vec<(HostId, Time)>,
}

#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Entry {
    at: Time,
    sequence: u64,
    what: What,
}

#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
enum What {
    Timer { host: HostId, life: u32 },
    Datagram { to: HostId, from: SocketAddr, bytes: Vec<u8> },
    Dialled { host: HostId, life: u32, dial: u64, remote: SocketAddr, expect: Option<PeerId> },
    DialTimeout { host: HostId, life: u32, dial: u64 },
    Message { conn: u64, end: usize, bytes: Arc<[u8]> },
    Closed { conn: u64, end: usize, reason: Option<meshnet_proto::wire::control::CloseReason> },
    Resolved { host: HostId, life: u32, target: String },
    Kept { host: HostId, life: u32, seq: u64 },
    Probed { host: HostId, life: u32, addresses: Vec<u32> },
    Keepalive,
}

impl Sim {
    /// A network without machines.
    pub fn new(seed: u64, conditions: Conditions) -> Sim {
        let mut sim = Sim {
            now: Time::from_us(1_000_000),
            net: Net::new(conditions, seed),
            hosts: Vec::new(),
            rng: StdRng::seed_from_u64(seed),
            metrics: Metrics::default(),
            mute: false,
            frames: BTreeMap::new(),
            conns: Conns::default(),
            queue: BinaryHeap::new(),
            sequence: 0,
            hash: 0xcbf2_9ce4_8422_2325,
            verifier: Arc::default(),
            names: BTreeMap::new(),
        };
        sim.push(Duration::from_secs(1), What::Keepalive);
        sim
    }

    /// Adds a machine whose identity has this seed, not started yet.
    pub fn add_host(&mut self, identity: u32) -> HostId {
        let n = self.hosts.len() as u32;
        let address = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(10, 1, (n >> 8) as u8, n as u8)), crate::node::PORT);
        let id = self.net.add(address);
        self.hosts.push(Host::new(identity));
        id
    }

    /// The settings of a machine, to be changed before [`Sim::start`].
    pub fn config(&mut self, host: HostId) -> Config {
        let seed = self.hosts[host].identity;
        let mut bytes = [0x5a; 32];
        bytes[..4].copy_from_slice(&seed.to_be_bytes());
        let mut config = Config::new(Identity::from_seed(bytes), format!("host{host}"));
        config.incarnation = u64::from(self.hosts[host].life) + 1;
        config.instance = self.rng.random();
        config.seed = self.rng.random();
        config.lanes = 2;
        config.saved = self.hosts[host].saved.clone();
        config.verify = self.verifier.clone();
        config.ipam_kept = self.hosts[host].ipam_kept.clone().into_iter().collect();
        config
    }

    /// Starts the process on a machine.
    pub fn start(&mut self, host: HostId, config: Config) {
        let address = self.net.seen_as(host);
        self.hosts[host].start(Node::new(config, self.now));
        self.input(host, Input::Addresses(vec![address]));
    }

    /// Makes, configures and starts `count` machines; each connects to those that `targets` gives for it.
    pub fn cluster(&mut self, count: usize, targets: impl Fn(usize) -> Vec<usize>) -> Vec<HostId> {
        let hosts: Vec<HostId> = (0..count).map(|n| self.add_host(n as u32)).collect();
        for (n, host) in hosts.iter().enumerate() {
            let mut config = self.config(*host);
            config.targets = targets(n).into_iter().map(|to| self.net.seen_as(hosts[to]).to_string()).collect();
            self.start(*host, config);
        }
        hosts
    }

    /// Kills a process: nothing is said to anybody. What it had kept stays.
    pub fn kill(&mut self, host: HostId) {
        self.hosts[host].kill();
        self.conns.forget_host(host);
    }

    /// Stops a process as the operator does.
    pub fn stop(&mut self, host: HostId) {
        let now = self.now;
        if let Some(node) = &mut self.hosts[host].node {
            node.stop(now);
        }
        self.drain(host);
        self.kill(host);
    }

    /// A machine gets another address and notices.
    pub fn renumber(&mut self, host: HostId, address: SocketAddr) {
        self.net.renumber(host, address);
        self.input(host, Input::Addresses(vec![address]));
    }

    /// What a name resolves to.
    pub fn name(&mut self, name: &str, addresses: Vec<SocketAddr>) {
        self.names.insert(name.to_owned(), addresses);
    }

    /// A hash over all that happened: equal for equal seeds.
    pub fn log_hash(&self) -> u64 {
        self.hash
    }

    fn log(&mut self, words: &[u64]) {
        for word in words {
            self.hash = crate::topology::digest::mix(self.hash ^ word);
        }
    }

    fn push(&mut self, after: Duration, what: What) {
        self.sequence += 1;
        self.queue.push(Reverse(Entry { at: self.now + after, sequence: self.sequence, what }));
    }

    /// Runs for this long.
    pub fn run(&mut self, span: Duration) {
        let until = self.now + span;
        while self.queue.peek().is_some_and(|Reverse(entry)| entry.at <= until) {
            self.step();
        }
        self.now = until;
    }

    /// Runs until a condition holds, looking every 10 ms; gives the time it took, or `None` after `limit`.
    pub fn run_until(&mut self, limit: Duration, mut holds: impl FnMut(&Sim) -> bool) -> Option<Duration> {
        let start = self.now;
        while !holds(self) {
            if self.now.since(start) >= limit {
                return None;
            }
            self.run(Duration::from_millis(10));
        }
        Some(self.now.since(start))
    }

    fn step(&mut self) {
        let Some(Reverse(Entry { at, what, .. })) = self.queue.pop() else { return };
        self.now = at;
        match what {
            What::Timer { host, life } => self.on_timer(host, life),
            What::Datagram { to, from, bytes } => self.on_datagram(to, from, bytes),
            What::Dialled { host, life, dial, remote, expect } => {
                self.on_dialled(host, life, DialId(dial), remote, expect)
            }
            What::DialTimeout { host, life, dial } if self.hosts[host].life == life => {
                self.input(host, Input::DialFailed { dial: DialId(dial), why: DialError::Timeout });
            }
            What::DialTimeout { .. } => {}
            What::Message { conn, end, bytes } => self.on_conn_message(conn, end, &bytes),
            What::Closed { conn, end, reason } => self.on_conn_closed(conn, end, reason),
            What::Resolved { host, life, target } => {
                let result = self.names.get(&target).cloned().ok_or_else(|| "no such name".to_owned());
                if self.hosts[host].life == life {
                    self.input(host, Input::Resolved { target, result });
                }
            }
            What::Kept { host, life, seq } => {
                let kept = crate::ipam::Input::Kept { seq, result: Ok(()) };
                if self.hosts[host].life == life {
                    self.input(host, Input::Ipam(kept));
                }
            }
            What::Probed { host, life, addresses } => {
                if self.hosts[host].life == life {
                    self.input(host, Input::Ipam(crate::ipam::Input::Probed { addresses, taken: Vec::new() }));
                }
            }
            What::Keepalive => {
                self.keep_conns();
                self.push(Duration::from_secs(1), What::Keepalive);
            }
        }
        assert!(self.queue.len() < QUEUE_MAX + QUEUE_PER_HOST * self.hosts.len(), "the network does not come to rest");
    }

    fn on_timer(&mut self, host: HostId, life: u32) {
        let now = self.now;
        let state = &mut self.hosts[host];
        if state.life != life || !state.alive() || state.timer != Some(now) {
            return;
        }
        state.timer = None;
        if let Some(until) = state.frozen_until.filter(|until| *until > now) {
            state.timer = Some(until);
            return self.push(until.since(now), What::Timer { host, life });
        }
        self.log(&[1, host as u64, now.as_us()]);
        let state = &mut self.hosts[host];
        if let Some(node) = &mut state.node {
            let elapsed = now.since(state.refilled);
            if elapsed >= REFILL_EVERY {
                state.refilled = now;
                node.refill(elapsed);
            }
            node.handle_timeout(now);
        }
        self.drain(host);
    }

    /// Gives a node something, and does all that it wants done.
    pub fn input(&mut self, host: HostId, input: Input) {
        let now = self.now;
        let Some(node) = &mut self.hosts[host].node else { return };
        node.handle(now, input);
        self.drain(host);
    }

    /// Has a node do something, and does all that it wants done.
    pub fn with<T>(&mut self, host: HostId, act: impl FnOnce(&mut Node, Time) -> T) -> T {
        let now = self.now;
        let result = act(self.hosts[host].node.as_mut().expect("the host runs"), now);
        self.drain(host);
        result
    }

    fn drain(&mut self, host: HostId) {
        while let Some(output) = self.hosts[host].node.as_mut().and_then(Node::poll) {
            self.on_output(host, output);
        }
        self.set_timer(host);
    }

    fn set_timer(&mut self, host: HostId) {
        let now = self.now;
        let state = &mut self.hosts[host];
        let Some(node) = &state.node else { return };
        let deadline = node.next_deadline();
        // A driver's timer has a grain of a millisecond, and never runs backwards.
        let at =
            Time::from_us(deadline.as_us().div_ceil(1000).saturating_mul(1000)).max(now + Duration::from_millis(1));
        if deadline != Time::NEVER && state.timer.is_none_or(|set| set <= now || at < set) {
            state.timer = Some(at);
            let life = state.life;
            self.push(at.since(now), What::Timer { host, life });
        }
    }

    fn on_output(&mut self, host: HostId, output: Output) {
        let life = self.hosts[host].life;
        match output {
            Output::Dial { dial, remote, expect } => self.on_dial(host, dial, remote, expect),
            Output::Resolve { target } => self.push(Duration::from_millis(5), What::Resolved { host, life, target }),
            Output::Send { link, bytes } => self.on_send(host, link, bytes),
            Output::Close { link, reason } => self.on_close(host, link, reason),
            Output::Datagram { to, bytes } => self.transmit(host, to, bytes),
            Output::Train { to, bytes, segment_bytes } => {
                let train = bytes.chunks(segment_bytes).map(|bytes| (to, bytes.to_vec())).collect();
                self.transmit_run(host, train);
            }
            Output::Aside { port, to, bytes } => self.transmit_aside(host, port, to, bytes),
            Output::Singly(addresses) => self.hosts[host].singly = addresses,
            // No kernel here: VXLAN never passes.
            Output::FastProbe { .. } => {}
            Output::Publish(fib) => self.hosts[host].publish(fib),
            Output::FlushMacs(slot) => self.hosts[host].forwarder.fdb.flush(slot),
            Output::Persist(saved) => self.hosts[host].saved = saved,
            Output::Pong { token, result } => self.hosts[host].pongs.push((token, result)),
            Output::Ipam(output) => self.on_ipam(host, output),
            Output::Event(event) => {
                self.log(&[2, host as u64, event.what.len() as u64]);
                if self.hosts[host].events.len() < EVENTS_MAX {
                    self.hosts[host].events.push((self.now, event));
                }
            }
        }
    }

    fn on_ipam(&mut self, host: HostId, output: crate::ipam::Output) {
        use crate::ipam::Output::{Keep, Probe, Reply};
        let life = self.hosts[host].life;
        match output {
            Keep { seq, writes } => {
                for write in writes {
                    match write.value {
                        Some(value) => drop(self.hosts[host].ipam_kept.insert(write.key, value)),
                        None => drop(self.hosts[host].ipam_kept.remove(&write.key)),
                    }
                }
                self.push(DISK, What::Kept { host, life, seq });
            }
            Reply { token, result } => drop(self.hosts[host].replies.insert(token, result)),
            Probe(addresses) => {
                // Who asks on the bridge is answered by the frame path for whomever it takes for the owner.
                let owners = &self.hosts[host].fib.owners;
                let own = |address: &u32| owners.owner(*address) == Some(crate::fib::Owner::Me);
                assert!(
                    addresses.iter().all(own),
                    "host {host} asks for addresses that its own frame path answers for"
                );
                self.push(PROBE, What::Probed { host, life, addresses });
            }
            _ => {}
        }
    }

    /// Asks a machine for or about addresses; the answer is in [`Host::replies`] by this token.
    pub fn ask(&mut self, host: HostId, request: crate::ipam::Request) -> u64 {
        self.sequence += 1;
        let token = self.sequence;
        self.input(host, Input::Ipam(crate::ipam::Input::Request { token, request }));
        token
    }

    /// Sends what one batch brought: equal datagrams to one address leave as one segmented send, but where the node said otherwise.
    fn transmit_batch(&mut self, from: HostId, out: Vec<(SocketAddr, Vec<u8>)>) {
        let mut run: Vec<(SocketAddr, Vec<u8>)> = Vec::new();
        for (to, bytes) in out {
            let joins = run.first().is_some_and(|(first, one)| {
                *first == to
                    && bytes.len() <= one.len()
                    && run.iter().all(|(_, other)| other.len() == one.len())
                    && !self.hosts[from].singly.contains(&to)
            });
            if !joins {
                let whole = std::mem::take(&mut run);
                self.transmit_run(from, whole);
            }
            run.push((to, bytes));
        }
        self.transmit_run(from, run);
    }

    /// Sends datagrams that left as one segmented send.
    fn transmit_run(&mut self, from: HostId, run: Vec<(SocketAddr, Vec<u8>)>) {
        let broken = self.net.breaks_trains(from);
        for (at, (to, bytes)) in run.into_iter().enumerate() {
            if at == 0 || !broken {
                self.transmit(from, to, bytes);
            }
        }
    }

    /// Sends one datagram over the underlay.
    fn transmit(&mut self, from: HostId, to: SocketAddr, bytes: Vec<u8>) {
        self.metrics.datagrams += 1;
        self.metrics.datagram_bytes += bytes.len() as u64;
        self.hosts[from].sent_bytes += bytes.len() as u64;
        if let Some(link) = from_link(to) {
            return self.transmit_by_link(from, link, bytes);
        }
        let now = self.now;
        let Some(host) = self.net.route(now, from, to) else { return };
        if !self.net.fits(from, host, bytes.len()) || self.net.refuses_data(from, host) {
            return;
        }
        let source = self.net.seen_as(from);
        for delay in self.net.copies(&mut self.rng, from, host) {
            self.push(delay, What::Datagram { to: host, from: source, bytes: bytes.clone() });
        }
    }

    /// Sends one datagram from another port.
    fn transmit_aside(&mut self, from: HostId, port: u8, to: SocketAddr, bytes: Vec<u8>) {
        let now = self.now;
        let Some(host) = self.net.route(now, from, to) else { return };
        if self.net.refuses_aside(from, host, port) || self.net.refuses_data(from, host) {
            return;
        }
        let mut source = self.net.seen_as(from);
        source.set_port(source.port().wrapping_add(u16::from(port)));
        for delay in self.net.copies(&mut self.rng, from, host) {
            self.push(delay, What::Datagram { to: host, from: source, bytes: bytes.clone() });
        }
    }

    fn on_datagram(&mut self, to: HostId, from: SocketAddr, bytes: Vec<u8>) {
        self.log(&[3, to as u64, self.now.as_us(), bytes.len() as u64]);
        let tick = self.tick();
        let state = &mut self.hosts[to];
        if !state.alive() || state.frozen_until.is_some_and(|until| until > self.now) {
            return;
        }
        let mut delivered = Vec::new();
        let result = state.receive(tick, from, bytes, &mut delivered);
        self.transmit_batch(to, result.out);
        for input in result.inputs {
            self.input(to, input);
        }
        for frame in delivered {
            self.on_delivered(to, &frame);
        }
    }

    /// Seconds, as the driver's tick counts.
    fn tick(&self) -> u32 {
        (self.now.as_us() / 1_000_000) as u32
    }

    /// The MAC address of the one station behind each host.
    pub fn mac(host: HostId) -> [u8; 6] {
        [0x02, 0, 0, 0, (host >> 8) as u8, host as u8]
    }

    /// A station behind `from` sends a frame to that behind `to`, or to all. Gives its number.
    pub fn inject(&mut self, from: HostId, to: Option<HostId>) -> u64 {
        self.inject_sized(from, to, 60)
    }

    /// The same, of so many bytes.
    pub fn inject_sized(&mut self, from: HostId, to: Option<HostId>, bytes: usize) -> u64 {
        let number = self.frames.len() as u64;
        let destination = to.map_or([0xff; 6], Sim::mac);
        let mut frame = [destination, Sim::mac(from)].concat();
        frame.extend_from_slice(&[0x88, 0xb5]);
        frame.extend_from_slice(&number.to_be_bytes());
        let body = (frame.len()..bytes).map(|at| (at as u64 ^ number) as u8);
        frame.extend(body.collect::<Vec<u8>>());
        let sum = sum(&frame);
        self.frames.insert(number, Injected { from, to, sum, reached: Vec::new() });
        let tick = self.tick();
        if !self.hosts[from].alive() {
            return number;
        }
        let result = self.hosts[from].send(tick, &frame);
        self.transmit_batch(from, result.out);
        for input in result.inputs {
            self.input(from, input);
        }
        number
    }

    /// The hosts that a frame reached so far, in order.
    pub fn reached(&self, number: u64) -> Vec<HostId> {
        let mut hosts: Vec<HostId> = self.frames[&number].reached.iter().map(|(host, _)| *host).collect();
        hosts.sort_unstable();
        hosts
    }

    fn on_delivered(&mut self, host: HostId, frame: &[u8]) {
        self.metrics.delivered += 1;
        let number = frame.get(14..22).and_then(|bytes| bytes.try_into().ok()).map(u64::from_be_bytes);
        let injected = number.and_then(|number| self.frames.get_mut(&number)).expect("a frame that nobody sent");
        assert_eq!(injected.sum, sum(frame), "frame {number:?} came otherwise than it was sent");
        assert_ne!(injected.from, host, "frame {number:?} came back to host {host}");
        assert!(
            injected.reached.iter().all(|(other, _)| *other != host)
                || self.net.conditions.duplicate > 0.0 && injected.to.is_some(),
            "frame {number:?} reached host {host} twice"
        );
        injected.reached.push((host, self.now));
        self.log(&[4, host as u64, number.unwrap_or_default()]);
    }
}

impl Deliver for Vec<Vec<u8>> {
    fn deliver(&mut self, _offload: &meshnet_proto::wire::data::Offload, parts: &[&[u8]]) {
        self.push(parts.concat());
    }
}

/// Whether all running hosts of `hosts` see each other, and nobody else, as reachable, with a path and a session.
pub fn converged(sim: &Sim, hosts: &[HostId]) -> bool {
    let running: Vec<HostId> = hosts.iter().copied().filter(|host| sim.hosts[*host].alive()).collect();
    running.iter().all(|host| {
        let node = sim.hosts[*host].node.as_ref().expect("it runs");
        let reachable: Vec<PeerId> =
            node.records().entries().filter(|(_, entry)| entry.reachable()).map(|(id, _)| *id).collect();
        let others = running.iter().map(|other| sim.hosts[*other].id()).collect::<std::collections::BTreeSet<_>>();
        reachable.len() == others.len()
            && reachable.iter().all(|id| others.contains(id))
            && sim.hosts[*host].reaches(&others)
    })
}

/// A hash over the bytes of a frame.
fn sum(frame: &[u8]) -> u64 {
    frame.iter().fold(0, |sum, byte| crate::topology::digest::mix(sum ^ u64::from(*byte)))
}

/// What a host keeps through a restart.
pub type Kept = Saved;

/// A link of the simulation, for tests.
pub type SimLink = LinkId;

/// Events under way in a network that is not out of hand, beside those of each host.
const QUEUE_MAX: usize = 100_000;
/// A thousand hosts started at once have a few hundred messages on each link.
const QUEUE_PER_HOST: usize = 5_000;
/// Events kept for tests, by host.
const EVENTS_MAX: usize = 10_000;
/// A sync of a disk.
const DISK: Duration = Duration::from_micros(300);
/// A probe on the bridge.
const PROBE: Duration = Duration::from_millis(100);
/// Storm budgets are not what these simulations are about: seldom enough to cost nothing for a thousand peers.
const REFILL_EVERY: Duration = Duration::from_millis(500);
