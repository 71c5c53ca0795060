//! What each part of the machine does, on perfect links and a perfect disk but for what a test breaks.

use super::*;

#[test]
fn a_founder_owns_all_and_gives_out_at_once() {
    let mut lab = Lab::new(WIDE);
    lab.add(Init::Auto, 0);
    lab.look();
    assert_eq!(lab.ready(0), Ok(()));
    assert_eq!(lab.owned(0), 1 << 20);
    assert_eq!(lab.alloc(0, "a"), Ok(WIDE.first + 1));
}

#[test]
fn who_has_peers_to_ask_waits_and_says_so() {
    let mut lab = Lab::new(WIDE);
    lab.add(Init::Auto, 1);
    lab.look();
    let why = lab.alloc(0, "a").unwrap_err().to_string();
    assert!(why.contains("waiting for a peer that knows the split"), "{why}");
}

#[test]
fn seeds_have_equal_shares_and_need_no_message() {
    let mut lab = Lab::new(SMALL);
    let names: Vec<String> = ["p0", "p1", "p2"].map(String::from).to_vec();
    (0..3).for_each(|_| {
        let _ = lab.add(Init::Seeds(names.clone()), 1);
    });
    lab.look();
    assert_eq!([0, 1, 2].map(|at| lab.owned(at)), [5, 5, 6]);
    lab.run(1);
    lab.assert_agree();
    assert!(lab.machines.iter().all(|m| m.genesis == lab.machines[0].genesis));
}

#[test]
fn a_seed_whose_name_is_missing_is_waited_for() {
    let mut lab = Lab::new(SMALL);
    lab.add(Init::Seeds(vec!["p0".into(), "else".into()]), 1);
    lab.look();
    assert!(lab.ready(0).unwrap_err().contains("'else'"));
}

#[test]
fn three_that_list_each_other_elect() {
    let mut lab = Lab::new(WIDE);
    (0..3).for_each(|_| {
        let _ = lab.add(Init::Auto, 2);
    });
    lab.list_each_other();
    lab.look();
    lab.run(12);
    lab.assert_agree();
    let shares = [0, 1, 2].map(|at| lab.owned(at));
    assert!(shares.iter().all(|share| share.abs_diff((1 << 20) / 3) <= 1), "{shares:?}");
}

#[test]
fn a_minority_elects_nobody() {
    let mut lab = Lab::new(WIDE);
    (0..3).for_each(|_| {
        let _ = lab.add(Init::Auto, 2);
    });
    lab.list_each_other();
    lab.split(&[0], &[1, 2]);
    lab.run(20);
    assert_eq!(lab.owned(0), 0);
    assert!(lab.ready(0).is_err());
    assert!(lab.ready(1).is_ok() && lab.ready(2).is_ok(), "two of three are a majority");
    lab.heal();
    lab.run(15);
    lab.assert_agree();
    assert!(lab.owned(0) > 0, "who came late has its share");
}

#[test]
fn consensus_waits_for_a_majority() {
    let mut lab = Lab::new(WIDE);
    (0..3).for_each(|_| {
        let _ = lab.add(Init::Consensus(5), 1);
    });
    lab.split(&[0], &[1, 2]);
    lab.run(20);
    assert!((0..3).all(|at| lab.ready(at).is_err()), "two of five are no majority");
    lab.heal();
    lab.run(20);
    lab.assert_agree();
    assert!((0..3).all(|at| lab.owned(at) > 0));
}

#[test]
fn an_observer_never_owns() {
    let mut lab = Lab::seeds(SMALL, 2, Without::default());
    let watcher = lab.add(Init::Observer, 1);
    lab.look();
    lab.run(20);
    assert_eq!(lab.owned(watcher), 0);
    assert!(matches!(lab.alloc(watcher, "a"), Err(Refusal::No(_))));
    assert_eq!(lab.machines[watcher].owners().count(), 2, "it knows who owns what");
}

