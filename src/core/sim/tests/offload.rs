//! Devices that lose all but the first datagram of a segmented send.

use super::*;

/// Two hosts on a path of 1,500 bytes; frames of more leave as a run of fragments.
fn pair(seed: u64, loss: f64) -> Sim {
    let mut sim = Sim::new(seed, Conditions::LAN);
    let hosts: Vec<HostId> = (0..2).map(|n| sim.add_host(n)).collect();
    for host in &hosts {
        let mut config = sim.config(*host);
        config.mtu = 9_000 - 190;
        config.targets = if *host == hosts[0] { vec![] } else { vec![sim.net.seen_as(hosts[0]).to_string()] };
        sim.start(*host, config);
    }
    sim.net.limit(0, 1, 1_500);
    sim.net.conditions.loss = loss;
    converge(&mut sim, &hosts, ms(20_000));
    sim
}

fn reason(sim: &Sim, host: HostId) -> String {
    let links = sim.hosts[host].node.as_ref().unwrap().status_links(sim.now);
    links.first().and_then(|link| link.reason.clone()).unwrap_or_default()
}

fn is_off(sim: &Sim, host: HostId) -> bool {
    reason(sim, host).contains("segmented sends")
}

/// Frames both ways, twenty a second, until the condition holds.
fn busy_until(sim: &mut Sim, limit: Duration, holds: impl Fn(&Sim) -> bool) -> Option<Duration> {
    let start = sim.now;
    while !holds(sim) {
        if sim.now.since(start) >= limit {
            return None;
        }
        sim.inject_sized(0, Some(1), 4_000);
        sim.inject_sized(1, Some(0), 4_000);
        sim.run(ms(50));
    }
    Some(sim.now.since(start))
}

/// Of twenty frames of several fragments each way how many arrive.
fn arrive(sim: &mut Sim, from: HostId, to: HostId) -> usize {
    let sent: Vec<u64> = (0..20).map(|_| sim.inject_sized(from, Some(to), 4_000)).collect();
    sim.run(ms(500));
    sent.into_iter().filter(|number| sim.reached(*number) == [to]).count()
}

#[test]
fn a_bad_device_is_found_before_frames_need_it() {
    let mut sim = Sim::new(seed(), Conditions::LAN);
    sim.cluster(2, |n| if n == 0 { vec![] } else { vec![0] });
    sim.net.break_trains(0, true);
    sim.run(ms(10_000));
    assert!(!is_off(&sim, 0), "an idle path is not asked");
    // The first is flooded, the answer is not, nor what follows.
    for (from, to) in [(0, 1), (1, 0), (0, 1)] {
        sim.inject(from, Some(to));
        sim.run(ms(50));
    }
    let took = sim.run_until(ms(3_000), |sim| is_off(sim, 0));
    assert!(took.is_some(), "after a small frame");
    assert!(!is_off(&sim, 1), "only the end that has the device");
}

#[test]
fn frames_arrive_again_once_it_is_noticed_and_trains_return() {
    for loss in [0.0, 0.02] {
        let mut sim = pair(seed(), loss);
        busy_until(&mut sim, ms(12_000), |_| false);
        sim.net.break_trains(0, true);
        if loss == 0.0 {
            assert_eq!((arrive(&mut sim, 0, 1), arrive(&mut sim, 1, 0)), (0, 20));
        }
        assert!(busy_until(&mut sim, ms(8_000), |sim| is_off(sim, 0)).is_some(), "{loss}: {}", reason(&sim, 0));
        assert!(!is_off(&sim, 1));
        sim.net.conditions.loss = 0.0;
        assert_eq!((arrive(&mut sim, 0, 1), arrive(&mut sim, 1, 0)), (20, 20));
        assert!(busy_until(&mut sim, ms(30_000), |sim| !is_off(sim, 0)).is_none(), "stays off while it fails");
        sim.net.break_trains(0, false);
        assert!(busy_until(&mut sim, ms(620_000), |sim| !is_off(sim, 0)).is_some());
        assert_eq!(reason(&sim, 0), "");
        assert_eq!(arrive(&mut sim, 0, 1), 20);
    }
}

#[test]
fn plain_loss_switches_nothing_off() {
    let mut sim = pair(seed(), 0.05);
    let off = busy_until(&mut sim, ms(120_000), |sim| is_off(sim, 0) || is_off(sim, 1));
    assert_eq!(off, None);
}

#[test]
fn another_address_is_another_path() {
    let mut sim = pair(seed(), 0.0);
    sim.net.break_trains(1, true);
    assert!(busy_until(&mut sim, ms(8_000), |sim| is_off(sim, 1)).is_some());
    // Host 1 still has the device; host 0, at another address, is asked anew and found out again.
    sim.net.renumber(0, "10.9.9.9:6783".parse().unwrap());
    assert!(busy_until(&mut sim, ms(20_000), |sim| !is_off(sim, 1)).is_some());
    assert!(busy_until(&mut sim, ms(20_000), |sim| is_off(sim, 1)).is_some());
}
