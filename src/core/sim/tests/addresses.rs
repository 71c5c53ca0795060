//! Addresses among whole nodes: the machine's own simulation is in `core/ipam`; here it runs over links, routes and records.

use super::*;
use crate::ipam::{self, Answer, Init, Request};
use meshnet_proto::wire::ipam::Span;
use std::collections::BTreeMap as Map;

const RANGE: Span = Span { first: 0x0a20_0000, len: 1 << 20 };

fn config(sim: &mut Sim, host: HostId, targets: &[HostId], init: Init) -> Config {
    let mut config = sim.config(host);
    config.targets = targets.iter().map(|to| sim.net.seen_as(*to).to_string()).collect();
    let (me, name) = (config.identity.id().short(), config.name.clone());
    let (seed, cool_down) = (config.instance, Duration::from_secs(60));
    config.ipam = Some(ipam::Config { me, name, range: RANGE, subnet: RANGE, init, probe: true, cool_down, seed });
    config
}

fn mesh(sim: &mut Sim, count: usize, targets: impl Fn(usize) -> Vec<HostId>) -> Vec<HostId> {
    let hosts: Vec<HostId> = (0..count).map(|n| sim.add_host(n as u32)).collect();
    for host in &hosts {
        let config = config(sim, *host, &targets(*host), Init::Auto);
        sim.start(*host, config);
    }
    hosts
}

fn shares(sim: &Sim, host: HostId) -> Map<PeerId, u64> {
    let status = sim.hosts[host].node.as_ref().unwrap().ipam_status();
    status.shares.iter().map(|share| (share.peer, share.addresses)).collect()
}

/// All see the same shares, everybody has one, and none is more than twice another.
fn fair(sim: &Sim, hosts: &[HostId]) -> bool {
    let first = shares(sim, hosts[0]);
    let least = first.values().min().copied().unwrap_or_default();
    let most = first.values().max().copied().unwrap_or_default();
    first.len() == hosts.len()
        && least > 0
        && most <= 2 * least
        && first.values().sum::<u64>() == u64::from(RANGE.len)
        && hosts.iter().all(|host| shares(sim, *host) == first)
}

fn alloc(sim: &mut Sim, host: HostId, owner: &str) -> Result<u32, ipam::Refusal> {
    let token = sim.ask(host, Request::Alloc { owner: owner.into(), within: None });
    sim.run_until(Duration::from_secs(6), |sim| sim.hosts[host].replies.contains_key(&token));
    match sim.hosts[host].replies.remove(&token).expect("an answer in time") {
        Ok(Answer::Address { address, .. }) => Ok(address),
        Ok(other) => panic!("{other:?}"),
        Err(refusal) => Err(refusal),
    }
}

#[test]
fn peers_that_join_a_founder_get_equal_shares() {
    let mut sim = Sim::new(seed(), Conditions::LAN);
    let hosts = mesh(&mut sim, 5, |n| if n == 0 { Vec::new() } else { vec![0] });
    let took = sim.run_until(Duration::from_secs(10), |sim| fair(sim, &hosts));
    println!("fair after {took:?}");
    assert!(took.is_some(), "{:?}", hosts.iter().map(|host| shares(&sim, *host)).collect::<Vec<_>>());
    let addresses: Vec<u32> = hosts.iter().map(|host| alloc(&mut sim, *host, "web").unwrap()).collect();
    let mut distinct = addresses.clone();
    distinct.sort_unstable();
    distinct.dedup();
    assert_eq!(distinct.len(), hosts.len());
    assert_eq!(alloc(&mut sim, hosts[2], "web").unwrap(), addresses[2], "the same owner, the same address");
}

#[test]
fn peers_that_list_each_other_elect() {
    for missing in [0, 1] {
        let mut sim = Sim::new(seed(), Conditions::LAN);
        let hosts: Vec<HostId> = (0..3).map(|n| sim.add_host(n as u32)).collect();
        for host in &hosts[missing..] {
            let config = config(&mut sim, *host, &hosts, Init::Auto);
            sim.start(*host, config);
        }
        let took = sim.run_until(Duration::from_secs(20), |sim| fair(sim, &hosts[missing..]));
        println!("{missing} missing: fair after {took:?}");
        assert!(took.is_some());
    }
}

#[test]
fn a_peer_that_knows_nobody_of_its_list_waits() {
    let mut sim = Sim::new(seed(), Conditions::LAN);
    let hosts: Vec<HostId> = (0..3).map(|n| sim.add_host(n as u32)).collect();
    let config = config(&mut sim, hosts[0], &hosts[1..], Init::Auto);
    sim.start(hosts[0], config);
    sim.run(Duration::from_secs(20));
    assert_eq!(sim.hosts[hosts[0]].node.as_ref().unwrap().ipam_status().state, "waiting");
    let refusal = alloc(&mut sim, hosts[0], "web").unwrap_err().to_string();
    assert!(refusal.contains("waiting for a peer that knows the split"), "{refusal}");
}

#[test]
fn a_restart_keeps_shares_and_leases() {
    let mut sim = Sim::new(seed(), Conditions::LAN);
    let hosts = mesh(&mut sim, 3, |n| if n == 0 { Vec::new() } else { vec![0] });
    assert!(sim.run_until(Duration::from_secs(10), |sim| fair(sim, &hosts)).is_some());
    let before = (shares(&sim, 1), alloc(&mut sim, 1, "db").unwrap());
    sim.kill(1);
    sim.run(Duration::from_secs(3));
    let again = config(&mut sim, 1, &[0], Init::Auto);
    sim.start(1, again);
    sim.run(Duration::from_secs(3));
    assert_eq!((shares(&sim, 1), alloc(&mut sim, 1, "db").unwrap()), before);
    assert!(alloc(&mut sim, 1, "other").unwrap() != before.1);
}

#[test]
fn what_a_dead_peer_owned_comes_back() {
    let mut sim = Sim::new(seed(), Conditions::LAN);
    let hosts = mesh(&mut sim, 4, |n| if n == 0 { Vec::new() } else { vec![0] });
    assert!(sim.run_until(Duration::from_secs(10), |sim| fair(sim, &hosts)).is_some());
    let dead = [sim.hosts[2].id().short(), sim.hosts[3].id().short()];
    sim.kill(2);
    sim.kill(3);
    sim.run(Duration::from_secs(80));
    // Typed on both machines that are left.
    let requests = [0, 1].map(|host| (host, sim.ask(host, Request::Remove { peers: dead.to_vec(), force: false })));
    sim.run(Duration::from_secs(12));
    for (host, token) in requests {
        println!("{host}: {:?}", sim.hosts[host].replies.get(&token));
    }
    assert!(requests.iter().any(|(host, token)| matches!(sim.hosts[*host].replies.get(token), Some(Ok(_)))));
    assert!(fair(&sim, &hosts[..2]), "{:?} {:?}", shares(&sim, 0), shares(&sim, 1));
}

#[test]
fn a_line_is_crossed_by_messages_for_far_peers() {
    let mut sim = Sim::new(seed(), Conditions::LAN);
    let hosts = mesh(&mut sim, 4, |n| if n == 0 { Vec::new() } else { vec![n - 1] });
    for (a, b) in [(0, 2), (0, 3), (1, 3)] {
        sim.net.cut(a, b, true);
        sim.net.cut(b, a, true);
    }
    let took = sim.run_until(Duration::from_secs(20), |sim| fair(sim, &hosts));
    println!("fair after {took:?}");
    assert!(took.is_some(), "{:?}", hosts.iter().map(|host| shares(&sim, *host)).collect::<Vec<_>>());
}
