//! The figures of a mesh: how soon its peers agree, how much that costs, how it heals. For tests and benchmarks.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use meshnet_proto::PeerId;
use meshnet_proto::wire::record::{Record, RecordLink, Version, flags};
use rand::Rng;

use super::{Conditions, HostId, Metrics, Sim};
use crate::identity::Identity;
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
    let mut last = 0;
    let joined = sim.run_until(Duration::from_secs(60), |sim| everybody_knows(sim, &hosts, &mut last));
    sim.run(SETTLE);
    let links = links_each(&sim, &hosts);
    let (told, told_bytes, told_messages) = change(&mut sim, &hosts);
    let (idle, idle_most) = rest(&mut sim, &hosts);

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
    let healed = sim.run_until(Duration::from_secs(60), |sim| everybody_knows(sim, &hosts, &mut last));
    let (records, records_redundant) = records_seen(&sim, &hosts);
    Figures {
        peers: n,
        joined,
        links,
        told,
        told_bytes,
        told_messages,
        idle,
        idle_most,
        records,
        records_redundant,
        parted,
        healed,
        total: sim.metrics,
    }
}

/// Runs a mesh that is linked, but has told nothing, is handed all records, and settles: what a change and rest cost it. The rest of [`Figures`] is empty.
pub fn measure_settled(seed: u64, count: u32) -> Figures {
    let (mut sim, hosts) = large(seed, count);
    let n = hosts.len();
    sim.mute = true;
    sim.run(LINKING);
    sim.mute = false;
    let nodes = hosts.iter().filter_map(|host| sim.hosts[*host].node.as_ref());
    let records: Vec<_> =
        nodes.filter_map(|node| node.records().entry(&node.id())).map(|entry| entry.admitted.clone()).collect();
    for host in &hosts {
        sim.with(*host, |node, now| node.preload(now, &records));
    }
    let joined = sim.run_until(LINKING, |sim| everybody_knows(sim, &hosts, &mut 0));
    sim.run(SETTLE);
    let links = links_each(&sim, &hosts);
    let (told, told_bytes, told_messages) = change(&mut sim, &hosts);
    let (idle, idle_most) = rest(&mut sim, &hosts);
    let (records, records_redundant) = records_seen(&sim, &hosts);
    let (parted, healed, total) = (false, None, sim.metrics);
    Figures {
        peers: n,
        joined,
        links,
        told,
        told_bytes,
        told_messages,
        idle,
        idle_most,
        records,
        records_redundant,
        parted,
        healed,
        total,
    }
}

/// Ten peers, and then one of them handed the records of `count` others: what these add to its memory. `between` is called before they are made.
pub fn one_of_many(count: u32, between: impl FnOnce()) -> Sim {
    let mut sim = Sim::new(1, Conditions::LAN);
    let hosts = sim.cluster(10, |host| if host == 0 { Vec::new() } else { vec![0] });
    sim.run(LINKING);
    sim.mute = true;
    between();
    let identity = |number: u32| {
        let mut seed = [0xa5; 32];
        seed[..4].copy_from_slice(&number.to_be_bytes());
        Identity::from_seed(seed)
    };
    let ids: Vec<PeerId> = (0..count).map(|number| identity(number).id()).collect();
    let record = |number: u32| {
        let around = (1..=LINKS_EACH / 2).flat_map(|step| [number + step, number + count - step]);
        let mut links: Vec<RecordLink> = around
            .map(|other| RecordLink { peer: ids[(other % count) as usize].short(), cost: 1024 + other as u16 })
            .collect();
        links.sort_unstable_by_key(|link| link.peer);
        let address =
            std::net::SocketAddr::new(std::net::Ipv4Addr::from(0x0a01_0000 + number).into(), crate::node::PORT);
        let record = Record {
            public_key: identity(number).public_key(),
            version: Version { incarnation: 1, seq: 1 },
            instance: u64::from(number),
            name: format!("host{number}"),
            software: "meshnet 0.1.0".into(),
            endpoints: vec![address],
            links,
            flags: flags::RELAY,
            mtu: 1310,
            extensions: Vec::new(),
        };
        identity(number).sign_record(&record).expect("within limits")
    };
    let records: Vec<_> = (0..count).map(record).collect();
    sim.with(hosts[0], |node, now| node.preload(now, &records));
    drop(records);
    sim.run(Duration::from_secs(5));
    assert_eq!(sim.hosts[hosts[0]].node.as_ref().expect("it runs").records().len(), count as usize + hosts.len());
    sim
}