#[test]
fn a_newcomer_is_let_in_and_has_a_share() {
    let mut lab = Lab::seeds(WIDE, 3, Without::default());
    let new = lab.newcomer();
    lab.run(5);
    lab.assert_agree();
    assert_eq!(lab.ready(new), Ok(()));
    let shares: Vec<u64> = (0..4).map(|at| lab.owned(at)).collect();
    assert!(shares.iter().max() <= shares.iter().min().map(|min| min * 2).as_ref(), "{shares:?}");
}

#[test]
fn no_newcomer_without_a_majority() {
    let mut lab = Lab::seeds(SMALL, 3, Without::default());
    lab.split(&[0], &[1, 2]);
    let new = lab.add(Init::Auto, 1);
    lab.split(&[new], &[1, 2]);
    lab.run(30);
    assert!(lab.ready(new).unwrap_err().contains("waiting for a majority"));
    lab.heal();
    lab.run(30);
    assert_eq!(lab.ready(new), Ok(()));
}

#[test]
fn a_hundred_join_one_founder_at_once() {
    let mut lab = Lab::new(WIDE);
    lab.add(Init::Auto, 0);
    (0..100).for_each(|_| {
        let _ = lab.add(Init::Auto, 1);
    });
    // As in a real mesh each has a few links, and can reach all.
    lab.look();
    for at in 0..101usize {
        for other in (0..101).filter(|other| *other != at && *other != 0 && at != 0 && at.abs_diff(*other) > 2) {
            lab.input(at, Input::LinkDown { link: LinkId(other as u64) });
        }
    }
    lab.run(5);
    let shares: Vec<u64> = (0..101).map(|at| lab.owned(at)).collect();
    let (least, most) = (*shares.iter().min().unwrap(), *shares.iter().max().unwrap());
    assert!(least > 0 && most <= 2 * least, "from {least} to {most}");
    assert!(lab.asks.iter().all(|asks| *asks <= 12), "{:?}", lab.asks);
    lab.run(10);
    lab.assert_agree();
}

#[test]
fn one_after_the_other_join_and_shares_stay_fair() {
    let mut lab = Lab::new(WIDE);
    lab.add(Init::Auto, 0);
    for _ in 0..12 {
        lab.newcomer();
        lab.run(3);
    }
    lab.run(5);
    let shares: Vec<u64> = (0..13).map(|at| lab.owned(at)).collect();
    assert!(shares.iter().max() <= shares.iter().min().map(|min| min * 2).as_ref(), "{shares:?}");
}

#[test]
fn one_id_has_one_address() {
    let mut lab = Lab::seeds(SMALL, 2, Without::default());
    let first = lab.alloc(0, "a");
    assert_eq!(lab.alloc(0, "a"), first);
    assert_ne!(lab.alloc(0, "b"), first);
    assert_eq!(lab.machines[0].used(), 2);
}

#[test]
fn a_freed_address_rests_while_there_are_others() {
    let mut lab = Lab::seeds(SMALL, 2, Without::default());
    let first = lab.alloc(0, "a").unwrap();
    lab.free(0, "a").unwrap();
    let next: Vec<u32> = (0..4).map(|n| lab.alloc(0, &format!("b{n}")).unwrap()).collect();
    assert!(!next.contains(&first));
}

#[test]
fn when_all_is_used_others_give_and_then_it_is_exhausted_until_one_is_freed() {
    let mut lab = Lab::seeds(SMALL, 2, Without::default());
    // The first and the last of the range are nobody's.
    let all: BTreeSet<u32> = (0..14).map(|n| lab.alloc(0, &format!("a{n}")).unwrap()).collect();
    assert_eq!(all.len(), 14);
    let why = lab.alloc(0, "more").unwrap_err();
    assert!(matches!(&why, Refusal::No(words) if words.contains("exhausted")), "{why}");
    lab.free(0, "a3").unwrap();
    assert!(lab.alloc(1, "more").is_ok(), "found at the other");
    assert!(lab.doubled(&[0, 1]).is_empty());
}

