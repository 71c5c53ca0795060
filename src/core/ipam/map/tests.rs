//! The laws of merging, beside an array of one entry for each address.

use super::*;
use proptest::prelude::*;

const SIZE: u32 = 24;

type Entry = Option<(u32, u32, u64)>;

/// Owner and giver follow from the version: two never contradict each other.
fn run() -> impl Strategy<Value = Run> {
    (0..SIZE, 1..8u32, 0..3u32, 0..4u32).prop_map(|(first, len, round, version)| {
        let owner = ShortId(u64::from(round * 4 + version) % 5 + 1);
        let span = Span { first, len: len.min(SIZE - first) };
        Run { span, ballot: Ballot { round, by: ShortId(1) }, version, owner, giver: ShortId(9) }
    })
}

fn runs() -> impl Strategy<Value = Vec<Run>> {
    prop::collection::vec(run(), 0..12)
}

fn merged(all: &[Run]) -> Map {
    let mut map = Map::default();
    all.iter().for_each(|run| map.merge(run, false, |_| {}));
    map
}

fn array(map: &Map) -> Vec<Entry> {
    (0..SIZE).map(|at| map.at(at).map(|(_, held)| (held.ballot.round, held.version, held.owner.0))).collect()
}

proptest! {
    #[test]
    fn equals_an_array(all in runs()) {
        let mut naive: Vec<Entry> = vec![None; SIZE as usize];
        for run in &all {
            for at in run.span.first..run.span.end() as u32 {
                let entry = &mut naive[at as usize];
                *entry = (*entry).max(Some((run.ballot.round, run.version, run.owner.0)));
            }
        }
        let map = merged(&all);
        prop_assert_eq!(array(&map), naive);
        let mut end = 0;
        for (span, _) in map.iter() {
            prop_assert!(u64::from(span.first) >= end && span.len > 0);
            end = span.end();
        }
    }

    #[test]
    fn merging_is_commutative_associative_and_idempotent(a in runs(), b in runs(), c in runs()) {
        let (ma, mb, mc) = (merged(&a).wire(None), merged(&b).wire(None), merged(&c).wire(None));
        let join = |parts: &[&Vec<Run>]| merged(&parts.iter().flat_map(|part| part.iter().copied()).collect::<Vec<_>>());
        prop_assert_eq!(join(&[&ma, &mb]).wire(None), join(&[&mb, &ma]).wire(None));
        let left = join(&[&join(&[&ma, &mb]).wire(None), &mc]);
        let right = join(&[&ma, &join(&[&mb, &mc]).wire(None)]);
        prop_assert_eq!(left.wire(None), right.wire(None));
        prop_assert_eq!(join(&[&ma, &ma]).wire(None), ma);
    }

    #[test]
    fn what_is_newer_makes_the_other_equal(a in runs(), b in runs()) {
        let (here, there) = (merged(&a), merged(&b).wire(None));
        let newer = here.newer_than(&there);
        let mut other = merged(&there);
        if !newer.is_empty() {
            here.wire(Some(&newer)).iter().for_each(|run| other.merge(run, false, |_| {}));
        }
        let whole = merged(&there.iter().copied().chain(here.wire(None)).collect::<Vec<_>>());
        prop_assert_eq!(array(&other), array(&whole));
        let same = here.newer_than(&here.wire(None));
        prop_assert!(same.is_empty(), "{:?}", same);
    }

    /// What is kept on disk, change by change, is the map.
    #[test]
    fn what_is_dirty_is_enough_for_the_disk(all in runs(), cut in 0..12usize) {
        let mut map = Map::default();
        let mut disk: BTreeMap<u32, Held> = BTreeMap::new();
        for (at, run) in all.iter().enumerate() {
            map.merge(run, at % 3 == 0, |_| {});
            if at == cut {
                map.unsuspend(|_, _| true);
                map.join_own(ShortId(2));
            }
            for (first, held) in map.take_dirty() {
                match held {
                    Some(held) => drop(disk.insert(first, held)),
                    None => drop(disk.remove(&first)),
                }
            }
        }
        prop_assert_eq!(Map::restore(disk).runs, map.runs);
    }
}
