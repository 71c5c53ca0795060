//! The figures of a mesh: how soon its peers agree, how much that costs, how it heals. For tests and benchmarks.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use meshnet_proto::PeerId;
use rand::Rng;

use super::{Conditions, HostId, Metrics, Sim};
use crate::node::{Config, Input};
use crate::route::select_neighbours;

/// What was measured.
#[derive(Debug, Clone, Copy)]
pub struct Figures {
    /// Peers.
    pub peers: usize,
    /// All started at once: until all know all.
    pub joined: Option<Duration>,
    /// Direct links of a peer, on average, when settled.
    pub links: usize,
    /// One change: until all know it.
    pub told: Option<Duration>,
    /// Bytes of messages that a peer sent for it, on average.
    pub told_bytes: u64,
    /// Messages that all sent for it.
    pub told_messages: u64,
    /// Bytes a second that a peer sends at rest: probes and messages, without IP and UDP, on average.
    pub idle: u64,
    /// The busiest peer's.
    pub idle_most: u64,
    /// Records received at all peers, from the start to the end.
    pub records: u64,
    /// Those among them that were known already.
    pub records_redundant: u64,
    /// Split in halves for 40 s, each half knew that it was alone.
    pub parted: bool,
    /// Joined again: until all know all as reachable.
    pub healed: Option<Duration>,
    /// Everything that was sent.
    pub total: Metrics,
}

/// Runs a mesh of `count` peers over several continents, all started at once, each with what it kept of an earlier life.
pub fn measure(seed: u64, count: u32) -> Figures {
    let (mut sim, hosts) = large(seed, count);
    let n = hosts.len();
    let joined = sim.run_until(Duration::from_secs(60), |sim| everybody_knows(sim, &hosts, n));
    sim.run(SETTLE);
    let links =
        hosts.iter().filter_map(|host| sim.hosts[*host].node.as_ref()).map(|node| node.link_count()).sum::<usize>() / n;

    let before = sim.metrics;
    sim.input(hosts[n / 2], Input::Mtu(1200));
    let id = sim.hosts[n / 2].id();
    let knows = |sim: &Sim, host: &HostId| {
        let entry = sim.hosts[*host].node.as_ref().and_then(|node| node.records().entry(&id));
        entry.is_some_and(|entry| entry.record().mtu == 1200)
    };
    let told = sim.run_until(Duration::from_secs(10), |sim| hosts.iter().all(|host| knows(sim, host)));
    let told_bytes = (sim.metrics.message_bytes - before.message_bytes) / n as u64;
    let told_messages = sim.metrics.messages - before.messages;

    let before: Vec<u64> = hosts.iter().map(|host| sim.hosts[*host].sent_bytes).collect();
    sim.run(IDLE);
    let sent = hosts.iter().zip(&before).map(|(host, before)| (sim.hosts[*host].sent_bytes - before) / IDLE.as_secs());
    let (idle, idle_most) = (sent.clone().sum::<u64>() / n as u64, sent.max().unwrap_or(0));

    let upper = &hosts[n / 2..];
    upper.iter().for_each(|host| sim.net.group(*host, 1));
    sim.run(APART);
    let reach = |host: &HostId| {
        let node = sim.hosts[*host].node.as_ref();
        node.map_or(0, |node| node.records().entries().filter(|(_, entry)| entry.reachable()).count())
    };
    let parted =
        hosts.iter().all(|host| reach(host) == if upper.contains(host) { upper.len() } else { n - upper.len() });
    upper.iter().for_each(|host| sim.net.group(*host, 0));
    let healed = sim.run_until(Duration::from_secs(60), |sim| everybody_knows(sim, &hosts, n));
    let counters = || hosts.iter().filter_map(|host| sim.hosts[*host].node.as_ref()).map(|node| node.gossip_counters());
    Figures {
        peers: n,
        joined,
        links,
        told,
        told_bytes,
        told_messages,
        idle,
        idle_most,
        records: counters().map(|counters| counters.records_received).sum(),
        records_redundant: counters().map(|counters| counters.records_redundant).sum(),
        parted,
        healed,
        total: sim.metrics,
    }
}

fn large(seed: u64, count: u32) -> (Sim, Vec<HostId>) {
    let mut sim = Sim::new(seed, Conditions::WAN);
    let hosts: Vec<HostId> = (0..count).map(|n| sim.add_host(n)).collect();
    let mut configs: Vec<Config> = hosts.iter().map(|host| sim.config(*host)).collect();
    let ids: Vec<PeerId> = configs.iter().map(|config| config.identity.id()).collect();
    let roster: BTreeSet<PeerId> = ids.iter().copied().collect();
    let by_id: BTreeMap<PeerId, HostId> = ids.iter().copied().zip(hosts.iter().copied()).collect();
    for (host, config) in configs.iter_mut().enumerate() {
        // Its neighbours of the life before, and some others.
        let mut known = select_neighbours(ids[host], &roster, &BTreeMap::new(), &BTreeSet::new());
        let others = (0..KNOWN).map(|_| ids[sim.rng.random_range(0..ids.len())]).filter(|id| *id != ids[host]);
        known.extend(others);
        config.saved.known = known.iter().map(|id| (*id, vec![sim.net.address(by_id[id])])).collect();
    }
    for (host, config) in hosts.iter().zip(configs) {
        sim.start(*host, config);
    }
    (sim, hosts)
}

fn everybody_knows(sim: &Sim, hosts: &[HostId], count: usize) -> bool {
    hosts.iter().filter_map(|host| sim.hosts[*host].node.as_ref()).all(|node| {
        let records = node.records();
        records.len() == count && records.entries().all(|(_, entry)| entry.reachable())
    })
}

/// Peers that each knows from before, beside its neighbours.
const KNOWN: usize = 60;
/// Until costs are told and most spare links are given up, one by one.
const SETTLE: Duration = Duration::from_secs(100);
/// Rest that is measured.
const IDLE: Duration = Duration::from_secs(10);
/// How long the halves are apart: longer than QUIC waits.
const APART: Duration = Duration::from_secs(40);
