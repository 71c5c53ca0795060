use std::collections::BTreeSet;
use std::sync::atomic::AtomicUsize;

use proptest::prelude::*;

use super::*;

/// What the window must do, slowly: all numbers ever accepted, and the newest block of each slot.
#[derive(Default)]
struct Reference {
    seen: BTreeSet<u64>,
    newest: std::collections::BTreeMap<u64, u64>,
}

impl Reference {
    fn accept(&mut self, counter: u64) -> bool {
        let block = counter / 32;
        let newest = self.newest.entry(block % SLOTS as u64).or_insert(block);
        if counter >= COUNTER_MAX || block < *newest {
            return false;
        }
        *newest = block;
        self.seen.insert(counter)
    }
}

#[test]
fn the_first_counters() {
    let window = ReplayWindow::default();
    for counter in 0..10_000 {
        assert!(window.accept(counter), "{counter}");
        assert!(!window.accept(counter), "{counter} again");
    }
    let window = ReplayWindow::default();
    assert!(window.accept(4_096), "slot 0, block 128, before block 0");
    assert!(!window.accept(0));
    assert!(window.accept(32), "another slot");
}

#[test]
fn old_ones_are_refused_and_a_window_is_remembered() {
    let window = ReplayWindow::default();
    let newest = 1_000_000;
    assert!(window.accept(newest));
    for counter in newest - 4_000..newest {
        assert!(window.accept(counter), "{counter} lies within the window");
        assert!(!window.accept(counter), "{counter} again");
    }
    for counter in newest..newest + 8_192 {
        window.accept(counter);
    }
    for counter in newest - 4_000..newest {
        assert!(!window.accept(counter), "{counter} was seen long ago");
    }
}

#[test]
fn the_end_of_counters() {
    let window = ReplayWindow::default();
    assert!(window.accept(COUNTER_MAX - 1));
    assert!(!window.accept(COUNTER_MAX - 1));
    assert!(!window.accept(COUNTER_MAX));
    assert!(!window.accept(u64::MAX));
}

#[test]
fn wrapping_numbers_go_on_after_the_last() {
    for start in [0, 1, 31, 32, 5_000, 1 << 31, u32::MAX - 3, u32::MAX - 6_000] {
        let window = ReplayWindow::default();
        for step in 0..10_000u32 {
            let number = start.wrapping_add(step);
            assert!(window.accept_wrapping(number), "{number} after {start}");
            assert!(!window.accept_wrapping(number), "{number} again");
        }
        for step in 0..5_000u32 {
            assert!(!window.accept_wrapping(start.wrapping_add(step)), "old {step} after {start}");
        }
    }
}

proptest! {
    #[test]
    fn agrees_with_the_reference(start in prop_oneof![Just(0u64), 0..COUNTER_MAX], steps in prop::collection::vec(-6_000i64..6_500, 1..400)) {
        let (window, mut reference) = (ReplayWindow::default(), Reference::default());
        let mut at = start;
        for step in steps {
            let counter = at.saturating_add_signed(step);
            prop_assert_eq!(window.accept(counter), reference.accept(counter), "{}", counter);
            prop_assert!(!window.accept(counter));
            at = at.max(counter);
        }
    }

    #[test]
    fn wrapping_never_accepts_twice(start in any::<u32>(), steps in prop::collection::vec(-6_000i32..6_500, 1..400)) {
        let (window, mut seen) = (ReplayWindow::default(), BTreeSet::new());
        for step in steps {
            let number = start.wrapping_add_signed(step);
            let accepted = window.accept_wrapping(number);
            prop_assert!(!accepted || seen.insert(number), "{} twice", number);
        }
    }
}

#[test]
fn threads_accept_each_counter_once() {
    const THREADS: usize = 4;
    const COUNTERS: usize = 40_000;
    for round in 0..5 {
        let window = ReplayWindow::default();
        let accepted: Vec<AtomicUsize> = (0..COUNTERS).map(|_| AtomicUsize::new(0)).collect();
        let barrier = std::sync::Barrier::new(THREADS);
        std::thread::scope(|scope| {
            for thread in 0..THREADS {
                let (window, accepted, barrier) = (&window, &accepted, &barrier);
                scope.spawn(move || {
                    for base in (0..COUNTERS).step_by(1_000) {
                        barrier.wait();
                        for offset in 0..1_000 {
                            // Each thread goes through the same thousand in another order.
                            let counter = base + (offset * [1, 7, 333, 999][thread] + round) % 1_000;
                            if window.accept(counter as u64) {
                                accepted[counter].fetch_add(1, Relaxed);
                            }
                        }
                    }
                });
            }
        });
        assert!(accepted.iter().all(|count| count.load(Relaxed) == 1), "each exactly once");
    }
}
