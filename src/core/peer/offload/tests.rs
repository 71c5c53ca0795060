use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::*;
use crate::peer::path::TICK;

/// One path, looked at each tick.
struct Bench {
    machine: Segmentation,
    now: Time,
    outlook: Outlook,
    /// Which places of a train pass.
    passes: fn(usize, usize) -> bool,
    /// Part of all probes, and of all replies, that is lost.
    loss: f64,
    rng: StdRng,
    replies: Vec<(Time, u64)>,
    trains: usize,
    singles: usize,
}

fn all(_: usize, _: usize) -> bool {
    true
}

fn none(_: usize, _: usize) -> bool {
    false
}

impl Bench {
    fn new(seed: u64) -> Bench {
        Bench {
            machine: Segmentation::new(7),
            now: Time::from_us(1_000_000),
            outlook: Outlook {
                busy: true,
                datagrams: 10,
                datagram_bytes: 1_472,
                settled: true,
                rtt: Duration::from_millis(10),
            },
            passes: all,
            loss: 0.0,
            rng: StdRng::seed_from_u64(seed),
            replies: Vec::new(),
            trains: 0,
            singles: 0,
        }
    }

    fn tick(&mut self) {
        self.now += TICK;
        let (due, later) = self.replies.drain(..).partition(|(at, _)| *at <= self.now);
        self.replies = later;
        for (at, token) in due {
            self.machine.on_reply(at, token);
        }
        let mut out = Vec::new();
        self.machine.on_tick(self.now, self.outlook, &mut out);
        for burst in out {
            let count = burst.tokens.len();
            assert!((2..=TRAIN).contains(&count) && count * self.outlook.datagram_bytes <= 65_000);
            *(if burst.joined { &mut self.trains } else { &mut self.singles }) += 1;
            for (at, token) in burst.tokens.into_iter().enumerate() {
                let lost = self.rng.random_bool(self.loss) || self.rng.random_bool(self.loss);
                if !lost && (!burst.joined || (self.passes)(at, count)) {
                    self.replies.push((self.now + self.outlook.rtt, token));
                }
            }
        }
    }

    fn run(&mut self, span: Duration) {
        let until = self.now + span;
        while self.now < until {
            self.tick();
        }
    }

    /// Runs until it is on or off; gives the time it took.
    fn until(&mut self, limit: Duration, on: bool) -> Option<Duration> {
        let start = self.now;
        while self.machine.on() != on {
            if self.now.since(start) >= limit {
                return None;
            }
            self.tick();
        }
        Some(self.now.since(start))
    }
}

const SECOND: Duration = Duration::from_secs(1);

