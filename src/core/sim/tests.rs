//! Networks of real nodes: small ones with each fault by hand, then many with faults drawn. `SEED=n` replays a run.

mod addresses;
mod faults;
mod large;
mod mtu;
mod offload;
mod spread;
mod transport;

use super::*;

/// The seed of this run; it stands in every failure, because it is printed first.
pub(super) fn seed() -> u64 {
    #[allow(clippy::disallowed_methods, reason = "replaying a failure")]
    let seed = std::env::var("SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(1);
    println!("SEED={seed}");
    seed
}

pub(super) fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

pub(super) fn converge(sim: &mut Sim, hosts: &[HostId], limit: Duration) -> Duration {
    let took = sim.run_until(limit, |sim| converged(sim, hosts));
    took.unwrap_or_else(|| {
        for host in hosts.iter().filter(|host| sim.hosts[**host].alive()).take(4) {
            let node = sim.hosts[*host].node.as_ref().unwrap();
            println!("host {host} {:?}: {:#?}", node.id(), node.status_routes());
            println!("{:#?}", node.status_links(sim.now));
        }
        panic!("not converged within {limit:?}, at {:?}", sim.now)
    })
}

/// Every host sends to every other and to all; everything must arrive, once.
pub(super) fn all_reach_all(sim: &mut Sim, hosts: &[HostId]) {
    let running: Vec<HostId> = hosts.iter().copied().filter(|host| sim.hosts[*host].alive()).collect();
    for from in &running {
        let others: Vec<HostId> = running.iter().copied().filter(|host| host != from).collect();
        let broadcast = sim.inject(*from, None);
        sim.run(ms(500));
        assert_eq!(sim.reached(broadcast), others, "broadcast of {from}");
    }
    for from in &running {
        for to in running.iter().filter(|to| *to != from) {
            let unicast = sim.inject(*from, Some(*to));
            sim.run(ms(300));
            assert_eq!(sim.reached(unicast), [*to], "unicast of {from}");
        }
    }
}

/// Pings 100 times a second between two stations while something happens; gives how many had no answer.
pub(super) fn pings_lost(sim: &mut Sim, a: HostId, b: HostId, span: Duration) -> usize {
    pings_lost_while(sim, a, b, span, |_| {})
}

/// The same; `event` happens in the second second.
pub(super) fn pings_lost_while(sim: &mut Sim, a: HostId, b: HostId, span: Duration, event: impl Fn(&mut Sim)) -> usize {
    let count = span.as_millis() as u64 / 10;
    let mut lost = 0;
    let mut pending: Vec<(u64, Option<u64>, Time)> = Vec::new();
    for round in 0..count + 100 {
        if round == 137 {
            event(sim);
        }
        if (pending.len() as u64) < count {
            pending.push((sim.inject(a, Some(b)), None, sim.now));
        }
        sim.run(ms(10));
        for (request, reply, sent) in &mut pending {
            if reply.is_none() && sim.now.since(*sent) < ms(500) && sim.reached(*request).contains(&b) {
                *reply = Some(sim.inject(b, Some(a)));
            }
        }
    }
    let mut when = Vec::new();
    for (_, reply, sent) in pending {
        if reply.is_none_or(|reply| !sim.reached(reply).contains(&a)) {
            lost += 1;
            when.push(sent.as_us() / 10_000);
        }
    }
    println!("{lost} pings lost, at (10 ms): {when:?}");
    lost
}

#[test]
fn two_peers_link_and_exchange_frames() {
    let mut sim = Sim::new(seed(), Conditions::LAN);
    let hosts = sim.cluster(2, |n| if n == 0 { vec![] } else { vec![0] });
    let took = converge(&mut sim, &hosts, ms(1000));
    assert!(took < ms(1000), "{took:?}");
    all_reach_all(&mut sim, &hosts);
    let node = sim.hosts[0].node.as_ref().unwrap();
    assert_eq!(node.problems(sim.now), []);
}

#[test]
fn three_peers_agree_within_a_second() {
    let mut sim = Sim::new(seed(), Conditions::LAN);
    let hosts = sim.cluster(3, |n| if n == 0 { vec![] } else { vec![0] });
    let took = converge(&mut sim, &hosts, ms(3000));
    assert!(took < ms(1000), "{took:?}");
    all_reach_all(&mut sim, &hosts);
}

#[test]
fn two_peers_that_dial_each_other_at_once_keep_one_link() {
    for seed in seed()..seed() + 20 {
        let mut sim = Sim::new(seed, Conditions::LAN);
        let hosts = sim.cluster(2, |n| vec![1 - n]);
        converge(&mut sim, &hosts, ms(1000));
        sim.run(ms(3000));
        for host in &hosts {
            assert_eq!(sim.hosts[*host].node.as_ref().unwrap().link_count(), 1, "seed {seed}");
            let down = sim.hosts[*host].events.iter().any(|(_, event)| event.what == "link silent");
            assert!(!down, "seed {seed}: the pair was without a link");
        }
    }
}

/// Hosts in a line: only neighbours reach each other.
fn line(sim: &mut Sim, count: usize) -> Vec<HostId> {
    for a in 0..count {
        for b in 0..count {
            sim.net.cut(a, b, a.abs_diff(b) > 1);
        }
    }
    sim.cluster(count, |n| if n == 0 { vec![] } else { vec![n - 1] })
}

#[test]
fn a_line_relays_everything() {
    for count in [3, 4, 5] {
        let mut sim = Sim::new(seed(), Conditions::LAN);
        let hosts = line(&mut sim, count);
        converge(&mut sim, &hosts, ms(8000));
        sim.run(ms(3000));
        all_reach_all(&mut sim, &hosts);
        let routes = sim.hosts[0].node.as_ref().unwrap().status_routes();
        assert_eq!(routes.iter().filter(|route| route.kind == "relayed").count(), count - 2, "{routes:#?}");
    }
}

#[test]
fn a_relayed_peer_has_a_session_of_its_own_and_answers_echoes() {
    let mut sim = Sim::new(seed(), Conditions::LAN);
    let hosts = line(&mut sim, 3);
    converge(&mut sim, &hosts, ms(8000));
    let token = sim.with(0, |node, now| node.ping(now, "host2")).unwrap();
    sim.run(ms(100));
    let (_, result) = sim.hosts[0].pongs.iter().find(|(of, _)| *of == token).unwrap().clone();
    assert_eq!(result.unwrap().1, "relayed by host1");
    let trace = sim.hosts[0].node.as_ref().unwrap().trace("host2").unwrap();
    assert_eq!(trace.hops.iter().map(|hop| hop.name.as_str()).collect::<Vec<_>>(), ["host1", "host2"]);
}

#[test]
fn cutting_the_direct_path_loses_less_than_a_second_of_pings() {
    for seed in seed()..seed() + 10 {
        let mut sim = Sim::new(seed, Conditions::LAN);
        let hosts = sim.cluster(3, |n| if n == 0 { vec![] } else { vec![0] });
        converge(&mut sim, &hosts, ms(2000));
        sim.run(ms(5000 + seed * 37 % 1000));
        assert_eq!(pings_lost(&mut sim, 0, 1, ms(1000)), 0);
        let cut = |sim: &mut Sim| {
            for (a, b) in [(0, 1), (1, 0)] {
                sim.net.cut(a, b, true);
            }
        };
        let lost = if seed % 2 == 0 {
            pings_lost_while(&mut sim, 0, 1, ms(20_000), cut)
        } else {
            // The pings begin only after the cut: the far end has no reason to doubt before the first comes by the relay.
            cut(&mut sim);
            pings_lost(&mut sim, 0, 1, ms(20_000))
        };
        assert!(lost <= 85, "seed {seed}: {lost} pings lost");
        for (a, b) in [(0, 1), (1, 0)] {
            sim.net.cut(a, b, false);
        }
        let lost = pings_lost(&mut sim, 0, 1, ms(60_000));
        assert_eq!(lost, 0, "seed {seed}: the return must cost nothing");
        let routes = sim.hosts[0].node.as_ref().unwrap().status_routes();
        assert!(routes.iter().all(|route| route.kind == "direct"), "{routes:#?}");
    }
}

#[test]
fn cutting_one_direction_loses_less_than_a_second_of_pings() {
    for (seed, (a, b)) in (seed()..).zip([(0, 1), (1, 0)]) {
        let mut sim = Sim::new(seed, Conditions::LAN);
        let hosts = sim.cluster(3, |n| if n == 0 { vec![] } else { vec![0] });
        converge(&mut sim, &hosts, ms(2000));
        sim.run(ms(3000));
        let lost = pings_lost_while(&mut sim, 0, 1, ms(20_000), |sim| sim.net.cut(a, b, true));
        assert!(lost <= 100, "{a}→{b}: {lost} pings lost");
    }
}

#[test]
fn a_ring_survives_a_cut() {
    let mut sim = Sim::new(seed(), Conditions::LAN);
    let count: usize = 5;
    for a in 0..count {
        for b in 0..count {
            let apart = a.abs_diff(b).min(count - a.abs_diff(b));
            sim.net.cut(a, b, apart > 1);
        }
    }
    let hosts = sim.cluster(count, |n| vec![(n + 1) % count]);
    converge(&mut sim, &hosts, ms(8000));
    sim.run(ms(3000));
    all_reach_all(&mut sim, &hosts);
    for (a, b) in [(0, 1), (1, 0)] {
        sim.net.cut(a, b, true);
    }
    sim.run(ms(8000));
    all_reach_all(&mut sim, &hosts);
}

#[test]
fn thirty_two_split_in_halves_find_each_other_again() {
    let mut sim = Sim::new(seed(), Conditions::LAN);
    let hosts = sim.cluster(32, |n| if n == 0 { vec![] } else { vec![0] });
    let took = converge(&mut sim, &hosts, ms(5000));
    println!("32 meshed in {took:?}, {:?}", sim.metrics);
    for host in 16..32 {
        sim.net.group(host, 1);
    }
    sim.run(ms(30_000));
    for half in [0..16, 16..32] {
        let half: Vec<HostId> = half.collect();
        let reach = sim.hosts[half[0]]
            .node
            .as_ref()
            .unwrap()
            .status_peers(sim.now)
            .iter()
            .filter(|peer| peer.reachable)
            .count();
        assert_eq!(reach, 16);
        let number = sim.inject(half[0], None);
        sim.run(ms(100));
        assert_eq!(sim.reached(number), half[1..]);
    }
    for host in 16..32 {
        sim.net.group(host, 0);
    }
    let took = converge(&mut sim, &hosts, ms(45_000));
    println!("healed in {took:?}");
    sim.run(ms(3000));
    let number = sim.inject(0, None);
    sim.run(ms(100));
    assert_eq!(sim.reached(number).len(), 31);
}

#[test]
fn a_restarted_peer_is_back_at_once_and_its_broadcasts_pass() {
    let mut sim = Sim::new(seed(), Conditions::LAN);
    let hosts = sim.cluster(3, |n| if n == 0 { vec![] } else { vec![0] });
    converge(&mut sim, &hosts, ms(2000));
    all_reach_all(&mut sim, &hosts);
    for stop in [true, false] {
        // What is known is kept at most every 5 s.
        sim.run(ms(6000));
        if stop {
            sim.stop(0)
        } else {
            sim.kill(0)
        }
        sim.run(ms(200));
        // No targets: it finds the others by what it kept.
        let config = sim.config(0);
        assert_eq!(config.saved.known.len(), 2);
        sim.start(0, config);
        converge(&mut sim, &hosts, ms(5000));
        sim.run(ms(500));
        all_reach_all(&mut sim, &hosts);
    }
}

#[test]
fn a_killed_peer_is_noticed_within_five_seconds_and_a_stopped_one_at_once() {
    for (stop, limit) in [(true, ms(500)), (false, ms(5000))] {
        let mut sim = Sim::new(seed(), Conditions::LAN);
        let hosts = sim.cluster(4, |n| if n == 0 { vec![] } else { vec![0] });
        converge(&mut sim, &hosts, ms(3000));
        sim.run(ms(5000));
        if stop {
            sim.stop(3)
        } else {
            sim.kill(3)
        }
        converge(&mut sim, &hosts, limit);
        all_reach_all(&mut sim, &hosts);
    }
}

#[test]
fn a_peer_that_moves_keeps_its_traffic() {
    let mut sim = Sim::new(seed(), Conditions::LAN);
    let hosts = sim.cluster(3, |n| if n == 0 { vec![] } else { vec![0] });
    converge(&mut sim, &hosts, ms(2000));
    sim.run(ms(3000));
    for host in [0, 1, 2] {
        sim.renumber(host, format!("10.9.0.{}:6783", host + 1).parse().unwrap());
        sim.run(ms(6000));
        all_reach_all(&mut sim, &hosts);
        sim.run(ms(20_000));
        all_reach_all(&mut sim, &hosts);
        let direct = sim.hosts[host]
            .node
            .as_ref()
            .unwrap()
            .status_routes()
            .iter()
            .filter(|route| route.kind == "direct")
            .count();
        assert_eq!(direct, 2, "host {host}");
    }
}

#[test]
fn a_peer_behind_a_translator_joins_and_survives_a_new_mapping() {
    let mut sim = Sim::new(seed(), Conditions::LAN);
    for _ in 0..3 {
        sim.add_host(sim.hosts.len() as u32);
    }
    sim.net.translate(2, "192.0.2.1:40000".parse().unwrap());
    for host in 0..3 {
        let mut config = sim.config(host);
        config.targets = if host == 0 { vec![] } else { vec![sim.net.seen_as(0).to_string()] };
        sim.start(host, config);
    }
    converge(&mut sim, &[0, 1, 2], ms(5000));
    all_reach_all(&mut sim, &[0, 1, 2]);
    sim.net.translate(2, "192.0.2.1:40001".parse().unwrap());
    sim.run(ms(15_000));
    all_reach_all(&mut sim, &[0, 1, 2]);
}

#[test]
fn a_starved_peer_does_not_declare_the_others_dead() {
    let mut sim = Sim::new(seed(), Conditions::LAN);
    let hosts = sim.cluster(3, |n| if n == 0 { vec![] } else { vec![0] });
    converge(&mut sim, &hosts, ms(2000));
    sim.run(ms(5000));
    // The others may give up a peer that says nothing for more than four probes; the starved one itself must not, however long it took.
    for (freeze, whole) in [(500, true), (2000, true), (2900, true), (8000, false)] {
        sim.hosts[0].frozen_until = Some(sim.now + ms(freeze));
        sim.run(ms(freeze + 5000));
        for host in hosts.iter().filter(|host| whole || **host == 0) {
            let silent = sim.hosts[*host].events.iter().filter(|(_, event)| event.what == "link silent").count();
            assert_eq!(silent, 0, "host {host}, {freeze} ms");
        }
    }
}

#[test]
fn two_processes_with_one_identity_are_reported() {
    let mut sim = Sim::new(seed(), Conditions::LAN);
    for identity in [0, 1, 2, 2] {
        sim.add_host(identity);
    }
    for host in 0..4 {
        let mut config = sim.config(host);
        config.targets = if host == 0 { vec![] } else { vec![sim.net.seen_as(0).to_string()] };
        config.incarnation += host as u64;
        sim.start(host, config);
    }
    sim.run(ms(60_000));
    for clone in [2, 3] {
        let problems = sim.hosts[clone].node.as_ref().unwrap().problems(sim.now);
        let told = problems.iter().any(|problem| problem.what.contains("identity"));
        assert!(told || clone == 3, "host {clone}: {problems:#?}");
    }
    assert!(sim.metrics.dials < 400, "{} dials", sim.metrics.dials);
}

#[test]
fn every_hopeless_target_says_why_and_is_not_dialled_in_a_busy_loop() {
    let mut sim = Sim::new(seed(), Conditions::LAN);
    let hosts: Vec<HostId> = (0..3).map(|n| sim.add_host(n)).collect();
    sim.hosts[1].secret = 7;
    for host in &hosts {
        let mut config = sim.config(*host);
        if *host == 2 {
            config.cluster = "other".into();
        }
        if *host == 0 {
            config.targets = vec![
                "10.1.0.0".into(),
                "10.1.0.1".into(),
                "10.1.0.2".into(),
                "10.99.0.1".into(),
                "nowhere.example:7000".into(),
            ];
        }
        sim.start(*host, config);
    }
    sim.run(ms(120_000));
    let node = sim.hosts[0].node.as_ref().unwrap();
    let links = node.status_links(sim.now);
    let told = |address: &str, words: &str| {
        let link = links
            .iter()
            .find(|link| link.address.starts_with(address))
            .unwrap_or_else(|| panic!("{address}: {links:#?}"));
        assert!(link.reason.as_ref().is_some_and(|reason| reason.contains(words)), "{link:#?}");
    };
    told("10.1.0.0", "our own address");
    told("10.1.0.1", "secret");
    told("10.1.0.2", "another cluster");
    told("10.99.0.1", "nothing answers");
    told("nowhere.example:7000", "does not resolve");
    assert!(node.problems(sim.now).len() >= 5, "{:#?}", node.problems(sim.now));
    assert!(sim.metrics.dials < 60, "{} dials in two minutes", sim.metrics.dials);
}

#[test]
fn connect_and_forget_are_remembered() {
    let mut sim = Sim::new(seed(), Conditions::LAN);
    for n in 0..2 {
        let host = sim.add_host(n);
        let mut config = sim.config(host);
        config.discovery = false;
        sim.start(host, config);
    }
    sim.with(1, |node, now| node.connect(now, "10.1.0.0")).unwrap();
    converge(&mut sim, &[0, 1], ms(2000));
    sim.run(ms(6000));
    assert_eq!(sim.hosts[1].saved.targets, ["10.1.0.0:6783"]);
    sim.with(1, |node, now| node.forget(now, "10.1.0.0:6783")).unwrap();
    assert!(sim.with(1, |node, now| node.forget(now, "10.1.0.0:6783")).is_err());
    sim.run(ms(8000));
    assert_eq!(sim.hosts[1].node.as_ref().unwrap().link_count(), 0);
    assert!(sim.hosts[1].saved.targets.is_empty());
}

#[test]
fn sessions_are_keyed_anew_without_loss() {
    let mut sim = Sim::new(seed(), Conditions { jitter: ms(3), ..Conditions::LAN });
    for n in 0..2 {
        let host = sim.add_host(n);
        let mut config = sim.config(host);
        config.rekey = crate::session::rekey::Limits { age: Duration::from_secs(3), datagrams: 2000 };
        config.targets = if host == 0 { vec![] } else { vec!["10.1.0.0".into()] };
        sim.start(host, config);
    }
    converge(&mut sim, &[0, 1], ms(2000));
    assert_eq!(pings_lost(&mut sim, 0, 1, ms(60_000)), 0);
    let epochs: Vec<u32> = sim.hosts[0].fib.sessions.iter().flatten().map(|held| held.session.tx.epoch).collect();
    assert!(epochs.iter().any(|epoch| *epoch >= 4), "{epochs:?}");
}

#[test]
fn loss_of_five_percent_breaks_no_link() {
    let mut sim = Sim::new(seed(), Conditions { loss: 0.05, ..Conditions::LAN });
    let hosts = sim.cluster(5, |n| if n == 0 { vec![] } else { vec![0] });
    converge(&mut sim, &hosts, ms(5000));
    sim.run(Duration::from_secs(120));
    assert!(converged(&sim, &hosts));
    let silent: usize =
        sim.hosts.iter().map(|host| host.events.iter().filter(|(_, event)| event.what == "link silent").count()).sum();
    assert!(silent <= 1, "{silent} links were declared silent");
}

#[test]
fn equal_seeds_give_equal_runs() {
    let run = |seed| {
        let mut sim = Sim::new(seed, Conditions { loss: 0.02, ..Conditions::WAN });
        let hosts = sim.cluster(6, |n| if n == 0 { vec![] } else { vec![0] });
        sim.run(ms(5000));
        sim.kill(3);
        sim.run(ms(10_000));
        sim.inject(hosts[1], None);
        sim.run(ms(1000));
        sim.log_hash()
    };
    assert_eq!(run(seed()), run(seed()));
    assert_ne!(run(seed()), run(seed() + 1));
}

#[test]
fn a_large_mesh_makes_sessions_on_demand() {
    let mut sim = Sim::new(seed(), Conditions::LAN);
    let hosts = sim.cluster(44, |n| if n == 0 { vec![] } else { vec![0] });
    sim.run(Duration::from_secs(60));
    let neighbours: Vec<PeerId> =
        sim.hosts[1].fib.neighbours.iter().map(|slot| sim.hosts[1].fib.peer(*slot).unwrap().id).collect();
    let far = hosts.iter().copied().find(|host| *host != 1 && !neighbours.contains(&sim.hosts[*host].id()));
    let far = far.expect("most pairs have no link");
    let hello = sim.inject(far, None);
    sim.run(ms(50));
    assert_eq!(sim.reached(hello).len(), 43, "floods need no session with everyone");
    // The first frame asks for the session; those behind it pass.
    for _ in 0..30 {
        sim.inject(1, Some(far));
        sim.run(ms(100));
    }
    let frame = sim.inject(1, Some(far));
    sim.run(ms(50));
    assert_eq!(sim.reached(frame), [far]);
}
