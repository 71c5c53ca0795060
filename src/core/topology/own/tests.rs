use super::*;

const PEER: ShortId = ShortId(5);

fn at(ms: u64) -> Time {
    Time::from_us(ms * 1000)
}

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

fn originator() -> Originator {
    Originator::new(
        Time::ZERO,
        Origin {
            public_key: [1; 32],
            incarnation: 10,
            instance: 77,
            name: "one".into(),
            software: "0".into(),
            flags: 0,
            mtu: 1310,
        },
    )
}

fn links(peers: &[(u64, u64)]) -> BTreeMap<ShortId, Duration> {
    peers.iter().map(|(peer, rtt_us)| (ShortId(*peer), Duration::from_micros(*rtt_us))).collect()
}

/// Follows the deadlines up to `until`; gives each record and when it was made. A deadline that moves nothing would spin here.
fn run(own: &mut Originator, until: u64) -> Vec<(u64, Record)> {
    let mut told = Vec::new();
    for _ in 0..10_000 {
        let deadline = own.next_deadline();
        if deadline > at(until) {
            return told;
        }
        own.handle_timeout(deadline);
        if let Some(record) = own.poll(deadline) {
            told.push((deadline.as_us() / 1000, record));
        }
    }
    panic!("the deadline {:?} does not move", own.next_deadline());
}

/// One that told its first record and a link, and whose start is long past.
fn settled() -> Originator {
    let mut own = originator();
    own.set_links(at(0), &links(&[(5, 1000)]));
    assert_eq!(run(&mut own, 60_000).len(), 1);
    own
}

fn costs(record: &Record) -> Vec<(u64, u16)> {
    record.links.iter().map(|link| (link.peer.0, link.cost)).collect()
}

#[test]
fn the_first_record_goes_at_once_and_the_start_is_not_held() {
    let mut own = originator();
    assert_eq!(own.poll(at(0)).unwrap().version, Version { incarnation: 10, seq: 1 });
    let mut up = BTreeMap::new();
    for peer in 0..30 {
        up.insert(ShortId(peer), ms(1));
        own.set_links(at(100 + peer * 100), &up);
    }
    let told = run(&mut own, 5_000);
    assert_eq!(told.last().unwrap().1.links.len(), 30);
    assert!(told.last().unwrap().0 <= 3_200, "{told:?}");
}

#[test]
fn down_at_once_then_backing_off() {
    let mut own = settled();
    own.set_links(at(60_000), &links(&[(5, 1000), (6, 1000)]));
    let told = run(&mut own, 60_000);
    assert_eq!(told.len(), 1, "a newcomer's link is told at once");
    own.set_links(at(80_000), &links(&[(6, 1000)]));
    assert_eq!(own.poll(at(80_000)).unwrap().links.len(), 1, "down is told at once");
    own.set_links(at(80_001), &links(&[]));
    assert_eq!(run(&mut own, 90_000).iter().map(|(at, _)| *at).collect::<Vec<_>>(), [80_200]);
    for (n, next) in [(0, 81_200), (1, 86_200), (2, 91_200)] {
        own.set_name(format!("name {n}"));
        assert_eq!(run(&mut own, 99_000).iter().map(|(at, _)| *at).collect::<Vec<_>>(), [next]);
    }
    own.set_name("quiet".into());
    assert_eq!(own.poll(at(101_200)).unwrap().name, "quiet", "a new burst begins after 10 s");
    own.set_name("next".into());
    assert_eq!(run(&mut own, 110_000)[0].0, 101_400);
}

#[test]
fn a_known_link_is_told_up_after_two_stable_seconds() {
    let mut own = settled();
    own.set_links(at(60_000), &links(&[]));
    own.poll(at(60_000)).unwrap();
    own.set_links(at(61_000), &links(&[(5, 1000)]));
    own.set_links(at(62_000), &links(&[]));
    own.set_links(at(62_500), &links(&[(5, 1000)]));
    let told = run(&mut own, 70_000);
    assert_eq!(told.iter().map(|(at, record)| (*at, record.links.len())).collect::<Vec<_>>(), [(64_500, 1)]);
}

#[test]
fn a_flapping_link_becomes_the_last_resort_and_recovers() {
    let mut own = settled();
    for flap in 0..3 {
        own.set_links(at(60_000 + flap * 4000), &links(&[]));
        own.set_links(at(61_000 + flap * 4000), &links(&[(5, 1000)]));
    }
    let told = run(&mut own, 200_000);
    let marks: Vec<_> = told.iter().map(|(at, record)| (*at, costs(record))).collect();
    let (first, last) = (marks.iter().find(|(_, links)| !links.is_empty()).unwrap(), marks.last().unwrap());
    assert_eq!(first.1, [(5, COST_LAST_RESORT)], "{marks:?}");
    assert_eq!(last.1, [(5, cost_of(ms(1)))], "{marks:?}");
    // 1000·(1 + 2^(-4/60) + 2^(-8/60)) is 2867: 12 s until it is below 2500.
    assert!((79_000..82_000).contains(&last.0), "{marks:?}");
}

