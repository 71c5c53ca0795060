//! Each safety rule is taken away, and must be missed.

use super::*;

const ALL: usize = 400;

/// How many of some schedules go wrong.
fn faults(count: u64, plan: Plan) -> Vec<String> {
    let one = |first: u64| (first..count).step_by(2).filter_map(|seed| run(seed, plan).1).collect::<Vec<_>>();
    let mut all = Vec::new();
    std::thread::scope(|scope| {
        let halves: Vec<_> = (0..2).map(|first| scope.spawn(move || one(first))).collect();
        halves.into_iter().for_each(|half| all.extend(half.join().unwrap()));
    });
    all
}

#[test]
fn twenty_thousand_schedules_give_no_address_twice() {
    let faults = faults(20_000, Plan { steps: ALL, ..Plan::default() });
    assert!(faults.is_empty(), "{} of 20,000 go wrong, first: {}", faults.len(), faults[0]);
}

/// Healed at their end, schedules stay safe, and all but a few also come to rest. Known not to: two that leave at the same moment, each to the other, and
/// crash meanwhile, so that what they had is lost.
#[test]
fn healed_schedules_come_to_rest() {
    let faults = faults(2_000, Plan { steps: ALL, heal: true, ..Plan::default() });
    let unsafe_ones =
        |fault: &&String| !fault.contains("does not come to rest") && !fault.contains("messages without end");
    let doubled: Vec<&String> = faults.iter().filter(unsafe_ones).collect();
    assert!(doubled.is_empty(), "{} of 2,000 go wrong, first: {}", doubled.len(), doubled[0]);
    let first: Vec<&str> = faults.iter().filter_map(|fault| fault.lines().next()).take(20).collect();
    println!("{} of 2,000 do not come to rest:\n{}", faults.len(), first.join("\n"));
    assert!(faults.len() <= 4, "{} of 2,000 do not come to rest:\n{}\n{}", faults.len(), first.join("\n"), faults[0]);
}

#[track_caller]
fn missed(count: u64, plan: Plan) {
    let some = faults(count, Plan { steps: ALL, ..plan });
    assert!(!some.is_empty(), "nothing goes wrong in {count} schedules");
}

#[test]
fn without_keeping_first() {
    missed(300, Plan { without: Without { keep_first: true, ..Without::default() }, ..Plan::default() });
}

#[test]
fn without_asking_the_owner() {
    missed(50, Plan { without: Without { own_only: true, ..Without::default() }, ..Plan::default() });
}

#[test]
fn with_the_old_name_after_the_disk_was_lost() {
    missed(300, Plan { keep_name: true, ..Plan::default() });
}

fn answer_of(giver: usize) -> impl Fn(&Letter) -> bool {
    move |letter| letter.from == giver && matches!(letter.message, Message::Answer { .. } | Message::State { .. })
}

/// p0 gives p1 something and dies; the gift comes after the others took all of p0's.
fn late_gift(without: Without) -> usize {
    let mut lab = Lab::seeds(SMALL, 3, without);
    (0..3).for_each(|at| {
        let _ = lab.exhaust(at);
    });
    let first = lab.machines[0].leases()[0].owner.clone();
    lab.free(0, &first).unwrap();
    lab.hold(answer_of(0));
    let token = lab.request(1, Request::Alloc { owner: "late".into(), within: None });
    lab.run_ms(10);
    lab.die(0);
    let late = std::mem::take(&mut lab.held);
    assert!(!late.is_empty(), "p0 gave nothing");
    lab.hold(|letter| letter.from == 2 && letter.to == 1 && matches!(letter.message, Message::State { .. }));
    lab.remove(2, &[0], false).unwrap();
    lab.exhaust(2);
    for letter in late {
        lab.arrive(letter);
    }
    lab.run(6);
    drop(lab.replies.remove(&token));
    lab.exhaust(1);
    lab.doubled(&[1, 2]).len()
}

#[test]
fn without_the_freeze() {
    assert_eq!(late_gift(Without::default()), 0);
    assert!(late_gift(Without { freeze: true, ..Without::default() }) > 0);
}

/// p0 gives p1 something while both are cut off, and dies. p1 stays cut off while the others remove p0.
fn unheard_gift(without: Without) -> usize {
    let mut lab = Lab::seeds(SMALL, 5, without);
    lab.split(&[0, 1], &[2, 3, 4]);
    lab.exhaust(1);
    lab.alloc(1, "more").unwrap();
    lab.die(0);
    if lab.remove(2, &[0], false).is_ok() {
        (2..5).for_each(|at| {
            let _ = lab.exhaust(at);
        });
    }
    lab.doubled(&[1, 2, 3, 4]).len()
}

