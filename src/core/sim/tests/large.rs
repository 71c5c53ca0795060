//! Meshes above the size where everyone links to everyone. The benchmark runs the whole with a thousand.

use super::*;
use crate::sim::figures::{Figures, measure, measure_settled};

/// What holds for every size.
fn cheap(figures: &Figures) {
    println!("{figures:#?}");
    assert!((6..=12).contains(&figures.links));
    assert!(figures.told.is_some_and(|told| told <= ms(1000)));
    // A change crosses each link about once each way, and what goes along with it.
    assert!(figures.told_messages <= (figures.peers * (figures.links + 1)) as u64);
    assert!(figures.told_bytes <= 4000);
    assert!(figures.idle < 1000);
}

#[test]
fn a_hundred_peers_agree_soon_rest_cheaply_and_heal() {
    let figures = measure(seed(), 100);
    cheap(&figures);
    assert!(figures.records_redundant * 10 <= figures.records * 9);
    assert!(figures.joined.is_some_and(|joined| joined <= ms(3000)));
    assert!(figures.parted);
    assert!(figures.healed.is_some_and(|healed| healed <= Duration::from_secs(30)));
}

#[test]
fn a_thousand_peers_learn_of_a_change_within_a_second_and_rest_cheaply() {
    let figures = measure_settled(seed(), 1000);
    cheap(&figures);
    assert!(figures.joined.is_some_and(|joined| joined <= ms(2000)));
}
