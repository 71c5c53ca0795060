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
