//! Every state × every input of an errand, the bounds, and the words.
use super::*;
use rand::SeedableRng;

const PEER: PeerId = PeerId([3; 16]);

fn at(ms: u64) -> Time {
    Time::from_us(1_000_000 + ms * 1000)
}

fn address(n: u8) -> SocketAddr {
    SocketAddr::from(([10, 0, 0, n], 6783))
}

fn dials() -> Dials {
    Dials::new(StdRng::seed_from_u64(1))
}

fn tick(dials: &mut Dials, ms: u64) -> Vec<Ask> {
    let mut out = Vec::new();
    dials.on_tick(at(ms), &mut out);
    out
}

fn dialled(asks: &[Ask]) -> Vec<(DialId, SocketAddr)> {
    asks.iter()
        .filter_map(|ask| if let Ask::Dial { dial, remote, .. } = ask { Some((*dial, *remote)) } else { None })
        .collect()
}

fn target() -> Errand {
    Errand::Target("host:1".into())
}

/// A target in the state of this name, and the number of its dial.
fn errand(state: &str) -> (Dials, DialId) {
    let mut dials = dials();
    dials.want(at(0), target(), &[], Duration::ZERO);
    let mut dial = DialId(0);
    if state != "waiting" {
        tick(&mut dials, 0);
    }
    if state == "dialling" || state == "linked" {
        dials.on_resolved(at(0), "host:1", Ok(vec![address(1)]));
        dial = dialled(&tick(&mut dials, 0))[0].0;
    }
    if state == "linked" {
        dials.on_opened(at(0), dial, PEER);
    }
    (dials, dial)
}

fn state(dials: &Dials) -> &'static str {
    match dials.errands[&target()].state {
        State::Waiting { .. } => "waiting",
        State::Resolving { .. } => "resolving",
        State::Dialling { .. } => "dialling",
        State::Linked { .. } => "linked",
    }
}

#[test]
fn every_state_and_input() {
    type Act = fn(&mut Dials, DialId);
    let acts: [(&str, Act); 8] = [
        ("resolved", |d, _| d.on_resolved(at(1), "host:1", Ok(vec![address(1)]))),
        ("not resolved", |d, _| d.on_resolved(at(1), "host:1", Err("no".into()))),
        ("nothing resolved", |d, _| d.on_resolved(at(1), "host:1", Ok(vec![]))),
        ("opened", |d, dial| {
            d.on_opened(at(1), dial, PEER);
        }),
        ("failed", |d, dial| d.on_failed(at(1), dial, DialError::Timeout)),
        ("refused", |d, _| d.on_refused(at(1), &target(), address(1), DialError::Secret)),
        ("unlinked", |d, _| d.on_unlinked(at(1), PEER, false, None)),
        ("late", |d, _| {
            tick(d, 60_000);
        }),
    ];
    let table = [
        ("waiting", ["waiting", "waiting", "waiting", "waiting", "waiting", "waiting", "waiting", "resolving"]),
        ("resolving", ["dialling", "waiting", "waiting", "resolving", "resolving", "waiting", "resolving", "waiting"]),
        ("dialling", ["dialling", "dialling", "dialling", "linked", "waiting", "waiting", "dialling", "waiting"]),
        ("linked", ["linked", "linked", "linked", "linked", "linked", "waiting", "waiting", "linked"]),
    ];
    for (from, row) in table {
        for ((input, act), expected) in acts.iter().zip(row) {
            let (mut dials, dial) = errand(from);
            act(&mut dials, dial);
            let late_starts_anew = *input == "late" && expected == "waiting" && state(&dials) == "resolving";
            assert!(state(&dials) == expected || late_starts_anew, "{from}, {input}: {}", state(&dials));
        }
    }
}

#[test]
fn back_off_doubles_to_thirty_seconds_and_is_drawn() {
    let mut dials = dials();
    dials.want(at(0), Errand::Peer(PEER), &[address(1)], Duration::ZERO);
    let mut now = 0;
    let mut waits = Vec::new();
    for _ in 0..12 {
        let (dial, _) = dialled(&tick(&mut dials, now))[0];
        dials.on_failed(at(now), dial, DialError::Timeout);
        let wait = dials.deadline().since(at(now)).as_millis() as u64;
        waits.push(wait);
        assert!(tick(&mut dials, now + wait - 1).is_empty(), "no busy loop");
        now += wait + 1;
    }
    for (n, wait) in waits.iter().enumerate() {
        let middle = (500 << n.min(10)).min(30_000);
        assert!((middle * 3 / 4..=middle * 5 / 4).contains(wait), "{n}: {wait}");
    }
}

#[test]
fn no_more_dials_than_the_bounds_allow() {
    let mut dials = dials();
    for n in 0..2_000u32 {
        let mut id = [0; 16];
        id[..4].copy_from_slice(&n.to_be_bytes());
        let taken = dials.want(at(0), Errand::Peer(PeerId(id)), &[address(1)], Duration::ZERO);
        assert_eq!(taken, (n as usize) < ERRANDS_MAX);
    }
    let mut started = 0;
    for ms in (0..60_000).step_by(100) {
        for (dial, _) in dialled(&tick(&mut dials, ms)) {
            started += 1;
            dials.on_failed(at(ms), dial, DialError::Unreachable("no route".into()));
        }
        assert!(dials.by_dial.len() <= DIALS_MAX);
    }
    assert!((BUDGET_MAX..=BUDGET_MAX + 60 * BUDGET_PER_S).contains(&started), "{started} in a minute");
}

