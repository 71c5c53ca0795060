use super::*;
use meshnet_proto::wire::record::{RecordLink, SignedRecord, flags};
use proptest::prelude::*;

use crate::identity::peer_id;

/// A record with a made-up key; nothing here checks signatures.
pub(crate) fn made(key: u16, version: (u64, u64), links: &[(PeerId, u16)], name: &str) -> Arc<Admitted> {
    let mut public_key = [7; 32];
    public_key[..2].copy_from_slice(&key.to_be_bytes());
    let mut links: Vec<_> = links.iter().map(|(id, cost)| RecordLink { peer: id.short(), cost: *cost }).collect();
    links.sort_by_key(|link| link.peer);
    let record = Record {
        public_key,
        version: Version { incarnation: version.0, seq: version.1 },
        instance: version.0,
        name: name.into(),
        software: String::new(),
        endpoints: Vec::new(),
        links,
        flags: flags::RELAY,
        mtu: 1310,
        extensions: Vec::new(),
    };
    let body = meshnet_proto::codec::encode(&record).unwrap();
    Arc::new(Admitted { id: peer_id(&public_key), signed: SignedRecord { signature: [0; 64], body }, record })
}

pub(crate) fn id(key: u16) -> PeerId {
    made(key, (0, 0), &[], "").id
}

fn table(records: &[Arc<Admitted>]) -> Topology {
    let mut topology = Topology::new(PeerId::default());
    for record in records {
        topology.merge(Time::ZERO, record.clone());
    }
    topology
}

fn held(topology: &Topology) -> Vec<Arc<Admitted>> {
    topology.entries().map(|(_, entry)| entry.admitted.clone()).collect()
}

fn any_record() -> impl Strategy<Value = Arc<Admitted>> {
    (0..6_u16, 0..3_u64, 0..3_u64, "[ab]")
        .prop_map(|(key, incarnation, seq, name)| made(key, (incarnation, seq), &[], &name))
}

proptest! {
    #[test]
    fn merging_is_commutative_associative_and_idempotent(
        records in prop::collection::vec(any_record(), 0..40).prop_shuffle(), cut in 0..40_usize,
    ) {
        let straight = table(&records);
        let mut backwards = records.clone();
        backwards.reverse();
        let (left, right) = records.split_at(cut.min(records.len()));
        let joined = [held(&table(right)), held(&table(left))].concat();
        let twice = [records.clone(), records.clone()].concat();
        for other in [table(&backwards), table(&joined), table(&twice)] {
            prop_assert_eq!(held(&straight), held(&other));
            prop_assert_eq!(straight.digest(), other.digest());
        }
    }

    #[test]
    fn digests_are_equal_exactly_when_tables_are(
        a in prop::collection::btree_map(0..300_u16, 1..4_u64, 0..60), b in prop::collection::btree_map(0..300_u16, 1..4_u64, 0..60),
    ) {
        let of = |set: &BTreeMap<u16, u64>| table(&set.iter().map(|(key, seq)| made(*key, (1, *seq), &[], "")).collect::<Vec<_>>());
        let (left, right) = (of(&a), of(&b));
        prop_assert_eq!(left.digest().root() == right.digest().root(), a == b);
        let unequal: BTreeSet<u8> = left.digest().unequal(right.digest().buckets()).into_iter().collect();
        let differing = |x: &BTreeMap<u16, u64>, y: &BTreeMap<u16, u64>| {
            x.iter().filter(|(key, seq)| y.get(key) != Some(seq)).map(|(key, _)| bucket_of(&id(*key))).collect::<Vec<_>>()
        };
        prop_assert_eq!(unequal, differing(&a, &b).into_iter().chain(differing(&b, &a)).collect::<BTreeSet<_>>());
    }

    #[test]
    fn the_hash_is_that_of_a_fresh_table(records in prop::collection::vec(any_record(), 0..40)) {
        let topology = table(&records);
        let keys = topology.keys_in(&(0..=255).collect());
        prop_assert_eq!(keys.len(), topology.len());
        let mut fresh = Digest::default();
        keys.into_iter().for_each(|key| fresh.toggle(key));
        prop_assert_eq!(&fresh, topology.digest());
    }
}