#[test]
fn little_left_is_filled_up_in_the_background() {
    let mut lab = Lab::seeds(WIDE, 2, Without::default());
    let small = Span { first: WIDE.first, len: 64 };
    lab.machines[0].config.subnet = small;
    lab.machines[1].config.subnet = small;
    lab.run(20);
    for n in 0..40 {
        lab.alloc(1, &format!("c{n}")).unwrap();
    }
    assert!(lab.doubled(&[0, 1]).is_empty());
}

#[test]
fn nothing_is_passed_to_and_fro_for_ever() {
    let mut lab = Lab::seeds(SMALL, 2, Without::default());
    (0..13).for_each(|n| {
        let _ = lab.alloc(0, &format!("a{n}")).unwrap();
    });
    lab.run(30);
    let before: Vec<_> = lab.machines[0].map.iter().map(|(span, held)| (span, *held)).collect();
    lab.asks.fill(0);
    lab.run(120);
    let after: Vec<_> = lab.machines[0].map.iter().map(|(span, held)| (span, *held)).collect();
    assert_eq!(before, after, "asked {:?}", lab.asks);
}

#[test]
fn an_address_of_another_is_claimed_and_given_back_when_freed() {
    let mut lab = Lab::seeds(SMALL, 2, Without::default());
    let wanted = SMALL.first + 12;
    assert!(lab.claim(0, "a", wanted).is_ok());
    assert_eq!(lab.machines[0].map.at(wanted).unwrap().1.owner, id(0));
    assert!(matches!(lab.claim(1, "b", wanted), Err(Refusal::No(_))), "in use");
    lab.free(0, "a").unwrap();
    lab.run(1);
    assert_eq!(lab.machines[1].map.at(wanted).unwrap().1.owner, id(1), "back with its neighbours");
    lab.assert_agree();
}

#[test]
fn a_claim_whose_owner_is_away_may_be_repeated() {
    let mut lab = Lab::seeds(SMALL, 2, Without::default());
    lab.split(&[0], &[1]);
    let wanted = SMALL.first + 12;
    assert!(matches!(lab.claim(0, "a", wanted), Err(Refusal::Later(_))));
    lab.heal();
    assert!(lab.claim(0, "a", wanted).is_ok());
}

#[test]
fn an_address_outside_or_at_the_edge_cannot_be_claimed() {
    let mut lab = Lab::seeds(SMALL, 1, Without::default());
    for address in [SMALL.first - 1, SMALL.first, SMALL.first + 15, SMALL.first + 16] {
        assert!(matches!(lab.claim(0, "a", address), Err(Refusal::No(_))), "{address:x}");
    }
}

#[test]
fn who_leaves_gives_everything_back() {
    let mut lab = Lab::seeds(SMALL, 3, Without::default());
    lab.alloc(0, "a").unwrap();
    assert!(matches!(lab.ask(0, Request::Leave), Err(Refusal::No(_))), "one address is in use");
    lab.free(0, "a").unwrap();
    assert_eq!(lab.ask(0, Request::Leave), Ok(Answer::Done));
    assert!(lab.outputs.contains(&(0, Output::Left)));
    lab.die(0);
    lab.run(15);
    lab.assert_agree();
    assert_eq!(lab.standing(2, 0), Some(Standing::Removed));
    assert_eq!(lab.owned(1) + lab.owned(2), 16);
}

#[test]
fn two_that_leave_to_each_other_at_once_leave_nothing_behind() {
    let mut lab = Lab::seeds(SMALL, 3, Without::default());
    // p2 owns the most, so each of the others chooses the other.
    lab.hold(|letter| matches!(letter.message, Message::Leaving { .. }));
    let tokens = [0, 1].map(|at| lab.request(at, Request::Leave));
    let late = std::mem::take(&mut lab.held);
    lab.hold(|_| false);
    late.into_iter().for_each(|letter| lab.arrive(letter));
    lab.run(8);
    for token in tokens {
        assert_eq!(lab.replies.remove(&token), Some(Ok(Answer::Done)));
    }
    assert_eq!(lab.owned(2), u64::from(SMALL.len));
}

