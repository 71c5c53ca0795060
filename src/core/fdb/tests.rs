use proptest::prelude::*;

use super::*;

const A: Mac = Mac([2, 0, 0, 0, 0, 1]);
const P1: Owner = Owner::Peer(PeerSlot(1));
const P2: Owner = Owner::Peer(PeerSlot(2));

fn mac(number: u32) -> Mac {
    let [a, b, c, d] = number.to_be_bytes();
    Mac([2, 0, a, b, c, d])
}

#[test]
fn learned_looked_up_moved() {
    let (fdb, mut one, mut two) = (Fdb::default(), FdbCache::default(), FdbCache::default());
    assert_eq!(fdb.lookup(&mut one, A, 0), None);
    assert_eq!(fdb.learn(&mut one, A, P1, 0), Learned::Written);
    assert_eq!(fdb.learn(&mut one, A, P1, 1), Learned::Known);
    assert_eq!(fdb.lookup(&mut one, A, 1), Some(P1));
    assert_eq!(fdb.lookup(&mut two, A, 1), Some(P1));
    assert_eq!(fdb.learn(&mut two, A, Owner::Local, 2), Learned::Written, "local is a writer like others");
    assert_eq!(fdb.lookup(&mut one, A, 2), Some(Owner::Local), "the other thread's cache must not answer");
    assert_eq!(fdb.learn(&mut one, A, P2, 3), Learned::Written);
    assert_eq!(fdb.lookup(&mut two, A, 3), Some(P2));
    assert_eq!(fdb.len(), 1);
}

#[test]
fn group_addresses_are_no_sources() {
    let (fdb, mut cache) = (Fdb::default(), FdbCache::default());
    assert_eq!(fdb.learn(&mut cache, Mac([0xff; 6]), Owner::Local, 0), Learned::Group);
    assert_eq!(fdb.learn(&mut cache, Mac([1, 0, 0x5e, 0, 0, 1]), P1, 0), Learned::Group);
    assert!(fdb.is_empty());
}

#[test]
fn addresses_age_unless_used() {
    let (fdb, mut cache) = (Fdb::default(), FdbCache::default());
    fdb.learn(&mut cache, A, P1, 0);
    fdb.learn(&mut cache, mac(9), P1, 0);
    for tick in 1..=1_000 {
        assert_ne!(fdb.learn(&mut cache, A, P1, tick), Learned::Written, "forgotten at {tick}");
        fdb.lookup(&mut cache, mac(9), tick);
        fdb.age(tick);
        assert_eq!(fdb.len(), if tick < AGE_S { 2 } else { 1 }, "{tick}: being looked up keeps no address");
    }
    assert_eq!(fdb.lookup(&mut cache, mac(9), 1_000), None);
}

#[test]
fn an_old_address_is_not_believed_before_it_is_aged_out() {
    let (fdb, mut cache) = (Fdb::default(), FdbCache::default());
    fdb.learn(&mut cache, A, P1, 0);
    assert_eq!(fdb.lookup(&mut cache, A, AGE_S - 1), Some(P1));
    assert_eq!(fdb.lookup(&mut cache, A, AGE_S), None);
}

#[test]
fn a_lookup_does_not_hide_that_a_refresh_is_due() {
    let (fdb, mut cache) = (Fdb::default(), FdbCache::default());
    fdb.learn(&mut cache, A, P1, 0);
    for tick in 0..600 {
        fdb.lookup(&mut cache, A, tick);
        fdb.learn(&mut cache, A, P1, tick);
        assert!(fdb.entries()[0].refreshed + REFRESH_S > tick);
    }
    let (fdb, mut other) = (Fdb::default(), FdbCache::default());
    fdb.learn(&mut cache, A, P1, 0);
    fdb.lookup(&mut other, A, REFRESH_S - 1);
    fdb.learn(&mut other, A, P1, REFRESH_S);
    assert_eq!(fdb.entries()[0].refreshed, REFRESH_S, "the lookup of a tick before is no use");
}

#[test]
fn flush_forgets_one_peer() {
    let (fdb, mut cache) = (Fdb::default(), FdbCache::default());
    for number in 0..100 {
        fdb.learn(&mut cache, mac(number), if number % 2 == 0 { P1 } else { P2 }, 0);
    }
    fdb.flush(PeerSlot(1));
    assert_eq!(fdb.len(), 50);
    assert_eq!(fdb.lookup(&mut cache, mac(0), 0), None);
    assert_eq!(fdb.lookup(&mut cache, mac(1), 0), Some(P2));
    assert!(fdb.entries().iter().all(|entry| entry.owner == P2));
    assert!(fdb.entries().is_sorted_by_key(|entry| entry.mac));
}