#[test]
fn addresses_are_tried_overlapping_and_the_first_to_open_wins() {
    let mut dials = dials();
    dials.want(at(0), Errand::Peer(PEER), &[address(1), address(2), address(3)], Duration::ZERO);
    let one = dialled(&tick(&mut dials, 0));
    assert_eq!(one.len(), 1);
    assert!(tick(&mut dials, 299).is_empty());
    let two = dialled(&tick(&mut dials, 300));
    dials.on_failed(at(310), one[0].0, DialError::WrongPeer);
    let three = dialled(&tick(&mut dials, 310));
    assert_eq!([one[0].1, two[0].1, three[0].1], [address(1), address(2), address(3)]);
    assert_eq!(dials.on_opened(at(320), three[0].0, PEER), Some(Errand::Peer(PEER)));
    assert_eq!(dials.on_opened(at(321), two[0].0, PEER), None, "one too many");
}

#[test]
fn a_hopeless_target_is_retried_seldom_and_says_why() {
    for (why, state, words, least) in [
        (DialError::Closed(CloseReason::OwnAddress), LinkState::Failed, "our own address", 45_000),
        (DialError::Closed(CloseReason::ClonedIdentity), LinkState::Failed, "identity", 45_000),
        (DialError::Closed(CloseReason::Cluster), LinkState::Failed, "another cluster", 375),
        (DialError::Secret, LinkState::Failed, "secret", 375),
        (DialError::Version, LinkState::Failed, "version", 375),
        (DialError::Timeout, LinkState::Retrying, "nothing answers", 375),
        (DialError::Closed(CloseReason::Full), LinkState::Retrying, "--max-links", 375),
        (DialError::Unreachable("no route".into()), LinkState::Retrying, "no route", 375),
    ] {
        let (mut dials, dial) = errand("dialling");
        dials.on_failed(at(0), dial, why.clone());
        let standing = &dials.standings(at(0))[0];
        assert_eq!(standing.state, state, "{why:?}");
        assert!(standing.reason.as_ref().unwrap().contains(words), "{standing:?}");
        assert!(standing.retry.unwrap().as_millis() >= least, "{standing:?}");
    }
}

#[test]
fn a_link_that_the_other_end_made_is_enough() {
    let mut dials = dials();
    dials.want(at(0), Errand::Peer(PEER), &[address(1)], Duration::from_millis(100));
    dials.on_linked(at(50), PEER, false);
    assert!(tick(&mut dials, 10_000).is_empty());
    assert_eq!(dials.deadline(), Time::NEVER);
    dials.on_unlinked(at(10_000), PEER, false, None);
    assert_eq!(dialled(&tick(&mut dials, 10_700)).len(), 1);
}

fn spot(n: u16) -> SocketAddr {
    SocketAddr::from(([192, 0, 2, 1], n))
}

fn peer(n: u8) -> PeerId {
    PeerId([n; 16])
}

#[test]
fn addresses_that_go_away_while_an_errand_waits_its_turn_end_the_round_and_not_the_errand() {
    let mut dials = dials();
    // All places are taken by silent peers, so that the last errand stands ready and has dialled nothing.
    for n in 0..DIALS_MAX as u8 {
        dials.want(at(0), Errand::Peer(peer(n)), &[spot(u16::from(n))], Duration::ZERO);
    }
    assert_eq!(dialled(&tick(&mut dials, 0)).len(), DIALS_MAX);
    let last = Errand::Peer(peer(99));
    dials.want(at(0), last.clone(), &[spot(99)], Duration::ZERO);
    assert!(dialled(&tick(&mut dials, 1)).is_empty());
    // Its record changes: no addresses for a moment, then another.
    dials.want(at(2), last.clone(), &[], Duration::ZERO);
    tick(&mut dials, 2);
    dials.want(at(3), last, &[], Duration::ZERO);
    for n in 0..DIALS_MAX as u8 {
        dials.drop_errand(&Errand::Peer(peer(n)));
    }
    dials.want(at(4), Errand::Peer(peer(99)), &[spot(100)], Duration::ZERO);
    let again = (5..60_000).step_by(100).any(|ms| !dialled(&tick(&mut dials, ms)).is_empty());
    assert!(again, "never dialled again");
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
        for (dial, remote) in dialled(&tick(dials, now)) {
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
        let addresses: Vec<SocketAddr> = (0..16).map(|k| spot(n * 16 + k)).collect();
        dials.want(at(0), Errand::Peer(peer(n as u8)), &addresses, Duration::ZERO);
    }
    let relayed = spot(60_000);
    dials.want(at(0), Errand::Relayed(peer(77)), &[relayed], Duration::from_millis(500));
    let first = first_dial_of(&mut dials, relayed, 120_000);
    assert!(first.is_some_and(|ms| ms < 1_000), "{first:?}");
}

#[test]
fn silent_peers_leave_room_for_a_peer_of_a_higher_id() {
    let mut dials = dials();
    for n in 0..30 {
        let addresses: Vec<SocketAddr> = (0..4).map(|k| spot(n * 16 + k)).collect();
        dials.want(at(0), Errand::Peer(peer(n as u8)), &addresses, Duration::ZERO);
    }
    let live = spot(60_000);
    dials.want(at(0), Errand::Peer(peer(255)), &[live], Duration::from_secs(20));
    let first = first_dial_of(&mut dials, live, 600_000);
    assert!(first.is_some_and(|ms| ms < 120_000), "{first:?}");
}
