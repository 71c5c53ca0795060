//! Networks that let QUIC pass and drop sealed datagrams, and mend.

use super::*;
use crate::peer::transport::Policy;

fn pair(seed: u64, policies: [Policy; 2]) -> (Sim, Vec<HostId>) {
    let mut sim = Sim::new(seed, Conditions::LAN);
    let hosts: Vec<HostId> = (0..2).map(|n| sim.add_host(n)).collect();
    for (host, policy) in hosts.iter().zip(policies) {
        let mut config = sim.config(*host);
        config.transport = policy;
        config.targets = if *host == hosts[0] { vec![] } else { vec![sim.net.seen_as(hosts[0]).to_string()] };
        sim.start(*host, config);
    }
    converge(&mut sim, &hosts, ms(5_000));
    for host in &hosts {
        sim.inject(*host, None);
    }
    sim.run(ms(500));
    (sim, hosts)
}

/// Transport and reason of the link that a host shows.
fn shown(sim: &Sim, host: HostId) -> (String, Option<String>) {
    let links = sim.hosts[host].node.as_ref().unwrap().status_links(sim.now);
    let link = links.first().unwrap();
    assert!(link.address.starts_with("10.1."), "a made-up address is shown: {}", link.address);
    (link.transport.clone(), link.reason.clone())
}

fn by(sim: &Sim) -> [String; 2] {
    [shown(sim, 0).0, shown(sim, 1).0]
}

fn block(sim: &mut Sim, ways: &[(HostId, HostId)], cut: bool) {
    for (from, to) in ways {
        sim.net.cut_data(*from, *to, cut);
    }
}

/// Frames both ways, a hundred a second, until the condition holds; gives how many were lost.
fn frames_until(sim: &mut Sim, limit: Duration, holds: impl Fn(&Sim) -> bool) -> Option<usize> {
    let start = sim.now;
    let mut sent = Vec::new();
    while !holds(sim) {
        if sim.now.since(start) >= limit {
            return None;
        }
        sent.push((sim.inject(0, Some(1)), 1));
        sent.push((sim.inject(1, Some(0)), 0));
        sim.run(ms(10));
    }
    sim.run(ms(100));
    Some(sent.into_iter().filter(|(number, to)| sim.reached(*number) != [*to]).count())
}

const BOTH: [(HostId, HostId); 2] = [(0, 1), (1, 0)];

#[test]
fn when_only_quic_passes_frames_take_it_within_a_second_and_return_when_udp_does() {
    for ways in [&BOTH[..], &BOTH[..1], &BOTH[1..]] {
        let (mut sim, _) = pair(seed(), [Policy::Auto; 2]);
        assert_eq!(by(&sim), ["udp", "udp"]);
        block(&mut sim, ways, true);
        let fell = |sim: &Sim| by(sim).iter().any(|by| by == "quic");
        let lost = frames_until(&mut sim, ms(1_000), fell);
        assert!(lost.is_some_and(|lost| lost < 160), "{ways:?}: {lost:?}");
        // Both directions work now, whichever end changed first, with no other way about.
        let settled = frames_until(&mut sim, ms(2_000), |_| false);
        assert_eq!(settled, None);
        let (_, reason) = shown(&sim, usize::from(by(&sim)[0] != "quic"));
        assert!(reason.is_some_and(|reason| reason.contains("sealed UDP does not pass")), "{ways:?}");
        let works = |sim: &mut Sim| {
            let numbers = [(sim.inject(0, Some(1)), 1), (sim.inject(1, Some(0)), 0)];
            sim.run(ms(50));
            numbers.iter().all(|(number, to)| sim.reached(*number) == [*to])
        };
        assert!(works(&mut sim), "{ways:?}");
        block(&mut sim, ways, false);
        let back = |sim: &Sim| by(sim) == ["udp", "udp"];
        assert_eq!(frames_until(&mut sim, ms(5_000), back), Some(0), "{ways:?}: the way back loses nothing");
        assert_eq!(shown(&sim, 0).1, None);
    }
}

#[test]
fn an_idle_pair_falls_back_too() {
    let (mut sim, _) = pair(seed(), [Policy::Auto; 2]);
    block(&mut sim, &BOTH, true);
    sim.run(ms(10_000));
    assert_eq!(by(&sim), ["quic", "quic"]);
    sim.run(ms(60_000));
    let links = sim.metrics.links;
    sim.run(ms(60_000));
    assert_eq!((by(&sim), sim.metrics.links), (["quic".into(), "quic".into()], links), "and stays so");
}

#[test]
fn each_end_keeps_to_its_own_policy_and_takes_what_comes() {
    for (policies, expected) in [
        ([Policy::Quic, Policy::Quic], ["quic", "quic"]),
        ([Policy::Quic, Policy::Udp], ["quic", "udp"]),
        ([Policy::Auto, Policy::Quic], ["udp", "quic"]),
    ] {
        let (mut sim, _) = pair(seed(), policies);
        assert_eq!(frames_until(&mut sim, ms(20_000), |_| false), None);
        assert_eq!(by(&sim), expected);
        let drawn =
            [0, 1].map(|host: HostId| sim.hosts[host].node.as_ref().unwrap().topology().links[0].transport.clone());
        assert_eq!(drawn, expected, "the topology shows the own links as they are");
        let large = sim.inject_sized(0, Some(1), 1_300);
        sim.run(ms(50));
        assert_eq!(sim.reached(large), [1], "longer than QUIC takes: in fragments");
    }
}

#[test]
fn through_a_relay_each_hop_has_its_own_transport() {
    let (mut sim, hosts) = {
        let mut sim = Sim::new(seed(), Conditions::LAN);
        let hosts = sim.cluster(3, |n| if n == 1 { vec![] } else { vec![1] });
        sim.net.cut(0, 2, true);
        sim.net.cut(2, 0, true);
        converge(&mut sim, &hosts, ms(10_000));
        (sim, hosts)
    };
    for host in &hosts {
        sim.inject(*host, None);
    }
    sim.run(ms(500));
    block(&mut sim, &BOTH, true);
    for _ in 0..300 {
        sim.inject(0, Some(2));
        sim.inject(2, Some(0));
        sim.run(ms(10));
    }
    let sent: Vec<(u64, HostId)> =
        (0..20).flat_map(|_| [(sim.inject(0, Some(2)), 2), (sim.inject(2, Some(0)), 0)]).collect();
    sim.run(ms(200));
    assert!(sent.iter().all(|(number, to)| sim.reached(*number) == [*to]));
    assert_eq!(shown(&sim, 0).0, "quic");
}

#[test]
fn a_cut_cable_does_not_wait_for_quic() {
    let mut sim = Sim::new(seed(), Conditions::LAN);
    let hosts = sim.cluster(3, |n| (0..n).collect());
    converge(&mut sim, &hosts, ms(10_000));
    for host in &hosts {
        sim.inject(*host, None);
    }
    sim.run(ms(500));
    sim.net.cut(0, 1, true);
    sim.net.cut(1, 0, true);
    let mut lost = Vec::new();
    for _ in 0..300 {
        lost.push(sim.inject(0, Some(1)));
        sim.run(ms(10));
    }
    sim.run(ms(200));
    let lost = lost.into_iter().filter(|number| sim.reached(*number) != [1]).count();
    assert!(lost < 80, "{lost} of 300: the relay takes over as fast as ever");
}