#[test]
fn a_loop_is_damped() {
    let (fdb, mut cache) = (Fdb::default(), FdbCache::default());
    fdb.learn(&mut cache, A, P1, 10);
    let owners = [P2, P1, P2, P1, P2];
    for owner in owners {
        assert_eq!(fdb.learn(&mut cache, A, owner, 11), Learned::Written);
    }
    for tick in [11, 12, 100, 11 + DAMPING_S - 1] {
        assert_eq!(fdb.learn(&mut cache, A, P1, tick), Learned::Damped, "{tick}");
        assert_eq!(fdb.learn(&mut cache, A, P1, tick), Learned::Damped, "{tick}, by the cache");
        assert_eq!(fdb.learn(&mut cache, A, P2, tick), Learned::Known, "where it is held, it is welcome");
        assert_eq!(fdb.lookup(&mut cache, A, tick), Some(P2));
    }
    assert_eq!(fdb.entries()[0].frozen_until, 11 + DAMPING_S);
    fdb.age(11 + DAMPING_S);
    assert_eq!(fdb.learn(&mut cache, A, P1, 11 + DAMPING_S), Learned::Written, "free again");
}

#[test]
fn slow_moves_are_never_damped() {
    let (fdb, mut cache) = (Fdb::default(), FdbCache::default());
    for step in 0..100 {
        let owner = if step % 2 == 0 { P1 } else { P2 };
        assert_eq!(fdb.learn(&mut cache, A, owner, step * 60), Learned::Written, "{step}");
    }
}

#[test]
fn one_peer_cannot_fill_the_table() {
    let (fdb, mut cache) = (Fdb::default(), FdbCache::default());
    for number in 0..ENTRIES_PER_PEER_MAX as u32 {
        assert_eq!(fdb.learn(&mut cache, mac(number), P1, 0), Learned::Written);
    }
    assert_eq!(fdb.learn(&mut cache, mac(1_000_000), P1, 0), Learned::Full);
    assert_eq!(fdb.learn(&mut cache, mac(1_000_000), P1, 0), Learned::Full);
    assert_eq!(fdb.lookup(&mut cache, mac(1_000_000), 0), None, "what was not learned is not known");
    assert_eq!(fdb.full_count(), 1, "the cache answers the second");
    assert_eq!(fdb.learn(&mut cache, mac(1_000_000), P2, 0), Learned::Written, "others have room");
    assert_eq!(fdb.learn(&mut cache, mac(1_000_000), P1, 0), Learned::Full, "and keep it");
    assert_eq!(fdb.lookup(&mut cache, mac(1_000_000), 0), Some(P2));
    fdb.flush(PeerSlot(1));
    assert_eq!(fdb.learn(&mut cache, mac(1_000_000), P1, 1), Learned::Written);
}

#[test]
fn the_table_is_bounded() {
    let (fdb, mut cache) = (Fdb::default(), FdbCache::default());
    for number in 0..ENTRIES_MAX as u32 + 500 {
        fdb.learn(&mut cache, mac(number), Owner::Local, 0);
    }
    assert_eq!(fdb.len(), ENTRIES_MAX);
    assert_eq!(fdb.entries().len(), ENTRIES_MAX);
    assert_eq!(fdb.full_count(), 500);
    fdb.age(AGE_S);
    assert!(fdb.is_empty());
    assert_eq!(fdb.learn(&mut cache, mac(7), P1, AGE_S), Learned::Written);
}

#[test]
fn threads_agree_in_the_end() {
    let fdb = Fdb::default();
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let fdb = &fdb;
            scope.spawn(move || {
                let mut cache = FdbCache::default();
                for round in 0..2_000u32 {
                    let owner = Owner::Peer(PeerSlot((round + thread) % 3));
                    fdb.learn(&mut cache, mac(round % 500), owner, round / 100 * 40);
                    fdb.lookup(&mut cache, mac(round % 300), round / 100 * 40);
                    if round % 500 == 499 {
                        fdb.flush(PeerSlot(thread % 3));
                    }
                }
            });
        }
    });
    assert_eq!(fdb.len(), fdb.entries().len());
    for slot in 0..3 {
        let owner = Owner::Peer(PeerSlot(slot));
        let held = fdb.entries().iter().filter(|entry| entry.owner == owner).count();
        assert_eq!(fdb.counts.get(&owner).map_or(0, |count| *count), held);
    }
}

proptest! {
    /// Two threads' caches over one table never answer other than a plain map would.
    #[test]
    fn caches_agree_with_a_plain_map(steps in prop::collection::vec((0u32..6, 0u32..3, 0usize..2, 0u32..40, 0u8..4), 1..300)) {
        let (fdb, mut caches) = (Fdb::default(), [FdbCache::default(), FdbCache::default()]);
        let mut plain = std::collections::BTreeMap::new();
        let mut tick = 0;
        for (number, slot, thread, pause, what) in steps {
            let address = mac(number);
            match what {
                0 => tick += pause,
                1 => {
                    fdb.flush(PeerSlot(slot));
                    plain.retain(|_, owner| *owner != Owner::Peer(PeerSlot(slot)));
                }
                2 => {
                    let owner = Owner::Peer(PeerSlot(slot));
                    if !matches!(fdb.learn(&mut caches[thread], address, owner, tick), Learned::Damped) {
                        plain.insert(address, owner);
                    }
                }
                _ => {
                    let found = fdb.lookup(&mut caches[thread], address, tick);
                    prop_assert!(found.is_none() || found == plain.get(&address).copied());
                }
            }
        }
    }
}