#[test]
fn what_was_given_to_one_that_left_comes_back() {
    let mut lab = Lab::seeds(SMALL, 3, Without::default());
    let gives = |letter: &Letter| matches!(letter.message, Message::Answer { .. } | Message::State { .. });
    lab.hold(move |letter| letter.from == 0 && letter.to == 1 && gives(letter));
    let ask = Message::Ask {
        cluster: lab.machines[0].cluster(),
        ask: meshnet_proto::wire::ipam::Ask { token: 1, within: SMALL, want: 2 },
    };
    lab.arrive(Letter { from: 1, to: 0, told: false, message: ask });
    assert_eq!(lab.held.iter().filter(|letter| matches!(letter.message, Message::Answer { .. })).count(), 1);
    assert_eq!(lab.ask(1, Request::Leave), Ok(Answer::Done));
    lab.die(1);
    lab.run(12);
    assert_eq!(lab.owned(0) + lab.owned(2), u64::from(SMALL.len));
    lab.assert_agree();
}

#[test]
fn newcomers_of_two_sponsors_do_not_wait_for_each_other() {
    let mut lab = Lab::seeds(SMALL, 2, Without::default());
    lab.split(&[0], &[1]);
    let some: Vec<usize> = (0..4).map(|_| lab.add(Init::Auto, 1)).collect();
    // p2 and p3 can reach p0 alone, p4 and p5 p1 alone.
    let pairs = [(0, 1), (0, some[2]), (0, some[3]), (1, some[0]), (1, some[1])];
    lab.cut = pairs.into_iter().chain(some[..2].iter().flat_map(|a| some[2..].iter().map(|b| (*a, *b)))).collect();
    lab.look();
    lab.run(10);
    assert!(some.iter().all(|at| lab.ready(*at).is_err()));
    lab.heal();
    lab.run(15);
    for at in some {
        assert_eq!(lab.ready(at), Ok(()), "p{at}");
    }
    lab.assert_agree();
}

#[test]
fn a_newcomer_waits_for_its_sponsor_even_if_restarted_and_says_so() {
    let mut lab = Lab::seeds(SMALL, 3, Without::default());
    lab.split(&[0], &[1, 2]);
    let new = lab.add(Init::Auto, 1);
    lab.split(&[new], &[1, 2]);
    lab.run(5);
    lab.die(0);
    lab.heal();
    lab.run(20);
    lab.restart(new);
    lab.run(5);
    assert!(lab.ready(new).unwrap_err().contains("run 'meshctl rmpeer p0' at another"), "{:?}", lab.ready(new));
    lab.remove(1, &[0], false).unwrap();
    lab.run(10);
    assert_eq!(lab.ready(new), Ok(()));
    lab.assert_agree();
}

#[test]
fn two_that_have_only_what_nobody_can_use_do_not_send_it_to_and_fro() {
    let mut lab = Lab::seeds(Span { len: 4, ..SMALL }, 2, Without::default());
    for at in [0, 1] {
        assert!(lab.alloc(at, &format!("a{at}")).is_ok());
    }
    let tokens = [0, 1].map(|at| lab.request(at, Request::Alloc { owner: format!("b{at}"), within: None }));
    lab.run(8);
    assert!(tokens.iter().all(|token| lab.replies[token].is_err()));
    assert!(lab.asks.iter().all(|asks| *asks <= 10), "{:?}", lab.asks);
}

#[test]
fn the_dead_are_removed_and_their_space_is_used_again() {
    let mut lab = Lab::seeds(SMALL, 4, Without::default());
    lab.die(0);
    lab.die(1);
    lab.remove(2, &[0, 1], false).unwrap();
    lab.run(10);
    lab.assert_agree();
    assert_eq!(lab.owned(2) + lab.owned(3), 16);
    assert_eq!((0..14).filter(|n| lab.alloc(3, &format!("a{n}")).is_ok()).count(), 14);
}

#[test]
fn one_removal_typed_on_two_peers() {
    let mut lab = Lab::seeds(SMALL, 3, Without::default());
    lab.die(0);
    let tokens = [1, 2].map(|at| lab.request(at, Request::Remove { peers: vec![id(0)], force: false }));
    lab.run(12);
    for token in tokens {
        assert!(matches!(lab.replies[&token], Ok(Answer::Removed { .. })), "{:?}", lab.replies[&token]);
    }
    lab.assert_agree();
    assert!(lab.machines.iter().skip(1).all(|m| m.removal().is_none()));
}

