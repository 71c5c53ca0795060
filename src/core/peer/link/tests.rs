//! Every hello × every reason to refuse it, and which of several links stays.
use super::*;

const LOW: PeerId = PeerId([1; 16]);
const ME: PeerId = PeerId([5; 16]);
const HIGH: PeerId = PeerId([9; 16]);

fn me() -> Me<'static> {
    Me { id: ME, cluster: "c", instance: 7, max_links: 2 }
}

fn hello(incarnation: u64) -> Hello {
    Hello {
        version: PROTOCOL_VERSION,
        cluster: "c".into(),
        incarnation,
        instance: incarnation,
        name: "n".into(),
        session_index: 1,
        lanes: 1,
        control: true,
        ciphers: vec![1],
        max_links: 0,
        extensions: Vec::new(),
    }
}

fn open(links: &mut Links, id: u64, peer: PeerId, outbound: bool) -> LinkId {
    let link = Link {
        id: LinkId(id),
        peer,
        remote: "10.0.0.1:6783".parse().unwrap(),
        dial: outbound.then_some(DialId(id)),
        errand: None,
        phase: Phase::Hello,
        since: Time::ZERO,
        secret: SessionSecret([0; 64]),
        session: 0,
        hello: None,
        datagram_max: (0, false),
    };
    assert!(links.open(link, 2).is_ok());
    LinkId(id)
}

fn seconds(s: u64) -> Time {
    Time::from_us(s * 1_000_000)
}

#[test]
fn each_reason_to_refuse() {
    use CloseReason::*;
    type Change = fn(&mut Hello);
    let table: [(PeerId, Change, Option<CloseReason>); 6] = [
        (HIGH, |_| {}, None),
        (ME, |hello| hello.instance = 7, Some(OwnAddress)),
        (ME, |hello| hello.instance = 8, Some(ClonedIdentity)),
        (HIGH, |hello| hello.version = 0, Some(Version)),
        (HIGH, |hello| hello.version = 99, None),
        (HIGH, |hello| hello.cluster = "d".into(), Some(Cluster)),
    ];
    for (peer, change, expected) in table {
        let mut links = Links::default();
        let id = open(&mut links, 1, peer, false);
        let mut said = hello(1);
        change(&mut said);
        let verdict = links.on_hello(seconds(1), id, said.clone(), me());
        match expected {
            Some(reason) => assert_eq!(verdict, Verdict::Refused(reason)),
            None => {
                assert_eq!(verdict, Verdict::Up { losers: vec![] });
                assert_eq!(links.on_hello(seconds(1), id, said, me()), Verdict::Ignored, "a second hello");
            }
        }
    }
    assert_eq!(Links::default().on_hello(seconds(1), LinkId(1), hello(1), me()), Verdict::Ignored, "no such link");
}

#[test]
fn strangers_are_refused_when_full_but_not_those_that_were_dialled_or_are_linked() {
    let mut links = Links::default();
    for n in 1..=2 {
        let id = open(&mut links, n, PeerId([20 + n as u8; 16]), false);
        assert_eq!(links.on_hello(seconds(1), id, hello(1), me()), Verdict::Up { losers: vec![] });
    }
    let stranger = open(&mut links, 3, HIGH, false);
    assert_eq!(links.on_hello(seconds(1), stranger, hello(1), me()), Verdict::Refused(CloseReason::Full));
    let dialled = open(&mut links, 4, LOW, true);
    assert_eq!(links.on_hello(seconds(1), dialled, hello(1), me()), Verdict::Up { losers: vec![] });
    let again = open(&mut links, 5, PeerId([21; 16]), false);
    assert!(matches!(links.on_hello(seconds(1), again, hello(1), me()), Verdict::Up { .. }));
}

#[test]
fn which_of_two_links_stays() {
    // peer, first is ours, second is ours, seconds between → the losers that this end closes (1 the first, 2 the second)
    let table: [(PeerId, bool, bool, u64, &[u64]); 9] = [
        // This end is the lower: it decides, for its own dial; but a dial long after ours means that the other end has lost ours.
        (HIGH, true, false, 0, &[2]),
        (HIGH, false, true, 0, &[1]),
        (HIGH, true, false, 60, &[1]),
        (HIGH, false, true, 60, &[1]),
        // The other end is the lower: it decides.
        (LOW, true, false, 0, &[]),
        (LOW, false, true, 60, &[]),
        // Two of one end: the dialler decides, for the newer.
        (HIGH, true, true, 0, &[1]),
        (LOW, true, true, 60, &[1]),
        (LOW, false, false, 60, &[]),
    ];
    for (peer, first, second, apart, expected) in table {
        let mut links = Links::default();
        let one = open(&mut links, 1, peer, first);
        assert_eq!(links.on_hello(seconds(1), one, hello(1), me()), Verdict::Up { losers: vec![] });
        let two = open(&mut links, 2, peer, second);
        let losers = expected.iter().map(|id| LinkId(*id)).collect();
        let verdict = links.on_hello(seconds(1 + apart), two, hello(1), me());
        assert_eq!(verdict, Verdict::Up { losers }, "{peer:?} {first} {second} {apart}");
    }
}

#[test]
fn a_newer_incarnation_replaces_all_and_an_older_one_is_a_clone() {
    for outbound in [true, false] {
        let mut links = Links::default();
        let old = open(&mut links, 1, HIGH, outbound);
        links.on_hello(seconds(1), old, hello(1), me());
        let new = open(&mut links, 2, HIGH, false);
        assert_eq!(links.on_hello(seconds(1), new, hello(2), me()), Verdict::Up { losers: vec![old] });
        let late = open(&mut links, 3, HIGH, false);
        assert_eq!(links.on_hello(seconds(1), late, hello(1), me()), Verdict::Refused(CloseReason::ClonedIdentity));
        let same = open(&mut links, 4, HIGH, false);
        let clone = Hello { instance: 99, ..hello(2) };
        assert_eq!(links.on_hello(seconds(1), same, clone, me()), Verdict::Refused(CloseReason::ClonedIdentity));
    }
}

#[test]
fn links_without_a_hello_are_bounded_in_time_and_number() {
    let mut links = Links::default();
    for n in 0..WAITING_MAX as u64 {
        open(&mut links, n, HIGH, false);
    }
    let one_more = links.get(LinkId(0)).unwrap();
    let one_more = Link { id: LinkId(999), secret: SessionSecret([0; 64]), hello: None, errand: None, ..*one_more };
    assert!(links.open(one_more, 2).is_err());
    assert_eq!(links.overdue(seconds(4)), []);
    assert_eq!(links.overdue(seconds(5)).len(), WAITING_MAX);
}
