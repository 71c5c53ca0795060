use std::collections::{BTreeMap, BTreeSet};

use super::*;

const FRESH: Space = [0xff; 16];
const U: Space = [1; 16];

fn situation(me: u64) -> Situation<'static> {
    Situation {
        me: ShortId(me),
        node: "me",
        range: "10.32.0.0/12",
        space: None,
        heard: None,
        marked: None,
        member_heard: false,
        may_begin: true,
        fresh: FRESH,
        birth: None,
    }
}

fn listed(peer: u64) -> Listed {
    Listed { peer: ShortId(peer), node: format!("n{peer}") }
}

fn of(founder: u64, members: &[u64]) -> Birth {
    let members = members.iter().map(|peer| listed(*peer)).collect();
    Birth { space: U, range: "10.32.0.0/12".into(), founder: ShortId(founder), members, closed: false }
}

/// `dead`: those gone for good.
fn step(s: &Situation<'_>, dead: &[u64]) -> Step {
    decide(s, |listed| if dead.contains(&listed.peer.0) { Fate::Deleted } else { Fate::Here })
}

fn written(step: Step) -> (Birth, bool) {
    match step {
        Step::Write { birth, leave } => (birth, leave),
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_text_is_read_back() {
    let birth = of(7, &[7, 8]);
    assert_eq!(Birth::parse(&birth.emit()), Ok(birth.clone()));
    let text = birth.emit();
    for wrong in [
        "",
        "{}",
        &text.replace("0000000000000007", "7"),
        &text.replace("01010101", "0101"),
        &text.replace("\"closed\":false", "\"closed\":3"),
        &of(1, &(0..65).collect::<Vec<_>>()).emit(),
    ] {
        assert!(Birth::parse(wrong).is_err(), "{wrong}");
    }
}

#[test]
fn without_a_config_map() {
    let mut s = situation(1);
    let (birth, _) = written(step(&s, &[]));
    assert_eq!((birth.space, birth.founder, birth.closed), (FRESH, ShortId(1), false));
    s.may_begin = false;
    assert!(matches!(step(&s, &[]), Step::Wait { .. }));
    s.heard = Some(U);
    let (birth, _) = written(step(&s, &[]));
    assert!(birth.space == U && birth.closed, "there was one before");
    s.marked = Some("n2");
    assert!(matches!(step(&s, &[]), Step::Wait { .. }), "its members write it");
    s.space = Some((U, true));
    let (birth, _) = written(step(&s, &[]));
    assert!(birth.space == U && birth.closed);
}

#[test]
fn the_founder_begins_and_others_add_themselves_first() {
    let birth = of(1, &[1]);
    let s = Situation { birth: Some(&birth), ..situation(1) };
    assert_eq!(step(&s, &[]), Step::Belong { space: U, begin: true });
    let s = Situation { birth: Some(&birth), ..situation(2) };
    let (more, leave) = written(step(&s, &[]));
    assert!(!leave && more.members.len() == 2 && more.space == U && more.founder == ShortId(1));
    let s = Situation { birth: Some(&more), ..situation(2) };
    assert_eq!(step(&s, &[]), Step::Belong { space: U, begin: false });
    let s = Situation { birth: Some(&more), space: Some((U, true)), ..situation(2) };
    assert_eq!(step(&s, &[1]), Step::Done, "who belongs needs nothing");
}

#[test]
fn a_long_list_is_closed_and_stays() {
    let all: Vec<u64> = (1..=MEMBERS_MAX as u64).collect();
    let birth = of(1, &all);
    let s = Situation { birth: Some(&birth), ..situation(500) };
    let (closed, _) = written(step(&s, &[]));
    assert!(closed.closed && closed.members.len() == MEMBERS_MAX);
    let s = Situation { birth: Some(&closed), ..situation(500) };
    assert_eq!(step(&s, &all), Step::Belong { space: U, begin: false }, "never taken over");
    let s = Situation { birth: Some(&closed), ..situation(1) };
    assert_eq!(step(&s, &[]), Step::Belong { space: U, begin: false }, "nor begun again");
}

#[test]
fn a_founder_that_is_gone_before_others_came() {
    let birth = of(1, &[1]);
    let s = Situation { birth: Some(&birth), ..situation(2) };
    let (taken, leave) = written(step(&s, &[1]));
    assert!(leave && taken.space == FRESH && taken.founder == ShortId(2) && taken.members.len() == 1);
    let s = Situation { birth: Some(&birth), heard: Some(U), ..situation(2) };
    let (joined, _) = written(step(&s, &[1]));
    assert_eq!(joined.space, U, "somebody has it after all");
    let s = Situation { birth: Some(&birth), heard: Some([9; 16]), ..situation(2) };
    assert!(matches!(step(&s, &[1]), Step::Wait { .. }));
}

#[test]
fn a_founder_that_is_gone_and_joiners_that_were_not_let_in() {
    let birth = of(1, &[1, 2, 3]);
    let lowest = Situation { birth: Some(&birth), space: Some((U, false)), ..situation(2) };
    assert!(matches!(step(&lowest, &[1]), Step::Wait { leave: true, .. }));
    let higher = Situation { birth: Some(&birth), space: Some((U, false)), ..situation(3) };
    let (less, leave) = written(step(&higher, &[1]));
    assert!(leave && less.space == U && less.members == [listed(1), listed(2)]);
    let struck = Situation { birth: Some(&less), ..situation(3) };
    assert!(matches!(step(&struck, &[1]), Step::Wait { .. }), "it does not add itself again");
    let lowest = Situation { birth: Some(&less), ..situation(2) };
    assert_eq!(written(step(&lowest, &[1])).0.space, FRESH);
    // One that was let in does nothing, and that holds the others.
    let member = Situation { birth: Some(&birth), space: Some((U, true)), ..situation(3) };
    assert_eq!(step(&member, &[1]), Step::Done);
    let hears = Situation { birth: Some(&birth), space: Some((U, false)), member_heard: true, ..situation(2) };
    assert_eq!(step(&hears, &[1]), Step::Belong { space: U, begin: false });
}

#[test]
fn contradictions_are_told() {
    let birth = of(1, &[1]);
    let s = Situation { birth: Some(&birth), space: Some(([9; 16], true)), ..situation(2) };
    assert!(matches!(step(&s, &[]), Step::Odd(_)));
    let s = Situation { birth: Some(&birth), range: "10.0.0.0/8", ..situation(2) };
    assert!(matches!(step(&s, &[]), Step::Odd(why) if why.contains("10.0.0.0/8")));
}

/// Peers that start, read (perhaps long before they write), write by compare-and-set, are let in by those who belong, die for good and are noticed or not:
/// at no time do two that live belong to different spaces.
#[test]
fn no_order_of_events_makes_two_spaces_live() {
    for seed in 0..30_000 {
        run(seed);
    }
}

#[derive(Default, Clone)]
struct Peer {
    read: Option<(u64, Option<Birth>)>,
    space: Option<(Space, bool)>,
    leave: Option<Space>,
    dead: bool,
}

fn run(seed: u64) {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut draw = move |below: u64| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 11) % below
    };
    let count = 2 + draw(4);
    let mut peers: BTreeMap<u64, Peer> = (1..=count).map(|id| (id, Peer::default())).collect();
    let (mut map, mut version, mut drawn): (Option<Birth>, u64, u8) = (None, 0, 0);
    let mut noticed: BTreeSet<u64> = BTreeSet::new();
    for _ in 0..60 {
        let id = 1 + draw(count);
        if peers[&id].dead {
            // That a death is noticed takes its time.
            noticed.insert(id);
            continue;
        }
        match draw(8) {
            0..=1 => peers.get_mut(&id).unwrap().read = Some((version, map.clone())),
            2..=4 => {
                let Some((seen, birth)) = peers.get_mut(&id).unwrap().read.take() else { continue };
                drawn += 1;
                let space = peers[&id].space;
                let heard_member = space.is_some_and(|(space, _)| {
                    peers.iter().any(|(other, peer)| *other != id && !peer.dead && peer.space == Some((space, true)))
                });
                let s = Situation {
                    space,
                    member_heard: heard_member && draw(2) == 0,
                    fresh: [drawn; 16],
                    birth: birth.as_ref(),
                    ..situation(id)
                };
                let decided =
                    decide(&s, |listed| if noticed.contains(&listed.peer.0) { Fate::Deleted } else { Fate::Here });
                let peer = peers.get_mut(&id).unwrap();
                let mut withdraw = |leave: bool| {
                    if leave {
                        peer.leave = None;
                        peer.space = peer.space.filter(|(_, belongs)| *belongs);
                    }
                };
                match decided {
                    Step::Write { birth, leave } => {
                        withdraw(leave);
                        if seen == version {
                            (map, version) = (Some(birth), version + 1);
                        }
                    }
                    Step::Wait { leave, .. } => withdraw(leave),
                    Step::Belong { space, begin } if peer.space.is_none_or(|(_, belongs)| !belongs) => {
                        peer.leave = Some(space);
                        peer.space = if begin { Some((space, true)) } else { peer.space.filter(|(s, _)| *s == space) };
                    }
                    _ => {}
                }
            }
            // A member tells of its space, or lets in one that knows it.
            5..=6 => {
                let other = 1 + draw(count);
                let Some((space, true)) = peers[&id].space else { continue };
                let peer = peers.get_mut(&other).unwrap();
                if !peer.dead && peer.leave == Some(space) {
                    peer.space = match peer.space {
                        None => Some((space, false)),
                        Some((same, _)) => Some((same, true)),
                    };
                }
            }
            _ => {
                if draw(4) == 0 && noticed.len() + 1 < count as usize {
                    peers.get_mut(&id).unwrap().dead = true;
                }
            }
        }
        let living: BTreeSet<Space> = peers
            .values()
            .filter(|peer| !peer.dead)
            .filter_map(|peer| peer.space.filter(|(_, belongs)| *belongs).map(|(space, _)| space))
            .collect();
        assert!(living.len() <= 1, "seed {seed}: {living:?}");
    }
}