#[test]
fn order_of_records() {
    let updated = |restarted| Merge::Updated(Changes { restarted, ..Changes::default() });
    for (first, second, expected) in [
        ((1, 1), (1, 2), updated(false)),
        ((1, 9), (2, 0), updated(true)),
        ((1, 2), (1, 1), Merge::Stale),
        ((2, 0), (1, 9), Merge::Stale),
        ((1, 1), (1, 1), Merge::Same),
    ] {
        let mut topology = table(&[made(1, first, &[], "")]);
        assert_eq!(topology.merge(Time::ZERO, made(1, second, &[], "")), expected, "{first:?} then {second:?}");
    }
}

#[test]
fn what_changed() {
    let (x, y) = (id(8), id(9));
    let mut topology = table(&[made(1, (1, 1), &[(x, 5)], "a")]);
    let mut next = |seq, links: &[(PeerId, u16)], name| topology.merge(Time::ZERO, made(1, (1, seq), links, name));
    let none = Changes::default();
    assert_eq!(next(2, &[(x, 6)], "a"), Merge::Updated(Changes { costs: true, ..none }));
    assert_eq!(next(3, &[(y, 6)], "a"), Merge::Updated(Changes { links: true, ..none }));
    assert_eq!(next(4, &[(y, 6)], "b"), Merge::Updated(Changes { name: true, ..none }));
    assert_eq!(
        (topology.revision(), topology.costs()),
        (2, 1),
        "a name alters no route, and a cost no way that leads somewhere"
    );
}

#[test]
fn a_copy_of_my_own_record() {
    let mine = made(1, (5, 5), &[], "");
    let mut topology = Topology::new(mine.id);
    let own = |incarnation, seq| Merge::Own { version: Version { incarnation, seq }, instance: incarnation };
    assert_eq!(topology.merge(Time::ZERO, made(1, (4, 9), &[], "")), own(4, 9), "before anything was originated");
    topology.merge_own(Time::ZERO, mine.clone());
    assert_eq!(topology.merge(Time::ZERO, mine.clone()), Merge::Same);
    assert_eq!(topology.merge(Time::ZERO, made(1, (5, 4), &[], "")), Merge::Stale);
    assert_eq!(topology.merge(Time::ZERO, made(1, (6, 0), &[], "")), own(6, 0));
    assert_eq!(topology.entry(&mine.id).unwrap().admitted, mine, "never replaced from outside");
}

#[test]
fn a_short_id_belongs_to_the_first() {
    let first = made(1, (1, 1), &[], "");
    let mut second = (*made(2, (1, 1), &[], "")).clone();
    second.id = first.id;
    second.id.0[15] ^= 1;
    let mut topology = table(std::slice::from_ref(&first));
    assert_eq!(topology.merge(Time::ZERO, Arc::new(second.clone())), Merge::Refused(Refused::ShortId));
    assert_eq!((topology.len(), topology.refusals().short_id), (1, 1));
    let mut me = Topology::new(first.id);
    assert_eq!(me.merge(Time::ZERO, Arc::new(second)), Merge::Refused(Refused::ShortId), "nor may it be mine");
}

#[test]
fn the_table_is_bounded() {
    let mut topology = Topology::new(PeerId::default());
    for key in 0..limits::PEERS_MAX as u16 {
        assert_eq!(topology.merge(Time::ZERO, made(key, (1, 1), &[], "")), Merge::New);
    }
    assert_eq!(topology.merge(Time::ZERO, made(60_000, (1, 1), &[], "")), Merge::Refused(Refused::Full));
    assert!(matches!(topology.merge(Time::ZERO, made(3, (1, 2), &[], "")), Merge::Updated(_)), "known peers go on");
    assert_eq!((topology.len(), topology.refusals().full), (limits::PEERS_MAX, 1));
}

#[test]
fn a_link_counts_when_both_ends_say_it() {
    let (a, b, c) = (id(1), id(2), id(3));
    let mut topology = Topology::new(a);
    topology.merge_own(Time::ZERO, made(1, (1, 1), &[(b, 5), (c, 5)], ""));
    topology.merge(Time::ZERO, made(2, (1, 1), &[(a, 7), (id(99), 1)], ""));
    topology.merge(Time::ZERO, made(3, (1, 1), &[(b, 1)], ""));
    let graph = topology.graph();
    let at = |id| graph.index(&id).unwrap();
    assert_eq!(graph.edge(at(a), at(b)).unwrap().cost, 7, "the higher cost counts");
    assert_eq!(graph.edge_count(), 2);
    let reckoned = topology.reckon(Time::ZERO, &graph);
    assert_eq!(reckoned, Reckoned { appeared: vec![b], vanished: vec![] });
    assert!(topology.entry(&b).unwrap().reachable() && !topology.entry(&c).unwrap().reachable());
}

