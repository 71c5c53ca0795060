//! Where somebody outside says who begins, who may join, and who lives.

use super::*;

const U: [u8; 16] = [1; 16];
const V: [u8; 16] = [2; 16];

impl Lab {
    fn outside(&mut self, count: usize) {
        (0..count).for_each(|_| {
            let _ = self.add(Init::Outside, 1);
        });
        self.list_each_other();
        self.look();
    }

    fn space(&mut self, at: usize, space: Option<[u8; 16]>, begin: bool) {
        self.input(at, Input::Space { space, begin });
    }

    fn alive(&mut self, at: usize, alive: &[usize]) {
        self.input(at, Input::Alive(alive.iter().copied().map(id).collect()));
    }
}

#[test]
fn nobody_begins_or_joins_without_leave() {
    let mut lab = Lab::new(WIDE);
    lab.outside(3);
    lab.run(60);
    assert!((0..3).all(|at| lab.owned(at) == 0 && lab.ready(at).is_err()));
    lab.space(0, Some(U), true);
    assert_eq!(lab.owned(0), 1 << 20);
    lab.space(1, Some(U), false);
    lab.run(15);
    assert!(lab.ready(1).is_ok() && lab.owned(1) > 0);
    assert!(lab.ready(2).is_err() && lab.owned(2) == 0, "it was not given leave");
    assert_eq!(lab.machines[2].space_heard(lab.now), Some(U));
    assert_eq!(lab.machines[2].space(), None);
    lab.space(2, Some(U), false);
    lab.run(15);
    lab.assert_agree();
    assert_eq!(lab.machines[2].space(), Some((U, true)));
}

#[test]
fn who_begins_again_begins_the_same() {
    let mut lab = Lab::new(WIDE);
    lab.outside(1);
    lab.space(0, Some(U), true);
    let first = lab.alloc(0, "a").unwrap();
    lab.space(0, Some(U), true);
    lab.space(0, Some(V), true);
    lab.space(0, None, false);
    assert_eq!(lab.machines[0].space(), Some((U, true)), "who belongs is told nothing from outside");
    assert_eq!(lab.alloc(0, "a"), Ok(first));
    lab.restart(0);
    assert!(lab.ready(0).is_ok(), "and needs nothing");
}

#[test]
fn leave_that_is_taken_back() {
    let mut lab = Lab::new(WIDE);
    lab.outside(3);
    lab.space(0, Some(U), true);
    lab.split(&[0], &[1]);
    lab.space(2, Some(U), false);
    lab.run(15);
    // 1 learns of U from 2, and is let in by nobody: half of the members are away.
    lab.die(0);
    lab.space(1, Some(U), false);
    lab.run(15);
    assert_eq!(lab.machines[1].space(), Some((U, false)));
    lab.space(1, None, false);
    assert_eq!(lab.machines[1].space(), None);
    lab.run(30);
    assert_eq!(lab.machines[1].space(), None, "it takes it from nobody now");
    lab.restart(1);
    assert_eq!(lab.machines[1].space(), None, "after a restart neither");
    lab.space(1, Some(V), true);
    assert_eq!(lab.owned(1), 1 << 20);
}

#[test]
fn another_space_is_chosen_before_it_belongs() {
    let mut lab = Lab::new(WIDE);
    lab.outside(3);
    lab.space(0, Some(U), true);
    lab.space(1, Some(U), false);
    lab.hold(|letter| matches!(letter.message, Message::Join { .. }));
    lab.run(5);
    assert_eq!(lab.machines[1].space(), Some((U, false)));
    lab.die(0);
    lab.space(2, Some(V), true);
    lab.space(1, Some(V), false);
    lab.hold = None;
    lab.run(20);
    assert_eq!(lab.machines[1].space(), Some((V, true)));
    assert!(lab.owned(1) + lab.owned(2) == 1 << 20);
}

/// Five of which three are gone: two are fewer than are removed, and only somebody outside knows that there are no others.
#[test]
fn more_are_removed_than_remain_when_somebody_vouches() {
    let mut lab = Lab::new(WIDE);
    lab.outside(5);
    lab.space(0, Some(U), true);
    (1..5).for_each(|at| lab.space(at, Some(U), false));
    lab.run(30);
    lab.assert_agree();
    (2..5).for_each(|at| lab.die(at));
    let token = lab.request(0, Request::Remove { peers: vec![id(2), id(3), id(4)], force: false });
    lab.run(5);
    assert_eq!(lab.standing(0, 2), Some(Standing::Admitted), "too many");
    // Somebody else lives, of whom this one has not heard: its promise is missing.
    lab.alive(0, &[0, 1, 9]);
    lab.run(5);
    assert_eq!(lab.standing(0, 2), Some(Standing::Admitted));
    // Somebody that is to go lives.
    lab.alive(0, &[0, 1, 4]);
    lab.run(5);
    assert_eq!(lab.standing(0, 2), Some(Standing::Admitted));
    // It is old.
    lab.alive(0, &[0, 1]);
    lab.now += Duration::from_secs(60);
    lab.run(5);
    assert_eq!(lab.standing(0, 2), Some(Standing::Admitted));
    lab.alive(0, &[0, 1]);
    lab.run(5);
    assert!((2..5).all(|at| lab.standing(0, at) == Some(Standing::Removed)));
    lab.replies.remove(&token);
    lab.run(10);
    lab.assert_agree();
    assert_eq!(lab.owned(0) + lab.owned(1), 1 << 20);
}
