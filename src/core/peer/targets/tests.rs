use rand::SeedableRng;

use super::*;

fn at(ms: u64) -> Time {
    Time::from_us(ms * 1_000)
}

fn address(n: u16) -> SocketAddr {
    SocketAddr::from(([192, 0, 2, 1], n))
}

fn peer(n: u8) -> PeerId {
    PeerId([n; 16])
}

fn dials() -> Dials {
    Dials::new(StdRng::seed_from_u64(1))
}

fn tick(dials: &mut Dials, now: Time) -> Vec<(DialId, SocketAddr)> {
    let mut asks = Vec::new();
    dials.on_tick(now, &mut asks);
    let dial = |ask| match ask {
        Ask::Dial { dial, remote, .. } => Some((dial, remote)),
        Ask::Resolve(_) => None,
    };
    asks.into_iter().filter_map(dial).collect()
}

#[test]
fn addresses_that_go_away_while_an_errand_waits_its_turn_end_the_round_and_not_the_errand() {
    let mut dials = dials();
    // All places are taken by silent peers, so that the last errand stands ready and has dialled nothing.
    for n in 0..DIALS_MAX as u8 {
        dials.want(at(0), Errand::Peer(peer(n)), &[address(u16::from(n))], Duration::ZERO);
    }
    assert_eq!(tick(&mut dials, at(0)).len(), DIALS_MAX);
    let last = Errand::Peer(peer(99));
    dials.want(at(0), last.clone(), &[address(99)], Duration::ZERO);
    assert!(tick(&mut dials, at(1)).is_empty());
    // Its record changes: no addresses for a moment, then another.
    dials.want(at(2), last.clone(), &[], Duration::ZERO);
    tick(&mut dials, at(2));
    dials.want(at(3), last, &[], Duration::ZERO);
    for n in 0..DIALS_MAX as u8 {
        dials.drop_errand(&Errand::Peer(peer(n)));
    }
    dials.want(at(4), Errand::Peer(peer(99)), &[address(100)], Duration::ZERO);
    let dialled = (5..60_000).step_by(100).any(|ms| !tick(&mut dials, at(ms)).is_empty());
    assert!(dialled, "never dialled again");
}

/// Runs for `ms` with every dial silent but those to `live`; says when that was dialled first.
fn first_dial_of(dials: &mut Dials, live: SocketAddr, ms: u64) -> Option<u64> {
    let mut running: Vec<(u64, DialId)> = Vec::new();
    for now in (0..ms).step_by(100) {
        running.retain(|(until, dial)| {
            let over = *until <= now;
            if over {
                dials.on_failed(at(now), *dial, DialError::Timeout);
            }
            !over
        });
        for (dial, remote) in tick(dials, at(now)) {
            if remote == live {
                return Some(now);
            }
            running.push((now + 5_000, dial));
        }
    }
    None
}

#[test]
fn silent_peers_with_many_addresses_leave_room_for_dials_through_relays() {
    let mut dials = dials();
    for n in 0..30 {
        let addresses: Vec<SocketAddr> = (0..16).map(|k| address(n * 16 + k)).collect();
        dials.want(at(0), Errand::Peer(peer(n as u8)), &addresses, Duration::ZERO);
    }
    let relayed = address(60_000);
    dials.want(at(0), Errand::Relayed(peer(77)), &[relayed], Duration::from_millis(500));
    let dialled = first_dial_of(&mut dials, relayed, 120_000);
    assert!(dialled.is_some_and(|ms| ms < 1_000), "{dialled:?}");
}

#[test]
fn silent_peers_leave_room_for_a_peer_of_a_higher_id() {
    let mut dials = dials();
    for n in 0..30 {
        let addresses: Vec<SocketAddr> = (0..4).map(|k| address(n * 16 + k)).collect();
        dials.want(at(0), Errand::Peer(peer(n as u8)), &addresses, Duration::ZERO);
    }
    let live = address(60_000);
    dials.want(at(0), Errand::Peer(peer(255)), &[live], Duration::from_secs(20));
    let dialled = first_dial_of(&mut dials, live, 600_000);
    assert!(dialled.is_some_and(|ms| ms < 120_000), "{dialled:?}");
}
