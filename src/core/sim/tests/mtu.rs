//! Paths that take less than their ends believe, and change what they take: nobody is told, so probes have to find out.

use super::*;

/// Two to four hosts that know the first, on devices of 9,000 bytes.
fn jumbo(seed: u64, count: usize) -> (Sim, Vec<HostId>) {
    let mut sim = Sim::new(seed, Conditions::LAN);
    let hosts: Vec<HostId> = (0..count as u32).map(|n| sim.add_host(n)).collect();
    for host in &hosts {
        let mut config = sim.config(*host);
        config.mtu = 9_000 - 190;
        config.targets = if *host == hosts[0] { vec![] } else { vec![sim.net.seen_as(hosts[0]).to_string()] };
        sim.start(*host, config);
    }
    (sim, hosts)
}

fn limit_all(sim: &mut Sim, hosts: &[HostId], bytes: usize) {
    for (a, b) in hosts.iter().flat_map(|a| hosts.iter().map(move |b| (*a, *b))).filter(|(a, b)| a < b) {
        sim.net.limit(a, b, bytes);
    }
}

/// What `at` believes of its direct path to `to`.
fn size(sim: &Sim, at: HostId, to: HostId) -> u32 {
    let node = sim.hosts[at].node.as_ref().unwrap();
    let links = node.status_links(sim.now);
    links.iter().find(|link| link.peer == Some(sim.hosts[to].id())).map_or(0, |link| link.mtu)
}

fn found(sim: &Sim, hosts: &[HostId], truth: u32) -> bool {
    let pairs = hosts.iter().flat_map(|a| hosts.iter().map(move |b| (*a, *b))).filter(|(a, b)| a != b);
    pairs.into_iter().all(|(a, b)| size(sim, a, b) <= truth && size(sim, a, b) + 8 > truth)
}

/// Large frames both ways, fifty a second, until the condition holds; gives how long that took.
fn busy_until(sim: &mut Sim, a: HostId, b: HostId, limit: Duration, holds: impl Fn(&Sim) -> bool) -> Option<Duration> {
    let start = sim.now;
    while !holds(sim) {
        if sim.now.since(start) >= limit {
            return None;
        }
        sim.inject_sized(a, Some(b), 5_000);
        sim.inject_sized(b, Some(a), 5_000);
        sim.run(ms(20));
    }
    Some(sim.now.since(start))
}

/// Of `count` frames of this length how many arrive.
fn arrive(sim: &mut Sim, from: HostId, to: HostId, bytes: usize, count: usize) -> usize {
    let sent: Vec<u64> = (0..count).map(|_| sim.inject_sized(from, Some(to), bytes)).collect();
    sim.run(ms(500));
    sent.into_iter().filter(|number| sim.reached(*number) == [to]).count()
}

#[test]
fn each_path_is_found_under_loss() {
    for truth in [1_280, 1_333, 1_420, 1_500, 4_000, 9_000] {
        let (mut sim, hosts) = jumbo(seed() + truth as u64, 3);
        sim.net.conditions.loss = 0.05;
        limit_all(&mut sim, &hosts, truth);
        converge(&mut sim, &hosts, ms(20_000));
        let took = sim.run_until(ms(25_000), |sim| found(sim, &hosts, truth as u32));
        assert!(took.is_some(), "{truth}: {} {}", size(&sim, 0, 1), size(&sim, 1, 2));
    }
}