#[test]
fn two_dead_typed_one_each_on_two_peers() {
    let mut lab = Lab::seeds(SMALL, 4, Without::default());
    lab.die(0);
    lab.die(1);
    let tokens =
        [(2, 0), (3, 1)].map(|(at, gone)| lab.request(at, Request::Remove { peers: vec![id(gone)], force: false }));
    lab.run(12);
    for token in tokens {
        assert!(matches!(lab.replies[&token], Ok(Answer::Removed { .. })), "{:?}", lab.replies[&token]);
    }
    lab.assert_agree();
}

#[test]
fn who_is_there_is_not_removed() {
    let mut lab = Lab::seeds(SMALL, 3, Without::default());
    assert!(matches!(lab.remove(1, &[0], false), Err(Refusal::No(_))));
    // Cut off from one only: the other hears it.
    lab.split(&[0], &[1]);
    let refused = lab.remove(1, &[0], false);
    assert!(matches!(&refused, Err(Refusal::No(why)) if why.contains("alive")), "{refused:?}");
    assert!(lab.machines.iter().all(|m| m.removal().is_none()));
    lab.run(15);
    assert!(lab.machines.iter().all(|m| m.promises.open(&m.members).is_none()), "promises were let go");
}

#[test]
fn a_removal_waits_for_a_member_that_is_away_or_is_forced() {
    let mut lab = Lab::seeds(SMALL, 4, Without::default());
    lab.die(0);
    lab.split(&[3], &[1, 2]);
    let why = lab.remove(1, &[0], false).unwrap_err().to_string();
    assert!(why.contains("p3"), "{why}");
    assert!(lab.remove(2, &[0], true).is_ok(), "by force");
}

#[test]
fn a_withdrawal_that_was_lost_is_said_again() {
    let mut lab = Lab::seeds(SMALL, 3, Without::default());
    lab.split(&[0], &[1, 2]);
    lab.hold(|letter| matches!(letter.message, Message::Withdraw { .. } | Message::Promise { .. }));
    let token = lab.request(1, Request::Remove { peers: vec![id(0)], force: false });
    lab.run_ms(20);
    lab.heal();
    lab.run_ms(20);
    assert!(lab.replies.remove(&token).is_some_and(|reply| reply.is_err()));
    lab.hold = None;
    lab.held.clear();
    lab.run(25);
    assert!(lab.machines.iter().all(|m| m.promises.open(&m.members).is_none()));
    lab.assert_agree();
}

#[test]
fn a_candidate_that_died_goes_with_those_it_removed() {
    let mut lab = Lab::seeds(SMALL, 5, Without::default());
    lab.die(0);
    lab.hold(|letter| letter.to == 1 && matches!(letter.message, Message::Promise { .. }));
    lab.request(1, Request::Remove { peers: vec![id(0)], force: false });
    lab.run_ms(50);
    lab.die(1);
    lab.hold = None;
    lab.remove(2, &[1], false).unwrap();
    lab.run(10);
    lab.assert_agree();
    assert_eq!(lab.standing(3, 0), Some(Standing::Removed), "what it had begun is finished");
    assert_eq!(lab.owned(2) + lab.owned(3) + lab.owned(4), 16);
}

#[test]
fn an_old_copy_of_the_state_is_noticed() {
    let mut lab = Lab::seeds(SMALL, 2, Without::default());
    let old = lab.disks[0].clone();
    (0..14).for_each(|n| {
        let _ = lab.alloc(1, &format!("a{n}"));
    });
    lab.disks[0] = old;
    lab.restart(0);
    lab.run(15);
    assert!(lab.ready(0).unwrap_err().contains("old copy"), "{:?}", lab.ready(0));
    assert!(lab.alloc(0, "x").is_err());
}