#[test]
fn without_every_promise() {
    assert_eq!(unheard_gift(Without::default()), 0);
    assert!(unheard_gift(Without { all_promise: true, ..Without::default() }) > 0);
}

/// p0 alone lets p3 in, gives it some and dies; the others, who never heard of p3, remove p0.
fn sole_sponsor(without: Without) -> usize {
    let mut lab = Lab::seeds(SMALL, 3, without);
    lab.split(&[0], &[1, 2]);
    let new = lab.add(Init::Auto, 1);
    lab.split(&[new], &[1, 2]);
    lab.run(10);
    lab.exhaust(new);
    lab.die(0);
    lab.remove(1, &[0], false).unwrap();
    lab.exhaust(1);
    lab.exhaust(2);
    lab.doubled(&[1, 2, new]).len()
}

#[test]
fn without_a_majority_for_newcomers() {
    assert_eq!(sole_sponsor(Without::default()), 0);
    assert!(sole_sponsor(Without { majority: true, ..Without::default() }) > 0);
}

/// p1 and p2 let p3 in while p0 is cut off, give it some and die; p0, who never heard of p3, removes them.
fn majority_dies(without: Without) -> usize {
    let mut lab = Lab::seeds(SMALL, 3, without);
    lab.split(&[0], &[1, 2]);
    let new = lab.add(Init::Auto, 1);
    lab.split(&[new], &[0]);
    lab.run(10);
    assert!(lab.owned(new) > 0, "the newcomer was let in by a majority");
    lab.exhaust(new);
    lab.die(1);
    lab.die(2);
    let _ = lab.remove(0, &[1, 2], false);
    lab.exhaust(0);
    lab.doubled(&[0, new]).len()
}

#[test]
fn without_as_many_as_are_removed() {
    assert_eq!(majority_dies(Without::default()), 0);
    assert!(majority_dies(Without { not_fewer: true, ..Without::default() }) > 0);
}

/// p0 and p2 let p3 in; p1 and p2 let p4 in, though p1 has not heard of p3; p1 and p2 die, and p0 and p3, who have not heard of p4, remove them.
fn two_sponsors(without: Without) -> usize {
    let mut lab = Lab::seeds(SMALL, 3, without);
    lab.split(&[0], &[1]);
    let a = lab.add(Init::Auto, 1);
    // What p1 is not told: that p3 is there.
    lab.hold(|letter| letter.to == 1 && matches!(letter.message, Message::State { .. } | Message::Digest { .. }));
    lab.split(&[a], &[1]);
    lab.run(5);
    assert_eq!(lab.standing(0, a), Some(Standing::Admitted));
    lab.hold(move |letter| {
        matches!(letter.message, Message::State { .. } | Message::Digest { .. } | Message::Promise { .. })
            && letter.from < 3
            && (letter.to == 1 || letter.from == 2)
    });
    let b = lab.add(Init::Auto, 1);
    lab.split(&[b], &[0, 2, a]);
    // The newcomer is shown the space by p1 alone.
    lab.run(15);
    lab.exhaust(b);
    let given = lab.machines[b].leases().len();
    lab.die(1);
    lab.die(2);
    let removed = lab.remove(0, &[1, 2], false);
    lab.exhaust(0);
    lab.exhaust(a);
    if without.contained_views {
        assert!(given > 0, "p4 was let in: {:?}", lab.ready(b));
        assert!(removed.is_ok(), "{removed:?}");
    }
    lab.doubled(&[0, a, b]).len()
}

#[test]
fn without_views_that_contain_each_other() {
    assert_eq!(two_sponsors(Without::default()), 0);
    assert!(two_sponsors(Without { contained_views: true, ..Without::default() }) > 0);
}