#[test]
fn a_frame_arrives_whatever_the_path_takes() {
    for truth in [1_280, 1_400, 1_500, 9_000] {
        let (mut sim, hosts) = jumbo(seed(), 2);
        limit_all(&mut sim, &hosts, truth);
        converge(&mut sim, &hosts, ms(5_000));
        // Before anything is known of the path, and after.
        for _ in 0..2 {
            for bytes in [60, 1_200, 1_300, 1_514, 5_000, 8_828] {
                assert_eq!(arrive(&mut sim, 0, 1, bytes, 5), 5, "{bytes} over {truth}");
                let broadcast = sim.inject_sized(1, None, bytes);
                sim.run(ms(100));
                assert_eq!(sim.reached(broadcast), [0], "{bytes} over {truth}");
            }
            sim.run(ms(10_000));
        }
        assert!(found(&sim, &hosts, truth as u32));
        let dropped = |host: HostId| {
            use crate::counters::DropReason::{Incomplete, TooBig};
            let counters = &sim.hosts[host].forwarder.counters;
            counters.drops(TooBig) + counters.drops(Incomplete)
        };
        assert_eq!((dropped(0), dropped(1)), (0, 0));
    }
}

#[test]
fn a_path_that_shrinks_is_followed_within_two_seconds_and_one_that_grows_later() {
    for (before, after) in [(9_000, 1_500), (9_000, 1_400), (1_500, 1_400), (1_500, 1_280)] {
        let (mut sim, hosts) = jumbo(seed(), 2);
        limit_all(&mut sim, &hosts, before);
        converge(&mut sim, &hosts, ms(5_000));
        sim.run(ms(10_000));
        assert!(found(&sim, &hosts, before as u32));
        busy_until(&mut sim, 0, 1, ms(1_000), |_| false);
        sim.net.limit(0, 1, after);
        let below = |sim: &Sim| size(sim, 0, 1) <= after as u32 && size(sim, 1, 0) <= after as u32;
        let took = busy_until(&mut sim, 0, 1, ms(2_000), below);
        assert!(took.is_some(), "{before} to {after}: {} {}", size(&sim, 0, 1), size(&sim, 1, 0));
        // The snapshot that carries it is out at once.
        sim.run(ms(50));
        assert_eq!(arrive(&mut sim, 0, 1, 5_000, 10), 10, "{before} to {after}");
        assert!(busy_until(&mut sim, 0, 1, ms(15_000), |sim| found(sim, &hosts, after as u32)).is_some());
        sim.net.limit(0, 1, 9_000);
        assert!(sim.run_until(ms(700_000), |sim| found(sim, &hosts, 9_000)).is_some(), "{before} to {after}");
    }
}

#[test]
fn through_relays_the_least_of_the_hops_counts() {
    let (mut sim, hosts) = jumbo(seed(), 4);
    sim.net.limit(0, 1, 9_000);
    sim.net.limit(1, 2, 1_420);
    for (a, b) in [(0, 2), (0, 3), (1, 3)] {
        sim.net.cut(a, b, true);
        sim.net.cut(b, a, true);
    }
    // Who is cut off from the first is told of its neighbour.
    for (host, target) in [(2, 1), (3, 2)] {
        let mut config = sim.config(host);
        config.mtu = 9_000 - 190;
        config.targets = vec![sim.net.seen_as(target).to_string()];
        sim.start(host, config);
    }
    converge(&mut sim, &hosts, ms(30_000));
    // Where the stations are is known, so that nothing is flooded.
    for host in [0, 3] {
        sim.inject(host, None);
    }
    sim.run(ms(10_000));
    assert_eq!(arrive(&mut sim, 0, 3, 5_000, 5), 5, "before anything is known of the way");
    let ready = |sim: &Sim| {
        let fib = &sim.hosts[0].fib;
        let peer = fib.slot(sim.hosts[3].id().short()).and_then(|slot| fib.peer(slot)).unwrap();
        (1_420 - 28 - 8..=1_420 - 28).contains(&peer.way_max)
    };
    assert!(busy_until(&mut sim, 0, 3, ms(20_000), ready).is_some());
    assert_eq!(arrive(&mut sim, 0, 3, 5_000, 10), 10);
    sim.net.limit(2, 3, 1_300);
    assert!(busy_until(&mut sim, 0, 3, ms(2_000), |sim| !ready(sim)).is_some());
    sim.run(ms(50));
    assert_eq!(arrive(&mut sim, 0, 3, 5_000, 10), 10, "a hop further on takes less");
}
