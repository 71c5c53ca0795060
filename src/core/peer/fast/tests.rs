//! The machine against a network that answers, or does not.

use super::*;

/// A path with a network behind it.
struct Bench {
    path: FastPath,
    now: Time,
    /// Our probes get there and are answered.
    answers: bool,
    /// Those of the other end get here.
    hears: bool,
    allowed: bool,
    busy: bool,
    probes: u32,
    changes: u32,
}

impl Bench {
    fn new() -> Bench {
        let path = FastPath::new(7);
        let now = Time::ZERO + Duration::from_secs(100);
        Bench { path, now, answers: true, hears: true, allowed: true, busy: false, probes: 0, changes: 0 }
    }

    fn tick(&mut self) {
        self.now += Duration::from_millis(100);
        if self.hears {
            self.path.on_heard(self.now);
        }
        let mut out = Vec::new();
        self.path.on_tick(self.now, self.allowed, self.busy, &mut out);
        for action in out {
            match action {
                Action::Probe { token, .. } => {
                    self.probes += 1;
                    if self.answers {
                        assert!(self.path.on_answer(self.now + Duration::from_millis(1), token));
                    }
                }
                Action::Changed => self.changes += 1,
            }
        }
    }

    fn run(&mut self, ms: u64) -> &mut Bench {
        (0..ms / 100).for_each(|_| self.tick());
        self
    }

    /// Milliseconds until it is on, or off.
    fn until(&mut self, on: bool) -> u64 {
        let from = self.now;
        while self.path.on() != on {
            self.tick();
            assert!(self.now.since(from) < Duration::from_secs(60), "never");
        }
        self.now.since(from).as_millis() as u64
    }
}

#[test]
fn it_begins_within_half_a_second_when_probes_pass_both_ways() {
    let mut bench = Bench::new();
    assert!(bench.until(true) <= 500);
    assert_eq!(bench.changes, 1);
    assert_eq!(bench.path.wait(bench.now), None);
}

#[test]
fn without_trust_nothing_is_sent() {
    let mut bench = Bench::new();
    bench.allowed = false;
    bench.run(5_000);
    assert_eq!((bench.probes, bench.changes, bench.path.on()), (0, 0, false));
}

#[test]
fn one_way_alone_is_not_enough_and_says_which_is_missing() {
    for (answers, hears, wait) in [(false, true, Wait::NotAnswered), (true, false, Wait::NotHeard)] {
        let mut bench = Bench::new();
        (bench.answers, bench.hears) = (answers, hears);
        bench.run(1_000);
        assert_eq!(bench.path.wait(bench.now), Some(Wait::Trying), "not before it was tried for long");
        bench.run(9_000);
        assert_eq!((bench.changes, bench.path.wait(bench.now)), (0, Some(wait)));
    }
}

#[test]
fn what_never_answers_is_asked_once_a_second() {
    let mut bench = Bench::new();
    bench.answers = false;
    bench.run(4_000).probes = 0;
    bench.run(20_000);
    assert!((19..=21).contains(&bench.probes), "{}", bench.probes);
}

#[test]
fn in_use_it_ends_within_half_a_second_and_idle_within_two() {
    for (busy, most) in [(true, 500), (false, 1_500)] {
        let mut bench = Bench::new();
        bench.busy = busy;
        bench.until(true);
        bench.run(3_000).answers = false;
        let ended = bench.until(false);
        assert!((300..=most).contains(&ended), "busy {busy}: {ended} ms");
        assert_eq!(bench.changes, 2);
    }
}

#[test]
fn two_lost_in_a_row_do_not_end_it() {
    let mut bench = Bench::new();
    bench.busy = true;
    bench.until(true);
    for _ in 0..20 {
        bench.answers = false;
        bench.run(200).answers = true;
        bench.run(200);
    }
    assert_eq!(bench.changes, 1);
}

#[test]
fn the_other_ends_silence_ends_it_too() {
    let mut bench = Bench::new();
    bench.until(true);
    bench.hears = false;
    let ended = bench.until(false);
    assert!((3_000..=4_000).contains(&ended), "{ended} ms");
}

#[test]
fn what_was_lost_returns_after_seconds_without_a_gap() {
    let mut bench = Bench::new();
    bench.until(true);
    bench.answers = false;
    bench.until(false);
    bench.run(10_000).answers = true;
    let returned = bench.until(true);
    assert!((3_000..=5_000).contains(&returned), "{returned} ms");
    // A gap on the way begins anew.
    bench.answers = false;
    bench.until(false);
    bench.answers = true;
    bench.run(2_000).answers = false;
    bench.run(500).answers = true;
    assert!(bench.until(true) >= 3_000);
}

#[test]
fn the_end_of_the_sealed_path_ends_it_at_once() {
    let mut bench = Bench::new();
    bench.until(true);
    bench.allowed = false;
    assert_eq!(bench.until(false), 100);
    bench.allowed = true;
    assert!(bench.until(true) <= 500, "and takes it up again as soon");
}

#[test]
fn idle_it_costs_a_probe_a_second_and_some_are_full() {
    let mut bench = Bench::new();
    bench.until(true);
    bench.probes = 0;
    bench.run(60_000);
    assert!((58..=62).contains(&bench.probes), "{}", bench.probes);
    bench.busy = true;
    bench.probes = 0;
    bench.run(10_000);
    assert!((98..=102).contains(&bench.probes), "{}", bench.probes);
}

#[test]
fn answers_to_nothing_count_for_nothing() {
    let mut path = FastPath::new(7);
    let now = Time::ZERO + Duration::from_secs(1);
    assert!(!path.on_answer(now, 1));
    let mut out = Vec::new();
    path.on_tick(now, true, false, &mut out);
    let [Action::Probe { token, full: true }] = out[..] else { panic!("{out:?}") };
    assert!(!path.on_answer(now, token.wrapping_add(1)));
    assert!(path.on_answer(now, token));
    assert!(!path.on_answer(now, token), "once");
}