fn links_each(sim: &Sim, hosts: &[HostId]) -> usize {
    let nodes = hosts.iter().filter_map(|host| sim.hosts[*host].node.as_ref());
    nodes.map(|node| node.link_count()).sum::<usize>() / hosts.len()
}

fn records_seen(sim: &Sim, hosts: &[HostId]) -> (u64, u64) {
    let nodes = hosts.iter().filter_map(|host| sim.hosts[*host].node.as_ref());
    let counters = nodes.map(|node| node.gossip_counters());
    counters.fold((0, 0), |(all, known), of| (all + of.records_received, known + of.records_redundant))
}

/// One peer changes: until all know it, the bytes that each sent for it, and the messages of all.
fn change(sim: &mut Sim, hosts: &[HostId]) -> (Option<Duration>, u64, u64) {
    let before = sim.metrics;
    let changed = hosts[hosts.len() / 2];
    sim.input(changed, Input::Mtu(1200));
    let id = sim.hosts[changed].id();
    let knows = |sim: &Sim, host: &HostId| {
        let entry = sim.hosts[*host].node.as_ref().and_then(|node| node.records().entry(&id));
        entry.is_some_and(|entry| entry.record().mtu == 1200)
    };
    let told = sim.run_until(Duration::from_secs(10), |sim| hosts.iter().all(|host| knows(sim, host)));
    let bytes = (sim.metrics.message_bytes - before.message_bytes) / hosts.len() as u64;
    (told, bytes, sim.metrics.messages - before.messages)
}

/// Bytes a second at rest: on average, and of the busiest.
fn rest(sim: &mut Sim, hosts: &[HostId]) -> (u64, u64) {
    let before: Vec<u64> = hosts.iter().map(|host| sim.hosts[*host].sent_bytes).collect();
    sim.run(IDLE);
    let sent = hosts.iter().zip(&before).map(|(host, before)| (sim.hosts[*host].sent_bytes - before) / IDLE.as_secs());
    (sent.clone().sum::<u64>() / hosts.len() as u64, sent.max().unwrap_or(0))
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

/// Whether all know all as reachable. It begins with the host that was the first not to, when it was asked last.
fn everybody_knows(sim: &Sim, hosts: &[HostId], last: &mut usize) -> bool {
    let knows = |host: &HostId| {
        sim.hosts[*host].node.as_ref().is_none_or(|node| {
            let records = node.records();
            records.len() == hosts.len() && records.entries().all(|(_, entry)| entry.reachable())
        })
    };
    let missing = (0..hosts.len()).map(|at| (*last + at) % hosts.len()).find(|at| !knows(&hosts[*at]));
    *last = missing.unwrap_or(0);
    missing.is_none()
}

/// Peers that each knows from before, beside its neighbours.
const KNOWN: usize = 60;
/// Until costs are told and spare links given up, one by one: of a thousand peers the last is done after two minutes.
const SETTLE: Duration = Duration::from_secs(200);
/// Until a mesh that was started at once has its links.
const LINKING: Duration = Duration::from_secs(12);
/// Links in the records of [`one_of_many`].
const LINKS_EACH: u32 = 10;
/// Rest that is measured.
const IDLE: Duration = Duration::from_secs(10);
/// How long the halves are apart: longer than QUIC waits.
const APART: Duration = Duration::from_secs(40);