#[test]
fn the_unreachable_are_buried_and_stay_so() {
    let (a, b) = (id(1), id(2));
    let mut topology = Topology::new(a);
    topology.merge_own(Time::ZERO, made(1, (1, 1), &[(b, 1)], ""));
    topology.merge(Time::ZERO, made(2, (1, 1), &[(a, 1)], ""));
    topology.reckon(Time::ZERO, &topology.graph());
    let lost = Time::ZERO + Duration::from_secs(1000);
    topology.merge_own(lost, made(1, (1, 2), &[], ""));
    assert_eq!(topology.reckon(lost, &topology.graph()).vanished, [b]);
    assert!(topology.handle_timeout(lost + UNREACHABLE_KEPT - Duration::from_secs(1)).is_empty());
    let dropped = lost + UNREACHABLE_KEPT;
    assert_eq!(topology.next_deadline(), dropped);
    assert_eq!(topology.handle_timeout(dropped), [b]);
    assert_eq!((topology.len(), topology.by_short(b.short())), (1, None));

    let old = RecordKey { peer: b, version: Version { incarnation: 1, seq: 1 } };
    let all: BTreeSet<u8> = (0..=255).collect();
    assert_eq!(topology.merge(dropped, made(2, (1, 1), &[], "")), Merge::Refused(Refused::Buried));
    assert!(topology.has(&old) && topology.newer_than(&all, &[old]).want.is_empty(), "nor is it asked for");
    assert_eq!(topology.merge(dropped, made(2, (1, 2), &[], "")), Merge::New, "one that lives says more");

    topology.handle_timeout(dropped + UNREACHABLE_KEPT);
    let forgotten = dropped + UNREACHABLE_KEPT + BURIED_KEPT;
    assert_eq!(topology.next_deadline(), forgotten);
    topology.handle_timeout(forgotten);
    assert_eq!(topology.merge(forgotten, made(2, (1, 1), &[], "")), Merge::New);
}

#[test]
fn a_partition_that_heals_late_brings_everyone_back() {
    let mut topology = Topology::new(id(1));
    let lost = |key, at: u64, topology: &mut Topology| {
        topology.merge(Time::from_us(at * 1_000_000), made(key, (1, 1), &[], ""))
    };
    lost(2, 0, &mut topology);
    lost(3, 5, &mut topology);
    lost(4, 300, &mut topology);
    for seconds in [600, 605, 900] {
        assert_eq!(topology.handle_timeout(Time::from_us(seconds * 1_000_000)).len(), 1);
    }
    assert_eq!(lost(3, 910, &mut topology), Merge::Refused(Refused::Buried));
    assert_eq!(
        topology.merge(Time::from_us(910_000_000), made(2, (1, 2), &[], "")),
        Merge::New,
        "the one at the new link"
    );
    assert_eq!(lost(3, 910, &mut topology), Merge::New, "lost with it");
    assert_eq!(lost(4, 910, &mut topology), Merge::Refused(Refused::Buried), "lost later");
}

#[test]
fn names_that_two_live_peers_share() {
    let (a, b, c) = (id(1), id(2), id(3));
    let mut topology = Topology::new(a);
    topology.merge_own(Time::ZERO, made(1, (1, 1), &[(b, 1)], "web"));
    topology.merge(Time::ZERO, made(2, (1, 1), &[(a, 1)], "db\u{1b}[31m"));
    topology.merge(Time::ZERO, made(3, (1, 1), &[], "web"));
    topology.reckon(Time::ZERO, &topology.graph());
    assert_eq!(topology.display_name(&a), "web", "the other one is not live");
    assert_eq!(topology.display_name(&c), format!("web~{}", &c.to_string()[..4]));
    assert_eq!(topology.display_name(&b), "db?[31m");
    topology.merge(Time::ZERO, made(9, (1, 1), &[], "a\u{202e}b\u{200b}ü"));
    assert_eq!(topology.display_name(&id(9)), "a?b?ü");
    topology.merge(Time::ZERO, made(2, (1, 2), &[(a, 1)], "web"));
    assert_eq!(topology.display_name(&a), format!("web~{}", &a.to_string()[..4]));
    topology.merge(Time::ZERO, made(2, (1, 3), &[(a, 1)], ""));
    assert_eq!((topology.display_name(&a), topology.display_name(&b)), ("web".into(), b.brief()));
    assert_eq!(topology.display_name(&id(50)), id(50).brief());
}