#[test]
fn what_breaks_trains_is_found_and_what_does_not_is_not() {
    // Which places pass, plain loss, within how long it is off from the start; none: never.
    type Case = (&'static str, fn(usize, usize) -> bool, f64, Option<u64>);
    let cases: &[Case] = &[
        ("a sound path", all, 0.0, None),
        ("plain loss", all, 0.05, None),
        ("heavy loss", all, 0.15, None),
        ("all lost", none, 0.0, Some(2)),
        ("all lost, plain loss", none, 0.05, Some(5)),
        ("all but the first", |at, _| at == 0, 0.0, Some(2)),
        ("all but the last", |at, count| at + 1 == count, 0.05, Some(5)),
        ("the last", |at, count| at + 1 < count, 0.0, Some(3)),
        ("the last, plain loss", |at, count| at + 1 < count, 0.05, Some(8)),
    ];
    for (what, passes, loss, off) in cases {
        for seed in 0..20 {
            let mut bench = Bench::new(seed);
            (bench.passes, bench.loss) = (*passes, *loss);
            match off {
                None => assert_eq!(bench.until(600 * SECOND, false), None, "{what}, seed {seed}"),
                Some(seconds) => {
                    assert!(bench.until(*seconds as u32 * SECOND, false).is_some(), "{what}, seed {seed}");
                }
            }
        }
    }
}

#[test]
fn a_device_that_turns_bad_is_found_while_frames_use_it() {
    let mut bench = Bench::new(1);
    bench.run(10 * SECOND);
    bench.passes = none;
    assert!(bench.until(5 * SECOND, false).is_some());
    // And sooner under load, also when that comes to a stop because of it.
    let mut bench = Bench::new(1);
    bench.outlook.datagrams = 1_000;
    bench.run(10 * SECOND);
    let trains = bench.trains;
    bench.run(10 * SECOND);
    assert!((10..=21).contains(&(bench.trains - trains)), "{}", bench.trains - trains);
    bench.passes = none;
    bench.run(Duration::from_millis(100));
    bench.outlook.datagrams = 0;
    let took = bench.until(5 * SECOND, false).unwrap();
    assert!(took < SECOND * 2, "{took:?}");
}

#[test]
fn it_is_tried_again_after_ten_minutes_and_comes_back_when_it_works() {
    let mut bench = Bench::new(1);
    bench.passes = none;
    bench.until(5 * SECOND, false).unwrap();
    let trains = bench.trains;
    bench.run(590 * SECOND);
    assert_eq!(bench.trains, trains, "left alone");
    bench.run(20 * SECOND);
    assert!(bench.trains > trains && !bench.machine.on(), "asked, and it still fails");
    bench.passes = all;
    let took = bench.until(700 * SECOND, true).unwrap();
    assert!(took < 620 * SECOND, "{took:?}");
    // Idle, it is not asked.
    bench.passes = none;
    bench.until(10 * SECOND, false).unwrap();
    (bench.passes, bench.outlook.busy) = (all, false);
    let trains = bench.trains;
    bench.run(2_000 * SECOND);
    assert_eq!((bench.trains, bench.machine.on()), (trains, false));
    bench.outlook.busy = true;
    assert!(bench.until(SECOND, true).is_some());
}

#[test]
fn another_address_is_another_path() {
    let mut bench = Bench::new(1);
    bench.passes = none;
    bench.until(5 * SECOND, false).unwrap();
    bench.passes = all;
    bench.machine.reset();
    assert!(bench.machine.on());
    let trains = bench.trains;
    bench.run(SECOND);
    assert_eq!(bench.trains, trains + 1, "asked anew");
}

#[test]
fn an_idle_path_is_never_asked_one_little_used_once_and_a_busy_one_seldom() {
    let mut bench = Bench::new(1);
    (bench.outlook.busy, bench.outlook.datagrams) = (false, 0);
    bench.run(600 * SECOND);
    assert_eq!((bench.trains, bench.singles), (0, 0));
    bench.outlook.datagrams = 1;
    bench.run(600 * SECOND);
    assert_eq!((bench.trains, bench.singles), (1, 0));
    bench.outlook.busy = true;
    bench.run(60 * SECOND);
    assert!((15..=21).contains(&bench.trains), "{}", bench.trains);
    assert_eq!(bench.singles, 0, "singly only in doubt");
}

#[test]
fn the_first_train_waits_for_the_size_but_not_for_ever() {
    let mut bench = Bench::new(1);
    bench.outlook.settled = false;
    bench.run(SECOND);
    assert_eq!(bench.trains, 0);
    bench.run(2 * SECOND);
    assert_eq!(bench.trains, 1);
}

#[test]
fn where_nothing_passes_nothing_is_learned_of_trains() {
    let mut bench = Bench::new(1);
    bench.loss = 1.0;
    bench.run(60 * SECOND);
    assert!(bench.machine.on());
    bench.outlook.busy = false;
    bench.run(10 * SECOND);
    let trains = bench.trains;
    bench.run(60 * SECOND);
    assert_eq!(bench.trains, trains, "given up until frames use it");
}

#[test]
fn jumbo_trains_fit_one_send() {
    let mut bench = Bench::new(1);
    bench.outlook.datagram_bytes = 9_188;
    bench.passes = none;
    assert!(bench.until(3 * SECOND, false).is_some());
    bench.machine.reset();
    bench.outlook.datagram_bytes = 60_001;
    bench.passes = all;
    bench.outlook.datagram_bytes = 32_000;
    bench.run(10 * SECOND);
    assert!(bench.machine.on());
}

#[test]
fn strangers_and_late_replies_change_nothing() {
    let mut bench = Bench::new(1);
    assert!(!bench.machine.on_reply(bench.now, 1));
    let mut out = Vec::new();
    bench.machine.on_tick(bench.now, bench.outlook, &mut out);
    bench.machine.on_tick(bench.now, bench.outlook, &mut out);
    let late = out.remove(0).tokens;
    let later = bench.now + PATIENCE;
    bench.machine.on_tick(later, bench.outlook, &mut out);
    assert_eq!(out.iter().map(|burst| burst.joined).collect::<Vec<_>>(), [true, false], "doubted");
    assert!(late.iter().all(|token| !bench.machine.on_reply(later, *token)), "of the round before");
    assert!(bench.machine.on());
}
