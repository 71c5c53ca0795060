//! Networks of real nodes, small ones first.
use super::*;

fn seed() -> u64 {
    option_env!("SEED").and_then(|seed| seed.parse().ok()).unwrap_or(1)
}

#[test]
fn two_peers_link_and_exchange_frames() {
    let mut sim = Sim::new(seed(), Conditions::LAN);
    let hosts = sim.cluster(2, |n| if n == 0 { vec![] } else { vec![0] });
    let took = sim.run_until(Duration::from_secs(3), |sim| converged(sim, &hosts));
    assert!(took.is_some_and(|took| took < Duration::from_secs(1)), "{took:?}");
    let broadcast = sim.inject(0, None);
    sim.run(Duration::from_millis(10));
    assert_eq!(sim.reached(broadcast), [1]);
    let unicast = sim.inject(1, Some(0));
    sim.run(Duration::from_millis(10));
    assert_eq!(sim.reached(unicast), [0]);
}