/// p3 asks p2 to let it in, and is cut off from it; p0 and p1 let it in; p1 and p2 let in p4 together with p3, so without counting p3, and die; p0 and p3,
/// who have not heard of p4, remove them.
fn two_batches(without: Without) -> usize {
    let mut lab = Lab::seeds(SMALL, 3, without);
    let cut = |lab: &mut Lab, pairs: &[(usize, usize)]| {
        lab.cut = pairs.iter().copied().collect();
        lab.look();
    };
    let asks = |letter: &Letter| letter.from == 2 && matches!(letter.message, Message::Add { .. });
    lab.hold(asks);
    let a = lab.add(Init::Auto, 1);
    cut(&mut lab, &[(0, 2), (0, a), (1, a)]);
    lab.run(3);
    assert!(lab.held.iter().any(asks), "p2 asks for p3");
    // What p1 knows of the others it keeps to itself.
    let tells = |letter: &Letter| matches!(letter.message, Message::State { .. } | Message::Digest { .. });
    lab.hold(move |letter| asks(letter) || letter.from == 1 && tells(letter));
    cut(&mut lab, &[(0, 2), (1, a), (2, a)]);
    lab.run(10);
    if without.one_sponsor {
        assert_eq!(lab.ready(a), Ok(()));
    } else {
        assert!(lab.ready(a).unwrap_err().contains("waiting for p2"));
    }
    lab.hold(move |letter| letter.from == 1 && tells(letter));
    let b = lab.add(Init::Auto, 1);
    cut(&mut lab, &[(0, 2), (1, a), (2, a), (0, b), (1, b), (a, b)]);
    lab.run(10);
    assert_eq!(lab.ready(b), Ok(()));
    assert!(lab.exhaust(b) > 0);
    lab.die(1);
    lab.die(2);
    let removed = lab.remove(0, &[1, 2], false);
    assert_eq!(removed.is_ok(), without.one_sponsor);
    for at in [0, a] {
        lab.exhaust(at);
    }
    lab.doubled(&[0, a, b]).len()
}

/// p1 gives p0 some, p0 gives it on to p2, which p1 does not hear, and leaves; p1 hears of that, and takes back what it had given.
fn passed_on(without: Without) -> usize {
    let mut lab = Lab::seeds(SMALL, 3, without);
    let cluster = lab.machines[0].cluster();
    let ask = |lab: &mut Lab, from: usize, to: usize| {
        let ask = meshnet_proto::wire::ipam::Ask { token: 1, within: SMALL, want: 2 };
        lab.arrive(Letter { from, to, told: false, message: Message::Ask { cluster, ask } });
        lab.run_ms(1);
    };
    ask(&mut lab, 0, 1);
    lab.hold(|letter| letter.to == 1 && letter.told);
    let before = lab.owned(2);
    for _ in 0..3 {
        ask(&mut lab, 2, 0);
    }
    assert!(lab.owned(2) > before + 2, "p0 gave on what it had from p1");
    lab.held.clear();
    lab.hold(|letter| letter.to == 1 || letter.from == 1);
    lab.request(0, Request::Leave);
    lab.run_ms(1);
    let gone = |letter: &Letter| match &letter.message {
        Message::State { full: false, state, .. } => state.members.iter().any(|m| m.standing == Standing::Removed),
        _ => false,
    };
    let news: Vec<Letter> = std::mem::take(&mut lab.held).into_iter().filter(gone).collect();
    assert!(!news.is_empty());
    news.into_iter().for_each(|letter| lab.arrive(letter));
    lab.run_ms(600);
    lab.exhaust(2);
    lab.exhaust(1);
    lab.doubled(&[1, 2]).len()
}

#[test]
fn without_removals_in_whole() {
    assert_eq!(passed_on(Without::default()), 0);
    assert!(passed_on(Without { whole_removals: true, ..Without::default() }) > 0);
}

#[test]
fn without_one_sponsor_for_each() {
    assert_eq!(two_batches(Without::default()), 0);
    assert!(two_batches(Without { one_sponsor: true, ..Without::default() }) > 0);
}

/// p0 is cut off and removed though it lives; it comes back.
fn undead(without: Without) -> (usize, usize) {
    let mut lab = Lab::seeds(SMALL, 3, without);
    lab.split(&[0], &[1, 2]);
    lab.remove(1, &[0], false).unwrap();
    lab.exhaust(1);
    lab.heal();
    lab.run(15);
    let before = lab.machines[0].leases().len();
    // A gift from before its removal comes late.
    let run = lab.machines[1].map.wire(None).into_iter().find(|run| run.owner == id(2)).unwrap();
    let run = meshnet_proto::wire::ipam::Run { version: run.version + 1, owner: id(0), giver: id(2), ..run };
    let state = meshnet_proto::wire::ipam::State { members: Vec::new(), runs: vec![run] };
    let genesis = lab.machines[1].genesis.unwrap();
    lab.arrive(Letter { from: 1, to: 0, told: true, message: Message::State { genesis, full: false, state } });
    for n in 0..6 {
        drop(lab.alloc(0, &format!("back{n}")));
    }
    (
        lab.machines[0].leases().len() - before,
        lab.outputs.iter().filter(|(at, o)| *at == 0 && *o == Output::Removed).count(),
    )
}

#[test]
fn without_the_fence() {
    assert_eq!(undead(Without::default()), (0, 1));
    assert!(undead(Without { fence: true, ..Without::default() }).0 > 0);
}
