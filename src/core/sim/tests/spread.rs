//! Source ports besides the main one, and firewalls that know only that.

use super::*;

/// Two hosts with two other ports each.
fn pair(seed: u64) -> Sim {
    let mut sim = Sim::new(seed, Conditions::LAN);
    let hosts: Vec<HostId> = (0..2).map(|n| sim.add_host(n)).collect();
    for host in &hosts {
        let mut config = sim.config(*host);
        config.ports_aside = 2;
        config.targets = if *host == hosts[0] { vec![] } else { vec![sim.net.seen_as(hosts[0]).to_string()] };
        sim.start(*host, config);
    }
    converge(&mut sim, &hosts, ms(20_000));
    sim
}

fn ports(sim: &Sim, host: HostId) -> u32 {
    let links = sim.hosts[host].node.as_ref().unwrap().status_links(sim.now);
    links.first().map_or(0, |link| link.ports)
}

/// Many frames from host 0 to host 1, until it is so.
fn busy_until(sim: &mut Sim, limit: Duration, holds: impl Fn(&Sim) -> bool) -> Option<Duration> {
    let start = sim.now;
    while !holds(sim) {
        if sim.now.since(start) >= limit {
            return None;
        }
        for _ in 0..100 {
            sim.inject(0, Some(1));
        }
        sim.inject(1, Some(0));
        sim.run(ms(100));
    }
    Some(sim.now.since(start))
}

#[test]
fn they_are_used_once_many_datagrams_go_and_all_of_them_pass() {
    let mut sim = pair(seed());
    sim.run(ms(5_000));
    assert_eq!((ports(&sim, 0), ports(&sim, 1)), (1, 1), "at rest");
    assert!(busy_until(&mut sim, ms(3_000), |sim| ports(sim, 0) == 3).is_some());
    assert_eq!(ports(&sim, 1), 1, "one that sends little");
    let published = sim.hosts[0].fib.clone();
    assert!(published.peers.iter().flatten().all(|peer| peer.spread), "frames take them");
    sim.net.cut_aside(0, 1, 2, true);
    let off = busy_until(&mut sim, ms(3_000), |sim| ports(sim, 0) == 1);
    assert!(off.is_some_and(|off| off <= ms(1_500)), "{off:?}");
    assert!(!sim.hosts[0].fib.peers.iter().flatten().any(|peer| peer.spread));
    assert_eq!(busy_until(&mut sim, ms(50_000), |sim| ports(sim, 0) == 3), None);
    sim.net.cut_aside(0, 1, 2, false);
    assert!(busy_until(&mut sim, ms(30_000), |sim| ports(sim, 0) == 3).is_some());
    assert!(busy_until(&mut sim, ms(120_000), |sim| ports(sim, 0) == 1).is_none(), "and stays");
}

#[test]
fn a_firewall_that_knows_one_port_costs_nothing() {
    let mut sim = pair(seed());
    sim.net.cut_aside(0, 1, 1, true);
    assert_eq!(busy_until(&mut sim, ms(10_000), |sim| ports(sim, 0) > 1), None);
    let sent: Vec<u64> = (0..50).map(|_| sim.inject(0, Some(1))).collect();
    sim.run(ms(500));
    assert!(sent.into_iter().all(|number| sim.reached(number) == [1]));
}

#[test]
fn nobody_takes_them_for_a_move() {
    let mut sim = pair(seed());
    let address = |sim: &Sim| sim.hosts[1].node.as_ref().unwrap().status_links(sim.now)[0].address.clone();
    let before = address(&sim);
    assert!(busy_until(&mut sim, ms(5_000), |sim| ports(sim, 0) == 3).is_some());
    assert!(busy_until(&mut sim, ms(5_000), |sim| address(sim) != before).is_none());
}
