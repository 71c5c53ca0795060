//! A mesh above the size where everyone links to everyone. The benchmark runs the same with a thousand.

use super::*;
use crate::sim::figures::measure;

#[test]
fn a_hundred_peers_agree_soon_and_rest_cheaply() {
    let figures = measure(seed(), 100);
    println!("{figures:#?}");
    assert!(figures.joined.is_some_and(|joined| joined <= ms(2000)));
    assert!((6..=12).contains(&figures.links));
    assert!(figures.told.is_some_and(|told| told <= ms(1000)));
    // A change crosses each link about once each way: nine links, and what goes along with it.
    assert!(figures.told_messages <= 1000);
    assert!(figures.told_bytes <= 4000);
    assert!(figures.records_redundant * 10 <= figures.records * 9);
    assert!(figures.idle < 1000);
    assert!(figures.parted);
    assert!(figures.healed.is_some_and(|healed| healed <= Duration::from_secs(30)));
}