#[test]
fn a_cost_is_told_when_it_is_off_enough_for_long_enough() {
    for (rtt_us, told_at) in [
        (1_100, None),
        (2_900, None), // far more than a quarter, less than 2 ms
        (3_200, Some(80_000)),
        (60_000, Some(80_000)),
    ] {
        let mut own = settled();
        own.set_links(at(70_000), &links(&[(5, rtt_us)]));
        assert_eq!(run(&mut own, 200_000).first().map(|(at, _)| *at), told_at, "{rtt_us}");
    }
    let mut own = settled();
    own.set_links(at(70_000), &links(&[(5, 60_000)]));
    own.set_links(at(79_000), &links(&[(5, 1_000)]));
    own.set_links(at(79_500), &links(&[(5, 60_000)]));
    assert_eq!(run(&mut own, 200_000)[0].0, 89_500, "the ten seconds begin anew");
}

#[test]
fn it_is_refreshed() {
    let between = |own: &mut Originator, until: u64| {
        let at: Vec<u64> = run(own, until).iter().map(|(at, _)| *at).collect();
        at.windows(2).map(|pair| pair[1] - pair[0]).collect::<Vec<_>>()
    };
    let few = between(&mut settled(), 3_000_000);
    assert!(few.len() >= 9 && few.iter().all(|ms| (225_000..=300_000).contains(ms)), "{few:?}");
    assert!(few.windows(2).any(|pair| pair[0] != pair[1]), "peers that started together do not stay together: {few:?}");
    let mut own = settled();
    own.set_mesh_size(20);
    let more = between(&mut own, 3_000_000);
    assert!(more.len() >= 4 && more.iter().all(|ms| (450_000..=600_000).contains(ms)), "more seldom in a large mesh");
}

#[test]
fn a_copy_from_an_earlier_life_is_passed() {
    let mut own = settled();
    own.handle_own_copy(at(60_000), Version { incarnation: 12, seq: 9 }, 1);
    assert_eq!(own.poll(at(60_000)).unwrap().version, Version { incarnation: 13, seq: 1 });
    for copy in 0..8 {
        own.handle_own_copy(at(60_000), Version { incarnation: 12, seq: copy }, 1);
    }
    assert_eq!(own.poll(at(61_000)), None, "all copies are passed at once");
    assert_eq!(own.clone_seen(at(60_000)), None, "nor is it a clone");
    own.handle_own_copy(at(60_000), Version { incarnation: 13, seq: 9 }, 77);
    assert_eq!(run(&mut own, 62_000)[0].1.version, Version { incarnation: 13, seq: 10 });
}

#[test]
fn a_clone_keeps_coming_back() {
    let mut own = settled();
    for round in 0..3 {
        assert_eq!(own.clone_seen(at(60_000)), None, "round {round}");
        let version = Version { incarnation: own.version().incarnation + 1, seq: 1 };
        own.handle_own_copy(at(60_000 + round * 10_000), version, 1);
        assert_eq!(own.poll(at(60_000 + round * 10_000)).is_some(), round < 2, "outbidding is slowed once it is clear");
    }
    assert_eq!(own.clone_seen(at(80_000)), Some(1));
    assert_eq!(run(&mut own, 200_000)[0].0, 100_000);
    assert_eq!(own.clone_seen(at(80_000 + 300_000)), None, "forgotten when it is gone");
}

#[test]
fn the_number_of_links_is_bounded() {
    let mut own = originator();
    let many: BTreeMap<_, _> = (0..2000).map(|peer| (ShortId(peer), ms(1))).collect();
    own.set_links(at(0), &many);
    assert!(own.poll(at(0)).unwrap().within_limits());
    let others: BTreeMap<_, _> = (5000..5100).map(|peer| (ShortId(peer), ms(1))).collect();
    own.set_links(at(1000), &others);
    assert_eq!(own.poll(at(1000)).unwrap().links.len(), 100, "links that are down make room");
}

#[test]
fn costs_of_round_trips() {
    for (rtt_us, cost) in
        [(0, 1), (9, 1), (10, 1), (79, 7), (99, 8), (109, 10), (1000, 96), (20_000, 1792), (10_000_000, 57_344)]
    {
        assert_eq!(cost_of(Duration::from_micros(rtt_us)), cost, "{rtt_us}");
    }
}

#[test]
fn extensions_are_bounded() {
    let mut own = originator();
    assert!(own.set_extension(3, vec![1]) && own.set_extension(1, vec![2]));
    assert!(!own.set_extension(2, vec![0; EXTENSION_BYTES_MAX]));
    assert_eq!(own.poll(at(0)).unwrap().extensions, [(1, vec![2]), (3, vec![1])]);
    assert!(own.set_extension(3, Vec::new()));
    assert_eq!(run(&mut own, 1000)[0].1.extensions, [(1, vec![2])]);
}

#[test]
fn texts_are_cut_at_characters() {
    let mut own = originator();
    own.set_name("ä".repeat(50));
    assert_eq!(own.poll(at(0)).unwrap().name, "ä".repeat(32));
    own.set_endpoints(&vec!["[::1]:1".parse().unwrap(); 20]);
    assert_eq!(run(&mut own, 1000)[0].1.endpoints.len(), limits::ENDPOINTS_MAX);
    assert!(!own.links.contains_key(&PEER));
}