#[test]
fn a_restart_changes_nothing() {
    let mut lab = Lab::seeds(SMALL, 3, Without::default());
    let address = lab.alloc(0, "a").unwrap();
    let digest = lab.machines[0].digest();
    lab.restart(0);
    assert_eq!(lab.machines[0].digest(), digest);
    assert_eq!(lab.alloc(0, "a"), Ok(address));
    lab.run(15);
    lab.assert_agree();
}

#[test]
fn a_full_disk_gives_nothing_out_and_recovers() {
    let mut lab = Lab::seeds(SMALL, 2, Without::default());
    lab.full.insert(0);
    let why = lab.alloc(0, "a").unwrap_err();
    assert!(matches!(&why, Refusal::Later(words) if words.contains("no space")), "{why}");
    assert!(matches!(lab.alloc(0, "b"), Err(Refusal::Later(_))));
    assert!(lab.ready(0).is_err());
    lab.full.remove(&0);
    lab.run(3);
    assert_eq!(lab.ready(0), Ok(()));
    assert!(lab.alloc(0, "a").is_ok());
    lab.restart(0);
    assert!(lab.machines[0].used() >= 1);
}

#[test]
fn an_address_that_a_stranger_has_is_skipped() {
    let mut lab = Lab::new(SMALL);
    lab.add(Init::Auto, 0);
    lab.machines[0].config.probe = true;
    lab.taken.insert(SMALL.first + 1);
    lab.look();
    assert_eq!(lab.alloc(0, "a"), Ok(SMALL.first + 2));
    assert_eq!(lab.machines[0].conflicts().next().map(|(address, _)| address), Some(SMALL.first + 1));
}

/// Two that began alone, each with addresses given out, meet.
#[test]
fn two_spaces_that_meet_become_one_and_nothing_is_silently_doubled() {
    let mut lab = Lab::new(WIDE);
    (0..2).for_each(|_| {
        let _ = lab.add(Init::Auto, 0);
    });
    lab.cut.insert((0, 1));
    lab.look();
    (0..3).for_each(|n| {
        let _ = lab.alloc(0, &format!("a{n}")).unwrap();
    });
    (0..5).for_each(|n| {
        let _ = lab.alloc(1, &format!("b{n}")).unwrap();
    });
    lab.heal();
    lab.run(30);
    lab.assert_agree();
    assert_eq!(lab.machines[0].genesis, lab.machines[1].genesis);
    assert_eq!(lab.machines[0].used() + lab.machines[1].used(), 8, "nobody lost an address");
    let doubled: BTreeSet<u32> = lab.doubled(&[0, 1]).into_iter().collect();
    let shown = |at: usize| lab.machines[at].conflicts().map(|(address, _)| address).collect::<BTreeSet<u32>>();
    assert_eq!(doubled.len(), 3);
    assert_eq!(shown(0).union(&shown(1)).copied().collect::<BTreeSet<u32>>(), doubled);
    let unconfirmed: Vec<_> =
        (0..2).flat_map(|at| lab.machines[at].leases()).filter(|lease| lease.unconfirmed).collect();
    assert_eq!(unconfirmed.len(), 3, "what could be claimed was: {unconfirmed:?}");
}

#[test]
fn a_lone_founder_yields_to_several() {
    for seed in 0..4 {
        let mut lab = Lab::seeds(WIDE, 2, Without::default());
        let lone = lab.add(Init::Auto, 0);
        lab.machines[lone].draws = seed;
        lab.cut.extend([(0, lone), (1, lone)]);
        lab.look();
        lab.run(1);
        assert_eq!(lab.owned(lone), 1 << 20);
        let before = lab.machines[0].genesis;
        lab.heal();
        lab.run(20);
        lab.assert_agree();
        assert_eq!(lab.machines[lone].genesis, before);
    }
}

#[test]
fn a_peer_with_another_range_is_named() {
    let mut lab = Lab::seeds(SMALL, 1, Without::default());
    lab.range = WIDE;
    let other = lab.add(Init::Auto, 1);
    lab.look();
    lab.run(15);
    assert!(lab.ready(other).unwrap_err().contains("--ipam-range"));
}
