//! Meshes of a hundred and of a thousand peers: how soon, how much.

use super::*;
use crate::route::select_neighbours;

use std::collections::{BTreeMap, BTreeSet};

/// Peers that start with the tables that they would have after a while, except links: they know each other, and dial.
fn large(seed: u64, count: u32) -> (Sim, Vec<HostId>) {
    let mut sim = Sim::new(seed, Conditions::WAN);
    let hosts: Vec<HostId> = (0..count).map(|n| sim.add_host(n)).collect();
    let mut configs: Vec<Config> = hosts.iter().map(|host| sim.config(*host)).collect();
    let ids: Vec<PeerId> = configs.iter().map(|config| config.identity.id()).collect();
    let roster: BTreeSet<PeerId> = ids.iter().copied().collect();
    let by_id: BTreeMap<PeerId, HostId> = ids.iter().copied().zip(hosts.iter().copied()).collect();
    for (host, config) in configs.iter_mut().enumerate() {
        // What it kept of its last life: its neighbours, and some others.
        let mut chosen = select_neighbours(ids[host], &roster, &BTreeMap::new(), &BTreeSet::new());
        let others = (0..KNOWN).map(|_| ids[sim.rng.random_range(0..ids.len())]).filter(|id| *id != ids[host]);
        chosen.extend(others);
        config.saved.known = chosen.iter().map(|id| (*id, vec![sim.net.address(by_id[id])])).collect();
    }
    for (host, config) in hosts.iter().zip(configs) {
        sim.start(*host, config);
    }
    (sim, hosts)
}

/// Peers that each knows from before.
const KNOWN: usize = 60;

fn everybody_knows(sim: &Sim, hosts: &[HostId], count: usize) -> bool {
    hosts.iter().all(|host| {
        let node = sim.hosts[*host].node.as_ref().unwrap();
        node.records().len() == count && node.records().entries().all(|(_, entry)| entry.reachable())
    })
}

fn figures(count: u32) {
    let started = std::time::SystemTime::now();
    let took = || started.elapsed().unwrap();
    let (mut sim, hosts) = large(seed(), count);
    let n = count as usize;
    let joined = sim.run_until(Duration::from_secs(60), |sim| everybody_knows(sim, &hosts, n)).expect("all know all");
    let links: usize = hosts.iter().map(|host| sim.hosts[*host].node.as_ref().unwrap().link_count()).sum();
    println!(
        "{count}: all started at once know all after {joined:?}, {} links each, {:?}; {:?}",
        links / n,
        sim.metrics,
        took()
    );
    sim.run(Duration::from_secs(30));
    println!("settled; {:?}", took());

    // One change, known to all.
    sim.input(hosts[n / 2], Input::Mtu(1200));
    let id = sim.hosts[n / 2].id();
    let knows = |sim: &Sim, host: &HostId| {
        sim.hosts[*host].node.as_ref().unwrap().records().entry(&id).is_some_and(|entry| entry.record().mtu == 1200)
    };
    let before = sim.metrics;
    let told = sim.run_until(Duration::from_secs(5), |sim| hosts.iter().all(|host| knows(sim, host))).unwrap();
    let bytes = (sim.metrics.message_bytes - before.message_bytes) / n as u64;
    println!("one change reached all in {told:?}, {bytes} bytes each; {:?}", took());
    assert!(told <= Duration::from_secs(1), "{told:?}");

    let before: Vec<u64> = hosts.iter().map(|host| sim.hosts[*host].sent_bytes).collect();
    let bm = sim.metrics;
    sim.run(Duration::from_secs(10));
    let mut rates: Vec<u64> =
        hosts.iter().zip(&before).map(|(host, b)| (sim.hosts[*host].sent_bytes - b) / 10).collect();
    rates.sort_unstable();
    println!(
        "DBG dgrams {} bytes {} msgs {} bytes {}",
        sim.metrics.datagrams - bm.datagrams,
        sim.metrics.datagram_bytes - bm.datagram_bytes,
        sim.metrics.messages - bm.messages,
        sim.metrics.message_bytes - bm.message_bytes
    );
    println!("DBG direct {:?}", (0..n).map(|h| sim.hosts[h].fib.neighbours.len()).collect::<Vec<_>>());
    let mean = rates.iter().sum::<u64>() / n as u64;
    println!("idle: {mean} bytes/s each, at most {}; {:?}", rates[n - 1], took());
    assert!(mean < 1000, "{mean} bytes/s");

    for host in &hosts[n / 2..] {
        sim.net.group(*host, 1);
    }
    sim.run(Duration::from_secs(40));
    println!("apart for 40 s; {:?}", took());
    let apart = hosts.iter().all(|host| {
        let node = sim.hosts[*host].node.as_ref().unwrap();
        node.records().entries().filter(|(_, entry)| entry.reachable()).count() == n / 2
    });
    assert!(apart, "each half knows that it is alone");
    for host in &hosts[n / 2..] {
        sim.net.group(*host, 0);
    }
    let healed = sim.run_until(Duration::from_secs(60), |sim| everybody_knows(sim, &hosts, n)).expect("healed");
    println!("healed in {healed:?}; {:?}", took());
    assert!(healed <= Duration::from_secs(30), "{healed:?}");
}

#[test]
fn a_hundred_peers() {
    figures(100);
}

#[test]
fn a_thousand_peers() {
    figures(1000);
}
